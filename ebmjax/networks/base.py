"""Conversion of a Flax module to a `Network` of pure functions on one example."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ebmjax.types import (
    Array,
    Key,
    Network,
    NetworkApplyStateful,
    NetworkInit,
    Params,
)

__all__ = ["from_module"]


def from_module(
    module: nn.Module, *example_shapes: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Network:
    """Returns a `Network` of plain functions made from a Linen module.

    The functions take one example and refuse anything else: a batch, which a dense
    layer would silently broadcast, raises. Use `jax.vmap` for batches.

    Args:
      module: Linen module, called as `module(x, ...)` on single examples. A module with
        mutable collections must take a keyword `train` that is False by default.
      *example_shapes: Shape of each of the module's array arguments, in their order:
        `from_module(energy, (32, 32, 3))`, or `from_module(statistics, (2,), (8,))` for
        a function of an example and its latent.
      dtype: Type of the examples with which the module is initialised.

    Returns:
      A `Network`. Its `init(key)` returns the collection `"params"` and a dict of all
      other collections, which is `{}` for most modules. `apply` and `apply_stateful`
      pass keyword arguments on to the module. With mutable collections, `apply` uses
      those that `jax.random.key(0)` initialises.

    Raises:
      ValueError: At trace, from the returned functions, if an argument does not have
        its example's shape.
    """

    # A module returns a pair only where a collection is mutable.
    run: Callable[..., Any] = module.apply

    def check(arguments: tuple[Array, ...]) -> None:
        check_example(type(module).__name__, arguments, example_shapes)

    @jax.jit  # one program: op by op, a network's own are hundreds
    def init(key: Key) -> tuple[Params, dict[str, Any]]:
        variables = module.init(key, *(jnp.zeros(s, dtype) for s in example_shapes))
        model_state = {name: variables[name] for name in variables if name != "params"}
        return variables.get("params", {}), model_state

    _, state_shapes = jax.eval_shape(init, jax.random.key(0))
    if not state_shapes:

        def apply(params: Params, *arguments: Array, **options: Any) -> Array:
            check(arguments)
            y: Array = run({"params": params}, *arguments, **options)
            return y

        return Network(init, apply)

    def apply_stateful(
        params: Params,
        model_state: dict[str, Any],
        *arguments: Array,
        train: bool = False,
        **options: Any,
    ) -> tuple[Array, dict[str, Any]]:
        check(arguments)
        variables = {"params": params, **model_state}
        if not train:
            return run(variables, *arguments, **options), model_state
        y, renewed = run(
            variables, *arguments, train=True, mutable=list(model_state), **options
        )
        return y, renewed

    return with_initial_state(init, apply_stateful)


def with_initial_state(
    init: NetworkInit, apply_stateful: NetworkApplyStateful
) -> Network:
    """Returns a stateful network, whose `apply` uses the state that it starts with."""

    def apply_initial(params: Params, *arguments: Array, **options: Any) -> Array:
        _, model_state = init(jax.random.key(0))
        return apply_stateful(params, model_state, *arguments, **options)[0]

    return Network(init, apply_initial, apply_stateful)


def check_example(
    name: str, arguments: tuple[Array, ...], example_shapes: tuple[tuple[int, ...], ...]
) -> None:
    """Raises unless the arguments of the module `name` are one example."""
    shapes = tuple(jnp.shape(argument) for argument in arguments)
    if shapes != example_shapes:
        shown, expected = (s[0] if len(s) == 1 else s for s in (shapes, example_shapes))
        raise ValueError(
            f"{name} takes one example of shape {expected}, got"
            f" {shown}; for a batch of examples use jax.vmap"
        )


def check_sizes(
    image_shape: Sequence[int],
    widths: Sequence[int],
    latent_dim: int = 1,
    divisor: int = 1,
) -> None:
    """Raises unless the sizes describe an image network.

    There must be three image axes, with sides that are multiples of `divisor`, and at
    least one width, and all sizes must be positive.
    """
    is_image = len(image_shape) == 3 and min(image_shape) > 0
    if not is_image or any(side % divisor for side in image_shape[:2]):
        raise ValueError(
            "image_shape must be (height, width, channels) with sides that are"
            f" multiples of {divisor}, got {tuple(image_shape)}"
        )
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be positive, got {tuple(widths)}")
    if latent_dim < 1:
        raise ValueError(f"latent_dim must be positive, got {latent_dim}")
