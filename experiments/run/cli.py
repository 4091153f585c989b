"""The command line of an experiment."""

import os
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from experiments.run.experiment import Experiment, Keys
from experiments.run.loop import run


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
