"""Squared distances of all pairs of examples, and their median."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from ebmjax.checks import at_precision
from ebmjax.types import Array

__all__ = ["in_units", "median", "over_pairs"]

T = TypeVar("T")

FEW_DIMENSIONS = 8
"""Number of dimensions up to which differences are as fast as products."""

MOST_CANCELLED = 1e-3
"""Share of the squares of two examples that may be left in their squared distance."""

MOST_ELEMENTS = 2**22
"""Largest number of elements of the differences of rows that are computed together."""


def in_units(x: Array) -> tuple[Array, Array]:
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


@at_precision("highest")
def over_pairs(function: Callable[..., T], rows: Array, scores: Array) -> T:
    """Returns `function(squares, pulls)` of all pairs of rows.

    They are `|x_i - x_j|^2` and `(s_i - s_j) . (x_i - x_j)`, both `[n, n]`. Products of
    rows give them fast in many dimensions, but lose the distances within groups of
    examples that are far from each other. If there are such examples, they are sums
    over differences.
    """
    if rows.shape[1] <= FEW_DIMENSIONS:
        return function(*_over_dimensions(rows, scores))
    scores = scores - jnp.mean(scores, axis=0, keepdims=True)
    norms = jnp.sum(rows**2, axis=1)
    norms = norms[:, None] + norms[None, :]
    is_other = ~jnp.eye(len(rows), dtype=bool)
    squares = jnp.where(is_other, norms - rows @ (2 * rows).T, 0.0)
    products = scores @ rows.T  # [i, j]: s_i . x_j
    half = jnp.diagonal(products)[:, None] - products
    pulls = half + half.T
    # The largest number, and not `all`: XLA's CPU reduces truth values slowly.
    excess = jnp.where(is_other, MOST_CANCELLED * norms - squares, -1.0)
    result: T = jax.lax.cond(
        jnp.max(excess) < 0,
        lambda: function(squares, pulls),
        lambda: function(*_over_differences(rows, scores)),
    )
    return result


@jax.checkpoint  # a gradient keeps no differences, which are [n, n, d]
def _over_dimensions(rows: Array, scores: Array) -> tuple[Array, Array]:
    """Returns squares and pulls by differences, one dimension after the other."""
    squares = pulls = jnp.zeros((len(rows), len(rows)), rows.dtype)
    for row, score in zip(rows.T, scores.T):
        apart = row[:, None] - row[None, :]
        squares = squares + apart**2
        pulls = pulls + (score[:, None] - score[None, :]) * apart
    return squares, pulls


def _over_differences(rows: Array, scores: Array) -> tuple[Array, Array]:
    """Returns squares and pulls by differences, `[n, d]` of them at a time."""

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


def median(squares: Array, otherwise: float | Array) -> Array:
    """Returns the median distance from squared distances `[n, n]`, unless it is 0."""
    num, half = len(squares), -(-len(squares) // 2)
    if num < 2:
        raise ValueError(f"a median distance needs two examples or more, got {num}")
    squares = jax.lax.stop_gradient(squares)
    # Row i after the diagonal and, before it, row num - 1 - i after it, turned round.
    row, column = jnp.arange(half)[:, None], jnp.arange(num)[None]
    pairs = jnp.where(column > row, squares[:half], squares[::-1, ::-1][:half])
    is_pair = (column > row) | ((column < row) & (row < num // 2))
    pairs = jnp.where(is_pair, pairs, jnp.inf)  # last in order
    num_pairs = num * (num - 1) // 2
    low, high = _at_rank(pairs, (num_pairs - 1) // 2)
    found = 0.5 * (jnp.sqrt(low) + jnp.sqrt(low if num_pairs % 2 else high))
    found = jnp.where(jnp.isnan(jnp.sum(pairs)), jnp.nan, found)
    # Where most examples coincide it would be 0, and the kernel not a number.
    return jnp.where(found == 0, otherwise, found)


def _at_rank(values: Array, rank: int) -> tuple[Array, Array]:
    """Returns the value with `rank` values before it in their order, and the next one.

    The values must not be negative. They are then ordered as their bits are, which are
    counted a digit at a time. On a CPU a sort takes forty times as long.
    """
    num_bits = 8 * values.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(values, f"uint{num_bits}")
    num_together = 16 if values.size > 2**16 else 8
    num_digits = 2**num_together
    before, prefix = jnp.asarray(rank), jnp.zeros((), bits.dtype)
    for shift in range(num_bits - num_together, -1, -num_together):
        # In the first turn both are 0, because no bit is left of so large a shift.
        is_candidate = bits >> (shift + num_together) == prefix
        digits = ((bits >> shift) & (num_digits - 1)).astype(jnp.int32)
        digits = jnp.where(is_candidate, digits, num_digits)  # that is not counted
        counts = jnp.zeros(num_digits, jnp.int32).at[digits].add(1, mode="drop")
        ends = jnp.cumsum(counts)
        digit = jnp.sum(ends <= before)
        before -= ends[digit] - counts[digit]
        prefix = (prefix << num_together) | digit.astype(bits.dtype)
    value = jax.lax.bitcast_convert_type(prefix, values.dtype)
    larger = jnp.min(jnp.where(values > value, values, jnp.inf))
    return value, jnp.where(before + 1 < counts[digit], value, larger)
