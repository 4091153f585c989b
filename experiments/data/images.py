"""Image data sets as uint8 arrays: from TensorFlow Datasets, or files as published.

    python -m experiments.data.images --name mnist --data_dir D

writes `D/mnist-train-28.npz` and `D/mnist-test-28.npz`, which a machine without
tensorflow-datasets can read: copy them there and use the same `data_dir`. With
`--mapped` it writes `D/mnist-train-28.npy` and so on, which take more of the disk, and
which all processes of a machine share in memory.
"""

import argparse
import functools
import gzip
import importlib.util
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.data.arrays import Images
from experiments.data.stored import (
    Split,
    naming,
    read_stored,
    write_mapped,
    write_packed,
)

__all__ = ["SOURCES", "load", "npz_path", "read_split", "write_split"]


def _same(image: np.ndarray) -> np.ndarray:
    return image


def _transposed(image: np.ndarray) -> np.ndarray:
    return image.swapaxes(0, 1)


def _inverted_grey(image: np.ndarray) -> np.ndarray:
    return 255 - image[..., :1]


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """Returns an array of bytes in the format of the MNIST files, gzipped."""
    with naming(path), gzip.open(path) as file:
        content = file.read()
    num_dims = content[3] if content[:3] == b"\0\0\x08" else 0
    head = 4 + 4 * num_dims
    shape = tuple(np.frombuffer(content[4:head], ">u4").tolist())
    if not num_dims or len(content) - head != math.prod(shape):
        raise ValueError(f"{path} is not a complete idx file of bytes")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _idx_files(**stems: str) -> Callable[[pathlib.Path, str], Split | None]:
    """Reads the four files of an MNIST-like data set; `stems` are by split."""

    def read(folder: pathlib.Path, split: str) -> Split | None:
        stem = stems.get(split)
        images = folder / f"{stem}-images-idx3-ubyte.gz"
        labels = folder / f"{stem}-labels-idx1-ubyte.gz"
        if not images.is_file():
            return None
        if not labels.is_file():
            raise FileNotFoundError(f"{labels}, the labels of {images}, is missing")
        pixels, classes = _read_idx(images), _read_idx(labels)
        if pixels.ndim != 3 or not pixels.size:
            raise ValueError(
                f"{images} must hold images [n, height, width], got {pixels.shape}"
            )
        if classes.shape != pixels.shape[:1]:
            raise ValueError(
                f"{labels} must have a label for each of the {len(pixels)} images of"
                f" {images.name}, got {classes.shape}"
            )
        return pixels[..., None], classes.astype(np.int32)

    return read


def _no_files(folder: pathlib.Path, split: str) -> None:
    del folder, split


def _omniglot_zip(folder: pathlib.Path, split: str) -> Split | None:
    from PIL import Image

    # The small sets are published beside the whole; both folder names are in use.
    for place in (folder, folder.with_name("omniglot_small")):
        path = place / f"images_background_{split}.zip"
        if path.is_file():
            break
    else:
        return None
    with naming(path), zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png"))
        images = [
            np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L"))
            for name in names
        ]
        if not images:
            raise ValueError("it holds no image")
        return np.stack(images)[..., None], None


class Source(NamedTuple):
    """Source of a data set, and the changes that are made to its images.

    Attributes:
      tfds_name: Name of the TensorFlow Datasets builder.
      size: Height and width that `load` gives by default.
      splits: The splits to train on and to hold out.
      crop: Side of the central square that is kept first; None for the largest.
      adapt: Applied to every image `[height, width, channels]` before it is cropped.
      label_name: The feature that is the label; None for no labels.
      first_label: Subtracted from labels, so that they begin at 0.
      read_originals: `read_originals(folder, split) -> Split | None` from files as
        published, None where they are not there; the folder has the data set's name.
    """

    tfds_name: str
    size: int
    splits: tuple[str, str] = ("train", "test")
    crop: int | None = None
    adapt: Callable[[np.ndarray], np.ndarray] = _same
    label_name: str | None = "label"
    first_label: int = 0
    read_originals: Callable[[pathlib.Path, str], Split | None] = _no_files


_MNIST_FILES = _idx_files(train="train", test="t10k")

SOURCES = {
    "mnist": Source("mnist", 28, read_originals=_MNIST_FILES),
    "fashion_mnist": Source("fashion_mnist", 28, read_originals=_MNIST_FILES),
    "kmnist": Source("kmnist", 28, read_originals=_MNIST_FILES),
    # All EMNIST files have rows and columns swapped, and letters begin at 1.
    "emnist_letters": Source(
        "emnist/letters",
        28,
        adapt=_transposed,
        first_label=1,
        read_originals=_idx_files(
            train="emnist-letters-train", test="emnist-letters-test"
        ),
    ),
    # Black on white as published; also has splits "small1" and "small2".
    "omniglot": Source(
        "omniglot",
        28,
        adapt=_inverted_grey,
        label_name=None,
        read_originals=_omniglot_zip,
    ),
    "cifar10": Source("cifar10", 32),
    "cifar100": Source("cifar100", 32),
    "svhn": Source("svhn_cropped", 32),
    "imagenet32": Source("imagenet_resized/32x32", 32, splits=("train", "validation")),
    "lsun": Source("lsun/bedroom", 32, splits=("train", "validation"), label_name=None),
    # The crop is that of Song & Ermon (2019); a GEBM's paper has none.
    "celeb_a": Source("celeb_a", 64, crop=140, label_name=None),
}


def convert_images(images, source: Source, num_images: int, size: int) -> np.ndarray:
    """Adapts, crops and resizes images that come one by one, into one array."""
    converted = None
    for i, image in enumerate(images):
        image = source.adapt(image)
        crop = source.crop or min(image.shape[:2])
        top, left = ((side - crop) // 2 for side in image.shape[:2])
        image = image[top : top + crop, left : left + crop]
        if image.shape[:2] != (size, size):
            image = _resize(image, size)
        if converted is None:  # only now is the number of channels known
            converted = np.empty((num_images, *image.shape), np.uint8)
        converted[i] = image
    return converted


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    squeezed = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    resized = squeezed.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(size, size, image.shape[-1])


def _directory(data_dir: str | os.PathLike | None) -> pathlib.Path:
    if data_dir is None:  # as TFDS itself decides
        data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return pathlib.Path(data_dir).expanduser()


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"name {name!r} is not one of {sorted(SOURCES)}")
    return SOURCES[name]


def npz_path(
    name: str, split: str, data_dir: str | os.PathLike | None, size: int | None = None
) -> pathlib.Path:
    """Returns the path of the packed copy of a split, which need not exist."""
    size = _source(name).size if size is None else size
    return _directory(data_dir) / f"{name}-{split}-{size}.npz"


def _read_tfds(
    name: str, split: str, data_dir: pathlib.Path, size: int, download: bool
) -> Split:
    source = SOURCES[name]
    wanted = f"{name}, split {split!r}, is not in {data_dir}"
    npz = npz_path(name, split, data_dir, size)
    command = f"python -m experiments.data.images --name {name} --data_dir DIR"
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{wanted}: it has no {npz.name}, and tensorflow-datasets is not installed."
            " Either `pip install tensorflow-datasets pillow`, or make that file where"
            f" it is installed (`{command}`) and copy it here"
        ) from error
    open_source = functools.partial(
        tfds.data_source,
        source.tfds_name,
        split=split,
        data_dir=data_dir,
        # Else TFDS prepares a form that only TensorFlow reads.
        builder_kwargs={"file_format": "array_record"},
    )
    try:  # TFDS raises many kinds of errors; the cause is kept
        examples = open_source(download=False)
    except Exception as error:
        missing = (
            f"{wanted}: there is no {npz.name}, no file as published in"
            f" {data_dir / name}, and no TFDS array_record directory"
            f" {data_dir / source.tfds_name}"
        )
        if importlib.util.find_spec("tensorflow") is None:
            raise FileNotFoundError(
                f"{missing}. TFDS needs TensorFlow to prepare it, once, though not to"
                f" read it: `pip install tensorflow-cpu`, then `{command}`"
            ) from error
        if not download:
            raise FileNotFoundError(
                f"{missing}. Prepare it with `{command}`, or let download=True do so"
            ) from error
        try:
            examples = open_source(download=True)
        except Exception as error:
            raise FileNotFoundError(
                f"{missing}, and TFDS could not download and prepare it"
            ) from error
    num_images = len(examples)
    if not num_images:
        raise ValueError(f"{name}, split {split!r}, holds no image in {data_dir}")
    labels = None if source.label_name is None else np.empty(num_images, np.int32)

    def images():
        for i in range(num_images):
            example = examples[i]
            if labels is not None:
                labels[i] = example[source.label_name] - source.first_label
            yield example["image"]

    return convert_images(images(), source, num_images, size), labels


def read_split(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    size: int | None = None,
    download: bool = False,
) -> Split:
    """Returns one split of an image data set, decoded to an array.

    Looks in `data_dir` for, in this order: files of `write_split`, those that are
    mapped before the packed one; files as published
    (`<name>/t10k-images-idx3-ubyte.gz` and the like, the zips of Omniglot); a TFDS
    directory in the array_record format. The images are the same, but TFDS has its own
    order of them.

    EMNIST is turned upright, Omniglot is made white on black, and CelebA is cropped to
    its central 140 x 140 pixels. What then has another size than asked is resized.

    Args:
      name: One of `SOURCES`.
      split: As TFDS calls it: "train", "test", ....
      data_dir: None for TFDS's default, `~/tensorflow_datasets`.
      size: Height and width; None for the data set's usual ones.
      download: Whether TFDS may download and prepare what is not there.

    Returns:
      `(images, labels)`, uint8 `[n, size, size, channels]` and int32 `[n]` counted
      from 0, or None for CelebA and Omniglot.

    Raises:
      ValueError: For an unknown name, or a file that is damaged.
      ImportError: If only TFDS could have the data, and it is not installed.
      FileNotFoundError: If the data are not there.
    """
    source, data_dir = _source(name), _directory(data_dir)
    size = source.size if size is None else size
    path, has_labels = npz_path(name, split, data_dir, size), bool(source.label_name)
    stored = read_stored(path, size, has_labels)
    if stored is not None:
        return stored
    originals = source.read_originals(data_dir / name, split)
    if originals is not None:
        images, labels = originals
        if labels is not None:
            if labels.min() < source.first_label:
                raise ValueError(
                    f"{name}, split {split!r}: labels in {data_dir / name} must be at"
                    f" least {source.first_label}, got {labels.min()}"
                )
            labels = labels - source.first_label
        return convert_images(images, source, len(images), size), labels
    return _read_tfds(name, split, data_dir, size, download)


def load(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    size: int | None = None,
    download: bool = False,
) -> Images:
    """Returns an image data set, its training and its test split; see `read_split`."""
    train, held_out = (
        read_split(name, split, data_dir=data_dir, size=size, download=download)
        for split in _source(name).splits
    )
    if train[0].shape[1:] != held_out[0].shape[1:]:
        first, second = _source(name).splits
        raise ValueError(
            f"{name}: images of the split {first!r} are {train[0].shape[1:]}, but those"
            f" of {second!r} are {held_out[0].shape[1:]}"
        )
    if (train[1] is None) != (held_out[1] is None):
        raise ValueError(f"{name}: only one of the two splits has labels")
    return Images(train[0], held_out[0], train[1], held_out[1], num_levels=256)


def write_split(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    size: int | None = None,
    download: bool = False,
    is_mapped: bool = False,
) -> pathlib.Path:
    """Stores a split as files that `read_split` reads first; see `stored`.

    Every file appears whole or not at all. Arguments and errors are those of
    `read_split`.

    Args:
      is_mapped: Whether to write the files that are mapped into memory, instead of the
        packed one.

    Returns:
      The path of the file with the images.
    """
    found = read_split(name, split, data_dir=data_dir, size=size, download=download)
    write = write_mapped if is_mapped else write_packed
    return write(npz_path(name, split, data_dir, size), found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", required=True, choices=sorted(SOURCES))
    parser.add_argument("--data_dir", help="default: ~/tensorflow_datasets, as TFDS")
    parser.add_argument("--size", type=int, help="height and width of the images")
    parser.add_argument(
        "--mapped", action="store_true", help="files that processes share in memory"
    )
    parser.add_argument("--splits", nargs="+", help="default: the two that are used")
    options = parser.parse_args(arguments)
    for split in options.splits or SOURCES[options.name].splits:
        path = write_split(
            options.name,
            split,
            data_dir=options.data_dir,
            size=options.size,
            download=True,
            is_mapped=options.mapped,
        )
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
