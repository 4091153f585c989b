"""The update on one device, on several, and on the devices of a mesh."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ebmjax.training.state import (
    AXES,
    Player,
    TrainState,
    device_mesh,
    partition,
    put,
)
from ebmjax.training.update import Update, check_parts, count_updates, make_update
from ebmjax.types import DEVICE, Array, Metrics

__all__ = ["jit_update", "pmap_update", "pmap_updates", "shard_update"]

Updates = Callable[[TrainState, Any, int, int], tuple[TrainState, Metrics]]
"""Function `updates(state, batches, first, count) -> (state, scalars)`."""


def _pmap(
    function: Callable[..., Any],
    num_numbers: int = 0,
    devices: Sequence[Any] | None = None,
) -> Any:
    """Returns a function of a state, batches and numbers, on this process's devices."""
    return jax.pmap(
        function,
        axis_name=DEVICE,
        in_axes=(AXES, 0, *[None] * num_numbers),
        out_axes=(AXES, None),
        donate_argnums=0,
        devices=devices,
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
    run = _pmap(make_update(players, ema_decay=ema_decay))
    axes = _BatchAxes("pmap_update", ("devices", "microbatches"), players)

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        axes.check(batch, _num_rows(state))
        result: tuple[TrainState, Metrics] = run(state, batch)
        axes.remember(batch)
        return result

    vars(update)["lower"] = run.lower
    return update


def pmap_updates(
    players: Mapping[str, Player],
    *,
    ema_decay: float | None = None,
    devices: Sequence[Any] | None = None,
) -> Updates:
    """Returns several steps of `make_update` as one program, under `jax.pmap`.

    A small network trains faster by it, since the host starts one program for many
    steps. The number of steps is an argument of the program: it is compiled once, and a
    step gives the same bits whatever the number it is called with.

    Args:
      players: Players by name.
      ema_decay: Decay of the average, as in `make_update`.
      devices: Devices of the program; None for those of this process. A program for
        devices that are not there, such as those of a topology description of JAX, can
        be compiled by `updates.lower(state, batches, first, count)`, and not be run.

    Returns:
      The function `updates(state, batches, first, count) -> (state, scalars)`. The
      batches are `[devices, steps, microbatches, size, *event]`. Those of the steps
      `first, ..., first + count - 1` are used, with `count` at least 1, and the scalars
      are those of the last step. The state is as for `pmap_update`, and is donated.

    Raises:
      ValueError: If `make_update` raises it, batches have another shape, or too few
        steps.
    """
    update_one = make_update(players, ema_decay=ema_decay)

    def several(
        state: TrainState, batches: Any, first: Array, count: Array
    ) -> tuple[TrainState, Metrics]:
        def batch(step: Array | int) -> Any:
            return jax.tree.map(lambda x: x[step], batches)

        def body(
            step: Array, last: tuple[TrainState, Metrics]
        ) -> tuple[TrainState, Metrics]:
            return update_one(last[0], batch(step))

        scalars = jax.eval_shape(update_one, state, batch(0))[1]
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), scalars)
        last: tuple[TrainState, Metrics] = jax.lax.fori_loop(
            first, first + count, body, (state, none)
        )
        return last

    run = _pmap(several, num_numbers=2, devices=devices)
    axes = _BatchAxes("pmap_updates", ("devices", "steps", "microbatches"), players)

    def updates(
        state: TrainState, batches: Any, first: int, count: int
    ) -> tuple[TrainState, Metrics]:
        axes.check(batches, _num_rows(state))
        for leaf in jax.tree.leaves(batches):
            if not 0 <= first < first + count <= leaf.shape[1]:
                raise ValueError(
                    f"pmap_updates: batches must have the steps from first = {first} to"
                    f" first + count = {first + count}, with count at least 1, got"
                    f" {leaf.shape[1]} steps"
                )
        result: tuple[TrainState, Metrics] = run(state, batches, first, count)
        axes.remember(batches)
        return result

    vars(updates)["lower"] = run.lower
    return updates


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

    specs = TrainState._make(map(partition, AXES))
    sharded: Update = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, partition(0)),
        out_specs=(specs, partition(None)),
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
      `num_updates`. The number of axes of an event is not known at the first call, so
      an additional axis is then taken for a part of the event. Later batches must have
      as many axes as the first. The state comes from
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
    num_updates = count_updates(players)
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
        axes.remember(batch)
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
    mesh = device_mesh(mesh)
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
            batch = jax.tree.map(functools.partial(put, mesh, partition(0)), batch)
        axes.check(batch, len(devices))
        result: tuple[TrainState, Metrics] = run(state, batch)
        axes.remember(batch)
        return result

    vars(update)["lower"] = run.lower
    return update


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
      ranks: Numbers of axes of the arrays of the first batch of each tree structure. An
        event's number is not known, and a loss that takes any would broadcast silently.
    """

    def __init__(
        self, update: str, leading: tuple[str, ...], players: Mapping[str, Player]
    ):
        self.update, self.leading = update, leading
        self.players, self.num_microbatches = players, count_updates(players)
        self.ranks: dict[Any, list[int]] = {}

    def check(self, batch: Any, num_devices: int | None) -> None:
        """Raises unless all arrays have these axes, and as many as they had before."""
        sizes = {
            "devices": num_devices,
            "steps": None,
            "microbatches": self.num_microbatches,
        }
        leaves, structure = jax.tree.flatten(batch)
        for leaf in leaves:
            shape = np.shape(leaf)
            size = shape[len(self.leading) : len(self.leading) + 1]
            if size in ((), (0,)) or any(  # too few axes, or no examples
                sizes[axis] not in (None, length)
                for axis, length in zip(self.leading, shape)
            ):
                self._refuse(shape, sizes)
            check_parts(self.players, size[0])
        for leaf, rank in zip(leaves, self.ranks.get(structure, ())):
            if np.ndim(leaf) != rank:
                raise ValueError(
                    f"{self.update}: batch must have {rank} axes as at the first call,"
                    f" got shape {np.shape(leaf)}"
                )

    def remember(self, batch: Any) -> None:
        """Remembers the numbers of axes of a batch that an update has taken."""
        leaves, structure = jax.tree.flatten(batch)
        self.ranks.setdefault(structure, [np.ndim(leaf) for leaf in leaves])

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
            f" {list(self.players)}, got shape {shape}{hint}"
        )
