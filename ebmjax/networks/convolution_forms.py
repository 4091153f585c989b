"""Forms in which a convolution and its two transposes are computed on a CPU.

A convolution is linear in its images and in its kernel. Its transpose in the images
takes maps to images, and its transpose in the kernel takes images and maps to a kernel.
`ebmjax.networks.convolutions` says why the forms exist.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ebmjax.types import Array

__all__: list[str] = []

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")

FEW_CHANNELS, FEW_PLACES, MOST_ELEMENTS = 16, 16, 2**20
"""A convolution of at most `FEW_CHANNELS` channels, or to a map of at most `FEW_PLACES`
pixels, is a matrix product, unless the windows of an example have more than
`MOST_ELEMENTS` elements together."""

Sizes = Sequence[int]
Pads = Sequence[tuple[int, int]]


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
    # Only the type of this array is used. It varies over the axes of `jax.shard_map` as
    # `y` does: of one that did not, the transpose would be summed over devices.
    like = lax.full_like(y, 0, shape=shape)
    (x,) = jax.linear_transpose(linear, like)(y)
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
    if not any(map(any, padding)):
        return x
    config = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def unpad(x: Array, padding: Pads) -> Array:
    """Undoes `pad`."""
    return pad(x, [(-low, -high) for low, high in padding])


# --- as a matrix product


def as_product(x: Array, kernel: Array, options: Options) -> Array:
    """Returns the convolution as one product of all windows and the kernel.

    The windows are laid out in rows.
    """
    strides, padding, precision = options
    size = map_size(x.shape, kernel.shape, options)
    x = pad(x, padding)
    # One axis after the other, which copies as many arrays as a window has rows and
    # columns, and not as many as it has places.
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
    """Returns the transpose of `as_product` in the images, as one product."""
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


def as_blocks(x: Array, kernel: Array, options: Options) -> Array:
    """Returns the convolution as one of stride 1 of blocks of `strides` pixels.

    Its transpose is one convolution of stride 1 from features to blocks, and a
    rearrangement of blocks to pixels. It has no zeros between the rows, unlike the
    usual transpose of a strided convolution. The kernel's features are at the axis that
    a convolution's transpose takes for its input channels.
    """
    num, *size, channels = x.shape
    *window, _, features = kernel.shape
    out_size = map_size(x.shape, kernel.shape, options)
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


def kernel_of(x: Array, y: Array, options: Options, window: Sizes) -> Array:
    """Returns the transpose in the kernel, as a convolution with canonical axes.

    It convolves images `[channels, height, width, n]` with a kernel
    `[height, width, n, features]`, which is `y`.
    """
    pads = [
        (low, (out - 1) * stride + k - low - length)
        for (low, _), out, stride, k, length in zip(
            options.padding, y.shape[1:3], options.strides, window, x.shape[1:3]
        )
    ]
    # Rows that no window reaches are cut off. Zeros are left to the convolution: an
    # image that is padded while it is transposed is copied twice as slowly.
    x = pad(x, [(0, min(high, 0)) for _, high in pads])
    kernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        y.transpose(1, 2, 0, 3),
        (1, 1),
        [(low, max(high, 0)) for low, high in pads],
        rhs_dilation=options.strides,
        dimension_numbers=CHANNELS_LAST,
        precision=options.precision,
    )
    return kernel.transpose(1, 2, 0, 3)


# --- the form that is chosen


def is_product(image_shape: Sizes, kernel_shape: Sizes, options: Options) -> bool:
    """Returns whether a matrix product is the faster form of maps and of images."""
    # XLA's convolution takes a hundred times as long where the window is wider than the
    # image, whose map is small then, and is slow where a gradient has few channels.
    size = map_size(image_shape, kernel_shape, options)
    wide = any(k > n for k, n in zip(kernel_shape, image_shape[1:3]))
    few = image_shape[3] <= FEW_CHANNELS or math.prod(size) <= FEW_PLACES
    elements = math.prod(size) * math.prod(kernel_shape[:3])
    return wide or (few and elements <= MOST_ELEMENTS)


def fast_maps(x: Array, kernel: Array, options: Options) -> Array:
    """Returns the convolution in the form that is fast."""
    form = as_product if is_product(x.shape, kernel.shape, options) else canonical
    return form(x, kernel, options)


def fast_images(
    y: Array, kernel: Array, options: Options, image_size: tuple[int, ...]
) -> Array:
    """Returns the transpose in the images in the form that is fast."""
    shape = (y.shape[0], *image_size, kernel.shape[2])
    if is_product(shape, kernel.shape, options):
        return images_as_product(y, kernel, options, shape)
    return transpose(lambda x: as_blocks(x, kernel, options), shape, y)


def fast_kernel(x: Array, y: Array, options: Options, window: tuple[int, ...]) -> Array:
    """Returns the transpose in the kernel in the form that is fast."""
    shape = (*window, x.shape[3], y.shape[3])
    # A map of one pixel makes a dense layer of the convolution.
    wide = any(k > n for k, n in zip(window, x.shape[1:3]))
    if wide or math.prod(y.shape[1:3]) == 1:
        return transpose(lambda kernel: as_product(x, kernel, options), shape, y)
    return kernel_of(x, y, options, window)
