"""The kernelised Stein discrepancy (KSD), and a test of the law of draws."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import (
    at_precision,
    check_array,
    check_number,
    scalar_energy,
    scalar_valued,
)
from ebmjax.metrics.pairs import in_units, median, over_pairs
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
    "imq": lambda square: jax.lax.rsqrt(1.0 + square),
}
"""Kernels as functions of the squared distance over the squared bandwidth: the radial
basis function, and the inverse multiquadric, whose tails are heavy enough for many
dimensions."""

STATISTICS = ("u", "v")


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
        squared bandwidth. One program is compiled for every function object.
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
    if bandwidth is not None:
        bandwidth = check_number("bandwidth", bandwidth, positive=True)
    pairs, width = _scaled_kernel(scores, x, kernel, bandwidth)
    # Divided twice: the square of a large bandwidth would overflow.
    result: Array = pairs / width / width
    return result


@functools.partial(jax.jit, static_argnames="kernel")
@at_precision("highest")
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
    rows, unit = in_units(x)
    scores = scores.reshape(len(x), -1) * unit

    def of_pairs(squares: Array, pulls: Array) -> tuple[Array, Array]:
        if bandwidth is None:
            width = median(squares, otherwise=1 / unit)
        else:
            width = jnp.asarray(bandwidth, rows.dtype) / unit
        squares, scaled = squares / width / width, scores * width

        def per_pair(function: Callable[[Array], Array]) -> Array:
            return jax.vmap(jax.vmap(function))(squares)

        slope = per_pair(jax.grad(kernel))  # in the squared distance
        bend = per_pair(jax.grad(jax.grad(kernel)))
        trace = -2 * rows.shape[1] * slope - 4 * squares * bend
        pairs = scaled @ scaled.T * per_pair(kernel) - 2 * slope * pulls + trace
        return pairs, unit * width

    return over_pairs(of_pairs, rows, scores)


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
    result: Array = _median_distance(check_array("x", x, "[n, *event]"))
    return result


@jax.jit
def _median_distance(x: Array) -> Array:
    rows, unit = in_units(x)
    return unit * over_pairs(lambda squares, _: median(squares, 1 / unit), rows, rows)


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
    scores, x, bandwidth = _model_scores(energy_fn, x, bandwidth)
    result: Array = _discrepancy(scores, x, kernel, bandwidth, statistic)
    return result


@functools.partial(jax.jit, static_argnames=("kernel", "statistic"))
def _discrepancy(
    scores: Array,
    x: Array,
    kernel: str | Callable[[Array], Array],
    bandwidth: float | None,
    statistic: str,
) -> Array:
    pairs, width = _scaled_kernel(scores, x, kernel, bandwidth)
    result: Array = stein_statistic(pairs, statistic) / width / width
    return result


@at_precision("highest")
def _model_scores(
    energy_fn: EnergyFn, x: Array, bandwidth: float | None
) -> tuple[Array, Array, float | None]:
    """Returns an energy's scores, the examples and the bandwidth, which are checked."""
    x = check_array("x", x, "[n, *event]")
    if bandwidth is not None:
        bandwidth = check_number("bandwidth", bandwidth, positive=True)
    return -jax.vmap(jax.grad(scalar_energy(energy_fn)))(x), x, bandwidth


@functools.partial(jax.jit, static_argnames="statistic")
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


@at_precision("highest")
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
    scores, x, bandwidth = _model_scores(energy_fn, x, bandwidth)
    pairs, width = _scaled_kernel(scores, x, kernel, bandwidth)
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
