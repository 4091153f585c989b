"""Functions that run one chain, or many independent chains, as one compiled program."""

import functools
from collections.abc import Callable
from typing import Any

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
from ebmjax.samplers.sampler import Sampler
from ebmjax.samplers.walk import Segment, Walk, make_segment, no_means
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
            segment=make_segment(first, end, num_burn_in, thin),
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


def sample_ends(
    sampler: Sampler, energy_fn: EnergyFn, key: Key, x: Array, num_steps: int
) -> tuple[Array, Any]:
    """Returns the ends of chains `[chains, *event]` and the mean infos `[chains]`.

    The chains are those of `sample_chains`. The infos are means over all moves but the
    last, if there are several: what a move says of its end is then not needed there,
    and an unadjusted sampler saves one gradient.
    """
    x, energy_fn = check_chains(key, x), as_pytree(energy_fn)
    num_kept = max(num_steps - 1, 1)
    states, means, _ = _sample_chains(
        energy_fn,
        key,
        x,
        None,
        0,
        sampler=sampler,
        collect=None,
        segment=Segment(0, False, num_kept, 1, num_steps - num_kept),
        num_chains=x.shape[0],
        is_start=True,
        is_end=True,
        layout=lay_out(x, (energy_fn, key, x)),
    )
    return states.position, means[1]


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
