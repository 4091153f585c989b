"""Data of the right shapes instead of data sets.

A program depends on the shapes of its data alone. The readers are replaced, and nothing
else, so that the `build` of a problem is otherwise what a run calls.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
from ml_collections import ConfigDict

from experiments.data import (
    Images,
    anomalies,
    choices,
    images,
    own_tables,
    tabular,
)

NUM_IMAGES = 2_000
NUM_ROWS = 2_000
GREY = ("mnist", "fashion_mnist", "kmnist", "emnist_letters", "omniglot")

COLUMNS = {
    "red_wine": 11,
    "white_wine": 11,
    "parkinsons": 15,
    "hepmass": 22,
    "miniboone": 43,
}
"""Table -> number of columns that `tabular.load` leaves of it."""

KDD_COLUMNS = 121
"""Number of columns of KDD Cup 99, with one for each value of a category."""


def _read_split(name, split, *, data_dir=None, size=None, download=False):
    del data_dir, download
    side = size or images.SOURCES[name].size
    rng = np.random.default_rng(split == images.SOURCES[name].splits[0])
    shape = (NUM_IMAGES, side, side, 1 if name in GREY else 3)
    # Labels for all: without them an evaluation would ask for the weights of Inception.
    labels = np.arange(NUM_IMAGES, dtype=np.int32) % 10
    return rng.integers(0, 256, shape, np.uint8), labels


def _load_own_images(*, size=0, **options):
    del options
    parts = [_read_split("cifar10", split, size=size) for split in ("train", "test")]
    (train, labels_train), (held_out, labels_held_out) = parts
    return Images(train, held_out, labels_train, labels_held_out, 256)


def _load_table(name, **options):
    del options
    rng = np.random.default_rng(0)
    shape = (3, NUM_ROWS, COLUMNS[name])
    names = tuple(f"column {i + 1}" for i in range(COLUMNS[name]))
    return tabular.Table(*np.float32(rng.standard_normal(shape)), names, ())


def _load_own_table(section):
    del section
    return _load_table("red_wine")


def _load_anomalies(*args, **options):
    del args, options
    rng = np.random.default_rng(0)
    train, test = np.float32(rng.standard_normal((2, NUM_ROWS, KDD_COLUMNS)))
    return anomalies.Anomalies(train, test, np.arange(NUM_ROWS) % 5 == 0)


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Within it, every data set has 2,000 examples of noise in its own shape."""
    with contextlib.ExitStack() as stack:
        for module, name, function in (
            (images, "read_split", _read_split),
            (tabular, "load", _load_table),
            (own_tables, "from_section", _load_own_table),
            (anomalies, "kdd99", _load_anomalies),
            (anomalies, "tables", _load_anomalies),
        ):
            stack.enter_context(mock.patch.object(module, name, function))
        own = {"arrays": _load_own_images}
        stack.enter_context(mock.patch.dict(choices.IMAGES, own))
        yield


def without_data(config: ConfigDict) -> ConfigDict:
    """Returns a config for the stand-ins: all of them, and no other data set."""
    values = {
        "data.num_examples": 0,
        "data.data_dir": "stand-ins",
        "data.path": "stand-ins",
        "data.csv": "stand-ins",
        "data.score_csv": "stand-ins",
        "evaluation.out_of_distribution": (),
        "evaluation.min_accuracy": 0.0,  # the classifier is not trained
    }
    config = ConfigDict(config).unlock()
    known = config.to_dict()
    for path, value in values.items():
        section, _, option = path.partition(".")
        if option in known.get(section, {}):
            config[section][option] = value
    return config.lock()
