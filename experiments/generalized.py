"""Generalised energy-based models: a base that draws, and an energy that reweighs it.

Paper: Arbel, Zhou & Gretton (2021), "Generalized energy based models".
Claim checked: an energy learned beside a base corrects the base's weights; sampling its
latents gives better draws than the base's; with flows for both it is a density whose
likelihood is comparable to that of direct maximum likelihood.

    python -m experiments.generalized --workdir=runs/curve --sweep
    python -m experiments.generalized --workdir=runs/wine \
        --config=experiments/generalized.py:red_wine --config.data.data_dir=DIR
    python -m experiments.generalized --workdir=runs/uci --sweep \
        --config=experiments/generalized.py:red_wine --config.data.data_dir=DIR

Presets: `curve` (two dimensions, minutes on a CPU), `red_wine`, `white_wine`,
`parkinsons` (UCI tables from files in `data.data_dir`). After a comma the method:
`red_wine,donsker_varadhan`, `kale` by default, or for tables `likelihood` and
`contrastive_divergence`; for the curve `gan` and `ebm`. With `--sweep`: all methods of
the preset and three seeds.
"""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ebmjax import energies, networks, objectives, samplers, starts, training
from ebmjax.objectives import generalized, max_entropy
from ebmjax.types import Array
from experiments import _adversarial, _data, _plots, _run, _sweep
from experiments._data import tabular

UCI = tuple(tabular.SOURCES)

# --- presets -----------------------------------------------------------------------


def _preset(data: dict, network: dict, **evaluation) -> dict:
    return {
        "seed": 0,
        "data": data,
        "network": network,
        "objective": {
            "name": "kale",
            "gradient_penalty": 0.1,  # paper: lambda
            "num_draws": 1,  # from the base for each example
            "transforms_log_partition": True,
        },
        "players": {"num_energy_updates": 5},  # for one of the base
        "optimizer": {
            "name": "adam",
            "b1": 0.5,
            "b2": 0.9,
            "gradient_clip": 0.0,  # largest norm; 0 for none
            "learning_rate": {
                "start": 1e-4,
                "final": 1e-4,
                "warmup_steps": 0,
                "decay": "cosine",
                "decay_start": 0,
                "decay_steps": 0,
            },
        },
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": {
            "num_steps": 1_000,  # updates of the base
            "log_every": 100,
            "eval_every": 100,
            "checkpoint_every": 500,
            "keep": 1,  # newest checkpoints
            "best": "",
            "abort_above": 0.0,
        },
        "evaluation": evaluation,
        "sweep": {"num_seeds": 3},  # seed, seed + 1, ...
    }


def _uci(name: str) -> dict:
    """The published protocol: whitened by all rows, and no noise added."""
    config = _preset(
        {
            "name": name,
            "data_dir": "",  # the folder with the file as published
            "batch_size": 100,
            "split_seed": 1,
            "whiten": "all",  # test rows included, as published; or "train"
            "noise_scale": 0.0,
        },
        {
            "num_layers": 5,
            "widths": (100, 100),
            "has_offset": True,  # s of E = -log q + s, for c to have something to learn
        },
        num_draws=20_000,
    )
    config["objective"]["num_draws"] = 20
    config["objective"]["l2_weight"] = 0.1  # of the mean square of the energy's weights
    config["players"]["num_energy_updates"] = 50
    # Rows in batches of 100, 2,000 epochs of them, 51 batches an update.
    config["train"] |= {
        "num_steps": {"red_wine": 510, "white_wine": 1_560, "parkinsons": 1_870}[name],
        "eval_every": 10,
        "checkpoint_every": 0,
        "log_every": 10,
        "best": "validation_nll",
    }
    return config
