"""Video classification: in-tree folders, segments and views, and heads that do not fit."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForVideoClassification, VJEPA2Config, VJEPA2ForVideoClassification

from hf_jepa import VJepaConfig, VJepaForVideoClassification, VJepaModel

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "crop_size": 16,
    "patch_size": 8,
    "frames_per_clip": 4,
    "num_pooler_layers": 2,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}


def randomize(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def model() -> VJepaForVideoClassification:
    model = VJepaForVideoClassification(VJepaConfig(**SIZES, num_labels=5)).eval()
    randomize(model)
    return model


@pytest.fixture
def in_tree_folder(tmp_path):
    theirs = VJEPA2ForVideoClassification(VJEPA2Config(**SIZES, num_labels=5))
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "in-tree")
    return tmp_path / "in-tree"


def test_in_tree_classifiers_load_unchanged(in_tree_folder):
    theirs = VJEPA2ForVideoClassification.from_pretrained(in_tree_folder).eval()
    clips = torch.randn(2, 4, 3, 16, 16)
    labels = torch.tensor([3, 1])
    # With in-tree's own heads and epsilon the same numbers; by default those of the released probes, which differ.
    same = {"pooler_num_attention_heads": 2, "pooler_layer_norm_eps": 1e-6}
    with torch.no_grad():
        expected = theirs(clips, labels=labels)
        ours = VJepaForVideoClassification.from_pretrained(in_tree_folder, **same).eval()
        output = ours(clips, labels=labels)
        torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-5 * expected.logits.abs().max())
        assert float(output.loss) == pytest.approx(float(expected.loss), rel=1e-5)
        released = VJepaForVideoClassification.from_pretrained(in_tree_folder).eval()
        assert (released.config.pooler_num_attention_heads, released.config.pooler_layer_norm_eps) == (16, 1e-5)
        assert not torch.allclose(released(clips).logits, expected.logits, atol=1e-2)


def test_ours_loads_in_tree_and_by_auto_class(model, tmp_path):
    model.save_pretrained(tmp_path)
    clips = torch.randn(1, 4, 3, 16, 16)
    theirs = VJEPA2ForVideoClassification(VJEPA2Config(**SIZES, num_labels=5)).eval()
    theirs.load_state_dict(model.state_dict())
    reloaded = AutoModelForVideoClassification.from_pretrained(tmp_path).eval()
    assert type(reloaded) is VJepaForVideoClassification
    with torch.no_grad():
        torch.testing.assert_close(reloaded(clips).logits, model(clips).logits)
        tokens = theirs.vjepa2(clips, skip_predictor=True).last_hidden_state
        torch.testing.assert_close(model.vjepa2.get_vision_features(clips), tokens, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_segments_are_pooled_together_and_views_vote(model):
    clips = torch.randn(2, 3, 2, 4, 3, 16, 16)  # 3 segments, 2 views
    labels = torch.tensor([4, 0])
    probabilities, pooled = [], []
    for view in range(2):
        tokens = [model.vjepa2.get_vision_features(clips[:, segment, view]) for segment in range(3)]
        pooled.append(model.pooler(torch.cat(tokens, dim=1))[:, 0])
        probabilities.append(model.classifier(pooled[-1]).softmax(dim=-1))
    expected = (probabilities[0] + probabilities[1]) / 2
    output = model(clips, labels=labels)
    torch.testing.assert_close(output.logits.softmax(dim=-1), expected)
    torch.testing.assert_close(output.logits.exp(), expected)
    torch.testing.assert_close(output.pooler_output, torch.stack(pooled, dim=1))
    torch.testing.assert_close(output.loss, F.nll_loss(expected.log(), labels))
    torch.testing.assert_close(model(clips[:, :, 0]).logits.softmax(dim=-1), probabilities[0])
    torch.testing.assert_close(model(clips[:, :1, 0]).logits, model(clips[:, 0, 0]).logits)
    assert model(clips[:, 0, 0]).pooler_output.shape == (2, 32)


def test_generation_1_puts_self_attention_on_the_query():
    model = VJepaForVideoClassification(VJepaConfig(**SIZES, position_embedding_type="sincos", num_labels=3))
    assert model.pooler.self_attention_on == "query"
    assert VJepaConfig.from_size("large", "1").num_pooler_layers == 0


@pytest.mark.parametrize("positions", ["sincos", "rope"])
@pytest.mark.parametrize("loaded", [False, True])
def test_every_trainable_parameter_gets_a_gradient(positions, loaded, tmp_path):
    """DDP waits for all of them: predictor and unused projection must be frozen, after loading too."""
    model = VJepaForVideoClassification(VJepaConfig(**SIZES, position_embedding_type=positions, num_labels=3))
    if loaded:
        model.save_pretrained(tmp_path)
        model = VJepaForVideoClassification.from_pretrained(tmp_path)
    model.train()(torch.randn(2, 4, 3, 16, 16), labels=torch.tensor([0, 2])).loss.backward()
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name, parameter in trainable.items() if parameter.grad is None]
    assert model.vjepa2.encoder.layer[0].mlp.fc1.weight.requires_grad


def test_an_encoder_gets_a_new_head_drawn_as_released(tmp_path):
    encoder = VJepaModel(VJepaConfig(**SIZES))
    encoder.save_pretrained(tmp_path)
    model, info = VJepaForVideoClassification.from_pretrained(tmp_path, num_labels=200, output_loading_info=True)
    assert all(key.startswith(("pooler.", "classifier.")) for key in info["missing_keys"])
    for name, parameter in encoder.named_parameters():
        assert torch.equal(model.vjepa2.get_parameter(name), parameter)
    bound = 32**-0.5
    assert 0.98 * bound < float(model.classifier.weight.detach().abs().max()) <= bound
    assert float(model.classifier.bias.detach().abs().max()) > 0.5 * bound
    assert float(model.pooler.query_tokens.detach().std()) == pytest.approx(0.02, rel=0.5)
    last = model.pooler.self_attention_layers[1].mlp.fc2.weight.detach()
    assert float(last.std()) == pytest.approx(0.02 / 4**0.5, rel=0.1)


def test_another_width_is_named_and_replaced_only_on_request(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"classifier\.weight is \(5, 32\) in the checkpoint and \(7, 32\)"):
        VJepaForVideoClassification.from_pretrained(tmp_path, num_labels=7)
    new = VJepaForVideoClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert new.classifier.weight.shape == (7, 32)
    assert torch.equal(new.pooler.query_tokens, model.pooler.query_tokens)
    with pytest.raises(ValueError, match="in the checkpoint and"):  # an encoder of another width is no head
        VJepaForVideoClassification.from_pretrained(tmp_path, hidden_size=64, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("lost", ["pooler.query_tokens", "classifier.bias", "vjepa2.encoder.layernorm.weight"])
def test_a_part_that_is_missing_is_named(model, tmp_path, lost):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing_keys: {lost}"):
        VJepaForVideoClassification.from_pretrained(tmp_path)


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match=r"segments, views, frames, \.\.\.\), got \(4, 3, 16, 16\)"):
        model(torch.zeros(4, 3, 16, 16))
    with pytest.raises(ValueError, match=r"`labels` must lie in 0\.\.4, got 2\.\.5"):
        model(torch.zeros(2, 4, 3, 16, 16), labels=torch.tensor([5, 2]))
    with pytest.raises(ValueError, match="16 attention heads do not divide the width 36"):
        VJepaForVideoClassification(VJepaConfig(**SIZES | {"hidden_size": 36}))
