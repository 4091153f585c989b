r"""Every way to train an energy, on data of known density: which of them finds it?

Paper: Song & Kingma (2021), "How to train your energy-based models",
https://arxiv.org/abs/2101.03288.
Claim checked: the data's density is the optimum of every method, and the methods differ
in how near they come to it. There are four exceptions. Denoising learns the density of
the noised data. Finite differences and minimum velocity have an error of the order of
their step. A short-run model is its chain, and the table has its energy.
`f_contrastive` takes the end of a chain for a draw of the model.

    python -m experiments.tutorial --workdir=runs/nce
    python -m experiments.tutorial --workdir=runs/sliced \
        --config=sliced_score_matching,rings
    python -m experiments.tutorial --workdir=runs/tutorial --sweep --config=all,all
    python -m experiments.tutorial --workdir=runs/own --config=noise_contrastive,own \
        --config.data.csv=FILE --config.data.score_csv=OTHER

A preset is `method,target`: a key of `METHODS` and one of `TARGETS`. With `--sweep`
either may be `all`. Several sweeps may share a workdir while their cells differ, such
as `all,rings` and `all,two_moons`; `all,all` then makes one table of them. A run in the
plane takes less than 2 minutes on one CPU core, and `all,all` takes 5 hours. UCI tables
are in `python -m experiments.tutorial.deep_kernel`.

The target `own`, which is no part of `all`, is a table of yours: a file of text,
Parquet or Arrow with numbers and categories. Its evaluation is the held-out
log-likelihood in the units of the file, by annealed importance sampling, and
`log_likelihoods.csv` has that of each row of a second file.
"""

import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import targets, training
from experiments.data import own_tables, target_batches
from experiments.run import cli
from experiments.run.config import (
    OPTIMIZERS,
    check_name,
    construct,
    make_optimizer,
    nearest,
    train_section,
)
from experiments.run.experiment import Experiment, Keys, Trained, make_keys
from experiments.run.sweep import Cell, Sweep
from experiments.tutorial.distributions import Moments, measure_moments
from experiments.tutorial.evaluation import EVALUATIONS, draw_model
from experiments.tutorial.methods import METHODS, OWN_METHODS
from experiments.tutorial.models import MODELS
from experiments.tutorial.setups import Problem
from experiments.tutorial.table import COLUMNS, draw_densities, make_table
from experiments.tutorial.targets import HIGH, OWN, TARGETS, make_target, resampled


def optimizer_section(rate: float, num_updates: int) -> dict[str, Any]:
    """Returns a config's section of an optimizer, whose rate falls to a thousandth."""
    return {
        "name": "adam",  # or "adamw", "sgd"
        "b1": 0.9,  # decay of the mean of gradients
        "b2": 0.999,  # decay of the mean of squared gradients
        "gradient_clip": 10.0,  # largest norm; 0 for none
        "learning_rate": {
            "start": rate,  # before the decay
            "final": 1e-3 * rate,  # after the decay
            "warmup_steps": 0,  # updates of a linear rise from 0
            "decay": "cosine",  # or "linear", "exponential"
            "decay_start": 0,  # updates before the decay
            "decay_steps": num_updates,  # updates; 0 for a constant rate
        },
    }


def default_config(method_name: str, target_name: str) -> dict[str, Any]:
    """Returns what all methods have in common, with the sections of the target."""
    method, target = METHODS[method_name], (TARGETS | {"own": OWN})[target_name]
    # Matrices of unit size take larger steps than networks do.
    rate, num_updates = 3e-3, method.num_updates
    if target_name in HIGH:
        rate, num_updates = 1e-2, max(num_updates, 15_000)
    config = {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": {
            **target.data,
            "batch_size": 256,  # examples of an update, over all devices
        },
        "network": target.network,
        "objective": {
            "name": method_name,  # one of METHODS, with its own options
            **method.objective,
            **method.per_target.get(target_name, {}),
        },
        "optimizer": optimizer_section(rate, num_updates),  # of the energy
        "ema_decay": 0.999,  # of the parameters that are evaluated; 0 for none
        "train": train_section(
            num_updates, log_every=1_000, checkpoint_every=0, keep=1, abort_above=1e7
        ),
        "evaluation": target.evaluation,
    }
    if method.has_opponent:
        turns = ("num_critic_updates", "num_flow_updates", "num_generator_updates")
        num_turns = max(config["objective"].get(name, 1) for name in turns)
        config["opponent"] = optimizer_section(rate, num_turns * num_updates)
    return config


def make_preset(method_name: str, target_name: str) -> dict[str, Any]:
    """Returns the config of a method on a target."""
    method = METHODS[method_name]
    config = ConfigDict(default_config(method_name, target_name))
    config.update_from_flattened_dict(method.overrides)
    if method.has_opponent and target_name in HIGH:
        config.optimizer.learning_rate.start = 3e-3
    return config.to_dict()


PRESETS = {
    f"{method},{target}": functools.partial(make_preset, method, target)
    for target in TARGETS
    for method in METHODS
    if target in METHODS[method].targets
}
DEFAULT = "noise_contrastive,two_moons"
CHOICES = {"opponent": OPTIMIZERS}


def list_presets(preset: str) -> list[str]:
    """Returns the presets that `method,target` stands for, where either may be "all".

    Raises:
      ValueError: If a name is unknown, or the method does not apply to the target.
    """
    method, comma, target = preset.partition(",")
    if not comma:
        raise ValueError(
            f"preset must be 'method,target', such as {DEFAULT!r}, got {preset!r}"
            f"{nearest(preset, PRESETS)}"
        )
    check_name("method", method, (*METHODS, "all"))
    check_name("target", target, (*TARGETS, "own", "all"))
    if target == "own":
        check_name("method", method, (*OWN_METHODS, "all"))
        return [f"{x},own" for x in (OWN_METHODS if method == "all" else [method])]
    found = [
        f"{name},{place}"
        for place in (TARGETS if target == "all" else [target])
        for name in (METHODS if method == "all" else [method])
        if place in METHODS[name].targets
    ]
    if not found:
        raise ValueError(
            f"{method} does not apply to {target}; it does to {METHODS[method].targets}"
        )
    return found


def get_config(preset: str = DEFAULT) -> ConfigDict:
    """Returns the config of `method,target`; the first one if either is "all"."""
    method, _, target = list_presets(preset)[0].partition(",")
    return ConfigDict(make_preset(method, target)).lock()


def check_single(preset: str) -> None:
    """Raises a ValueError if a preset stands for a table of runs."""
    if "all" in preset.split(","):
        raise ValueError(f"the preset {preset!r} is a table of runs: add --sweep")


def make_problem(
    config: ConfigDict, keys: Keys, target: targets.Target | None, moments: Moments
) -> Problem:
    """Returns the model and the data, which a method is set up on.

    Without a target the problem has no data, and is for a loaded model.
    """
    return Problem(
        model=construct("network", config.network, MODELS, moments),
        data=None if target is None else target.sample,
        moments=moments,
        key=keys.params,
        network={k: v for k, v in config.network.items() if k != "name"},
        optimizer=lambda: make_optimizer(config.optimizer),
        opponent=lambda: make_optimizer(config.opponent, "opponent"),
    )


def make_energy(config: ConfigDict, problem: Problem):
    """Returns `energy(params, x)` of all parameters that the method trains."""
    energies = {name: method.energy for name, method in METHODS.items()}
    return construct("objective", config.objective, energies, problem)


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Returns the method that `config.objective` names, set up on the target."""
    is_own = "csv" in config.data
    table = own_tables.from_section(config.data) if is_own else None
    target = resampled(table.train) if is_own else make_target(config.data)
    moments = measure_moments(target.sample, jax.random.fold_in(keys.params, 1))
    problem = make_problem(config, keys, target, moments)
    makes = {name: method.make for name, method in METHODS.items()}
    setup = construct("objective", config.objective, makes, problem)
    num_microbatches = training.count_updates(setup.players)
    return Experiment(
        players=setup.players,
        params=setup.params,
        batch=target_batches(
            keys.data, target, config.data.batch_size * num_microbatches
        ),
        evaluate=construct(
            "evaluation",
            config.evaluation,
            EVALUATIONS,
            problem.model,
            table if is_own else target,
            make_energy(config, problem),
        ),
        facts={"mean": moments[0].tolist(), "covariance": moments[1].tolist()}
        | (table.encoding._asdict() if is_own else {}),
        data_digest=table.digest if is_own else "",
    )


def sweep(preset: str) -> Sweep:
    """Returns the table of all methods and targets that `preset` stands for."""
    is_own = preset.endswith(",own")
    return Sweep(
        cells={name: Cell(name) for name in list_presets(preset or DEFAULT)},
        columns=("test_log_likelihood", "ais_bracket") if is_own else COLUMNS,
        num_seeds=3,
        table=make_table,
        finish=draw_densities,
    )


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained energy.

    `score_fn(x)` is its score. `log_prob` and `sample` are exact, and exist for targets
    in many dimensions alone: no model in the plane has a formula for its constant.
    Rows of your own table are in the units of the file, in the order of
    `facts["columns"]` in `run.json`.
    """
    moments = (np.array(facts["mean"]), np.array(facts["covariance"]))
    is_own = "csv" in config.data
    target = None if is_own else make_target(config.data)
    problem = make_problem(config, make_keys(config.seed), target, moments)
    model, energy = problem.model, make_energy(config, problem)
    energy_fn = functools.partial(energy, params)
    log_prob = sample = None
    if model.log_partition is not None:
        log_partition = model.log_partition(params["energy"])

        def log_prob(x):
            return -energy_fn(x) - log_partition

        sample = functools.partial(draw_model, model, params["energy"])

    trained = Trained(
        config=config,
        params=params,
        model_state=model_state,
        networks={},
        energy_fn=energy_fn,
        score_fn=lambda x: -jax.grad(energy_fn)(x),
        log_prob=log_prob,
        sample=sample,
    )
    return own_tables.in_units(trained, facts) if is_own else trained


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
