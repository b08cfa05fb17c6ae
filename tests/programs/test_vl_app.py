"""The page of `hf-jepa demo-vl`: what it computes; and, in a browser, the page itself."""

import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from hf_jepa.cli import main
from hf_jepa.programs.vl_app import build_page, draw_pca, ranked_texts
from tests.stand_ins import vl_pipeline


@pytest.fixture
def pipeline():
    return vl_pipeline()


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_ranks_are_the_pipeline_s(pipeline, picture, write_video, tmp_path):
    found = ranked_texts(pipeline, picture, None, "", "cat\n\n dog \nbird\ncat")
    expected = pipeline.retrieve_texts(["cat", "dog", "bird"], images=[picture], top_k=None)[0]
    assert list(found.items()) == [(text, pytest.approx(score)) for text, score, _ in expected]
    asked = ranked_texts(pipeline, picture, None, "a", "cat\ndog")
    assert asked["cat"] != pytest.approx(found["cat"], abs=1e-4)
    video = write_video(tmp_path / "clip.mp4")
    assert set(ranked_texts(pipeline, None, str(video), "", "cat\ndog")) == {"cat", "dog"}
    for given in ((picture, None), (None, str(video))):
        assert draw_pca(pipeline, *given, tmp_path / "pca.png").stat().st_size > 1000


def test_bad_input(pipeline, picture, tmp_path):
    with pytest.raises(ValueError, match="There is no text to choose from"):
        ranked_texts(pipeline, picture, None, "", " \n")
    with pytest.raises(ValueError, match="either an image or a video"):
        ranked_texts(pipeline, None, None, "", "cat")
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match="Image 0 cannot be read"):
        ranked_texts(pipeline, str(tmp_path / "bad.png"), None, "", "cat")


def test_without_gradio_or_a_model_the_command_says_what_is_missing(pipeline, tmp_path, capsys, monkeypatch):
    assert main(["demo-vl", str(tmp_path / "nowhere")]) == 1
    assert "Cannot load a VL-JEPA" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install hf-jepa\[demo\]"):
        build_page(pipeline)


@pytest.mark.slow
def test_a_browser_ranks_texts_for_a_picture(pipeline, picture, tmp_path):
    # `make test-slow` installs both, and Chromium.
    from playwright.sync_api import sync_playwright

    page = build_page(pipeline)
    _, address, _ = page.launch(prevent_thread_lock=True, server_port=None, quiet=True)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1200, "height": 1000})
            tab.goto(address)
            tab.locator("input[type=file]").first.set_input_files(picture)
            tab.locator("#candidates textarea").fill("cat\ndog\nbird")
            tab.locator("img[alt], .image-frame img").first.wait_for(timeout=20_000)
            tab.locator("#rank").click()
            tab.locator("#ranks").get_by_text("bird").first.wait_for(timeout=30_000)
            tab.locator("#pca img").first.wait_for(timeout=30_000)
            shown = tab.locator("#ranks").inner_text()
            tab.screenshot(path=str(tmp_path / "page.png"))
            best = pipeline.retrieve_texts(["cat", "dog", "bird"], images=[picture])[0]
            places = [shown.index(entry.text, shown.index(best[0].text)) for entry in best]
            assert places == sorted(places)
            # What cannot be ranked is said on the page.
            tab.locator("#candidates textarea").fill("")
            tab.locator("#rank").click()
            tab.get_by_text("There is no text to choose from").first.wait_for(timeout=30_000)
            browser.close()
    finally:
        page.close()
