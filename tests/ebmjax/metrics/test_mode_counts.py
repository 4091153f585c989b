"""Counts of modes and their divergence, in numbers."""

import math

import numpy as np
import pytest

from ebmjax import metrics


@pytest.mark.quick
def test_three_of_four_modes_on_paper():
    """Shares 1/2, 1/4, 1/4 of four: KL = log 4 - (1/2 log 2 + 1/2 log 4)."""
    labels = np.array([0] * 8 + [1] * 4 + [3] * 4)
    found = metrics.modes(labels, 4, robust_count=5)
    assert (found["num_modes"], found["num_robust_modes"]) == (3, 1)
    # Exactly so many are enough.
    assert metrics.modes(labels, 4, robust_count=4)["num_robust_modes"] == 3
    np.testing.assert_allclose(found["kl"], 0.5 * math.log(2), rtol=1e-12)
    np.testing.assert_allclose(
        found["kl_excess"], found["kl"] - found["kl_floor"], rtol=1e-12
    )


def test_the_floor_is_the_mean_over_all_ways_to_draw():
    """Two draws of three labels: equal with chance 1/3, log 3; else log 3 - log 2."""
    floor = metrics.modes(np.array([0, 1]), 3)["kl_floor"]
    np.testing.assert_allclose(
        floor, math.log(3) / 3 + 2 / 3 * math.log(1.5), rtol=1e-12
    )
    # One draw: log K, whatever it is.
    np.testing.assert_allclose(
        metrics.modes(np.array([2]), 7)["kl_floor"], math.log(7), rtol=1e-12
    )


@pytest.mark.parametrize("num_tuples", [100, 1000])
def test_uniform_draws_have_no_excess(num_tuples):
    """26 draws a mode: the floor is (K - 1) / 2 n plus (K^2 - 1) / 12 n^2 to third
    order, and 2 n KL has the variance of chi-squared, 2 (K - 1)."""
    num = 26 * num_tuples
    draws = np.random.default_rng(0).integers(0, num_tuples, (20, num))
    found = [metrics.modes(row, num_tuples) for row in draws]
    floor = (num_tuples - 1) / (2 * num) + (num_tuples**2 - 1) / (12 * num**2)
    np.testing.assert_allclose(found[0]["kl_floor"], floor, rtol=2e-3)
    deviation = (2 * (num_tuples - 1)) ** 0.5 / (2 * num)
    mean = np.mean([row["kl_excess"] for row in found])
    np.testing.assert_allclose(mean, 0.0, atol=4 * deviation / 20**0.5)
    assert all(row["num_modes"] == num_tuples for row in found)


def test_half_of_the_modes_have_a_divergence_of_log_two():
    labels = np.arange(500).repeat(52)
    found = metrics.modes(labels, 1000)
    assert found["num_modes"] == found["num_robust_modes"] == 500
    np.testing.assert_allclose(found["kl"], math.log(2), rtol=1e-12)


def test_a_classifier_s_errors_make_modes_that_the_robust_count_does_not_see():
    """500 triples, 52 draws each, digits wrong with chance 1/2 in 100: more than 600
    modes are found, and about 500 of them often."""
    rng = np.random.default_rng(1)
    triples = rng.permutation(1000)[:500].repeat(52)
    digits = np.stack([triples // 10**place % 10 for place in range(3)], 1)
    is_wrong = rng.random(digits.shape) < 0.005
    digits = np.where(
        is_wrong, (digits + rng.integers(1, 10, digits.shape)) % 10, digits
    )
    found = metrics.modes(digits @ np.array([1, 10, 100]), 1000)
    assert found["num_modes"] > 600
    assert abs(found["num_robust_modes"] - 500) <= 5


@pytest.mark.parametrize(
    "labels, num_tuples, message",
    [
        (np.array([0, 4]), 4, "from 0 to 3, got 0 to 4"),
        (np.array([-1, 2]), 4, "got -1 to 2"),
        (np.array([0.0, 1.0]), 4, "must be integers"),
        (np.zeros((3, 2), int), 4, r"integers \[n\]"),
        (np.zeros(0, int), 4, "must not be empty"),
        (np.array([0]), 0, "num_tuples must be a whole number"),
    ],
)
def test_what_are_no_labels_is_refused(labels, num_tuples, message):
    with pytest.raises(ValueError, match=message):
        metrics.modes(labels, num_tuples)
