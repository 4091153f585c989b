"""Programs of the JAX peers: the naive energies, and chains over devices."""

import contextlib
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.throughput.workload import Contender, layers, stride_and_pad


def naive_gaussian(params, x):
    return 0.5 * jnp.sum(params["precision"] * (x - params["mean"]) ** 2)


def naive_mixture(params, x):
    squares = jnp.sum((x[None] - params["means"]) ** 2, -1)
    precision = jnp.asarray(params["precisions"])
    log_normalizers = 0.5 * x.size * jnp.log(precision / (2 * math.pi))
    log_densities = log_normalizers - 0.5 * precision * squares
    return -jax.nn.logsumexp(params["log_weights"] + log_densities)


def naive_mlp(params, x):
    *hidden, (kernel, bias) = layers(params, "Dense")
    h = x.reshape(-1)
    for inner_kernel, inner_bias in hidden:
        h = jax.nn.leaky_relu(h @ inner_kernel + inner_bias, 0.2)
    return (h @ kernel + bias)[0]


def naive_conv(params, x):
    h = x[None]
    for kernel, bias in layers(params, "Conv"):
        stride, pad = stride_and_pad(kernel.shape[0])
        h = jax.lax.conv_general_dilated(
            h,
            kernel,
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        h = jax.nn.leaky_relu(h + bias[None, None, None], 0.2)
    ((kernel, bias),) = layers(params, "Dense")
    return (h.reshape(-1) @ kernel + bias)[0]


NAIVE_ENERGIES = {
    "gaussian": naive_gaussian,
    "mixture": naive_mixture,
    "mlp": naive_mlp,
    "conv": naive_conv,
}


FORCED: bool | None = None
"""True if JAX peers share their chains; None for whichever is faster."""


@contextlib.contextmanager
def forced(is_shared: bool):
    global FORCED
    before, FORCED = FORCED, is_shared
    try:
        yield
    finally:
        FORCED = before


def jax_contender(program: Callable, params, x0, settings: str) -> Contender:
    """Returns a contender of `program(params, key, x0) -> x`, jitted.

    Where the process has several devices, either one runs all chains or each runs its
    share with a key of its own, whichever is faster.
    """
    params, x0 = jax.tree.map(jnp.asarray, (params, x0))
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(devices, ("chains",))
    chains, whole = jax.sharding.PartitionSpec("chains"), jax.sharding.PartitionSpec()

    def share(params, key, x0):
        key = jax.random.fold_in(key, jax.lax.axis_index("chains"))
        return program(params, key, x0)

    def make(is_shared: bool) -> Callable[[int], np.ndarray]:
        def run_program(params, key, x0):  # a new function, so that it compiles anew
            function = program
            if is_shared:
                function = jax.shard_map(
                    share,
                    mesh=mesh,
                    in_specs=(whole, whole, chains),
                    out_specs=chains,
                    check_vma=False,
                )
            # Of some programs the whole last state comes back, so that the compiler
            # cannot leave out of the loop what only the caller would have read.
            return jax.tree.leaves(function(params, key, x0))[0]

        compiled = jax.jit(run_program)
        placed = params, x0
        if is_shared:
            missing = -len(x0) % len(devices)  # chains that fill up the last share
            full = jnp.concatenate([x0, x0[:1].repeat(missing, 0)])
            placed = jax.device_put(
                (params, full),
                tuple(jax.NamedSharding(mesh, spec) for spec in (whole, chains)),
            )

        def run(seed: int) -> np.ndarray:
            key = jax.random.key(seed, impl="threefry2x32")
            return np.asarray(compiled(placed[0], key, placed[1]))[: len(x0)]

        return run

    choices = [False]
    if len(devices) > 1:
        settings += ", on one device"
        choices = [False, True]
    if FORCED in choices:
        is_shared = FORCED
    else:
        is_shared = quickest({choice: make(choice) for choice in choices})
    if is_shared:
        settings = settings.replace("one device", f"{len(devices)} devices")
    return Contender(make(is_shared), settings)


def quickest(runs: dict):
    """Returns the name of the function of a seed that is done first."""
    if len(runs) == 1:
        return next(iter(runs))
    seconds = dict.fromkeys(runs, math.inf)
    for turn in range(4):
        for name, run in runs.items():
            start = time.perf_counter()
            run(turn)
            if turn > 0:  # the first one compiles
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return min(seconds, key=seconds.get)
