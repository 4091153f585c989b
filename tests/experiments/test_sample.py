"""Draws of trained models as files."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image
from small_experiment import build, config

from experiments import load, sample
from experiments.run.experiment import Trained
from experiments.run.loop import run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(build, config(train__num_steps=2), folder)
    return folder


def pretend(monkeypatch, tmp_path, event_shape, columns=(), sampler=True, **others):
    """A run whose model draws the numbers from 0 on over their number, in [-1, 1)."""

    def draw(key, num):
        size = num * int(np.prod(event_shape))
        return (np.arange(size) * 2.0 / size - 1).reshape(num, *event_shape)

    facts = {"event_shape": list(event_shape), "columns": list(columns)} | others
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"problem": "", "facts": facts}))
    trained = Trained(config(), {}, {}, {}, sample=draw if sampler else None)
    monkeypatch.setattr(sample, "load", lambda workdir, step: trained)
    return str(folder)


def test_the_file_has_the_draws_of_the_loaded_model_and_their_key(workdir, tmp_path):
    out = tmp_path / "new" / "samples.npz"
    sample.main([f"--workdir={workdir}", "--num=5", "--seed=3", f"--out={out}"])
    expected = load(workdir).sample(jax.random.key(3), 5)
    with np.load(out) as found:
        np.testing.assert_array_equal(found["samples"], expected)
        key = jax.random.wrap_key_data(found["key"])
    np.testing.assert_array_equal(load(workdir).sample(key, 5), expected)
    sample.sample(str(workdir), 5, str(tmp_path / "samples.npy"), seed=3)
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), expected)


def test_rows_have_the_names_of_their_columns(tmp_path, monkeypatch):
    folder, out = pretend(monkeypatch, tmp_path, (2,), ["a", "b"]), tmp_path / "x.csv"
    sample.main([f"--workdir={folder}", "--num=2", f"--out={out}"])
    with out.open() as file:
        rows = list(csv.reader(file))
    assert rows == [["a", "b"], ["-1.0", "-0.5"], ["0.0", "0.5"]]


def test_numbers_of_categories_become_their_names(tmp_path, monkeypatch):
    """The draws are -0.5 and 0.5, and below 0 is the first category, too."""
    categories = {"b": ["cat", "dog"]}
    folder = pretend(monkeypatch, tmp_path, (2,), ["a", "b"], categories=categories)
    sample.sample(folder, 2, str(tmp_path / "x.csv"))
    with (tmp_path / "x.csv").open() as file:
        assert [row["b"] for row in csv.DictReader(file)] == ["cat", "cat"]
    x = np.array([[0.0, 0.9], [0.0, 1.2], [0.0, 2.5]])
    facts = {"columns": ["a", "b"], "categories": categories}
    sample.write(tmp_path / "y.csv", ".csv", x, None, facts)
    with (tmp_path / "y.csv").open() as file:
        assert [row["b"] for row in csv.DictReader(file)] == ["cat", "dog", "dog"]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_a_new_folder_of_pictures(channels, tmp_path, monkeypatch):
    """Four pixels of -1, -0.5, 0 and 0.5 are the levels 0, 64, 128 and 192 of 256."""
    shape = (1, 4, 1) if channels == 1 else (1, 4, 3)
    folder, out = pretend(monkeypatch, tmp_path, shape), tmp_path / "pictures"
    sample.main([f"--workdir={folder}", "--num=1", f"--out={out}"])
    assert [path.name for path in out.iterdir()] == ["000000.png"]
    picture = np.asarray(Image.open(out / "000000.png"))
    assert picture.shape == (shape if channels == 3 else (1, 4))
    values = picture.reshape(-1)[::channels]
    assert values.tolist() == [0, 64, 128, 192]
    with pytest.raises(SystemExit, match="must be a new folder, but .* exists"):
        sample.main([f"--workdir={folder}", f"--out={out}"])


@pytest.mark.quick
def test_what_cannot_be_drawn_or_written_is_named_before_any_draw(
    tmp_path, monkeypatch
):
    folder = pretend(monkeypatch, tmp_path, (2,), sampler=False)
    out = str(tmp_path / "x.npz")
    with pytest.raises(SystemExit, match="error: .* has no sampler: its model is an"):
        sample.main([f"--workdir={folder}", f"--out={out}"])
    (tmp_path / "images").mkdir()
    folder = pretend(monkeypatch, tmp_path / "images", (4, 4, 1))

    def refuse(*given):
        raise AssertionError("the draws were made")

    monkeypatch.setattr(sample, "write", refuse)
    with pytest.raises(ValueError, match=r"must end with .npz or .npy .* \(4, 4, 1\)"):
        sample.sample(folder, 2, str(tmp_path / "x.csv"))
    with pytest.raises(ValueError, match="must end with .npz, .npy or .csv.*'x.txt'"):
        sample.sample(folder, 2, "x.txt")
    with pytest.raises(ValueError, match="--num must be .* at least 1, got 0"):
        sample.sample(folder, 0, out)
    assert not list(tmp_path.glob("x.*"))
    (tmp_path / "taken.npz").mkdir()
    trained = Trained(config(), {}, {}, {}, sample=refuse)
    monkeypatch.setattr(sample, "load", lambda workdir, step: trained)
    with pytest.raises(SystemExit, match="^error: .*/taken.npz: Is a directory$"):
        sample.main([f"--workdir={folder}", f"--out={tmp_path / 'taken.npz'}"])


@pytest.mark.quick
def test_rows_are_no_pictures_and_a_folder_without_a_run_is_named(
    tmp_path, monkeypatch
):
    with pytest.raises(SystemExit, match="error: .* holds no run"):
        sample.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'x.npz'}"])
    folder = pretend(monkeypatch, tmp_path, (2,))
    with pytest.raises(ValueError, match=r"no images .* a folder for draws \(2,\)"):
        sample.sample(folder, 2, str(tmp_path / "pictures"))
