"""Predictors made of a decoder's layers: the right ones, renumbered, bidirectional."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_jepa import VLJepaConfig, VLJepaModel
from hf_jepa.models.vl_jepa.components_vl_jepa import check_bidirectional, take_layers


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3"])
def test_layers_are_copied_and_renumbered(make_part, name):
    decoder = make_part(name, causal=True, num_hidden_layers=2)
    backbone = decoder.base_model
    taken = take_layers(decoder, 1, 2)
    assert type(taken) is type(backbone)
    assert taken.config.num_hidden_layers == len(taken.layers) == 1
    assert taken.layers[0].self_attn.layer_idx == 0
    for key, value in taken.layers[0].state_dict().items():
        assert torch.equal(value, backbone.layers[1].state_dict()[key]), key
    assert torch.equal(taken.norm.weight, backbone.norm.weight)
    assert torch.equal(taken.embed_tokens.weight, backbone.embed_tokens.weight)
    # The decoder it came from is still what it was.
    assert backbone.config.num_hidden_layers == 2
    assert getattr(backbone.config, "is_causal", True)


def test_kinds_of_attention_go_with_their_layers(make_part):
    decoder = make_part("gemma3", causal=True, num_hidden_layers=2)
    assert take_layers(decoder, 0, 1).config.layer_types == ["sliding_attention"]
    assert take_layers(decoder, 1, 2).config.layer_types == ["full_attention"]


def test_all_layers_without_the_causal_mask_are_the_decoder_on_one_token(make_part):
    decoder = make_part("llama", causal=True)
    taken = take_layers(decoder, 0, 3)
    ids = torch.randint(3, 50, (2, 1))
    torch.testing.assert_close(taken(ids).last_hidden_state, decoder.base_model(ids).last_hidden_state)


def test_the_last_layers_by_default_or_those_named(make_model, make_part):
    decoder = make_part("llama", causal=True)
    last = make_model(predictor=decoder)
    first = make_model(predictor=decoder, predictor_layers=(0, 1))
    layers = decoder.base_model.layers
    for predictor, numbers in ((last.predictor, (1, 2)), (first.predictor, (0,))):
        assert len(predictor.layers) == len(numbers)
        for layer, number in zip(predictor.layers, numbers, strict=True):
            assert torch.equal(layer.mlp.up_proj.weight, layers[number].mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 4}, "Layers -1 to 3 were asked of a decoder that has 3"),
        ({"num_layers": 0}, "at least 1"),
        ({"predictor_layers": (2, 2)}, "Layers 2 to 2"),
        ({"predictor_layers": (1, 5)}, "has 3"),
    ],
)
def test_layers_that_are_not_there(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_a_decoder_that_stays_causal_is_refused(make_part):
    from transformers import GPT2Config, GPT2Model

    with pytest.raises(ValueError, match="has no `layers` to take"):
        take_layers(GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9)), 0, 1)
    causal = make_part("llama")
    with pytest.raises(ValueError, match="stays causal"):
        check_bidirectional(causal)
    causal.config.is_causal = False
    check_bidirectional(causal)


def test_the_predictor_of_a_config_alone_is_bidirectional(make_model):
    settings = make_model().config.to_dict()
    del settings["predictor_config"]["is_causal"]
    check_bidirectional(VLJepaModel(VLJepaConfig.from_dict(settings)).predictor)


def test_components_load_from_folders(make_model, make_part, batch, tmp_path):
    make_part("llama", causal=True).save_pretrained(tmp_path / "decoder")
    model = make_model(predictor=str(tmp_path / "decoder"), attn_implementation="eager")
    assert model.predictor.config._attn_implementation == "eager"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder")
    assert torch.equal(model.predictor.layers[1].mlp.up_proj.weight, loaded.model.layers[2].mlp.up_proj.weight)
    assert model.config.sources["predictor"]["name_or_path"] == str(tmp_path / "decoder")
    assert model(**batch).loss.isfinite()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_a_predictor_given_to_the_constructor_is_bidirectional(make_model, make_part, batch, tmp_path, name):
    decoder, parts = make_part(name, causal=True), make_model()
    ids = torch.arange(3, 9)[None]
    logits = decoder(ids).logits
    settings = {**parts.config.to_dict(), "predictor_config": decoder.base_model.config, "sources": None}
    model = VLJepaModel(
        VLJepaConfig(**settings), vision=parts.vision, predictor=decoder.base_model, y_encoder=parts.y_encoder.model
    ).eval()
    check_bidirectional(model.predictor)
    expected = model(**batch).pred_embeds
    model.save_pretrained(tmp_path)
    assert torch.equal(VLJepaModel.from_pretrained(tmp_path)(**batch).pred_embeds, expected)
    # The decoder it came from is still what it was.
    assert torch.equal(decoder(ids).logits, logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3"])
def test_parts_load_in_half_precision(make_part, batch, tmp_path, name, dtype):
    for part, made in (("vision", "vjepa2"), ("predictor", name), ("y_encoder", "bert")):
        make_part(made).save_pretrained(tmp_path / part)
    names = [str(tmp_path / part) for part in ("vision", "predictor", "y_encoder")]
    model = VLJepaModel.from_components(*names, num_layers=1, projection_dim=16, dtype=dtype)
    assert {p.dtype for n, p in model.named_parameters() if not n.startswith("contrast.")} == {dtype}
    assert model.contrast.logit_scale.dtype == torch.float32
    assert torch.isfinite(model(**batch).loss)


def test_parts_of_different_precision_work_together(make_model, make_part, batch):
    for part in ("vision", "predictor", "y_encoder"):
        made = {"vision": "vjepa2", "predictor": "llama", "y_encoder": "bert"}[part]
        model = make_model(**{part: make_part(made).to(torch.bfloat16)})
        assert torch.isfinite(model(**batch).loss), part
