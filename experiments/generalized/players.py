"""The two players of every problem: a base that draws, an energy that reweighs it."""

import math
from collections.abc import Callable, Mapping

import jax
import optax
from ml_collections import ConfigDict

from ebmjax import training
from ebmjax.objectives import generalized
from experiments.run.config import check_counts, check_name, make_optimizer
from experiments.run.experiment import Experiment, Keys, stack_batches

ESTIMATORS = generalized.ESTIMATORS


def objective_section(**others) -> dict:
    """Returns a config's section `objective` with some options changed."""
    return {
        "name": "kale",  # or "donsker_varadhan"
        "gradient_penalty": 1.0,  # weight; paper: lambda
        "num_draws": 1,  # draws from the base for each example
        "transforms_log_partition": True,  # slope of c: exp(c - A) - 1, as published
        "energy_floor": 0.0,  # nats, below 0: the energy is kept above it; 0 for none
        **others,
    }


def players_section(**others) -> dict:
    """Returns a config's section `players` with some options changed."""
    return {
        "num_energy_updates": 5,  # updates of the energy for one of the base
        "num_extra_updates": 100,  # more of the energy at steps 0, 1 and `extra_every`
        "extra_every": 500,  # steps, and at their multiples; 0 for none
        "redescends": False,  # gradients of the energy: 2 g / (1 + g^2), as released
        **others,
    }


def make_config(presets: Mapping[str, Callable[[], dict]], preset: str) -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,estimator"`."""
    name, _, estimator = preset.partition(",")
    check_name("preset", name, presets)
    config = ConfigDict(presets[name]())
    if estimator:
        check_name("estimator", estimator, ESTIMATORS)
        config.objective.name = estimator
    return config.lock()


def check_players(section) -> None:
    """Raises a ValueError unless the counts of the section `players` make sense."""
    least = {"num_energy_updates": 1, "num_extra_updates": 0, "extra_every": 0}
    check_counts("players", section, **least)


def energy_player(
    config, energy, base, latent_dim: int, l2: float = 0.0, **options
) -> training.Player:
    """Returns the energy's player, by KALE or by Donsker and Varadhan.

    Args:
      config: The sections `objective`, `players` and `optimizer` are read.
      energy: The energy, as `generalized.energy_objective` takes it.
      base: The base, as `generalized.energy_objective` takes it.
      latent_dim: Length of the base's latent.
      l2: Weight of the sum of the squared parameters of the energy.
      **options: Further arguments of `generalized.energy_objective`.
    """
    section = config.objective
    check_name("objective.name", section.name, ESTIMATORS)
    trains = ("energy", "log_partition")[: 2 if section.name == "kale" else 1]
    objective = generalized.energy_objective(
        energy,
        base,
        latent_dim=latent_dim,
        estimator=section.name,
        gradient_penalty=section.gradient_penalty,
        num_draws=section.num_draws,
        transforms_log_partition=section.transforms_log_partition,
        energy_floor=energy_floor(config),
        **options,
    )
    return training.Player(
        trains,
        objective,
        energy_optimizer(config, trains, l2),
        config.players.num_energy_updates,
    )


def base_player(config, energy, base, latent_dim: int, **options) -> training.Player:
    """Returns the base's player; the arguments are those of `energy_player`."""
    objective = generalized.base_objective(
        energy,
        base,
        latent_dim=latent_dim,
        num_draws=config.objective.num_draws,
        energy_floor=energy_floor(config),
        **options,
    )
    return training.Player(("base",), objective, player_optimizer(config))


def energy_floor(config) -> float | None:
    """Returns the floor of the energy, None for no floor."""
    floor = config.objective.energy_floor
    if not floor <= 0:
        raise ValueError(
            f"objective.energy_floor must be below 0, or 0 for none, got {floor}"
        )
    return floor or None


def player_optimizer(config, num_updates: int = 1) -> optax.GradientTransformation:
    """Returns the optimizer of a player that makes `num_updates` updates a step.

    The config counts the lengths of the learning rate's schedule in steps.
    """
    section = config.optimizer.to_dict()
    for name in ("warmup_steps", "decay_start", "decay_steps"):
        section["learning_rate"][name] *= num_updates
    return make_optimizer(section)


def energy_optimizer(config, trains, l2: float = 0.0) -> optax.GradientTransformation:
    """Returns the optimizer of the energy's player.

    The loss has `l2` times the squares of the energy's parameters, and the gradients of
    the energy redescend if the config says so. The log partition function has neither.
    """
    mask = {name: name == "energy" for name in trains}
    parts = [player_optimizer(config, config.players.num_energy_updates)]
    if config.players.redescends:
        parts.insert(0, optax.masked(generalized.redescending_gradients(), mask))
    if l2 > 0:
        parts.insert(0, optax.add_decayed_weights(2 * l2, mask))
    return optax.chain(*parts)


def make_phases(config, players: dict) -> dict:
    """Returns `phases` and `phase` of an `Experiment`.

    The energy has more updates at the first two steps and at multiples of
    `players.extra_every`. The base rests after `train.num_joint_steps`, if the config
    has such an option.
    """
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


def make_experiment(config, keys: Keys, players: dict, batches, **others) -> Experiment:
    """Returns the experiment of a problem, whose players train in phases.

    A method with other objectives than `ESTIMATORS` has no phases.

    Args:
      config: The whole config.
      keys: Streams of randomness.
      players: Player name -> `training.Player`.
      batches: As in `make_batch`.
      **others: The further fields of the `Experiment`.
    """
    has_phases = config.objective.name in ESTIMATORS
    phases = make_phases(config, players) if has_phases else {}
    batch = make_batch(config, keys.data, players, batches, **phases)
    return Experiment(players=players, batch=batch, **phases, **others)


def make_batch(
    config, key, players, batches, phases=None, phase=lambda step: ""
) -> Callable:
    """Returns `batch(step) -> rows` for all updates of that step's phase.

    Args:
      config: Its `data.batch_size` is that of each update.
      key: The stream of data.
      players: Player name -> `training.Player`.
      batches: `batches(key, size=...) -> (step -> rows)`. Each phase goes through the
        data in an order of its own.
      phases: `Experiment.phases`.
      phase: `Experiment.phase`.
    """
    by_phase = {
        name: batches(
            jax.random.fold_in(key, index),
            size=config.data.batch_size * training.count_updates(some),
        )
        for index, (name, some) in enumerate({"": players, **(phases or {})}.items())
    }

    def batch(step):
        return by_phase[phase(step)](step)

    # Steps whose batches are stacked are all of one phase.
    batch.stack = lambda steps: stack_batches(by_phase[phase(steps[0])], steps)
    return batch
