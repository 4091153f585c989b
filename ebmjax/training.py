"""Players, the train state, and the update that all methods share."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ebmjax.types import DEVICE, Array, Aux, Key, Metrics, Objective, Params

__all__ = [
    "AXES",
    "Player",
    "TrainState",
    "init_state",
    "jit_update",
    "make_update",
    "place",
    "pmap_update",
    "shard_update",
]


class Player(NamedTuple):
    """Networks that are trained together by one objective.

    Attributes:
      trains: Names of the entries of `params` that this player changes.
      objective: Objective, an `objectives.Objective`.
      optimizer: Optax transformation of those entries.
      num_updates: Number of inner updates in one step of the whole update (n_critic).
    """

    trains: tuple[str, ...]
    objective: Objective
    optimizer: optax.GradientTransformation
    num_updates: int = 1


class TrainState(NamedTuple):
    """State that training carries from step to step.

    All fields except `carry` are the same on all devices and have no device axis.

    Attributes:
      step: Number of updates done, `[]`, int32.
      key: Root key, `[]`, which never changes. All randomness is a function of it, the
        step, the device, the player and the inner update.
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

Update = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
"""Function `update(state, batch) -> (state, scalars)`; a batch may be a pytree."""

Turn = tuple[dict[str, Params], dict[str, Any], Any, Any]
"""Trained parameters, model state, optimizer state and carry of a player."""

_INIT = 2**32 - 1
"""Number that `init_state` folds into the root key in place of a step."""


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
        if player.num_updates < 1:
            raise ValueError(
                f"player {name!r} must have num_updates of at least 1,"
                f" got {player.num_updates}"
            )
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
        mesh = _device_mesh(mesh)
        if rows and rows[0] != len(mesh.local_devices):
            raise ValueError(
                f"mesh must have as many devices of this process as carry has rows,"
                f" {rows[0]}, got {len(mesh.local_devices)}"
            )
    fields = (
        jax.tree.map(functools.partial(_put, mesh, _spec(axis)), field)
        for axis, field in zip(AXES, state)
    )
    return TrainState._make(fields)


def _device_mesh(mesh: Mesh) -> Mesh:
    """Returns a mesh of the same devices, whose axis has the update's name."""
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis, got {mesh.axis_names}")
    return Mesh(mesh.devices, (DEVICE,))


def _spec(axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(DEVICE)


def _put(mesh: Mesh, spec: PartitionSpec, x: Array) -> Array:
    """Puts this process's rows of an array, or all of it, on the devices of a mesh."""
    sharding = NamedSharding(mesh, spec)
    if sharding.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        placed: Array = jax.device_put(x, sharding)
        return placed
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _put(mesh, spec, jax.random.key_data(x))
        keys: Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return keys
    rows: Array = jax.make_array_from_process_local_data(sharding, np.asarray(x))
    return rows


def make_update(
    players: Mapping[str, Player], *, ema_decay: float | None = None
) -> Update:
    """Returns one training step of one device, to be mapped over the axis `DEVICE`.

    Players take turns in the order of the dict, and later ones use the parameters that
    earlier ones have changed. A turn is `num_updates` inner updates, each on its own
    microbatch: the gradient of the objective in the player's own parameters, the mean
    over devices, and an optimizer step.

    Args:
      players: Players by name.
      ema_decay: Decay of the average, which is updated as
        `ema_params = decay * ema_params + (1 - decay) * params` after every step; None
        keeps no average.

    Returns:
      The function `update(state, batch) -> (state, scalars)`. The batch is
      `[microbatches, size, *event]`, or a pytree of such arrays, where `microbatches`
      is the sum of all `num_updates`. Scalars are `"<player>/<metric>"` and
      `"<player>/loss"`, means over devices and inner updates, which are the same on
      every device. `"<player>/params_gradient_norm"` is the norm of the mean gradient.

    Raises:
      ValueError: At trace, for a batch with another number of microbatches, an
        objective that renews model state that the state lacks, a metric that is not a
        scalar, or a state with an average that this update would not update.
    """
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")
    num_microbatches = _num_updates(players)

    def take_turn(
        name: str,
        player: Player,
        key: Key,
        batch: Any,
        params: dict[str, Params],
        model_state: dict[str, Any],
        opt_state: Any,
        carry: Any,
    ) -> tuple[Turn, Metrics]:
        def inner_update(turn: Turn, inputs: tuple[Array, Any]) -> tuple[Turn, Metrics]:
            trained, model_state, opt_state, carry = turn
            index, microbatch = inputs

            def loss(trained: dict[str, Params]) -> tuple[Array, Aux]:
                return player.objective.loss(
                    params | model_state | trained,
                    jax.random.fold_in(key, index),
                    microbatch,
                    carry,
                )

            (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
            _check_aux(name, aux, model_state)
            # The only place where devices meet.
            metrics = jax.tree.map(jnp.float32, {"loss": value, **aux.metrics})
            gradient, renewed, metrics = jax.tree.map(
                lambda x: jax.lax.pmean(x, DEVICE).astype(x.dtype),
                (gradient, aux.model_state, metrics),
            )
            metrics["params_gradient_norm"] = optax.tree.norm(gradient)
            change, opt_state = player.optimizer.update(gradient, opt_state, trained)
            trained = optax.apply_updates(trained, change)
            return (trained, model_state | renewed, opt_state, aux.carry), metrics

        trained = {k: params[k] for k in player.trains}
        turn = trained, model_state, opt_state, carry
        if player.num_updates == 1:
            # There is no loop, not even an unrolled one: XLA's CPU compiler still sees
            # it when it chooses how to convolve, and chooses the slow way.
            first = jax.tree.map(lambda x: x[0], batch)
            turn, metrics = inner_update(turn, (jnp.zeros((), jnp.int32), first))
        else:
            inputs = jnp.arange(player.num_updates), batch
            turn, metrics = jax.lax.scan(inner_update, turn, inputs)
        scalars = {f"{name}/{key}": jnp.mean(x) for key, x in metrics.items()}
        return turn, scalars

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        for leaf in jax.tree.leaves(batch):
            if leaf.ndim < 2 or leaf.shape[0] != num_microbatches:
                raise ValueError(
                    "batch must be [microbatches, size, *event] on each device, with"
                    f" {num_microbatches} microbatches for players {list(players)};"
                    f" got shape {leaf.shape}"
                )
        if ema_decay is None and state.ema_params is not None:
            raise ValueError("state has ema_params, but the update has no ema_decay")
        key = jax.random.fold_in(state.key, state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(DEVICE))
        params, model_state = state.params, state.model_state
        opt_state, carry = dict(state.opt_state), dict(state.carry)
        scalars: Metrics = {}
        first = 0
        for index, (name, player) in enumerate(players.items()):
            last = first + player.num_updates
            turn, metrics = take_turn(
                name,
                player,
                jax.random.fold_in(key, index),
                jax.tree.map(lambda x, a=first, b=last: x[a:b], batch),
                params,
                model_state,
                opt_state[name],
                carry[name],
            )
            trained, model_state, opt_state[name], carry[name] = turn
            params, scalars, first = params | trained, scalars | metrics, last
        ema_params = None
        if ema_decay is not None:
            # A state without an average starts it from the incoming parameters.
            average = state.params if state.ema_params is None else state.ema_params
            ema_params = optax.incremental_update(params, average, 1 - ema_decay)
        state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=params,
            model_state=model_state,
            ema_params=ema_params,
            opt_state=opt_state,
            carry=carry,
        )
        return state, scalars

    return update


def _check_aux(name: str, aux: Aux, model_state: dict[str, Any]) -> None:
    """Raises unless metrics and renewed model state have the right form."""
    for key, value in aux.metrics.items():
        if key in ("loss", "params_gradient_norm"):
            raise ValueError(f"player {name!r}: metric {key!r} is the update's own")
        if jnp.shape(value) != ():
            raise ValueError(
                f"player {name!r}: metric {key!r} must be a scalar,"
                f" got shape {jnp.shape(value)}"
            )
    for key, value in aux.model_state.items():
        if key not in model_state:
            raise ValueError(
                f"player {name!r} renews model state {key!r},"
                f" but the state has {sorted(model_state)}"
            )
        got: object = jax.tree.structure(value)
        want: object = jax.tree.structure(model_state[key])
        if got != want:
            raise ValueError(
                f"player {name!r} renews model state {key!r} with another structure:"
                f" {got}, expected {want}"
            )


def pmap_update(
    players: Mapping[str, Player], *, ema_decay: float | None = None
) -> Update:
    """Returns `make_update` under `jax.pmap`, for several devices of this process.

    Every device updates on its own rows of a batch. See `jit_update` for one device,
    and `shard_update` for a mesh.

    Args:
      players: Players by name.
      ema_decay: Decay of the average, as in `make_update`.

    Returns:
      The function `update(state, batch) -> (state, scalars)`. The batch is
      `[devices, microbatches, size, *event]` with the rows of this process's devices.
      The state comes from `init_state`, and is donated: use the one that is returned.
      Scalars are returned without a device axis.

    Raises:
      ValueError: If `make_update` raises it, or a batch has another shape.
    """
    run = jax.pmap(
        make_update(players, ema_decay=ema_decay),
        axis_name=DEVICE,
        in_axes=(AXES, 0),
        out_axes=(AXES, None),
        donate_argnums=0,
    )
    axes = _BatchAxes("pmap_update", ("devices", "microbatches"), players)

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        axes.check(batch, _num_rows(state))
        result: tuple[TrainState, Metrics] = run(state, batch)
        return result

    vars(update)["lower"] = run.lower
    return update


def _shard(
    players: Mapping[str, Player], mesh: Mesh, ema_decay: float | None
) -> Update:
    """Returns `make_update` mapped over the one axis of a mesh."""
    update_one = make_update(players, ema_decay=ema_decay)

    def local(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        # shard_map leaves a device its axis, of length 1.
        carry, batch = jax.tree.map(lambda x: x[0], (state.carry, batch))
        state, scalars = update_one(state._replace(carry=carry), batch)
        carry = jax.tree.map(lambda x: x[None], state.carry)
        return state._replace(carry=carry), scalars

    specs = TrainState._make(map(_spec, AXES))
    sharded: Update = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, _spec(0)),
        out_specs=(specs, _spec(None)),
        # With the check, autodiff would sum the gradients over devices by itself, and
        # their mean would be that sum.
        check_vma=False,
    )
    return sharded


def jit_update(
    players: Mapping[str, Player], *, ema_decay: float | None = None
) -> Update:
    """Returns `make_update` under `jax.jit`, for one device.

    Args:
      players: Players by name.
      ema_decay: Decay of the average, as in `make_update`.

    Returns:
      The function `update(state, batch) -> (state, scalars)`. The batch is
      `[size, *event]` if the players make one inner update together, that is, if there
      is one player with `num_updates=1`. Otherwise it is
      `[microbatches, size, *event]`, where `microbatches` is the sum of all
      `num_updates`. The number of axes of an event is not known here, so an additional
      axis is taken for a part of the event. The state comes from
      `init_state(players, params, key)`, and is donated: use the one that is returned.
      It is also a state of `pmap_update`, and vice versa.

      The numbers are bitwise equal to those of `pmap_update` on one device, because the
      program keeps the sum over that device. `make_update` under `jax.vmap` has none:
      XLA fuses the operations around it differently, and the numbers differ by
      rounding.

    Raises:
      ValueError: If `make_update` raises it, a batch has another shape, or a state is
        of several devices.
    """
    num_updates = _num_updates(players)
    # `init_state` and `place` put a state of one device there.
    mesh = Mesh(jax.local_devices()[:1], (DEVICE,))
    sharded = _shard(players, mesh, ema_decay)
    num_missing = 2 if num_updates == 1 else 1

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        add_axes = functools.partial(jnp.expand_dims, axis=tuple(range(num_missing)))
        return sharded(state, jax.tree.map(add_axes, batch))

    run = jax.jit(step, donate_argnums=0)
    leading = () if num_updates == 1 else ("microbatches",)
    axes = _BatchAxes("jit_update", leading, players)

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        if (num_rows := _num_rows(state)) not in (None, 1):
            raise ValueError(
                f"jit_update: state must be of one device, got one of {num_rows};"
                " make it with init_state(..., num_devices=1)"
            )
        axes.check(batch, None)
        result: tuple[TrainState, Metrics] = run(state, batch)
        return result

    vars(update)["lower"] = run.lower
    return update


def shard_update(
    players: Mapping[str, Player], mesh: Mesh, *, ema_decay: float | None = None
) -> Update:
    """Returns `make_update` under `jax.shard_map`, for the devices of a mesh.

    It gives the numbers of `pmap_update` on the same devices.

    Args:
      players: Players by name.
      mesh: Mesh of one axis, of any name; with several processes, of all devices.
      ema_decay: Decay of the average, as in `make_update`.

    Returns:
      The function `update(state, batch) -> (state, scalars)`. The state comes from
      `init_state`, and from `place(state, mesh=mesh)` if the mesh is not made of this
      process's first devices. It is donated: use the one that is returned. The batch is
      `[devices, microbatches, size, *event]`, and may be sharded over the mesh along
      its first axis. With several processes it is either that, or it has the rows of
      this process's devices.

    Raises:
      ValueError: If `make_update` raises it, the mesh has several axes, a batch has
        another shape, or a state lies on other devices.
    """
    mesh = _device_mesh(mesh)
    sharded = _shard(players, mesh, ema_decay)
    run = jax.jit(sharded, donate_argnums=0)
    axes = _BatchAxes("shard_update", ("devices", "microbatches"), players)
    devices = set(mesh.devices.flat)

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        sharding = getattr(state.step, "sharding", None)
        if sharding is not None and sharding.device_set != devices:
            raise ValueError(
                f"shard_update: state must lie on the {len(devices)} devices of the"
                f" mesh, got one on {len(sharding.device_set)} devices; call"
                " training.place(state, mesh=mesh)"
            )
        if mesh.is_multi_process:
            axes.check(batch, None)
            batch = jax.tree.map(functools.partial(_put, mesh, _spec(0)), batch)
        axes.check(batch, len(devices))
        result: tuple[TrainState, Metrics] = run(state, batch)
        return result

    vars(update)["lower"] = run.lower
    return update


def _num_updates(players: Mapping[str, Player]) -> int:
    return sum(player.num_updates for player in players.values())


def _num_rows(state: TrainState) -> int | None:
    """Returns the number of this process's devices on which a state lies, or None.

    It is None if nothing in the state tells the number.
    """
    for leaf in jax.tree.leaves(state.carry):
        num_rows: int = leaf.shape[0]
        return num_rows
    sharding = getattr(state.step, "sharding", None)
    if isinstance(sharding, NamedSharding):
        return len(sharding.addressable_devices)
    return None


class _BatchAxes:
    """Axes of a batch that an update knows.

    Attributes:
      update: Name of the update, for the messages.
      leading: Names of the axes before `size`.
      num_microbatches: Length of the axis `microbatches`.
    """

    def __init__(
        self, update: str, leading: tuple[str, ...], players: Mapping[str, Player]
    ):
        self.update, self.leading = update, leading
        self.players, self.num_microbatches = list(players), _num_updates(players)

    def check(self, batch: Any, num_devices: int | None) -> None:
        """Raises unless every array of the batch has these axes."""
        sizes = {"devices": num_devices, "microbatches": self.num_microbatches}
        for leaf in jax.tree.leaves(batch):
            shape = np.shape(leaf)
            is_short = len(shape) <= len(self.leading)
            if is_short or any(
                sizes[axis] not in (None, length)
                for axis, length in zip(self.leading, shape)
            ):
                self._refuse(shape, sizes)

    def _refuse(self, shape: tuple[int, ...], sizes: dict[str, int | None]) -> NoReturn:
        axes = ", ".join((*self.leading, "size", "*event"))
        lengths = [
            f"{sizes[axis]} {axis}" for axis in self.leading if sizes[axis] is not None
        ]
        rule = f" with {' and '.join(lengths)}" if lengths else ""
        hint = ""
        if "devices" in self.leading:
            hint = "; jit_update takes a batch without an axis for devices"
        raise ValueError(
            f"{self.update}: batch must have shape [{axes}]{rule} for players"
            f" {self.players}, got shape {shape}{hint}"
        )
