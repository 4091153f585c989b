"""Metrics that the table of training steps times, on random draws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import energies, metrics, samplers
from experiments.throughput.tasks import Program, Task

AIS = {"dim": 2, "step_size": 0.1, "num_chains": 1_000, "num_fractions": 1_000}
"""Annealed importance sampling by MALA, from a standard normal to a narrower one."""

TARGET = {"mean": np.float32(1.0), "precision": np.float32(4.0)}

BANDWIDTH = 3.0


def evaluate(kind: str, function, *batch, **facts) -> Task:
    """Returns the task of `function(*batch)`, which is called as a user calls it."""

    def without_params(params, *batch):
        return function(*batch)

    return Task(
        kind, None, {}, batch, function=without_params, is_jitted=False, facts=facts
    )


def draws(num_steps: int = 2_000, num_chains: int = 64, dim: int = 100) -> np.ndarray:
    """Returns autoregressive draws, `[steps, chains, dim]`."""
    noise = np.random.default_rng(0).standard_normal(
        (num_steps, num_chains, dim), np.float32
    )
    for before, now in zip(noise, noise[1:]):
        now += 0.5 * before
    return noise


def r_hat(**sizes) -> Task:
    return evaluate("r_hat", metrics.potential_scale_reduction, draws(**sizes))


def sample_size(**sizes) -> Task:
    return evaluate("ess", metrics.effective_sample_size, draws(**sizes))


def stein(num: int = 5_000, dim: int = 10, bandwidth: float | None = BANDWIDTH) -> Task:
    """Returns the discrepancy of too wide draws from a standard normal."""
    params = {"mean": np.zeros(dim, np.float32), "precision": np.ones(dim, np.float32)}
    x = 1.3 * np.random.default_rng(0).standard_normal((num, dim), np.float32)
    function = functools.partial(
        metrics.kernel_stein_discrepancy,
        functools.partial(energies.gaussian, params),
        bandwidth=bandwidth,
    )
    return evaluate("ksd", function, x, bandwidth=bandwidth)


def mean_discrepancy(num: int = 5_000, dim: int = 128) -> Task:
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((num, dim), np.float32) + x for x in (0.0, 0.2))
    return evaluate("mmd", metrics.maximum_mean_discrepancy, a, b)


def annealed(**changes) -> Task:
    facts = AIS | changes
    sampler = samplers.mala(step_size=facts["step_size"])

    def draw(key):
        return jax.random.normal(key, (facts["dim"],))

    def log_prob(x):
        return -0.5 * jnp.sum(x**2) - 0.5 * facts["dim"] * math.log(2 * math.pi)

    energy_fn = functools.partial(energies.gaussian, TARGET)

    def function(seed):
        return metrics.annealed_importance_sampling(
            sampler,
            energy_fn,
            jax.random.key(seed),
            reference=(draw, log_prob),
            num_chains=facts["num_chains"],
            fractions=facts["num_fractions"],
        ).log_partition

    return evaluate("ais", function, np.int32(0), **facts)


METRICS = {
    "r_hat": r_hat,
    "ess": sample_size,
    "ksd": stein,
    "ksd by the median": functools.partial(stein, bandwidth=None),
    "mmd": mean_discrepancy,
    "ais": annealed,
}


def make_metric(
    task: Task, function, settings: str, tolerance: float = 1e-3
) -> Program:
    """Returns the program of a peer, whose value must be ours.

    Args:
      task: A metric.
      function: `function(task, *batch)`.
      settings: The peer, in words.
      tolerance: Relative error that is allowed.
    """

    def run(count: int) -> float:
        for _ in range(count):
            result = function(task, *task.batch)
        return float(np.ravel(result)[-1])

    def verify():
        found, expected = function(task, *task.batch), task.function({}, *task.batch)
        error = np.abs(np.asarray(found) / np.asarray(expected) - 1).max()
        if not error <= tolerance:
            raise AssertionError(f"{task.kind} is off by {error:.1e}")

    return Program(run, settings, verify)
