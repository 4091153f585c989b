"""Any f-divergence between data and model: an energy beside a critic of density ratios.

`min over the energy, max over the critic, of mean A(u) over data - mean B(u) over the
model`, with `u = H + E` the sum of the critic's value and the energy. The best critic
has `u = log(data / model)`, at which the value is the f-divergence of the data from the
model. Maximum likelihood is the case "kl"; others weigh modes and outliers differently.
A critic is `(params, x) -> []` of one example, with `params["critic"]`.

Source:
  Yu, Song, Song & Ermon (2020), "Training deep energy-based models with f-divergence
  minimization".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.objectives.base import Objective, as_function, check_choice, stateless
from ebmjax.types import Array, Energy, Key, Network, Params

__all__ = ["critic_objective", "energy_objective"]


class Divergence(NamedTuple):
    """`f'(e^u)` and `f*(f'(e^u))`, functions of the log ratio `u` and of a clip for
    what is raised to a power: where nothing is, a clip would only take gradients."""

    of_data: Callable[[Array, Callable], Array]
    of_model: Callable[[Array, Callable], Array]


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
"""Jensen-Shannon's is twice the usual: `KL(p, m) + KL(q, m)` with `m` the middle. Both
chi-squared ones integrate `(data - model)^2`: Pearson's over the model's density,
Neyman's over the data's."""

Sample = Callable[[Params, Key], Array]


def critic_objective(
    energy: Energy | Network,
    critic: Energy | Network,
    *,
    sample: Sample,
    divergence: str = "js",
    ratio_clip: float | None = 5.0,
) -> Objective:
    """The critic's loss: minus the bound on the divergence.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`; held fixed.
      critic: `critic(params, x) -> []`, with the parameters `params["critic"]`.
      sample: `sample(params, key) -> x`, one example drawn from the model with these
        `params["energy"]`; held fixed.
      divergence: "js", "kl", "neyman", "pearson", "reverse_kl" or "squared_hellinger",
        of the data from the model.
      ratio_clip: Log ratios whose exponential is taken are clipped to [-ratio_clip,
        ratio_clip]: those of large ones end a run. None for none.

    Returns:
      A stateless `Objective` for a player that trains `("critic",)`. Metrics:
      `divergence`, the bound; `log_ratio_data`, `log_ratio_model`.

    Raises:
      ValueError: If the divergence is unknown.
    """
    bound = _bound(energy, critic, sample, divergence, ratio_clip)

    def loss(params, key, batch):
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
    """The energy's loss, whose gradient is that of the bound on the divergence.

    The draws move with the energy, and their law's derivative enters as a covariance:
    the gradient of the mean of `B` over the model is the mean of `B`'s gradient less
    the covariance of `B` with the energy's gradient, here of the batch's own draws.

    Args:
      energy: As in `critic_objective`.
      critic: As in `critic_objective`; held fixed.
      sample: As in `critic_objective`.
      divergence: As in `critic_objective`.
      ratio_clip: As in `critic_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("energy",)`. Metrics: as in
      `critic_objective`. The loss's value is not the bound; `divergence` is.

    Raises:
      ValueError: If the divergence is unknown; at trace, for a batch of one, which has
        no covariance.
    """
    bound = _bound(energy, critic, sample, divergence, ratio_clip)

    def loss(params, key, batch):
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


def _bound(energy, critic, sample, divergence, ratio_clip):
    """`(params, key, batch) -> (value, (energies, B) of draws, metrics)`."""
    check_choice("divergence", divergence, tuple(DIVERGENCES))
    energy, critic = as_function(energy), as_function(critic)
    of_data, of_model = DIVERGENCES[divergence]

    def bound(params, key, batch):
        frozen = jax.lax.stop_gradient(params["energy"])
        keys = jax.random.split(key, len(batch))
        draws = jax.lax.stop_gradient(jax.vmap(sample, (None, 0))(frozen, keys))

        def energy_and_ratio(x):
            value = energy(params["energy"], x)
            return value, critic(params["critic"], x) + value

        def clip(ratio):
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
