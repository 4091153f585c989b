"""The moves of a block of chains, and which of them are kept."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ebmjax.checks import scalar_energy
from ebmjax.samplers.positions import chain_energy, replace
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


def check_state(sampler: Sampler, energy_fn: EnergyFn, states: Any) -> None:
    """Raises unless these are states of the sampler, `[chains, ...]`.

    Call it where a program is traced, so that a compiled program pays nothing.
    """
    init = jax.vmap(functools.partial(sampler.init, energy_fn))
    expected, found = (
        (type(tree).__name__, jax.tree.structure(tree), _types(tree))
        for tree in (jax.eval_shape(init, states.position), states)
    )
    if expected != found:
        raise ValueError(
            f"state must be a state of this sampler, a {expected[0]} of"
            f" {', '.join(expected[2])}, got a {found[0]} of {', '.join(found[2])}"
        )


def _types(tree: Any) -> list[str]:
    """Returns the types and shapes of the arrays of one chain."""
    leaves = jax.tree.leaves(tree)
    return [f"{leaf.dtype}[{','.join(map(str, leaf.shape[1:]))}]" for leaf in leaves]


class Walk(NamedTuple):
    """Moves of a block of chains.

    The states that it moves are pairs: the sampler's states, and the numbers of
    divergent moves so far, `[chains]`, or None if the sampler reports none.

    Attributes:
      sampler: Sampler that moves the chains.
      energy_fn: Energy of one example, or of one example and its condition.
      keys: Keys of the chains, `[chains]`.
      collect: Function from `(state, info)` to what is kept, or None for running means.
      conditions: Conditions of the chains, a tree of `[chains, ...]`, or None.
      unflatten: Function from a flat position to a tree, or None.
      num_burn_in: Number of first moves of which no divergence is counted.
    """

    sampler: Sampler
    energy_fn: EnergyFn
    keys: Key
    collect: Callable[[Any, Any], Any] | None
    conditions: Any = None
    unflatten: Callable[[Array], Any] | None = None
    num_burn_in: int = 0

    def init(self, positions: Array) -> Any:
        """Returns the samplers' states at flat positions `[chains, *event]`."""

        def begin(position: Array, condition: Any) -> Any:
            energy_fn = chain_energy(self.energy_fn, self.unflatten, condition)
            return self.sampler.init(energy_fn, position)

        return jax.vmap(begin)(positions, self.conditions)

    def move(self, states: Any, index: int | Array) -> tuple[Any, Any]:
        def step(
            key: Key, state: Any, condition: Any, index: int | Array
        ) -> tuple[Any, Any]:
            energy_fn = chain_energy(self.energy_fn, self.unflatten, condition)
            move_key = jax.random.fold_in(key, index)
            return self.sampler.step(energy_fn, move_key, state)

        states, counts = states
        axes = (0, 0, 0, None)
        new, infos = jax.vmap(step, axes)(self.keys, states, self.conditions, index)
        # A sampler that changes a type would fail below, in words about a scan.
        chex.assert_trees_all_equal_shapes_and_dtypes(new, states)
        if counts is not None:
            is_counted = infos.is_divergent & (index >= self.num_burn_in)
            counts = counts + is_counted.astype(counts.dtype)
        return (new, counts), infos

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
        if (collect := self.collect) is not None:

            def keep(state: Any, info: Any) -> Any:
                return collect(replace(state, self.unflatten), info)

            return states, means, jax.vmap(keep)(states[0], infos)
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
