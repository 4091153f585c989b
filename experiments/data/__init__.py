"""Data as a function of the step: digits, images from TFDS or files, toy targets."""

import contextlib
import difflib
import inspect
import re
from collections.abc import Iterator, Mapping

from ebmjax.checks import check_count
from experiments.data.arrays import (
    Images,
    dequantize,
    digest,
    epoch_rows,
    image_batches,
    in_chunks,
    middles,
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
    "fitting",
    "image_batches",
    "image_section",
    "in_chunks",
    "load_images",
    "load_section",
    "middles",
    "process_rows",
    "quantize",
    "read_split",
    "row_batches",
    "target_batches",
]


def load_images(name: str, **section) -> Images:
    """Returns a data set of images by its name, as a section of a config gives it.

    Args:
      name: "digits", which is embedded and takes nothing more; one of
        `images.SOURCES` ("mnist", "cifar10", ...), which take `data_dir`, `size` and
        `download`; or "arrays", your own images.
      **section: Keyword arguments of `digits.load`, `images.load` or `own_images.load`.

    Raises:
      ValueError: For a name that is not known; the message has those that are. Also for
        options that the data set does not take.
    """
    # Here and not above, as `images` is also run as a program.
    from experiments.data.choices import IMAGES

    if name not in IMAGES:
        near = difflib.get_close_matches(name, IMAGES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"data.name {name!r} is not one of {sorted(IMAGES)}{hint}")
    try:
        inspect.signature(IMAGES[name]).bind(**section)
    except TypeError as error:
        raise ValueError(f"data: {name!r} does not fit: {error}") from error
    return IMAGES[name](**section)


def image_section(name: str, **others) -> dict:
    """Returns a config's section `data` for `load_section`, of images that are not
    embedded."""
    files = {
        "data_dir": "",  # prepared data; "" for TFDS's default folder
        "download": True,  # whether TFDS may fetch what is not there
        "size": 0,  # pixels a side; 0 for the data set's own
    }
    if name == "arrays":
        files = {
            "path": "",  # a folder of images, a .npy or an .npz file
            "held_out_path": "",  # another one to hold out; "" for a part of `path`
            "held_out_share": 0.1,  # share of the images of `path` to hold out
            "split_seed": 0,  # of the choice of these
            "size": 32,  # pixels a side, by resizing; 0 for what the images have
            "crop": 0,  # pixels a side of the central square; 0 for the largest
            "channels": 0,  # 1 for grey, 3 for colour; 0 for what the images have
            "num_levels": 256,  # values of a pixel
        }
    return {
        "name": name,  # of the data set, such as "fashion_mnist"; or "arrays"
        "batch_size": 64,  # of all devices
        "num_examples": 0,  # first images trained on; 0 for all
        **files,
        **others,
    }


def load_section(section: Mapping) -> Images:
    """Returns a data set of images from a config's section, cut to its first
    `num_examples`.

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


@contextlib.contextmanager
def fitting(section: Mapping, image_shape: tuple[int, ...]) -> Iterator[None]:
    """Adds to the error of a network that refuses images which sizes it would take.

    Args:
      section: A config's section `data`. Without an option `size` nothing is added.
      image_shape: `(height, width, channels)`, for which the network is made within.
    """
    try:
        yield
    except ValueError as error:
        found = re.match("image_shape .* multiples of ([0-9]+),", str(error))
        if not found or "size" not in section:
            raise
        divisor = int(found[1])
        below = min(image_shape[:2]) // divisor * divisor
        sizes = [str(size) for size in (below, below + divisor) if size]
        raise ValueError(
            f"{error}; set data.size to {' or '.join(sizes)} to resize the images"
        ) from error


def read_split(name: str, split: str, **section):
    """`(images, labels)` of one split; see `images.read_split`."""
    from experiments.data import images

    return images.read_split(name, split, **section)
