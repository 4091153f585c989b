"""The kernelised Stein discrepancy (KSD), and a test of the law of draws."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import check_array, check_number, scalar_energy, scalar_valued
from ebmjax.types import Array, EnergyFn, Key

__all__ = [
    "SteinTest",
    "kernel_stein_discrepancy",
    "kernel_stein_test",
    "median_distance",
    "stein_kernel",
]

KERNELS: dict[str, Callable[[Array], Array]] = {
    "rbf": lambda square: jnp.exp(-0.5 * square),
    "imq": lambda square: (1.0 + square) ** -0.5,
}
"""Kernels as functions of the squared distance over the squared bandwidth: the radial
basis function, and the inverse multiquadric, whose tails are heavy enough for many
dimensions."""

STATISTICS = ("u", "v")

FEW_DIMENSIONS = 8
"""Number of dimensions up to which differences are as fast as products."""

MOST_CANCELLED = 1e-3
"""Share of the squares of two examples that may be left in their squared distance."""

MOST_ELEMENTS = 2**22
"""Largest number of elements of the differences of rows that are computed together."""


class SteinTest(NamedTuple):
    """Result of a kernel Stein test.

    Attributes:
      statistic: n times the V-statistic, `[]`.
      p_value: Share of bootstrap draws that are at least as large, `[]`, in [0, 1].
    """

    statistic: Array
    p_value: Array


def stein_kernel(
    scores: Array,
    x: Array,
    *,
    kernel: str | Callable[[Array], Array] = "rbf",
    bandwidth: float | Array | None = None,
) -> Array:
    """Returns the Stein kernel (of KSD) of every pair of examples, `[n, n]`.

    See https://arxiv.org/abs/1602.03253.

    The kernel is `s . s' k + s . grad' k + s' . grad k + trace of grad grad' k`, with
    scores `s` and a radial kernel `k`. Under the law that has these scores, its mean
    over either example is 0.

    Args:
      scores: The model's score at each example, `[n, *event]`.
      x: Examples, `[n, *event]`.
      kernel: "rbf", "imq", or a smooth function of the squared distance over the
        squared bandwidth.
      bandwidth: Bandwidth in units of x; if None, the median distance of two different
        examples, through which no gradient flows.

    Returns:
      An array `[n, n]`, in squared units of the scores.

    Raises:
      ValueError: If the shapes differ, the kernel is unknown, or the bandwidth is not
        positive.

    Source:
      Liu, Lee & Jordan (2016), "A kernelized Stein discrepancy for goodness-of-fit
      tests", https://arxiv.org/abs/1602.03253. "imq": Gorham & Mackey (2017),
      "Measuring sample quality with kernels", https://arxiv.org/abs/1703.01717.
    """
    pairs, bandwidth = _scaled_kernel(scores, x, kernel, bandwidth)
    # Divided twice: the square of a large bandwidth would overflow.
    return pairs / bandwidth / bandwidth


def _scaled_kernel(
    scores: Array,
    x: Array,
    kernel: str | Callable[[Array], Array],
    bandwidth: float | Array | None,
) -> tuple[Array, Array]:
    """Returns the Stein kernel times the squared bandwidth, and the bandwidth.

    The kernel is computed in units of the bandwidth, in which it does not depend on the
    units of x: no power of a large or small bandwidth occurs.
    """
    if scores.shape != x.shape or x.ndim < 1:
        raise ValueError(
            f"scores and x must be of one shape [n, *event], got {scores.shape} and"
            f" {x.shape}"
        )
    if isinstance(kernel, str):
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be of {list(KERNELS)}, got {kernel!r}")
        kernel = KERNELS[kernel]
    kernel = scalar_valued("kernel", kernel)
    rows, unit = _in_units(x)
    scores = scores.reshape(len(x), -1)
    if bandwidth is None:
        width = _median(squared_distances(rows), otherwise=1 / unit)
    else:
        bandwidth = check_number("bandwidth", bandwidth, positive=True)
        width = jnp.asarray(bandwidth, rows.dtype) / unit
    rows, scores = rows / width, scores * unit * width
    squares, pulls = _over_pairs(rows, scores)

    def per_pair(function: Callable[[Array], Array]) -> Array:
        return jax.vmap(jax.vmap(function))(squares)

    slope = per_pair(jax.grad(kernel))  # in the squared distance
    bend = per_pair(jax.grad(jax.grad(kernel)))
    trace = -2 * rows.shape[1] * slope - 4 * squares * bend
    pairs: Array = scores @ scores.T * per_pair(kernel) - 2 * slope * pulls + trace
    return pairs, unit * width


def _in_units(x: Array) -> tuple[Array, Array]:
    """Returns centred rows `[n, d]` in a unit, and the unit, a power of two.

    The unit is near the largest element, so that no square overflows or vanishes. A
    division by a power of two rounds nothing.
    """
    rows = x.reshape(len(x), -1)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), initial=0.0))
    is_usual = jnp.isfinite(largest) & (largest > 0)
    _, exponent = jnp.frexp(jnp.where(is_usual, largest, 1.0))
    unit = jnp.ldexp(jnp.ones((), rows.dtype), exponent - 1)
    rows = rows / unit
    return rows - jnp.mean(rows, axis=0, keepdims=True), unit


def squared_distances(rows: Array) -> Array:
    """Returns the squared distances of all pairs of rows, `[n, n]`."""
    return _over_pairs(rows, rows)[0]


def _over_pairs(rows: Array, scores: Array) -> tuple[Array, Array]:
    """Returns `|x_i - x_j|^2` and `(s_i - s_j) . (x_i - x_j)` of all pairs, `[n, n]`.

    Products of rows give them fast in many dimensions, but lose the distances within
    groups of examples that are far from each other. If there are such examples, they
    are sums over differences.
    """
    if rows.shape[1] <= FEW_DIMENSIONS:
        return _over_differences(rows, scores)
    scores = scores - jnp.mean(scores, axis=0, keepdims=True)
    norms = jnp.sum(rows**2, axis=1)
    norms = norms[:, None] + norms[None, :]
    is_other = ~jnp.eye(len(rows), dtype=bool)
    squares = jnp.where(is_other, norms - rows @ (2 * rows).T, 0.0)
    products = scores @ rows.T  # [i, j]: s_i . x_j
    half = jnp.diagonal(products)[:, None] - products
    pulls = half + half.T
    is_accurate = jnp.all((squares > MOST_CANCELLED * norms) | ~is_other)
    pairs: tuple[Array, Array] = jax.lax.cond(
        is_accurate, lambda *_: (squares, pulls), _over_differences, rows, scores
    )
    return pairs


def _over_differences(rows: Array, scores: Array) -> tuple[Array, Array]:
    """Returns `_over_pairs` by differences, `[n, d]` of them at a time."""

    def of_row(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        row, score = inputs
        apart = row[None] - rows
        squares = jnp.sum(apart**2, axis=1)
        return squares, jnp.sum((score[None] - scores) * apart, axis=1)

    pairs: tuple[Array, Array]
    num_together = max(1, MOST_ELEMENTS // max(1, rows.size))
    if num_together >= len(rows):
        pairs = jax.vmap(of_row)((rows, scores))
    else:
        # A gradient keeps no differences, which are [n, n, d].
        of_row = jax.checkpoint(of_row)
        pairs = jax.lax.map(of_row, (rows, scores), batch_size=num_together)
    return pairs


def median_distance(x: Array) -> Array:
    """Returns the median distance of two different examples of `x [n, *event]`.

    It is 1 if the median is 0, and no gradient flows through it.

    Args:
      x: Examples, `[n, *event]`.

    Returns:
      A scalar, in units of x.

    Raises:
      ValueError: If there are fewer than two examples.
    """
    rows, unit = _in_units(check_array("x", x, "[n, *event]"))
    median = _median(squared_distances(rows), otherwise=1 / unit)
    return median * unit


def _median(squares: Array, otherwise: float | Array) -> Array:
    """Returns the median distance from squared distances `[n, n]`, unless it is 0."""
    if len(squares) < 2:
        raise ValueError(
            f"a median distance needs two examples or more, got {len(squares)}"
        )
    above = jnp.triu_indices(len(squares), 1)
    median = jnp.median(jnp.sqrt(squares[above]))
    # Where most examples coincide it would be 0, and the kernel not a number.
    return jax.lax.stop_gradient(jnp.where(median == 0, otherwise, median))


def kernel_stein_discrepancy(
    energy_fn: EnergyFn,
    x: Array,
    *,
    kernel: str | Callable[[Array], Array] = "rbf",
    bandwidth: float | None = None,
    statistic: str = "u",
) -> Array:
    """Returns the squared kernelised Stein discrepancy (KSD) from an energy's law.

    See https://arxiv.org/abs/1602.03253 and https://arxiv.org/abs/1602.02964.

    It is the mean over pairs of `stein_kernel`, which is 0 for draws of the law
    `exp(-E) / Z`, whose `Z` is not needed. It costs one gradient for each example, and
    memory of the squared number of examples. It is nearly insensitive to the weights of
    modes that lie far apart.

    Args:
      energy_fn: Energy of one example, `[*event] -> []`.
      x: Examples, `[n, *event]`, at least two.
      kernel: Kernel, as in `stein_kernel`.
      bandwidth: Bandwidth, as in `stein_kernel`.
      statistic: "u" takes pairs of different examples; it is unbiased and may be
        negative. "v" takes all pairs; it is never negative, and for the law itself it
        is too large by `1 / n` times the mean of the diagonal.

    Returns:
      A scalar, not its square root.

    Raises:
      ValueError: If there are fewer than two examples, or the statistic or kernel is
        unknown.

    Source:
      Liu, Lee & Jordan (2016), "A kernelized Stein discrepancy for goodness-of-fit
      tests", https://arxiv.org/abs/1602.03253. Chwialkowski, Strathmann & Gretton
      (2016), "A kernel test of goodness of fit", https://arxiv.org/abs/1602.02964.
    """
    pairs, width = _model_kernel(energy_fn, x, kernel, bandwidth)
    return stein_statistic(pairs, statistic) / width / width


def _model_kernel(
    energy_fn: EnergyFn,
    x: Array,
    kernel: str | Callable[[Array], Array],
    bandwidth: float | None,
) -> tuple[Array, Array]:
    """Returns `_scaled_kernel` of an energy's scores."""
    x = check_array("x", x, "[n, *event]")
    scores = -jax.vmap(jax.grad(scalar_energy(energy_fn)))(x)
    return _scaled_kernel(scores, x, kernel, bandwidth)


def stein_statistic(pairs: Array, statistic: str) -> Array:
    """Returns the mean of `stein_kernel` over all pairs, or off the diagonal."""
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {STATISTICS}, got {statistic!r}")
    num = len(pairs)
    if statistic == "v":
        return jnp.mean(pairs)
    if num < 2:
        raise ValueError(f"the U-statistic needs two examples or more, got {num}")
    # Not the sum minus the trace, which would cancel if the diagonal is large.
    others = jnp.where(jnp.eye(num, dtype=bool), 0.0, pairs)
    return jnp.sum(others) / (num * (num - 1))


def kernel_stein_test(
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    *,
    kernel: str | Callable[[Array], Array] = "rbf",
    bandwidth: float | None = None,
    num_bootstrap: int = 1000,
) -> SteinTest:
    """Tests by KSD and the wild bootstrap whether draws have an energy's law.

    See https://arxiv.org/abs/1602.02964.

    The draws must be independent. The statistic is `n` times the V-statistic. Under the
    law, and for many examples, its distribution is that of the same sum with random
    signs of the examples. The p-value is the share of such sums that are at least as
    large. For draws of a chain the signs would have to keep the chain's memory: thin
    the chain first.

    Args:
      energy_fn: Energy of one example.
      key: Typed key of the signs.
      x: Examples, `[n, *event]`.
      kernel: Kernel, as in `stein_kernel`.
      bandwidth: Bandwidth, as in `stein_kernel`.
      num_bootstrap: Number of sets of signs.

    Returns:
      A `SteinTest`; reject at level `a` if `p_value <= a`.

    Raises:
      ValueError: If there are fewer than two examples, or the kernel is unknown.

    Source:
      Chwialkowski, Strathmann & Gretton (2016), "A kernel test of goodness of fit",
      https://arxiv.org/abs/1602.02964.
    """
    pairs, width = _model_kernel(energy_fn, x, kernel, bandwidth)
    num = len(pairs)
    statistic = num * stein_statistic(pairs, "v")
    signs = jax.random.rademacher(key, (num_bootstrap, num), pairs.dtype)
    draws = jnp.sum((signs @ pairs) * signs, axis=1) / num
    # The statistic is one of the draws that there might have been.
    at_least = jnp.sum(draws >= statistic)
    p_value = (1 + at_least) / (1 + num_bootstrap)
    # Nothing is at least as large as what is no number: no evidence of anything.
    p_value = jnp.where(jnp.isnan(statistic), jnp.nan, p_value)
    return SteinTest(statistic / width / width, p_value)
