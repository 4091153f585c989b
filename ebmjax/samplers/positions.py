"""Positions that are trees of arrays, of which samplers see one flat array a chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ebmjax.checks import scalar_energy
from ebmjax.types import Array, EnergyFn

__all__: list[str] = []


def flatten(positions: Any) -> Array:
    """Returns positions as one array `[chains, size]`; an array stays as it is."""
    if hasattr(positions, "shape"):
        array: Array = positions
        return array
    return jax.vmap(lambda position: ravel_pytree(position)[0])(positions)


def unflattener(positions: Any) -> Callable[[Array], Any] | None:
    """Returns the function from one flat position to a tree as those in `positions`.

    It is None if the positions are one array, which no sampler sees flat.
    """
    if hasattr(positions, "shape"):
        return None
    one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), positions)
    unflatten: Callable[[Array], Any] = ravel_pytree(one)[1]
    return unflatten


def replace(state: Any, change: Callable[[Any], Any] | None) -> Any:
    """Returns a state with another form of its position; None changes nothing."""
    if change is None:
        return state
    return state._replace(position=change(state.position))


def chain_energy(
    energy_fn: Callable[..., Array],
    unflatten: Callable[[Array], Any] | None,
    condition: Any,
) -> EnergyFn:
    """Returns the energy of one chain's flat position, which is checked to be a scalar.

    Args:
      energy_fn: Energy of a position, or of a position and a condition.
      unflatten: Result of `unflattener`.
      condition: Condition of this chain, or None.
    """
    if unflatten is None and condition is None:
        return scalar_energy(energy_fn)

    def energy(x: Array) -> Array:
        position = x if unflatten is None else unflatten(x)
        conditions = () if condition is None else (condition,)
        return energy_fn(position, *conditions)

    return scalar_energy(energy)
