"""Pairs of chains that meet, for expectations without a burn-in's bias."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import check_count, check_number, check_values, scalar_energy
from ebmjax.samplers.sampler import draw_uniform, value
from ebmjax.types import Array, EnergyFn, Key

__all__ = [
    "CoupledChains",
    "coupled_chains",
    "coupled_gibbs_chains",
    "unbiased_weights",
]

COUPLINGS = ("reflection", "maximal")


class CoupledChains(NamedTuple):
    """Two chains of one law, the second a move behind.

    Attributes:
      leader: `[max_steps + 1, *event]`, from its start.
      follower: `[max_steps, *event]`, from its start.
      meeting_time: `[]`, int32: the first t at least 1 with `leader[t] ==
        follower[t - 1]`, from where on that is so for ever; `max_steps + 1` if they
        have not met by then.
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
) -> CoupledChains:
    """Two random-walk Metropolis chains that are each right alone, and meet.

    The leader makes a move alone; then both move together, with proposals `N(position,
    step_size^2)` that are equal as often as they can be, and one uniform number for
    both acceptances. Once equal they stay so.

    Args:
      energy_fn: Energy of one example.
      key: A typed key.
      x: Where the leader begins, `[*event]`.
      y: Where the follower begins, of the same law as `x`; may be `x` itself.
      step_size: Standard deviation of a proposal, in units of x (for Langevin samplers
        it is the square of that).
      max_steps: Moves of the leader, whether or not they meet before.
      coupling: Of the proposals: "reflection" mirrors the one at the other's where they
        are not equal, which brings chains in many dimensions nearer; "maximal" draws
        anew, by rejection, which takes the longer the nearer the chains are, and under
        `vmap` as long as the longest.

    Returns:
      `CoupledChains` of one pair.

    Raises:
      ValueError: If the step is not positive, `max_steps` below 1, or the coupling
        unknown.

    Source:
      Jacob, O'Leary & Atchade (2020), "Unbiased Markov chain Monte Carlo methods with
      couplings".
    """
    check_number("step_size", step_size, positive=True)
    check_count("max_steps", max_steps, 1)
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling must be one of {COUPLINGS}, got {coupling!r}")
    energy_fn = functools.partial(value, scalar_energy(energy_fn))
    propose = _reflected if coupling == "reflection" else _maximal

    def accept(log_uniform, proposed, state):
        new = proposed, energy_fn(proposed)
        is_accepted = log_uniform <= state[1] - new[1]
        return jax.tree.map(lambda a, b: jnp.where(is_accepted, a, b), new, state)

    def log_uniform(key):
        return jnp.log(draw_uniform(key, (), x))

    def together(key, leader, follower):
        proposal_key, accept_key = jax.random.split(key)
        proposals = propose(proposal_key, leader[0], follower[0], step_size)
        uniform = log_uniform(accept_key)
        return (
            accept(uniform, proposals[0], leader),
            accept(uniform, proposals[1], follower),
        )

    def alone(key, leader):
        proposal_key, accept_key = jax.random.split(key)
        noise = jax.random.normal(proposal_key, x.shape, x.dtype)
        return accept(log_uniform(accept_key), leader[0] + step_size * noise, leader)

    start = (x, energy_fn(x)), (y, energy_fn(y))
    return _pair(key, start, alone, together, max_steps)


def coupled_gibbs_chains(
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    y: Array,
    *,
    max_steps: int,
    values: tuple[float, float] = (0.0, 1.0),
) -> CoupledChains:
    """Two Gibbs chains of binary data that are each right alone, and meet.

    A move draws every element in turn from its law given the others. Both chains
    compare theirs with one uniform number, so that the two draws are equal as often as
    they can be.

    Args:
      energy_fn: Energy of one example, whose elements are of two values.
      key: A typed key.
      x: As in `coupled_chains`.
      y: As in `coupled_chains`.
      max_steps: Moves of the leader, whether or not they meet before. A move takes two
        energies for every element and chain.
      values: The two values of an element.

    Returns:
      `CoupledChains` of one pair.

    Raises:
      ValueError: If `max_steps` is below 1, the two values are equal, or `x` cannot
        have them.

    Source:
      As `coupled_chains`.
    """
    check_count("max_steps", max_steps, 1)
    check_values(values, x.dtype)
    energy_fn = functools.partial(value, scalar_energy(energy_fn))
    low, high = (jnp.asarray(v, x.dtype) for v in values)

    def redrawn(position, site, logit):
        """With one element drawn anew: `logit` is that of a uniform number."""
        flat = position.reshape(-1)
        at_low, at_high = (
            energy_fn(flat.at[site].set(v).reshape(x.shape)) for v in (low, high)
        )
        difference = at_low - at_high
        drawn = jnp.where(logit < difference, high, low)
        if jnp.issubdtype(x.dtype, jnp.floating):
            # An energy that is no number is not to end up as one of the two values.
            drawn = jnp.where(jnp.isnan(difference), jnp.nan, drawn)
        return flat.at[site].set(drawn).reshape(x.shape)

    def sweep(key, positions):
        def site(positions, inputs):
            index, logit = inputs
            return jax.tree.map(lambda p: redrawn(p, index, logit), positions), ()

        # The logit of a uniform number is a logistic one.
        logits = jax.random.logistic(key, (x.size,))
        return jax.lax.scan(site, positions, (jnp.arange(x.size), logits))[0]

    def together(key, leader, follower):
        return sweep(key, (leader, follower))

    return _pair(key, ((x,), (y,)), sweep, together, max_steps)


def _pair(key, start, alone, together, max_steps: int) -> CoupledChains:
    """One chain ahead by a move, then both together.

    Args:
      key: Move i's is `fold_in(key, i)`.
      start: Two states, tuples of which the first entry is the position.
      alone: `alone(key, leader) -> leader`.
      together: `together(key, leader, follower) -> (leader, follower)`.
      max_steps: Of the leader.
    """

    def joined(leader, follower, has_met):
        has_met |= jnp.all(leader[0] == follower[0])
        # Equal positions have equal energies, but for what a compiler makes of them.
        follower = jax.tree.map(lambda a, b: jnp.where(has_met, a, b), leader, follower)
        return leader, follower, has_met

    def move(carry, index):
        leader, follower, has_met = carry
        pair = together(jax.random.fold_in(key, index), leader, follower)
        carry = joined(*pair, has_met)
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


def _reflected(key, x, y, step_size):
    noise_key, uniform_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    shift = (x - y) / step_size
    uniform = jnp.log(draw_uniform(uniform_key, (), x))
    is_equal = uniform <= -0.5 * jnp.sum(shift * (2 * noise + shift))
    # A shift of 0 is always equal: its direction is never asked for.
    square = jnp.maximum(jnp.sum(shift**2), jnp.finfo(x.dtype).tiny)
    mirrored = noise - 2 * jnp.sum(noise * shift) / square * shift
    ahead = x + step_size * noise
    return ahead, jnp.where(is_equal, ahead, y + step_size * mirrored)


def _maximal(key, x, y, step_size):
    noise_key, uniform_key, loop_key = jax.random.split(key, 3)
    ahead = x + step_size * jax.random.normal(noise_key, x.shape, x.dtype)

    def log_ratio(point, other, own):
        """log N(point; other) - log N(point; own)."""
        squares = jnp.sum((point - own) ** 2) - jnp.sum((point - other) ** 2)
        return 0.5 * squares / step_size**2

    uniform = jnp.log(draw_uniform(uniform_key, (), x))
    is_equal = uniform <= log_ratio(ahead, y, x)

    def again(carry):
        key, _, _ = carry
        key, noise_key, uniform_key = jax.random.split(key, 3)
        point = y + step_size * jax.random.normal(noise_key, x.shape, x.dtype)
        uniform = jnp.log(draw_uniform(uniform_key, (), x))
        # Not "above": a NaN would be tried for ever.
        return key, point, ~(uniform <= log_ratio(point, x, y))

    _, point, _ = jax.lax.while_loop(
        lambda carry: ~carry[2], again, (loop_key, ahead, is_equal)
    )
    return ahead, point


def unbiased_weights(
    meeting_time: Array, num_burn_in: int, num_steps: int, max_steps: int
) -> tuple[Array, Array]:
    """Weights with which the mean over a pair of chains has no bias.

    With `k = num_burn_in` and `m = num_steps`: the mean of the leader's positions k to
    m, and for every t from `k + 1` until they meet `min(1, (t - k) / (m - k + 1))`
    times the leader at t less the follower at `t - 1`.

    Args:
      meeting_time: From `CoupledChains`.
      num_burn_in: First positions left out, at least 0.
      num_steps: The last position of the plain mean, at most `max_steps`.
      max_steps: Of the chains. A pair that has not met by then is cut off there, which
        is a bias: count them.

    Returns:
      `([max_steps + 1], [max_steps])`, for leader and follower.

    Raises:
      ValueError: Unless `0 <= num_burn_in <= num_steps <= max_steps`, whole numbers.
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
