"""The inputs and outputs of the benchmark's contenders."""

import functools
import importlib.metadata
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np


class Workload(NamedTuple):
    """Energy that is sampled.

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
    """Sampler of a cell, "langevin", "mala" or "hmc"."""

    name: str
    step_size: float
    num_leapfrog: int = 0


USUAL = ("langevin", "mala", "hmc")
"""Samplers that the peers have; ours may be others."""


def check_sampler(who: str, sampler: Kernel) -> None:
    """Raises NotImplementedError for a sampler that only ours has."""
    if sampler.name not in USUAL:
        raise NotImplementedError(f"{who} has no {sampler.name}")


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


DEVICES = "--xla_force_host_platform_device_count"


DEVICE_A_CORE = {"XLA_FLAGS": f"{DEVICES}={num_cores()}"}  # or one for all; see below


def version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def layers(params: dict, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns kernels and biases of a Flax network's layers of one kind, in order."""
    count = sum(name.startswith(f"{kind}_") for name in params)
    found = [params[f"{kind}_{i}"] for i in range(count)]
    return [(layer["kernel"], layer["bias"]) for layer in found]


def stride_and_pad(size: int) -> tuple[int, int]:
    """Returns stride and padding by the window: 3x3 keep the size, others halve it.

    3x3 and 4x4 are of `short_run_energy`, 5x5 of the generator and its energy.
    """
    return {3: (1, 1), 4: (2, 1), 5: (2, 2)}[size]


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
