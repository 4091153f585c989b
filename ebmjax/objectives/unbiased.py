"""Maximum likelihood with the gradient of the log partition function unbiased."""

from functools import partial

import jax
import jax.numpy as jnp

from ebmjax.objectives.base import Aux, Objective, as_function
from ebmjax.samplers import (
    coupled_chains,
    coupled_gibbs_chains,
    unbiased_weights,
)
from ebmjax.starts import Start
from ebmjax.types import Energy, Network

__all__ = ["unbiased_contrastive_divergence"]


def unbiased_contrastive_divergence(
    energy: Energy | Network,
    *,
    step_size: float | None = None,
    start: Start,
    num_steps: int,
    max_steps: int,
    num_burn_in: int = 0,
    coupling: str = "reflection",
    values: tuple[float, float] | None = None,
) -> Objective:
    """Energy of data minus that of coupled chains, weighted so that nothing is biased.

    As `contrastive_divergence`, but every negative is a pair of chains that meet, of
    Metropolis' moves or, of binary data, of Gibbs': a mean over a stretch of one of
    them, corrected by their differences until then. The loss's gradient has the
    expectation of the log likelihood's, however short the chains, if all pairs meet
    before they are cut off. The price is variance.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      step_size: Standard deviation of a proposal, in units of x; for Metropolis chains.
      start: Where both chains of a pair begin.
      num_steps: Last position of the plain mean.
      max_steps: Where pairs are cut off that have not met. Every update takes so many
        moves and keeps all positions: `2 max_steps` energies a pair are differentiated.
      num_burn_in: First position of the plain mean. Larger means less variance.
      coupling: "reflection" or "maximal", as in `samplers.coupled_chains`.
      values: The two values of an element; for Gibbs chains, whose moves are sweeps
        over all elements: `samplers.coupled_gibbs_chains`.

    Returns:
      An `Objective` that carries the start's memory. Metrics: `energy_data`,
      `energy_model`, `meeting_time` (a mean), `cut_off_rate`, the share of pairs that
      had not met: it should be 0.

    Raises:
      TypeError: Unless exactly one of `step_size` and `values` is given.
      ValueError: Unless `0 <= num_burn_in <= num_steps <= max_steps`; at trace, for a
        bad step size, coupling or pair of values.

    Source:
      Jacob, O'Leary & Atchade (2020), "Unbiased Markov chain Monte Carlo methods with
      couplings"; for learning, Qiu, Zhang & Wang (2020), "Unbiased contrastive
      divergence algorithm for training energy-based latent variable models".
    """
    unbiased_weights(jnp.zeros(()), num_burn_in, num_steps, max_steps)
    if (step_size is None) == (values is None):
        given = "neither" if values is None else "both"
        raise TypeError(f"give exactly one of step_size and values, got {given}")
    energy = as_function(energy)
    if values is None:
        chains = partial(coupled_chains, step_size=step_size, coupling=coupling)
    else:
        chains = partial(coupled_gibbs_chains, values=values)

    def loss(params, key, batch, carry):
        start_key, chain_key = jax.random.split(key)
        x, slots = start.draw(start_key, carry, batch)
        trained = params["energy"]
        frozen = partial(energy, jax.lax.stop_gradient(trained))

        def pair(key, x):
            return chains(frozen, key, x, x, max_steps=max_steps)

        pairs = jax.vmap(pair)(jax.random.split(chain_key, x.shape[0]), x)
        pairs = jax.lax.stop_gradient(pairs)

        def mean_energy(pair):
            weights = unbiased_weights(
                pair.meeting_time, num_burn_in, num_steps, max_steps
            )
            energies = jax.vmap(partial(energy, trained))
            total = 0.0
            for weight, x in zip(weights, (pair.leader, pair.follower)):
                # What has no weight may have no finite energy either.
                used = (weight != 0).reshape(-1, *[1] * (x.ndim - 1))
                x = jnp.where(used, x, pair.leader[-1:])
                total += jnp.sum(weight * energies(x))
            return total

        at_data = jax.vmap(partial(energy, trained))(batch).mean()
        at_model = jax.vmap(mean_energy)(pairs).mean()
        metrics = {
            "energy_data": at_data,
            "energy_model": at_model,
            "meeting_time": pairs.meeting_time.mean(),
            "cut_off_rate": (pairs.meeting_time > max_steps).mean(),
        }
        carry = start.write(carry, slots, pairs.leader[:, -1])
        return at_data - at_model, Aux(carry, jax.lax.stop_gradient(metrics))

    return Objective(start.init, loss)
