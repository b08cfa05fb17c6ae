"""Over 200 broken files: each ends in an error that names it, or in a sample of a row beside it; nothing runs."""

import importlib
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers.utils import logging

from hf_jepa.conversion.original_files import load_original_checkpoint
from hf_jepa.data import (
    ClipSampler,
    SeededImageDataset,
    SeededVideoDataset,
    TooManyBadEpisodesError,
    TrajectoryWindows,
    decode_image,
    eval_transform,
)
from hf_jepa.data import decoding as image_decoding
from hf_jepa.hub import load_pretraining
from hf_jepa.hub.card import render_card_file
from hf_jepa.programs.launch import program_of
from hf_jepa.programs.pretrain_image import PROGRAM
from hf_jepa.programs.program import RunArguments
from hf_jepa.programs.recipes import parse_recipe, resolved
from hf_jepa.programs.train_world_model import build_model, load_trajectories
from hf_jepa.programs.world_model_arguments import TrajectoryArguments, WorldModelArguments
from hf_jepa.training import JepaTrainingArguments
from tests.robustness import broken_inputs
from tests.robustness.test_full_disk import build_trainer

FAMILIES = ("ijepa", "data2vec_vision", "vjepa", "vjepa2", "vjepa2_ac")
# Damage that a reader may not notice: a few changed pixels, text where a card shows text.
HARMLESS = re.compile(
    r"flipped|hole|cut|^(data|training|compute|evaluations|baselines|pictures|limits)-\d|^negative\.|licence-3"
)
KINDS = ("image", "recipe", "results", "trajectories", "model", "checkpoint")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("broken")
    return {kind: broken_inputs.make(kind, folder / kind) for kind in KINDS}


@pytest.fixture(autouse=True)
def _nothing_runs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    assert not broken_inputs.TRACE.exists()


def check(paths: list[Path], read: Callable[[Path], object], *typed: type[Exception]) -> None:
    """All of them end in errors that name them, but for those whose damage may be harmless."""
    for path in paths:
        try:
            read(path)
        except (ValueError, OSError, *typed) as error:
            message = str(error) if not isinstance(error, typed) else path.name
        except BaseException as error:
            raise AssertionError(f"{path} ends in {type(error).__name__}: {error}") from error
        else:
            assert HARMLESS.search(path.name), f"{path} was read"
            continue
        assert path.name in message, f"{path} is not named by: {message}"
        # The longest is transformers' list of all its model types.
        assert len(message) < 20_000, path


def test_there_are_over_two_hundred(broken: dict[str, list[Path]]) -> None:
    assert sum(map(len, broken.values())) >= 200


def test_images_are_replaced_by_the_next_row_and_named(
    broken: dict[str, list[Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PILImage.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "good.png")
    paths = broken["image"]
    for path in paths:
        rows = {"image": [str(path), str(tmp_path / "good.png")], "label": [0, 1]}
        dataset = Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("int64")}))
        sample = SeededImageDataset(dataset, eval_transform(8), label_column="label", max_bad_fraction=0.5)[0]
        assert sample["label"] == 1 or HARMLESS.search(path.name), path
        assert sample["label"] == 0 or path.name in caplog.text, path
    check(paths, lambda path: _named(decode_image, path))


def _named(read: Callable[[str], object], path: Path) -> None:
    """Readers of one cell know no name; what calls them does."""
    try:
        read(str(path))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def test_videos_are_replaced_by_the_next_row_and_named(
    tmp_path: Path, write_video: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("av")
    good = write_video(tmp_path / "good.mp4", num_frames=12)
    for path in broken_inputs.make("video", tmp_path / "broken", good.read_bytes()):
        rows = Dataset.from_dict({"video": [str(path), str(good)], "label": [0, 1]})
        sampler = ClipSampler(4, frame_step=2, random_start=False)
        dataset = SeededVideoDataset(
            rows, sampler, lambda frames: frames.float(), label_column="label", max_bad_fraction=0.5
        )
        sample = dataset[0]
        assert sample["label"] == 1 or HARMLESS.search(path.name), path
        assert sample["label"] == 0 or path.name in caplog.text, path


def test_original_checkpoints(broken: dict[str, list[Path]], tmp_path: Path) -> None:
    def convert(path: Path) -> None:
        for family in FAMILIES:
            module = importlib.import_module(f"hf_jepa.conversion.{family}")
            with pytest.raises(ValueError, match=re.escape(path.name)):
                getattr(module, f"convert_{family}_checkpoint")(path, tmp_path / "out", licence="mit")
        raise ValueError(path.name)

    check(broken["checkpoint"], convert)
    assert not (tmp_path / "out").exists()


def test_models(broken: dict[str, list[Path]]) -> None:
    logging.set_verbosity_error()
    check(broken["model"], load_pretraining)
    logging.set_verbosity_warning()


def test_recipes(broken: dict[str, list[Path]], tmp_path: Path) -> None:
    def read(path: Path) -> None:
        program_of([str(path)])
        resolved(*parse_recipe((*PROGRAM.argument_types, RunArguments), [str(path), "--output_dir", str(tmp_path)]))

    check(broken["recipe"], read)


def test_results_files(broken: dict[str, list[Path]], tmp_path: Path) -> None:
    assert render_card_file_of(tmp_path, broken_inputs.WHOLE_RESULTS)
    check(broken["results"], render_card_file)


def render_card_file_of(folder: Path, results: dict) -> str:
    (folder / "results.json").write_text(json.dumps(results))
    return render_card_file(folder / "results.json")


def test_trajectories(broken: dict[str, list[Path]], tmp_path: Path) -> None:
    def read(path: Path) -> None:
        data = TrajectoryArguments(dataset=str(path), num_steps=2, frameskip=1, held_out=0.0)
        trajectories = load_trajectories(data)
        fields = {"family": "latent_world_model", "encoder_args": {"model_type": "latent_world_model_conv_encoder"}}
        windows = (trajectories, 2, 1)
        if path.name.startswith(("columns-no-images", "columns-elsewhere")):
            TrajectoryWindows(*windows, mean=[0.0, 0.0], std=[1.0, 1.0])[0]
        build_model(WorldModelArguments(**fields), data, JepaTrainingArguments(str(tmp_path)), trajectories)

    check(broken["trajectories"], read, TooManyBadEpisodesError)


@pytest.mark.parametrize(
    "damage", ["cut", *(pytest.param(d, marks=pytest.mark.slow) for d in ("list", "empty", "object"))]
)
def test_training_checkpoints(tmp_path: Path, damage: str) -> None:
    trainer = build_trainer(tmp_path / "whole")
    trainer.args.max_steps = 2
    trainer.train()
    whole = tmp_path / "whole" / "checkpoint-2"
    # What no resumed run reads.
    unread = ("preprocessor_config.json", "checkpoint_complete.json-object", "training_args.json-object")
    for path in broken_inputs.make("training checkpoint", tmp_path / "broken", whole):
        if path.parent.name.startswith(unread) or not path.parent.name.endswith(damage):
            continue
        with pytest.raises(ValueError, match=re.escape(path.parent.name)):
            build_trainer(tmp_path / "run").train(resume_from_checkpoint=str(path))


def test_absurd_images_are_bounded_by_a_limit_with_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [PILImage.new("L", (16, 16), page) for page in range(4)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    assert len(decode_image(str(tmp_path / "pages.tiff")).bands) == 4
    monkeypatch.setattr(image_decoding, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="1024 pixels, more than MAX_IMAGE_PIXELS"):
        decode_image(str(tmp_path / "pages.tiff"))


def test_views_of_few_numbers_are_refused_and_slices_are_not(tmp_path: Path) -> None:
    torch.save({"encoder": {"w": torch.arange(8.0)[2:5]}}, tmp_path / "slice.pth")
    assert load_original_checkpoint(tmp_path / "slice.pth")["encoder"]["w"].tolist() == [2.0, 3.0, 4.0]
    torch.save({"encoder": {"w": torch.ones(1).expand(10**6, 10**6)}}, tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"wide\.pth.*claims shape \(1000000, 1000000\)"):
        load_original_checkpoint(tmp_path / "wide.pth")
