"""LeWM's published layout in, and back out."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from hf_jepa.cli import main
from hf_jepa.conversion.lewm import convert_lewm_checkpoint, export_original_checkpoint
from hf_jepa.conversion.original_files import UnsafeCheckpointError
from hf_jepa.hub import check_release

STATISTICS = {"action_mean": [0.1, -0.2], "action_std": [0.5, 1 / 3], "action_low": [-4, -4], "action_high": [4, 4]}


@pytest.fixture
def source(golden_dir, tmp_path):
    """A folder as published, and its statistics."""
    tensors = load_file(golden_dir / "lewm_forward.safetensors")
    facts = json.loads((golden_dir / "lewm_forward.json").read_text())
    folder = tmp_path / "lewm"
    folder.mkdir()
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    torch.save(weights, folder / "weights.pt")
    (folder / "config.json").write_text(json.dumps(facts["published_config"]))
    (tmp_path / "statistics.json").write_text(json.dumps(STATISTICS))
    return folder


def statistics_of(source, **changes):
    path = source.parent / "changed.json"
    values = {**STATISTICS, **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return path


def test_converts_by_command_and_gives_the_recorded_numbers(source, tmp_path, golden_dir, capsys):
    output = tmp_path / "released"
    statistics = str(tmp_path / "statistics.json")
    assert main(["convert", "lewm", str(source), str(output), "--statistics", statistics, "--license", "mit"]) == 0
    assert "wrote" in capsys.readouterr().out
    check_release(output)
    model = AutoModelForPreTraining.from_pretrained(output, subfolder="pretraining").eval()
    encoder = AutoModel.from_pretrained(output).eval()
    tensors = load_file(golden_dir / "lewm_forward.safetensors")
    with torch.no_grad():
        latents = model.encode(tensors["input/pixels"])
        predicted = model.rollout(latents[:, :1], tensors["input/action"][:, :1])
    expected = tensors["eval/emb"].unsqueeze(2)
    assert (latents - expected).abs().max() <= 1e-5 * expected.abs().max()
    expected = tensors["eval/pred"][:, :1].unsqueeze(2)
    assert (predicted - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert model.config.frameskip == 2
    assert model.config.action_std == STATISTICS["action_std"]
    torch.testing.assert_close(
        model.denormalize_actions(torch.ones(1, 4)), torch.tensor([[0.6, 1 / 3 - 0.2, 0.6, 1 / 3 - 0.2]])
    )
    processor = AutoImageProcessor.from_pretrained(output)
    assert list(processor.image_mean) == model.config.image_mean
    card = (output / "README.md").read_text()
    assert "4) actions in the environment's units" in card
    assert "weights.pt" in card
    with torch.no_grad():
        tokens = encoder(tensors["input/pixels"].flatten(0, 1)).last_hidden_state
    expected = tensors["eval/cls"].flatten(0, 1)
    assert (tokens[:, 0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_comes_back_as_it_was(source, tmp_path):
    output = convert_lewm_checkpoint(source, tmp_path / "released", statistics=tmp_path / "statistics.json")
    back = torch.load(export_original_checkpoint(output, tmp_path / "back" / "weights.pt"), weights_only=True)
    original = torch.load(source / "weights.pt", weights_only=True)
    assert list(back) == sorted(original, key=list(back).index)
    assert back.keys() == original.keys()
    for key, value in original.items():
        assert back[key].dtype == value.dtype
        assert torch.equal(back[key], value), key


def test_nothing_of_the_config_is_instantiated(source, tmp_path):
    published = json.loads((source / "config.json").read_text())
    for part in (published, published["encoder"], published["predictor"]):
        part["_target_"] = "os.system"
    (source / "config.json").write_text(json.dumps(published))
    convert_lewm_checkpoint(source, tmp_path / "released", statistics=tmp_path / "statistics.json")


class _Payload:
    def __reduce__(self):
        return (print, ("run",))


def test_pickled_code_is_refused(source, tmp_path):
    torch.save({"weights": _Payload()}, source / "weights.pt")
    with pytest.raises(UnsafeCheckpointError):
        convert_lewm_checkpoint(source, tmp_path / "released", statistics=tmp_path / "statistics.json")


def test_statistics_are_demanded(source, tmp_path, capsys):
    assert main(["convert", "lewm", str(source), str(tmp_path / "released")]) != 0
    assert "--statistics" in capsys.readouterr().err
    assert not (tmp_path / "released").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_std": None}, "`action_std` is missing"),
        ({"action_means": [0, 0]}, "`action_means` is unknown"),
        ({"action_mean": [0.0] * 3, "action_std": [1.0] * 3}, "3 action columns"),
        ({"frameskip": 5}, "frameskip 5"),
        ({"action_std": [0.0, 1.0]}, "must be positive"),
    ],
)
def test_statistics_must_fit(source, tmp_path, changes, message):
    with pytest.raises(Exception, match=message):
        convert_lewm_checkpoint(source, tmp_path / "released", statistics=statistics_of(source, **changes))
    assert not (tmp_path / "released").exists()


def test_every_key_is_accounted_for(source, tmp_path):
    weights = torch.load(source / "weights.pt", weights_only=True)
    del weights["projector.net.1.running_var"], weights["pred_proj.net.1.num_batches_tracked"]
    weights["decoder.weight"] = torch.zeros(2)
    weights["predictor.transformer.norm.bias"] = torch.zeros(5)
    torch.save(weights, source / "weights.pt")
    with pytest.raises(ValueError, match="nothing was written") as caught:
        convert_lewm_checkpoint(source, tmp_path / "released", statistics=tmp_path / "statistics.json")
    for key in ("missing: weights/projector.net.1.running_var", "missing: weights/pred_proj.net.1.num_batches"):
        assert key in str(caught.value)
    assert "extra: weights/decoder.weight" in str(caught.value)
    assert "mis-shaped: weights/predictor.transformer.norm.bias" in str(caught.value)


def test_head_counts_are_asked_for(source, tmp_path):
    published = json.loads((source / "config.json").read_text())
    del published["encoder"]["num_attention_heads"], published["encoder"]["size"]
    (source / "config.json").write_text(json.dumps(published))
    with pytest.raises(ValueError, match="--num-attention-heads"):
        convert_lewm_checkpoint(source, tmp_path / "released", statistics=tmp_path / "statistics.json")
    convert_lewm_checkpoint(
        source, tmp_path / "released", statistics=tmp_path / "statistics.json", num_attention_heads=2
    )


def test_sensorimotor_models_keep_their_inverse_model(golden_dir, source, tmp_path):
    tensors = load_file(golden_dir / "smwm_loss.safetensors")
    weights = {key.removeprefix("weights/"): value for key, value in tensors.items() if key.startswith("weights/")}
    torch.save(weights, source / "weights.pt")
    published = json.loads((source / "config.json").read_text())
    published["predictor"]["heads"] = 2
    (source / "config.json").write_text(json.dumps(published))
    output = convert_lewm_checkpoint(source, tmp_path / "released", statistics=tmp_path / "statistics.json")
    model = AutoModelForPreTraining.from_pretrained(output, subfolder="pretraining")
    assert torch.equal(model.inverse_model.layers[4].bias, weights["inverse_model.net.4.bias"])
    assert export_original_checkpoint(output, tmp_path / "weights.pt").is_file()


def test_refuses_models_of_other_parts(tmp_path):
    from hf_jepa import LatentWorldModel, LatentWorldModelConfig

    LatentWorldModel(LatentWorldModelConfig(sigreg_weight=0.1)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="not built like LeWM"):
        export_original_checkpoint(tmp_path / "other", tmp_path / "weights.pt")
