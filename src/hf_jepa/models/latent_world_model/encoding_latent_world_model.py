"""Frames to latents: the half of a world model that planners see as `encode`."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ViTModel

from ...encoders import (
    build_encoder,
    cls_token,
    configured_channels,
    configured_size,
    normalized_frames,
    patch_tokens,
    pooled_output,
    resolve_pooling,
    run_encoder,
)
from ...modeling_jepa import JepaPreTrainedModel
from ...objectives.inputs import check_tensor
from ...parts import leave_out, unread_parameters
from ...world_model import WorldModelMixin
from .configuration_latent_world_model import LatentWorldModelConfig


def projector(sizes: tuple[int, int, int]) -> nn.Sequential:
    """LeWM's head (released code), of these widths."""
    before, hidden, after = sizes
    return nn.Sequential(nn.Linear(before, hidden), nn.BatchNorm1d(hidden), nn.GELU(), nn.Linear(hidden, after))


class FrameEncodingModel(WorldModelMixin, JepaPreTrainedModel):
    """What [`LatentWorldModel`] makes latents with: `encoder`, `projector`, `proprio_encoder`, `latent_norm`."""

    config: LatentWorldModelConfig

    def __init__(self, config: LatentWorldModelConfig):
        super().__init__(config)
        self.encoder = build_encoder(config.encoder_config)
        if not isinstance(self.encoder, PreTrainedModel):
            raise ValueError(f"`encoder_config` builds a {type(self.encoder).__name__}, which is no vision encoder.")
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing
        if hasattr(getattr(self.encoder, "pooler", None), "dense") and config.pooling != "pooler":
            leave_out(self.encoder, "pooler")
        if config.pooled_size is None or config.num_tokens is None:
            config.pooling, config.num_tokens, config.pooled_size = self._find_pooling()
        width = config.pooled_size
        self.projector = None
        if config.projector_hidden_size is not None:
            self.projector = projector((width, config.projector_hidden_size, config.latent_size or width))
        elif config.latent_size not in (None, width):
            raise ValueError(
                f"`latent_size` is the width of the projector's output; without `projector_hidden_size` it is the "
                f"encoder's {width}, not {config.latent_size}."
            )
        self.proprio_encoder = None
        if config.proprio_dim:
            self.proprio_encoder = nn.Linear(config.proprio_dim, config.proprio_embedding_size)
        self.latent_norm = nn.LayerNorm(self._latent_width()) if config.latent_space == "layer_norm" else None

    @torch.no_grad()
    def _find_pooling(self) -> tuple[str, int, int]:
        """What `pooling` means for this encoder, and how many tokens of which width it gives."""
        was_training = self.encoder.training
        self.encoder.eval()
        frame = torch.zeros(1, self._num_channels(), *(self._image_size() or (224, 224)), device=self.device)
        pooling = self.config.pooling
        if pooling != "patches":
            pooling = resolve_pooling(self.encoder, run_encoder(self.encoder, frame), frame, pooling)
        features = self._pool(frame, pooling)
        self.encoder.train(was_training)
        return pooling, *features.shape[1:]

    def _image_size(self) -> tuple[int, int] | None:
        return configured_size(self.config.encoder_config)

    def _num_channels(self) -> int:
        return configured_channels(self.config.encoder_config)

    def _latent_width(self) -> int:
        config = self.config
        return (config.latent_size or config.pooled_size) + (
            config.proprio_embedding_size if config.proprio_dim else 0
        )

    @classmethod
    def from_encoder(
        cls, encoder: str | PreTrainedModel, preset: str | None = None, **config_kwargs: Any
    ) -> "FrameEncodingModel":
        """
        As [`~hf_jepa.modeling_jepa.JepaPreTrainedModel.from_encoder`], such as from the frozen encoder of the preset
        `"dino_wm"`.

        Args:
            encoder (`str` or `PreTrainedModel`): a model id, a local folder, or a loaded encoder.
            preset (`str`, *optional*): see [`LatentWorldModelConfig.from_preset`]; its encoder is replaced.
            config_kwargs: fields of the config.

        Raises:
            `ValueError`: as there, and for an unknown preset.
        """
        chosen = {} if preset is None else cls.config_class.preset_fields(preset)
        chosen.pop("encoder_config", None)
        return super().from_encoder(encoder, **{**chosen, **config_kwargs})

    @property
    def released_whole(self) -> bool:
        """A V-JEPA encoder without its predictor, as it is held here, is no model by itself."""
        return self.encoder.config.model_type in ("vjepa", "vjepa2")

    def frozen(self) -> Iterator[nn.Module]:
        yield from super().frozen()
        if self.config.freeze_encoder:
            yield self.encoder

    def unread(self) -> set[str]:
        if self.config.freeze_encoder:
            return set()
        frame = torch.empty(1, self._num_channels(), *(self._image_size() or (224, 224)), device="meta")
        found = unread_parameters(self.encoder, lambda: self._pool(frame, self.config.pooling))
        return {f"encoder.{name}" for name in found}

    def train(self, mode: bool = True) -> "FrameEncodingModel":
        super().train(mode)
        if self.config.freeze_encoder:
            self.encoder.eval()
        return self

    def _preprocess(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(n, channels, height, width)`: uint8 made the encoder's size and normalised, floats as they are."""
        config = self.config
        return normalized_frames(pixel_values, config.image_mean, config.image_std, self._image_size(), self.dtype)

    def _pool(self, frames: torch.Tensor, pooling: str) -> torch.Tensor:
        if pooling == "cls" and type(self.encoder) is ViTModel:
            return cls_token(self.encoder, frames)[:, None]
        outputs = run_encoder(self.encoder, frames)
        if pooling == "patches":
            return patch_tokens(self.encoder, outputs.last_hidden_state, frames)
        return pooled_output(self.encoder, outputs, frames, pooling)[:, None]

    def _into_space(self, latents: torch.Tensor) -> torch.Tensor:
        if self.latent_norm is not None:
            return self.latent_norm(latents)
        return torch.tanh(latents) if self.config.latent_space == "tanh" else latents

    def encode(self, pixel_values: torch.Tensor, proprio: torch.Tensor | None = None) -> torch.Tensor:
        """
        Latents of frames, each encoded by itself.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, time, channels, height, width)`): normalised float frames,
                or uint8 ones, which are divided by 255, resized to the encoder's size where they have another, and
                normalised with the config's `image_mean` and `image_std`.
            proprio (`torch.FloatTensor` of shape `(batch, time, proprio_dim)`, *optional*): normalised.

        Returns:
            `torch.FloatTensor` of shape `(batch, time, tokens, width)`.

        Raises:
            `ValueError`: for other shapes, another number of channels, frames that are not normalised, proprioception
                that is missing or that the model does not take.
        """
        check_tensor(pixel_values, "pixel_values")
        channels = self._num_channels()
        if pixel_values.ndim != 5 or pixel_values.shape[2] != channels or 0 in pixel_values.shape:
            raise ValueError(
                f"Frames must be (batch, time, {channels} channels, height, width), got {tuple(pixel_values.shape)}."
            )
        batch, time = pixel_values.shape[:2]
        frames = self._preprocess(pixel_values.flatten(0, 1))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_encoder):
            latents = self._pool(frames, self.config.pooling)
        if latents.shape[1] != self.config.num_tokens:
            raise ValueError(
                f"Frames of {tuple(frames.shape[-2:])} pixels have {latents.shape[1]} patches, the predictor has "
                f"positions for {self.config.num_tokens}: resize them to {self._image_size()}."
            )
        if self.projector is not None:
            latents = self.projector(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        if (proprio is None) != (self.proprio_encoder is None):
            raise ValueError(
                f"This model takes {self.config.proprio_dim} numbers of proprioception beside every frame, got "
                f"{'none' if proprio is None else tuple(proprio.shape)}."
            )
        if proprio is not None:
            if proprio.shape != (batch, time, self.config.proprio_dim):
                raise ValueError(
                    f"`proprio` must be {(batch, time, self.config.proprio_dim)}, got {tuple(proprio.shape)}."
                )
            state = self.proprio_encoder(proprio.flatten(0, 1).to(self.proprio_encoder.weight.dtype))[:, None]
            latents = torch.cat([latents, state.expand(-1, latents.shape[1], -1).to(latents.dtype)], dim=-1)
        return self._into_space(latents).unflatten(0, (batch, time))

    @torch.no_grad()
    def get_features(self, pixel_values: torch.Tensor, which: str = "target") -> torch.Tensor:
        """
        What the encoder makes of images or clips: what probes read. Heads and proprioception are left out.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)` or `(batch, time, channels,
                height, width)`): as for [`encode`].
            which (`str`): `"target"` or `"context"`; there is one encoder.

        Returns:
            `torch.FloatTensor` of shape `(batch, time * tokens, pooled_size)`.
        """
        self._encoder(which)
        features = self._pool(self._preprocess(pixel_values.flatten(0, -4)), self.config.pooling)
        return features.unflatten(0, (len(pixel_values), -1)).flatten(1, 2)
