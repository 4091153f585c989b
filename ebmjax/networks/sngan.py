"""Bases and energies of generalised energy-based models (GEBM) on images, as in SNGAN.

See https://arxiv.org/abs/1802.05957 and https://arxiv.org/abs/2003.05033.

Bases have batch normalisation. Energies divide every matrix by its largest singular
value, with one power-iteration step for every renewal of their state ("spectral"), and
never have batch normalisation. All weights start from Xavier's uniform law.

Source:
  Miyato, Kataoka, Koyama & Yoshida (2018), "Spectral normalization for generative
  adversarial networks" (SNGAN), https://arxiv.org/abs/1802.05957, with the sizes of
  Arbel, Zhou & Gretton (2021), "Generalized energy based models",
  https://arxiv.org/abs/2003.05033, released code.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from ebmjax.networks.base import check_sizes, from_module
from ebmjax.networks.convolutions import convolution
from ebmjax.networks.layer import TransposedConv, batch_norm
from ebmjax.types import Array, Network

__all__ = [
    "dcgan_base",
    "dcgan_energy",
    "sngan_base",
    "sngan_energy",
    "sngan_resnet_base",
    "sngan_resnet_energy",
]

ZEROS = nn.initializers.zeros


def _xavier(gain: float = 1.0) -> nn.initializers.Initializer:
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def _dense(features: int, name: str | None = None) -> nn.Dense:
    return nn.Dense(features, kernel_init=_xavier(), bias_init=ZEROS, name=name)


def _conv(features: int, size: int, stride: int = 1, gain: float = 1.0) -> nn.Conv:
    """Returns a padded convolution: 3x3 keep the size, 4x4 of stride 2 halve it.

    A 1x1 convolution takes single pixels.
    """
    pad = (size - 1) // 2
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        kernel_init=_xavier(gain),
        bias_init=ZEROS,
        conv_general_dilated=convolution,
    )


def _spectral(layer: nn.Module, x: Array, train: bool) -> Array:
    """Applies the layer, divided by its largest singular value."""
    normalize = nn.SpectralNorm(layer, collection_name="spectral")
    y: Array = normalize(x, update_stats=train)
    return y


def _normalized(h: Array, train: bool) -> Array:
    return nn.relu(batch_norm(h, train))


class ConvBase(nn.Module):
    """Transposed 4x4 convolutions that double the sides, and a 3x3 one to the image."""

    image_shape: tuple[int, ...]
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        doublings = len(self.widths) - 1
        height, width = (side // 2**doublings for side in self.image_shape[:2])
        h = _dense(height * width * self.widths[-1])(z)
        h = _normalized(h.reshape(height, width, self.widths[-1]), train)
        for features in self.widths[-2::-1]:
            size = (2 * h.shape[0], 2 * h.shape[1])
            layer = TransposedConv(
                features, size, 4, 2, 1, _xavier(), is_normalized=True
            )
            h = _normalized(layer(h), train)
        return jnp.tanh(_conv(self.image_shape[-1], 3)(h))


class ConvEnergy(nn.Module):
    """3x3 convolutions, with 4x4 ones of stride 2 between them that widen them."""

    widths: tuple[int, ...]
    negative_slope: float

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        activation = functools.partial(
            nn.leaky_relu, negative_slope=self.negative_slope
        )
        h = activation(_spectral(_conv(self.widths[0], 3), x, train))
        for width in self.widths[1:]:
            h = activation(_spectral(_conv(width, 4, 2), h, train))
            h = activation(_spectral(_conv(width, 3), h, train))
        # The last matrix alone is left as it is, as published.
        return _dense(1)(h.reshape(-1))[0]


def _doubled(h: Array) -> Array:
    """Repeats every pixel in both directions."""
    return jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=1)


def _halved(h: Array) -> Array:
    means: Array = nn.avg_pool(h, (2, 2), (2, 2))
    return means


class ResnetBase(nn.Module):
    """Residual blocks that double the sides."""

    image_shape: tuple[int, ...]
    width: int
    num_blocks: int

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        height, width = (side // 2**self.num_blocks for side in self.image_shape[:2])
        h = _dense(height * width * self.width)(z).reshape(height, width, self.width)
        for _ in range(self.num_blocks):
            inner = _conv(self.width, 3)(_doubled(_normalized(h, train)))
            inner = _conv(self.width, 3)(_normalized(inner, train))
            h = inner + _doubled(h)
        h = _normalized(h, train)
        return jnp.tanh(_conv(self.image_shape[-1], 3)(h))


class ResnetEnergy(nn.Module):
    """Two residual blocks that halve the sides, two that do not, and a mean."""

    width: int

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        def conv(h: Array, size: int, gain: float = 1.0) -> Array:
            return _spectral(_conv(self.width, size, gain=gain), h, train)

        # The first block has no ReLU before it, and means before it convolves.
        inner = conv(nn.relu(conv(x, 3)), 3)
        h = _halved(inner) + conv(_halved(x), 1, math.sqrt(2))
        for index in range(3):
            inner = conv(nn.relu(conv(nn.relu(h), 3)), 3)
            if index == 0:
                inner, h = _halved(inner), _halved(conv(h, 1, math.sqrt(2)))
            h = inner + h
        return _spectral(_dense(1), nn.relu(h).mean((0, 1)), train)[0]


class DcganBase(nn.Module):
    """Transposed 4x4 convolutions, after a dense layer."""

    image_shape: tuple[int, ...]
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        height, width = (side // 2 ** len(self.widths) for side in self.image_shape[:2])
        h = _dense(height * width * self.widths[-1])(z)
        h = _normalized(h.reshape(height, width, self.widths[-1]), train)
        for features in (*self.widths[-2::-1], self.image_shape[-1]):
            size = (2 * h.shape[0], 2 * h.shape[1])
            is_last = size == tuple(self.image_shape[:2])
            layer = TransposedConv(
                features, size, 4, 2, 1, _xavier(), is_normalized=not is_last
            )
            h = jnp.tanh(layer(h)) if is_last else _normalized(layer(h), train)
        return h


class DcganEnergy(nn.Module):
    """4x4 convolutions of stride 2, and a dense layer."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        for width in self.widths:
            x = nn.leaky_relu(_spectral(_conv(width, 4, 2), x, train), 0.2)
        return _spectral(_dense(1), x.reshape(-1), train)[0]


def sngan_base(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256, 512),
) -> Network:
    """Returns the plain base of SNGAN, transposed convolutions from a 4x4 map up.

    See https://arxiv.org/abs/1802.05957.

    Args:
      image_shape: `(height, width, channels)`, with sides that are multiples of
        `2 ** (len(widths) - 1)`. Values of the draws are in [-1, 1], by a tanh.
      latent_dim: Length of the latent. The published value is 100, with standard normal
        latents.
      widths: Channels of the maps, from the image's end on.

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
    return from_module(ConvBase(tuple(image_shape), tuple(widths)), (latent_dim,))


def sngan_energy(
    image_shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    negative_slope: float = 0.1,
) -> Network:
    """Returns the plain energy of SNGAN, spectrally normalised convolutions.

    See https://arxiv.org/abs/1802.05957.

    Args:
      image_shape: `(height, width, channels)`, as in `sngan_base`.
      widths: Channels; between two of them the sides are halved.
      negative_slope: Slope of the leaky ReLUs for negative inputs.

    Returns:
      A `Network` with the mutable collection "spectral", which
      `apply_stateful(..., train=True)` renews by one step of power iteration, whatever
      the example is.

    Raises:
      ValueError: As in `sngan_base`.

    Source:
      Miyato et al. (2018), "Spectral normalization for generative adversarial
      networks", https://arxiv.org/abs/1802.05957.
    """
    check_sizes(image_shape, widths, divisor=2 ** (len(widths) - 1))
    module = ConvEnergy(tuple(widths), negative_slope)
    return from_module(module, tuple(image_shape))


def sngan_resnet_base(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    width: int = 128,
    num_blocks: int = 3,
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

    Returns:
      A `Network` with the mutable collection "batch_stats", as `sngan_base`.

    Raises:
      ValueError: As in `sngan_base`.

    Source:
      Miyato et al. (2018), "Spectral normalization for generative adversarial
      networks", https://arxiv.org/abs/1802.05957.
    """
    check_sizes(image_shape, (width,), latent_dim, 2**num_blocks)
    module = ResnetBase(tuple(image_shape), width, num_blocks)
    return from_module(module, (latent_dim,))


def sngan_resnet_energy(
    image_shape: tuple[int, int, int], *, width: int = 128
) -> Network:
    """Returns the residual (ResNet) energy of SNGAN, all of it spectrally normalised.

    See https://arxiv.org/abs/1802.05957.

    Args:
      image_shape: `(height, width, channels)`, with sides that are multiples of 4.
      width: Channels of all blocks.

    Returns:
      A `Network` with the mutable collection "spectral", as `sngan_energy`.

    Raises:
      ValueError: As in `sngan_base`.

    Source:
      Miyato et al. (2018), "Spectral normalization for generative adversarial
      networks", https://arxiv.org/abs/1802.05957.
    """
    check_sizes(image_shape, (width,), divisor=4)
    return from_module(ResnetEnergy(width), tuple(image_shape))


def dcgan_base(
    image_shape: tuple[int, int, int],
    *,
    latent_dim: int,
    widths: Sequence[int] = (64, 128, 256),
) -> Network:
    """Returns the DCGAN base, transposed 4x4 convolutions after a dense layer.

    See https://arxiv.org/abs/1511.06434.

    Args:
      image_shape: `(height, width, channels)`, with sides that are multiples of
        `2 ** len(widths)`.
      latent_dim: Length of the latent, as in `sngan_base`.
      widths: Channels of the maps, from the image's end on.

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
    return from_module(DcganBase(tuple(image_shape), tuple(widths)), (latent_dim,))


def dcgan_energy(
    image_shape: tuple[int, int, int], *, widths: Sequence[int] = (64, 128, 256)
) -> Network:
    """Returns the DCGAN energy, spectrally normalised 4x4 convolutions of stride 2.

    See https://arxiv.org/abs/1511.06434.

    Args:
      image_shape: `(height, width, channels)`, as in `dcgan_base`.
      widths: Channels; each halves the sides.

    Returns:
      A `Network` with the mutable collection "spectral", as `sngan_energy`.

    Raises:
      ValueError: As in `sngan_base`.

    Source:
      Radford, Metz & Chintala (2016), "Unsupervised representation learning with deep
      convolutional generative adversarial networks" (DCGAN),
      https://arxiv.org/abs/1511.06434. The normalisation is that of SNGAN,
      https://arxiv.org/abs/1802.05957.
    """
    check_sizes(image_shape, widths, divisor=2 ** len(widths))
    return from_module(DcganEnergy(tuple(widths)), tuple(image_shape))
