"""Data sets of images by their names, with the options that each of them takes."""

from collections.abc import Callable

from experiments.data import digits, images, own_images
from experiments.data.arrays import Images

__all__ = ["IMAGES"]


def published(name: str) -> Callable[..., Images]:
    """Returns `images.load` of a data set, where "" and 0 stand for its defaults."""

    def load(
        *, data_dir: str | None = "", download: bool = False, size: int | None = 0
    ) -> Images:
        return images.load(
            name, data_dir=data_dir or None, size=size or None, download=download
        )

    return load


IMAGES = (
    {"digits": digits.load}
    | {name: published(name) for name in images.SOURCES}
    | {"arrays": own_images.load}
)
"""Name -> constructor, of which a config's section `data` has the keyword arguments."""
