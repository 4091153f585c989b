"""The Metropolis-adjusted Langevin algorithm."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.samplers.normal import draw_normal
from ebmjax.samplers.sampler import Sampler, metropolis, value_and_gradient
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["MALAInfo", "MALAState", "mala"]


class MALAState(NamedTuple):
    position: Array  # [*event]
    energy: Array  # []
    gradient: Array  # [*event], of the energy, at `position`


class MALAInfo(NamedTuple):
    energy: Array  # [], after the move
    gradient_norm: Array  # [], after the move
    acceptance_rate: Array  # [], min(1, Metropolis-Hastings ratio)
    is_accepted: Array  # [], bool


def mala(*, step_size: float, temperature: float = 1.0) -> Sampler:
    """Langevin proposals, accepted or refused so that the law is exact.

    Proposes `y = x - step_size * grad E(x) + sqrt(2 * step_size * temperature) * n`, as
    `langevin` moves, and accepts with probability

        min(1, exp(-(E(y) - E(x)) / temperature) q(x | y) / q(y | x)),

    which leaves `exp(-E / temperature)` invariant at every step size. The proposal
    ratio is not optional: dropping it, or taking a norm where the squared norm belongs,
    gives another law, as published code shows. The step size costs acceptance only;
    0.574 is the rate to aim at in high dimension.

    A proposal at which the energy is infinite is refused. One at which it is NaN is
    refused too, and `acceptance_rate` is then NaN, so that it is seen.

    Args:
      step_size: As in `langevin`, in units of x^2 / energy. Positive.
      temperature: As in `langevin`. Positive.

    Returns:
      A `Sampler` with `MALAState` and `MALAInfo`: one gradient a move, and one to
      start.

    Raises:
      ValueError: If `step_size` or `temperature` is not positive.

    Source:
      Roberts & Tweedie (1996); the rate 0.574 is Roberts & Rosenthal (1998).
    """
    check_number("step_size", step_size, positive=True)
    check_number("temperature", temperature, positive=True)
    noise_std = (2.0 * step_size * temperature) ** 0.5

    def init(energy_fn: EnergyFn, x: Array) -> MALAState:
        return MALAState(x, *value_and_gradient(energy_fn, x))

    def step(energy_fn: EnergyFn, key: Key, state: MALAState):
        noise_key, accept_key = jax.random.split(key)
        x = state.position
        noise = draw_normal(noise_key, x.shape, x.dtype)
        y = x - step_size * state.gradient + noise_std * noise
        # Hyper-parameters of another type must not change the position's.
        proposal = init(energy_fn, y.astype(x.dtype))
        # The noise that would lead back: x = y - h grad E(y) + sqrt(2 h T) * backward.
        drift = step_size * (state.gradient + proposal.gradient)
        backward = drift / noise_std - noise
        log_ratio = (state.energy - proposal.energy) / temperature
        log_ratio += 0.5 * jnp.sum((noise - backward) * (noise + backward))
        state, acceptance_rate, is_accepted = metropolis(
            accept_key, log_ratio, proposal, state
        )
        return state, MALAInfo(
            energy=state.energy,
            gradient_norm=jnp.sqrt(jnp.sum(state.gradient**2)),
            acceptance_rate=acceptance_rate,
            is_accepted=is_accepted,
        )

    return Sampler(init, step)
