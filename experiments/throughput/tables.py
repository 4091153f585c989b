"""Tables and lines of the benchmark."""

import json
import pathlib

from experiments.run.workdir import format_table, write_atomically
from experiments.throughput.contest import PLAIN


def cell_name(row: dict) -> str:
    return f"{row['workload']}, {row['sampler']}, {row['num_chains']:,}"


def by_cell(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Returns a dict cell -> contender -> row."""
    found = {}
    for row in rows:
        found.setdefault(cell_name(row), {})[row["contender"]] = row
    return found


def microseconds(row: dict) -> str:
    """Returns the microseconds of a move; "none" for one that did not take part."""
    if "seconds_per_move" not in row:
        return "none"
    return f"{1e6 * row['seconds_per_move']:,.0f}"


def spread(row: dict) -> str:
    """Returns the ratio with the lowest and the highest.

    Where the plain scan does not have the sampler, the microseconds of a move.
    """
    if "ratio" not in row:
        return microseconds(row) + " µs" * ("seconds_per_move" in row)
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"


def table(rows: list[dict]) -> str:
    """Returns a line for each cell, with the times of a move over the plain scan's."""
    names = dict.fromkeys(row["contender"] for row in rows)
    body = []
    for name, contenders in by_cell(rows).items():
        plain = contenders.get(PLAIN, {})
        line = {"cell": name, f"{PLAIN}, µs a move": microseconds(plain)}
        for contender in names:
            row = contenders.get(contender, {})
            if contender != PLAIN:
                line[contender] = spread(row)
        body.append(line)
    return format_table(body)


def floors_table(rows: list[dict]) -> str:
    return format_table(
        [
            {
                "cell": cell_name(row),
                "contender": row["contender"],
                "compile s": f"{row['compile_seconds']:.1f}",
                "moves/s": f"{row['moves_per_second']:.3g}",
                "gradients/s": f"{row['gradients_per_second']:.3g}",
                "over gradient": f"{row['overhead_over_gradient']:.2f}",
                "over gradient and noise": f"{row['overhead']:.2f}",
                "of matmul speed": f"{row['share_of_matmul']:.2f}"
                if row["workload"] not in ("gaussian", "mixture")
                else "",
                "peak MiB": f"{row['peak_mib']:.0f}",
                "acceptance": f"{row.get('acceptance_rate', 1.0):.2f}",
                "ESS/s": f"{row['ess_per_second']:.3g}"
                if "ess_per_second" in row
                else "",
            }
            for row in rows
            if "overhead" in row
        ]
    )


def compile_table(rows: list[dict]) -> str:
    """Returns the seconds of a first run beyond a later one's, and the MiB."""
    names = dict.fromkeys(row["contender"] for row in rows)
    body = []
    for name, contenders in by_cell(rows).items():
        line = {"cell": name}
        for contender in names:
            row = contenders.get(contender, {})
            line[contender] = (
                f"{row['compile_seconds']:.1f} s, {row['peak_mib']:.0f} MiB"
                if "compile_seconds" in row
                else "none"
            )
        body.append(line)
    return format_table(body)


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
