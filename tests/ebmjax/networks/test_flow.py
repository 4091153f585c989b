"""Flows: a map and its inverse, and the density that their Jacobian gives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import metrics, networks

FLOWS = [networks.real_nvp, networks.masked_autoregressive]


def bent(make, dim, num_layers=4):
    """A flow whose every parameter is moved from where it begins."""
    flow = make((dim,), num_layers=num_layers, widths=(8, 8))
    shapes = jax.eval_shape(flow.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape)), shapes)
    return flow, params


@pytest.mark.parametrize("make", FLOWS)
@pytest.mark.parametrize("dim", [2, 5])
def test_the_inverse_goes_back_and_both_have_the_jacobian_s_determinant(dim, make):
    with jax.enable_x64(True):
        flow, params = bent(make, dim)
        z = jax.random.normal(jax.random.key(2), (dim,))
        x, log_det = jax.jit(flow.forward)(params, z)
        back, log_det_back = jax.jit(flow.inverse)(params, x)
        np.testing.assert_allclose(back, z, atol=1e-10)
        assert float(jnp.abs(x - z).min()) > 1e-3  # no element is left where it was
        jacobian = jax.jit(jax.jacobian(lambda z: flow.forward(params, z)[0]))(z)
        _, expected = jnp.linalg.slogdet(jacobian)
        np.testing.assert_allclose(log_det, expected, atol=1e-10)
        np.testing.assert_allclose(log_det_back, -expected, atol=1e-10)


@pytest.mark.parametrize("make", FLOWS)
def test_its_density_integrates_to_one_and_is_that_of_its_draws(make):
    flow, params = bent(make, 2)
    log_total = metrics.quadrature(
        lambda x: -flow.log_prob(params, x), [(-15, 15), (-15, 15)], 500
    )
    np.testing.assert_allclose(log_total, 0.0, atol=1e-3)
    # -log p of a draw is -log p of its latent plus the forward determinant, exactly.
    key = jax.random.key(3)
    z = jax.random.normal(key, (2,))
    expected = -0.5 * jnp.sum(z**2) - math.log(2 * math.pi)
    found = jax.jit(lambda key: flow.log_prob(params, flow.sample(params, key)))(key)
    log_det = jax.jit(flow.forward)(params, z)[1]
    np.testing.assert_allclose(found, expected - log_det, rtol=1e-5)


@pytest.mark.parametrize("make", FLOWS)
def test_as_it_begins_it_is_the_normal_law_of_its_affine_map(make):
    flow = make((3,), num_layers=3, widths=(8,))
    lower = np.array([[2.0, 0, 0], [0.5, 1.0, 0], [-1.0, 0.3, 0.5]])
    raw = lower.copy()
    np.fill_diagonal(raw, np.log(np.diag(lower)))
    mean = np.array([1.0, -2.0, 0.5])
    params = flow.init(jax.random.key(0)) | {"mean": mean, "lower": jnp.asarray(raw)}
    x = jnp.array([0.3, -1.0, 2.0])
    solved = np.linalg.solve(lower, np.asarray(x) - mean)
    expected = -0.5 * solved @ solved - 1.5 * math.log(2 * math.pi)
    expected -= math.log(2.0 * 1.0 * 0.5)
    found = jax.jit(flow.log_prob)(params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, message",
    [
        ({"event_shape": (1,)}, r"event_shape must be \(d,\) with d >= 2, got \(1,\)"),
        ({"event_shape": (2, 2)}, r"event_shape must be"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"widths": (4, 0)}, r"widths must be positive, got \(4, 0\)"),
        ({"scale_bound": 0.0}, "scale_bound must be positive, got 0.0"),
    ],
)
def test_bad_options_are_named(options, message):
    usual = {"event_shape": (2,), "num_layers": 2, "widths": (4,)}
    options = usual | options
    with pytest.raises(ValueError, match=message):
        networks.real_nvp(options.pop("event_shape"), **options)


@pytest.mark.parametrize("make", FLOWS)
def test_a_batch_is_refused(make):
    flow, params = bent(make, 2)
    with pytest.raises(ValueError, match=r"one example of shape \(2,\), got \(3, 2\)"):
        flow.log_prob(params, jnp.zeros((3, 2)))


def test_a_masked_layer_s_element_knows_only_those_before_it():
    """With one layer the density's map has a triangular Jacobian, in the order of the
    elements; a dense one would not."""
    flow, params = bent(networks.masked_autoregressive, 5, num_layers=1)
    params |= {"lower": jnp.zeros((5, 5))}
    x = jax.random.normal(jax.random.key(0), (5,))
    jacobian = np.asarray(jax.jacobian(lambda x: flow.inverse(params, x)[0])(x))[::-1]
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0)
    below = jacobian[np.tril_indices(5, -1)]
    assert np.all(np.abs(below) > 1e-6)
