"""`hf-jepa report`: its numbers are the probes', and it tells a useful encoder from a collapsed one."""

import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import AutoModel

from hf_jepa.cli import main
from hf_jepa.data.decoding import decode_image
from hf_jepa.evaluation import ClipProtocol, evaluate_model
from hf_jepa.evaluation.encoder_report import CLIP_CORRUPTIONS, CORRUPTIONS, OURS, PIXELS, UNTRAINED
from hf_jepa.programs.feature_report import _draw
from tests import stand_ins


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    torch.manual_seed(1)  # the report's untrained encoder is drawn with 0
    return stand_ins.save_ijepa(tmp_path_factory.mktemp("encoder") / "release")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes that differ in colour, in two splits."""
    folder = tmp_path_factory.mktemp("photos")
    features = Features({"image": Image(), "label": Value("int64")})
    for seed, split in enumerate(("train", "test")):
        noise = np.random.default_rng(seed).integers(0, 120, (36, 16, 16, 3), dtype=np.uint8)
        for index, pixels in enumerate(noise):
            pixels[..., index % 3] += 100
        rows = {"image": [PILImage.fromarray(pixels) for pixels in noise], "label": [i % 3 for i in range(36)]}
        Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


def report(release, photos, folder, *flags):
    command = ["report", str(release), "--dataset", str(photos), "--output", str(folder), "--device", "cpu", *flags]
    assert main(command) == 0
    return json.loads((folder / "report.json").read_text())


def test_the_page_has_the_probes_numbers(release, photos, tmp_path, capsys):
    found = report(release, photos, tmp_path / "report", "--k", "5")
    for measure, task, options in (("k-NN", "knn", {"k": 5}), ("ridge", "ridge", {})):
        expected = evaluate_model(release, photos, task, device="cpu", progress=False, **options)
        assert found["numbers"][measure][OURS] == pytest.approx(expected["evaluations"][0]["value"])
    collapse = evaluate_model(release, photos, "collapse", device="cpu", progress=False)["evaluations"]
    assert found["verdict"] == collapse[0]["verdict"]
    for entry in collapse:
        if entry["metric"] in found["numbers"]:
            assert found["numbers"][entry["metric"]][OURS] == pytest.approx(entry["value"])
    assert found["numbers"]["k-NN"][PIXELS] > 0.9
    for measure in ("k-NN", "ridge", "attentive", "1 per class", "10 per class", *(f"k-NN, {k}" for k in CORRUPTIONS)):
        assert found["numbers"][measure].keys() == {OURS, UNTRAINED, PIXELS}, measure
    assert found["numbers"]["feature_std"][UNTRAINED] != pytest.approx(found["numbers"]["feature_std"][OURS], rel=1e-3)
    for kind in CORRUPTIONS:
        assert all(0 < value < 0.999 for value in found["numbers"][f"cosine, {kind}"].values()), kind
    page = (tmp_path / "report" / "report.md").read_text()
    assert f"| k-NN | {100 * found['numbers']['k-NN'][OURS]:.1f} |" in page
    assert "hf-jepa report" in page
    for picture in ("neighbours.png", "pca.png"):
        assert f"]({picture})" in page
        assert (tmp_path / "report" / picture).stat().st_size > 1000
    assert page in capsys.readouterr().out


def test_batches_change_no_number(release, photos, tmp_path):
    whole, cut = (report(release, photos, tmp_path / size, "--batch-size", size)["numbers"] for size in ("64", "7"))
    assert whole.keys() == cut.keys()
    for measure, values in whole.items():
        assert values == pytest.approx(cut[measure], rel=1e-4), measure


def test_a_row_is_decoded_once_for_all_corruptions(release, photos, tmp_path, monkeypatch):
    decoded = []

    def counted(value):
        decoded.append(value)
        return decode_image(value)

    monkeypatch.setattr("hf_jepa.data.dataset.decode_image", counted)
    report(release, photos, tmp_path / "report", "--num-workers", "0", "--max-test", "12", "--max-train", "30")
    # One test row is looked at before; training rows are read once for each column.
    assert len(decoded) == 1 + 12 + 3 * 30


def test_pictures_show_every_class(release, photos, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "hf_jepa.programs.feature_report.plot_neighbours", lambda pixels, *_: drawn.update(pixels=pixels)
    )
    for split in ("train", "test"):
        rows = Dataset.from_parquet(str(photos / f"{split}.parquet"), cache_dir=str(tmp_path / "cache"))
        rows.sort("label").to_parquet(str(tmp_path / "sorted" / f"{split}.parquet"))
    report(release, tmp_path / "sorted", tmp_path / "report", "--unlabelled")
    assert len(drawn["pixels"][:6].mean(dim=(2, 3)).argmax(dim=1).unique()) == 3


def test_a_collapsed_encoder_is_called_so_without_labels(release, photos, tmp_path):
    encoder = AutoModel.from_pretrained(release)
    with torch.no_grad():
        encoder.layernorm.weight.mul_(1e-6)
        encoder.layernorm.bias.fill_(1.0)
    encoder.save_pretrained(tmp_path / "collapsed")
    for name in ("preprocessor_config.json",):
        (tmp_path / "collapsed" / name).write_bytes((release / name).read_bytes())
    found = report(tmp_path / "collapsed", photos, tmp_path / "report", "--unlabelled")
    assert found["verdict"] == "collapsed"
    assert "k-NN" not in found["numbers"]
    assert found["chance"] is None
    assert found["numbers"]["relative_std"][UNTRAINED] > 0.01 > found["numbers"]["relative_std"][OURS]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folders of frames in which a bar moves to the right or to the left, in two splits."""
    folder = tmp_path_factory.mktemp("clips")
    draws = np.random.default_rng(0)
    for split, label, number in itertools.product(("train", "test"), (0, 1), range(10)):
        clip = folder / split / ("left", "right")[label] / str(number)
        clip.mkdir(parents=True)
        start = draws.integers(16)
        for time in range(4):
            pixels = draws.integers(0, 90, (16, 24, 3), dtype=np.uint8)
            pixels[:, (start + (5 if label else -5) * time) % 20 :][:, :4] = 240
            PILImage.fromarray(pixels).save(clip / f"{time}.png")
    return folder


def test_clips_have_a_page_too(clips, tmp_path):
    video = stand_ins.save_vjepa2(tmp_path / "video")
    flags = ("--num-frames", "4", "--frame-step", "1")
    found = report(video, clips, tmp_path / "report", *flags, "--k", "3")
    expected = evaluate_model(
        video, clips, "knn", k=3, clips=ClipProtocol(4, frame_step=1), device="cpu", progress=False
    )
    assert found["numbers"]["k-NN"][OURS] == pytest.approx(expected["evaluations"][0]["value"])
    for measure in ("k-NN", "ridge", "attentive", "10 per class", *(f"k-NN, {k}" for k in CLIP_CORRUPTIONS)):
        assert found["numbers"][measure].keys() == {OURS, UNTRAINED, PIXELS}, measure
    # A first frame is what it was, and no more.
    assert 0 < found["numbers"]["cosine, first frame only"][PIXELS] < 0.9
    page = (tmp_path / "report" / "report.md").read_text()
    assert "20 train clips" in page
    assert "num_frames 4" in page
    assert found["pictures"] == ["neighbours.png", "pca.png"]
    assert all((tmp_path / "report" / picture).stat().st_size > 1000 for picture in found["pictures"])


def test_a_corruption_of_a_clip_is_that_of_its_frames():
    clip = torch.rand(3, 1, 20, 12, generator=torch.Generator().manual_seed(0))
    for kind in ("blur", "crop"):
        frames = torch.stack([CORRUPTIONS[kind](frame) for frame in clip])
        torch.testing.assert_close(CORRUPTIONS[kind](clip), frames)
    assert torch.equal(CLIP_CORRUPTIONS["first frame only"](clip)[2], clip[0])


@pytest.mark.parametrize(
    ("flags", "way_out"), [((), "--num-frames 16"), (("--frame-step", "2"), "give --num-frames too")]
)
def test_clips_that_were_not_asked_for_are_refused(flags, way_out, photos, tmp_path, capsys):
    video = stand_ins.save_vjepa2(tmp_path / "video")
    assert main(["report", str(video), "--dataset", str(photos), *flags]) == 1
    assert way_out in capsys.readouterr().err


def test_images_of_many_bands_have_numbers_and_no_pictures(tmp_path):
    report = SimpleNamespace(pixels=torch.zeros(4, 12, 16, 16))
    assert _draw(report, None, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_what_a_report_lacks_is_said_before_the_work(release, photos, tmp_path, monkeypatch, capsys):
    one = stand_ins.save_photos(tmp_path / "one", 1)
    assert main(["report", str(release), "--dataset", str(one), "--unlabelled"]) == 1
    assert "at least two test rows, got 1" in capsys.readouterr().err
    assert main(["report", str(release), "--dataset", str(one), "--holdout", "0.2"]) == 1
    assert "--unlabelled" in capsys.readouterr().err
    assert main(["report", "no/such", "--dataset", str(one), "--unlabelled"]) == 1
    assert "'no/such', which is no folder here" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", "not/opened", "--dataset", str(photos)]) == 1
    assert "hf-jepa[viz]" in capsys.readouterr().err
