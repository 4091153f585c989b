"""Functions that run one chain, or many independent chains, as one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ebmjax.checks import (
    check_chain_axis,
    check_chains,
    check_count,
    check_positions,
    check_tree,
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
from ebmjax.samplers.positions import chain_energy, flatten, replace, unflattener
from ebmjax.samplers.recompilation import watched_jit
from ebmjax.samplers.reports import (
    progress_bar,
    reports_divergence,
    warn_of_divergence,
)
from ebmjax.samplers.sampler import Sampler
from ebmjax.samplers.walk import Segment, Walk, check_state, make_segment, no_means
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["sample_chain", "sample_chains"]


def sample_chain(
    sampler: Sampler, energy_fn: EnergyFn, key: Key, x: Any, num_steps: int
) -> tuple[Any, Any]:
    """Runs one chain.

    As in `sample_chains`, one program is compiled for each sampler, energy function,
    number of moves and shape.

    Args:
      sampler: Sampler, as `langevin` and `mala` return it.
      energy_fn: Energy of one example.
      key: Typed key; move `t` uses `fold_in(key, t)`.
      x: Initial position, `[*event]`, or a tree of arrays as in `sample_chains`.
      num_steps: Number of moves.

    Returns:
      `(state, infos)`, the last state and the infos of all moves, `[num_steps]`.

    Raises:
      ValueError: If `num_steps` is negative, `x` is not floating-point, or the energy
        is not a scalar.
    """
    check_count("num_steps", num_steps, 0)
    x = check_tree("x", x)
    energy_fn = as_pytree(energy_fn)
    layout = lay_out(jax.tree.map(lambda leaf: leaf[None], x), (energy_fn, key, x))
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
    x: Any,
    *,
    sampler: Sampler,
    num_steps: int,
    layout: Layout,
) -> tuple[Any, Any]:
    unflatten = unflattener(jax.tree.map(lambda leaf: leaf[None], x))
    energy_fn = chain_energy(energy_fn, unflatten, None)

    def move(state: Any, step: Array) -> tuple[Any, Any]:
        return sampler.step(energy_fn, jax.random.fold_in(key, step), state)

    start = x if unflatten is None else ravel_pytree(x)[0]
    state = sampler.init(energy_fn, start)
    state, infos = jax.lax.scan(move, state, jnp.arange(num_steps))
    return replace(state, unflatten), infos


def sample_chains(
    sampler: Sampler,
    energy_fn: Callable[..., Array],
    key: Key,
    x: Any,
    num_steps: int,
    *,
    condition: Any = None,
    num_burn_in: int = 0,
    thin: int = 1,
    collect: Callable[[Any, Any], Any] | None = lambda state, info: info,
    state: Any = None,
    first_move: int = 0,
    progress: bool = False,
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

    A long run may be made in parts, each of which goes on from the state of the part
    before it. The parts have the bits of one run if each ends with the burn-in or after
    a whole period of `thin`; otherwise a draw at the seam may be rounded differently. A
    run that saves the state and the draws of every part can be killed and resumed:

        state, first = sample_chains(sampler, energy_fn, key, x, 10)
        state, second = sample_chains(sampler, energy_fn, key, None, 10,
                                      state=state, first_move=10)

    The chains are divided among the devices on which `x` (or a bound parameter, or the
    key) was committed with `jax.device_put`, and otherwise among all local devices. If
    arrays are traced (inside `jit`, `pmap`, or an update), the chains stay on the
    device that traces. A CPU is one device unless
    `XLA_FLAGS=--xla_force_host_platform_device_count=<cores>` is set. For cheap
    energies, that is the faster way to use its cores.

    Args:
      sampler: Sampler, as `langevin` and `mala` return it.
      energy_fn: Energy of one example, `[*event] -> []`, or of one example and the
        chain's condition.
      key: Typed key.
      x: Initial positions, `[chains, *event]`; may be sharded over devices along the
        first axis. A tree of such arrays, all of one type, is a position of several
        parts: the energy and `collect` see the tree of one chain. The sampler sees one
        flat array, in the order of `jax.flatten_util.ravel_pytree`, and so do its
        options of the event's shape and the other fields of its state. None if `state`
        is given.
      num_steps: Number of moves of this call, including those of the burn-in.
      condition: Tree of arrays `[chains, ...]`. The energy of a chain is
        `energy_fn(x, condition)` with the chain's own. None means that the energy takes
        the position alone.
      num_burn_in: Number of first moves of the run of which nothing is collected.
      thin: Period of collecting: every `thin`-th move after the burn-in is collected.
      collect: Function from `(state, info)` of one chain to the pytree that is kept of
        each collected move. None keeps only the mean of the infos, in constant memory.
      state: State from which the run goes on, as a call with the same sampler and
        energy has returned it.
      first_move: Number of moves that earlier calls have made of this run. Burn-in and
        thinning count from the beginning of the run.
      progress: Whether to show a bar in a terminal or a notebook, which moves every
        `progress_every` moves. It needs tqdm.
      on_progress: Function that the host calls with the number of moves done in the
        run, every `progress_every` moves; the chains wait for it. None, without
        `progress`, runs all moves as one program. Neither changes a random number.
      progress_every: Number of moves between two reports of progress.

    Returns:
      `(state, collected)`, the last states `[chains, ...]` and the results of
      `collect`, stacked as `[kept_steps, chains, ...]`, where an uninterrupted run
      keeps `kept_steps = (num_steps - num_burn_in) // thin`. With `collect=None`,
      `collected` is the infos' means over the kept moves of this call, `[chains]`,
      which are zeros if none is kept. A chain whose energy becomes NaN shows it in its
      own states and infos, and in no other chain's.

    Raises:
      ValueError: If a count is negative, `thin` or `progress_every` is not positive,
        the burn-in is longer than the run, `x` is not floating-point or has no chain
        axis, the condition has another number of chains, the state is not one of this
        sampler, the key is not a typed one, the energy is not a scalar, or progress is
        asked for where arrays are traced.

    Warns:
      UserWarning: If moves after the burn-in diverged, once for a call. This includes
        moves that are not collected. Only samplers whose info has `is_divergent` report
        divergent moves, as `hmc` does, and none is counted where arrays are traced.
    """
    check_count("num_steps", num_steps, 0)
    check_count("num_burn_in", num_burn_in, 0)
    check_count("thin", thin, 1)
    check_count("first_move", first_move, 0)
    check_count("progress_every", progress_every, 1)
    last_move = first_move + num_steps
    if num_burn_in > last_move:
        sum_of = "first_move + num_steps" if first_move else "num_steps"
        raise ValueError(
            f"num_burn_in must be at most {sum_of} = {last_move}, got {num_burn_in}"
        )
    if state is None:
        positions = check_positions(key, x)
    else:
        if x is not None or not hasattr(state, "position"):
            found = type(state if x is None else x).__name__
            raise ValueError(
                "a run goes on from the state that sample_chains returned, with"
                f" x=None, got {'state' if x is None else 'x'} of type {found}"
            )
        positions = check_positions(key, state.position, "state.position")
    num_chains = jax.tree.leaves(positions)[0].shape[0]
    states = positions
    if state is not None:
        states = check_chain_axis("state", state, num_chains)
    condition = check_chain_axis("condition", condition, num_chains)
    energy_fn = as_pytree(energy_fn)
    layout = lay_out(positions, (energy_fn, key), (states, condition))
    is_reported = progress or on_progress is not None
    if is_reported and layout.is_traced:
        name = "progress" if progress else "on_progress"
        raise ValueError(
            f"{name} must be {False if progress else None} where arrays are traced"
            " (under jit, pmap or vmap): the host cannot be called from there"
        )
    ends = [last_move]
    if is_reported:
        ends = [*range(first_move + progress_every, last_move, progress_every), *ends]
    means: Any = None
    pieces, counts, first = [], [], first_move
    with progress_bar(first_move, last_move, is_shown=progress) as bar:
        for end in ends:
            states, means, num_divergent, collected = _sample_chains(
                energy_fn,
                key,
                states,
                means,
                condition,
                first,
                sampler=sampler,
                collect=collect,
                segment=make_segment(first, end, num_burn_in, thin),
                num_burn_in=num_burn_in,
                num_chains=num_chains,
                is_begun=state is not None or first > first_move,
                is_start=first == first_move,
                is_end=end == last_move,
                layout=layout,
            )
            pieces.append(collected)
            counts.append(num_divergent)
            if is_reported:
                jax.block_until_ready(states)
                bar.update(end - first)
            first = end
            is_due = (end - first_move) % progress_every == 0 and end > first_move
            if on_progress is not None and is_due:
                on_progress(end)
    warn_of_divergence(counts, last_move - max(first_move, num_burn_in))
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
    states, means, _, _ = _sample_chains(
        energy_fn,
        key,
        x,
        None,
        None,
        0,
        sampler=sampler,
        collect=None,
        segment=Segment(0, False, num_kept, 1, num_steps - num_kept),
        num_burn_in=0,
        num_chains=x.shape[0],
        is_begun=False,
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
        "num_burn_in",
        "num_chains",
        "is_begun",
        "is_start",
        "is_end",
        "layout",
    ),
)
def _sample_chains(
    energy_fn: Callable[..., Array],
    key: Key,
    states: Any,
    means: Any,
    condition: Any,
    first: int | Array,
    *,
    sampler: Sampler,
    collect: Callable[[Any, Any], Any] | None,
    segment: Segment,
    num_burn_in: int,
    num_chains: int,
    is_begun: bool,
    is_start: bool,
    is_end: bool,
    layout: Layout,
) -> tuple[Any, Any, Array | None, Any]:
    """Runs one segment of a run; `states` are positions unless the run has begun.

    `means` are the counts and running means of `collect=None`, `[chains]`. They begin,
    and chains are added that fill up the layout, at the start of a call.
    """
    keys = chain_keys(key, layout.num_chains)
    positions = states.position if is_begun else states
    unflatten = unflattener(positions)
    if not is_begun and unflatten is None and condition is None:
        warn_of_chain_axis(energy_fn, states)
    # The samplers see flat positions.
    states = replace(states, flatten) if is_begun else flatten(states)
    states = pad_chains(states, layout.num_chains)
    condition = pad_chains(condition, layout.num_chains)
    x = states.position if is_begun else states
    one = chain_energy(
        energy_fn, unflatten, jax.tree.map(lambda leaf: leaf[0], condition)
    )
    if is_begun and is_start:
        check_state(sampler, one, states)
    if is_start and collect is None:
        means = no_means(sampler, one, x)
    is_counted = not layout.is_traced and reports_divergence(sampler, x[0])

    def local(
        energy_fn: Callable[..., Array],
        first: Array,
        keys: Key,
        states: Any,
        means: Any,
        condition: Any,
    ) -> tuple[Any, ...]:
        def block(
            keys: Key, states: Any, means: Any, condition: Any
        ) -> tuple[Any, ...]:
            walk = Walk(
                sampler, energy_fn, keys, collect, condition, unflatten, num_burn_in
            )
            if not is_begun:
                states = walk.init(states)
            counts = jnp.zeros(len(keys), jnp.int32) if is_counted else None
            (states, counts), means, collected = walk.segment(
                (states, counts), means, first, segment
            )
            return states, means, counts, collected

        return over_blocks(block, layout, (0, 0, 0, 1))(keys, states, means, condition)

    states, means, counts, collected = over_devices(
        local, layout, (None, None, 0, 0, 0, 0), (0, 0, 0, 1)
    )(energy_fn, first, keys, states, means, condition)
    if unflatten is not None:
        states = replace(states, jax.vmap(unflatten))
    if layout.num_chains > num_chains:
        collected = jax.tree.map(lambda leaf: leaf[:, :num_chains], collected)
        if is_end:
            ends = states, means
            states, means = jax.tree.map(lambda leaf: leaf[:num_chains], ends)
        counts = None if counts is None else counts[:num_chains]
    return states, means, counts, collected
