"""Convolutions whose gradients are fast in a loop on a CPU.

A sampler differentiates its energy in the input inside a `lax.scan`, and a scan over
updates differentiates it in the kernel. XLA's CPU compiler has a fast path for
convolutions whose axes are in the usual order and whose kernel is not reversed. The
convolutions that JAX writes for gradients satisfy neither condition. Outside of loops
the compiler rewrites them. In a loop it does not, and they take 2 to 100 times as long.
Small maps, and images of few channels, are faster as matrix products.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ebmjax.types import Array

__all__ = ["convolution", "transposed_convolution"]

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")

Sizes = Sequence[int]
Pads = Sequence[tuple[int, int]]
Numbers = lax.ConvDimensionNumbers | tuple[str, str, str] | None

FEW_CHANNELS, FEW_PLACES, MOST_ELEMENTS = 16, 16, 2**20
"""On a CPU, a convolution of at most `FEW_CHANNELS` channels, or to a map of at most
`FEW_PLACES` pixels, is a matrix product, unless the windows of an example have more
than `MOST_ELEMENTS` elements together."""


def convolution(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    dimension_numbers: Numbers,
    precision: lax.PrecisionLike = None,
    **options: Any,
) -> Array:
    """Equals `jax.lax.conv_general_dilated`, with faster gradients on a CPU.

    Use it as `nn.Conv(conv_general_dilated=convolution)`. Values, and derivatives of
    every order and in every mode, are those of `lax` up to rounding. Only the form of
    the computation differs, and only on a CPU, for two-dimensional convolutions with
    channels last, no dilation and no groups. All other convolutions are passed to
    `lax`. If the form is a convolution, second derivatives are right but not fast,
    because `lax` writes them.

    Args:
      x: Images, `[n, height, width, channels]`.
      kernel: Kernel, `[height, width, channels, features]`.
      window_strides: Two integers.
      padding: `"SAME"`, `"VALID"` or two pairs of integers.
      dimension_numbers: Order of the axes, as for `lax`.
      precision: Precision, as for `lax`.
      **options: Further arguments of `lax`.

    Returns:
      Maps, `[n, height, width, features]`.
    """
    shapes = x.shape, kernel.shape
    numbers = lax.conv_dimension_numbers(*shapes, dimension_numbers)
    ones = ("lhs_dilation", "rhs_dilation", "feature_group_count", "batch_group_count")
    is_plain = (
        x.ndim == 4
        and numbers == lax.conv_dimension_numbers(*shapes, CHANNELS_LAST)
        and all(name in ones for name in options)
        and all(value in (None, 1, (1, 1)) for value in options.values())
    )
    # Decided when traced, by the process's default device. Where that is not where the
    # program runs, it runs the other spelling of the same derivatives.
    if not is_plain or jax.default_backend() != "cpu":
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides,
            padding,
            dimension_numbers=numbers,
            precision=precision,
            **options,
        )
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padding = tuple((low, high) for low, high in padding)
    is_empty = min(*map_size(x.shape, kernel.shape, strides, padding), x.size) <= 0
    if is_empty or kernel.size == 0 or x.dtype != kernel.dtype:
        return canonical(x, kernel, strides, padding, precision)  # or its error
    # Cut off first: XLA may read outside of an array whose padding is negative.
    x = pad(x, [(min(low, 0), min(high, 0)) for low, high in padding])
    padding = tuple((max(low, 0), max(high, 0)) for low, high in padding)
    if is_product(x.shape, kernel.shape, strides, padding):
        return as_product(x, kernel, strides, padding, precision)
    return channels_last(x, kernel, strides, padding, precision)


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
    fast in loops, and so are its first derivatives. It inverts nothing, and it is not
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
    strides = tuple(window_strides)
    padding = tuple((low, high) for low, high in padding)
    shape = (y.shape[0], *image_size, kernel.shape[2])
    if map_size(shape, kernel.shape, strides, padding) != y.shape[1:3]:
        raise ValueError(
            f"a convolution of images of size {tuple(image_size)} has size"
            f" {map_size(shape, kernel.shape, strides, padding)}, got {y.shape[1:3]}"
        )
    options = strides, padding, precision
    if jax.default_backend() != "cpu":
        return transpose(lambda x: canonical(x, kernel, *options), shape, y)
    if is_product(shape, kernel.shape, strides, padding):
        return images_as_product(y, kernel, *options, shape)
    return images_of(y, kernel, strides, padding, tuple(image_size), precision)


def map_size(
    image_shape: Sizes, kernel_shape: Sizes, strides: Sizes, padding: Pads
) -> tuple[int, ...]:
    """Returns height and width of the maps that a convolution makes of such images."""
    sizes = zip(image_shape[1:3], padding, kernel_shape, strides)
    return tuple((n + sum(pads) - k) // stride + 1 for n, pads, k, stride in sizes)


def transpose(
    linear: Callable[[Array], Array], shape: tuple[int, ...], y: Array
) -> Array:
    """Returns the transpose, at `y`, of a linear function of arrays of that shape."""
    (x,) = jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, y.dtype))(y)
    image: Array = x
    return image


def canonical(
    x: Array,
    kernel: Array,
    strides: Sizes,
    padding: Pads,
    precision: lax.PrecisionLike,
) -> Array:
    """Returns the convolution as `lax` writes it, with channels last."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=CHANNELS_LAST,
        precision=precision,
    )


def pad(x: Array, padding: Pads) -> Array:
    """Pads images with zeros, or cuts pixels off where a padding is negative."""
    config = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def unpad(x: Array, padding: Pads) -> Array:
    """Undoes `pad`."""
    return pad(x, [(-low, -high) for low, high in padding])


# --- as a matrix product


def is_product(
    image_shape: Sizes, kernel_shape: Sizes, strides: Sizes, padding: Pads
) -> bool:
    """Returns whether a matrix product is the faster form."""
    # XLA's convolution takes a hundred times as long where the window is wider than the
    # image, whose map is small then, and is slow where a gradient has few channels.
    size = map_size(image_shape, kernel_shape, strides, padding)
    wide = any(k > n for k, n in zip(kernel_shape, image_shape[1:3]))
    few = image_shape[3] <= FEW_CHANNELS or math.prod(size) <= FEW_PLACES
    elements = math.prod(size) * math.prod(kernel_shape[:3])
    return wide or (few and elements <= MOST_ELEMENTS)


def as_product(
    x: Array,
    kernel: Array,
    strides: Sizes,
    padding: Pads,
    precision: lax.PrecisionLike,
) -> Array:
    """Returns the convolution as one product of all windows and the kernel.

    The windows are laid out in rows. JAX differentiates it to products that are as
    fast, in loops and out of them.
    """
    size = map_size(x.shape, kernel.shape, strides, padding)
    x = pad(x, padding)
    # One axis after the other: what transposes this twice adds up as many arrays as a
    # window has rows and columns, and not as many as it has places.
    for axis in (2, 1):
        taps, out, stride = kernel.shape[axis - 1], size[axis - 1], strides[axis - 1]
        ends = [tap + (out - 1) * stride + 1 for tap in range(taps)]
        x = jnp.concatenate(
            [
                lax.slice_in_dim(x, tap, end, stride, axis)
                for tap, end in enumerate(ends)
            ],
            axis=-1,
        )
    kernel = kernel.reshape(-1, kernel.shape[3])
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())), precision)


def images_as_product(
    y: Array,
    kernel: Array,
    strides: Sizes,
    padding: Pads,
    precision: lax.PrecisionLike,
    shape: Sizes,
) -> Array:
    """Returns the transpose of `as_product`, in a form whose own transpose is that."""
    kernel_shape = kernel.shape
    kernel = kernel.reshape(-1, kernel_shape[3])
    x = lax.dot_general(y, kernel, (((3,), (1,)), ((), ())), precision)
    zero = jnp.zeros((), x.dtype)
    for axis in (1, 2):
        taps, stride = kernel_shape[axis - 1], strides[axis - 1]
        length = shape[axis] + sum(padding[axis - 1])
        span = (x.shape[axis] - 1) * stride + 1
        parts = lax.split(x, [x.shape[3] // taps] * taps, axis=3)
        places = [[(0, 0, 0)] * 4 for _ in range(taps)]
        for tap, config in enumerate(places):
            config[axis] = (tap, length - span - tap, stride - 1)
        padded = [lax.pad(part, zero, config) for part, config in zip(parts, places)]
        x = jnp.asarray(sum(padded))
    return unpad(x, padding)


# --- as convolutions of the kind that is fast


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def channels_last(
    x: Array,
    kernel: Array,
    strides: Sizes,
    padding: Pads,
    precision: lax.PrecisionLike,
) -> Array:
    """Returns the convolution, with tangents in the order of axes that is fast."""
    return canonical(x, kernel, strides, padding, precision)


# The tangents are written as the convolutions whose transposes, which reverse mode runs
# in their place, are in the order that is fast. A `custom_vjp` would do the same, but
# could not be differentiated forwards, and under `grad(vmap(...))` would make and then
# add up a gradient of the kernel for every example.
@functools.partial(channels_last.defjvp, symbolic_zeros=True)
def tangents(
    strides: Sizes,
    padding: Pads,
    precision: lax.PrecisionLike,
    primals: tuple[Array, Array],
    tangents: tuple[Array | SymbolicZero, Array | SymbolicZero],
) -> tuple[Array, Array]:
    """Returns the convolution and its tangent."""
    x, kernel = primals
    x_dot, kernel_dot = tangents
    y = channels_last(x, kernel, strides, padding, precision)
    size, lows = y.shape[1:3], [low for low, _ in padding]
    y_dot = jnp.zeros_like(y)
    if not isinstance(x_dot, SymbolicZero):
        y_dot += tangent_in_x(x_dot, kernel, strides, lows, precision, size)
    if not isinstance(kernel_dot, SymbolicZero):
        y_dot += tangent_in_kernel(x, kernel_dot, strides, lows, precision, size)
    return y, y_dot


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def images_of(
    y: Array,
    kernel: Array,
    strides: Sizes,
    padding: Pads,
    image_size: Sizes,
    precision: lax.PrecisionLike,
) -> Array:
    """Returns the transposed convolution as the transpose of `tangent_in_x`."""
    lows = [low for low, _ in padding]

    def forward(x: Array) -> Array:
        return tangent_in_x(x, kernel, strides, lows, precision, y.shape[1:3])

    return transpose(forward, (y.shape[0], *image_size, kernel.shape[2]), y)


@functools.partial(images_of.defjvp, symbolic_zeros=True)
def tangents_of_images(
    strides: Sizes,
    padding: Pads,
    image_size: Sizes,
    precision: lax.PrecisionLike,
    primals: tuple[Array, Array],
    tangents: tuple[Array | SymbolicZero, Array | SymbolicZero],
) -> tuple[Array, Array]:
    """Returns the transposed convolution and its tangent."""
    y, kernel = primals
    y_dot, kernel_dot = tangents
    x = images_of(y, kernel, strides, padding, image_size, precision)
    size = [length + sum(pads) for length, pads in zip(image_size, padding)]
    x_dot = jnp.zeros((x.shape[0], *size, x.shape[3]), x.dtype)
    if not isinstance(y_dot, SymbolicZero):
        x_dot += tangent_in_map(y_dot, kernel, strides, precision, size)
    if not isinstance(kernel_dot, SymbolicZero):
        x_dot += tangent_in_kernel_of_map(y, kernel_dot, strides, precision, size)
    return x, unpad(x_dot, padding)


def tangent_in_map(
    y: Array, kernel: Array, strides: Sizes, precision: lax.PrecisionLike, size: Sizes
) -> Array:
    """Returns the transposed convolution in a form whose transpose is the convolution.

    It is a convolution of `y`, with zeros between its pixels, to padded images of a
    size.
    """
    pads = [
        (k - 1, length - 1 - (out - 1) * stride)
        for length, k, stride, out in zip(size, kernel.shape, strides, y.shape[1:3])
    ]
    return lax.conv_general_dilated(
        y,
        jnp.flip(kernel, (0, 1)),
        (1, 1),
        pads,
        lhs_dilation=strides,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
        precision=precision,
    )


def tangent_in_kernel_of_map(
    y: Array, kernel: Array, strides: Sizes, precision: lax.PrecisionLike, size: Sizes
) -> Array:
    """Returns the same in a form whose transpose in the kernel has fast axes.

    That transpose convolves images `[channels, height, width, n]` with a kernel
    `[height, width, n, features]`, which is `y`.
    """
    pads = [
        ((out - 1) * stride, length - k)
        for length, k, stride, out in zip(size, kernel.shape, strides, y.shape[1:3])
    ]
    x = lax.conv_general_dilated(
        kernel.transpose(2, 0, 1, 3),
        jnp.flip(y, (1, 2)).transpose(1, 2, 0, 3),
        (1, 1),
        pads,
        rhs_dilation=strides,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
        precision=precision,
    )
    return x.transpose(3, 1, 2, 0)


def tangent_in_x(
    x: Array,
    kernel: Array,
    strides: Sizes,
    lows: Sizes,
    precision: lax.PrecisionLike,
    out_size: Sizes,
) -> Array:
    """Returns the convolution as one of stride 1 of blocks of `strides` pixels.

    Its transpose is one convolution of stride 1 from features to blocks, and a
    rearrangement of blocks to pixels. It has no zeros between the rows, unlike the
    usual transpose of a strided convolution. The kernel's features are at the axis that
    a convolution's transpose takes for its input channels.
    """
    num, *size, channels = x.shape
    *window, _, features = kernel.shape
    rows, columns = strides
    taps = [-(-k // stride) for k, stride in zip(window, strides)]
    # No fewer places than taps: XLA is slow, here or in the transpose, where the window
    # is wider than the image. Those too many are cut off at the end.
    places = [max(out, tap) for out, tap in zip(out_size, taps)]
    pads, pixels, blocks = [], [], []
    for length, low, stride, tap, out in zip(size, lows, strides, taps, places):
        # Whole blocks outside of the image are left to the convolution, as many as it
        # can take: neither it nor its transpose may have a negative padding, with which
        # XLA's fast path reads beyond its arrays. What remains is padded or cut here.
        needed = out + tap - 1
        before = max(0, min(low // stride, tap - 1))
        after = max(0, min(needed - -(-(low + length) // stride), tap - 1))
        before = min(before, needed - tap)  # no fewer blocks than taps, either
        after = min(after, needed - tap - before)
        inside = needed - before - after
        start = low - before * stride
        pads.append((before, after))
        pixels.append((start, inside * stride - start - length, 0))
        blocks.append(inside)

    def gather(array: Array, num_blocks: Sizes) -> Array:
        """Rearranges `[n, rows, columns, last]` to blocks.

        The result is `[n, *num_blocks, row, column, last]`.
        """
        down, across = num_blocks
        array = array.reshape(len(array), down, rows, across, columns, array.shape[-1])
        return array.transpose(0, 1, 3, 2, 4, 5)

    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pixels, (0, 0, 0)))
    x = gather(x, blocks).reshape(num, *blocks, rows * columns * channels)
    fill = [(0, tap * stride - k) for tap, stride, k in zip(taps, strides, window)]
    kernel = jnp.pad(kernel, (*fill, (0, 0), (0, 0)))
    kernel = kernel.reshape(1, *kernel.shape[:2], channels * features)
    kernel = gather(kernel, taps).reshape(*taps, rows * columns * channels, features)
    y = lax.conv_general_dilated(
        x,
        kernel.swapaxes(2, 3),
        (1, 1),
        pads,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
        precision=precision,
    )
    return y[:, : out_size[0], : out_size[1]]


def tangent_in_kernel(
    x: Array,
    kernel: Array,
    strides: Sizes,
    lows: Sizes,
    precision: lax.PrecisionLike,
    out_size: Sizes,
) -> Array:
    """Returns the convolution, in a form whose transpose has canonical axes.

    That transpose convolves images `[channels, height, width, n]` with a kernel
    `[height, width, n, features]`, which is the cotangent.
    """
    pixels = [
        (low, (out - 1) * stride + k - low - length, 0)
        for low, out, stride, k, length in zip(
            lows, out_size, strides, kernel.shape, x.shape[1:]
        )
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pixels, (0, 0, 0)))
    y = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        kernel.transpose(2, 0, 1, 3),
        strides,
        "VALID",
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        precision=precision,
    )
    return y.transpose(2, 0, 1, 3)
