"""Rates in the log, and a profiler's trace."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest

from ebmjax import objectives, training
from experiments.run import meter
from experiments.run.meter import Meter, Profile
from experiments.run.operations import CHIPS, Chip


def matrix_player():
    def loss(params, key, batch):
        del key
        return jnp.mean(jnp.square(batch @ params["energy"])), {}

    objective = objectives.stateless(loss)
    return {"energy": training.Player(("energy",), objective, optax.sgd(1e-3))}


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    return clock


def test_rates_are_those_since_the_last_reading(clock, monkeypatch):
    players, num_devices = matrix_player(), 8
    params = {"energy": jnp.ones((5, 3))}
    state = training.init_state(players, params, jax.random.key(0), num_devices)
    batches = jnp.ones((num_devices, 2, 1, 4, 5))
    kind = jax.devices()[0].device_kind
    monkeypatch.setitem(CHIPS, kind, Chip(1e6, 1.0, 1.0, 1.0, 1.0, ""))
    found = Meter({"": players}, 4 * num_devices, None)
    found.start(10)
    clock.now += 2.0
    rates = found.read(30, "", state, batches)
    # A product of [4, 5] with [5, 3], and one of its gradient in the matrix.
    operations = 2 * 2 * 4 * 5 * 3
    assert rates == {
        "steps_per_second": 10.0,
        "examples_per_second": 320.0,
        "teraflop_per_second": pytest.approx(10 * 8 * operations / 1e12),
        "peak_share": pytest.approx(10 * operations / 1e6),
    }
    assert found.read(30, "", state, batches) == {}
    clock.now += 1.0
    assert found.read(31, "", state, batches)["steps_per_second"] == 1.0
    clock.now += 50.0
    found.start(31)  # an evaluation was between
    clock.now += 1.0
    assert found.read(33, "", state, batches)["steps_per_second"] == 2.0


@pytest.mark.parametrize("steps", [(5, 5), (6, 3), (0, 101)])
def test_a_profile_of_steps_that_are_none_is_refused(steps):
    with pytest.raises(ValueError, match=r"--profile must be two steps .* = 100, got"):
        Profile(steps, 100)


def test_programs_end_where_a_profile_begins_and_ends():
    profile = Profile((10, 20), 100)
    assert profile.most(0, 64) == 10
    assert profile.most(10, 64) == 10
    assert profile.most(15, 3) == 3
    assert profile.most(20, 64) == 64


def test_a_run_keeps_the_trace_of_the_steps_asked_for(tmp_path):
    from experiments.run import loop
    from experiments.tutorial import run as problem

    config = problem.get_config("noise_contrastive,two_moons").unlock()
    config.train.update(num_steps=30, log_every=30)
    loop.run(problem.build, config.lock(), tmp_path, profile=(10, 20))
    (trace,) = (tmp_path / "plugins" / "profile").glob("*/*.xplane.pb")
    assert trace.stat().st_size > 1_000
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    train = next(x for x in map(json.loads, lines) if x["kind"] == "train")
    assert train["teraflop_per_second"] > 0 and "peak_share" not in train


def test_a_run_that_is_past_the_steps_says_so_and_traces_none(capsys):
    profile = Profile((5, 8), 100)
    profile.begin(6)
    assert "no trace is kept: the run goes on from step 6" in capsys.readouterr().err
    assert profile.most(6, 64) == 64
    profile = Profile((5, 8), 100)
    profile.begin(5)
    assert profile.most(5, 64) == 3
