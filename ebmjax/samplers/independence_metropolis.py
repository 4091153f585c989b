"""Metropolis-Hastings with proposals that do not look at the chain."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.samplers.sampler import Sampler, metropolis, value
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["IndependenceInfo", "IndependenceState", "independence"]


class IndependenceState(NamedTuple):
    position: Array  # [*event]
    energy: Array  # []
    log_prob: Array  # [], of the proposal's density at `position`


class IndependenceInfo(NamedTuple):
    energy: Array  # [], after the move
    acceptance_rate: Array  # [], min(1, Metropolis-Hastings ratio)
    is_accepted: Array  # [], bool


def independence(
    *,
    proposal: tuple[Callable[[Key], Array], Callable[[Array], Array]],
    temperature: float = 1.0,
) -> Sampler:
    """Proposals drawn from one fixed distribution, accepted or refused.

    Draws `y` from the proposal, wherever the chain is, and accepts with probability

        min(1, exp(-(E(y) - E(x)) / temperature) proposal(x) / proposal(y)),

    which leaves `exp(-E / temperature)` invariant. It needs no gradient and crosses any
    barrier, and it is as good as the proposal: where `exp(-E / temperature) / proposal`
    has no bound the chain sticks at places that the proposal misses. With a latent's
    prior for the proposal and `energies.latent_energy` this is GEBM's independent
    Metropolis-Hastings. It is not importance sampling: refused draws repeat the last.

    Args:
      proposal: `(sample, log_prob)`: `sample(key) -> x [*event]`, of the type of the
        chain's positions, and `log_prob(x) -> []`, up to a constant, in nats.
      temperature: As in `langevin`. Positive.

    Returns:
      A `Sampler` with `IndependenceState` and `IndependenceInfo`: one energy a move, no
      gradient, and one to start.

    Raises:
      ValueError: If `temperature` is not positive, or `sample` draws another shape than
        the chain's.
    """
    check_number("temperature", temperature, positive=True)
    sample, log_prob = proposal

    def init(energy_fn: EnergyFn, x: Array) -> IndependenceState:
        return IndependenceState(x, value(energy_fn, x), value(log_prob, x))

    def step(energy_fn: EnergyFn, key: Key, state: IndependenceState):
        proposal_key, accept_key = jax.random.split(key)
        y = sample(proposal_key)
        if jnp.shape(y) != state.position.shape:
            raise ValueError(
                f"proposal must draw the chain's shape {state.position.shape},"
                f" got {jnp.shape(y)}"
            )
        proposed = init(energy_fn, jnp.asarray(y, state.position.dtype))
        log_ratio = (state.energy - proposed.energy) / temperature
        log_ratio += state.log_prob - proposed.log_prob
        state, acceptance_rate, is_accepted = metropolis(
            accept_key, log_ratio, proposed, state
        )
        return state, IndependenceInfo(
            energy=state.energy,
            acceptance_rate=acceptance_rate,
            is_accepted=is_accepted,
        )

    return Sampler(init, step)
