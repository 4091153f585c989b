"""Telescoping density ratios: many easy classifiers in place of one hopeless one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import check_path
from ebmjax.objectives.base import Objective, as_function, stateless
from ebmjax.objectives.noise_contrastive_estimation import NoiseDistribution, classify
from ebmjax.types import Energy, Network

__all__ = ["telescoping", "telescoping_energy"]


def telescoping(
    energy: Energy | Network,
    *,
    noise_distribution: NoiseDistribution,
    waymarks: Sequence[float],
) -> Objective:
    """Telescoping density-ratio estimation: noise becomes data in steps.

    Every example makes a path `sqrt(1 - a^2) noise + a data` from its own noise, `a =
    0`, over the waymarks to itself, `a = 1`. A bridge tells a waymark's law from the
    law of the one before it by logistic regression, as `noise_contrastive` tells data
    from noise, with the log odds `-energy(x) - log_partition` of its own; the loss is
    the sum over bridges. The bridges' log ratios add up to that of data and noise: the
    model is `telescoping_energy`. With the one waymark 1 this is `noise_contrastive`
    of that model. Where one classifier of data and noise is never wrong, and learns no
    more, each of these is wrong often enough if there are enough of them.

    A bridge learns at its two waymarks, and the model asks it at the data. Centre data
    and noise: the shares' sum is above 1 in between, and a mean would wander.

    Args:
      energy: `energy(params, x, index) -> []` of one example and the bridge's number,
        an integer, from the noise on; or a `Network` of these. Its parameters are
        `params["energy"]`, and `params["log_partition"]`, of shape `[bridges]`, are the
        bridges' constants. Networks of their own are one whose parameters are stacked:
        `lambda params, x, i: apply(jax.tree.map(lambda leaf: leaf[i], params), x)`.
      noise_distribution: `(sample: key -> x, log_prob: x -> [])`, one example, of about
        the data's mean and scale. The loss needs the draws only.
      waymarks: The values of `a`, one a bridge, increasing from above 0 to 1. They need
        to be close together near 1 where the data are thin.

    Returns:
      A stateless `Objective`. Metrics: `accuracy`, the mean over bridges of the share
      that is classified rightly, with `accuracy_min` and `accuracy_max`, those of the
      hardest bridge and of the easiest, which needs a waymark more where it is near 1;
      `log_partition`, the model's.

    Raises:
      ValueError: If the waymarks do not increase from above 0 to 1; at trace, if there
        are not as many constants.

    Source:
      Rhodes, Xu & Gutmann (2020), "Telescoping density-ratio estimation".
    """
    data_shares = np.concatenate([[0.0], check_path("waymarks", waymarks)])
    noise_shares = np.sqrt(1 - data_shares**2)
    num_bridges = len(data_shares) - 1
    energy = as_function(energy)
    sample, _ = noise_distribution

    def example_loss(params, key, x):
        noise = sample(key)
        path = jax.vmap(lambda a, b: a * noise + b * x)(
            jnp.asarray(noise_shares, x.dtype), jnp.asarray(data_shares, x.dtype)
        )

        def bridge(index, after, before):
            def logit(x):
                value = energy(params["energy"], x, index)
                return -value - params["log_partition"][index]

            value, shares = classify(logit, after, jnp.expand_dims(before, 0))
            return value, (shares["accuracy_data"] + shares["accuracy_noise"]) / 2

        values, accuracies = jax.vmap(bridge)(
            jnp.arange(num_bridges), path[1:], path[:-1]
        )
        return jnp.sum(values), accuracies

    def loss(params, key, batch):
        if jnp.shape(params["log_partition"]) != (num_bridges,):
            raise ValueError(
                f"log_partition must be of shape ({num_bridges},), one a waymark,"
                f" got {jnp.shape(params['log_partition'])}"
            )
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
    energy: Energy | Network, *, noise_distribution: NoiseDistribution
) -> Energy:
    """The model that `telescoping` learns: all bridges on top of the noise.

    `-log_prob(x) + sum over bridges of energy(x) + log_partition`: its own log
    partition function is 0 where the bridges are right.

    Args:
      energy: As in `telescoping`.
      noise_distribution: As in `telescoping`, with a normalised density.

    Returns:
      An energy `(params, x) -> []` of the whole `params`, with `params["energy"]` and
      `params["log_partition"]`.
    """
    energy = as_function(energy)
    _, log_prob = noise_distribution

    def model_energy(params, x):
        indices = jnp.arange(len(params["log_partition"]))
        bridges = jax.vmap(energy, (None, None, 0))(params["energy"], x, indices)
        return jnp.sum(bridges + params["log_partition"]) - log_prob(x)

    return model_energy
