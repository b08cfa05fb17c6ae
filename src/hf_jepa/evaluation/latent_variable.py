"""What a world model's latent variable carries: whether it helps, whether it leaks, and what it stands for."""

import copy
from typing import Any

import torch
from torch import Tensor

from ..models.latent_world_model import LatentWorldModel
from .closed_form import held_out_rows, standardization

_PENALTY = 1e-3
# A dimension whose most likely value varies less than this tells nothing (active units, arXiv 1509.00519).
_ACTIVE_VARIANCE = 0.01


def linear_r2(features: Tensor, targets: Tensor) -> float:
    """
    Share of the targets' variance that a ridge regression, fitted on a random half of the rows, explains on the rest.

    Args:
        features (`torch.Tensor` of shape `(n, d)`), targets (`torch.Tensor` of shape `(n, k)`): n at least 4.

    Raises:
        `ValueError`: for fewer rows.
    """
    if len(features) < 4 or len(features) != len(targets):
        raise ValueError(f"A probe needs at least 4 rows of both, got {len(features)} and {len(targets)}.")
    fit, rest = held_out_rows(len(features), 0.5, seed=0)
    features, targets = features.double(), targets.double()
    mean, std = standardization(features[fit])
    features = torch.cat([(features - mean) / std, features.new_ones(len(features), 1)], dim=1)
    gram = features[fit].T @ features[fit]
    gram.diagonal().add_(_PENALTY * len(fit))
    weight = torch.linalg.solve(gram, features[fit].T @ targets[fit])
    residual = (targets[rest] - features[rest] @ weight).square().sum()
    return float(1 - residual / (targets[rest] - targets[rest].mean(dim=0)).square().sum())


def purity(codes: Tensor, labels: Tensor) -> float:
    """Share of rows whose label is the commonest of their code; `(n,)` int64 each."""
    return float(_contingency(codes, labels).amax(dim=1).sum())


def normalized_mutual_information(codes: Tensor, labels: Tensor) -> float:
    """Mutual information over the mean of both entropies, 0 if one is constant; `(n,)` int64 each."""
    joint = _contingency(codes, labels)
    by_code, by_label = _entropy(joint.sum(dim=1)), _entropy(joint.sum(dim=0))
    shared = by_code + by_label - _entropy(joint.flatten())
    return float(2 * shared / (by_code + by_label)) if by_code > 0 and by_label > 0 else 0.0


def _contingency(codes: Tensor, labels: Tensor) -> Tensor:
    sizes = int(codes.max()) + 1, int(labels.max()) + 1
    counts = torch.bincount(codes * sizes[1] + labels, minlength=sizes[0] * sizes[1]).view(sizes)
    return counts.double() / len(codes)


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp(min=1e-300).log()).sum()


@torch.no_grad()
def latent_variable_report(
    model: LatentWorldModel,
    latents: Tensor,
    actions: Tensor,
    factors: Tensor | None = None,
    without: LatentWorldModel | None = None,
) -> dict[str, Any]:
    """
    Scores a latent variable on held-out transitions.

    A variable that is told from the next frame can cheat by carrying it. Hence: a variable taken from another
    transition has to act on the frame it is given (`transfer_to_source` near 1), not paint the frame it was taken from
    (near 0), and must not tell the next frame by itself (`next_frame_r2` near 0). What it stands for is read against
    the same model before training: some of it any inverse model gives.

    Args:
        model ([`LatentWorldModel`]): with a latent variable.
        latents (`torch.FloatTensor` of shape `(batch, time, tokens, width)`): of `model.encode`.
        actions (`torch.FloatTensor` of shape `(batch, time - 1, action_dim)`): in the model's units.
        factors (`torch.Tensor` of shape `(batch, time - 1)`, int64, or `(batch, time - 1, k)`, float, *optional*):
            what decided beside the action.
        without ([`LatentWorldModel`], *optional*): trained alike on the same latents, without a latent variable.

    Returns:
        `dict`: `error` of the inferred variable (of a continuous one the inverse model's answer), `error_shuffled` of
        another transition's, `error_without`; `transfer_to_source`: squared distance of a prediction with another
        transition's variable from that transition's next frame, in units of the distance of both next frames;
        `next_frame_r2`: of a linear map from the variable alone; `perplexity` of codes, or `active_dimensions`; of
        discrete factors `purity` and `nmi` of codes, of others `factor_r2`, and the same `_untrained`.

    Raises:
        `ValueError`: without a latent variable, for fewer than 4 transitions, or input that does not fit.
    """
    if model.latent_variable is None:
        raise ValueError("This model has no latent variable to report on.")
    if len(latents) < 4 or actions.shape[:2] != (len(latents), latents.shape[1] - 1):
        raise ValueError(
            f"A report needs at least 4 clips with actions between their frames, got latents {tuple(latents.shape)} "
            f"and actions {tuple(actions.shape)}."
        )
    z = model.infer_latent_variable(latents, actions)
    # Every clip gets the variable of the one before it: never its own, and the same in every run.
    other = torch.roll(torch.arange(len(latents), device=latents.device), 1)
    predicted = _predict(model, latents, actions, z[other])
    from_source = (predicted - latents[other, 1:]).square().mean(dim=(-2, -1)).mean()
    apart = (latents[:, 1:] - latents[other, 1:]).square().mean(dim=(-2, -1)).mean()
    report: dict[str, Any] = {
        "error": float(model.transition_energy(latents, actions, z).mean()),
        "error_shuffled": float(model.transition_energy(latents, actions, z[other]).mean()),
    }
    if without is not None:
        report["error_without"] = float(without.transition_energy(latents, actions).mean())
    vectors = _vectors(model, z)
    report["transfer_to_source"] = float(from_source / apart)
    report["next_frame_r2"] = linear_r2(vectors, latents[:, 1:].mean(dim=2).flatten(0, 1))
    if z.is_floating_point():
        report["active_dimensions"] = int((vectors.var(dim=0) > _ACTIVE_VARIANCE).sum())
    else:
        shares = torch.bincount(z.flatten(), minlength=model.config.num_codes).double() / z.numel()
        report["perplexity"] = float(_entropy(shares).exp())
    if factors is not None:
        report |= _recovery(z, vectors, factors)
        fresh = _untrained(model)
        found = fresh.infer_latent_variable(latents, actions)
        untrained = _recovery(found, _vectors(fresh, found), factors)
        report |= {f"{name}_untrained": value for name, value in untrained.items()}
    return report


def _predict(model: LatentWorldModel, latents: Tensor, actions: Tensor, z: Tensor) -> Tensor:
    """Every frame's next one, one step at a time."""
    steps = [
        model.rollout(latents[:, step : step + 1], actions[:, step : step + 1], z=z[:, step : step + 1])
        for step in range(actions.shape[1])
    ]
    return torch.cat(steps, dim=1)


def _vectors(model: LatentWorldModel, z: Tensor) -> Tensor:
    """`(transitions, size)`: codes as one of K."""
    if z.is_floating_point():
        return z.flatten(0, 1)
    return torch.nn.functional.one_hot(z.flatten(), model.config.num_codes).float()


def _recovery(z: Tensor, vectors: Tensor, factors: Tensor) -> dict[str, float]:
    if factors.is_floating_point():
        return {"factor_r2": linear_r2(vectors, factors.flatten(0, 1))}
    labels = factors.flatten()
    if z.is_floating_point():
        targets = torch.nn.functional.one_hot(labels).float()
        return {"factor_r2": linear_r2(vectors, targets)}
    codes = z.flatten()
    return {"purity": purity(codes, labels), "nmi": normalized_mutual_information(codes, labels)}


def _untrained(model: LatentWorldModel) -> LatentWorldModel:
    """The same model before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = LatentWorldModel(copy.deepcopy(model.config))
    return fresh.to(model.device).eval()
