"""Inverse problems, and the PCA that reconstruction is compared with."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from experiments.short_run.inverse import make_problems, pca_errors


def test_pca_errors_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    train = (
        rng.normal(size=(60, 2, 3, 1))
        @ np.ones((1, 1))
        * np.arange(1, 7).reshape(2, 3, 1)
    )
    held_out = rng.normal(size=(10, 2, 3, 1))
    errors = pca_errors(train, held_out)
    for rank in range(1, 7):
        pca = PCA(rank).fit(train.reshape(60, 6))
        flat = held_out.reshape(10, 6)
        rebuilt = pca.inverse_transform(pca.transform(flat))
        np.testing.assert_allclose(
            errors[rank], ((rebuilt - flat) ** 2).mean(), atol=1e-12
        )


def test_pca_errors_of_few_large_images_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    train, held_out = rng.normal(size=(9, 5, 5, 1)), rng.normal(size=(4, 5, 5, 1))
    errors = pca_errors(train, held_out)
    assert len(errors) == 9
    for rank in (1, 4, 8):
        pca = PCA(rank).fit(train.reshape(9, 25))
        flat = held_out.reshape(4, 25)
        rebuilt = pca.inverse_transform(pca.transform(flat))
        np.testing.assert_allclose(
            errors[rank], ((rebuilt - flat) ** 2).mean(), atol=1e-12
        )


@pytest.mark.quick
def test_inverse_problems_show_what_is_seen_of_an_image():
    """The three rows hold 0, 1, ..., 5. Blocks of 2 x 2 pixels leave out the last."""
    image = np.arange(6.0).reshape(3, 2, 1)
    problems = make_problems((3, 2, 1))
    np.testing.assert_array_equal(problems["reconstruction"].show(image), image)
    inpainting = problems["inpainting"]
    np.testing.assert_array_equal(
        inpainting.observe(image)[..., 0], [[0, 1]] + 2 * [[0, 0]]
    )
    np.testing.assert_array_equal(inpainting.show(image)[0], image[0])
    assert np.isnan(inpainting.show(image)[1:]).all()  # plots hatch what is not seen
    np.testing.assert_array_equal(
        inpainting.is_judged[..., 0], [2 * [False]] + 2 * [2 * [True]]
    )
    enlarging = problems["super_resolution"]
    assert enlarging.observe(image).item() == pytest.approx(1.5)
    np.testing.assert_array_equal(enlarging.show(image), np.full((2, 2, 1), 1.5))
