"""
One class per contestant of compare.py: how it is built, trained and read out, as its own documentation has it.

All see the same images, through `augment` with their own crop and flip; all have the same backbone sizes. The heavy
trainers of the peers are left out: their public modules run in the same plain loop as ours.
"""

from __future__ import annotations

import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def augment(images: Tensor, crop_scale: float, flip: bool, generator: torch.Generator) -> Tensor:
    """Random resized crop (area from `crop_scale` to 1, aspect 3/4 to 4/3) and flip; nothing at scale 1."""
    n = len(images)
    if crop_scale >= 1.0 and not flip:
        return images

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    area, ratio = uniform(crop_scale, 1.0), uniform(math.log(3 / 4), math.log(4 / 3)).exp()
    height, width = (area / ratio).sqrt().clamp(max=1.0), (area * ratio).sqrt().clamp(max=1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    if flip:
        theta[:, 0, 0] *= torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _cosine(progress: float, warmup: float, start: float, peak: float, end: float) -> float:
    if progress < warmup:
        return start + (peak - start) * progress / warmup
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class Contestant(nn.Module):
    """Progress is the share of the CPU budget spent; schedules are functions of it."""

    crop_scale, flip = 0.3, False
    rate = 1.0
    settings: dict = {}

    def loss(self, images: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} is not trained.")

    def learning_rate(self, progress: float) -> float:
        return self.settings["learning_rate"]

    def make_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.learning_rate(0.0))

    def before_step(self, optimizer: torch.optim.Optimizer, progress: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate * self.learning_rate(progress)

    def after_step(self, progress: float) -> None:
        pass

    def tokens(self, images: Tensor) -> Tensor:
        """The frozen target encoder's patch tokens `(n, patches, width)`."""
        raise TypeError(f"{type(self).__name__} has no features.")


class HfJepa(Contestant):
    """Ours, as src/hf_jepa/recipes/ijepa_fashion_mnist.yaml has it."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        from transformers import IJepaConfig

        from hf_jepa.masking import MultiBlockMaskGenerator
        from hf_jepa.models.ijepa import IJepaForPreTraining, IJepaPreTrainingConfig

        encoder = IJepaConfig(
            hidden_size=args.width,
            num_hidden_layers=args.depth,
            num_attention_heads=args.heads,
            intermediate_size=4 * args.width,
            layer_norm_eps=1e-6,
            image_size=args.image_size,
            patch_size=args.patch_size,
            num_channels=args.num_channels,
        )
        config = IJepaPreTrainingConfig(
            encoder_config=encoder,
            predictor_hidden_size=args.predictor_width,
            predictor_num_hidden_layers=args.predictor_depth,
            predictor_num_attention_heads=args.predictor_heads,
            initialization="fan_in",
        )
        self.model = IJepaForPreTraining(config)
        if args.bf16:
            self.model.set_attn_implementation("cpu_bf16")
        self.masks = MultiBlockMaskGenerator(
            args.image_size,
            args.patch_size,
            target_scale=args.target_scale,
            num_target_masks=args.num_target_masks,
            min_keep=3,
            mode="balanced",
            seed=args.seed,
        )
        self.crop_scale, self.args = args.crop_scale, args
        self.settings = {
            "learning_rate": args.learning_rate,
            "weight_decay": args.weight_decay,
            "ema_momentum": args.ema_momentum,
            "target_scale": args.target_scale,
            "num_target_masks": args.num_target_masks,
            "crop_scale": args.crop_scale,
            "masks": "balanced",
            "initialization": "fan_in",
        }

    def loss(self, images: Tensor) -> Tensor:
        return self.model(images, *self.masks(len(images))).loss

    def learning_rate(self, progress: float) -> float:
        peak = self.args.learning_rate
        return _cosine(progress, self.args.warmup, 0.01 * peak, peak, 0.01 * peak)

    def make_optimizer(self) -> torch.optim.Optimizer:
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        decayed = [p for n, p in named if p.ndim > 1 and "bias" not in n]
        plain = [p for n, p in named if not (p.ndim > 1 and "bias" not in n)]
        groups = [{"params": decayed, "weight_decay": self.args.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.learning_rate(0.0), fused=True)

    def after_step(self, progress: float) -> None:
        self.model.update_target(self.args.ema_momentum + progress * (1.0 - self.args.ema_momentum))

    def tokens(self, images: Tensor) -> Tensor:
        return self.model.get_features(images)


class RandomInit(HfJepa):
    """Ours before its first step."""


class RawPixels(Contestant):
    """The patches' own pixels."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        self.patch_size = args.patch_size

    def tokens(self, images: Tensor) -> Tensor:
        return F.unfold(images, self.patch_size, stride=self.patch_size).transpose(1, 2)


def _timm_vit(args: argparse.Namespace) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=args.image_size,
        patch_size=args.patch_size,
        in_chans=args.num_channels,
        embed_dim=args.width,
        depth=args.depth,
        num_heads=args.heads,
        num_classes=0,
        class_token=False,
        global_pool="",
    )


class Lightly(Contestant):
    """lightly's modules composed as in its I-JEPA example: AdamW at 1.5e-4, EMA from 0.996, its transform's crop."""

    crop_scale, flip = 0.2, True
    masks: dict = {}

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        from lightly.data.ijepa_collate import IJEPAMaskCollator
        from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM
        from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM

        size = (args.image_size, args.image_size)
        self.collator = IJEPAMaskCollator(input_size=size, patch_size=args.patch_size, **self.masks)
        self.encoder = MaskedVisionTransformerTIMM(_timm_vit(args))
        self.predictor = IJEPAPredictorTIMM(
            num_patches=(args.image_size // args.patch_size) ** 2,
            depth=args.predictor_depth,
            mlp_dim=args.width,
            predictor_embed_dim=args.predictor_width,
            num_heads=args.predictor_heads,
        )
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.settings = {"learning_rate": 1.5e-4, "ema_momentum": 0.996, "masks": self.masks or "its defaults"}

    def loss(self, images: Tensor) -> Tensor:
        from lightly.models import utils

        _, context_mask, target_mask = self.collator(list(range(len(images))))
        predictions = self.predictor(self.encoder.encode(images, idx_keep=context_mask[0]), context_mask, target_mask)
        with torch.no_grad():
            features = self.target_encoder.encode(images)
            targets = utils.apply_masks(F.layer_norm(features, features.shape[-1:]), target_mask)
        return F.smooth_l1_loss(predictions, targets)

    def after_step(self, progress: float) -> None:
        from lightly.models import utils

        utils.update_momentum(self.encoder, self.target_encoder, 0.996 + progress * 0.004)

    def tokens(self, images: Tensor) -> Tensor:
        return self.target_encoder.encode(images)


class LightlyPaperMasks(Lightly):
    """The same with the paper's mask sizes, which its collator takes but does not default to."""

    masks = {
        "enc_mask_scale": (0.85, 1.0),
        "pred_mask_scale": (0.15, 0.2),
        "aspect_ratio": (0.75, 1.5),
        "npred": 4,
        "min_keep": 3,
    }


class StablePretraining(Contestant):
    """stable-pretraining's IJEPA module with the optimizer of its own I-JEPA run (AdamW 6e-4, warm-up and cosine)."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        from stable_pretraining.methods.ijepa import IJEPA

        self.model = IJEPA(
            _timm_vit(args), predictor_embed_dim=args.predictor_width, predictor_depth=args.predictor_depth
        )
        self.settings = {"learning_rate": 6e-4, "weight_decay": 0.05, "betas": [0.9, 0.95], "ema_momentum": 0.996}

    def loss(self, images: Tensor) -> Tensor:
        return self.model(images, embedding_source="student").loss

    def learning_rate(self, progress: float) -> float:
        return _cosine(progress, 0.1, 6e-6, 6e-4, 0.0)

    def make_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(parameters, lr=6e-4, weight_decay=0.05, betas=(0.9, 0.95))

    def after_step(self, progress: float) -> None:
        self.model.encoder.update_ema_coefficient(progress, 1.0)
        self.model.encoder.update_teacher()

    def tokens(self, images: Tensor) -> Tensor:
        return self.model.encoder.teacher(images).encoded


CONTESTANTS: dict[str, type[Contestant]] = {
    "hf_jepa": HfJepa,
    "lightly": Lightly,
    "lightly, paper's masks": LightlyPaperMasks,
    "stable-pretraining": StablePretraining,
    "random init": RandomInit,
    "raw pixels": RawPixels,
}
UNTRAINED = ("random init", "raw pixels")
