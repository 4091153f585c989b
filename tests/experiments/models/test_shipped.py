"""The models that come with the code are those of their records."""

import re

import jax
import numpy as np
import pytest

from experiments import load, models
from experiments.judge.classifier import CONFIDENT, bind_params, make_network
from experiments.judge.store import SHIPPED, read_stored

NAMES = models.names()

JUDGES = {"digits": ("25d38824", 64), "mnist": ("f051bc46", 64)}
"""Data set -> the classifier of its scores, and that network's width."""

NUM = {"score_based": 200}  # samples, fewer where they take long


def test_there_is_a_model_of_every_kind_and_all_are_small():
    assert {"digits/short_run", "mnist/score_based", "mnist/short_run"} <= set(NAMES)
    sizes = [(models.FOLDER / f"{name}.npz").stat().st_size for name in NAMES]
    assert sum(sizes) < 8 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_a_record_says_how_the_model_was_made(name):
    model = models.read(models.FOLDER / f"{name}.npz")
    record = model.record
    data_set, method = name.split("/")
    assert model.problem == f"experiments.{method}.images"
    assert model.config.data.name == data_set
    assert record["command"].startswith(f"python -m experiments.{method}")
    assert not re.search(r"[= ]/", record["command"])  # no path of one machine
    assert record["commit"] and record["licence"].startswith("CC ")
    assert 0 < record["figures"]["samples_confident_share"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_score_that_is_recorded(name):
    """The share of confident samples is that of the record up to five deviations of the
    difference of two shares, and so is the share of each class."""
    data_set, method = name.split("/")
    num = NUM.get(method, 1_000)
    trained = load(name)
    samples = np.asarray(trained.sample(jax.random.key(7), num)).clip(-1, 1)
    prefix, width = JUDGES[data_set]
    (path,) = SHIPPED.glob(f"{prefix}*.npz")
    shape = samples.shape[1:]
    judge = bind_params(make_network(shape, 10, width), read_stored(path)[0], shape)
    log_probs = judge.log_probs(samples)
    figures = models.read(models.FOLDER / f"{name}.npz").record["figures"]
    shares = np.bincount(log_probs.argmax(1), minlength=10) / num
    found = {f"samples_class_share_{k}": share for k, share in enumerate(shares)}
    found["samples_confident_share"] = np.mean(log_probs.max(1) > np.log(CONFIDENT))
    rest = figures["samples_num_samples"]
    for measure, share in found.items():
        p = figures[measure]
        error = (p * (1 - p) * (1 / num + 1 / rest)) ** 0.5
        assert abs(share - p) < 5 * error + 1 / num, measure
