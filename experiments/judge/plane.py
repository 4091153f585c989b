"""Densities and samples in the plane, compared bin by bin with a known target."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.types import Array, EnergyFn

__all__ = ["Plane", "at_points", "kl_divergence", "make_plane", "total_variation"]

_FINE = 4  # points a bin and side, for the integral over a bin
_BLOCK = 10_000  # points at a time


class Plane(NamedTuple):
    """A square grid of bins, and what can be put on it.

    Attributes:
      points: `[(4 * num_bins)^2, 2]`, the finer grid on which densities are evaluated.
      log_probabilities: `log_probabilities(energy_fn) -> [points]`: `-energy` less the
        logarithm of what normalises it over the points. An energy function per
        temperature: divide before.
      probabilities: `probabilities(energy_fn) -> [points]`: their exponentials.
      binned: `binned(probabilities) -> [num_bins, num_bins]`.
      histogram: `histogram(x) -> [num_bins, num_bins]`, shares of the rows `[n, 2]`;
        what lies outside is missing from the sum.
    """

    points: Array
    log_probabilities: Callable[[EnergyFn], np.ndarray]
    probabilities: Callable[[EnergyFn], np.ndarray]
    binned: Callable[[np.ndarray], np.ndarray]
    histogram: Callable[[Array], np.ndarray]


def make_plane(bound: float, num_bins: int) -> Plane:
    """Returns the square `[-bound, bound]^2` in `num_bins` bins a side."""
    if not bound > 0 or num_bins < 1:
        raise ValueError(
            f"bound must be positive and num_bins at least 1, got {bound}, {num_bins}"
        )
    edges = np.linspace(-bound, bound, num_bins + 1)
    num_fine = _FINE * num_bins
    centers = (np.arange(num_fine) + 0.5) * (2 * bound / num_fine) - bound
    points = jnp.stack(jnp.meshgrid(centers, centers, indexing="ij"), -1)
    points = jnp.asarray(points.reshape(-1, 2), jnp.float32)

    def log_probabilities(energy_fn):
        energies = np.asarray(at_points(energy_fn, points), np.float64)
        logits = energies.min() - energies
        return logits - np.log(np.exp(logits).sum())

    def probabilities(energy_fn):
        return np.exp(log_probabilities(energy_fn))

    def binned(values):
        return values.reshape(num_bins, _FINE, num_bins, _FINE).sum((1, 3))

    def histogram(x):
        counts, _, _ = np.histogram2d(*np.asarray(x).T, bins=(edges, edges))
        return counts / len(x)

    return Plane(points, log_probabilities, probabilities, binned, histogram)


def at_points(function: Callable[[Array], Array], points: Array) -> Array:
    """Returns a function of one example at many, in blocks."""
    return jax.lax.map(function, points, batch_size=_BLOCK)


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns half the absolute difference, with mass off the grid as misplaced.

    Between two histograms of n draws of one law it is not 0 but about
    `sqrt(bins / (pi n))`: compare with a histogram of the target's own draws.
    """
    return float(0.5 * (np.abs(a - b).sum() + abs(a.sum() - b.sum())))


def kl_divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Returns KL(p || q) in nats on one grid, which is infinite where q misses p."""
    used = p > 0
    with np.errstate(divide="ignore"):
        return float((p[used] * (np.log(p[used]) - np.log(q[used]))).sum())
