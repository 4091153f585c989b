"""How fast the samplers move, beside their peers, and where the time goes.

    python -m experiments.sampler_throughput --workdir=runs/bench
    python -m experiments.sampler_throughput --workdir=runs/bench \
        --config=experiments/sampler_throughput.py:small
    python -m experiments.sampler_throughput --workdir=runs/scaling \
        --config=experiments/sampler_throughput.py:scaling

A cell is a sampler on an energy with some number of chains. In every cell each
contender (ours with the fast generator and with threefry, a plain `lax.scan`, and the
peers that are installed) has a process of its own with its best settings; the processes
take turns, round after round, so that a busy moment of the machine falls on all alike.
Figures are medians over the rounds; a ratio is taken within each round, to the plain
scan, and is given with the lowest and the highest. Before anything is timed, every
contender's draws must have the right mean and variance.

Ours make every core a device: `sample_chains` divides the chains. Peers in JAX run on
one device with all threads, or share their chains among a device a core, whichever is
faster; the plain scan runs on one, as programs do of which nobody thought more.

Of ours also: the time of the bare value and gradient of all chains and of their random
numbers, on the same devices, and the overhead, a move's time over those; of networks,
operations a second over those of a large matrix product here; acceptance; effective
sample size, where the energy has a law to sample (untrained networks have none). Of few
chains the bare calls are mostly dispatch, and no floor. Memory is the growth of the
process's peak in a first run, compilation included.

`throughput.jsonl` has one line a contender and cell, `table.md` the ratios, and
`ratios.png` the bars. The preset `scaling` writes `scaling.jsonl` and `scaling.png`:
time over chains and moves, memory over moves, one device against one for every core.
The preset `largest` doubles the chains until the device's memory is full, and writes
`largest.jsonl`; on a CPU, whose memory is the machine's, it wants
`--config.most_chains`.

Peers besides BlackJAX and NumPyro (`requirements-dev.txt`) are installed by hand:
`pip install torch torchebm tfp-nightly`.
"""

import functools
import json
import os
import pathlib
import platform
import statistics
import time

from ml_collections import ConfigDict

from experiments.judge import plots
from experiments.run.cli import command_line
from experiments.run.workdir import format_table, write_atomically
from experiments.throughput import contest, peers
from experiments.throughput.contest import Cell

PLAIN = "plain scan"

STEP_SIZES = {
    # Workload -> Langevin's, MALA's, HMC's: acceptance of .5 to .9 where there is one.
    "gaussian": (1e-3, 6e-3, 0.1),
    "mixture": (5e-3, 2e-2, 0.2),
    "mlp": (1e-2, 1e-2, 0.1),
    "conv 28x28x1": (1e-3, 1e-3, 0.02),
    "conv 32x32x3": (1e-3, 1e-3, 0.02),
    "latent": (1e-2, 1e-2, 0.1),
}
SECONDS_PER_CHAIN_MOVE = {
    # Of a plain scan's Langevin, roughly, to choose how many moves a run makes.
    "gaussian": 4.5e-7,
    "mixture": 3e-7,
    "mlp": 3.5e-7,
    "conv 28x28x1": 1e-3,
    "conv 32x32x3": 1.7e-3,
    "latent": 1.2e-3,
}
NUM_LEAPFROG = 10
# A run begins with a gradient that is no move's: of so many, it is little.
FEWEST_MOVES, FEWEST_MOVES_OF_IMAGES = 4, 40
PRESETS = ("default", "small", "scaling", "largest")


def get_config(preset: str = "default") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"preset must be of {list(PRESETS)}, got {preset!r}")
    config = {
        "seed": 0,
        "preset": preset,
        "workloads": tuple(STEP_SIZES),
        "samplers": ("langevin", "mala", "hmc"),
        "num_chains": (64, 1_000, 10_000, 100_000),  # of energies of vectors
        "num_image_chains": (64,),  # of convolutions and the latent space
        "contenders": (*contest.OURS, *peers.PEERS),
        "most_chains_of_all": 10_000,  # with more, only ours, the plain scan and one
        "seconds": 0.3,  # that a plain scan takes for one run, about
        "num_rounds": 7,
        "num_image_rounds": 5,
        "width": 32,  # of the short-run energies
        "most_chains": 2**30 if preset == "largest" else 0,
    }
    if preset == "small":
        config |= {
            "workloads": ("gaussian", "conv 28x28x1"),
            "samplers": ("langevin",),
            "num_chains": (100,),
            "num_image_chains": (4,),
            "contenders": (*contest.OURS, PLAIN, "blackjax"),
            "seconds": 0.01,
            "num_rounds": 2,
            "num_image_rounds": 2,
            "width": 4,
        }
    return ConfigDict(config).lock()


def is_image(workload: str) -> bool:
    return workload.startswith("conv") or workload == "latent"


def cells(config: ConfigDict) -> list[Cell]:
    found = []
    for workload in config.workloads:
        if workload not in STEP_SIZES:
            raise ValueError(
                f"workloads must be of {list(STEP_SIZES)}, got {workload!r}"
            )
        chains = config.num_image_chains if is_image(workload) else config.num_chains
        for num_chains in chains:
            for sampler, step_size in zip(
                ("langevin", "mala", "hmc"), STEP_SIZES[workload]
            ):
                if sampler not in config.samplers:
                    continue
                # Gradients of images take long: Langevin dynamics for all, and in the
                # latent space, where chains are to be exact, MALA too.
                few = {"latent": ("langevin", "mala")}.get(workload, ("langevin",))
                if is_image(workload) and sampler not in few:
                    continue
                found.append(
                    make_cell(config, workload, sampler, step_size, num_chains)
                )
    return found


def make_cell(config, workload, sampler, step_size, num_chains):
    num_leapfrog = NUM_LEAPFROG if sampler == "hmc" else 0
    gradients = max(num_leapfrog, 1)
    if workload == "gaussian" and sampler == "hmc":
        gradients = 3  # of which the noise is the most
    a_move = SECONDS_PER_CHAIN_MOVE[workload] * num_chains * gradients
    fewest = FEWEST_MOVES_OF_IMAGES if is_image(workload) else FEWEST_MOVES
    num_steps = max(fewest, round(config.seconds / a_move))
    return Cell(
        workload, sampler, step_size, num_leapfrog, num_chains, num_steps, config.width
    )


def gradients_per_move(cell: Cell) -> int:
    return max(cell.num_leapfrog, 1)


class Contest:
    """The processes, started once, and what was checked of them."""

    def __init__(self, names):
        known = (*contest.OURS, *peers.PEERS)
        for name in names:
            if name not in known:
                raise ValueError(f"contenders must be of {list(known)}, got {name!r}")
        self.processes = {name: contest.Process(name) for name in names}
        self.verified = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.close()

    def verify(self, name: str, sampler: str) -> dict:
        """Once a contender and sampler: `{}`, or why it does not take part."""
        if (name, sampler) not in self.verified:
            reply = self.processes[name].ask("verify", sampler=sampler)
            self.verified[name, sampler] = reply
        return self.verified[name, sampler]

    def rows(self, cell: Cell, names, num_rounds: int, measured: bool = True):
        """One row a contender, those that do not take part with the reason."""
        rows, running = {}, []
        for name in names:
            built = self.verify(name, cell.sampler)
            if "skipped" not in built:
                built = self.processes[name].ask("build", cell=cell)
            rows[name] = {"contender": name} | cell._asdict() | built
            if "skipped" not in built:
                if not built["is_finite"]:
                    raise RuntimeError(f"{name}: draws of {cell} are not finite")
                running.append(name)
        seconds = {name: [] for name in running}
        for index in range(num_rounds):
            # Another order every round: who runs after whom falls on all alike.
            turn = index % max(len(running), 1)
            for name in running[turn:] + running[:turn]:
                reply = self.processes[name].ask("run", seed=index + 1)
                seconds[name].append(reply["seconds"])
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
            if measured and name in contest.OURS:
                row |= self.floors(cell, name, move)
        return list(rows.values())

    def floors(self, cell: Cell, name: str, move: float) -> dict:
        """How far a move is from what it cannot do without."""
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
        "cores": peers.num_cores(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "seed": config.seed,
    }


def load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def cell_name(row: dict) -> str:
    return f"{row['workload']}, {row['sampler']}, {row['num_chains']:,}"


def by_cell(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Cell -> contender -> row."""
    found = {}
    for row in rows:
        found.setdefault(cell_name(row), {})[row["contender"]] = row
    return found


def spread(row: dict) -> str:
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"


def table(rows: list[dict]) -> str:
    """Ratios to the plain scan, medians with the lowest and the highest."""
    names = dict.fromkeys(row["contender"] for row in rows)
    body = []
    for name, contenders in by_cell(rows).items():
        plain = contenders[PLAIN]["seconds_per_move"]
        line = {"cell": name, f"{PLAIN}, µs a move": f"{1e6 * plain:,.0f}"}
        for contender in names:
            row = contenders.get(contender, {})
            if contender != PLAIN:
                line[contender] = spread(row) if "ratio" in row else "none"
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
    """Seconds that a first run takes more than a later one, and MiB."""
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


def run(config: ConfigDict, workdir: str | pathlib.Path) -> list[dict]:
    """Measures everything; returns the rows."""
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    # Processes that share an accelerator must not take most of its memory each.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if config.preset == "scaling":
        return scaling(config, workdir)
    if config.preset == "largest":
        return largest(config, workdir)
    chosen = cells(config)
    if PLAIN not in config.contenders:
        raise ValueError(
            f"contenders must have {PLAIN!r}, the unit, got {list(config.contenders)}"
        )
    rows = []
    with Contest(config.contenders) as contest:
        for cell in chosen:
            names = list(config.contenders)
            if cell.num_chains > config.most_chains_of_all:
                few = (*contest.OURS, PLAIN, "blackjax")
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
                    f"{name} {row['ratio']:.2f}"
                    for name, row in list(by_cell(rows).values())[-1].items()
                    if "ratio" in row
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
    plots.bars(
        workdir / "ratios.png",
        {
            cell: {
                name: (row["ratio"], row["ratio_low"], row["ratio_high"])
                for name, row in contenders.items()
                if "ratio" in row and name != PLAIN
            }
            for cell, contenders in by_cell(rows).items()
        },
        x_label="time of a move over the plain scan's: less is faster",
    )
    print(text)
    return rows


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def scaling(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """Time over chains and over moves, memory over moves, and devices, of ours."""
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
            cell = mala("gaussian", step_size=6e-3, num_chains=1_000)
            measure("moves", contest, name, cell._replace(num_steps=num_steps))
    with Contest([name]) as contest:
        for num_chains in (64, 200, 1_000, 5_000, 20_000, 100_000):
            cell = mala("gaussian", step_size=6e-3, num_chains=num_chains)
            measure("chains", contest, name, cell._replace(num_steps=30))
    one = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    for what, extra in (("one device", one), ("a device a core", None)):
        with Contest([]) as contest:
            contest.processes[name] = contest.Process(name, extra)
            for workload in config.workloads:
                num_chains = 64 if is_image(workload) else 10_000
                _, step_size, _ = STEP_SIZES[workload]
                cell = mala(workload, step_size=step_size, num_chains=num_chains)
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
        x_label="",
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
    """For each energy, the most chains, of powers of two, whose Langevin moves fit."""
    import jax

    if jax.default_backend() == "cpu" and config.most_chains >= 2**30:
        raise ValueError(
            "most_chains must be given on a CPU, whose memory is the machine's:"
            " --config.most_chains=100_000"
        )
    rows = []
    for workload in config.workloads:
        # A process for each: its peak of memory is since it began.
        with Contest(["ebmjax"]) as contest:
            num_chains, found = 64, None
            while num_chains <= config.most_chains:
                step_size = STEP_SIZES[workload][0]
                cell = make_cell(config, workload, "langevin", step_size, num_chains)
                try:
                    (found,) = contest.rows(cell, ["ebmjax"], 1, measured=False)
                except RuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    break
                num_chains *= 2
            if found is None:
                raise RuntimeError(f"{workload}: not even {num_chains} chains fit")
            is_full = num_chains <= config.most_chains
            rows.append(found | {"is_full": is_full} | where(config))
            print(f"{cell_name(found)} chains fit", flush=True)
            write_lines(workdir / "largest.jsonl", rows)
    return rows


if __name__ == "__main__":
    command_line(run, __file__)
