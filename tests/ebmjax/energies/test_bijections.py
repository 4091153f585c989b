"""Bijections: their Jacobians by differentiation, and laws with known moments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import energies

LOW, HIGH = np.array([-1.0, 0.0, 2.0]), np.array([1.0, 10.0, 2.5])
BIJECTIONS = {
    "positive": energies.positive(),
    "interval": energies.interval(LOW, HIGH),
    "simplex": energies.simplex(),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", BIJECTIONS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_the_log_determinant_is_that_of_the_jacobian(name, scale):
    """The Jacobian of a simplex is that of its first shares: the last one is 1 minus
    their sum."""
    bijection = BIJECTIONS[name]
    z = scale * jnp.array([0.7, -1.1, 0.4])
    jacobian = jax.jacfwd(lambda z: bijection.forward(z)[:3])(z)
    expected = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(bijection.log_det(z), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_a_bijection_leads_into_the_support_and_back(name):
    bijection, z = BIJECTIONS[name], jnp.array([0.7, -3.1, 1.4])
    x = bijection.forward(z)
    np.testing.assert_allclose(bijection.inverse(x), z, rtol=1e-12)
    if name == "simplex":
        assert x.shape == (4,) and (x > 0).all()
        np.testing.assert_allclose(x.sum(), 1.0, rtol=1e-14)
        np.testing.assert_allclose(bijection.forward(jnp.zeros(3)), 0.25, rtol=1e-14)
    elif name == "interval":
        assert (x > LOW).all() and (x < HIGH).all()
    else:
        np.testing.assert_allclose(x, np.exp(z), rtol=1e-14)


def test_a_batch_of_draws_is_turned_as_each_of_them():
    z = jax.random.normal(jax.random.key(0), (5, 4, 3))
    forward = BIJECTIONS["simplex"].forward
    expected = jax.vmap(jax.vmap(forward))(z)
    np.testing.assert_allclose(forward(z), expected, rtol=1e-13)


def integrals(energy_fn, forward, grids):
    """Mass, means and second moments of `forward(z)` under `exp(-energy_fn(z))`."""
    z = jnp.stack(jnp.meshgrid(*grids, indexing="ij"), -1).reshape(-1, len(grids))
    weights = jnp.exp(-jax.vmap(energy_fn)(z)) * np.prod([g[1] - g[0] for g in grids])
    x = jax.vmap(forward)(z)
    return weights.sum(), weights @ x, weights @ x**2


def test_an_exponential_law_has_its_moments():
    """Rate 2, so mean 1/2 and second moment 1/2, all normalised; by a sum over a grid,
    which is exact to the tails of a smooth function."""
    energy_fn = energies.constrained(
        lambda x: jnp.sum(2 * x - jnp.log(2.0)), energies.positive()
    )
    found = integrals(energy_fn, jnp.exp, [np.linspace(-40, 6, 4_001)])
    for value, expected in zip(found, (1.0, 0.5, 0.5)):
        np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_a_uniform_law_on_an_interval_has_its_moments():
    """On (2, 5): mean 3.5 and second moment 13."""
    bijection = energies.interval(2.0, 5.0)
    energy_fn = energies.constrained(lambda x: jnp.log(3.0), bijection)
    found = integrals(energy_fn, bijection.forward, [np.linspace(-40, 40, 4_001)])
    for value, expected in zip(found, (1.0, 3.5, 13.0)):
        np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_a_dirichlet_law_has_its_moments():
    """With a = (2, 3, 1.5): means a / 6.5, second moments a (a + 1) / (6.5 * 7.5)."""
    a = np.array([2.0, 3.0, 1.5])
    gammaln = jax.scipy.special.gammaln
    log_normaliser = gammaln(a).sum() - gammaln(a.sum())

    def dirichlet(x):
        return log_normaliser - jnp.sum((a - 1) * jnp.log(x))

    bijection = energies.simplex()
    energy_fn = energies.constrained(dirichlet, bijection)
    grids = [np.linspace(-20, 14, 301), np.linspace(-20, 24, 301)]
    mass, mean, square = integrals(energy_fn, bijection.forward, grids)
    np.testing.assert_allclose(mass, 1.0, rtol=1e-7)
    np.testing.assert_allclose(mean, a / 6.5, rtol=1e-7)
    np.testing.assert_allclose(square, a * (a + 1) / (6.5 * 7.5), rtol=1e-7)


def test_a_tree_has_a_bijection_for_each_array_or_none():
    """A normal mean and an exponential scale, which depend on a condition."""
    bijection = energies.joint({"mean": None, "scale": energies.positive()})
    z = {"mean": jnp.array([0.5, 1.0]), "scale": jnp.array(-0.3)}
    x = bijection.forward(z)
    np.testing.assert_array_equal(x["mean"], z["mean"])
    np.testing.assert_allclose(x["scale"], np.exp(-0.3))
    back = bijection.inverse(x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-14), back, z)

    def energy(x, condition):
        return jnp.sum(x["mean"] ** 2) + condition * x["scale"]

    found = energies.constrained(energy, bijection)(z, 2.0)
    np.testing.assert_allclose(found, 1.25 + 2 * np.exp(-0.3) + 0.3, rtol=1e-14)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_a_bijection_keeps_the_type_of_its_argument(name):
    z = jnp.ones(3, jnp.float32)
    bijection = BIJECTIONS[name]
    x = bijection.forward(z)
    found = x, bijection.inverse(x), bijection.log_det(z)
    assert {array.dtype for array in found} == {jnp.dtype(jnp.float32)}


@pytest.mark.quick
@pytest.mark.parametrize("low, high", [(1.0, 1.0), (0.0, np.inf), (np.nan, 1.0)])
def test_bounds_of_no_interval_are_refused(low, high):
    with pytest.raises(ValueError, match="must be finite with low < high, got array"):
        energies.interval(low, high)


def test_a_constrained_energy_must_be_a_scalar():
    energy_fn = energies.constrained(lambda x: x, energies.positive())
    with pytest.raises(ValueError, match="energy_fn must return a scalar"):
        energy_fn(jnp.ones(3))


# --- log densities and potentials --------------------------------------------------


def test_the_energy_of_a_log_density_is_minus_its_value():
    def logdensity(params, x, power=2):
        return -jnp.sum(jnp.abs(x - params) ** power)

    energy = energies.from_logdensity(logdensity)
    np.testing.assert_allclose(energy(1.0, jnp.array([3.0, 0.0]), power=3), 9.0)
    score = energies.score(energy)(1.0, jnp.array([3.0, 0.0]))
    np.testing.assert_allclose(score, [-4.0, 2.0])
    bad = energies.from_logdensity(lambda x: x)
    with pytest.raises(ValueError, match="logdensity must return a scalar"):
        bad(jnp.ones(2))


def test_the_potential_of_a_numpyro_model_is_its_energy():
    """A normal mean with a normal prior, and a gamma scale: the joint density and the
    Jacobian of the exponential, written out."""
    numpyro = pytest.importorskip("numpyro")
    from numpyro import distributions as dist

    data = np.array([1.0, 2.0, 0.5])

    def model():
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        scale = numpyro.sample("scale", dist.Gamma(3.0, 2.0))
        numpyro.sample("data", dist.Normal(mean, scale), obs=data)

    found = numpyro.infer.util.initialize_model(jax.random.key(0), model)
    energy_fn = energies.from_numpyro_potential(found.potential_fn)
    mean, log_scale = 0.7, -0.2
    scale = np.exp(log_scale)
    expected = mean**2 / 8 + np.log(2 * np.sqrt(2 * np.pi))
    expected -= 3 * np.log(2) - np.log(2) + 2 * log_scale - 2 * scale
    expected += np.sum((data - mean) ** 2) / scale**2 / 2
    expected += 3 * (log_scale + np.log(2 * np.pi) / 2) - log_scale
    z = {"mean": jnp.array(mean), "scale": jnp.array(log_scale)}
    np.testing.assert_allclose(energy_fn(z), expected, rtol=1e-6)
    assert set(found.param_info.z) == set(z)
