"""The contestants: one I-JEPA training step each, at the same sizes, on the same images and masks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.benchmarks.gemm import StepSizes

MOMENTUM = 0.996
Step = Callable[[], float]


def make_batch(sizes: StepSizes) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Images and masks of fixed lengths, the same on every call."""
    generator = torch.Generator().manual_seed(0)

    def mask(length: int) -> Tensor:
        rows = [torch.randperm(sizes.num_patches, generator=generator) for _ in range(sizes.batch_size)]
        return torch.stack([row[:length].sort().values for row in rows])

    images = torch.randn(sizes.batch_size, 3, sizes.image_size, sizes.image_size, generator=generator)
    return images, [mask(sizes.num_context)], [mask(sizes.num_target) for _ in range(sizes.num_target_masks)]


def _step(model: nn.Module, loss_of: Callable[[], Tensor], update: Callable[[], None], dtype: torch.dtype) -> Step:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # every contestant gets the fastest optimizer

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update()
        return loss.item()

    return step


def hf_jepa_model(sizes: StepSizes, attention: str) -> nn.Module:
    """Ours, with the given attention."""
    from transformers import IJepaConfig

    from hf_jepa.models.ijepa import IJepaForPreTraining, IJepaPreTrainingConfig

    encoder = IJepaConfig(
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        intermediate_size=4 * sizes.hidden_size,
        layer_norm_eps=1e-6,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
    )
    config = IJepaPreTrainingConfig(
        encoder_config=encoder,
        predictor_hidden_size=sizes.predictor_hidden_size,
        predictor_num_hidden_layers=sizes.predictor_num_layers,
    )
    return IJepaForPreTraining._from_config(config, attn_implementation=attention).train()


def hf_jepa_step(sizes: StepSizes, dtype: torch.dtype, attention: str) -> Step:
    model = hf_jepa_model(sizes, attention)
    images, context_mask, target_mask = make_batch(sizes)
    return _step(
        model,
        lambda: model(images, context_mask, target_mask).loss,
        lambda: model.update_target(MOMENTUM),
        dtype,
    )


def lightly_step(sizes: StepSizes, dtype: torch.dtype) -> Step:
    """lightly's timm parts (their faster pair), composed as its I-JEPA example does."""
    from lightly.models import utils
    from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
    from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(
        img_size=sizes.image_size,
        patch_size=sizes.patch_size,
        embed_dim=sizes.hidden_size,
        depth=sizes.num_layers,
        num_heads=sizes.num_heads,
        num_classes=0,
        class_token=False,
        global_pool="",
    )
    model = nn.Module()
    model.encoder = MaskedVisionTransformerTIMM(vit)
    model.predictor = IJEPAPredictorTIMM(
        num_patches=sizes.num_patches,
        depth=sizes.predictor_num_layers,
        mlp_dim=sizes.hidden_size,
        predictor_embed_dim=sizes.predictor_hidden_size,
        num_heads=sizes.num_heads,
    )
    target_encoder = copy.deepcopy(model.encoder).requires_grad_(False)
    images, context_mask, target_mask = make_batch(sizes)

    def loss_of() -> Tensor:
        predictions = model.predictor(
            model.encoder.encode(images, idx_keep=context_mask[0]), context_mask, target_mask
        )
        with torch.no_grad():
            features = target_encoder.encode(images)
            features = F.layer_norm(features, features.shape[-1:])
            targets = utils.apply_masks(features, target_mask)
        return F.smooth_l1_loss(predictions, targets)

    return _step(model, loss_of, lambda: utils.update_momentum(model.encoder, target_encoder, MOMENTUM), dtype)


CONTESTANTS: dict[str, Callable[[StepSizes, torch.dtype], Step]] = {
    "hf_jepa": lambda sizes, dtype: hf_jepa_step(sizes, dtype, "cpu_bf16"),
    "hf_jepa, plain attention": lambda sizes, dtype: hf_jepa_step(sizes, dtype, "eager"),
    "hf_jepa, sdpa": lambda sizes, dtype: hf_jepa_step(sizes, dtype, "sdpa"),
    "lightly": lightly_step,
}
