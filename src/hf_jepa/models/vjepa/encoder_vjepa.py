"""The video encoder: tokens of clips of any size, all or some of them, in one packed pass."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ...modeling_jepa import check_masks, check_pixels
from ...positions import resize_table, sincos_2d, sincos_3d
from ...predictor import gather_tokens
from .configuration_vjepa import VJepaConfig
from .layers_vjepa import (
    Segment,
    VJepaPreTrainedModel,
    build_layers,
    pack,
    rotary_tables,
    unpack,
)

Grid = tuple[int, int, int]


def grid_of(config: VJepaConfig, pixel_values_videos: torch.Tensor) -> Grid:
    """
    Time slots, rows and columns of clips. One frame is one slot: it stands for a whole tubelet of itself, or the image
    tokenizer takes it.

    Args:
        config ([`VJepaConfig`]).
        pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`).

    Raises:
        `ValueError`: for integers, another number of dimensions or channels, frames that tubelets do not divide, or a
            size that patches do not divide.
    """
    check_pixels(pixel_values_videos, "pixel_values_videos")
    shape = tuple(pixel_values_videos.shape)
    if len(shape) != 5 or shape[2] != config.in_chans:
        raise ValueError(
            f"`pixel_values_videos` must have shape (batch, frames, {config.in_chans} channels, height, width), got "
            f"{shape}."
        )
    frames, (height, width) = shape[1], shape[3:]
    tubelet, patch = config.tubelet_size, config.patch_size
    if frames == 0 or (frames > 1 and frames % tubelet):
        raise ValueError(
            f"Clips of {frames} frames cannot be cut into tubelets of {tubelet}: give a multiple of {tubelet}, or one "
            "frame."
        )
    if height % patch or width % patch or not height or not width:
        raise ValueError(f"Frames of {height}x{width} pixels cannot be cut into patches of {patch}x{patch}.")
    return max(1, frames // tubelet), height // patch, width // patch


def gather_tubelets(
    pixel_values_videos: torch.Tensor, grid: Grid, tubelet_size: int, token_ids: torch.Tensor | None
) -> torch.Tensor:
    """
    The pixels of tubelets, flattened in (frame, channel, row, column) order.

    Args:
        pixel_values_videos (`torch.Tensor` of shape `(batch, frames, channels, height, width)`).
        grid (`tuple[int, int, int]`): time slots, rows and columns.
        tubelet_size (`int`): frames of a tubelet; a clip of one frame has as many copies of it.
        token_ids (`torch.Tensor` of shape `(batch, kept)`, *optional*): int64 indices of those wanted, else all.

    Returns:
        `torch.Tensor` of shape `(batch, kept or tokens, tubelet_size * channels * patch * patch)`.
    """
    batch, frames, channels, height, width = pixel_values_videos.shape
    slots, rows, columns = grid
    if frames < tubelet_size:
        pixel_values_videos = pixel_values_videos.expand(-1, tubelet_size, -1, -1, -1)
    tubelets = pixel_values_videos.reshape(
        batch, slots, tubelet_size, channels, rows, height // rows, columns, width // columns
    )
    tubelets = tubelets.permute(0, 1, 4, 6, 2, 3, 5, 7)
    if token_ids is None:
        return tubelets.reshape(batch, slots * rows * columns, -1)
    clip = torch.arange(batch, device=token_ids.device).unsqueeze(-1)
    kept = tubelets[clip, token_ids // (rows * columns), token_ids // columns % rows, token_ids % columns]
    return kept.flatten(2)


class VJepaPatchEmbeddings(nn.Module):
    """
    Tubelets to tokens: a 3-D convolution without overlap, computed as one product, for the visible tubelets only.

    Args:
        config ([`VJepaConfig`]).
        tubelet_size (`int`): 1 for the image tokenizer of V-JEPA 2.1.
    """

    def __init__(self, config: VJepaConfig, tubelet_size: int):
        super().__init__()
        kernel = (tubelet_size, config.patch_size, config.patch_size)
        self.tubelet_size = tubelet_size
        self.proj = nn.Conv3d(config.in_chans, config.hidden_size, kernel_size=kernel, stride=kernel)

    def forward(self, pixel_values_videos: torch.Tensor, grid: Grid, token_ids: torch.Tensor | None) -> torch.Tensor:
        """As [`gather_tubelets`], to `(batch, kept or tokens, width)`."""
        weight = self.proj.weight.transpose(1, 2).flatten(1)
        tubelets = gather_tubelets(pixel_values_videos, grid, self.tubelet_size, token_ids)
        return F.linear(tubelets.to(weight.dtype), weight, self.proj.bias)


class VJepaEmbeddings(nn.Module):
    """Patch tokens of clips, with sine-cosine positions and modality vectors where the config has them."""

    def __init__(self, config: VJepaConfig):
        super().__init__()
        self.config = config
        self.patch_embeddings = VJepaPatchEmbeddings(config, config.tubelet_size)
        if config.use_image_tokenizer:
            self.image_patch_embeddings = VJepaPatchEmbeddings(config, 1)
            self.video_modality = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
            self.image_modality = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        if config.position_embedding_type == "sincos":
            slots, rows, columns = config.grid_size
            self.position_embeddings = nn.Parameter(
                torch.zeros(1, slots * rows * columns, config.hidden_size), requires_grad=False
            )

    def forward(self, pixel_values_videos: torch.Tensor, grid: Grid, token_ids: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(batch, frames, channels, height, width)`).
            grid (`tuple[int, int, int]`): of [`grid_of`].
            token_ids (`torch.Tensor` of shape `(batch, kept)`, *optional*): int64 indices of the visible tokens.

        Returns:
            `torch.FloatTensor` of shape `(batch, kept or tokens, width)`.
        """
        config = self.config
        is_image = config.use_image_tokenizer and pixel_values_videos.shape[1] == 1
        embed = self.image_patch_embeddings if is_image else self.patch_embeddings
        tokens = embed(pixel_values_videos, grid, token_ids)
        if config.position_embedding_type == "sincos":
            positions = resize_table(self.position_embeddings, config.grid_size, grid)
            positions = positions if token_ids is None else gather_tokens(positions, token_ids)
            tokens = tokens + positions.to(tokens.dtype)
        if config.use_image_tokenizer:
            tokens = tokens + (self.image_modality if is_image else self.video_modality).to(tokens.dtype)
        return tokens


class VJepaEncoder(VJepaPreTrainedModel):
    """
    The encoder of all generations. Clips of several sizes, with several masks each, share one pass: their tokens lie
    one after another in one tensor, and attention alone looks at each sequence by itself.
    """

    def __init__(self, config: VJepaConfig):
        super().__init__(config)
        self.embeddings = VJepaEmbeddings(config)
        self.layer = build_layers(
            config, config.hidden_size, config.num_attention_heads, config.mlp_ratio, config.num_hidden_layers
        )
        self.level_norms = nn.ModuleList(
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(config.num_levels - 1)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VJepaEmbeddings):
            if self.config.position_embedding_type == "sincos":
                table = position_table(self.config, self.config.hidden_size)
                init.copy_(module.position_embeddings, table)
            if self.config.use_image_tokenizer:
                init.normal_(module.video_modality, std=1e-6)
                init.normal_(module.image_modality, std=1e-6)

    def forward(
        self,
        pixel_values_videos: list[torch.Tensor],
        masks: list[list[torch.Tensor]] | None = None,
        num_levels: int = 1,
        hidden_states: list[torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """
        Args:
            pixel_values_videos (`list` of `torch.FloatTensor` of shape `(batch, frames, channels, height, width)`):
                groups of clips; sizes may differ between groups.
            masks (`list` of `list` of int64 tensors of shape `(batch, kept)`, *optional*): per group, the visible
                tokens of every mask, in (time, row, column) order. Lengths may differ between masks. The other tokens
                are dropped before the first block. When omitted, all tokens of every group are visible.
            num_levels (`int`): how many of the last supervised levels to return, side by side. 1: the last, which is
                the output of every generation.
            hidden_states (`list`, *optional*): is extended by the packed tokens `(tokens, width)` before the first
                block and after every block.

        Returns:
            `list` of `torch.FloatTensor` of shape `(batch, kept or tokens, num_levels * width)`: per group and mask,
            after the norm of the level.

        Raises:
            `ValueError`: for clips or masks that do not fit (of masks on other devices than CPU, shapes only).
        """
        tokens, segments = [], []
        for index, clips in enumerate(pixel_values_videos):
            grid = grid_of(self.config, clips)
            if masks is not None:
                check_each_mask("context_mask", masks[index], clips.shape[0], grid)
            for token_ids in [None] if masks is None else masks[index]:
                embedded = self.embeddings(clips, grid, token_ids)
                if token_ids is None:
                    token_ids = torch.arange(embedded.shape[1], device=embedded.device).unsqueeze(0)
                rotary = rotary_tables(
                    self.config,
                    token_ids,
                    grid[1:],
                    self.config.hidden_size // self.config.num_attention_heads,
                    embedded.dtype,
                    self.config.rope_interpolation,
                )
                tokens.append(embedded)
                segments.append(Segment(*embedded.shape[:2], rotary))

        packed, levels = pack(tokens), []
        kept = (self.config.hierarchical_layers or [len(self.layer) - 1])[-num_levels:]
        for index, layer in enumerate(self.layer):
            if hidden_states is not None:
                hidden_states.append(packed)
            packed = layer(packed, segments)
            if index in kept:
                levels.append(packed)
        if hidden_states is not None:
            hidden_states.append(packed)
        norms = [*self.level_norms, self.layernorm][-num_levels:]
        normed = [norm(level) for norm, level in zip(norms, levels, strict=True)]
        return unpack(normed[0] if len(normed) == 1 else torch.cat(normed, dim=-1), segments)


def position_table(config: VJepaConfig, dim: int) -> torch.Tensor:
    """The sine-cosine table `(1, tokens, dim)` of the configured clip, two-dimensional for an image model."""
    if config.frames_per_clip == 1:
        # The released video code puts rows first, unlike I-JEPA's, which puts columns first.
        return sincos_2d(config.grid_size[1:], dim).roll(dim // 2, dims=1).unsqueeze(0)
    return sincos_3d(config.grid_size, dim, config.uniform_power).unsqueeze(0)


def check_each_mask(name: str, masks: list[torch.Tensor], batch_size: int, grid: Grid) -> None:
    """[`~hf_jepa.modeling_jepa.check_masks`] for masks of several lengths."""
    if isinstance(masks, torch.Tensor) or not len(masks):
        raise ValueError(f"`{name}` must be a non-empty list of index tensors, got {type(masks).__name__}.")
    for mask in masks:
        check_masks(name, [mask], batch_size, grid[0] * grid[1] * grid[2])
