"""The table of methods, a part for each target, and the picture of their densities."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import load
from experiments.judge import plots
from experiments.judge.plane import make_plane
from experiments.run.sweep import FAILURE, Row, mean_and_spread
from experiments.run.workdir import format_table, read_lines
from experiments.tutorial.methods import METHODS
from experiments.tutorial.targets import make_target

COLUMNS = ("kl", "kl_within_modes", "fisher_divergence", "log_partition_error")
"""Scalars of the evaluation, of which a part shows those that its target has."""


def make_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Returns a table for each target, with the methods that have ended or failed.

    Args:
      rows: Rows whose names are `method,target`.
      columns: Scalars of the evaluation to tabulate.
    """
    parts = {}
    for row in rows:
        if row.found or row.num_failed:
            parts.setdefault(row.name.partition(",")[2], []).append(row)
    return "\n".join(
        f"### {target}\n\n{format_table(_make_lines(part, columns))}"
        for target, part in parts.items()
    )


def _make_lines(rows: Sequence[Row], columns: Sequence[str]) -> list[dict[str, str]]:
    known = {name for row in rows for scalars in row.found for name in scalars}
    lines = []
    for row in rows:
        config, name = row.configs[0], row.name.partition(",")[0]
        dim = config.data.get("dim", 2)
        num_gradients = METHODS[name].num_gradients(config.objective, dim)
        failures = f" ({row.num_failed} failed)" if row.num_failed else ""
        lines.append(
            {"method": f"`{name}`"}
            | {
                column: mean_and_spread([x[column] for x in row.found if column in x])
                for column in columns
                if column in known
            }
            | {
                # The dimension of your own table is not in the config.
                "gradients": "-" if "csv" in config.data else f"{num_gradients:g}",
                "s / 1000 updates": _time_updates(row),
                "updates": str(config.train.num_steps),
                "seeds": f"{len(row.found)}{failures}",
            }
        )
    return lines


def _time_updates(row: Row) -> str:
    """Returns the seconds of the fastest seed, which other work disturbed least."""
    seconds = []
    for folder in row.folders:
        if (folder / FAILURE).is_file():
            continue
        rates = [line.get("steps_per_second") for line in read_lines(folder)]
        if rates := [rate for rate in rates if rate]:
            seconds.append(1000 / np.median(rates))
    return f"{min(seconds):.2g}" if seconds else "-"


def draw_densities(rows: Sequence[Row], workdir: Path) -> None:
    """Draws the densities in the plane side by side, of each cell's first seed."""
    panels, bounds = {}, {}
    for row in rows:
        method, _, target = row.name.partition(",")
        section = row.configs[0].evaluation
        if not row.found or section.name != "plane":
            continue
        folder = next(x for x in row.folders if not (x / FAILURE).is_file())
        bound = 0.6 * section.bound
        grid = make_plane(bound, 100)
        if target not in panels:
            true_fn = make_target(row.configs[0].data).energy_fn
            panels[target] = {"data": grid.binned(grid.probabilities(true_fn))}
            bounds[target] = (-bound, bound)
        energy_fn = load(folder).energy_fn
        panels[target][method] = grid.binned(grid.probabilities(energy_fn))
    if panels:
        plots.density_table(workdir / "densities.png", panels, bounds)
