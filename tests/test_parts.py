"""Parts of models: one precision for the whole, and configs that stay the caller's."""

import copy
import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    IJepaConfig,
    IJepaModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTModel,
    VJEPA2Config,
    VJEPA2Model,
)

from hf_jepa import (
    CJepaForPreTraining,
    CJepaPreTrainingConfig,
    ConvEncoderConfig,
    Data2VecVisionForPreTraining,
    Data2VecVisionPreTrainingConfig,
    IJepaForPreTraining,
    IJepaPreTrainingConfig,
    LatentWorldModelConfig,
    LeJepaForPreTraining,
    LeJepaPreTrainingConfig,
    LLMJepaConfig,
    LLMJepaForCausalLM,
    SimSiamForPreTraining,
    SimSiamPreTrainingConfig,
    VJepa2ForPreTraining,
    VJepa2PreTrainingConfig,
    VJepaConfig,
    VLJepaConfig,
)

SMALL = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
BEIT = {"use_mask_token": True, "use_mean_pooling": False, "use_shared_relative_position_bias": True}
CLIP = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 16, "patch_size": 8,
    "frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1,
}  # fmt: skip
IMAGES, VIEWS = torch.randn(3, 3, 16, 16), torch.randn(3, 2, 3, 16, 16)
MASKS = [torch.tensor([[0, 1]]).expand(3, -1)], [torch.tensor([[2, 3]]).expand(3, -1)]

# Class, encoder and inputs of one step.
FAMILIES = {
    "ijepa": (IJepaForPreTraining, lambda: IJepaModel(IJepaConfig(**SMALL)), (IMAGES, *MASKS)),
    "cjepa": (CJepaForPreTraining, lambda: IJepaModel(IJepaConfig(**SMALL)), (IMAGES, MASKS[0], [*MASKS[1]] * 2)),
    "data2vec": (
        Data2VecVisionForPreTraining,
        lambda: Data2VecVisionModel(Data2VecVisionConfig(**SMALL, **BEIT)),
        (IMAGES, MASKS[1]),
    ),
    "lejepa": (LeJepaForPreTraining, lambda: ViTModel(ViTConfig(**SMALL)), (VIEWS,)),
    "simsiam": (SimSiamForPreTraining, lambda: ViTModel(ViTConfig(**SMALL)), (VIEWS,)),
    "vjepa2": (
        VJepa2ForPreTraining,
        lambda: VJEPA2Model(VJEPA2Config(**CLIP)),
        (torch.randn(3, 4, 3, 16, 16), [torch.arange(4).expand(3, -1)], [torch.arange(4, 8).expand(3, -1)]),
    ),
}
SIZES = {"cjepa": {"projector_hidden_size": 8, "projector_output_size": 8}, "lejepa": {"projector_hidden_size": 8}}


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_half_precision_encoder_starts_a_model_of_one_precision(family, tmp_path):
    model_class, make, inputs = FAMILIES[family]
    encoder = make().to(torch.bfloat16)
    model = model_class.from_encoder(encoder, **SIZES.get(family, {}))
    assert dtypes(model) == {torch.float32}
    assert torch.isfinite(model(*inputs).loss)
    # A checkpoint in half precision says so in its config.
    encoder.save_pretrained(tmp_path)
    config = type(encoder.config).from_pretrained(tmp_path)
    assert config.dtype == torch.bfloat16
    if family != "vjepa2":
        whole = model_class(model_class.config_class(encoder_config=config, **SIZES.get(family, {})))
        assert dtypes(whole) == {torch.float32}
        assert config.dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pixels_take_the_weights_precision(family, dtype):
    model_class, make, inputs = FAMILIES[family]
    model = model_class.from_encoder(make(), **SIZES.get(family, {})).to(dtype)
    assert torch.isfinite(model(*inputs).loss)
    assert model.get_features(inputs[0] if family not in ("lejepa", "simsiam") else IMAGES).dtype == dtype
    built = AutoModelForPreTraining.from_config(copy.deepcopy(model.config), dtype=dtype)
    assert dtypes(built) == {dtype}
    assert torch.isfinite(built(*inputs).loss)


@pytest.mark.parametrize(
    ("config_class", "live"),
    [
        (IJepaPreTrainingConfig, IJepaConfig(**SMALL)),
        (CJepaPreTrainingConfig, IJepaConfig(**SMALL)),
        (Data2VecVisionPreTrainingConfig, Data2VecVisionConfig(**SMALL, **BEIT)),
        (LeJepaPreTrainingConfig, ViTConfig(**SMALL)),
        (SimSiamPreTrainingConfig, ViTConfig(**SMALL)),
    ],
)
def test_building_a_model_leaves_the_encoders_config_alone(config_class, live):
    before = copy.deepcopy(vars(live))
    config = config_class(encoder_config=live)
    AutoModelForPreTraining.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    assert vars(live) == before


@pytest.mark.parametrize("config_class", [VLJepaConfig, LLMJepaConfig])
def test_building_a_config_leaves_a_live_decoder_causal(config_class):
    decoder = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    ids = torch.arange(3, 9)[None]
    expected = decoder(ids).logits
    config = config_class(**{"predictor_config" if config_class is VLJepaConfig else "decoder_config": decoder.config})
    assert torch.equal(decoder(ids).logits, expected)
    assert decoder.config.use_cache is True
    if config_class is VLJepaConfig:
        assert config.predictor_config.is_causal is False


@pytest.mark.parametrize(
    ("config_class", "name", "near"),
    [
        (IJepaPreTrainingConfig, "predictor_hiden_size", "predictor_hidden_size"),
        (VJepa2PreTrainingConfig, "loss_exponents", "loss_exponent"),
        (LatentWorldModelConfig, "action_dims", "action_dim"),
        (LLMJepaConfig, "jepa_lamda", "jepa_lambda"),
        (VJepaConfig, "hiden_size", "hidden_size"),
        (ConvEncoderConfig, "stride", "strides"),
    ],
)
def test_a_misspelt_field_is_refused(config_class, name, near):
    with pytest.raises(ValueError, match=f"has no field `{name}`; did you mean `{near}`"):
        config_class(**{name: 1})


@pytest.mark.parametrize(
    ("config_class", "name", "part"),
    [
        (VJepa2PreTrainingConfig, "pred_hidden_size", "encoder_config"),
        (LLMJepaConfig, "hidden_size", "decoder_config"),
    ],
)
def test_a_field_of_a_part_is_pointed_to(config_class, name, part):
    with pytest.raises(ValueError, match=f"has no field `{name}`; it is one of `{part}`: set it there"):
        config_class(**{name: 48})


def test_what_transformers_and_releases_add_is_taken():
    added = {"torch_dtype": "float32", "attn_implementation": "eager", "num_labels": 3, "_name_or_path": "x"}
    added |= {"trained_size": [64, 64], "trained_frames": 8, "from_vjepa_model": True, "jepa_encoder": "target"}
    config = VJepaConfig(**added, has_predictor=False, output_hidden_states=True, problem_type="regression")
    assert config.num_labels == 3
    assert not config.has_predictor
    assert VJepaConfig(**VJEPA2Config(hidden_size=96).to_dict()).hidden_size == 96


def test_a_field_of_another_version_is_named(tmp_path, monkeypatch):
    IJepaPreTrainingConfig(predictor_hidden_size=48).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    # `trained_size` is what a run notes; it is read.
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_tomorrow": 3, "trained_size": [64, 64]}))
    said: list[str] = []
    monkeypatch.setattr("hf_jepa.parts.logger.warning", said.append)
    assert IJepaPreTrainingConfig.from_pretrained(tmp_path, attn_implementation="eager").predictor_hidden_size == 48
    assert len(said) == 1
    assert "no field `of_tomorrow`" in said[0]


@pytest.mark.parametrize(
    ("config_class", "name", "kept"), [(VJepaConfig, "use_swiglu", False), (VLJepaConfig, "projection_bias", True)]
)
def test_an_option_that_is_gone_names_the_version_that_has_it(tmp_path, monkeypatch, config_class, name, kept):
    config_class().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    monkeypatch.setattr("hf_jepa.parts.logger.warning", pytest.fail)
    path.write_text(json.dumps({**written, name: kept}))
    AutoConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps({**written, name: not kept}))
    with pytest.raises(ValueError, match=f"`{name}={not kept}` cannot be built any more.*hf_jepa 0.1.0 is the last"):
        AutoConfig.from_pretrained(tmp_path)


def test_a_checkpoint_of_another_method_is_called_by_its_name(tmp_path):
    IJepaPreTrainingConfig(predictor_hidden_size=48).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config of a 'ijepa_pretraining', not of a 'lejepa_pretraining': `Auto"):
        LeJepaForPreTraining.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "load",
    [
        IJepaForPreTraining.from_pretrained,
        IJepaForPreTraining.from_encoder,
        VJepa2ForPreTraining.from_encoder,
        LLMJepaForCausalLM.from_decoder,
    ],
)
def test_a_folder_that_is_not_there_is_named(load, tmp_path):
    with pytest.raises(ValueError, match="There is no folder '.*nowhere', and it is not the name of a repository"):
        load(str(tmp_path / "nowhere"))
