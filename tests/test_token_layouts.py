"""Which outputs are patches, for every vision encoder in transformers that can be built small, and a dozen of timm."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel, TimmWrapperConfig

from hf_jepa.encoders import pooled_output, run_encoder
from hf_jepa.parts import unread_parameters
from hf_jepa.token_layouts import num_prefix_tokens, patch_tokens

VIT = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64,
    "patch_size": 8,
}  # fmt: skip
STAGES = {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}
HEADS = {**STAGES, "num_attention_heads": [1, 1, 1, 2]}
SWIN = {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
SAM = {**VIT, "output_channels": 10, "window_size": 4, "global_attn_indexes": [0]}
HIERA = {
    "hidden_size": 8, "image_size": [64, 64], "embed_dim_per_stage": [8, 16, 32], "blocks_per_stage": [1, 2, 2],
    "num_attention_heads_per_stage": [1, 1, 1], "window_size_per_stage": [4, 4, 4], "global_attention_blocks": [],
    "num_query_pool_stages": 2,
}  # fmt: skip
# Model type -> settings, tokens before the patches, rows and columns of patches at 64 pixels.
ENCODERS: dict[str, tuple[dict, int, tuple[int, int]]] = {
    "aimv2_vision_model": (VIT, 0, (8, 8)),
    "beit": (VIT, 1, (8, 8)),
    "bit": ({**STAGES, "embedding_size": 8, "num_groups": 4}, 0, (2, 2)),
    "chinese_clip_vision_model": (VIT, 1, (8, 8)),
    "clip_vision_model": (VIT, 1, (8, 8)),
    "convnext": (STAGES, 0, (2, 2)),
    "convnextv2": (STAGES, 0, (2, 2)),
    "cvt": ({"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}, 0, (4, 4)),
    "data2vec-vision": (VIT, 1, (8, 8)),
    "deit": (VIT, 2, (8, 8)),
    "dinov2": (VIT, 1, (8, 8)),
    "dinov2_with_registers": (VIT, 5, (8, 8)),
    "dinov3_convnext": (STAGES, 1, (2, 2)),
    "dinov3_vit": ({**VIT, "num_register_tokens": 3}, 4, (8, 8)),
    "donut-swin": (SWIN, 0, (8, 8)),
    "dpt": ({**VIT, "backbone_out_indices": [0], "neck_hidden_sizes": [8]}, 1, (8, 8)),
    "focalnet": (
        {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]},
        0,
        (8, 8),
    ),
    "glpn": (HEADS, 0, (2, 2)),
    "hiera": (
        {"image_size": [64, 64], "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 1], "num_query_pool": 2},
        0,
        (4, 4),
    ),
    "ijepa": (VIT, 0, (8, 8)),
    "internvl_vision": ({**VIT, "image_size": [64, 64], "patch_size": [8, 8]}, 1, (8, 8)),
    "levit": (
        {"image_size": 64, "hidden_sizes": [16, 16, 16], "num_attention_heads": [1, 1, 1], "depths": [1, 1, 1],
         "key_dim": [4, 4, 4], "mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2]}, 0, (1, 1),
    ),
    "maskformer-swin": (SWIN, 0, (8, 8)),
    "mlcd_vision_model": (VIT, 1, (8, 8)),
    "mobilenet_v1": ({"depth_multiplier": 0.1}, 0, (2, 2)),
    "mobilenet_v2": ({"depth_multiplier": 0.1}, 0, (2, 2)),
    "mobilevit": (
        {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [4, 4, 4, 8, 8, 8, 16],
         "num_attention_heads": 2}, 0, (2, 2),
    ),
    "mobilevitv2": ({"image_size": 64, "width_multiplier": 0.1}, 0, (2, 2)),
    "pixio": (VIT, 8, (8, 8)),
    "poolformer": (STAGES, 0, (2, 2)),
    "pvt": ({**HEADS, "image_size": 64}, 1, (2, 2)),
    "pvt_v2": (HEADS, 0, (2, 2)),
    "qianfan_ocr_vision": ({**VIT, "image_size": [64, 64], "patch_size": [8, 8]}, 1, (8, 8)),
    "radio": ({**VIT, "max_img_size": 64}, 10, (8, 8)),
    "regnet": ({**STAGES, "groups_width": 4, "embedding_size": 8}, 0, (2, 2)),
    "resnet": ({**STAGES, "embedding_size": 8}, 0, (2, 2)),
    "sam2_hiera_det_model": (HIERA, 0, (4, 4)),
    "sam2_vision_model": (
        {
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                **HIERA,
                "embed_dim_per_stage": [8, 16, 32, 64],
                "blocks_per_stage": [1, 2, 2, 2],
                "num_attention_heads_per_stage": [1, 1, 1, 1],
                "window_size_per_stage": [4, 4, 4, 4],
                "num_query_pool_stages": 3,
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 8,
        },
        0,
        (2, 2),
    ),
    "sam3_vit_model": ({**VIT, "window_size": 4, "global_attn_indexes": [0], "pretrain_image_size": 64}, 0, (8, 8)),
    "sam_hq_vision_model": (SAM, 0, (8, 8)),
    "sam_vision_model": (SAM, 0, (8, 8)),
    "sapiens2": (VIT, 9, (8, 8)),
    "segformer": (HEADS, 0, (2, 2)),
    "siglip_vision_model": (VIT, 0, (8, 8)),
    "swiftformer": ({"embed_dims": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}, 0, (2, 2)),
    "swin": (SWIN, 0, (8, 8)),
    "swinv2": (SWIN, 0, (8, 8)),
    "textnet": (
        {"stem_out_channels": 8, "hidden_sizes": [8, 8, 8, 8, 8], "conv_layer_kernel_sizes": [[[3, 3]]] * 4,
         "conv_layer_strides": [[2]] * 4}, 0, (2, 2),
    ),
    "tipsv2_vision_model": (VIT, 2, (8, 8)),
    "vit": (VIT, 1, (8, 8)),
    "vit_mae": (VIT, 1, (8, 8)),
    "vit_msn": (VIT, 1, (8, 8)),
    "vitdet": (VIT, 0, (8, 8)),
    "yolos": ({**VIT, "image_size": [64, 64], "num_detection_tokens": 5}, 1, (8, 8)),
}  # fmt: skip
DEPTH = {"img_size": 64, "depth": 1}
# Architecture of timm -> settings, tokens before the patches, rows and columns of patches at 64 pixels.
TIMM: dict[str, tuple[dict, int, tuple[int, int]]] = {
    "vit_tiny_patch16_224": (DEPTH, 1, (4, 4)),
    "deit_tiny_distilled_patch16_224": (DEPTH, 2, (4, 4)),
    "vit_small_patch14_reg4_dinov2": ({**DEPTH, "patch_size": 8}, 5, (8, 8)),
    "vit_relpos_small_patch16_224": (DEPTH, 0, (4, 4)),
    "eva02_tiny_patch14_224": ({**DEPTH, "patch_size": 16}, 1, (4, 4)),
    "cait_xxs24_224": ({**DEPTH, "depth_token_only": 1}, 1, (4, 4)),
    "volo_d1_224": ({"img_size": 64}, 1, (4, 4)),
    "mixer_s32_224": ({"img_size": 64}, 0, (2, 2)),
    "swin_tiny_patch4_window7_224": ({"img_size": 64, "depths": (1, 1, 1, 1), "window_size": 2}, 0, (2, 2)),
    "mambaout_femto": ({"depths": (1, 1, 1, 1)}, 0, (2, 2)),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, 0, (2, 2)),
    "resnet18": ({"layers": (1, 1, 1, 1)}, 0, (2, 2)),
    "pvt_v2_b0": ({"depths": (1, 1, 1, 1)}, 0, (2, 2)),
    "hiera_tiny_224": ({"img_size": (64, 64), "stages": (1, 1, 1, 1)}, 0, (2, 2)),
    "naflexvit_base_patch16_gap": ({"depth": 1, "embed_dim": 24, "num_heads": 2}, 4, (4, 4)),
}


def build(name: str) -> PreTrainedModel:
    if name in ENCODERS:
        return AutoModel.from_config(AutoConfig.for_model(name, **ENCODERS[name][0])).eval()
    return AutoModel.from_config(TimmWrapperConfig(architecture=name, model_args=TIMM[name][0])).eval()


@pytest.mark.parametrize("name", [*ENCODERS, *TIMM])
@torch.no_grad()
def test_patches_are_those_of_the_image_in_their_order(name):
    _, prefix, (rows, columns) = {**ENCODERS, **TIMM}[name]
    encoder = build(name)
    image = 0.1 * torch.randn(2, 3, 64, 64)
    outputs = run_encoder(encoder, image)
    tokens = patch_tokens(encoder, outputs.last_hidden_state, image)
    assert tokens.shape[:2] == (2, rows * columns)
    if outputs.last_hidden_state.ndim == 3:
        assert num_prefix_tokens(encoder, outputs.last_hidden_state, image) == prefix
    # The same again: nothing is drawn.
    assert torch.equal(run_encoder(encoder, image).last_hidden_state, outputs.last_hidden_state)
    if outputs.last_hidden_state.ndim == 4:
        return
    # What changes in the middle of a patch is told by that patch's token most of all.
    side, centre = 64 // rows, 64 // rows // 2
    for row, column in {(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)}:
        changed = image.clone()
        area = [slice(start * side + centre // 2, start * side + centre // 2 + centre) for start in (row, column)]
        changed[:, :, area[0], area[1]] += 3 * torch.randn(1, 3, centre, centre)
        moved = patch_tokens(encoder, run_encoder(encoder, changed).last_hidden_state, changed) - tokens
        assert (moved.norm(dim=-1).argmax(dim=1) == row * columns + column).all(), (row, column)


@pytest.mark.parametrize("name", [*ENCODERS, *TIMM])
def test_what_a_dry_backward_finds_unread_gets_no_gradient(name):
    encoder = build(name)
    states = {key: value.clone() for key, value in encoder.state_dict().items()}

    def run(device: str) -> torch.Tensor:
        images = torch.randn(2, 3, 64, 64, device=device)
        return pooled_output(encoder, run_encoder(encoder, images), images)

    unread = unread_parameters(encoder, lambda: run("meta"))
    assert all(torch.equal(value, states[key]) for key, value in encoder.state_dict().items())
    encoder.train()
    run("cpu").square().sum().backward()
    trained = [(key, weight) for key, weight in encoder.named_parameters() if weight.requires_grad]
    assert {key for key, weight in trained if weight.grad is None} == unread & {key for key, _ in trained}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pixtral", {**VIT, "head_dim": 12}),
        ("vjepa2", {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "crop_size": 16}),
    ],
)
def test_an_unknown_layout_is_refused(name, settings):
    encoder = AutoModel.from_config(AutoConfig.for_model(name, **settings))
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match="which are the patches"):
        patch_tokens(encoder, torch.randn(1, 128, 24), images)
    with pytest.raises(ValueError, match="which are the patches"):
        patch_tokens(encoder, torch.randn(2, 63, 24), images)


def test_timm_models_without_patches_are_refused():
    encoder = AutoModel.from_config(TimmWrapperConfig(architecture="pit_ti_224")).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad(), pytest.raises(ValueError, match="which are the patches"):
        patch_tokens(encoder, run_encoder(encoder, images).last_hidden_state, images)
