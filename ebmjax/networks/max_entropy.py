"""Generators of images, energies and statistics networks of MEG, of two kinds.

See https://arxiv.org/abs/1901.08508.

"Strided" networks are 5x5 convolutions of stride 2, for the small grey images of MNIST
and stacks of them. "Convnet" networks alternate 3x3 convolutions with 4x4 ones of
stride 2, for CIFAR-10 and CelebA. A generator passes through the maps of its energy in
reverse order, and has batch normalisation; energies and statistics networks never have
it.

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
from ebmjax.networks.layer import TransposedConv, batch_norm, conv, dense
from ebmjax.types import Array, Key, Network

__all__ = [
    "convnet_energy",
    "convnet_generator",
    "convnet_statistics",
    "strided_energy",
    "strided_generator",
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


def _normalized(h: Array, train: bool, is_normal: bool) -> Array:
    def scale_init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        return 1 + NORMAL(key, shape, dtype)

    options = {"scale_init": scale_init} if is_normal else {}
    return nn.relu(batch_norm(h, train, **options))


class Trunk(nn.Module):
    """Convolutions with leaky ReLUs; the result is the last map, flattened."""

    layers: tuple[Layer, ...]
    negative_slope: float
    is_normal: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = conv(x, *layer, **_kernel_init(self.is_normal))
            x = nn.leaky_relu(x, self.negative_slope)
        return x.reshape(-1)


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


class StridedGenerator(nn.Module):
    """Generator from the smallest map up, normalised before each convolution."""

    image_shape: tuple[int, ...]
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        sizes = [self.image_shape[:2]]
        for _ in self.widths:
            sizes.insert(0, tuple(-(-side // 2) for side in sizes[0]))
        h = dense(z, sizes[0][0] * sizes[0][1] * self.widths[-1])
        h = h.reshape(*sizes[0], self.widths[-1])
        for features, size in zip(self.widths[-2::-1], sizes[1:]):
            h = _normalized(h, train, is_normal=True)
            h = TransposedConv(features, size, 5, 2, 2, NORMAL, is_normalized=True)(h)
        h = _normalized(h, train, is_normal=True)
        h = TransposedConv(self.image_shape[-1], sizes[-1], 5, 2, 2, NORMAL)(h)
        return jnp.tanh(h)


class ConvnetGenerator(nn.Module):
    """Generator from the smallest map up, normalised after each convolution."""

    image_shape: tuple[int, ...]
    widths: tuple[int, ...]
    is_normal: bool

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        init = NORMAL if self.is_normal else None
        height, width = (
            side // 2 ** (len(self.widths) - 1) for side in self.image_shape[:2]
        )
        h = dense(z, height * width * self.widths[-1])
        h = h.reshape(height, width, self.widths[-1])
        for features in self.widths[-2::-1]:
            size = (2 * h.shape[0], 2 * h.shape[1])
            h = TransposedConv(features, size, 4, 2, 1, init, is_normalized=True)(h)
            h = _normalized(h, train, self.is_normal)
        h = TransposedConv(self.image_shape[-1], h.shape[:2], 3, 1, 1, init)(h)
        return jnp.tanh(h)


def strided_generator(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
) -> Network:
    """Returns a MEG generator of transposed 5x5 convolutions that double the sides.

    See https://arxiv.org/abs/1901.08508.

    A dense layer makes the smallest map. Then every width has batch normalisation, a
    ReLU and a transposed convolution; the last of these makes the image, in [-1, 1] by
    a tanh. Sides are those of the energy's maps: 28 from 14, 7, 4 and 2. Kernels start
    normal with standard deviation 0.02, and scales of the normalisation start normal
    around 1 with the same standard deviation.

    Args:
      image_shape: `(height, width, channels)`.
      latent_dim: Length of the latent.
      widths: Channels of the energy's maps, first to last; the sides are halved as many
        times.

    Returns:
      A `Network` with the mutable collection "batch_stats" and
      `apply_stateful(params, model_state, latent, train=...)`. In training it must be
      mapped over the axes `types.BATCH` and `types.DEVICE`, as `objectives.max_entropy`
      and the update do.

    Raises:
      ValueError: If there are no widths, a width is not positive, or the image does not
        have three axes.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths, latent_dim)
    module = StridedGenerator(tuple(image_shape), tuple(widths))
    return from_module(module, (latent_dim,))


def strided_energy(
    image_shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    negative_slope: float = 0.2,
) -> Network:
    """Returns a MEG energy of 5x5 convolutions of stride 2, as in `strided_generator`.

    See https://arxiv.org/abs/1901.08508.

    Args:
      image_shape: `(height, width, channels)`.
      widths: Channels of the maps, each half as wide as the one before.
      negative_slope: Slope of the leaky ReLUs for negative inputs.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: As in `strided_generator`.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths)
    trunk = Trunk(_strided(widths), negative_slope, is_normal=True)
    return from_module(Energy(trunk), tuple(image_shape))


def strided_statistics(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    hidden_width: int = 512,
    negative_slope: float = 0.2,
) -> Network:
    """Returns a MEG statistics network with the trunk of `strided_energy`.

    See https://arxiv.org/abs/1901.08508.

    Args:
      image_shape: `(height, width, channels)`.
      latent_dim: Length of the latent; the image is reduced to as many numbers.
      widths: Channels of the maps, as in `strided_energy`.
      hidden_width: Width of the layer that takes both.
      negative_slope: Slope of the leaky ReLUs for negative inputs.

    Returns:
      A stateless `Network` with `apply(params, x, latent) -> []`.

    Raises:
      ValueError: As in `strided_generator`.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths, latent_dim)
    trunk = Trunk(_strided(widths), negative_slope, is_normal=True)
    module = Statistics(trunk, hidden_width)
    return from_module(module, tuple(image_shape), (latent_dim,))


def convnet_generator(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    is_normal: bool = True,
) -> Network:
    """Returns a MEG generator of transposed 4x4 convolutions, and a 3x3 one at the end.

    See https://arxiv.org/abs/1901.08508.

    A dense layer makes the smallest map. Every width except the last has a transposed
    convolution that doubles the sides, batch normalisation and a ReLU. A 3x3
    convolution makes the image, in [-1, 1] by a tanh.

    Args:
      image_shape: `(height, width, channels)`, with sides that are multiples of
        `2 ** (len(widths) - 1)`: 32 for CIFAR-10, and 64 for CelebA, with one more
        width of 512.
      latent_dim: Length of the latent.
      widths: Channels of the energy's maps, first to last.
      is_normal: Whether kernels start normal with standard deviation 0.02 (and scales
        around 1), as for CIFAR-10. Otherwise they start uniform, by fan-in, as for
        CelebA.

    Returns:
      A `Network` with the mutable collection "batch_stats", as `strided_generator`.

    Raises:
      ValueError: If there are no widths, a size is not positive, the image does not
        have three axes, or its sides cannot be halved so often.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths, latent_dim, divisor=2 ** (len(widths) - 1))
    module = ConvnetGenerator(tuple(image_shape), tuple(widths), is_normal)
    return from_module(module, (latent_dim,))


def convnet_energy(
    image_shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    negative_slope: float = 0.1,
    is_normal: bool = True,
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

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: As in `convnet_generator`.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths, divisor=2 ** (len(widths) - 1))
    trunk = Trunk(_convnet(widths), negative_slope, is_normal)
    return from_module(Energy(trunk), tuple(image_shape))


def convnet_statistics(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    hidden_width: int = 512,
    negative_slope: float = 0.1,
    is_normal: bool = True,
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

    Returns:
      A stateless `Network` with `apply(params, x, latent) -> []`.

    Raises:
      ValueError: As in `convnet_generator`.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths, latent_dim, divisor=2 ** (len(widths) - 1))
    trunk = Trunk(_convnet(widths), negative_slope, is_normal)
    module = Statistics(trunk, hidden_width)
    return from_module(module, tuple(image_shape), (latent_dim,))
