"""Training by any f-divergence (f-EBM): an energy with a critic of density ratios.

See https://arxiv.org/abs/2003.03463.

The game is `min over the energy, max over the critic, of mean A(u) over data - mean
B(u) over the model`, with `u = H + E` the sum of the critic's value and the energy. The
best critic has `u = log(data / model)`, at which the value is the f-divergence of the
data from the model. Maximum likelihood is the case "kl"; other divergences weight modes
and outliers differently. A critic is `(params, x) -> []` of one example, with
`params["critic"]`.

Source:
  Yu, Song, Song & Ermon (2020), "Training deep energy-based models with f-divergence
  minimization", https://arxiv.org/abs/2003.03463.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import check_batch
from ebmjax.objectives.base import Objective, check_choice, scalar_function, stateless
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params

__all__ = ["critic_objective", "energy_objective"]


Clip = Callable[[Array], Array]


class Divergence(NamedTuple):
    """The functions `f'(e^u)` and `f*(f'(e^u))` of an f-divergence.

    Both are functions of the log ratio `u` and of a function that clips what is raised
    to a power. A term without a power is not clipped, because a clip would only remove
    gradients.

    Attributes:
      of_data: `f'(e^u)`, the term of the data, `(u, clip) -> []`.
      of_model: `f*(f'(e^u))`, the term of the model's draws, `(u, clip) -> []`.
    """

    of_data: Callable[[Array, Clip], Array]
    of_model: Callable[[Array, Clip], Array]


DIVERGENCES = {
    "js": Divergence(
        lambda u, clip: jnp.log(2.0) - jax.nn.softplus(-u),
        lambda u, clip: jax.nn.softplus(u) - jnp.log(2.0),
    ),
    "kl": Divergence(lambda u, clip: 1 + u, lambda u, clip: jnp.exp(clip(u))),
    "neyman": Divergence(
        lambda u, clip: -jnp.expm1(-2 * clip(u)),
        lambda u, clip: -2 * jnp.expm1(-clip(u)),
    ),
    "pearson": Divergence(
        lambda u, clip: 2 * jnp.expm1(clip(u)),
        lambda u, clip: jnp.expm1(2 * clip(u)),
    ),
    "reverse_kl": Divergence(lambda u, clip: -jnp.exp(-clip(u)), lambda u, clip: u - 1),
    "squared_hellinger": Divergence(
        lambda u, clip: -jnp.expm1(-0.5 * clip(u)),
        lambda u, clip: jnp.expm1(0.5 * clip(u)),
    ),
}
"""Divergences by name. "js" is twice the usual Jensen-Shannon divergence, `KL(p, m) +
KL(q, m)` with `m` the mixture. Both chi-squared divergences integrate `(data -
model)^2`, "pearson" over the model's density and "neyman" over the data's."""

Sample = Callable[[Params, Key], Array]


def critic_objective(
    energy: Energy | Network,
    critic: Energy | Network,
    *,
    sample: Sample,
    divergence: str = "js",
    ratio_clip: float | None = 5.0,
) -> Objective:
    """Returns the critic's loss in f-EBM, which is minus the bound on the divergence.

    See https://arxiv.org/abs/2003.03463.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`; fixed.
      critic: `critic(params, x) -> []`, with the parameters `params["critic"]`.
      sample: `sample(params, key) -> x`, one example drawn from the model with these
        `params["energy"]`; fixed.
      divergence: Divergence of the data from the model: "js", "kl", "neyman",
        "pearson", "reverse_kl" or "squared_hellinger".
      ratio_clip: Bound of log ratios whose exponential is taken, which are clipped to
        [-ratio_clip, ratio_clip] because large ones would end a run. None does not
        clip.

    Returns:
      A stateless `Objective` for a player that trains `("critic",)`. Its metrics are
      `divergence`, the bound; `log_ratio_data` and `log_ratio_model`.

    Raises:
      ValueError: If the divergence is unknown.

    Source:
      Yu, Song, Song & Ermon (2020), "Training deep energy-based models with
      f-divergence minimization", https://arxiv.org/abs/2003.03463.
    """
    bound = _bound(energy, critic, sample, divergence, ratio_clip)

    def loss(params: Params, key: Key, batch: Array) -> tuple[Array, Metrics]:
        params = params | jax.lax.stop_gradient({"energy": params["energy"]})
        value, _, metrics = bound(params, key, batch)
        return -value, metrics

    return stateless(loss)


def energy_objective(
    energy: Energy | Network,
    critic: Energy | Network,
    *,
    sample: Sample,
    divergence: str = "js",
    ratio_clip: float | None = 5.0,
) -> Objective:
    """Returns the energy's loss in f-EBM, whose gradient is that of the bound.

    See https://arxiv.org/abs/2003.03463.

    The draws depend on the energy, and the derivative of their law enters as a
    covariance. The gradient of the mean of `B` over the model is the mean of `B`'s
    gradient minus the covariance of `B` with the energy's gradient, which is estimated
    from the batch's own draws.

    Args:
      energy: Energy or `Network`, as in `critic_objective`.
      critic: Critic, as in `critic_objective`; fixed.
      sample: Sampler of the model, as in `critic_objective`.
      divergence: Name of the divergence, as in `critic_objective`.
      ratio_clip: Bound of log ratios, as in `critic_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("energy",)`. The metrics are
      those of `critic_objective`. The loss's value is not the bound; the metric
      `divergence` is.

    Raises:
      ValueError: If the divergence is unknown; at trace, for a batch of one, which has
        no covariance.

    Source:
      Yu, Song, Song & Ermon (2020), "Training deep energy-based models with
      f-divergence minimization", https://arxiv.org/abs/2003.03463.
    """
    bound = _bound(energy, critic, sample, divergence, ratio_clip)

    def loss(params: Params, key: Key, batch: Array) -> tuple[Array, Metrics]:
        if len(batch) < 2:
            raise ValueError(
                "f_contrastive needs a batch of at least 2 examples, got 1"
            )
        params = params | jax.lax.stop_gradient({"critic": params["critic"]})
        value, (energies, of_model), metrics = bound(params, key, batch)
        centred = jax.lax.stop_gradient(of_model - of_model.mean())
        covariance = jnp.sum(energies * centred) / (len(batch) - 1)
        return value + covariance, metrics

    return stateless(loss)


def _bound(
    energy: Energy | Network,
    critic: Energy | Network,
    sample: Sample,
    divergence: str,
    ratio_clip: float | None,
) -> Callable[[Params, Key, Array], tuple[Array, tuple[Array, Array], Metrics]]:
    """Returns `(params, key, batch) -> (value, (energies, B) of draws, metrics)`."""
    check_choice("divergence", divergence, tuple(DIVERGENCES))
    energy = scalar_function("energy", energy)
    critic = scalar_function("critic", critic)
    of_data, of_model = DIVERGENCES[divergence]

    def bound(
        params: Params, key: Key, batch: Array
    ) -> tuple[Array, tuple[Array, Array], Metrics]:
        check_batch(batch)
        frozen = jax.lax.stop_gradient(params["energy"])
        keys = jax.random.split(key, len(batch))
        draws = jax.lax.stop_gradient(jax.vmap(sample, (None, 0))(frozen, keys))

        def energy_and_ratio(x: Array) -> tuple[Array, Array]:
            value = energy(params["energy"], x)
            return value, critic(params["critic"], x) + value

        def clip(ratio: Array) -> Array:
            if ratio_clip is None:
                return ratio
            return jnp.clip(ratio, -ratio_clip, ratio_clip)

        _, data_ratio = jax.vmap(energy_and_ratio)(batch)
        energies, model_ratio = jax.vmap(energy_and_ratio)(draws)
        at_draws = of_model(model_ratio, clip)
        value = of_data(data_ratio, clip).mean() - at_draws.mean()
        metrics = {
            "divergence": value,
            "log_ratio_data": data_ratio.mean(),
            "log_ratio_model": model_ratio.mean(),
        }
        return value, (energies, at_draws), jax.lax.stop_gradient(metrics)

    return bound
