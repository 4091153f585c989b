"""Measures of images by their pixels alone."""

import jax
import numpy as np

from ebmjax import metrics
from experiments.data import load_images
from experiments.judge.judge import gaussian_draws, make_judge
from experiments.judge.pixels import Pixels, fit_pixels, pixel_quality

RNG = np.random.default_rng(0)


def images(num, scales=(3.0, 2.0, 0.1, 0.1), seed=0):
    """Images [num, 2, 2, 1] whose pixels have these standard deviations."""
    noise = np.random.default_rng(seed).normal(size=(num, len(scales)))
    return (noise * np.array(scales)).astype(np.float32).reshape(num, 2, 2, 1)


def test_features_keep_all_lengths_and_the_first_follow_the_widest_directions():
    """In 200 dimensions with more or with fewer images, and 64 components."""
    for num in (300, 100):
        x = RNG.normal(size=(num, 10, 20, 1)) * np.linspace(1, 9, 20)[:, None]
        pixels = fit_pixels(x, x)
        features = pixels.features(x)
        assert features.shape == (num, 65)
        centred = x.reshape(num, -1) - x.reshape(num, -1).mean(0)
        squares = np.sum(centred**2, 1)
        np.testing.assert_allclose(np.sum(features**2, 1), squares, rtol=1e-4)
        # The variances along the components are the largest eigenvalues.
        expected = np.linalg.svd(centred, compute_uv=False)[:64] ** 2
        np.testing.assert_allclose(
            np.sum(features[:, :64] ** 2, 0), expected, rtol=1e-3
        )


def test_distances_are_these_numbers():
    """Shifted copies: the squared shift is their Frechet distance, as their features
    are shifted and their covariance is the same. The kernel's are the library's own."""
    data, other = images(400), images(400, seed=1)
    pixels = fit_pixels(data, other)
    assert pixels.vectors.shape == (4, 4)
    shifted = data + np.float32(0.5)
    found = pixel_quality(pixels, shifted, data)
    np.testing.assert_allclose(found["pixel_frechet_distance"], 4 * 0.5**2, rtol=1e-2)
    flat = data.reshape(400, 4)
    np.testing.assert_allclose(pixels.bandwidth, 0.35 * metrics.median_distance(flat))
    for name, against in (("kernel_distance", data), ("gaussian_distance", other)):
        expected = metrics.maximum_mean_discrepancy(
            shifted.reshape(400, 4),
            against.reshape(400, 4),
            kernel="gaussian",
            bandwidth=pixels.bandwidth,
        )
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)
        assert expected > 0.005


def test_noise_beyond_the_components_is_not_overlooked():
    """64 of 100 dimensions have components, and the noise is in the other 36 alone."""
    x = RNG.normal(size=(500, 10, 10, 1)) * np.repeat([1.0, 0.01], [64, 36]).reshape(
        10, 10, 1
    )
    noisy = x.copy().reshape(500, 100)
    noisy[:, 64:] += RNG.normal(size=(500, 36))
    pixels = fit_pixels(x, x)
    same = pixel_quality(pixels, x[:250], x[250:])["pixel_frechet_distance"]
    found = pixel_quality(pixels, noisy[:250].reshape(250, 10, 10, 1), x[250:])
    # The lengths of what is left are near 6 instead of 0.06.
    assert 25 < found["pixel_frechet_distance"] - same < 45


def test_images_without_labels_have_a_table_of_what_needs_none(capsys):
    data = load_images("digits")._replace(labels_train=None, labels_held_out=None)
    judge = make_judge(data, 500, 700)
    assert judge.accuracy is None and judge.distance == "pixel_frechet_distance"
    normal = gaussian_draws(jax.random.key(5), judge.train, 398).clip(-1, 1)
    copies = (data.train[:398] + np.float32(0.5)) * np.float32(2 / 17) - 1
    table = judge.table({"copies": copies, "normal": normal})
    assert "no labels" in capsys.readouterr().err
    rows = {row["name"]: row for row in table}
    assert list(rows) == ["data", "gaussian", "uniform", "copies", "normal"]
    names = [*("name", "num_samples", "pixel_frechet_distance", "kernel_distance")]
    assert list(rows["data"]) == [*names, "gaussian_distance", "nearest_distance"]
    assert rows["copies"]["num_samples"] == 398
    # Copies are as near to the data as the data are, and nearest to themselves.
    distances = {name: row["kernel_distance"] for name, row in rows.items()}
    assert abs(distances["data"]) < 0.002 and abs(distances["copies"]) < 0.005
    assert min(distances[name] for name in ("normal", "gaussian", "uniform")) > 0.01
    of_normal = {name: row["gaussian_distance"] for name, row in rows.items()}
    assert abs(of_normal["normal"]) < 0.002 and of_normal["data"] > 0.01
    assert rows["copies"]["nearest_distance"] < 1e-5
    # Those that are held out are not: their nearest training image is another one.
    expected = np.linalg.norm(
        judge.held_out - judge.nearest(judge.held_out), axis=(1, 2)
    ).mean()
    np.testing.assert_allclose(rows["data"]["nearest_distance"], expected, rtol=1e-5)
    assert 1.0 < expected < rows["uniform"]["nearest_distance"]
    assert isinstance(fit_pixels(judge.train, normal), Pixels)
