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
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
PROC_STATUS, PROC_CLEAR = "/proc/self/status", "/proc/self/clear_refs"


class Cell(NamedTuple):
    """What one run of a contender does."""

    workload: str
    sampler: str
    step_size: float
    num_leapfrog: int
    num_chains: int
    num_steps: int
    width: int  # of convolutional energies


# --- workloads ------------------------------------------------------------------------


def workload(name: str, width: int):
    """The energy of that name, with the same parameters in every process."""
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
    """Where the chains begin, `[chains, *event]`."""
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


OURS = {"ebmjax": counter, "ebmjax threefry": functools.partial(ours, "threefry2x32")}


def environment(name: str) -> dict[str, str]:
    """All of the variables that a contender's process is started with."""
    from experiments.throughput import peers
    from experiments.throughput.workload import DEVICE_A_CORE, DEVICES

    # Not what this process was given for itself: chains need no collectives, threads
    # beyond the cores cost much.
    outer = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    flags = outer.pop("XLA_FLAGS", "").split()
    flags = [flag for flag in flags if DEVICES not in flag]
    is_ours = name in OURS
    own = dict(DEVICE_A_CORE if is_ours else peers.load(name).ENVIRONMENT)
    flags.append(own.pop("XLA_FLAGS", ""))
    return outer | {"XLA_FLAGS": " ".join(flags).strip()} | own


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
    """Of an accelerator's memory, since the process began, in bytes; 0 for a CPU."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0)


def median_seconds(function: Callable, repeats: int) -> float:
    """Of one call, after a first; many calls of a short one are timed together."""
    import jax

    jax.block_until_ready(function())
    times, count = [], 1
    while len(times) < repeats:
        start = time.perf_counter()
        for _ in range(count):
            result = function()
        jax.block_until_ready(result)
        seconds = time.perf_counter() - start
        if seconds < 0.02 and count < 1_000 and not times:
            count *= 2
            continue
        times.append(seconds / count)
    return float(np.median(times))


def gradient_flops(cell: Cell) -> float:
    """Operations of one example's energy and gradient, as a compiler counts them.

    Of the energies written the obvious way: ours may do more to be faster. A network is
    counted forwards, with its gradient in `x` as as much again.
    """
    import jax

    from experiments.throughput.jax_programs import NAIVE_ENERGIES

    found = workload(cell.workload, cell.width)
    x = starts(cell._replace(num_chains=1))[0]
    energy = NAIVE_ENERGIES.get(found.kind, found.energy)
    lowered = jax.jit(energy).lower(found.params, x)
    return 2 * lowered.cost_analysis()["flops"]


@functools.lru_cache
def matmul_speed(mesh) -> float:
    """Floating-point operations a second of a large matrix product, on all devices."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    size = 1024 if jax.default_backend() == "cpu" else 8192
    rows = PartitionSpec(mesh.axis_names)
    key = jax.random.key(0, impl="threefry2x32")
    sharding = jax.NamedSharding(mesh, rows)
    left = jax.random.normal(key, (mesh.size * size, size))
    left, right = jax.device_put(left, sharding), left[:size]
    right = jax.device_put(right, jax.NamedSharding(mesh, PartitionSpec()))
    product = jax.jit(
        jax.shard_map(
            jnp.matmul, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
        )
    )
    return mesh.size * 2 * size**3 / median_seconds(lambda: product(left, right), 15)


def measure(impl, cell: Cell) -> dict[str, Any]:
    """What only ours are asked: floors, acceptance, effective sample size."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from ebmjax import metrics, samplers
    from ebmjax.samplers.normal import draw_normal
    from experiments.throughput.samplers import make_sampler
    from experiments.throughput.workload import Kernel

    found = workload(cell.workload, cell.width)
    params = jax.tree.map(jnp.asarray, found.params)
    energy_fn = jax.tree_util.Partial(found.energy, params)
    sampler = make_sampler(Kernel(cell.sampler, cell.step_size, cell.num_leapfrog))
    x0 = jnp.asarray(starts(cell))
    num_devices = jax.local_device_count()

    # The floors run on the same devices, each on its share of the chains.
    mesh = Mesh(jax.local_devices(), ("chains",))
    spread = NamedSharding(mesh, PartitionSpec("chains"))
    whole = max(len(x0) // num_devices, 1) * num_devices
    x = jax.device_put(jnp.resize(x0, (whole, *x0.shape[1:])), spread)
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    keys = jax.random.split(jax.random.key(0, impl=impl), whole)
    keys = jax.device_put(keys, spread)
    share = max(cell.num_chains / whole, 1.0)

    def per_device(function, *specs):
        return jax.jit(
            jax.shard_map(
                function,
                mesh=mesh,
                in_specs=specs,
                out_specs=PartitionSpec("chains"),
                check_vma=False,
            )
        )

    chains, everywhere = PartitionSpec("chains"), PartitionSpec()
    gradient = per_device(
        jax.vmap(jax.value_and_grad(found.energy, 1), (None, 0)), everywhere, chains
    )
    noise = per_device(
        jax.vmap(lambda key: draw_normal(key, x.shape[1:], x.dtype)), chains
    )
    result = {
        "gradient_flops": cell.num_chains * gradient_flops(cell),
        "matmul_flops_per_second": matmul_speed(mesh),
        "gradient_seconds": share * median_seconds(lambda: gradient(params, x), 7),
        "noise_seconds": share * median_seconds(lambda: noise(keys), 7),
    }
    key = jax.random.key(1, impl=impl)
    if cell.workload in ("gaussian", "mixture"):  # a network's density has no integral
        # A hundred chains from where a short run leads, all coordinates kept.
        sample = functools.partial(samplers.sample_chains, sampler, energy_fn, key)
        state, _ = sample(x0[:100], 500, collect=keep_nothing)
        _, (draws, rates) = sample(
            state.position,
            1_000,
            collect=lambda state, info: (
                state.position,
                getattr(info, "acceptance_rate", jnp.ones(())),
            ),
        )
        sizes = metrics.effective_sample_size(draws)
        result["ess_per_move"] = float(sizes.min()) / draws.shape[0] / draws.shape[1]
    else:
        _, info = samplers.sample_chains(
            sampler, energy_fn, key, x0[:64], 4, collect=None
        )
        rates = getattr(info, "acceptance_rate", jnp.ones(()))
    if cell.sampler != "langevin":
        result["acceptance_rate"] = float(rates.mean())
    return result


def serve(name: str) -> None:
    """Answers requests until its input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed from here on is no reply
    from experiments.throughput import peers
    from experiments.throughput.verify import verify
    from experiments.throughput.workload import Kernel

    make = OURS[name] if name in OURS else peers.load(name).make
    contender = None
    for line in sys.stdin:
        request = json.loads(line)
        reply = {}
        try:
            if request["do"] == "verify":
                verify(name, request["sampler"], make)
            elif request["do"] == "build":
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
                reply = {
                    "first_seconds": time.perf_counter() - built,
                    "build_seconds": built - begin,
                    "settings": contender.settings,
                    "peak_bytes": _status("VmHWM") - before,
                    "device_peak_bytes": device_peak(),
                    "is_finite": bool(np.isfinite(draws).all()),
                }
            elif request["do"] == "measure":
                impl = "threefry2x32"
                if name == "ebmjax":
                    from ebmjax import counter_prng

                    impl = counter_prng.IMPL
                reply = measure(impl, Cell(*request["cell"]))
            else:
                begin = time.perf_counter()
                contender.run(request["seed"])
                reply = {"seconds": time.perf_counter() - begin}
        except (ImportError, NotImplementedError) as reason:
            reply = {"skipped": f"{type(reason).__name__}: {reason}"}
        except Exception as error:  # told to the benchmark, which raises
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


# --- from outside ---------------------------------------------------------------------


class Process:
    """A contender's process."""

    def __init__(self, name: str, extra: dict[str, str] | None = None):
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.throughput.process", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(name) | (extra or {}),
        )

    def ask(self, do: str, **request) -> dict[str, Any]:
        """The reply, perhaps `{"skipped": reason}`.

        Raises:
          RuntimeError: If the contender failed, or its process ended.
        """
        line = json.dumps({"do": do, **request}) + "\n"
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(
                f"{self.name}: the process ended, with exit status"
                f" {self.process.wait()}, when asked to {do}"
            )
        reply = json.loads(answer)
        if "error" in reply:
            raise RuntimeError(f"{self.name}: {do} failed: {reply['error']}")
        return reply

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    from experiments.throughput import peers

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=(*OURS, *peers.PEERS), help="of the contender")
    serve(parser.parse_args().name)


if __name__ == "__main__":
    main()
