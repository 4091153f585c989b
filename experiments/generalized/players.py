"""players"""

import math
from collections.abc import Callable

import jax
import optax

from ebmjax import targets, training
from ebmjax.objectives import generalized
from experiments.data import target_batches
from experiments.generalized.latents import SAMPLER_NAMES
from experiments.run.config import adam_section, make_optimizer, train_section


def _preset(data: dict, network: dict, **evaluation) -> dict:
    """The paper's training of images; what varies with the data is given."""
    return {
        "seed": 0,
        "data": data,
        "network": network,
        "objective": {
            "name": "kale",  # or "donsker_varadhan"
            "gradient_penalty": 1.0,  # paper: lambda
            "num_draws": 1,  # from the base for each example
            "transforms_log_partition": True,
            "energy_floor": 0.0,  # below 0: the energy is kept above it; 0 for none
        },
        "players": {
            "num_energy_updates": 5,  # for one of the base
            "num_extra_updates": 100,  # of the energy, at the first two steps and at
            "extra_every": 500,  # multiples of this
            "redescends": False,  # energy: 2 g / (1 + g^2), as released
        },
        # Of steps; a player with several updates in each takes as many steps.
        "optimizer": adam_section(1e-4, b1=0.5, b2=0.999),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": train_section(150_000),  # of the base, and after of the energy
        "evaluation": evaluation,
        "sweep": {"num_seeds": 3},  # seed, seed + 1, ...
    }


def _sampling(**others) -> dict:
    return {
        "samplers": SAMPLER_NAMES,
        "chain_lengths": (10, 50, 100, 200),  # moves
        "temperatures": (1.0, 0.1, 0.01),  # divide the energy; paper: beta = 100
        "step_size": 0.02,  # length^2, at temperature 1; times the temperature
        "decay": 0.1,  # of the step, every
        "decay_every": 200,  # moves
        "friction": 1.0,  # of "underdamped"
        "num_leapfrog": 2,  # of "hmc", on average
        "transport_step_size": 0.01,
        **others,
    }


ESTIMATORS = generalized.ESTIMATORS


def _energy_player(
    config, energy, base, latent_dim: int, l2: float = 0.0, **options
) -> training.Player:
    """KALE's or Donsker and Varadhan's energy, by the config."""
    section = config.objective
    if section.name not in ESTIMATORS:
        raise ValueError(
            f"objective.name must be one of {ESTIMATORS}, got {section.name!r}"
        )
    trains = ("energy", "log_partition")[: 2 if section.name == "kale" else 1]
    objective = generalized.energy_objective(
        energy,
        base,
        latent_dim=latent_dim,
        estimator=section.name,
        gradient_penalty=section.gradient_penalty,
        num_draws=section.num_draws,
        transforms_log_partition=section.transforms_log_partition,
        energy_floor=_floor(config),
        **options,
    )
    return training.Player(
        trains,
        objective,
        _energy_optimizer(config, trains, l2),
        config.players.num_energy_updates,
    )


def _base_player(config, energy, base, latent_dim: int, **options) -> training.Player:
    objective = generalized.base_objective(
        energy,
        base,
        latent_dim=latent_dim,
        num_draws=config.objective.num_draws,
        energy_floor=_floor(config),
        **options,
    )
    return training.Player(("base",), objective, _optimizer(config))


def _floor(config) -> float | None:
    floor = config.objective.energy_floor
    if not floor <= 0:
        raise ValueError(
            f"objective.energy_floor must be below 0, or 0 for none, got {floor}"
        )
    return floor or None


def _optimizer(config, num_updates: int = 1) -> optax.GradientTransformation:
    """Of a player with so many updates a step, in whose number its rate changes."""
    section = config.optimizer.to_dict()
    for name in ("warmup_steps", "decay_start", "decay_steps"):
        section["learning_rate"][name] *= num_updates
    return make_optimizer(section)


def _energy_optimizer(config, trains, l2: float = 0.0) -> optax.GradientTransformation:
    """With `l2` times the squares of the energy's parameters in the loss, and its
    gradients redescending where the config says so; not the log partition's."""
    mask = {name: name == "energy" for name in trains}
    parts = [_optimizer(config, config.players.num_energy_updates)]
    if config.players.redescends:
        parts.insert(0, optax.masked(generalized.redescending_gradients(), mask))
    if l2 > 0:
        parts.insert(0, optax.add_decayed_weights(2 * l2, mask))
    return optax.chain(*parts)


def _phases(config, players: dict) -> dict:
    """More updates of the energy at the first two steps and every so many, and none of
    the base after the joint steps; `Experiment`'s `phases` and `phase`."""
    section = config.players
    num_joint = config.train.get("num_joint_steps", math.inf)
    energy = players["energy"]
    extra = energy._replace(num_updates=energy.num_updates + section.num_extra_updates)
    others = {name: player for name, player in players.items() if name != "base"}
    phases = {"extra": players | {"energy": extra}, "tuning": others}

    def phase(step):
        if step >= num_joint:
            return "tuning"
        every = section.extra_every
        is_extra = step < 2 or (every and step % every == 0)
        return "extra" if is_extra and section.num_extra_updates else ""

    return {"phases": phases, "phase": phase}


def _batch(
    config, key, players, batches, phases=None, phase=lambda step: ""
) -> Callable:
    """`step -> rows` for all updates of that step's phase, from `batches(key, size)`:
    every phase goes through the data in an order of its own."""
    of_phase = {
        name: batches(
            jax.random.fold_in(key, index),
            config.data.batch_size
            * sum(player.num_updates for player in some.values()),
        )
        for index, (name, some) in enumerate({"": players, **(phases or {})}.items())
    }
    return lambda step: of_phase[phase(step)](step)


def _target_batches(target: targets.Target):
    return lambda key, size: target_batches(key, target, size)
