"""Estimates of the log partition function, the log of the integral of exp(-E)."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import energies
from ebmjax.checks import (
    at_precision,
    check_array,
    check_chains,
    check_count,
    check_path,
)
from ebmjax.samplers.closures import as_pytree
from ebmjax.samplers.layout import (
    Layout,
    chain_keys,
    lay_out,
    over_blocks,
    over_devices,
    pad_chains,
)
from ebmjax.samplers.sampler import Sampler, value
from ebmjax.samplers.unadjusted_langevin import Tilted
from ebmjax.types import Array, EnergyFn, Key

__all__ = [
    "Annealed",
    "annealed_importance_sampling",
    "importance_sampling",
    "quadrature",
    "reverse_annealed_importance_sampling",
]


class Annealed(NamedTuple):
    """Result of annealed importance sampling.

    Attributes:
      log_partition: Estimate of the log partition function, `[]`, in nats: from the
        mean weight forwards, from the mean inverse weight in reverse.
      bound: Mean log weight, `[]`, in nats. Its expectation is at most the truth
        forwards, and at least the truth in reverse.
      log_weights: Log weights, `[chains]`, in nats.
      effective_sample_size: `(sum w)^2 / sum w^2`, `[]`, the number of equal weights
        that would be as good; in reverse, that of the inverse weights.
      position: Positions at the end of the chains, `[chains, *event]`, in units of x.
        Forwards, they are draws of the energy's law if they are weighted with
        `exp(log_weights)`.
      acceptance_rate: Acceptance rates of the moves between weighings,
        `[fractions - 1]`, in the order in which they were made. They are means over
        chains, and ones for a sampler that does not report them.
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
    """Runs annealed importance sampling (AIS) from a reference to an energy.

    See https://arxiv.org/abs/physics/9803008.

    Draws of the reference, whose density is known, are weighted and moved through the
    energies `(1 - f) * reference + f * energy`. The mean weight is an unbiased estimate
    of the partition function. Its logarithm is too small on average, and much too small
    if the energy's law has regions that no chain reached. With exact draws of the law,
    `reverse_annealed_importance_sampling` gives an estimate that is too large on
    average: the truth lies between the two.

    Args:
      sampler: Sampler that moves the chains and leaves its energy's law invariant, such
        as `mala` and `hmc` (unadjusted dynamics are biased here), or a function from
        the fraction to a sampler, for steps that change along the path. Products are
        computed at the precision "highest" of `mala`, unless the sampler names another.
      energy_fn: Energy of one example. Arrays bound with `functools.partial` are
        arguments of the compiled program.
      key: Typed key.
      reference: `(sample: key -> x, log_prob: x -> [])` of one example, normalised,
        with tails no lighter than the law's.
      num_chains: Number of independent weights, shared among all local devices.
      fractions: Fractions, increasing from above 0 to 1, or the number of equal steps.
      num_steps: Number of moves at every fraction except the last, after which nothing
        is weighted.

    Returns:
      An `Annealed`.

    Raises:
      ValueError: If a count is not positive or the fractions do not increase to 1.

    Source:
      Neal (2001), "Annealed importance sampling",
      https://arxiv.org/abs/physics/9803008.
    """
    check_count("num_chains", num_chains, 1)
    sample_key, move_key = jax.random.split(key)
    x = jax.vmap(reference[0])(jax.random.split(sample_key, num_chains))
    x = check_array("the draws of reference", x, "[chains, *event]")
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
    """Runs annealed importance sampling (AIS) in reverse, from an energy's draws.

    See https://arxiv.org/abs/1412.8566 (RAISE) and https://arxiv.org/abs/1606.02275
    (BDMC).

    With exact draws, the mean of the inverse weight is the inverse partition function.
    Together with the forward run, this brackets the log partition function
    (bidirectional Monte Carlo, BDMC). The bound does not hold for draws that are not
    exact, for example those of long chains.

    Args:
      sampler: Sampler, as in the forward run; it must be reversible.
      energy_fn: Energy of one example, as in the forward run.
      key: Typed key.
      x: Exact draws of the law `exp(-energy) / Z`, `[chains, *event]`.
      reference: Reference, as in the forward run.
      fractions: Fractions, as in the forward run, which are passed from the end.
      num_steps: Number of moves at every fraction, as in the forward run.

    Returns:
      An `Annealed`.

    Raises:
      ValueError: If a count is not positive, the fractions do not increase to 1, or `x`
        has no chains.

    Source:
      Burda, Grosse & Salakhutdinov (2015), "Accurate and conservative estimates of MRF
      log-likelihood using reverse annealing" (RAISE), https://arxiv.org/abs/1412.8566.
      Grosse, Ancha & Roy (2016), "Measuring the reliability of MCMC inference with
      bidirectional Monte Carlo", https://arxiv.org/abs/1606.02275.
    """
    levels = _fractions(fractions)
    # Weighed at 1 against the last but one, which then moves, and so down to 0.
    steps = -np.diff(levels, prepend=0.0)[::-1]
    levels = np.concatenate([levels[:-1][::-1], [0.0]])
    return _anneal(sampler, energy_fn, key, x, reference, levels, steps, num_steps)


def _fractions(fractions: int | Sequence[float] | Array) -> np.ndarray:
    if isinstance(fractions, int | np.integer):
        check_count("fractions", fractions, 1)
        return np.arange(1, fractions + 1) / fractions
    return check_path("fractions", fractions)


def _anneal(
    sampler: Sampler | Callable[[Array], Sampler],
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    reference: tuple[Callable[[Key], Array], Callable[[Array], Array]],
    levels: np.ndarray,
    steps: np.ndarray,
    num_steps: int,
) -> Annealed:
    """Weights the chains at every step and moves them after all except the last."""
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
    # The inverse's mean in reverse: log_weights there are of the way back.
    log_partition, size = _mean_weight(log_weights)
    sign = -1 if steps[0] < 0 else 1
    return Annealed(
        log_partition=sign * log_partition,
        bound=sign * jnp.mean(log_weights),
        log_weights=sign * log_weights,
        effective_sample_size=size,
        position=position,
        acceptance_rate=jnp.mean(rates, axis=1),
    )


def _mean_weight(log_weights: Array) -> tuple[Array, Array]:
    """Returns the log of the mean weight, and the effective sample size."""
    # Relative to the largest weight, so that a large constant takes no digits.
    largest = jnp.max(log_weights)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    centred = log_weights - largest
    log_sum = jax.nn.logsumexp(centred)
    size = jnp.exp(2 * log_sum - jax.nn.logsumexp(2 * centred))
    return largest + (log_sum - math.log(len(log_weights))), size


@functools.partial(jax.jit, static_argnames=("sampler", "num_steps", "layout"))
@at_precision("highest")
def _anneal_chains(
    energy_fn: EnergyFn,
    log_prob: Callable[[Array], Array],
    path: tuple[Array, Array],
    key: Key,
    x: Array,
    *,
    sampler: Sampler | Callable[[Array], Sampler],
    num_steps: int,
    layout: Layout,
) -> tuple[Array, Array, Array]:
    keys = chain_keys(key, layout.num_chains)

    def local(
        functions: tuple[EnergyFn, Callable[[Array], Array]],
        path: tuple[Array, Array],
        keys: Key,
        x: Array,
    ) -> tuple[Array, ...]:
        energy_fn = functools.partial(value, functions[0])
        levels, steps = path

        def reference_fn(x: Array) -> Array:
            return -value(functions[1], x, "log_prob of reference")

        def mover_at(fraction: Array) -> Sampler:
            return sampler if isinstance(sampler, Sampler) else sampler(fraction)

        # The states of these samplers keep the energies of both ends of the path.
        keeps_ends = mover_at(levels[0]).made_by[0] in ("langevin", "mala")
        tilt = Tilted if keeps_ends else energies.tilt
        path_at = functools.partial(tilt, energy_fn, reference_fn)

        def chain(key: Key, x: Array) -> tuple[Array, Array, Array]:
            def weigh(state: Any, log_weight: Array, step: Array) -> Array:
                if keeps_ends:
                    difference: Array = state.end[0] - state.start[0]
                else:
                    difference = energy_fn(x := state.position) - reference_fn(x)
                return log_weight - (step * difference).astype(log_weight.dtype)

            def level(
                carry: tuple[Any, Array], inputs: tuple[Array, Array, Array]
            ) -> tuple[tuple[Any, Array], Array]:
                index, fraction, step = inputs
                state, log_weight = carry[0], weigh(*carry, step)
                mover, path_fn = mover_at(fraction), path_at(fraction)
                if keeps_ends:
                    state = state.at(fraction)
                else:
                    state = mover.init(path_fn, state.position)

                def move(state: Any, count: Array) -> tuple[Any, Array]:
                    move_key = jax.random.fold_in(key, index * num_steps + count)
                    state, info = mover.step(path_fn, move_key, state)
                    return state, getattr(info, "acceptance_rate", jnp.ones(()))

                state, rates = jax.lax.scan(move, state, jnp.arange(num_steps))
                return (state, log_weight), jnp.mean(rates)

            inputs = jnp.arange(len(levels) - 1), levels[:-1], steps[:-1]
            state = mover_at(levels[0]).init(path_at(levels[0]), x)
            start = state, jnp.zeros((), steps.dtype)
            (state, log_weight), rates = jax.lax.scan(level, start, inputs)
            return weigh(state, log_weight, steps[-1]), state.position, rates

        def block(keys: Key, x: Array) -> tuple[Array, Array, Array]:
            log_weights, x, rates = jax.vmap(chain)(keys, x)
            return log_weights, x, rates.T

        return over_blocks(block, layout, (0, 0, 1))(keys, x)

    log_weights, position, rates = over_devices(
        local, layout, (None, None, 0, 0), (0, 0, 1)
    )((energy_fn, log_prob), path, keys, pad_chains(x, layout.num_chains))
    return log_weights[: len(x)], position[: len(x)], rates[:, : len(x)]


@at_precision("highest")
def importance_sampling(
    energy_fn: EnergyFn,
    key: Key,
    *,
    proposal: tuple[Callable[[Key], Array], Callable[[Array], Array]],
    num_samples: int,
) -> tuple[Array, Array]:
    """Returns the log partition function by importance sampling (IS) from a proposal.

    The estimate is `log mean exp(-E(x) - log_prob(x))` over draws of the proposal. In
    many dimensions a few draws have nearly all of the weight, and the estimate is far
    too small: check the effective sample size, and use annealing.

    Args:
      energy_fn: Energy of one example.
      key: Typed key.
      proposal: `(sample: key -> x, log_prob: x -> [])` of one example, normalised, with
        tails no lighter than the law's.
      num_samples: Number of draws, which are all in memory at once.

    Returns:
      `(log_partition, effective_sample_size)`, two scalars, the first in nats.

    Raises:
      ValueError: If `num_samples` is below 1; at trace, if the energy or `log_prob` is
        not a scalar.
    """
    check_count("num_samples", num_samples, 1)
    sample, log_prob = proposal

    def log_weight(key: Key) -> Array:
        log_density = value(log_prob, x := sample(key), "log_prob of proposal")
        return -value(energy_fn, x) - log_density

    log_weights = jax.vmap(log_weight)(jax.random.split(key, num_samples))
    return _mean_weight(log_weights)


@at_precision("highest")
def quadrature(
    energy_fn: EnergyFn, bounds: Sequence[tuple[float, float]], num_points: int = 1000
) -> Array:
    """Returns the log partition function by the trapezoidal rule.

    The energy has one or two dimensions. For a smooth density that is negligible at the
    bounds, the error decreases faster than any power of the number of points.

    Args:
      energy_fn: Energy of one example `[]`, `[1]` or `[2]`, with as many elements as
        there are bounds. The event is `[1]` if `bounds` is a list of one pair, and a
        scalar if `bounds` is one pair of numbers.
      bounds: `(low, high)` of each dimension, or one pair for a scalar event, in units
        of x.
      num_points: Number of points along each dimension.

    Returns:
      A scalar, in nats.

    Raises:
      ValueError: If there are more than two dimensions, the bounds are not intervals,
        there are fewer than two points, or the points are nearer to each other than
        numbers of their type can be; at trace, if the energy is not a scalar.
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
    for (low, high), axis in zip(pairs, axes):
        if not (np.diff(np.asarray(axis)) > 0).all():
            raise ValueError(
                f"bounds must be far enough apart for {num_points} different points in"
                f" {axis.dtype}, got ({low}, {high}); shift the energy towards 0"
            )
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
    log_density = -jax.lax.map(
        lambda x: value(energy_fn, x.reshape(shape)),
        grid.reshape(-1, len(pairs)),
        batch_size=10_000,
    )
    ends = jnp.ones(num_points).at[jnp.array([0, -1])].set(0.5)
    weights = ends if len(pairs) == 1 else (ends[:, None] * ends[None, :]).reshape(-1)
    area = np.prod((pairs[:, 1] - pairs[:, 0]) / (num_points - 1))
    return jax.nn.logsumexp(log_density, b=weights) + math.log(area)
