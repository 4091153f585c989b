"""Orbax behind `save`, `latest_step`, `restore` and `load`.

A checkpoint is a folder named after its step. It holds plain arrays without a device
layout, so that it is read on any number of devices and processes: `params`,
`model_state` and `ema_params` as the dicts they are, and `training` (optimizer state,
memories, step, key) by leaf name. Digests of all files tell whether a bit has flipped.
"""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ebmjax import training
from experiments.run.digests import (
    digest_of,
    find_damage,
    has_digests,
    read_json,
    write_digests,
)
from experiments.run.errors import CheckpointError, failing_as, reason_of
from experiments.run.files import CONFIG, FOLDER, RUN
from experiments.run.processes import by_all, check_shared, first_process
from experiments.run.remote import AnyPath, fetched, to_path

_ITEMS = ("params", "model_state", "ema_params", "training")


def _name(path) -> str:
    """Returns `energy/params/kernel` for a leaf's path, through any containers."""
    return "/".join(
        str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))
        for entry in path
    )


def _by_name(tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): leaf for path, leaf in leaves}


def _describe(leaf) -> str:
    return f"{leaf.dtype}{tuple(leaf.shape)}"


def _rest(state: training.TrainState) -> dict[str, Any]:
    """Returns the contents of "training" without the objectives' memories."""
    return {
        "step": state.step,
        "key": jax.random.key_data(state.key),
        "opt_state": state.opt_state,
    }


def _to_host(state: training.TrainState) -> dict[str, dict]:
    """Returns the state's items as arrays; `carry` has the rows of all processes."""
    carry = jax.device_get(state.carry)
    if jax.process_count() > 1:
        carry = multihost_utils.process_allgather(carry, tiled=True)
    items = {
        "params": state.params,
        "model_state": state.model_state,
        "ema_params": state.ema_params,
        "training": _by_name(_rest(state) | {"carry": carry}),
    }
    return {
        name: jax.tree.map(np.asarray, jax.device_get(item))
        for name, item in items.items()
        if jax.tree.leaves(item)
    }


def _find_not_finite(items: dict[str, dict]) -> str:
    """Returns the name of a leaf that cannot be trained from, or ""."""
    for item, tree in items.items():
        for name, leaf in _by_name(tree).items():
            if item == "training" and not name.startswith("carry"):
                continue  # optimizers may hold infinities, e.g. a best loss so far
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                if not np.isfinite(leaf.astype(np.float32)).all():
                    return f"{item} {name}"
    return ""


def _match(where: str, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises unless the saved leaves are the wanted ones, by name, shape and dtype."""
    problems = [f"lacks {name}" for name in sorted(set(wanted) - set(saved))]
    problems += [f"has unknown {name}" for name in sorted(set(saved) - set(wanted))]
    problems += [
        f"{name} is {_describe(saved[name])}, expected {_describe(wanted[name])}"
        for name in sorted(set(saved) & set(wanted))
        if _describe(saved[name]) != _describe(wanted[name])
    ]
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems))


def _resplit(where: str, name: str, saved: np.ndarray, rows: int, shape, dtype):
    """Returns rows of `saved: [devices, ...]` for `rows` devices with `shape` each."""
    if saved.dtype == dtype and saved.shape[1:] == shape:
        if len(saved) == rows:
            return saved
        if (saved == saved[:1]).all():  # equal everywhere, e.g. a count of updates
            return np.broadcast_to(saved[:1], (rows, *shape))
    if (
        saved.dtype == dtype
        and shape
        and saved.ndim > 1
        and saved.shape[2:] == shape[1:]
        and saved.shape[0] * saved.shape[1] == rows * shape[0]
    ):
        return saved.reshape(rows, *shape)  # a memory split over the devices
    raise ValueError(
        f"{where}: {name} is {_describe(saved)} on {len(saved)} devices and cannot be"
        f" split over {rows} devices with {dtype}{shape} each"
    )


class Checkpoints:
    """The checkpoints of one run, open for writing.

    Args:
      workdir: The run's folder.
      keep: Number of newest checkpoints that `prune` keeps.
      is_read_only: Removes and renames nothing.
      is_shared: Whether the processes of the run have one folder. If each works in a
        copy of it (see `remote.mirrored`), the first one alone writes to its own.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep: int = 2,
        is_read_only: bool = False,
        is_shared: bool = True,
    ):
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        self.keep, self._is_read_only = keep, is_read_only
        index = jax.process_index()
        self._owns = index == 0 or not is_shared  # the folder
        self._writes = index == 0 or is_shared  # Orbax shares the work of one folder
        self._told: list[int] = []  # the newest step, where another process writes
        self._unsealed: int | None = None  # a step that is saved without digests so far
        self.folder.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index,
            active_processes={index},
            barrier_sync_key_prefix=str(index),
        )
        with failing_as(f"{self.folder} cannot be opened", self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder,
                item_names=_ITEMS,
                options=ocp.CheckpointManagerOptions(
                    # What a killed process left; one that is alive may be writing it.
                    max_to_keep=None,
                    create=is_shared,  # Orbax refuses it of one process
                    cleanup_tmp_directories=not is_read_only,
                    lightweight_initialize=True,  # metadata may be damaged
                    **({} if is_shared else {"multiprocessing_options": alone}),
                ),
            )

    def latest_step(self) -> int | None:
        """Returns the newest step that was saved whole, if there is one."""
        return max([*self._manager.all_steps(), *self._told], default=None)

    def save(self, step: int, state: training.TrainState) -> None:
        """Writes a checkpoint in the background; atomic; does nothing if it is there.

        Raises:
          FloatingPointError: If parameters or a memory are not finite, by name.
          CheckpointError: If this or the last one cannot be written.
        """
        self.wait()
        items = _to_host(state)  # by all processes together
        if step in self._manager.all_steps():
            return
        if name := _find_not_finite(items):
            raise FloatingPointError(f"step {step}: {name} is not finite; not saved")
        if not self._writes:
            self._told = [step]
            return
        save = ocp.args.StandardSave
        arguments = {name: save(item) for name, item in items.items()}
        with self._saving(step):
            self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)
        self._unsealed = step

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          CheckpointError: If it cannot be written.
        """
        step, self._unsealed = self._unsealed, None
        with self._saving(step):
            self._manager.wait_until_finished()
            if step is not None and jax.process_index() == 0:
                write_digests(self.folder / str(step))

    def _saving(self, step: int | None):
        what = "the last step" if step is None else f"step {step}"
        return failing_as(f"{what} could not be saved", self.folder)

    def prune(self, best: int | None = None) -> None:
        """Deletes all but the newest `keep` checkpoints and the best one."""
        self.wait()
        steps = sorted(self._manager.all_steps()) if self._writes else []
        for step in steps[: -self.keep]:
            if step != best:
                with failing_as(f"step {step} could not be deleted", self.folder):
                    self._manager.delete(step)

    def close(self) -> None:
        """Waits as `wait` does, and lets go of the folder."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # what is wrong was raised by `wait`
                self._manager.close()

    def restore(
        self, template: training.TrainState, num_devices: int, old_keys=()
    ) -> training.TrainState | None:
        """Returns the newest readable checkpoint as a state like `template`, or None.

        Args:
          template: From `training.init_state`: gives shapes, types, layout and key.
          num_devices: Devices of all processes. May differ from the saving run's: a
            memory is split anew where its total size fits.
          old_keys: Other root keys that the checkpoint may have been trained with.

        Raises:
          ValueError: If the checkpoint is of another model or cannot be split over the
            devices, naming the leaf, what it is and what it must be; or if the
            processes of the run see different checkpoints.
          CheckpointError: If there are checkpoints and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        check_shared(self.folder, steps)
        if not (steps := first_process(steps)):
            return None
        step, items = _first_readable(self._manager, self.folder, steps, by_all)
        where = self.folder / str(step)
        state = _rebuild(where, items, template, num_devices, old_keys)
        self._set_aside(steps[: steps.index(step)], step)
        return state

    def _set_aside(self, steps: list[int], sound: int) -> None:
        """Moves unreadable steps away, so that they can be written again."""
        if not steps or self._is_read_only:
            return
        if self._owns:
            for step in steps:
                target = self.folder / f"{step}.unreadable"
                while target.exists():
                    target = target.with_name(target.name + "+")
                (self.folder / str(step)).rename(target)
                logging.warning(
                    "it was moved to %s; the run goes on from step %d", target, sound
                )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("set_aside")
        self._manager.reload()


def _read(manager: ocp.CheckpointManager, folder: pathlib.Path, step: int) -> dict:
    names = [name for name in _ITEMS if (folder / name).is_dir()]
    if not {"params", "training"} <= set(names):
        raise FileNotFoundError(f"{folder} lacks params or training")
    arguments = {name: ocp.args.StandardRestore() for name in names}
    restored = manager.restore(step, args=ocp.args.Composite(**arguments))
    return {name: restored[name] for name in names}


def _rebuild(where, items, template, num_devices, old_keys) -> training.TrainState:
    """Returns a state in the template's containers and layout, from the read items."""

    def like(name, wanted):
        saved = _by_name(items.get(name, {}))
        _match(f"{where}/{name}", saved, _by_name(wanted))
        return jax.tree_util.tree_map_with_path(
            lambda path, _: saved[_name(path)], wanted
        )

    saved = items["training"]
    num_local = num_devices // jax.process_count()
    first = num_local * jax.process_index()

    def carry_leaf(path, leaf):
        name = "carry/" + _name(path)
        if name not in saved:
            raise ValueError(f"{where}/training: lacks {name}")
        rows = _resplit(
            f"{where}/training",
            name,
            saved[name],
            num_devices,
            tuple(leaf.shape[1:]),
            leaf.dtype,
        )
        return rows[first : first + num_local]

    rest = _rest(template)
    params = like("params", template.params)  # first: its names say the most
    is_carry = {name for name in saved if name.split("/")[0] == "carry"}
    plain = {name: leaf for name, leaf in saved.items() if name not in is_carry}
    _match(f"{where}/training", plain, _by_name(rest))
    known = (rest["key"], *map(jax.random.key_data, old_keys))
    if not any(np.array_equal(plain["key"], key) for key in known):
        raise ValueError(f"{where}: was trained with another root key (seed)")
    state = template._replace(
        step=plain["step"],
        params=params,
        model_state=like("model_state", template.model_state),
        ema_params=like("ema_params", template.ema_params),
        opt_state=jax.tree_util.tree_map_with_path(
            lambda path, _: plain["opt_state/" + _name(path)], template.opt_state
        ),
        carry=jax.tree_util.tree_map_with_path(carry_leaf, template.carry),
    )
    # Numpy may be aliased by the CPU's arrays, which the update then donates: copy.
    fresh = jax.tree.map(jnp.array, state._replace(key=None))
    return training.place(fresh._replace(key=template.key), num_local)


def _first_readable(
    manager: ocp.CheckpointManager,
    folder: pathlib.Path,
    steps: list[int],
    agreed: Callable[[bool], bool] = bool,
) -> tuple[int, dict]:
    """Returns the first of the steps that is sound, and its items; logs the others.

    Args:
      manager: Orbax's manager of the folder.
      folder: Folder of the checkpoints.
      steps: Steps to try.
      agreed: Whether a checkpoint that is sound here is sound to all who read it.
    """
    for step in steps:
        where, items = folder / str(step), {}
        damage = find_damage(where)
        if agreed(not damage):  # before Orbax reads a byte of it
            try:
                items = _read(manager, where, step)
            except Exception as error:  # what a torn folder raises is Orbax's affair
                damage = reason_of(error)
            if not has_digests(where) and (name := _find_not_finite(items)):
                damage = f"{name} is not finite"
            if agreed(not damage):
                return step, items
        damage = damage or "another process cannot read it"
        logging.warning("the checkpoint %s is unreadable: %s", where, damage)
    raise CheckpointError(f"{folder}: none of {steps} can be read")


def read_config(workdir: str | AnyPath) -> ConfigDict:
    """Returns the config that a run was started with, locked.

    Raises:
      FileNotFoundError: If `workdir` holds no run.
      ValueError: If its config is damaged.
    """
    workdir = to_path(workdir)
    path, run = workdir / CONFIG, workdir / RUN
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} holds no run: {path} is missing")
    found = read_json(path)
    try:
        known = read_json(run).get("config_digests", "") if run.is_file() else ""
    except ValueError:  # who needs it says so
        known = ""
    if known and digest_of(path) not in known:
        raise ValueError(f"{path} is damaged: it has changed since the run wrote it")
    return ConfigDict(found).lock()


def read(
    workdir: str | AnyPath, *, step: int | None = None
) -> dict[str, dict[str, Any]]:
    """Returns a checkpoint as it lies on disk: its items as dicts of numpy arrays.

    Args:
      workdir: The run's folder.
      step: Which checkpoint; the newest readable one by default.

    Raises:
      FileNotFoundError: If there is no checkpoint, or not this step.
      CheckpointError: If there are checkpoints and none can be read.
    """
    with fetched(to_path(workdir)) as local:
        return _read_local(local, step)


def _read_local(workdir: pathlib.Path, step: int | None) -> dict[str, dict[str, Any]]:
    folder = workdir.absolute() / FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(f"{workdir} has no checkpoint yet: {folder} is missing")
    options = ocp.CheckpointManagerOptions(create=False, lightweight_initialize=True)
    manager = ocp.CheckpointManager(folder, item_names=_ITEMS, options=options)
    try:
        steps = sorted(manager.all_steps(), reverse=True)
        if not steps:
            raise FileNotFoundError(f"{folder} holds no checkpoint")
        if step is not None and step not in steps:
            raise FileNotFoundError(f"{folder} holds steps {steps[::-1]}, not {step}")
        tried = steps if step is None else [step]
        return _first_readable(manager, folder, tried)[1]
    finally:
        manager.close()


def load_run(
    workdir: str | AnyPath, *, step: int | None = None, ema: bool = False
) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Returns a trained model, for scoring and sampling.

    Args:
      workdir: The run's folder.
      step: Which checkpoint; the newest readable one by default.
      ema: The exponential moving average of the parameters instead of the last ones.

    Returns:
      `(config, params, model_state)`, the run's locked config, and dicts by network,
      `params["energy"]` and so on.

    Raises:
      FileNotFoundError: If there is no run, no checkpoint, or not this step.
      ValueError: If `ema` is asked of a run that keeps no average.
      CheckpointError: If there are checkpoints and none can be read.
    """
    config = read_config(workdir)
    items = read(workdir, step=step)
    if ema and "ema_params" not in items:
        raise ValueError(f"{workdir} keeps no moving average: use ema=False")
    params = items["ema_params" if ema else "params"]
    as_arrays = jax.tree.map(jnp.asarray, (params, items.get("model_state", {})))
    return config, *as_arrays
