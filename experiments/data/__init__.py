"""Data as a function of the step: digits, images from TFDS or files, toy targets."""

import difflib
import functools
from collections.abc import Mapping

from ebmjax.checks import check_count
from experiments.data.arrays import (
    Images,
    dequantize,
    digest,
    epoch_rows,
    image_batches,
    in_chunks,
    process_rows,
    quantize,
    row_batches,
)
from experiments.data.toy import target_batches

__all__ = [
    "Images",
    "dequantize",
    "digest",
    "epoch_rows",
    "image_batches",
    "image_section",
    "in_chunks",
    "load_images",
    "load_section",
    "process_rows",
    "quantize",
    "read_split",
    "row_batches",
    "target_batches",
]


def load_images(name: str, **section) -> Images:
    """A data set of images by its name, as a section of a config gives it.

    Args:
      name: "digits", which is embedded and takes nothing more, or one of
        `images.SOURCES` ("mnist", "cifar10", ...), which take `data_dir`, `size` and
        `download`.
      **section: Keyword arguments of `digits.load` or `images.load`.

    Raises:
      ValueError: For a name that is not known; the message has those that are.
    """
    # Here and not above, as `images` is also run as a program.
    from experiments.data import digits, images

    loaders = {"digits": digits.load} | {
        source: functools.partial(images.load, source) for source in images.SOURCES
    }
    if name not in loaders:
        near = difflib.get_close_matches(name, loaders, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"data.name {name!r} is not one of {sorted(loaders)}{hint}")
    return loaders[name](**section)


def image_section(name: str, **others) -> dict:
    """A config's section `data` for `load_section`, of images that are not embedded."""
    return {
        "name": name,  # of the data set, such as "fashion_mnist"
        "batch_size": 64,  # of all devices
        "num_examples": 0,  # first images trained on; 0 for all
        "data_dir": "",  # prepared data; "" for TFDS's default folder
        "download": True,  # whether TFDS may fetch what is not there
        "size": 0,  # pixels a side; 0 for the data set's own
        **others,
    }


def load_section(section: Mapping) -> Images:
    """A data set of images from a config's section, cut to its first `num_examples`.

    Args:
      section: `load_images`'s keyword arguments, with "" for no `data_dir` and 0 for no
        `size`; `num_examples`, 0 for all; and `batch_size` and `is_mirrored`, which
        are the batches' and not looked at.

    Raises:
      ValueError: As `load_images`, or if `num_examples` is negative or more than there
        are.
    """
    section = dict(section)
    num_examples = section.pop("num_examples")
    check_count("data.num_examples", num_examples, 0)
    del section["batch_size"]
    section.pop("is_mirrored", None)
    for name in ("data_dir", "size"):
        if name in section:
            section[name] = section[name] or None
    data = load_images(**section)
    if num_examples:
        if num_examples > len(data.train):
            raise ValueError(
                f"data.num_examples must be at most {len(data.train)},"
                f" got {num_examples}"
            )
        labels = data.labels_train
        data = data._replace(
            train=data.train[:num_examples].copy(),  # and the rest is forgotten
            labels_train=None if labels is None else labels[:num_examples],
        )
    return data


def read_split(name: str, split: str, **section):
    """`(images, labels)` of one split; see `images.read_split`."""
    from experiments.data import images

    return images.read_split(name, split, **section)
