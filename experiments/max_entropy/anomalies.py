r"""Maximum entropy generators that tell anomalies: in tables, and in images of digits.

Paper: Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
energy-based models", https://arxiv.org/abs/1901.08508.
Claim checked: the energy, with its slope held down at the data, or that slope's norm
tells what is foreign.

    python -m experiments.max_entropy.anomalies --workdir=runs/kdd --sweep \
        --config.data.data_dir=DIR
    python -m experiments.max_entropy.anomalies --workdir=runs/digit \
        --config=mnist_anomaly --config.data.label=4
    python -m experiments.max_entropy.anomalies --workdir=runs/mine --config=tabular \
        --config.data.csv=normal.csv --config.data.score_csv=all.csv

Presets: `kdd99` (six minutes of a CPU core), `mnist_anomaly` (a digit held out, the
paper's scale) and `tabular` (any table of numbers, a minute). After a comma stands the
method: `max_entropy`, the default, `wgan_gp` or `gan`. The sweep of `kdd99` is with and
without scaling, five seeds of each, that of `mnist_anomaly` the published digits; a run
of both counts by the mean of its last ten evaluations. The sweep of `tabular` is five
seeds.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.data import (
    anomalies,
    digest,
    image_batches,
    load_images,
    middles,
    row_batches,
)
from experiments.max_entropy.model import (
    bind_networks,
    draw_samples,
    load_networks,
    make_networks,
)
from experiments.max_entropy.players import (
    make_config,
    make_experiment,
    objective_section,
    players_section,
    training_chains,
)
from experiments.max_entropy.scores import SCORES, make_scores
from experiments.run import cli
from experiments.run.config import (
    adam_section,
    check_counts,
    construct,
    train_section,
)
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params
from experiments.run.sweep import Cell, Sweep, last_evaluation
from experiments.run.workdir import save_arrays

# Updates: as many rows as the training set has, 256 for each. A step draws as many
# again, whose place the generator's draws take: an epoch's rows are a half each of two
# orders of the training set.
KDD_EPOCH = 775


def make_kdd99() -> dict:
    """Returns the problem's default."""
    return {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": {
            "name": "kdd99",  # or "mnist_anomaly", "tabular", with their own options
            "batch_size": 256,  # of all devices
            "data_dir": "",  # with kddcup.data_10_percent.gz; "" for scikit-learn's
            "download": True,  # whether scikit-learn may fetch it
            "scaling": "none",  # of the columns; or "min_max", "standard"
            "split_seed": 42,  # of training and test rows
        },
        "networks": {
            "name": "mlp",  # or "strided" for images, with its own options
            "generator_widths": (64, 128),  # hidden layers
            "energy_widths": (256, 128, 128),  # hidden layers, also of the statistics
            "negative_slope": 0.2,  # of the leaky ReLUs
        },
        "latent_dim": 32,  # paper: the length of z
        "objective": objective_section(score_penalty=100.0),
        "players": players_section(num_energy_updates=1, first="energy"),
        **training_chains(),
        "optimizer": adam_section(1e-4, b1=0.5, b2=0.9),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": train_section(
            55 * KDD_EPOCH,
            log_every=KDD_EPOCH,
            eval_every=KDD_EPOCH,
            checkpoint_every=0,
        ),
        "evaluation": {
            "quantile": 0.8,  # of the scores: what is above it is called an anomaly
            "chunk_size": 10_000,  # examples at a time
            "saves_scores": True,  # whether scores.csv has a line for each example
            "num_samples": 1_000,  # draws of the generator, in samples.npz
        },
    }


def make_mnist_anomaly() -> dict:
    config = make_kdd99()
    config["data"] = {
        "name": "mnist_anomaly",
        "batch_size": 64,  # of all devices
        "data_dir": "",  # prepared data; "" for TFDS's default folder
        "download": True,  # whether TFDS may fetch what is not there
        "label": 1,  # the digit held out
        "split_seed": 0,  # of training and test images
        "leaks": False,  # whether test images were trained on, as published
    }
    config["networks"] = {
        "name": "strided",
        "widths": (64, 128, 256, 512),  # channels of the energy's maps
        "hidden_width": 512,  # of the statistics network
    }
    config["latent_dim"] = 128
    config["objective"]["reduction"] = "channel_mean"
    config["players"]["num_energy_updates"] = 5
    # An epoch of about 50,000 images is 781 updates of the energy.
    config["train"] = train_section(55 * 156, eval_every=156)
    config["evaluation"]["chunk_size"] = 1_000
    return config


def make_tabular() -> dict:
    config = make_kdd99()
    config["data"] = {
        "name": "tabular",
        "batch_size": 256,  # of all devices
        "csv": "",  # rows of numbers, which are normal
        "score_csv": "",  # rows to score
        "label_column": "",  # of 0 and 1, 1 for anomalies; "" for none
        "scaling": "standard",  # of the columns; or "none", "min_max"
    }
    config["objective"]["score_penalty"] = 1.0
    config["train"] |= {"num_steps": 5_000, "eval_every": 1_000, "log_every": 100}
    return config


PRESETS = {
    "kdd99": make_kdd99,
    "mnist_anomaly": make_mnist_anomaly,
    "tabular": make_tabular,
}


def get_config(preset: str = "kdd99") -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,method"`."""
    return make_config(PRESETS, preset)


# --- data ----------------------------------------------------------------------------


class Source(NamedTuple):
    """Data, and how they are handed to the model.

    Attributes:
      data: Data to train on, and data to score.
      batches: `batches(key, size) -> (step -> [rows, *event])`.
      convert: Function from a chunk of test examples to what the energy takes.
    """

    data: anomalies.Anomalies
    batches: Callable[[jax.Array, int], Callable]
    convert: Callable[[np.ndarray], np.ndarray]


def make_rows(data: anomalies.Anomalies) -> Source:
    """Returns the source of a table, whose rows are not converted."""

    def batches(key, size):
        return row_batches(key, data.train, size)

    return Source(data, batches, lambda rows: rows)


def load_kdd99(**section) -> Source:
    """Returns KDD Cup 99; the arguments are those of `anomalies.kdd99`."""
    return make_rows(anomalies.kdd99(**section))


def load_tables(*, csv: str, score_csv: str, label_column: str, scaling: str) -> Source:
    """Returns the user's own tables; the arguments are those of `anomalies.tables`."""
    for name, path in (("csv", csv), ("score_csv", score_csv)):
        if not path:
            raise ValueError(f"data.{name} must be the path of a file, got ''")
    return make_rows(
        anomalies.tables(csv, score_csv, label_column=label_column, scaling=scaling)
    )


def load_held_out_digit(
    *, data_dir: str, download: bool, label: int, split_seed: int, leaks: bool
) -> Source:
    """Returns MNIST with one digit as the anomaly; see `anomalies.held_out_class`."""
    mnist = load_images("mnist", data_dir=data_dir or None, download=download)
    data = anomalies.held_out_class(
        np.concatenate([mnist.train, mnist.held_out]),
        np.concatenate([mnist.labels_train, mnist.labels_held_out]),
        label,
        split_seed=split_seed,
        leaks=leaks,
    )

    def batches(key, size):
        return image_batches(key, data.train, size, num_levels=mnist.num_levels)

    convert = functools.partial(middles, num_levels=mnist.num_levels)
    return Source(data, batches, convert)


SOURCES = {
    "kdd99": load_kdd99,
    "mnist_anomaly": load_held_out_digit,
    "tabular": load_tables,
}


# --- the problem ---------------------------------------------------------------------


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment of a config."""
    section = {k: v for k, v in config.data.items() if k != "batch_size"}
    source = construct("data", section, SOURCES)
    data = source.data
    facts = {"event_shape": list(data.train.shape[1:]), "columns": list(data.columns)}
    if data.scaling is not None:
        facts |= {k: v.tolist() for k, v in data.scaling._asdict().items()}
    nets = make_networks(config, data.train.shape[1:])
    return make_experiment(
        config,
        keys,
        nets,
        batches=functools.partial(source.batches, keys.data),
        evaluate=make_evaluation(config, source, nets, facts),
        facts=facts,
    )._replace(data_digest=digest(data.train, data.test))


def make_evaluation(config, source: Source, nets, facts: Mapping):
    """Returns `evaluate(state, key, directory) -> scalars`."""
    options = config.evaluation
    check_counts("evaluation", options, chunk_size=1, num_samples=1)
    score = make_scores(options, nets.energy.apply, source.data, source.convert)

    def evaluate(state, key, directory):
        params = evaluated_params(state)
        _, generator_fn = bind_networks(nets, params, state.model_state)
        x = draw_samples(
            config, generator_fn, key, options.num_samples, options.chunk_size
        )
        save_arrays(
            directory / "samples.npz",
            samples=undo_scaling(facts, x),
            key=jax.random.key_data(key),
        )
        return score(params["energy"], directory)

    return evaluate


def undo_scaling(facts: Mapping, x: np.ndarray) -> np.ndarray:
    """Returns rows `[n, columns]` in the units of their file; images as they are."""
    if "scale" not in facts:
        return x
    rows = x * np.array(facts["scale"]) + np.array(facts["shift"])
    return rows.astype(np.float32)


def choose_mean(
    evaluations: Mapping[int, Mapping[str, float]], has_ended: bool, num_last: int = 10
) -> dict[str, float] | None:
    """Returns means over the last evaluations, as published; None for a run that has
    not ended or has fewer of them."""
    last = [evaluations[step] for step in sorted(evaluations)[-num_last:]]
    if not has_ended or len(last) < num_last:
        return None
    return {name: float(np.mean([x[name] for x in last])) for name in last[0]}


HELD_OUT = (1, 4, 5, 7, 9)  # digits; the published ones


def sweep(preset: str) -> Sweep:
    """Returns the plan of a preset; see the top of this file."""
    name = preset.partition(",")[0] or "kdd99"
    if name == "kdd99":
        measures = ("precision", "recall", "f1", "auprc")
        return Sweep(
            {
                f"scaling={x}": Cell(preset, {"data.scaling": x})
                for x in ("none", "min_max")
            },
            [f"{score}_{measure}" for score in SCORES for measure in measures],
            num_seeds=5,
            choose=choose_mean,
        )
    if name == "mnist_anomaly":
        return Sweep(
            {
                f"digit={digit}": Cell(preset, {"data.label": digit})
                for digit in HELD_OUT
            },
            [f"{score}_auprc" for score in SCORES],
            num_seeds=3,
            choose=choose_mean,
        )
    return Sweep({name: Cell(preset)}, num_seeds=5, choose=last_evaluation)


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model, of one row in the units of its file, or of one image
    in [-1, 1].

    `energy_fn(row)` and the norm of `score_fn(row)` are the scores of `scores.csv`. The
    score is that of the scaled row, minus the gradient of the energy with respect to
    what the network takes; for rows that were scaled it is not that of `energy_fn`.
    `sample` makes draws of the generator, in the units of the file. The names of a
    row's columns, in their order, are `facts["columns"]` in `run.json`.
    """
    trained = load_networks(config, facts["event_shape"], params, model_state)
    if "scale" not in facts:
        return trained
    shift, scale = (jnp.array(facts[name]) for name in ("shift", "scale"))

    def scale_row(row):
        return (jnp.asarray(row) - shift) / scale

    return trained._replace(
        energy_fn=lambda row: trained.energy_fn(scale_row(row)),
        score_fn=lambda row: trained.score_fn(scale_row(row)),
        sample=lambda key, num: undo_scaling(facts, trained.sample(key, num)),
    )


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
