"""Time of a command to its first step, when it starts first and again."""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from experiments.run.errors import CommandError
from experiments.run.workdir import format_table
from experiments.throughput.process import ROOT

COMMANDS = {
    "short_run digits": "experiments.short_run",
    "score_based digits": "experiments.score_based",
    "max_entropy digits": "experiments.max_entropy.images",
    "generalized digits": "experiments.generalized.images",
    "tutorial noise_contrastive": "experiments.tutorial",
}
"""Name of a command -> module that is run, with its default preset."""


def seconds_to_first_step(module: str, workdir: pathlib.Path, cache: pathlib.Path):
    """Starts a run, and stops it after its first step; returns the seconds until then.

    Args:
      module: Module of the problem.
      workdir: Folder of the run, which must not exist.
      cache: Folder of compiled programs, which the start fills.

    Raises:
      CommandError: If the run ends before a step.
    """
    variables = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    arguments = [f"--workdir={workdir}", "--config.train.log_every=1"]
    begin, said = time.perf_counter(), []
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=variables | {"EBMJAX_CACHE": str(cache)},
    ) as process:
        for line in process.stderr:
            if line.startswith("step "):
                seconds = time.perf_counter() - begin
                process.kill()
                return seconds
            said.append(line)
    raise CommandError(f"{module} ended before its first step: {''.join(said[-5:])}")


def measure_starts(name: str, num_rounds: int) -> dict:
    """Returns a row with the seconds of first starts and of second ones."""
    first, second = [], []
    for _ in range(num_rounds):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for place, times in enumerate((first, second)):
                workdir = folder / f"run_{place}"
                seconds = seconds_to_first_step(
                    COMMANDS[name], workdir, folder / "cache"
                )
                times.append(seconds)
    shares = [b / a for a, b in zip(first, second)]
    return {
        "command": name,
        "first_start_seconds": statistics.median(first),
        "second_start_seconds": statistics.median(second),
        "share": statistics.median(shares),
        "share_low": min(shares),
        "share_high": max(shares),
    }


def starts_table(rows: list[dict]) -> str:
    """Returns a line for each command: seconds to its first step."""
    return format_table(
        [
            {
                "command": row["command"],
                "first start, s": f"{row['first_start_seconds']:.1f}",
                "second start, s": f"{row['second_start_seconds']:.1f}",
                "second / first": f"{row['share']:.2f} ({row['share_low']:.2f}-"
                f"{row['share_high']:.2f})",
            }
            for row in rows
        ]
    )
