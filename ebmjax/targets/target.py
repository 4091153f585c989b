"""Definition of a target, and the checks that targets share."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ebmjax.types import Array, EnergyFn, Key

__all__ = ["Target"]


class Target(NamedTuple):
    """Distribution to learn or to sample.

    Attributes:
      sample: `sample(key, num) -> [num, *event]`, independent exact draws in units of
        x. `num` is a Python integer: under `jit` it is a static argument.
      energy_fn: `energy_fn(x) -> []` for one example `[*event]`, in nats; None if it is
        not known. It is computed in float32, or in float64 for an `x` of that type.
      log_partition: Log of the integral of `exp(-energy_fn)`, a number in nats; None if
        it is not known, and 0.0 for a normalised energy.
      modes: Centres of the parts, `[m, *event]` in float64 and in units of x, if the
        parts are around points; otherwise None.
      mode_of: `mode_of(x) -> []`, the index of the part to which one example `[*event]`
        belongs; None if the distribution has no parts. The index is an integer from 0
        to the number of parts minus 1. If there are modes, it is the index of a row of
        `modes`.
    """

    sample: Callable[[Key, int], Array]
    energy_fn: EnergyFn | None
    log_partition: float | None
    modes: np.ndarray | None = None
    mode_of: Callable[[Array], Array] | None = None


def check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def probabilities(weights: ArrayLike | None, num: int, noun: str) -> np.ndarray:
    """Returns weights that sum to one, equal if None."""
    weights = np.ones(num) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (num,):
        raise ValueError(
            f"weights must be one number for each of the {num} {noun},"
            f" got shape {weights.shape}"
        )
    if not np.all((weights > 0) & (weights < np.inf)):
        raise ValueError(f"weights must be positive and finite, got {weights}")
    shares: np.ndarray = weights / weights.sum()
    return shares


def one_example(
    x: Array, event_shape: tuple[int, ...], function: str = "energy_fn"
) -> Array:
    """Returns one example, in float32 at least, because integers would be rounded."""
    x = jnp.asarray(x)
    if x.shape != event_shape:
        raise ValueError(
            f"{function} takes one example of shape {event_shape}, got {x.shape};"
            " use jax.vmap for a batch"
        )
    return x.astype(jnp.result_type(x, jnp.float32))
