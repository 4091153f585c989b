"""A problem as the loop takes it, and a trained run as `load` returns it."""

import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import training
from ebmjax.types import Array, Key, Network

MOST_STEPS, MOST_BYTES = 64, 2**22
"""Largest number of steps, and of bytes, of batches that are made together."""


class Keys(NamedTuple):
    """Independent streams of randomness; a new draw in one moves no other.

    Attributes:
      params: Key of the initial parameters.
      train: Root key of the training.
      data: Key of the order of the examples and of their noise.
      evaluation: Key of the evaluations.
    """

    params: Key
    train: Key
    data: Key
    evaluation: Key


class Experiment(NamedTuple):
    """A problem, built: what the loop trains and evaluates.

    Attributes:
      players: Player name -> `training.Player`.
      params: Network name -> initial parameters.
      batch: `batch(step) -> [rows, *event]`, this process's rows for all microbatches
        of the step; each microbatch has `data.batch_size` rows over all processes.
      evaluate: `evaluate(state, key, directory) -> scalars`; `state` holds numpy
        arrays (and no key), figures go to `directory`.
      model_state: `"<network>_state"` -> mutable collections.
      phases: Name -> players of a phase, which may be a part of all players or make
        another number of inner updates.
      phase: `phase(step) -> name`, one of `phases`, or "" for `players`.
      facts: Facts of the data that the model needs to be built again without them, as
        the shape of an example: JSON values, which the problem's `load` gets back.
      data_digest: Digest of the data that were read from files, such as
        `experiments.data.digest` makes; the empty string where there are none.
      programs: Name -> `program(params, model_state, key)`, the large programs of the
        evaluation as functions that can be traced, with the sizes of the config. They
        are compiled for chips that are not there, see `experiments.compile`.
    """

    players: Mapping[str, training.Player]
    params: dict[str, Any]
    batch: Callable[[int], np.ndarray | Array]
    evaluate: Callable[[training.TrainState, Key, pathlib.Path], dict[str, float]]
    model_state: dict[str, Any] = {}
    phases: Mapping[str, Mapping[str, training.Player]] = {}
    phase: Callable[[int], str] = lambda step: ""
    facts: Mapping[str, Any] = {}
    data_digest: str = ""
    programs: Mapping[str, Callable[[Any, Any, Key], Any]] = {}


class Trained(NamedTuple):
    """A trained model, with its functions bound to its parameters.

    A function that the model does not have is None.

    Attributes:
      config: The run's config, locked.
      params: Network name -> parameters.
      model_state: `"<network>_state"` -> mutable collections.
      networks: Network name -> `Network`.
      energy_fn: `energy_fn(x) -> []`, the energy of one example.
      score_fn: `score_fn(x) -> [*event]`, or `score_fn(x, noise_scale)` for a model of
        all noise scales: minus the gradient of its energy.
      log_prob: `log_prob(x) -> []` in nats, the normalised log density of one example;
        for a model whose likelihood is estimated, see the problem's `load`.
      sample: `sample(key, num) -> [num, *event]`, draws as the run's own evaluation
        makes them.
    """

    config: ConfigDict
    params: dict[str, Any]
    model_state: dict[str, Any]
    networks: dict[str, Network]
    energy_fn: Callable[[Array], Array] | None = None
    score_fn: Callable[..., Array] | None = None
    log_prob: Callable[..., Array] | None = None
    sample: Callable[[Key, int], Array] | None = None


def problem_of(build: Callable) -> str:
    """Returns the module that defines `build`, or its file if it has no name."""
    module = sys.modules[inspect.unwrap(build).__module__]
    if module.__name__ != "__main__":
        return module.__name__
    spec = getattr(module, "__spec__", None)  # None for `python file.py`
    return spec.name if spec is not None else os.path.abspath(str(module.__file__))


def stack_batches(
    batch: Callable[[int], np.ndarray | Array], steps: Sequence[int]
) -> np.ndarray | Array:
    """Returns the batches of several steps of one phase, `[steps, rows, *event]`.

    Args:
      batch: `Experiment.batch`. If it has a method `stack(steps)`, that makes them.
      steps: The steps.
    """
    if hasattr(batch, "stack"):
        return batch.stack(steps)
    return np.stack([np.asarray(batch(step)) for step in steps])


def all_phases(experiment: Experiment) -> dict[str, Mapping[str, training.Player]]:
    """Returns the players of every phase by its name; "" is the usual one."""
    return {"": experiment.players, **experiment.phases}


def in_parts(experiment: Experiment, num_accumulated: int) -> Experiment:
    """Returns the experiment, whose players take each microbatch in so many parts."""

    def divide(players):
        return {
            name: player._replace(
                num_accumulated=player.num_accumulated * num_accumulated
            )
            for name, player in players.items()
        }

    phases = {name: divide(players) for name, players in experiment.phases.items()}
    return experiment._replace(players=divide(experiment.players), phases=phases)


def num_stacked(num_bytes: int) -> int:
    """Returns for how many steps batches of so many bytes are made together."""
    return max(1, min(MOST_STEPS, MOST_BYTES // max(num_bytes, 1)))


def make_keys(seed: int) -> Keys:
    """Returns the streams of randomness of a run."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def evaluated_params(state: training.TrainState) -> dict[str, Any]:
    """Returns the averaged parameters, or the last ones if no average is kept."""
    params = state.params if state.ema_params is None else state.ema_params
    return jax.tree.map(jnp.asarray, params)
