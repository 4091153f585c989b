"""Scores of a test set by a trained energy: is what is foreign told apart?"""

import csv
import io
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import metrics
from ebmjax.types import Energy
from experiments.data import in_chunks
from experiments.data.anomalies import Anomalies
from experiments.judge import plots
from experiments.run.experiment import evaluated_params
from experiments.run.workdir import write_atomically

__all__ = ["evaluation"]


def evaluation(
    section,
    energy: Energy,
    data: Anomalies,
    convert: Callable[[np.ndarray], np.ndarray] = lambda x: x,
):
    """`evaluate(state, key, directory)`: the energy and the norm of its score.

    Both of every test example, to `scores.csv` where the config asks for it. With
    labels, how well each tells anomalies from the rest, and the curves of both.

    Args:
      section: With `quantile`, of the threshold; `chunk_size`; `saves_scores`.
      energy: Of an example, `energy(params, x)`.
      data: What is scored.
      convert: From a chunk of test examples to what the energy sees.

    Raises:
      ValueError: If the quantile is out of range.
    """
    plots.check()
    if not 0 < section.quantile < 1:
        raise ValueError(
            f"evaluation.quantile must be above 0 and below 1, got {section.quantile}"
        )

    def scores_of(params, x):
        value, gradient = jax.value_and_grad(energy, argnums=1)(params, x)
        return {"energy": value, "score_norm": jnp.sqrt(jnp.sum(gradient**2))}

    of_chunk = jax.jit(jax.vmap(scores_of, (None, 0)))

    def evaluate(state, key, directory):
        params = evaluated_params(state)["energy"]
        scores = in_chunks(
            lambda x: of_chunk(params, convert(x)), data.test, section.chunk_size
        )
        for name, values in scores.items():
            if not np.isfinite(values).all():
                # Said by name in the log, and the run is ended by it.
                return {f"{name}_mean": float(values.mean())}
        scalars = {f"{name}_mean": float(x.mean()) for name, x in scores.items()}
        if section.saves_scores:
            _write_scores(directory / "scores.csv", scores, data.is_anomaly)
        if data.is_anomaly is None:
            return scalars
        for name, values in scores.items():
            found = metrics.anomaly(values, data.is_anomaly, section.quantile)
            scalars |= {f"{name}_{k}": v for k, v in found.items()}
        scalars["prevalence"] = scalars.pop("score_norm_prevalence")
        del scalars["energy_prevalence"]
        _plot(directory, scores, data.is_anomaly)
        return scalars

    return evaluate


def _write_scores(path: pathlib.Path, scores: dict, is_anomaly) -> None:
    """A line an example, in the order of the test set."""
    columns = dict(scores)
    if is_anomaly is not None:
        columns["label"] = is_anomaly.astype(int)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values())))
    write_atomically(path, text.getvalue())


def _plot(directory: pathlib.Path, scores: dict, is_anomaly: np.ndarray) -> None:
    from sklearn import metrics as curves

    roc, precision_recall = {}, {}
    for name, values in scores.items():
        false, true, _ = curves.roc_curve(is_anomaly, values)
        roc[name] = (false, true)
        precision, recall, _ = curves.precision_recall_curve(is_anomaly, values)
        precision_recall[name] = (recall, precision)
    plots.curves(directory / "roc.png", {"true over false positives": roc}, x_label="")
    plots.curves(
        directory / "precision_recall.png",
        {"precision over recall": precision_recall},
        x_label="",
    )
