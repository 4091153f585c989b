"""Players and the train state, and how a state lies on devices."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ebmjax.checks import check_count
from ebmjax.types import DEVICE, Array, Key, Objective, Params

__all__ = ["AXES", "Player", "TrainState", "init_state", "place"]


class Player(NamedTuple):
    """Networks that are trained together by one objective.

    Attributes:
      trains: Names of the entries of `params` that this player changes.
      objective: Objective, an `objectives.Objective`.
      optimizer: Optax transformation of those entries.
      num_updates: Number of inner updates in one step of the whole update (n_critic).
      num_accumulated: Number of equal parts of each microbatch on a device, for a
        microbatch that does not fit into memory. The objective is called for one part
        after another, each with a key of its own and the carry of the part before, and
        gradients, metrics and renewed model state are averaged before the optimizer's
        step. A loss that is a mean over examples has the gradient of the undivided
        microbatch, except that it draws other random numbers. Some losses combine
        examples, and then do so within a part: networks with batch statistics,
        `objectives.generalized` (log mean exp over draws), `objectives.kernel_stein`
        and `objectives.f_contrastive` (pairs of examples),
        `objectives.max_entropy.generator_objective` (latents of other examples), and
        `objectives.contrastive_divergence` with an `entropy_weight` (nearest examples).
    """

    trains: tuple[str, ...]
    objective: Objective
    optimizer: optax.GradientTransformation
    num_updates: int = 1
    num_accumulated: int = 1


class TrainState(NamedTuple):
    """State that training carries from step to step.

    All fields except `carry` are the same on all devices and have no device axis.

    Attributes:
      step: Number of updates done, `[]`, int32.
      key: Root key, `[]`, which never changes. All randomness is a function of it, the
        step, the device, the player, the inner update and the part of its microbatch.
      params: Parameters by network name.
      model_state: Mutable collections by `"<network>_state"`, which are not trained.
      ema_params: Exponential moving average of `params`, or None.
      opt_state: Optimizer states by player name.
      carry: Memories of the objectives by player name, with a leading axis of this
        process's devices.
    """

    step: Array
    key: Key
    params: dict[str, Params]
    model_state: dict[str, Any]
    ema_params: dict[str, Params] | None
    opt_state: dict[str, Any]
    carry: dict[str, Any]


AXES: Any = TrainState._make(
    0 if field == "carry" else None for field in TrainState._fields
)
"""Axis of each field that is mapped over devices. It is hashable, as `jax.pmap`
requires."""

_INIT = 2**32 - 1
"""Number that `init_state` folds into the root key instead of a step."""


def init_state(
    players: Mapping[str, Player],
    params: dict[str, Params],
    key: Key,
    num_devices: int = 1,
    *,
    model_state: dict[str, Any] | None = None,
    ema_decay: float | None = None,
) -> TrainState:
    """Returns the state before the first update.

    All arrays are copied: the update donates its state, which would otherwise delete
    the caller's arrays.

    Args:
      players: Players by name, in the order of their turns.
      params: Parameters by network name.
      key: Root key of the training's randomness.
      num_devices: Number of devices of all processes together; one by default.
      model_state: Mutable collections by `"<network>_state"`; `{}` by default.
      ema_decay: Decay, as it is given to the update. If it is not None, the average
        starts at `params`.

    Returns:
      A `TrainState` on this process's devices, with this process's rows of `carry`.

    Raises:
      ValueError: If a player trains entries that `params` lacks, a name is used twice,
        or the devices do not divide evenly among processes.
    """
    model_state = {} if model_state is None else model_state
    for name, player in players.items():
        if missing := sorted(set(player.trains) - set(params)):
            raise ValueError(f"player {name!r} trains {missing}, which params lacks")
        for field in ("num_updates", "num_accumulated"):
            check_count(f"{field} of player {name!r}", getattr(player, field), 1)
    if both := sorted(set(params) & set(model_state)):
        raise ValueError(f"{both} are in both params and model_state")
    if num_devices < 1 or num_devices % jax.process_count():
        raise ValueError(
            f"num_devices must be a positive multiple of the {jax.process_count()}"
            f" processes, got {num_devices}"
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"key must be a typed key, as jax.random.key makes, got {key.dtype}"
        )
    num_local = num_devices // jax.process_count()
    first = num_local * jax.process_index()
    # The type by name: a weak one would become strong in the update, which would then
    # be compiled twice.
    params, model_state = jax.tree.map(
        lambda x: jnp.array(x, dtype=jnp.asarray(x).dtype), (params, model_state)
    )

    def init_carry(index: int, objective: Objective) -> Any:
        # One memory a device, each from a key of its own.
        player_key = jax.random.fold_in(jax.random.fold_in(key, _INIT), index)
        memories = [
            objective.init(jax.random.fold_in(player_key, first + device))
            for device in range(num_local)
        ]
        return jax.tree.map(lambda *rows: jnp.stack(rows), *memories)

    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.clone(key),
        params=params,
        model_state=model_state,
        ema_params=None if ema_decay is None else jax.tree.map(jnp.copy, params),
        opt_state={
            name: player.optimizer.init({k: params[k] for k in player.trains})
            for name, player in players.items()
        },
        carry={
            name: init_carry(index, player.objective)
            for index, (name, player) in enumerate(players.items())
        },
    )
    # Optimizers may store the parameters themselves; donation wants each buffer once.
    state = state._replace(opt_state=jax.tree.map(jnp.copy, state.opt_state))
    return place(state, num_local)


def place(
    state: TrainState, num_local: int | None = None, *, mesh: Mesh | None = None
) -> TrainState:
    """Returns the state laid out over devices, as the updates take it.

    With several processes, a donated state must already be laid out so.

    Args:
      state: State with any layout, which shares its arrays with the result.
      num_local: Number of this process's devices to use. The default is the number of
        rows of `carry`, or all devices. If there are more rows than devices, as under
        `jax.vmap`, the state is returned unchanged.
      mesh: Devices to use instead, for `shard_update`: a mesh of one axis, which may
        have the devices of several processes.

    Returns:
      A `TrainState` with the same values.

    Raises:
      ValueError: If `mesh` has several axes, or the number of this process's devices in
        it is not the number of rows of `carry`.
    """
    rows = [leaf.shape[0] for leaf in jax.tree.leaves(state.carry)]
    if mesh is None:
        if num_local is None:
            num_local = rows[0] if rows else jax.local_device_count()
        devices = jax.local_devices()[:num_local]
        if len(devices) < num_local:
            return state
        mesh = Mesh(devices, (DEVICE,))
    else:
        mesh = device_mesh(mesh)
        if rows and rows[0] != len(mesh.local_devices):
            raise ValueError(
                f"mesh must have as many devices of this process as carry has rows,"
                f" {rows[0]}, got {len(mesh.local_devices)}"
            )
    fields = (
        jax.tree.map(functools.partial(put, mesh, partition(axis)), field)
        for axis, field in zip(AXES, state)
    )
    return TrainState._make(fields)


def device_mesh(mesh: Mesh) -> Mesh:
    """Returns a mesh of the same devices, whose axis has the update's name."""
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, got {mesh.axis_names}")
    return Mesh(mesh.devices, (DEVICE,))


def partition(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(DEVICE)


def put(mesh: Mesh, spec: PartitionSpec, x: Array) -> Array:
    """Puts this process's rows of an array, or all of it, on the devices of a mesh."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        placed: Array = jax.device_put(x, sharding)
        return placed
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = put(mesh, spec, jax.random.key_data(x))
        keys: Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return keys
    rows: Array = jax.make_array_from_process_local_data(sharding, np.asarray(x))
    return rows
