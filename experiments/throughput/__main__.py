"""Speed of samplers and of training compared with peers, and where time goes.

    python -m experiments.throughput --workdir=runs/bench
    python -m experiments.throughput --workdir=runs/bench --config=small
    python -m experiments.throughput --workdir=runs/scaling --config=scaling
    python -m experiments.throughput --workdir=runs/bench --config=training

A cell is a sampler on an energy with some number of chains. In every cell each
contender (ours with the fast generator and with threefry, a plain `lax.scan`, and the
peers that are installed) has a process of its own with its best settings; the processes
take turns, round after round, so that a busy moment of the machine falls on all alike.
Figures are medians over the rounds; a ratio is taken within each round, to the plain
scan, and is given with the lowest and the highest. The sampler `underdamped`, which the
plain scan does not have, has times and no ratios. Before anything is timed, every
contender's draws must have the right mean and variance.

Ours make every core a device: `sample_chains` divides the chains. Peers in JAX run on
one device with all threads, or share their chains among a device a core, whichever is
faster; the plain scan runs on one, as JAX code without optimisation does.

Of ours also: the time of the bare value and gradient of all chains and of their random
numbers, on the same devices, and the overhead, a move's time over those; of networks,
operations a second over those of a large matrix product here; acceptance; effective
sample size, where the energy has a law to sample (untrained networks have none). Of few
chains the bare calls are mostly dispatch, and no floor. Memory is the growth of the
process's peak in a first run, compilation included.

`throughput.jsonl` has one line a contender and cell, `table.md` the ratios, and
`ratios_<energy>.png` draws them, where there are ratios. The preset `scaling` writes
`scaling.jsonl` and `scaling.png`: time over chains and moves, memory over moves, one
device against one for every core. The preset `largest` doubles the chains until the
device's memory is full, and writes `largest.jsonl`; on a CPU, whose memory is the
machine's, it wants `--config.most_chains`.

The preset `training` measures training steps in the same alternating way: the updates
of presets of all papers, on random data of their shape; scores, densities and samples;
metrics; and the time from a command to its first step, at its first start and at a
second one. Ours are `ebmjax`, one program a step with nothing configured; `ebmjax
steps`, several short steps in one program, as a run makes them; and `ebmjax devices`,
the same with a device for every core. PyTorch runs eagerly, with channels last, and
compiled; its losses and gradients are compared with ours before they are timed. A ratio
is the fastest peer's time over ours: above 1, ours are faster. It is the ratio of the
medians, with the lowest and the highest of a round. The first call includes the
compilation. `training.jsonl` has one line a contender and workload, `training.md` the
tables; `--config.num_cores=1` measures on one core.

Peers besides BlackJAX and NumPyro (`requirements-dev.txt`) are installed by hand:
`pip install torch torchebm ebmkit tfp-nightly`. A peer is a file of `peers/`; a sampler
is a line of `samplers.py`, and an update one of `tasks.py`.
"""

import os
import pathlib
import sys
import time

from ml_collections import ConfigDict

from experiments.judge import plots
from experiments.run.cli import Command, command_line
from experiments.run.config import check_name
from experiments.run.workdir import write_atomically
from experiments.throughput import peers, process, updates
from experiments.throughput.contest import (
    PLAIN,
    Contest,
    cells,
    check_config,
    is_image,
    load,
    where,
)
from experiments.throughput.samplers import WORKLOADS
from experiments.throughput.scaling import largest, scaling
from experiments.throughput.starts import COMMANDS
from experiments.throughput.tables import (
    by_cell,
    cell_name,
    compile_table,
    floors_table,
    spread,
    table,
    write_lines,
)
from experiments.throughput.training import measure_training

PRESETS = ("default", "small", "scaling", "largest", "training", "training_small")

PEERS = peers.having("make")


def get_config(preset: str = "default") -> ConfigDict:
    check_name("preset", preset, PRESETS)
    if preset.startswith("training"):
        return training_config(preset)
    config = {
        "seed": 0,  # written in every line; it changes no draw
        "preset": preset,  # which of PRESETS is measured
        "workloads": WORKLOADS,  # energies; of the training steps, names in tasks.py
        "samplers": ("langevin", "mala", "hmc"),  # or "underdamped", of ours alone
        "num_chains": (64, 1_000, 10_000, 100_000),  # of energies of vectors
        "num_image_chains": (64,),  # of convolutions and the latent space
        "contenders": (*process.OURS, *PEERS),  # who takes part, if installed
        "most_chains_of_all": 10_000,  # with more, a few of the contenders
        "seconds": 0.3,  # of one run, about; of samplers, that of a plain scan
        "num_rounds": 7,  # timed runs of a contender in a cell
        "num_image_rounds": 5,  # the same for convolutions and the latent space
        "width": 32,  # of the short-run energies
        "most_chains": 2**30 if preset == "largest" else 0,  # end of that search
    }
    if preset == "small":
        config |= {
            "workloads": ("gaussian", "conv 28x28x1"),
            "samplers": ("langevin",),
            "num_chains": (100,),
            "num_image_chains": (4,),
            "contenders": (*process.OURS, PLAIN, "blackjax"),
            "seconds": 0.01,
            "num_rounds": 2,
            "num_image_rounds": 2,
            "width": 4,
        }
    return ConfigDict(config).lock()


def training_config(preset: str) -> ConfigDict:
    """Returns the config of the table of training steps."""
    config = {
        "seed": 0,
        "preset": preset,
        "workloads": tuple(updates.WORKLOADS),
        "contenders": (*updates.OURS, *updates.PEERS),
        "seconds": 1.0,
        "num_rounds": 5,
        "num_cores": 0,  # that the processes share; 0 for all that this one may use
        "commands": tuple(COMMANDS),  # whose time to the first step is taken
    }
    if preset == "training_small":
        config |= {
            "workloads": ("short_run digits", "tutorial noise_contrastive"),
            "commands": (),
            "seconds": 0.05,
            "num_rounds": 2,
        }
    return ConfigDict(config).lock()


def measure_all(config: ConfigDict, workdir: str | pathlib.Path) -> list[dict]:
    """Measures everything; returns the rows.

    Raises:
      ValueError: If an option cannot be measured, by its name, before anything starts.
    """
    workdir = pathlib.Path(workdir)
    check_name("preset", config.preset, PRESETS)
    # Processes that share an accelerator must not take most of its memory each.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if config.preset.startswith("training"):
        return measure_training(config, workdir)
    check_config(config)
    if config.preset == "scaling":
        return scaling(config, workdir)
    if config.preset == "largest":
        return largest(config, workdir)
    chosen = cells(config)
    if PLAIN not in config.contenders:
        raise ValueError(
            f"contenders must have {PLAIN!r}, the unit, got {list(config.contenders)}"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    rows = []
    with Contest(config.contenders) as contest:
        for cell in chosen:
            names = list(config.contenders)
            if cell.num_chains > config.most_chains_of_all:
                few = (*process.OURS, PLAIN, "blackjax")
                names = [name for name in names if name in few]
            begin = time.perf_counter()
            before = load()
            is_long = is_image(cell.workload)
            rounds = config.num_image_rounds if is_long else config.num_rounds
            for row in contest.rows(cell, names, rounds):
                rows.append(row | {"load": before} | where(config))
            print(
                f"{cell_name(cell._asdict())} chains:",
                ", ".join(
                    f"{name} {spread(row)}"
                    for name, row in list(by_cell(rows).values())[-1].items()
                    if "seconds_per_move" in row
                ),
                f"({time.perf_counter() - begin:.0f} s)",
                flush=True,
            )
            write_lines(workdir / "throughput.jsonl", rows)
    parts = {
        "Time of a move over the plain scan's": table(rows),
        "Ours over the floors": floors_table(rows),
        "Compilation and memory": compile_table(rows),
    }
    reasons = {
        f"- {row['contender']}, {row['sampler']}: {row['skipped']}"
        for row in rows
        if "skipped" in row
    }
    settings = {
        f"- {row['contender']}: {row['settings']}" for row in rows if "settings" in row
    }
    text = "".join(f"## {title}\n\n{part}\n" for title, part in parts.items())
    text += "## Settings\n\n" + "\n".join(sorted(settings)) + "\n"
    if reasons:
        text += "\n## Did not take part\n\n" + "\n".join(sorted(reasons)) + "\n"
    write_atomically(workdir / "table.md", text)
    draw_ratios(rows, workdir)
    print(text)
    return rows


def draw_ratios(rows: list[dict], workdir: pathlib.Path) -> None:
    """Draws times of a move over the plain scan's, a chart for each energy."""
    ratios = {
        cell: {
            name: (row["ratio"], row["ratio_low"], row["ratio_high"])
            for name, row in contenders.items()
            if "ratio" in row and name != PLAIN
        }
        for cell, contenders in by_cell(rows).items()
        if any("ratio" in row for row in contenders.values())
    }
    for workload in dict.fromkeys(row["workload"] for row in rows):
        page = {k: v for k, v in ratios.items() if v and k.startswith(f"{workload}, ")}
        if page:
            plots.ratios(
                workdir / f"ratios_{workload.replace(' ', '_')}.png",
                page,
                x_label="time of a move over the plain scan's: less is faster",
            )


def start(command: Command, workdir: str) -> None:
    """Measures what a command line asks for."""
    measure_all(command.config(), workdir)


if __name__ == "__main__":
    command_line(start, sys.modules[__name__], __file__)
