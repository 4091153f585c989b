"""Trained models come back from their folders."""

import json

import jax
import numpy as np
import pytest
from small_experiment import build, config

from experiments import load
from experiments.run.loop import run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(build, config(train__num_steps=4, train__checkpoint_every=2), folder)
    return folder


def test_samples_from_the_stored_key_are_those_of_the_evaluation(workdir):
    trained = load(workdir)
    with np.load(workdir / "samples.npz") as found:
        key = jax.random.wrap_key_data(found["key"])
        samples = trained.sample(key, len(found["samples"]))
        np.testing.assert_array_equal(samples, found["samples"])
    assert trained.config == config(train__num_steps=4, train__checkpoint_every=2)
    assert trained.score_fn is None and trained.log_prob is None
    x = trained.params["energy"]["mean"] + 1.0  # two dimensions, one from the mean
    precision = trained.params["energy"]["precision"]
    np.testing.assert_allclose(trained.energy_fn(x), precision, rtol=1e-6)


def test_the_average_is_loaded_where_the_run_keeps_one(workdir):
    averaged, last, earlier = load(workdir), load(workdir, ema=False), None
    earlier = load(workdir, step=2, ema=False)
    given = load(workdir, ema=True).params["energy"]["mean"]
    np.testing.assert_array_equal(averaged.params["energy"]["mean"], given)
    # Training moves the mean from 1 towards 0; the average follows.
    means = [x.params["energy"]["mean"] for x in (last, earlier, averaged)]
    assert (means[0] < means[1]).all() and (means[0] < means[2]).all()


def test_the_record_of_a_run_names_its_problem_command_and_versions(workdir):
    record = json.loads((workdir / "run.json").read_text())
    assert record["problem"] == "small_experiment"
    assert record["facts"] == {"num_dims": 2}
    assert record["versions"]["jax"] == jax.__version__
    assert record["command"].startswith("python ") and "cpu" in record["device"]


@pytest.mark.quick
def test_what_cannot_be_loaded_is_refused_with_the_reason(workdir, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="not 3"):
        load(workdir, step=3)
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="did not record its problem"):
        load(tmp_path)
    (tmp_path / "run.json").write_text('{"problem": ')
    with pytest.raises(ValueError, match="run.json is damaged"):
        load(tmp_path)
    (tmp_path / "run.json").write_text('{"problem": "gone.py", "facts": {}}')
    with pytest.raises(FileNotFoundError, match="gone.py is missing"):
        load(tmp_path)


def test_loading_reads_no_data_and_no_log(workdir, tmp_path):
    for name in ("config.json", "run.json"):
        (tmp_path / name).write_text((workdir / name).read_text())
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    found = load(tmp_path).params["energy"]["mean"]
    np.testing.assert_array_equal(found, load(workdir).params["energy"]["mean"])


def test_a_wrong_number_or_key_of_samples_is_refused_by_name(workdir):
    sample, key = load(workdir).sample, jax.random.key(0)
    for num in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"num must be .* at least 1, got {num}"):
            sample(key, num)
    with pytest.raises(ValueError, match="key must be a typed key"):
        sample(0, 4)
