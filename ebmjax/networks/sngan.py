"""Energies of generalised energy-based models (GEBM) on images, as in SNGAN.

See https://arxiv.org/abs/1802.05957 and https://arxiv.org/abs/2003.05033.

They divide every matrix by its largest singular value, with one power-iteration step
for every renewal of their state ("spectral"), and never have batch normalisation, which
their bases have (`generators`). Weights start from Xavier's uniform law, before they
are divided.

Source:
  Miyato, Kataoka, Koyama & Yoshida (2018), "Spectral normalization for generative
  adversarial networks" (SNGAN), https://arxiv.org/abs/1802.05957, with the sizes of
  Arbel, Zhou & Gretton (2021), "Generalized energy based models",
  https://arxiv.org/abs/2003.05033, released code.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
from jax.typing import DTypeLike

from ebmjax.networks.base import check_sizes, from_module
from ebmjax.networks.convolutions import convolution
from ebmjax.networks.layer import compute_type, widened
from ebmjax.types import Array, Network

__all__ = [
    "dcgan_energy",
    "sngan_energy",
    "sngan_resnet_energy",
]

ZEROS = nn.initializers.zeros


def xavier(gain: float = 1.0) -> nn.initializers.Initializer:
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def xavier_dense(features: int, name: str | None = None) -> nn.Dense:
    return nn.Dense(features, kernel_init=xavier(), bias_init=ZEROS, name=name)


def xavier_conv(
    features: int,
    size: int,
    stride: int = 1,
    gain: float = 1.0,
    dtype: DTypeLike | None = None,
) -> nn.Conv:
    """Returns a padded convolution: 3x3 keep the size, 4x4 of stride 2 halve it.

    A 1x1 convolution takes single pixels.
    """
    pad = (size - 1) // 2
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        kernel_init=xavier(gain),
        bias_init=ZEROS,
        dtype=dtype,
        conv_general_dilated=convolution,
    )


def _spectral(layer: nn.Module, x: Array, train: bool) -> Array:
    """Applies the layer, divided by its largest singular value."""
    normalize = nn.SpectralNorm(layer, collection_name="spectral")
    y: Array = normalize(x, update_stats=train)
    return y


class ConvEnergy(nn.Module):
    """3x3 convolutions, with 4x4 ones of stride 2 between them that widen them."""

    widths: tuple[int, ...]
    negative_slope: float
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        def layer(h: Array, width: int, size: int, stride: int = 1) -> Array:
            conv = xavier_conv(width, size, stride, dtype=self.dtype)
            return nn.leaky_relu(_spectral(conv, h, train), self.negative_slope)

        h = layer(x, self.widths[0], 3)
        for width in self.widths[1:]:
            h = layer(h, width, 4, 2)
            h = layer(h, width, 3)
        # The last matrix alone is left as it is, as published.
        return xavier_dense(1)(widened(h).reshape(-1))[0]


def _halved(h: Array) -> Array:
    means: Array = nn.avg_pool(h, (2, 2), (2, 2))
    return means


class ResnetEnergy(nn.Module):
    """Two residual blocks that halve the sides, two that do not, and a mean."""

    width: int
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        def conv(h: Array, size: int, gain: float = 1.0) -> Array:
            layer = xavier_conv(self.width, size, gain=gain, dtype=self.dtype)
            return _spectral(layer, h, train)

        # The first block has no ReLU before it, and means before it convolves.
        inner = conv(nn.relu(conv(x, 3)), 3)
        h = _halved(inner) + conv(_halved(x), 1, math.sqrt(2))
        for index in range(3):
            inner = conv(nn.relu(conv(nn.relu(h), 3)), 3)
            if index == 0:
                inner, h = _halved(inner), _halved(conv(h, 1, math.sqrt(2)))
            h = inner + h
        return _spectral(xavier_dense(1), nn.relu(widened(h)).mean((0, 1)), train)[0]


class DcganEnergy(nn.Module):
    """4x4 convolutions of stride 2, and a dense layer."""

    widths: tuple[int, ...]
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        for width in self.widths:
            layer = xavier_conv(width, 4, 2, dtype=self.dtype)
            x = nn.leaky_relu(_spectral(layer, x, train), 0.2)
        return _spectral(xavier_dense(1), widened(x).reshape(-1), train)[0]


def sngan_energy(
    image_shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    negative_slope: float = 0.1,
    compute_dtype: str = "float32",
) -> Network:
    """Returns the plain energy of SNGAN, spectrally normalised convolutions.

    See https://arxiv.org/abs/1802.05957.

    Args:
      image_shape: `(height, width, channels)`, as in `sngan_base`.
      widths: Channels; between two of them the sides are halved.
      negative_slope: Slope of the leaky ReLUs for negative inputs.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

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
    module = ConvEnergy(tuple(widths), negative_slope, compute_type(compute_dtype))
    return from_module(module, tuple(image_shape))


def sngan_resnet_energy(
    image_shape: tuple[int, int, int],
    *,
    width: int = 128,
    compute_dtype: str = "float32",
) -> Network:
    """Returns the residual (ResNet) energy of SNGAN, all of it spectrally normalised.

    See https://arxiv.org/abs/1802.05957.

    Args:
      image_shape: `(height, width, channels)`, with sides that are multiples of 4.
      width: Channels of all blocks.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

    Returns:
      A `Network` with the mutable collection "spectral", as `sngan_energy`.

    Raises:
      ValueError: As in `sngan_base`.

    Source:
      Miyato et al. (2018), "Spectral normalization for generative adversarial
      networks", https://arxiv.org/abs/1802.05957.
    """
    check_sizes(image_shape, (width,), divisor=4)
    module = ResnetEnergy(width, compute_type(compute_dtype))
    return from_module(module, tuple(image_shape))


def dcgan_energy(
    image_shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (64, 128, 256),
    compute_dtype: str = "float32",
) -> Network:
    """Returns the DCGAN energy, spectrally normalised 4x4 convolutions of stride 2.

    See https://arxiv.org/abs/1511.06434.

    Args:
      image_shape: `(height, width, channels)`, as in `dcgan_base`.
      widths: Channels; each halves the sides.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.

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
    module = DcganEnergy(tuple(widths), compute_type(compute_dtype))
    return from_module(module, tuple(image_shape))
