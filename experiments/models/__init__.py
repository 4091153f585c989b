"""Trained models in one file each, some of which come with the code.

A file is an `.npz` of arrays and a JSON text, and nothing in it is executed. It holds
the parameters that the run evaluated, the config, the facts of the data, the scalars of
the last evaluation, how the run was made, the licence of the data, and digests of all
of it. `experiments.load` takes the file, or the name of one in this folder.
"""

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.data import digest
from experiments.run.checkpoint import load_run, read_config
from experiments.run.config import nearest
from experiments.run.digests import CHANGED, read_signed, sign
from experiments.run.files import check_writable
from experiments.run.remote import fetched, to_path
from experiments.run.workdir import read_facts as read_facts_of_run
from experiments.run.workdir import read_lines, read_run, save_arrays

__all__ = [
    "FOLDER",
    "Model",
    "find",
    "flatten",
    "names",
    "of_run",
    "read",
    "read_facts",
    "unflatten",
    "write",
]

FOLDER = pathlib.Path(__file__).parent

VERSION = 1
"""Version of the file's format. A reader refuses every other version."""

FITTED = "fitted.npz"
"""Name of a run's arrays that its last evaluation fitted."""


class Model(NamedTuple):
    """Content of a file, or of a run.

    Attributes:
      problem: Module of the problem, such as `experiments.short_run.images`.
      config: The run's config, locked.
      facts: Facts of the data that the problem's `load` needs.
      params: Network name -> parameters.
      model_state: `"<network>_state"` -> mutable collections.
      record: Everything else: `step`, `ema`, `command`, `commit`, `device` and
        `versions`, and in a file also `licence` and `figures`, the scalars of the
        evaluation. The step of a run is None if it is the newest one.
    """

    problem: str
    config: ConfigDict
    facts: dict[str, Any]
    params: dict[str, Any]
    model_state: dict[str, Any]
    record: dict[str, Any]


def names() -> list[str]:
    """Returns the names of the models that come with the code, `<data>/<paper>`."""
    found = FOLDER.glob("*/*.npz")
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in found)


def find(name: str | os.PathLike) -> pathlib.Path | None:
    """Returns the file of a name or a path, or None for what may be a run's folder.

    Raises:
      FileNotFoundError: If an `.npz` file does not exist, or a name that looks like
        one of those of `names` is none of them.
    """
    text = os.fspath(name)
    if "://" in text:
        return None
    path = pathlib.Path(text).expanduser()
    if path.is_dir():
        return None
    if path.suffix == ".npz":
        if not path.is_file():
            raise FileNotFoundError(f"{path}, a file of a trained model, is missing")
        return path
    own = FOLDER / f"{text}.npz"
    if own.is_file() and FOLDER in own.resolve().parents:
        return own
    first, _, rest = text.partition("/")
    if rest and "/" not in rest and (FOLDER / first).is_dir():
        known = names()
        raise FileNotFoundError(
            f"the model's name must be one of {known}, got {text!r}"
            f"{nearest(text, known)}"
        )
    return None


def write(
    workdir: str | os.PathLike, out: str | os.PathLike, *, licence: str
) -> dict[str, Any]:
    """Writes the newest checkpoint of a run to one file, whole or not at all.

    Args:
      workdir: Folder of a run that has been evaluated, or its URL.
      out: File to write, which ends with `.npz`.
      licence: Licence of the data, and where they come from.

    Returns:
      The record in the file.

    Raises:
      FileNotFoundError: If there is no run or no checkpoint.
      ValueError: If `out` does not end with `.npz`, the licence is empty, the run was
        not evaluated, or its parameters are not dicts and lists of arrays.
    """
    if pathlib.PurePath(out).suffix != ".npz":
        raise ValueError(f"out must end with .npz, got {os.fspath(out)!r}")
    if not licence.strip():
        raise ValueError("licence must say under which licence the data are, got ''")
    with fetched(to_path(workdir)) as folder:
        read_config(folder)  # whether there is a run at all
        found = [line for line in read_lines(folder) if line["kind"] == "eval"]
        if not found:
            raise ValueError(f"{workdir} has no evaluation to record beside its model")
        evaluation = max(found, key=lambda line: line["step"])
        model = of_run(folder, step=evaluation["step"])
    facts = dict(model.facts)
    tree = {
        "params": model.params,
        "model_state": model.model_state,
        "facts": {"fitted": facts.pop("fitted", {})},
    }
    arrays = flatten(jax.device_get(tree))
    record = {
        "version": VERSION,
        "problem": model.problem,
        "config": json.loads(model.config.to_json()),
        "facts": facts,
        "figures": {k: v for k, v in evaluation.items() if k not in ("kind", "step")},
        "licence": licence,
        "digests": _digests(arrays),
        **model.record,
    }
    path = pathlib.Path(out)
    check_writable(path)
    save_arrays(path, record=np.array(json.dumps(sign(record))), **arrays)
    return record


def of_run(
    workdir: pathlib.Path, step: int | None = None, ema: bool | None = None
) -> Model:
    """Returns the model of a run.

    Args:
      workdir: Local folder of the run.
      step: Step of the checkpoint; the newest readable one by default.
      ema: Whether the parameters are their moving average; by default where the run
        keeps one.

    Raises:
      FileNotFoundError: If there is no run, no checkpoint, or not this step.
      ValueError: If the run keeps no average and one is asked for, or a file is
        damaged.
    """
    if ema is None:
        ema = bool(read_config(workdir).ema_decay)
    run = read_run(workdir)
    config, params, model_state = load_run(workdir, step=step, ema=ema)
    facts = run["facts"]
    if (workdir / FITTED).is_file():
        facts = facts | {"fitted": _read_arrays(workdir / FITTED)}
    kept = ("command", "commit", "device", "versions")
    record = {name: run[name] for name in kept if name in run}
    record |= {"step": step, "ema": ema}
    return Model(run["problem"], config, facts, params, model_state, record)


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return dict(np.load(path))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: digest(array) for name, array in arrays.items()}


def read_facts(name: str | os.PathLike) -> dict[str, Any]:
    """Returns the facts of the data of whatever `experiments.load` takes."""
    path = find(name)
    return read(path).facts if path else read_facts_of_run(to_path(name))


def read(path: str | os.PathLike) -> Model:
    """Returns the content of a file.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it is damaged, is no file of `write`, or has another version.
    """
    arrays, record = read_signed(path, " as a model")
    if (version := record.get("version")) != VERSION:
        raise ValueError(f"{path} must have version {VERSION}, got {version}")
    if record.get("digests") != _digests(arrays):
        raise ValueError(f"{path} is damaged: {CHANGED}")
    tree = unflatten(arrays)
    return Model(
        problem=record.pop("problem"),
        config=ConfigDict(record.pop("config")).lock(),
        facts=record.pop("facts") | tree.get("facts", {}),
        params=tree["params"],
        model_state=tree.get("model_state", {}),
        record=record,
    )


def flatten(tree: Any, path: str = "") -> dict[str, np.ndarray]:
    """Returns the arrays by their paths; the items of a list have numbers in brackets.

    An empty dict has no arrays, and is not restored.
    """
    if isinstance(tree, list):
        tree = {f"[{index}]": item for index, item in enumerate(tree)}
    if not isinstance(tree, Mapping):
        if not isinstance(tree, np.ndarray | np.generic):
            raise ValueError(f"{path} must be an array, got {type(tree).__name__}")
        return {path: np.asarray(tree)}
    found: dict[str, np.ndarray] = {}
    for name, item in tree.items():
        found |= flatten(item, f"{path}/{name}" if path else name)
    return found


def unflatten(arrays: Mapping[str, np.ndarray]) -> Any:
    """Returns nested dicts and lists of arrays; this is the inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = array
    return _restore_lists(nested)


def _restore_lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    items = {name: _restore_lists(item) for name, item in tree.items()}
    if items and all(name.startswith("[") for name in items):
        return [items[f"[{index}]"] for index in range(len(items))]
    return items
