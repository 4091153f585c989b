"""Replica exchange, also called parallel tempering."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import check_count
from ebmjax.samplers.sampler import Sampler, draw_uniform, value
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["ReplicaExchangeInfo", "ReplicaExchangeState", "replica_exchange"]

OF_PLACE, OF_LEVEL = {"position", "energy", "gradient"}, {"momentum", "num_moves"}
"""Fields of a level's state that a swap takes along, and that it leaves behind."""


class ReplicaExchangeState(NamedTuple):
    position: Array  # [*event], of the coldest replica
    replicas: Any  # states of the levels' samplers, [levels, ...], coldest first
    num_moves: Array  # [], since `init`


class ReplicaExchangeInfo(NamedTuple):
    energy: Array  # [], of the coldest replica, after move and swap
    num_attempted: Array  # [], swaps attempted in this move
    num_swapped: Array  # [], of them accepted; the ratio of the means is the rate
    coldest: Any  # info of the coldest level's own move


def replica_exchange(
    make_sampler: Callable[[Any], Sampler],
    *,
    temperatures: Sequence[float],
    swap_every: int,
) -> Sampler:
    """Chains at several temperatures that swap places, to cross barriers.

    Every level moves at its own temperature; every `swap_every` moves, neighbours i and
    j swap their places with probability

        min(1, exp((1 / T_i - 1 / T_j) (E(x_i) - E(x_j)))),

    the pairs (0, 1), (2, 3), ... and (1, 2), (3, 4), ... by turns. With levels that are
    exact, so is the whole: the coldest replica has the law `exp(-E / T_0)`, the others
    theirs. It is no annealing: every temperature stays where it is, for ever.

    `state.position` is the coldest replica; `state.replicas.position` has all, coldest
    first. A swap takes along `position`, `energy` and `gradient`, and leaves `momentum`
    and `num_moves` with the temperature. A level's state that has other fields is begun
    anew at its new place, at the cost of an `init` of every level a move.

    Args:
      make_sampler: `make_sampler(temperature)` is a level's sampler, all of one kind.
        It is called under `vmap`, with a traced temperature:
        `lambda t: mala(step_size=0.1, temperature=t)`. Heat makes the noise larger by
        itself; the largest stable step follows the steepest curvature, which heat does
        not lessen where the energy grows like a square.
      temperatures: At least two, positive, all different, in any order. A ratio that
        lets a quarter to a half of the swaps through is about right; in d dimensions
        it is near `1 + sqrt(2 / d)`.
      swap_every: Moves from one attempt to the next.

    Returns:
      A `Sampler` with `ReplicaExchangeState` and `ReplicaExchangeInfo`; a move costs
      one of every level's, and an energy of each where their states have none.

    Raises:
      ValueError: If `temperatures` or `swap_every` are not as above, or `make_sampler`
        raises it for one of them.

    Source:
      Syed et al. (2022), "Non-reversible parallel tempering", for the alternation.
    """
    ladder = np.sort(np.asarray(temperatures, float).reshape(-1))
    if len(ladder) < 2 or not (ladder > 0).all() or not (np.diff(ladder) > 0).all():
        raise ValueError(
            "temperatures must be at least two different positive numbers,"
            f" got {temperatures}"
        )
    check_count("swap_every", swap_every, 1)
    for temperature in ladder:
        make_sampler(float(temperature))  # raises here what it has to say
    num_levels = len(ladder)

    def init(energy_fn: EnergyFn, x: Array) -> ReplicaExchangeState:
        def begin(temperature):
            return make_sampler(temperature).init(energy_fn, x)

        replicas = jax.vmap(begin)(jnp.asarray(ladder, x.dtype))
        return ReplicaExchangeState(x, replicas, jnp.zeros((), jnp.int32))

    def step(energy_fn: EnergyFn, key: Key, state: ReplicaExchangeState):
        moved = jnp.asarray(ladder, state.position.dtype)
        inverse = jnp.asarray(1 / ladder, state.position.dtype)
        move_key, swap_key = jax.random.split(key)

        def move(temperature, key, replica):
            return make_sampler(temperature).step(energy_fn, key, replica)

        keys = jax.random.split(move_key, num_levels)
        replicas, infos = jax.vmap(move)(moved, keys, state.replicas)
        num_moves = state.num_moves + 1

        if hasattr(replicas, "energy"):
            levels = replicas.energy
        else:
            levels = jax.vmap(lambda x: value(energy_fn, x))(replicas.position)
        log_ratio = (inverse[:-1] - inverse[1:]) * (levels[:-1] - levels[1:])
        uniform = draw_uniform(swap_key, log_ratio.shape, state.position)
        turn = num_moves // swap_every - 1
        is_attempted = (num_moves % swap_every == 0) & (
            jnp.arange(num_levels - 1) % 2 == turn % 2
        )
        is_swapped = is_attempted & (jnp.log(uniform) <= log_ratio)
        from_above = jnp.append(is_swapped, False)
        from_below = jnp.append(False, is_swapped)

        def column(flags, leaf):
            return flags.reshape(-1, *[1] * (leaf.ndim - 1))

        def swap(leaf):
            below = jnp.roll(leaf, 1, 0)
            above = jnp.roll(leaf, -1, 0)
            leaf = jnp.where(column(from_above, leaf), above, leaf)
            return jnp.where(column(from_below, leaf), below, leaf)

        swapped = _exchange(replicas, swap)
        if swapped is None:

            def begin_at(temperature, x):
                return make_sampler(temperature).init(energy_fn, x)

            fresh = jax.vmap(begin_at)(moved, swap(replicas.position))
            fresh = fresh._replace(**_of_level(replicas))
            swapped = jax.tree.map(
                lambda new, old: jnp.where(
                    column(from_above | from_below, old), new, old
                ),
                fresh,
                replicas,
            )
        levels = swap(levels)
        state = ReplicaExchangeState(swapped.position[0], swapped, num_moves)
        return state, ReplicaExchangeInfo(
            energy=levels[0],
            num_attempted=jnp.sum(is_attempted),
            num_swapped=jnp.sum(is_swapped),
            coldest=jax.tree.map(lambda leaf: leaf[0], infos),
        )

    return Sampler(init, step)


def _of_level(replicas) -> dict:
    """The fields that stay with a temperature."""
    names = OF_LEVEL & set(replicas._fields)
    return {name: getattr(replicas, name) for name in names}


def _exchange(replicas, swap: Callable):
    """With the fields of a place swapped; None if there are fields of neither kind."""
    if set(replicas._fields) - OF_PLACE - OF_LEVEL:
        return None
    names = OF_PLACE & set(replicas._fields)
    return replicas._replace(**{name: swap(getattr(replicas, name)) for name in names})
