"""Files of a run: its config and the guard of it, its log, its tables."""

import json
import math
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import ebmjax
from experiments.run.checkpoint import CONFIG, FOLDER, read_config
from experiments.run.config import flat

METRICS = "metrics.jsonl"
RUN = "run.json"


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows with the same keys; numbers to four digits."""

    def cell(value):
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    head = list(rows[0])
    lines = [head, ["---"] * len(head)]
    lines += [[cell(row[name]) for name in head] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def record_table(
    path: pathlib.Path, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Writes and prints a table whose rows have a `name`, and returns its numbers as
    scalars `<name>_<column>`."""
    text = format_table(rows)
    write_atomically(path, text)
    print(text)
    return {
        f"{row['name']}_{column}": value
        for row in rows
        for column, value in row.items()
        if column != "name"
    }


def guard_config(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    may_differ: tuple[str, ...] = ("train.num_steps",),
) -> dict[str, Any]:
    """Refuses a workdir that holds another run.

    Args:
      config: Config of this start.
      workdir: Folder that may be empty, or hold a run that has neither logged nor saved
        anything.
      may_differ: Prefixes of the options that may differ.

    Returns:
      What may differ and does: dotted path -> the config's value.

    Raises:
      ValueError: With every difference, old -> new; if the config there is damaged.
    """
    if not _has_begun(workdir):
        return {}  # a start that failed claims nothing
    old, new = flat(read_config(workdir).to_dict()), flat(_plain(config))
    missing, allowed, changed = "(absent)", {}, []
    for key in sorted(set(old) | set(new)):
        was, now = old.get(key, missing), new.get(key, missing)
        if was == now:
            continue
        if key.startswith(may_differ):
            allowed[key] = now
        else:
            changed.append(f"  {key}: {was!r} -> {now!r}")
    if changed:
        raise ValueError("\n".join([f"{workdir} holds another run:", *changed]))
    return allowed


def _has_begun(workdir: pathlib.Path) -> bool:
    log, checkpoints = workdir / METRICS, workdir / FOLDER
    has_log = log.is_file() and log.stat().st_size > 0
    return has_log or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _plain(config: ConfigDict) -> dict[str, Any]:
    """As it comes back from JSON: lists for tuples."""
    return json.loads(json.dumps(config.to_dict()))


def claim(
    config: ConfigDict, workdir: pathlib.Path, problem: str, facts: Mapping[str, Any]
) -> None:
    """Writes what `workdir` is run with from here on: `config.json` and `run.json`.

    Args:
      config: Config of the run.
      workdir: Folder of the run.
      problem: Module (or file) of the problem, for `experiments.load`.
      facts: `Experiment.facts`.
    """
    if jax.process_index() != 0:
        return
    record = {
        "problem": problem,
        "facts": dict(facts),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": _commit(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "ebmjax": ebmjax.__version__,
        },
    }
    for name, found in ((CONFIG, config.to_dict()), (RUN, record)):
        text = json.dumps(found, indent=2, sort_keys=True) + "\n"
        write_atomically(workdir / name, text)


def _commit() -> str:
    """Returns the commit of this checkout, with "+" if files differ; "" without git."""
    root = pathlib.Path(__file__).parents[2]
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:  # git is not installed
        return ""
    return found.stdout.strip()


def read_run(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of `run.json`.

    Raises:
      FileNotFoundError: If the run has none: it was made before version 0.2.
      ValueError: If it is damaged.
    """
    path = workdir / RUN
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {workdir} was run by ebmjax before 0.2, which did not"
            " record its problem"
        )
    try:
        return json.loads(path.read_text(errors="replace"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def save_arrays(path: pathlib.Path, **arrays: Any) -> None:
    """Writes arrays to an `.npz` file, whole or not at all."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")
    np.savez(temporary, **jax.device_get(arrays))
    os.replace(temporary, path)


def say(text: str) -> None:
    """Prints a line of progress to the standard error, by the first process alone."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def read_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without one that a killed process left torn."""
    path, lines = workdir / METRICS, []
    if path.is_file():
        for text in path.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict) and {"kind", "step"} <= set(line):
                lines.append(line)
    return lines


def finite_evaluations(lines: Sequence[Mapping]) -> dict[int, dict[str, float]]:
    """Step -> evaluation, of those in which all is finite: others are repeated."""
    return {
        line["step"]: {k: v for k, v in line.items() if k not in ("kind", "step")}
        for line in lines
        if line["kind"] == "eval"
        and all(math.isfinite(v) for v in line.values() if isinstance(v, float))
    }


class Log:
    """`metrics.jsonl`, a line of progress, and TensorBoard's event files."""

    def __init__(self, workdir: pathlib.Path, num_steps: int):
        self._path = workdir / METRICS
        self._num_steps = num_steps
        self._is_first = jax.process_index() == 0
        self._events = None
        self._workdir = workdir

    def rewind(self, step: int) -> None:
        """Drops what is after `step`: a killed run logged steps that come again."""
        if self._is_first:
            self._rewrite([x for x in read_lines(self._workdir) if x["step"] <= step])
            self._open_events(step)

    def _rewrite(self, lines: list[dict]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self._path, text)

    def _open_events(self, step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            logging.warning("no TensorBoard event files: pip install tensorboardX")
            return
        folder = str(self._workdir / "tensorboard")
        self._events = SummaryWriter(folder, purge_step=step + 1)

    def write(
        self, kind: str, step: int, scalars: Mapping[str, float], **others: Any
    ) -> None:
        if not self._is_first:
            return
        line = {"kind": kind, "step": step, **others, **scalars}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._events is not None:
            for name, value in scalars.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def replace_evaluation(self, step: int) -> None:
        """Drops an earlier evaluation of this step, which has been repeated."""
        if self._is_first:
            lines = read_lines(self._workdir)
            kept = [x for x in lines if (x["kind"], x["step"]) != ("eval", step)]
            self._rewrite(kept)

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        if not self._is_first:
            return
        parts = [f"step {step}/{self._num_steps}"]
        parts += [f"{k} {v:.4g}" for k, v in scalars.items() if k.endswith("/loss")]
        if rate := scalars.get("steps_per_second"):
            minutes, seconds = divmod(int((self._num_steps - step) / rate), 60)
            parts.append(f"{rate:.2f} steps/s  {minutes}:{seconds:02d} left")
        say("  ".join(parts))

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def fetch(tree) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(tree).items()}


def is_sound(value: float, limit: float) -> bool:
    return math.isfinite(value) and (limit == 0 or abs(value) <= limit)


def check_sound(step: int, scalars: Mapping[str, float], limit: float = 0) -> None:
    """Raises for what is not finite, or larger than a limit (0 for none), by name."""
    for name, value in scalars.items():
        if not is_sound(value, limit):
            above = (
                f", above train.abort_above = {limit}" if math.isfinite(value) else ""
            )
            raise FloatingPointError(
                f"step {step}: {name} is {value}{above};"
                " the last good checkpoint is kept"
            )
