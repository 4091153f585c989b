"""Cells of the benchmark, and the processes that take turns on them."""

import os
import platform
import statistics
import sys

from ml_collections import ConfigDict

from experiments.run.config import check_name
from experiments.run.errors import CommandError
from experiments.run.limits import check_options
from experiments.throughput import peers, process
from experiments.throughput.process import Cell
from experiments.throughput.samplers import SAMPLERS, WORKLOADS, gradients_per_move
from experiments.throughput.workload import num_cores

PLAIN = "plain scan"

# Seconds of a Langevin move of one chain in a plain scan, roughly: they decide how many
# moves a run makes.
SECONDS_PER_CHAIN_MOVE = {
    "gaussian": 4.5e-7,
    "mixture": 3e-7,
    "mlp": 3.5e-7,
    "conv 28x28x1": 1e-3,
    "conv 32x32x3": 1.7e-3,
    "latent": 1.2e-3,
}

# A run begins with a gradient that is no move's: of so many, it is little.
FEWEST_MOVES, FEWEST_MOVES_OF_IMAGES = 4, 40


def is_image(workload: str) -> bool:
    return workload.startswith("conv") or workload == "latent"


def check_config(config: ConfigDict) -> None:
    """Raises ValueError for the first option that cannot be measured, by its name."""
    check_options(config.to_dict())
    for option, known in (
        ("workloads", WORKLOADS),
        ("samplers", SAMPLERS),
        ("contenders", (*process.OURS, *peers.having("make"))),
    ):
        for name in config[option]:
            check_name(option, name, known)


def cells(config: ConfigDict) -> list[Cell]:
    """Returns the cells that a config asks for.

    Raises:
      ValueError: If none of the samplers runs on the workloads.
    """
    found = []
    for workload in config.workloads:
        chains = config.num_image_chains if is_image(workload) else config.num_chains
        for num_chains in chains:
            for sampler in config.samplers:
                # Gradients of images take long: Langevin dynamics for all, and in the
                # latent space, where chains are to be exact, MALA too.
                is_exact = workload == "latent" and sampler == "mala"
                is_fit = SAMPLERS[sampler].is_for_images or is_exact
                if is_fit or not is_image(workload):
                    found.append(make_cell(config, workload, sampler, num_chains))
    if not found:
        raise ValueError(
            f"samplers must have one that runs on {tuple(config.workloads)}, got"
            f" {tuple(config.samplers)}"
        )
    return found


def make_cell(config: ConfigDict, workload: str, sampler: str, num_chains: int) -> Cell:
    """Returns a cell whose run takes about `config.seconds` for a plain scan."""
    ours = SAMPLERS[sampler]
    gradients = max(ours.num_leapfrog, 1)
    if workload == "gaussian" and gradients > 1:
        gradients = 3  # of which the noise is the most
    a_move = SECONDS_PER_CHAIN_MOVE[workload] * num_chains * gradients
    fewest = FEWEST_MOVES_OF_IMAGES if is_image(workload) else FEWEST_MOVES
    return Cell(
        workload,
        sampler,
        ours.step_sizes[WORKLOADS.index(workload)],
        ours.num_leapfrog,
        num_chains,
        max(fewest, round(config.seconds / a_move)),
        config.width,
    )


def announce(text: str) -> None:
    """Prints a line before a long silence, on the standard error.

    `workdir.say` would ask JAX which process this is, and so take the accelerator from
    the contenders, which have not yet begun.
    """
    print(text, file=sys.stderr, flush=True)


def alternate(names: list[str], num_rounds: int, run) -> dict[str, list[float]]:
    """Returns what `run(name, index) -> seconds` takes in every round, by name.

    Each round has another order: who runs after whom falls on all alike.
    """
    seconds = {name: [] for name in names}
    for index in range(num_rounds):
        turn = index % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(run(name, index))
    return seconds


class Contest:
    """The processes, started once, and what was checked of them."""

    def __init__(self, names):
        self.processes = {name: process.Process(name) for name in names}
        self.verified = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for contender in self.processes.values():
            contender.close()

    def verify(self, name: str, sampler: str) -> dict:
        """Returns `{}` for each contender and sampler, or why it does not take part."""
        if (name, sampler) not in self.verified:
            announce(f"checking the draws of {name}, {sampler}")
            reply = self.processes[name].ask("verify", sampler=sampler)
            self.verified[name, sampler] = reply
        return self.verified[name, sampler]

    def rows(self, cell: Cell, names, num_rounds: int, measured: bool = True):
        """Returns one row for each contender, with the reason if it does not take
        part."""
        rows, running = {}, []
        what = f"{cell.workload}, {cell.sampler}, {cell.num_chains:,} chains"
        verified = {name: self.verify(name, cell.sampler) for name in names}
        announce(f"{what}: compiling")
        for name, built in verified.items():
            if "skipped" not in built:
                built = self.processes[name].ask("build", cell=cell)
            rows[name] = {"contender": name} | cell._asdict() | built
            if "skipped" not in built:
                if not built["is_finite"]:
                    raise CommandError(f"{name}: draws of {cell} are not finite")
                running.append(name)
        announce(f"{what}: timing {num_rounds} rounds")

        def run(name, index):
            return self.processes[name].ask("run", seed=index + 1)["seconds"]

        seconds = alternate(running, num_rounds, run)
        if measured:
            announce(f"{what}: measuring gradients, random numbers and sample sizes")
        for name in running:
            row, median = rows[name], statistics.median(seconds[name])
            move = median / cell.num_steps
            row |= {
                "seconds_per_move": move,
                "compile_seconds": row.pop("first_seconds") - median,
                "moves_per_second": cell.num_chains / move,
                "gradients_per_second": gradients_per_move(cell)
                * cell.num_chains
                / move,
                "peak_mib": row.pop("peak_bytes") / 2**20,
            }
            if PLAIN in running:
                ratios = [a / b for a, b in zip(seconds[name], seconds[PLAIN])]
                row |= {
                    "ratio": statistics.median(ratios),
                    "ratio_low": min(ratios),
                    "ratio_high": max(ratios),
                }
            if measured and name in process.OURS:
                row |= self.floors(cell, name, move)
        return list(rows.values())

    def floors(self, cell: Cell, name: str, move: float) -> dict:
        """Measures how far a move is from what it cannot do without."""
        found = self.processes[name].ask("measure", cell=cell)
        gradient, noise = found["gradient_seconds"], found["noise_seconds"]
        found["overhead_over_gradient"] = move / gradient
        found["overhead"] = move / (gradients_per_move(cell) * gradient + noise)
        flops = gradients_per_move(cell) * found["gradient_flops"]
        found["share_of_matmul"] = flops / move / found["matmul_flops_per_second"]
        if "ess_per_move" in found:
            found["ess_per_second"] = found["ess_per_move"] * cell.num_chains / move
        return found


def where(config: ConfigDict) -> dict:
    import importlib.metadata

    import jax

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "cores": num_cores(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "seed": config.seed,
    }


def load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
