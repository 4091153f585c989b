"""Dense and convolutional layers as the papers' code initialised them.

The papers' code is PyTorch, whose layers draw weights and biases alike from
`U[-b, b]` with `b = 1 / sqrt(fan_in)`: weights of variance `1 / (3 fan_in)`, a third of
Flax's `lecun_normal`. It matters here, because with the step of Langevin dynamics fixed
the scale of the energy's gradient is part of the sampler.
"""

import functools
import math

import flax.linen as nn
import jax

from ebmjax.networks.convolution import convolution
from ebmjax.types import Array

__all__ = ["conv", "dense", "initializers"]


def initializers(fan_in: int) -> dict:
    """`kernel_init` and `bias_init`: uniform up to `1 / sqrt(fan_in)`."""

    def init(key, shape, dtype=float):
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": init, "bias_init": init}


def dense(x: Array, features: int, **options) -> Array:
    """A dense layer of the calling module."""
    return nn.Dense(features, **(initializers(x.shape[-1]) | options))(x)


def conv(x: Array, features: int, size: int, stride: int, pad: int, **options) -> Array:
    """A square convolution of the calling module, padded by `pad` on every side."""
    layer = functools.partial(
        nn.Conv,
        features,
        (size, size),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        conv_general_dilated=convolution,
    )
    return layer(**(initializers(size * size * x.shape[-1]) | options))(x)
