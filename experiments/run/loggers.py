"""Trackers that get a run's log in addition to `metrics.jsonl`, such as TensorBoard.

A tracker is any object with the methods of `Logger`. `loop.run` takes a list of them,
and a command takes the names of `TRACKERS`: `--log_to=wandb,mlflow`. None of their
packages is required.
"""

import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging

from experiments.run.config import flat

PROJECT = "ebmjax"
"""Name of the project or experiment of a tracker, which its own variable of the
environment may replace, such as `WANDB_PROJECT`."""


class Logger(Protocol):
    """Receives what a run logs. All calls come from the first process of a run."""

    def begin(
        self, workdir: pathlib.Path, name: str, config: Mapping[str, Any], step: int
    ) -> None:
        """Starts or resumes a run.

        Args:
          workdir: Local folder of the run.
          name: Name of the run, which is that of its workdir.
          config: Dotted path -> value of every option.
          step: Step of the checkpoint that the run goes on from; 0 at its start.
        """

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes scalars, with names such as "train/loss" or "eval/kl"."""

    def figures(self, step: int, paths: Mapping[str, pathlib.Path]) -> None:
        """Takes the figures of an evaluation: name -> path of a PNG."""

    def flush(self) -> None:
        """Writes out what has been taken so far."""

    def end(self) -> None:
        """Ends the run. Another `begin` may follow."""


class TensorBoard:
    """Writes event files to the folder `tensorboard` of the workdir.

    They have the scalars, the figures as images, the config as text, and the options
    of the config as hyperparameters, which TensorBoard compares over the runs of a
    sweep (`tensorboard --logdir=WORKDIR/cells`).
    """

    def __init__(self) -> None:
        self._events: Any = None
        self._config: dict[str, Any] = {}

    def begin(self, workdir, name, config, step):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            logging.warning("no TensorBoard event files: pip install tensorboardX")
            return
        folder = str(workdir / "tensorboard")
        self._events = SummaryWriter(folder, purge_step=step + 1)
        self._config = dict(config)
        text = json.dumps(self._config, indent=2, default=str)
        self._events.add_text("config", f"```\n{text}\n```", step)

    def scalars(self, step, values):
        if self._events is None:
            return
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        measured = {k: v for k, v in values.items() if k.startswith("eval/")}
        if measured and self._config:  # at the first evaluation, which names them all
            self._add_options(measured)

    def _add_options(self, measured: Mapping[str, float]) -> None:
        """Writes the options as hyperparameters, with what is measured by them."""
        from tensorboardX.summary import hparams

        options = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in self._config.items()
        }
        for summary in hparams(options, dict(measured)):
            self._events.file_writer.add_summary(summary)
        self._config = {}

    def figures(self, step, paths):
        if self._events is None:
            return
        from PIL import Image

        for name, path in paths.items():
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._events.add_image(f"figures/{name}", pixels, step, dataformats="HWC")

    def flush(self):
        if self._events is not None:
            self._events.flush()

    def end(self):
        if self._events is not None:
            self._events.close()
            self._events = None


class Tracker:
    """Sends a run to a package with the interface of Weights & Biases.

    A run that goes on after a stop is another run there, unless the tracker is told
    otherwise, such as by `WANDB_RUN_ID` and `WANDB_RESUME=allow`.

    Args:
      name: Name of the package: "wandb" or "trackio".

    Raises:
      ValueError: If the package is not installed.
    """

    def __init__(self, name: str):
        self._package = _import(name)

    def begin(self, workdir, name, config, step):
        del workdir, step
        self._package.init(project=PROJECT, name=name, config=dict(config))

    def scalars(self, step, values):
        self._package.log(dict(values), step=step)

    def figures(self, step, paths):
        images = {
            f"figures/{name}": self._package.Image(str(path))
            for name, path in paths.items()
        }
        self._package.log(images, step=step)

    def flush(self):
        """Does nothing: the package sends in the background."""

    def end(self):
        self._package.finish()


class MLflow:
    """Sends a run to MLflow, where `MLFLOW_TRACKING_URI` says or to local files.

    Raises:
      ValueError: If the package is not installed.
    """

    def __init__(self) -> None:
        self._package = _import("mlflow")

    def begin(self, workdir, name, config, step):
        del workdir, step
        self._package.set_experiment(PROJECT)
        self._package.start_run(run_name=name)
        self._package.log_params(dict(config))

    def scalars(self, step, values):
        self._package.log_metrics(dict(values), step=step)

    def figures(self, step, paths):
        for path in paths.values():
            self._package.log_artifact(str(path), f"figures/{step}")

    def flush(self):
        """Does nothing: the package sends at once."""

    def end(self):
        self._package.end_run()


TRACKERS = {
    "wandb": lambda: Tracker("wandb"),
    "trackio": lambda: Tracker("trackio"),
    "mlflow": MLflow,
}


def make_loggers(names: Sequence[str]) -> list[Logger]:
    """Returns the trackers that `--log_to` names.

    Raises:
      ValueError: If a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--log_to must be some of {[*TRACKERS]}, got {name!r}")
    return [TRACKERS[name]() for name in names]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"--log_to={name} needs the package {name}: pip install {name}"
        ) from error


class Loggers:
    """TensorBoard and other loggers as one, which does nothing before it is begun.

    A logger that fails is left out from there on, with a warning: a tracker that cannot
    be reached must not end a run.

    Args:
      others: Loggers besides TensorBoard.
      name: Name of the run.
      config: Config of the run.
    """

    def __init__(
        self,
        others: Sequence[Logger] = (),
        name: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        self._all: list[Logger] = [TensorBoard(), *others]
        self._begun: list[Logger] = []
        self.name, self._config = name, flat(dict(config or {}))

    def begin(self, workdir: pathlib.Path, step: int) -> None:
        self._begun = list(self._all)
        self._tell("begin", workdir, self.name, self._config, step)

    def _tell(self, method: str, *values: Any) -> None:
        for logger in list(self._begun):
            try:
                getattr(logger, method)(*values)
            except Exception as error:
                name = type(logger).__name__
                logging.warning("nothing more is logged to %s: %s", name, error)
                self._begun.remove(logger)

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._tell("scalars", step, {f"{kind}/{k}": v for k, v in values.items()})

    def figures(self, step: int, folder: pathlib.Path) -> None:
        paths = {path.stem: path for path in sorted(folder.glob("[!.]*.png"))}
        if paths:
            self._tell("figures", step, paths)

    def flush(self) -> None:
        self._tell("flush")

    def end(self) -> None:
        self._tell("end")
        self._begun = []
