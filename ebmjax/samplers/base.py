"""What a sampler is, and how to run one chain or many.

A `Sampler` is a pair of functions on one chain. Its hyper-parameters are fixed when it
is made; the energy is given at every call, because in training the energy changes at
every update and the sampler does not.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ebmjax.types import DEVICE, Array, EnergyFn, Key

__all__ = ["Sampler", "sample_chain", "sample_chains"]

BLOCK = 64
"""Chains that share one folded key. Part of the random numbers: never change it."""

CACHE_ELEMENTS, FEWEST_CHAINS = 2**15, 16
MOST_CHAINS, MOST_CHAINS_OF_LARGE, LARGE_ELEMENTS = 128, 256, 2**12
"""How many chains a CPU core walks together, so that what a move touches stays in its
cache, and so that XLA does not divide small arrays among threads, each of which would
wait for the other device's. Products with large matrices, those of so many elements,
want more rows. Changes speed and no random number."""


class Sampler(NamedTuple):
    """One Markov chain's two functions.

    Attributes:
      init: `init(energy_fn, x) -> state` for a position `x: [*event]`. What the state
        caches (energy, gradient) belongs to `state.position`.
      step: `step(energy_fn, key, state) -> (state, info)`, one move. `info` is a
        NamedTuple of scalars that only people and diagnostics read.
    """

    init: Callable[[EnergyFn, Array], Any]
    step: Callable[[EnergyFn, Key, Any], tuple[Any, Any]]


def check_number(name: str, value, *, positive: bool) -> None:
    """Raises unless `value` is above 0 (or at least 0); traced values pass."""
    if isinstance(value, jax.core.Tracer):
        return
    if positive and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}")


def check_path(name: str, values) -> np.ndarray:
    """A way from 0, which is not on it, to 1, which is: `[n]`, increasing."""
    found = np.asarray(values, float)
    is_increasing = found.ndim == 1 and found.size and (np.diff(found) > 0).all()
    if not is_increasing or not found[0] > 0 or found[-1] != 1:
        raise ValueError(
            f"{name} must increase from above 0 to 1, got {np.array2string(found)}"
        )
    return found


def check_count(name: str, value, least: int) -> None:
    """Raises unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(
            f"{name} must be a whole number of at least {least}, got {value!r}"
        )


def check_values(values, dtype) -> None:
    """Raises unless they are two different numbers that this dtype can hold."""
    found = tuple(values)
    if len(found) != 2 or found[0] == found[1]:
        raise ValueError(f"values must be two different numbers, got {found}")
    for number in found:
        if np.asarray(number).astype(dtype) != number:
            raise ValueError(f"values must be {np.dtype(dtype)} as x is, got {found}")


def value(function: EnergyFn, x: Array) -> Array:
    """`function(x)`, in float32 at least: an energy may compute in bfloat16."""
    result = jnp.asarray(function(x))
    return result.astype(jnp.promote_types(result.dtype, jnp.float32))


def value_and_gradient(energy_fn: EnergyFn, x: Array) -> tuple[Array, Array]:
    """`energy_fn(x)` as `value` has it, and its gradient, of the type of `x`."""
    return jax.value_and_grad(functools.partial(value, energy_fn))(x)


def draw_uniform(key: Key, shape: tuple[int, ...], position: Array) -> Array:
    """Uniform on (0, 1], of the position's type, whatever the energy's; never bfloat16,
    which has too few. Never 0: its logarithm would accept the worst of proposals."""
    dtype = jnp.promote_types(position.dtype, jnp.float32)
    return 1 - jax.random.uniform(key, shape, dtype)


def metropolis(
    key: Key, log_ratio: Array, proposed: Any, state: Any
) -> tuple[Any, Array, Array]:
    """Takes the proposed state with probability `min(1, exp(log_ratio))`.

    Returns the state, that probability, and whether it was taken. The whole state moves
    or the whole state stays: a kept position is never paired with a refused gradient.
    A NaN ratio refuses, and its probability is NaN.
    """
    uniform = draw_uniform(key, (), state.position)
    is_accepted = jnp.log(uniform) <= log_ratio
    state = jax.tree.map(
        lambda new, old: jnp.where(is_accepted, new, old), proposed, state
    )
    return state, jnp.exp(jnp.minimum(log_ratio, 0.0)), is_accepted


def sample_chain(
    sampler: Sampler, energy_fn: EnergyFn, key: Key, x: Array, num_steps: int
) -> tuple[Any, Any]:
    """Runs one chain.

    Args:
      sampler: From `langevin`, `mala` and their like.
      energy_fn: Energy of one example.
      key: A typed key; move `t` uses `fold_in(key, t)`.
      x: Where the chain begins, `[*event]`.
      num_steps: Number of moves.

    Returns:
      `(state, infos)`: the last state, and the infos of all moves `[num_steps]`.
    """

    energy_fn = scalar_energy(energy_fn)

    def move(state, step):
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
    """Runs many independent chains, on all local devices.

    Compiled once for a sampler, an energy function, counts, a `collect` and shapes:
    make functions once, not anew at every call. Bind parameters with
    `functools.partial(energy, params)`: they are then arguments of the compiled
    program, and new ones need no new compilation. What a lambda closes over is read
    when it is compiled: a lambda kept while its parameters change goes on with the
    old ones, as under `jax.jit`.

    Every chain has random numbers of its own that depend on `key`, on the chain's index
    and on the move alone: not on how many chains, devices or kept draws there are, nor
    on how the work is laid out.

    The chains are divided among the devices on which `x` (or a bound parameter, or the
    key) was put on purpose, with `jax.device_put`, and else among all local devices.
    Called while something is traced (inside of `jit`, `pmap`, an update), it stays on
    the device that traces. A CPU is one device unless
    `XLA_FLAGS=--xla_force_host_platform_device_count=<cores>` says otherwise; for
    cheap energies that is the faster way to use its cores.

    Args:
      sampler: From `langevin`, `mala` and their like.
      energy_fn: Energy of one example, `[*event] -> []`.
      key: A typed key.
      x: Where the chains begin, `[chains, *event]`; may be sharded over devices along
        its first axis.
      num_steps: Number of all moves, burn-in included.
      num_burn_in: First moves of which nothing is collected.
      thin: Every `thin`-th move after burn-in is collected.
      collect: What to keep of each collected move, `(state, info) -> pytree` of one
        chain. None keeps nothing but the mean of the infos, in constant memory.
      on_progress: Called by the host with the number of moves done, every
        `progress_every` moves; the chains wait for it. None runs all moves as one
        program. Neither changes a random number.
      progress_every: Moves between two calls of `on_progress`.

    Returns:
      `(state, collected)`: the last states `[chains, ...]`, and what `collect`
      returned, stacked `[kept_steps, chains, ...]` with `kept_steps = (num_steps -
      num_burn_in) // thin`; with `collect=None` the infos' means over the kept moves,
      `[chains]`, zeros if none is kept. A chain whose energy becomes NaN shows it in
      its own states and infos, and in no other chain's.

    Raises:
      ValueError: If a count is negative, `thin` or `progress_every` is not positive,
        the burn-in is longer than the run, `x` is not floating-point or has no chain
        axis, the key is not a typed one, the energy is not a scalar, or `on_progress`
        is given where arrays are traced.
    """
    counts = (("num_steps", num_steps, 0), ("num_burn_in", num_burn_in, 0))
    counts += (("thin", thin, 1), ("progress_every", progress_every, 1))
    for name, count, least in counts:
        check_count(name, count, least)
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
    states, means, pieces, first = x, None, [], 0
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


def check_chains(key: Key, x: Array) -> Array:
    """Raises unless these are a typed key and `[chains, *event]`, which it returns."""
    key_type = getattr(key, "dtype", type(key))
    x = jnp.asarray(x)
    if x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be floating-point [chains, *event], got {x.dtype}{x.shape}"
        )
    if x.shape[0] == 0:
        raise ValueError(f"x must have at least one chain, got shape {x.shape}")
    if not jnp.issubdtype(key_type, jax.dtypes.prng_key):
        raise ValueError(
            f"key must be a typed key, as jax.random.key makes, got {key_type}"
        )
    return x


def as_pytree(energy_fn: EnergyFn) -> jax.tree_util.Partial:
    """Bound arrays become arguments of the compiled program, all else stays static."""
    if not isinstance(energy_fn, functools.partial):  # which tree_util.Partial is too
        return jax.tree_util.Partial(energy_fn)
    leaves, structure = jax.tree.flatten((energy_fn.args, energy_fn.keywords))
    kinds = jax.Array | np.ndarray | np.floating
    is_array = tuple(isinstance(leaf, kinds) for leaf in leaves)
    others = tuple(leaf for leaf, found in zip(leaves, is_array) if not found)
    types = tuple(type(leaf) for leaf in others)  # 2 and 2.0 are equal
    bound = _Bound(energy_fn.func, structure, is_array, others, types)
    try:
        hash(bound)
    except TypeError:
        return jax.tree_util.Partial(energy_fn)
    arrays = [leaf for leaf, found in zip(leaves, is_array) if found]
    return jax.tree_util.Partial(bound, *arrays)


class _Bound(NamedTuple):
    """A function with all of its bound arguments but the arrays; equal by value."""

    function: Callable
    structure: Any
    is_array: tuple[bool, ...]
    others: tuple[Any, ...]
    types: tuple[type, ...]

    def __call__(self, *arguments):
        num_arrays = sum(self.is_array)
        arrays, rest = iter(arguments[:num_arrays]), arguments[num_arrays:]
        others = iter(self.others)
        leaves = [next(arrays) if found else next(others) for found in self.is_array]
        args, keywords = jax.tree.unflatten(self.structure, leaves)
        return self.function(*args, *rest, **keywords)


def scalar_energy(energy_fn: EnergyFn) -> EnergyFn:
    """The same energy, which raises where it is no scalar."""

    def checked(x):
        energy = energy_fn(x)
        if jnp.shape(energy) != ():
            raise ValueError(
                f"energy_fn must return a scalar for one example of shape {x.shape},"
                f" got shape {jnp.shape(energy)}"
            )
        return energy

    return checked


def shaped_score(score_fn: Callable[[Array, Array], Array]):
    """The same score of `(x, time)`, which raises where it has another shape than x."""

    def checked(x, time):
        score = score_fn(x, time)
        if jnp.shape(score) != x.shape:
            raise ValueError(
                "score_fn must return an array of the example's shape"
                f" {x.shape}, got {jnp.shape(score)}"
            )
        return score

    return checked


# --- how chains are laid out over devices and caches ---------------------------------


class Layout(NamedTuple):
    """Where chains run; changes speed and no random number.

    Attributes:
      devices: One device or more, among which the chains are divided; None where arrays
        are traced, for the program that is being traced to decide.
      num_blocks: Blocks of chains that each device walks one after the other.
      block_size: Chains a block.
    """

    devices: tuple[Any, ...] | None
    num_blocks: int
    block_size: int

    @property
    def is_traced(self) -> bool:
        return self.devices is None

    @property
    def num_chains(self) -> int:
        """With those that only fill up the last block."""
        return len(self.devices or (None,)) * self.num_blocks * self.block_size

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (DEVICE,))


def lay_out(x: Array, arrays: Any) -> Layout:
    """The layout of chains `x`; `arrays` are all that the program will be given."""
    num_chains, *event_shape = x.shape
    leaves = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    # What a function closes over may be traced, which no argument shows: under a trace
    # the simplest sum is.
    probe = jnp.zeros(()) + 0
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*leaves, probe)):
        return Layout(None, 1, num_chains)
    devices = _devices([x, *leaves])
    local = -(-num_chains // len(devices))
    num_blocks = 1
    # A CPU device that is not alone is one core's. One that is alone may have many
    # threads, for which a small block is too little work.
    if devices[0].platform == "cpu" and len(devices) > 1:
        size = CACHE_ELEMENTS // max(1, math.prod(event_shape))
        sizes = [np.size(leaf) for leaf in jax.tree.leaves(arrays) if leaf is not x]
        is_large = max(sizes, default=0) >= LARGE_ELEMENTS
        most = MOST_CHAINS_OF_LARGE if is_large else MOST_CHAINS
        size = min(max(size, FEWEST_CHAINS), most)
        num_blocks = max(1, -(-local // size))
    return Layout(devices, num_blocks, -(-local // num_blocks))


def _devices(leaves: list[Array]) -> tuple[Any, ...]:
    """Those of the first array that was put somewhere on purpose, else all local."""
    for leaf in leaves:
        if leaf.committed:
            if isinstance(leaf.sharding, NamedSharding):
                return tuple(leaf.sharding.mesh.devices.flat)
            return tuple(sorted(leaf.sharding.device_set, key=lambda d: d.id))
    if jax.config.jax_default_device is not None:
        return tuple(leaves[0].devices())
    return tuple(jax.local_devices())


def over_devices(function: Callable, layout: Layout, in_axes: Any, out_axes: Any):
    """`function` of local chains, run by every device of the layout on its own.

    The axes say where an argument's or a result's chains are: 0, 1, or None for what
    every device has whole.
    """
    if layout.is_traced or len(layout.devices) == 1:
        return function

    def spec(axis):
        return P() if axis is None else P(*[None] * axis, DEVICE)

    def specs(axes):
        return jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)

    return jax.shard_map(
        function,
        mesh=layout.mesh,
        in_specs=specs(in_axes),
        out_specs=specs(out_axes),
        check_vma=False,
    )


def over_blocks(function: Callable, layout: Layout, out_axes: tuple[int, ...]):
    """`function(*chains)` of one block of chains, run on all blocks in turn.

    Takes trees of `[chains, ...]` and returns a tuple of trees, each with its chains
    at the axis that `out_axes` names.
    """
    num_blocks, size = layout.num_blocks, layout.block_size
    if num_blocks == 1:
        return function

    def mapped(*trees):
        def divide(leaf):
            return leaf.reshape(num_blocks, size, *leaf.shape[1:])

        def join(axis, leaf):
            leaf = jnp.moveaxis(leaf, 0, axis)
            shape = leaf.shape[:axis] + (num_blocks * size,) + leaf.shape[axis + 2 :]
            return leaf.reshape(shape)

        blocks = jax.tree.map(divide, trees)
        results = jax.lax.map(lambda block: function(*block), blocks)
        return tuple(
            jax.tree.map(functools.partial(join, axis), result)
            for axis, result in zip(out_axes, results)
        )

    return mapped


def chain_keys(key: Key, num_chains: int) -> Key:
    """One key a chain, `[num_chains]`.

    Keyed by fixed blocks of chains and the place in the block, so that a chain draws
    the same whatever the chains around it and the devices they are on.
    """
    blocks = jnp.arange(-(-num_chains // BLOCK))
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(blocks)
    keys = jax.vmap(functools.partial(jax.random.split, num=BLOCK))(keys)
    return keys.reshape(-1)[:num_chains]


def pad_chains(tree: Any, num_chains: int) -> Any:
    """Repeats the last chain until there are `num_chains`."""

    def pad(leaf):
        missing = num_chains - leaf.shape[0]
        widths = [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]
        return jnp.pad(leaf, widths, "edge") if missing else leaf

    return jax.tree.map(pad, tree)


# --- the compiled program ------------------------------------------------------------


class Segment(NamedTuple):
    """The moves of a stretch of a run, by what is collected of them.

    Attributes:
      num_lead: First moves, of which nothing is collected.
      has_odd: Whether one collected move follows that ends a period begun earlier.
      num_periods: Whole periods of `thin` moves, the last of each collected.
      thin: Moves a period.
      num_tail: Last moves, of which nothing is collected.
    """

    num_lead: int
    has_odd: bool
    num_periods: int
    thin: int
    num_tail: int


def _segment(first: int, end: int, num_burn_in: int, thin: int) -> Segment:
    """Of the moves `first, ..., end - 1` of a run."""
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


@functools.partial(
    jax.jit,
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
    energy_fn,
    key,
    states,
    means,
    first,
    *,
    sampler,
    collect,
    segment,
    num_chains,
    is_start,
    is_end,
    layout,
):
    """One segment of a run; `states` are positions at the start.

    `means` are the counts and running means of `collect=None`, `[chains]`.
    """
    keys = chain_keys(key, layout.num_chains)
    if is_start:
        states = pad_chains(states, layout.num_chains)
        if collect is None:
            means = no_means(sampler, energy_fn, states)

    def local(energy_fn, first, keys, states, means):
        energy_fn = scalar_energy(energy_fn)

        def block(keys, states, means):
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


def no_means(sampler, energy_fn, x):
    """Counts and means before the first collected move, `[chains]`."""
    energy_fn = scalar_energy(energy_fn)

    def info(key, x):
        state = sampler.init(energy_fn, x)
        return sampler.step(energy_fn, key, state)[1]

    shapes = jax.eval_shape(jax.vmap(info, (None, 0)), jax.random.key(0), x)
    # Made of x, so that they vary over the devices of a shard_map as x does.
    zero = jnp.where(jnp.isnan(x.reshape(len(x), -1).sum(1)), 0.0, 0.0)

    def zeros(shape):
        column = zero.reshape(-1, *[1] * (len(shape.shape) - 1))
        dtype = jnp.promote_types(shape.dtype, jnp.float32)
        return jnp.broadcast_to(column, shape.shape).astype(dtype)

    return zero, jax.tree.map(zeros, shapes)


class Walk(NamedTuple):
    """The moves of a block of chains."""

    sampler: Sampler
    energy_fn: EnergyFn
    keys: Key
    collect: Callable | None

    def move(self, states, index):
        def step(key, state, index):
            move_key = jax.random.fold_in(key, index)
            return self.sampler.step(self.energy_fn, move_key, state)

        new, infos = jax.vmap(step, (0, 0, None))(self.keys, states, index)
        # A sampler that changes a type would fail below, in words about a scan.
        chex.assert_trees_all_equal_shapes_and_dtypes(new, states)
        return new, infos

    def moves(self, states, first, count):
        """`count` moves that nobody looks at."""
        if count == 0:  # a scan of no moves would trace the energy all the same
            return states

        def body(states, index):
            return self.move(states, index)[0], None

        return jax.lax.scan(body, states, first + jnp.arange(count))[0]

    def kept_move(self, states, means, index):
        """One move, with what is collected of it or the means brought up to date."""
        states, infos = self.move(states, index)
        if self.collect is not None:
            return states, means, jax.vmap(self.collect)(states, infos)
        count, means = means
        # A running mean, not a sum: float32 sums lose small terms in long runs.
        means = jax.tree.map(
            lambda mean, info: mean + (info - mean) / (count + 1), means, infos
        )
        return states, (count + 1, means), None

    def segment(self, states, means, first, segment: Segment):
        num_lead, has_odd, num_periods, thin, num_tail = segment
        states = self.moves(states, first, num_lead)
        done = first + num_lead
        odd = None
        if has_odd:
            states, means, odd = self.kept_move(states, means, done)
            done = done + 1

        def period(carry, index):
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
