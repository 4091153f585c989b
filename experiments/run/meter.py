"""Speed of a run's training, and a profiler's trace of some of its steps."""

import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax

from ebmjax import training
from experiments.run.operations import CHIPS, Operations, count_update
from experiments.run.workdir import say


class Meter:
    """Rates of training since they were last asked for, evaluations left out.

    Args:
      phases: Phase -> players.
      batch_size: Number of rows of a microbatch on all devices.
      ema_decay: Decay of the average of the update.
    """

    def __init__(
        self,
        phases: Mapping[str, Mapping[str, training.Player]],
        batch_size: int,
        ema_decay: float | None,
    ):
        self._phases, self._batch_size = phases, batch_size
        self._ema_decay = ema_decay
        self._operations: dict[str, Operations] = {}
        self._time, self._step = time.perf_counter(), 0

    def start(self, step: int) -> None:
        """Forgets what was before a step."""
        self._time, self._step = time.perf_counter(), step

    def read(self, step: int, phase: str, state: Any, batches: Any) -> dict[str, float]:
        """Returns the rates of the steps up to this one, and starts anew.

        Args:
          step: Number of steps made.
          phase: Phase of the last of them, whose operations are counted for all.
          state: State of the run.
          batches: Batches of the last steps, `[devices, steps, microbatches, ...]`.

        Returns:
          `steps_per_second`; `examples_per_second`, of all microbatches and devices;
          `teraflop_per_second`, of matrix products and convolutions on all devices (a
          lower bound if a loop's length is not known before it runs); and where the
          limits of the chip are known, `peak_share`, the time of these products at the
          chip's peaks over the time that passed. They are empty if no step was made.
        """
        now, num = time.perf_counter(), step - self._step
        if num <= 0:
            return {}
        rate = num / (now - self._time)
        num_microbatches = training.count_updates(self._phases[phase])
        rates = {
            "steps_per_second": rate,
            "examples_per_second": rate * self._batch_size * num_microbatches,
        }
        operations = self._count(phase, state, batches)
        if operations.products:
            total = operations.products * jax.device_count()
            rates["teraflop_per_second"] = rate * total / 1e12
            chip = CHIPS.get(jax.devices()[0].device_kind)
            if chip is not None:
                rates["peak_share"] = rate * operations.seconds(chip)
        # Counting takes a trace of the update, which is no training time.
        self.start(step)
        return rates

    def _count(self, phase: str, state: Any, batches: Any) -> Operations:
        if phase not in self._operations:
            one = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), batches
            )
            players = self._phases[phase]
            self._operations[phase] = count_update(players, self._ema_decay, state, one)
        return self._operations[phase]


class Profile:
    """A trace of JAX's profiler of the steps after `first` up to `last`.

    TensorBoard shows it if the folder of the run is its `--logdir`.

    Args:
      steps: `(first, last)`; None for no trace.
      num_steps: Steps of the run.

    Raises:
      ValueError: If the steps do not rise, or are not steps of the run.
    """

    def __init__(self, steps: tuple[int, int] | None, num_steps: int):
        if steps is not None and not 0 <= steps[0] < steps[1] <= num_steps:
            raise ValueError(
                "--profile must be two steps that rise from at least 0 to at most"
                f" train.num_steps = {num_steps}, got {steps[0]},{steps[1]}"
            )
        self._edges = steps or ()
        self._folder: str | None = None

    def begin(self, step: int) -> None:
        """Says so if a run that goes on from a step is past the steps of the trace."""
        if self._edges and step > self._edges[0]:
            say(f"no trace is kept: the run goes on from step {step}")
            self._edges = ()

    def most(self, step: int, num: int) -> int:
        """Returns how many steps one program may make, at most `num`."""
        return min([num, *(edge - step for edge in self._edges if edge > step)])

    def before(self, step: int, state: training.TrainState) -> None:
        """Starts the trace if this is its first step, when earlier ones are done."""
        if self._edges and self._folder is None and step == self._edges[0]:
            jax.block_until_ready(state.step)
            self._folder = tempfile.mkdtemp()
            jax.profiler.start_trace(self._folder)

    def after(
        self, step: int, state: training.TrainState, workdir: pathlib.Path
    ) -> None:
        """Ends the trace if this was its last step, and keeps it in `workdir`."""
        if self._folder is None or step < self._edges[1]:
            return
        jax.block_until_ready(state.step)
        jax.profiler.stop_trace()
        shutil.copytree(self._folder, workdir, dirs_exist_ok=True)
        shutil.rmtree(self._folder)
        self._edges, self._folder = (), None
        say(f"the trace is in {workdir / 'plugins' / 'profile'}")
