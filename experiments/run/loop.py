"""The training loop, which knows no method. One command starts and resumes: `run`."""

import contextlib
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from ebmjax import training
from ebmjax.types import DEVICE
from experiments.run.checkpoint import CONFIG, Checkpoints
from experiments.run.experiment import (
    Experiment,
    Keys,
    all_phases,
    in_parts,
    make_keys,
    num_stacked,
    problem_of,
    stack_batches,
)
from experiments.run.limits import check_options
from experiments.run.loggers import Logger, Loggers
from experiments.run.meter import Meter, Profile
from experiments.run.remote import AnyPath, mirrored, to_path
from experiments.run.report import try_report
from experiments.run.restarts import check_policy, note_divergence, root_keys
from experiments.run.signals import Preemption
from experiments.run.workdir import (
    MAY_DIFFER,
    Log,
    check_folder,
    check_sound,
    claim,
    fetch,
    finite_evaluations,
    guard_config,
    guard_data,
    is_sound,
    read_lines,
    say,
    training_alone,
)

PROGRAM_SECONDS = 0.1
"""Time that a program of several updates may take: a signal ends none."""


def _is_due(step: int, every: int, num_steps: int) -> bool:
    return step == num_steps or (every > 0 and step % every == 0)


def _check(config: ConfigDict) -> None:
    """Refuses what no constructor would find before work is lost."""
    check_options(config.to_dict())
    check_policy(config)
    size, num_devices = config.data.batch_size, jax.device_count()
    if size < 1 or size % num_devices:
        raise ValueError(
            f"data.batch_size must be a positive multiple of the {num_devices} devices,"
            f" got {size}; to use all devices with a small batch, train several seeds"
            " side by side, each on devices of its own"
        )
    num_rows, num_parts = size // num_devices, config.train.num_accumulated
    if num_rows % num_parts:
        raise ValueError(
            "train.num_accumulated must divide the rows of data.batch_size on each of"
            f" the {num_devices} devices, which are {num_rows}, got {num_parts}"
        )


def _lay_out(batches, num_local: int, num_microbatches: int):
    """`[steps, rows, *event]` to `[devices, steps, microbatches, size, *event]`."""
    steps, rows = batches.shape[:2]
    size = rows // (num_local * num_microbatches)
    batches = batches.reshape(
        steps, num_microbatches, num_local, size, *batches.shape[2:]
    )
    return batches.swapaxes(1, 2).swapaxes(0, 1)


def run(
    build: Callable[[ConfigDict, Keys], Experiment],
    config: ConfigDict,
    workdir: str | AnyPath,
    *,
    evaluate_only: bool = False,
    preemption: Preemption | None = None,
    profile: tuple[int, int] | None = None,
    loggers: Sequence[Logger] = (),
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
        too; "" for none), `num_accumulated` (parts of each microbatch on a device,
        which are taken one after another to save memory), `abort_above` (a training
        metric of larger size stops the run as one that is not finite does: training
        that diverges; 0 for no limit), `on_divergence` ("stop", or "restart": see
        `restarts.note_divergence`) and `max_restarts`.
      workdir: Made if missing. Holds one run. A local folder, or a URL such as
        `gs://bucket/run`: see `remote.to_path`.
      evaluate_only: Trains nothing; evaluates the newest checkpoint, and changes
        nothing of the run except its figures, its arrays and this evaluation's line.
        The section `evaluation` may then differ from the run's. If it differs in
        `evaluation.sampler`, another model is evaluated: its line has the kind
        "other_eval" and the `options` that differ, the run's own line stays, and its
        figures and arrays go to `figures_other`.
      preemption: Notices signals; by default one that handles SIGTERM.
      profile: `(first, last)`: a profiler's trace of the steps after `first` up to
        `last` is kept in the folder `plugins` of `workdir`, for TensorBoard.
      loggers: Objects that receive what a training logs besides the workdir and its
        event files: see `loggers.Logger`. One that fails is left out with a warning.

    Returns:
      The scalars of the last evaluation; empty if the run was preempted.

    Raises:
      ValueError: If `workdir` holds another run, another process trains it, or the
        config cannot work.
      CheckpointError: If a checkpoint cannot be written, or none can be read.
      FloatingPointError: When a metric is not finite, or a training metric is above
        `abort_above`, after it is written.
      FileNotFoundError: If there is nothing to evaluate.
    """
    preemption = preemption or Preemption()
    is_alone = jax.process_count() == 1  # JAX handles the signals of several processes
    workdir = to_path(workdir)
    with preemption.watching() if is_alone else contextlib.nullcontext():
        while True:
            rest = (preemption, Profile(profile, config.train.num_steps), loggers)
            try:
                return _run(build, config, workdir, evaluate_only, *rest)
            except FloatingPointError as error:
                if evaluate_only or not note_divergence(workdir, config, error):
                    raise


def _run(
    build, config, workdir, evaluate_only, preemption, profile, loggers
) -> dict[str, float]:
    _check(config)
    check_folder(workdir)
    if evaluate_only and not (workdir / CONFIG).is_file():
        raise FileNotFoundError(f"{workdir} holds no run to evaluate")
    # An evaluation alone changes nothing of the run, and may have other options.
    extra = ("evaluation.",) if evaluate_only else ()
    allowed = guard_config(config, workdir, may_differ=(*MAY_DIFFER, *extra))
    other = {k: v for k, v in allowed.items() if k.startswith("evaluation.sampler.")}
    num_devices, ema_decay = jax.device_count(), config.ema_decay or None
    keys = make_keys(config.seed)
    *old_keys, train_key = root_keys(keys.train, workdir)
    experiment = in_parts(build(config, keys), config.train.num_accumulated)
    state = training.init_state(
        experiment.players,
        experiment.params,
        train_key,
        num_devices,
        model_state=experiment.model_state,
        ema_decay=ema_decay,
    )
    updates = {
        name: training.pmap_updates(players, ema_decay=ema_decay)
        for name, players in all_phases(experiment).items()
    }
    with contextlib.ExitStack() as stack:
        folder, send = stack.enter_context(mirrored(workdir, trains=not evaluate_only))
        if not evaluate_only:
            folder.mkdir(exist_ok=True, parents=True)
            stack.enter_context(training_alone(folder))
            guard_config(config, folder)  # another start may have been first
        guard_data(folder, experiment.data_digest)
        sinks = Loggers(loggers, workdir.name, config.to_dict())
        log = Log(folder, config.train.num_steps, send, sinks)
        return _run_built(
            experiment,
            config,
            folder,
            log,
            folder == workdir,
            state,
            old_keys,
            updates,
            keys,
            problem_of(build),
            other,
            evaluate_only,
            preemption,
            profile,
        )


def _run_built(
    experiment,
    config,
    workdir,
    log,
    is_shared,
    state,
    old_keys,
    updates,
    keys,
    problem,
    other,
    evaluate_only,
    preemption,
    profile,
) -> dict[str, float]:
    figures = workdir / ("figures_other" if other else "figures")
    figures.mkdir(exist_ok=True, parents=True)
    checkpoints = Checkpoints(
        workdir,
        keep=config.train.keep,
        is_read_only=evaluate_only,
        is_shared=is_shared,
    )
    try:
        restored = checkpoints.restore(state, jax.device_count(), old_keys)
        if evaluate_only and restored is None:
            raise FileNotFoundError(f"{workdir} holds no checkpoint to evaluate")
        state = state if restored is None else restored
        step = int(state.step)
        evaluated = finite_evaluations(
            [line for line in read_lines(workdir) if line["step"] <= step]
        )
        if not evaluate_only:
            claim(config, workdir, problem, experiment.facts, experiment.data_digest)
            log.rewind(step)
            log.send()

        def evaluate(step, state):
            say(f"evaluating step {step}")
            start = time.perf_counter()
            key = jax.random.fold_in(keys.evaluation, step)
            on_host = jax.device_get(state._replace(key=None))
            # Every process evaluates: none waits long in a collective.
            with tempfile.TemporaryDirectory() as elsewhere:
                is_first = jax.process_index() == 0
                directory = figures if is_first else pathlib.Path(elsewhere)
                scalars = experiment.evaluate(on_host, key, directory)
                if is_first and not other:
                    for path in directory.glob("*.npz"):  # arrays stand by the log
                        path.replace(workdir / path.name)
            scalars = {name: float(value) for name, value in scalars.items()}
            line = scalars | {"evaluation_seconds": time.perf_counter() - start}
            if other:
                log.write("other_eval", step, line, options=other)
            else:
                log.write_evaluation(step, line, figures)
            if is_first:
                try_report(workdir, log.name)
            log.send()
            check_sound(step, scalars, kept=checkpoints.latest_step())
            evaluated[step] = scalars
            return scalars

        def best():
            name = config.train.best
            known = {k: v[name] for k, v in evaluated.items() if name in v}
            if name and evaluated and not known:
                logging.warning("train.best is %r, which no evaluation has", name)
            return min(known, key=known.get) if known else None

        if evaluate_only or step >= config.train.num_steps:
            result = evaluate(step, state)
        else:
            is_due = _is_due(step, config.train.eval_every, config.train.num_steps)
            if 0 < step and is_due and step not in evaluated:
                evaluate(step, state)  # stopped between the checkpoint and this
            with preemption.holding_unsaved_work():
                result = _train(
                    experiment,
                    config,
                    updates,
                    state,
                    checkpoints,
                    log,
                    evaluate,
                    best,
                    preemption,
                    profile,
                    workdir,
                )
    except BaseException:
        # A folder that is full or gone fails again, which would hide the error.
        with contextlib.suppress(Exception):
            log.close()
        with contextlib.suppress(Exception):
            checkpoints.close()
        raise
    log.close()
    checkpoints.close()
    return result


class _Feed:
    """Batches of the next steps, which are made and handed over together.

    Attributes:
      num_microbatches: Phase -> number of microbatches of a step.
      phase: Phase of the steps.
      batches: `[devices, steps, microbatches, size, *event]`.
      steps: The steps, which may be fewer than the batches.
    """

    def __init__(self, experiment: Experiment, config: ConfigDict):
        self._experiment, self._config = experiment, config
        self._lengths = {}
        self.num_microbatches = {
            name: training.count_updates(players)
            for name, players in all_phases(experiment).items()
        }
        self.phase, self.batches, self.steps = "", None, range(0)

    def prepare(self, step: int) -> None:
        """Makes the batches of a step, and of later ones of its phase, if need be."""
        if step in self.steps:
            return
        phase_of, end = self._experiment.phase, self._config.train.num_steps
        self.phase = phase = phase_of(step)
        if phase not in self._lengths:
            self._lengths[phase] = self._length(step)
        length, last = self._lengths[phase], step + 1
        while last < min(step + length, end) and phase_of(last) == phase:
            last += 1
        self.steps = range(step, last)
        # Always as many, so that one program takes them: the last one fills up.
        filled = [*self.steps, *[last - 1] * (length - len(self.steps))]
        batches = _lay_out(
            stack_batches(self._experiment.batch, filled),
            jax.local_device_count(),
            self.num_microbatches[phase],
        )
        if jax.process_count() == 1 and jax.default_backend() != "cpu":
            # They are sent ahead, and once for all of their steps.
            mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (DEVICE,))
            rows = jax.sharding.PartitionSpec(DEVICE)
            batches = jax.device_put(batches, jax.sharding.NamedSharding(mesh, rows))
        self.batches = batches

    def _length(self, step: int) -> int:
        """Returns for how many steps of a phase batches are made together."""
        batch, num = self._experiment.batch, self.num_microbatches[self.phase]
        found = stack_batches(batch, [step])
        rows = self._config.data.batch_size // jax.process_count() * num
        if found.shape[1] != rows:
            raise ValueError(
                f"batch({step}) must have {rows} rows, got {found.shape[1]}"
            )
        return num_stacked(found.nbytes)


def _train(
    experiment,
    config,
    updates,
    state,
    checkpoints,
    log,
    evaluate,
    best,
    preemption,
    profile,
    workdir,
) -> dict[str, float]:
    train = config.train
    is_cpu = jax.default_backend() == "cpu"
    feed = _Feed(experiment, config)
    step = saved = int(state.step)
    profile.begin(step)
    with preemption.leaving_at_once():
        feed.prepare(step)
    say("compiling the update")
    pace, num_programs = 1.0, 0  # `pace` is how many steps one program may make
    phases = all_phases(experiment)
    meter = Meter(phases, config.data.batch_size, config.ema_decay or None)
    is_first, result = True, {}
    while step < train.num_steps:
        phase, num = feed.phase, profile.most(step, feed.steps.stop - step)
        for every in (train.log_every, train.eval_every, train.checkpoint_every):
            num = min(num, every - step % every) if every > 0 else num
        # The first step after a save may take long: it compiles, or is a new phase's.
        with preemption.leaving_at_once(is_saved=step == saved):
            start = time.perf_counter()
            num = max(1, int(min(num, pace)))
            first, batches = step - feed.steps.start, feed.batches
            profile.before(step, state)
            state, scalars = updates[phase](state, batches, first, num)
            step += num
            if step < train.num_steps:
                feed.prepare(step)  # while the devices work
            if is_cpu or is_first:
                # Forced host devices deadlock when steps are issued without waiting.
                jax.block_until_ready(state.step)
            if jax.process_count() > 1 or not (is_first or is_cpu):
                pace = math.inf  # the same for all processes
            elif not is_first:
                pace = PROGRAM_SECONDS * num / (time.perf_counter() - start)
        profile.after(step, state, workdir)
        if is_first:  # the first step compiles, and is not timed
            meter.start(step)
            is_first = False
        num_programs += 1
        stops = preemption.must_stop(num_programs)
        is_evaluating = _is_due(step, train.eval_every, train.num_steps)
        is_saving = (
            stops
            or is_evaluating  # so that an evaluation has nothing to lose
            or _is_due(step, train.checkpoint_every, train.num_steps)
        )
        is_logging = _is_due(step, train.log_every, train.num_steps)
        if is_saving or is_logging:
            values = fetch(scalars)
            limit = train.abort_above
            if is_logging or not all(is_sound(x, limit) for x in values.values()):
                values_and_rates = values | meter.read(step, phase, state, batches)
                log.write("train", step, values_and_rates)
                log.progress(step, values_and_rates)
            check_sound(step, values, limit, kept=checkpoints.latest_step())
        if is_saving:
            checkpoints.save(step, state)
            checkpoints.wait()
            saved = step
            log.flush()
        if stops:
            logging.warning("preempted: saved step %d; the same command goes on", step)
            return {}
        if is_evaluating:
            with preemption.leaving_at_once():
                result = evaluate(step, state)
            meter.start(step)  # it is no training time
        if is_saving:
            checkpoints.prune(best())
    checkpoints.wait()
    return result
