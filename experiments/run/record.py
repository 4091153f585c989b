r"""Copies the table of a run or a sweep into a file of results, or into a page.

    python -m experiments.run.record --workdir=runs/uci \
        --to=results/generalized/red_wine.md
    python -m experiments.run.record --pages README.md

The file says which commands, commit, device, seeds and minutes the table comes from. It
is the sweep's `table.md`, or the run's `figures/quality.md`, or the last evaluation.
A page shows a recorded table between two comments, which `--pages` fills in anew:

    <!-- table results/generalized/red_wine.md -->
    <!-- end of table -->
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

from experiments.run.checkpoint import CONFIG, read_config
from experiments.run.remote import AnyPath, to_path
from experiments.run.sweep import CELLS, TABLE
from experiments.run.workdir import (
    finite_evaluations,
    format_table,
    read_lines,
    read_run,
    write_atomically,
)

QUALITY = "figures/quality.md"
PLACE = re.compile(
    r"(<!-- table (?P<path>\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL
)


def minutes(workdir: AnyPath) -> float:
    """Returns the minutes that a run took to train and to evaluate.

    Compilation is left out, as are steps that a killed process had not logged.
    """
    lines, seconds, before = read_lines(workdir), 0.0, 0
    for line in lines:
        seconds += line.get("evaluation_seconds", 0.0)
        if line["kind"] == "train":
            if rate := line.get("steps_per_second"):
                seconds += (line["step"] - before) / rate
            before = line["step"]
    return seconds / 60


def record(workdir: AnyPath) -> str:
    """Returns the table of a run or sweep with where it comes from, in Markdown.

    Raises:
      FileNotFoundError: If there is no run, or none that has been evaluated.
    """
    runs = [workdir]
    if (workdir / CELLS).is_dir():
        cells = sorted((workdir / CELLS).iterdir(), key=lambda path: path.name)
        runs = [path for path in cells if (path / CONFIG).is_file()]
    runs = [run for run in runs if finite_evaluations(read_lines(run))]
    if not runs:
        raise FileNotFoundError(f"{workdir} holds no run that has been evaluated")
    found = [read_run(run) for run in runs]

    def each(name):
        return ", ".join(sorted({str(x[name]) for x in found if x[name]})) or "unknown"

    seeds = sorted({read_config(run).seed for run in runs})
    versions = {f"{k} {v}" for x in found for k, v in x["versions"].items()}
    lines = [
        _table(workdir, runs),
        f"- Command: `{each('command')}`",
        f"- Commit: {each('commit')}; {', '.join(sorted(versions))}",
        f"- Device: {each('device')}; {sum(map(minutes, runs)):.1f} min for"
        f" {len(runs)} run{'s' * (len(runs) > 1)}, compilation not counted",
        f"- Seeds: {', '.join(map(str, seeds))}",
    ]
    if len(seeds) > 1:
        lines.append("- A figure after ± is the standard deviation over the seeds.")
    return "\n".join(lines) + "\n"


def _table(workdir: AnyPath, runs: list[AnyPath]) -> str:
    for path in (workdir / TABLE, workdir / QUALITY):
        if path.is_file():
            return path.read_text()
    evaluations = finite_evaluations(read_lines(runs[0]))
    last = evaluations[max(evaluations)]
    rows = [{"measure": k, "value": v} for k, v in last.items()]
    return format_table(rows)


def fill(page: pathlib.Path, root: pathlib.Path) -> None:
    """Writes the recorded tables anew into the places of a page that name them.

    Raises:
      FileNotFoundError: If a place names a file that is not there.
      ValueError: If the page has no such place.
    """
    text = page.read_text()
    if not PLACE.search(text):
        raise ValueError(f"{page} has no place '<!-- table FILE -->'")

    def table(match):
        path = root / match["path"]
        if not path.is_file():
            raise FileNotFoundError(f"{page} shows {path}, which is missing")
        lines = [x for x in path.read_text().splitlines() if x.startswith("|")]
        return match[1] + "\n".join(lines) + "\n" + match[3]

    write_atomically(page, PLACE.sub(table, text))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", help="folder of a run or sweep")
    parser.add_argument("--to", type=pathlib.Path, help="file of results to write")
    parser.add_argument(
        "--pages", type=pathlib.Path, nargs="*", default=[], help="pages to fill in"
    )
    found = parser.parse_args(arguments)
    if (found.workdir is None) != (found.to is None):
        parser.error("--workdir and --to belong together")
    if found.workdir is None and not found.pages:
        parser.error("give --workdir and --to, or --pages")
    try:
        if found.workdir is not None:
            found.to.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(found.to, record(to_path(found.workdir)))
        for page in found.pages:
            fill(page, pathlib.Path.cwd())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
