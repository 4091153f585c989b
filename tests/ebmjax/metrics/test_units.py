"""Numbers that must not depend on the units of x, nor on where 0 is."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial

from ebmjax import diffusions, metrics, objectives
from ebmjax.samplers.sampler import running_mean

SCALES = [1e-30, 1e-10, 1e9, 1e10, 1e30]
X = jax.random.normal(jax.random.key(1), (100, 2))


def normal_energy(scale, x):
    return 0.5 * jnp.sum((x / scale) ** 2)


@functools.cache
def stein_test(scale, kernel):
    return metrics.kernel_stein_test(
        functools.partial(normal_energy, scale),
        jax.random.key(0),
        X * scale,
        kernel=kernel,
        num_bootstrap=200,
    )


@pytest.mark.quick
@pytest.mark.parametrize("kernel", ["rbf", "imq"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_stein_test_of_exact_draws_has_one_p_value_in_all_units(scale, kernel):
    """Rounding may change the order of two bootstrap draws of 200, and no more."""
    expected = stein_test(1.0, kernel).p_value
    assert 0.05 < expected < 0.95
    found = stein_test(scale, kernel).p_value
    np.testing.assert_allclose(found, expected, atol=2 / 201)


@pytest.mark.parametrize("scale", [1e-10, 1e9, 1e10, 1e15])
def test_a_stein_discrepancy_is_in_inverse_squared_units(scale):
    scores = jax.random.normal(jax.random.key(2), X.shape)
    expected = metrics.stein_kernel(scores, X)
    found = metrics.stein_kernel(scores / scale, X * scale) * scale * scale
    # A few roundings of terms of the size of the largest.
    tolerance = 1e-5 * jnp.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=tolerance)
    params = {"energy": jnp.float32(scale)}
    objective = objectives.kernel_stein(normal_energy)
    loss, _ = objective.loss(params, jax.random.key(0), X * scale, ())
    unscaled, _ = objective.loss({"energy": 1.0}, jax.random.key(0), X, ())
    np.testing.assert_allclose(loss * scale * scale, unscaled, rtol=1e-3)


@pytest.mark.parametrize("dim", [2, 20])
def test_a_stein_kernel_sees_distances_within_groups_that_lie_far_apart(dim):
    """Two groups of scale 1 at -1e4 and 1e4: squares of 1e8 in float32 end at 8."""
    keys = jax.random.split(jax.random.key(0))
    far = jnp.repeat(jnp.array([-1e4, 1e4]), 10)[:, None]
    x = far + jax.random.normal(keys[0], (20, dim))
    scores = jax.random.normal(keys[1], (20, dim))
    found = metrics.stein_kernel(scores, x, bandwidth=1.0)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(array, np.float64)) for array in (scores, x)]
        expected = metrics.stein_kernel(*exact, bandwidth=1.0)
        squares = scipy.spatial.distance.cdist(exact[1], exact[1], "sqeuclidean")
    # By its definition at a pair of one group, for the Gaussian kernel.
    s, t, y, z = (np.float64(v) for v in (scores[0], scores[1], x[0], x[1]))
    apart, square = y - z, squares[0, 1]
    by_hand = np.exp(-square / 2) * (s @ t + (s - t) @ apart + dim - square)
    np.testing.assert_allclose(expected[0, 1], by_hand, rtol=1e-8)
    # Positions of 1e4 are given to 1e-3: that moved the input, and not the result.
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e18, 1e37])
def test_the_median_distance_has_the_unit_of_x(scale):
    found = metrics.median_distance(X * scale) / scale
    distances = scipy.spatial.distance.pdist(np.asarray(X, np.float64))
    np.testing.assert_allclose(found, np.median(distances), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e37])
def test_diagnostics_of_chains_have_no_unit(scale):
    """At 1e37 the sum of 400 draws around 1 is above all of float32."""
    draws = 1 + np.asarray(jax.random.normal(jax.random.key(0), (100, 4)))
    for diagnostic in (
        metrics.effective_sample_size,
        metrics.potential_scale_reduction,
    ):
        found = diagnostic(jnp.asarray(draws * np.float32(scale)))
        np.testing.assert_allclose(found, diagnostic(draws), rtol=1e-3)


def test_r_hat_of_draws_near_the_largest_number_folds_them():
    """Distances from the median are up to twice as large as the draws."""
    draws = np.asarray(jax.random.normal(jax.random.key(0), (100, 4)))
    draws = draws * np.array([1.0, 1.0, 3.0, 3.0], np.float32)
    large = draws * np.float32(3e38 / np.abs(draws).max())
    found = metrics.potential_scale_reduction(large)
    expected = metrics.potential_scale_reduction(draws)
    assert expected > 1.1
    np.testing.assert_allclose(found, expected, rtol=1e-4)


KEY = jax.random.key(0)


def index_of_key(key):
    data = jax.random.key_data(key)
    known = jax.random.key_data(jax.random.split(KEY, 3))
    return jnp.argmax((known == data[None]).all(1)).astype(jnp.float32)


def minus_index(constant, x):
    return -x - constant


def test_the_effective_size_of_weights_ignores_their_constant():
    """Log weights 0, 1, 2 in steps that float32 keeps at 2^20: the same ratio."""
    weights = np.exp([0.0, 1.0, 2.0])
    expected = weights.sum() ** 2 / (weights**2).sum()
    for constant in (0.0, 2.0**20):
        # Draw i is i, by a sampler that looks its key up.
        log_partition, size = metrics.importance_sampling(
            functools.partial(minus_index, constant),
            KEY,
            proposal=(index_of_key, lambda x: 0.0),
            num_samples=3,
        )
        np.testing.assert_allclose(size, expected, rtol=1e-5)
        truth = constant + np.log(weights.mean())
        np.testing.assert_allclose(log_partition, truth, rtol=1e-6)


def test_a_quadrature_whose_points_float32_cannot_tell_apart_is_refused():
    with pytest.raises(ValueError, match=r"bounds must be far enough .*1000 .*float32"):
        metrics.quadrature(lambda x: jnp.sum(x**2), [(1e8, 1e8 + 1)])


def exact_discrepancy(a, b):
    """Returns the polynomial discrepancy in rational numbers."""
    a, b = ([[Fraction(float(v)) for v in row] for row in x] for x in (a, b))

    def kernel(x, y):
        return (sum(u * v for u, v in zip(x, y)) / len(x) + 1) ** 3

    def within(x):
        num = len(x)
        pairs = [kernel(x[i], x[j]) for i in range(num) for j in range(num) if i != j]
        return sum(pairs) / len(pairs)

    across = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return float(within(a) + within(b) - 2 * across)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_a_polynomial_discrepancy_far_from_zero_keeps_its_digits(offset):
    """Kernels of 1e30, whose differences are of 1e20: by products, all digits go."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 3)) + offset, rng.normal(size=(7, 3)) + offset + 0.3
    found = metrics.maximum_mean_discrepancy(a, b)
    np.testing.assert_allclose(found, exact_discrepancy(a, b), rtol=1e-9)


@pytest.mark.parametrize("offset, scale", [(1e8, 1), (0, 1e-200), (1e200, 1e195)])
def test_a_gaussian_discrepancy_has_no_unit_and_no_origin(offset, scale):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 2)), rng.normal(size=(30, 2)) + 1
    expected = metrics.maximum_mean_discrepancy(a, b, kernel="gaussian")
    moved = (offset + scale * x for x in (a, b))
    found = metrics.maximum_mean_discrepancy(*moved, kernel="gaussian")
    # Offsets of 1e8 leave eight digits of the features, and 1e5 times the scale eleven.
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_gaussian_discrepancy_sees_distances_within_groups_that_lie_far_apart():
    """Groups of scale 1e-9 at 0 and 1: with a bandwidth of 1e-9, those of one group."""
    rng = np.random.default_rng(0)
    groups = np.repeat([[0.0], [1.0]], 10, axis=0)
    a, b = (groups + 1e-9 * rng.normal(size=(20, 1)) for _ in range(2))

    def mean(x, y, is_one_set):
        kernel = np.exp(-((x - y.T) ** 2) / 2e-18)
        pairs = len(x) * (len(x) - 1) if is_one_set else kernel.size
        return (kernel.sum() - is_one_set * len(x)) / pairs

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    found = metrics.maximum_mean_discrepancy(a, b, kernel="gaussian", bandwidth=1e-9)
    # Differences of numbers near 1 are multiples of 2e-16, of a scale of 1e-9.
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_discrepancy_that_overflows_is_refused():
    x = 1e60 * np.arange(6.0).reshape(3, 2)
    with pytest.raises(ValueError, match="too large for the polynomial kernel"):
        metrics.maximum_mean_discrepancy(x, x + 1e60)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_a_frechet_distance_is_in_squared_units(scale):
    """Squares of features are beyond float64's squares of covariances."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 3)), 2 * rng.normal(size=(30, 3)) + 1
    found = metrics.frechet_distance(a * scale, b * scale) / scale / scale
    np.testing.assert_allclose(found, metrics.frechet_distance(a, b), rtol=1e-9)


def test_an_inception_score_of_the_largest_logits_is_the_number_of_classes():
    """Each example has a class of its own, beyond doubt."""
    logits = np.where(np.eye(4, dtype=bool), 1.7e308, -1.7e308)
    mean, _ = metrics.inception_score(logits, num_splits=1)
    np.testing.assert_allclose(mean, 4.0)


@pytest.mark.parametrize("offset, scale", [(1e8, 1e-3), (0, 1e200), (0, 1e-200)])
def test_the_largest_distance_has_the_unit_of_x_and_no_origin(offset, scale):
    x = offset + scale * np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    found = diffusions.largest_distance(x)
    # Numbers of 1e8 are given to 1.5e-8, of a distance of 5e-3.
    np.testing.assert_allclose(found, 5 * scale, rtol=1e-5)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1.0, np.inf, 2.0], np.inf),
        ([np.inf, np.inf], np.inf),
        ([-np.inf, 1.0], -np.inf),
        ([np.inf, -np.inf, 1.0], np.nan),
        ([1.0, np.nan, np.inf], np.nan),
        ([3e38, -3e38], 0.0),
        ([3e38] * 3, 3e38),
    ],
)
def test_a_running_mean_is_the_mean_of_numbers_that_are_not_finite_too(
    values, expected
):
    mean = jnp.float32(0.0)
    for count, new in enumerate(jnp.array(values, jnp.float32)):
        mean = running_mean(mean, new, count + 1)
    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e33)
