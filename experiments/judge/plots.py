"""Figures: image grids, densities in the plane, curves. The only user of matplotlib."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#f0e442",
)
"""Colours that readers with any kind of colour vision tell apart: Okabe and Ito's."""

TRUTH = {"color": "black", "linestyle": "--", "zorder": 3}
"""Style of a line of the truth, which no model's line has."""

MARKS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
DENSITY_COLORS = "magma"  # its lightness rises, so that it is read in grey, too


def check() -> None:
    """Raises ImportError where no figure can be drawn; before work is lost."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install matplotlib") from error


def _subplots(
    num_rows: int,
    num_columns: int,
    size: tuple[float, float],
    layout: str | None = None,
    **options,
):
    """Returns a figure and its axes `[rows, columns]`, as `pyplot.subplots` makes them.

    Not by pyplot, whose backend is one for the whole process: a notebook that draws
    with its own would lose it.
    """
    check()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
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
    """Returns one picture in [0, 1] of images `[n, H, W, C]` in [-1, 1], with borders.

    Pixels that are not a number stay so.
    """
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
    """Draws a grid of images `[n, H, W, C]` in [-1, 1]; see `image_panels`."""
    image_panels(path, {title: images}, columns=columns)


def image_panels(
    path: pathlib.Path, panels: Mapping[str, np.ndarray], *, columns: int
) -> None:
    """Grids of images one below another, each under its title.

    Args:
      path: Path of the PNG.
      panels: Title -> `[n, H, W, C]` in [-1, 1]. Pixels that are not a number are
        unknown, and are hatched.
      columns: Number of images in a row.
    """
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
        is_known = ~np.isnan(picture).any(-1, keepdims=True)
        if not is_known.all():
            _hatch(axis, picture.shape[:2])
        if picture.shape[-1] == 1:
            picture = np.repeat(picture, 3, axis=-1)
        shown = np.concatenate([np.nan_to_num(picture), is_known], axis=-1)
        axis.imshow(shown, interpolation="nearest")
        axis.set_title(title, fontsize=9, loc="left")
        axis.axis("off")
    _save(figure, path)


def _hatch(axis, shape: tuple[int, int]) -> None:
    """Hatches a whole picture `[height, width]`, of which the known is drawn above."""
    from matplotlib.patches import Rectangle

    height, width = shape
    axis.add_patch(
        Rectangle(
            (-0.5, -0.5),
            width,
            height,
            facecolor="0.85",
            edgecolor="0.45",
            hatch="//////",
            linewidth=0,
            zorder=-1,  # below the image
        )
    )


def _mark_truth(axis) -> None:
    """Frames the panel of the truth, and makes its title bold."""
    for spine in axis.spines.values():
        spine.set(edgecolor=PALETTE[0], linewidth=2.5)
    axis.title.set_fontweight("bold")


def densities(
    path: pathlib.Path,
    panels: Mapping[str, np.ndarray],
    *,
    bounds: Sequence[float],
    truth: str = "data",
    label: str = "probability of a bin",
    others: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Densities on one square grid side by side, on one scale.

    The scale ends at the largest value of the truth, or of all panels where there is no
    truth. What is above has the last colour. The panel of the truth is framed.

    Args:
      path: Path of the PNG.
      panels: Title -> `[n, n]` with the first coordinate along the first axis.
      bounds: `(low, high)` of both coordinates.
      truth: Title of the panel that models are compared with.
      label: Name of what is drawn, for the colour bar.
      others: Title -> `[n, n]`, panels of another quantity, each on its own scale.
    """
    others, low, high = dict(others or {}), *bounds
    given = [panels[truth]] if truth in panels else [*panels.values()]
    largest = max(float(np.max(values)) for values in given)
    num = len(panels) + len(others)
    figure, axes = _subplots(1, num, (2.9 * num + 0.8, 3.1), "constrained")
    for axis, (title, values) in zip(
        axes[0], [*panels.items(), *others.items()], strict=True
    ):
        image = axis.imshow(
            np.asarray(values).T,
            origin="lower",
            extent=[*bounds, *bounds],
            cmap=DENSITY_COLORS,
            vmin=None if title in others else 0,
            vmax=None if title in others else largest or 1,
        )
        axis.set_title(title, fontsize=9)
        axis.set_xticks([low, (low + high) / 2, high])
        axis.set_yticks([low, (low + high) / 2, high])
        axis.tick_params(labelsize=7)
        axis.set_xlabel("first coordinate", fontsize=7)
        if axis is axes[0, 0]:
            axis.set_ylabel("second coordinate", fontsize=7)
        if title == truth:
            _mark_truth(axis)
        if title in others:
            bar = figure.colorbar(image, ax=axis, shrink=0.8)
            bar.ax.tick_params(labelsize=7)
        elif axis is axes[0, len(panels) - 1]:
            shared = [*axes[0, : len(panels)]]
            bar = figure.colorbar(image, ax=shared, shrink=0.8, extend="max", pad=0.01)
            bar.set_label(label, fontsize=7)
            bar.ax.tick_params(labelsize=7)
    _save(figure, path)


def density_table(
    path: pathlib.Path,
    rows: Mapping[str, Mapping[str, np.ndarray]],
    bounds: Mapping[str, Sequence[float]],
) -> None:
    """Densities in a table: row -> column -> `[n, n]`, as in `densities`.

    A row's first density is the truth, whose panel is framed. All are drawn as shares
    of the largest value of their row's truth; what a row lacks is left blank.
    """
    columns = list(dict.fromkeys(name for panels in rows.values() for name in panels))
    size = (1.6 * len(rows) + 1.6, 1.6 * len(columns))
    figure, axes = _subplots(len(columns), len(rows), size, "constrained")
    for index, (row, panels) in enumerate(rows.items()):
        truth = next(iter(panels))
        largest = np.max(panels[truth])
        for axis, name in zip(axes[:, index], columns, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if name in panels:
                image = axis.imshow(
                    np.asarray(panels[name]).T / largest,
                    origin="lower",
                    extent=[*bounds[row], *bounds[row]],
                    cmap=DENSITY_COLORS,
                    vmin=0,
                    vmax=1,
                )
            else:
                axis.axis("off")
            if name == columns[0]:
                axis.set_title(row, fontsize=8)
            if name == truth:
                _mark_truth(axis)
            if index == 0:
                axis.set_ylabel(
                    name.replace("_", "\n"),
                    fontsize=7,
                    rotation=0,
                    ha="right",
                    va="center",
                )
    bar = figure.colorbar(image, ax=axes, extend="max", shrink=0.5, aspect=30)
    bar.set_label(f"density, as a share of the largest of {columns[0]}", fontsize=8)
    _save(figure, path)


def curves(
    path: pathlib.Path,
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    *,
    x_label: str,
    y_label: str = "",
    truth: str = "",
    is_log: bool = False,
) -> None:
    """Line plots side by side.

    Args:
      path: Path of the PNG.
      panels: Title -> label -> (x, y).
      x_label: Name of the horizontal axis, with its unit.
      y_label: Name of the vertical axis, with its unit; "" where the titles say it.
      truth: Label of the line that the others are compared with, which is drawn black
        and dashed; "" for none.
      is_log: Whether both axes are logarithmic.
    """
    figure, axes = _subplots(1, len(panels), (4 * len(panels), 3), "constrained")
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        models = [label for label in lines if label != truth]
        for label, (x, y) in lines.items():
            style = TRUTH if label == truth else _line_style(models.index(label))
            marker = "o" if is_log and len(x) < 20 else None
            options = {"marker": marker, "markersize": 3, "linewidth": 1.3}
            axis.plot(x, y, label=label, **options, **style)
        if is_log:
            axis.set_xscale("log")
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(x_label, fontsize=8)
        if axis is axes[0, 0]:
            axis.set_ylabel(y_label, fontsize=8)
        axis.tick_params(labelsize=7)
        if len(lines) > 1:
            axis.legend(fontsize=7)
    _save(figure, path)


def _line_style(index: int) -> dict[str, str]:
    """Returns the colour of a model's line, and another dash for every palette."""
    dashes = ("-", "-.", ":")
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": dashes[index // len(PALETTE) % len(dashes)],
    }


def ratios(
    path: pathlib.Path,
    groups: Mapping[str, Mapping[str, tuple[float, float, float]]],
    *,
    x_label: str,
) -> None:
    """Ratios as dots on a logarithmic axis, with a line that marks 1.

    Args:
      path: Path of the PNG.
      groups: Group -> label -> (value, low, high). A group is a band of rows, one for
        each label; a label has one colour and one mark in all groups.
      x_label: Name of the horizontal axis.
    """
    labels = list(dict.fromkeys(label for rows in groups.values() for label in rows))
    height = 1.2 + len(groups) * (0.12 + 0.06 * len(labels))
    figure, axes = _subplots(1, 1, (8, height), "constrained")
    axis = axes[0, 0]
    for index, found in enumerate(groups.values()):
        if index % 2:
            axis.axhspan(index, index + 1, color="0.95", linewidth=0)
        for row, label in enumerate(labels):
            if label not in found:
                continue
            value, low, high = found[label]
            axis.errorbar(
                value,
                index + (row + 1) / (len(labels) + 1),
                xerr=[[value - low], [high - value]],
                color=PALETTE[row % len(PALETTE)],
                marker=MARKS[row % len(MARKS)],
                markersize=5,
                markeredgecolor="black",
                markeredgewidth=0.4,
                elinewidth=0.8,
                linestyle="none",
                label=label,
            )
    axis.set_yticks([index + 0.5 for index in range(len(groups))], list(groups))
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_ylim(len(groups), 0)
    axis.set_xscale("log")
    found = [value for rows in groups.values() for value, _, _ in rows.values()]
    ends = np.log2([min([1.0, *found]), max([1.0, *found])])
    powers = 2.0 ** np.arange(np.floor(ends[0]), np.ceil(ends[1]) + 1)
    axis.set_xticks(powers, [f"{power:g}" for power in powers], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlabel(x_label, fontsize=9)
    axis.tick_params(labelsize=8)
    handles, names = axis.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), fontsize=8, loc="outside upper center", ncols=4
    )
    _save(figure, path)
