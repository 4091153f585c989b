r"""Compiles the papers' programs for TPUs and GPUs on a machine that has neither.

    python -m experiments.compile --preset=short_run.images:cifar10 --topology=v5e:2x2
    python -m experiments.compile --all --topology=v5e:2x2 --topology=h200:1x1x8 \
        --out=results/accelerators

A preset is `<paper>.<problem>:<preset>`, or `<paper>:<preset>` for the one problem that
has it. A topology is the chips along each axis of a slice of TPU v5e, v6e or v5p, or
`h200:<slices>x<hosts>x<gpus>`. The update is compiled for all chips, and the large
programs of the evaluation that a problem names are compiled for one. Nothing is run:
memory and operations are those of the compiled program, and times are estimates from
the chip's limits.

A TPU needs `pip install "jax[tpu]"`, and a GPU `pip install "jax[cuda13]"`. With
`--out`, each result is a line in `<out>/<topology>.jsonl`, and `<out>/README.md` has
the table. A preset that is there already is not compiled again, unless a program of it
failed or the version of jax is another one.
"""

import argparse
import os
import pathlib
import sys

# The chips that compile have nothing to run, so that this process is on a CPU.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_LOG_DIR", "disabled")

import jax

from experiments.compile.estimate import (
    BANDWIDTH_SHARE,
    PEAK_SHARE,
    SECONDS_A_KERNEL,
)
from experiments.compile.presets import compile_presets, find_preset, list_problems
from experiments.compile.tables import read_rows, write_rows, write_table
from experiments.run.workdir import describe_process


def show(record: dict) -> str:
    """Returns the lines that say what was compiled."""
    head = f"{record['preset']}, {record['program']}, on {record['topology']}"
    if "error" in record:
        return f"{head}: not compiled: {record['error']}"
    r = record
    fits = "fits" if r["fits"] else "does NOT fit"
    collectives = ", ".join(f"{n} {kind}" for kind, n in r["collectives"].items())
    loops = r["unknown_loops"]
    bound = f" or more, {loops} loops of unknown length have one turn" if loops else ""
    lines = [
        f"{head} ({r['num_chips']} chips, {r['num_processes']} processes):",
        f"  {r['tflop']:.4g} TFLOP a chip{bound}; {r['kernels']} kernels or"
        f" instructions; {collectives or 'no collective'}",
        f"  memory {r['memory_gb']:.3f} GB a chip ({fits}): arguments"
        f" {r['arguments_gb']:.3f}, of which donated {r['donated_gb']:.3f}, temporary"
        f" {r['temporaries_gb']:.3f}, code {r['code_gb']:.3f}",
        f"  at the chip's peaks {r['arithmetic_ms']:.3g} ms of arithmetic,"
        f" {r['traffic_ms']:.3g} ms of memory traffic; estimated"
        f" {r['estimated_ms']:.3g} ms",
    ]
    if "num_steps" in r:
        hours = r["num_steps"] * r["estimated_ms"] / 3.6e6
        lines.append(f"  {r['num_steps']} steps: {hours:.2g} hours")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", action="append", default=[], help="may be repeated")
    parser.add_argument("--all", action="store_true", help="all presets of all papers")
    parser.add_argument(
        "--topology", action="append", default=[], help="may be repeated"
    )
    parser.add_argument("--out", type=pathlib.Path, help="folder of the results")
    parser.add_argument(
        "--limit", type=float, default=0, help="seconds for one program; 0 for no limit"
    )
    parser.add_argument(
        "--update_only",
        action="store_true",
        help="compiles no program of the evaluation, which may take minutes each",
    )
    options = parser.parse_args()
    if bool(options.preset) == options.all:
        parser.error("either --preset or --all must be given")
    if not options.topology:
        parser.error("--topology must be given, such as v5e:2x2")
    try:
        sys.exit(run(options))
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


def run(options: argparse.Namespace) -> int:
    """Compiles what is asked for; returns the exit status, 1 if a program failed."""
    chosen = [find_preset(name) for name in options.preset]
    if options.all:
        chosen = [
            (problem, preset)
            for problem, module in list_problems().items()
            for preset in module.PRESETS
        ]
    num_failed = 0
    for topology in options.topology:
        done = read_rows(options.out, topology) if options.out else []
        failed = {row["preset"] for row in done if "error" in row}
        known = {row["preset"] for row in done if row["jax"] == jax.__version__}
        known -= failed
        jobs = [
            (problem, preset, topology)
            for problem, preset in chosen
            if f"{problem}:{preset}" not in known
        ]
        for records in compile_presets(
            jobs, options.limit, update_only=options.update_only
        ):
            print("\n".join(map(show, records)), flush=True)
            num_failed += sum("error" in record for record in records)
            if options.out:  # all of a preset at once, or it would seem done
                write_rows(options.out, records)
    if options.out:
        write_table(
            options.out,
            describe_process()["command"],
            peak=PEAK_SHARE,
            bandwidth=BANDWIDTH_SHARE,
            launch=1e6 * SECONDS_A_KERNEL,
        )
    return min(num_failed, 1)


if __name__ == "__main__":
    main()
