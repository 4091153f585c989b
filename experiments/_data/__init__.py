"""Data as a function of the step: digits, images from TFDS or files, toy targets."""

import difflib
import functools
from collections.abc import Callable, Mapping

from ebmjax import targets
from experiments._data import digits, images, toy
from experiments._data.arrays import (
    Images,
    add_noise,
    dequantize,
    epoch_rows,
    image_batches,
    process_rows,
    quantize,
)
from experiments._data.toy import target_batches

__all__ = [
    "Images",
    "add_noise",
    "dequantize",
    "epoch_rows",
    "image_batches",
    "load",
    "load_target",
    "process_rows",
    "quantize",
    "target_batches",
]


def _pick(kind: str, functions: Mapping[str, Callable], name: str) -> Callable:
    if name not in functions:
        near = difflib.get_close_matches(name, functions, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{kind} {name!r} is not one of {sorted(functions)}{hint}")
    return functions[name]


def load(name: str, **section) -> Images:
    """A data set of images by its name, as a section of a config gives it.

    Args:
      name: "digits", which is embedded and takes nothing more, or one of
        `images.SOURCES` ("mnist", "cifar10", ...), which take `data_dir`, `size` and
        `download`.
      **section: Keyword arguments of `digits.load` or `images.load`.

    Raises:
      ValueError: For a name that is not known; the message has those that are.
    """
    loaders = {"digits": digits.load} | {
        source: functools.partial(images.load, source) for source in images.SOURCES
    }
    return _pick("data set", loaders, name)(**section)


def load_target(name: str, **section) -> targets.Target:
    """A toy target by its name: one of `toy.TARGETS`, with its keyword arguments.

    Raises:
      ValueError: For a name that is not known; the message has those that are.
    """
    return _pick("target", toy.TARGETS, name)(**section)
