"""table"""

import ast
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.data import tabular
from experiments.judge import plots
from experiments.judge.plane import make_plane
from experiments.run.config import flat
from experiments.run.sweep import (
    CELLS,
    FAILURE,
    finished,
    mean_and_spread,
    overridden,
    run_cells,
)
from experiments.run.workdir import format_table, read_lines, write_atomically
from experiments.tutorial.methods import METHODS
from experiments.tutorial.run import _check_names, _config, load
from experiments.tutorial.targets import BOUNDS, PLANE, TARGETS, UCI


def _cells(config: ConfigDict) -> dict[str, ConfigDict]:
    """`method,target,seed` -> config, of the cells that apply.

    Raises:
      ValueError: For what no cell has or is, or a config that is not as its preset.
    """
    section = config.sweep
    _check_names(section.methods, METHODS)
    _check_names(section.targets, (*TARGETS, *UCI))
    if section.num_seeds < 1:
        raise ValueError(f"sweep.num_seeds must be at least 1, got {section.num_seeds}")
    names = [
        (name, target)
        for target in section.targets
        for name in section.methods
        if target in METHODS[name].targets
    ]
    if not names:
        raise ValueError("no method of sweep.methods applies to any of sweep.targets")
    usual = flat(_config(*section.base.split(",")))
    for option, value in flat(config.to_dict()).items():
        if usual.get(option) != value and not option.startswith(("sweep.", "seed")):
            raise ValueError(
                f"a sweep is of presets: put {option}={value} into sweep.overrides"
            )
    overrides = dict(_override(text) for text in section.overrides)
    unused, cells = set(overrides), {}
    for name, target in names:
        if target in UCI and "data.data_dir" not in overrides:
            print(f"left out, without a data.data_dir: {name},{target}")
            continue
        cell = _config(name, target)
        del cell["sweep"]  # a cell is the same run in any sweep
        values = {k: v for k, v in overrides.items() if k in flat(cell)}
        unused -= set(values)
        for seed in range(config.seed, config.seed + section.num_seeds):
            cells[f"{name},{target},{seed}"] = overridden(
                ConfigDict(cell), values | {"seed": seed}
            )
    if unused:
        raise ValueError(f"no cell has the overrides {sorted(unused)}")
    return cells


def _override(text: str) -> tuple[str, Any]:
    """`"train.num_steps=100"` -> `("train.num_steps", 100)`; what is no literal is
    text."""
    option, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"sweep.overrides must be 'option=value', got {text!r}")
    try:
        return option, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return option, value


def _columns(target: str) -> tuple[str, ...]:
    if target in UCI:
        return "test_log_likelihood", "score_matching", "ais_bracket", "ais_bound_gap"
    within = ("kl_within_modes",) if target in PLANE else ()
    return "kl", *within, "fisher_divergence", "log_partition_error"


def _row(name: str, target: str, configs, folders) -> dict[str, str] | None:
    """A line of a target's table, from the seeds that have ended."""
    found, failures, seconds = [], 0, []
    for config, folder in zip(configs, folders, strict=True):
        failures += (folder / FAILURE).is_file()
        scalars = finished(folder, config)
        if scalars is None:
            continue
        if "learned_log_partition" in scalars:
            error = scalars["learned_log_partition"] - scalars["log_partition"]
            scalars = scalars | {"log_partition_error": error}
        found.append(scalars)
        rates = [x.get("steps_per_second") for x in read_lines(folder)]
        if rates := [rate for rate in rates if rate]:
            seconds.append(1000 / np.median(rates))
    if not found and not failures:
        return None
    method, config = METHODS[name], configs[0]
    row = {"method": f"`{name}`"}
    for column in _columns(target):
        row[column] = mean_and_spread([x[column] for x in found if column in x])
    if target not in UCI:
        dim = 2 if target in PLANE else TARGETS[target]["dim"]
        gradients = method.num_gradients(config.objective, dim)
        row["gradients"] = f"{gradients:g}"
    row |= {
        # The fastest seed's, which other work disturbed least.
        "s / 1000 updates": f"{min(seconds):.2g}" if seconds else "-",
        "updates": str(config.train.num_steps),
        "seeds": f"{len(found)}" + (f" ({failures} failed)" if failures else ""),
    }
    return row


def sweep(build, config: ConfigDict, workdir) -> None:
    """The table of methods and targets, one part for each target, and its picture."""
    workdir = pathlib.Path(workdir)
    cells = _cells(config)
    for cell in {cell.data.name: cell for cell in cells.values()}.values():
        if cell.data.name in UCI:
            tabular.load(cell.data.name, data_dir=cell.data.data_dir)  # is it there?

    def report(_):
        parts = []
        for target in config.sweep.targets:
            rows = []
            for name in config.sweep.methods:
                names = [c for c in cells if c.startswith(f"{name},{target},")]
                folders = [workdir / CELLS / c for c in names]
                configs = [cells[c] for c in names]
                if names and (row := _row(name, target, configs, folders)):
                    rows.append(row)
            if rows:
                parts.append(f"### {target}\n\n{format_table(rows)}")
        write_atomically(workdir / "table.md", "\n".join(parts))

    run_cells(build, cells, workdir, report, keeps_failures=True)
    print((workdir / "table.md").read_text())
    _picture(config, workdir, cells)


def _picture(config, workdir, cells) -> None:
    """Densities in the plane side by side, of the first seed."""
    rows, bounds = {}, {}
    for target in config.sweep.targets:
        if target not in PLANE:
            continue
        panels = {}
        for name in config.sweep.methods:
            cell = f"{name},{target},{config.seed}"
            folder = workdir / CELLS / cell
            if cell not in cells or finished(folder, cells[cell]) is None:
                continue
            energy_fn, true_fn = load(folder)
            bound = 0.6 * BOUNDS[target]
            grid = make_plane(bound, 100)
            if not panels:
                panels["data"] = grid.binned(grid.probabilities(true_fn))
            panels[name] = grid.binned(grid.probabilities(energy_fn))
        if panels:
            rows[target], bounds[target] = panels, (-bound, bound)
    if rows:
        plots.density_table(workdir / "densities.png", rows, bounds)
