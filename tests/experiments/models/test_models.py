"""Trained models come back from single files."""

import json

import jax
import numpy as np
import pytest
from small_experiment import build, config

from experiments import load, models
from experiments.models.__main__ import main
from experiments.run.digests import sign
from experiments.run.loop import run

LICENCE = "CC0, invented"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(build, config(train__num_steps=4, train__checkpoint_every=2), folder)
    return folder


@pytest.fixture(scope="module")
def file(workdir, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small.npz"
    main([f"--workdir={workdir}", f"--out={path}", f"--licence={LICENCE}"])
    return path


@pytest.mark.quick
def test_a_file_is_the_run_that_it_was_made_from(workdir, file):
    one, two = load(workdir), load(file)
    assert one.config == two.config
    for x, y in zip(*map(jax.tree.leaves, (one.params, two.params)), strict=True):
        np.testing.assert_array_equal(x, y)
    key = jax.random.key(3)
    np.testing.assert_array_equal(one.sample(key, 5), two.sample(key, 5))
    with pytest.raises(ValueError, match="num must be"):
        two.sample(key, 0)
    record = models.read(file).record
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "eval" and record["step"] == last["step"] == 4
    assert record["figures"].items() <= last.items() and record["licence"] == LICENCE
    assert record["ema"] is True and record["commit"]
    assert models.read_facts(file) == models.read_facts(workdir) == {"num_dims": 2}


@pytest.mark.quick
def test_what_does_not_fit_a_file_is_refused(workdir, file, tmp_path, capsys):
    with pytest.raises(ValueError, match="has step 4, got 2"):
        load(file, step=2)
    with pytest.raises(ValueError, match="has ema True, got False"):
        load(file, ema=False)
    with pytest.raises(FileNotFoundError, match="none.npz, a file of .* is missing"):
        load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="out must end with .npz, got 'model'"):
        models.write(workdir, "model", licence=LICENCE)
    with pytest.raises(ValueError, match="licence must say"):
        models.write(workdir, tmp_path / "x.npz", licence=" ")
    with pytest.raises(SystemExit, match="error: "):
        main([f"--workdir={tmp_path}", f"--out={tmp_path}/x.npz", "--licence=x"])
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_flipped_bit_is_noticed(share, file, tmp_path):
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 16
    path = tmp_path / "flipped.npz"
    path.write_bytes(content)
    try:
        found = models.read(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:  # the bit was in a part of the archive that holds nothing
        whole = models.read(file)
        assert found.record == whole.record


def changed(file, path, **values):
    """Writes a copy of a file whose record has other values and a right digest."""
    with np.load(file) as found:
        arrays = dict(found)
    record = json.loads(str(arrays.pop("record"))) | values
    del record["digest"]
    np.savez(path, record=np.array(json.dumps(sign(record))), **arrays)
    return path


def test_another_version_and_other_arrays_are_refused(file, tmp_path):
    with pytest.raises(ValueError, match="must have version 1, got 2"):
        models.read(changed(file, tmp_path / "new.npz", version=2))
    with pytest.raises(ValueError, match="damaged: it has changed"):
        models.read(changed(file, tmp_path / "other.npz", digests={}))
    plain = tmp_path / "plain.npz"
    np.savez(plain, samples=np.zeros(3))
    with pytest.raises(ValueError, match="plain.npz cannot .* has no 'record'"):
        models.read(plain)


def test_a_folder_without_a_run_and_a_missing_folder_are_named(tmp_path):
    out = f"--out={tmp_path / 'x.npz'}"
    with pytest.raises(SystemExit, match="^error: .*gone holds no run: .* is missing"):
        main([f"--workdir={tmp_path / 'gone'}", out, "--licence=CC0"])
    with pytest.raises(SystemExit, match="^error: --workdir must be the folder of a"):
        main([out, "--licence=CC0"])


def test_lists_and_names_with_brackets_come_back():
    tree = {"a": [{"b": np.ones(2)}, {"b": np.zeros(1)}], "c": {"d": np.arange(3)}}
    found = models.unflatten(models.flatten(tree))
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for x, y in zip(*map(jax.tree.leaves, (found, tree)), strict=True):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError, match="a/b must be an array, got str"):
        models.flatten({"a": {"b": "text"}})
    names = [f"x{index}" for index in range(12)]
    many = {"list": [{name: np.full(1, i)} for i, name in enumerate(names)]}
    found = models.unflatten(models.flatten(many))["list"]
    assert [int(item[name][0]) for item, name in zip(found, names)] == [*range(12)]


@pytest.mark.quick
def test_names_are_those_of_the_folder(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "small.npz").write_bytes(file.read_bytes())
    assert models.names() == ["digits/small"]
    assert models.find("digits/small") == tmp_path / "digits" / "small.npz"
    assert load("digits/small").config == load(file).config
    with pytest.raises(FileNotFoundError, match=r"did you mean 'digits/small'\?"):
        load("digits/smal")
    assert models.find(tmp_path / "digits") is None  # a folder may be a run's
    assert models.find("gs://bucket/digits") is None
    main([])
    assert "digits/small: step 4" in capsys.readouterr().err
