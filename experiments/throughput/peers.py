"""The peers of the sampler benchmark: the same moves, by other people's programs.

Every peer is a function `(workload, sampler, x0, num_steps) -> Contender`. It raises
`ImportError` where its package is not installed and `NotImplementedError`, with the
reason, where the package has no such sampler. A contender must have a process of its
own, started with the `ENVIRONMENTS` of its name: the packages share the cores badly.

The unit of the benchmark is `plain scan`, the program that a competent user of JAX
writes in twenty lines, of an energy written the obvious way. The JAX peers are handed
our energies, so that they differ from us in the sampler alone. The PyTorch peers need
energies of their own, here in the fastest form that was found, and are compared with
ours, values and gradients, before anything runs.

One step size means one thing: a Langevin move, and a proposal of MALA, is
`x - h grad E(x) + sqrt(2 h) n`; a leapfrog of HMC, of unit mass, takes time `h`.
"""

import contextlib
import functools
import importlib.metadata
import math
import os
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import energies


class Workload(NamedTuple):
    """What is sampled.

    Attributes:
      name: Its first word says which energy it is: "gaussian", "mixture", "mlp",
        "conv" or "latent".
      params: A pytree of numpy arrays.
      energy: Ours, `energy(params, x) -> []` for one example.
    """

    name: str
    params: dict
    energy: Callable

    @property
    def kind(self) -> str:
        return self.name.split()[0]


class Kernel(NamedTuple):
    """How it is sampled: "langevin", "mala" or "hmc"."""

    name: str
    step_size: float
    num_leapfrog: int = 0


class Contender(NamedTuple):
    """A program ready to run.

    Attributes:
      run: `run(seed) -> x`, the positions `[chains, *event]` after all moves, when
        they are there. The first call compiles.
      settings: In words, with the version.
    """

    run: Callable[[int], np.ndarray]
    settings: str


def num_cores() -> int:
    """Cores that this process may use; `os.cpu_count` also counts the others."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


TORCH_ENVIRONMENT = {
    # The most threads; fewer are tried.
    "OMP_NUM_THREADS": str(num_cores()),
    # Compile times are those of a first run. Unset it to look at speeds alone.
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}

DEVICES = "--xla_force_host_platform_device_count"
DEVICE_A_CORE = {"XLA_FLAGS": f"{DEVICES}={num_cores()}"}  # or one for all; see below

ENVIRONMENTS = {
    "plain scan": {},
    "blackjax": DEVICE_A_CORE,
    "numpyro": DEVICE_A_CORE,
    "tfp": DEVICE_A_CORE,
    "torchebm": TORCH_ENVIRONMENT,
    "torch eager": TORCH_ENVIRONMENT,
    "torch.compile": TORCH_ENVIRONMENT,
}


def version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def layers(params: dict, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels and biases of a Flax network's layers of one kind, in order."""
    count = sum(name.startswith(f"{kind}_") for name in params)
    found = [params[f"{kind}_{i}"] for i in range(count)]
    return [(layer["kernel"], layer["bias"]) for layer in found]


def stride_and_pad(kernel: np.ndarray) -> tuple[int, int]:
    """Of a layer, by the size of its window: 3x3 keep the image's size, others halve.

    3x3 and 4x4 are of `short_run_energy`, 5x5 of the generator and its energy.
    """
    return {3: (1, 1), 4: (2, 1), 5: (2, 2)}[kernel.shape[0]]


@functools.lru_cache
def batched(energy: Callable) -> Callable:
    """`(params, x) -> (energies, gradients)` of a batch, compiled once."""
    return jax.jit(jax.vmap(jax.value_and_grad(energy, 1), (None, 0)))


def check_energy(workload: Workload, x0, value_and_grad, tolerance: float):
    """Raises unless a rewritten energy and its gradient are the workload's.

    Compared at the start, near it and far from it, relative to the largest energy and
    to the norm of all gradients: an energy crosses 0 and a gradient vanishes. Where a
    rounding error puts a leaky ReLU on its other side, a gradient jumps, so gradients
    may be ten times as far apart as energies.
    """
    x0 = np.asarray(x0[:16], np.float32)
    noise = np.random.default_rng(0).standard_normal(x0.shape, np.float32)
    x = np.concatenate([x0, x0 + 0.1 * noise, noise])
    for what, found, expected, norm, allowed in zip(
        ("energy", "gradient"),
        value_and_grad(x),
        batched(workload.energy)(workload.params, x),
        (lambda e: np.abs(e).max(), np.linalg.norm),
        (tolerance, 10 * tolerance),
    ):
        found, expected = np.ravel(found), np.ravel(expected)
        error = norm(found - expected) / norm(expected)
        if not error <= allowed:
            raise AssertionError(
                f"{workload.name}: the {what} is off by {error:.1e}, more than"
                f" {allowed:.0e}"
            )


# --- JAX


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
        stride, pad = stride_and_pad(kernel)
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
"""Whether JAX peers share their chains; None for whichever is faster."""


@contextlib.contextmanager
def forced(is_shared: bool):
    global FORCED
    before, FORCED = FORCED, is_shared
    try:
        yield
    finally:
        FORCED = before


def jax_contender(program: Callable, params, x0, settings: str) -> Contender:
    """Of `program(params, key, x0) -> x`, jitted.

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
    """The name of the function of a seed that is done first."""
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


def plain_scan(workload: Workload, sampler: Kernel, x0, num_steps: int) -> Contender:
    energy = NAIVE_ENERGIES.get(workload.kind, workload.energy)
    h, num_leapfrog = sampler.step_size, sampler.num_leapfrog
    noise_std = math.sqrt(2 * h)

    def program(params, key, x0):
        value_and_grad = jax.vmap(jax.value_and_grad(functools.partial(energy, params)))

        def per_chain(array, x):
            return array.reshape(-1, *[1] * (x.ndim - 1))

        def total(array):
            return jnp.sum(array.reshape(len(array), -1), -1)

        def choose(key, log_ratio, proposal, state):
            accepted = jnp.log(jax.random.uniform(key, log_ratio.shape)) < log_ratio
            return jax.tree.map(
                lambda new, old: jnp.where(per_chain(accepted, new), new, old),
                proposal,
                state,
            )

        def langevin(key, state):
            x, _, g = state
            x = x - h * g + noise_std * jax.random.normal(key, x.shape)
            return x, *value_and_grad(x)

        def mala(key, state):
            noise_key, accept_key = jax.random.split(key)
            x, e, g = state
            noise = jax.random.normal(noise_key, x.shape)
            y = x - h * g + noise_std * noise
            new_e, new_g = value_and_grad(y)
            back = x - y + h * new_g
            log_ratio = e - new_e + 0.5 * total(noise**2) - total(back**2) / (4 * h)
            return choose(accept_key, log_ratio, (y, new_e, new_g), state)

        def hmc(key, state):
            momentum_key, accept_key = jax.random.split(key)
            start = jax.random.normal(momentum_key, state[0].shape)

            def leapfrog(_, carry):
                p, x, _, g = carry
                p = p - 0.5 * h * g
                x = x + h * p
                e, g = value_and_grad(x)
                return p - 0.5 * h * g, x, e, g

            p, *proposal = jax.lax.fori_loop(0, num_leapfrog, leapfrog, (start, *state))
            log_ratio = state[1] - proposal[1] + 0.5 * (total(start**2) - total(p**2))
            return choose(accept_key, log_ratio, tuple(proposal), state)

        move = {"langevin": langevin, "mala": mala, "hmc": hmc}[sampler.name]

        def body(state, step):
            return move(jax.random.fold_in(key, step), state), None

        state = (x0, *value_and_grad(x0))
        return jax.lax.scan(body, state, jnp.arange(num_steps))[0]

    if energy is not workload.energy:
        check = functools.partial(batched(energy), workload.params)
        check_energy(workload, x0, check, 1e-5)
    form = "our" if energy is workload.energy else "naive"
    settings = f"one jitted scan of batched moves, {form} energy, threefry"
    return jax_contender(program, workload.params, x0, settings)


def blackjax(workload: Workload, sampler: Kernel, x0, num_steps: int) -> Contender:
    import blackjax

    h = sampler.step_size

    def program(params, key, x0):
        def log_density(x):
            return -workload.energy(params, x)

        if sampler.name == "langevin":
            gradient = jax.grad(log_density)
            sgld = blackjax.sgld(lambda x, batch: gradient(x))
            init = sgld.init

            def step(key, state):
                return sgld.step(key, state, None, h)

        else:
            if sampler.name == "mala":
                algorithm = blackjax.mala(log_density, h)
            else:
                mass = jnp.ones(x0[0].size)
                algorithm = blackjax.hmc(log_density, h, mass, sampler.num_leapfrog)
            init = algorithm.init

            def step(key, state):
                return algorithm.step(key, state)[0]

        def body(states, key):
            keys = jax.random.split(key, len(x0))
            return jax.vmap(step)(keys, states), None

        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(body, jax.vmap(init)(x0), keys)[0]

    kernel = {"langevin": "sgld with the full gradient"}.get(sampler.name, sampler.name)
    settings = f"{version('blackjax')}: {kernel}, vmap over chains, scan keeping the"
    settings += " last state, our energy"
    return jax_contender(program, workload.params, x0, settings)


def numpyro(workload: Workload, sampler: Kernel, x0, num_steps: int) -> Contender:
    import numpyro.infer

    if sampler.name != "hmc":
        raise NotImplementedError(f"numpyro has no {sampler.name}")

    def program(params, key, x0):
        kernel = numpyro.infer.HMC(
            potential_fn=functools.partial(workload.energy, params),
            step_size=sampler.step_size,
            num_steps=sampler.num_leapfrog,
            trajectory_length=None,
            adapt_step_size=False,
            adapt_mass_matrix=False,
        )
        # Many keys make the kernel what `chain_method="vectorized"` makes it. `MCMC`
        # itself traces and compiles the energy anew in every run: over a second.
        states = kernel.init(jax.random.split(key, len(x0)), 0, x0, (), {})

        def body(states, _):
            return kernel.sample(states, (), {}), None

        return jax.lax.scan(body, states, None, length=num_steps)[0].z

    settings = f"{version('numpyro')}: HMC, no adaptation, vectorized chains, a scan of"
    settings += " the kernel keeping the last state, our energy"
    return jax_contender(program, workload.params, x0, settings)


def tfp(workload: Workload, sampler: Kernel, x0, num_steps: int) -> Contender:
    import tensorflow_probability.substrates.jax as tfp

    def program(params, key, x0):
        def log_density(x):
            return -jax.vmap(functools.partial(workload.energy, params))(x)

        # TFP moves by `step_size / 2` gradients and `sqrt(step_size)` noises.
        h = sampler.step_size
        kernel = {
            "langevin": lambda: tfp.mcmc.UncalibratedLangevin(
                log_density, 2 * h, compute_acceptance=False
            ),
            "mala": lambda: tfp.mcmc.MetropolisAdjustedLangevinAlgorithm(
                log_density, 2 * h
            ),
            "hmc": lambda: tfp.mcmc.HamiltonianMonteCarlo(
                log_density, h, sampler.num_leapfrog
            ),
        }[sampler.name]()
        with warnings.catch_warnings():  # that unadjusted Langevin is not calibrated
            warnings.simplefilter("ignore", UserWarning)
            return tfp.mcmc.sample_chain(
                num_results=1,
                num_burnin_steps=num_steps - 1,
                current_state=x0,
                kernel=kernel,
                trace_fn=None,
                seed=key,
            )[0]

    settings = f"{version('tfp-nightly')}: jitted sample_chain keeping the last state,"
    settings += " batched chains, our energy"
    return jax_contender(program, workload.params, x0, settings)


# --- PyTorch


class TorchEnergy(NamedTuple):
    """An energy in PyTorch, of a batch.

    Attributes:
      energy: `energy(x) -> [n]`.
      value_and_grad: `value_and_grad(x) -> (energies, gradients)`, written by hand;
        None for what autograd does.
      settings: In words.
    """

    energy: Callable
    value_and_grad: Callable | None
    settings: str


def torch_gaussian(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    mean, precision = (torch.tensor(params[name]) for name in ("mean", "precision"))

    def energy(x):
        return value_and_grad(x)[0]

    def value_and_grad(x):
        difference = x - mean
        gradient = precision * difference
        return 0.5 * (difference * gradient).sum(-1), gradient

    return TorchEnergy(energy, value_and_grad, "closed-form gradient")


def torch_mixture(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    means = torch.tensor(params["means"])
    num_modes, dim = means.shape
    precision = torch.tensor(params["precisions"]).broadcast_to(num_modes)[:, None]
    log_scales = torch.tensor(params["log_weights"])[:, None]
    log_scales = log_scales + 0.5 * dim * torch.log(precision / (2 * math.pi))
    scaled_means = precision * means
    offsets = log_scales - 0.5 * precision * means.square().sum(-1, keepdim=True)

    def energy(x):
        return value_and_grad(x)[0]

    # Modes lead and chains come last in both: twice as fast as the other way.
    def products(x):
        """By matrix products: for the eager mode the fewest kernels."""
        x = x.T
        logits = torch.addmm(offsets, scaled_means, x)
        logits.sub_(0.5 * precision * x.square().sum(0))
        weights = torch.softmax(logits, 0)
        gradient = (precision.T @ weights) * x - scaled_means.T @ weights
        return -torch.logsumexp(logits, 0), gradient.T

    def differences(x):
        """Coordinate by coordinate: the compiler fuses it all."""
        steps = [x[:, i] - means[:, i : i + 1] for i in range(dim)]
        logits = log_scales - 0.5 * precision * sum(step.square() for step in steps)
        largest = logits.amax(0)
        weights = torch.exp(logits - largest)
        total = weights.sum(0)
        weights = weights * precision / total
        gradient = torch.stack([(weights * step).sum(0) for step in steps], -1)
        return -(largest + total.log()), gradient

    value_and_grad = differences if is_compiled else products
    form = "differences by coordinate" if is_compiled else "matrix products"
    return TorchEnergy(energy, value_and_grad, f"closed-form gradient by {form}")


def torch_mlp(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    *hidden, last = [
        (torch.tensor(kernel).T.contiguous(), torch.tensor(bias))
        for kernel, bias in layers(params, "Dense")
    ]

    def energy(x):
        h = x.flatten(1)
        for kernel, bias in hidden:
            h = torch.nn.functional.linear(h, kernel, bias)
            h = torch.nn.functional.leaky_relu(h, 0.2)
        return torch.nn.functional.linear(h, *last)[:, 0]

    return TorchEnergy(energy, None, "autograd")


def torch_conv(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    convs = [
        (torch.tensor(kernel).permute(3, 2, 0, 1).contiguous(), torch.tensor(bias))
        for kernel, bias in layers(params, "Conv")
    ]
    steps = [stride_and_pad(kernel) for kernel, _ in layers(params, "Conv")]
    ((kernel, bias),) = layers(params, "Dense")
    channels = len(convs[-1][1])
    # Flax's map is flattened with its channels last, PyTorch's with its channels first.
    size = math.isqrt(len(kernel) // channels)
    kernel = torch.tensor(kernel).reshape(size, size, channels).permute(2, 0, 1)
    last = kernel.reshape(1, -1).contiguous(), torch.tensor(bias)

    def energy(x):
        h = x
        for (kernel, bias), step in zip(convs, steps):
            h = torch.nn.functional.conv2d(h, kernel, bias, *step)
            h = torch.nn.functional.leaky_relu(h, 0.2)
        return torch.nn.functional.linear(h.flatten(1), *last)[:, 0]

    return TorchEnergy(energy, None, "autograd")


def torch_latent(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    generator, energy_params = params["generator"], params["energy"]
    image_energy = torch_conv(
        energy_params["trunk"] | {"Dense_0": energy_params["Dense_0"]}, is_compiled
    ).energy
    # Kernels, and so the maps between them, have their channels last: as fast as first
    # or a little faster on the processors that were tried.
    convs = [
        (
            torch.tensor(kernel)
            .permute(3, 2, 0, 1)
            .contiguous(memory_format=torch.channels_last),
            torch.tensor(bias),
        )
        for kernel, bias in layers(generator, "TransposedConv")
    ]
    scales = []
    for index in range(len(convs)):
        # By running statistics a normalisation is a scale and a shift.
        name = f"BatchNorm_{index}"
        running = params["generator_state"]["batch_stats"][name]
        scale = generator[name]["scale"] / np.sqrt(running["var"] + 1e-5)
        shift = generator[name]["bias"] - running["mean"] * scale
        scales.append([torch.tensor(x)[:, None, None] for x in (scale, shift)])
    ((kernel, bias),) = layers(generator, "Dense")
    first = torch.tensor(kernel).T.contiguous(), torch.tensor(bias)
    channels = convs[0][0].shape[0]
    size = math.isqrt(len(bias) // channels)

    def energy(z):
        h = torch.nn.functional.linear(z, *first)
        h = h.reshape(-1, size, size, channels).permute(0, 3, 1, 2)
        # From 2x2 to 4, 7, 14 and 28: `output_padding` is 0 where the size is odd.
        for (kernel, bias), (scale, shift), extra in zip(convs, scales, (1, 0, 1, 1)):
            h = torch.relu(h * scale + shift)
            h = torch.nn.functional.conv_transpose2d(h, kernel, bias, 2, 2, extra)
        return image_energy(torch.tanh(h)) + 0.5 * z.square().sum(-1)

    return TorchEnergy(energy, None, "autograd")


TORCH_ENERGIES = {
    "gaussian": torch_gaussian,
    "mixture": torch_mixture,
    "mlp": torch_mlp,
    "conv": torch_conv,
    "latent": torch_latent,
}


def torch_energy(workload: Workload, x0, is_compiled: bool) -> TorchEnergy:
    """Our energy in PyTorch, compared with ours."""
    import torch

    if jax.default_backend() != "cpu":
        raise NotImplementedError("the PyTorch peers are written for the CPU")
    if workload.kind not in TORCH_ENERGIES:
        raise NotImplementedError(f"no PyTorch form of the {workload.kind} energy")
    # Flax's arrays may be read-only, which PyTorch warns of.
    params = jax.tree.map(lambda leaf: np.array(leaf, np.float32), workload.params)
    with torch.no_grad():
        found = TORCH_ENERGIES[workload.kind](params, is_compiled)
        value_and_grad = found.value_and_grad or autograd(found.energy)

        def check(x):
            energy, gradient = value_and_grad(to_torch(x))
            return energy.numpy(), from_torch(gradient)

        check_energy(workload, x0, check, 1e-4)
    return found


def to_torch(x: np.ndarray, layout: str = "NCHW"):
    """A copy; images with their channels first, in memory as the layout says.

    PyTorch's convolutions keep the layout of what they are given.
    """
    import torch

    x = np.array(x, np.float32)
    x = torch.tensor(np.moveaxis(x, -1, 1) if x.ndim == 4 else x).contiguous()
    return x.to(memory_format=torch.channels_last) if layout == "NHWC" else x


def from_torch(x) -> np.ndarray:
    x = x.numpy()
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def autograd(energy: Callable) -> Callable:
    """`value_and_grad` of an energy, for the eager mode."""
    import torch

    def value_and_grad(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = energy(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    return value_and_grad


def functional(energy: Callable) -> Callable:
    """`value_and_grad` of an energy, such as the compiler can trace."""
    import torch

    def total(x):
        value = energy(x)
        return value.sum(), value

    def value_and_grad(x):
        gradient, (_, value) = torch.func.grad_and_value(total, has_aux=True)(x)
        return value, gradient

    return value_and_grad


def torch_move(value_and_grad: Callable, sampler: Kernel) -> tuple[Callable, Callable]:
    """`init(x) -> state` and `step(*state) -> state`; the position comes first."""
    import torch

    h = sampler.step_size
    noise_std = math.sqrt(2 * h)

    def init(x):
        return x, *value_and_grad(x)

    def choose(log_ratio, proposal, state):
        is_accepted = torch.rand_like(log_ratio).log() < log_ratio
        views = is_accepted, is_accepted.view(-1, *[1] * (state[0].ndim - 1))
        return tuple(
            torch.where(views[new.ndim > 1], new, old)
            for new, old in zip(proposal, state)
        )

    def total(array):
        return array.flatten(1).sum(-1)

    def langevin(x):
        _, gradient = value_and_grad(x)
        noise = torch.randn_like(x)
        return (torch.add(x, gradient, alpha=-h).add_(noise, alpha=noise_std),)

    def mala(x, energy, gradient):
        noise = torch.randn_like(x)
        y = torch.add(x, gradient, alpha=-h).add_(noise, alpha=noise_std)
        proposal = init(y)
        backward = (gradient + proposal[2]).mul_(h / noise_std).sub_(noise)
        log_ratio = energy - proposal[1]
        log_ratio = log_ratio + 0.5 * total((noise - backward) * (noise + backward))
        return choose(log_ratio, proposal, (x, energy, gradient))

    def hmc(x, energy, gradient):
        start = torch.randn_like(x)
        p = torch.add(start, gradient, alpha=-0.5 * h)
        y = torch.add(x, p, alpha=h)
        for _ in range(sampler.num_leapfrog - 1):
            p.sub_(value_and_grad(y)[1], alpha=h)
            y = torch.add(y, p, alpha=h)
        proposal = init(y)
        p.sub_(proposal[2], alpha=0.5 * h)
        log_ratio = energy - proposal[1] + 0.5 * total((start - p) * (start + p))
        return choose(log_ratio, proposal, (x, energy, gradient))

    if sampler.name == "langevin":
        return lambda x: (x,), langevin
    return init, {"mala": mala, "hmc": hmc}[sampler.name]


class Setting(NamedTuple):
    """What is tried of a PyTorch program."""

    num_threads: int
    layout: str

    def __str__(self):
        layout = {"vector": "", "NCHW": "NCHW, ", "NHWC": "channels_last, "}
        plural = "" if self.num_threads == 1 else "s"
        return f"{layout[self.layout]}{self.num_threads} thread{plural}"


def fastest(settings: list[Setting], x0, make_step: Callable) -> Setting:
    """That with which a few moves are fastest here; `make_step() -> step(x)`.

    More threads are not always better: on two cores a compiled step of the mixture ran
    at a fifth of its speed with one. And which layout of images is faster depends on
    the processor.
    """
    import torch

    if len(settings) == 1:
        return settings[0]
    seconds = dict.fromkeys(settings, math.inf)
    programs = {}
    for setting in settings:  # what is compiled is for this number of threads
        torch.set_num_threads(setting.num_threads)
        programs[setting] = make_step(), to_torch(x0, setting.layout)
    for burst in range(6):
        for setting, (step, x) in programs.items():
            torch.set_num_threads(setting.num_threads)
            step(x)
            start, count = time.perf_counter(), 0
            while time.perf_counter() < start + 0.05:
                step(x)
                count += 1
            if burst > 0:  # the first ones warm up
                spent = (time.perf_counter() - start) / count
                seconds[setting] = min(seconds[setting], spent)
    return min(settings, key=seconds.get)


def torch_settings(x0, is_compiled: bool, num_threads: int | None) -> list[Setting]:
    """Worth trying: one thread or all; and, uncompiled, both layouts of images."""
    most = int(os.environ.get("OMP_NUM_THREADS", num_cores()))
    threads = sorted({1, most}) if num_threads is None else [num_threads]
    layouts = ["vector"]
    if np.ndim(x0) == 4:  # the compiler chooses layouts by itself
        layouts = ["NCHW"] if is_compiled or num_threads else ["NCHW", "NHWC"]
    return [Setting(count, layout) for count in threads for layout in layouts]


def hand_written(
    workload: Workload,
    sampler: Kernel,
    x0,
    num_steps: int,
    *,
    is_compiled: bool,
    num_threads: int | None = None,
) -> Contender:
    """The moves in PyTorch; None for the fastest settings that are found."""
    import torch

    found = torch_energy(workload, x0, is_compiled)
    differentiate = functional if is_compiled else autograd
    value_and_grad = found.value_and_grad or differentiate(found.energy)
    init, move = torch_move(value_and_grad, sampler)

    def make_move():
        if not is_compiled:
            return move
        return torch.compile(
            move,
            dynamic=False,
            fullgraph=True,
            # The compiler's own random numbers are over ten times slower on a CPU.
            options={"fallback_random": True},
        )

    def make_step():
        step = make_move()
        return torch.no_grad()(lambda x: step(*init(x)))

    setting = fastest(torch_settings(x0, is_compiled, num_threads), x0, make_step)
    if is_compiled:  # so that the first run compiles, as the others' do
        torch.compiler.reset()
    step = make_move()
    start = to_torch(x0, setting.layout)

    @torch.no_grad()
    def run(seed: int) -> np.ndarray:
        torch.set_num_threads(setting.num_threads)
        torch.manual_seed(seed)
        state = init(start)
        for _ in range(num_steps):
            state = step(*state)
        return from_torch(state[0])

    how = "torch.compile of the whole move, noise by ATen" if is_compiled else "eager"
    return Contender(run, f"{version('torch')}: {how}, {found.settings}, {setting}")


def torchebm(
    workload: Workload,
    sampler: Kernel,
    x0,
    num_steps: int,
    *,
    num_threads: int | None = None,
) -> Contender:
    import torch
    import torchebm.core
    import torchebm.samplers

    if sampler.name == "mala":
        raise NotImplementedError("torchebm has no MALA")
    if sampler.name == "hmc" and np.ndim(x0) > 2:
        raise NotImplementedError("torchebm's HMC rejects states that are not vectors")
    found = torch_energy(workload, x0, is_compiled=False)

    class Model(torchebm.core.BaseModel):
        def forward(self, x):
            return found.energy(x)

        if found.value_and_grad is not None:

            def gradient(self, x):
                return found.value_and_grad(x)[1]

    if sampler.name == "langevin":
        chains = torchebm.samplers.LangevinDynamics(Model(), sampler.step_size)
    else:
        chains = torchebm.samplers.HamiltonianMonteCarlo(
            Model(), sampler.step_size, sampler.num_leapfrog
        )

    def make_step():
        return lambda x: chains.sample(x=x, n_steps=1)

    setting = fastest(torch_settings(x0, False, num_threads), x0, make_step)
    start = to_torch(x0, setting.layout)

    def run(seed: int) -> np.ndarray:
        torch.set_num_threads(setting.num_threads)
        torch.manual_seed(seed)
        return from_torch(chains.sample(x=start.clone(), n_steps=num_steps))

    versions = f"{version('torchebm')} on {version('torch')}"
    return Contender(run, f"{versions}: {found.settings}, {setting}")


PEERS = {
    "plain scan": plain_scan,
    "blackjax": blackjax,
    "numpyro": numpyro,
    "tfp": tfp,
    "torchebm": torchebm,
    "torch eager": functools.partial(hand_written, is_compiled=False),
    "torch.compile": functools.partial(hand_written, is_compiled=True),
}


# --- Is it the same sampler?

NUM_CHAINS = 4_000
CHECKS = {
    # Far from the small steps at which any sampler looks right: of the coordinate with
    # precision 10, unadjusted Langevin has twice the variance, and leapfrogs without
    # their accept-reject step 1.2 times.
    "langevin": (Kernel("langevin", 0.1), 150),
    "mala": (Kernel("mala", 0.1), 300),
    "hmc": (Kernel("hmc", 0.27, 3), 100),
}


def check_moments(who: str, draws: np.ndarray, mean, variance) -> None:
    """Raises unless independent normal draws have this mean and variance.

    Within five standard errors, coordinate by coordinate: `sqrt(variance / n)` of a
    mean, and `sqrt(2 / n)`, relative, of a variance.
    """
    draws = np.asarray(draws, np.float64)
    num = len(draws)
    for what, found, expected, error in (
        ("mean", draws.mean(0), mean, np.sqrt(variance / num)),
        ("variance", draws.var(0), variance, variance * math.sqrt(2 / num)),
    ):
        off = (found - expected) / error
        worst = np.argmax(np.where(np.isfinite(off), np.abs(off), np.inf))
        if not abs(off[worst]) <= 5:
            raise AssertionError(
                f"{who}: the {what} of coordinate {worst} is {found[worst]:.4g}, not"
                f" {expected[worst]:.4g}: {off[worst]:+.1f} standard errors"
            )


def check_jumps(who: str, start, draws: np.ndarray, expected: np.ndarray) -> None:
    """Raises unless one move from `start` goes as far as that of another program.

    The law of an adjusted sampler is right at any step size; how far it goes is not.
    """
    jumps, others = ((np.float64(x) - start) ** 2 for x in (draws, expected))
    error = np.sqrt((jumps.var(0) + others.var(0)) / len(start))
    off = (jumps.mean(0) - others.mean(0)) / error
    worst = np.argmax(np.where(np.isfinite(off), np.abs(off), np.inf))
    if not abs(off[worst]) <= 5:
        raise AssertionError(
            f"{who}: the mean squared move of coordinate {worst} is"
            f" {jumps.mean(0)[worst]:.4g}, not {others.mean(0)[worst]:.4g}:"
            f" {off[worst]:+.1f} standard errors"
        )


def verify(name: str, kernel_name: str, make: Callable) -> None:
    """Raises unless a peer samples what it should, in moves of the right length.

    On a Gaussian in five dimensions: after many moves from a point, the mean and
    variance of every coordinate (of unadjusted Langevin the biased variance,
    `1 / (p (1 - h p / 2))`); after one move from exact draws, the mean squared
    distance, which must be the plain scan's. Of a JAX peer both ways to lay out its
    chains over several devices.

    Raises:
      AssertionError: Naming the peer and the coordinate.
      ImportError, NotImplementedError: As the peer does.
    """
    sampler, num_steps = CHECKS[kernel_name]
    mean, precision = np.linspace(-1, 1, 5), np.geomspace(1, 10, 5)
    params = {"mean": np.float32(mean), "precision": np.float32(precision)}
    workload = Workload("gaussian", params, energies.gaussian)
    if ENVIRONMENTS.get(name) is TORCH_ENVIRONMENT:
        make = functools.partial(make, num_threads=1)
    may_share = ENVIRONMENTS.get(name) is DEVICE_A_CORE and jax.local_device_count() > 1
    for is_shared in (False, True) if may_share else (False,):
        with forced(is_shared):
            _verify(f"{name}, {kernel_name}", make, workload, sampler, num_steps)


def _verify(who, make, workload, sampler, num_steps):
    mean = workload.params["mean"].astype(float)
    precision = workload.params["precision"].astype(float)
    start = np.zeros((NUM_CHAINS, 5), np.float32)
    draws = make(workload, sampler, start, num_steps).run(0)
    variance = 1 / precision
    if sampler.name == "langevin":
        variance = variance / (1 - sampler.step_size * precision / 2)
    check_moments(who, draws, mean, variance)

    normal = np.random.default_rng(0).standard_normal((NUM_CHAINS, 5))
    start = np.float32(mean + normal / np.sqrt(precision))
    draws = make(workload, sampler, start, 1).run(1)
    check_jumps(who, start, draws, plain_scan(workload, sampler, start, 1).run(2))
