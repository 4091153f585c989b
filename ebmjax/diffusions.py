"""Diffusions from data to noise (VE, VP and sub-VP SDEs), and noise ladders (NCSN).

A diffusion takes an example at time 0 to noise at time 1. All diffusions here are
linear in `x`, so the law at any time, given the example, is a normal one in closed
form: `x_t ~ N(mean_scale(t) x_0, std(t)^2)`. With the score of the noised data at every
time, a diffusion can be reversed, either randomly (`samplers.sample_diffusion`) or by
the deterministic flow that has the same marginals (`samplers.probability_flow`), which
also gives a density.

Source:
  Song et al. (2021), "Score-based generative modeling through stochastic differential
  equations", https://arxiv.org/abs/2011.13456.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ebmjax.checks import check_count
from ebmjax.types import Array

__all__ = [
    "Diffusion",
    "energy_with_time",
    "largest_distance",
    "noise_ladder",
    "noise_overlap",
    "relative_step_size",
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

    It has the decay of `variance_preserving` and less noise, so its variances are
    smaller: `std(t) = 1 - mean_scale(t)^2`, of which the other diffusion has the square
    root.

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


# --- noise ladders of annealed Langevin dynamics ---

_BLOCK = 1_000  # rows whose distances are held at once


def largest_distance(x: np.ndarray) -> float:
    """Returns the largest distance between two examples (NCSNv2, Technique 1).

    The distance is Euclidean. A noise of that scale joins all examples, so that chains
    can go from any one to any other. It is the largest scale of a ladder. All pairs are
    compared; pass a part of a large set.

    Args:
      x: Examples, `[n, *event]`.

    Returns:
      The distance, in units of x.

    Raises:
      ValueError: If there are fewer than two examples, or one is not finite.

    Source:
      Song & Ermon (2020), "Improved techniques for training score-based generative
      models", Technique 1, https://arxiv.org/abs/2006.09011.
    """
    if len(x) < 2:
        raise ValueError(f"x must have at least two examples, got {len(x)}")
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    squares = (flat**2).sum(1)
    largest = 0.0
    for first in range(0, len(flat), _BLOCK):
        rows = slice(first, first + _BLOCK)
        between = squares[rows, None] + squares - 2 * flat[rows] @ flat.T
        largest = np.maximum(largest, between.max())  # which keeps a NaN
    if not np.isfinite(largest):
        raise ValueError(f"x must be finite, its largest squared distance is {largest}")
    return math.sqrt(largest)


def noise_overlap(ratio: float, num_dims: int) -> float:
    """Returns the overlap of neighbouring noise scales (NCSNv2, Technique 2).

    Noise of scale `s` in many dimensions lies within 3 standard deviations,
    `s / sqrt(2)` each, of the radius `sqrt(num_dims) s`. The overlap is the probability
    that noise of scale `ratio * s` lies there, with its radius also approximated as
    normal.

    Args:
      ratio: Ratio of neighbouring scales, above 1.
      num_dims: Number of dimensions of an example.

    Returns:
      The overlap, a probability.

    Raises:
      ValueError: If the ratio is not above 1 or `num_dims` is below 1.

    Source:
      Song & Ermon (2020), "Improved techniques for training score-based generative
      models", Technique 2, https://arxiv.org/abs/2006.09011.
    """
    _check_ratio(ratio)
    check_count("num_dims", num_dims, 1)
    middle, width = math.sqrt(2 * num_dims) * (ratio - 1), 3 * ratio
    upper, lower = (math.erf((middle + s * width) / 2**0.5) for s in (1, -1))
    return 0.5 * (upper - lower)


def noise_ladder(
    largest: float,
    smallest: float,
    *,
    num_dims: int | None = None,
    overlap: float = 0.5,
    num_scales: int | None = None,
) -> np.ndarray:
    """Returns a geometric ladder of noise scales (NCSNv2, Technique 2).

    The largest scale comes first. Give `num_scales`, or `num_dims` to get as many
    scales as have the overlap. In fewer than five dimensions any two scales have an
    overlap of a half; it then determines nothing, and `num_dims` is refused.

    Args:
      largest: Largest scale, in units of x; see `largest_distance`.
      smallest: Smallest scale, in units of x, at which noise is not visible.
      num_dims: Number of dimensions of an example, at least 5.
      overlap: Overlap of neighbouring scales, as `noise_overlap` returns it. The number
        of scales is a whole number, and large enough that the overlap is not smaller.
      num_scales: Number of scales, instead of `num_dims` and `overlap`.

    Returns:
      An array `[scales]`, float64.

    Raises:
      TypeError: Unless exactly one of `num_dims` and `num_scales` is given.
      ValueError: If the scales do not decrease, or the overlap is not between 0 and
        0.99.

    Source:
      Song & Ermon (2020), "Improved techniques for training score-based generative
      models", Technique 2, https://arxiv.org/abs/2006.09011.
    """
    if not 0 < smallest < largest < math.inf:
        raise ValueError(
            "smallest and largest must be positive, the second the larger, got"
            f" {smallest} and {largest}"
        )
    if num_dims is not None and num_scales is None:
        if not 0 < overlap < 0.99:
            raise ValueError(f"overlap must be between 0 and .99, got {overlap}")
        check_count("num_dims", num_dims, 5)
        ratio = largest / smallest
        if noise_overlap(ratio, num_dims) < overlap:
            from scipy import optimize

            ratio = optimize.brentq(
                lambda ratio: noise_overlap(ratio, num_dims) - overlap, 1 + 1e-9, ratio
            )
        steps = math.log(largest / smallest) / math.log(ratio)
        num_scales = 1 + math.ceil(steps - 1e-9)
    elif num_scales is None or num_dims is not None:
        given = "neither" if num_dims is None else "both"
        raise TypeError(f"give exactly one of num_dims and num_scales, got {given}")
    check_count("num_scales", num_scales, 2)
    return np.geomspace(largest, smallest, num_scales)


def relative_step_size(ratio: float, num_steps_per_level: int) -> float:
    """Returns the step size of annealed Langevin dynamics (NCSNv2, Technique 4).

    The step size is relative to the square of the level's noise scale. For data at one
    point, the chain of a level is linear and its variance is known. The noise comes
    from the previous level with `ratio` times the scale. With this step, its variance
    after `num_steps_per_level` moves is as near as possible to the level's own:

        sampler_of = lambda scale: langevin(step_size=relative * scale**2)

    The papers' own step is this one times the square of the smallest scale.

    Args:
      ratio: Ratio of neighbouring scales, above 1.
      num_steps_per_level: Number of moves at every level.

    Returns:
      The relative step size, dimensionless.

    Raises:
      ValueError: If the ratio is not above 1 or the number of moves is below 1.

    Source:
      Song & Ermon (2020), "Improved techniques for training score-based generative
      models", Technique 4, https://arxiv.org/abs/2006.09011.
    """
    from scipy import optimize

    _check_ratio(ratio)
    check_count("num_steps_per_level", num_steps_per_level, 1)

    def excess(log_step: float) -> float:
        step = math.exp(log_step)
        stationary = 1 / (1 - step / 2)
        kept = (1 - step) ** (2 * num_steps_per_level)
        # Of variances over the level's own, which is approached from above.
        return kept * (ratio**2 - stationary) + stationary - 1

    # It falls and then rises: its one lowest point is between no step and a step that
    # forgets all at once.
    found = optimize.minimize_scalar(
        excess, bounds=(math.log(1e-9), 0.0), method="bounded", options={"xatol": 1e-10}
    )
    return float(math.exp(found.x))


def _check_ratio(ratio: float) -> None:
    if not 1 < ratio < math.inf:
        raise ValueError(f"ratio must be above 1, got {ratio}")
