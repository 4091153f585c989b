"""Energies, scores and other functions of vectors, as multilayer perceptrons (MLP)."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from ebmjax.networks.activation import activation_fn
from ebmjax.networks.base import from_module
from ebmjax.networks.layer import dense
from ebmjax.types import Array, Network

__all__ = ["mlp", "mlp_energy", "mlp_statistics"]


class MLP(nn.Module):
    """Dense layers, each except the last followed by an activation.

    Attributes:
      widths: Widths of the hidden layers.
      activation: Name of the activation.
      negative_slope: Slope of `"leaky_relu"` for negative inputs.
      out_shape: Shape of the result; `()` for a scalar.
    """

    widths: tuple[int, ...]
    activation: str
    negative_slope: float
    out_shape: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, *arguments: Array) -> Array:
        activation = activation_fn(self.activation, self.negative_slope)
        h = jnp.concatenate([x.reshape(-1) for x in arguments])
        for width in self.widths:
            h = activation(dense(h, width))
        return dense(h, math.prod(self.out_shape)).reshape(self.out_shape)


def mlp_energy(
    event_shape: tuple[int, ...],
    *,
    widths: Sequence[int],
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
) -> Network:
    """Returns an energy that is a multilayer perceptron (MLP) of the flattened example.

    Args:
      event_shape: Shape of one example, of any rank.
      widths: Widths of the hidden layers, first to last. Without any, the energy is
        linear.
      activation: Name of the activation: `"leaky_relu"`, `"swish"`, `"tanh"`,
        `"softplus"`, `"relu"`, `"elu"` or `"gelu"`. Score matching needs a smooth one:
        with leaky ReLUs the energy is piecewise linear and its second derivatives are
        0.
      negative_slope: Slope of `"leaky_relu"` for negative inputs.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: If there is no such activation, or a width is not positive.
    """
    return mlp(
        event_shape,
        (),
        widths=widths,
        activation=activation,
        negative_slope=negative_slope,
    )


def mlp(
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    *,
    widths: Sequence[int],
    activation: str = "swish",
    negative_slope: float = 0.2,
) -> Network:
    """Returns a multilayer perceptron (MLP) from arrays to arrays.

    It serves as a score network, a critic or a generator.

    Args:
      in_shape: Shape of the argument, which is flattened.
      out_shape: Shape of the result; `()` for a scalar.
      widths: Widths of the hidden layers, as in `mlp_energy`.
      activation: Name of the activation, as in `mlp_energy`.
      negative_slope: Slope of `"leaky_relu"` for negative inputs.

    Returns:
      A stateless `Network`.

    Raises:
      ValueError: If there is no such activation, or a width is not positive.
    """
    module = _mlp(widths, activation, negative_slope, out_shape)
    return from_module(module, in_shape)


def mlp_statistics(
    event_shape: tuple[int, ...],
    *,
    latent_dim: int,
    widths: Sequence[int],
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
) -> Network:
    """Returns a statistics network that is a multilayer perceptron (MLP).

    It is a function of an example and a latent, which are concatenated.

    Args:
      event_shape: Shape of one example, which is flattened.
      latent_dim: Length of the latent.
      widths: Widths of the hidden layers, as in `mlp_energy`.
      activation: Name of the activation, as in `mlp_energy`.
      negative_slope: Slope of `"leaky_relu"` for negative inputs.

    Returns:
      A stateless `Network` with `apply(params, x, latent) -> []`.

    Raises:
      ValueError: If there is no such activation, or a width is not positive.
    """
    module = _mlp(widths, activation, negative_slope, ())
    return from_module(module, event_shape, (latent_dim,))


def _mlp(
    widths: Sequence[int],
    activation: str,
    negative_slope: float,
    out_shape: tuple[int, ...],
) -> MLP:
    activation_fn(activation, negative_slope)
    if not all(width > 0 for width in widths):
        raise ValueError(f"widths must be positive, got {tuple(widths)}")
    return MLP(tuple(widths), activation, negative_slope, tuple(out_shape))
