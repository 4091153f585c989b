"""Densities on the plane against numbers that are known."""

import numpy as np
import pytest

from experiments.judge.plane import kl_divergence, make_plane, total_variation


@pytest.mark.quick
def test_densities_on_the_plane_are_these_numbers():
    grid = make_plane(2.0, 4)
    flat = grid.binned(grid.probabilities(lambda x: 0.0 * x.sum()))
    np.testing.assert_allclose(flat, np.full((4, 4), 1 / 16))
    # A point in the bin of [0, 1] x [-2, -1], one outside of the grid.
    counted = grid.histogram(np.array([[0.5, -1.5], [9.0, 0.0]]))
    expected = np.zeros((4, 4))
    expected[2, 0] = 0.5
    np.testing.assert_array_equal(counted, expected)
    # Half of the mass is outside: |1/16 - 1/2| + 15/16, plus the missing half.
    expected = 0.5 * (7 / 16 + 15 / 16 + 0.5)
    np.testing.assert_allclose(total_variation(counted, flat), expected)
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    np.testing.assert_allclose(kl_divergence(p, q), np.log(2))
    assert kl_divergence(q, p) == np.inf
