"""Activations by the names that a configuration gives them."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from ebmjax.types import Array

__all__ = ["activation_fn"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": nn.elu,
    "gelu": nn.gelu,
    "leaky_relu": nn.leaky_relu,
    "relu": nn.relu,
    "softplus": nn.softplus,
    "swish": nn.swish,
    "tanh": jnp.tanh,
}


def activation_fn(name: str, negative_slope: float) -> Callable[[Array], Array]:
    """Returns the activation of that name.

    Args:
      name: Name of the activation.
      negative_slope: Slope of `"leaky_relu"` for negative inputs.

    Returns:
      A function of arrays.

    Raises:
      ValueError: If there is no such activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {name!r}")
    if name == "leaky_relu":
        return functools.partial(nn.leaky_relu, negative_slope=negative_slope)
    return ACTIVATIONS[name]
