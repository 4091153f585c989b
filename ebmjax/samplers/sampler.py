"""What a sampler is.

A `Sampler` is a pair of functions on one chain. Its hyper-parameters are fixed when it
is made; the energy is given at every call, because in training the energy changes at
every update and the sampler does not.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.types import Array, EnergyFn, Key


class Sampler(NamedTuple):
    """One Markov chain's two functions.

    Attributes:
      init: `init(energy_fn, x) -> state` for a position `x: [*event]`. What the state
        caches (energy, gradient) belongs to `state.position`.
      step: `step(energy_fn, key, state) -> (state, info)`, one move. `info` is a
        NamedTuple of scalars that only people and diagnostics read.
    """

    init: Callable[[EnergyFn, Array], Any]
    step: Callable[[EnergyFn, Key, Any], tuple[Any, Any]]


def value(function: EnergyFn, x: Array) -> Array:
    """`function(x)`, in float32 at least: an energy may compute in bfloat16."""
    result = jnp.asarray(function(x))
    return result.astype(jnp.promote_types(result.dtype, jnp.float32))


def value_and_gradient(energy_fn: EnergyFn, x: Array) -> tuple[Array, Array]:
    """`energy_fn(x)` as `value` has it, and its gradient, of the type of `x`."""
    return jax.value_and_grad(functools.partial(value, energy_fn))(x)


def draw_uniform(key: Key, shape: tuple[int, ...], position: Array) -> Array:
    """Uniform on (0, 1], of the position's type, whatever the energy's; never bfloat16,
    which has too few. Never 0: its logarithm would accept the worst of proposals."""
    dtype = jnp.promote_types(position.dtype, jnp.float32)
    return 1 - jax.random.uniform(key, shape, dtype)


def metropolis(
    key: Key, log_ratio: Array, proposed: Any, state: Any
) -> tuple[Any, Array, Array]:
    """Takes the proposed state with probability `min(1, exp(log_ratio))`.

    Returns the state, that probability, and whether it was taken. The whole state moves
    or the whole state stays: a kept position is never paired with a refused gradient.
    A NaN ratio refuses, and its probability is NaN.
    """
    uniform = draw_uniform(key, (), state.position)
    is_accepted = jnp.log(uniform) <= log_ratio
    state = jax.tree.map(
        lambda new, old: jnp.where(is_accepted, new, old), proposed, state
    )
    return state, jnp.exp(jnp.minimum(log_ratio, 0.0)), is_accepted
