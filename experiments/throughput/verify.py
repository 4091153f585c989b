"""Checks that a contender samples what it should."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from ebmjax import energies
from experiments.throughput import peers
from experiments.throughput.jax_programs import forced
from experiments.throughput.peers import plain_scan
from experiments.throughput.samplers import SAMPLERS
from experiments.throughput.torch_programs import TORCH_ENVIRONMENT
from experiments.throughput.workload import (
    DEVICE_A_CORE,
    USUAL,
    Kernel,
    Workload,
)

NUM_CHAINS = 4_000


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
    step_size, num_leapfrog, num_steps = SAMPLERS[kernel_name].check
    sampler = Kernel(kernel_name, step_size, num_leapfrog)
    mean, precision = np.linspace(-1, 1, 5), np.geomspace(1, 10, 5)
    params = {"mean": np.float32(mean), "precision": np.float32(precision)}
    workload = Workload("gaussian", params, energies.gaussian)
    environment = peers.load(name).ENVIRONMENT if name in peers.PEERS else None
    if environment is TORCH_ENVIRONMENT:
        make = functools.partial(make, num_threads=1)
    may_share = environment is DEVICE_A_CORE and jax.local_device_count() > 1
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

    if sampler.name not in USUAL:
        return  # no peer moves like it; its moments are checked
    normal = np.random.default_rng(0).standard_normal((NUM_CHAINS, 5))
    start = np.float32(mean + normal / np.sqrt(precision))
    draws = make(workload, sampler, start, 1).run(1)
    check_jumps(who, start, draws, plain_scan.make(workload, sampler, start, 1).run(2))
