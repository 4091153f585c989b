"""A persistent chain on a Gaussian: a whole experiment in seconds, to test the loop.

python tests/small_experiment.py --workdir=DIR
"""

import os
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import energies, objectives, samplers, starts, training
from experiments.run.cli import main
from experiments.run.config import make_optimizer
from experiments.run.experiment import Experiment, Keys


def get_config(preset: str = "small") -> ConfigDict:
    del preset
    return ConfigDict(
        {
            "seed": 0,
            "data": {"batch_size": 16, "std": 2.0},
            "capacity": 64,
            "learning_rate": 0.01,
            "ema_decay": 0.9,
            "sampler": {"factor": 1.0},  # of the draw that is evaluated
            "nan_at": -1,  # step whose data are not a number
            "train": {
                "num_steps": 40,
                "log_every": 5,
                "eval_every": 20,
                "checkpoint_every": 5,
                "keep": 2,
                "best": "precision",
                "abort_above": 0.0,
            },
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
        draw = config.sampler.factor * float(jax.random.normal(key))
        return {"precision": state.params["energy"]["precision"], "draw": draw}

    return Experiment(
        players={"energy": training.Player(("energy",), objective, optimizer)},
        params=params,
        batch=batch,
        evaluate=evaluate,
    )


if __name__ == "__main__":
    main(build, __file__)
