"""The Frechet distance against closed forms, and against SciPy's matrix root."""

import numpy as np
import pytest
import scipy.linalg

from ebmjax import metrics


# Both sides are float64 sums of d terms of order 1 or a few: d * 2e-16 and some room.
def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def spd(seed, dim):
    factor = np.random.RandomState(seed).normal(size=(dim, dim))
    return factor @ factor.T + 0.1 * np.eye(dim)


def test_in_one_dimension_it_is_the_difference_of_means_and_deviations_squared():
    distance = metrics.frechet_distance_from_moments(
        np.array([1.0]), np.array([[9.0]]), np.array([-1.5]), np.array([[0.25]])
    )
    close(distance, 2.5**2 + (3.0 - 0.5) ** 2)  # 12.5


def test_for_diagonal_covariances_dimensions_add_up():
    mean_a, mean_b = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, 1.0])
    std_a, std_b = np.array([1.0, 2.0, 0.3]), np.array([1.5, 0.5, 0.3])
    distance = metrics.frechet_distance_from_moments(
        mean_a, np.diag(std_a**2), mean_b, np.diag(std_b**2)
    )
    close(distance, np.sum((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2))


@pytest.mark.parametrize("dim", [2, 7, 40])
def test_it_agrees_with_the_matrix_square_root_of_scipy(dim):
    """Covariances that do not commute, for which the order of the product matters."""
    cov_a, cov_b = spd(0, dim), spd(1, dim)
    mean_a, mean_b = np.random.RandomState(2).normal(size=(2, dim))
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    distance = metrics.frechet_distance_from_moments(mean_a, cov_a, mean_b, cov_b)
    # SciPy's root of a matrix that is not symmetric loses digits to its condition.
    np.testing.assert_allclose(distance, expected, rtol=1e-8)


def test_swapping_the_sets_changes_nothing_and_equal_sets_are_at_zero():
    a = np.random.RandomState(0).normal(size=(300, 5)) @ spd(0, 5)
    b = np.random.RandomState(1).normal(size=(200, 5)) + 1.0
    close(metrics.frechet_distance(a, b), metrics.frechet_distance(b, a))
    # Zero up to the rounding of the traces, which are of the order of 100.
    assert 0 <= metrics.frechet_distance(a, a) < 1e-11


@pytest.mark.quick
def test_singular_covariances_are_measured_exactly():
    """A point against a segment, and two segments at an angle.

    Along unit vectors u, v the covariances uu' and vv' have the roots uu' and vv', and
    uu'vv' has the one singular value |u.v|: the distance is 2 - 2 |u.v|.
    """
    zero, u = np.zeros(2), np.array([1.0, 0.0])
    v = np.array([0.6, 0.8])
    segment = metrics.frechet_distance_from_moments(
        zero, np.outer(u, u), zero, np.outer(v, v)
    )
    close(segment, 2 - 2 * 0.6)
    point = metrics.frechet_distance_from_moments(
        zero, np.outer(u, u), np.array([0.0, 3.0]), np.zeros((2, 2))
    )
    close(point, 1 + 9)


def test_features_that_span_a_subspace_have_the_distance_within_it():
    """Rounding gives such covariances eigenvalues of -1e-16, whose root is NaN."""
    random = np.random.RandomState(0)
    a, b = random.normal(size=(50, 3)), 2 * random.normal(size=(50, 3)) + 1
    basis = np.linalg.qr(random.normal(size=(20, 20)))[0][:3]
    inside = metrics.frechet_distance(a, b)
    # Rounding of 1e-16 in an eigenvalue is 1e-8 in its root, in 17 directions.
    embedded = metrics.frechet_distance(a @ basis, b @ basis)
    np.testing.assert_allclose(embedded, inside, rtol=1e-6)


def test_features_are_reduced_to_unbiased_moments():
    """Two points at +-1 have variance 2 with n - 1, and at 3 +- 2 variance 8."""
    a, b = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])
    close(metrics.frechet_distance(a, b), 3.0**2 + (8**0.5 - 2**0.5) ** 2)


def test_a_large_common_offset_does_not_cost_the_digits():
    """Features near 1e4 with unit deviation, in float32 as a network gives them.

    Moments by `mean(x^2) - mean(x)^2` in float32 would be wrong by 1e8 * 6e-8.
    """
    features = 1e4 + np.random.RandomState(0).normal(size=(500, 3))
    features = features.astype(np.float32)
    # Doubling the deviations about the mean: the distance is the trace of S.
    exact = features.astype(np.float64)
    doubled = 2 * exact - exact.mean(0)
    expected = np.trace(np.cov(exact.T))
    np.testing.assert_allclose(
        metrics.frechet_distance(features, doubled), expected, rtol=1e-9
    )


def test_the_bias_of_finite_sets_is_what_the_docstring_says():
    """Two sets of n from N(0, I): d (d + 5) / (2 n) to leading order in d / n."""
    num_repeats, num_rows, dim = 40, 2000, 6
    draws = np.random.RandomState(0).normal(size=(num_repeats, 2, num_rows, dim))
    distances = [metrics.frechet_distance(a, b) for a, b in draws]
    expected = dim * (dim + 5) / (2 * num_rows)
    # Five standard errors of the mean, and d / n for what the expansion leaves out.
    tolerance = 5 * np.std(distances) / num_repeats**0.5 + expected * dim / num_rows
    assert tolerance < 0.3 * expected
    np.testing.assert_allclose(np.mean(distances), expected, atol=tolerance)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    a, b = np.ones((3, 2)), np.ones((3, 2))
    b[1, 0] = bad
    with pytest.raises(
        ValueError, match="features_b must be finite, got 1 values of 6"
    ):
        metrics.frechet_distance(a, b)
    with pytest.raises(ValueError, match="cov_b must be finite"):
        metrics.frechet_distance_from_moments(
            a[0], np.eye(2), a[0], np.full((2, 2), bad)
        )


def test_wrong_shapes_are_refused_by_name():
    a = np.ones((4, 3))
    with pytest.raises(ValueError, match=r"features_a must be \[n, d\].*\(4, 2, 2\)"):
        metrics.frechet_distance(np.ones((4, 2, 2)), a)
    with pytest.raises(ValueError, match=r"features_b .* at least 2 rows.*\(1, 3\)"):
        metrics.frechet_distance(a, a[:1])
    with pytest.raises(ValueError, match="same dimension, got 3 and 2"):
        metrics.frechet_distance(a, a[:, :2])
    with pytest.raises(ValueError, match=r"\(3,\), \(2, 2\)"):
        metrics.frechet_distance_from_moments(a[0], np.eye(2), a[0], np.eye(3))


def test_what_is_no_covariance_is_refused():
    zero = np.zeros(2)
    with pytest.raises(ValueError, match="cov_a must be positive semi-definite"):
        metrics.frechet_distance_from_moments(
            zero, np.diag([1.0, -1.0]), zero, np.eye(2)
        )
    with pytest.raises(ValueError, match="cov_b must be symmetric"):
        metrics.frechet_distance_from_moments(
            zero, np.eye(2), zero, np.array([[1.0, 0.5], [0.0, 1.0]])
        )


def test_an_inception_score_on_paper():
    """Sure of k classes evenly: k. Of none: 1. Two examples (a, 1 - a) and (1 - a, a):
    exp(log 2 - entropy of a)."""
    sure = np.where(np.eye(4, dtype=bool), 0.0, -1e4)
    np.testing.assert_allclose(metrics.inception_score(sure, num_splits=1), (4, 0))
    np.testing.assert_allclose(
        metrics.inception_score(np.zeros((6, 5)), num_splits=3), (1, 0), atol=1e-12
    )
    a = 0.9
    logits = np.log([[a, 1 - a], [1 - a, a]]) + 7.0  # a constant changes nothing
    entropy = -a * np.log(a) - (1 - a) * np.log(1 - a)
    exact = 2 * np.exp(-entropy)
    np.testing.assert_allclose(
        metrics.inception_score(logits, num_splits=1), (exact, 0), rtol=1e-12
    )
    # Parts are scored alone: one class each is no variety, and a mean of 1 and 2 is.
    rows = sure[[0, 0, 1, 2]]
    np.testing.assert_allclose(metrics.inception_score(rows, num_splits=2), (1.5, 0.5))
    np.testing.assert_allclose(metrics.inception_score(rows, num_splits=4), (1, 0))
    for wrong in (np.zeros(3), np.zeros((2, 3)), np.full((12, 2), np.nan)):
        with pytest.raises(ValueError, match="must be"):
            metrics.inception_score(wrong)


def test_a_discrepancy_of_four_numbers_by_hand():
    """A = {0, 1}, B = {2, 3}: (x y + 1)^3 within A is 1, within B 343, between 1, 1, 27
    and 64; and the Gaussian's with bandwidth 1."""
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    exact = 1 + 343 - 2 * (1 + 1 + 27 + 64) / 4
    np.testing.assert_allclose(metrics.maximum_mean_discrepancy(a, b), exact)
    between = (np.exp(-2) + np.exp(-4.5) + np.exp(-0.5) + np.exp(-2)) / 4
    found = metrics.maximum_mean_discrepancy(a, b, kernel="gaussian", bandwidth=1.0)
    np.testing.assert_allclose(found, 2 * np.exp(-0.5) - 2 * between)
    # The median of the distances 2, 3, 1, 2 is 2.
    assert metrics.maximum_mean_discrepancy(
        a, b, kernel="gaussian"
    ) == metrics.maximum_mean_discrepancy(a, b, kernel="gaussian", bandwidth=2.0)
    assert metrics.maximum_mean_discrepancy(
        np.concatenate([a, b]), b, max_examples=2
    ) == metrics.maximum_mean_discrepancy(a, b)


@pytest.mark.parametrize("sizes", [(600, 300), (256, 513)])
def test_a_discrepancy_of_many_examples_is_its_definition(sizes):
    """More than are computed together, and not a multiple of that number."""
    rng = np.random.RandomState(0)
    a, b = (0.5 * i + rng.normal(size=(size, 3)) for i, size in enumerate(sizes))
    means = []
    for x, y in ((a, a), (b, b), (a, b)):
        kernel = (x @ y.T / 3 + 1) ** 3
        is_pair = ~np.eye(len(x), dtype=bool) if x is y else np.ones_like(kernel, bool)
        means.append(kernel[is_pair].mean())
    expected = means[0] + means[1] - 2 * means[2]
    found = metrics.maximum_mean_discrepancy(a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("kernel", ["polynomial", "gaussian"])
def test_two_sets_of_one_law_have_no_discrepancy_on_average(kernel):
    """And of N(0, 1) and N(m, 1) with the Gaussian kernel of bandwidth 1: 2 / sqrt 3 (1
    - exp(-m^2 / 6)); with the cubic one by moments up to the third."""
    rng = np.random.default_rng(0)
    options = {"bandwidth": 1.0} if kernel == "gaussian" else {}
    mean = 0.5
    same, apart = [], []
    for _ in range(200):
        a, b = rng.normal(size=(2, 100, 1))
        for found, other in ((same, b), (apart, b + mean)):
            found.append(
                metrics.maximum_mean_discrepancy(a, other, kernel=kernel, **options)
            )
    for found, exact in (
        (same, 0.0),
        (
            apart,
            2 / 3**0.5 * (1 - np.exp(-(mean**2) / 6))
            if kernel == "gaussian"
            # Squared differences of the moments m, m^2 and 3 m + m^3, weights 3, 3, 1.
            else 3 * mean**2 + 3 * mean**4 + (3 * mean + mean**3) ** 2,
        ),
    ):
        error = 4 * np.std(found) / 200**0.5
        np.testing.assert_allclose(np.mean(found), exact, atol=error)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kernel": "linear"}, "kernel must be"),
        ({"bandwidth": 1.0}, "of the gaussian kernel"),
        ({"kernel": "gaussian", "bandwidth": -1.0}, "bandwidth must be positive"),
        ({"features_a": np.zeros((1, 2))}, "features_a must be"),
        ({"features_b": np.zeros((3, 1))}, "the same dimension, got 2 and 1"),
        ({"features_b": np.full((3, 2), np.inf)}, "features_b"),
    ],
)
def test_a_discrepancy_that_makes_no_sense_is_refused(options, message):
    sets = {"features_a": np.zeros((3, 2)), "features_b": np.ones((3, 2))}
    with pytest.raises(ValueError, match=message):
        metrics.maximum_mean_discrepancy(**(sets | options))
