"""Noise contrastive estimation (NCE), which classifies data against known noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax.checks import check_count, check_number, scalar_valued
from ebmjax.objectives.base import (
    Objective,
    averaged,
    constant_of,
    scalar_function,
)
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params

__all__ = [
    "NoiseDistribution",
    "conditional_noise_contrastive",
    "noise_contrastive",
    "self_contrastive",
]

NoiseDistribution = tuple[Callable[[Key], Array], Callable[[Array], Array]]
"""Distribution with exact draws and a known density: a tuple `(sample, log_prob)`.

Both are functions of one example, and the objectives map them over batches:

- `sample(key) -> x` makes an independent draw `[*event]` from a typed key. It has the
  shape and the floating-point type of a data example.
- `log_prob(x) -> []` is the log density of an example `[*event]`, in nats, with its
  normalising constant. It must be finite wherever there are data.

Parameters are bound and fixed; those of a flow with `functools.partial`. A standard
normal is an example. The following model equals it, so no classifier can distinguish
the two, and the loss is `2 log 2` for any batch:

    import jax
    import jax.numpy as jnp
    from ebmjax import energies, objectives

    noise_distribution = (
        lambda key: jax.random.normal(key, (2,)),
        lambda x: jax.scipy.stats.norm.logpdf(x).sum(),
    )
    objective = objectives.noise_contrastive(
        energies.gaussian, noise_distribution=noise_distribution
    )
    params = {
        "energy": {"mean": 0.0, "precision": 1.0},
        "log_partition": jnp.log(2 * jnp.pi),
    }
    batch, key = jnp.ones((8, 2)), jax.random.key(0)
    loss, aux = objective.loss(params, key, batch, objective.init(key))
"""


def noise_contrastive(
    energy: Energy | Network,
    *,
    noise_distribution: NoiseDistribution,
    num_noise: int = 1,
) -> Objective:
    """Returns noise contrastive estimation (NCE), which classifies data against noise.

    See https://www.jmlr.org/papers/v13/gutmann12a.html.

    The loss is `softplus(-h(data)) + sum over the noise of softplus(h(noise))` with the
    log odds `h(x) = -E(x) - log_partition - log_prob(x) - log num_noise`. The log
    partition function is a parameter, and at the optimum it has the right value: the
    energy is learned with its constant. (A bias in the energy's last layer would be the
    same parameter twice.) The noise's density must be positive wherever there are data,
    and close enough to the data's density: the gradient vanishes if the classifier is
    never wrong.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`. The estimate of its log partition function is
        `params["log_partition"]`, a scalar, which needs a larger learning rate.
      noise_distribution: `(sample: key -> x, log_prob: x -> [])` of one example, with a
        normalised density.
      num_noise: Number of noise examples for every data example, at least 1. With many,
        the estimator is as efficient as maximum likelihood.

    Returns:
      A stateless `Objective`. Its metrics are `accuracy_data` and `accuracy_noise`, the
      shares that are classified correctly, and `log_partition`.

    Raises:
      ValueError: If `num_noise` is below 1.

    Source:
      Gutmann & Hyvarinen (2012), "Noise-contrastive estimation of unnormalized
      statistical models, with applications to natural image statistics", Journal of
      Machine Learning Research 13, https://www.jmlr.org/papers/v13/gutmann12a.html.
    """
    check_count("num_noise", num_noise, 1)
    energy = scalar_function("energy", energy)
    sample, log_prob = noise_distribution
    log_prob = scalar_valued("log_prob of noise_distribution", log_prob)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        constant = constant_of(params)

        def logit(x: Array) -> Array:
            model: Array = -energy(params["energy"], x) - constant
            return model - log_prob(x) - jnp.log(float(num_noise))

        noise = jax.vmap(sample)(jax.random.split(key, num_noise))
        value, metrics = classify(logit, x, noise)
        return value, metrics | {"log_partition": constant}

    return averaged(example_loss)


def classify(
    logit: Callable[[Array], Array], x: Array, noise: Array
) -> tuple[Array, Metrics]:
    """Returns the logistic loss of an example against `[n, *event]` of noise."""
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
    sample: Callable[[Params, Key], Array],
    num_noise: int = 1,
) -> Objective:
    """Returns self-contrastive estimation (SCE), NCE with the model as the noise.

    See https://arxiv.org/abs/1412.6515.

    The noise is drawn from the model and fixed, and so is its density. The log odds
    `-E(x) + E_fixed(x) - log num_noise` are constant in value, and their gradient is
    `num_noise / (1 + num_noise)` times that of maximum likelihood. The log partition
    function cancels.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      sample: `sample(params, key) -> x`, one example drawn from the model that has
        these `params["energy"]`.
      num_noise: Number of noise examples for every data example, at least 1.

    Returns:
      A stateless `Objective`. Its metrics are `energy_data` and `energy_model`.

    Raises:
      ValueError: If `num_noise` is below 1.

    Source:
      Goodfellow (2014), "On distinguishability criteria for estimating generative
      models", https://arxiv.org/abs/1412.6515.
    """
    check_count("num_noise", num_noise, 1)
    energy = scalar_function("energy", energy)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        params = params["energy"]
        frozen = jax.lax.stop_gradient(params)

        def logit(x: Array) -> Array:
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
    """Returns conditional noise contrastive estimation (CNCE), with local noise.

    See https://arxiv.org/abs/1806.03664.

    The noise is a neighbour of the data. The loss is
    `softplus(E(x) - E(x + noise_scale n))`, that of a classifier which decides which of
    the two is the noised one. The log partition function cancels and cannot be learned.
    For small noise the loss is `log 2 + noise_scale^2 / 4` times implicit score
    matching of the data themselves: its limit is the data's score, unlike that of
    denoising score matching.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      noise_scale: Standard deviation of the noise, in units of x; begin with a tenth of
        the data's.

    Returns:
      A stateless `Objective`. Its metric is `accuracy`.

    Raises:
      ValueError: If `noise_scale` is not positive.

    Source:
      Ceylan & Gutmann (2018), "Conditional noise-contrastive estimation of unnormalised
      models", https://arxiv.org/abs/1806.03664.
    """
    noise_scale = check_number("noise_scale", noise_scale, positive=True)
    energy = scalar_function("energy", energy)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        noise = jax.random.normal(key, x.shape, x.dtype)
        there = energy(params["energy"], x + noise_scale * noise)
        difference = energy(params["energy"], x) - there
        accuracy = (difference < 0).astype(difference.dtype)
        return jax.nn.softplus(difference), {"accuracy": accuracy}

    return averaged(example_loss)
