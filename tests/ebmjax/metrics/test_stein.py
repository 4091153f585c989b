"""The kernelised Stein discrepancy: golden numbers on normals, and a test's size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from expectations import normal_nodes

from ebmjax import energies, metrics, objectives


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@jax.jit
def kernel_of(scores, x, bandwidth):
    return metrics.stein_kernel(scores, x, kernel="rbf", bandwidth=bandwidth)


def closed_form(mean, variance, a, model_mean, h):
    """Of N(mean, variance) from N(model_mean, 1 / a), with a Gaussian kernel."""
    c, b = 1 / variance - a, a * (model_mean - mean)
    wide = h**2 + 2 * variance
    return c**2 * variance**2 * h * wide**-1.5 + b**2 * h * wide**-0.5


@pytest.mark.quick
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "mean, variance, model, h, golden",
    [
        (1.0, 1.0, (0.0, 1.0), 1.0, 0.5773502692),
        (0.0, 2.0, (0.0, 1.0), 1.0, 0.0894427191),
        (0.5, 2.0, (0.0, 1.0), 1.5, 0.2460000000),
        (0.5, 2.0, (0.5, 0.5), 1.5, 0.0),
    ],
)
def test_the_stein_kernel_s_mean_over_normals_is_this_number(
    mean, variance, model, h, golden
):
    """By quadrature over pairs; and zero over either example under the model."""
    nodes, weights = normal_nodes(80, mean, variance)
    model_mean, a = model
    pairs = np.asarray(kernel_of(-a * (nodes - model_mean), nodes, h))
    np.testing.assert_allclose(weights @ pairs @ weights, golden, atol=1e-9)
    np.testing.assert_allclose(
        closed_form(mean, variance, a, model_mean, h), golden, atol=1e-9
    )
    if golden == 0:
        np.testing.assert_allclose((weights @ pairs)[30:50], 0.0, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kernel", ["rbf", "imq", lambda r: jnp.log1p(r)])
def test_the_stein_kernel_is_its_definition(kernel):
    """By derivatives of the kernel as a function of two events."""
    radial = {"rbf": lambda r: jnp.exp(-r / 2), "imq": lambda r: 1 / jnp.sqrt(1 + r)}
    radial = radial.get(kernel, kernel)
    h, (x, scores) = 1.3, np.random.default_rng(0).normal(size=(2, 4, 2, 2))

    def k(x, y):
        return radial(jnp.sum((x - y) ** 2) / h**2)

    def one(s, x, t, y):
        s, x, t, y = (value.reshape(-1) for value in (s, x, t, y))
        in_x, in_y = jax.grad(k, (0, 1))(x, y)
        trace = jnp.trace(jax.jacfwd(jax.grad(k, 1), 0)(x, y))
        return s @ t * k(x, y) + s @ in_y + t @ in_x + trace

    @jax.jit
    def both(scores, x):
        pairs = metrics.stein_kernel(scores, x, kernel=kernel, bandwidth=h)
        of_all = jax.vmap(jax.vmap(one, (None, None, 0, 0)), (0, 0, None, None))
        return pairs, of_all(scores, x, scores, x)

    pairs, expected = both(scores, x)
    assert pairs.shape == (4, 4)
    np.testing.assert_allclose(pairs, expected, rtol=1e-10, atol=1e-12)


def test_the_bandwidth_is_the_median_distance_of_different_examples():
    median = jax.jit(metrics.median_distance)
    assert median(np.ones((3, 2))) == 1.0
    far = np.float32(1e3 + np.arange(3.0))  # 1, 1, 2 apart, which squares would hide
    np.testing.assert_allclose(median(far), 1.0, rtol=1e-5)
    x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    np.testing.assert_allclose(median(x), 18**0.5, rtol=1e-6)

    @jax.jit
    def both(x):
        chosen = metrics.stein_kernel(-x, x, bandwidth=18**0.5)
        return metrics.stein_kernel(-x, x), chosen

    np.testing.assert_allclose(*both(x), rtol=1e-5)


def test_a_shift_in_five_dimensions_and_both_statistics():
    """Golden: variance 1, shift of length 1, h = 2: .3628873693. The U-statistic has
    that mean; the V-statistic (1 - 1 / n) of it, and (E |s|^2 + d / h^2) / n."""
    num, shift, golden = 20, jnp.full(5, 5**-0.5), 0.3628873693
    model = functools.partial(energies.gaussian, {"mean": shift, "precision": 1.0})
    x = jax.random.normal(jax.random.key(0), (4_000, num, 5))
    run = lambda statistic: jax.jit(  # noqa: E731
        jax.vmap(
            lambda x: metrics.kernel_stein_discrepancy(
                model, x, bandwidth=2.0, statistic=statistic
            )
        )
    )(x)
    biased = (1 - 1 / num) * golden + (5 + 1 + 5 / 4) / num
    for statistic, mean in (("u", golden), ("v", biased)):
        values = np.asarray(run(statistic))
        error = 5 * values.std() / len(values) ** 0.5
        np.testing.assert_allclose(values.mean(), mean, atol=error)
        assert error < 0.02


def test_the_loss_is_the_discrepancy_and_least_at_the_data_s_law():
    """Quadratic in the precision: KSD^2 of N(0, 2) from N(0, 1 / a), h = 1, is
    (1 / 2 - a)^2 4 / 5^1.5; of a score network too."""
    x = 2**0.5 * jax.random.normal(jax.random.key(0), (300, 40, 1))
    of_energy = objectives.kernel_stein(energies.gaussian, bandwidth=1.0)
    of_score = objectives.kernel_stein(score_network=lambda a, x: -a * x, bandwidth=1.0)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean_loss(a):
        params = {"energy": {"mean": 0.0, "precision": a}, "score": a}
        key = jax.random.key(1)
        one = lambda objective, x: objective.loss(params, key, x, ())[0]  # noqa: E731
        values = jax.vmap(functools.partial(one, of_energy))(x)
        return values.mean(), (values, jax.vmap(functools.partial(one, of_score))(x))

    (value, (values, others)), slope = mean_loss(1.0)
    values = np.asarray(values)
    np.testing.assert_allclose(values, others, rtol=1e-4, atol=1e-5)
    error = 5 * values.std() / len(values) ** 0.5
    np.testing.assert_allclose(value, 0.25 * 4 / 5**1.5, atol=error)
    np.testing.assert_allclose(slope, 4 / 5**1.5, atol=5 * error)
    np.testing.assert_allclose(mean_loss(0.5)[1], 0, atol=5 * error)


def test_the_goodness_of_fit_test_has_its_size_and_power():
    """Of 400 sets of 100 draws of the law itself a share of .05 is refused, within four
    binomial errors and .02 for the bootstrap's own limit; a shift is found."""
    model = functools.partial(
        energies.gaussian, {"mean": jnp.zeros(2), "precision": 1.0}
    )
    x = jax.random.normal(jax.random.key(0), (400, 100, 2))
    keys = jax.random.split(jax.random.key(1), 400)

    @jax.jit
    def p_values(x):
        test = lambda key, x: metrics.kernel_stein_test(model, key, x).p_value  # noqa: E731
        return jax.lax.map(lambda pair: test(*pair), (keys, x))

    sizes = np.asarray(p_values(x))
    assert abs((sizes <= 0.05).mean() - 0.05) < 4 * (0.05 * 0.95 / 400) ** 0.5 + 0.02
    # Nearly uniform: Kolmogorov's distance beyond this has a chance of 1e-4.
    assert scipy.stats.kstest(sizes, "uniform").statistic < 2.2 / 400**0.5 + 0.05
    assert (p_values(x[:] + 0.5) <= 0.05).mean() > 0.95


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kernel": "box"}, "kernel must be of .*'box'"),
        ({"bandwidth": -1.0}, "bandwidth must be positive, got -1"),
        ({"statistic": "w"}, "statistic must be one of .*'w'"),
    ],
)
def test_bad_options_are_named(options, message):
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=message):
        metrics.kernel_stein_discrepancy(lambda x: jnp.sum(x**2), x, **options)


def test_too_few_examples_and_other_shapes_are_named():
    with pytest.raises(ValueError, match="two examples or more, got 1"):
        metrics.kernel_stein_discrepancy(jnp.sum, jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"one shape .*\(3,\) and \(3, 2\)"):
        metrics.stein_kernel(jnp.ones(3), jnp.ones((3, 2)))


def test_data_that_are_no_numbers_are_no_evidence():
    x = jnp.full((20, 2), jnp.nan)
    test = functools.partial(
        metrics.kernel_stein_test, lambda x: 0.5 * jnp.sum(x**2), bandwidth=1.0
    )
    found = jax.jit(test)(jax.random.key(0), x)
    assert np.isnan(found.statistic) and np.isnan(found.p_value)
