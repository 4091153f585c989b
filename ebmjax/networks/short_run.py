"""The plain convolutional energy of short-run MCMC."""

import flax.linen as nn
from jax.typing import DTypeLike

from ebmjax.networks.activation import activation_fn
from ebmjax.networks.base import from_module
from ebmjax.networks.layer import compute_type, conv, dense, widened
from ebmjax.types import Array, Network

__all__ = ["short_run_energy"]


class ShortRun(nn.Module):
    """Strided convolutions down to a small map, and a linear function of it."""

    width: int
    activation: str
    negative_slope: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_fn(self.activation, self.negative_slope)
        features = self.width
        h = activation(conv(x, features, 3, 1, 1, dtype=self.dtype))
        while min(h.shape[:2]) > 4:
            features = min(2 * features, 8 * self.width)
            h = activation(conv(h, features, 4, 2, 1, dtype=self.dtype))
        # A convolution over the whole map is a matrix product. It sums thousands of
        # terms into the energy, so it is never done in less than float32.
        return dense(widened(h).reshape(-1), 1)[0]


def short_run_energy(
    image_shape: tuple[int, int, int],
    *,
    width: int,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    compute_dtype: str = "float32",
) -> Network:
    """Returns the energy network of short-run MCMC, convolutions without normalisation.

    See https://arxiv.org/abs/1904.09770.

    The network is a 3x3 convolution to `width` channels; then, while the map is larger
    than 4x4, 4x4 convolutions of stride 2 that double the channels, up to `8 * width`;
    then a convolution that spans the map and gives the energy. With leaky ReLUs the
    energy is piecewise linear in `x`: its gradient is piecewise constant and its
    Hessian 0 almost everywhere.

    Weights and biases start from `U[-b, b]` with `b = 1 / sqrt(fan_in)`, which is
    PyTorch's default and thus the paper's. The paper's Langevin step of 1 on
    `f = -energy` requires the small gradients that follow: their norm is 0.015 on noise
    of 32x32x3, where Flax's default gives 0.24.

    Args:
      image_shape: `(height, width, channels)`; 32x32x3 is the paper's CIFAR-10 network.
      width: Channels of the first layer, the paper's `n_f`: 32, 64 or 128.
      activation: Name of the activation, as in `mlp_energy`.
      negative_slope: Slope of `"leaky_relu"` for negative inputs.
      compute_dtype: Type of the convolutions, `"float32"` or `"bfloat16"`. Parameters,
        gradients and the energy are float32 in both cases.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: If an argument is not one of those named here.

    Source:
      Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent non-persistent short-run
      MCMC toward energy-based model", https://arxiv.org/abs/1904.09770, and its
      released code (which trains `f = -energy`).
    """
    activation_fn(activation, negative_slope)
    dtype = compute_type(compute_dtype)
    if len(image_shape) != 3:
        raise ValueError(
            f"image_shape must be (height, width, channels), got {image_shape}"
        )
    if width <= 0:
        raise ValueError(f"width must be positive, got {width}")
    module = ShortRun(width, activation, negative_slope, dtype)
    return from_module(module, tuple(image_shape))
