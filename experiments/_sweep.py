"""Many small runs into one table, restartable cell by cell."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import _run


def sweep(
    build: Callable[[ConfigDict, _run.Keys], _run.Experiment],
    config: ConfigDict,
    workdir: str | pathlib.Path,
    cells: Mapping[str, Mapping[str, Any]],
    columns: Sequence[str],
) -> str:
    """Runs every cell in a folder of its own, and tabulates their last evaluations.

    A cell is a whole run: a stopped sweep goes on within the cell where it stopped, and
    finished cells are neither trained nor evaluated again.

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
    configs = {name: _overridden(config, values) for name, values in cells.items()}
    rows = []
    for index, (name, cell) in enumerate(configs.items(), 1):
        # Cells of one config, as where the columns of a table cross, are one run.
        twin = next(first for first in configs if configs[first] == cell)
        folder = workdir / "cells" / twin
        scalars = _finished(folder, cell)
        if scalars is None:
            print(f"cell {index}/{len(configs)}: {name}", flush=True)
            scalars = _run.run(build, cell, folder)
            if not scalars:
                raise SystemExit(0)  # preempted; the same command goes on
        if missing := sorted(set(columns) - set(scalars)):
            raise ValueError(f"cell {name} has no {missing}; it has {sorted(scalars)}")
        rows.append({"cell": name} | {column: scalars[column] for column in columns})
        table = _run.format_table(rows)
        _run.write_atomically(workdir / "table.md", table)
    print(table)
    return table


def _overridden(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    cell = ConfigDict(config.to_dict())
    known = _run.flat(config.to_dict())
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"the config has no {unknown}")
    cell.update_from_flattened_dict(values)
    return cell.lock()


def _finished(folder: pathlib.Path, config: ConfigDict) -> dict[str, float] | None:
    """The evaluation of a cell's last step, if this very cell has been finished."""
    _run.guard_config(config, folder)
    evaluations = _run.finite_evaluations(_run.read_lines(folder))
    return evaluations.get(config.train.num_steps)
