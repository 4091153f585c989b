"""players"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import networks, samplers, training
from ebmjax.objectives import max_entropy
from ebmjax.types import Network
from experiments.judge import generators, plots
from experiments.max_entropy.images import KINDS, _of_images, _sweep_of
from experiments.run.config import (
    adam_section,
    construct,
    make_optimizer,
    train_section,
)
from experiments.run.experiment import Experiment, Keys, evaluated_params
from experiments.run.sweep import CELLS, over_seeds, overridden, run_cells, seeds
from experiments.run.workdir import (
    finite_evaluations,
    format_table,
    read_lines,
    write_atomically,
)


class Networks(NamedTuple):
    generator: Network
    energy: Network
    statistics: Network


def _mlps(event_shape, latent_dim, *, generator_widths, energy_widths, **options):
    return Networks(
        networks.mlp(
            (latent_dim,), event_shape, widths=generator_widths, activation="relu"
        ),
        networks.mlp_energy(event_shape, widths=energy_widths, **options),
        networks.mlp_statistics(
            event_shape, latent_dim=latent_dim, widths=energy_widths, **options
        ),
    )


def _of_pictures(generator, energy, statistics):
    """`(event_shape, latent_dim, *, hidden_width, ...) -> Networks`."""
    return lambda event_shape, latent_dim, *, hidden_width, **options: Networks(
        generator(event_shape, latent_dim=latent_dim, **options),
        energy(event_shape, **options),
        statistics(
            event_shape, latent_dim=latent_dim, hidden_width=hidden_width, **options
        ),
    )


NETWORKS = {
    "mlp": _mlps,
    "strided": _of_pictures(
        networks.strided_generator,
        networks.strided_energy,
        networks.strided_statistics,
    ),
    "convnet": _of_pictures(
        networks.convnet_generator,
        networks.convnet_energy,
        networks.convnet_statistics,
    ),
}


def _negatives(section) -> dict:
    """Latent chains in training: none where there are no moves."""
    section = dict(section)
    step_size = section.pop("step_size")
    if section["num_steps"] == 0:
        return {}
    return section | {"sampler": samplers.mala(step_size=step_size)}


def _max_entropy(
    nets: Networks,
    latent_dim,
    negatives,
    *,
    information_weight,
    estimator,
    marginal,
    **penalty,
):
    return max_entropy.generator_objective(
        nets.energy,
        nets.generator,
        nets.statistics,
        latent_dim=latent_dim,
        information_weight=information_weight,
        estimator=estimator,
        marginal=marginal,
    ), max_entropy.energy_objective(
        nets.energy,
        nets.generator,
        latent_dim=latent_dim,
        **penalty,
        **_negatives(negatives),
    )


def _wgan_gp(nets: Networks, latent_dim, negatives, *, gradient_penalty):
    del negatives
    given = (nets.energy.apply, nets.generator)
    return generators.follow_energy(
        *given, latent_dim=latent_dim
    ), generators.wgan_gp_energy(
        *given, latent_dim=latent_dim, gradient_penalty=gradient_penalty
    )


def _gan(nets: Networks, latent_dim, negatives):
    del negatives

    given = (nets.energy.apply, nets.generator)
    return generators.gan_generator(
        *given, latent_dim=latent_dim
    ), generators.gan_energy(*given, latent_dim=latent_dim)


METHODS = {"max_entropy": _max_entropy, "wgan_gp": _wgan_gp, "gan": _gan}


BASELINES = {"wgan_gp": {"gradient_penalty": 10.0}, "gan": {}}


def _preset(data: dict, nets: dict, latent_dim: int, **evaluation) -> dict:
    """The paper's optimiser and order; what varies with the data is given."""
    return {
        "seed": 0,
        "data": data,
        "latent_dim": latent_dim,  # paper: z
        "networks": nets,
        "objective": {
            "name": "max_entropy",
            "score_penalty": 0.1,  # paper: lambda, of the squared norm, without 1/2
            "penalty_on": "data",  # or "data_and_model"
            "reduction": "sum",  # "channel_mean": the released code's, of images
            "information_weight": 0.5,  # of I_JSD; the released code's
            "estimator": "jsd",  # or "nce", "donsker_varadhan"
            "marginal": "permutation",  # or "shuffle_dimensions", "fresh"
        },
        "players": {
            "num_energy_updates": 5,  # for one of generator and statistics
            "first": "generator",  # or "energy"
        },
        "negatives": {  # latent MALA in training
            "num_steps": 0,  # moves; 0 for none, as in the released code
            "step_size": 0.01,  # latent^2 / energy; paper: alpha
            "temperature": 1.0,  # energy; the paper's beta is its inverse
            "prior": True,  # whether |latent|^2 / 2 is in the energy; paper: no
        },
        "optimizer": adam_section(1e-4, b1=0.5, b2=0.9),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": train_section(100_000, eval_every=1_000),  # of the generator
        "sampler": {  # of what is evaluated beside the generator's draws
            "num_steps": 5,  # moves
            "step_size": 0.01,
            "temperature": 5.0,  # paper: beta = 0.2
            "prior": True,
            "visible_step_size": 1e-3,  # x^2 / energy; Langevin in x
            "visible_temperature": 1.0,
        },
        "evaluation": evaluation,
        "sweep": {"num_seeds": 3},  # seed, seed + 1, ...
    }


STRIDED = {"name": "strided", "widths": (64, 128, 256, 512), "hidden_width": 512}


def _with_method(config: ConfigDict, method: str) -> ConfigDict:
    """With a baseline's objective in place of its own."""
    if method in BASELINES:
        config.objective = ConfigDict({"name": method, **BASELINES[method]})
    return config


def build(config: ConfigDict, keys: Keys) -> Experiment:
    problem = KINDS.get(config.data.name, _of_images)(config, keys)
    nets = construct(config.networks, NETWORKS, problem.event_shape, config.latent_dim)
    generator_objective, energy_objective = construct(
        config.objective, METHODS, nets, config.latent_dim, config.negatives
    )
    trained, model_state = {}, {}
    for index, (name, network) in enumerate(nets._asdict().items()):
        trained[name], state = network.init(jax.random.fold_in(keys.params, index))
        if state:
            model_state[f"{name}_state"] = state
    trains = ("generator", "statistics")
    if config.objective.name in BASELINES:
        trains = ("generator",)
        del trained["statistics"]
    order = config.players.first
    if order not in ("generator", "energy"):
        raise ValueError(
            f"players.first must be 'generator' or 'energy', got {order!r}"
        )
    players = {
        "generator": training.Player(
            trains, generator_objective, make_optimizer(config.optimizer)
        ),
        "energy": training.Player(
            ("energy",),
            energy_objective,
            make_optimizer(config.optimizer),
            config.players.num_energy_updates,
        ),
    }
    if order == "energy":
        players = dict(reversed(players.items()))
    return Experiment(
        players=players,
        params=trained,
        batch=problem.batches(
            config.data.batch_size * (1 + config.players.num_energy_updates)
        ),
        evaluate=problem.evaluation(nets),
        model_state=model_state,
    )


class Problem(NamedTuple):
    """Data, and how what has learned them is judged.

    Attributes:
      event_shape: Of one example.
      batches: `batches(size) -> (step -> [rows, *event])`.
      evaluation: `evaluation(networks) -> evaluate`, as `_run.Experiment` has it.
    """

    event_shape: tuple[int, ...]
    batches: Callable[[int], Callable]
    evaluation: Callable[[Networks], Callable]


def _bound(nets: Networks, state):
    """`(energy_fn, generator_fn)` of what is evaluated."""
    params = evaluated_params(state)
    generator_state = state.model_state.get("generator_state")
    return (
        functools.partial(nets.energy.apply, params["energy"]),
        generators.bind(nets.generator, params["generator"], generator_state),
    )


def _drawn(config, energy_fn, generator_fn, key, num: int, chunk_size: int):
    """So many draws of the generator, and chains in the latent and visible space."""
    draw_key, chain_key = jax.random.split(key)
    x = generators.draw(
        generator_fn,
        draw_key,
        num,
        latent_dim=config.latent_dim,
        chunk_size=chunk_size,
    )
    return x, generators.sample(
        config.sampler,
        energy_fn,
        generator_fn,
        chain_key,
        config.evaluation.num_chains,
        latent_dim=config.latent_dim,
    )


def _shown(directory, x: np.ndarray, sampled: dict[str, np.ndarray], num: int) -> None:
    plots.image_grid(
        directory / "samples.png", x[:num], columns=math.ceil(num**0.5), title="draws"
    )
    plots.image_panels(
        directory / "chains.png",
        {name.replace("_", " "): images[:32] for name, images in sampled.items()},
        columns=16,
    )


ABLATION = {
    "whole": {},
    "no information": {"objective.information_weight": 0.0},
    "no penalty": {"objective.score_penalty": 0.0},
    "neither": {"objective.information_weight": 0.0, "objective.score_penalty": 0.0},
}


class Sweep(NamedTuple):
    """Cells, name -> overrides, and the scalars of their table.

    The name of a baseline is a cell of that method, which overrides nothing.
    """

    cells: dict[str, dict]
    columns: tuple[str, ...]


def sweep(build, config: ConfigDict, workdir) -> None:
    """Cells times seeds, and a table of means over seeds."""
    found = _sweep_of(config.data.name)
    if config.objective.name in BASELINES:
        raise ValueError(
            "a sweep is of the method max_entropy, and has the baselines as cells where"
            f" they are compared; got {config.objective.name!r}"
        )
    workdir, seeds = pathlib.Path(workdir), seeds(config)
    base = config.to_dict()
    del base["sweep"]  # a cell is the same run in any sweep
    cells = {
        f"{cell},{seed}": overridden(
            _with_method(ConfigDict(base), cell), values | {"seed": seed}
        )
        for cell, values in found.cells.items()
        for seed in seeds
    }
    num_last = config.evaluation.get("num_last", 1)

    def report(_):
        values = {}
        for cell in found.cells:
            of_seeds = [
                _last_evaluations(
                    workdir / CELLS / name, cells[name].train.num_steps, num_last
                )
                for name in (f"{cell},{seed}" for seed in seeds)
            ]
            values[cell] = [value for value in of_seeds if value]
        rows = over_seeds(values, found.columns)
        write_atomically(workdir / "table.md", format_table(rows))

    run_cells(build, cells, workdir, report, keeps_failures=True)
    print((workdir / "table.md").read_text())


def _last_evaluations(
    folder: pathlib.Path, num_steps: int, num: int
) -> dict[str, float] | None:
    """Means over the last so many evaluations of a run; None if it has not ended, or
    has fewer."""
    evaluations = finite_evaluations(read_lines(folder))
    last = [evaluations[step] for step in sorted(evaluations)[-num:]]
    if num_steps not in evaluations or len(last) < num:
        return None
    return {name: float(np.mean([x[name] for x in last])) for name in last[0]}
