"""Time over chains, moves and devices, and the most chains that fit."""

import functools
import pathlib

from ml_collections import ConfigDict

from ebmjax.checks import check_count
from experiments.judge import plots
from experiments.run.errors import CommandError
from experiments.run.workdir import format_table, write_atomically
from experiments.throughput import process
from experiments.throughput.contest import (
    Contest,
    is_image,
    load,
    make_cell,
    where,
)
from experiments.throughput.tables import cell_name, write_lines

FEWEST_CHAINS = 64  # with which the search for the most begins


def scaling(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Measures time over chains and moves, memory over moves, and devices, of ours."""
    workdir.mkdir(parents=True, exist_ok=True)
    rows = []

    def measure(what, contest, name, cell):
        (row,) = contest.rows(cell, [name], config.num_rounds, measured=False)
        row |= {"what": what, "load": load()} | where(config)
        row["seconds"] = row["seconds_per_move"] * cell.num_steps
        rows.append(row)
        print(
            f"{what}: {cell.workload}, {cell.num_chains:,} chains,"
            f" {cell.num_steps:,} moves: {row['seconds']:.3g} s,"
            f" {row['peak_mib']:.0f} MiB",
            flush=True,
        )

    mala = functools.partial(make_cell, config, sampler="mala")
    name = "ebmjax"
    for num_steps in (10, 30, 100, 300, 1_000, 3_000):
        # A process of its own for each, so that each has a peak of its own.
        with Contest([name]) as contest:
            cell = mala("gaussian", num_chains=1_000)
            measure("moves", contest, name, cell._replace(num_steps=num_steps))
    with Contest([name]) as contest:
        for num_chains in (64, 200, 1_000, 5_000, 20_000, 100_000):
            cell = mala("gaussian", num_chains=num_chains)
            measure("chains", contest, name, cell._replace(num_steps=30))
    one = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    for what, extra in (("one device", one), ("a device a core", None)):
        with Contest([]) as contest:
            contest.processes[name] = process.Process(name, extra)
            for workload in config.workloads:
                num_chains = 64 if is_image(workload) else 10_000
                cell = mala(workload, num_chains=num_chains)
                measure(what, contest, name, cell)
    write_lines(workdir / "scaling.jsonl", rows)

    def line(what, field):
        points = [(r[field], r["seconds"]) for r in rows if r["what"] == what]
        counts, seconds = zip(*points)
        slope = [seconds[-1] * count / counts[-1] for count in counts]
        return {"measured": (counts, seconds), "of slope one": (counts, slope)}

    plots.curves(
        workdir / "scaling.png",
        {
            "seconds over moves, 1,000 chains": line("moves", "num_steps"),
            "seconds over chains, 30 moves": line("chains", "num_chains"),
        },
        x_label="number of moves or chains",
        y_label="seconds",
        truth="of slope one",
        is_log=True,
    )
    seconds = {(r["what"], r["workload"]): r["seconds"] for r in rows}
    devices = [
        {
            "energy": row["workload"],
            "chains": f"{row['num_chains']:,}",
            "one device, s": row["seconds"],
            "a device a core, s": seconds["a device a core", row["workload"]],
            "ratio": seconds["a device a core", row["workload"]] / row["seconds"],
        }
        for row in rows
        if row["what"] == "one device"
    ]
    memory = [
        {"moves": row["num_steps"], "seconds": row["seconds"], "MiB": row["peak_mib"]}
        for row in rows
        if row["what"] == "moves"
    ]
    text = format_table(devices) + "\n" + format_table(memory)
    write_atomically(workdir / "scaling.md", text)
    print(text)
    return rows


def largest(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Returns the largest power of two of chains that fit, for each energy."""
    import jax

    if jax.default_backend() == "cpu" and config.most_chains >= 2**30:
        raise ValueError(
            "most_chains must be given on a CPU, whose memory is the machine's:"
            " --config.most_chains=100_000"
        )
    check_count("most_chains", config.most_chains, FEWEST_CHAINS)
    workdir.mkdir(parents=True, exist_ok=True)
    rows = []
    for workload in config.workloads:
        # A process for each: its peak of memory is since it began.
        with Contest(["ebmjax"]) as contest:
            num_chains, found = FEWEST_CHAINS, None
            while num_chains <= config.most_chains:
                cell = make_cell(config, workload, "langevin", num_chains)
                try:
                    (found,) = contest.rows(cell, ["ebmjax"], 1, measured=False)
                except CommandError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    break
                num_chains *= 2
            if found is None:
                raise CommandError(f"{workload}: not even {num_chains} chains fit")
            is_full = num_chains <= config.most_chains
            rows.append(found | {"is_full": is_full} | where(config))
            print(f"{cell_name(found)} chains fit", flush=True)
            write_lines(workdir / "largest.jsonl", rows)
    return rows
