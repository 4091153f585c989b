"""The Metropolis-adjusted Langevin algorithm (MALA)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import at_precision, check_number
from ebmjax.samplers.normal import draw_normal
from ebmjax.samplers.sampler import Sampler, metropolis, named, total
from ebmjax.samplers.unadjusted_langevin import LangevinState, langevin_state
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["MALAInfo", "MALAState", "mala"]


MALAState = LangevinState  # a move of either algorithm needs the same values


class MALAInfo(NamedTuple):
    """Report of one move of the Metropolis-adjusted Langevin algorithm.

    Attributes:
      energy: Energy after the move, `[]`, in nats.
      gradient_norm: Norm of the energy's gradient after the move, `[]`, in nats / units
        of x.
      acceptance_rate: Probability of accepting, `min(1, Metropolis-Hastings ratio)`,
        `[]`, in [0, 1].
      is_accepted: Whether the proposal was accepted, `[]`, bool.
    """

    energy: Array
    gradient_norm: Array
    acceptance_rate: Array
    is_accepted: Array


@named
def mala(
    *,
    step_size: float | Array,
    temperature: float | Array = 1.0,
    precision: str | None = "highest",
) -> Sampler:
    """Returns a sampler that runs the Metropolis-adjusted Langevin algorithm (MALA).

    See https://doi.org/10.2307/3318418.

    A move proposes `y = x - step_size * grad E(x) + sqrt(2 * step_size * temperature) *
    n`, which is a move of `langevin`, and accepts it with probability

        min(1, exp(-(E(y) - E(x)) / temperature) q(x | y) / q(y | x)),

    which leaves `exp(-E / temperature)` invariant at every step size. The proposal
    ratio is not optional: dropping it, or using a norm instead of the squared norm,
    gives another law, as published code shows. The step size affects only the
    acceptance rate; aim at 0.574 in high dimension.

    A proposal with infinite energy is refused. A proposal with NaN energy is refused
    too, and `acceptance_rate` is then NaN, so that it is visible.

    Args:
      step_size: Step size as in `langevin`, in units of x^2 / energy. Positive.
      temperature: Temperature, as in `langevin`. Positive.
      precision: Precision of the products in the energy and its gradient: "highest",
        "high" or "default", as in `jax.default_matmul_precision`, or None for that of
        the caller. It has no effect on a CPU. "default" is several times as fast for a
        large network on a GPU or TPU, and the chain then leaves another law invariant.
        For a dense normal law of 50 dimensions, the energies of exact draws are wrong
        by 0.37 nats in bfloat16 (TPU) and 0.04 nats in TF32 (GPU) if the condition
        number is 1e3. At 1e4, bfloat16 makes the precision matrix indefinite, and TF32
        changes the variance by 6 %. At 100, neither matters.

    Returns:
      A `Sampler` with `MALAState` and `MALAInfo`. A move takes one gradient, and so
      does the start.

    Raises:
      ValueError: If `step_size` or `temperature` is not positive, or the precision is
        unknown.

    Source:
      Roberts & Tweedie (1996), "Exponential convergence of Langevin distributions and
      their discrete approximations", Bernoulli 2, https://doi.org/10.2307/3318418. The
      rate 0.574 is from Roberts & Rosenthal (1998), "Optimal scaling of discrete
      approximations to Langevin diffusions", Journal of the Royal Statistical Society B
      60, https://doi.org/10.1111/1467-9868.00123.
    """
    step_size = check_number("step_size", step_size, positive=True)
    temperature = check_number("temperature", temperature, positive=True)
    noise_std = (2.0 * step_size * temperature) ** 0.5

    @at_precision(precision)
    def init(energy_fn: EnergyFn, x: Array) -> MALAState:
        state: MALAState = langevin_state(energy_fn, x)
        return state

    @at_precision(precision)
    def step(
        energy_fn: EnergyFn, key: Key, state: MALAState
    ) -> tuple[MALAState, MALAInfo]:
        noise_key, accept_key = jax.random.split(key)
        x = state.position
        noise = draw_normal(noise_key, x.shape, x.dtype)
        y = x - step_size * state.gradient + noise_std * noise
        # Hyper-parameters of another type must not change the position's.
        proposal = init(energy_fn, y.astype(x.dtype))
        # The noise that would lead back, in x = y - h grad E(y) + sqrt(2 h T) * noise,
        # is drift - noise. Half the difference of the squares of both is a product.
        drift = step_size / noise_std * (state.gradient + proposal.gradient)
        # XLA's CPU computes first what is written first. The energy comes before the
        # gradient because the values of a network's layers are then still in its cache.
        log_ratio = (state.energy - proposal.energy) / temperature
        log_ratio += total(drift * (noise - 0.5 * drift))
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
