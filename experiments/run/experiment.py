"""What a problem hands to the loop."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import training
from ebmjax.types import Array, Key


class Keys(NamedTuple):
    """Streams of randomness; a new draw in one moves no other."""

    params: Key
    train: Key
    data: Key
    evaluation: Key


class Experiment(NamedTuple):
    """What a paper's file hands to the loop.

    Attributes:
      players: Player name -> `training.Player`.
      params: Network name -> initial parameters.
      batch: `batch(step) -> [rows, *event]`, this process's rows for all microbatches
        of the step, `data.batch_size` of all processes together for each.
      evaluate: `evaluate(state, key, directory) -> scalars`; `state` holds numpy
        arrays (and no key), figures go to `directory`.
      model_state: `"<network>_state"` -> mutable collections.
      phases: Name -> some of the players, maybe with another number of updates each,
        for steps at which not all take their usual turns.
      phase: `phase(step) -> name`, of `phases`, or "" for `players`.
    """

    players: Mapping[str, training.Player]
    params: dict[str, Any]
    batch: Callable[[int], np.ndarray | Array]
    evaluate: Callable[[training.TrainState, Key, pathlib.Path], dict[str, float]]
    model_state: dict[str, Any] = {}
    phases: Mapping[str, Mapping[str, training.Player]] = {}
    phase: Callable[[int], str] = lambda step: ""


def make_keys(seed: int) -> Keys:
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def evaluated_params(state: training.TrainState) -> dict[str, Any]:
    """The averaged parameters where there are any."""
    params = state.params if state.ema_params is None else state.ema_params
    return jax.tree.map(jnp.asarray, params)
