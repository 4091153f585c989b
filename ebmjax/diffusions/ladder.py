"""Noise ladders of annealed Langevin dynamics (NCSN), and the step on a level.

See https://arxiv.org/abs/2006.09011.

Source:
  Song & Ermon (2020), "Improved techniques for training score-based generative models"
  (NCSNv2), https://arxiv.org/abs/2006.09011.
"""

import math

import numpy as np

from ebmjax.checks import check_count

__all__ = [
    "largest_distance",
    "noise_ladder",
    "noise_overlap",
    "relative_step_size",
]

_BLOCK = 1_000  # rows whose distances are held at once


def largest_distance(x: np.ndarray) -> float:
    """Returns the largest distance between two examples (NCSNv2, Technique 1).

    See https://arxiv.org/abs/2006.09011.

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
    # Centred, and in a unit of their size: far from 0 the squares would take the digits
    # of distances, and large ones would overflow.
    size = np.abs(flat).max(initial=0.0)
    unit = size if 0 < size < math.inf else 1.0
    flat = flat / unit
    flat = flat - flat.mean(0)
    size = np.abs(flat).max(initial=0.0)
    spread = size if size > 0 else 1.0
    flat = flat / spread
    squares = (flat**2).sum(1)
    largest = 0.0
    for first in range(0, len(flat), _BLOCK):
        rows = slice(first, first + _BLOCK)
        between = squares[rows, None] + squares - 2 * flat[rows] @ flat.T
        largest = np.maximum(largest, between.max())  # which keeps a NaN
    if not np.isfinite(largest):
        raise ValueError(f"x must be finite, its largest squared distance is {largest}")
    return math.sqrt(max(largest, 0.0)) * spread * unit


def noise_overlap(ratio: float, num_dims: int) -> float:
    """Returns the overlap of neighbouring noise scales (NCSNv2, Technique 2).

    See https://arxiv.org/abs/2006.09011.

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

    See https://arxiv.org/abs/2006.09011.

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

    See https://arxiv.org/abs/2006.09011.

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
