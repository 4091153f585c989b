"""Metropolis-Hastings with proposals that do not depend on the chain's position."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import at_precision, check_number
from ebmjax.samplers.sampler import Sampler, metropolis, named, value
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["IndependenceInfo", "IndependenceState", "independence"]


class IndependenceState(NamedTuple):
    """State of an independence Metropolis-Hastings chain.

    Attributes:
      position: Place of the chain, `[*event]`, in units of x.
      energy: Energy at `position`, `[]`, in nats.
      log_prob: Log of the proposal's density at `position`, `[]`, in nats, up to a
        constant.
    """

    position: Array
    energy: Array
    log_prob: Array


class IndependenceInfo(NamedTuple):
    """Report of one move of independence Metropolis-Hastings.

    Attributes:
      energy: Energy after the move, `[]`, in nats.
      acceptance_rate: Probability of accepting, `min(1, Metropolis-Hastings ratio)`,
        `[]`, in [0, 1].
      is_accepted: Whether the proposal was accepted, `[]`, bool.
    """

    energy: Array
    acceptance_rate: Array
    is_accepted: Array


@named
def independence(
    *,
    proposal: tuple[Callable[[Key], Array], Callable[[Array], Array]],
    temperature: float | Array = 1.0,
    precision: str | None = "highest",
) -> Sampler:
    """Returns a sampler whose proposals come from one fixed distribution (IMH).

    See https://doi.org/10.1214/aos/1176325750.

    This is independence Metropolis-Hastings (Tierney 1994, Annals of Statistics 22). A
    move draws `y` from the proposal, wherever the chain is, and accepts it with
    probability

        min(1, exp(-(E(y) - E(x)) / temperature) proposal(x) / proposal(y)),

    which leaves `exp(-E / temperature)` invariant. The sampler needs no gradient and
    crosses any barrier, and it is as good as the proposal: if
    `exp(-E / temperature) / proposal` is unbounded, the chain sticks at places that the
    proposal misses. With the prior of a latent as the proposal and
    `energies.latent_energy`, this is the independent Metropolis-Hastings of GEBM. It is
    not importance sampling: a refused move repeats the last draw.

    Args:
      proposal: `(sample, log_prob)` with `sample(key) -> x [*event]`, of the type of
        the chain's positions, and `log_prob(x) -> []`, in nats, up to a constant.
      temperature: Temperature, as in `langevin`. Positive.
      precision: Precision of the products in the energy and the proposal, as in `mala`.

    Returns:
      A `Sampler` with `IndependenceState` and `IndependenceInfo`. A move takes one
      energy and no gradient; the start takes one energy.

    Raises:
      ValueError: If `temperature` is not positive, the precision is unknown, or
        `sample` draws another shape than the chain's.

    Source:
      Tierney (1994), "Markov chains for exploring posterior distributions", Annals of
      Statistics 22, https://doi.org/10.1214/aos/1176325750. For latents: Arbel, Zhou &
      Gretton (2021), "Generalized energy based models",
      https://arxiv.org/abs/2003.05033.
    """
    temperature = check_number("temperature", temperature, positive=True)
    sample, log_prob = proposal

    @at_precision(precision)
    def init(energy_fn: EnergyFn, x: Array) -> IndependenceState:
        return IndependenceState(
            x, value(energy_fn, x), value(log_prob, x, "log_prob of proposal")
        )

    @at_precision(precision)
    def step(
        energy_fn: EnergyFn, key: Key, state: IndependenceState
    ) -> tuple[IndependenceState, IndependenceInfo]:
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
