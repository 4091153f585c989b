"""Functions that run one chain, or many independent chains, as one compiled program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ebmjax.checks import (
    check_array,
    check_chains,
    check_count,
    scalar_energy,
    warn_of_chain_axis,
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
from ebmjax.samplers.recompilation import watched_jit
from ebmjax.samplers.sampler import Sampler, running_mean
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["sample_chain", "sample_chains"]


def sample_chain(
    sampler: Sampler, energy_fn: EnergyFn, key: Key, x: Array, num_steps: int
) -> tuple[Any, Any]:
    """Runs one chain.

    As in `sample_chains`, one program is compiled for each sampler, energy function,
    number of moves and shape.

    Args:
      sampler: Sampler, as `langevin` and `mala` return it.
      energy_fn: Energy of one example.
      key: Typed key; move `t` uses `fold_in(key, t)`.
      x: Initial position, `[*event]`.
      num_steps: Number of moves.

    Returns:
      `(state, infos)`, the last state and the infos of all moves, `[num_steps]`.

    Raises:
      ValueError: If `num_steps` is negative, `x` is not floating-point, or the energy
        is not a scalar.
    """
    check_count("num_steps", num_steps, 0)
    x = check_array("x", x)
    energy_fn = as_pytree(energy_fn)
    layout = lay_out(x[None], (energy_fn, key, x))
    results: tuple[Any, Any] = _sample_chain(
        energy_fn, key, x, sampler=sampler, num_steps=num_steps, layout=layout
    )
    return results


@watched_jit(
    "sample_chain",
    ("sampler", "energy_fn"),
    static_argnames=("sampler", "num_steps", "layout"),
)
def _sample_chain(
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    *,
    sampler: Sampler,
    num_steps: int,
    layout: Layout,
) -> tuple[Any, Any]:
    energy_fn = scalar_energy(energy_fn)

    def move(state: Any, step: Array) -> tuple[Any, Any]:
        return sampler.step(energy_fn, jax.random.fold_in(key, step), state)

    return jax.lax.scan(move, sampler.init(energy_fn, x), jnp.arange(num_steps))


def sample_chains(
    sampler: Sampler,
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    num_steps: int,
    *,
    num_burn_in: int = 0,
    thin: int = 1,
    collect: Callable[[Any, Any], Any] | None = lambda state, info: info,
    on_progress: Callable[[int], None] | None = None,
    progress_every: int = 1000,
) -> tuple[Any, Any]:
    """Runs many independent chains on all local devices.

    One program is compiled for each sampler, energy function, `collect`, counts and
    shapes. A function or a sampler that is made anew is compiled anew, even if it is
    equal to an earlier one: define it once, outside of loops. Bind parameters with
    `functools.partial(energy, params)`: they are then arguments of the compiled
    program, and new parameters need no new program. The values that a lambda closes
    over are read when it is compiled. A lambda that is kept while they change continues
    with the old values, as under `jax.jit`.

    Every chain has its own random numbers, which depend only on `key`, the chain's
    index and the move. They do not depend on the number of chains, devices or kept
    draws, or on the layout of the work.

    The chains are divided among the devices on which `x` (or a bound parameter, or the
    key) was committed with `jax.device_put`, and otherwise among all local devices. If
    arrays are traced (inside `jit`, `pmap`, or an update), the chains stay on the
    device that traces. A CPU is one device unless
    `XLA_FLAGS=--xla_force_host_platform_device_count=<cores>` is set. For cheap
    energies, that is the faster way to use its cores.

    Args:
      sampler: Sampler, as `langevin` and `mala` return it.
      energy_fn: Energy of one example, `[*event] -> []`.
      key: Typed key.
      x: Initial positions, `[chains, *event]`; may be sharded over devices along the
        first axis.
      num_steps: Number of all moves, including the burn-in.
      num_burn_in: Number of first moves of which nothing is collected.
      thin: Period of collecting: every `thin`-th move after the burn-in is collected.
      collect: Function from `(state, info)` of one chain to the pytree that is kept of
        each collected move. None keeps only the mean of the infos, in constant memory.
      on_progress: Function that the host calls with the number of moves done, every
        `progress_every` moves; the chains wait for it. None runs all moves as one
        program. Neither changes a random number.
      progress_every: Number of moves between two calls of `on_progress`.

    Returns:
      `(state, collected)`, the last states `[chains, ...]` and the results of
      `collect`, stacked as `[kept_steps, chains, ...]` with
      `kept_steps = (num_steps - num_burn_in) // thin`. With `collect=None`, `collected`
      is the infos' means over the kept moves, `[chains]`, which are zeros if none is
      kept. A chain whose energy becomes NaN shows it in its own states and infos, and
      in no other chain's.

    Raises:
      ValueError: If a count is negative, `thin` or `progress_every` is not positive,
        the burn-in is longer than the run, `x` is not floating-point or has no chain
        axis, the key is not a typed one, the energy is not a scalar, or `on_progress`
        is given where arrays are traced.
    """
    check_count("num_steps", num_steps, 0)
    check_count("num_burn_in", num_burn_in, 0)
    check_count("thin", thin, 1)
    check_count("progress_every", progress_every, 1)
    if num_burn_in > num_steps:
        raise ValueError(
            f"num_burn_in must be at most num_steps = {num_steps}, got {num_burn_in}"
        )
    x = check_chains(key, x)
    energy_fn = as_pytree(energy_fn)
    layout = lay_out(x, (energy_fn, key, x))
    if on_progress is not None and layout.is_traced:
        raise ValueError(
            "on_progress must be None where arrays are traced (under jit, pmap or"
            " vmap): the host cannot be called from there"
        )
    ends = [num_steps]
    if on_progress is not None:
        ends = [*range(progress_every, num_steps, progress_every), num_steps]
    states: Any = x
    means: Any = None
    pieces, first = [], 0
    for end in ends:
        states, means, collected = _sample_chains(
            energy_fn,
            key,
            states,
            means,
            first,
            sampler=sampler,
            collect=collect,
            segment=_segment(first, end, num_burn_in, thin),
            num_chains=x.shape[0],
            is_start=first == 0,
            is_end=end == num_steps,
            layout=layout,
        )
        pieces.append(collected)
        first = end
        if on_progress is not None and end % progress_every == 0 and end > 0:
            jax.block_until_ready(states)
            on_progress(end)
    if collect is None:
        return states, means[1]
    if len(pieces) == 1:
        return states, pieces[0]
    return states, jax.tree.map(lambda *parts: jnp.concatenate(parts), *pieces)


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


def _segment(first: int, end: int, num_burn_in: int, thin: int) -> Segment:
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


@watched_jit(
    "sample_chains",
    ("sampler", "energy_fn", "collect"),
    static_argnames=(
        "sampler",
        "collect",
        "segment",
        "num_chains",
        "is_start",
        "is_end",
        "layout",
    ),
)
def _sample_chains(
    energy_fn: EnergyFn,
    key: Key,
    states: Any,
    means: Any,
    first: int | Array,
    *,
    sampler: Sampler,
    collect: Callable[[Any, Any], Any] | None,
    segment: Segment,
    num_chains: int,
    is_start: bool,
    is_end: bool,
    layout: Layout,
) -> tuple[Any, Any, Any]:
    """Runs one segment of a run; `states` are positions at the start.

    `means` are the counts and running means of `collect=None`, `[chains]`.
    """
    keys = chain_keys(key, layout.num_chains)
    if is_start:
        warn_of_chain_axis(energy_fn, states)
        states = pad_chains(states, layout.num_chains)
        if collect is None:
            means = no_means(sampler, energy_fn, states)

    def local(
        energy_fn: EnergyFn, first: Array, keys: Key, states: Any, means: Any
    ) -> tuple[Any, ...]:
        energy_fn = scalar_energy(energy_fn)

        def block(keys: Key, states: Any, means: Any) -> tuple[Any, Any, Any]:
            if is_start:
                init = functools.partial(sampler.init, energy_fn)
                states = jax.vmap(init)(states)
            walk = Walk(sampler, energy_fn, keys, collect)
            return walk.segment(states, means, first, segment)

        return over_blocks(block, layout, (0, 0, 1))(keys, states, means)

    states, means, collected = over_devices(
        local, layout, (None, None, 0, 0, 0), (0, 0, 1)
    )(energy_fn, first, keys, states, means)
    if layout.num_chains > num_chains:
        collected = jax.tree.map(lambda leaf: leaf[:, :num_chains], collected)
        if is_end:
            ends = states, means
            states, means = jax.tree.map(lambda leaf: leaf[:num_chains], ends)
    return states, means, collected


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
