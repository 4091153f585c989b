"""What a sampler is.

A `Sampler` is a pair of functions on one chain. Its hyper-parameters are fixed when it
is made; the energy is given at every call, because in training the energy changes at
every update and the sampler does not.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.types import Array, EnergyFn, Key

P = ParamSpec("P")

LONGEST = 60
"""Characters up to which the repr of a sampler shows an option in full."""


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

    def __repr__(self) -> str:
        made_by = getattr(self.step, "made_by", None)
        # A function that was replaced makes another sampler than the factory's.
        if made_by is None or getattr(self.init, "made_by", None) is not made_by:
            return f"Sampler(init={self.init!r}, step={self.step!r})"
        name, options = made_by
        shown = (f"{option}={_abbreviate(value)}" for option, value in options.items())
        return f"{name}({', '.join(shown)})"


def named(factory: Callable[P, Sampler]) -> Callable[P, Sampler]:
    """Returns the factory of samplers whose repr shows its name and their options."""
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Sampler:
        sampler = factory(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        made_by = (factory.__name__, bound.arguments)
        for function in sampler:
            vars(function)["made_by"] = made_by
        return sampler

    return make


def _abbreviate(value: Any) -> str:
    """The value of an option: its number, an array's type and shape, or a name."""
    if isinstance(value, jax.core.Tracer) or np.ndim(value) and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return str(np.asarray(value))
    if isinstance(value, functools.partial):
        return f"partial({_abbreviate(value.func)}, ...)"
    if isinstance(value, tuple | list):
        text = f"({', '.join(map(_abbreviate, value))})"
    else:
        text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


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
