"""Noise contrastive estimation: telling data from noise of a known density."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax.checks import check_count, check_number
from ebmjax.objectives.base import (
    Objective,
    as_function,
    averaged,
)
from ebmjax.types import Array, Energy, Key, Network

__all__ = [
    "NoiseDistribution",
    "conditional_noise_contrastive",
    "noise_contrastive",
    "self_contrastive",
]

NoiseDistribution = tuple[Callable[[Key], Array], Callable[[Array], Array]]
"""`(sample: key -> x, log_prob: x -> [])` of one example."""


def noise_contrastive(
    energy: Energy | Network,
    *,
    noise_distribution: NoiseDistribution,
    num_noise: int = 1,
) -> Objective:
    """Noise contrastive estimation: logistic regression of data against noise.

    `softplus(-h(data)) + sum over the noise of softplus(h(noise))` with the log odds
    `h(x) = -E(x) - log_partition - log_prob(x) - log num_noise`. The log partition
    function is a parameter, and at the optimum it is right: the energy is learned with
    its constant. (A bias in the energy's last layer would be the same parameter twice.)
    The noise's density must be positive wherever there are data, and near enough to
    them: where a classifier is never wrong the gradient is gone.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`, the log partition function's estimate
        `params["log_partition"]`, a scalar. It wants a larger learning rate.
      noise_distribution: `(sample: key -> x, log_prob: x -> [])`, one example, with a
        normalised density.
      num_noise: Noise examples for every data example, at least 1. With many, the
        estimator is as efficient as maximum likelihood.

    Returns:
      A stateless `Objective`. Metrics: `accuracy_data` and `accuracy_noise`, shares
      that are classified rightly; `log_partition`.

    Raises:
      ValueError: If `num_noise` is below 1.

    Source:
      Gutmann & Hyvarinen (2012), "Noise-contrastive estimation of unnormalized
      statistical models, with applications to natural image statistics".
    """
    check_count("num_noise", num_noise, 1)
    energy = as_function(energy)
    sample, log_prob = noise_distribution

    def example_loss(params, key, x):
        def logit(x):
            model = -energy(params["energy"], x) - params["log_partition"]
            return model - log_prob(x) - jnp.log(float(num_noise))

        noise = jax.vmap(sample)(jax.random.split(key, num_noise))
        value, metrics = classify(logit, x, noise)
        return value, metrics | {"log_partition": params["log_partition"]}

    return averaged(example_loss)


def classify(logit, x: Array, noise: Array) -> tuple[Array, dict[str, Array]]:
    """The logistic loss of one example and `[n, *event]` of noise."""
    data_logit, noise_logits = logit(x), jax.vmap(logit)(noise)
    # softplus, never the logarithm of one minus a sigmoid: that ends at 1e-8.
    value = jax.nn.softplus(-data_logit) + jnp.sum(jax.nn.softplus(noise_logits))
    return value, {
        "accuracy_data": (data_logit > 0).astype(data_logit.dtype),
        "accuracy_noise": jnp.mean((noise_logits < 0).astype(data_logit.dtype)),
    }


def self_contrastive(
    energy: Energy | Network,
    *,
    sample: Callable[..., Array],
    num_noise: int = 1,
) -> Objective:
    """Noise contrastive estimation with the model itself as the noise.

    The noise is drawn from the model and held fixed, its density too: the log odds
    `-E(x) + E_fixed(x) - log num_noise` are constant in value, and their gradient is
    `num_noise / (1 + num_noise)` times that of maximum likelihood. The log partition
    function cancels.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      sample: `sample(params, key) -> x`, one example drawn from the model that has
        these `params["energy"]`.
      num_noise: Noise examples for every data example, at least 1.

    Returns:
      A stateless `Objective`. Metrics: `energy_data`, `energy_model`.

    Raises:
      ValueError: If `num_noise` is below 1.

    Source:
      Goodfellow (2014), "On distinguishability criteria for estimating generative
      models".
    """
    check_count("num_noise", num_noise, 1)
    energy = as_function(energy)

    def example_loss(params, key, x):
        params = params["energy"]
        frozen = jax.lax.stop_gradient(params)

        def logit(x):
            return energy(frozen, x) - energy(params, x) - jnp.log(float(num_noise))

        keys = jax.random.split(key, num_noise)
        noise = jax.lax.stop_gradient(jax.vmap(sample, (None, 0))(frozen, keys))
        value, _ = classify(logit, x, noise)
        at_noise = jax.vmap(lambda x: energy(params, x))(noise)
        metrics = {"energy_data": energy(params, x), "energy_model": at_noise.mean()}
        return value, metrics

    return averaged(example_loss)


def conditional_noise_contrastive(
    energy: Energy | Network, *, noise_scale: float
) -> Objective:
    """Noise contrastive estimation with the data's own neighbours as the noise.

    `softplus(E(x) - E(x + noise_scale n))`: which of two is the one that was noised?
    The log partition function cancels and cannot be learned. For small noise it is
    `log 2 + noise_scale^2 / 4` times implicit score matching, of the data themselves:
    unlike denoising score matching it has the data's score as its limit.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      noise_scale: Standard deviation of the noise, in units of x; a tenth of the data's
        to begin with.

    Returns:
      A stateless `Objective`. Metrics: `accuracy`.

    Raises:
      ValueError: If `noise_scale` is not positive.

    Source:
      Ceylan & Gutmann (2018), "Conditional noise-contrastive estimation of unnormalised
      models".
    """
    check_number("noise_scale", noise_scale, positive=True)
    energy = as_function(energy)

    def example_loss(params, key, x):
        noise = jax.random.normal(key, x.shape, x.dtype)
        there = energy(params["energy"], x + noise_scale * noise)
        difference = energy(params["energy"], x) - there
        accuracy = (difference < 0).astype(difference.dtype)
        return jax.nn.softplus(difference), {"accuracy": accuracy}

    return averaged(example_loss)
