"""Checks of arguments, whose errors name the argument, the rule and the value."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from ebmjax.types import Array, EnergyFn, Key, TimedScoreFn

__all__ = [
    "check_chains",
    "check_count",
    "check_number",
    "check_path",
    "check_values",
    "scalar_energy",
    "shaped_score",
]


def check_number(name: str, value: float | Array, *, positive: bool) -> None:
    """Raises unless `value` is positive, or not negative; traced values pass."""
    if isinstance(value, jax.core.Tracer):
        return
    if positive and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def check_path(name: str, values: ArrayLike) -> np.ndarray:
    """Returns `values` as `[n]`, or raises unless they increase from above 0 to 1."""
    found = np.asarray(values, float)
    is_increasing = found.ndim == 1 and found.size and (np.diff(found) > 0).all()
    if not is_increasing or not found[0] > 0 or found[-1] != 1:
        raise ValueError(
            f"{name} must increase from above 0 to 1, got {np.array2string(found)}"
        )
    return found


def check_count(name: str, value: object, least: int) -> None:
    """Raises unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
        )


def check_values(values: Sequence[float], dtype: DTypeLike) -> None:
    """Raises unless these are two different numbers that the dtype can represent."""
    found = tuple(values)
    if len(found) != 2 or found[0] == found[1]:
        raise ValueError(f"values must be two different numbers, got {found}")
    for number in found:
        if np.asarray(number).astype(dtype) != number:
            raise ValueError(f"values must be {np.dtype(dtype)} as x is, got {found}")


def check_chains(key: Key, x: Array) -> Array:
    """Returns `x` as an array, or raises unless it and `key` are as in `sample_chains`.

    `x` must be floating-point `[chains, *event]` with at least one chain, and `key` a
    typed key.
    """
    key_type = getattr(key, "dtype", type(key))
    x = jnp.asarray(x)
    if x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be floating-point [chains, *event], got {x.dtype}{x.shape}"
        )
    if x.shape[0] == 0:
        raise ValueError(f"x must have at least one chain, got shape {x.shape}")
    if not jnp.issubdtype(key_type, jax.dtypes.prng_key):
        raise ValueError(
            f"key must be a typed key, as jax.random.key makes, got {key_type}"
        )
    return x


def scalar_energy(energy_fn: EnergyFn) -> EnergyFn:
    """Returns the same energy, which raises if its value is not a scalar."""

    def checked(x: Array) -> Array:
        energy = energy_fn(x)
        if jnp.shape(energy) != ():
            raise ValueError(
                f"energy_fn must return a scalar for one example of shape {x.shape},"
                f" got shape {jnp.shape(energy)}"
            )
        return energy

    return checked


def shaped_score(score_fn: TimedScoreFn) -> TimedScoreFn:
    """Returns the same score, which raises if its value has another shape than `x`."""

    def checked(x: Array, time: Array) -> Array:
        score = score_fn(x, time)
        if jnp.shape(score) != x.shape:
            raise ValueError(
                "score_fn must return an array of the example's shape"
                f" {x.shape}, got {jnp.shape(score)}"
            )
        return score

    return checked
