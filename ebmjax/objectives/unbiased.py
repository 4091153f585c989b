"""Maximum likelihood with the gradient of the log partition function unbiased."""

from functools import partial

import jax
import jax.numpy as jnp

from ebmjax.objectives.base import Aux, Objective, as_function
from ebmjax.samplers import coupled_chains, unbiased_weights
from ebmjax.starts import Start
from ebmjax.types import Energy, Network

__all__ = ["unbiased_contrastive_divergence"]


def unbiased_contrastive_divergence(
    energy: Energy | Network,
    *,
    step_size: float,
    start: Start,
    num_steps: int,
    max_steps: int,
    num_burn_in: int = 0,
    coupling: str = "reflection",
) -> Objective:
    """Energy of data minus that of coupled chains, weighted so that nothing is biased.

    As `contrastive_divergence`, but every negative is a pair of Metropolis chains that
    meet: a mean over a stretch of one of them, corrected by their differences until
    then. The loss's gradient has the expectation of the log likelihood's, however short
    the chains, if all pairs meet before they are cut off. The price is variance.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      step_size: Standard deviation of a proposal, in units of x.
      start: Where both chains of a pair begin.
      num_steps: Last position of the plain mean.
      max_steps: Where pairs are cut off that have not met. Every update takes so many
        moves and keeps all positions: `2 max_steps` energies a pair are differentiated.
      num_burn_in: First position of the plain mean. Larger means less variance.
      coupling: "reflection" or "maximal", as in `samplers.coupled_chains`.

    Returns:
      An `Objective` that carries the start's memory. Metrics: `energy_data`,
      `energy_model`, `meeting_time` (a mean), `cut_off_rate`, the share of pairs that
      had not met: it should be 0.

    Raises:
      ValueError: Unless `0 <= num_burn_in <= num_steps <= max_steps`; at trace, for a
        bad step size or coupling.

    Source:
      Jacob, O'Leary & Atchade (2020), "Unbiased Markov chain Monte Carlo methods with
      couplings"; for learning, Qiu, Zhang & Wang (2020), "Unbiased contrastive
      divergence algorithm for training energy-based latent variable models".
    """
    unbiased_weights(jnp.zeros(()), num_burn_in, num_steps, max_steps)
    energy = as_function(energy)

    def loss(params, key, batch, carry):
        start_key, chain_key = jax.random.split(key)
        x, slots = start.draw(start_key, carry, batch)
        trained = params["energy"]
        frozen = partial(energy, jax.lax.stop_gradient(trained))

        def pair(key, x):
            return coupled_chains(
                frozen,
                key,
                x,
                x,
                step_size=step_size,
                max_steps=max_steps,
                coupling=coupling,
            )

        pairs = jax.vmap(pair)(jax.random.split(chain_key, x.shape[0]), x)
        pairs = jax.lax.stop_gradient(pairs)

        def mean_energy(pair):
            weights = unbiased_weights(
                pair.meeting_time, num_burn_in, num_steps, max_steps
            )
            energies = jax.vmap(partial(energy, trained))
            return sum(
                jnp.sum(weight * energies(x))
                for weight, x in zip(weights, (pair.leader, pair.follower))
            )

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
