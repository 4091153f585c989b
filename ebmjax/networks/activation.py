"""Activations by name, as a configuration gives them."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from ebmjax.types import Array

__all__ = ["activation_fn"]

ACTIVATIONS = {
    "elu": nn.elu,
    "gelu": nn.gelu,
    "leaky_relu": nn.leaky_relu,
    "relu": nn.relu,
    "softplus": nn.softplus,
    "swish": nn.swish,
    "tanh": jnp.tanh,
}


def activation_fn(name: str, negative_slope: float) -> Callable[[Array], Array]:
    """The activation of that name; the slope is that of `"leaky_relu"`.

    Raises:
      ValueError: If there is no such activation.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {name!r}")
    if name == "leaky_relu":
        return functools.partial(nn.leaky_relu, negative_slope=negative_slope)
    return ACTIVATIONS[name]
