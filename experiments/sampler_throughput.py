"""How fast the samplers move, and how near that is to the bare gradient.

    python -m experiments.sampler_throughput --workdir=runs/bench
    python -m experiments.sampler_throughput --workdir=runs/bench \
        --config=experiments/sampler_throughput.py:small

Every row is one sampler on one energy: seconds to compile, moves and gradients a second
over all chains, and the overhead, which is the time of a move over the time of one
jitted, batched value-and-gradient of the same energy. Repeats of the two alternate, and
medians are taken. One JSON line a row in `throughput.jsonl`, and a table.
"""

import functools
import json
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import energies, networks, samplers
from experiments import _run

SAMPLERS = {
    # Name -> constructor, gradients a move.
    "langevin": (samplers.langevin, 1),
    "mala": (samplers.mala, 1),
}


def get_config(preset: str = "default") -> ConfigDict:
    if preset not in ("default", "small"):
        raise ValueError(f"preset must be 'default' or 'small', got {preset!r}")
    is_small = preset == "small"
    return ConfigDict(
        {
            "seed": 0,
            "num_chains": 64 if is_small else 1_000,
            "num_image_chains": 8 if is_small else 64,  # of convolutional energies
            "num_steps": 20 if is_small else 200,  # moves a repeat
            "num_image_steps": 2 if is_small else 20,
            "num_repeats": 2 if is_small else 7,
            "width": 32,  # of the short-run energies
        }
    ).lock()


def gaussian():
    """100 dimensions, condition number 100."""
    precision = jnp.geomspace(1.0, 100.0, 100)
    return functools.partial(
        energies.gaussian, {"mean": jnp.zeros(100), "precision": precision}
    )


def mixture():
    """25 modes on a grid in the plane."""
    grid = jnp.arange(-2.0, 3.0)
    means = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(25, 2)
    params = {"means": means, "precisions": 25.0, "log_weights": jnp.zeros(25)}
    return functools.partial(energies.gaussian_mixture, params)


def network(make, key):
    found = make()
    return functools.partial(found.apply, found.init(key)[0])


def workloads(config, key):
    """Name -> (energy_fn, event shape, step size, is convolutional)."""
    mlp = functools.partial(networks.mlp_energy, (2,), widths=(128, 128))

    def image(shape):
        make = functools.partial(networks.short_run_energy, shape, width=config.width)
        return network(make, key), shape, 1e-3, True

    return {
        "gaussian 100-d": (gaussian(), (100,), 1e-3, False),
        "mixture 25 modes": (mixture(), (2,), 1e-2, False),
        "mlp 2-128-128-1": (network(mlp, key), (2,), 1e-2, False),
        "conv 28x28x1": image((28, 28, 1)),
        "conv 32x32x3": image((32, 32, 3)),
    }


def seconds_of(function, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def measure(config, energy_fn, shape, step_size, is_image, key):
    """One row for every sampler on one energy."""
    num_chains = config.num_image_chains if is_image else config.num_chains
    num_steps = config.num_image_steps if is_image else config.num_steps
    x = jax.random.normal(key, (num_chains, *shape))
    gradient = jax.jit(jax.vmap(jax.value_and_grad(energy_fn)))
    jax.block_until_ready(gradient(x))
    for name, (make, num_gradients) in SAMPLERS.items():
        run = functools.partial(
            samplers.sample_chains,
            make(step_size=step_size),
            energy_fn,
            num_steps=num_steps,
            collect=None,
        )
        compiled = jax.jit(run)
        compile_start = time.perf_counter()
        compiled = compiled.lower(key, x).compile()
        compile_seconds = time.perf_counter() - compile_start
        jax.block_until_ready(compiled(key, x))  # the first run pays for allocation
        runs, bare = [], []
        for repeat in range(config.num_repeats):
            repeat_key = jax.random.fold_in(key, repeat)
            runs.append(seconds_of(compiled, repeat_key, x) / num_steps)
            bare.append(min(seconds_of(gradient, x) for _ in range(5)))
        move = statistics.median(runs)
        _, info = compiled(key, x)
        row = {
            "sampler": name,
            "num_chains": num_chains,
            "num_steps": num_steps,
            "compile_seconds": compile_seconds,
            "moves_per_second": num_chains / move,
            "gradients_per_second": num_gradients * num_chains / move,
            "overhead": move / statistics.median(bare),
            "overhead_spread": (max(runs) - min(runs)) / move,
        }
        if hasattr(info, "acceptance_rate"):
            row["acceptance_rate"] = float(info.acceptance_rate.mean())
        yield row


def run(config: ConfigDict, workdir: str | pathlib.Path) -> list[dict]:
    """Measures everything; returns the rows."""
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    where = {
        "device": device.device_kind,
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "seed": config.seed,
    }
    rows = []
    key = jax.random.key(config.seed)
    for energy, arguments in workloads(config, key).items():
        for row in measure(config, *arguments, key):
            rows.append({"energy": energy, **row, **where})
            print(
                f"{energy:18} {row['sampler']:9} {row['num_chains']:6} chains"
                f"  {row['moves_per_second']:12.4g} moves/s"
                f"  overhead {row['overhead']:6.2f}"
                f"  compiled in {row['compile_seconds']:.2f} s",
                flush=True,
            )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    _run.write_atomically(workdir / "throughput.jsonl", text)
    assert all(np.isfinite(row["moves_per_second"]) for row in rows)
    return rows


if __name__ == "__main__":
    _run.command_line(run, __file__)
