"""
The (rectified) generalized Gaussian, RDMReg's target (arXiv 2602.01456): `X` with density proportional to
`exp(-|x - mu|^p / (p sigma^p))` and `Y = max(X, 0)`. With `p = 1` a Laplace of scale sigma, with `p = 2` a normal of
standard deviation sigma.
"""

import math
from collections.abc import Callable

import torch

SigmaRule = str | float


def _tail(p: float, ratio: float) -> tuple[float, float, float]:
    """
    For `W` of location 0 and sigma 1 and `a = |ratio|`: `P(W > a)`, `E[W; W > a]` and `E[W^2; W > a]`, through
    `|W|^p / p`, which is Gamma(1 / p, 1).
    """
    argument = torch.tensor(abs(ratio), dtype=torch.float64).pow(p) / p
    tails = []
    for k in range(3):
        shape = (k + 1) / p
        moment = math.exp(k / p * math.log(p) + math.lgamma(shape) - math.lgamma(1 / p))
        upper = torch.special.gammaincc(torch.tensor(shape, dtype=torch.float64), argument).item()
        tails.append(0.5 * moment * upper)
    return tails[0], tails[1], tails[2]


def _check_shape(p: float, mu: float = 0.0) -> None:
    if not (math.isfinite(p) and p > 0):
        raise ValueError(f"`p` must be positive and finite, got {p}; 1 is Laplace, 2 is normal.")
    if not math.isfinite(mu):
        raise ValueError(f"`mu` must be finite, got {mu}.")


def _gn_sigma(p: float) -> float:
    return math.exp(0.5 * (math.lgamma(1 / p) - math.lgamma(3 / p)) - math.log(p) / p)


def _unit_rectified_moments(p: float, ratio: float) -> tuple[float, float]:
    """Mean and variance of `max(ratio + W, 0)`, `W` of sigma 1."""
    mass, first, second = _tail(p, ratio)
    a = abs(ratio)
    if ratio < 0:
        mean, square = first - a * mass, second - 2 * a * first + a * a * mass
        return mean, square - mean * mean
    # max(ratio + W, 0) = ratio + max(W, -ratio): the variance of the second, free of cancellation in the first.
    mean, square = first - a * mass, _gn_sigma(p) ** -2 - second + a * a * mass
    return ratio + mean, square - mean * mean


def sigma_for(p: float, mu: float = 0.0, rule: SigmaRule = "gn") -> float:
    """
    Scale of the generalized Gaussian.

    Args:
        p (`float`): shape, positive.
        mu (`float`): location; only `"rgn"` depends on it.
        rule (`str` or `float`): `"gn"` (the released code's default): `X` has variance 1, in closed form; `"rgn"`:
            `max(X, 0)` has variance 1, by bisection; a number: itself.

    Returns:
        `float`.

    Raises:
        `ValueError`: for p or a number that is not positive, mu that is not finite, or another rule.
    """
    _check_shape(p, mu)
    if rule == "gn":
        return _gn_sigma(p)
    if rule == "rgn":
        return _rgn_sigma(p, mu)
    if isinstance(rule, (str, bool)) or not (math.isfinite(rule) and rule > 0):
        raise ValueError(f'sigma must be "gn", "rgn" or a positive number, got {rule!r}.')
    return float(rule)


def _rgn_sigma(p: float, mu: float) -> float:
    def variance(sigma: float) -> float:
        return sigma * sigma * _unit_rectified_moments(p, mu / sigma)[1]

    return _bisect(lambda sigma: variance(sigma) < 1, _gn_sigma(p))


def _bisect(too_small: Callable[[float], bool], high: float) -> float:
    """The positive number where `too_small` turns false, to the last bit."""
    low = 0.0
    while too_small(high):
        low, high = high, 2 * high
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return high


def rectified_moments(p: float, mu: float = 0.0, sigma: SigmaRule = "gn") -> tuple[float, float]:
    """
    Mean and variance of `max(X, 0)`, in float64 closed form.

    Args:
        p (`float`), mu (`float`), sigma (`str` or `float`): as in [`sigma_for`].

    Returns:
        `(mean, variance)`.

    Raises:
        `ValueError`: as [`sigma_for`].
    """
    scale = sigma_for(p, mu, sigma)
    mean, variance = _unit_rectified_moments(p, mu / scale)
    return scale * mean, scale * scale * variance


def expected_active_fraction(p: float, mu: float = 0.0, sigma: SigmaRule = "gn") -> float:
    """
    `P(max(X, 0) > 0)`: the fraction of nonzero entries of the target, in closed form. 1/2 for `mu = 0` whatever p is;
    the location is what makes a representation sparse. Trained features need not attain it.

    Args:
        p (`float`), mu (`float`), sigma (`str` or `float`): as in [`sigma_for`].

    Returns:
        `float` in (0, 1).

    Raises:
        `ValueError`: as [`sigma_for`].
    """
    tail = _tail(p, mu / sigma_for(p, mu, sigma))[0]
    return 1 - tail if mu > 0 else tail


def location_for_active_fraction(fraction: float, p: float, sigma: SigmaRule = "gn") -> float:
    """
    The inverse of [`expected_active_fraction`]: mu such that this fraction of the target is nonzero.

    Args:
        fraction (`float`): in (0, 1).
        p (`float`), sigma (`str` or `float`): as in [`sigma_for`].

    Returns:
        `float`: mu.

    Raises:
        `ValueError`: for a fraction outside (0, 1), or as [`sigma_for`].
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must lie between 0 and 1, got {fraction}.")
    scale = 1.0 if sigma == "rgn" else sigma_for(p, 0.0, sigma)
    _check_shape(p)
    wanted = min(fraction, 1 - fraction)
    ratio = 0.0 if fraction == 0.5 else _bisect(lambda ratio: _tail(p, ratio)[0] > wanted, 1.0)
    ratio = math.copysign(ratio, fraction - 0.5)
    if sigma == "rgn":
        # The fraction depends on mu / sigma alone, and the variance is sigma^2 times that of sigma 1.
        scale = _unit_rectified_moments(p, ratio)[1] ** -0.5
    return ratio * scale


def rgg_samples(
    shape: tuple[int, ...],
    p: float,
    mu: float = 0.0,
    sigma: SigmaRule = "gn",
    generator: torch.Generator | None = None,
    rectify: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """
    Draws from the (rectified) generalized Gaussian. On CPU the draws are those of the released sampler, bit for bit,
    given the same seed: `torch.distributions.Laplace` for p = 1, normals for p = 2, and else signs, then Gammas.

    Args:
        shape (`tuple`): of the result.
        p (`float`), mu (`float`), sigma (`str` or `float`): as in [`sigma_for`].
        generator (`torch.Generator`, *optional*): else torch's global one.
        rectify (`bool`): `max(X, 0)` rather than `X`.
        device (`torch.device`, *optional*): the generator's, else the CPU.
        dtype (`torch.dtype`): float32 or float64.

    Returns:
        `torch.Tensor` of `shape` and `dtype`.

    Raises:
        `ValueError`: for another dtype, or as [`sigma_for`].
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"Samples are drawn in float32 or float64, got {dtype}; cast them afterwards.")
    scale = sigma_for(p, mu, sigma)
    device = torch.device(device or (generator.device if generator is not None else "cpu"))
    if p == 1:
        uniform = torch.empty(shape, device=device, dtype=dtype)
        uniform.uniform_(torch.finfo(dtype).eps - 1, 1, generator=generator)
        samples = mu - scale * uniform.sign() * torch.log1p(-uniform.abs())
    elif p == 2:
        samples = mu + scale * torch.randn(shape, generator=generator, device=device, dtype=dtype)
    else:
        sign = 2 * torch.empty(shape, device=device, dtype=dtype).bernoulli_(0.5, generator=generator) - 1
        gamma = torch._standard_gamma(torch.full_like(sign, 1 / p), generator=generator)
        samples = from_noise(sign, gamma.clamp_(min=torch.finfo(dtype).tiny), p, mu, scale)
    return samples.relu_() if rectify else samples


def from_noise(sign: torch.Tensor, gamma: torch.Tensor, p: float, mu: float, sigma: float) -> torch.Tensor:
    """`mu + sigma sign (p gamma)^(1/p)`, the generalized Gaussian from signs and Gamma(1 / p, 1) draws."""
    return mu + sigma * sign * (p * gamma).pow(1 / p)
