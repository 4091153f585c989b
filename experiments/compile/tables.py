"""Results of compilations: lines of JSON in a file a topology, and their table."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.run.files import write_atomically
from experiments.run.workdir import describe_process, format_table

HEAD = """\
# Programs compiled for chips that were not there

`{command}`
was the last command that wrote these files. Nothing was run: a program is compiled for
the chips of a topology, and memory, operations, kernels and collectives are those of
the compiled program of one chip.

Times are estimates: the longest of the arithmetic at {peak:.0%} of the chip's peak (one
pass of bfloat16 on a TPU, TF32 on an H200), the traffic to its memory at
{bandwidth:.0%} of its bandwidth, and {launch:g} microseconds a kernel on a GPU. They
are too short for the smallest programs on a TPU, because the time that an instruction
takes to start is not known here.

An update is a step of training. All other programs are calls of the evaluation,
compiled for one chip. "Or more" stands where a loop's length is not known before it
runs: it is counted as one turn. Products at the highest precision are timed as such.
Hours are those of all steps as updates of this phase.
"""


def _path(folder: pathlib.Path, topology: str) -> pathlib.Path:
    return folder / f"{topology.replace(':', '_')}.jsonl"


def read_rows(folder: pathlib.Path, topology: str) -> list[dict[str, Any]]:
    """Returns the records of a topology; none if there is no file."""
    path = _path(folder, topology)
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
    return rows


def write_rows(folder: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
    """Adds the records of one preset and topology to a file, with commit and versions.

    They take the place of earlier records of the preset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = describe_process()
    made = {"commit": process["commit"], "versions": process["versions"]}
    topology, preset = records[0]["topology"], records[0]["preset"]
    kept = [row for row in read_rows(folder, topology) if row["preset"] != preset]
    rows = [*kept, *(record | made for record in records)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(_path(folder, topology), text)


def make_row(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of the table."""
    row = {"preset": record["preset"], "program": record["program"]}
    if "error" in record:
        return (
            row
            | dict.fromkeys(
                ("TFLOP", "memory, GB", "temporary, GB", "kernels", "all-reduces"), ""
            )
            | {"estimated ms": "", "hours": f"not compiled: {record['error']}"}
        )
    hours = record.get("num_steps", 0) * record["estimated_ms"] / 3.6e6
    return row | {
        "TFLOP": f"{record['tflop']:.3g}"
        + (" or more" if record["unknown_loops"] else ""),
        "memory, GB": f"{record['memory_gb']:.3f}"
        + ("" if record["fits"] else ", does not fit"),
        "temporary, GB": f"{record['temporaries_gb']:.3f}",
        "kernels": record["kernels"],
        "all-reduces": record["collectives"].get("all-reduce", 0),
        "estimated ms": f"{record['estimated_ms']:.3g}",
        "hours": f"{hours:.2g}" if "num_steps" in record else "",
    }


def write_table(folder: pathlib.Path, command: str, **shares: float) -> None:
    """Writes `README.md` with a table for each topology in the folder.

    Args:
      folder: Folder of the results.
      command: Last command that added to them.
      **shares: `peak`, `bandwidth` and `launch`, by which times are estimated.
    """
    parts = [HEAD.format(command=command, **shares)]
    for path in sorted(folder.glob("*.jsonl")):
        rows = read_rows(folder, path.stem.replace("_", ":", 1))
        first = next((row for row in rows if "num_chips" in row), None)
        if first is None:
            continue
        parts.append(
            f"\n## {first['topology']}\n\nChips: {first['num_chips']}; processes:"
            f" {first['num_processes']}; jax {first['jax']}.\n\n"
            + format_table([make_row(row) for row in rows])
        )
    write_atomically(folder / "README.md", "".join(parts))
