"""Stacked digits: their tuples, and batches of them."""

import jax
import numpy as np
import pytest

from experiments.data import stacked


@pytest.mark.quick
def test_stacked_images_are_their_digits_by_channel():
    images = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 1), np.uint8
    )
    tuples = stacked.draw_tuples(30, 2, 111)
    assert tuples.shape == (12_800, 2)
    np.testing.assert_array_equal(tuples, stacked.draw_tuples(30, 2, 111))
    x = stacked.stack(images, tuples[:5])
    assert x.shape == (5, 2, 2, 2)
    np.testing.assert_array_equal(x[:, 0, 1], tuples[:5])
    # Uniform: every image 12,800 * 2 / 30 times, to four deviations.
    counts = np.bincount(tuples.ravel(), minlength=30)
    assert np.abs(counts - 853.3).max() < 4.5 * 853.3**0.5


def test_batches_of_stacked_images_hold_their_tuples():
    """Dequantised pixels say which digits they are."""
    images = np.repeat(np.arange(4, dtype=np.uint8), 4).reshape(4, 2, 2, 1)
    tuples = np.array([[0, 1], [2, 3], [1, 1]])
    batch = stacked.stacked_batches(jax.random.key(0), images, tuples, 3, num_levels=4)
    x = np.asarray(batch(5))
    found = np.floor((x + 1) * 2).astype(int)
    assert x.shape == (3, 2, 2, 2)
    assert sorted(map(tuple, found[:, 0, 0])) == sorted(map(tuple, tuples))
