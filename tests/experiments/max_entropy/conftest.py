"""Small data sets of noise, for the problems that read images."""

import numpy as np
import pytest

from experiments.data import images

IMAGES = {"mnist": (28, 1), "cifar10": (32, 3), "celeb_a": (64, 3)}


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory):
    """A folder in the form that needs no TFDS."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, (size, channels) in IMAGES.items():
        for split, num in (("train", 80), ("test", 40)):
            np.savez(
                images.npz_path(name, split, folder, size),
                images=rng.integers(0, 256, (num, size, size, channels), np.uint8),
                labels=np.arange(num, dtype=np.int32) % 10,
            )
    return folder
