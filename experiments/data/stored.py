"""Files that stand for a split of images: one that is packed, or two that are mapped.

The packed file `NAME.npz` is small, and is copied between machines. The files
`NAME.npy` and `NAME-labels.npy` are mapped into memory: processes of one machine share
them, and only what is used is read.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

Split = tuple[np.ndarray, np.ndarray | None]
"""Images `[n, height, width, channels]` uint8, and labels `[n]` int32 if any."""


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Turns what reading a damaged file raises into a ValueError with its path."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # of gzip, zlib, zipfile, struct, numpy and Pillow
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from error


def mapped_paths(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the paths of images and labels that are mapped, for a packed file's."""
    return path.with_suffix(".npy"), path.with_name(f"{path.stem}-labels.npy")


def read_stored(path: pathlib.Path, size: int, has_labels: bool) -> Split | None:
    """Returns the split of the files that stand for it, or None if there are none.

    Args:
      path: Path of the packed file; those that are mapped go before it.
      size: Height and width that the images must have.
      has_labels: Whether the data set has labels, which a mapped split must then have.
    """
    images_path, labels_path = mapped_paths(path)
    if images_path.is_file():
        images, labels = _map(images_path), None
        if has_labels and not labels_path.is_file():
            raise FileNotFoundError(
                f"{labels_path}, the labels of {images_path}, is missing"
            )
        if has_labels:
            labels = _map(labels_path)
        path = images_path
    elif path.is_file():
        with naming(path), np.load(path) as arrays:
            images, labels = arrays["images"], arrays.get("labels")
    else:
        return None
    is_image = images.ndim == 4 and images.shape[1:3] == (size, size) and images.size
    if images.dtype != np.uint8 or not is_image:
        raise ValueError(
            f"{path}: images must be uint8 [n, {size}, {size}, channels],"
            f" got {images.dtype} {images.shape}"
        )
    if labels is not None and labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels must be whole numbers, got {labels.dtype}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"{path}: {len(images)} images, but labels {labels.shape}")
    return images, labels


def _map(path: pathlib.Path) -> np.ndarray:
    with naming(path):
        return np.asarray(np.load(path, mmap_mode="r"))  # an array, which is a map


def write_packed(path: pathlib.Path, split: Split) -> pathlib.Path:
    """Writes the packed file, and returns its path. It appears whole or not at all."""
    images, labels = split
    arrays = (
        {"images": images} if labels is None else {"images": images, "labels": labels}
    )
    _write(path, lambda file: np.savez_compressed(file, **arrays))
    return path


def write_mapped(path: pathlib.Path, split: Split) -> pathlib.Path:
    """Writes the files that are mapped, for a packed file's path.

    Returns:
      The path of the images, which appear last, and whole or not at all.
    """
    images, labels = split
    images_path, labels_path = mapped_paths(path)
    if labels is not None:
        _write(labels_path, lambda file: np.save(file, labels))
    _write(images_path, lambda file: np.save(file, images))
    return images_path


def _write(path: pathlib.Path, save: Callable) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
