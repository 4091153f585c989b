"""Figures: written whole, and drawn without a backend for the whole process."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from experiments.judge import plots

DRAW_ALL = """
import pathlib, sys
import matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from experiments.judge import plots

folder, ramp = pathlib.Path(sys.argv[1]), np.linspace(-1, 1, 16).reshape(4, 4)
plots.check()
plots.image_grid(folder / "grid.png", ramp[None, ..., None], columns=2)
plots.densities(folder / "densities.png", {"a": ramp, "b": ramp}, bounds=(0, 1))
plots.density_table(folder / "table.png", {"a": {"x": ramp}}, {"a": (0, 1)})
plots.curves(folder / "curves.png", {"t": {"l": (ramp[0], ramp[0])}}, x_label="x")
plots.ratios(folder / "ratios.png", {"g": {"l": (1.0, 0.9, 1.1)}}, x_label="x")
assert matplotlib.get_backend() == "svg" and not plt.get_fignums()
"""


def test_a_notebook_keeps_its_backend_and_its_figures(tmp_path):
    subprocess.run([sys.executable, "-c", DRAW_ALL, tmp_path], check=True)
    names = ["curves.png", "densities.png", "grid.png", "ratios.png", "table.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(plots.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        plots.image_grid(tmp_path / "grid.png", np.zeros((1, 2, 2, 1)), columns=1)
    assert not list(tmp_path.iterdir())


def test_an_image_is_drawn_as_grey_as_it_is(tmp_path):
    """One pixel of -1, 0 or 1: black, grey or white, most of the picture."""
    for value, grey in ((-1.0, 0), (0.0, 127), (1.0, 255)):
        pixel = np.full((1, 1, 1, 1), value)
        plots.image_grid(tmp_path / "grid.png", pixel, columns=1)
        picture = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
        height, width = picture.shape
        assert abs(int(picture[height // 2, width // 2]) - grey) <= 1


def count(path, color):
    """Number of a picture's pixels whose colour is this one, up to rounding."""
    picture = np.asarray(Image.open(path).convert("RGB"), int)
    return int((np.abs(picture - np.array(color)).max(-1) <= 2).sum())


def read_color(text):
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


def test_densities_share_the_scale_of_the_truth(tmp_path):
    """A model of half the data's density has the colour of a half, and one of twice it
    the last colour. Alone, every constant panel would have one and the same colour."""
    ones = np.ones((4, 4))
    panels = {"model": 0.5 * ones, "data": ones, "other": 2 * ones}
    landscape = {"-E": np.linspace(-40, -10, 16).reshape(4, 4)}
    path = tmp_path / "d.png"
    plots.densities(path, panels, bounds=(0, 1), others=landscape)
    half, last = (np.array(colormaps["magma"](x)[:3]) * 255 for x in (0.5, 1.0))
    one_panel = count(path, half)
    assert one_panel > 10_000
    # Two panels, and the sixteenth of the landscape that is the highest.
    np.testing.assert_allclose(count(path, last) / one_panel, 2 + 1 / 16, atol=0.1)


def test_a_table_of_densities_has_one_scale_for_every_target(tmp_path):
    """Both models have half of their target's density, which differs a hundredfold."""
    ones, path = np.ones((4, 4)), tmp_path / "t.png"
    rows = {
        name: {"data": x * ones, "nce": x * ones / 2}
        for name, x in (("ab", 1), ("cd", 100))
    }
    plots.density_table(path, rows, {"ab": (0, 1), "cd": (0, 1)})
    half, last = (np.array(colormaps["magma"](x)[:3]) * 255 for x in (0.5, 1.0))
    np.testing.assert_allclose(count(path, half) / count(path, last), 1, atol=0.05)


def test_unknown_pixels_are_hatched_and_known_ones_are_not(tmp_path):
    """The left half of an image is black, the right half unknown: light with lines."""
    image, path = np.full((1, 8, 8, 1), -1.0), tmp_path / "i.png"
    plots.image_grid(path, image, columns=1)
    black = count(path, (0, 0, 0))
    image[:, :, 4:] = np.nan
    plots.image_grid(path, image, columns=1)
    np.testing.assert_allclose(count(path, (0, 0, 0)) / black, 0.5, atol=0.02)
    grey, lines = (count(path, (round(255 * x),) * 3) for x in (0.85, 0.45))
    assert grey > 0.1 * black and lines > 0.01 * black
    colours = np.repeat(image, 3, axis=-1)
    plots.image_grid(path, colours, columns=1)
    np.testing.assert_allclose(count(path, (0, 0, 0)) / black, 0.5, atol=0.02)


def test_the_truth_is_drawn_black_and_models_in_the_palette(tmp_path):
    x, path = np.linspace(0, 1, 50), tmp_path / "c.png"
    first = read_color(plots.PALETTE[0])
    plots.curves(path, {"": {"law": (x, x)}}, x_label="x", y_label="y", truth="law")
    assert count(path, first) == 0
    plots.curves(path, {"": {"law": (x, x)}}, x_label="x", y_label="y")
    assert count(path, first) > 500


def test_more_lines_and_dots_than_colours_are_drawn_in_all_of_them(tmp_path):
    """Nine lines and dots have seven colours, of which two come again."""
    x, path = np.linspace(0, 1, 50), tmp_path / "c.png"
    lines = {f"model {i}": (x, x + i) for i in range(9)}
    plots.curves(path, {"": lines}, x_label="x")
    for color in plots.PALETTE:
        assert count(path, read_color(color)) > 200
    dots = {label: (1.0 + i, 1.0 + i, 1.0 + i) for i, label in enumerate(lines)}
    plots.ratios(path, {"cell": dots}, x_label="ratio")
    for color in plots.PALETTE:
        assert count(path, read_color(color)) > 40


def test_ratios_stand_where_a_logarithmic_axis_has_them(tmp_path):
    """Dots at 1/4, 1 and 4, of one colour each, are equally far from one another."""
    path, places = tmp_path / "r.png", []
    dots = {label: (x, x, x) for label, x in (("a", 0.25), ("b", 1.0), ("c", 4.0))}
    plots.ratios(path, {"cell": dots}, x_label="ratio")
    picture = np.asarray(Image.open(path).convert("RGB"), int)
    for color in plots.PALETTE[:3]:
        is_dot = (np.abs(picture - read_color(color)).max(-1) <= 2)[-200:]
        places.append(np.flatnonzero(is_dot.any(0)).mean())
    np.testing.assert_allclose(places[2] - places[1], places[1] - places[0], atol=2)
    assert places[1] - places[0] > 200
