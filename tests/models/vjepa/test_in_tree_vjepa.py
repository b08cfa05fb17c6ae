"""The video backbone and transformers' own: folders both ways, and the same numbers."""

import logging

import pytest
import torch
from transformers import AutoModel, VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from hf_jepa import VJepaConfig, VJepaModel
from hf_jepa.models.vjepa.layers_vjepa import rotary_tables, rotate

from .conftest import SIZES, clips, close, random_mask, tiny


@pytest.fixture
def in_tree() -> VJEPA2Model:
    model = VJEPA2Model(VJEPA2Config(**SIZES, pred_zero_init_mask_tokens=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def in_tree_encoding(model: VJEPA2Model, pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """In-tree modules on the visible tokens alone, which the in-tree forward pass does not offer."""
    tokens = model.encoder.embeddings(pixels)
    tokens = tokens.gather(1, mask.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    for layer in model.encoder.layer:
        tokens = layer(tokens, mask)[0]
    return model.encoder.layernorm(tokens)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_tree_folders_are_read_and_written_unchanged(in_tree, tmp_path, caplog, dtype):
    in_tree.to(getattr(torch, dtype)).save_pretrained(tmp_path / "in_tree")
    with caplog.at_level(logging.WARNING):
        ours = VJepaModel.from_pretrained(tmp_path / "in_tree", dtype=dtype)
    assert not caplog.records
    assert ours.config.model_type == "vjepa"
    expected = in_tree.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())

    ours.export_in_tree().save_pretrained(tmp_path / "back")
    back = AutoModel.from_pretrained(tmp_path / "back", dtype=dtype)
    assert type(back) is VJEPA2Model
    assert all(torch.equal(value, expected[name]) for name, value in back.state_dict().items())
    ignored = ("transformers_version", "_name_or_path", "dtype")
    configs = [
        {name: value for name, value in model.config.to_dict().items() if name not in ignored}
        for model in (in_tree, back)
    ]
    assert configs[0] == configs[1]

    pixels = clips().to(ours.dtype)
    visible, hidden = torch.arange(144).expand(2, -1), random_mask(2, 20, 144)
    with torch.no_grad():
        reference = in_tree(pixels, [visible], [hidden])
        assert torch.equal(back(pixels, [visible], [hidden]).last_hidden_state, reference.last_hidden_state)
        output = ours(pixels, target_mask=[hidden])
        features = ours.get_vision_features(pixels)
    tolerance = {"float32": 1e-5, "bfloat16": 0.03}[dtype]
    close(output.last_hidden_state, reference.last_hidden_state, tolerance)
    close(output.predictor_output.last_hidden_state, reference.predictor_output.last_hidden_state, tolerance)
    assert torch.equal(features, output.last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_rotation_is_that_of_in_tree_bit_for_bit(in_tree, dtype):
    attention = in_tree.encoder.layer[0].attention
    queries, ids = torch.randn(2, 3, 50, 16, dtype=dtype), random_mask(2, 50, 144)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = attention.apply_rotary_embeddings(queries, attention.get_position_ids(queries, ids))
        tables = rotary_tables(VJepaConfig(**SIZES), ids, (6, 6), 16, dtype, stretch=False)
        assert torch.equal(rotate(queries, *tables), expected)
        assert rotate(queries, *tables).is_contiguous()


def test_bf16_autocast_agrees_with_in_tree(in_tree):
    pixels = clips()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        reference = in_tree(pixels, skip_predictor=True).last_hidden_state
        for rope_dtype, tolerance in (("reference", 0.015), ("float32", 0.03)):
            ours = VJepaModel(VJepaConfig(**SIZES, rope_dtype=rope_dtype)).eval()
            ours.load_state_dict(in_tree.state_dict())
            ours.set_attn_implementation("sdpa")
            close(ours.get_vision_features(pixels).float(), reference.float(), tolerance)


def test_classifier_folders_give_their_backbone(tmp_path):
    classifier = VJEPA2ForVideoClassification(VJEPA2Config(**SIZES)).eval()
    classifier.save_pretrained(tmp_path)
    ours = VJepaModel.from_pretrained(tmp_path)
    assert torch.equal(ours.encoder.layernorm.weight, classifier.vjepa2.encoder.layernorm.weight)
    pixels = clips()
    with torch.no_grad():
        close(ours.get_vision_features(pixels), classifier.vjepa2.get_vision_features(pixels))


def test_the_context_has_not_seen_what_is_hidden(in_tree):
    ours = tiny()
    ours.load_state_dict(in_tree.state_dict())
    pixels, mask = clips(), random_mask(2, 30, 144)
    with torch.no_grad():
        context = ours(pixels, context_mask=[mask]).last_hidden_state
        close(context, in_tree_encoding(in_tree, pixels, mask))
        assert (context - in_tree(pixels, [mask], [mask]).masked_hidden_state).abs().max() > 0.1
        # Whatever stands in hidden places.
        visible = torch.zeros(2, 144, dtype=torch.bool).scatter(1, mask, True).view(2, 4, 6, 6)
        visible = visible.repeat_interleave(2, 1).repeat_interleave(4, 2).repeat_interleave(4, 3)
        changed = torch.where(visible.unsqueeze(2), pixels, torch.full_like(pixels, 9.0))
        assert torch.equal(ours(changed, context_mask=[mask]).last_hidden_state, context)


def test_non_square_clips_are_exact_in_the_predictor_too(in_tree):
    """The in-tree grid is 6x6 patches; one of 4x5 is a part of it, under other indices."""
    ours = tiny()
    ours.load_state_dict(in_tree.state_dict())
    pixels = clips(2, 8, 16, 20)
    visible, hidden = random_mask(2, 40, 80), random_mask(2, 25, 80)

    def in_tree_ids(ids: torch.Tensor) -> torch.Tensor:
        return ids // 20 * 36 + ids // 5 % 4 * 6 + ids % 5

    with torch.no_grad():
        output = ours(pixels, [visible], [hidden])
        tokens = in_tree.encoder.embeddings(pixels)
        tokens = tokens.gather(1, visible.unsqueeze(-1).expand(-1, -1, 48))
        for layer in in_tree.encoder.layer:
            tokens = layer(tokens, in_tree_ids(visible))[0]
        context = in_tree.encoder.layernorm(tokens)
        close(output.last_hidden_state, context)
        scattered = torch.zeros(2, 144, 48).scatter(1, in_tree_ids(visible).unsqueeze(-1).expand(-1, -1, 48), context)
        expected = in_tree.predictor(scattered, [in_tree_ids(visible)], [in_tree_ids(hidden)]).last_hidden_state
    close(output.predictor_output.last_hidden_state, expected)


def test_more_frames_than_configured_and_slots_after_the_clip(in_tree):
    ours, longer = tiny(), VJEPA2Model(VJEPA2Config(**{**SIZES, "frames_per_clip": 16})).eval()
    ours.load_state_dict(in_tree.state_dict())
    longer.load_state_dict(in_tree.state_dict())
    pixels, future = clips(1, 16), torch.arange(288 + 36, 288 + 72).unsqueeze(0)
    with torch.no_grad():
        output = ours(pixels, target_mask=[future])
        reference = longer(pixels, skip_predictor=True).last_hidden_state
        expected = longer.predictor(reference, [torch.arange(288).unsqueeze(0)], [future]).last_hidden_state
    close(output.last_hidden_state, reference)
    close(output.predictor_output.last_hidden_state, expected)


def test_hidden_states(in_tree):
    ours = tiny()
    ours.load_state_dict(in_tree.state_dict())
    pixels = clips()
    with torch.no_grad():
        states = ours(pixels, output_hidden_states=True).hidden_states
        reference = in_tree(pixels, skip_predictor=True, output_hidden_states=True).hidden_states
    assert len(states) == len(reference) == 3
    for ours_, expected in zip(states, reference, strict=True):
        close(ours_, expected)
    assert ours(pixels).hidden_states is None


@pytest.mark.parametrize(
    "kwargs",
    [
        {"rope_layout": "interleaved"},
        {"position_embedding_type": "sincos"},
        {"rope_interpolation": True},
        {"pred_rope_interpolation": True},
        {"hierarchical_layers": [0, 1]},
        {"use_image_tokenizer": True},
        {"pred_output_size": 60},
        {"pred_context_output": True},
    ],
)
def test_in_tree_export_names_what_it_cannot_say(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        tiny(**kwargs).export_in_tree()
