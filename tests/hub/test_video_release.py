"""A release of a video model, as its readers find it."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoVideoProcessor, VJEPA2VideoProcessor

from hf_jepa import (
    VJepa2ForPreTraining,
    VJepa2PreTrainingConfig,
    VJepaConfig,
    VJepaForPreTraining,
    VJepaForVideoClassification,
    VJepaModel,
    VJepaPreTrainingConfig,
)
from hf_jepa.hub import check_release, load_pretraining, save_release
from hf_jepa.hub.release import save_video_classifier
from tests.processes import run_script

RESULTS = {
    "model": {"name": "tiny"},
    "data": {"name": "someone/clips", "fps": 4},
    "training": {"steps": 7, "images_per_second": 12.5},
    "licence": "apache-2.0",
}
SIZES = {
    "patch_size": 4, "crop_size": 16, "frames_per_clip": 4, "hidden_size": 24, "num_attention_heads": 2,
    "pred_hidden_size": 24, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2,
}  # fmt: skip

# Runs where `import hf_jepa` fails, as on a machine that has only transformers.
PLAIN_USER = """
import sys
sys.modules["hf_jepa"] = None
import torch
from transformers import AutoModel, AutoVideoProcessor
folder, frames, out = sys.argv[1:]
try:
    import hf_jepa
except ImportError:
    pass
else:
    raise SystemExit("hf_jepa could be imported")
processor = AutoVideoProcessor.from_pretrained(folder)
inputs = processor(torch.load(frames, weights_only=True), return_tensors="pt")
model = AutoModel.from_pretrained(folder)
with torch.no_grad():
    output = model(**inputs)
torch.save(
    {
        "pixels": inputs["pixel_values_videos"],
        "features": output.last_hidden_state,
        "predictions": output.predictor_output.last_hidden_state,
        "class": type(model).__name__,
    },
    out,
)
"""


def composite(generation: str) -> VJepaForPreTraining:
    """A small model of a generation, its two encoders told apart."""
    classes = {"1": (VJepaForPreTraining, VJepaPreTrainingConfig)}
    model_class, config_class = classes.get(generation, (VJepa2ForPreTraining, VJepa2PreTrainingConfig))
    config = config_class.from_size("base", generation, **SIZES)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.target_encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model() -> VJepa2ForPreTraining:
    return composite("2")


@pytest.fixture
def release(model, tmp_path) -> Path:
    return save_release(model, tmp_path / "release", results=RESULTS)


def test_plain_transformers_gets_features_and_predictions(model, release, tmp_path):
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 20, 30), dtype=np.uint8))
    torch.save(frames, tmp_path / "frames.pt")
    done = run_script(PLAIN_USER, release, tmp_path / "frames.pt", tmp_path / "out.pt")
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert out["class"] == "VJEPA2Model"
    assert out["pixels"].shape == (1, 4, 3, 16, 16)
    target = model.get_features(out["pixels"], which="target")
    torch.testing.assert_close(out["features"], target, rtol=0, atol=1e-5)
    assert not torch.allclose(out["features"], model.get_features(out["pixels"], which="context"), atol=1e-3)
    # The predictor is part of the root: in-tree predicts every token, with mask token 1.
    everything = [torch.arange(target.shape[1]).unsqueeze(0)]
    with torch.no_grad():
        (predicted,), _ = model.predictor([target], everything, everything, [(2, 4, 4)], [1])
    torch.testing.assert_close(out["predictions"], predicted, rtol=0, atol=1e-5)


def test_processor_is_the_evaluation_transform_written_out(release):
    written = json.loads((release / "video_preprocessor_config.json").read_text())
    assert written["crop_size"] == {"height": 16, "width": 16}
    assert written["size"] == {"shortest_edge": int(16 * 256 / 224)}
    assert (written["image_mean"], written["image_std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    processor = AutoVideoProcessor.from_pretrained(release)
    assert isinstance(processor, VJEPA2VideoProcessor)
    frames = torch.tensor([255, 0, 128], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 16, 16)
    pixels = processor(frames, return_tensors="pt")["pixel_values_videos"]
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(pixels[0, 1, :, 3, 5], torch.tensor(expected), rtol=0, atol=1e-5)


def test_what_lies_in_the_folder(release):
    check_release(release)
    files = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "config.json",
        "model.safetensors",
        "pretraining/config.json",
        "pretraining/model.safetensors",
        "results.json",
        "video_preprocessor_config.json",
    }
    (release / "video_preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"video_preprocessor_config\.json"):
        check_release(release)


@pytest.mark.parametrize("generation", ["1", "2", "2.1"])
def test_both_floors_of_every_generation(generation, tmp_path):
    model = composite(generation)
    folder = save_release(model, tmp_path / "release", results=RESULTS)
    loaded = load_pretraining(folder, subfolder="pretraining")
    assert type(loaded) is type(model)
    assert type(AutoModelForPreTraining.from_pretrained(folder / "pretraining")) is type(model)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    clip = torch.randn(1, 4, 3, 16, 16)
    root = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        features = root(clip, skip_predictor=True).last_hidden_state
    torch.testing.assert_close(features, model.get_features(clip), rtol=0, atol=1e-5)
    assert (type(root) is VJepaModel) is (generation != "2")
    assert root.config.jepa_encoder == "target"


@pytest.mark.parametrize(
    ("generation", "name", "paper"),
    [("1", "V-JEPA", "2404.08471"), ("2", "V-JEPA 2", "2506.09985"), ("2.1", "V-JEPA 2.1", "2603.14482")],
)
def test_cards_say_what_they_need(generation, name, paper, tmp_path):
    folder = save_release(composite(generation), tmp_path / "release", results=RESULTS)
    card = (folder / "README.md").read_text()
    assert f"{name} learns" in card
    assert f"the whole {name} model" in card
    assert paper in card
    assert "clips of 4 frames at 4 per second" in card
    assert "| clips per second | 12.5 |" in card
    assert "video_preprocessor_config.json" in card
    assert "pipeline_tag: feature-extraction" in card
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    for snippet in snippets:
        ast.parse(snippet)
    plain = generation == "2"
    assert ("import hf_jepa" not in snippets[0]) is plain
    assert ("nothing but `transformers`" in card) is plain
    assert ("needs `import hf_jepa`" not in card) is plain
    frames = torch.zeros(4, 3, 20, 20, dtype=torch.uint8)
    namespace = {"frames": frames}
    exec(snippets[0].replace('"tiny"', repr(str(folder))), namespace)
    assert namespace["features"].shape == (1, 24)


def test_context_encoder_can_be_the_root(model, tmp_path):
    folder = save_release(model, tmp_path / "release", results=RESULTS, which="context")
    clip = torch.randn(1, 4, 3, 16, 16)
    with torch.no_grad():
        features = AutoModel.from_pretrained(folder)(clip, skip_predictor=True).last_hidden_state
    torch.testing.assert_close(features, model.get_features(clip, which="context"), rtol=0, atol=1e-5)


def test_classifiers_have_one_floor_and_a_card_of_their_own(tmp_path):
    config = VJepaConfig(**SIZES, num_hidden_layers=1, num_labels=5, pooler_num_attention_heads=2)
    model = VJepaForVideoClassification(config).eval()
    folder = save_video_classifier(model, tmp_path / "release", results=RESULTS)
    check_release(folder)
    card = (folder / "README.md").read_text()
    assert "video classifier** of 5 classes" in card
    assert "pretraining/" not in card
    assert "no classification head" not in card
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    namespace = {"frames": torch.zeros(4, 3, 20, 20, dtype=torch.uint8)}
    exec(snippet.replace('"tiny"', repr(str(folder))), namespace)
    assert namespace["logits"].shape == (1, 5)
