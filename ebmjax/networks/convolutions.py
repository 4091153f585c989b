"""Convolutions whose derivatives are fast on a CPU, in loops and out of them.

A sampler differentiates its energy in the input inside a `lax.scan`, and a scan over
updates differentiates it in the kernel. XLA's CPU compiler has a fast path for
convolutions whose axes are in the usual order and whose kernel is not reversed. The
convolutions that JAX writes for gradients satisfy neither condition. Outside of loops
the compiler rewrites them. In a loop it does not, and they take 2 to 100 times as long.
Small maps, and images of few channels, are faster as matrix products.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from ebmjax.networks.convolution_forms import (
    CHANNELS_LAST,
    Options,
    canonical,
    map_size,
    pad,
    transpose,
    unpad,
)
from ebmjax.networks.convolution_primitives import images, maps
from ebmjax.types import Array

__all__ = ["convolution", "transposed_convolution"]

Numbers = lax.ConvDimensionNumbers | tuple[str, str, str] | None


def convolution(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    dimension_numbers: Numbers,
    precision: lax.PrecisionLike = None,
    **rest: Any,
) -> Array:
    """Equals `jax.lax.conv_general_dilated`, with faster gradients on a CPU.

    Use it as `nn.Conv(conv_general_dilated=convolution)`. Values, and derivatives of
    every order and in every mode, are those of `lax` up to rounding. Only the form of
    the computation differs, and only in programs for a CPU, for two-dimensional
    convolutions with channels last, no dilation and no groups, on no mesh with explicit
    axes. All other convolutions are passed to `lax`. Derivatives of every order are
    fast, except those by which `jax.vmap` maps images and kernels together, as for the
    gradients in the kernel of every example, which `lax` writes.

    Args:
      x: Images, `[n, height, width, channels]`.
      kernel: Kernel, `[height, width, channels, features]`.
      window_strides: Two integers.
      padding: `"SAME"`, `"VALID"` or two pairs of integers.
      dimension_numbers: Order of the axes, as for `lax`.
      precision: Precision, as for `lax`: None for `jax.default_matmul_precision`.
      **rest: Further arguments of `lax`.

    Returns:
      Maps, `[n, height, width, features]`.
    """
    precision = present_precision(precision)
    shapes = x.shape, kernel.shape
    numbers = lax.conv_dimension_numbers(*shapes, dimension_numbers)
    ones = ("lhs_dilation", "rhs_dilation", "feature_group_count", "batch_group_count")
    is_plain = (
        x.ndim == 4
        and numbers == lax.conv_dimension_numbers(*shapes, CHANNELS_LAST)
        and all(name in ones for name in rest)
        and all(value in (None, 1, (1, 1)) for value in rest.values())
        and not is_explicit(x, kernel)
    )
    if not is_plain:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides,
            padding,
            dimension_numbers=numbers,
            precision=precision,
            **rest,
        )
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padding = tuple((low, high) for low, high in padding)
    options = Options(strides, padding, precision)
    is_empty = min(*map_size(x.shape, kernel.shape, options), x.size) <= 0
    if is_empty or kernel.size == 0 or x.dtype != kernel.dtype:
        return canonical(x, kernel, options)  # or its error
    # Cut off first: XLA may read outside of an array whose padding is negative.
    x = pad(x, [(min(low, 0), min(high, 0)) for low, high in padding])
    padding = tuple((max(low, 0), max(high, 0)) for low, high in padding)
    options = Options(strides, padding, precision)
    return maps(x, kernel, options)


def transposed_convolution(
    y: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    image_size: Sequence[int],
    *,
    precision: lax.PrecisionLike = None,
) -> Array:
    """Returns the transpose of `convolution` as a linear function of its image.

    This is PyTorch's transposed convolution, with its kernel and padding; `image_size`
    takes the place of `output_padding`. On a CPU it is a matrix product, or a
    convolution of stride 1, followed by a rearrangement of channels to pixels, which is
    fast in loops, and so are its derivatives. It inverts nothing, and it is not
    `jax.lax.conv_transpose`, whose kernel is reversed and has its channels in the other
    order.

    Args:
      y: Maps `[n, height, width, features]`, of the shape that the convolution of an
        image has.
      kernel: Kernel of the convolution, `[height, width, channels, features]`.
      window_strides: Strides of the convolution.
      padding: Padding of the convolution, two pairs of integers.
      image_size: `(height, width)` of the image.
      precision: Precision, as for `lax`.

    Returns:
      Images, `[n, *image_size, channels]`.

    Raises:
      ValueError: If the convolution of such an image does not have the size of `y`.
    """
    pads = tuple((low, high) for low, high in padding)
    options = Options(tuple(window_strides), pads, present_precision(precision))
    shape = (y.shape[0], *image_size, kernel.shape[2])
    if (size := map_size(shape, kernel.shape, options)) != y.shape[1:3]:
        raise ValueError(
            f"a convolution of images of size {tuple(image_size)} has size"
            f" {size}, got {y.shape[1:3]}"
        )
    if is_explicit(y, kernel):
        return transpose(lambda x: canonical(x, kernel, options), shape, y)
    # The pixels that a negative padding cuts off are zeros of the transpose.
    cut = [(min(low, 0), min(high, 0)) for low, high in pads]
    size = tuple(length + sum(ends) for length, ends in zip(image_size, cut))
    pads = tuple((max(low, 0), max(high, 0)) for low, high in pads)
    return unpad(images(y, kernel, options._replace(padding=pads), size), cut)


def present_precision(precision: lax.PrecisionLike) -> lax.PrecisionLike:
    """Returns the precision, or that of a `jax.default_matmul_precision` around here.

    The primitives are lowered to the convolutions of `lax` after such a context ends.
    """
    config: Any = jax.config  # not all versions of JAX declare its flags
    return config.jax_default_matmul_precision if precision is None else precision


def is_explicit(*arrays: Array) -> bool:
    """Returns whether a type says how an array is sharded, which `lax` propagates."""
    return any(any(jax.typeof(x).sharding.spec) for x in arrays)
