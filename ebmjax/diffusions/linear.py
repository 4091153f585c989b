"""Linear diffusions, which have normal laws in closed form."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ebmjax.types import Array

__all__ = [
    "Diffusion",
    "energy_with_time",
    "sub_variance_preserving",
    "variance_exploding",
    "variance_preserving",
    "with_time",
]


class Diffusion(NamedTuple):
    """Linear diffusion from time 0 to 1.

    The equation is `dx = drift_rate(t) x dt + diffusion_scale(t) dW`.

    Attributes:
      drift_rate: `drift_rate(time) -> []`, the factor of `x` in the drift, per unit of
        time.
      diffusion_scale: `diffusion_scale(time) -> []`, the papers' `g`, in units of x per
        square root of time.
      mean_scale: `mean_scale(time) -> []`, the factor of the example in the mean,
        dimensionless.
      std: `std(time) -> []`, the standard deviation of the added noise, in units of x.
      prior_std: Standard deviation of the normal law that is used for the law at time
        1, a number in units of x. For data of variance S, the law at time 1 itself has
        the variance `mean_scale(1)^2 S + std(1)^2`.
    """

    drift_rate: Callable[[Array], Array]
    diffusion_scale: Callable[[Array], Array]
    mean_scale: Callable[[Array], Array]
    std: Callable[[Array], Array]
    prior_std: float


def _check_rising(first: str, low: float, second: str, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"{first} and {second} must be positive, the second the larger, got {low}"
            f" and {high}"
        )


@functools.cache  # equal ones are one, for which a program is compiled once
def variance_exploding(*, noise_min: float, noise_max: float) -> Diffusion:
    """Returns the variance-exploding diffusion (VE SDE), the limit of a noise ladder.

    See https://arxiv.org/abs/2011.13456.

    Noise is added at a geometrically increasing scale,
    `std(t) = noise_min (noise_max / noise_min)^t`, and the example is not scaled. At
    time 0 there is already noise of `noise_min`. A diffusion that begins at the data
    without noise has a variance that is smaller by `noise_min^2` at all times.

    Args:
      noise_min: Standard deviation at time 0, in units of x.
      noise_max: Standard deviation at time 1, in units of x. The largest distance
        between two examples is a good value.

    Returns:
      A `Diffusion`.

    Raises:
      ValueError: Unless `0 < noise_min < noise_max`.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations", https://arxiv.org/abs/2011.13456.
    """
    _check_rising("noise_min", noise_min, "noise_max", noise_max)
    log_ratio = math.log(noise_max / noise_min)

    def std(time: Array) -> Array:
        return noise_min * jnp.exp(log_ratio * time)

    return Diffusion(
        drift_rate=jnp.zeros_like,
        diffusion_scale=lambda time: std(time) * math.sqrt(2 * log_ratio),
        mean_scale=jnp.ones_like,
        std=std,
        prior_std=noise_max,
    )


@functools.cache
def variance_preserving(*, rate_min: float = 0.1, rate_max: float = 20.0) -> Diffusion:
    """Returns the variance-preserving diffusion (VP SDE), the limit of DDPM.

    See https://arxiv.org/abs/2011.13456 and https://arxiv.org/abs/2006.11239 (DDPM).

    Decay and noise balance, so that data of variance 1 keep their variance:
    `dx = -b(t) x / 2 dt + sqrt(b(t)) dW` with `b` increasing linearly from `rate_min`
    to `rate_max`.

    Args:
      rate_min: Rate at time 0, the papers' `beta_min`.
      rate_max: Rate at time 1, the papers' `beta_max`.

    Returns:
      A `Diffusion`.

    Raises:
      ValueError: Unless `0 < rate_min < rate_max` and their mean is at most 80. With a
        larger mean, the square of `mean_scale` would underflow in float32.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations", https://arxiv.org/abs/2011.13456. DDPM: Ho, Jain & Abbeel
      (2020), "Denoising diffusion probabilistic models",
      https://arxiv.org/abs/2006.11239.
    """
    log_mean, rate = _decay(rate_min, rate_max)
    return Diffusion(
        drift_rate=lambda time: -0.5 * rate(time),
        diffusion_scale=lambda time: jnp.sqrt(rate(time)),
        mean_scale=lambda time: jnp.exp(log_mean(time)),
        # Of small numbers 1 - exp is rounding.
        std=lambda time: jnp.sqrt(-jnp.expm1(2 * log_mean(time))),
        prior_std=1.0,
    )


@functools.cache
def sub_variance_preserving(
    *, rate_min: float = 0.1, rate_max: float = 20.0
) -> Diffusion:
    """Returns the sub-variance-preserving diffusion (sub-VP SDE).

    See https://arxiv.org/abs/2011.13456.

    It has the decay of `variance_preserving` and less noise, so its variances are
    smaller: `std(t) = 1 - mean_scale(t)^2`, of which the other diffusion has the square
    root.

    Args:
      rate_min: Rate at time 0, as in `variance_preserving`.
      rate_max: Rate at time 1, as in `variance_preserving`.

    Returns:
      A `Diffusion`.

    Raises:
      ValueError: If `variance_preserving` with these rates raises it.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations", https://arxiv.org/abs/2011.13456.
    """
    log_mean, rate = _decay(rate_min, rate_max)
    return Diffusion(
        drift_rate=lambda time: -0.5 * rate(time),
        diffusion_scale=lambda time: jnp.sqrt(
            -rate(time) * jnp.expm1(4 * log_mean(time))
        ),
        mean_scale=lambda time: jnp.exp(log_mean(time)),
        std=lambda time: -jnp.expm1(2 * log_mean(time)),
        prior_std=1.0,
    )


MEAN_RATE_MAX = 80.0  # exp(-80) is 2e-35; float32 ends at 1e-38


def _decay(
    rate_min: float, rate_max: float
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    _check_rising("rate_min", rate_min, "rate_max", rate_max)
    if rate_min + rate_max > 2 * MEAN_RATE_MAX:
        raise ValueError(
            f"the mean of rate_min and rate_max must be at most {MEAN_RATE_MAX}, above"
            " which what is left of the example vanishes in float32, got"
            f" {rate_min} and {rate_max}"
        )
    slope = rate_max - rate_min

    def log_mean(time: Array) -> Array:
        return -0.5 * (rate_min * time + 0.5 * slope * time**2)

    return log_mean, lambda time: rate_min + slope * time


def with_time(
    score: Callable[..., Array], diffusion: Diffusion
) -> Callable[..., Array]:
    """Returns a score of a diffusion's times, made from a score of noise scales.

    For an energy, use `energy_with_time`. At time t, a diffusion turns an example into
    `mean_scale` times that example with added noise of scale `std / mean_scale`. One
    network of noise scales therefore serves any diffusion:
    `score(x / mean_scale, std / mean_scale) / mean_scale`.

    Args:
      score: `score(..., x, noise_scale) -> [*event]`, the score of data with that noise
        added.
      diffusion: Diffusion whose times the result takes.

    Returns:
      `score(..., x, time) -> [*event]`, the score of the law at that time.
    """

    def timed(*arguments: Any) -> Array:
        *rest, x, time = arguments
        scale = diffusion.mean_scale(time)
        return score(*rest, x / scale, diffusion.std(time) / scale) / scale

    return timed


def energy_with_time(
    energy: Callable[..., Array], diffusion: Diffusion
) -> Callable[..., Array]:
    """Returns an energy of a diffusion's times, made from an energy of noise scales.

    The energy is `energy(x / mean_scale, std / mean_scale)`. Its score is `with_time`
    of the energy's score: the division by `mean_scale` that a score needs comes with
    the gradient.

    Args:
      energy: `energy(..., x, noise_scale) -> []`, the energy of data with that noise
        added.
      diffusion: Diffusion whose times the result takes.

    Returns:
      `energy(..., x, time) -> []`, the energy of the law at that time, up to a
      constant.
    """

    def timed(*arguments: Any) -> Array:
        *rest, x, time = arguments
        scale = diffusion.mean_scale(time)
        return energy(*rest, x / scale, diffusion.std(time) / scale)

    return timed
