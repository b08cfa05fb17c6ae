"""The page of `hf-jepa demo`: what each tab computes; the files of a Space; and, in a browser, the page itself."""

import ast
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_jepa.cli import main
from hf_jepa.programs.demo_page import build_page, images, plans
from hf_jepa.programs.demo_page.texts import draw_pca, ranked_texts
from hf_jepa.programs.demo_page.videos import draw_surprise
from tests import stand_ins


@pytest.fixture
def pipeline():
    return stand_ins.vl_pipeline()


@pytest.fixture
def picture(tmp_path):
    return str(stand_ins.save_photos(tmp_path / "photos", 1) / "0.png")


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


def test_features_and_plans_are_drawn(tmp_path):
    encoder = images.load(str(stand_ins.save_ijepa(tmp_path / "ijepa")), "cpu")
    files = [str(file) for file in sorted(stand_ins.save_photos(tmp_path / "photos", 4).iterdir())]
    assert all(file.stat().st_size > 1000 for file in images.draw_features(encoder, files, tmp_path))
    model = plans.load(str(stand_ins.save_world_model(tmp_path / "world")), "cpu")
    actions, drawn = plans.plan_between(model, files[0], files[1], 5, tmp_path)
    assert drawn.stat().st_size > 1000
    actions = torch.tensor(actions)
    assert actions.shape == (5, 2)
    assert 0.01 < actions.abs().max() <= 0.2001
    again = plans.plan_between(model, files[0], files[1], 5, tmp_path)[0]
    torch.testing.assert_close(torch.tensor(again), actions)


def test_bad_input(pipeline, picture, tmp_path):
    with pytest.raises(ValueError, match="There is no text to choose from"):
        ranked_texts(pipeline, picture, None, "", " \n")
    with pytest.raises(ValueError, match="either an image or a video"):
        ranked_texts(pipeline, None, None, "", "cat")
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match="Image 0 cannot be read"):
        ranked_texts(pipeline, str(tmp_path / "bad.png"), None, "", "cat")
    encoder = images.load(str(stand_ins.save_ijepa(tmp_path / "ijepa")), "cpu")
    for files, message in (([], "at least one image"), ([str(tmp_path / "bad.png")], "cannot be read")):
        with pytest.raises(ValueError, match=message):
            images.draw_features(encoder, files, tmp_path)
    with pytest.raises(ValueError, match="Give a video"):
        draw_surprise("nowhere", None, tmp_path)


def test_without_gradio_or_a_model_the_command_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", str(tmp_path)]) == 1
    assert "pip install 'hf-jepa[demo]'" in capsys.readouterr().err


def test_a_space_is_written_for_releases_of_the_hub_alone(tmp_path, capsys):
    assert main(["demo", "me/a", "me/b", "--space", str(tmp_path / "space")]) == 0
    folder = tmp_path / "space"
    assert {file.name for file in folder.iterdir()} == {"app.py", "requirements.txt", "README.md"}
    app = (folder / "app.py").read_text()
    calls = [node for node in ast.walk(ast.parse(app)) if isinstance(node, ast.Call)]
    assert any(getattr(call.func, "id", "") == "build_page" and ast.unparse(call.args[0]) == "['me/a', 'me/b']"
               for call in calls)  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "models:\n  - me/a\n  - me/b\n" in card
    assert "@" not in card + app
    assert "hf-jepa[demo" in (folder / "requirements.txt").read_text()
    assert main(["demo", "me/a", "--space", str(folder)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main(["demo", str(stand_ins.save_photos(tmp_path / "local")), "--space", str(tmp_path / "other")]) == 1
    assert "`hf-jepa push` it first" in capsys.readouterr().err


@pytest.fixture
def page(tmp_path):
    """The page with a tab of every kind, served; gives its address."""
    saved = {
        "ijepa": stand_ins.save_ijepa, "vjepa2": stand_ins.save_vjepa2, "vl": stand_ins.save_vl,
        "world": stand_ins.save_world_model,
    }  # fmt: skip
    releases = [str(save(tmp_path / name)) for name, save in saved.items()]
    frames = [Image.fromarray(np.full((48, 100, 3), 20 * step, np.uint8)) for step in range(4)]
    frames[0].save(tmp_path / "world" / "episodes.gif", save_all=True, append_images=frames[1:])
    page = build_page(releases, "cpu")
    _, address, _ = page.launch(prevent_thread_lock=True, server_port=None, quiet=True)
    yield address
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 420])
def test_in_a_browser_every_tab_gives_a_result(page, width, write_video, tmp_path):
    # `make test-slow` installs both, and Chromium.
    from playwright.sync_api import sync_playwright

    photos = [str(file) for file in sorted(stand_ins.save_photos(tmp_path / "photos", 4).iterdir())]
    clip = str(write_video(tmp_path / "clip.mp4", codec="libx264"))
    wait = {"timeout": 60_000}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 1000})
        faults = []
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(page)
        # A file that is given before the page listens is lost.
        tab.get_by_role("tab").first.wait_for(**wait)
        tab.wait_for_load_state("networkidle")

        def show(title: str) -> None:
            names = tab.get_by_role("tab")
            names.first.wait_for(**wait)
            if tab.get_by_role("tab", name=title).first.is_visible():
                tab.get_by_role("tab", name=title).first.click()
            else:  # a narrow page folds what does not fit
                tab.locator(".overflow-menu button").first.click()
                tab.locator(".overflow-dropdown button", has_text=title).first.click()

        def keep(name: str) -> None:
            tab.screenshot(path=str(tmp_path / f"{name}_{width}.png"), full_page=True)
            # Nothing sticks out to the right.
            assert tab.evaluate("document.documentElement.scrollWidth") <= width + 1

        tab.locator("#images input[type=file]").set_input_files(photos)
        tab.locator("#images").get_by_text("0.png").first.wait_for(**wait)
        tab.locator("#compare").click()
        for name in ("#neighbours img", "#components img"):
            tab.locator(name).first.wait_for(**wait)
        keep("images")

        show("vjepa2")
        tab.locator("#clip input[type=file]").set_input_files(clip)
        tab.locator("#clip video").first.wait_for(**wait)
        tab.locator("#measure").click()
        for name in ("#surprise img", "#video-components img"):
            tab.locator(name).first.wait_for(**wait)
        keep("videos")

        show("VL-JEPA")
        tab.locator("#candidates textarea").fill("cat\ndog\nbird")
        tab.locator("#seen input[type=file]").set_input_files(photos[0])
        tab.locator("#seen img").first.wait_for(**wait)
        tab.locator("#rank").click()
        tab.locator("#ranks").get_by_text("bird").first.wait_for(**wait)
        tab.locator("#pca img").first.wait_for(**wait)
        shown = tab.locator("#ranks").inner_text()
        from hf_jepa import VLJepaPipeline

        best = VLJepaPipeline.from_pretrained(str(tmp_path / "vl")).retrieve_texts(
            ["cat", "dog", "bird"], images=[photos[0]]
        )[0]
        places = [shown.index(entry.text, shown.index(best[0].text)) for entry in best]
        assert places == sorted(places)
        keep("texts")
        # What cannot be ranked is said on the page.
        tab.locator("#candidates textarea").fill("")
        tab.locator("#rank").click()
        tab.get_by_text("There is no text to choose from").first.wait_for(**wait)

        show("world")
        for name, photo in (("#now", photos[0]), ("#goal", photos[1])):
            tab.locator(f"{name} input[type=file]").set_input_files(photo)
            tab.locator(f"{name} img").first.wait_for(**wait)
        tab.locator("#plan").click()
        tab.locator("#distance img").first.wait_for(**wait)
        tab.locator("#actions").get_by_text("action 2").first.wait_for(**wait)
        tab.locator("#episodes img").first.wait_for(**wait)
        keep("plans")
        assert not faults
        browser.close()
