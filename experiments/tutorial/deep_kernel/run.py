r"""The deep kernel exponential family on tables, by score matching of four kinds.

Papers: Wenliang, Sutherland, Strathmann & Gretton (2019), "Learning deep kernels for
exponential family densities", https://arxiv.org/abs/1811.08357; Song, Garg, Shi & Ermon
(2019), "Sliced score matching", https://arxiv.org/abs/1905.07088.
Claim checked: kernels on learned features fit small tables better than a normal
distribution does, and sliced and denoising score matching fit them as well as exact
score matching.

    python -m experiments.tutorial.deep_kernel --workdir=runs/wine \
        --config=sliced_score_matching,red_wine --config.data.data_dir=DIR
    python -m experiments.tutorial.deep_kernel --workdir=runs/tables --sweep \
        --config=all,all --config.data.data_dir=DIR
    python -m experiments.tutorial.deep_kernel --workdir=runs/own \
        --config=sliced_score_matching,own --config.data.csv=FILE

A preset is `objective,table`, with the table `red_wine`, `white_wine` or `parkinsons`,
read from a file in `data.data_dir`. With `--sweep` either may be `all`, and tables that
are not in the folder are left out. A run takes minutes on a CPU, most of them for the
log partition function.

The table `own` is yours, a file of text, Parquet or Arrow with numbers and categories.
Its log-likelihood is in the units of the file, and `log_likelihoods.csv` has that of
each row of a second file, `data.score_csv`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import objectives, training
from experiments.data import own_tables, row_batches, tabular
from experiments.data.own_tables import own_section
from experiments.run import cli
from experiments.run.config import (
    check_counts,
    check_name,
    make_optimizer,
    nearest,
    train_section,
)
from experiments.run.experiment import Experiment, Keys, Trained
from experiments.run.sweep import Cell, Sweep
from experiments.run.workdir import save_arrays, save_columns
from experiments.tutorial.deep_kernel.evaluate import (
    estimate_log_partition,
    finalize,
    score_normal,
)
from experiments.tutorial.deep_kernel.model import bind, energy, init_params
from experiments.tutorial.deep_kernel.objective import (
    OBJECTIVES,
    Loss,
    early_stopping,
    make_loss,
    make_validation_loss,
    two_halves,
)

OPTIONS = {
    "denoising_score_matching": {
        "noise_scale": 0.16,  # x, of the noise on the rows; as published
    },
    "finite_difference_score_matching": {
        "step": 0.1,  # x, of the finite differences
    },
}
"""Options of the objectives that differ from the library's."""


def make_preset(objective: str, table: str) -> dict[str, Any]:
    """Returns the config of an objective on a table, with the published sizes."""
    # Exact and sliced score matching leave wells far from the data of Parkinson's,
    # which annealing finds only when it is slow.
    has_wells = objective in ("score_matching", "sliced_score_matching")
    num_moves = 4_000 if has_wells and table == "parkinsons" else 500
    data = {
        "name": table,  # "red_wine", "white_wine" or "parkinsons"
        "batch_size": 200,  # rows over all devices; half of them fit the weights
        "data_dir": "",  # folder with the file as published
        "split_seed": 2019,  # seed of the order of the rows; 2019 as published
        "whiten": "train",  # or "all", as published: test rows have a say
        "noise_scale": 0.05,  # whitened units
    }
    return {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": own_section(batch_size=200) if table == "own" else data,
        "network": {
            "num_inducing": 200,  # inducing points; paper: M
            "width": 30,  # units of a layer
            "log_widths": (0.0, 0.5185, 1.0),  # log10 of the kernels' squared widths
            "log_ridge": -2.0,  # log10 of the initial ridge; paper: lambda
        },
        "objective": {
            "name": objective,  # one of OBJECTIVES, with its own options
            **OPTIONS.get(objective, {}),
        },
        "optimizer": {
            "name": "adam",  # or "adamw", "sgd"
            "gradient_clip": 100.0,  # largest norm; 0 for none
            "learning_rate": {
                "start": 1e-2,  # constant
            },
        },
        "validation": {
            "every": 10,  # updates
            "patience": 200,  # updates; 0 for no end
            "num_examples": 1_000,  # training rows that the weights are then fitted to
            "num_draws": 1 if objective == "score_matching" else 10,  # for each row;
            # with one draw, the last ridge is fitted to draws
        },
        "ema_decay": 0.0,  # of the parameters; the best are evaluated
        # The best parameters are in every checkpoint.
        "train": train_section(600, checkpoint_every=250, abort_above=0.0),
        "evaluation": {
            "num_chains": 1_000,  # chains of annealed importance sampling
            "num_fractions": num_moves,  # densities from the reference to the model
            "num_leapfrog": 5,  # leapfrog steps in a move
            "num_long": num_moves,  # moves of the chains before they go back
            "num_importance": 1_000_000,  # draws of the reference
            "chunk_size": 10_000,  # of these draws
        },
    }


PRESETS = {
    f"{objective},{table}": functools.partial(make_preset, objective, table)
    for table in (*tabular.SMALL, "own")
    for objective in OBJECTIVES
}
DEFAULT = "sliced_score_matching,red_wine"


def list_presets(preset: str) -> list[str]:
    """Returns the presets that `objective,table` stands for; either may be "all".

    All tables are those that were published, not yours.

    Raises:
      ValueError: If a name is unknown.
    """
    objective, comma, table = preset.partition(",")
    if not comma:
        raise ValueError(
            f"preset must be 'objective,table', such as {DEFAULT!r}, got {preset!r}"
            f"{nearest(preset, PRESETS)}"
        )
    check_name("objective", objective, (*OBJECTIVES, "all"))
    check_name("table", table, (*tabular.SMALL, "own", "all"))
    return [
        f"{name},{place}"
        for place in (tabular.SMALL if table == "all" else [table])
        for name in (OBJECTIVES if objective == "all" else [objective])
    ]


def get_config(preset: str = DEFAULT) -> ConfigDict:
    """Returns the config of `objective,table`; the first one if either is "all"."""
    return ConfigDict(PRESETS[list_presets(preset)[0]]()).lock()


def check_single(preset: str) -> None:
    """Raises a ValueError if a preset stands for a table of runs."""
    if "all" in preset.split(","):
        raise ValueError(f"the preset {preset!r} is a table of runs: add --sweep")


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Returns training with early stopping, and the evaluation of the best parameters.

    Raises:
      ValueError: If the table is not in `data.data_dir`, or an option is not valid.
    """
    section = config.data
    check_counts("validation", config.validation, every=1, num_examples=1, num_draws=1)
    table = tabular.from_section(section)
    network = dict(config.network)
    num_inducing = network.pop("num_inducing")
    if not 0 < num_inducing <= len(table.train):
        raise ValueError(
            f"network.num_inducing must be from 1 to {len(table.train)},"
            f" got {num_inducing}"
        )
    inducing_key, params_key = jax.random.split(keys.params)
    order = jax.random.permutation(inducing_key, len(table.train))
    inducing = table.train[np.asarray(order[:num_inducing])]
    params = init_params(params_key, inducing, **network)
    loss = make_loss(config.objective)
    fit_key, draw_key = jax.random.split(jax.random.fold_in(keys.evaluation, 0))
    order = jax.random.permutation(fit_key, len(table.train))
    fit_rows = table.train[np.asarray(order[: config.validation.num_examples])]
    objective = early_stopping(
        two_halves(loss),
        make_validation_loss(
            loss,
            draw_key,
            fit_rows,
            np.tile(table.validation, (config.validation.num_draws, 1)),
        ),
        params,
        every=config.validation.every,
        patience=config.validation.patience,
    )
    optimizer = make_optimizer(config.optimizer)
    return Experiment(
        players={"energy": training.Player(("energy",), objective, optimizer)},
        params={"energy": params},
        batch=row_batches(keys.data, table.train, section.batch_size),
        evaluate=make_evaluation(config, table, loss),
        facts={} if table.encoding is None else table.encoding._asdict(),
        data_digest=table.digest,
    )


def make_evaluation(config: ConfigDict, table: tabular.Table, loss: Loss):
    """Returns `evaluate`, which fits the last weights and scores the test rows.

    The evaluated model is in `fitted.npz`, for `load`: training keeps no weights.
    """
    exact = objectives.score_matching(energy)
    num_draws = config.validation.num_draws

    def evaluate(state, key, directory):
        finalize_key, partition_key = jax.random.split(key)
        best = jax.tree.map(lambda leaf: leaf[0], state.carry["energy"])
        rows = (np.tile(x, (num_draws, 1)) for x in (table.train, table.validation))
        params = finalize(loss, best.params, finalize_key, *rows)
        energy_fn = bind(params)
        found = estimate_log_partition(
            energy_fn, partition_key, table.train, config.evaluation
        )
        energies = jax.jit(jax.vmap(energy_fn))
        energy_test = jnp.mean(energies(table.test))
        run = jax.jit(lambda params: exact.loss(params, key, table.test, ())[0])
        save_arrays(
            directory / "fitted.npz",
            last_log_ridge=state.params["energy"]["log_ridge"],
            log_partition=found["log_partition"],
            **name_leaves(params),
        )
        scalars = {
            "score_matching": float(run({"energy": params})),
            "test_log_likelihood": -float(energy_test) - found["log_partition"],
            "validation_loss": float(best.loss),
            "best_step": float(best.step),
            "log_ridge": float(params["log_ridge"]),
            **found,
            **score_normal(table.train, table.test),
        }
        if table.encoding is not None:
            own, scored = own_tables.log_likelihoods(
                table, lambda rows: -energies(rows) - found["log_partition"]
            )
            scalars |= own
            if scored is not None:
                columns = {"log_likelihood": scored}
                save_columns(directory / "log_likelihoods.csv", columns)
        return scalars

    return evaluate


def name_leaves(params) -> dict[str, Any]:
    """Returns the arrays of parameters by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def skip(config: ConfigDict) -> str:
    """Returns why a run is left out of a sweep: its table is not there."""
    if "csv" in config.data:
        return ""
    if not config.data.data_dir:
        return "data.data_dir is empty"
    try:
        tabular.find_file(config.data.name, config.data.data_dir)
    except FileNotFoundError as error:
        return str(error)
    return ""


def sweep(preset: str) -> Sweep:
    """Returns the table of all objectives and tables that `preset` stands for."""
    return Sweep(
        cells={name: Cell(name) for name in list_presets(preset or DEFAULT)},
        columns=(
            "test_log_likelihood",
            "score_matching",
            "ais_bracket",
            "ais_bound_gap",
        ),
        num_seeds=3,
        skip=skip,
    )


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the model that the run's last evaluation fitted and scored.

    `score_fn(x)` is minus the gradient of the energy. `log_prob(x)` uses the estimate
    of annealed importance sampling for the log partition function. The model has no
    exact draws. Rows of your own table are in the units of the file, in the order of
    `facts["columns"]` in `run.json`.

    Raises:
      ValueError: If there is no evaluation of this checkpoint.
    """
    last, fitted = params["energy"], facts.get("fitted")
    if fitted is None or fitted["last_log_ridge"] != last["log_ridge"]:
        raise ValueError(
            "the weights are fitted by the evaluation, and this checkpoint has none:"
            " run the command again with --evaluate_only"
        )
    best = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(fitted[jax.tree_util.keystr(path)]),
        last | {"alpha": 0.0},
    )
    energy_fn, log_partition = bind(best), float(fitted["log_partition"])
    trained = Trained(
        config=config,
        params={"energy": best},
        model_state=model_state,
        networks={},
        energy_fn=energy_fn,
        score_fn=lambda x: -jax.grad(energy_fn)(x),
        log_prob=lambda x: -energy_fn(x) - log_partition,
    )
    return own_tables.in_units(trained, facts) if "matrix" in facts else trained


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
