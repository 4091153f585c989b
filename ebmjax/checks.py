"""Checks of arguments: errors that name the argument, the rule and the value."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.types import Array, EnergyFn, Key


def check_number(name: str, value, *, positive: bool) -> None:
    """Raises unless `value` is above 0 (or at least 0); traced values pass."""
    if isinstance(value, jax.core.Tracer):
        return
    if positive and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def check_path(name: str, values) -> np.ndarray:
    """A way from 0, which is not on it, to 1, which is: `[n]`, increasing."""
    found = np.asarray(values, float)
    is_increasing = found.ndim == 1 and found.size and (np.diff(found) > 0).all()
    if not is_increasing or not found[0] > 0 or found[-1] != 1:
        raise ValueError(
            f"{name} must increase from above 0 to 1, got {np.array2string(found)}"
        )
    return found


def check_count(name: str, value, least: int) -> None:
    """Raises unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
        )


def check_values(values, dtype) -> None:
    """Raises unless they are two different numbers that this dtype can hold."""
    found = tuple(values)
    if len(found) != 2 or found[0] == found[1]:
        raise ValueError(f"values must be two different numbers, got {found}")
    for number in found:
        if np.asarray(number).astype(dtype) != number:
            raise ValueError(f"values must be {np.dtype(dtype)} as x is, got {found}")


def check_chains(key: Key, x: Array) -> Array:
    """Raises unless these are a typed key and `[chains, *event]`, which it returns."""
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
    """The same energy, which raises where it is no scalar."""

    def checked(x):
        energy = energy_fn(x)
        if jnp.shape(energy) != ():
            raise ValueError(
                f"energy_fn must return a scalar for one example of shape {x.shape},"
                f" got shape {jnp.shape(energy)}"
            )
        return energy

    return checked


def shaped_score(score_fn: Callable[[Array, Array], Array]):
    """The same score of `(x, time)`, which raises where it has another shape than x."""

    def checked(x, time):
        score = score_fn(x, time)
        if jnp.shape(score) != x.shape:
            raise ValueError(
                "score_fn must return an array of the example's shape"
                f" {x.shape}, got {jnp.shape(score)}"
            )
        return score

    return checked
