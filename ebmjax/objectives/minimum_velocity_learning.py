"""Minimum velocity learning: how fast Langevin dynamics begin to change the data."""

import jax
import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.objectives.base import Objective, as_function, averaged, dot
from ebmjax.types import Energy, Network

__all__ = ["minimum_velocity"]


def minimum_velocity(energy: Energy | Network, *, step_size: float) -> Objective:
    """Score matching by one move of Langevin dynamics, to order `step_size`.

    `(E(x) - E(y) + grad E(x) . noise) / step_size` with `y = x - step_size / 2 grad
    E(x) + noise` and `noise = sqrt(2 step_size) n`: implicit score matching for small
    steps. The last term has mean 0 and takes away what would grow as `1 / step_size`
    in the variance. The drift is half of Langevin's, since the gradient runs through
    `y` too: nothing is stopped, unlike in contrastive divergence, which it resembles.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      step_size: Of the move, in units of x^2. Small: .001 for data of scale 1.

    Returns:
      A stateless `Objective`. Metrics: `gradient_norm`, of the energy at data.

    Raises:
      ValueError: If `step_size` is not positive.

    Source:
      Movellan (2008), "A minimum velocity approach to learning"; the estimator: Wang
      et al. (2020), as cited by Song & Kingma (2021).
    """
    check_number("step_size", step_size, positive=True)
    energy = as_function(energy)

    def example_loss(params, key, x):
        def energy_fn(x):
            return energy(params["energy"], x)

        noise = jax.random.normal(key, x.shape, x.dtype)
        noise = jnp.sqrt(jnp.asarray(2 * step_size, x.dtype)) * noise
        # Differences of nearly equal numbers: products in fewer digits would be noise.
        with jax.default_matmul_precision("highest"):
            here, gradient = jax.value_and_grad(energy_fn)(x)
            there = energy_fn(x - 0.5 * step_size * gradient + noise)
        value = (here - there + dot(gradient, noise)) / step_size
        return value, {"gradient_norm": jnp.sqrt(dot(gradient, gradient))}

    return averaged(example_loss)
