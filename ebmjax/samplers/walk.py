"""The moves of a block of chains, and which of them are kept."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ebmjax.checks import scalar_energy
from ebmjax.samplers.sampler import Sampler, running_mean
from ebmjax.types import Array, EnergyFn, Key

__all__: list[str] = []


class Segment(NamedTuple):
    """Moves of a stretch of a run, grouped by what is collected of them.

    Attributes:
      num_lead: Number of first moves, of which nothing is collected.
      has_odd: Whether one collected move follows that ends a period begun earlier.
      num_periods: Number of whole periods of `thin` moves, of which the last is
        collected.
      thin: Number of moves in a period.
      num_tail: Number of last moves, of which nothing is collected.
    """

    num_lead: int
    has_odd: bool
    num_periods: int
    thin: int
    num_tail: int


def make_segment(first: int, end: int, num_burn_in: int, thin: int) -> Segment:
    """Returns the `Segment` of the moves `first, ..., end - 1` of a run."""
    begin = max(first, num_burn_in)
    past = (begin - num_burn_in) % thin  # moves of a period that is under way
    to_odd = (thin - past) % thin  # moves that end it
    has_odd = to_odd > 0 and begin + to_odd <= end
    num_lead = begin - first + max(to_odd - 1, 0)
    done = first + num_lead + has_odd
    if begin >= end or (to_odd and not has_odd):
        return Segment(end - first, False, 0, thin, 0)
    num_periods = (end - done) // thin
    return Segment(num_lead, has_odd, num_periods, thin, (end - done) % thin)


def no_means(sampler: Sampler, energy_fn: EnergyFn, x: Array) -> tuple[Array, Any]:
    """Returns counts and means before the first collected move, `[chains]`."""
    energy_fn = scalar_energy(energy_fn)

    def info(key: Key, x: Array) -> Any:
        state = sampler.init(energy_fn, x)
        return sampler.step(energy_fn, key, state)[1]

    shapes = jax.eval_shape(jax.vmap(info, (None, 0)), jax.random.key(0), x)
    # Made of x, so that they vary over the devices of a shard_map as x does.
    zero = jnp.where(jnp.isnan(x.reshape(len(x), -1).sum(1)), 0.0, 0.0)

    def zeros(shape: jax.ShapeDtypeStruct) -> Array:
        column = zero.reshape(-1, *[1] * (len(shape.shape) - 1))
        dtype = jnp.promote_types(shape.dtype, jnp.float32)
        return jnp.broadcast_to(column, shape.shape).astype(dtype)

    # Counts are integers: in float32 they would end at 2^24.
    return zero.astype(jnp.int32), jax.tree.map(zeros, shapes)


class Walk(NamedTuple):
    """Moves of a block of chains.

    Attributes:
      sampler: Sampler that moves the chains.
      energy_fn: Energy of one example.
      keys: Keys of the chains, `[chains]`.
      collect: Function from `(state, info)` to what is kept, or None for running means.
    """

    sampler: Sampler
    energy_fn: EnergyFn
    keys: Key
    collect: Callable[[Any, Any], Any] | None

    def move(self, states: Any, index: int | Array) -> tuple[Any, Any]:
        def step(key: Key, state: Any, index: int | Array) -> tuple[Any, Any]:
            move_key = jax.random.fold_in(key, index)
            return self.sampler.step(self.energy_fn, move_key, state)

        new, infos = jax.vmap(step, (0, 0, None))(self.keys, states, index)
        # A sampler that changes a type would fail below, in words about a scan.
        chex.assert_trees_all_equal_shapes_and_dtypes(new, states)
        return new, infos

    def moves(self, states: Any, first: int | Array, count: int) -> Any:
        """Makes `count` moves whose results are discarded."""
        if count == 0:  # a scan of no moves would trace the energy all the same
            return states
        if count == 1:  # outside of a scan XLA leaves out what is not used
            return self.move(states, first)[0]

        def body(states: Any, index: Array) -> tuple[Any, None]:
            return self.move(states, index)[0], None

        return jax.lax.scan(body, states, first + jnp.arange(count))[0]

    def kept_move(
        self, states: Any, means: Any, index: int | Array
    ) -> tuple[Any, Any, Any]:
        """Makes one move, and collects it or updates the running means."""
        states, infos = self.move(states, index)
        if self.collect is not None:
            return states, means, jax.vmap(self.collect)(states, infos)
        count, means = means
        # A running mean, not a sum: float32 sums lose small terms in long runs.
        update = functools.partial(running_mean, count=(count := count + 1))
        return states, (count, jax.tree.map(update, means, infos)), None

    def segment(
        self, states: Any, means: Any, first: int | Array, segment: Segment
    ) -> tuple[Any, Any, Any]:
        num_lead, has_odd, num_periods, thin, num_tail = segment
        states = self.moves(states, first, num_lead)
        done = first + num_lead
        odd = None
        if has_odd:
            states, means, odd = self.kept_move(states, means, done)
            done = done + 1

        def period(carry: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], Any]:
            states, means = carry
            states = self.moves(states, index, thin - 1)
            states, means, kept = self.kept_move(states, means, index + thin - 1)
            return (states, means), kept

        firsts = done + thin * jnp.arange(num_periods)
        (states, means), collected = jax.lax.scan(period, (states, means), firsts)
        if has_odd:
            collected = jax.tree.map(
                lambda one, rest: jnp.concatenate([one[None], rest]), odd, collected
            )
        done = done + thin * num_periods
        return self.moves(states, done, num_tail), means, collected
