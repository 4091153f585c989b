"""Pairs of chains that meet, which give expectations without the bias of a burn-in."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from ebmjax.checks import (
    at_precision,
    check_array,
    check_count,
    check_number,
    check_values,
    scalar_energy,
)
from ebmjax.samplers.sampler import draw_uniform, value
from ebmjax.types import Array, EnergyFn, Key

__all__ = [
    "CoupledChains",
    "coupled_chains",
    "coupled_gibbs_chains",
    "unbiased_weights",
]

COUPLINGS = ("reflection", "maximal")

Positions = TypeVar("Positions")
State = tuple[Array, ...]
"""A position, and its energy where a chain keeps that."""


class CoupledChains(NamedTuple):
    """Two chains of one law, the second of which is one move behind.

    Attributes:
      leader: Positions of the first chain from its start on, `[max_steps + 1, *event]`,
        in units of x.
      follower: Positions of the second chain from its start on, `[max_steps, *event]`,
        in units of x.
      meeting_time: Meeting time in moves, `[]`, int32. It is the first t of at least 1
        with `leader[t] == follower[t - 1]`, which holds at all later times too. It is
        `max_steps + 1` if the chains have not met by then.
    """

    leader: Array
    follower: Array
    meeting_time: Array


def coupled_chains(
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    y: Array,
    *,
    step_size: float,
    max_steps: int,
    coupling: str = "reflection",
    precision: str | None = "highest",
) -> CoupledChains:
    """Runs two random-walk Metropolis chains that each have the right law and meet.

    See https://arxiv.org/abs/1708.03625.

    The leader makes one move alone. Then both chains move together: their proposals
    `N(position, step_size^2)` are equal as often as they can be, and one uniform number
    decides both acceptances. Once the chains are equal, they stay equal.

    Args:
      energy_fn: Energy of one example.
      key: Typed key.
      x: Initial position of the leader, `[*event]`.
      y: Initial position of the follower, drawn from the same law as `x`; may be `x`
        itself.
      step_size: Standard deviation of a proposal, in units of x. (The `step_size` of
        Langevin samplers is the square of such a number.)
      max_steps: Number of moves of the leader, whether or not the chains meet before.
      coupling: Coupling of the proposals. "reflection" reflects the leader's proposal
        for the follower if the two are not equal, which brings chains in many
        dimensions nearer. "maximal" draws the follower's proposal anew by rejection,
        which takes longer the nearer the chains are, and under `vmap` as long as the
        slowest pair.
      precision: Precision of the products in the energy, as in `samplers.mala`.

    Returns:
      A `CoupledChains` of one pair.

    Raises:
      ValueError: If `step_size` is not positive, `max_steps` is below 1, or the
        coupling or the precision is unknown.

    Source:
      Jacob, O'Leary & Atchade (2020), "Unbiased Markov chain Monte Carlo methods with
      couplings", https://arxiv.org/abs/1708.03625.
    """
    step_size = check_number("step_size", step_size, positive=True)
    check_count("max_steps", max_steps, 1)
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling must be one of {COUPLINGS}, got {coupling!r}")
    energy_fn = _precise(energy_fn, precision)
    propose = _reflected if coupling == "reflection" else _maximal
    x, y = check_array("x", x), check_array("y", y)
    _check_shapes(x, y)
    # A hyper-parameter of another type must not change the position's.
    step = jnp.asarray(step_size, x.dtype)

    def accept(log_uniform: Array, proposed: Array, state: State) -> State:
        new = proposed, energy_fn(proposed)
        is_accepted = log_uniform <= state[1] - new[1]
        taken: State = jax.tree.map(
            lambda a, b: jnp.where(is_accepted, a, b), new, state
        )
        return taken

    def log_uniform(key: Key) -> Array:
        return jnp.log(draw_uniform(key, (), x))

    def together(key: Key, leader: State, follower: State) -> tuple[State, State]:
        proposal_key, accept_key = jax.random.split(key)
        proposals = propose(proposal_key, leader[0], follower[0], step)
        uniform = log_uniform(accept_key)
        return (
            accept(uniform, proposals[0], leader),
            accept(uniform, proposals[1], follower),
        )

    def alone(key: Key, leader: State) -> State:
        proposal_key, accept_key = jax.random.split(key)
        noise = jax.random.normal(proposal_key, x.shape, x.dtype)
        return accept(log_uniform(accept_key), leader[0] + step * noise, leader)

    def begin(x: Array) -> State:
        energy = energy_fn(x)
        # From a NaN energy no chain ever moves, and two such chains would seem to meet.
        return jnp.where(jnp.isnan(energy), jnp.nan, x), energy

    start = begin(x), begin(y)
    return _pair(key, start, alone, together, max_steps)


def coupled_gibbs_chains(
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    y: Array,
    *,
    max_steps: int,
    values: tuple[float, float] = (0.0, 1.0),
    precision: str | None = "highest",
) -> CoupledChains:
    """Runs two Gibbs chains of binary data that each have the right law and meet.

    See https://arxiv.org/abs/1708.03625.

    A move draws every element in turn from its law given the other elements. Both
    chains use the same uniform number for an element, so that the two draws are equal
    as often as they can be.

    Args:
      energy_fn: Energy of one example, whose elements take two values.
      key: Typed key.
      x: Initial position of the leader, as in `coupled_chains`.
      y: Initial position of the follower, as in `coupled_chains`.
      max_steps: Number of moves of the leader, whether or not the chains meet before. A
        move takes two energies for every element and chain.
      values: The two values of an element.
      precision: Precision of the products in the energy, as in `samplers.mala`.

    Returns:
      A `CoupledChains` of one pair.

    Raises:
      ValueError: If `max_steps` is below 1, the two values are equal, the type of `x`
        cannot represent them, or the precision is unknown.

    Source:
      Jacob, O'Leary & Atchade (2020), "Unbiased Markov chain Monte Carlo methods with
      couplings", https://arxiv.org/abs/1708.03625.
    """
    check_count("max_steps", max_steps, 1)
    _check_shapes(x, y)
    check_values(values, x.dtype)
    energy_fn = _precise(energy_fn, precision)
    low, high = (jnp.asarray(v, x.dtype) for v in values)

    def redrawn(position: Array, site: Array, logit: Array) -> Array:
        """Redraws one element; `logit` is the logit of a uniform number."""
        flat = position.reshape(-1)
        at_low, at_high = (
            energy_fn(flat.at[site].set(v).reshape(x.shape)) for v in (low, high)
        )
        difference = at_low - at_high
        drawn = jnp.where(logit < difference, high, low)
        if jnp.issubdtype(x.dtype, jnp.floating):
            # A NaN energy must not end up as one of the two values.
            drawn = jnp.where(jnp.isnan(difference), jnp.nan, drawn)
        return flat.at[site].set(drawn).reshape(x.shape)

    def sweep(key: Key, positions: Positions) -> Positions:
        def site(
            positions: Positions, inputs: tuple[Array, Array]
        ) -> tuple[Positions, tuple[()]]:
            index, logit = inputs
            return jax.tree.map(lambda p: redrawn(p, index, logit), positions), ()

        # The logit of a uniform number has the logistic law.
        logits = jax.random.logistic(key, (x.size,))
        return jax.lax.scan(site, positions, (jnp.arange(x.size), logits))[0]

    def together(key: Key, leader: State, follower: State) -> tuple[State, State]:
        return sweep(key, (leader, follower))

    return _pair(key, ((x,), (y,)), sweep, together, max_steps)


def _precise(energy_fn: EnergyFn, precision: str | None) -> EnergyFn:
    """Returns the checked energy, in float32 at least, at a precision of products."""
    return at_precision(precision)(functools.partial(value, scalar_energy(energy_fn)))


def _check_shapes(x: Array, y: Array) -> None:
    """Raises unless both chains of a pair begin at positions of one shape and type."""
    for name, position in (("x", x), ("y", y)):
        if not hasattr(position, "dtype"):
            check_array(name, position)
    if x.shape != y.shape or x.dtype != y.dtype:
        raise ValueError(
            "x and y must have one shape and type [*event], got"
            f" {x.dtype}{x.shape} and {y.dtype}{y.shape}"
        )


def _pair(
    key: Key,
    start: tuple[State, State],
    alone: Callable[[Key, State], State],
    together: Callable[[Key, State, State], tuple[State, State]],
    max_steps: int,
) -> CoupledChains:
    """Runs one chain alone for a move, then both chains together.

    Args:
      key: Typed key; move i uses `fold_in(key, i)`.
      start: Two states, tuples whose first entry is the position.
      alone: `alone(key, leader) -> leader`.
      together: `together(key, leader, follower) -> (leader, follower)`.
      max_steps: Number of moves of the leader.
    """

    def joined(
        leader: State, follower: State, has_met: bool | Array
    ) -> tuple[State, State, Array]:
        has_met = has_met | jnp.all(leader[0] == follower[0])
        # Equal positions have equal energies only up to the compiler's rounding.
        follower = jax.tree.map(lambda a, b: jnp.where(has_met, a, b), leader, follower)
        return leader, follower, has_met

    def move(
        carry: tuple[State, State, Array], index: Array
    ) -> tuple[tuple[State, State, Array], tuple[Array, Array, Array]]:
        leader, follower, has_met = carry
        leader, follower = together(jax.random.fold_in(key, index), leader, follower)
        carry = joined(leader, follower, has_met)
        return carry, (carry[0][0], carry[1][0], carry[2])

    leader, follower = start
    first = joined(alone(jax.random.fold_in(key, 0), leader), follower, False)
    _, (leaders, followers, have_met) = jax.lax.scan(
        move, first, jnp.arange(1, max_steps)
    )
    met_at = jnp.concatenate([jnp.atleast_1d(first[2]), have_met])
    return CoupledChains(
        leader=jnp.concatenate([jnp.stack([leader[0], first[0][0]]), leaders]),
        follower=jnp.concatenate([jnp.expand_dims(follower[0], 0), followers]),
        meeting_time=(1 + jnp.sum(~met_at)).astype(jnp.int32),
    )


def _reflected(key: Key, x: Array, y: Array, step_size: Array) -> tuple[Array, Array]:
    noise_key, uniform_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    shift = (x - y) / step_size
    # Of order one, so that no square overflows or vanishes.
    direction = shift / jnp.maximum(jnp.abs(shift).max(), jnp.finfo(x.dtype).tiny)
    uniform = jnp.log(draw_uniform(uniform_key, (), x))
    is_equal = uniform <= -0.5 * jnp.sum(shift * (2 * noise + shift))
    # With a shift of 0 the proposals are equal, and its direction is never used.
    square = jnp.maximum(jnp.sum(direction**2), 1.0)
    mirrored = noise - 2 * jnp.sum(noise * direction) / square * direction
    ahead = x + step_size * noise
    return ahead, jnp.where(is_equal, ahead, y + step_size * mirrored)


def _maximal(key: Key, x: Array, y: Array, step_size: Array) -> tuple[Array, Array]:
    noise_key, uniform_key, loop_key = jax.random.split(key, 3)
    ahead = x + step_size * jax.random.normal(noise_key, x.shape, x.dtype)

    def log_ratio(point: Array, other: Array, own: Array) -> Array:
        """Returns log N(point; other) - log N(point; own)."""
        # Not a difference of two squares, which would be rounded more.
        apart = (other - own) / step_size
        return 0.5 * jnp.sum(apart * ((point - own) + (point - other)) / step_size)

    uniform = jnp.log(draw_uniform(uniform_key, (), x))
    is_equal = uniform <= log_ratio(ahead, y, x)

    def again(carry: tuple[Key, Array, Array]) -> tuple[Key, Array, Array]:
        key, _, _ = carry
        key, noise_key, uniform_key = jax.random.split(key, 3)
        point = y + step_size * jax.random.normal(noise_key, x.shape, x.dtype)
        uniform = jnp.log(draw_uniform(uniform_key, (), x))
        # Not `uniform > ...`, with which a NaN would be redrawn for ever.
        return key, point, ~(uniform <= log_ratio(point, x, y))

    _, point, _ = jax.lax.while_loop(
        lambda carry: ~carry[2], again, (loop_key, ahead, is_equal)
    )
    return ahead, point


def unbiased_weights(
    meeting_time: Array, num_burn_in: int, num_steps: int, max_steps: int
) -> tuple[Array, Array]:
    """Returns weights with which the mean over a pair of chains has no bias.

    See https://arxiv.org/abs/1708.03625.

    Let `k = num_burn_in` and `m = num_steps`. The weighted sum is the mean of the
    leader's positions k to m, plus, for every t from `k + 1` until the chains meet,
    `min(1, (t - k) / (m - k + 1))` times the difference of the leader at t and the
    follower at `t - 1`.

    Args:
      meeting_time: Meeting time of a `CoupledChains`, `[]`.
      num_burn_in: Number of first positions to leave out, at least 0.
      num_steps: Index of the last position of the plain mean, at most `max_steps`.
      max_steps: Number of moves of the chains. A pair that has not met by then is cut
        off there, which is a bias: count such pairs.

    Returns:
      The leader's weights, `[max_steps + 1]`, and the follower's, `[max_steps]`.

    Raises:
      ValueError: Unless `0 <= num_burn_in <= num_steps <= max_steps` are whole numbers.

    Source:
      Jacob, O'Leary & Atchade (2020), "Unbiased Markov chain Monte Carlo methods with
      couplings", https://arxiv.org/abs/1708.03625.
    """
    check_count("num_burn_in", num_burn_in, 0)
    check_count("num_steps", num_steps, 0)
    if not num_burn_in <= num_steps <= max_steps:
        raise ValueError(
            "num_burn_in, num_steps and max_steps must not decrease, nor be negative,"
            f" got {num_burn_in}, {num_steps} and {max_steps}"
        )
    times = jnp.arange(max_steps + 1)
    length = num_steps - num_burn_in + 1
    plain = (times >= num_burn_in) & (times <= num_steps)
    is_apart = (times > num_burn_in) & (times < meeting_time)
    correction = jnp.where(
        is_apart, jnp.minimum(1.0, (times - num_burn_in) / length), 0.0
    )
    return plain / length + correction, -correction[1:]
