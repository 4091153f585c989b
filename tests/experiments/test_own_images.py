"""Images of the user in the problems of every paper, from an option or a preset."""

import importlib

import numpy as np
import pytest
from PIL import Image

from experiments.run.config import CHOICES, with_options
from experiments.run.experiment import make_keys

pytestmark = pytest.mark.usefixtures("quick_compilation")

NARROW = {
    "short_run": {"network.width": 2},
    "score_based": {"network.widths": (2, 2, 2)},
    "max_entropy": {"networks.widths": (2, 2, 2), "networks.hidden_width": 4},
    "generalized": {"network.widths": (2, 2, 2)},
}
"""Paper -> options of its preset `own` for a network that is soon compiled."""


def problem(paper):
    return importlib.import_module(f"experiments.{paper}.images")


def configure(paper, preset, **options):
    module = problem(paper)
    options = {name.replace("__", "."): value for name, value in options.items()}
    choices = CHOICES | module.CHOICES
    return with_options(module.get_config(preset), options | NARROW[paper], choices)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of two classes and two sizes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(30):
        size = (12, 9, 3) if index % 2 else (8, 16, 3)
        path = folder / str(index % 2) / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
    return str(folder)


@pytest.mark.parametrize("paper", NARROW)
def test_a_preset_and_any_other_with_an_option_take_your_images(paper, photos):
    own = configure(paper, "own", data__path=photos, data__size=8)
    experiment = problem(paper).build(own, make_keys(0))
    shape = next(value for key, value in experiment.facts.items() if "shape" in key)
    assert shape == [8, 8, 3] and experiment.batch(0).shape[1:] == (8, 8, 3)
    for preset in ("digits", "cifar10"):
        other = configure(
            paper, preset, data__name="arrays", data__path=photos, data__size=8
        )
        assert other.data.path == photos and "data_dir" not in other.data
        assert set(own.data) >= set(other.data) - {"is_mirrored"}


@pytest.mark.parametrize("paper", ["score_based", "generalized"])
def test_a_size_that_the_network_cannot_take_is_answered_with_those_it_can(
    paper, photos
):
    config = configure(paper, "own", data__path=photos, data__size=15)
    message = r"^image_shape must .*of 4, got \(15, 15, 3\); set data.size to 12 or 16 "
    with pytest.raises(ValueError, match=message):
        problem(paper).build(config, make_keys(0))


@pytest.mark.parametrize("paper", NARROW)
def test_a_preset_of_your_images_needs_their_place(paper):
    with pytest.raises(ValueError, match="data.path must be a folder of images"):
        problem(paper).build(configure(paper, "own"), make_keys(0))
