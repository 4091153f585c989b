"""Residual energies of images (ResNet, wide ResNet), without batch normalisation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from ebmjax.networks.activation import activation_fn
from ebmjax.networks.base import from_module
from ebmjax.networks.layer import compute_type, conv, dense, rematerialized, widened
from ebmjax.types import Array, Network

__all__ = ["resnet_energy", "wide_resnet_energy"]

NORMALIZATIONS = (None, "group")


class Block(nn.Module):
    """Residual block `shortcut(x) + conv(activation(conv(activation(x))))`, 3x3.

    Attributes:
      features: Channels of the result. The shortcut is a 1x1 convolution if that
        changes their number or there is a stride, and the identity otherwise.
      activation: Activation, a function of arrays.
      stride: Stride of the second convolution and of the shortcut.
      num_groups: Number of groups of the group normalisation before each activation;
        None for no normalisation.
      is_identity_at_init: Whether the second convolution starts from zeros.
      dtype: Type of the convolutions; None for that of their input.
    """

    features: int
    activation: Callable[[Array], Array]
    stride: int = 1
    num_groups: int | None = None
    is_identity_at_init: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def activate(h: Array) -> Array:
            if self.num_groups is not None:
                # Flax takes the first axis for a batch and normalises along the rest.
                h = nn.GroupNorm(self.num_groups)(h[None])[0]
            return self.activation(h)

        zeros = nn.initializers.zeros
        options: dict[str, Any] = {"kernel_init": zeros, "bias_init": zeros}
        options = options if self.is_identity_at_init else {}
        layer = functools.partial(conv, features=self.features, dtype=self.dtype)
        h = layer(activate(x), size=3, stride=1, pad=1)
        h = layer(activate(h), size=3, stride=self.stride, pad=1, **options)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = layer(x, size=1, stride=self.stride, pad=0)
        return x + h


class ResNet(nn.Module):
    """Stages of residual blocks, each ended by a 2x2 mean, and a sum over pixels."""

    widths: tuple[int, ...]
    num_blocks: int
    activation: str
    negative_slope: float
    num_groups: int | None
    dtype: DTypeLike | None
    rematerialize: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_fn(self.activation, self.negative_slope)
        block = functools.partial(
            rematerialized(Block) if self.rematerialize else Block,
            activation=activation,
            num_groups=self.num_groups,
            is_identity_at_init=True,
            dtype=self.dtype,
        )
        h = conv(x, self.widths[0], 3, 1, 1, dtype=self.dtype)
        for width in self.widths:
            for _ in range(self.num_blocks):
                h = block(width)(h)
            h = nn.avg_pool(h, (2, 2), (2, 2))
        return dense(jnp.sum(activation(widened(h)), axis=(0, 1)), 1)[0]


class WideResNet(nn.Module):
    """Three stages of residual blocks, the last two strided, and a mean over pixels."""

    num_blocks: int
    widen_factor: int
    activation: str
    negative_slope: float
    dtype: DTypeLike | None
    rematerialize: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        activation = activation_fn(self.activation, self.negative_slope)
        block = functools.partial(
            rematerialized(Block) if self.rematerialize else Block,
            activation=activation,
            dtype=self.dtype,
        )
        h = conv(x, 16, 3, 1, 1, dtype=self.dtype)
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for i in range(self.num_blocks):
                features = width * self.widen_factor
                h = block(features, stride=stride if i == 0 else 1)(h)
        return dense(jnp.mean(activation(widened(h)), axis=(0, 1)), 1)[0]


def check_image(image_shape: tuple[int, ...], divisor: int) -> None:
    """Raises unless it is `(height, width, channels)` and `divisor` divides sides."""
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
    compute_dtype: str = "float32",
    rematerialize: bool = False,
) -> Network:
    """Returns the residual (ResNet) energy of Du & Mordatch (IGEBM), a sum over pixels.

    See https://arxiv.org/abs/1903.08689.

    The network is a 3x3 convolution; for each width, `num_blocks` residual blocks and a
    mean over 2x2 pixels; an activation, the sum over the remaining pixels, and a linear
    function. The second convolution of every block starts from zeros. Because of the
    sum, the energy and its gradient grow with the image. The spectral normalisation of
    the paper is not included.

    Args:
      image_shape: `(height, width, channels)`; the sides are halved at every width.
      widths: Channels of the stages, `(128, 256, 256)` for the paper's CIFAR-10
        network.
      num_blocks: Number of blocks in each stage.
      activation: Name of the activation, as in `mlp_energy`.
      negative_slope: Slope of `"leaky_relu"` for negative inputs.
      normalization: None, or `"group"` for group normalisation of each example
        separately before every activation inside a block. Batch normalisation is not
        offered, because chains would then depend on each other.
      num_groups: Number of groups of `"group"`, which must divide all widths. With as
        many groups as channels it is instance normalisation.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.
      rematerialize: Whether a derivative stores the maps between blocks alone and
        computes each block again, which saves memory and takes about a third longer.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: If an argument is not one of those named here, or sizes do not divide.

    Source:
      Du & Mordatch (2019), "Implicit generation and modeling with energy-based models",
      https://arxiv.org/abs/1903.08689, and its released code.
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
    module = ResNet(
        widths,
        num_blocks,
        activation,
        negative_slope,
        groups,
        compute_type(compute_dtype),
        rematerialize,
    )
    return from_module(module, tuple(image_shape))


def wide_resnet_energy(
    image_shape: tuple[int, int, int],
    *,
    depth: int = 28,
    widen_factor: int = 10,
    activation: str = "leaky_relu",
    negative_slope: float = 0.2,
    compute_dtype: str = "float32",
    rematerialize: bool = False,
) -> Network:
    """Returns the wide residual network (WRN) of JEM with one output, not normalised.

    See https://arxiv.org/abs/1605.07146 (WRN) and https://arxiv.org/abs/1912.03263
    (JEM).

    The network is a 3x3 convolution to 16 channels; three stages of `(depth - 4) / 6`
    residual blocks with 16, 32 and 64 times `widen_factor` channels, the second and
    third of which halve the image; an activation, the mean over pixels, and a linear
    function.

    Args:
      image_shape: `(height, width, channels)`; sides are multiples of 4.
      depth: Depth, `6 n + 4` for `n` blocks in each stage.
      widen_factor: Factor of the channels.
      activation: Name of the activation, as in `mlp_energy`.
      negative_slope: Slope of `"leaky_relu"` for negative inputs.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.
      rematerialize: Whether to save memory, as in `resnet_energy`.

    Returns:
      A stateless `Network` whose `apply` is an energy.

    Raises:
      ValueError: If an argument is not one of those named here.

    Source:
      Zagoruyko & Komodakis (2016), "Wide residual networks",
      https://arxiv.org/abs/1605.07146. Grathwohl et al. (2020), "Your classifier is
      secretly an energy based model and you should treat it like one" (JEM),
      https://arxiv.org/abs/1912.03263, and its released code, for the lack of
      normalisation and the slope.
    """
    activation_fn(activation, negative_slope)
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4 with n at least 1, got {depth}")
    if widen_factor < 1:
        raise ValueError(f"widen_factor must be at least 1, got {widen_factor}")
    check_image(image_shape, 4)
    module = WideResNet(
        (depth - 4) // 6,
        widen_factor,
        activation,
        negative_slope,
        compute_type(compute_dtype),
        rematerialize,
    )
    return from_module(module, tuple(image_shape))
