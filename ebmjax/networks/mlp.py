"""Energies of vectors, by a plain multilayer perceptron."""

from collections.abc import Sequence

import flax.linen as nn

from ebmjax.networks.activation import activation_fn
from ebmjax.networks.base import from_module
from ebmjax.networks.layer import dense
from ebmjax.types import Array, Network

__all__ = ["mlp_energy"]


class MLP(nn.Module):
    """Dense layers with an activation after all but the last, which gives a scalar."""

    widths: tuple[int, ...]
    activation: str
    negative_slope: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_fn(self.activation, self.negative_slope)
        h = x.reshape(-1)
        for width in self.widths:
            h = activation(dense(h, width))
        return dense(h, 1)[0]


def mlp_energy(
    event_shape: tuple[int, ...],
    *,
    widths: Sequence[int],
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
) -> Network:
    """An energy by dense layers, of the flattened example.

    Args:
      event_shape: Of one example; any rank.
      widths: Of the hidden layers, first to last. None make a linear energy.
      activation: `"leaky_relu"`, `"swish"`, `"tanh"`, `"softplus"`, `"relu"`, `"elu"`
        or `"gelu"`. Score matching needs a smooth one: with leaky ReLUs the energy is
        piecewise linear and its second derivatives are 0.
      negative_slope: Of `"leaky_relu"`.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: If there is no such activation, or a width is not positive.
    """
    activation_fn(activation, negative_slope)
    if not all(width > 0 for width in widths):
        raise ValueError(f"widths must be positive, got {tuple(widths)}")
    return from_module(MLP(tuple(widths), activation, negative_slope), event_shape)
