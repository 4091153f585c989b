"""Estimates of an energy's log partition function, `log of the integral of exp(-E)`."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import energies
from ebmjax.checks import check_chains, check_count, check_path, scalar_energy
from ebmjax.samplers.chains import as_pytree
from ebmjax.samplers.layout import (
    chain_keys,
    lay_out,
    over_blocks,
    over_devices,
    pad_chains,
)
from ebmjax.samplers.sampler import Sampler, value
from ebmjax.types import Array, EnergyFn, Key

__all__ = [
    "Annealed",
    "annealed_importance_sampling",
    "importance_sampling",
    "quadrature",
    "reverse_annealed_importance_sampling",
]


class Annealed(NamedTuple):
    """What annealed importance sampling found.

    Attributes:
      log_partition: `[]`, the estimate: from the mean weight forwards, from the mean
        inverse weight in reverse.
      bound: `[]`, the mean log weight. Forwards its expectation is at most the truth,
        in reverse at least.
      log_weights: `[chains]`.
      effective_sample_size: `[]`, `(sum w)^2 / sum w^2`: how many equal weights would
        be as good; of the inverse weights in reverse.
      position: `[chains, *event]`, where the chains ended. Forwards, draws of the
        energy's law where they are weighted with `exp(log_weights)`.
      acceptance_rate: `[fractions - 1]`, of the moves between, in the order in which
        they were made; means over chains, ones for a sampler without.
    """

    log_partition: Array
    bound: Array
    log_weights: Array
    effective_sample_size: Array
    position: Array
    acceptance_rate: Array


def annealed_importance_sampling(
    sampler: Sampler | Callable[[Array], Sampler],
    energy_fn: EnergyFn,
    key: Key,
    *,
    reference: tuple[Callable[[Key], Array], Callable[[Array], Array]],
    num_chains: int,
    fractions: int | Sequence[float] | Array = 1000,
    num_steps: int = 1,
) -> Annealed:
    """Annealed importance sampling, from a reference of known density to an energy.

    Draws of the reference are weighted and moved through the energies `(1 - f) *
    reference + f * energy`. The mean weight is the partition function, without bias;
    its logarithm is too small on average, and much too small where the energy's law has
    what no chain came upon. Beside it, from exact draws of the law,
    `reverse_annealed_importance_sampling` is too large on average: between the two is
    the truth.

    Args:
      sampler: Moves the chains; must leave its energy's law unchanged (mala, hmc and
        their like: unadjusted dynamics are biased here). Or a function of the fraction
        that makes one, for steps that change along the way.
      energy_fn: Energy of one example; arrays bound with `functools.partial` are
        arguments of the compiled program.
      key: A typed key.
      reference: `(sample: key -> x, log_prob: x -> [])` of one example, normalised,
        with tails no lighter than the law's.
      num_chains: Independent weights, shared among all local devices.
      fractions: Increasing from above 0 to 1; a number means so many equal steps.
      num_steps: Moves at every fraction but the last, where nothing is left to weigh.

    Returns:
      An `Annealed`.

    Raises:
      ValueError: If a count is not positive or the fractions do not increase to 1.

    Source:
      Neal (2001), "Annealed importance sampling".
    """
    check_count("num_chains", num_chains, 1)
    sample, _ = reference
    sample_key, move_key = jax.random.split(key)
    x = jax.vmap(sample)(jax.random.split(sample_key, num_chains))
    levels = _fractions(fractions)
    steps = np.diff(levels, prepend=0.0)
    return _anneal(sampler, energy_fn, move_key, x, reference, levels, steps, num_steps)


def reverse_annealed_importance_sampling(
    sampler: Sampler | Callable[[Array], Sampler],
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    *,
    reference: tuple[Callable[[Key], Array], Callable[[Array], Array]],
    fractions: int | Sequence[float] | Array = 1000,
    num_steps: int = 1,
) -> Annealed:
    """Annealed importance sampling backwards, from draws of an energy's law.

    With exact draws the mean of the inverse weight is the inverse partition function.
    Together with the forward run this brackets the log partition function
    (bidirectional Monte Carlo). Draws that are not exact, say of long chains, void the
    bound.

    Args:
      sampler: As forwards; reversible.
      energy_fn: As forwards.
      key: A typed key.
      x: Exact draws of the law `exp(-energy) / Z`, `[chains, *event]`.
      reference: As forwards.
      fractions: As forwards: increasing; they are passed from the end.
      num_steps: As forwards.

    Returns:
      An `Annealed`.

    Raises:
      ValueError: As forwards; or if `x` has no chains.

    Source:
      Grosse, Ancha & Roy (2016), "Measuring the reliability of MCMC inference with
      bidirectional Monte Carlo".
    """
    levels = _fractions(fractions)
    # Weighed at 1 against the last but one, which then moves, and so down to 0.
    steps = -np.diff(levels, prepend=0.0)[::-1]
    levels = np.concatenate([levels[:-1][::-1], [0.0]])
    return _anneal(sampler, energy_fn, key, x, reference, levels, steps, num_steps)


def _fractions(fractions) -> np.ndarray:
    if isinstance(fractions, int | np.integer):
        check_count("fractions", fractions, 1)
        return np.arange(1, fractions + 1) / fractions
    return check_path("fractions", fractions)


def _anneal(sampler, energy_fn, key, x, reference, levels, steps, num_steps):
    """Weighs with every step, then moves at the level reached, but for the last."""
    check_count("num_steps", num_steps, 1)
    x = check_chains(key, x)
    log_prob = as_pytree(reference[1])
    energy_fn = as_pytree(energy_fn)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    path = tuple(jnp.asarray(array, dtype) for array in (levels, steps))
    log_weights, position, rates = _anneal_chains(
        energy_fn,
        log_prob,
        path,
        key,
        x,
        sampler=sampler,
        num_steps=num_steps,
        layout=lay_out(x, (energy_fn, log_prob, key, x)),
    )
    is_reverse = steps[0] < 0
    # The inverse's mean in reverse: log_weights there are of the way back.
    log_partition, size = _mean_weight(log_weights)
    sign = -1 if is_reverse else 1
    return Annealed(
        log_partition=sign * log_partition,
        bound=sign * jnp.mean(log_weights),
        log_weights=sign * log_weights,
        effective_sample_size=size,
        position=position,
        acceptance_rate=jnp.mean(rates, axis=1),
    )


def _mean_weight(log_weights: Array) -> tuple[Array, Array]:
    """The log of the mean weight, and the effective sample size."""
    log_sum = jax.nn.logsumexp(log_weights)
    size = jnp.exp(2 * log_sum - jax.nn.logsumexp(2 * log_weights))
    return log_sum - math.log(len(log_weights)), size


@functools.partial(jax.jit, static_argnames=("sampler", "num_steps", "layout"))
def _anneal_chains(energy_fn, log_prob, path, key, x, *, sampler, num_steps, layout):
    num_chains = x.shape[0]
    keys = chain_keys(key, layout.num_chains)
    x = pad_chains(x, layout.num_chains)

    def local(functions, path, keys, x):
        energy_fn, log_prob = (
            functools.partial(value, scalar_energy(function)) for function in functions
        )
        levels, steps = path

        def reference_fn(x):
            return -log_prob(x)

        def chain(key, x):
            def weigh(log_weight, x, step):
                difference = energy_fn(x) - reference_fn(x)
                return log_weight - (step * difference).astype(log_weight.dtype)

            def level(carry, inputs):
                x, log_weight = carry
                index, fraction, step = inputs
                log_weight = weigh(log_weight, x, step)
                mover = sampler
                if not isinstance(sampler, Sampler):
                    mover = sampler(fraction)
                path_fn = energies.tilt(energy_fn, reference_fn, fraction)

                def move(state, count):
                    move_key = jax.random.fold_in(key, index * num_steps + count)
                    state, info = mover.step(path_fn, move_key, state)
                    return state, getattr(info, "acceptance_rate", jnp.ones(()))

                state, rates = jax.lax.scan(
                    move, mover.init(path_fn, x), jnp.arange(num_steps)
                )
                return (state.position, log_weight), jnp.mean(rates)

            inputs = jnp.arange(len(levels) - 1), levels[:-1], steps[:-1]
            start = x, jnp.zeros((), steps.dtype)
            (x, log_weight), rates = jax.lax.scan(level, start, inputs)
            return weigh(log_weight, x, steps[-1]), x, rates

        def block(keys, x):
            log_weights, x, rates = jax.vmap(chain)(keys, x)
            return log_weights, x, rates.T

        return over_blocks(block, layout, (0, 0, 1))(keys, x)

    log_weights, position, rates = over_devices(
        local, layout, (None, None, 0, 0), (0, 0, 1)
    )((energy_fn, log_prob), path, keys, x)
    return log_weights[:num_chains], position[:num_chains], rates[:, :num_chains]


def importance_sampling(
    energy_fn: EnergyFn,
    key: Key,
    *,
    proposal: tuple[Callable[[Key], Array], Callable[[Array], Array]],
    num_samples: int,
) -> tuple[Array, Array]:
    """The log partition function as a mean over draws of a proposal.

    `log mean exp(-E(x) - log_prob(x))`. In many dimensions nearly all of the weight is
    that of a few draws, and the estimate is far too small: look at the effective sample
    size, and anneal.

    Args:
      energy_fn: Energy of one example.
      key: A typed key.
      proposal: `(sample: key -> x, log_prob: x -> [])` of one example, normalised, with
        tails no lighter than the law's.
      num_samples: Draws, all in memory at once.

    Returns:
      `(log_partition, effective_sample_size)`, two scalars.

    Raises:
      ValueError: If `num_samples` is below 1.
    """
    check_count("num_samples", num_samples, 1)
    sample, log_prob = proposal

    def log_weight(key):
        x = sample(key)
        return -energy_fn(x) - log_prob(x)

    log_weights = jax.vmap(log_weight)(jax.random.split(key, num_samples))
    return _mean_weight(log_weights)


def quadrature(
    energy_fn: EnergyFn, bounds: Sequence[tuple[float, float]], num_points: int = 1000
) -> Array:
    """The log partition function of one or two dimensions, by the trapezoidal rule.

    For a smooth density that is negligible at the bounds the error falls faster than
    any power of the number of points.

    Args:
      energy_fn: Energy of one example `[]`, `[1]` or `[2]`: as many elements as bounds
        (of one, `[1]`; a scalar event where `bounds` is one pair of numbers).
      bounds: `(low, high)` of each dimension, or one pair for a scalar event.
      num_points: Along each dimension.

    Returns:
      A scalar.

    Raises:
      ValueError: For more than two dimensions, bounds that are no intervals, or fewer
        than two points.
    """
    check_count("num_points", num_points, 2)
    pairs = np.asarray(bounds, float)
    shape = () if pairs.ndim == 1 else pairs.shape[:1]
    pairs = pairs.reshape(-1, 2) if pairs.size in (2, 4) else pairs
    if pairs.shape not in ((1, 2), (2, 2)) or not (pairs[:, 0] < pairs[:, 1]).all():
        raise ValueError(
            "bounds must be one or two intervals (low, high) with low < high, got"
            f" {bounds}"
        )
    axes = [jnp.linspace(low, high, num_points) for low, high in pairs]
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
    log_density = -jax.lax.map(
        lambda x: energy_fn(x.reshape(shape)),
        grid.reshape(-1, len(pairs)),
        batch_size=10_000,
    )
    ends = jnp.ones(num_points).at[jnp.array([0, -1])].set(0.5)
    weights = ends if len(pairs) == 1 else (ends[:, None] * ends[None, :]).reshape(-1)
    area = np.prod((pairs[:, 1] - pairs[:, 0]) / (num_points - 1))
    return jax.nn.logsumexp(log_density, b=weights) + math.log(area)
