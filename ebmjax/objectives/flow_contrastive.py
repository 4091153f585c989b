"""Flow contrastive estimation (FCE): NCE whose noise is a flow that is also trained.

See https://arxiv.org/abs/1912.00589.

There are two players. The energy distinguishes data from the flow's draws. The flow,
whose density is known, makes that harder. When both have learned, the energy, the flow
and the data are one law, and the two losses are `2 log 2` and `-2 log 2`. Flows are
`(sample: (params, key) -> x, log_prob: (params, x) -> [])` of one example, with
`params["flow"]`.

Source:
  Gao, Nijkamp, Kingma, Xu, Dai & Wu (2020), "Flow contrastive estimation of
  energy-based models", https://arxiv.org/abs/1912.00589.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax.checks import scalar_valued
from ebmjax.objectives.base import Objective, averaged, constant_of, scalar_function
from ebmjax.objectives.noise_contrastive_estimation import classify
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params

__all__ = ["Flow", "energy_objective", "flow_objective"]

Flow = tuple[Callable[[Params, Key], Array], Callable[[Params, Array], Array]]
"""`(sample: (params, key) -> x, log_prob: (params, x) -> [])` of one example."""


def energy_objective(energy: Energy | Network, flow: Flow) -> Objective:
    """Returns the energy's loss in FCE, NCE with the fixed flow as the noise.

    See https://arxiv.org/abs/1912.00589.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`, and the estimate of its log partition function is
        `params["log_partition"]`.
      flow: `(sample, log_prob)`, with the parameters `params["flow"]`.

    Returns:
      A stateless `Objective` for a player that trains `("energy", "log_partition")`.
      Its metrics are `accuracy_data`, `accuracy_noise`, `log_partition`.

    Source:
      Gao et al. (2020), "Flow contrastive estimation of energy-based models",
      https://arxiv.org/abs/1912.00589.
    """
    return averaged(_example_loss(energy, flow, is_flow=False))


def flow_objective(energy: Energy | Network, flow: Flow) -> Objective:
    """Returns the flow's loss in FCE, minus the energy's loss with the energy fixed.

    See https://arxiv.org/abs/1912.00589.

    The gradient flows through the flow's draws, and through its density at draws and
    data. Where the energy is the best one, the loss is twice the Jensen-Shannon
    divergence of the data and the flow, minus `2 log 2`.

    Args:
      energy: Energy or `Network`, as in `energy_objective`.
      flow: Flow, as in `energy_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("flow",)`. The metrics are
      those of `energy_objective`.

    Source:
      Gao et al. (2020), "Flow contrastive estimation of energy-based models",
      https://arxiv.org/abs/1912.00589.
    """
    return averaged(_example_loss(energy, flow, is_flow=True))


def _example_loss(
    energy: Energy | Network, flow: Flow, is_flow: bool
) -> Callable[[Params, Key, Array], tuple[Array, Metrics]]:
    energy = scalar_function("energy", energy)
    sample, log_prob = flow
    log_prob = scalar_valued("log_prob of flow", log_prob)
    moved, fixed = ["energy", "log_partition"], ["flow"]
    if is_flow:
        moved, fixed = fixed, moved

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        params = {name: params[name] for name in moved} | jax.lax.stop_gradient(
            {name: params[name] for name in fixed}
        )

        constant = constant_of(params)

        def logit(x: Array) -> Array:
            model: Array = -energy(params["energy"], x) - constant
            return model - log_prob(params["flow"], x)

        noise = jnp.expand_dims(sample(params["flow"], key), 0)
        value, metrics = classify(logit, x, noise)
        metrics |= {"log_partition": constant}
        return -value if is_flow else value, metrics

    return example_loss
