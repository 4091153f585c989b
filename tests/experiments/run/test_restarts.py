"""Training that diverges goes on from a checkpoint with other noise."""

import json

import jax
import numpy as np
import pytest
from small_experiment import build, config

from experiments import load
from experiments.run import restarts
from experiments.run.experiment import make_keys
from experiments.run.files import METRICS
from experiments.run.loop import run


def unlucky(num_failures, at=13):
    """The small experiment, whose update is not finite at a step for the first keys.

    It fails by the noise alone: the seed's root key and those of the first restarts are
    the unlucky ones.
    """
    started = []

    def make(config, keys):
        started.append(1)
        experiment = build(config, keys)
        is_unlucky = len(started) <= num_failures

        def batch(step):
            x = experiment.batch(step)
            return x * np.nan if is_unlucky and step == at else x

        return experiment._replace(batch=batch)

    make.__module__ = "small_experiment"
    return make, started


def restarting(**others):
    found = config(train__num_steps=20, train__checkpoint_every=5, **others)
    with found.unlocked():
        found.train.on_divergence = "restart"
        found.train.max_restarts = 3
    return found


def lines(workdir, kind):
    found = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.mark.quick
def test_a_run_goes_on_from_the_newest_checkpoint_with_another_key(tmp_path):
    make, started = unlucky(1)
    run(make, restarting(), tmp_path)
    assert len(started) == 2
    (record,) = restarts.read_restarts(tmp_path)
    assert record["from_step"] == 10 and "step 15" in record["error"]
    assert [(x["step"], x["number"]) for x in lines(tmp_path, "restart")] == [(10, 1)]
    steps = [x["step"] for x in lines(tmp_path, "train")]
    assert steps == sorted(set(steps)) and steps[-1] == 20
    # The first ten steps are those of a run that never diverges; the others have other
    # noise.
    run(build, restarting(), tmp_path / "calm")
    one, calm = (
        {x["step"]: x["energy/loss"] for x in lines(folder, "train")}
        for folder in (tmp_path, tmp_path / "calm")
    )
    assert [one[step] == calm[step] for step in (5, 10, 15, 20)] == [1, 1, 0, 0]
    assert restarts.read_restarts(tmp_path / "calm") == []
    load(tmp_path)


def test_a_run_that_ends_after_a_restart_and_goes_on_is_bitwise_the_same(tmp_path):
    run(unlucky(1)[0], restarting(), tmp_path / "one")
    first = restarting()
    with first.unlocked():
        first.train.num_steps = 15
    run(unlucky(1)[0], first, tmp_path / "two")
    # Another process goes on, which only the file tells of the restart. It may refuse
    # to restart again.
    rest = restarting()
    with rest.unlocked():
        rest.train.on_divergence = "stop"
    run(build, rest, tmp_path / "two")
    ends = [load(tmp_path / name).params for name in ("one", "two")]
    for x, y in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.quick
def test_restarts_end_and_the_second_one_takes_an_older_checkpoint(tmp_path):
    make, started = unlucky(9)
    with pytest.raises(FloatingPointError, match="step 15"):
        run(make, restarting(), tmp_path)
    assert len(started) == 4
    found = [record["from_step"] for record in restarts.read_restarts(tmp_path)]
    assert found == [10, 5, 10]  # after the second one step 10 was saved again
    aside = [path.name for path in (tmp_path / "checkpoints").glob("*.diverged*")]
    assert aside == ["10.diverged1"]


@pytest.mark.quick
def test_a_run_stops_where_nothing_else_is_asked_for(tmp_path):
    make, started = unlucky(1)
    plain = config(train__num_steps=20, train__checkpoint_every=5)
    with pytest.raises(FloatingPointError, match="the checkpoint of step 10 is kept"):
        run(make, plain, tmp_path)
    assert len(started) == 1 and not (tmp_path / restarts.NAME).exists()
    with pytest.raises(ValueError, match="train.on_divergence must be .* got 'retry'"):
        wrong = restarting()
        with wrong.unlocked():
            wrong.train.on_divergence = "retry"
        run(build, wrong, tmp_path / "other")


@pytest.mark.quick
def test_root_keys_differ_and_a_damaged_file_is_named(tmp_path):
    key = make_keys(0).train
    assert len(restarts.root_keys(key, tmp_path)) == 1
    for _ in range(3):
        assert restarts.note_divergence(tmp_path, restarting(), FloatingPointError("x"))
    assert not restarts.note_divergence(tmp_path, restarting(), FloatingPointError("x"))
    keys = restarts.root_keys(key, tmp_path)
    data = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}
    assert len(data) == 4 and (keys[0] == key).all()
    path = tmp_path / restarts.NAME
    path.write_text(path.read_text().replace('"x"', '"y"', 1))
    with pytest.raises(ValueError, match="restarts.json is damaged"):
        restarts.root_keys(key, tmp_path)
