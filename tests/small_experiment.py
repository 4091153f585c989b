"""A persistent chain on a Gaussian: a whole experiment in seconds, to test the loop.

python tests/small_experiment.py --workdir=DIR
"""

import functools
import os
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import energies, objectives, samplers, starts, training
from experiments.run import cli
from experiments.run.checkpoint import read
from experiments.run.config import check_name, make_optimizer
from experiments.run.experiment import Experiment, Keys, Trained
from experiments.run.workdir import save_arrays

PRESETS = {"small": 40, "long": 400}  # steps


def get_config(preset: str = "small") -> ConfigDict:
    check_name("preset", preset, PRESETS)
    return ConfigDict(
        {
            "seed": 0,
            "data": {"batch_size": 16, "std": 2.0},
            "capacity": 64,
            "learning_rate": 0.01,
            "ema_decay": 0.9,
            "nan_at": -1,  # step whose data are not a number
            "train": {
                "num_steps": PRESETS[preset],
                "log_every": 5,
                "eval_every": 20,
                "checkpoint_every": 5,
                "keep": 2,  # newest checkpoints
                "best": "precision",
                "num_accumulated": 1,
                "abort_above": 0.0,
            },
            "evaluation": {"sampler": {"factor": 1.0}},  # multiplies what is drawn
        }
    ).lock()


def build(config: ConfigDict, keys: Keys) -> Experiment:
    objective = objectives.contrastive_divergence(
        energies.gaussian,
        sampler=samplers.langevin(step_size=0.1),
        num_steps=2,
        start=starts.replay(
            jax.random.normal,
            event_shape=(2,),
            capacity=config.capacity // jax.device_count(),
            reinit_prob=0.1,
        ),
    )
    optimizer = make_optimizer(
        {"name": "adam", "learning_rate": {"start": config.learning_rate}}
    )
    params = {"energy": {"mean": np.ones(2, np.float32), "precision": np.float32(1.0)}}
    rows = config.data.batch_size // jax.process_count()

    def batch(step):
        key = jax.random.fold_in(keys.data, step)
        x = config.data.std * jax.random.normal(key, (config.data.batch_size, 2))
        first = jax.process_index() * rows
        return x[first : first + rows] * (np.nan if step == config.nan_at else 1.0)

    def evaluate(state, key, directory):
        print("evaluating", int(state.step), flush=True)
        if int(state.step) == int(os.environ.get("HANG_AT", -1)):
            time.sleep(600)
        (directory / "seen.txt").write_text(str(int(state.step)))
        draw = config.evaluation.sampler.factor * float(jax.random.normal(key))
        params = state.params if state.ema_params is None else state.ema_params
        samples = draw_samples(params["energy"], key, 8)
        key_data = jax.random.key_data(key)
        save_arrays(directory / "samples.npz", samples=samples, key=key_data)
        return {"precision": state.params["energy"]["precision"], "draw": draw}

    return Experiment(
        players={"energy": training.Player(("energy",), objective, optimizer)},
        params=params,
        batch=batch,
        evaluate=evaluate,
        facts={"num_dims": 2},
    )


def draw_samples(params, key, num):
    """Exact draws of the Gaussian."""
    noise = jax.random.normal(key, (num, 2))
    return params["mean"][None] + noise / params["precision"] ** 0.5


def load(config, facts, params, model_state) -> Trained:
    assert facts == {"num_dims": 2}
    return Trained(
        config,
        params,
        model_state,
        {},
        energy_fn=functools.partial(energies.gaussian, params["energy"]),
        sample=functools.partial(draw_samples, params["energy"]),
    )


def config(**changes) -> ConfigDict:
    """The config with other options, `section__option=value`."""
    found = get_config().unlock()
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (found[section] if section else found)[key] = value
    return found.lock()


def state_of(workdir):
    """All arrays of the newest checkpoint, by item and name."""
    return read(workdir)


def step_of(workdir) -> int:
    return int(state_of(workdir)["training"]["step"])


if __name__ == "__main__":
    cli.main(build, __file__)
