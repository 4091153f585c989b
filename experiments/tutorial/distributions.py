"""Distributions that methods use: normals and flows with the data's moments."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ebmjax import networks
from ebmjax.types import Array, Key, Params
from experiments.run.config import schedule

Moments = tuple[np.ndarray, np.ndarray]
"""Mean `[d]` and covariance `[d, d]` of the data, float64."""


def measure_moments(sample: Callable[[Key, int], Array], key: Key) -> Moments:
    """Returns the mean and the covariance of 20,000 draws."""
    x = np.asarray(sample(key, 20_000), np.float64)
    return x.mean(0), np.cov(x.T)


def gaussian(moments: Moments, widen: float = 1.0):
    """Returns `(sample, log_prob)` of the normal distribution with the data's moments.

    Args:
      moments: Mean and covariance of the data.
      widen: Factor of the standard deviation.
    """
    mean, covariance = moments
    size = len(mean)
    lower = widen * np.linalg.cholesky(covariance)
    log_det = np.log(np.diag(lower)).sum()
    inverse = np.linalg.inv(lower).astype(np.float32)
    mean, lower = mean.astype(np.float32), lower.astype(np.float32)

    def sample(key):
        return mean + lower @ jax.random.normal(key, (size,))

    def log_prob(x):
        normal = -0.5 * jnp.sum((inverse @ (x - mean)) ** 2)
        return normal - log_det - 0.5 * size * math.log(2 * math.pi)

    return sample, log_prob


def make_flow(
    key: Key, moments: Moments, *, num_layers: int, width: int
) -> tuple[Any, Params]:
    """Returns a flow and its parameters, first those of `gaussian(moments)`."""
    mean, covariance = moments
    flow = networks.real_nvp(mean.shape, num_layers=num_layers, widths=(width, width))
    params = flow.init(key)
    lower = np.linalg.cholesky(covariance)
    np.fill_diagonal(lower, np.log(np.diag(lower)))
    params |= {
        "mean": jnp.asarray(mean, jnp.float32),
        "lower": jnp.asarray(lower, jnp.float32),
    }
    return flow, params


def fit_flow(
    key: Key, flow, params: Params, data: Callable[[Key, int], Array], num_updates: int
):
    """Fits a flow by maximum likelihood.

    Args:
      key: A typed key.
      flow: The flow.
      params: Initial parameters of the flow.
      data: `data(key, num) -> [num, d]`.
      num_updates: Number of updates, each on 256 fresh draws.

    Returns:
      `(sample, log_prob)` of the fitted flow.
    """
    optimizer = optax.adam(schedule(start=3e-3, final=1e-5, decay_steps=num_updates))

    def loss(params, x):
        return -jnp.mean(jax.vmap(flow.log_prob, (None, 0))(params, x))

    def update(carry, key):
        params, opt_state = carry
        slope = jax.grad(loss)(params, data(key, 256))
        moves, opt_state = optimizer.update(slope, opt_state)
        return (optax.apply_updates(params, moves), opt_state), ()

    @jax.jit
    def fit(params, key):
        keys = jax.random.split(key, num_updates)
        return jax.lax.scan(update, (params, optimizer.init(params)), keys)[0][0]

    params = fit(params, key)
    return functools.partial(flow.sample, params), functools.partial(
        flow.log_prob, params
    )
