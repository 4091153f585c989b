"""Replica exchange, also called parallel tempering (PT)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import at_precision, check_count
from ebmjax.samplers.sampler import Sampler, draw_uniform, named, value
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["ReplicaExchangeInfo", "ReplicaExchangeState", "replica_exchange"]

OF_PLACE, OF_LEVEL = {"position", "energy", "gradient"}, {"momentum", "num_moves"}
"""Fields of a level's state that a swap moves, and fields that it leaves in place."""


class ReplicaExchangeState(NamedTuple):
    """State of a replica exchange chain.

    Attributes:
      position: Place of the coldest replica, `[*event]`, in units of x.
      replicas: States of the levels' samplers, with leaves `[levels, ...]`, the coldest
        first.
      num_moves: Number of moves since `init`, `[]`, int32.
    """

    position: Array
    replicas: Any
    num_moves: Array


class ReplicaExchangeInfo(NamedTuple):
    """Report of one move of replica exchange.

    Attributes:
      energy: Energy of the coldest replica after the move and the swap, `[]`, in nats.
      num_attempted: Number of swaps that were attempted in this move, `[]`.
      num_swapped: Number of swaps that were accepted in this move, `[]`. The ratio of
        the two means is the rate.
      coldest: Info of the coldest level's own move, with scalar leaves.
    """

    energy: Array
    num_attempted: Array
    num_swapped: Array
    coldest: Any


@named
def replica_exchange(
    make_sampler: Callable[[Any], Sampler],
    *,
    temperatures: Sequence[float],
    swap_every: int,
) -> Sampler:
    """Returns a sampler that runs replica exchange, or parallel tempering (PT).

    See https://doi.org/10.1103/PhysRevLett.57.2607 and
    https://arxiv.org/abs/1905.02939.

    Chains at several temperatures cross barriers that stop a single chain. Every level
    moves at its own temperature. Every `swap_every` moves, neighbours i and j swap
    their places with probability

        min(1, exp((1 / T_i - 1 / T_j) (E(x_i) - E(x_j)))),

    where the pairs (0, 1), (2, 3), ... and (1, 2), (3, 4), ... alternate. If the levels
    are exact, so is the whole: the coldest replica has the law `exp(-E / T_0)`, and the
    others have theirs. This is not annealing: every temperature stays constant.

    The swaps use the energies that the levels' states have, at the precision of the
    levels' samplers. If they have none, energies are computed at the precision
    "highest" of `mala`.

    `state.position` is the coldest replica; `state.replicas.position` has all, the
    coldest first. A swap moves `position`, `energy` and `gradient`, and leaves
    `momentum` and `num_moves` with the temperature. If a level's state has other
    fields, it is initialised anew at its new place, at the cost of one `init` for every
    level and move.

    Args:
      make_sampler: `make_sampler(temperature)` returns the sampler of a level; all must
        be of one kind. It is called under `vmap`, with a traced temperature, as in
        `lambda t: mala(step_size=0.1, temperature=t)`. A higher temperature by itself
        makes the noise larger. The largest stable step follows the steepest curvature,
        which a higher temperature does not reduce if the energy grows like a square.
      temperatures: Temperatures, at least two, positive, all different, in any order. A
        ratio at which a quarter to a half of the swaps are accepted is about right; in
        d dimensions it is near `1 + sqrt(2 / d)`.
      swap_every: Number of moves from one attempt to the next.

    Returns:
      A `Sampler` with `ReplicaExchangeState` and `ReplicaExchangeInfo`. A move costs
      one move of every level, and one energy of each if their states have none.

    Raises:
      ValueError: If `temperatures` or `swap_every` do not satisfy the conditions above,
        or `make_sampler` raises it for one of the temperatures.

    Source:
      Swendsen & Wang (1986), "Replica Monte Carlo simulation of spin glasses", Physical
      Review Letters 57, https://doi.org/10.1103/PhysRevLett.57.2607. Syed et al.
      (2022), "Non-reversible parallel tempering", https://arxiv.org/abs/1905.02939, for
      the alternation.
    """
    ladder = np.sort(np.asarray(temperatures, float).reshape(-1))
    if len(ladder) < 2 or not (ladder > 0).all() or not (np.diff(ladder) > 0).all():
        raise ValueError(
            "temperatures must be at least two different positive numbers,"
            f" got {temperatures}"
        )
    check_count("swap_every", swap_every, 1)
    for temperature in ladder:
        make_sampler(float(temperature))  # so that a bad temperature raises here
    num_levels = len(ladder)

    def init(energy_fn: EnergyFn, x: Array) -> ReplicaExchangeState:
        def begin(temperature: Array) -> Any:
            return make_sampler(temperature).init(energy_fn, x)

        replicas = jax.vmap(begin)(jnp.asarray(ladder, x.dtype))
        return ReplicaExchangeState(x, replicas, jnp.zeros((), jnp.int32))

    def step(
        energy_fn: EnergyFn, key: Key, state: ReplicaExchangeState
    ) -> tuple[ReplicaExchangeState, ReplicaExchangeInfo]:
        moved = jnp.asarray(ladder, state.position.dtype)
        inverse = jnp.asarray(1 / ladder, state.position.dtype)
        move_key, swap_key = jax.random.split(key)

        def move(temperature: Array, key: Key, replica: Any) -> tuple[Any, Any]:
            return make_sampler(temperature).step(energy_fn, key, replica)

        keys = jax.random.split(move_key, num_levels)
        replicas, infos = jax.vmap(move)(moved, keys, state.replicas)
        num_moves = state.num_moves + 1

        if hasattr(replicas, "energy"):
            levels = replicas.energy
        else:
            precise = at_precision("highest")(functools.partial(value, energy_fn))
            levels = jax.vmap(precise)(replicas.position)
        log_ratio = (inverse[:-1] - inverse[1:]) * (levels[:-1] - levels[1:])
        uniform = draw_uniform(swap_key, log_ratio.shape, state.position)
        turn = num_moves // swap_every - 1
        is_attempted = (num_moves % swap_every == 0) & (
            jnp.arange(num_levels - 1) % 2 == turn % 2
        )
        is_swapped = is_attempted & (jnp.log(uniform) <= log_ratio)
        from_above = jnp.append(is_swapped, False)
        from_below = jnp.append(False, is_swapped)

        def column(flags: Array, leaf: Array) -> Array:
            return flags.reshape(-1, *[1] * (leaf.ndim - 1))

        def swap(leaf: Array) -> Array:
            below = jnp.roll(leaf, 1, 0)
            above = jnp.roll(leaf, -1, 0)
            leaf = jnp.where(column(from_above, leaf), above, leaf)
            return jnp.where(column(from_below, leaf), below, leaf)

        swapped = _exchange(replicas, swap)
        if swapped is None:

            def begin_at(temperature: Array, x: Array) -> Any:
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


def _of_level(replicas: Any) -> dict[str, Array]:
    """Returns the fields that stay with a temperature."""
    names = OF_LEVEL & set(replicas._fields)
    return {name: getattr(replicas, name) for name in names}


def _exchange(replicas: Any, swap: Callable[[Array], Array]) -> Any:
    """Swaps the fields of a place; returns None if there are fields of neither kind."""
    if set(replicas._fields) - OF_PLACE - OF_LEVEL:
        return None
    names = OF_PLACE & set(replicas._fields)
    return replicas._replace(**{name: swap(getattr(replicas, name)) for name in names})
