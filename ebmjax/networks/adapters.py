"""Conversion of Flax NNX and Equinox modules to a `Network` of pure functions."""

from collections.abc import Callable
from typing import Any

import jax

from ebmjax.checks import check_installed
from ebmjax.networks.base import check_example, with_initial_state
from ebmjax.types import Array, Key, Network, Params

__all__ = ["from_equinox", "from_nnx"]

STATE = "nnx"
"""Name, in the model state, of what a module of NNX has besides parameters."""


def from_nnx(make: Callable[[Any], Any], *example_shapes: tuple[int, ...]) -> Network:
    """Returns a `Network` of plain functions made from a Flax NNX module.

    The functions take one example, as those of `from_module` do:

        network = networks.from_nnx(lambda rngs: Energy(2, rngs=rngs), (2,))
        params, _ = network.init(key)
        energy_fn = functools.partial(network.apply, params)

    The parameters of a module that exists already are
    `nnx.to_pure_dict(nnx.state(module, nnx.Param))`.

    Args:
      make: Function from `nnx.Rngs` to the module, which is called as `module(x, ...)`
        on single examples. It must make the same structure at every call.
      *example_shapes: Shape of each of the module's array arguments, as in
        `from_module`.

    Returns:
      A `Network`, whose parameters are the module's `nnx.Param` variables as nested
      dicts. All other variables, such as batch statistics and the counters of dropout,
      are the model state, `{"nnx": ...}`, or `{}` if there are none. `apply` and
      `apply_stateful` call the module in its `eval` mode, except with `train=True`.
      With such variables, `apply` uses those that `jax.random.key(0)` initialises.

    Raises:
      ValueError: At trace, from the returned functions, if an argument does not have
        its example's shape.
    """
    from flax import nnx

    def split(module: Any) -> Any:
        parts: Any = nnx.split(module, nnx.Param, ...)
        return parts

    @jax.jit
    def init(key: Key) -> tuple[Params, dict[str, Any]]:
        _, params, rest = split(make(nnx.Rngs(key)))
        state = nnx.to_pure_dict(rest)
        return nnx.to_pure_dict(params), {STATE: state} if state else {}

    shapes = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    definition, params_shape, rest_shape = split(shapes)
    name = type(shapes).__name__

    def run(
        params: Params, rest: Any, is_training: bool, arguments: Any, options: Any
    ) -> tuple[Array, Any]:
        check_example(name, arguments, example_shapes)
        states = []
        for like, values in ((params_shape, params), (rest_shape, rest)):
            states.append(nnx.clone(like))
            nnx.replace_by_pure_dict(states[-1], values)
        module = nnx.merge(definition, *states)
        module.train() if is_training else module.eval()
        y = module(*arguments, **options)
        return y, nnx.to_pure_dict(split(module)[2])

    if not nnx.to_pure_dict(rest_shape):

        def apply(params: Params, *arguments: Array, **options: Any) -> Array:
            return run(params, {}, False, arguments, options)[0]

        return Network(init, apply)

    def apply_stateful(
        params: Params,
        model_state: dict[str, Any],
        *arguments: Array,
        train: bool = False,
        **options: Any,
    ) -> tuple[Array, dict[str, Any]]:
        y, rest = run(params, model_state[STATE], train, arguments, options)
        return y, {STATE: rest} if train else model_state

    return with_initial_state(init, apply_stateful)


def from_equinox(
    make: Callable[[Key], Any], *example_shapes: tuple[int, ...]
) -> Network:
    """Returns a `Network` of plain functions made from an Equinox module.

    The functions take one example, as those of `from_module` do:

        network = networks.from_equinox(
            lambda key: equinox.nn.MLP(2, "scalar", 64, 2, key=key), (2,)
        )
        params, _ = network.init(key)
        energy_fn = functools.partial(network.apply, params)

    The parameters of a module that exists already are
    `equinox.filter(module, equinox.is_inexact_array)`.

    Args:
      make: Function from a key to the module, which is called as `module(x, ...)` on
        single examples. It must make the same structure at every call, and a module
        without `equinox.nn.State`.
      *example_shapes: Shape of each of the module's array arguments, as in
        `from_module`.

    Returns:
      A `Network` without model state. Its parameters are the module with its
      floating-point arrays alone. All else of the module, such as its activation
      functions, stays as `make(jax.random.key(0))` has it.

    Raises:
      ValueError: At trace, from the returned function, if an argument does not have
        its example's shape.
      ModuleNotFoundError: If Equinox is not installed.
    """
    equinox = check_installed("from_equinox", "equinox")

    @jax.jit
    def init(key: Key) -> tuple[Params, dict[str, Any]]:
        return equinox.filter(make(key), equinox.is_inexact_array), {}

    first = equinox.filter_jit(make)(jax.random.key(0))
    rest = equinox.filter(first, equinox.is_inexact_array, inverse=True)

    def apply(params: Params, *arguments: Array, **options: Any) -> Array:
        check_example(type(rest).__name__, arguments, example_shapes)
        y: Array = equinox.combine(params, rest)(*arguments, **options)
        return y

    return Network(init, apply)
