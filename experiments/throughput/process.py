"""Contenders of the sampler benchmark, each in a process of its own.

A process is started once with the environment that its contender wants (a device for
every core, a number of threads), builds one cell of the benchmark after another, and
waits while the others run. Requests and replies are JSON, a line each, on its standard
input and output; all that libraries print goes to standard error.
"""

import argparse
import functools
import gc
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.run.errors import CommandError

ROOT = pathlib.Path(__file__).parents[2]
PROC_STATUS, PROC_CLEAR = "/proc/self/status", "/proc/self/clear_refs"


class Cell(NamedTuple):
    """Description of one run of a contender."""

    workload: str
    sampler: str
    step_size: float
    num_leapfrog: int
    num_chains: int
    num_steps: int
    width: int  # of convolutional energies


# --- workloads ------------------------------------------------------------------------


def workload(name: str, width: int):
    """Returns the energy of that name, with the same parameters in every process."""
    import jax

    from ebmjax import energies, networks
    from experiments.throughput.workload import Workload

    key = jax.random.key(0, impl="threefry2x32")

    def of_network(network):
        params, _ = network.init(key)
        return Workload(name, jax.tree.map(np.asarray, params), network.apply)

    if name == "gaussian":
        params = {
            "mean": np.zeros(100, np.float32),
            "precision": np.geomspace(1.0, 100.0, 100).astype(np.float32),
        }
        return Workload(name, params, energies.gaussian)
    if name == "mixture":
        grid = np.arange(-2.0, 3.0, dtype=np.float32)
        means = np.stack(np.meshgrid(grid, grid), -1).reshape(25, 2)
        params = {
            "means": means,
            "precisions": np.float32(25.0),
            "log_weights": np.full(25, -np.log(25.0), np.float32),
        }
        return Workload(name, params, energies.gaussian_mixture)
    if name == "mlp":
        return of_network(networks.mlp_energy((2,), widths=(128, 128)))
    if name.startswith("conv"):
        return of_network(networks.short_run_energy(event_shape(name), width=width))

    assert name == "latent", name
    shape = (28, 28, 1)  # of Kumar et al. (2019)
    generator = networks.strided_generator(shape, latent_dim=event_shape(name)[0])
    energy = networks.strided_energy(shape)
    params = dict(zip(("generator", "generator_state"), generator.init(key)))
    params["energy"] = energy.init(key)[0]

    def latent(params, z):
        def generator_fn(z):
            state = params["generator_state"]
            return generator.apply_stateful(params["generator"], state, z)[0]

        energy_fn = functools.partial(energy.apply, params["energy"])
        return energies.latent_energy(energy_fn, generator_fn)(z)

    return Workload(name, jax.tree.map(np.asarray, params), latent)


def event_shape(name: str) -> tuple[int, ...]:
    if name.startswith("conv"):
        return tuple(int(size) for size in name.split()[1].split("x"))
    return {"gaussian": (100,), "mixture": (2,), "mlp": (2,), "latent": (128,)}[name]


def starts(cell: Cell) -> np.ndarray:
    """Returns the start of the chains, `[chains, *event]`."""
    generator = np.random.default_rng(1)
    shape = (cell.num_chains, *event_shape(cell.workload))
    return generator.standard_normal(shape, np.float32)


# --- ours -----------------------------------------------------------------------------


def keep_nothing(state, info):
    return ()


def ours(impl, workload, kernel, x0, num_steps):
    """`sample_chains` with keys of one generator, keeping the last state only."""
    import jax
    import jax.numpy as jnp

    from ebmjax import samplers
    from experiments.throughput.samplers import make_sampler
    from experiments.throughput.workload import Contender

    params = jax.tree.map(jnp.asarray, workload.params)
    energy_fn = jax.tree_util.Partial(workload.energy, params)
    sampler, x0 = make_sampler(kernel), jnp.asarray(x0)

    def run(seed: int) -> np.ndarray:
        key = jax.random.key(seed, impl=impl)
        state, _ = samplers.sample_chains(
            sampler, energy_fn, key, x0, num_steps, collect=keep_nothing
        )
        return np.asarray(state.position)

    kind = "threefry" if isinstance(impl, str) else "counter_prng"
    devices = f"{jax.local_device_count()} {jax.default_backend()} devices"
    return Contender(run, f"{kind} keys, {devices}")


def counter(*arguments):
    from ebmjax import counter_prng

    return ours(counter_prng.IMPL, *arguments)


threefry = functools.partial(ours, "threefry2x32")
DEFAULT = "ebmjax default"
OURS = {"ebmjax": counter, "ebmjax threefry": threefry, DEFAULT: threefry}
"""Our contenders. The first two have a device for each core, and the last has nothing
set: one device, whose threads are as many as cores."""


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Returns all of the variables of a process, with those that its contender
    wants."""
    from experiments.throughput.workload import DEVICES

    # Not what this process was given for itself: chains need no collectives, threads
    # beyond the cores cost much.
    outer = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    flags = outer.pop("XLA_FLAGS", "").split()
    flags = [flag for flag in flags if DEVICES not in flag]
    flags.append(own.get("XLA_FLAGS", ""))
    return outer | dict(own) | {"XLA_FLAGS": " ".join(flags).strip()}


def wanted(name: str) -> Mapping[str, str]:
    """Returns the variables that a contender of the samplers wants."""
    from experiments.throughput import peers
    from experiments.throughput.workload import DEVICE_A_CORE

    if name == DEFAULT:
        return {}
    return DEVICE_A_CORE if name in OURS else peers.load(name).ENVIRONMENT


# --- inside of a process --------------------------------------------------------------


def reset_peak() -> int:
    """Forgets the peak of memory; what is used now, in bytes (0 where unknown)."""
    gc.collect()
    try:
        with open(PROC_CLEAR, "w") as file:
            file.write("5")
    except OSError:
        return 0
    return _status("VmRSS")


def peak() -> int:
    """Returns the peak of memory since it was forgotten, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    try:
        with open(PROC_STATUS) as file:
            for line in file:
                if line.startswith(field + ":"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def device_peak() -> int:
    """Returns the peak of an accelerator's memory in bytes; 0 for a CPU."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0)


def make_handle(name: str) -> Callable[[dict], dict]:
    """Returns `handle(request) -> reply` of a contender of the samplers."""
    from experiments.throughput import peers
    from experiments.throughput.floors import measure
    from experiments.throughput.verify import verify
    from experiments.throughput.workload import Kernel

    make = OURS[name] if name in OURS else peers.load(name).make
    contender = None

    def handle(request):
        nonlocal contender
        if request["do"] == "verify":
            verify(name, request["sampler"], make)
            return {}
        if request["do"] == "build":
            contender = None
            cell = Cell(*request["cell"])
            kernel = Kernel(cell.sampler, cell.step_size, cell.num_leapfrog)
            begin = time.perf_counter()
            contender = make(
                workload(cell.workload, cell.width),
                kernel,
                starts(cell),
                cell.num_steps,
            )
            before = reset_peak()  # after peers have tried their settings
            built = time.perf_counter()
            draws = contender.run(0)
            return {
                "first_seconds": time.perf_counter() - built,
                "build_seconds": built - begin,
                "settings": contender.settings,
                "peak_bytes": peak() - before,
                "device_peak_bytes": device_peak(),
                "is_finite": bool(np.isfinite(draws).all()),
            }
        if request["do"] == "measure":
            impl = "threefry2x32"
            if name == "ebmjax":
                from ebmjax import counter_prng

                impl = counter_prng.IMPL
            return measure(impl, Cell(*request["cell"]))
        begin = time.perf_counter()
        contender.run(request["seed"])
        return {"seconds": time.perf_counter() - begin}

    return handle


def serve(name: str, make_handle: Callable[[str], Callable]) -> None:
    """Answers requests until its input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed from here on is no reply
    handle = make_handle(name)
    for line in sys.stdin:
        try:
            reply = handle(json.loads(line))
        except (ImportError, NotImplementedError) as reason:
            reply = {"skipped": f"{type(reason).__name__}: {reason}"}
        except Exception as error:  # told to the benchmark, which raises
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


# --- from outside ---------------------------------------------------------------------


class Process:
    """A contender's process, by the module that serves it."""

    def __init__(
        self,
        name: str,
        extra: Mapping[str, str] | None = None,
        *,
        module: str = "process",
    ):
        self.name = name
        own = wanted(name) if extra is None else extra
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"experiments.throughput.{module}", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(own),
        )

    def ask(self, do: str, **request) -> dict[str, Any]:
        """Returns the reply to a request, perhaps `{"skipped": reason}`.

        Raises:
          CommandError: If the contender failed, or its process ended.
        """
        line = json.dumps({"do": do, **request}) + "\n"
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise CommandError(
                f"{self.name}: the process ended, with exit status"
                f" {self.process.wait()}, when asked to {do}"
            )
        reply = json.loads(answer)
        if "error" in reply:
            raise CommandError(f"{self.name}: {do} failed: {reply['error']}")
        return reply

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    from experiments.throughput import peers

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "name", choices=(*OURS, *peers.having("make")), help="of the contender"
    )
    serve(parser.parse_args().name, make_handle)


if __name__ == "__main__":
    main()
