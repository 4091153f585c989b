"""Scores of a test set by a trained energy: is what is foreign told apart?"""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import metrics
from ebmjax.types import Energy, Params
from experiments.data import in_chunks
from experiments.data.anomalies import Anomalies
from experiments.judge import plots
from experiments.run.workdir import save_columns

SCORES = ("energy", "score_norm")


def make_scores(
    section,
    energy: Energy,
    data: Anomalies,
    convert: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> Callable[[Params, pathlib.Path], dict[str, float]]:
    """Returns `score(params, directory) -> scalars`, of the whole test set.

    The scores of an example are its energy and the norm of the energy's gradient, large
    for anomalies. They are written to `scores.csv` if the section asks for it. With
    labels, the scalars tell how well each score separates anomalies from the rest, and
    figures show the curves of both.

    Args:
      section: Its `quantile`, of the threshold, `chunk_size` and `saves_scores` are
        read.
      energy: `energy(params, x)` of one example.
      data: The test set.
      convert: Function from a chunk of test examples to what the energy takes.

    Raises:
      ValueError: If the quantile is out of range.
    """
    plots.check()
    if not 0 < section.quantile < 1:
        raise ValueError(
            f"evaluation.quantile must be above 0 and below 1, got {section.quantile}"
        )

    def score_one(params, x):
        value, gradient = jax.value_and_grad(energy, argnums=1)(params, x)
        return {"energy": value, "score_norm": jnp.sqrt(jnp.sum(gradient**2))}

    score_chunk = jax.jit(jax.vmap(score_one, (None, 0)))

    def score(params, directory):
        scores = in_chunks(
            lambda x: score_chunk(params, convert(x)), data.test, section.chunk_size
        )
        for name, values in scores.items():
            if not np.isfinite(values).all():
                # The loop names it in the log, and ends the run.
                return {f"{name}_mean": float(values.mean())}
        scalars = {f"{name}_mean": float(x.mean()) for name, x in scores.items()}
        if section.saves_scores:
            write_scores(directory / "scores.csv", scores, data.is_anomaly)
        if data.is_anomaly is None:
            return scalars
        for name, values in scores.items():
            found = metrics.anomaly(values, data.is_anomaly, section.quantile)
            scalars |= {f"{name}_{k}": v for k, v in found.items()}
        scalars["prevalence"] = scalars.pop("score_norm_prevalence")
        del scalars["energy_prevalence"]
        plot_curves(directory, scores, data.is_anomaly)
        return scalars

    return score


def write_scores(
    path: pathlib.Path, scores: dict[str, np.ndarray], is_anomaly: np.ndarray | None
) -> None:
    """Writes a line for each example, in the order of the test set."""
    columns = dict(scores)
    if is_anomaly is not None:
        columns["label"] = is_anomaly.astype(int)
    save_columns(path, columns)


def plot_curves(
    directory: pathlib.Path, scores: dict[str, np.ndarray], is_anomaly: np.ndarray
) -> None:
    """Draws true over false positives, and precision over recall."""
    from sklearn import metrics as curves

    roc, precision_recall = {}, {}
    for name, values in scores.items():
        false, true, _ = curves.roc_curve(is_anomaly, values)
        roc[name] = (false, true)
        precision, recall, _ = curves.precision_recall_curve(is_anomaly, values)
        precision_recall[name] = (recall, precision)
    plots.curves(
        directory / "roc.png",
        {"": roc},
        x_label="share of normal examples that are called anomalies",
        y_label="share of anomalies that are found",
    )
    plots.curves(
        directory / "precision_recall.png",
        {"": precision_recall},
        x_label="recall",
        y_label="precision",
    )
