"""Floors of our samplers: work that a move cannot do without, and its distance."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.throughput.process import Cell, keep_nothing, starts, workload


def median_seconds(function: Callable, repeats: int) -> float:
    """Returns the median seconds of a call, after a first; short ones run together."""
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
    """Returns the operations per second of a large matrix product, on all devices."""
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
    """Measures ours alone: floors, acceptance, effective sample size."""
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
