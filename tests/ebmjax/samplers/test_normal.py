"""Normal numbers of samplers against exact quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from ebmjax.samplers.normal import draw_normal, normal_quantile


@pytest.mark.quick
def test_quantiles_are_exact_to_a_few_units_of_the_last_place():
    """Of the 2^23 numbers that a uniform draw can be, every 64th, and all of those
    in the tails. 4e-6 is 2.5e-6 of the fit and rounding in a dozen of operations."""
    bits = np.arange(2**23, dtype=np.uint32)
    bits = np.concatenate([bits[:5_000], bits[5_000:-5_000:64], bits[-5_000:]])
    unit = (bits | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    u = unit * np.float32(2) - np.float32(1)
    u[0] = np.nextafter(np.float32(-1), np.float32(0))
    found = np.asarray(jax.jit(normal_quantile)(u), float)
    # Of 1 - |u|, which is exact in float64, where u is near to one.
    below = np.minimum(1 - u.astype(float), 1 + u.astype(float)) / 2
    exact = -np.sign(u) * scipy.special.ndtri(below)
    np.testing.assert_allclose(found, exact, rtol=4e-6, atol=1e-12)
    assert found[0] < -5.1 and found[-1] > 5.0


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_numbers_are_those_of_jax_to_rounding(impl):
    key = jax.random.key(3, impl=impl)
    found = draw_normal(key, (300, 1000), jnp.float32)
    usual = jax.random.normal(key, (300, 1000))
    np.testing.assert_allclose(found, usual, rtol=2e-5, atol=1e-6)
    assert scipy.stats.kstest(np.asarray(found).ravel(), "norm").pvalue > 1e-4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_other_types_are_left_to_jax(dtype):
    with jax.enable_x64(True):
        key = jax.random.key(0)
        found = draw_normal(key, (100,), dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, jax.random.normal(key, (100,), dtype))
