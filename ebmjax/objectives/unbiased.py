"""Maximum likelihood with an unbiased gradient of the log partition function."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ebmjax.checks import check_batch
from ebmjax.objectives.base import Aux, Objective, scalar_function
from ebmjax.samplers import (
    CoupledChains,
    coupled_chains,
    coupled_gibbs_chains,
    unbiased_weights,
)
from ebmjax.starts import Start
from ebmjax.types import Array, Energy, Key, Network, Params

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
    """Returns unbiased contrastive divergence (UCD), by coupled chains.

    See https://openreview.net/forum?id=r1eyceSYPr and https://arxiv.org/abs/1708.03625.

    The loss is the energy of data minus the weighted energy of coupled chains. It
    differs from `contrastive_divergence` in its negatives. Each is a pair of chains
    that meet, which make Metropolis moves or, for binary data, Gibbs moves. The energy
    is a mean over a stretch of one of the chains, corrected by the differences of the
    two until they meet. The gradient has the expectation of the log likelihood's,
    however short the chains are, if all pairs meet before they are cut off. The price
    is variance.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      step_size: Standard deviation of a proposal, in units of x; for Metropolis chains.
      start: Start of both chains of a pair.
      num_steps: Index of the last position of the plain mean.
      max_steps: Number of moves after which pairs that have not met are cut off. Every
        update makes so many moves and keeps all positions: `2 max_steps` energies are
        differentiated for each pair.
      num_burn_in: Index of the first position of the plain mean. A larger one gives
        less variance.
      coupling: "reflection" or "maximal", as in `samplers.coupled_chains`.
      values: The two values of an element, for Gibbs chains, whose moves are sweeps
        over all elements (`samplers.coupled_gibbs_chains`).

    Returns:
      An `Objective` that carries the start's memory. Its metrics are `energy_data`,
      `energy_model`, `meeting_time` (a mean), and `cut_off_rate`, the share of pairs
      that have not met, which should be 0.

    Raises:
      TypeError: Unless exactly one of `step_size` and `values` is given.
      ValueError: Unless `0 <= num_burn_in <= num_steps <= max_steps`; at trace, for a
        bad step size, coupling or pair of values.

    Source:
      Jacob, O'Leary & Atchade (2020), "Unbiased Markov chain Monte Carlo methods with
      couplings", https://arxiv.org/abs/1708.03625. For learning: Qiu, Zhang & Wang
      (2020), "Unbiased contrastive divergence algorithm for training energy-based
      latent variable models", ICLR, https://openreview.net/forum?id=r1eyceSYPr.
    """
    unbiased_weights(jnp.zeros(()), num_burn_in, num_steps, max_steps)
    chains: Callable[..., CoupledChains]
    if step_size is not None and values is None:
        chains = partial(coupled_chains, step_size=step_size, coupling=coupling)
    elif values is not None and step_size is None:
        chains = partial(coupled_gibbs_chains, values=values)
    else:
        given = "neither" if values is None else "both"
        raise TypeError(f"give exactly one of step_size and values, got {given}")
    energy = scalar_function("energy", energy)

    def loss(params: Params, key: Key, batch: Array, carry: Any) -> tuple[Array, Aux]:
        if values is None:
            check_batch(batch)
        start_key, chain_key = jax.random.split(key)
        x, slots = start.draw(start_key, carry, batch)
        trained = params["energy"]
        frozen = partial(energy, jax.lax.stop_gradient(trained))

        def pair(key: Key, x: Array) -> CoupledChains:
            return chains(frozen, key, x, x, max_steps=max_steps)

        pairs = jax.vmap(pair)(jax.random.split(chain_key, x.shape[0]), x)
        pairs = jax.lax.stop_gradient(pairs)

        def mean_energy(pair: CoupledChains) -> Array:
            weights = unbiased_weights(
                pair.meeting_time, num_burn_in, num_steps, max_steps
            )
            energies = jax.vmap(partial(energy, trained))
            total: float | Array = 0.0
            for weight, x in zip(weights, (pair.leader, pair.follower)):
                # What has no weight may have no finite energy either.
                used = (weight != 0).reshape(-1, *[1] * (x.ndim - 1))
                x = jnp.where(used, x, pair.leader[-1:])
                total += jnp.sum(weight * energies(x))
            return jnp.asarray(total)

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
