"""Residual energies of images, in which no example sees another."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from ebmjax.networks.activation import activation_fn
from ebmjax.networks.base import from_module
from ebmjax.networks.layer import conv, dense
from ebmjax.types import Array, Network

__all__ = ["resnet_energy", "wide_resnet_energy"]

NORMALIZATIONS = (None, "group")


class Block(nn.Module):
    """`shortcut(x) + conv(activation(conv(activation(x))))`, 3x3 convolutions.

    Attributes:
      features: Channels that come out. The shortcut is a 1x1 convolution where that
        changes their number, else nothing.
      activation: A function of arrays.
      stride: Of the second convolution and of the shortcut.
      num_groups: Of the group normalisation before each activation; None for none.
      is_identity_at_init: Whether the second convolution starts from zeros.
    """

    features: int
    activation: Callable[[Array], Array]
    stride: int = 1
    num_groups: int | None = None
    is_identity_at_init: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def activate(h):
            if self.num_groups is not None:
                # Flax takes the first axis for a batch and normalises along the rest.
                h = nn.GroupNorm(self.num_groups)(h[None])[0]
            return self.activation(h)

        zeros = nn.initializers.zeros
        options = {"kernel_init": zeros, "bias_init": zeros}
        options = options if self.is_identity_at_init else {}
        h = conv(activate(x), self.features, 3, 1, 1)
        h = conv(activate(h), self.features, 3, self.stride, 1, **options)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(x, self.features, 1, self.stride, 0)
        return x + h


class ResNet(nn.Module):
    """Stages of residual blocks, each ended by a 2x2 mean; a sum over pixels."""

    widths: tuple[int, ...]
    num_blocks: int
    activation: str
    negative_slope: float
    num_groups: int | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_fn(self.activation, self.negative_slope)
        block = functools.partial(
            Block,
            activation=activation,
            num_groups=self.num_groups,
            is_identity_at_init=True,
        )
        h = conv(x, self.widths[0], 3, 1, 1)
        for width in self.widths:
            for _ in range(self.num_blocks):
                h = block(width)(h)
            h = nn.avg_pool(h, (2, 2), (2, 2))
        return dense(jnp.sum(activation(h), axis=(0, 1)), 1)[0]


class WideResNet(nn.Module):
    """Three stages of residual blocks, the later two strided; a mean over pixels."""

    num_blocks: int
    widen_factor: int
    activation: str
    negative_slope: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_fn(self.activation, self.negative_slope)
        h = conv(x, 16, 3, 1, 1)
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for i in range(self.num_blocks):
                features = width * self.widen_factor
                h = Block(features, activation, stride if i == 0 else 1)(h)
        return dense(jnp.mean(activation(h), axis=(0, 1)), 1)[0]


def check_image(image_shape: tuple[int, ...], divisor: int) -> None:
    """Raises unless it is `(height, width, channels)`, sides multiples of `divisor`."""
    if len(image_shape) != 3 or any(side % divisor for side in image_shape[:2]):
        raise ValueError(
            "image_shape must be (height, width, channels) with sides that are"
            f" multiples of {divisor}, got {tuple(image_shape)}"
        )


def resnet_energy(
    image_shape: tuple[int, int, int],
    *,
    widths: Sequence[int],
    num_blocks: int = 2,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    normalization: str | None = None,
    num_groups: int = 8,
) -> Network:
    """A residual energy that sums over pixels, after Du & Mordatch.

    A 3x3 convolution; for each width, `num_blocks` residual blocks and a mean over 2x2
    pixels; an activation, the sum over what pixels are left, and a linear function. The
    second convolution of every block starts from zeros. The sum makes the energy, and
    its gradient, grow with the image. Their spectral normalisation is not here.

    Args:
      image_shape: `(height, width, channels)`; the sides are halved at every width.
      widths: Channels of the stages, `(128, 256, 256)` for their CIFAR-10.
      num_blocks: In each stage.
      activation: See `mlp_energy`.
      negative_slope: Of `"leaky_relu"`.
      normalization: None, or `"group"` for group normalisation of each example on its
        own before every activation inside a block. Never of batches: chains would then
        depend on each other.
      num_groups: Of `"group"`; must divide all widths. As many as channels make it
        instance normalisation.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: If an argument is none of those named here, or sizes do not divide.

    Source:
      Du & Mordatch (2019), "Implicit generation and modeling with energy-based
      models", and its released code.
    """
    activation_fn(activation, negative_slope)
    widths = tuple(widths)
    if not widths or any(width < 1 for width in widths):
        raise ValueError(f"widths must be positive, one at least, got {widths}")
    if num_blocks < 1:
        raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}"
        )
    if normalization is not None and any(width % num_groups for width in widths):
        raise ValueError(f"num_groups must divide {widths}, got {num_groups}")
    check_image(image_shape, 2 ** len(widths))
    groups = num_groups if normalization == "group" else None
    module = ResNet(widths, num_blocks, activation, negative_slope, groups)
    return from_module(module, tuple(image_shape))


def wide_resnet_energy(
    image_shape: tuple[int, int, int],
    *,
    depth: int = 28,
    widen_factor: int = 10,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
) -> Network:
    """The wide residual network of JEM with one output, without normalisation.

    A 3x3 convolution to 16 channels; three stages of `(depth - 4) / 6` residual blocks
    with 16, 32 and 64 times `widen_factor` channels, the second and third of which
    halve the image; an activation, the mean over pixels, and a linear function.

    Args:
      image_shape: `(height, width, channels)`; sides are multiples of 4.
      depth: `6 n + 4` for `n` blocks a stage.
      widen_factor: Of the channels.
      activation: See `mlp_energy`.
      negative_slope: Of `"leaky_relu"`.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: If an argument is none of those named here.

    Source:
      Zagoruyko & Komodakis (2016), "Wide residual networks"; Grathwohl et al. (2020),
      "Your classifier is secretly an energy based model and you should treat it like
      one", and its released code, for the lack of normalisation and the slope.
    """
    activation_fn(activation, negative_slope)
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4 with n at least 1, got {depth}")
    if widen_factor < 1:
        raise ValueError(f"widen_factor must be at least 1, got {widen_factor}")
    check_image(image_shape, 4)
    module = WideResNet((depth - 4) // 6, widen_factor, activation, negative_slope)
    return from_module(module, tuple(image_shape))
