"""The noise scales that annealed Langevin dynamics passes through, and its step.

All from numbers of the data, as `sample_annealed` wants them: a ladder from the largest
distance between examples down to a noise that nobody sees, with neighbouring rungs so
close that their laws overlap.
"""

import math

import numpy as np

from ebmjax.samplers.base import check_count

__all__ = ["largest_distance", "noise_ladder", "noise_overlap", "relative_step_size"]

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
