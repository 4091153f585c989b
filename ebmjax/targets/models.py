"""Laws of energy-based models that can be sampled and normalised exactly."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ebmjax import energies
from ebmjax.checks import at_precision
from ebmjax.targets.target import Target, one_example
from ebmjax.types import Array, Key

__all__ = ["gaussian_bernoulli_rbm", "ica"]

MOST_HIDDEN = 20
"""Largest number of binary units whose 2^n states are counted."""


def gaussian_bernoulli_rbm(
    weights: ArrayLike, visible_bias: ArrayLike, hidden_bias: ArrayLike
) -> Target:
    """Returns the law of a Gaussian-Bernoulli restricted Boltzmann machine (RBM).

    It is exact, as a mixture of normals, with the energy
    `energies.gaussian_bernoulli_rbm`. Every state `h` of the binary units is a normal
    of variance 1 around `visible_bias + weights h / 2`, with the log weight
    `hidden_bias . h + |mean|^2 / 2`.

    Args:
      weights: Weights, `[d, hidden]`, with at most 20 hidden units.
      visible_bias: Bias of the visible units, `[d]`.
      hidden_bias: Bias of the hidden units, `[hidden]`.

    Returns:
      A `Target` on events of shape `(d,)`.

    Raises:
      ValueError: If the shapes do not match or there are too many hidden units.
    """
    arrays = [np.asarray(a, np.float64) for a in (weights, visible_bias, hidden_bias)]
    weights, visible_bias, hidden_bias = arrays
    if weights.ndim != 2 or (visible_bias.shape, hidden_bias.shape) != (
        weights.shape[:1],
        weights.shape[1:],
    ):
        raise ValueError(
            "weights, visible_bias and hidden_bias must be [d, hidden], [d] and"
            f" [hidden], got {', '.join(str(a.shape) for a in arrays)}"
        )
    num_hidden = len(hidden_bias)
    if num_hidden > MOST_HIDDEN:
        raise ValueError(
            f"hidden units must be at most {MOST_HIDDEN}, for their states are counted,"
            f" got {num_hidden}"
        )
    bits = np.arange(2**num_hidden)[:, None] >> np.arange(num_hidden)[None]
    states = 2.0 * (bits & 1) - 1.0
    means = visible_bias + 0.5 * states @ weights.T
    logits = states @ hidden_bias + 0.5 * (means**2).sum(1)
    largest = np.max(logits)
    log_sum = largest + math.log(np.exp(logits - largest).sum())
    params = {
        "weights": weights,
        "visible_bias": visible_bias,
        "hidden_bias": hidden_bias,
    }
    # Counted in float64; draws need no more than float32.
    log_probs = (logits - log_sum).astype(np.float32)
    centres = means.astype(np.float32)

    def sample(key: Key, num: int) -> Array:
        state_key, noise_key = jax.random.split(key)
        state = jax.random.categorical(state_key, jnp.asarray(log_probs), shape=(num,))
        noise = jax.random.normal(noise_key, (num, len(visible_bias)))
        return jnp.asarray(centres)[state] + noise

    def energy_fn(x: Array) -> Array:
        x = one_example(x, visible_bias.shape)
        as_x = {name: jnp.asarray(array, x.dtype) for name, array in params.items()}
        return energies.gaussian_bernoulli_rbm(as_x, x)

    log_partition = log_sum + 0.5 * len(visible_bias) * math.log(2 * math.pi)
    return Target(sample, energy_fn, log_partition)


def ica(mixing: ArrayLike) -> Target:
    """Returns the law of mixed independent logistic sources (ICA).

    The law is that of `x = s mixing` with standard logistic `s`. The energy is
    `energies.ica` with the inverse of the mixing. Its log partition function is
    `log |det mixing|`, and its entropy is `2 d + log |det mixing|`.

    Args:
      mixing: Mixing matrix, `[d, d]`, invertible.

    Returns:
      A `Target` on events of shape `(d,)`.

    Raises:
      ValueError: If the mixing is not square or not invertible.
    """
    mixing = np.asarray(mixing, np.float64)
    if mixing.ndim != 2 or mixing.shape[0] != mixing.shape[1]:
        raise ValueError(f"mixing must be [d, d], got {mixing.shape}")
    sign, log_det = np.linalg.slogdet(mixing)
    if sign == 0:
        raise ValueError(f"mixing must be invertible, got {mixing.tolist()}")
    unmixing = np.linalg.inv(mixing)
    matrix = mixing.astype(np.float32)

    @at_precision("highest")
    def sample(key: Key, num: int) -> Array:
        return jax.random.logistic(key, (num, len(matrix))) @ jnp.asarray(matrix)

    def energy_fn(x: Array) -> Array:
        x = one_example(x, (len(matrix),))
        return energies.ica({"unmixing": jnp.asarray(unmixing, x.dtype)}, x)

    return Target(sample, energy_fn, float(log_det))
