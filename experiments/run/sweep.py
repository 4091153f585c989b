"""Many small runs into one table, restartable cell by cell."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.run.config import check_counts, flat
from experiments.run.experiment import Experiment, Keys
from experiments.run.loop import run
from experiments.run.workdir import (
    finite_evaluations,
    format_table,
    guard_config,
    read_lines,
    write_atomically,
)

CELLS = "cells"
FAILURE = "failure.txt"


def sweep(
    build: Callable[[ConfigDict, Keys], Experiment],
    config: ConfigDict,
    workdir: str | pathlib.Path,
    cells: Mapping[str, Mapping[str, Any]],
    columns: Sequence[str],
) -> str:
    """Runs every cell in a folder of its own, and tabulates their last evaluations.

    Args:
      build: As for `_run.run`.
      config: What all cells share.
      workdir: Holds `cells/<name>/` and `table.md`.
      cells: Name -> overrides, dotted path -> value.
      columns: The scalars of the evaluation to tabulate.

    Returns:
      The table, which is also in `table.md`.

    Raises:
      ValueError: If an override or a column is unknown, before anything is run where
        that can be known.
    """
    workdir = pathlib.Path(workdir)
    configs = {name: overridden(config, values) for name, values in cells.items()}
    # Cells of one config, as where the columns of a table cross, are one run.
    twins = {
        name: next(first for first in configs if configs[first] == cell)
        for name, cell in configs.items()
    }
    unique = {name: cell for name, cell in configs.items() if twins[name] == name}
    table = ""

    def report(found):
        nonlocal table
        rows = []
        for name, twin in twins.items():
            if twin not in found:
                continue
            scalars = found[twin]
            if missing := sorted(set(columns) - set(scalars)):
                raise ValueError(
                    f"cell {name} has no {missing}; it has {sorted(scalars)}"
                )
            row = {column: scalars[column] for column in columns}
            rows.append({"cell": name} | row)
        table = format_table(rows)
        write_atomically(workdir / "table.md", table)

    run_cells(build, unique, workdir, report)
    print(table)
    return table


def run_cells(
    build: Callable[[ConfigDict, Keys], Experiment],
    configs: Mapping[str, ConfigDict],
    workdir: pathlib.Path,
    report: Callable[[dict[str, dict[str, float]]], None],
    *,
    keeps_failures: bool = False,
) -> None:
    """Runs every cell whose folder does not hold its end yet.

    A cell is a whole run: a stopped sweep goes on within the cell where it stopped, and
    finished cells are neither trained nor evaluated again.

    Args:
      build: As for `_run.run`.
      configs: Name -> config of a cell.
      workdir: Holds `cells/<name>/`.
      report: Called with the evaluations found so far, name -> scalars, after each that
        was run, and at the end.
      keeps_failures: Whether a cell whose metrics cease to be finite is left, with the
        reason in `failure.txt`, and the others go on; else it ends the sweep.
    """
    found = {}
    for index, (name, cell) in enumerate(configs.items(), 1):
        folder = workdir / CELLS / name
        scalars = finished(folder, cell)
        if scalars is None and not (folder / FAILURE).is_file():
            print(f"cell {index}/{len(configs)}: {name}", flush=True)
            jax.clear_caches()  # of the cells before, which would pile up
            try:
                scalars = run(build, cell, folder)
            except FloatingPointError as error:
                if not keeps_failures:
                    raise
                text = f"{error}\nDelete this file for the cell to be tried again.\n"
                write_atomically(folder / FAILURE, text)
            else:
                if not scalars:
                    raise SystemExit(0)  # preempted; the same command goes on
            report(found | ({name: scalars} if scalars else {}))
        if scalars is not None:
            found[name] = scalars
    report(found)


def overridden(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A locked copy with other values, by dotted path.

    Raises:
      ValueError: If the config has no such option.
    """
    cell = ConfigDict(config.to_dict())
    known = flat(config.to_dict())
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"the config has no {unknown}")
    cell.update_from_flattened_dict(values)
    return cell.lock()


def finished(folder: pathlib.Path, config: ConfigDict) -> dict[str, float] | None:
    """The evaluation of a cell's last step, if this very cell has been finished."""
    guard_config(config, folder, may_differ=())
    evaluations = finite_evaluations(read_lines(folder))
    return evaluations.get(config.train.num_steps)


def seeds(config: ConfigDict) -> range:
    """`seed`, `seed + 1`, ...: as many as `sweep.num_seeds` says.

    Raises:
      ValueError: If that is less than one.
    """
    check_counts("sweep", config.sweep, num_seeds=1)
    return range(config.seed, config.seed + config.sweep.num_seeds)


def over_seeds(
    found: Mapping[str, Sequence[Mapping[str, float]]],
    columns: Sequence[str] | None = None,
    digits: int = 3,
) -> list[dict[str, str]]:
    """The rows of a table of cells, each over its seeds.

    Args:
      found: Cell -> the scalars of each of its seeds.
      columns: Which of them; None for all that any seed has.
      digits: Of a mean.

    Returns:
      Of each cell its name, `mean_and_spread` of every column, "-" where no seed has
      it, and the number of seeds.

    Raises:
      ValueError: If there are seeds, and none has one of the columns.
    """
    known = {name: None for cell in found.values() for x in cell for name in x}
    columns = known if columns is None else columns
    if known and (missing := [name for name in columns if name not in known]):
        raise ValueError(f"no cell has {missing}; they have {sorted(known)}")
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
    """`mean ± standard deviation` over seeds, to one digit of the deviation."""
    if not len(values):
        return "-"
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.{digits}g}"
    return f"{mean:.{digits}g} ± {np.std(values, ddof=1):.1g}"
