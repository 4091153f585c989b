r"""A run on one page: `report.html`, which needs no network and no other file.

    python -m experiments.run.report --workdir=runs/digits

Every evaluation writes the page anew. The command writes it for a run that has none. Of
a sweep it writes the page of every run, and one with the sweep's table, figures and
links to these pages. The page of a run has the command, commit and device, the last
evaluation, the tables and figures, curves of everything that was logged, and the
config.
"""

import argparse
import base64
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from absl import logging

from experiments.run.checkpoint import CONFIG, read_config
from experiments.run.config import flat
from experiments.run.errors import ending_in_one_line, reason_of
from experiments.run.remote import AnyPath, to_path
from experiments.run.workdir import (
    finite_evaluations,
    read_lines,
    read_run,
    write_atomically,
)

REPORT = "report.html"
FIGURES = {"figures": "", "figures_other": "with other options: "}
"""Folders of figures and tables, and what the page says of them."""

CELLS = "cells"  # the folder of a sweep's runs
MOST_POINTS = 400  # of a curve
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 320, 170, 58, 20, 8  # pixels of a chart

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; font-size: 14px; }
th, td { border-bottom: 1px solid #8884; padding: 0.15rem 0.8rem 0.15rem 0;
         text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
code { overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; background: white; }
figcaption, .curve h4 { font-size: 13px; font-weight: 600; margin: 0; }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; }
.wide { overflow-x: auto; }
svg text { font: 10px system-ui, sans-serif; fill: currentColor; }
"""


def write_report(workdir: AnyPath, name: str = "") -> AnyPath:
    """Writes `report.html` of a run, whole or not at all, and returns its path.

    Args:
      workdir: Folder of a run, a local one or one of `remote.to_path`.
      name: Title of the page; the name of the folder by default.

    Raises:
      FileNotFoundError: If there is no run.
      ValueError: If a file of it is damaged.
      OSError: If the file cannot be written.
    """
    if not (workdir / CONFIG).is_file():
        raise FileNotFoundError(f"{workdir} holds no run to report")
    write_atomically(workdir / REPORT, make_page(workdir, name))
    return workdir / REPORT


def try_report(workdir: AnyPath, name: str) -> None:
    """Writes the report of a run that goes on, and logs a warning if that fails."""
    try:
        write_report(workdir, name)
    except Exception as error:  # a page is not worth the end of a run
        logging.warning("%s is not written: %s", workdir / REPORT, reason_of(error))


def make_page(workdir: AnyPath, name: str = "") -> str:
    """Returns the report of a run as one page of HTML; see `write_report`."""
    lines = read_lines(workdir)
    evaluations = finite_evaluations(lines)
    title = name or workdir.name or str(workdir)
    parts = [*_head(title), _table(_describe(workdir))]
    if evaluations:
        last = max(evaluations)
        parts += [f"<h2>Evaluation of step {last}</h2>", _table(evaluations[last])]
    else:
        parts.append("<p>The run has not been evaluated yet.</p>")
    if tables := [*_tables(_files(workdir, ".md"))]:
        parts += ["<h2>Tables</h2>", *tables]
    if figures := [*_figures(_files(workdir, ".png"))]:
        parts += ["<h2>Figures</h2>", *figures]
    if curves := [*_curves(lines)]:
        parts += ["<h2>Curves</h2>", '<div class="curves">', *curves, "</div>"]
    config = flat(read_config(workdir).to_dict())
    parts += ["<h2>Config</h2>", _table(config), "</html>"]
    return "\n".join(parts) + "\n"


def make_index(workdir: AnyPath, runs: Sequence[AnyPath]) -> str:
    """Returns the page of a sweep: its tables, its figures, and links to its runs.

    Args:
      workdir: Folder of the sweep.
      runs: Folders of its runs.
    """
    links = [
        f'<a href="{CELLS}/{quote(run.name, safe=",=")}/{REPORT}">'
        f"{html.escape(run.name)}</a>"
        for run in runs
    ]
    parts = [
        *_head(workdir.name or str(workdir)),
        *_tables(_list(workdir, ".md")),
        *_figures(_list(workdir, ".png")),
        "<h2>Runs</h2>",
        *[f"<p>{link}</p>" for link in links],
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _head(title: str) -> list[str]:
    title = html.escape(title)
    return [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style>",
        f"<h1>{title}</h1>",
    ]


def _describe(workdir: AnyPath) -> dict[str, Any]:
    """Returns where a run comes from, as far as that was recorded."""
    try:
        record = read_run(workdir)
    except FileNotFoundError:  # made by a version that recorded nothing
        return {}
    versions = record.get("versions", {})
    return {
        "problem": record.get("problem", ""),
        "command": record.get("command", ""),
        "commit": record.get("commit") or "unknown",
        "device": record.get("device", ""),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }


def _table(values: Mapping[str, Any]) -> str:
    """Returns names and values below one another."""

    def cell(value):
        if isinstance(value, float):
            return f'<td class="number">{value:.6g}</td>'
        if isinstance(value, int) and not isinstance(value, bool):
            return f'<td class="number">{value}</td>'
        return f"<td><code>{html.escape(str(value))}</code></td>"

    rows = [f"<tr><th>{html.escape(k)}</th>{cell(v)}</tr>" for k, v in values.items()]
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _files(workdir: AnyPath, end: str) -> Iterator[tuple[str, AnyPath]]:
    """Yields the name and the path of every figure or table of a run."""
    for name, said in FIGURES.items():
        for shown, path in _list(workdir / name, end):
            yield said + shown, path


def _list(folder: AnyPath, end: str) -> Iterator[tuple[str, AnyPath]]:
    """Yields the name and the path of every file of a folder with such an end."""
    if folder.is_dir():
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            if path.name.endswith(end) and not path.name.startswith("."):
                yield path.name.removesuffix(end), path


def _tables(files: Iterator[tuple[str, AnyPath]]) -> Iterator[str]:
    for name, path in files:
        yield f"<h3>{html.escape(name)}</h3>"
        yield from_markdown(path.read_text())


def from_markdown(text: str) -> str:
    """Returns the HTML of Markdown that has tables, headings and lines of text."""
    parts: list[str] = []
    rows: list[list[str]] = []

    def end_table():
        if rows:
            head, *body = (
                "<tr>" + "".join(f"<{tag}>{x}</{tag}>" for x in row) + "</tr>"
                for tag, row in zip(["th"] + ["td"] * len(rows), rows)
            )
            table = f"<table>{head}{''.join(body)}</table>"
            parts.append(f'<div class="wide">{table}</div>')
            rows.clear()

    for line in text.splitlines():
        line = line.strip()
        if line.startswith("|"):
            cells = [html.escape(x.strip()) for x in line.strip("|").split("|")]
            if not all(set(x) <= set("-: ") and "-" in x for x in cells):
                rows.append(cells)
            continue
        end_table()
        if line.startswith("#"):
            parts.append(f"<h4>{html.escape(line.lstrip('# '))}</h4>")
        elif line:
            parts.append(f"<p>{html.escape(line)}</p>")
    end_table()
    return "\n".join(parts)


def _figures(files: Iterator[tuple[str, AnyPath]]) -> Iterator[str]:
    for name, path in files:
        data, text = base64.b64encode(path.read_bytes()).decode(), html.escape(name)
        yield (
            f'<figure><figcaption>{text}</figcaption><img alt="{text}"'
            f' src="data:image/png;base64,{data}"></figure>'
        )


def _curves(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a chart of everything that was logged at two steps or more."""
    found: dict[str, list[tuple[int, float]]] = {}
    for kind in ("eval", "train"):
        for line in lines:
            for name, value in line.items():
                if line["kind"] == kind and name not in ("kind", "step"):
                    point = line["step"], float(value)
                    found.setdefault(f"{kind}: {name}", []).append(point)
    for name, points in found.items():
        points = [point for point in points if math.isfinite(point[1])]
        if len(points) > 1:
            head = f"<h4>{html.escape(name)}</h4>"
            yield f'<div class="curve">{head}{_chart(points)}</div>'


def thin_out(points: Sequence[tuple[int, float]], most: int) -> list:
    """Returns at most `most` points of a curve, with the extremes of every part."""
    size = -(-2 * len(points) // most)
    if size <= 2:
        return list(points)
    kept = []
    for first in range(0, len(points), size):
        part = points[first : first + size]
        ends = {min(part, key=lambda x: x[1]), max(part, key=lambda x: x[1])}
        kept += sorted(ends)
    return kept


def _chart(points: Sequence[tuple[int, float]]) -> str:
    """Returns a line over the steps as SVG, with the ends of both axes."""
    points = thin_out(points, MOST_POINTS)
    (first, *_), (last, *_) = points[0], points[-1]
    low, high = min(y for _, y in points), max(y for _, y in points)
    width, height = WIDTH - LEFT - 10, HEIGHT - TOP - BOTTOM

    def place(x, y):
        across = (x - first) / ((last - first) or 1)
        # In halves, as the difference of the largest numbers is none.
        up = (y / 2 - low / 2) / ((high / 2 - low / 2) or 1) if high > low else 0.5
        return f"{LEFT + across * width:.1f},{TOP + (1 - up) * height:.1f}"

    path = " ".join(place(x, y) for x, y in points)
    bottom, right = TOP + height, LEFT + width
    texts = [
        (LEFT - 4, TOP + 8, "end", f"{high:.4g}"),
        (LEFT - 4, bottom, "end", f"{low:.4g}"),
        (LEFT, bottom + 14, "start", f"step {first}"),
        (right, bottom + 14, "end", f"{last}"),
    ]
    labels = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'
        for x, y, anchor, text in texts
    )
    axes = f"M{LEFT},{TOP}V{bottom}H{right}"
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">'
        f'<path d="{axes}" fill="none" stroke="#888"/>'
        f'<polyline points="{path}" fill="none" stroke="#0072b2" stroke-width="1.5"/>'
        f"{labels}</svg>"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of a run or sweep")
    found = parser.parse_args(arguments)
    with ending_in_one_line():
        workdir = to_path(found.workdir)
        if not (workdir / CELLS).is_dir():
            print(write_report(workdir))
            return
        cells = sorted((workdir / CELLS).iterdir(), key=lambda path: path.name)
        runs = [path for path in cells if (path / CONFIG).is_file()]
        for run in runs:
            print(write_report(run))
        write_atomically(workdir / REPORT, make_index(workdir, runs))
        print(workdir / REPORT)


if __name__ == "__main__":
    main()
