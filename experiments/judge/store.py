"""Trained classifiers in files, because training one takes minutes.

A file has the name of the SHA-256 of the data and the options. It is looked for in the
folder `weights` of this package, and then in the folder that runs share, see
`experiments.run.cache`. A classifier that is in neither is trained and written there.
"""

import functools
import hashlib
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ebmjax.types import Key
from experiments.data import digest
from experiments.judge.classifier import (
    VERSION,
    Classifier,
    bind_params,
    check_examples,
    make_network,
    train_classifier,
)
from experiments.run.cache import cache_folder
from experiments.run.digests import CHANGED, read_signed, sign
from experiments.run.workdir import describe_process, save_arrays, say

SHIPPED = pathlib.Path(__file__).parent / "weights"
"""Folder of the classifiers that come with the code; its README says which."""


def prepare_classifier(
    key: Key, images: np.ndarray, labels: np.ndarray, **options: Any
) -> Callable[[], Classifier]:
    """Checks data and options now, and loads or trains the classifier when asked.

    Args:
      key: Key of the training.
      images: Images as `train_classifier` takes them.
      labels: Labels as `train_classifier` takes them.
      **options: Keyword arguments of `train_classifier`.

    Returns:
      `classifier() -> Classifier`. The first call reads the file, or trains and writes
      it. A file that was written on the same machine gives bitwise the same classifier
      as training. A line reports a damaged file, which is trained anew and replaced in
      the cache, and a cache that cannot be written.

    Raises:
      ValueError: As `train_classifier`.
    """
    bound = inspect.signature(train_classifier).bind(key, images, labels, **options)
    bound.apply_defaults()
    options, shape = bound.kwargs, images.shape[1:]
    check_examples(images, labels, options["num_classes"])
    network = make_network(shape, options["num_classes"], options["width"])
    cache = cache_folder()

    @functools.cache
    def classifier():
        name = name_classifier(key, images, labels, options)
        for folder in (SHIPPED, cache):
            try:
                params, _ = read_stored(folder / f"{name}.npz")
            except FileNotFoundError:
                continue
            except ValueError as error:
                say(f"a stored classifier is not used: {error}")
            else:
                return bind_params(network, params, shape)
        trained = train_classifier(key, images, labels, **options)
        _keep(cache / f"{name}.npz", trained.params, options)
        return trained

    return classifier


def name_classifier(
    key: Key, images: np.ndarray, labels: np.ndarray, options: Mapping[str, Any]
) -> str:
    """Returns the SHA-256 of everything that a classifier is a function of."""
    data = digest(images, labels, np.asarray(jax.random.key_data(key)))
    text = json.dumps({"data": data, "version": VERSION, **options}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_stored(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters in a file, and the record of how they were made.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged, or cannot be read.
    """
    arrays, record = read_signed(path)
    if record["arrays"] != _digests(arrays) or record["name"] != path.stem:
        raise ValueError(f"{path} is damaged: {CHANGED}")
    return unflatten_dict(arrays, sep="/"), record


def _digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: digest(array) for name, array in arrays.items()}


def _keep(path: pathlib.Path, params: Any, options: Mapping[str, Any]) -> None:
    """Writes parameters to a file, with the record of how they were made."""
    arrays = flatten_dict(jax.device_get(params), sep="/")
    record = {
        "name": path.stem,
        "arrays": _digests(arrays),
        "version": VERSION,
        "options": dict(options),
        **describe_process(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(path, record=np.array(json.dumps(sign(record))), **arrays)
    except OSError as error:  # a run that has trained for hours must not end here
        say(f"the classifier is not stored and will be trained again: {error}")
