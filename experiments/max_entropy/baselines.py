r"""Scores of anomalies that need no training of a model, on the data of `anomalies`.

    python -m experiments.max_entropy.baselines --config=kdd99 --data_dir=DIR \
        --out=kdd99_baselines.md
    python -m experiments.max_entropy.baselines --config=mnist_anomaly --data_dir=DIR \
        --label=4 --out=digit_4.md
    python -m experiments.max_entropy.baselines --config=tabular --csv=normal.csv \
        --score_csv=all.csv --label_column=is_anomaly --out=mine.md

An energy or the norm of its slope says something about the method only where it is
better than these: the mean of an example's numbers and its negative, the distance to
the mean of the training examples, the norm of the slope of the energy's network before
training, scikit-learn's isolation forest, and the best single column of a table. The
column and its sign are chosen by the area under the ROC curve on a random half of the
test rows, and reported on the other half. Scores with a seed are means over seeds, with
the standard deviation after `±`.
"""

import argparse
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ebmjax import metrics
from ebmjax.checks import check_count
from ebmjax.types import Network
from experiments.data import in_chunks
from experiments.max_entropy import anomalies
from experiments.max_entropy.model import make_networks
from experiments.run.cache import keep_programs
from experiments.run.config import construct
from experiments.run.errors import ending_in_one_line
from experiments.run.files import check_writable
from experiments.run.sweep import over_seeds
from experiments.run.workdir import format_table, write_atomically

MEASURES = ("f1", "auprc", "auroc")
CHUNK = 2_000


def simple_scores(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the scores that are functions of the data alone, `name -> [n]`.

    Args:
      train: Training examples `[m, dims]`.
      test: Test examples `[n, dims]`.
    """
    mean = test.mean(1)
    distance = np.linalg.norm(test - train.mean(0), axis=1)
    return {"mean": mean, "minus the mean": -mean, "distance to the mean": distance}


def best_column(
    key: jax.Array,
    test: np.ndarray,
    is_anomaly: np.ndarray,
    columns: Sequence[str],
    quantile: float,
) -> tuple[str, dict[str, float]]:
    """Chooses a column and its sign on half of the rows, and measures it on the others.

    Args:
      key: Key of the division.
      test: Rows `[n, columns]`.
      is_anomaly: Labels `[n]`.
      columns: Names of the columns.
      quantile: Quantile of the scores above which rows are called anomalies.

    Returns:
      The column's name, after a minus sign if small values are anomalous, and what
      `metrics.anomaly` returns of the other half.
    """
    order = np.asarray(jax.random.permutation(key, len(test)))
    choosing, reporting = np.array_split(order, 2)

    def measure(rows, column, sign):
        values = sign * test[rows, column].astype(np.float64)
        return metrics.anomaly(values, is_anomaly[rows], quantile)

    choices = [(column, sign) for column in range(test.shape[1]) for sign in (1, -1)]
    column, sign = max(choices, key=lambda x: measure(choosing, *x)["auroc"])
    name = f"{'-' if sign < 0 else ''}{columns[column]}"
    return name, measure(reporting, column, sign)


def untrained_norm(
    network: Network,
    convert: Callable[[np.ndarray], np.ndarray],
    key: jax.Array,
    test: np.ndarray,
) -> np.ndarray:
    """Returns the norm of the slope of a network with fresh parameters, `[n]`."""
    params, _ = network.init(key)

    @jax.jit
    def norms(x):
        slopes = jax.vmap(jax.grad(network.apply, argnums=1), (None, 0))(params, x)
        return jnp.sqrt(jnp.sum(slopes**2, axis=tuple(range(1, slopes.ndim))))

    return in_chunks(lambda x: norms(convert(x)), test, CHUNK)


def forest_scores(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Returns scores by scikit-learn's isolation forest, `[n]`, large for anomalies."""
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(random_state=seed).fit(train)
    return -forest.score_samples(test)


def measure_baselines(config, num_seeds: int) -> list[dict]:
    """Returns a row for each score of the data of a config of `anomalies`.

    Raises:
      ValueError: If the test examples have no labels.
    """
    section = {k: v for k, v in config.data.items() if k != "batch_size"}
    source = construct("data", section, anomalies.SOURCES)
    data, quantile = source.data, config.evaluation.quantile
    if data.is_anomaly is None:
        raise ValueError("the test examples must have labels, and they have none")
    network = make_networks(config, data.train.shape[1:]).energy
    train, test = (
        np.asarray(source.convert(x), np.float32).reshape(len(x), -1)
        for x in (data.train, data.test)
    )
    found = {
        name: [metrics.anomaly(scores, data.is_anomaly, quantile)]
        for name, scores in simple_scores(train, test).items()
    }
    if data.columns:
        name, measured = best_column(
            jax.random.key(0), test, data.is_anomaly, data.columns, quantile
        )
        found[f"best column: {name}"] = [measured]
    for seed in range(num_seeds):
        scores = {
            "isolation forest": forest_scores(train, test, seed),
            "slope of the untrained network": untrained_norm(
                network, source.convert, jax.random.key(seed), data.test
            ),
        }
        for name, values in scores.items():
            measured = metrics.anomaly(values, data.is_anomaly, quantile)
            found.setdefault(name, []).append(measured)
    shown: Mapping[str, list] = {
        name: [{measure: row[measure] for measure in MEASURES} for row in rows]
        for name, rows in found.items()
    }
    prevalence = float(np.mean(data.is_anomaly))
    return [*over_seeds(shown, MEASURES), chance_row(prevalence, quantile)]


def chance_row(prevalence: float, quantile: float) -> dict:
    """Returns the row of scores that do not depend on the label.

    Of a share `1 - quantile` that is called anomalous, the prevalence is the precision.
    """
    called = 1 - quantile
    f1 = 2 * prevalence * called / (prevalence + called)
    return {"cell": "chance", "f1": f1, "auprc": prevalence, "auroc": 0.5, "seeds": "-"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="kdd99", help="preset of anomalies")
    parser.add_argument("--data_dir", help="folder of the data")
    parser.add_argument("--label", type=int, help="digit held out, of mnist_anomaly")
    parser.add_argument("--csv", help="normal rows, of tabular")
    parser.add_argument("--score_csv", help="rows to score, of tabular")
    parser.add_argument("--label_column", help="column of 0 and 1 there, of tabular")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds [5]")
    parser.add_argument("--out", required=True, help="file to write, in Markdown")
    found = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    keep_programs()
    with ending_in_one_line():
        check_count("--seeds", found.seeds, 1)
        config = anomalies.get_config(found.config)
        for name in ("data_dir", "label", "csv", "score_csv", "label_column"):
            value = getattr(found, name)
            if value is None:
                continue
            if name not in config.data:
                raise ValueError(f"--{name} is no option of {found.config}")
            config.data[name] = value
        out = pathlib.Path(found.out)
        check_writable(out)
        table = format_table(measure_baselines(config, found.seeds))
        write_atomically(out, table)
        print(table)


if __name__ == "__main__":
    main()
