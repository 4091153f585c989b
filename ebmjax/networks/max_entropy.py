"""Energies and statistics networks of MEG for images, of two kinds.

See https://arxiv.org/abs/1901.08508.

"Strided" networks are 5x5 convolutions of stride 2, for the small grey images of MNIST
and stacks of them. "Convnet" networks alternate 3x3 convolutions with 4x4 ones of
stride 2, for CIFAR-10 and CelebA. None has batch normalisation, which their generators
have (`generators`).

Source:
  Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
  energy-based models", https://arxiv.org/abs/1901.08508, released code.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from ebmjax.networks.base import check_sizes, from_module
from ebmjax.networks.layer import compute_type, conv, dense, widened
from ebmjax.types import Array, Network

__all__ = [
    "convnet_energy",
    "convnet_statistics",
    "strided_energy",
    "strided_statistics",
]

NORMAL = nn.initializers.normal(0.02)
"""Initializer of convolution kernels if `is_normal`, and of scales around 1."""


class Layer(NamedTuple):
    """Square convolution.

    Attributes:
      features: Channels of the result.
      size: Size of the kernel in pixels.
      stride: Stride in pixels.
      pad: Padding on every side in pixels.
    """

    features: int
    size: int
    stride: int
    pad: int


def _strided(widths: Sequence[int]) -> tuple[Layer, ...]:
    return tuple(Layer(width, 5, 2, 2) for width in widths)


def _convnet(widths: Sequence[int]) -> tuple[Layer, ...]:
    layers = [Layer(widths[0], 3, 1, 1)]
    for before, width in zip(widths, widths[1:]):
        layers += [Layer(before, 4, 2, 1), Layer(width, 3, 1, 1)]
    return tuple(layers)


def _kernel_init(is_normal: bool) -> dict[str, Any]:
    return {"kernel_init": NORMAL} if is_normal else {}


class Trunk(nn.Module):
    """Convolutions with leaky ReLUs; the result is the last map, flattened."""

    layers: tuple[Layer, ...]
    negative_slope: float
    is_normal: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = conv(x, *layer, dtype=self.dtype, **_kernel_init(self.is_normal))
            x = nn.leaky_relu(x, self.negative_slope)
        return widened(x).reshape(-1)


class Energy(nn.Module):
    """Linear function of the trunk's last map."""

    trunk: Trunk

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return dense(self.trunk(x), 1)[0]


class Statistics(nn.Module):
    """Dense layers of an image's trunk and a latent, of equal lengths, side by side."""

    trunk: Trunk
    width: int

    @nn.compact
    def __call__(self, x: Array, latent: Array) -> Array:
        h = dense(self.trunk(x), latent.shape[0])
        h = dense(jnp.concatenate([h, latent]), self.width)
        return dense(nn.leaky_relu(h, self.trunk.negative_slope), 1)[0]


def strided_energy(
    image_shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    negative_slope: float = 0.2,
    compute_dtype: str = "float32",
) -> Network:
    """Returns a MEG energy of 5x5 convolutions of stride 2, as in `strided_generator`.

    See https://arxiv.org/abs/1901.08508.

    Args:
      image_shape: `(height, width, channels)`.
      widths: Channels of the maps, each half as wide as the one before.
      negative_slope: Slope of the leaky ReLUs for negative inputs.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: As in `strided_generator`.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths)
    dtype = compute_type(compute_dtype)
    trunk = Trunk(_strided(widths), negative_slope, is_normal=True, dtype=dtype)
    return from_module(Energy(trunk), tuple(image_shape))


def strided_statistics(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    hidden_width: int = 512,
    negative_slope: float = 0.2,
    compute_dtype: str = "float32",
) -> Network:
    """Returns a MEG statistics network with the trunk of `strided_energy`.

    See https://arxiv.org/abs/1901.08508.

    Args:
      image_shape: `(height, width, channels)`.
      latent_dim: Length of the latent; the image is reduced to as many numbers.
      widths: Channels of the maps, as in `strided_energy`.
      hidden_width: Width of the layer that takes both.
      negative_slope: Slope of the leaky ReLUs for negative inputs.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

    Returns:
      A stateless `Network` with `apply(params, x, latent) -> []`.

    Raises:
      ValueError: As in `strided_generator`.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths, latent_dim)
    dtype = compute_type(compute_dtype)
    trunk = Trunk(_strided(widths), negative_slope, is_normal=True, dtype=dtype)
    module = Statistics(trunk, hidden_width)
    return from_module(module, tuple(image_shape), (latent_dim,))


def convnet_energy(
    image_shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    negative_slope: float = 0.1,
    is_normal: bool = True,
    compute_dtype: str = "float32",
) -> Network:
    """Returns a MEG energy of 3x3 convolutions, with 4x4 ones of stride 2 between them.

    See https://arxiv.org/abs/1901.08508.

    It has the shape of the plain network of SNGAN (https://arxiv.org/abs/1802.05957),
    without spectral normalisation.

    Args:
      image_shape: `(height, width, channels)`, as in `convnet_generator`.
      widths: Channels of the 3x3 convolutions; between two of them the sides are
        halved.
      negative_slope: Slope of the leaky ReLUs for negative inputs.
      is_normal: Whether kernels start normal, as in `convnet_generator`.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: As in `convnet_generator`.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths, divisor=2 ** (len(widths) - 1))
    dtype = compute_type(compute_dtype)
    trunk = Trunk(_convnet(widths), negative_slope, is_normal, dtype)
    return from_module(Energy(trunk), tuple(image_shape))


def convnet_statistics(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    hidden_width: int = 512,
    negative_slope: float = 0.1,
    is_normal: bool = True,
    compute_dtype: str = "float32",
) -> Network:
    """Returns a MEG statistics network with the trunk of `convnet_energy`.

    See https://arxiv.org/abs/1901.08508.

    Args:
      image_shape: `(height, width, channels)`, as in `convnet_generator`.
      latent_dim: Length of the latent, as in `strided_statistics`.
      widths: Channels of the 3x3 convolutions, as in `convnet_energy`.
      hidden_width: Width of the layer that takes image and latent.
      negative_slope: Slope of the leaky ReLUs for negative inputs.
      is_normal: Whether kernels start normal, as in `convnet_generator`.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

    Returns:
      A stateless `Network` with `apply(params, x, latent) -> []`.

    Raises:
      ValueError: As in `convnet_generator`.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths, latent_dim, divisor=2 ** (len(widths) - 1))
    dtype = compute_type(compute_dtype)
    trunk = Trunk(_convnet(widths), negative_slope, is_normal, dtype)
    module = Statistics(trunk, hidden_width)
    return from_module(module, tuple(image_shape), (latent_dim,))
