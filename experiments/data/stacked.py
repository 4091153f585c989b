"""Images of several digits, one in each channel, whose modes can be counted."""

from collections.abc import Callable

import numpy as np

from ebmjax.types import Array, Key
from experiments.data.arrays import image_batches

__all__ = ["draw_tuples", "stack", "stacked_batches"]

TUPLES_A_MODE = 128


def draw_tuples(num_images: int, num_digits: int, tuple_seed: int) -> np.ndarray:
    """Returns `[128 * 10^num_digits, num_digits]`: rows of images, uniform with
    replacement.

    Drawn once: they are the data set.
    """
    if num_digits < 1:
        raise ValueError(f"num_digits must be at least 1, got {num_digits}")
    # RandomState, not default_rng: numpy promises that its numbers never change.
    size = (TUPLES_A_MODE * 10**num_digits, num_digits)
    return np.random.RandomState(tuple_seed).randint(0, num_images, size)


def stack(images: np.ndarray, tuples: np.ndarray) -> np.ndarray:
    """Returns `[n, height, width, num_digits]` of images `[m, height, width, 1]`."""
    return np.moveaxis(images[tuples][..., 0], 1, -1)


class _Stacked:
    """Tuples as if they were images: indexed by rows, made when asked for."""

    def __init__(self, images: np.ndarray, tuples: np.ndarray):
        self._images, self._tuples = images, tuples
        self.shape = (len(tuples), *images.shape[1:3], tuples.shape[1])

    def __len__(self) -> int:
        return len(self._tuples)

    def __getitem__(self, rows) -> np.ndarray:
        return stack(self._images, self._tuples[rows])


def stacked_batches(
    key: Key, images: np.ndarray, tuples: np.ndarray, size: int, *, num_levels: int
) -> Callable[[int], Array]:
    """`image_batches` of stacked images, which are too many to be held."""
    return image_batches(key, _Stacked(images, tuples), size, num_levels=num_levels)
