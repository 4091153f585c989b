"""The players of every problem: an energy, and a generator that stays diverse.

Paper: Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
energy-based models", https://arxiv.org/abs/1901.08508.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import energies, samplers, training
from ebmjax.objectives import max_entropy
from ebmjax.types import Array
from experiments.judge import generators
from experiments.max_entropy.model import Networks, bind_networks
from experiments.run.config import (
    adam_section,
    check_name,
    construct,
    make_optimizer,
)
from experiments.run.experiment import Experiment, Keys
from experiments.run.sweep import Cell


def objective_section(**others) -> dict:
    """Returns a config's section `objective` with some options changed."""
    return {
        "name": "max_entropy",  # or "wgan_gp", "gan", with their own options
        "score_penalty": 0.1,  # of the squared norm, without a half; paper: lambda
        "penalty_on": "data",  # or "data_and_model"
        "reduction": "sum",  # or "channel_mean", the released code's for images
        "information_weight": 0.5,  # of the information by "jsd", as released
        "estimator": "jsd",  # or "nce", "donsker_varadhan"
        "marginal": "permutation",  # or "shuffle_dimensions", "fresh"
        **others,
    }


def players_section(**others) -> dict:
    """Returns a config's section `players` with some options changed."""
    return {
        "num_energy_updates": 5,  # updates of the energy for one of the generator
        "first": "generator",  # or "energy": the player that moves first
        **others,
    }


def training_chains() -> dict:
    """Returns a config's section `sampler`: latent MALA before the energy's update, of
    which the released code has none."""
    return {
        "sampler": {
            "num_steps": 0,  # moves; 0 for none
            "step_size": 0.01,  # latent^2 / energy, of latent MALA; paper: alpha
            "temperature": 1.0,  # of latent MALA, divides the energy; paper: 1 / beta
            "prior": True,  # whether |latent|^2 / 2 is in the energy; paper: no
        }
    }


def evaluation_chains() -> dict:
    """Returns a config's section `sampler` of `evaluation`: latent MALA and Langevin,
    both from the generator's draws."""
    return {
        "sampler": {
            "num_steps": 5,  # moves; 0 for none
            "step_size": 0.01,  # latent^2 / energy, of latent MALA; paper: alpha
            "temperature": 5.0,  # of latent MALA, divides the energy; paper: 1 / beta
            "prior": True,  # whether |latent|^2 / 2 is in the energy; paper: no
            "visible_step_size": 1e-3,  # x^2 / energy, of Langevin in x
            "visible_temperature": 1.0,  # of Langevin in x, divides the energy
        }
    }


def image_training() -> dict:
    """Returns a config's sections from `objective` to `ema_decay` for the paper's
    training of images."""
    return {
        "objective": objective_section(score_penalty=10.0, reduction="channel_mean"),
        "players": players_section(),
        **training_chains(),
        "optimizer": adam_section(1e-4, b1=0.5, b2=0.9),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
    }


BASELINES = {
    "wgan_gp": {
        "gradient_penalty": 10.0,  # weight of (|grad E| - 1)^2 between data and draws
    },
    "gan": {},
}
"""Method -> its options except its name."""


def make_config(presets: Mapping[str, Callable[[], dict]], preset: str) -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,method"`.

    Raises:
      ValueError: If the preset or the method is unknown.
    """
    name, _, method = preset.partition(",")
    check_name("preset", name, presets)
    config = ConfigDict(presets[name]())
    if method:
        check_name("method", method, METHODS)
    if method in BASELINES:
        config.objective = ConfigDict({"name": method, **BASELINES[method]})
    return config.lock()


ABLATION = {
    "whole": {},
    "no information": {"objective.information_weight": 0.0},
    "no penalty": {"objective.score_penalty": 0.0},
    "neither": {"objective.information_weight": 0.0, "objective.score_penalty": 0.0},
}


def ablate(preset: str) -> dict[str, Cell]:
    """Returns the cells of a sweep: the method, and the method without its parts.

    Args:
      preset: `"preset"` or `"preset,method"`. A baseline has no parts: it is the only
        cell.
    """
    method = preset.partition(",")[2]
    if method in BASELINES:
        return {method: Cell(preset)}
    return {name: Cell(preset, overrides) for name, overrides in ABLATION.items()}


def make_chains(section) -> dict[str, Any]:
    """Returns the arguments of `energy_objective` for chains; none without moves."""
    if section.num_steps == 0:
        return {}
    return {
        "sampler": samplers.mala(step_size=section.step_size),
        "num_steps": section.num_steps,
        "temperature": section.temperature,
        "prior": section.prior,
    }


def make_max_entropy(
    nets: Networks,
    latent_dim: int,
    chains: dict[str, Any],
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
        nets.energy, nets.generator, latent_dim=latent_dim, **penalty, **chains
    )


def check_no_chains(name: str, chains: dict[str, Any]) -> None:
    if chains:
        raise ValueError(
            f"sampler.num_steps must be 0 with the method {name!r}, which has no chains"
            f" in training, got {chains['num_steps']}"
        )


def make_wgan_gp(nets: Networks, latent_dim: int, chains, *, gradient_penalty):
    check_no_chains("wgan_gp", chains)
    given = (nets.energy.apply, nets.generator)
    return generators.follow_energy(
        *given, latent_dim=latent_dim
    ), generators.wgan_gp_energy(
        *given, latent_dim=latent_dim, gradient_penalty=gradient_penalty
    )


def make_gan(nets: Networks, latent_dim: int, chains):
    check_no_chains("gan", chains)
    given = (nets.energy.apply, nets.generator)
    return generators.gan_generator(
        *given, latent_dim=latent_dim
    ), generators.gan_energy(*given, latent_dim=latent_dim)


METHODS = {"max_entropy": make_max_entropy, "wgan_gp": make_wgan_gp, "gan": make_gan}
"""Name -> function that returns the objectives of the generator and of the energy."""


def make_players(config, nets: Networks) -> dict[str, training.Player]:
    """Returns the players in the order in which they move."""
    generator_objective, energy_objective = construct(
        "objective",
        config.objective,
        METHODS,
        nets,
        config.latent_dim,
        make_chains(config.sampler),
    )
    is_baseline = config.objective.name in BASELINES
    trains = ("generator",) if is_baseline else ("generator", "statistics")
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
    order = config.players.first
    if order not in players:
        raise ValueError(
            f"players.first must be 'generator' or 'energy', got {order!r}"
        )
    return players if order == "generator" else dict(reversed(players.items()))


def make_experiment(
    config: ConfigDict,
    keys: Keys,
    nets: Networks,
    *,
    batches: Callable[[int], Callable[[int], np.ndarray | Array]],
    evaluate: Callable[..., dict[str, float]],
    facts: Mapping[str, Any],
) -> Experiment:
    """Returns the experiment of a problem.

    Args:
      config: The whole config.
      keys: Streams of randomness.
      nets: From `make_networks`.
      batches: `batches(size) -> (step -> [rows, *event])`.
      evaluate: `Experiment.evaluate`.
      facts: `Experiment.facts`.
    """
    players = make_players(config, nets)
    trained = {name for player in players.values() for name in player.trains}
    params, model_state = {}, {}
    for index, (name, network) in enumerate(nets._asdict().items()):
        if name in trained:
            params[name], state = network.init(jax.random.fold_in(keys.params, index))
            if state:
                model_state[f"{name}_state"] = state
    num_updates = training.count_updates(players)
    return Experiment(
        players=players,
        params=params,
        batch=batches(config.data.batch_size * num_updates),
        evaluate=evaluate,
        model_state=model_state,
        facts=facts,
        programs=make_programs(config, nets),
    )


def make_programs(config: ConfigDict, nets: Networks) -> dict[str, Any]:
    """Returns the large programs of the evaluation, see `Experiment.programs`."""
    options = config.evaluation

    def draw(params, model_state, key):
        _, generator_fn = bind_networks(nets, params, model_state)
        num = options.chunk_size if "chunk_size" in options else options.num_samples
        latents = jax.random.normal(key, (num, config.latent_dim))
        return jax.vmap(generator_fn)(latents)

    def move(params, model_state, key):
        energy_fn, generator_fn = bind_networks(nets, params, model_state)
        section = options.sampler
        latents = jax.random.normal(key, (options.num_chains, config.latent_dim))
        return samplers.sample_chains(
            samplers.mala(step_size=section.step_size),
            energies.latent_energy(
                energy_fn, generator_fn, section.temperature, section.prior
            ),
            key,
            latents,
            section.num_steps,
            collect=None,
        )

    has_chains = "sampler" in options and options.sampler.num_steps
    return {"samples": draw} | ({"latent chains": move} if has_chains else {})
