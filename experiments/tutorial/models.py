"""Models: energies to train, some with an exact log partition function and draws."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import energies, networks
from ebmjax.types import Array, Energy, Key, Params


class Model(NamedTuple):
    """An energy to train.

    Attributes:
      init: `init(key) -> params` of the energy.
      energy: `energy(params, x) -> []`.
      log_partition: `log_partition(params) -> []`, exact; None if there is no formula.
      sample: `sample(params, key) -> x`, an exact draw; None if there is none.
    """

    init: Callable[[Key], Params]
    energy: Energy
    log_partition: Callable[[Params], Array] | None = None
    sample: Callable[[Params, Key], Array] | None = None


def mlp_model(moments, *, widths, activation, with_scale: bool = False) -> Model:
    """Returns dense layers plus the energy of a normal distribution.

    The normal distribution is twice as wide as the data, so that the model can always
    be normalised.

    Args:
      moments: Mean `[d]` and covariance `[d, d]` of the data.
      widths: Widths of the hidden layers.
      activation: Name of the activation function.
      with_scale: If True, the energy is that of a noised example,
        `energy(params, x, noise_scale)`.
    """
    mean, covariance = moments
    width = float(np.sqrt(np.trace(covariance) / len(mean)))
    mean = mean.astype(np.float32)
    shape = (len(mean) + with_scale,)
    network = networks.mlp_energy(shape, widths=widths, activation=activation)

    def energy(params, x, *scale):
        h = (x - mean) / width
        base = 0.125 * jnp.sum(h**2)
        if with_scale:
            h = jnp.append(h, jnp.log(scale[0]))
        return base + network.apply(params, h)

    return Model(lambda key: network.init(key)[0], energy)


def ica_model(moments) -> Model:
    """Returns independent component analysis with logistic sources."""
    mean, _ = moments

    def init(key):
        # For white data the sources begin with the variance of logistic ones.
        rotation = jax.random.orthogonal(key, len(mean))
        return {"unmixing": rotation * (math.pi / math.sqrt(3))}

    def sample(params, key):
        sources = jax.random.logistic(key, mean.shape)
        return jnp.linalg.solve(params["unmixing"].T, sources)

    def log_partition(params):
        return -jnp.linalg.slogdet(params["unmixing"])[1]

    return Model(init, energies.ica, log_partition, sample)


def rbm_model(moments, *, num_hidden: int) -> Model:
    """Returns a Gaussian-Bernoulli machine: a mixture of `2^num_hidden` normals."""
    mean, _ = moments

    def init(key):
        weights = 0.3 * jax.random.normal(key, (len(mean), num_hidden))
        return {
            "weights": weights,
            "visible_bias": jnp.asarray(mean, weights.dtype),
            "hidden_bias": jnp.zeros(num_hidden),
        }

    bits = np.arange(2**num_hidden)[:, None] >> np.arange(num_hidden)[None]
    states = jnp.asarray(2.0 * (bits & 1) - 1.0, jnp.float32)

    def mixture(params):
        means = params["visible_bias"][None] + 0.5 * states @ params["weights"].T
        return means, states @ params["hidden_bias"] + 0.5 * jnp.sum(means**2, axis=1)

    def sample(params, key):
        state_key, noise_key = jax.random.split(key)
        means, logits = mixture(params)
        state = jax.random.categorical(state_key, logits)
        return means[state] + jax.random.normal(noise_key, mean.shape)

    def log_partition(params):
        constant = 0.5 * len(mean) * math.log(2 * math.pi)
        return jax.nn.logsumexp(mixture(params)[1]) + constant

    return Model(init, energies.gaussian_bernoulli_rbm, log_partition, sample)


MODELS = {"mlp": mlp_model, "ica": ica_model, "gaussian_bernoulli_rbm": rbm_model}
