"""Tables of runs: cells times seeds, restartable cell by cell.

A problem's `sweep(preset)` returns a plan, a `Sweep`; `run_sweep` runs it. Every cell
is a whole run in `cells/<cell>,<seed>/`, and `table.md` has the table so far.
"""

import ast
import fnmatch
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.run.config import known_options, with_options
from experiments.run.experiment import Experiment, Keys
from experiments.run.loggers import Logger
from experiments.run.loop import run
from experiments.run.remote import AnyPath, filling, to_path
from experiments.run.signals import Preemption
from experiments.run.workdir import (
    check_folder,
    finite_evaluations,
    format_table,
    guard_config,
    read_lines,
    say,
    write_atomically,
)

CELLS = "cells"
FAILURE = "failure.txt"
TABLE = "table.md"

Evaluations = Mapping[int, Mapping[str, float]]


class Cell(NamedTuple):
    """One config of a sweep.

    Attributes:
      preset: Name for the problem's `get_config`; the empty string for its default.
      overrides: Dotted path -> value; text is read as the type of the option.
    """

    preset: str
    overrides: Mapping[str, Any] = {}


class Row(NamedTuple):
    """A cell with all of its seeds.

    Attributes:
      name: Name of the cell.
      configs: Config of each seed.
      folders: Folder of each seed.
      found: The chosen evaluation of each seed that has one.
      num_ended: Number of seeds that reached their last step.
      num_failed: Number of seeds whose metrics ceased to be finite.
    """

    name: str
    configs: list[ConfigDict]
    folders: list[AnyPath]
    found: list[dict[str, float]]
    num_ended: int
    num_failed: int


def last_evaluation(
    evaluations: Evaluations, has_ended: bool
) -> Mapping[str, float] | None:
    """Returns the evaluation of the last step; None for a run that has not ended."""
    return evaluations[max(evaluations)] if has_ended else None


def mean_table(rows: Sequence[Row], columns: Sequence[str] | None) -> str:
    """Returns a table of means over seeds and their standard deviations.

    With one cell, the columns stand below one another.

    Args:
      rows: Cells, some of which may have no evaluation yet.
      columns: Scalars to tabulate; None for all that any seed has.
    """
    found = {row.name: row.found for row in rows if row.found}
    known = {name: None for cell in found.values() for x in cell for name in x}
    shown = [x for x in known if x != "evaluation_seconds"]
    if columns is not None:
        shown = [name for name in columns if name in known]
    table = over_seeds(found, shown)
    if len(table) == 1:
        table = [{"measure": k, "value": v} for k, v in table[0].items()]
    return format_table(table) if table else ""


class Sweep(NamedTuple):
    """A table of runs, to be made by `run_sweep`.

    Attributes:
      cells: Name -> `Cell`.
      columns: Scalars of the evaluation to tabulate; None for all.
      num_seeds: Number of seeds of each cell, unless the command line says another.
      choose: `choose(evaluations, has_ended) -> scalars` or None: the evaluation that
        stands for a run. `evaluations` maps steps to finite evaluations, `has_ended`
        tells whether the last step is among them.
      table: `table(rows, columns) -> text`, in Markdown.
      finish: `finish(rows, workdir)`, called when all runs have ended, such as for a
        picture. It writes its files into the local folder `workdir`.
      skip: `skip(config) -> reason`: a cell with a reason is left out, and the reason
        is printed.
    """

    cells: Mapping[str, Cell]
    columns: Sequence[str] | None = None
    num_seeds: int = 1
    choose: Callable[[Evaluations, bool], Mapping[str, float] | None] = last_evaluation
    table: Callable[[Sequence[Row], Sequence[str] | None], str] = mean_table
    finish: Callable[[Sequence[Row], pathlib.Path], None] = lambda rows, workdir: None
    skip: Callable[[ConfigDict], str] = lambda config: ""


def over(plan: Sweep | None, preset: str, axes: Sequence[str]) -> Sweep:
    """Returns a sweep over values of options.

    Args:
      plan: The problem's own sweep, whose choice of an evaluation is kept; or None.
      preset: Preset of all cells.
      axes: `"option=value,value"` each; they are crossed. None gives one cell.

    Raises:
      ValueError: If an axis has no option or no value, or one of them twice.
    """
    options = {}
    for axis in axes:
        option, _, values = axis.partition("=")
        if not option or not values:
            raise ValueError(f"--over must be 'option=value,value', got {axis!r}")
        if option in options:
            raise ValueError(f"--over must have each option once, got {option!r} twice")
        options[option] = [(option, value) for value in _split_values(values)]
        for index, pair in enumerate(options[option]):
            if pair in options[option][:index]:
                raise ValueError(
                    f"--over must have each value once, got {pair[1]!r} twice in"
                    f" {axis!r}"
                )
    cells = {}
    for chosen in itertools.product(*options.values()):
        name = ",".join(f"{option}={value}" for option, value in chosen)
        cells[name.replace("/", "_") or preset or "default"] = Cell(
            preset, dict(chosen)
        )
    if plan is None:
        return Sweep(cells)
    return Sweep(cells, num_seeds=plan.num_seeds, choose=plan.choose)


def _split_values(text: str) -> list[Any]:
    """Reads values between commas: literals, of which tuples stay whole, or words."""
    try:
        return list(ast.literal_eval(f"[{text}]"))
    except (ValueError, SyntaxError):
        return text.split(",")


def run_sweep(
    build: Callable[[ConfigDict, Keys], Experiment],
    get_config: Callable[..., ConfigDict],
    plan: Sweep,
    workdir: str | AnyPath,
    *,
    given: Mapping[str, Any] | None = None,
    choices: Mapping[str, Mapping[str, Callable]] | None = None,
    num_seeds: int | None = None,
    cells: str = "*",
    preemption: Preemption | None = None,
    loggers: Sequence[Logger] = (),
) -> str:
    """Runs every cell with every seed that has not ended, and tabulates them.

    A stopped sweep goes on within the run where it stopped. Finished runs are neither
    trained nor evaluated again. A run whose metrics cease to be finite is left, with
    the reason in `failure.txt`, and the others go on. Cells with equal configs are one
    run.

    Args:
      build: As for `loop.run`.
      get_config: `get_config(preset) -> ConfigDict`.
      plan: The table.
      workdir: Folder of the sweep, as for `loop.run`; several sweeps may share it if
        cells of one name have one config.
      given: Options of the command line, dotted path -> value, for every cell that has
        them; a cell's own overrides win.
      choices: As for `config.with_options`.
      num_seeds: Number of seeds, from `seed` on; the plan's own by default.
      cells: Pattern of the names of the cells that are run; or `"i/n"`, which runs
        every n-th run of the whole sweep from the i-th one on, so that n machines share
        the sweep. The table then has all cells, with the runs that have ended so far.
      preemption: As for `loop.run`.
      loggers: As for `loop.run`; each run of a cell is a run of theirs.

    Returns:
      The table, which is also in `table.md`.

    Raises:
      ValueError: Before anything is run, if no cell matches the pattern or has one of
        the options given, or a folder holds another run.
    """
    workdir, given = to_path(workdir), dict(given or {})
    check_folder(workdir)
    share = _parse_share(cells)
    cells = "*" if share else cells
    configs = _make_configs(get_config, plan, given, choices or {}, num_seeds, cells)
    # Cells of one config, as where the columns of a table cross, are one run.
    firsts: dict[str, str] = {}
    for name, config in configs.items():
        same = (first for first in firsts.values() if configs[first] == config)
        firsts[name] = next(same, name)
    folders = {name: workdir / CELLS / first for name, first in firsts.items()}
    for name, config in configs.items():
        guard_config(config, folders[name], may_differ=())
    options = {"preemption": preemption, "loggers": loggers}
    train = functools.partial(run, **{k: v for k, v in options.items() if v})
    unique = [name for name, first in firsts.items() if name == first]
    first, num_shares = share or (1, 1)
    for index, name in enumerate(unique, 1):
        folder = folders[name]
        if index % num_shares != first % num_shares:  # another machine's
            continue
        if _has_ended(folder, configs[name]) or (folder / FAILURE).is_file():
            continue
        say(f"cell {index}/{len(unique)}: {name}")
        jax.clear_caches()  # the programs of earlier cells would pile up
        try:
            scalars = train(build, configs[name], folder)
        except FloatingPointError as error:
            text = f"{error}\nDelete this file for the cell to be tried again.\n"
            write_atomically(folder / FAILURE, text)
        else:
            if not scalars:
                raise SystemExit(0)  # preempted; the same command goes on
        _report(plan, configs, folders, workdir)
    rows = _report(plan, configs, folders, workdir)
    if all(row.num_ended + row.num_failed >= len(row.folders) for row in rows):
        with filling(workdir) as folder:
            plan.finish(rows, folder)
    table = (workdir / TABLE).read_text()
    print(table)
    return table


def _parse_share(cells: str) -> tuple[int, int] | None:
    """Returns i and n of `--cells=i/n`, or None for a pattern of names."""
    found = re.fullmatch(r"(-?\d+)/(-?\d+)", cells)
    if found is None:
        return None
    first, num_shares = int(found[1]), int(found[2])
    if not 1 <= first <= num_shares:
        raise ValueError(f"--cells=i/n must have 1 <= i <= n, got {cells!r}")
    return first, num_shares


def _make_configs(
    get_config,
    plan: Sweep,
    given: dict[str, Any],
    choices: Mapping[str, Mapping[str, Callable]],
    num_seeds: int | None,
    pattern: str,
) -> dict[str, ConfigDict]:
    """Returns `<cell>,<seed>` -> config."""
    chosen = fnmatch.filter(plan.cells, pattern)
    if not chosen:
        raise ValueError(
            f"--cells must match some of {sorted(plan.cells)}, or be a share 'i/n', got"
            f" {pattern!r}"
        )
    unused, configs = set(given), {}
    for name in chosen:
        preset, overrides = plan.cells[name]
        base = get_config(preset) if preset else get_config()
        known = known_options(base, given | dict(overrides), choices)
        values = {k: v for k, v in given.items() if k in known}
        unused -= set(values)
        cell = with_options(base, values | dict(overrides), choices)
        if reason := plan.skip(cell):
            say(f"cell {name} is left out: {reason}")
            continue
        for seed in range(cell.seed, cell.seed + (num_seeds or plan.num_seeds)):
            configs[f"{name},{seed}"] = with_options(cell, {"seed": seed})
    if unused:
        raise ValueError(f"no cell of the sweep has the options {sorted(unused)}")
    if not configs:
        raise ValueError("every cell of the sweep is left out")
    return configs


def _has_ended(folder: pathlib.Path, config: ConfigDict) -> bool:
    return config.train.num_steps in finite_evaluations(read_lines(folder))


def _report(plan: Sweep, configs, folders, workdir: pathlib.Path) -> list[Row]:
    """Writes the table of what has been found so far, and returns its rows."""
    rows = []
    for cell in dict.fromkeys(name.rpartition(",")[0] for name in configs):
        names = [name for name in configs if name.rpartition(",")[0] == cell]
        found, num_ended, num_failed = [], 0, 0
        for name in names:
            evaluations = finite_evaluations(read_lines(folders[name]))
            has_ended = configs[name].train.num_steps in evaluations
            has_failed = (folders[name] / FAILURE).is_file()
            num_ended += has_ended
            num_failed += has_failed
            if has_ended or has_failed:
                scalars = plan.choose(evaluations, has_ended)
                if scalars is not None:
                    found.append(dict(scalars))
        rows.append(
            Row(
                cell,
                [configs[name] for name in names],
                [folders[name] for name in names],
                found,
                num_ended,
                num_failed,
            )
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / TABLE, plan.table(rows, plan.columns))
    return rows


def over_seeds(
    found: Mapping[str, Sequence[Mapping[str, float]]],
    columns: Sequence[str],
    digits: int = 4,
) -> list[dict[str, str]]:
    """Returns the rows of a table of cells, each over its seeds.

    Args:
      found: Cell -> the scalars of each of its seeds.
      columns: Scalars to tabulate.
      digits: Digits of a mean.

    Returns:
      A dict a cell with its name, `mean_and_spread` of every column, "-" where no seed
      has it, and the number of seeds.
    """
    return [
        {"cell": name}
        | {
            column: mean_and_spread([x[column] for x in cell if column in x], digits)
            for column in columns
        }
        | {"seeds": str(len(cell))}
        for name, cell in found.items()
    ]


def mean_and_spread(values: Sequence[float], digits: int = 3) -> str:
    """Returns `mean ± standard deviation` over seeds, to one digit of the deviation."""
    if not len(values):
        return "-"
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.{digits}g}"
    return f"{mean:.{digits}g} ± {np.std(values, ddof=1):.1g}"
