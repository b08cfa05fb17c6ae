"""What LeJEPA, Rectified LpJEPA, VICReg and SimSiam share: one encoder, several views, a projector."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ...encoders import (
    Pooling,
    build_encoder,
    keep_timm_size,
    pooled_output,
    resolve_pooling,
    run_encoder,
    whole_images,
)
from ...modeling_jepa import JepaPreTrainedModel, check_pixels
from ...objectives.distributed import world_size
from ...objectives.inputs import at_least_float32
from ...parts import dry_run, unread_parameters
from ...positions import pair
from ...token_layouts import patch_tokens
from .configuration_joint_embedding import JointEmbeddingPreTrainingConfig


def mlp(sizes: list[int], hidden_bias: bool = True, output_bias: bool = True) -> list[nn.Module]:
    """Linear layers of these widths, batch norm and ReLU after all but the last."""
    layers: list[nn.Module] = []
    for index, (size, next_size) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        is_last = index == len(sizes) - 2
        layers.append(nn.Linear(size, next_size, bias=output_bias if is_last else hidden_bias))
        if not is_last:
            layers += [nn.BatchNorm1d(next_size), nn.ReLU()]
    return layers


def pairwise_distance(projections: torch.Tensor) -> torch.Tensor:
    """
    Mean squared difference over the width, averaged over all ordered pairs of views, in closed form.

    Args:
        projections (`torch.FloatTensor` of shape `(views, batch, width)`): at least two views.

    Returns:
        `torch.FloatTensor` of shape `(batch,)`.
    """
    # mean over i != j of |z_i - z_j|^2 = 2 / (views - 1) * sum_i |z_i - mean|^2
    deviations = (projections - projections.mean(dim=0)).square().mean(dim=2)
    return deviations.sum(dim=0) * 2 / (len(projections) - 1)


class JointEmbeddingPreTrainedModel(JepaPreTrainedModel):
    """
    Base of the joint-embedding models: `encoder`, any vision encoder that `AutoModel` builds, and `projector`. There
    is no target encoder but with LeJEPA's `target="ema"`. The projector has torch's default initialisation, a timm
    encoder timm's own, which its in-tree wrapper would overwrite.
    """

    config: JointEmbeddingPreTrainingConfig
    min_views, max_views = 2, None
    takes_local_views = True

    def __init__(self, config: JointEmbeddingPreTrainingConfig):
        super().__init__(config)
        self.encoder = build_encoder(config.encoder_config, config.image_size)
        if not isinstance(self.encoder, PreTrainedModel):
            raise ValueError(f"`encoder_config` builds a {type(self.encoder).__name__}, which is no vision encoder.")
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing
        self._encoder_has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.encoder.modules())
        if config.pooled_size is None:
            config.pooling, config.pooled_size = self._find_pooling()
        self.build_head(config)
        # All ranks count alike. DDP's broadcast would rewrite the count, which then has to be read from the device.
        counters = [name for name, _ in self.named_buffers() if name.endswith("global_step")]
        self._ddp_params_and_buffers_to_ignore = counters
        self.post_init()
        if self.device.type != "meta":
            self._restore_timm_initialization()
            self.sync_target()
        self.apply_requires_grad()

    def build_head(self, config: JointEmbeddingPreTrainingConfig) -> None:
        """Makes `projector` and whatever else follows the encoder; each model has its own."""

    @torch.no_grad()
    def _find_pooling(self) -> tuple[Pooling, int]:
        pixel_values = torch.empty(1, self.config.num_channels, *pair(self.config.image_size), device="meta")

        def run() -> tuple[Pooling, int]:
            outputs = run_encoder(self.encoder, pixel_values)
            pooling = resolve_pooling(self.encoder, outputs, pixel_values, self.config.pooling)
            return pooling, pooled_output(self.encoder, outputs, pixel_values, pooling).shape[1]

        return dry_run(self.encoder, run)[0]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # torch's own default, which all the originals' projectors have.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    @torch.no_grad()
    def _restore_timm_initialization(self) -> None:
        if not hasattr(self.encoder, "timm_model"):
            return
        import timm

        options = self.encoder.config.model_args or {}
        # Without a head, as the wrapper builds it.
        fresh = timm.create_model(self.config.encoder_config.architecture, num_classes=0, **options)
        self.encoder.timm_model.load_state_dict(fresh.state_dict())

    def unread(self) -> set[str]:
        size = (1, self.config.num_channels, *pair(self.config.image_size))
        found = unread_parameters(self.encoder, lambda: self._pool(torch.empty(size, device="meta")))
        return {f"encoder.{name}" for name in found}

    @classmethod
    def _resize(cls, encoder_config: PreTrainedConfig, image_size: Any, fields: dict[str, Any]) -> None:
        # The encoder stays as it is, and interpolates its positions where it can.
        fields["image_size"] = image_size

    @classmethod
    def _encoder_config(cls, encoder: PreTrainedModel) -> PreTrainedConfig:
        config = super()._encoder_config(encoder)
        keep_timm_size(config, encoder)
        return config

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        # The timm wrapper has a way of its own.
        self.encoder._set_gradient_checkpointing(enable, *args, **kwargs)

    def _pool(self, pixel_values: torch.Tensor, which: str = "context") -> torch.Tensor:
        encoder = self._encoder(which)
        outputs = run_encoder(encoder, pixel_values)
        return pooled_output(encoder, outputs, pixel_values, self.config.pooling)

    def _encode_views(self, views: torch.Tensor, which: str = "context") -> torch.Tensor:
        """(batch, views, C, H, W) -> (views, batch, pooled width)."""
        batch, count = views.shape[:2]
        by_view = views.transpose(0, 1)
        if self.config.batch_norm == "per_view" and self.training and self._encoder_has_batch_norm:
            return torch.stack([self._pool(view, which) for view in by_view])
        return self._pool(by_view.flatten(0, 1), which).unflatten(0, (count, batch))

    def _apply_head(self, layers: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """A head applied to (views, batch, width), with batch norm over all views or over each."""
        if self.config.batch_norm == "per_view":
            return torch.stack([layers(view) for view in inputs])
        return layers(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])

    def embed(
        self, pixel_values: torch.Tensor, local_pixel_values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Pooled outputs and projections of all views, global ones first.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, views, channels, height, width)`): global views.
            local_pixel_values (`torch.FloatTensor` of shape `(batch, local views, channels, h, w)`, *optional*).

        Returns:
            Tensors of shape `(views, batch, pooled width)` and `(views, batch, projection width)`.

        Raises:
            `ValueError`: for too few or too many views, tensors that do not fit each other, or a batch of one.
        """
        self._check_views(pixel_values, local_pixel_values)
        pooled = self._encode_views(pixel_values)
        if local_pixel_values is not None:
            pooled = torch.cat([pooled, self._encode_views(local_pixel_values)])
        return pooled, self._project(pooled)

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        return self._apply_head(self.projector, pooled)

    def _check_views(self, pixel_values: torch.Tensor, local_pixel_values: torch.Tensor | None) -> None:
        name = type(self).__name__
        for key, views in (("pixel_values", pixel_values), ("local_pixel_values", local_pixel_values)):
            if views is not None and views.ndim != 5:
                raise ValueError(
                    f"{name} needs `{key}` (batch, views, channels, height, width), got {tuple(views.shape)}: "
                    "stack the views of an image with MultiViewTransform and MultiViewCollator."
                )
            if views is not None:
                check_pixels(views, key)
        batch, count = pixel_values.shape[:2]
        if local_pixel_values is not None:
            if not self.takes_local_views:
                raise ValueError(f"{name} compares two views of equal kind and takes no `local_pixel_values`.")
            if local_pixel_values.shape[0] != batch or local_pixel_values.shape[2] != pixel_values.shape[2]:
                raise ValueError(
                    f"Global views {tuple(pixel_values.shape)} and local views {tuple(local_pixel_values.shape)} "
                    "differ in batch or channels."
                )
            count += local_pixel_values.shape[1]
        if count < self.min_views or (self.max_views is not None and count > self.max_views):
            wanted = f"{self.min_views}" if self.max_views == self.min_views else f"at least {self.min_views}"
            raise ValueError(f"{name} compares views with each other and needs {wanted} of an image, got {count}.")
        if batch * world_size() < 2:
            raise ValueError(f"{name} needs a batch of at least 2 images, got {batch}; raise the batch size.")

    def batch_warning(self, batch_size: int) -> str | None:
        """
        What is wrong with training on batches of this size, or `None`. Trainers log it before the first step.

        Args:
            batch_size (`int`): images in one forward pass, over all processes.
        """
        return None

    @torch.no_grad()
    def get_features(self, pixel_values: torch.FloatTensor, which: str = "target") -> torch.FloatTensor:
        """
        Patch features of whole images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).
            which (`str`): `"target"` or `"context"`; one and the same but with LeJEPA's `target="ema"`.

        Returns:
            `torch.FloatTensor` of shape `(batch, tokens, width)`: the patch tokens, a ConvNet's feature map flattened,
            or for encoders that give a pooled vector only that one vector.
        """
        encoder = self._encoder(which)
        with whole_images(encoder):
            outputs = run_encoder(encoder, pixel_values)
        states = getattr(outputs, "last_hidden_state", None)
        if not isinstance(states, torch.Tensor) or states.ndim not in (3, 4):
            return pooled_output(encoder, outputs, pixel_values, self.config.pooling).unsqueeze(1)
        return patch_tokens(encoder, states, pixel_values)

    @torch.no_grad()
    def get_pooled_features(self, pixel_values: torch.FloatTensor, which: str = "target") -> torch.FloatTensor:
        """
        What the model is trained to make of whole images, before the projector.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`).
            which (`str`): as in `get_features`.

        Returns:
            `torch.FloatTensor` of shape `(batch, pooled width)`.
        """
        with whole_images(self._encoder(which)):
            return self._pool(pixel_values, which)

    @torch.no_grad()
    def energy(
        self, pixel_values: torch.FloatTensor, local_pixel_values: torch.FloatTensor | None = None
    ) -> torch.FloatTensor:
        """
        How far an image's views lie apart: mean squared difference of its pairs of views. Arguments as in `forward`.

        Returns:
            `torch.FloatTensor` of shape `(batch,)`.
        """
        return pairwise_distance(at_least_float32(self.embed(pixel_values, local_pixel_values)[1]))
