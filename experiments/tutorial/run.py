"""Every way to train an energy, on data whose law is known: which of them finds it?

Paper: Song & Kingma (2021), "How to train your energy-based models".
Claim checked: where they apply, its methods have the data's law as their optimum; what
they find of it differs. (Not quite so: denoising learns the noised data; finite
differences and minimum velocity have an error of the order of their step; a short-run
model is the chain, and the table has its energy; `f_contrastive` has chains for draws.)
`METHODS` says which apply where.

    python -m experiments.tutorial --workdir=runs/nce
    python -m experiments.tutorial --workdir=runs/x         --config=experiments/tutorial.py:sliced_score_matching,rings
    python -m experiments.tutorial --workdir=runs/tutorial --sweep         --config=experiments/tutorial.py:all,all

Presets are `method,target`: a key of `METHODS` and one of `TARGETS` or of the UCI
tables (`red_wine`, `white_wine`, `parkinsons`, from files in `data.data_dir`), or `all`
with `--sweep`. A sweep goes on where it stopped. Its cells are as their presets are,
but for `sweep.overrides`, such as "('data.data_dir=DIR', 'train.num_steps=100')", each
for the cells that have the option; without a `data.data_dir` the UCI tables are left
out. Several sweeps may share a workdir while their cells differ, such as `all,rings`
beside `all,two_moons`; one of `all,all` then puts the table together. In the plane
every cell takes less than two minutes on one core.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import targets
from experiments.data import target_batches
from experiments.run.checkpoint import load_run, read_config
from experiments.run.config import construct, make_optimizer, train_section
from experiments.run.experiment import Experiment, Keys, make_keys
from experiments.tutorial import deep_kernel
from experiments.tutorial.evaluation import _bound_energy, by_draws, in_plane
from experiments.tutorial.methods import METHODS
from experiments.tutorial.models import MODELS
from experiments.tutorial.setups import Problem, Setup
from experiments.tutorial.targets import CONSTRUCTORS, HIGH, PLANE, RBM, TARGETS, UCI

DEFAULT = "noise_contrastive,two_moons"


def _num_turns(options) -> int:
    """Updates of an opponent for one of the energy."""
    turns = ("num_critic_updates", "num_flow_updates", "num_generator_updates")
    return max((options[name] for name in turns if name in options), default=1)


def _config(method_name: str, target_name: str) -> dict:
    table = {
        "base": f"{method_name},{target_name}",  # what the sections above are of
        "methods": (method_name,),
        "targets": (target_name,),
        "num_seeds": 3,
        "overrides": (),  # of the cells, such as ("train.num_steps=100",)
    }
    if target_name in UCI:
        return deep_kernel.default_config(target_name, method_name) | {"sweep": table}
    method, data = METHODS[method_name], TARGETS[target_name]
    # Matrices of unit size take larger steps than networks do.
    rate, num_updates = 3e-3, method.num_updates
    if target_name in HIGH:
        rate, num_updates = 1e-2, max(num_updates, 15_000)
    rate = {
        "start": rate,
        "final": 1e-3 * rate,
        "warmup_steps": 0,
        "decay": "cosine",
        "decay_start": 0,
        "decay_steps": num_updates,
    }
    adam = {"name": "adam", "b1": 0.9, "b2": 0.999, "gradient_clip": 10.0}
    network = {"name": data["name"]}
    if target_name in PLANE:
        network = {"name": "mlp", "widths": (64, 64, 64), "activation": "swish"}
    elif target_name in RBM:
        network["num_hidden"] = data["num_hidden"]
    opponent = {"decay_steps": num_updates * _num_turns(method.options)}
    config = {
        "seed": 0,
        "data": {**data, "batch_size": 256},  # of all devices
        "network": network,
        "objective": {
            "name": method_name,
            **method.options,
            **method.per_target.get(target_name, {}),
        },
        "optimizer": {**adam, "learning_rate": rate},
        "opponent": {**adam, "learning_rate": rate | opponent},  # or critic, generator
        "ema_decay": 0.999,  # of the parameters that are evaluated; 0 for none
        "train": train_section(
            num_updates, log_every=1_000, checkpoint_every=0, keep=1, abort_above=1e7
        ),
        "evaluation": {
            "num_points": 800,  # of the grid, a side, in the plane
            "num_examples": 20_000,  # draws of the target, elsewhere
        },
        "sweep": table,
    }
    if not method.has_opponent:
        del config["opponent"]
    config = ConfigDict(config)
    config.update_from_flattened_dict(method.overrides)
    if method.has_opponent and target_name in HIGH:
        config.optimizer.learning_rate.start = 3e-3
    return config.to_dict()


def _check_names(names, known) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} must be one of {sorted(known)}")


def get_config(preset: str = DEFAULT) -> ConfigDict:
    method, comma, target = preset.partition(",")
    if not comma:
        raise ValueError(f"preset must be 'method,target', got {preset!r}")
    every = (*TARGETS, *UCI)
    _check_names((method,), (*METHODS, "all"))
    _check_names((target,), (*every, "all"))
    methods = tuple(METHODS) if method == "all" else (method,)
    chosen = every if target == "all" else (target,)
    cells = [(m, t) for m in methods for t in chosen if t in METHODS[m].targets]
    if not cells:
        raise ValueError(
            f"{method} does not apply to {target}; it does to {METHODS[method].targets}"
        )
    config = ConfigDict(_config(*cells[0]))
    config.sweep.update(methods=methods, targets=chosen)
    return config.lock()


def _moments(sample, key) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(sample(key, 20_000), np.float64)
    return x.mean(0), np.cov(x.T)


def make_problem(config: ConfigDict, keys: Keys) -> tuple[Problem, targets.Target]:
    """The model and the data: all that an evaluation of a trained energy needs."""
    section = {k: v for k, v in config.data.items() if k != "batch_size"}
    target = construct(section, CONSTRUCTORS)
    moments = _moments(target.sample, jax.random.fold_in(keys.params, 1))
    problem = Problem(
        model=construct(config.network, MODELS, moments),
        data=target.sample,
        moments=moments,
        optimizer=lambda: make_optimizer(config.optimizer),
        opponent=(
            functools.partial(make_optimizer, config.opponent)
            if "opponent" in config
            else None
        ),
        key=keys.params,
        network={k: v for k, v in config.network.items() if k != "name"},
    )
    return problem, target


def _set_up(config: ConfigDict, problem: Problem) -> Setup:
    makes = {name: method.make for name, method in METHODS.items()}
    return construct(config.objective, makes, problem)


def build(config: ConfigDict, keys: Keys) -> Experiment:
    if "sweep" in config and len(config.sweep.methods) * len(config.sweep.targets) > 1:
        raise ValueError("a preset with 'all' is a table of runs: add --sweep")
    if config.data.name in UCI:
        return deep_kernel.build(config, keys)
    problem, target = make_problem(config, keys)
    setup = _set_up(config, problem)
    num_microbatches = sum(player.num_updates for player in setup.players.values())
    evaluation = in_plane if config.data.name in PLANE else by_draws
    return Experiment(
        players=setup.players,
        params=setup.params,
        batch=target_batches(
            keys.data, target, config.data.batch_size * num_microbatches
        ),
        evaluate=evaluation(config, problem, target, setup.energy),
    )


def load(workdir: str | pathlib.Path):
    """`(energy_fn, energy_fn of the target)` of a run; not of the UCI tables."""
    has_average = bool(read_config(pathlib.Path(workdir)).ema_decay)
    config, params, _ = load_run(workdir, ema=has_average)
    if config.data.name in UCI:
        raise ValueError(
            f"{workdir} is a run on {config.data.name}: its energy is _deep_kernel's"
        )
    problem, target = make_problem(config, make_keys(config.seed))
    setup = _set_up(config, problem)
    params = jax.tree.map(jnp.asarray, params)
    return _bound_energy(problem, setup.energy, params), target.energy_fn
