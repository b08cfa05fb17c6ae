"""
Gradient caching (GradCache, Gao et al. 2021, arXiv 2101.06983): the gradient of a contrastive loss over a large batch,
in the memory of a small one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from ...models.vl_jepa import VLJepaModel, VLJepaOutput

_PIXELS = ("pixel_values", "pixel_values_videos")
_EMBEDS = ("pred_embeds", "target_embeds", "online_target_embeds")


def split_batch(batch: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """
    Cuts a batch of [`~hf_jepa.VLJepaModel`] into parts of at most `size` rows. In a mixed batch images come before
    clips, and a part holds those of its rows.

    Args:
        batch (`dict[str, torch.Tensor]`).
        size (`int`).

    Returns:
        `list[dict[str, torch.Tensor]]`: views of the batch.
    """
    images, clips = (len(batch[name]) if name in batch else 0 for name in _PIXELS)
    rows = images + clips or len(batch["vision_embeds"])
    parts = []
    for start in range(0, rows, size):
        end = min(start + size, rows)
        part = {name: tensor[start:end] for name, tensor in batch.items() if name not in _PIXELS}
        if start < images:
            part["pixel_values"] = batch["pixel_values"][start:end]
        if clips and end > images:
            part["pixel_values_videos"] = batch["pixel_values_videos"][max(start - images, 0) : end - images]
        parts.append(part)
    return parts


def gradient_cached_step(
    model: VLJepaModel,
    wrapped: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    micro_batch: int,
    backward: Callable[[torch.Tensor], None],
    scale: float = 1.0,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> VLJepaOutput:
    """
    Accumulates the gradient of the loss of a whole batch, part by part: embeddings of all parts without a graph, the
    loss of all embeddings and its gradient by them, then each part again with a graph, from the same random state, to
    carry that gradient on. Vision tokens of a frozen X-encoder are made once and take the place of the pixels.

    Under DDP the loss is that of all processes' pairs, and gradients are averaged with the last part.

    Args:
        model ([`~hf_jepa.VLJepaModel`]): in training mode.
        wrapped (`nn.Module`): the same, or what DDP made of it.
        batch (`dict[str, torch.Tensor]`): as for its `forward`; pixels are taken out of it.
        micro_batch (`int`): rows of a part.
        backward (`Callable`): called with scalars, such as `accelerator.backward`.
        scale (`float`): of the gradient, such as one over the accumulation steps.
        no_sync (`Callable`): makes a context in which `wrapped` keeps gradients to itself.
        autocast (`Callable`): makes a context for the X-encoder, which runs apart from `forward`.

    Returns:
        [`~hf_jepa.models.vl_jepa.VLJepaOutput`] of the whole batch, detached.
    """
    device = model.device
    parts = split_batch(batch, micro_batch)
    for name in _PIXELS:
        batch.pop(name, None)
    outputs, states = [], []
    for place, part in enumerate(parts):
        states.append(_random_state(device))
        with torch.no_grad():
            if model.config.freeze_vision and "vision_embeds" not in part:
                # Draws nothing: the frozen encoder is in eval mode.
                with autocast():
                    part = parts[place] = _with_vision_embeds(model, part)
            outputs.append(model(**part, return_loss=False))
    whole = {
        name: torch.cat([getattr(output, name) for output in outputs])
        for name in (*_EMBEDS, "target_hash")
        if getattr(outputs[0], name) is not None
    }
    del outputs
    leaves = [name for name in _EMBEDS if name in whole and _has_gradient(model, batch, name)]
    for name in leaves:
        whole[name].requires_grad_()
    loss, terms, counts = model.compute_loss(**whole)
    # The temperature takes no part in the second forward pass; its gradient goes in with the last part.
    learned = [] if model.contrast is None else [w for w in model.contrast.parameters() if w.requires_grad]
    gradients = torch.autograd.grad(loss * scale, [*(whole[name] for name in leaves), *learned])
    gradients, of_learned = dict(zip(leaves, gradients, strict=False)), gradients[len(leaves) :]
    start = 0
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        _replay(states[place], device)
        with nullcontext() if last else no_sync():
            output = wrapped(**part, return_loss=False)
            end = start + len(output.pred_embeds)
            carried = sum((getattr(output, name) * gradients[name][start:end]).sum() for name in leaves)
            if last:
                carried = carried + sum((w * g).sum() for w, g in zip(learned, of_learned, strict=True))
            backward(carried)
        parts[place], start = None, end
    logit_scale = None if model.contrast is None else model.contrast.logit_scale.detach().exp()
    embeds = {name: tensor.detach() for name, tensor in whole.items()}
    return VLJepaOutput(loss=loss.detach(), loss_components=terms, counts=counts, logit_scale=logit_scale, **embeds)


def _has_gradient(model: VLJepaModel, batch: dict[str, torch.Tensor], name: str) -> bool:
    if name == "target_embeds":
        return "target_input_ids" in batch and model.trains_target
    return True


def _with_vision_embeds(model: VLJepaModel, part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    embeds, mask = model.encode_vision(*(part.get(name) for name in _PIXELS))
    kept = {name: tensor for name, tensor in part.items() if name not in _PIXELS}
    return {**kept, "vision_embeds": embeds, "vision_attention_mask": mask}


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    own = None if device.type == "cpu" else getattr(torch, device.type).get_rng_state(device)
    return torch.get_rng_state(), own


def _replay(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        getattr(torch, device.type).set_rng_state(state[1], device)
