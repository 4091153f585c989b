"""Adversarial training with a flow, by a lower bound on the log partition function.

See https://arxiv.org/abs/2010.04230.

The bound is `log Z >= mean over the flow of -E, plus the flow's entropy`, with equality
if the flow is the model. There are two players. The flow makes the bound tight. The
energy raises the likelihood that the bound gives, which is an upper bound. A flow has
its entropy in closed form, a generator does not. Flows are the same pairs as in
`flow_contrastive`.

Source:
  Grathwohl et al. (2021), "No MCMC for me: amortized sampling for fast and stable
  training of energy-based models" (VERA), https://arxiv.org/abs/2010.04230, for the
  bound; `entropy_gradient` is its method.
"""

import jax

from ebmjax.checks import scalar_valued
from ebmjax.objectives.base import Objective, averaged, scalar_function
from ebmjax.objectives.flow_contrastive import Flow
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params

__all__ = ["energy_objective", "flow_objective"]


def energy_objective(energy: Energy | Network, flow: Flow) -> Objective:
    """Returns the energy's loss: data against the flow's draws, which are fixed.

    See https://arxiv.org/abs/2010.04230, for the bound.

    The loss is `mean E(data) - mean E(flow)`, whose gradient is that of contrastive
    divergence with the flow as the sampler. Its value does not measure progress.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`.
      flow: `(sample, log_prob)`, with the parameters `params["flow"]`.

    Returns:
      A stateless `Objective` for a player that trains `("energy",)`. Its metrics are
      `energy_data`, `energy_model`, and `log_likelihood`, an upper bound of the mean
      log likelihood, which is `-E(data)` minus the flow's bound on the log partition
      function.
    """
    energy = scalar_function("energy", energy)
    sample, log_prob = flow
    log_prob = scalar_valued("log_prob of flow", log_prob)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
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
    """Returns the flow's loss, its divergence from the model up to a constant.

    See https://arxiv.org/abs/2010.04230, for the bound.

    The loss is the mean of `E(y) + log_prob(y)` over the flow's draws,
    `KL(flow, model) - log Z`. The gradient flows through the draws and the density. The
    batch matters only by its size.

    Args:
      energy: Energy or `Network`, as in `energy_objective`; fixed.
      flow: Flow, as in `energy_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("flow",)`. Its metrics are
      `entropy`, the flow's, and `energy_model`.
    """
    energy = scalar_function("energy", energy)
    sample, log_prob = flow
    log_prob = scalar_valued("log_prob of flow", log_prob)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        y = sample(params["flow"], key)
        at_y = energy(jax.lax.stop_gradient(params["energy"]), y)
        entropy = -log_prob(params["flow"], y)
        return at_y - entropy, {"entropy": entropy, "energy_model": at_y}

    return averaged(example_loss)
