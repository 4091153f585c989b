"""Diffusions from data to noise, and the deterministic flow that has their marginals.

A diffusion takes an example at time 0 to noise at time 1. All here are linear in `x`,
so that the law at any time, given the example, is a normal one in closed form:
`x_t ~ N(mean_scale(t) x_0, std(t)^2)`. With the score of the noised data at every time
it can be run backwards, by chance (`samplers.sample_diffusion`) or without
(`samplers.probability_flow`), which also gives a density.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

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
    """`dx = drift_rate(t) x dt + diffusion_scale(t) dW`, for times from 0 to 1.

    Attributes:
      drift_rate: `drift_rate(time) -> []`, what multiplies `x`.
      diffusion_scale: `diffusion_scale(time) -> []`, the papers' `g`.
      mean_scale: `mean_scale(time) -> []`, what is left of the example.
      std: `std(time) -> []`, the standard deviation of the noise in it.
      prior_std: Of the normal law taken for the law at time 1. Of data of variance S
        that law itself has the variance `mean_scale(1)^2 S + std(1)^2`.
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
    """Noise added at a geometrically rising scale: the limit of a noise ladder.

    `std(t) = noise_min (noise_max / noise_min)^t`, and nothing is taken from the
    example. At time 0 there is noise of `noise_min` already: of the diffusion that
    begins at the data with none, the variance is smaller by `noise_min^2` throughout.

    Args:
      noise_min: Standard deviation at time 0, in units of x.
      noise_max: At time 1. The largest distance between two examples is a good one.

    Raises:
      ValueError: Unless `0 < noise_min < noise_max`.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations", as is what follows.
    """
    _check_rising("noise_min", noise_min, "noise_max", noise_max)
    log_ratio = math.log(noise_max / noise_min)

    def std(time):
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
    """Decay and noise in balance: data of variance 1 keep it. The limit of DDPM.

    `dx = -b(t) x / 2 dt + sqrt(b(t)) dW` with `b` rising from `rate_min` to `rate_max`.

    Args:
      rate_min: Rate at time 0, the papers' `beta_min`.
      rate_max: At time 1, `beta_max`.

    Raises:
      ValueError: Unless `0 < rate_min < rate_max`, and their mean is at most 80: more
        would leave less of the example than float32 has the square of.
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
    """As `variance_preserving`, with less noise on the way: variances below its own.

    The same decay; `std(t) = 1 - mean_scale(t)^2`, where the other has the root of it.

    Args:
      rate_min: Rate at time 0, the papers' `beta_min`.
      rate_max: At time 1, `beta_max`.

    Raises:
      ValueError: Unless `0 < rate_min < rate_max`, and their mean is at most 80: more
        would leave less of the example than float32 has the square of.
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


def _decay(rate_min: float, rate_max: float):
    _check_rising("rate_min", rate_min, "rate_max", rate_max)
    if rate_min + rate_max > 2 * MEAN_RATE_MAX:
        raise ValueError(
            f"the mean of rate_min and rate_max must be at most {MEAN_RATE_MAX}, above"
            " which what is left of the example vanishes in float32, got"
            f" {rate_min} and {rate_max}"
        )
    slope = rate_max - rate_min

    def log_mean(time):
        return -0.5 * (rate_min * time + 0.5 * slope * time**2)

    return log_mean, lambda time: rate_min + slope * time


def with_time(
    score: Callable[..., Array], diffusion: Diffusion
) -> Callable[..., Array]:
    """A score that knows noise scales, as one that knows a diffusion's times. Of an
    energy: `energy_with_time`.

    What a diffusion makes of an example is that example with noise of scale
    `std / mean_scale` added, times `mean_scale`. So one network of noise scales serves
    any diffusion: `score(x / mean_scale, std / mean_scale) / mean_scale`.

    Args:
      score: `score(..., x, noise_scale) -> [*event]`, of data with that noise added.
      diffusion: Whose times they shall be.

    Returns:
      `score(..., x, time) -> [*event]`, of the law at that time.
    """

    def timed(*arguments):
        *rest, x, time = arguments
        scale = diffusion.mean_scale(time)
        return score(*rest, x / scale, diffusion.std(time) / scale) / scale

    return timed


def energy_with_time(
    energy: Callable[..., Array], diffusion: Diffusion
) -> Callable[..., Array]:
    """`with_time` of an energy: `energy(x / mean_scale, std / mean_scale)`.

    Its score is `with_time` of the energy's score: the division by `mean_scale` that a
    score needs comes with the gradient.

    Args:
      energy: `energy(..., x, noise_scale) -> []`, of data with that noise added.
      diffusion: Whose times they shall be.

    Returns:
      `energy(..., x, time) -> []`, of the law at that time, up to a constant.
    """

    def timed(*arguments):
        *rest, x, time = arguments
        scale = diffusion.mean_scale(time)
        return energy(*rest, x / scale, diffusion.std(time) / scale)

    return timed


# --- noise ladders of annealed Langevin dynamics ---

_BLOCK = 1_000  # rows whose distances are held at once


def largest_distance(x: np.ndarray) -> float:
    """The largest Euclidean distance between two examples `[n, *event]`.

    A noise of that scale joins all examples, so that chains can go from any to any: the
    largest scale of a ladder. All pairs are looked at; of a large set give a part.

    Raises:
      ValueError: If there are fewer than two examples, or one is not finite.

    Source:
      Song & Ermon (2020), "Improved techniques for training score-based generative
      models", Technique 1.
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
    """The share of one rung's law that is where the next one's is.

    Noise of scale `s` in many dimensions lies within 3 deviations, `s / sqrt(2)` each,
    of the radius `sqrt(num_dims) s`. This is the probability that noise of scale
    `ratio * s`, as far as its radius is normal too, is there.

    Args:
      ratio: Of neighbouring scales, above 1.
      num_dims: Of an example.

    Source:
      Song & Ermon (2020), Technique 2.
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
    """Geometric noise scales, the largest first.

    Give `num_scales`, or `num_dims` for as many as have the overlap. In fewer than five
    dimensions any two scales have one of a half: it says nothing, and is refused.

    Args:
      largest: See `largest_distance`.
      smallest: One at which noise is not seen.
      num_dims: Of an example.
      overlap: What `noise_overlap` is to be, about: the number of scales is whole, and
        never so few that it is less.
      num_scales: In place of both.

    Returns:
      `[scales]`, float64.

    Raises:
      TypeError: Unless one of `num_dims` and `num_scales` is given.
      ValueError: If the scales do not fall, or the overlap is not between 0 and .99.

    Source:
      Song & Ermon (2020), Technique 2.
    """
    if not 0 < smallest < largest < math.inf:
        raise ValueError(
            "smallest and largest must be positive, the second the larger, got"
            f" {smallest} and {largest}"
        )
    if (num_dims is None) == (num_scales is None):
        given = "neither" if num_dims is None else "both"
        raise TypeError(f"give exactly one of num_dims and num_scales, got {given}")
    if num_scales is None:
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
    check_count("num_scales", num_scales, 2)
    return np.geomspace(largest, smallest, num_scales)


def relative_step_size(ratio: float, num_steps_per_level: int) -> float:
    """The step of Langevin dynamics, over the square of the level's noise scale.

    For data at one point the chain of a level is linear, and its variance known. This
    is the step for which the noise, which comes from the level before with `ratio`
    times the scale, is after `num_steps_per_level` moves nearest to the level's own:

        sampler_of = lambda scale: langevin(step_size=relative * scale**2)

    The papers' own step is this one times the square of the smallest scale.

    Args:
      ratio: Of neighbouring scales, above 1.
      num_steps_per_level: Moves at every level.

    Source:
      Song & Ermon (2020), Technique 4.
    """
    from scipy import optimize

    _check_ratio(ratio)
    check_count("num_steps_per_level", num_steps_per_level, 1)

    def excess(log_step):
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
