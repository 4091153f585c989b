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

from ebmjax.networks.convolutions import convolution, transposed_convolution
from ebmjax.types import BATCH, DEVICE, Array

__all__ = ["TransposedConv", "batch_norm", "conv", "dense", "initializers"]


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


class TransposedConv(nn.Module):
    """The transpose of a square convolution, to a map of a size that is given.

    Attributes:
      features: Channels of the result.
      out_size: Its height and width: such as the convolution would take to the map that
        this is given. PyTorch has `output_padding` for it.
      size: Of the kernel, `[size, size, features, channels]`.
      stride: Of the convolution, as is the next.
      pad: On every side.
      kernel_init: Uniform by default, as `initializers` has it; PyTorch counts the
        fan-in of a transposed convolution by its features.
      is_normalized: Whether batch normalisation follows, which takes the bias away
        again. It is then held: its gradient is rounding, and Adam would make full
        steps of it.
    """

    features: int
    out_size: tuple[int, int]
    size: int
    stride: int
    pad: int
    kernel_init: nn.initializers.Initializer | None = None
    is_normalized: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = initializers(self.size**2 * self.features)
        shape = (self.size, self.size, self.features, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or init["kernel_init"], shape)
        bias = self.param("bias", init["bias_init"], (self.features,))
        if self.is_normalized:
            bias = jax.lax.stop_gradient(bias)
        pads = ((self.pad, self.pad), (self.pad, self.pad))
        strides = (self.stride, self.stride)
        y = transposed_convolution(x[None], kernel, strides, pads, self.out_size)
        return y[0] + bias[None, None]


def batch_norm(x: Array, train: bool, **options) -> Array:
    """Batch normalisation of one example's channels, by the calling module.

    In training by the examples of the axis `BATCH` on all devices, both of which must
    be mapped; else by running statistics, of one example alone.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=(BATCH, DEVICE),
        **options,
    )(x)
