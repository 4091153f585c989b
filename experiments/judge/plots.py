"""Figures: image grids, densities in the plane, curves. The only user of matplotlib."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np


def check() -> None:
    """Raises ImportError where no figure can be drawn; before work is lost."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install matplotlib") from error


def _subplots(num_rows: int, num_columns: int, size: tuple[float, float], **options):
    """A figure and its axes `[rows, columns]`, as `pyplot.subplots` makes them.

    Not by pyplot, whose backend is one for the whole process: a notebook that draws
    with its own would lose it.
    """
    check()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def _save(figure, path: pathlib.Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _tile(images: np.ndarray, columns: int) -> np.ndarray:
    """`[n, H, W, C]` in [-1, 1] to one picture in [0, 1], a pixel of border between."""
    images = np.clip((np.asarray(images, np.float32) + 1) / 2, 0, 1)
    num, height, width, channels = images.shape
    rows = -(-num // columns)
    picture = np.ones((rows * (height + 1) + 1, columns * (width + 1) + 1, channels))
    for index, image in enumerate(images):
        top = index // columns * (height + 1) + 1
        left = index % columns * (width + 1) + 1
        picture[top : top + height, left : left + width] = image
    return picture


def image_grid(
    path: pathlib.Path, images: np.ndarray, *, columns: int, title: str = ""
) -> None:
    """A grid of images `[n, H, W, C]` in [-1, 1], row by row."""
    image_panels(path, {title: images}, columns=columns)


def image_panels(
    path: pathlib.Path, panels: Mapping[str, np.ndarray], *, columns: int
) -> None:
    """Grids of images one below another, each under its title."""
    pictures = {title: _tile(images, columns) for title, images in panels.items()}
    heights = [picture.shape[0] / picture.shape[1] for picture in pictures.values()]
    width = 8.0
    figure, axes = _subplots(
        len(pictures),
        1,
        (width, width * sum(heights) + 0.35 * len(pictures)),
        gridspec_kw={"height_ratios": heights},
    )
    for axis, (title, picture) in zip(axes[:, 0], pictures.items(), strict=True):
        axis.imshow(
            picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
        axis.set_title(title, fontsize=9, loc="left")
        axis.axis("off")
    _save(figure, path)


def densities(
    path: pathlib.Path, panels: Mapping[str, np.ndarray], *, bounds: Sequence[float]
) -> None:
    """Densities on one square grid side by side.

    Args:
      path: Of the PNG.
      panels: Title -> `[n, n]` with the first coordinate along the first axis.
      bounds: `(low, high)` of both coordinates.
    """
    figure, axes = _subplots(1, len(panels), (3 * len(panels), 3.3))
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        axis.imshow(
            np.asarray(values).T,
            origin="lower",
            extent=[*bounds, *bounds],
            cmap="magma",
        )
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    _save(figure, path)


def density_table(
    path: pathlib.Path,
    rows: Mapping[str, Mapping[str, np.ndarray]],
    bounds: Mapping[str, Sequence[float]],
) -> None:
    """Densities in a table: row -> column -> `[n, n]`, as in `densities`.

    A row's densities share a scale, that of its first; what a row lacks is left blank.
    """
    columns = list(dict.fromkeys(name for panels in rows.values() for name in panels))
    size = (1.6 * len(rows), 1.6 * len(columns))
    figure, axes = _subplots(len(columns), len(rows), size)
    for index, (row, panels) in enumerate(rows.items()):
        largest = np.max(next(iter(panels.values())))
        for axis, name in zip(axes[:, index], columns, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if name in panels:
                axis.imshow(
                    np.asarray(panels[name]).T,
                    origin="lower",
                    extent=[*bounds[row], *bounds[row]],
                    cmap="magma",
                    vmin=0,
                    vmax=largest,
                )
            else:
                axis.axis("off")
            if name == columns[0]:
                axis.set_title(row, fontsize=8)
            if index == 0:
                axis.set_ylabel(
                    name.replace("_", "\n"),
                    fontsize=5,
                    rotation=0,
                    ha="right",
                    va="center",
                )
    _save(figure, path)


def curves(
    path: pathlib.Path,
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    *,
    x_label: str,
    is_log: bool = False,
) -> None:
    """Line plots side by side: title -> label -> (x, y); `is_log` in both axes."""
    figure, axes = _subplots(1, len(panels), (4 * len(panels), 3))
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, (x, y) in lines.items():
            marker = "o" if is_log and len(x) < 20 else None
            axis.plot(x, y, label=label, linewidth=1, marker=marker, markersize=3)
        if is_log:
            axis.set_xscale("log")
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(x_label, fontsize=8)
        axis.tick_params(labelsize=7)
        if len(lines) > 1:
            axis.legend(fontsize=7)
    _save(figure, path)


def bars(
    path: pathlib.Path,
    groups: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    x_label: str,
) -> None:
    """Groups of bars: group -> label -> (value, low, high), a line marking 1."""
    check()
    from matplotlib import colormaps

    labels = list(dict.fromkeys(label for bars in groups.values() for label in bars))
    colors = dict(zip(labels, colormaps["tab10"].colors, strict=False))
    figure, axes = _subplots(1, 1, (7, 0.13 * len(groups) * (len(labels) + 2)))
    axis = axes[0, 0]
    for index, found in enumerate(groups.values()):
        for row, label in enumerate(labels):
            if label not in found:
                continue
            value, low, high = found[label]
            axis.barh(
                index + (row + 0.5) / (len(labels) + 1),
                value,
                0.9 / (len(labels) + 1),
                xerr=[[value - low], [high - value]],
                color=colors[label],
                label=label,
                error_kw={"linewidth": 0.6},
            )
    axis.set_yticks([index + 0.5 for index in range(len(groups))], list(groups))
    axis.axvline(1.0, color="black", linewidth=0.6)
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.set_xlim(0, 3)  # what is slower than three is cut off
    axis.set_xlabel(x_label, fontsize=8)
    axis.tick_params(labelsize=6)
    handles, names = axis.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=6)
    _save(figure, path)
