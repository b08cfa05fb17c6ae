"""Checks and casts that the objectives share."""

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision raised to float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_tensor(value: object, name: str) -> None:
    """Raises `TypeError` for lists and arrays: they have no device, and their dtypes are others."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}: `torch.as_tensor(...)` makes one.")


def check_finite(tensor: torch.Tensor, name: str, advice: str = "look at the model before the objective") -> None:
    """Raises `ValueError` for NaN or infinity on CPU; elsewhere looking would stall the device, so nothing is read."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return
    # Both propagate NaN, and cost a tenth of `isfinite` over all values.
    if not all(extreme.isfinite() for extreme in tensor.detach().aminmax()):
        raise ValueError(f"{name} hold NaN or infinite values; {advice}.")


def checked_embeddings(embeddings: torch.Tensor, name: str = "Embeddings", minimum: int = 1) -> torch.Tensor:
    """
    Args:
        embeddings (`torch.Tensor` of shape `(..., n, width)`, floating).
        name (`str`): how errors call them.
        minimum (`int`): smallest n on this rank.

    Returns:
        The same tensor, in float32 at least.

    Raises:
        `ValueError`: for another dtype or shape, n below `minimum`, width 0, and on CPU NaN or infinity.
    """
    if not embeddings.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {embeddings.dtype}; call `.float()` on them.")
    if embeddings.ndim < 2 or embeddings.numel() == 0:
        raise ValueError(f"{name} must have shape (..., n, width), none of them zero, got {tuple(embeddings.shape)}.")
    if embeddings.shape[-2] < minimum:
        raise ValueError(
            f"{name} need at least {minimum} embeddings, got {embeddings.shape[-2]}; raise the batch size."
        )
    check_finite(embeddings, name)
    return at_least_float32(embeddings)


def checked_directions(directions: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """
    Args:
        directions (`torch.Tensor` of shape `(..., num_directions, width)`, unit rows).
        like (`torch.Tensor` of shape `(..., width)`): gives dtype and device.

    Returns:
        The directions in `like`'s dtype and device.

    Raises:
        `ValueError`: for another shape or dtype, directions that carry a gradient, and on CPU rows whose norm is not
            1 within 1e-2.
    """
    shape = tuple(directions.shape)
    if directions.ndim < 2 or directions.numel() == 0 or shape[-1] != like.shape[-1]:
        raise ValueError(f"Directions must have shape (num_directions, {like.shape[-1]}), got {shape}.")
    if not directions.is_floating_point() or directions.requires_grad:
        raise ValueError("Directions must be floating point and constant: call `.float()` or `.detach()` on them.")
    if directions.device.type == "cpu" and not torch.compiler.is_compiling():
        error = (torch.linalg.vector_norm(directions.float(), dim=-1) - 1).abs().max().item()
        # `not <` and not `>=`, so that NaN is refused too.
        if not error < 1e-2:
            raise ValueError(f"Directions must be unit rows; a norm is off by {error:.2g}. Normalise them.")
    return directions.to(like)


def refuse_second_derivative(name: str) -> None:
    """
    To be called by the backward pass of a function whose gradient is made by hand: autograd would take it for a
    constant, silently.

    Raises:
        `RuntimeError`: under `create_graph=True`.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{name} has no second derivative; differentiate it without `create_graph=True`.")
