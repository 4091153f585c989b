"""anomalies"""

import functools

import numpy as np

from experiments.data import (
    anomalies,
    epoch_rows,
    image_batches,
    image_section,
    load_images,
    process_rows,
)
from experiments.max_entropy.players import STRIDED, Problem, _preset
from experiments.max_entropy.scores import score_evaluation

# Updates: as many rows as the training set has, 256 for each. A step draws as many
# again, whose place the generator's draws take: an epoch's rows are a half each of two
# orders of the training set.
KDD_EPOCH = 775


def _kdd99() -> dict:
    config = _preset(
        {
            "name": "kdd99",
            "batch_size": 256,
            "data_dir": "",  # with kddcup.data_10_percent.gz; "" for scikit-learn's
            "download": True,
            "scaling": "none",  # or "min_max", "standard"
            "split_seed": 42,
        },
        {
            "name": "mlp",
            "generator_widths": (64, 128),
            "energy_widths": (256, 128, 128),
            "negative_slope": 0.2,
        },
        latent_dim=32,
        quantile=0.8,
        chunk_size=10_000,
        saves_scores=False,
        num_last=10,  # evaluations that a sweep's table is the mean of
    )
    config["objective"]["score_penalty"] = 100.0
    config["players"] = {"num_energy_updates": 1, "first": "energy"}
    config["train"] |= {
        "num_steps": 55 * KDD_EPOCH,
        "eval_every": KDD_EPOCH,
        "checkpoint_every": 0,
        "log_every": KDD_EPOCH,
    }
    config["sweep"]["num_seeds"] = 5
    return config


def _mnist_anomaly() -> dict:
    config = _preset(
        image_section("mnist_anomaly", label=1, split_seed=0, leaks=False),
        dict(STRIDED),
        latent_dim=128,
        quantile=0.8,
        chunk_size=1_000,
        saves_scores=False,
        num_last=10,
    )
    del config["data"]["num_examples"], config["data"]["size"]
    config["objective"] |= {"score_penalty": 100.0, "reduction": "channel_mean"}
    config["players"]["first"] = "energy"
    # An epoch of about 50,000 images is 781 updates of the energy.
    config["train"] |= {"num_steps": 55 * 156, "eval_every": 156}
    return config


def _tabular() -> dict:
    config = _kdd99()
    config["data"] = {
        "name": "tabular",
        "batch_size": 256,
        "csv": "",  # rows of numbers, what is normal
        "score_csv": "",  # rows to score
        "label_column": "",  # of 0 and 1, 1 for anomalies; "" for none
        "scaling": "standard",
    }
    config["objective"]["score_penalty"] = 1.0
    config["train"] |= {"num_steps": 5_000, "eval_every": 1_000, "log_every": 100}
    config["evaluation"]["saves_scores"] = True
    return config


def _of_kdd99(config, keys) -> Problem:
    section = {k: v for k, v in config.data.items() if k not in ("name", "batch_size")}
    return _of_rows(config, keys, anomalies.kdd99(**section))


def _of_tables(config, keys) -> Problem:
    section = config.data
    for name in ("csv", "score_csv"):
        if not section[name]:
            raise ValueError(f"data.{name} must be the path of a file, got ''")
    data = anomalies.tables(
        section.csv,
        section.score_csv,
        label_column=section.label_column,
        scaling=section.scaling,
    )
    return _of_rows(config, keys, data)


def _of_rows(config, keys, data: anomalies.Anomalies) -> Problem:
    def batches(size):
        rows = epoch_rows(keys.data, len(data.train), size)
        local = process_rows(size)
        return lambda step: data.train[rows(step)[local]]

    def evaluation(nets):
        return score_evaluation(config.evaluation, nets.energy.apply, data)

    return Problem(data.train.shape[1:], batches, evaluation)


def _of_held_out_class(config, keys) -> Problem:
    section = config.data
    mnist = load_images(
        "mnist", data_dir=section.data_dir or None, download=section.download
    )
    data = anomalies.held_out_class(
        np.concatenate([mnist.train, mnist.held_out]),
        np.concatenate([mnist.labels_train, mnist.labels_held_out]),
        section.label,
        split_seed=section.split_seed,
        leaks=section.leaks,
    )

    def convert(images):
        """The middle of each level: scores are then functions of the image alone."""
        return (images.astype(np.float32) + 0.5) * (2 / mnist.num_levels) - 1

    def evaluation(nets):
        return score_evaluation(config.evaluation, nets.energy.apply, data, convert)

    batches = functools.partial(
        image_batches, keys.data, data.train, num_levels=mnist.num_levels
    )
    return Problem(data.train.shape[1:], batches, evaluation)


SCORES = ("energy", "score_norm")


HELD_OUT = (1, 4, 5, 7, 9)  # digits; the published ones


if __name__ == "__main__":
    main(build, __file__, sweep)
