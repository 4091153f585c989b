"""Noise contrastive estimation whose noise is a flow that learns beside the energy.

Two players. The energy tells data from the flow's draws; the flow, whose density is
known, makes that harder. Where both have learned, the energy, the flow and the data are
one law, and both losses stand at `2 log 2` and `-2 log 2`. Flows are `(sample: (params,
key) -> x, log_prob: (params, x) -> [])` of one example, with `params["flow"]`.

Source:
  Gao, Nijkamp, Kingma, Xu, Dai & Wu (2020), "Flow contrastive estimation of
  energy-based models".
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax.objectives.base import Objective, as_function, averaged
from ebmjax.objectives.noise_contrastive_estimation import classify
from ebmjax.types import Array, Energy, Key, Network, Params

__all__ = ["Flow", "energy_objective", "flow_objective"]

Flow = tuple[Callable[[Params, Key], Array], Callable[[Params, Array], Array]]
"""`(sample: (params, key) -> x, log_prob: (params, x) -> [])` of one example."""


def energy_objective(energy: Energy | Network, flow: Flow) -> Objective:
    """The energy's loss: `noise_contrastive` with the flow, held fixed, as the noise.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`, its log partition function's estimate
        `params["log_partition"]`.
      flow: `(sample, log_prob)`, with the parameters `params["flow"]`.

    Returns:
      A stateless `Objective` for a player that trains `("energy", "log_partition")`.
      Metrics: `accuracy_data`, `accuracy_noise`, `log_partition`.
    """
    return averaged(_example_loss(energy, flow, is_flow=False))


def flow_objective(energy: Energy | Network, flow: Flow) -> Objective:
    """The flow's loss: minus the energy's, with the energy held fixed.

    The gradient runs through the flow's draws and through its density at draws and
    data. Minimised over the flow where the energy is best, it is twice the
    Jensen-Shannon divergence of the data and the flow less `2 log 2`.

    Args:
      energy: As in `energy_objective`.
      flow: As in `energy_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("flow",)`. Metrics: as in
      `energy_objective`.
    """
    return averaged(_example_loss(energy, flow, is_flow=True))


def _example_loss(energy, flow, is_flow):
    energy = as_function(energy)
    sample, log_prob = flow
    moved, fixed = ["energy", "log_partition"], ["flow"]
    if is_flow:
        moved, fixed = fixed, moved

    def example_loss(params, key, x):
        params = {name: params[name] for name in moved} | jax.lax.stop_gradient(
            {name: params[name] for name in fixed}
        )

        def logit(x):
            model = -energy(params["energy"], x) - params["log_partition"]
            return model - log_prob(params["flow"], x)

        noise = jnp.expand_dims(sample(params["flow"], key), 0)
        value, metrics = classify(logit, x, noise)
        metrics |= {"log_partition": params["log_partition"]}
        return -value if is_flow else value, metrics

    return example_loss
