"""Restarts of a training that has diverged, with another noise key.

Training from the newest checkpoint repeats what it did, bit for bit, and diverges
again. A restart therefore changes the root key of the training's randomness, which is a
function of the seed and of the number of restarts. That number is in a file of the
workdir, so that a run which is killed after a restart goes on with the right key.
"""

import json
import pathlib
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from ebmjax.types import Key
from experiments.run.config import check_name
from experiments.run.digests import read_json, sign
from experiments.run.files import FOLDER, METRICS, append, write_atomically
from experiments.run.remote import AnyPath

NAME = "restarts.json"

POLICIES = ("stop", "restart")
"""Values of `train.on_divergence`."""


def check_policy(config: ConfigDict) -> None:
    """Raises a ValueError unless `train.on_divergence` is one of `POLICIES`."""
    check_name("train.on_divergence", _policy(config), POLICIES)


def _policy(config: ConfigDict) -> str:
    return config.train.get("on_divergence", "stop")


def read_restarts(workdir: AnyPath) -> list[dict[str, Any]]:
    """Returns the restarts of a run, the first one first.

    Each has `from_step`, the step of the checkpoint that training went on from (0 for
    the beginning), and `error`, the sentence that ended it.

    Raises:
      ValueError: If the file is damaged.
    """
    path = workdir / NAME
    return list(read_json(path)["restarts"]) if path.is_file() else []


def root_keys(key: Key, workdir: AnyPath) -> list[Key]:
    """Returns the root keys of a run: the first one, and one for each restart so far.

    Args:
      key: Root key of the training, a function of the seed.
      workdir: Folder of the run.
    """
    # Steps are far below the integers that are folded in here.
    numbers = range(1, len(read_restarts(workdir)) + 1)
    return [key, *(jax.random.fold_in(key, 2**31 + number) for number in numbers)]


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints, the oldest first."""
    folder = workdir / FOLDER
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def note_divergence(
    workdir: AnyPath, config: ConfigDict, error: FloatingPointError
) -> bool:
    """Records that training has diverged, and returns whether it is to be restarted.

    A run is restarted if `train.on_divergence` is "restart", `train.max_restarts` are
    not used up, the run has one process, and its workdir is a local folder. If the
    restart before was from the same checkpoint and there is an older one, the newest
    one is set aside: a model may be lost before a metric says so. A line of the kind
    "restart" in the log has the step and the number of the restart.

    Args:
      workdir: Folder of the run.
      config: The run's config.
      error: Error that says at which step which metric diverged.
    """
    if _policy(config) != "restart" or jax.process_count() > 1:
        return False
    if not isinstance(workdir, pathlib.Path):
        logging.warning("a run whose workdir is a URL is not restarted")
        return False
    found = read_restarts(workdir)
    if len(found) >= config.train.max_restarts:
        logging.warning("train.max_restarts = %d are used up", len(found))
        return False
    steps = saved_steps(workdir)
    if found and steps and len(steps) > 1 and found[-1]["from_step"] == steps[-1]:
        newest = workdir / FOLDER / str(steps.pop())
        newest.rename(newest.with_name(f"{newest.name}.diverged{len(found)}"))
    from_step = steps[-1] if steps else 0
    found.append({"from_step": from_step, "error": str(error)})
    text = json.dumps(sign({"restarts": found}), indent=1) + "\n"
    write_atomically(workdir / NAME, text)
    line = {"kind": "restart", "step": from_step, "number": len(found)}
    append(workdir / METRICS, json.dumps(line) + "\n")
    logging.warning(
        "training diverged (%s); restart %d of %d goes on from step %d with new noise",
        error,
        len(found),
        config.train.max_restarts,
        from_step,
    )
    return True
