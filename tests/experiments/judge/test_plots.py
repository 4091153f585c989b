"""Figures: written whole, and drawn without a backend for the whole process."""

import subprocess
import sys

import numpy as np
import pytest
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
plots.bars(folder / "bars.png", {"g": {"l": (1.0, 0.9, 1.1)}}, x_label="x")
assert matplotlib.get_backend() == "svg" and not plt.get_fignums()
"""


def test_a_notebook_keeps_its_backend_and_its_figures(tmp_path):
    subprocess.run([sys.executable, "-c", DRAW_ALL, tmp_path], check=True)
    names = ["bars.png", "curves.png", "densities.png", "grid.png", "table.png"]
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
