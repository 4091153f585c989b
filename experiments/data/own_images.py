"""Images of your own: an array of numpy's, or a folder of pictures.

    python -m experiments.short_run.images --workdir=runs/own --config=own \
        --config.data.path=photos
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.data.arrays import Images
from experiments.data.images import Source, convert_images
from experiments.data.stored import mapped_paths, naming

__all__ = ["load"]

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
GREY_MODES = ("1", "L", "LA")
FEWEST = 2
"""Least number of images that are trained on, and of those held out."""


class Pictures(NamedTuple):
    """Images that were found, and have not been converted yet.

    Attributes:
      names: Names of the images, for messages: `[n]`.
      shapes: Heights and widths, `[n, 2]`.
      is_grey: Whether none of them has colours.
      images: The array `[n, height, width, channels]`, or the files.
      labels: Labels of any type, `[n]`, or None.
    """

    names: list[str]
    shapes: np.ndarray
    is_grey: bool
    images: np.ndarray | list[pathlib.Path]
    labels: np.ndarray | None


def load(
    *,
    path: str = "",
    held_out_path: str = "",
    held_out_share: float = 0.1,
    split_seed: int = 0,
    size: int = 0,
    crop: int = 0,
    channels: int = 0,
    num_levels: int = 256,
) -> Images:
    """Returns the images of a file or a folder, divided in two.

    Args:
      path: One of these. A `.npy` file holds an array `[n, height, width]` or
        `[n, height, width, channels]` of whole numbers; its labels, if any, are in
        `NAME-labels.npy`. An `.npz` file holds such an array as `images`, and the
        labels, if any, as `labels`. A folder has pictures, such as PNGs and JPEGs. If
        they are in sub-folders, each sub-folder is a class.
      held_out_path: The same for the images that are held out; "" to hold out a part of
        those in `path`.
      held_out_share: Share of the images that are held out, the same of every class, if
        `held_out_path` is "".
      split_seed: Seed of the choice of the images that are held out.
      size: Height and width of the result: the central square of every image is
        resized. 0 to leave images as they are, which must then have one size.
      crop: Side of the central square; 0 for the largest one, or for the whole image if
        `size` is 0.
      channels: 1 for grey, 3 for colour, 0 for grey if no image has colours.
      num_levels: Number of values that a pixel can take, from 0 on.

    Raises:
      FileNotFoundError: If there is no such file or folder.
      ValueError: If a file cannot be read or holds something else, images have several
        sizes, or too few images are there. The message names the file.
    """
    if not path:
        raise ValueError(
            "data.path must be a folder of images, a .npy or an .npz file, got ''"
        )
    if not 0 < held_out_share < 1:
        raise ValueError(
            f"data.held_out_share must be above 0 and below 1, got {held_out_share}"
        )
    if channels not in (0, 1, 3):
        raise ValueError(f"data.channels must be 0, 1 or 3, got {channels}")
    if not 2 <= num_levels <= 256:
        raise ValueError(f"data.num_levels must be from 2 to 256, got {num_levels}")
    parts = [find(place, num_levels) for place in (path, held_out_path) if place]
    shape = _common_shape(parts, size, crop)
    is_grey = channels == 1 or (channels == 0 and all(part.is_grey for part in parts))
    images = [
        _convert(part, shape, crop, 1 if is_grey else 3, num_levels) for part in parts
    ]
    labels = _number_labels(parts)
    if held_out_path:
        for place, rows in zip((path, held_out_path), images, strict=True):
            if len(rows) < FEWEST:
                raise ValueError(
                    f"{place}: at least {FEWEST} images are needed, got {len(rows)}"
                )
        return Images(*images, *labels, num_levels)
    num = len(images[0])
    num_held_out = round(held_out_share * num)
    if min(num_held_out, num - num_held_out) < FEWEST:
        raise ValueError(
            f"{path}: at least {FEWEST} images must be trained on and {FEWEST} held"
            f" out: data.held_out_share={held_out_share:g} of {num} images are"
            f" {num_held_out}"
        )
    order = shuffle(num, labels[0], split_seed)
    held_out, train = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
    labelled = [None if labels[0] is None else labels[0][x] for x in (train, held_out)]
    return Images(images[0][train], images[0][held_out], *labelled, num_levels)


def shuffle(num: int, labels: np.ndarray | None, seed: int) -> np.ndarray:
    """Returns the numbers below `num` in a random order, `[num]`.

    With labels `[num]`, every class has its share of the first numbers, however many
    they are.
    """
    # RandomState, not default_rng: numpy promises that its numbers never change.
    order = np.random.RandomState(seed).permutation(num)
    if labels is None:
        return order
    place = np.empty(num)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels[order] == label)
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return order[np.argsort(place, kind="stable")]


# --- finding images ------------------------------------------------------------------


def find(place: str, num_levels: int) -> Pictures:
    """Returns the images of a file or a folder; see `load`."""
    path = pathlib.Path(place).expanduser()
    if path.is_dir():
        return _find_pictures(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.suffix == ".npy":
        labels_path = mapped_paths(path)[1]
        with naming(path):
            images = np.load(path, mmap_mode="r")
        labels = None
        if labels_path.is_file():
            with naming(labels_path):
                labels = np.load(labels_path)
    elif path.suffix == ".npz":
        with naming(path), np.load(path) as arrays:
            name = arrays.files[0] if len(arrays.files) == 1 else "images"
            if name not in arrays:
                raise ValueError(f"it must hold 'images', got {sorted(arrays.files)}")
            images, labels = arrays[name], arrays.get("labels")
    else:
        raise ValueError(
            f"data.path must be a folder of images, a .npy or an .npz file, got {path}"
        )
    return _check_array(path, images, labels, num_levels)


def _check_array(path, images, labels, num_levels: int) -> Pictures:
    """Returns the images of an array, as bytes that are below `num_levels`."""
    if images.dtype.kind not in "biu":
        raise ValueError(
            f"{path}: images must be whole numbers from 0 to {num_levels - 1}, such as"
            f" uint8, got {images.dtype}; (255 * x).round().astype('uint8') makes them"
            " of numbers from 0 to 1"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise ValueError(
            f"{path}: images must be [n, height, width] or [n, height, width, channels]"
            f" whose 1 or 3 channels come last, got {images.shape}"
        )
    low, high = images.min(), images.max()
    if low < 0 or high >= num_levels:
        raise ValueError(
            f"{path}: images must have values from 0 to data.num_levels - 1 ="
            f" {num_levels - 1}, got {low} to {high}"
        )
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"{path}: {len(images)} images, but labels {labels.shape}")
    return Pictures(
        names=[f"{path}, image {i}" for i in range(len(images))],
        shapes=np.tile(images.shape[1:3], (len(images), 1)),
        is_grey=images.shape[3] == 1,
        images=images if images.dtype == np.uint8 else images.astype(np.uint8),
        labels=labels,
    )


def _find_pictures(folder: pathlib.Path) -> Pictures:
    """Returns the pictures of a folder, in the order of their names."""
    files = sorted(
        (
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in PICTURES and not path.name.startswith(".")
        ),
        key=lambda path: path.relative_to(folder).parts,
    )
    if not files:
        raise ValueError(f"{folder} has no images: no file ends with {PICTURES}")
    places = [path.relative_to(folder).parts for path in files]
    depths = {len(parts) > 1 for parts in places}
    if len(depths) > 1:
        raise ValueError(
            f"{folder} has images of its own and images in sub-folders: classes are"
            " sub-folders, and then all images must be in one"
        )
    shapes, is_grey = [], True
    for path in files:
        with naming(path):
            picture = _open(path)
            shapes.append(picture.size[::-1])
            is_grey = is_grey and picture.mode in GREY_MODES
    labels = np.array([parts[0] for parts in places]) if True in depths else None
    return Pictures(
        [str(path) for path in files], np.array(shapes), is_grey, files, labels
    )


def _open(path: pathlib.Path):
    """Returns a picture, upright. Its pixels are read when they are needed."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ValueError("pictures need Pillow: pip install pillow") from error
    picture = Image.open(path)
    if picture.mode.startswith(("I", "F")):
        raise ValueError(
            f"it must have 8 bits a channel, got the mode {picture.mode!r}"
        )
    # A camera that was turned is a note beside the pixels, which a viewer follows.
    if picture.getexif().get(0x0112, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    return picture


# --- converting images ---------------------------------------------------------------


def _common_shape(parts: list[Pictures], size: int, crop: int) -> tuple[int, int]:
    """Returns the height and the width of all images, once they are converted."""
    names = [name for part in parts for name in part.names]
    shapes = np.concatenate([part.shapes for part in parts])
    if crop:
        small = np.flatnonzero(shapes.min(1) < crop)
        if len(small):
            height, width = shapes[small[0]]
            raise ValueError(
                f"{names[small[0]]} is {height} x {width}: data.crop must be at most"
                f" {shapes.min()}, got {crop}"
            )
    if size or crop:
        return (size or crop,) * 2
    different = np.flatnonzero((shapes != shapes[0]).any(1))
    if len(different):
        one, other = ("{} x {}".format(*shapes[i]) for i in (0, different[0]))
        raise ValueError(
            f"images must have one size, or data.size must be given: {names[0]} is"
            f" {one}, but {names[different[0]]} is {other}"
        )
    return tuple(shapes[0].tolist())


def _convert(
    part: Pictures, shape: tuple[int, int], crop: int, channels: int, num_levels: int
) -> np.ndarray:
    """Returns images `[n, *shape, channels]`, uint8."""
    adapt = functools.partial(_with_channels, channels)
    if (part.shapes == shape).all() and crop in (0, shape[0]):
        if isinstance(part.images, np.ndarray) and part.images.shape[3] == channels:
            return np.asarray(part.images)  # which may be a map of the file
        return np.stack([adapt(image) for image in _read(part)])
    source = Source("", shape[0], crop=crop or None, adapt=adapt)
    images = convert_images(_read(part), source, len(part.names), shape[0])
    # The bends of a bicubic function may be above the largest value.
    return images.clip(0, num_levels - 1)


def _read(part: Pictures) -> Iterator[np.ndarray]:
    for image in part.images:
        if isinstance(image, np.ndarray):
            yield image
            continue
        with naming(image):
            picture = _open(image)
            mode = "L" if picture.mode in GREY_MODES else "RGB"
            pixels = np.asarray(picture.convert(mode))
        yield pixels if pixels.ndim == 3 else pixels[..., None]


def _with_channels(channels: int, image: np.ndarray) -> np.ndarray:
    if image.shape[-1] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=-1)
    # The weights of ITU-R 601, by which Pillow too makes grey of colours.
    grey = image @ np.array([0.299, 0.587, 0.114])
    return np.round(grey).astype(np.uint8)[..., None]


def _number_labels(parts: list[Pictures]) -> list[np.ndarray | None]:
    """Returns labels from 0 on, int32, of both parts; None without at least two."""
    labels = [part.labels for part in parts]
    if any(x is None for x in labels):
        return [None] * len(parts)
    classes, numbers = np.unique(np.concatenate(labels), return_inverse=True)
    if len(classes) < 2:
        return [None] * len(parts)
    numbers = numbers.astype(np.int32)
    return [numbers[: len(labels[0])], numbers[len(labels[0]) :]][: len(parts)]
