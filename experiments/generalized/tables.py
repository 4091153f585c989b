"""tables"""

import math
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ebmjax import networks, objectives, samplers, starts, training
from ebmjax.checks import check_number
from ebmjax.objectives import generalized
from experiments.data import epoch_rows, process_rows, tabular
from experiments.generalized.images import build
from experiments.generalized.players import (
    ESTIMATORS,
    _base_player,
    _batch,
    _energy_optimizer,
    _energy_player,
    _phases,
    _preset,
)
from experiments.run.config import check_counts, construct
from experiments.run.experiment import Experiment, evaluated_params
from experiments.run.sweep import (
    CELLS,
    FAILURE,
    over_seeds,
    overridden,
    run_cells,
    seeds,
)
from experiments.run.workdir import (
    finite_evaluations,
    format_table,
    read_lines,
    write_atomically,
)

UCI = tuple(tabular.SOURCES)


def _uci(name: str) -> dict:
    """The published split, whitened by all rows, and no noise added. The flows and the
    length of training are ours; see above."""
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
            "name": "real_nvp",  # or "masked_autoregressive": base and energy
            "num_layers": 5,
            "widths": (100, 100),
            "has_offset": True,  # s of E = -log q + s: for c to have something to learn
        },
        num_draws=20_000,
    )
    config["objective"] |= {"gradient_penalty": 0.1, "num_draws": 20, "l2": 0.1}
    config["players"] |= {"num_energy_updates": 50, "extra_every": 0}
    config["optimizer"]["b2"] = 0.9
    # Published: 1e-4 for 26,000 to 94,000 updates of the energy.
    config["optimizer"]["learning_rate"] |= {
        "start": 5e-4,
        "final": 1e-5,
        "decay_steps": 160,
    }
    config["train"] |= {
        "num_steps": 160,
        "eval_every": 4,
        "checkpoint_every": 0,
        "log_every": 4,
        "best": "validation_nll",
    }
    config["sweep"]["methods"] = (*ESTIMATORS, *BASELINES)
    if name not in tabular.SMALL:  # published, but for the base's rate of 1e-4
        config["data"]["batch_size"] = 2_048
        config["objective"]["num_draws"] = 1
        config["optimizer"]["learning_rate"]["start"] = 1e-3
    return config


# Of tables only, with the published weight of the squared parameters.
BASELINES = {
    "likelihood": {"l2": 1e-4},
    "contrastive_divergence": {
        "l2": 1e-4,
        "step_size": 0.01,  # length^2
        "num_steps": 10,
    },
}


def _with_method(config: ConfigDict, method: str) -> ConfigDict:
    if method in BASELINES:
        config.objective = ConfigDict({"name": method, **BASELINES[method]})
        if method == "contrastive_divergence":
            # Published. At five times the rate it diverges before it learns anything.
            config.optimizer.learning_rate.start = 1e-4
            config.train.eval_every = 2
    else:
        config.objective.name = method
    return config


FLOWS = {
    "real_nvp": networks.real_nvp,
    "masked_autoregressive": networks.masked_autoregressive,
}


def _of_table(config, keys) -> Experiment:
    check_counts("evaluation", config.evaluation, num_draws=1)
    check_number("objective.l2", config.objective.get("l2", 0.0), positive=False)
    name = config.objective.name
    if name in BASELINES and set(config.objective) != {"name", *BASELINES[name]}:
        raise ValueError(
            f"objective.name {name!r} has options of its own: choose it by"
            f" --config=experiments/generalized.py:{config.data.name},{name}"
        )
    table = tabular.from_section(config.data)
    dim = table.train.shape[1]
    network = config.network.to_dict()
    has_offset = network.pop("has_offset")
    flow = construct(network, FLOWS, (dim,))

    def offset(params):
        """s, a sum over arrays of their mean magnitude; paper's true `-A`."""
        if not has_offset:
            return jnp.zeros(())
        return sum(jnp.abs(leaf).mean() for leaf in jax.tree.leaves(params))

    def energy(params, x):
        """Without the base's density: `-log q + s`."""
        return offset(params) - flow.log_prob(params, x)

    energy_key, base_key = jax.random.split(keys.params)
    params = {"energy": flow.init(energy_key)}
    # Published: the squares' sum over the sum of all sides of all arrays.
    num = sum(sum(leaf.shape) for leaf in jax.tree.leaves(params["energy"]))
    l2 = config.objective.l2 / num
    if config.objective.name in BASELINES:
        players = {"energy": _baseline(config, flow, l2)}
        phases = {}
    else:
        params |= {
            "base": flow.init(base_key),
            # Both flows begin as the identity: A = -s exactly.
            "log_partition": -offset(params["energy"]),
        }

        def base(params, latent):
            return flow.forward(params, latent)[0]

        players = {
            "energy": _energy_player(
                config, energy, base, dim, l2, base_log_prob=flow.log_prob
            ),
            "base": _base_player(
                config, energy, base, dim, base_log_prob=flow.log_prob
            ),
        }
        phases = _phases(config, players)

    def batches(key, size):
        rows = epoch_rows(key, len(table.train), size)
        local = process_rows(size)
        return lambda step: table.train[rows(step)[local]]

    log_prob = jax.jit(jax.vmap(flow.log_prob, (None, 0)))
    energies_of = jax.jit(jax.vmap(energy, (None, 0)))
    sample = jax.jit(jax.vmap(flow.sample, (None, 0)))

    def evaluate(state, key, directory):
        del directory
        found = evaluated_params(state)
        scalars = {
            f"{name}_nll": -float(log_prob(found["energy"], rows).mean())
            for name, rows in table._asdict().items()
            if name in ("train", "validation", "test")
        }
        if "base" not in found:
            return scalars
        scalars |= {
            f"base_{name}_nll": -float(log_prob(found["base"], rows).mean())
            for name, rows in (("validation", table.validation), ("test", table.test))
        }
        true = -float(offset(found["energy"]))
        draws = sample(
            found["base"], jax.random.split(key, config.evaluation.num_draws)
        )
        total = energies_of(found["energy"], draws) + log_prob(found["base"], draws)
        constant = float(found["log_partition"])
        mass = float(jnp.exp(-total - constant).mean())
        log_mean = float(jax.nn.logsumexp(-total) - math.log(len(draws)))
        if config.objective.name == "donsker_varadhan":
            constant, mass = log_mean, 1.0
        return scalars | {
            "log_partition": constant,  # learned
            "log_partition_true": true,
            "log_partition_of_draws": log_mean,
            # What KALE says of it, with nothing known of the energy: above test_nll by
            # e^d - 1 - d, d the error of the log partition, and the draws' error.
            "test_nll_by_kale": scalars["test_nll"] - true + constant + mass - 1,
        }

    return Experiment(
        players=players,
        params=params,
        batch=_batch(config, keys.data, players, batches, **phases),
        evaluate=evaluate,
        **phases,
    )


def _baseline(config, flow, l2: float) -> training.Player:
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
        _energy_optimizer(config, ("energy",), l2),
        config.players.num_energy_updates,
    )


def sweep(build, config: ConfigDict, workdir) -> None:
    """Of a table methods times seeds, each at its best validation; of what else the
    seeds; and `table.md` with means over seeds. A run that diverges has what was best
    before it did, and is not counted under `ended`. The baselines' sections `objective`
    are `BASELINES`, whatever the config has in its own, and contrastive divergence has
    the rate and the interval of evaluations of its preset."""
    if config.objective.name in BASELINES:
        raise ValueError(
            "a sweep has the baselines as cells, and begins from another method; got"
            f" {config.objective.name!r}"
        )
    workdir, seeds = pathlib.Path(workdir), seeds(config)
    is_table = config.data.name in UCI
    base = config.to_dict()
    del base["sweep"]  # a cell is the same run in any sweep
    methods = (config.objective.name,)
    if is_table:
        methods, known = tuple(config.sweep.methods), (*ESTIMATORS, *BASELINES)
        if not methods or not set(methods) <= set(known):
            raise ValueError(f"sweep.methods must be some of {known}, got {methods}")
    cells = {
        f"{method},{seed}": overridden(
            _with_method(ConfigDict(base), method), {"seed": seed}
        )
        for method in methods
        for seed in seeds
    }

    def report(_):
        found, ended = {}, {}
        for method in methods:
            chosen = [
                _chosen(workdir / CELLS / name, cells[name].train.num_steps)
                for name in (f"{method},{seed}" for seed in seeds)
            ]
            found[method] = [scalars for scalars, _ in chosen if scalars]
            ended[method] = str(sum(has_ended for _, has_ended in chosen))
        rows = [
            row | {"ended": ended[row["cell"]]} for row in over_seeds(found, digits=4)
        ]
        for row in rows:
            row.pop("evaluation_seconds", None)
        if not is_table:  # one method: many measures of it, one below another
            rows = [{"measure": k, "value": v} for k, v in rows[0].items()]
        write_atomically(workdir / "table.md", format_table(rows))

    run_cells(build, cells, workdir, report, keeps_failures=True)
    print((workdir / "table.md").read_text())


def _chosen(
    folder: pathlib.Path, num_steps: int
) -> tuple[dict[str, float] | None, bool]:
    """The evaluation with the best validation likelihood, of a run that has ended or
    diverged, or the last where there is none, of one that has ended; else None. And
    whether it has ended."""
    evaluations = finite_evaluations(read_lines(folder))
    has_ended = num_steps in evaluations
    has_choice = any("validation_nll" in scalars for scalars in evaluations.values())
    if not has_ended and not (has_choice and (folder / FAILURE).is_file()):
        return None, False
    best = min(
        reversed(evaluations.values()),
        key=lambda scalars: scalars.get("validation_nll", 0.0),
    )
    return best, has_ended


if __name__ == "__main__":
    main(build, __file__, sweep)
