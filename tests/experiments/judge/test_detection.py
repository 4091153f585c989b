"""Out-of-distribution detection: its images, and the area under its curve."""

import jax
import numpy as np
import pytest

from experiments.data import images
from experiments.judge.detection import area_under_roc, foreign_images


@pytest.mark.quick
def test_a_foreign_data_set_that_is_not_there_is_left_out_and_named(tmp_path, caplog):
    rng = np.random.default_rng(0)
    np.savez(
        images.npz_path("kmnist", "test", tmp_path, 28),
        images=rng.integers(0, 256, (24, 28, 28, 1), np.uint8),
        labels=rng.integers(0, 10, 24, np.int32),
    )
    train = np.zeros((4, 28, 28, 1), np.float32)
    names = "uniform", "omniglot", "kmnist"
    with caplog.at_level("WARNING"):
        found = foreign_images(jax.random.key(0), names, train, data_dir=tmp_path)
    assert list(found) == ["uniform", "kmnist"]
    assert found["kmnist"].shape == (24, 28, 28, 1)
    assert "no out-of-distribution score on omniglot" in caplog.text
    with pytest.raises(ValueError, match="'kmnst' is not one of"):
        foreign_images(jax.random.key(0), ["kmnst"], train)
    with pytest.raises(ValueError, match=r"'kmnist' are \(28, 28, 1\), the model's"):
        colour = np.zeros((4, 28, 28, 3), np.float32)
        foreign_images(jax.random.key(0), ["kmnist"], colour, data_dir=tmp_path)


def test_the_area_under_the_curve_is_the_share_of_ordered_pairs(tmp_path):
    """Known 1, 3 and foreign 2, 4: three of the four pairs are in order."""
    foreign = {"x": np.array([2.0, 4.0])}
    found = area_under_roc(lambda x: x, np.array([1.0, 3.0]), foreign, tmp_path)
    assert found == {"auroc_x": 0.75}
    rows = (tmp_path / "scores.csv").read_text().splitlines()
    energies = ["held_out,1.0", "held_out,3.0", "x,2.0", "x,4.0"]
    assert rows == ["data,energy", *energies]
