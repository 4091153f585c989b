"""The loop, the log, the config guard and the command line; knows no method.

The same command starts, resumes and evaluates: see `run`.
"""

import contextlib
import json
import math
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict

from ebmjax import training
from ebmjax.checks import check_count, check_number
from ebmjax.types import Array, Key
from experiments._checkpoint import CONFIG, FOLDER, Checkpoints, read_config

METRICS = "metrics.jsonl"


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


def construct(section: Mapping[str, Any], constructors: Mapping[str, Callable], *args):
    """Calls the constructor that `section.name` names with the section's other keys.

    Raises:
      ValueError: If the name is unknown, or the section does not fit the constructor.
    """
    options = dict(section)
    name = options.pop("name")
    if name not in constructors:
        raise ValueError(f"name must be one of {sorted(constructors)}, got {name!r}")
    try:
        return constructors[name](*args, **options)
    except TypeError as error:
        raise ValueError(f"section {name!r} does not fit: {error}") from error


def schedule(
    *,
    start: float,
    final: float | None = None,
    warmup_steps: int = 0,
    decay: str = "cosine",
    decay_start: int = 0,
    decay_steps: int = 0,
) -> optax.Schedule:
    """A number as a function of the update count.

    Rises linearly from 0 to `start` in `warmup_steps`, stays, and from `decay_start` on
    falls to `final` in `decay_steps`, where it remains. All lengths are given in
    updates, none is derived from the run's length: a longer run goes on as it was.

    Args:
      start: The value before the decay.
      final: The value after it; `start` by default.
      warmup_steps: Length of the rise; 0 for none.
      decay: `"cosine"`, `"linear"` or `"exponential"`.
      decay_start: Count at which the decay begins.
      decay_steps: Its length; 0 for no decay.
    """
    if decay not in ("cosine", "linear", "exponential"):
        raise ValueError(
            f"decay must be 'cosine', 'linear' or 'exponential', got {decay!r}"
        )
    for name, value in (
        ("warmup_steps", warmup_steps),
        ("decay_start", decay_start),
        ("decay_steps", decay_steps),
    ):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    final = start if final is None else final
    if decay == "exponential" and not (start > 0 and final > 0):
        raise ValueError(f"exponential decay needs positive ends, got {start}, {final}")

    def value(count):
        progress = jnp.clip((count - decay_start) / max(decay_steps, 1), 0.0, 1.0)
        if decay_steps == 0:
            level = jnp.float32(start)
        elif decay == "exponential":
            level = start * (final / start) ** progress
        else:
            if decay == "cosine":
                progress = 0.5 * (1.0 - jnp.cos(jnp.pi * progress))
            level = start + (final - start) * progress
        return level * jnp.minimum(1.0, (count + 1) / (warmup_steps + 1))

    return value


def adam_section(learning_rate: float, *, b1: float, b2: float) -> dict[str, Any]:
    """A config's section of `make_optimizer`: Adam with a constant rate."""
    return {
        "name": "adam",
        "b1": b1,
        "b2": b2,
        "gradient_clip": 0.0,  # largest norm; 0 for none
        "learning_rate": {
            "start": learning_rate,
            "final": learning_rate,
            "warmup_steps": 0,
            "decay": "cosine",
            "decay_start": 0,
            "decay_steps": 0,  # updates; 0 for a constant rate
        },
    }


def train_section(num_steps: int, **others) -> dict[str, Any]:
    """A config's section `train`, which `run` goes by."""
    return {
        "num_steps": num_steps,
        "log_every": 100,
        "eval_every": 0,  # and at the end
        "checkpoint_every": 1_000,
        "keep": 2,  # newest checkpoints
        "best": "",  # a scalar of the evaluation: where lowest is kept too
        "abort_above": 1e8,  # a metric this large: training has diverged
        **others,
    }


def make_optimizer(section: Mapping[str, Any]) -> optax.GradientTransformation:
    """An optimizer from a config section.

    Keys: `name` ("adam" or "sgd"), `learning_rate` (a section of `schedule`),
    `gradient_clip` (largest global norm of the gradient; 0 for none), and what the
    optax constructor of that name takes.
    """
    options = dict(section)
    of_rate = options.pop("learning_rate")
    for name in ("start", "final"):
        value = of_rate.get(name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(
                f"learning_rate.{name} must be a number of at least 0, got {value}"
            )
    rate = schedule(**of_rate)
    clip = options.pop("gradient_clip", 0.0)
    if not clip >= 0:
        raise ValueError(f"gradient_clip must not be negative, got {clip}")
    for name in ("b1", "b2"):
        if not 0 <= options.get(name, 0.0) < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {options[name]}")
    optimizers = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}
    optimizer = construct(options, optimizers, rate)
    if clip > 0:
        optimizer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
    return optimizer


# --- workdir -----------------------------------------------------------------------


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


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dict: dotted path -> value."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def guard_config(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    may_differ: tuple[str, ...] = ("train.num_steps",),
) -> dict[str, Any]:
    """Refuses a workdir that holds another run.

    Args:
      config: Of this start.
      workdir: May be empty, or hold a run that has neither logged nor saved anything.
      may_differ: How the names of options begin that may differ, beside those of a
        sweep.

    Returns:
      What may differ and does: dotted path -> the config's value.

    Raises:
      ValueError: With every difference, old -> new; if the config there is damaged.
    """
    if not _has_begun(workdir):
        return {}  # whatever config it failed with
    old, new = flat(read_config(workdir).to_dict()), flat(_plain(config))
    missing, allowed, changed = "(absent)", {}, []
    for key in sorted(set(old) | set(new)):
        was, now = old.get(key, missing), new.get(key, missing)
        if was == now:
            continue
        if key.startswith((*may_differ, "sweep.")):  # no run of its own reads it
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


def claim(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes the config that `workdir` is run with from here on."""
    if jax.process_index() == 0:
        text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
        write_atomically(workdir / CONFIG, text)


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


class _Log:
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
        print("  ".join(parts), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def _fetch(tree) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(tree).items()}


def _is_sound(value: float, limit: float) -> bool:
    return math.isfinite(value) and (limit == 0 or abs(value) <= limit)


def _check_sound(step: int, scalars: Mapping[str, float], limit: float = 0) -> None:
    """Raises for what is not finite, or larger than a limit (0 for none), by name."""
    for name, value in scalars.items():
        if not _is_sound(value, limit):
            above = (
                f", above train.abort_above = {limit}" if math.isfinite(value) else ""
            )
            raise FloatingPointError(
                f"step {step}: {name} is {value}{above};"
                " the last good checkpoint is kept"
            )


# --- the loop ----------------------------------------------------------------------


def check_counts(section: str, values: Mapping[str, Any], **least: int) -> None:
    """Raises ValueError, with the option's path, unless each of these of a config's
    section is a whole number of at least so many: before training, not after it."""
    for name, count in least.items():
        check_count(f"{section}.{name}", values[name], count)


def _is_due(step: int, every: int, num_steps: int) -> bool:
    return step == num_steps or (every > 0 and step % every == 0)


def _check(config: ConfigDict) -> None:
    """What no constructor would find before work is lost."""
    lengths = ("num_steps", "log_every", "eval_every", "checkpoint_every")
    check_counts("train", config.train, keep=1, **dict.fromkeys(lengths, 0))
    check_number("train.abort_above", config.train.abort_above, positive=False)
    size, num_devices = config.data.batch_size, jax.device_count()
    if size < 1 or size % num_devices:
        raise ValueError(
            f"data.batch_size must be a positive multiple of the {num_devices} devices,"
            f" got {size}"
        )


def _lay_out(batch, num_local: int, num_microbatches: int):
    """`[rows, *event]` to `[devices, microbatches, size, *event]`."""
    size = batch.shape[0] // (num_local * num_microbatches)
    batch = batch.reshape(num_microbatches, num_local, size, *batch.shape[1:])
    return batch.swapaxes(0, 1)


class _Preemption:
    """Notice that the machine is about to be taken away.

    SIGTERM lets the current step finish and be saved. While nothing is unsaved, before
    training and in evaluations, it ends the process at once. Either way it exits 0.
    """

    def __init__(self):
        self._is_requested = False
        self._may_leave = True

    @contextlib.contextmanager
    def watching(self):
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or jax.process_count() > 1:
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._notice)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _notice(self, number, frame):
        self._is_requested = True
        if self._may_leave:
            sys.exit(0)

    @contextlib.contextmanager
    def _leaving(self, may_leave: bool):
        before, self._may_leave = self._may_leave, may_leave
        try:
            yield
        finally:
            self._may_leave = before

    def holding_unsaved_work(self):
        return self._leaving(False)

    def leaving_at_once(self):
        """Within `holding_unsaved_work`, while all is saved."""
        return self._leaving(True)

    def must_stop(self, step: int) -> bool:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # All processes must stop at the same step, which only JAX can arrange.
            return multihost_utils.reached_preemption_sync_point(step)
        return self._is_requested


def run(
    build: Callable[[ConfigDict, Keys], Experiment],
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    evaluate_only: bool = False,
    untrained: tuple[str, ...] = (),
) -> dict[str, float]:
    """Starts, resumes, or (when all is trained) only evaluates a run.

    Randomness and data are functions of the step, so that a run that was stopped
    anywhere and started again ends bitwise where it would have ended.

    Args:
      build: Makes the `Experiment`; called once.
      config: With `seed`, `data.batch_size` (of all devices), `ema_decay` and `train`:
        `num_steps`, `log_every`, `eval_every`, `checkpoint_every` (in steps; 0 for
        never, the last step saves and evaluates all the same), `keep` (newest
        checkpoints), `best` (the evaluation's scalar whose lowest checkpoint is kept
        too; "" for none), `abort_above` (a training metric of larger size stops the run
        as one that is not finite does: training that diverges; 0 for no limit).
      workdir: Made if missing. Holds one run.
      evaluate_only: Trains nothing; evaluates the newest checkpoint, and changes
        nothing of the run but its figures and this evaluation's line. The section
        `evaluation` may then differ from the run's.
      untrained: Other sections of the config that training does not read, and that may
        differ then too. Where they do it is another model's evaluation: its line has
        the kind "other_eval", and the `options` that differ, beside the run's own, and
        its figures go to `figures_other`.

    Returns:
      The scalars of the last evaluation; empty if the run was preempted.

    Raises:
      ValueError: If `workdir` holds another run or the config cannot work.
      FloatingPointError: When a metric is not finite, or a training metric is above
        `abort_above`, after it is written.
      FileNotFoundError: If there is nothing to evaluate.
    """
    preemption = _Preemption()
    with preemption.watching():
        free = tuple(f"{section}." for section in untrained)
        workdir = pathlib.Path(workdir)
        return _run(build, config, workdir, evaluate_only, free, preemption)


def _run(build, config, workdir, evaluate_only, free, preemption) -> dict[str, float]:
    _check(config)
    if evaluate_only and not (workdir / CONFIG).is_file():
        raise FileNotFoundError(f"{workdir} holds no run to evaluate")
    # An evaluation alone changes nothing of the run, and may be another one.
    extra = ("evaluation.", *free) if evaluate_only else ()
    allowed = guard_config(config, workdir, may_differ=("train.num_steps", *extra))
    other = {key: value for key, value in allowed.items() if key.startswith(free)}
    num_devices, ema_decay = jax.device_count(), config.ema_decay or None
    keys = make_keys(config.seed)
    experiment = build(config, keys)
    state = training.init_state(
        experiment.players,
        experiment.params,
        keys.train,
        num_devices,
        model_state=experiment.model_state,
        ema_decay=ema_decay,
    )
    updates = {
        name: training.pmap_update(players, ema_decay=ema_decay)
        for name, players in _all_phases(experiment).items()
    }
    figures = workdir / ("figures_other" if other else "figures")
    figures.mkdir(exist_ok=True, parents=True)
    checkpoints = Checkpoints(
        workdir, keep=config.train.keep, is_read_only=evaluate_only
    )
    log = _Log(workdir, config.train.num_steps)
    try:
        restored = checkpoints.restore(state, num_devices)
        if evaluate_only and restored is None:
            raise FileNotFoundError(f"{workdir} holds no checkpoint to evaluate")
        state = state if restored is None else restored
        step = int(state.step)
        evaluated = finite_evaluations(
            [line for line in read_lines(workdir) if line["step"] <= step]
        )
        if not evaluate_only:
            claim(config, workdir)
            log.rewind(step)

        def evaluate(step, state):
            start = time.perf_counter()
            key = jax.random.fold_in(keys.evaluation, step)
            on_host = jax.device_get(state._replace(key=None))
            # Every process evaluates, so that none waits long in a collective; the
            # first one's figures are kept.
            with tempfile.TemporaryDirectory() as elsewhere:
                is_first = jax.process_index() == 0
                directory = figures if is_first else pathlib.Path(elsewhere)
                scalars = experiment.evaluate(on_host, key, directory)
            scalars = {name: float(value) for name, value in scalars.items()}
            line = scalars | {"evaluation_seconds": time.perf_counter() - start}
            if other:
                log.write("other_eval", step, line, options=other)
            else:
                log.replace_evaluation(step)
                log.write("eval", step, line)
            _check_sound(step, scalars)
            evaluated[step] = scalars
            return scalars

        def best():
            name = config.train.best
            known = {k: v[name] for k, v in evaluated.items() if name in v}
            if name and evaluated and not known:
                logging.warning("train.best is %r, which no evaluation has", name)
            return min(known, key=known.get) if known else None

        if evaluate_only or step >= config.train.num_steps:
            return evaluate(step, state)
        is_due = _is_due(step, config.train.eval_every, config.train.num_steps)
        if 0 < step and is_due and step not in evaluated:
            evaluate(step, state)  # stopped between the checkpoint and this
        with preemption.holding_unsaved_work():
            return _train(
                experiment,
                config,
                updates,
                state,
                checkpoints,
                log,
                evaluate,
                best,
                preemption,
            )
    finally:
        log.close()
        checkpoints.close()


def _all_phases(experiment: Experiment) -> dict[str, Mapping[str, training.Player]]:
    """Name -> players; "" is the usual one."""
    return {"": experiment.players, **experiment.phases}


def _train(
    experiment, config, updates, state, checkpoints, log, evaluate, best, preemption
) -> dict[str, float]:
    train = config.train
    num_microbatches = {
        name: sum(player.num_updates for player in players.values())
        for name, players in _all_phases(experiment).items()
    }
    is_cpu = jax.default_backend() == "cpu"

    def fetch_batch(step):
        batch, num = experiment.batch(step), num_microbatches[experiment.phase(step)]
        rows = config.data.batch_size // jax.process_count() * num
        if batch.shape[0] != rows:
            raise ValueError(
                f"batch({step}) must have {rows} rows, got {batch.shape[0]}"
            )
        return _lay_out(batch, jax.local_device_count(), num)

    step = int(state.step)
    batch = fetch_batch(step)
    last_time, last_step, result = None, step, {}
    while step < train.num_steps:
        phase = experiment.phase(step)
        state, scalars = updates[phase](state, batch)
        step += 1
        if step < train.num_steps:
            batch = fetch_batch(step)  # while the devices work
        if is_cpu or last_time is None:
            # Forced host devices deadlock when steps are issued without waiting.
            jax.block_until_ready(state.step)
        if last_time is None:  # the first step compiles, and is not timed
            last_time, last_step = time.perf_counter(), step
        stops = preemption.must_stop(step)
        is_evaluating = _is_due(step, train.eval_every, train.num_steps)
        is_saving = (
            stops
            or is_evaluating  # so that an evaluation has nothing to lose
            or _is_due(step, train.checkpoint_every, train.num_steps)
        )
        is_logging = _is_due(step, train.log_every, train.num_steps)
        if is_saving or is_logging:
            values = _fetch(scalars)
            limit = train.abort_above
            if is_logging or not all(_is_sound(x, limit) for x in values.values()):
                now = time.perf_counter()
                clock = {}
                if step > last_step:
                    rate = (step - last_step) / (now - last_time)
                    size = config.data.batch_size * num_microbatches[phase]
                    clock = {
                        "steps_per_second": rate,
                        "examples_per_second": rate * size,
                    }
                log.write("train", step, values | clock)
                log.progress(step, values | clock)
                last_time, last_step = now, step
            _check_sound(step, values, limit)
        if is_saving:
            checkpoints.save(step, state)
        if stops:
            checkpoints.wait()
            logging.warning("preempted: saved step %d; the same command goes on", step)
            return {}
        if is_evaluating:
            checkpoints.wait()
            with preemption.leaving_at_once():
                result = evaluate(step, state)
            last_time, last_step = time.perf_counter(), step  # not training time
        if is_saving:
            checkpoints.prune(best())
    checkpoints.wait()
    return result


# --- command line ------------------------------------------------------------------


def main(
    build: Callable[[ConfigDict, Keys], Experiment],
    file: str,
    sweep=None,
    *,
    untrained: tuple[str, ...] = (),
) -> None:
    """The command line of a paper's file.

    Flags: `--workdir`, `--config=file.py:preset` with dotted overrides,
    `--evaluate_only`, `--sweep`, and `--distributed` for several processes.

    Args:
      build: As for `run`.
      file: The paper's `__file__`, which has `get_config`.
      sweep: `sweep(build, config, workdir)`, what `--sweep` runs; None refuses it.
      untrained: As for `run`.
    """
    from absl import app, flags

    flags.DEFINE_bool("evaluate_only", False, "Evaluate the newest checkpoint.")
    flags.DEFINE_bool("sweep", False, "Run the file's table of small runs instead.")

    def start(config, workdir):
        values = flags.FLAGS
        if values.sweep:
            if sweep is None or values.evaluate_only:
                raise app.UsageError(
                    "--sweep needs a file that has one, and no --evaluate_only"
                )
            sweep(build, config, workdir)
            return
        scalars = run(
            build,
            config,
            workdir,
            evaluate_only=values.evaluate_only,
            untrained=untrained,
        )
        for name, value in scalars.items():
            print(f"{name}: {value:.6g}")

    command_line(start, file)


def command_line(start: Callable[[ConfigDict, str], Any], file: str) -> None:
    """Parses `--workdir`, `--config` and `--distributed`; calls `start`."""
    if "force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # Read when XLA makes its first client: see tests/conftest.py.
        os.environ.setdefault("PJRT_NPROC", "32")
    from absl import app, flags
    from ml_collections import config_flags

    # Inside a function: config_flags imports the experiment's file a second time.
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string(
        "distributed",
        None,
        "Several processes: 'auto' where the cluster tells, or"
        " 'host:port,num_processes,process_id'.",
    )
    config_flags.DEFINE_config_file("config", os.path.abspath(file), lock_config=True)

    def begin(argv):
        if len(argv) > 1:
            raise app.UsageError(f"unknown argument: {argv[1:]}")
        logging.set_verbosity(logging.WARNING)
        if flags.FLAGS.distributed:
            _join(flags.FLAGS.distributed)
        start(flags.FLAGS.config, flags.FLAGS.workdir)

    app.run(begin)


def _join(where: str) -> None:
    if where == "auto":
        jax.distributed.initialize()
        return
    parts = where.split(",")
    if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
        sys.exit(
            "--distributed must be 'auto' or 'host:port,num_processes,process_id',"
            f" got {where!r}"
        )
    jax.distributed.initialize(parts[0], int(parts[1]), int(parts[2]))
