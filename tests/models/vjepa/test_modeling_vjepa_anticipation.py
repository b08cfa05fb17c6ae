"""Action anticipation against its formulas."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from hf_jepa import VJepaActionAnticipationConfig, VJepaForActionAnticipation, VJepaModel
from hf_jepa.models.vjepa.modeling_vjepa_anticipation import sigmoid_focal_loss

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "crop_size": 16,
    "patch_size": 8,
    "frames_per_clip": 4,
    "num_pooler_layers": 1,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
    "num_verbs": 4,
    "num_nouns": 6,
    "num_actions": 9,
}


def make(**kwargs) -> VJepaForActionAnticipation:
    model = VJepaForActionAnticipation(VJepaActionAnticipationConfig(**{**SIZES, **kwargs})).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def model() -> VJepaForActionAnticipation:
    return make()


def test_focal_loss_equals_its_formula():
    logits, labels = 3 * torch.randn(5, 7), torch.tensor([0, 6, 2, 2, 5])
    expected = 0.0
    for row in range(5):
        for column in range(7):
            p = 1 / (1 + math.exp(-float(logits[row, column])))
            true = column == labels[row]
            p_t, alpha_t = (p, 0.25) if true else (1 - p, 0.75)
            expected -= alpha_t * (1 - p_t) ** 2 * math.log(p_t)
    assert float(sigmoid_focal_loss(logits, labels)) == pytest.approx(expected, rel=1e-5)
    # Where 1 - sigmoid rounds to 0, value and gradient stay right.
    extreme = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(extreme, torch.tensor([1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(200 * 0.25 + 200 * 0.75)
    torch.testing.assert_close(extreme.grad, torch.tensor([[0.75, -0.25]]))


@torch.no_grad()
def test_the_guess_at_the_action_joins_the_tokens_of_the_clip(model):
    clips, seconds = torch.randn(2, 4, 3, 16, 24), torch.tensor([0.3, 1.2])
    labels = {"verb_labels": torch.tensor([3, 0]), "noun_labels": torch.tensor([5, 5])}
    labels["action_labels"] = torch.tensor([8, 1])
    # 2 slots of 2 x 3 patches; floor(0.3 * 8 / 2) = 1 and floor(1.2 * 8 / 2) = 4 slots on.
    target = torch.stack([torch.arange(6) + (2 + 1) * 6, torch.arange(6) + (2 + 4) * 6])
    assert torch.equal(model.anticipated_tokens(clips, seconds), target)
    whole = torch.arange(12).expand(2, -1)
    outputs = model.vjepa2(clips, [whole], [target])
    tokens = torch.cat([model.vjepa2.get_vision_features(clips), outputs.predictor_output.last_hidden_state], dim=1)
    assert tokens.shape == (2, 18, 32)
    pooled = model.pooler(tokens)
    output = model(clips, seconds, **labels)
    torch.testing.assert_close(output.pooler_output, pooled)
    expected = 0.0
    for query, name in enumerate(("verb", "noun", "action")):
        logits = getattr(model, f"{name}_classifier")(pooled[:, query])
        torch.testing.assert_close(output[f"{name}_logits"], logits)
        expected = expected + sigmoid_focal_loss(logits, labels[f"{name}_labels"])
    torch.testing.assert_close(output.loss, expected)
    # One number stands for the whole batch, and the time matters.
    torch.testing.assert_close(model(clips[:1], 0.3).action_logits, output.action_logits[:1])
    assert not torch.allclose(model(clips[:1], 1.2).action_logits, output.action_logits[:1], atol=1e-3)
    assert not torch.allclose(model(clips, seconds, mask_token_index=0).action_logits, output.action_logits, atol=1e-3)


@torch.no_grad()
def test_the_last_of_several_levels_is_read():
    model = make(hierarchical_layers=[0, 1], use_image_tokenizer=True, rope_layout="interleaved")
    clips = torch.randn(1, 4, 3, 16, 16)
    target = model.anticipated_tokens(clips, 1.0)
    outputs = model.vjepa2(clips, target_mask=[target])
    assert outputs.predictor_output.last_hidden_state.shape == (1, 4, 64)
    tokens = torch.cat([outputs.last_hidden_state, outputs.predictor_output.last_hidden_state[..., 32:]], dim=1)
    torch.testing.assert_close(model(clips).pooler_output, model.pooler(tokens))


def test_training_reaches_every_parameter(model):
    labels = {f"{name}_labels": torch.tensor([1, 2]) for name in ("verb", "noun", "action")}
    model.train()(torch.randn(2, 4, 3, 16, 16), **labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_saved_and_loaded_and_started_from_an_encoder(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    clips = torch.randn(1, 4, 3, 16, 16)
    loaded = AutoModel.from_pretrained(tmp_path / "whole")
    assert type(loaded) is VJepaForActionAnticipation
    with torch.no_grad():
        torch.testing.assert_close(loaded(clips).action_logits, model(clips).action_logits)
    model.vjepa2.save_pretrained(tmp_path / "encoder")
    started = VJepaForActionAnticipation.from_pretrained(tmp_path / "encoder", num_verbs=4, num_pooler_layers=1)
    for name, parameter in VJepaModel.from_pretrained(tmp_path / "encoder").named_parameters():
        assert torch.equal(started.vjepa2.get_parameter(name), parameter)
    assert started.pooler.query_tokens.shape == (1, 3, 32)
    with pytest.raises(ValueError, match=r"verb_classifier\.bias is \(4,\) in the checkpoint and \(5,\)"):
        VJepaForActionAnticipation.from_pretrained(tmp_path / "whole", num_verbs=5)


def test_bad_input_is_named(model):
    clips = torch.zeros(1, 4, 3, 16, 16)
    with pytest.raises(ValueError, match="seconds after the clip, got -1"):
        model(clips, -1.0)
    with pytest.raises(ValueError, match="got only verb and noun"):
        model(clips, verb_labels=torch.tensor([0]), noun_labels=torch.tensor([0]))
    labels = {f"{name}_labels": torch.tensor([6]) for name in ("noun", "action")}
    with pytest.raises(ValueError, match=r"`noun_labels` must lie in 0\.\.5, got 6\.\.6"):
        model(clips, verb_labels=torch.tensor([0]), **labels)
    # Strict configs wrap the ValueError of their validators.
    with pytest.raises((ValueError, StrictDataclassError), match="positions end with the clip"):
        VJepaActionAnticipationConfig(**SIZES, position_embedding_type="sincos")
    with pytest.raises((ValueError, StrictDataclassError), match="`num_verbs` must be positive"):
        VJepaActionAnticipationConfig(**SIZES | {"num_verbs": 0})


def test_compiles_without_graph_breaks(model):
    clips, seconds = torch.randn(2, 4, 3, 16, 16), torch.tensor([0.5, 1.0])
    labels = {f"{name}_labels": torch.tensor([1, 2]) for name in ("verb", "noun", "action")}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(clips, seconds, **labels).loss, model(clips, seconds, **labels).loss)
