"""Forms in which a convolution, its transpose and their tangents are computed.

`ebmjax.networks.convolutions` chooses among them and says why they exist.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ebmjax.types import Array

__all__: list[str] = []

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")

Sizes = Sequence[int]
Pads = Sequence[tuple[int, int]]
Tangents = tuple[Array | SymbolicZero, Array | SymbolicZero]


class Options(NamedTuple):
    """Options of a two-dimensional convolution.

    Attributes:
      strides: Strides in pixels, of rows and of columns.
      padding: Pixels that are added before and after the rows, and the columns.
      precision: Precision, as for `lax`.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    precision: lax.PrecisionLike


def map_size(
    image_shape: Sizes, kernel_shape: Sizes, options: Options
) -> tuple[int, ...]:
    """Returns height and width of the maps that a convolution makes of such images."""
    sizes = zip(image_shape[1:3], options.padding, kernel_shape, options.strides)
    return tuple((n + sum(pads) - k) // stride + 1 for n, pads, k, stride in sizes)


def transpose(
    linear: Callable[[Array], Array], shape: tuple[int, ...], y: Array
) -> Array:
    """Returns the transpose, at `y`, of a linear function of arrays of that shape."""
    (x,) = jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, y.dtype))(y)
    image: Array = x
    return image


def canonical(x: Array, kernel: Array, options: Options) -> Array:
    """Returns the convolution as `lax` writes it, with channels last."""
    return lax.conv_general_dilated(
        x,
        kernel,
        options.strides,
        options.padding,
        dimension_numbers=CHANNELS_LAST,
        precision=options.precision,
    )


def pad(x: Array, padding: Pads) -> Array:
    """Pads images with zeros, or cuts pixels off where a padding is negative."""
    config = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def unpad(x: Array, padding: Pads) -> Array:
    """Undoes `pad`."""
    return pad(x, [(-low, -high) for low, high in padding])


# --- as a matrix product


def as_product(x: Array, kernel: Array, options: Options) -> Array:
    """Returns the convolution as one product of all windows and the kernel.

    The windows are laid out in rows. JAX differentiates it to products that are as
    fast, in loops and out of them.
    """
    strides, padding, precision = options
    size = map_size(x.shape, kernel.shape, options)
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


def images_as_product(y: Array, kernel: Array, options: Options, shape: Sizes) -> Array:
    """Returns the transpose of `as_product`, in a form whose own transpose is that."""
    strides, padding, precision = options
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def channels_last(x: Array, kernel: Array, options: Options) -> Array:
    """Returns the convolution, with tangents in the order of axes that is fast."""
    return canonical(x, kernel, options)


# The tangents are written as the convolutions whose transposes, which reverse mode runs
# in their place, are in the order that is fast. A `custom_vjp` would do the same, but
# could not be differentiated forwards, and under `grad(vmap(...))` would make and then
# add up a gradient of the kernel for every example.
@functools.partial(channels_last.defjvp, symbolic_zeros=True)
def tangents(
    options: Options, primals: tuple[Array, Array], tangents: Tangents
) -> tuple[Array, Array]:
    """Returns the convolution and its tangent."""
    x, kernel = primals
    x_dot, kernel_dot = tangents
    y = channels_last(x, kernel, options)
    size = y.shape[1:3]
    y_dot = jnp.zeros_like(y)
    if not isinstance(x_dot, SymbolicZero):
        y_dot += tangent_in_x(x_dot, kernel, options, size)
    if not isinstance(kernel_dot, SymbolicZero):
        y_dot += tangent_in_kernel(x, kernel_dot, options, size)
    return y, y_dot


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def images_of(
    y: Array, kernel: Array, options: Options, image_size: tuple[int, ...]
) -> Array:
    """Returns the transposed convolution as the transpose of `tangent_in_x`."""

    def forward(x: Array) -> Array:
        return tangent_in_x(x, kernel, options, y.shape[1:3])

    return transpose(forward, (y.shape[0], *image_size, kernel.shape[2]), y)


@functools.partial(images_of.defjvp, symbolic_zeros=True)
def tangents_of_images(
    options: Options,
    image_size: tuple[int, ...],
    primals: tuple[Array, Array],
    tangents: Tangents,
) -> tuple[Array, Array]:
    """Returns the transposed convolution and its tangent."""
    y, kernel = primals
    y_dot, kernel_dot = tangents
    x = images_of(y, kernel, options, image_size)
    size = [length + sum(pads) for length, pads in zip(image_size, options.padding)]
    x_dot = jnp.zeros((x.shape[0], *size, x.shape[3]), x.dtype)
    if not isinstance(y_dot, SymbolicZero):
        x_dot += tangent_in_map(y_dot, kernel, options, size)
    if not isinstance(kernel_dot, SymbolicZero):
        x_dot += tangent_in_kernel_of_map(y, kernel_dot, options, size)
    return x, unpad(x_dot, options.padding)


def tangent_in_map(y: Array, kernel: Array, options: Options, size: Sizes) -> Array:
    """Returns the transposed convolution in a form whose transpose is the convolution.

    It is a convolution of `y`, with zeros between its pixels, to padded images of a
    size.
    """
    pads = [
        (k - 1, length - 1 - (out - 1) * stride)
        for length, k, stride, out in zip(
            size, kernel.shape, options.strides, y.shape[1:3]
        )
    ]
    return lax.conv_general_dilated(
        y,
        jnp.flip(kernel, (0, 1)),
        (1, 1),
        pads,
        lhs_dilation=options.strides,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
        precision=options.precision,
    )


def tangent_in_kernel_of_map(
    y: Array, kernel: Array, options: Options, size: Sizes
) -> Array:
    """Returns the same in a form whose transpose in the kernel has fast axes.

    That transpose convolves images `[channels, height, width, n]` with a kernel
    `[height, width, n, features]`, which is `y`.
    """
    pads = [
        ((out - 1) * stride, length - k)
        for length, k, stride, out in zip(
            size, kernel.shape, options.strides, y.shape[1:3]
        )
    ]
    x = lax.conv_general_dilated(
        kernel.transpose(2, 0, 1, 3),
        jnp.flip(y, (1, 2)).transpose(1, 2, 0, 3),
        (1, 1),
        pads,
        rhs_dilation=options.strides,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
        precision=options.precision,
    )
    return x.transpose(3, 1, 2, 0)


def tangent_in_x(x: Array, kernel: Array, options: Options, out_size: Sizes) -> Array:
    """Returns the convolution as one of stride 1 of blocks of `strides` pixels.

    Its transpose is one convolution of stride 1 from features to blocks, and a
    rearrangement of blocks to pixels. It has no zeros between the rows, unlike the
    usual transpose of a strided convolution. The kernel's features are at the axis that
    a convolution's transpose takes for its input channels.
    """
    num, *size, channels = x.shape
    *window, _, features = kernel.shape
    rows, columns = options.strides
    taps = [-(-k // stride) for k, stride in zip(window, options.strides)]
    # No fewer places than taps: XLA is slow, here or in the transpose, where the window
    # is wider than the image. Those too many are cut off at the end.
    places = [max(out, tap) for out, tap in zip(out_size, taps)]
    pads, pixels, blocks = [], [], []
    for length, (low, _), stride, tap, out in zip(
        size, options.padding, options.strides, taps, places
    ):
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
    fill = [
        (0, tap * stride - k) for tap, stride, k in zip(taps, options.strides, window)
    ]
    kernel = jnp.pad(kernel, (*fill, (0, 0), (0, 0)))
    kernel = kernel.reshape(1, *kernel.shape[:2], channels * features)
    kernel = gather(kernel, taps).reshape(*taps, rows * columns * channels, features)
    y = lax.conv_general_dilated(
        x,
        kernel.swapaxes(2, 3),
        (1, 1),
        pads,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
        precision=options.precision,
    )
    return y[:, : out_size[0], : out_size[1]]


def tangent_in_kernel(
    x: Array, kernel: Array, options: Options, out_size: Sizes
) -> Array:
    """Returns the convolution, in a form whose transpose has canonical axes.

    That transpose convolves images `[channels, height, width, n]` with a kernel
    `[height, width, n, features]`, which is the cotangent.
    """
    pixels = [
        (low, (out - 1) * stride + k - low - length, 0)
        for (low, _), out, stride, k, length in zip(
            options.padding, out_size, options.strides, kernel.shape, x.shape[1:]
        )
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pixels, (0, 0, 0)))
    y = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        kernel.transpose(2, 0, 1, 3),
        options.strides,
        "VALID",
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        precision=options.precision,
    )
    return y.transpose(2, 0, 1, 3)
