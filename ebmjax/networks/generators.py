"""Generators of MEG and bases of GEBM on images, with batch normalisation.

See https://arxiv.org/abs/1901.08508 (MEG) and https://arxiv.org/abs/2003.05033 (GEBM).

A generator passes through the maps of its energy in reverse order, from a dense layer
up to the image. The energies are in `max_entropy` and `sngan`.

Source:
  Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
  energy-based models", https://arxiv.org/abs/1901.08508, released code. For the bases:
  Miyato, Kataoka, Koyama & Yoshida (2018), "Spectral normalization for generative
  adversarial networks" (SNGAN), https://arxiv.org/abs/1802.05957, with the sizes of
  Arbel, Zhou & Gretton (2021), "Generalized energy based models",
  https://arxiv.org/abs/2003.05033, released code.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from ebmjax.networks.base import check_sizes, from_module
from ebmjax.networks.layer import (
    TransposedConv,
    batch_norm,
    compute_type,
    dense,
    widened,
)
from ebmjax.networks.max_entropy import NORMAL
from ebmjax.networks.sngan import xavier, xavier_conv, xavier_dense
from ebmjax.types import Array, Key, Network

__all__ = [
    "convnet_generator",
    "dcgan_base",
    "sngan_base",
    "sngan_resnet_base",
    "strided_generator",
]


def _upsampled(h: Array, features: int, **options: Any) -> Array:
    """Applies a transposed 4x4 convolution, which doubles the sides."""
    size = (2 * h.shape[0], 2 * h.shape[1])
    return TransposedConv(features, size, 4, 2, 1, **options)(h)


def _normalized(
    h: Array, train: bool, is_synchronized: bool, is_normal: bool = False
) -> Array:
    def scale_init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        return 1 + NORMAL(key, shape, dtype)

    options = {"scale_init": scale_init} if is_normal else {}
    return nn.relu(batch_norm(h, train, is_synchronized, **options))


class StridedGenerator(nn.Module):
    """Generator from the smallest map up, normalised before each convolution."""

    image_shape: tuple[int, ...]
    widths: tuple[int, ...]
    is_synchronized: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        sizes = [self.image_shape[:2]]
        for _ in self.widths:
            sizes.insert(0, tuple(-(-side // 2) for side in sizes[0]))
        h = dense(z, sizes[0][0] * sizes[0][1] * self.widths[-1])
        h = h.reshape(*sizes[0], self.widths[-1])
        all_features = (*self.widths[-2::-1], self.image_shape[-1])
        for features, size in zip(all_features, sizes[1:], strict=True):
            h = _normalized(h, train, self.is_synchronized, is_normal=True)
            # Normalisation follows, except on the image.
            follows = size is not sizes[-1]
            h = TransposedConv(features, size, 5, 2, 2, NORMAL, follows, self.dtype)(h)
        return jnp.tanh(widened(h))


class ConvnetGenerator(nn.Module):
    """Generator from the smallest map up, normalised after each convolution."""

    image_shape: tuple[int, ...]
    widths: tuple[int, ...]
    is_normal: bool
    is_synchronized: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        init = NORMAL if self.is_normal else None
        height, width = (
            side // 2 ** (len(self.widths) - 1) for side in self.image_shape[:2]
        )
        h = dense(z, height * width * self.widths[-1])
        h = h.reshape(height, width, self.widths[-1])
        for features in self.widths[-2::-1]:
            h = _upsampled(
                h, features, kernel_init=init, is_normalized=True, dtype=self.dtype
            )
            h = _normalized(h, train, self.is_synchronized, self.is_normal)
        features, size = self.image_shape[-1], h.shape[:2]
        h = TransposedConv(features, size, 3, 1, 1, init, dtype=self.dtype)(h)
        return jnp.tanh(widened(h))


class ConvBase(nn.Module):
    """Transposed 4x4 convolutions that double the sides, and a 3x3 one to the image."""

    image_shape: tuple[int, ...]
    widths: tuple[int, ...]
    is_synchronized: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        normalized = functools.partial(
            _normalized, train=train, is_synchronized=self.is_synchronized
        )
        options = {"kernel_init": xavier(), "dtype": self.dtype}
        doublings = len(self.widths) - 1
        height, width = (side // 2**doublings for side in self.image_shape[:2])
        h = xavier_dense(height * width * self.widths[-1])(z)
        h = normalized(h.reshape(height, width, self.widths[-1]))
        for features in self.widths[-2::-1]:
            h = normalized(_upsampled(h, features, is_normalized=True, **options))
        h = xavier_conv(self.image_shape[-1], 3, dtype=self.dtype)(h)
        return jnp.tanh(widened(h))


def _doubled(h: Array) -> Array:
    """Repeats every pixel in both directions."""
    return jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=1)


class ResnetBase(nn.Module):
    """Residual blocks that double the sides."""

    image_shape: tuple[int, ...]
    width: int
    num_blocks: int
    is_synchronized: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        normalized = functools.partial(
            _normalized, train=train, is_synchronized=self.is_synchronized
        )
        conv = functools.partial(xavier_conv, size=3, dtype=self.dtype)
        height, width = (side // 2**self.num_blocks for side in self.image_shape[:2])
        h = xavier_dense(height * width * self.width)(z)
        h = h.reshape(height, width, self.width)
        for _ in range(self.num_blocks):
            inner = conv(self.width)(_doubled(normalized(h)))
            inner = conv(self.width)(normalized(inner))
            h = inner + _doubled(h)
        h = conv(self.image_shape[-1])(normalized(h))
        return jnp.tanh(widened(h))


class DcganBase(nn.Module):
    """Transposed 4x4 convolutions, after a dense layer."""

    image_shape: tuple[int, ...]
    widths: tuple[int, ...]
    is_synchronized: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        normalized = functools.partial(
            _normalized, train=train, is_synchronized=self.is_synchronized
        )
        options = {"kernel_init": xavier(), "dtype": self.dtype}
        height, width = (side // 2 ** len(self.widths) for side in self.image_shape[:2])
        h = xavier_dense(height * width * self.widths[-1])(z)
        h = normalized(h.reshape(height, width, self.widths[-1]))
        for features in self.widths[-2::-1]:
            h = normalized(_upsampled(h, features, is_normalized=True, **options))
        return jnp.tanh(widened(_upsampled(h, self.image_shape[-1], **options)))


def strided_generator(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    is_synchronized: bool = True,
    compute_dtype: str = "float32",
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
      is_synchronized: Whether batch statistics are those of the examples on all
        devices, which then communicate in every layer, forward and backward. Otherwise
        each device uses its own, and running statistics are the means over devices.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

    Returns:
      A `Network` with the mutable collection "batch_stats" and
      `apply_stateful(params, model_state, latent, train=...)`. In training it must be
      mapped over the axis `types.BATCH`, and over `types.DEVICE` if `is_synchronized`,
      as `objectives.max_entropy` and the update do.

    Raises:
      ValueError: If there are no widths, a width is not positive, or the image does not
        have three axes.

    Source:
      Kumar et al. (2019), "Maximum entropy generators for energy-based models",
      https://arxiv.org/abs/1901.08508, released code.
    """
    check_sizes(image_shape, widths, latent_dim)
    dtype = compute_type(compute_dtype)
    module = StridedGenerator(tuple(image_shape), tuple(widths), is_synchronized, dtype)
    return from_module(module, (latent_dim,))


def convnet_generator(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    is_normal: bool = True,
    is_synchronized: bool = True,
    compute_dtype: str = "float32",
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
      is_synchronized: Scope of batch statistics, as in `strided_generator`.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

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
    dtype = compute_type(compute_dtype)
    module = ConvnetGenerator(
        tuple(image_shape), tuple(widths), is_normal, is_synchronized, dtype
    )
    return from_module(module, (latent_dim,))


def sngan_base(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    is_synchronized: bool = True,
    compute_dtype: str = "float32",
) -> Network:
    """Returns the plain base of SNGAN, transposed convolutions from a 4x4 map up.

    See https://arxiv.org/abs/1802.05957.

    Args:
      image_shape: `(height, width, channels)`, with sides that are multiples of
        `2 ** (len(widths) - 1)`. Values of the draws are in [-1, 1], by a tanh.
      latent_dim: Length of the latent. The published value is 100, with standard normal
        latents.
      widths: Channels of the maps, from the image's end on.
      is_synchronized: Scope of batch statistics, as in `strided_generator`.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

    Returns:
      A `Network` with the mutable collection "batch_stats", as
      `networks.strided_generator`.

    Raises:
      ValueError: If the image does not have three axes or its sides cannot be halved so
        often, or a size is not positive.

    Source:
      Miyato et al. (2018), "Spectral normalization for generative adversarial
      networks", https://arxiv.org/abs/1802.05957.
    """
    check_sizes(image_shape, widths, latent_dim, 2 ** (len(widths) - 1))
    dtype = compute_type(compute_dtype)
    module = ConvBase(tuple(image_shape), tuple(widths), is_synchronized, dtype)
    return from_module(module, (latent_dim,))


def sngan_resnet_base(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    width: int = 128,
    num_blocks: int = 3,
    is_synchronized: bool = True,
    compute_dtype: str = "float32",
) -> Network:
    """Returns the residual (ResNet) base of SNGAN, whose blocks double the sides.

    See https://arxiv.org/abs/1802.05957.

    The sides are doubled by repeating pixels.

    Args:
      image_shape: `(height, width, channels)`, with sides that are multiples of
        `2 ** num_blocks`.
      latent_dim: Length of the latent, as in `sngan_base`.
      width: Channels of all blocks.
      num_blocks: Number of blocks, each of which doubles the sides.
      is_synchronized: Scope of batch statistics, as in `strided_generator`.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

    Returns:
      A `Network` with the mutable collection "batch_stats", as `sngan_base`.

    Raises:
      ValueError: As in `sngan_base`.

    Source:
      Miyato et al. (2018), "Spectral normalization for generative adversarial
      networks", https://arxiv.org/abs/1802.05957.
    """
    check_sizes(image_shape, (width,), latent_dim, 2**num_blocks)
    dtype = compute_type(compute_dtype)
    module = ResnetBase(tuple(image_shape), width, num_blocks, is_synchronized, dtype)
    return from_module(module, (latent_dim,))


def dcgan_base(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256),
    is_synchronized: bool = True,
    compute_dtype: str = "float32",
) -> Network:
    """Returns the DCGAN base, transposed 4x4 convolutions after a dense layer.

    See https://arxiv.org/abs/1511.06434.

    Args:
      image_shape: `(height, width, channels)`, with sides that are multiples of
        `2 ** len(widths)`.
      latent_dim: Length of the latent, as in `sngan_base`.
      widths: Channels of the maps, from the image's end on.
      is_synchronized: Scope of batch statistics, as in `strided_generator`.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

    Returns:
      A `Network` with the mutable collection "batch_stats", as `sngan_base`.

    Raises:
      ValueError: As in `sngan_base`.

    Source:
      Radford, Metz & Chintala (2016), "Unsupervised representation learning with deep
      convolutional generative adversarial networks" (DCGAN),
      https://arxiv.org/abs/1511.06434.
    """
    check_sizes(image_shape, widths, latent_dim, 2 ** len(widths))
    dtype = compute_type(compute_dtype)
    module = DcganBase(tuple(image_shape), tuple(widths), is_synchronized, dtype)
    return from_module(module, (latent_dim,))
