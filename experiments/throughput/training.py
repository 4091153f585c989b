"""The table of training steps: our updates compared with those of PyTorch."""

import contextlib
import os
import pathlib
import statistics
import time

from ml_collections import ConfigDict

from ebmjax.checks import check_count
from experiments.run.config import check_name
from experiments.run.errors import CommandError
from experiments.run.limits import check_options
from experiments.run.workdir import format_table, write_atomically
from experiments.throughput import updates
from experiments.throughput.contest import alternate, announce, load, where
from experiments.throughput.starts import COMMANDS, measure_starts, starts_table
from experiments.throughput.tables import write_lines
from experiments.throughput.workload import num_cores

OURS = "ebmjax"  # whose time is compared with the fastest peer's


def check_config(config: ConfigDict) -> None:
    """Raises ValueError for the first option that cannot be measured, by its name."""
    check_options(config.to_dict())
    check_count("num_cores", config.num_cores, 0)
    if config.num_cores > num_cores():
        raise ValueError(
            f"num_cores must be at most the {num_cores()} cores that this process may"
            f" use, got {config.num_cores}"
        )
    for option, known in (
        ("workloads", updates.WORKLOADS),
        ("contenders", (*updates.OURS, *updates.PEERS)),
        ("commands", COMMANDS),
    ):
        for name in config[option]:
            check_name(option, name, known)
    if OURS not in config.contenders:
        raise ValueError(
            f"contenders must have {OURS!r}, got {list(config.contenders)}"
        )


@contextlib.contextmanager
def on_cores(count: int):
    """Lets this thread, and the processes that it starts, have `count` of its cores.

    0 stands for all of them, as does every number where a process cannot choose.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    if not count or affinity is None:
        yield
        return
    before = affinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_workload(workload: str, names, num_rounds: int, seconds: float):
    """Returns a row for each contender, those that do not take part with the reason.

    Every contender has a process of its own for each workload, so that each has a peak
    of memory of its own. Contenders without a program of this kind have no row.
    """
    rows, counts, processes = {}, {}, {}
    with contextlib.ExitStack() as stack:
        # Ours is first, and says what kind of task it is.
        for name in sorted(names, key=lambda name: name != OURS):
            own = rows.get(OURS)
            if own and not updates.takes_part(name, own["kind"], own["is_update"]):
                continue
            announce(f"{workload}: compiling {name}")
            made = updates.Process(name, updates.wanted(name))
            stack.callback(made.close)
            built = made.ask("build", workload=workload)
            if "skipped" not in built:
                checked = made.ask("verify")
                built = checked if "skipped" in checked else built
            rows[name] = {"workload": workload, "contender": name} | built
            if "skipped" not in built:
                processes[name] = made
                counts[name] = max(1, round(seconds / built["seconds"]))
        announce(f"{workload}: timing {num_rounds} rounds")

        def run(name, index):
            reply = processes[name].ask("run", count=counts[name])
            if not reply["is_finite"]:
                raise CommandError(f"{name}: {workload} is not finite")
            return reply["seconds"] / counts[name]

        found = alternate(list(processes), num_rounds, run)
    medians = {name: statistics.median(times) for name, times in found.items()}
    theirs = {k: v for k, v in medians.items() if k in updates.PEERS}
    fastest = min(theirs, key=theirs.get, default=None)
    for name, times in found.items():
        row = rows[name]
        row |= {
            "seconds": medians[name],
            "seconds_low": min(times),
            "seconds_high": max(times),
            "num_updates": counts[name] * num_rounds,
            "peak_mib": row.pop("peak_bytes") / 2**20,
        }
        if name in updates.OURS and fastest:
            ratios = [a / b for a, b in zip(found[fastest], times)]
            row |= {
                "fastest_peer": fastest,
                "ratio": medians[fastest] / medians[name],
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
            }
    return list(rows.values())


def measure_training(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Measures all, and writes `training.jsonl` and `training.md`."""
    check_config(config)
    workdir.mkdir(parents=True, exist_ok=True)
    rows = []
    with on_cores(config.num_cores):
        for workload in config.workloads:
            begin, before = time.perf_counter(), load()
            found = measure_workload(
                workload, config.contenders, config.num_rounds, config.seconds
            )
            rows += [row | {"load": before} | where(config) for row in found]
            spent = f"({time.perf_counter() - begin:.0f} s)"
            print(f"{workload}:", summary(found), spent, flush=True)
            write(rows, workdir)
        for command in config.commands:
            announce(f"{command}: starting {2 * config.num_rounds} times")
            before = load()
            row = measure_starts(command, config.num_rounds)
            rows.append(row | {"load": before} | where(config))
            write(rows, workdir)
    print(report(rows))
    return rows


def write(rows: list[dict], workdir: pathlib.Path) -> None:
    write_lines(workdir / "training.jsonl", rows)
    write_atomically(workdir / "training.md", report(rows))


# --- tables ---------------------------------------------------------------------------


def by_workload(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Returns a dict workload -> contender -> row."""
    found = {}
    for row in rows:
        found.setdefault(row["workload"], {})[row["contender"]] = row
    return found


def spread(row: dict) -> str:
    """Returns the ratio of the fastest peer's time to ours, lowest and highest."""
    if "ratio" not in row:
        return "none"
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"


def summary(rows: list[dict]) -> str:
    parts = [
        f"{row['contender']} {milliseconds(row)} ms" for row in rows if "seconds" in row
    ]
    ratios = [spread(row) for row in rows if row["contender"] == OURS]
    return ", ".join([*parts, f"ratio {ratios[0]}"])


def milliseconds(row: dict) -> str:
    """Returns three digits of the milliseconds of an update."""
    if "seconds" not in row:
        return "none"
    value = 1e3 * row["seconds"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def report(rows: list[dict]) -> str:
    """Returns the tables of updates, metrics and commands, and how they were made."""
    starts = [row for row in rows if "command" in row]
    rows = [row for row in rows if "workload" in row]
    metrics = [row for row in rows if row["workload"].startswith("metric ")]
    others = [row for row in rows if not row["workload"].startswith("metric ")]
    text = ""
    for what, part in (("Updates and evaluations", others), ("Metrics", metrics)):
        if part:
            text += f"## {what}\n\n{times_table(part)}\n"
            text += f"### First call and memory\n\n{first_table(part)}\n"
    if starts:
        text += f"## Command to the first step\n\n{starts_table(starts)}\n"
    settings = {f"- {r['contender']}: {r['settings']}" for r in rows if "settings" in r}
    text += "## Settings\n\n" + "\n".join(sorted(settings)) + "\n"
    reasons = {
        f"- {row['contender']}, {row['workload']}: {row['skipped']}"
        for row in rows
        if "skipped" in row
    }
    if reasons:
        text += "\n## Did not take part\n\n" + "\n".join(sorted(reasons)) + "\n"
    return text


def times_table(rows: list[dict]) -> str:
    """Returns a line for each workload: milliseconds, and the fastest peer over
    ours."""
    names, body = dict.fromkeys(row["contender"] for row in rows), []
    for workload, contenders in by_workload(rows).items():
        line = {"workload": workload}
        for name in names:
            line[f"{name}, ms"] = milliseconds(contenders.get(name, {}))
        line["fastest peer"] = contenders.get(OURS, {}).get("fastest_peer", "none")
        for name in names:
            if name in updates.OURS:
                line[f"fastest peer / {name}"] = spread(contenders.get(name, {}))
        body.append(line)
    return format_table(body)


def first_table(rows: list[dict]) -> str:
    """Returns a line for each workload: seconds of the first call, which compiles, and
    MiB."""
    names, body = dict.fromkeys(row["contender"] for row in rows), []
    for workload, contenders in by_workload(rows).items():
        line = {"workload": workload}
        for name in names:
            row = contenders.get(name, {})
            line[name] = (
                f"{row['first_seconds']:.1f} s, {row['peak_mib']:.0f} MiB"
                if "seconds" in row
                else "none"
            )
        body.append(line)
    return format_table(body)
