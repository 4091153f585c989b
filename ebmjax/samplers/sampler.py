"""The type of a sampler, and functions that samplers share.

A `Sampler` is a pair of functions on one chain. Its hyper-parameters are fixed when it
is made. The energy is given at every call, because in training the energy changes at
every update and the sampler does not.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import scalar_valued
from ebmjax.types import Array, EnergyFn, Key, SamplerInit, SamplerStep

__all__ = ["Sampler"]

P = ParamSpec("P")

LONGEST = 60
"""Largest number of characters with which the repr of a sampler shows an option."""


class Sampler(NamedTuple):
    """Pair of functions of one Markov chain.

    Attributes:
      init: `init(energy_fn, x) -> state` for a position `x`, `[*event]`. The values
        that the state caches (energy, gradient) belong to `state.position`.
      step: `step(energy_fn, key, state) -> (state, info)`, one move. `info` is a
        NamedTuple of scalars for people and diagnostics.
    """

    init: SamplerInit
    step: SamplerStep

    @property
    def made_by(self) -> tuple[str, dict[str, Any]]:
        """Name of the factory of both functions and its options; "" if unknown."""
        makers: list[Any] = [getattr(function, "made_by", None) for function in self]
        # A function that was replaced makes another sampler than the factory's.
        if makers[0] is None or makers[0] is not makers[1]:
            return "", {}
        name, options = makers[0]
        return name, options

    def __repr__(self) -> str:
        name, options = self.made_by
        if not name:
            return f"Sampler(init={self.init!r}, step={self.step!r})"
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
        options: dict[str, Any] = {}
        for option, value in bound.arguments.items():
            kind = signature.parameters[option].kind
            is_rest = kind is inspect.Parameter.VAR_KEYWORD
            options |= value if is_rest else {option: value}
        made_by = (factory.__name__, options)
        for function in sampler:
            vars(function)["made_by"] = made_by
        return sampler

    return make


def _abbreviate(value: Any) -> str:
    """Returns the value of an option: a number, an array's shape, or a name."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        if isinstance(value, jax.core.Tracer) or value.ndim:
            return f"{value.dtype}[{','.join(map(str, value.shape))}]"
        return str(np.asarray(value))
    if isinstance(value, functools.partial):
        return f"partial({_abbreviate(value.func)}, ...)"
    if isinstance(value, tuple | list):
        text = f"({', '.join(map(_abbreviate, value))})"
    else:
        text = getattr(value, "__name__", None) or repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def value(function: EnergyFn, x: Array, name: str = "energy_fn") -> Array:
    """Returns `function(x)` in float32 at least; an energy may compute in bfloat16.

    Raises:
      ValueError: If the value is not a scalar; `name` is the function's in the message.
    """
    result = jnp.asarray(scalar_valued(name, function)(x))
    return result.astype(jnp.promote_types(result.dtype, jnp.float32))


def value_and_gradient(energy_fn: EnergyFn, x: Array) -> tuple[Array, Array]:
    """Returns `value` of an energy and its gradient, which has the type of `x`."""
    return jax.value_and_grad(functools.partial(value, energy_fn))(x)


def total(x: Array) -> Array:
    """Returns the sum of all elements, for terms that are computed from arrays.

    A CPU computes terms twice as slowly within a sum as it does elsewhere. It sums them
    there by a product with ones.
    """

    def product(x: Array) -> Array:
        ones = jnp.ones_like(x)
        return jnp.dot(x, ones, precision=jax.lax.Precision.HIGHEST)

    flat = x.reshape(-1)
    result: Array = jax.lax.platform_dependent(flat, cpu=product, default=jnp.sum)
    return result


def running_mean(mean: Array, new: Array, count: int | Array) -> Array:
    """Returns the mean of `count` values from `new` and the mean of those before it.

    The mean with an infinity is that infinity, and with both infinities NaN.
    """
    # Divided before it is subtracted: a difference of finite numbers may overflow.
    moved = mean + (new / count - mean / count)
    return jnp.where(jnp.isinf(mean), mean + new, moved)


def draw_uniform(key: Key, shape: tuple[int, ...], position: Array) -> Array:
    """Draws uniform numbers on (0, 1], of the position's type.

    The type is never bfloat16, which has too few numbers, and does not depend on the
    energy's. The numbers are never 0, whose logarithm would accept the worst of
    proposals.
    """
    dtype = jnp.promote_types(position.dtype, jnp.float32)
    return 1 - jax.random.uniform(key, shape, dtype)


def metropolis(
    key: Key, log_ratio: Array, proposed: Any, state: Any
) -> tuple[Any, Array, Array]:
    """Takes the proposed state with probability `min(1, exp(log_ratio))`.

    The whole state moves or the whole state stays, so a kept position is never paired
    with a refused gradient. A NaN ratio refuses, and its probability is NaN.

    Returns:
      The state, the probability of taking it, and whether it was taken.
    """
    uniform = draw_uniform(key, (), state.position)
    is_accepted = jnp.log(uniform) <= log_ratio
    state = jax.tree.map(
        lambda new, old: jnp.where(is_accepted, new, old), proposed, state
    )
    return state, jnp.exp(jnp.minimum(log_ratio, 0.0)), is_accepted
