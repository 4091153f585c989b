"""Adversarial training with a flow: a bound on the log partition function, from below.

`log Z >= mean over the flow of -E, plus the flow's entropy`, with equality where the
flow is the model. Two players: the flow makes the bound tight, the energy climbs the
likelihood that the bound gives, from above. A flow has its entropy in closed form, a
generator has not. Flows are as in `flow_contrastive`.
"""

import jax

from ebmjax.objectives.base import Objective, as_function, averaged
from ebmjax.objectives.flow_contrastive import Flow
from ebmjax.types import Energy, Network

__all__ = ["energy_objective", "flow_objective"]


def energy_objective(energy: Energy | Network, flow: Flow) -> Objective:
    """The energy's loss: data against the flow's draws, held fixed.

    `mean E(data) - mean E(flow)`: the gradient of contrastive divergence with the flow
    as the sampler. The value alone says nothing about progress.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`.
      flow: `(sample, log_prob)`, with the parameters `params["flow"]`.

    Returns:
      A stateless `Objective` for a player that trains `("energy",)`. Metrics:
      `energy_data`, `energy_model`, and `log_likelihood`, an upper bound of the mean
      log likelihood: `-E(data)` less the flow's bound on the log partition function.
    """
    energy = as_function(energy)
    sample, log_prob = flow

    def example_loss(params, key, x):
        frozen = jax.lax.stop_gradient(params["flow"])
        y = jax.lax.stop_gradient(sample(frozen, key))
        at_x, at_y = energy(params["energy"], x), energy(params["energy"], y)
        return at_x - at_y, {
            "energy_data": at_x,
            "energy_model": at_y,
            "log_likelihood": -at_x + at_y + log_prob(frozen, y),
        }

    return averaged(example_loss)


def flow_objective(energy: Energy | Network, flow: Flow) -> Objective:
    """The flow's loss: its divergence from the model, less the log partition function.

    `mean of E(y) + log_prob(y)` over the flow's draws: `KL(flow, model) - log Z`. The
    gradient runs through the draws and the density; the batch is not looked at, but for
    its size.

    Args:
      energy: As in `energy_objective`; held fixed.
      flow: As in `energy_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("flow",)`. Metrics: `entropy`,
      the flow's; `energy_model`.
    """
    energy = as_function(energy)
    sample, log_prob = flow

    def example_loss(params, key, x):
        y = sample(params["flow"], key)
        at_y = energy(jax.lax.stop_gradient(params["energy"]), y)
        entropy = -log_prob(params["flow"], y)
        return at_y - entropy, {"entropy": entropy, "energy_model": at_y}

    return averaged(example_loss)
