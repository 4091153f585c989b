"""Networks for scores and energies of noised data, given the noise scale (NCSN).

All are `apply(params, x, noise_scale)`, functions of an example and the standard
deviation of the noise in it, in units of x. `diffusions.with_time` converts them to
functions of a diffusion's time.
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ebmjax.checks import check_count
from ebmjax.networks.activation import activation_fn
from ebmjax.networks.base import check_sizes, from_module
from ebmjax.networks.layer import compute_type, conv, dense, rematerialized, widened
from ebmjax.types import Array, Network

__all__ = ["noise_mlp", "unet"]

CONDITIONINGS = ("embedding", "division")
NUM_FREQUENCIES = 16


def embed(noise_scale: Array) -> Array:
    """Returns sines and cosines of the scale's logarithm, `[2 * NUM_FREQUENCIES]`.

    The slowest has a period of a factor of about 10^27. The fastest has a period of a
    factor of 1.9, in which neighbouring scales of any ladder differ.
    """
    frequencies = jnp.asarray(np.geomspace(0.1, 10.0, NUM_FREQUENCIES), jnp.float32)
    angles = frequencies * jnp.log(noise_scale)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


def _of_noise(
    field: Callable[[Array, Array | None], Array],
    x: Array,
    noise_scale: Array,
    conditioning: str,
    is_energy: bool,
) -> Array:
    """Returns a score, or an energy, from a field of the size of noise of scale 1.

    "division": the field does not receive the scale, and is divided by it. "embedding":
    the field receives the scale, and x in units in which data of variance 1 and their
    noise together have variance 1.
    """
    if conditioning == "embedding":
        scaled = x / jnp.sqrt(1.0 + noise_scale**2)
        found = field(scaled, embed(noise_scale))
    else:
        found = field(x, None)
    if not is_energy:
        return found / noise_scale
    # Its score is (field + Jacobian^T x) / noise_scale, of the same size.
    return -jnp.sum(x * found) / noise_scale


class _NoiseMLP(nn.Module):
    """Dense layers of an example and the embedding of its noise scale."""

    widths: tuple[int, ...]
    activation: str
    conditioning: str
    is_energy: bool

    @nn.compact
    def __call__(self, x: Array, noise_scale: Array) -> Array:
        activation = activation_fn(self.activation, 0.2)

        def field(x: Array, embedding: Array | None) -> Array:
            h = x.reshape(-1)
            for width in self.widths:
                h = dense(h, width)
                if embedding is not None:
                    h = h + dense(embedding, width)
                h = activation(h)
            return dense(h, x.size).reshape(x.shape)

        return _of_noise(field, x, noise_scale, self.conditioning, self.is_energy)


def noise_mlp(
    event_shape: tuple[int, ...],
    *,
    widths: Sequence[int],
    activation: str = "swish",
    conditioning: str = "embedding",
    is_energy: bool = False,
) -> Network:
    """Returns a noise-conditional score network (NCSN) of dense layers, for vectors.

    See https://arxiv.org/abs/2006.09011.

    Args:
      event_shape: Shape of one example, of any rank, which is flattened.
      widths: Widths of the hidden layers, first to last.
      activation: Name of the activation, as in `mlp_energy`. It should be smooth,
        because the score's derivatives determine the change of volume of the density.
      conditioning: "embedding" gives every layer the scale's logarithm, and x in units
        of `sqrt(1 + noise_scale^2)`, for data of about unit variance. "division" gives
        the unscaled x alone: the score is `field(x) / noise_scale`.
      is_energy: Whether the result is the energy `-<x, field> / noise_scale` instead of
        a score.

    Returns:
      A stateless `Network` with `apply(params, x, noise_scale)`.

    Raises:
      ValueError: If an argument is not one of those named here.

    Source:
      Song & Ermon (2020), "Improved techniques for training score-based generative
      models" (NCSNv2), Technique 3, https://arxiv.org/abs/2006.09011, for the division.
    """
    _check(activation, conditioning)
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be positive, got {tuple(widths)}")
    module = _NoiseMLP(tuple(widths), activation, conditioning, is_energy)
    return from_module(module, tuple(event_shape), ())


class InstanceNorm(nn.Module):
    """Instance normalisation that restores the means which it removes (InstanceNorm++).

    The result is `gain (x - mean) / std + shift + again (mean - their mean) / their
    std`, where the last term distinguishes the means of the channels. A plain instance
    normalisation makes blank images of any grey equal. With an embedding, the three
    coefficients are affine functions of it.

    Attributes:
      epsilon: Number that is added to variances.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None) -> Array:
        features, x = x.shape[-1], widened(x)

        def coefficient(name: str, initial: float) -> Array:
            bias = nn.initializers.constant(initial)
            if embedding is None:
                return self.param(name, bias, (features,))[None, None]
            zeros = nn.initializers.zeros
            layer = nn.Dense(features, kernel_init=zeros, bias_init=bias, name=name)
            return layer(embedding)[None, None]

        mean = x.mean((0, 1), keepdims=True)
        std = jnp.sqrt(x.var((0, 1), keepdims=True) + self.epsilon)
        apart = (mean - mean.mean()) / jnp.sqrt(mean.var() + self.epsilon)
        own = coefficient("gain", 1.0) * (x - mean) / std
        return own + coefficient("shift", 0.0) + coefficient("again", 1.0) * apart


class _Block(nn.Module):
    """Residual block of 3 x 3 convolutions, with normalisation before each activation.

    It computes `shortcut(x) + conv(activation(norm(conv(activation(norm(x))))))`.
    """

    features: int
    activation: Callable[[Array], Array]
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None) -> Array:
        zeros = nn.initializers.zeros
        layer = functools.partial(conv, features=self.features, dtype=self.dtype)
        h = self.activation(InstanceNorm()(x, embedding))
        h = layer(h, size=3, stride=1, pad=1)
        h = self.activation(InstanceNorm()(h, embedding))
        h = layer(h, size=3, stride=1, pad=1, kernel_init=zeros, bias_init=zeros)
        if x.shape[-1] != self.features:
            x = layer(x, size=1, stride=1, pad=0)
        return x + h


def _level_waves(x: Array, noise_scale: Array, num_levels: int) -> list[Array]:
    """Returns waves of the pixels, with periods of one and of two of their levels.

    A wave is multiplied by the mean of `cos(angle of the noise)`, so that it vanishes
    for noise that is larger than its period.
    """
    waves: list[Array] = []
    for frequency in (math.pi * num_levels, math.pi * num_levels / 2):
        if num_levels:
            kept = jnp.exp(-((frequency * noise_scale) ** 2) / 2)
            waves += [kept * jnp.sin(frequency * x), kept * jnp.cos(frequency * x)]
    return waves


class _UNet(nn.Module):
    """Residual blocks down to a small map and up again, with skip connections."""

    widths: tuple[int, ...]
    num_blocks: int
    activation: str
    conditioning: str
    is_energy: bool
    dtype: DTypeLike | None
    rematerialize: bool
    num_levels: int

    @nn.compact
    def __call__(self, x: Array, noise_scale: Array) -> Array:
        waves = _level_waves(x, noise_scale, self.num_levels)
        activation = activation_fn(self.activation, 0.2)
        field = functools.partial(self.field, activation, waves)
        return _of_noise(field, x, noise_scale, self.conditioning, self.is_energy)

    def field(
        self,
        activation: Callable[[Array], Array],
        waves: list[Array],
        x: Array,
        embedding: Array | None,
    ) -> Array:
        if embedding is not None:
            width = 4 * NUM_FREQUENCIES
            embedding = activation(dense(embedding, width))
            embedding = activation(dense(embedding, width))
        block = functools.partial(
            rematerialized(_Block) if self.rematerialize else _Block,
            activation=activation,
            dtype=self.dtype,
        )
        h = jnp.concatenate([x, *waves], axis=-1)
        h = conv(h, self.widths[0], 3, 1, 1, dtype=self.dtype)
        skips = []
        for level, width in enumerate(self.widths):
            if level:
                h = nn.avg_pool(h, (2, 2), (2, 2))
            for _ in range(self.num_blocks):
                h = block(width)(h, embedding)
            skips.append(h)
        for width, skip in zip(self.widths[-2::-1], skips[-2::-1]):
            h = jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=1)
            h = jnp.concatenate([h, skip], axis=-1)
            for _ in range(self.num_blocks):
                h = block(width)(h, embedding)
        h = activation(InstanceNorm()(h, embedding))
        h = conv(
            h,
            x.shape[-1],
            3,
            1,
            1,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
        )
        return widened(h)


def unet(
    image_shape: tuple[int, int, int],
    *,
    widths: Sequence[int],
    num_blocks: int = 1,
    activation: str = "elu",
    conditioning: str = "embedding",
    is_energy: bool = False,
    compute_dtype: str = "float32",
    rematerialize: bool = False,
    num_levels: int = 0,
) -> Network:
    """Returns a U-Net score network, conditioned on the noise scale (as in NCSN).

    See https://arxiv.org/abs/1505.04597 and https://arxiv.org/abs/1907.05600 (NCSN).

    The network is a 3x3 convolution; for each width `num_blocks` residual blocks, with
    a mean over 2x2 pixels between two widths; and then the way back, by repeated pixels
    concatenated with the maps of the way down. Every block normalises each channel of
    each image by itself (`InstanceNorm`), conditioned on the noise scale if it is
    embedded. The last convolution starts from zeros, and so does the score.

    The papers' networks are a RefineNet and larger U-Nets with attention. This network
    has their normalisation, conditioning and scales, and neither their depth nor
    attention.

    Args:
      image_shape: `(height, width, channels)`; the sides are halved once for every
        width except the first.
      widths: Channels of the levels, the finest first.
      num_blocks: Number of blocks at each level, down and up.
      activation: Name of the activation, as in `mlp_energy`. The papers use "elu",
        which is once differentiable, as a score requires; an energy's score requires an
        activation that is twice differentiable.
      conditioning: Conditioning, as in `noise_mlp`.
      is_energy: Whether the result is an energy, as in `noise_mlp`.
      compute_dtype: Type of the convolutions, as in `short_run_energy`.
      rematerialize: Whether to save memory, as in `resnet_energy`.
      num_levels: Number of the levels of a pixel in [-1, 1], such as 256, whose sines
        and cosines the network sees besides the pixel; 0 for none. The density of
        dequantised images is constant within a level, and a likelihood in bits per
        dimension needs this structure, which convolutions of the pixels alone resolve
        badly.

    Returns:
      A stateless `Network` with `apply(params, x, noise_scale)`.

    Raises:
      ValueError: If an argument is not one of those named here, or sizes do not divide.

    Source:
      Ronneberger, Fischer & Brox (2015), "U-Net: convolutional networks for biomedical
      image segmentation", https://arxiv.org/abs/1505.04597. For normalisation and
      conditioning: Song & Ermon (2019), "Generative modeling by estimating gradients of
      the data distribution" (NCSN), https://arxiv.org/abs/1907.05600, and (2020),
      "Improved techniques for training score-based generative models" (NCSNv2),
      https://arxiv.org/abs/2006.09011. For the waves, which do not vanish there: Kingma
      et al. (2021), "Variational diffusion models" (VDM),
      https://arxiv.org/abs/2107.00630.
    """
    _check(activation, conditioning)
    check_count("num_levels", num_levels, 0)
    widths = tuple(widths)
    check_sizes(image_shape, widths, divisor=2 ** (len(widths) - 1))
    if num_blocks < 1:
        raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
    module = _UNet(
        widths,
        num_blocks,
        activation,
        conditioning,
        is_energy,
        compute_type(compute_dtype),
        rematerialize,
        num_levels,
    )
    return from_module(module, tuple(image_shape), ())


def _check(activation: str, conditioning: str) -> None:
    activation_fn(activation, 0.2)
    if conditioning not in CONDITIONINGS:
        raise ValueError(
            f"conditioning must be one of {CONDITIONINGS}, got {conditioning!r}"
        )
