"""A release over another: what is there afterwards is the one or the other, whole, and nobody's own file is lost."""

import errno
import json
import os

import pytest
import torch
from transformers import AutoModel, IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig
from hf_jepa.hub import check_release, replacing, save_release, staging

RESULTS = {"model": {"name": "tiny"}, "licence": "mit"}


def build(width: int = 8) -> IJepaForPreTraining:
    encoder = IJepaConfig(
        hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    config = IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    return IJepaForPreTraining(config).eval()


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def release(tmp_path):
    return save_release(build(), tmp_path / "release", results=RESULTS)


def no_exchange(one, other):
    raise OSError(errno.EINVAL, "not on this file system")


def assert_is(folder, model):
    pixels = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(AutoModel.from_pretrained(folder)(pixels).last_hidden_state, model.get_features(pixels))


@pytest.mark.parametrize("two_steps", [False, True])
def test_an_earlier_release_leaves_nothing_behind(release, monkeypatch, two_steps):
    """Shards, an adapter and pictures of the earlier release would be loaded, or shown, instead of the new one's."""
    stale = ("adapter_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "old.png")
    for name in stale:
        (release / name).write_text("{}")
    results = json.loads((release / "results.json").read_text())
    results["files"] += stale
    (release / "results.json").write_text(json.dumps(results))
    if two_steps:
        monkeypatch.setattr(replacing, "exchange", no_exchange)
    model = build(12)
    save_release(model, release, results=RESULTS)
    assert not set(stale) & set(os.listdir(release))
    assert_is(check_release(release), model)
    assert os.listdir(release.parent) == ["release"]


def test_a_release_without_a_list_of_its_files_is_replaced_too(release):
    (release / "adapter_config.json").write_text("{}")
    (release / "model-00001-of-00002.safetensors").write_bytes(b"")
    (release / "old.png").write_bytes(b"")
    results = json.loads((release / "results.json").read_text())
    del results["files"]
    results["pictures"] = [{"file": "old.png", "caption": "old"}]
    (release / "results.json").write_text(json.dumps(results))
    model = build(12)
    save_release(model, release, results=RESULTS)
    assert {path.name for path in release.iterdir()} == {*json.loads((release / "results.json").read_text())["files"]}
    assert_is(release, model)


@pytest.mark.parametrize("two_steps", [False, True])
def test_files_of_others_are_kept_with_a_word(release, monkeypatch, two_steps):
    (release / "notes.txt").write_text("mine")
    (release / "checkpoint-3").mkdir()
    (release / "checkpoint-3" / "model.safetensors").write_bytes(b"weights")
    words = []
    monkeypatch.setattr(staging.logger, "warning", words.append)
    if two_steps:
        monkeypatch.setattr(replacing, "exchange", no_exchange)
    save_release(build(), release, results=RESULTS)
    assert (release / "notes.txt").read_text() == "mine"
    assert (release / "checkpoint-3" / "model.safetensors").read_bytes() == b"weights"
    assert [word.partition(": ")[2] for word in words] == ["checkpoint-3, notes.txt."]


def test_a_model_that_is_no_release_is_not_written_over(tmp_path):
    build().export_encoder().save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "results.json").write_text('{"accuracy": 0.9}')
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json, model\.safetensors, results\.json.*choose another folder"):
        save_release(build(12), tmp_path / "mine", results=RESULTS)
    assert files(tmp_path) == before


def test_a_picture_does_not_replace_somebodys_file(release, tmp_path):
    (release / "curves.png").write_bytes(b"mine")
    (tmp_path / "curves.png").write_bytes(b"new")
    before = files(release)
    with pytest.raises(ValueError, match=r"curves\.png"):
        save_release(build(12), release, results=RESULTS, pictures=[tmp_path / "curves.png"])
    assert files(release) == before


@pytest.mark.parametrize("step", ["save", "check", "link", "exchange", "second step"])
def test_whatever_fails_the_old_release_stays(release, monkeypatch, step):
    (release / "notes.txt").write_text("mine")
    before = files(release)
    model = build(12)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    targets = {
        "save": (model, "save_pretrained"),
        "check": (staging, "check_release"),
        "link": (replacing, "_link"),
        "exchange": (replacing, "exchange"),
        "second step": (replacing, "exchange"),
    }
    monkeypatch.setattr(*targets[step], no_exchange if step == "second step" else fail)
    if step == "second step":
        replace = os.replace

        def replace_but_once(source, destination):
            if str(source).endswith(".new"):
                monkeypatch.setattr(os, "replace", replace)
                raise KeyboardInterrupt
            replace(source, destination)

        monkeypatch.setattr(os, "replace", replace_but_once)
    with pytest.raises(KeyboardInterrupt):
        save_release(model, release, results=RESULTS)
    assert files(release) == before
    assert os.listdir(release.parent) == ["release"]


def test_after_a_kill_between_the_two_steps_the_next_run_starts_from_the_old_release(release):
    (release / "notes.txt").write_text("mine")
    release.rename(replacing.previous_of(release))
    (release.parent / ".release.new").mkdir()
    model = build(12)
    save_release(model, release, results=RESULTS)
    assert_is(release, model)
    assert (release / "notes.txt").read_text() == "mine"
    assert os.listdir(release.parent) == ["release"]


def test_places_that_cannot_be_replaced_are_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        staging.check_place(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="working directory"):
        staging.check_place(".")


def test_two_models_in_one_folder_are_no_release(release):
    (release / "model-00001-of-00002.safetensors").write_bytes((release / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="belongs to another model"):
        check_release(release)


def test_who_may_read_the_card_may_read_the_weights(release):
    modes = {path.stat().st_mode for path in release.rglob("*") if path.is_file()}
    assert modes == {(release / "README.md").stat().st_mode}
