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

__all__ = ["convolution"]

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
    channels last, no dilation and no groups. All others are handed to `lax`. Higher
    derivatives are right, but those in the kernel are as slow in a loop as `lax`'s.

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


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def channels_last(x, kernel, strides, padding, precision):
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
    y_dot = jnp.zeros_like(y)
    if not isinstance(x_dot, SymbolicZero):
        y_dot += tangent_in_x(x_dot, kernel, strides, padding, precision, y.shape)
    if not isinstance(kernel_dot, SymbolicZero):
        y_dot += tangent_in_kernel(x, kernel_dot, strides, padding, precision)
    return y, y_dot


def tangent_in_x(x, kernel, strides, padding, precision, out_shape):
    """The convolution, as one of stride 1 of blocks of `strides` pixels.

    Its transpose is one convolution of stride 1 from features to blocks, and a
    rearrangement of blocks to pixels: no zeros between the rows, as there are in the
    usual transpose of a strided convolution.
    """
    num, *sizes, channels = x.shape
    *kernel_sizes, _, features = kernel.shape
    rows, columns = strides
    taps = [-(-size // s) for size, s in zip(kernel_sizes, strides)]

    # The first block holds the row `padding mod stride` above the image, and so on.
    before = [low % s for (low, _), s in zip(padding, strides)]
    blocks = [-(-(b + size) // s) for b, size, s in zip(before, sizes, strides)]
    after = [n * s - b - size for n, s, b, size in zip(blocks, strides, before, sizes)]
    lows = [low // s for (low, _), s in zip(padding, strides)]
    highs = [
        out - n - low + tap - 1
        for out, n, low, tap in zip(out_shape[1:3], blocks, lows, taps)
    ]

    def gather(array, num_blocks):
        """`[n, rows, columns, ...]` to `[n, block, block, row, column, ...]`."""
        down, across = num_blocks
        lead, *_, last = array.shape
        array = array.reshape(lead, down, rows, across, columns, last)
        return array.transpose(0, 1, 3, 2, 4, 5)

    x = jnp.pad(x, ((0, 0), *zip(before, after), (0, 0)))
    x = gather(x, blocks).reshape(num, *blocks, rows * columns * channels)
    fill = [tap * s - size for tap, s, size in zip(taps, strides, kernel_sizes)]
    kernel = jnp.pad(kernel, (*((0, f) for f in fill), (0, 0), (0, 0)))
    kernel = gather(
        kernel.reshape(1, *kernel.shape[:2], channels * features), taps
    ).reshape(*taps, rows * columns * channels, features)
    # The barrier keeps the compiler from folding the reversal into the transpose.
    kernel = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        tuple(zip(lows, highs)),
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
        precision=precision,
    )


def tangent_in_kernel(x, kernel, strides, padding, precision):
    """The convolution, with axes in the order that makes its transpose canonical.

    That transpose convolves images `[channels, height, width, n]` with a kernel
    `[height, width, n, features]`, which is the cotangent.
    """
    y = lax.conv_general_dilated(
        lax.optimization_barrier(x.transpose(3, 1, 2, 0)),
        kernel.transpose(2, 0, 1, 3),
        strides,
        padding,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        precision=precision,
    )
    return lax.optimization_barrier(y).transpose(2, 0, 1, 3)
