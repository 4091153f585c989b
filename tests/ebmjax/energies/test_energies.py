"""Energies and operators against closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ebmjax import energies

MATRIX = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
X = np.array([0.3, -1.2, 0.7])
MEAN = np.array([0.1, 0.2, -0.4])


@pytest.mark.parametrize(
    "precision, covariance",
    [
        (2.5, np.eye(3) / 2.5),
        (np.array([2.0, 1.0, 0.5]), np.diag([0.5, 1.0, 2.0])),
        (MATRIX, np.linalg.inv(MATRIX)),
    ],
    ids=["scalar", "vector", "matrix"],
)
def test_gaussian_and_a_mixture_of_one_differ_by_the_log_partition(
    precision, covariance
):
    params = {"mean": MEAN, "precision": precision}
    energy = energies.gaussian(params, jnp.asarray(X))
    log_partition = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    log_prob = scipy.stats.multivariate_normal(MEAN, covariance).logpdf(X)
    np.testing.assert_allclose(energy + log_partition, -log_prob, rtol=1e-6)

    mixture = {
        "means": MEAN[None],
        "precisions": jnp.asarray(precision)[None],
        "log_weights": np.zeros(1),
    }
    np.testing.assert_allclose(
        energies.gaussian_mixture(mixture, jnp.asarray(X)), -log_prob, rtol=1e-6
    )


@pytest.mark.quick
def test_gaussian_is_this_number():
    params = {"mean": jnp.zeros(2), "precision": 0.5}
    np.testing.assert_allclose(
        energies.gaussian(params, jnp.array([1.0, 2.0])), 0.25 * 5, rtol=1e-6
    )


def test_gaussian_takes_images_and_scalars():
    """2x2 ones at precision 3 have energy 3 * 4 / 2; so has a matrix that says it."""
    image = jnp.ones((2, 2))
    for precision in (
        3.0,
        3.0 * jnp.ones((2, 2)),
        3.0 * jnp.eye(4).reshape(2, 2, 2, 2),
    ):
        params = {"mean": jnp.zeros((2, 2)), "precision": precision}
        np.testing.assert_allclose(energies.gaussian(params, image), 6.0, rtol=1e-6)
    params = {"mean": 1.0, "precision": 4.0}
    np.testing.assert_allclose(energies.gaussian(params, jnp.array(3.0)), 8.0)


def test_gaussian_refuses_a_precision_of_another_shape():
    params = {"mean": jnp.zeros((2, 2)), "precision": jnp.ones((2, 2, 2))}
    with pytest.raises(ValueError, match=r"precision must be.*\(2, 2, 2\).*\(2, 2\)"):
        energies.gaussian(params, jnp.ones((2, 2)))


@pytest.mark.parametrize("event_shape", [(), (2,), (2, 2), (11,)])
@pytest.mark.parametrize("kind", ["one", "scalars", "vectors", "matrices"])
def test_a_mixture_is_the_sum_of_its_components(kind, event_shape):
    """Against SciPy, far from the origin and narrow: an expanded square would lose
    1e-7 of precision * mean^2, that is 4, of the difference. Gradients likewise."""
    size = int(np.prod(event_shape))
    random = np.random.default_rng(0)
    means = 100 + random.standard_normal((5, size)) / 10
    covariances = {
        "one": np.tile(0.01 * np.eye(size), (5, 1, 1)),
        "scalars": np.linspace(0.01, 0.02, 5)[:, None, None] * np.eye(size),
    }
    covariances["vectors"] = covariances["scalars"] * np.linspace(1, 2, size)
    covariances["matrices"] = covariances["scalars"] + 0.005
    inverse = np.linalg.inv(covariances[kind])
    precisions = {
        "one": 100.0,
        "scalars": inverse[:, 0, 0],
        "vectors": np.diagonal(inverse, 0, 1, 2).reshape(5, *event_shape),
        "matrices": inverse.reshape(5, *event_shape, *event_shape),
    }[kind]
    weights = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    x = np.float32(100 + random.standard_normal(size) / 10)
    log_densities = [
        scipy.stats.multivariate_normal(m, c).logpdf(x)
        for m, c in zip(np.float32(means), covariances[kind])
    ]
    terms = np.log(weights) + log_densities
    expected = -np.logaddexp.reduce(terms)
    shares = np.exp(terms + expected)
    pulls = [p @ (x - m) for m, p in zip(np.float32(means), inverse)]
    gradient = sum(share * pull for share, pull in zip(shares, pulls))

    params = {
        "means": jnp.asarray(means.reshape(5, *event_shape), jnp.float32),
        "precisions": jnp.asarray(precisions, jnp.float32),
        "log_weights": jnp.log(weights),
    }
    value, found = jax.value_and_grad(energies.gaussian_mixture, 1)(
        params, jnp.asarray(x.reshape(event_shape))
    )
    # Differences of numbers near 100 are exact; what remains is float32 arithmetic on
    # terms of up to some hundred nats and gradients of up to a hundred.
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-4)
    np.testing.assert_allclose(found.reshape(-1), gradient, rtol=1e-4, atol=1e-2)

    # Further derivatives, by hand too: a custom rule gives the first in x.
    point = jnp.asarray(x.reshape(event_shape))
    in_params = jax.grad(energies.gaussian_mixture)(params, point)
    np.testing.assert_allclose(in_params["log_weights"], -shares, rtol=1e-3, atol=1e-5)
    of_means = -shares[:, None] * pulls
    # Of a diagonal: half of a component's x^2 less its variance.
    steps = x - np.float32(means)
    of_diagonal = (
        shares[:, None]
        * (steps**2 - np.linalg.inv(inverse)[:, range(size), range(size)])
        / 2
    )
    of_precisions = {
        "one": of_diagonal.sum(),
        "scalars": of_diagonal.sum(1),
        "vectors": of_diagonal,
    }
    if kind in of_precisions:
        np.testing.assert_allclose(
            np.reshape(in_params["precisions"], np.shape(of_precisions[kind])),
            of_precisions[kind],
            rtol=1e-3,
            atol=1e-5,
        )
    found = np.reshape(in_params["means"], (5, size))
    np.testing.assert_allclose(found, of_means, rtol=1e-3, atol=1e-2)
    spread = np.einsum("k,ki,kj->ij", shares, pulls, pulls)
    hessian = np.einsum("k,kij->ij", shares, inverse) - spread
    hessian += np.outer(gradient, gradient)
    product = energies.hvp(energies.gaussian_mixture)(
        params, point, jnp.ones_like(point)
    )
    expected, scale = hessian @ np.ones(size), np.abs(spread).sum(1).max()
    np.testing.assert_allclose(product.reshape(-1), expected, atol=1e-4 * scale)
    # Along all arguments at once, as forward mode goes.
    ones = jax.tree.map(jnp.ones_like, (params, point))
    ones[0]["precisions"] *= 0
    _, slope = jax.jvp(energies.gaussian_mixture, (params, point), ones)
    np.testing.assert_allclose(slope, gradient.sum() + of_means.sum() - 1, atol=0.1)


def test_mixture_components_carry_their_own_normalisers():
    """Components of equal weight have equal mass, not equal height."""
    means, precisions = np.array([-3.0, 3.0]), np.array([0.25, 25.0])
    params = {
        "means": means,
        "precisions": precisions,
        "log_weights": np.log([0.3, 0.7]),
    }
    x = np.linspace(-12, 12, 7)
    expected = np.log(
        sum(
            w * scipy.stats.norm(m, p**-0.5).pdf(x)
            for w, m, p in zip([0.3, 0.7], means, precisions)
        )
    )
    got = jax.vmap(partial(energies.gaussian_mixture, params))(jnp.asarray(x))
    np.testing.assert_allclose(got, -expected, rtol=2e-6)


def test_mixture_is_finite_and_sloped_far_away():
    """At distance 1000 the density underflows; the score still points home."""
    params = {
        "means": jnp.zeros((2, 2)),
        "precisions": 4.0,
        "log_weights": jnp.zeros(2),
    }
    score = energies.score(energies.gaussian_mixture)
    np.testing.assert_allclose(
        score(params, jnp.array([1000.0, 0.0])), [-4000.0, 0.0], rtol=1e-6
    )


def test_a_mixture_of_whole_numbers_is_differentiated_in_the_others():
    """Integers have no tangents: weights and x do; a batch's as one example's."""

    def energy(log_weights, x, number=int):
        means = [[number(0)] * 2, [number(3)] * 2]
        params = {"means": means, "precisions": number(4), "log_weights": log_weights}
        return energies.gaussian_mixture(params, x)

    log_weights, x = jnp.log(jnp.array([0.3, 0.7])), jnp.array([[1.0, 2.0], [0.0, 1.0]])
    for argument in (0, 1):
        batch = jax.jit(jax.vmap(jax.grad(energy, argument), (None, 0)))
        found = batch(log_weights, x)
        for i in range(2):
            one = jax.grad(partial(energy, number=float), argument)(log_weights, x[i])
            np.testing.assert_allclose(found[i], one, rtol=1e-5)


def test_where_the_density_is_zero_in_floats_the_energy_is_infinite():
    """With its gradient or without: samplers refuse an infinite energy."""
    params = {
        "means": jnp.zeros((2, 2)),
        "precisions": 1.0,
        "log_weights": jnp.zeros(2),
    }
    x = jnp.array([1e20, 0.0])
    assert energies.gaussian_mixture(params, x) == jnp.inf
    assert jax.value_and_grad(energies.gaussian_mixture, 1)(params, x)[0] == jnp.inf


def test_mixture_weights_need_not_sum_to_one():
    params = {"means": jnp.zeros((1, 2)), "precisions": 1.0, "log_weights": jnp.ones(1)}
    energy = energies.gaussian_mixture(params, jnp.zeros(2))
    np.testing.assert_allclose(energy, np.log(2 * np.pi) - 1.0, rtol=1e-6)


def test_mixture_refuses_means_of_another_shape():
    params = {
        "means": jnp.zeros((4, 3)),
        "precisions": 1.0,
        "log_weights": jnp.zeros(4),
    }
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(2,\)"):
        energies.gaussian_mixture(params, jnp.zeros(2))


def quartic(params, x):
    """sum_i c_i x_i^4 / 4 + (sum_i x_i)^2 / 2: Hessian diag(3 c x^2) + ones."""
    return 0.25 * jnp.sum(params * x**4) + 0.5 * jnp.sum(x) ** 2


def test_score_hvp_and_laplacian_of_a_quartic():
    c, x, v = jnp.array([1.0, 2.0, -0.5]), jnp.array(X), jnp.array([0.5, 1.0, -2.0])
    hessian = np.diag(3 * np.asarray(c) * X**2) + np.ones((3, 3))
    gradient = np.asarray(c) * X**3 + X.sum()
    np.testing.assert_allclose(energies.score(quartic)(c, x), -gradient, rtol=1e-5)
    np.testing.assert_allclose(energies.hvp(quartic)(c, x, v), hessian @ v, rtol=1e-5)
    np.testing.assert_allclose(
        energies.laplacian(quartic)(c, x), np.trace(hessian), rtol=1e-5
    )


def test_laplacian_sums_over_images_larger_than_a_block():
    """The Laplacian of precision * |x|^2 / 2 over 12 * 12 * 2 = 288 pixels."""
    params = {"mean": 0.0, "precision": 1.5}
    x = jax.random.normal(jax.random.key(0), (12, 12, 2))
    got = jax.jit(energies.laplacian(energies.gaussian))(params, x)
    np.testing.assert_allclose(got, 1.5 * 288, rtol=1e-5)


def test_tilt_is_the_reference_at_zero_and_the_energy_at_one():
    tilted = partial(energies.tilt, lambda x: 3 * x, lambda x: x**2)
    x = jnp.array(5.0)
    assert tilted(0.0)(x) == 25.0
    assert tilted(1.0)(x) == 15.0
    assert tilted(0.25)(x) == 0.75 * 25 + 0.25 * 15


def test_latent_energy_divides_the_energy_and_not_the_prior():
    """G(z) = 2 z, E(x) = sum x: |z|^2 / 2 + 2 sum z / T at z = (1, 3), T = 4."""
    z = jnp.array([1.0, 3.0])
    with_prior = energies.latent_energy(jnp.sum, lambda z: 2 * z, temperature=4.0)
    np.testing.assert_allclose(with_prior(z), 5.0 + 8.0 / 4.0)
    without = energies.latent_energy(jnp.sum, lambda z: 2 * z, 4.0, prior=False)
    np.testing.assert_allclose(without(z), 2.0)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        energies.latent_energy(jnp.sum, lambda z: z, temperature=0)
