"""Standard normal numbers for samplers, drawn in half of the usual time on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ebmjax.types import Array, Key

__all__ = ["draw_normal"]

LOG = np.array(
    [0.333348781, -0.249837682, 0.199045792, -0.171088994, 0.161729485, -0.104698896],
    np.float32,
)
"""Coefficients of `(log(1 + m) - m + m^2 / 2) / m^3` on [sqrt(1/2) - 1, sqrt(2) - 1],
with an error of at most 1e-7."""

SHIFT, SCALE, CENTER = np.array([3.0, 0.718239844, -2.24402785], np.float32)
QUANTILE = np.array(
    [
        3.44330597,
        2.33843303,
        -0.124870822,
        -0.030357264,
        0.136647806,
        -0.164283976,
        0.0641485304,
        0.0804154575,
        -0.0777031183,
        -0.0133999456,
        0.0225949828,
    ],
    np.float32,
)
"""Coefficients of `sqrt(2) erfinv(u) / u` as a polynomial in
`SCALE sqrt(SHIFT - log(1 - u^2)) + CENTER`, through Chebyshev's nodes. Its relative
error is at most 2.5e-6 wherever 1 - u^2 is a float32."""


def draw_normal(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Draws standard normal numbers; equals `jax.random.normal` up to rounding.

    It is faster in float32. The random bits are those of `jax.random.normal`, and so
    are the numbers, except for the last digits. `jax.random.normal` spends most of its
    time on two polynomials and an accurate logarithm for the inverse of the error
    function. Here one polynomial serves the middle and the tails, and the logarithm has
    only the accuracy that is needed. The numbers are within 4e-6, relative to their
    size, of exact quantiles, which is nearer than those of `jax.lax.erf_inv`.
    """
    if dtype != jnp.float32:
        return jax.random.normal(key, shape, dtype)
    least = np.nextafter(np.float32(-1.0), np.float32(0.0))
    return normal_quantile(jax.random.uniform(key, shape, dtype, least, 1.0))


def normal_quantile(u: Array) -> Array:
    """Returns the standard normal quantile of `(1 + u) / 2`, for u in (-1, 1)."""
    # 1 - u^2 as 2^exponent (1 + m), with 1 + m in [sqrt(1/2), sqrt(2)).
    bits = jax.lax.bitcast_convert_type((1 - u) * (1 + u), jnp.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> 23
    m = jax.lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - 1
    squared = m * m
    log = m - 0.5 * squared + m * squared * _polynomial(LOG, m)
    log = log + exponent.astype(jnp.float32) * np.float32(np.log(2.0))
    return u * _polynomial(QUANTILE, jnp.sqrt(SHIFT - log) * SCALE + CENTER)


def _polynomial(coefficients: np.ndarray, x: Array) -> Array:
    total: Array = coefficients[-1] * x + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total
