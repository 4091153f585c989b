"""Convolution whose gradients are fast in a loop on a CPU.

A sampler differentiates its energy in the input inside a `lax.scan`; a scan over
updates differentiates it in the kernel. XLA's CPU compiler has a fast path for
convolutions whose axes lie in the usual order and whose kernel is not reversed. The
convolutions that JAX writes for gradients are neither. Outside of loops the compiler
rewrites them; in a loop it does not, and they take two to a hundred times as long.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ebmjax.types import Array

__all__ = ["convolution", "transposed_convolution"]

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def convolution(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    dimension_numbers,
    precision=None,
    **options,
) -> Array:
    """`jax.lax.conv_general_dilated`, with faster gradients on a CPU.

    For `nn.Conv(conv_general_dilated=convolution)`. Values, and derivatives of every
    order and in every mode, are those of `lax`; only the spelling of the first
    derivatives differs, and only on a CPU, for two-dimensional convolutions with
    channels last, no dilation and no groups. All others are handed to `lax`. Second
    derivatives are right but not fast: `lax` writes them, of what is written here.

    Args:
      x: `[n, height, width, channels]`.
      kernel: `[height, width, channels, features]`.
      window_strides: Two integers.
      padding: `"SAME"`, `"VALID"` or two pairs of integers.
      dimension_numbers: As for `lax`.
      precision: As for `lax`.
      **options: Further arguments of `lax`.

    Returns:
      `[n, height, width, features]`.
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
    return channels_last(x, kernel, strides, padding, precision)


def transposed_convolution(
    y: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    image_size: Sequence[int],
    *,
    precision=None,
) -> Array:
    """The transpose of `convolution` as a linear function of its image.

    What PyTorch calls a transposed convolution, with its kernel and padding:
    `image_size` says what there is said by `output_padding`. On a CPU it is one
    convolution of stride 1 and a rearrangement of its channels to pixels, which is fast
    in loops, as are its first derivatives. It inverts nothing, and is not
    `jax.lax.conv_transpose`, whose kernel is reversed and has its channels the other
    way round.

    Args:
      y: `[n, height, width, features]`, as the convolution of an image would be.
      kernel: `[height, width, channels, features]`, the convolution's.
      window_strides: The convolution's.
      padding: The convolution's, two pairs of integers.
      image_size: `(height, width)` of the image.
      precision: As for `lax`.

    Returns:
      `[n, *image_size, channels]`.

    Raises:
      ValueError: If the convolution of such an image has not the size of `y`.
    """
    strides = tuple(window_strides)
    padding = tuple((low, high) for low, high in padding)
    sizes = zip(image_size, padding, kernel.shape, strides)
    size = tuple((n + sum(pads) - k) // stride + 1 for n, pads, k, stride in sizes)
    if size != y.shape[1:3]:
        raise ValueError(
            f"a convolution of images of size {tuple(image_size)} has size {size},"
            f" got {y.shape[1:3]}"
        )
    lows = [low for low, _ in padding]

    def forward(x):
        if jax.default_backend() == "cpu":
            return tangent_in_x(x, kernel, strides, lows, precision, size)
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            dimension_numbers=CHANNELS_LAST,
            precision=precision,
        )

    shape = (y.shape[0], *image_size, kernel.shape[2])
    (x,) = jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, y.dtype))(y)
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def channels_last(x, kernel, strides, padding, precision):
    if any(k > n for k, n in zip(kernel.shape, x.shape[1:3])):
        # XLA takes a hundred times as long for a window that is wider than the image.
        # A padded image is not: what the window covers is there.
        config = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
        x, padding = lax.pad(x, jnp.zeros((), x.dtype), config), ((0, 0), (0, 0))
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=CHANNELS_LAST,
        precision=precision,
    )


# The tangents are written as the convolutions whose transposes, which reverse mode runs
# in their place, are in the order that is fast. A `custom_vjp` would do the same, but
# could not be differentiated forwards, and under `grad(vmap(...))` would make and then
# add up a gradient of the kernel for every example.
@functools.partial(channels_last.defjvp, symbolic_zeros=True)
def tangents(strides, padding, precision, primals, tangents):
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


def tangent_in_x(x, kernel, strides, lows, precision, out_size):
    """The convolution, as one of stride 1 of blocks of `strides` pixels.

    Its transpose is one convolution of stride 1 from features to blocks, and a
    rearrangement of blocks to pixels: no zeros between the rows, as there are in the
    usual transpose of a strided convolution. The kernel's features stand where a
    convolution's transpose will take them for its input channels.
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

    def gather(array, num_blocks):
        """`[n, rows, columns, last]` to `[n, *num_blocks, row, column, last]`."""
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


def tangent_in_kernel(x, kernel, strides, lows, precision, out_size):
    """The convolution, with axes in the order that makes its transpose canonical.

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
