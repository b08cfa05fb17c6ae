"""Heads of odd width, and labels that are none."""

import pytest
import torch
import torch.nn.functional as F
from transformers import VJEPA2Config, VJEPA2Model

from hf_jepa import VJepaConfig, VJepaForVideoClassification, VJepaModel
from hf_jepa.models.vjepa.layers_vjepa import rotate
from hf_jepa.models.vjepa.modeling_vjepa_anticipation import sigmoid_focal_loss
from hf_jepa.positions import rotary_3d

ODD = {
    "hidden_size": 26, "num_hidden_layers": 2, "num_attention_heads": 2, "crop_size": 32, "patch_size": 16,
    "frames_per_clip": 4, "mlp_ratio": 2.0, "pred_hidden_size": 39, "pred_num_attention_heads": 3,
    "pred_num_hidden_layers": 1,
}  # fmt: skip


@torch.no_grad()
def test_of_an_odd_head_the_even_part_rotates_as_in_tree():
    reference = VJEPA2Model(VJEPA2Config(**ODD)).eval()
    for parameter in reference.parameters():
        parameter.normal_(std=0.3)
    model = VJepaModel(VJepaConfig(**ODD)).eval()
    model.load_state_dict(reference.state_dict())
    clips = torch.randn(2, 4, 3, 32, 32)
    context, target = torch.arange(5).expand(2, -1), torch.arange(5, 8).expand(2, -1)
    torch.testing.assert_close(
        model(clips).last_hidden_state, reference(clips, skip_predictor=True).last_hidden_state, rtol=1e-4, atol=1e-4
    )
    ours = model(clips, target_mask=[target]).predictor_output.last_hidden_state
    everything = torch.arange(8).expand(2, -1)
    theirs = reference(clips, context_mask=[everything], target_mask=[target]).predictor_output.last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(model(clips, [context], [target]).predictor_output.last_hidden_state).all()


def test_the_last_channel_of_an_odd_head_stays():
    tokens = torch.randn(2, 3, 8, 13)
    cos, sin = rotary_3d(torch.arange(8)[None], (2, 2), 13, "interleaved", torch.float32)
    turned = rotate(tokens, cos, sin)
    assert torch.equal(turned[..., 12], tokens[..., 12])
    assert torch.equal(turned[..., :12], rotate(tokens[..., :12], cos[..., :12], sin[..., :12]))


def test_rows_without_a_label_do_not_count():
    model = VJepaForVideoClassification(
        VJepaConfig(**ODD, num_pooler_layers=1, pooler_num_attention_heads=2, num_labels=3)
    ).eval()
    clips, labels = torch.randn(3, 4, 3, 32, 32), torch.tensor([2, -100, 0])
    output = model(clips, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[[0, 2]], labels[[0, 2]]))
    logits = torch.randn(3, 4)
    found = sigmoid_focal_loss(logits, labels)
    torch.testing.assert_close(found, sigmoid_focal_loss(logits[[0, 2]], labels[[0, 2]]))
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="must lie in 0..2"):
            model(clips, labels=torch.tensor([2, wrong, 0]))
