"""Scores of anomalies by an energy that is known."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.anomalies import Anomalies
from experiments.max_entropy.anomalies import get_config
from experiments.max_entropy.scores import make_scores
from experiments.run.config import with_options


def energy(params, x):
    return params * jnp.sum(x**2) / 2


X = np.array([[3.0, 4.0], [0.1, 0.0], [0.0, 0.2], [0.3, 0.0]], np.float32)


def section(**changes):
    options = {f"evaluation.{name}": value for name, value in changes.items()}
    return with_options(get_config("tabular"), options).evaluation


def test_scores_are_the_energy_and_the_norm_of_its_slope(tmp_path):
    """E = |x|^2 of two dimensions: the norm is 2 |x|, and both tell far from near."""
    data = Anomalies(X[:1], X, np.array([True, False, False, False]))
    found = make_scores(section(chunk_size=3), energy, data)(2.0, tmp_path)
    assert found["energy_auroc"] == found["score_norm_auroc"] == 1
    assert found["energy_precision"] == found["energy_recall"] == 1
    assert found["prevalence"] == 0.25
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["energy"]) for row in rows] == pytest.approx(
        [25, 0.01, 0.04, 0.09]
    )
    assert [float(row["score_norm"]) for row in rows] == pytest.approx(
        [10, 0.2, 0.4, 0.6]
    )
    assert [row["label"] for row in rows] == ["1", "0", "0", "0"]
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert figures == {"roc.png", "precision_recall.png"}


def test_without_labels_there_are_scores_and_nothing_to_judge(tmp_path):
    found = make_scores(section(), energy, Anomalies(X[:1], X, None))(2.0, tmp_path)
    assert found == pytest.approx({"energy_mean": 25.14 / 4, "score_norm_mean": 2.8})
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]
    first = (tmp_path / "scores.csv").read_text().splitlines()[0]
    assert first == "energy,score_norm"


def test_a_score_that_is_not_finite_is_named_alone(tmp_path):
    data = Anomalies(X[:1], X, np.array([True, False, False, False]))
    found = make_scores(section(), energy, data)(np.inf, tmp_path)
    assert found == {"energy_mean": np.inf} and not list(tmp_path.iterdir())


@pytest.mark.quick
def test_a_quantile_out_of_range_is_refused_before_training():
    with pytest.raises(ValueError, match="evaluation.quantile must be above 0 .*80"):
        make_scores(section(quantile=80.0), energy, Anomalies(X, X, None))
