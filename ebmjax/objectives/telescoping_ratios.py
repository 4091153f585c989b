"""Telescoping density-ratio estimation (TRE), a chain of easy classifiers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import check_batch, check_path, scalar_valued
from ebmjax.objectives.base import Objective, constant_of, scalar_function, stateless
from ebmjax.objectives.noise_contrastive_estimation import NoiseDistribution, classify
from ebmjax.types import Array, ConditionalEnergy, Energy, Key, Metrics, Network, Params

__all__ = ["telescoping", "telescoping_energy"]


def telescoping(
    energy: ConditionalEnergy | Network,
    *,
    noise_distribution: NoiseDistribution,
    waymarks: Sequence[float],
) -> Objective:
    """Returns telescoping density-ratio estimation (TRE), from noise to data in steps.

    See https://arxiv.org/abs/2006.12204.

    Every example makes a path `sqrt(1 - a^2) noise + a data` from its own noise,
    `a = 0`, over the waymarks to itself, `a = 1`. A bridge distinguishes the law of a
    waymark from the law of the one before it by logistic regression, as
    `noise_contrastive` distinguishes data from noise, with its own log odds
    `-energy(x) - log_partition`. The loss is the sum over bridges. The log ratios of
    the bridges add up to that of data and noise, so the model is `telescoping_energy`.
    With the single waymark 1 this is `noise_contrastive` of that model. A single
    classifier of data and noise may never be wrong, and then learns nothing more. With
    enough bridges, each of them is wrong often enough.

    A bridge learns at its two waymarks, and the model evaluates it at the data. Centre
    data and noise: the sum of the two shares is above 1 between the ends, so a mean
    would drift.

    Args:
      energy: `energy(params, x, index) -> []` of one example and the bridge's number,
        an integer that counts from the noise, or a `Network` of these. Its parameters
        are `params["energy"]`. `params["log_partition"]`, of shape `[bridges]`, are the
        bridges' constants. To give every bridge its own network, stack the parameters:
        `lambda params, x, i: apply(jax.tree.map(lambda leaf: leaf[i], params), x)`.
      noise_distribution: `(sample: key -> x, log_prob: x -> [])` of one example, with
        about the data's mean and scale. The loss uses the draws only.
      waymarks: Values of `a`, one for each bridge, increasing from above 0 to 1. They
        need to be close together near 1 if the data are thin.

    Returns:
      A stateless `Objective`. Its metrics are `accuracy`, the mean over bridges of the
      share that is classified correctly; `accuracy_min` and `accuracy_max`, those of
      the hardest and the easiest bridge (add a waymark if the latter is near 1); and
      `log_partition`, the model's.

    Raises:
      ValueError: If the waymarks do not increase from above 0 to 1; at trace, if the
        number of constants is not that of the bridges.

    Source:
      Rhodes, Xu & Gutmann (2020), "Telescoping density-ratio estimation",
      https://arxiv.org/abs/2006.12204.
    """
    data_shares = np.concatenate([[0.0], check_path("waymarks", waymarks)])
    noise_shares = np.sqrt(1 - data_shares**2)
    num_bridges = len(data_shares) - 1
    energy = scalar_function("energy", energy)
    sample, _ = noise_distribution

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Array]:
        noise = sample(key)
        path = jax.vmap(lambda a, b: a * noise + b * x)(
            jnp.asarray(noise_shares, x.dtype), jnp.asarray(data_shares, x.dtype)
        )

        def bridge(index: Array, after: Array, before: Array) -> tuple[Array, Array]:
            def logit(x: Array) -> Array:
                constant: Array = params["log_partition"][index]
                return -energy(params["energy"], x, index) - constant

            value, shares = classify(logit, after, jnp.expand_dims(before, 0))
            return value, (shares["accuracy_data"] + shares["accuracy_noise"]) / 2

        values, accuracies = jax.vmap(bridge)(
            jnp.arange(num_bridges), path[1:], path[:-1]
        )
        return jnp.sum(values), accuracies

    def loss(params: Params, key: Key, batch: Array) -> tuple[Array, Metrics]:
        check_batch(batch)
        constant_of(params, (num_bridges,))
        keys = jax.random.split(key, batch.shape[0])
        values, accuracies = jax.vmap(example_loss, (None, 0, 0))(params, keys, batch)
        accuracies = accuracies.mean(0)
        metrics = {
            "accuracy": accuracies.mean(),
            "accuracy_min": accuracies.min(),
            "accuracy_max": accuracies.max(),
            "log_partition": jnp.sum(params["log_partition"]),
        }
        return jnp.mean(values), jax.lax.stop_gradient(metrics)

    return stateless(loss)


def telescoping_energy(
    energy: ConditionalEnergy | Network, *, noise_distribution: NoiseDistribution
) -> Energy:
    """Returns the model that `telescoping` (TRE) learns, noise and all bridges.

    See https://arxiv.org/abs/2006.12204.

    The energy is `-log_prob(x) + sum over bridges of energy(x) + log_partition`. Its
    own log partition function is 0 if the bridges are right.

    Args:
      energy: Energy of a bridge or `Network`, as in `telescoping`.
      noise_distribution: Noise, as in `telescoping`, with a normalised density.

    Returns:
      An energy `(params, x) -> []` of the whole `params`, with `params["energy"]` and
      `params["log_partition"]`.

    Source:
      Rhodes, Xu & Gutmann (2020), "Telescoping density-ratio estimation",
      https://arxiv.org/abs/2006.12204.
    """
    energy = scalar_function("energy", energy)
    log_prob = scalar_valued("log_prob of noise_distribution", noise_distribution[1])

    def model_energy(params: Params, x: Array) -> Array:
        indices = jnp.arange(len(params["log_partition"]))
        bridges = jax.vmap(energy, (None, None, 0))(params["energy"], x, indices)
        return jnp.sum(bridges + params["log_partition"]) - log_prob(x)

    return model_energy
