"""Files of a run: its config and the guard of it, its log, its tables."""

import contextlib
import csv
import hashlib
import io
import json
import math
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import ebmjax
from experiments.run.checkpoint import read_config
from experiments.run.config import flat
from experiments.run.digests import digest_of, read_json, sign
from experiments.run.files import (
    CONFIG,
    FOLDER,
    METRICS,
    RUN,
    TRAINER_LOCK,
    append,
    locked,
    occupied,
    replacing,
    write_atomically,
)
from experiments.run.loggers import Loggers
from experiments.run.remote import AnyPath

LOG_LOCK = ".metrics.lock"


def check_folder(workdir: AnyPath) -> None:
    """Raises a ValueError if the workdir or a folder above it is a file."""
    is_local = isinstance(workdir, pathlib.Path)
    for path in (workdir, *(workdir.absolute().parents if is_local else ())):
        if path.exists() and not path.is_dir():
            raise ValueError(f"workdir must be a folder, but {path} is a file")


@contextlib.contextmanager
def training_alone(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir for this run; all processes of a run hold it together.

    Raises:
      ValueError: If another process trains there, with its number and machine.
    """
    is_first = jax.process_index() == 0
    lock = occupied(workdir / TRAINER_LOCK, str(workdir))
    with lock if is_first else contextlib.nullcontext():
        yield


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of rows with the same keys; numbers to four digits."""

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


MAY_DIFFER = ("train.num_steps", "train.on_divergence", "train.max_restarts")
"""Options that a later start of a run may change."""


def guard_config(
    config: ConfigDict,
    workdir: AnyPath,
    *,
    may_differ: tuple[str, ...] = MAY_DIFFER,
) -> dict[str, Any]:
    """Refuses a workdir that holds another run.

    Args:
      config: Config of this start.
      workdir: Folder that may be empty, or hold a run that has neither logged nor saved
        anything.
      may_differ: Prefixes of the options that may differ.

    Returns:
      The options that may differ and do, as dotted path -> the config's value.

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


def guard_data(workdir: pathlib.Path, data_digest: str) -> None:
    """Raises a ValueError if a run began with data of another digest."""
    if not _has_begun(workdir) or not (workdir / RUN).is_file():
        return
    try:
        known = read_run(workdir).get("data_digest")
    except ValueError:  # a damaged file is written anew
        return
    if known and data_digest and known != data_digest:
        raise ValueError(
            f"{workdir}: the data are not those that the run began with; bring those"
            " back, or train in another workdir"
        )


def _has_begun(workdir: AnyPath) -> bool:
    log, checkpoints = workdir / METRICS, workdir / FOLDER
    has_log = log.is_file() and bool(log.read_bytes())
    return has_log or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def _plain(config: ConfigDict) -> dict[str, Any]:
    """As it comes back from JSON: lists for tuples."""
    return json.loads(json.dumps(config.to_dict()))


def claim(
    config: ConfigDict,
    workdir: pathlib.Path,
    problem: str,
    facts: Mapping[str, Any],
    data_digest: str,
) -> None:
    """Writes what `workdir` is run with from here on: `config.json` and `run.json`.

    Args:
      config: Config of the run.
      workdir: Folder of the run.
      problem: Module (or file) of the problem, for `experiments.load`.
      facts: `Experiment.facts`.
      data_digest: `Experiment.data_digest`.
    """
    if jax.process_index() != 0:
        return
    record = {
        "problem": problem,
        "facts": dict(facts),
        "data_digest": data_digest,
        **describe_process(),
    }
    text = _to_text(config.to_dict())
    record["config_digests"] = [hashlib.sha256(text.encode()).hexdigest()]
    if (workdir / CONFIG).is_file():  # it stays if this process is killed in between
        record["config_digests"].append(digest_of(workdir / CONFIG))
    write_atomically(workdir / RUN, _to_text(sign(json.loads(_to_text(record)))))
    write_atomically(workdir / CONFIG, text)


def _to_text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def describe_process() -> dict[str, Any]:
    """Returns JSON values that say by which command and versions a file is made."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": _commit(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "ebmjax": ebmjax.__version__,
        },
    }


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


def read_run(workdir: AnyPath) -> dict[str, Any]:
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
    return read_json(path)


def read_facts(workdir: AnyPath) -> dict[str, Any]:
    """Returns `Experiment.facts` of a run; nothing where no run is recorded."""
    if not (workdir / RUN).is_file():
        return {}
    return dict(read_run(workdir).get("facts", {}))


def save_arrays(path: AnyPath, **arrays: Any) -> None:
    """Writes arrays to an `.npz` file, whole or not at all."""
    with replacing(path, suffix=".npz") as temporary:
        np.savez(temporary, **jax.device_get(arrays))


def save_columns(path: AnyPath, columns: Mapping[str, Any]) -> None:
    """Writes columns of equal length to a `.csv` file, whole or not at all.

    Args:
      path: File to write.
      columns: Name -> `[n]`, numbers or text.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    lists = [np.asarray(column).tolist() for column in columns.values()]
    writer.writerows(zip(*lists, strict=True))
    write_atomically(path, text.getvalue())


def say(text: str) -> None:
    """Prints a line of progress to the standard error, by the first process alone."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


def read_lines(workdir: AnyPath) -> list[dict[str, Any]]:
    """Returns the lines of `metrics.jsonl`, without those that cannot be read.

    A killed process leaves a torn line. A line that something else damaged is reported.
    """
    path, lines, damaged = workdir / METRICS, [], []
    if path.is_file():
        texts = path.read_bytes().decode(errors="replace").split("\n")
        for number, text in enumerate(texts, 1):
            line = _parse(text)
            if line is not None:
                lines.append(line)
            elif text.strip() and number < len(texts):  # the torn one has no end
                damaged.append(str(number))
    if damaged:
        text = ", ".join(damaged[:10]) + ", ..." * (len(damaged) > 10)
        logging.warning("%s: lines that cannot be read are left out: %s", path, text)
    return lines


def _parse(text: str) -> dict[str, Any] | None:
    """Returns a line of the log, or None unless it has a kind, a step and numbers."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return None
    step = line.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        return None
    is_number = [
        type(value) is float or (type(value) is int and abs(value) < 2**63)
        for name, value in line.items()
        if name not in ("kind", "step", "options")
    ]
    return line if all(is_number) else None


def finite_evaluations(lines: Sequence[Mapping]) -> dict[int, dict[str, float]]:
    """Returns step -> evaluation, of those in which all is finite: others are
    repeated."""
    return {
        line["step"]: {k: v for k, v in line.items() if k not in ("kind", "step")}
        for line in lines
        if line["kind"] == "eval"
        and all(math.isfinite(v) for v in line.values() if isinstance(v, float))
    }


class Log:
    """`metrics.jsonl`, a line of progress, and other loggers such as TensorBoard.

    An evaluation alone may write while another process trains. Each holds the lock of
    the log while it appends or replaces, so that neither loses a line of the other.

    Args:
      workdir: Local folder of the run.
      num_steps: Number of steps of the run, for the time that is left.
      send: Brings the workdir up to the folder where it is elsewhere: see
        `remote.mirrored`.
      loggers: Further receivers of what a training logs. An evaluation alone has none.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        num_steps: int,
        send: Callable[[], None] = lambda: None,
        loggers: Loggers | None = None,
    ):
        self.send = send
        self._loggers = loggers or Loggers()
        self.name = self._loggers.name  # a copy of a workdir elsewhere has another
        self._path = workdir / METRICS
        self._lock = workdir / LOG_LOCK
        self._num_steps = num_steps
        self._is_first = jax.process_index() == 0
        self._workdir = workdir

    def rewind(self, step: int) -> None:
        """Drops what is after `step`: a killed run logged steps that come again."""
        if self._is_first:
            with locked(self._lock):
                kept = [x for x in read_lines(self._workdir) if x["step"] <= step]
                self._rewrite(kept)
            self._loggers.begin(self._workdir, step)

    def _rewrite(self, lines: list[dict]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self._path, text)

    def write(
        self, kind: str, step: int, scalars: Mapping[str, float], **others: Any
    ) -> None:
        """Appends a line."""
        if self._is_first:
            line = {"kind": kind, "step": step, **others, **scalars}
            with locked(self._lock):
                append(self._path, json.dumps(line) + "\n")
            self._loggers.scalars(kind, step, scalars)

    def write_evaluation(
        self, step: int, scalars: Mapping[str, float], figures: pathlib.Path
    ) -> None:
        """Appends an evaluation, instead of an earlier one of this step.

        Args:
          step: Step of the evaluation.
          scalars: Its scalars.
          figures: Folder of its figures, for the loggers that take them.
        """
        if self._is_first:
            with locked(self._lock):
                lines = read_lines(self._workdir)
                kept = [x for x in lines if (x["kind"], x["step"]) != ("eval", step)]
                self._rewrite([*kept, {"kind": "eval", "step": step, **scalars}])
            self._loggers.scalars("eval", step, scalars)
            self._loggers.figures(step, figures)

    def flush(self) -> None:
        """Writes the loggers' files out, and sends what the run has written."""
        self._loggers.flush()
        self.send()

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
        self._loggers.end()


def fetch(tree) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(tree).items()}


def is_sound(value: float, limit: float) -> bool:
    return math.isfinite(value) and (limit == 0 or abs(value) <= limit)


def check_sound(
    step: int, scalars: Mapping[str, float], limit: float = 0, *, kept: int | None
) -> None:
    """Raises for what is not finite, or larger than a limit (0 for none), by name.

    Args:
      step: Step of the scalars.
      scalars: Values to look at.
      limit: Largest size; 0 for none.
      kept: Step of the newest checkpoint, if there is one.
    """
    for name, value in scalars.items():
        if not is_sound(value, limit):
            above = (
                f", above train.abort_above = {limit}" if math.isfinite(value) else ""
            )
            rest = (
                "no checkpoint was saved before"
                if kept is None
                else f"the checkpoint of step {kept} is kept"
            )
            raise FloatingPointError(f"step {step}: {name} is {value}{above}; {rest}")
