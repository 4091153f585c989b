"""What a sampler is, and how to run one chain or many.

A `Sampler` is a pair of functions on one chain. Its hyper-parameters are fixed when it
is made; the energy is given at every call, because in training the energy changes at
every update and the sampler does not.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.types import Array, EnergyFn, Key

__all__ = ["Sampler", "sample_chain", "sample_chains"]

BLOCK = 64
"""Chains that share one folded key. Part of the random numbers: never change it."""


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
) -> tuple[Any, Any]:
    """Runs many independent chains.

    Compiled once for a sampler, an energy function and shapes. Bind parameters with
    `functools.partial(energy, params)`: they are then arguments of the compiled
    program, and new ones need no new compilation. What a lambda closes over is read
    when it is compiled: a lambda kept while its parameters change goes on with the
    old ones, as under `jax.jit`.

    Every chain has random numbers of its own that depend on `key`, on the chain's index
    and on the move alone: not on how many chains, devices or kept draws there are.

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

    Returns:
      `(state, collected)`: the last states `[chains, ...]`, and what `collect`
      returned, stacked `[kept_steps, chains, ...]` with `kept_steps = (num_steps -
      num_burn_in) // thin`; with `collect=None` the infos' means over the kept moves,
      `[chains]`, zeros if none is kept.

    Raises:
      ValueError: If a count is negative, `thin` is not positive, the burn-in is longer
        than the run, `x` is not floating-point or has no chain axis, the key is not a
        typed one, or the energy is not a scalar.
    """
    counts = (("num_steps", num_steps, 0), ("num_burn_in", num_burn_in, 0))
    for name, count, least in (*counts, ("thin", thin, 1)):
        if not isinstance(count, int | np.integer) or count < least:
            raise ValueError(
                f"{name} must be a whole number of at least {least}, got {count!r}"
            )
    if num_burn_in > num_steps:
        raise ValueError(
            f"num_burn_in must be at most num_steps = {num_steps}, got {num_burn_in}"
        )
    x = jnp.asarray(x)
    if x.ndim == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x must be floating-point [chains, *event], got {x.dtype}{x.shape}"
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"key must be a typed key, as jax.random.key makes, got {key.dtype}"
        )
    return _sample_chains(
        _as_pytree(energy_fn), key, x, sampler, num_steps, num_burn_in, thin, collect
    )


def _as_pytree(energy_fn: EnergyFn) -> jax.tree_util.Partial:
    """Bound arrays become arguments of the compiled program, all else stays static."""
    if isinstance(energy_fn, functools.partial):  # which tree_util.Partial is too
        leaves = jax.tree.leaves((energy_fn.args, energy_fn.keywords))
        if all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves):
            return jax.tree_util.Partial(
                energy_fn.func, *energy_fn.args, **energy_fn.keywords
            )
    return jax.tree_util.Partial(energy_fn)


@functools.partial(
    jax.jit,
    static_argnames=("sampler", "num_steps", "num_burn_in", "thin", "collect"),
)
def _sample_chains(partial, key, x, sampler, num_steps, num_burn_in, thin, collect):
    num_chains = x.shape[0]

    def energy_fn(x):
        energy = partial(x)
        if jnp.shape(energy) != ():
            raise ValueError(
                f"energy_fn must return a scalar for one example of shape {x.shape},"
                f" got shape {jnp.shape(energy)}"
            )
        return energy

    # Numbers are keyed by fixed blocks of chains and the place in the block, so that a
    # chain draws the same whatever the chains around it and the devices they are on.
    num_blocks = -(-num_chains // BLOCK)
    block_keys = jax.vmap(functools.partial(jax.random.fold_in, key))(
        jnp.arange(num_blocks)
    )
    split = functools.partial(jax.random.split, num=BLOCK)
    keys = jax.vmap(split)(block_keys).reshape(-1)[:num_chains]

    @jax.vmap
    def step(key, state, index):
        return sampler.step(energy_fn, jax.random.fold_in(key, index), state)

    def move(states, index):
        new, infos = step(keys, states, jnp.broadcast_to(index, (num_chains,)))
        # A sampler that changes a type would fail below, in words about a scan.
        chex.assert_trees_all_equal_shapes_and_dtypes(new, states)
        return new, infos

    def moves(states, first, count):
        """`count` moves that nobody looks at."""
        if count == 0:  # a scan of no moves would trace the energy all the same
            return states

        def body(states, index):
            return move(states, index)[0], None

        return jax.lax.scan(body, states, first + jnp.arange(count))[0]

    def kept_move(states, first):
        """`thin` moves; the last one's state and info."""
        states = moves(states, first, thin - 1)
        return move(states, first + thin - 1)

    num_kept = (num_steps - num_burn_in) // thin
    firsts = num_burn_in + thin * jnp.arange(num_kept)
    states = jax.vmap(functools.partial(sampler.init, energy_fn))(x)
    states = moves(states, 0, num_burn_in)
    if collect is None:
        shapes = jax.eval_shape(lambda states: move(states, 0)[1], states)
        means = jax.tree.map(
            lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)),
            shapes,
        )

        def body(carry, inputs):
            states, means = carry
            count, first = inputs
            states, infos = kept_move(states, first)
            # A running mean, not a sum: float32 sums lose small terms in long runs.
            means = jax.tree.map(
                lambda mean, info: mean + (info - mean) / (count + 1), means, infos
            )
            return (states, means), None

        counts = jnp.arange(num_kept)
        (states, collected), _ = jax.lax.scan(body, (states, means), (counts, firsts))
    else:

        def body(states, first):
            states, infos = kept_move(states, first)
            return states, jax.vmap(collect)(states, infos)

        states, collected = jax.lax.scan(body, states, firsts)
    done = num_burn_in + thin * num_kept
    return moves(states, done, num_steps - done), collected
