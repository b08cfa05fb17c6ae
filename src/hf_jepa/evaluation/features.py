from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..encoders import Pooling, clip_tokens, is_video_encoder, patch_tokens, pooled_output
from ..modeling_jepa import JepaPreTrainedModel
from .video import join_clips, split_clips

Pool = Literal["mean", "none", "last4", "pooled"]


def extract_features(
    model: PreTrainedModel,
    dataset: Any,
    batch_size: int = 64,
    pool: Pool = "mean",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    num_workers: int = 0,
    progress: bool = False,
    pooling: Pooling = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Frozen features of a dataset, in its order. The model's mode and the global random state are left as they were.

    Args:
        model (`PreTrainedModel`): Any vision model: a plain encoder of images or of videos, a model with a head (its
            backbone is used), a timm wrapper, or a [`~hf_jepa.modeling_jepa.JepaPreTrainedModel`] (its target encoder
            is used). A model already on `device` is not moved; otherwise it is moved there and stays.
        dataset (`Dataset`): Map-style samples `{"pixel_values": (C, H, W) float32, "label": int (optional)}`, or of
            videos `{"pixel_values_videos": ([segments, [views,]] F, C, H, W) float32, ...}`.
        batch_size (`int`): Images or videos at a time.
        pool (`str`): `"mean"`: average of the patch tokens of the last layer. `"none"`: all patch tokens. `"last4"`:
            averages of the patch tokens of the last four layers, concatenated, the last layer's last (I-JEPA's
            evaluation); the three inner layers are layer-normed without affine, to which a linear probe is equal up to
            a fixed scaling. CLS, distillation and register tokens are left out in each. `"pooled"`: the one vector
            that a joint-embedding model is trained on; of a plain encoder, its CLS token or own pooled output
            ([`~hf_jepa.encoders.pooled_output`]).
        device (`torch.device` or `str`, *optional*): Where to compute; the model's device by default.
        dtype (`torch.dtype`, *optional*): `torch.bfloat16` or `torch.float16` computes under autocast.
        num_workers (`int`): Processes that load images.
        progress (`bool`): Show a progress bar.
        pooling (`str`): What `pool="pooled"` means of a plain encoder, see [`~hf_jepa.encoders.pooled_output`].

    Returns:
        `tuple`: features on the CPU in float32, `(n, D)`, `(n, tokens, D)` (of several views `(n, views, tokens, D)`)
        or `(n, 4 * D)`, and labels `(n,)` int64 or `None` if the samples have none.

    Raises:
        ValueError: If the dataset is empty or has no length, the model gives no tokens or too few layers, or the
            features would not fit into memory (before any is computed).
    """
    if pool not in ("mean", "none", "last4", "pooled"):
        raise ValueError(f'pool must be "mean", "none", "last4" or "pooled", got {pool!r}.')
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise ValueError("extract_features needs a dataset of known, non-zero length; take a part of a streaming one.")
    device = model.device if device is None else torch.device(device)
    if model.device != device:
        model.to(device)
    features = labels = None
    autocast = nullcontext() if dtype in (None, torch.float32) else torch.autocast(device.type, dtype)
    start = 0
    with eval_mode(model), torch.no_grad(), autocast:
        for pixel_values, batch_labels in batches(dataset, batch_size, num_workers, progress):
            batch = pooled_features(model, pixel_values.to(device, non_blocking=True), pool, pooling)
            if features is None:
                features = allocate((len(dataset), *batch.shape[1:]))
                labels = None if batch_labels is None else torch.empty(len(dataset), dtype=torch.int64)
            stop = start + len(batch)
            features[start:stop] = batch
            if labels is not None:
                labels[start:stop] = batch_labels
            start = stop
    return features, labels


def batches(
    dataset: Any, batch_size: int, num_workers: int = 0, progress: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Pixels and labels `(batch,)` of a map-style dataset in its order; the global random state stays as it is."""
    # A generator of its own: DataLoader otherwise draws its base seed from the global one, which would change
    # training.
    loader = DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=_collate, generator=torch.Generator().manual_seed(0)
    )
    yield from tqdm(loader, desc="features", disable=not progress)


def pooled_features(
    model: PreTrainedModel, pixel_values: torch.Tensor, pool: Pool = "mean", pooling: Pooling = "auto"
) -> torch.Tensor:
    """
    Features of one batch, see [`extract_features`].

    Args:
        model (`PreTrainedModel`): Any vision model.
        pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`): Images, on the model's device;
            a video encoder sees each as a still clip. Or clips of shape `(batch, frames, channels, height, width)`,
            `(batch, segments, frames, ...)` or `(batch, segments, views, frames, ...)`; an image encoder sees their
            frames one by one.
        pool (`str`): `"mean"`, `"none"`, `"last4"` or `"pooled"`; of clips `"mean"`, over all segments and views, or
            `"none"`.
        pooling (`str`): what `"pooled"` means of a plain encoder, see [`~hf_jepa.encoders.pooled_output`].

    Returns:
        `torch.FloatTensor` of shape `(batch, D)`, `(batch, tokens, D)` (of several views
        `(batch, views, tokens, D)`) or `(batch, 4 * D)`.

    Raises:
        ValueError: If the model gives no tokens, fewer than four layers for `"last4"`, or `pool` is not for clips.
    """
    if pixel_values.ndim == 4 and is_video_encoder(model):
        pixel_values = pixel_values[:, None].expand(-1, getattr(model.config, "num_frames", 1), -1, -1, -1)
    if pixel_values.ndim != 4:
        return _clip_features(model, pixel_values, pool)
    if pool == "pooled" and hasattr(model, "get_pooled_features"):
        return model.get_pooled_features(pixel_values)
    if isinstance(model, JepaPreTrainedModel):
        if pool in ("mean", "none"):
            tokens = model.get_features(pixel_values)
            return tokens.mean(dim=1) if pool == "mean" else tokens
        model = model.target_encoder if model.has_target_encoder else model.encoder
    # A timm wrapper's base_model is the bare timm module, which knows nothing of hidden states.
    is_timm = hasattr(model, "timm_model")
    backbone = model if is_timm else model.base_model
    kwargs = _whole_image_kwargs(backbone, pixel_values)
    outputs = backbone(pixel_values, output_hidden_states=pool == "last4", **kwargs)
    if pool == "pooled":
        return pooled_output(backbone, outputs, pixel_values, pooling)
    if getattr(outputs, "last_hidden_state", None) is None:
        raise ValueError(f"{type(model).__name__} gives no last_hidden_state: load the vision encoder with AutoModel.")
    tokens = patch_tokens(backbone, outputs.last_hidden_state, pixel_values)
    if pool == "none":
        return tokens
    if pool == "mean":
        return tokens.mean(dim=1)
    layers = outputs.hidden_states or ()
    # In-tree models give the embeddings first; a timm wrapper gives its blocks only.
    num_layers = len(layers) if is_timm else len(layers) - 1
    if num_layers < 4:
        raise ValueError(f'pool="last4" needs four layers, {type(model).__name__} has {max(num_layers, 0)}.')
    inner = [patch_tokens(backbone, layer, pixel_values) for layer in layers[-4:-1]]
    inner = [F.layer_norm(layer, layer.shape[-1:]) for layer in inner]
    return torch.cat([layer.mean(dim=1) for layer in (*inner, tokens)], dim=-1)


def _clip_features(model: PreTrainedModel, pixel_values: torch.Tensor, pool: Pool) -> torch.Tensor:
    if pool not in ("mean", "none"):
        raise ValueError(f'Of clips there are features pool="mean" and "none", got {pool!r}.')
    clips, segments, views = split_clips(pixel_values)
    if is_video_encoder(model):
        tokens = clip_tokens(model, clips)
    else:
        tokens = pooled_features(model, clips.flatten(0, 1), "none").unflatten(0, clips.shape[:2]).flatten(1, 2)
    tokens = join_clips(tokens, segments, views)
    if pool == "mean":
        return tokens.mean(dim=(1, 2))
    return tokens[:, 0] if views == 1 else tokens


def _whole_image_kwargs(backbone: nn.Module, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    if backbone.config.model_type != "vit_mae":
        return {}
    if backbone.config.mask_ratio > 0:
        raise ValueError(
            f"ViT-MAE drops {backbone.config.mask_ratio:.0%} of the patches at random, in eval mode too: "
            "set model.config.mask_ratio = 0.0."
        )
    # It also shuffles the patches, by the order of this noise.
    num_patches = backbone.embeddings.patch_embeddings.num_patches
    return {"noise": torch.arange(num_patches, device=pixel_values.device).expand(len(pixel_values), -1)}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode; after it, in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor | None]:
    key = "pixel_values_videos" if "pixel_values_videos" in samples[0] else "pixel_values"
    pixel_values = torch.stack([sample[key] for sample in samples])
    labels = torch.tensor([int(sample["label"]) for sample in samples]) if "label" in samples[0] else None
    return pixel_values, labels


def allocate(shape: tuple[int, ...]) -> torch.Tensor:
    """Room for float32 features of a shape on the CPU; a `ValueError` where there is too little."""
    needed = 4 * torch.Size(shape).numel()
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
        # Linux would grant the memory and kill the process an hour later.
        if needed > available:
            raise ValueError(
                f"Features of shape {shape} need {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free: "
                'use fewer rows or pool="mean".'
            )
    return torch.empty(shape, dtype=torch.float32)
