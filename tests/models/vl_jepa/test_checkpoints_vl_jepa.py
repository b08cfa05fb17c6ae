"""VL-JEPA's checkpoints: whole, with parts by reference, with adapters; and refusals that lose nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from hf_jepa import VLJepaConfig, VLJepaModel


def same(model: VLJepaModel, again: VLJepaModel, batch: dict) -> None:
    states, others = model.state_dict(), again.state_dict()
    assert states.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in states.items())
    trained = [{name for name, parameter in m.named_parameters() if parameter.requires_grad} for m in (model, again)]
    assert trained[0] == trained[1]
    ours, theirs = model.eval()(**batch), again(**batch)
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(ours.pred_embeds, theirs.pred_embeds)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "ema"},
        {"vision": "vjepa", "y_encoder": "gemma3", "predictor": "mistral"},
        {"vision": "vit", "predictor": "qwen3", "loss": "cosine", "regularizer": "sigreg"},
        {"vision": "resnet", "target": "frozen"},
        {"y_dense_layers": [{"out_features": 12, "bias": False, "activation": "tanh"}]},
    ],
    ids=["default", "ema", "gemma3", "sigreg", "resnet", "dense"],
)
@pytest.mark.parametrize("original_format", [True, False])
def test_a_checkpoint_is_the_model(make_model, batch, tmp_path, options, original_format):
    if options.get("vision") == "resnet":
        batch["pixel_values_videos"] = torch.randn(3, 2, 3, 32, 32)
    model = make_model(**options)
    with torch.no_grad():
        # Away from the start, which a fresh model would share.
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path, save_original_format=original_format)
    for auto_class in (AutoModel, AutoModelForPreTraining):
        again = auto_class.from_pretrained(tmp_path)
        assert type(again) is VLJepaModel
        same(model, again, batch)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is VLJepaConfig
    assert config.predictor_config.is_causal is False
    assert json.loads((tmp_path / "config.json").read_text())["predictor_config"]["is_causal"] is False


def test_the_y_decoder_is_saved_with_its_tied_head(make_model, make_part, batch, tmp_path):
    model = make_model(y_decoder=make_part("llama", causal=True, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.saved_state_dict().keys()
    again = AutoModel.from_pretrained(tmp_path)
    same(model, again, batch)
    language_model = again.y_decoder.language_model
    assert language_model.lm_head.weight is language_model.model.embed_tokens.weight
    tokens = model.generate_text(torch.ones(2, 16), max_new_tokens=4)
    assert torch.equal(tokens, again.generate_text(torch.ones(2, 16), max_new_tokens=4))


def test_half_precision_keeps_the_temperature_exact(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.contrast.logit_scale.dtype == torch.float32
    assert half.predictor.norm.weight.dtype == torch.bfloat16


def test_missing_keys_are_refused(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    dropped = next(name for name in weights if name.startswith("vision."))
    save_file({name: value for name, value in weights.items() if name != dropped}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not hold a whole VLJepaModel"):
        AutoModel.from_pretrained(tmp_path)


@pytest.fixture
def folders(make_part, tmp_path) -> dict[str, str]:
    """Saved parts to build from, by name."""
    for name, causal in (("vjepa2", False), ("llama", True), ("bert", False)):
        make_part(name, causal=causal).save_pretrained(tmp_path / name)
    return {
        "vision": str(tmp_path / "vjepa2"),
        "predictor": str(tmp_path / "llama"),
        "y_encoder": str(tmp_path / "bert"),
    }


def referenced(folders: dict[str, str], **options) -> VLJepaModel:
    options = {"num_layers": 2, "projection_dim": 16, "save_frozen": False, "target": "frozen", **options}
    return VLJepaModel.from_components(**folders, y_decoder=folders["predictor"], **options)


def test_frozen_parts_are_kept_by_reference(folders, batch, tmp_path):
    model = referenced(folders)
    model.save_pretrained(tmp_path / "small")
    weights = load_file(tmp_path / "small" / "model.safetensors")
    kinds = {".".join(name.split(".")[:2]) for name in weights}
    assert not kinds & {"vision.encoder", "y_encoder.model", "y_decoder.language_model"}
    assert {"y_encoder.projection", "y_decoder.prefix", "predictor.layers"} <= kinds
    same(model, AutoModel.from_pretrained(tmp_path / "small"), batch)
    # From a relative path in another place, and again from what was loaded.
    AutoModel.from_pretrained(tmp_path / "small").save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == weights.keys()
    # The whole can be made of it at any time.
    whole = AutoModel.from_pretrained(tmp_path / "small")
    whole.config.save_frozen = True
    whole.save_pretrained(tmp_path / "whole")
    shutil.rmtree(folders["vision"])
    same(model, AutoModel.from_pretrained(tmp_path / "whole"), batch)


@pytest.mark.parametrize("part", ["vision", "y_encoder", "y_decoder"])
def test_a_missing_reference_is_named(folders, tmp_path, part):
    referenced(folders).save_pretrained(tmp_path / "small")
    folder = folders["predictor" if part == "y_decoder" else part]
    shutil.move(folder, folder + "-moved")
    with pytest.raises(ValueError, match=f"keeps its `{part}` by reference to '{folder}'.*cannot be loaded"):
        AutoModel.from_pretrained(tmp_path / "small")
    config = AutoConfig.from_pretrained(tmp_path / "small")
    config.sources[part]["name_or_path"] = folder + "-moved"
    assert AutoModel.from_pretrained(tmp_path / "small", config=config) is not None


def test_another_model_behind_a_reference_is_refused(folders, make_part, tmp_path):
    referenced(folders).save_pretrained(tmp_path / "small")
    make_part("vjepa2", hidden_size=32).save_pretrained(folders["vision"])
    with pytest.raises(ValueError, match="is not the `vision` of this checkpoint"):
        AutoModel.from_pretrained(tmp_path / "small")


def test_parts_without_a_source_are_not_left_out(make_model, tmp_path):
    with pytest.raises(ValueError, match="`vision` out of the checkpoint.*does not name where it came from"):
        make_model(save_frozen=False).save_pretrained(tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_what_was_trained_is_not_replaced_by_its_source(folders, tmp_path):
    model = referenced(folders, target="shared")
    assert "y_encoder.model.embeddings.word_embeddings.weight" in model.saved_state_dict()
    model.save_pretrained(tmp_path / "trained")
    config = AutoConfig.from_pretrained(tmp_path / "trained")
    config.target = "frozen"
    config.save_frozen = True
    frozen = VLJepaModel(config)
    frozen.config.save_frozen = False
    with pytest.raises(ValueError, match="`y_encoder` out of the checkpoint.*trained since"):
        frozen.save_pretrained(tmp_path / "lost")


def test_a_revision_is_asked_for(folders, tmp_path, monkeypatch):
    model = referenced(folders, revisions={"vision": "abc"})
    assert model.config.sources["vision"] == {"name_or_path": folders["vision"], "revision": "abc"}
    model.save_pretrained(tmp_path / "small")
    asked = {}
    load = AutoModel.from_pretrained

    def spy(name, *args, **kwargs):
        asked[str(name)] = kwargs.get("revision")
        return load(name, *args, **kwargs)

    monkeypatch.setattr("hf_jepa.models.vl_jepa.components_vl_jepa.AutoModel.from_pretrained", spy)
    VLJepaModel.from_pretrained(tmp_path / "small")
    assert asked[folders["vision"]] == "abc"


def test_an_adapter_loads_as_it_was_and_merges(make_model, batch, tmp_path):
    from peft import IA3Config, LoraConfig

    model = make_model()
    plain = model(**batch).pred_embeds
    model.add_predictor_adapter(LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    torch.testing.assert_close(model(**batch).pred_embeds, plain)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in names if name.startswith("predictor."))
    assert any("lora_" in name for name in names)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not torch.allclose(model(**batch).pred_embeds, plain)
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModel.from_pretrained(tmp_path / "adapter")
    same(model, again, batch)
    again.merge_predictor_adapter()
    torch.testing.assert_close(again(**batch).pred_embeds, model(**batch).pred_embeds, rtol=1e-4, atol=1e-5)
    assert again.predictor.layers[0].mlp.up_proj.weight.requires_grad
    assert not again.get_input_embeddings().weight.requires_grad
    again.save_pretrained(tmp_path / "merged")
    same(again, AutoModel.from_pretrained(tmp_path / "merged"), batch)
    with pytest.raises(ValueError, match="must be a peft.LoraConfig, got IA3Config"):
        make_model().add_predictor_adapter(IA3Config())


def test_the_model_of_a_config_alone(make_model, batch):
    config = VLJepaConfig(
        **{k: v for k, v in make_model(target="ema").config.to_dict().items() if k != "architectures"}
    )
    model = VLJepaModel(config)
    for name, value in model.y_encoder.state_dict().items():
        assert torch.equal(value, model.target_encoder.state_dict()[name]), name
    assert model(**batch).loss.isfinite()
    assert model.contrast.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_no_pickles(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    assert {path.suffix for path in Path(tmp_path).iterdir()} == {".json", ".safetensors"}
