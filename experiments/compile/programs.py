"""The programs of a problem, from shapes alone."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from ebmjax import training
from experiments.compile.stand_ins import stand_ins, without_data
from experiments.compile.topologies import Topology
from experiments.run.experiment import (
    Experiment,
    all_phases,
    in_parts,
    make_keys,
    num_stacked,
)
from experiments.run.operations import (
    Operations,
    count_operations,
    count_update,
)


class Program(NamedTuple):
    """A program that can be compiled.

    Attributes:
      lower: `lower() -> jax.stages.Lowered`, for the chips of a topology.
      operations: Those of one chip: of one update, or of one call.
    """

    lower: Callable[[], Any]
    operations: Operations


class Problem(NamedTuple):
    """A built experiment, and the shapes of what its update takes.

    Attributes:
      config: Its config, without data.
      experiment: Result of `build`.
      num_devices: Number of chips that share a batch.
    """

    config: ConfigDict
    experiment: Experiment
    num_devices: int


def build_problem(module: Any, config: ConfigDict, num_devices: int) -> Problem:
    """Builds the experiment of a config as a run does, without data.

    Args:
      module: The problem.
      config: A config of it.
      num_devices: Number of chips.

    Raises:
      ValueError: If the chips cannot share a batch.
    """
    size = config.data.batch_size
    if size % num_devices:
        raise ValueError(
            f"data.batch_size must be a multiple of the {num_devices} chips, got {size}"
        )
    config = without_data(config)
    with stand_ins():
        experiment = module.build(config, make_keys(config.seed))
    experiment = in_parts(experiment, config.train.num_accumulated)
    return Problem(config, experiment, num_devices)


def state_shapes(problem: Problem) -> training.TrainState:
    """Returns the shapes of the state on all chips."""
    experiment = problem.experiment
    make_state = functools.partial(
        training.init_state,
        experiment.players,
        experiment.params,
        make_keys(problem.config.seed).train,
        model_state=experiment.model_state,
        ema_decay=problem.config.ema_decay or None,
    )
    # The number of devices here is not that of the topology: rows are added below.
    state = jax.eval_shape(functools.partial(make_state, 1))
    carry = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((problem.num_devices, *x.shape[1:]), x.dtype),
        state.carry,
    )
    return state._replace(carry=carry)


def update_program(problem: Problem, topology: Topology, phase: str = "") -> Program:
    """Returns the update of a phase, several steps of it as a run makes them."""
    players = all_phases(problem.experiment)[phase]
    ema_decay = problem.config.ema_decay or None
    state = state_shapes(problem)
    num_microbatches = training.count_updates(players)
    rows = problem.experiment.batch(first_steps(problem)[phase])
    size = problem.config.data.batch_size // problem.num_devices
    one = jax.ShapeDtypeStruct((num_microbatches, size, *rows.shape[1:]), rows.dtype)
    num_steps = num_stacked(rows.nbytes)
    batches = jax.ShapeDtypeStruct(
        (problem.num_devices, num_steps, *one.shape), one.dtype
    )

    def lower():
        updates = training.pmap_updates(
            players, ema_decay=ema_decay, devices=topology.devices
        )
        return updates.lower(state, batches, 0, 1)

    return Program(lower, count_update(players, ema_decay, state, one))


def first_steps(problem: Problem) -> dict[str, int]:
    """Returns the first step of every phase that training has."""
    phases, found = all_phases(problem.experiment), {}
    for step in range(problem.config.train.num_steps):
        found.setdefault(problem.experiment.phase(step), step)
        if len(found) == len(phases):
            break
    return found


def evaluation_programs(problem: Problem, topology: Topology) -> dict[str, Program]:
    """Returns the programs of the evaluation, each on one chip."""
    state = state_shapes(problem)
    key = jax.eval_shape(lambda: jax.random.key(0))
    sharding = SingleDeviceSharding(topology.devices[0])

    def place(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    arguments = jax.tree.map(place, (state.params, state.model_state, key))
    return {
        name: Program(
            functools.partial(jax.jit(function).lower, *arguments),
            count_operations(jax.make_jaxpr(function)(*arguments)),
        )
        for name, function in problem.experiment.programs.items()
    }
