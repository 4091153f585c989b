"""Handwritten digits, 8x8: real images that come with scikit-learn."""

import numpy as np

from experiments.data.arrays import Images

__all__ = ["load"]

_NUM_HELD_OUT = 297


def load() -> Images:
    """Returns 1,797 images `[8, 8, 1]` of 17 levels (0 to 16), 1,500 to train on.

    No download: the array is part of scikit-learn. The split is fixed and holds out 29
    or 30 images of every class.

    This is the test part of the UCI set, the whole of what scikit-learn ships; it is
    not MNIST made smaller, and results on either say little about the other.

    Raises:
      ImportError: Where scikit-learn is not installed.

    Source:
      Alpaydin & Kaynak (1998), "Optical recognition of handwritten digits", UCI.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn: pip install scikit-learn"
        ) from error
    bunch = datasets.load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    # RandomState, not default_rng: numpy promises that its numbers never change.
    order = np.random.RandomState(0).permutation(len(labels))
    # Place among the shuffled images of the same class: sorted by it, the classes take
    # turns, and the first 297 are balanced.
    shuffled = labels[order]
    place = np.empty_like(shuffled)
    for label in np.unique(shuffled):
        is_label = shuffled == label
        place[is_label] = np.arange(is_label.sum())
    order = order[np.lexsort((shuffled, place))]
    held_out, train = order[:_NUM_HELD_OUT], order[_NUM_HELD_OUT:]
    return Images(images[train], images[held_out], labels[train], labels[held_out], 17)
