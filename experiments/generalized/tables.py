r"""Densities of UCI tables: a generalised energy-based model with two flows.

Paper: Arbel, Zhou & Gretton (2021), "Generalized energy based models",
https://arxiv.org/abs/2003.05033.
Claim checked: with a flow for the base and another for the energy the model is a
density, whose likelihood is comparable to that of direct maximum likelihood.

    python -m experiments.generalized.tables --workdir=runs/red \
        --config.data.data_dir=DIR
    python -m experiments.generalized.tables --workdir=runs/white --sweep \
        --config=white_wine --config.data.data_dir=DIR
    python -m experiments.generalized.tables --workdir=runs/own \
        --config=own,likelihood --config.data.csv=FILE --config.data.score_csv=OTHER

Presets: `red_wine`, `white_wine` and `parkinsons` (2 to 3 minutes of a CPU core),
`hepmass` and `miniboone` (run on no real file yet), and `own`. `data.data_dir` is the
folder with the file as published. After a comma stands the method: `kale`, the default,
`donsker_varadhan`, `likelihood` or `contrastive_divergence`. With `--sweep`, all
methods with three seeds each, and of every run the evaluation with the best validation.

`own` is a table of yours, a file of text, Parquet or Arrow with numbers and categories.
The evaluation has the log-likelihood of a tenth of its rows, in nats and in the units
of the file, and writes that of each row of a second file to `log_likelihoods.csv`.

Other than published: the flows have one network a coupling for shift and scale, whose
scale is bounded, and an affine map at the end. They are trained for 8,200 updates of
the energy at five times the rate, and not for 26,000 and more. All rows whiten the
large tables too, where the first 10,000 were published, and HepMass is tested on a
tenth of its rows.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import networks, objectives, samplers, starts, training
from ebmjax.checks import check_number
from ebmjax.networks import Flow
from ebmjax.objectives import generalized
from experiments.data import own_tables, row_batches, tabular
from experiments.data.own_tables import own_section
from experiments.generalized.players import (
    ESTIMATORS,
    base_player,
    check_players,
    energy_optimizer,
    energy_player,
    make_experiment,
    objective_section,
    players_section,
)
from experiments.run import cli
from experiments.run.config import (
    adam_section,
    check_counts,
    check_name,
    construct,
    train_section,
)
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params
from experiments.run.sweep import Cell, Row, Sweep, over_seeds
from experiments.run.workdir import format_table, save_arrays, save_columns


def make_small(name: str) -> dict:
    """Returns the problem's default: the published split, without noise added."""
    config = {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": {
            "name": name,  # of the table, such as "red_wine" or "hepmass"
            "data_dir": "",  # the folder with the file as published
            "batch_size": 100,  # of all devices
            "split_seed": 1,  # of the order of the rows
            "whiten": "all",  # test rows included, as published; or "train"
            "noise_scale": 0.0,  # of noise added to the rows, in whitened units
        },
        "network": {
            "name": "real_nvp",  # or "masked_autoregressive"; base and energy
            "num_layers": 5,  # coupling or autoregressive layers
            "widths": (100, 100),  # hidden layers in each of them
            "has_offset": True,  # s of E = -log q + s: for c to have something to learn
        },
        "objective": objective_section(gradient_penalty=0.1, num_draws=20)
        | {"l2": 0.1},  # weight of the energy's squared parameters, as published
        "players": players_section(num_energy_updates=50, extra_every=0),
        # Published: 1e-4 for 26,000 to 94,000 updates of the energy. Lengths are in
        # steps, however many updates a player makes in one.
        "optimizer": adam_section(5e-4, b1=0.5, b2=0.9),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": train_section(
            160, eval_every=4, checkpoint_every=0, log_every=4, best="validation_nll"
        ),
        "evaluation": {
            "num_draws": 20_000,  # of the base, and of the model for samples.npz
        },
    }
    config["optimizer"]["learning_rate"] |= {"final": 1e-5, "decay_steps": 160}
    return config


def make_large(name: str) -> dict:
    """Returns the published options, except the rate of the base, which was 1e-4."""
    config = make_small(name)
    config["data"]["batch_size"] = 2_048
    config["objective"]["num_draws"] = 1
    config["optimizer"]["learning_rate"]["start"] = 1e-3
    return config


def make_own() -> dict:
    """Returns a narrower and shorter training, as wider ones overfit 1,300 rows."""
    config = make_small("own") | {"data": own_section(batch_size=100)}
    config["network"]["widths"] = (32, 32)
    config["train"] |= {"num_steps": 40, "eval_every": 5}
    config["optimizer"]["learning_rate"]["decay_steps"] = 40
    return config


PRESETS = {
    "red_wine": lambda: make_small("red_wine"),
    "white_wine": lambda: make_small("white_wine"),
    "parkinsons": lambda: make_small("parkinsons"),
    "hepmass": lambda: make_large("hepmass"),
    "miniboone": lambda: make_large("miniboone"),
    "own": make_own,
}

# With the published weight of the squared parameters.
BASELINES = {
    "likelihood": {"l2": 1e-4},
    "contrastive_divergence": {
        "l2": 1e-4,
        "step_size": 0.01,  # length^2, of Langevin
        "num_steps": 10,  # moves from the data
    },
}
METHODS = (*ESTIMATORS, *BASELINES)


def get_config(preset: str = "red_wine") -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,method"`."""
    name, _, method = preset.partition(",")
    check_name("preset", name, PRESETS)
    config = ConfigDict(PRESETS[name]())
    if method:
        check_name("method", method, METHODS)
        config.objective.name = method
    if method in BASELINES:
        config.objective = ConfigDict({"name": method, **BASELINES[method]})
    if method == "contrastive_divergence":
        # Published. At five times the rate it diverges before it learns anything.
        config.optimizer.learning_rate.start = 1e-4
        config.train.eval_every = 2
    return config.lock()


FLOWS = {
    "real_nvp": networks.real_nvp,
    "masked_autoregressive": networks.masked_autoregressive,
}

CHOICES = {"network": FLOWS}


def make_flow(config, dim: int) -> Flow:
    """Returns the flow of base and energy, without parameters."""
    section = config.network.to_dict()
    del section["has_offset"]
    return construct("network", section, FLOWS, (dim,))


def make_energy(config, flow: Flow):
    """Returns `energy(params, x)`, `-log q + s`, and `offset(params)`, which is `s`."""

    def offset(params):
        """Returns a sum over arrays of their mean magnitude; the paper's true `-A`."""
        if not config.network.has_offset:
            return jnp.zeros(())
        return sum(jnp.abs(leaf).mean() for leaf in jax.tree.leaves(params))

    def energy(params, x):
        return offset(params) - flow.log_prob(params, x)

    return energy, offset


def make_sample(flow: Flow):
    """Returns `sample(params, key, num) -> [num, dim]`."""
    draw = jax.jit(jax.vmap(flow.sample, (None, 0)))

    def sample(params, key, num):
        return np.asarray(draw(params, jax.random.split(key, num)))

    return sample


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment: two flows, or that of a baseline alone."""
    check_counts("evaluation", config.evaluation, num_draws=1)
    check_number("objective.l2", config.objective.get("l2", 0.0), positive=False)
    check_players(config.players)
    name = config.objective.name
    is_baseline = name in BASELINES
    if is_baseline and set(config.objective) != {"name", *BASELINES[name]}:
        raise ValueError(
            f"objective.name {name!r} has options of its own: choose it by"
            f" --config={config.data.name},{name}"
        )
    table = tabular.from_section(config.data)
    dim = table.train.shape[1]
    flow = make_flow(config, dim)
    energy, offset = make_energy(config, flow)
    energy_key, base_key = jax.random.split(keys.params)
    params = {"energy": flow.init(energy_key)}
    # Published: the squares' sum over the sum of all sides of all arrays.
    num = sum(sum(leaf.shape) for leaf in jax.tree.leaves(params["energy"]))
    l2 = config.objective.l2 / num
    if is_baseline:
        players = {"energy": baseline_player(config, flow, l2)}
    else:
        params |= {
            "base": flow.init(base_key),
            # Both flows begin as the identity: A = -s exactly.
            "log_partition": -offset(params["energy"]),
        }

        def base(params, latent):
            return flow.forward(params, latent)[0]

        density = {"base_log_prob": flow.log_prob}
        players = {
            "energy": energy_player(config, energy, base, dim, l2, **density),
            "base": base_player(config, energy, base, dim, **density),
        }

    def batches(key, size):
        return row_batches(key, table.train, size)

    log_prob = jax.jit(jax.vmap(flow.log_prob, (None, 0)))
    energies = jax.jit(jax.vmap(energy, (None, 0)))
    sample = make_sample(flow)

    def mean_nll(params, rows):
        return -float(log_prob(params, rows).mean())

    def evaluate(state, key, directory):
        found, num_draws = evaluated_params(state), config.evaluation.num_draws
        sample_key = jax.random.fold_in(key, num_draws)  # beside the base's
        samples = sample(found["energy"], sample_key, num_draws)
        if table.encoding is not None:
            samples = table.encoding.undo(samples)
        save_arrays(
            directory / "samples.npz",
            samples=samples,
            key=jax.random.key_data(sample_key),
        )
        scalars = {
            f"{name}_nll": mean_nll(found["energy"], getattr(table, name))
            for name in ("train", "validation", "test")
        }
        if table.encoding is not None:
            bound = functools.partial(log_prob, found["energy"])
            own, scored = own_tables.log_likelihoods(table, bound)
            scalars |= own
            if scored is not None:
                columns = {"log_likelihood": scored}
                save_columns(directory / "log_likelihoods.csv", columns)
        if is_baseline:
            return scalars
        scalars |= {
            f"base_{name}_nll": mean_nll(found["base"], getattr(table, name))
            for name in ("validation", "test")
        }
        draws = sample(found["base"], key, num_draws)
        total = energies(found["energy"], draws) + log_prob(found["base"], draws)
        true = -float(offset(found["energy"]))
        constant = float(found["log_partition"])
        mass = float(jnp.exp(-total - constant).mean())
        log_mean = float(jax.nn.logsumexp(-total) - math.log(len(draws)))
        if name == "donsker_varadhan":
            constant, mass = log_mean, 1.0
        return scalars | {
            "log_partition": constant,  # learned
            "log_partition_true": true,
            "log_partition_of_draws": log_mean,
            # What KALE says of it, with nothing known of the energy: above test_nll by
            # e^d - 1 - d, d the error of the log partition, and the draws' error.
            "test_nll_by_kale": scalars["test_nll"] - true + constant + mass - 1,
        }

    facts = {"dim": dim}
    if table.encoding is not None:
        facts |= table.encoding._asdict()
    return make_experiment(
        config, keys, players, batches, params=params, evaluate=evaluate, facts=facts
    )._replace(data_digest=table.digest)


def baseline_player(config, flow: Flow, l2: float) -> training.Player:
    """Returns the player of a method that trains one flow and has no base."""
    section = config.objective
    if section.name == "likelihood":
        objective = generalized.likelihood(flow.log_prob)
    else:
        objective = objectives.contrastive_divergence(
            lambda params, x: -flow.log_prob(params, x),
            sampler=samplers.langevin(step_size=section.step_size),
            num_steps=section.num_steps,
            start=starts.data(),
        )
    return training.Player(
        ("energy",),
        objective,
        energy_optimizer(config, ("energy",), l2),
        config.players.num_energy_updates,
    )


def choose_best(
    evaluations: Mapping[int, Mapping[str, float]], has_ended: bool
) -> Mapping[str, float] | None:
    """Returns the evaluation with the best validation, the last one of equal ones.

    A run that diverged has it too, if it was evaluated before it did.
    """
    del has_ended
    return min(
        reversed(evaluations.values()),
        key=lambda scalars: scalars["validation_nll"],
        default=None,
    )


def tabulate(rows: Sequence[Row], columns: Sequence[str] | None) -> str:
    """Returns a table of means over seeds, and of how many runs reached their end."""
    found = {row.name: row.found for row in rows}
    if columns is None:
        known = (name for cell in found.values() for x in cell for name in x)
        columns = [x for x in dict.fromkeys(known) if x != "evaluation_seconds"]
    lines = over_seeds(found, columns)
    for row, line in zip(rows, lines, strict=True):
        line["ended"] = str(row.num_ended)
    return format_table(lines)


def sweep(preset: str) -> Sweep:
    """Returns the plan of all methods of a table, or of the one in the preset."""
    name, _, method = (preset or "red_wine").partition(",")
    methods = (method,) if method else METHODS
    cells = {method: Cell(f"{name},{method}") for method in methods}
    return Sweep(cells, num_seeds=3, choose=choose_best, table=tabulate)


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model, of a row in the whitened units of training.

    It is the flow of the energy: `log_prob` is normalised, `energy_fn` is `s -
    log_prob`, and `sample` draws by the flow. The base is in `params` alone. A model of
    your own table takes and draws rows in the units of the file, in the order of
    `facts["columns"]` in `run.json`. In a column of categories, all numbers from `k` to
    `k + 1` stand for the category `k` of `facts["categories"]`.
    """
    flow = make_flow(config, facts["dim"])
    energy, _ = make_energy(config, flow)
    found = params["energy"]
    trained = Trained(
        config,
        params,
        model_state,
        {name: flow for name in ("energy", "base") if name in params},
        energy_fn=functools.partial(energy, found),
        log_prob=functools.partial(flow.log_prob, found),
        sample=functools.partial(make_sample(flow), found),
    )
    return own_tables.in_units(trained, facts) if "matrix" in facts else trained


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
