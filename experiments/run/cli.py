r"""The command line of a problem.

    python -m experiments.short_run --help
    python -m experiments.short_run --workdir=runs/cifar --config=cifar10 \
        --config.sampler.step_size=1.0 --config.train.num_steps=200000

`--config` names a preset of the problem, or a file with a `get_config` of its own
(`file.py` or `file.py:preset`). `--config.<option>=<value>` changes one option. Where
the name of a section is changed to one of the problem's `CHOICES`, the section has the
options of that one from there on: see `config.with_options`.
"""

import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from experiments.run.cache import keep_programs
from experiments.run.config import CHOICES, with_options
from experiments.run.errors import ending_in_one_line, hide_tracebacks_of_threads
from experiments.run.experiment import Experiment, Keys
from experiments.run.loggers import TRACKERS, make_loggers
from experiments.run.loop import run
from experiments.run.options import list_options
from experiments.run.processes import ending_together
from experiments.run.remote import to_path
from experiments.run.signals import Preemption
from experiments.run.sweep import Sweep, over, run_sweep

OVERRIDE = "--config."


class Command(NamedTuple):
    """Request of a command line.

    Attributes:
      values: The parsed flags.
      get_config: `get_config(preset) -> ConfigDict`, the problem's or that of a file.
      preset: Name of the preset; the empty string for the default one.
      given: Dotted path -> text, from `--config.<option>=<text>`.
      choices: Section -> name -> constructor, those of every problem and its own.
    """

    values: flags.FlagValues
    get_config: Callable[..., ConfigDict]
    preset: str
    given: dict[str, str]
    choices: Mapping[str, Mapping[str, Callable]]

    def config(self) -> ConfigDict:
        """Returns the locked config, with the options given."""
        base = self.get_config(self.preset) if self.preset else self.get_config()
        return with_options(base, self.given, self.choices)


def main(
    build: Callable[[ConfigDict, Keys], Experiment],
    file: str,
    sweep: Callable[[str], Sweep] | None = None,
) -> None:
    """Runs the command line of a problem.

    Args:
      build: As for `loop.run`; the module that defines it has `get_config`.
      file: `__file__` of the problem, which names it in messages.
      sweep: `sweep(preset) -> Sweep`, the table that `--sweep` makes; None for a
        problem whose sweeps are over seeds or `--over` alone.
    """
    problem = sys.modules[build.__module__]

    def define(values):
        flags.DEFINE_bool(
            "evaluate_only",
            False,
            "Evaluate the newest checkpoint again, and train nothing.",
            flag_values=values,
        )
        flags.DEFINE_list(
            "profile",
            None,
            "Two steps, such as 100,110: a profiler's trace of the steps between them"
            " is kept in the folder of the run, for TensorBoard.",
            flag_values=values,
        )
        flags.DEFINE_list(
            "log_to",
            [],
            f"Trackers that receive the log too, some of {', '.join(TRACKERS)}; their"
            " packages must be installed.",
            flag_values=values,
        )
        flags.DEFINE_bool(
            "sweep", False, "Run the problem's table of runs.", flag_values=values
        )
        flags.DEFINE_multi_string(
            "over",
            [],
            "An axis of the sweep in place of the problem's table:"
            " 'train.num_steps=100,200'. Several axes are crossed.",
            flag_values=values,
        )
        flags.DEFINE_integer(
            "seeds",
            None,
            "Seeds of each cell of the sweep: seed, seed + 1, ...",
            lower_bound=1,
            flag_values=values,
        )
        flags.DEFINE_string(
            "cells",
            "*",
            "Pattern of the cells of the sweep that are run, such as 'kale*'; or 'i/n',"
            " every n-th run from the i-th on, so that n machines share a sweep.",
            flag_values=values,
        )

    def start(command, workdir):
        keep_programs()
        preemption = Preemption()
        # In a run of several processes JAX handles the signals.
        handled = () if command.values.distributed else (signal.SIGTERM, signal.SIGINT)
        with preemption.watching(handled):
            start_watched(command, workdir, preemption)

    def start_watched(command, workdir, preemption):
        values = command.values
        loggers = make_loggers(values.log_to)
        if values.sweep or values.over:
            if values.profile:
                raise ValueError("--profile cannot be combined with --sweep")
            if values.evaluate_only:
                raise ValueError("--evaluate_only cannot be combined with --sweep")
            plan = None if sweep is None else sweep(command.preset)
            if values.over or plan is None:  # without a plan, seeds of one cell
                plan = over(plan, command.preset, values.over)
            run_sweep(
                build,
                command.get_config,
                plan,
                workdir,
                given=command.given,
                choices=command.choices,
                num_seeds=values.seeds,
                cells=values.cells,
                preemption=preemption,
                loggers=loggers,
            )
            return
        if values.seeds is not None or values.cells != "*":
            raise ValueError("--seeds and --cells need --sweep or --over")
        config = command.config()
        check = getattr(problem, "check_single", None)
        if check is not None:
            check(command.preset)
        scalars = run(
            build,
            config,
            workdir,
            evaluate_only=values.evaluate_only,
            preemption=preemption,
            profile=read_steps(values.profile),
            loggers=loggers,
        )
        for name, value in scalars.items():
            print(f"{name}: {value:.6g}")

    command_line(start, problem, file, define, may_be_remote=True)


def read_steps(texts: Sequence[str] | None) -> tuple[int, int] | None:
    """Returns the two steps of `--profile`."""
    if texts is None:
        return None
    if len(texts) != 2 or not all(text.strip().isdigit() for text in texts):
        given = ",".join(texts)
        raise ValueError(f"--profile must be two steps, such as 100,110, got {given!r}")
    return int(texts[0]), int(texts[1])


@ending_together()
def command_line(
    start: Callable[[Command, str], Any],
    problem: ModuleType,
    file: str,
    define: Callable[[flags.FlagValues], None] = lambda values: None,
    *,
    may_be_remote: bool = False,
) -> None:
    """Parses a command line and calls `start(command, workdir)`.

    An error of the command line, of a config or of a run that stops by name is one line
    on the standard error, and the exit status is 1; `--traceback` shows where it arose.

    Args:
      start: Does what the command asks for.
      problem: Module with `get_config` and its docstring.
      file: Its `__file__`.
      define: Defines further flags.
      may_be_remote: Whether `start` takes a workdir that is not a local folder.
    """
    if "force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # XLA reads it when it makes its first client: see tests/conftest.py.
        os.environ.setdefault("PJRT_NPROC", "32")
    logging.set_verbosity(logging.WARNING)
    if "--traceback" not in sys.argv:
        hide_tracebacks_of_threads()
    arguments = sys.argv[1:]
    with ending_in_one_line(flags.Error, shows_traceback="--traceback" in arguments):
        values = _define_flags(define)
        command = _parse(values, arguments, problem, pathlib.Path(file))
        if any(text in ("-h", "--help", "--helpfull") for text in arguments):
            print(_help(values, command, problem), flush=True)
            return
        if values.print_config:
            print(command.config(), flush=True)
            return
        if not values.workdir:
            raise ValueError("--workdir must be given: the folder of the run")
        is_local = isinstance(to_path(values.workdir), pathlib.Path)
        if not (is_local or may_be_remote):
            raise ValueError(f"--workdir must be a local folder, got {values.workdir}")
        if values.distributed:
            _join(values.distributed)
        start(command, values.workdir)


def _define_flags(define) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run: a local one, or a URL such as 'gs://bucket/run'.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "config",
        "",
        "A preset, or a file with a get_config: 'file.py' or 'file.py:preset'.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "print_config", False, "Print the config and exit.", flag_values=values
    )
    flags.DEFINE_string(
        "distributed",
        None,
        "Several processes: 'auto' on a cluster that JAX knows, or"
        " 'host:port,num_processes,process_id'.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "traceback", False, "Show where an error arose.", flag_values=values
    )
    define(values)
    return values


def _parse(values, arguments: Sequence[str], problem, file: pathlib.Path) -> Command:
    given, rest = {}, []
    for text in arguments:
        if text in ("-h", "--help", "--helpfull"):
            continue
        if not text.startswith(OVERRIDE):
            rest.append(text)
            continue
        option, equals, value = text.removeprefix(OVERRIDE).partition("=")
        if not equals:
            raise ValueError(f"--config.{option} must have a value: {text}=...")
        given[option] = value
    try:
        unknown = values([problem.__name__, *rest])[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(values), n=1)
        meant = f"; did you mean --{near[0]}?" if near else ""
        raise ValueError(f"unknown flag --{error.flagname}{meant}") from error
    if unknown:
        raise ValueError(f"unknown argument: {unknown[0]}")
    name, get_config = values.config, problem.get_config
    path, colon, preset = name.partition(":")
    if path.endswith(".py"):
        get_config, name = _load_file(path).get_config, preset
    try:
        get_config(name) if name else get_config()
    except ValueError as error:
        raise ValueError(f"{error}{hint(name, problem, file)}") from error
    choices = CHOICES | getattr(problem, "CHOICES", {})
    return Command(values, get_config, name, given, choices)


def _load_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--config: there is no file {path}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config: {path} has no get_config")
    return module


def hint(name: str, problem, file: pathlib.Path) -> str:
    """Returns the command of the neighbouring problem that has the preset, if any."""
    name = name.partition(",")[0]
    if name in getattr(problem, "PRESETS", {}):
        return ""
    for path in sorted(file.parent.glob("[a-z]*.py")):
        has_it = re.search(rf'^    "{re.escape(name)}": ', path.read_text(), re.M)
        if path != file and has_it and "PRESETS" in path.read_text():
            package = f"experiments.{path.parent.name}.{path.stem}"
            return f"; it is a preset of python -m {package}"
    return ""


def _help(values, command: Command, problem) -> str:
    shown = [(problem.__doc__ or "").strip(), "", "Flags:"]
    for name in sorted(values):
        flag = values[name]
        if flag.help:
            default = "" if flag.default in (None, "", [], False) else flag.default
            shown.append(f"  --{name}  {flag.help}" + f" [{default}]" * bool(default))
    shown.append("  --config.<option>=<value>  Changes one option of the preset.")
    presets = getattr(problem, "PRESETS", {})
    if presets:
        shown += ["", f"Presets: {', '.join(presets)}"]
    first = next(iter(inspect.signature(command.get_config).parameters.values()), None)
    preset = command.preset or getattr(first, "default", "default")
    shown += ["", f"Options of the preset {preset!r}:"]
    shown += list_options(command.config(), problem)
    return "\n".join(shown)


def _join(where: str) -> None:
    """Joins the processes of a run."""
    if where == "auto":
        jax.distributed.initialize()
        return
    parts = where.split(",")
    if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
        raise ValueError(
            "--distributed must be 'auto' or 'host:port,num_processes,process_id',"
            f" got {where!r}"
        )
    jax.distributed.initialize(parts[0], int(parts[1]), int(parts[2]))
