"""Dense and convolutional layers, initialised as in the papers' code.

The papers' code is PyTorch, whose layers draw weights and biases alike from `U[-b, b]`
with `b = 1 / sqrt(fan_in)`. The weights have variance `1 / (3 fan_in)`, a third of
Flax's `lecun_normal`. This matters here, because with the step of Langevin dynamics
fixed, the scale of the energy's gradient is part of the sampler.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ebmjax.networks.convolutions import convolution, transposed_convolution
from ebmjax.types import BATCH, DEVICE, Array, Key

__all__ = [
    "TransposedConv",
    "batch_norm",
    "compute_type",
    "conv",
    "dense",
    "initializers",
    "rematerialized",
    "widened",
]

DTYPES: dict[str, DTypeLike | None] = {"float32": None, "bfloat16": jnp.bfloat16}


def compute_type(name: str) -> DTypeLike | None:
    """Returns the type in which layers compute, for a network's `compute_dtype`.

    None stands for the type of the parameters and the example.
    """
    if name not in DTYPES:
        raise ValueError(f"compute_dtype must be one of {list(DTYPES)}, got {name!r}")
    return DTYPES[name]


def widened(x: Array) -> Array:
    """Returns an array in float32 at least, for results and for sums of many terms."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rematerialized(block: type[nn.Module]) -> type[nn.Module]:
    """Returns the module, which is computed again where a derivative needs its inside.

    The class keeps its name, after which Flax names the parameters.
    """
    found: type[nn.Module] = nn.remat(block)
    found.__name__ = block.__name__
    return found


def initializers(fan_in: int) -> dict[str, Any]:
    """Returns `kernel_init` and `bias_init`, uniform up to `1 / sqrt(fan_in)`."""

    def init(key: Key, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        bound = 1 / math.sqrt(fan_in)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": init, "bias_init": init}


def dense(x: Array, features: int, **options: Any) -> Array:
    """Applies a dense layer of the calling module."""
    y: Array = nn.Dense(features, **(initializers(x.shape[-1]) | options))(x)
    return y


def conv(
    x: Array, features: int, size: int, stride: int, pad: int, **options: Any
) -> Array:
    """Applies a square convolution of the calling module, padded on every side."""
    layer = functools.partial(
        nn.Conv,
        features,
        (size, size),
        (stride, stride),
        ((pad, pad), (pad, pad)),
        conv_general_dilated=convolution,
    )
    y: Array = layer(**(initializers(size * size * x.shape[-1]) | options))(x)
    return y


class TransposedConv(nn.Module):
    """Transpose of a square convolution, to a map of a given size.

    Attributes:
      features: Channels of the result.
      out_size: Height and width of the result. The convolution takes a map of this size
        to the size of the input. PyTorch has `output_padding` for it.
      size: Size of the kernel, `[size, size, features, channels]`.
      stride: Stride of the convolution.
      pad: Padding of the convolution on every side.
      kernel_init: Initializer of the kernel, by default uniform as in `initializers`;
        PyTorch computes the fan-in of a transposed convolution from its features.
      is_normalized: Whether batch normalisation follows, which removes the bias again.
        The bias is then fixed: its gradient would be rounding error, of which Adam
        would make full steps.
      dtype: Type of the computation and of the result; by default that of the input and
        the parameters together.
    """

    features: int
    out_size: tuple[int, ...]
    size: int
    stride: int
    pad: int
    kernel_init: nn.initializers.Initializer | None = None
    is_normalized: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = initializers(self.size**2 * self.features)
        shape = (self.size, self.size, self.features, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init or init["kernel_init"], shape)
        bias: Array = self.param("bias", init["bias_init"], (self.features,))
        if self.is_normalized:
            bias = jax.lax.stop_gradient(bias)
        if self.dtype is not None:
            x, kernel, bias = (y.astype(self.dtype) for y in (x, kernel, bias))
        pads = ((self.pad, self.pad), (self.pad, self.pad))
        strides = (self.stride, self.stride)
        y = transposed_convolution(x[None], kernel, strides, pads, self.out_size)
        return y[0] + bias[None, None]


def batch_norm(
    x: Array, train: bool, is_synchronized: bool = True, **options: Any
) -> Array:
    """Applies batch normalisation (BN) to one example's channels.

    The layer belongs to the calling module. In training, it normalises by the examples
    of the axis `BATCH` on all devices if `is_synchronized`, and both axes must be
    mapped; otherwise by those on the device. In evaluation it uses running statistics,
    and the example alone.
    """
    axes = (BATCH, DEVICE) if is_synchronized else (BATCH,)
    y: Array = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        # Flax takes several axes, as `jax.lax.pmean` does; its annotation says one.
        axis_name=axes,  # type: ignore[arg-type]
        **options,
    )(x)
    return y
