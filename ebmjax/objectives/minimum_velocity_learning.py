"""Minimum velocity learning (MVL), a form of score matching."""

import jax
import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.objectives.base import Objective, averaged, dot, scalar_function
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params

__all__ = ["minimum_velocity"]


def minimum_velocity(energy: Energy | Network, *, step_size: float) -> Objective:
    """Returns minimum velocity learning (MVL), score matching by one Langevin move.

    See https://arxiv.org/abs/2002.07501.

    The loss is `(E(x) - E(y) + grad E(x) . noise) / step_size` with
    `y = x - step_size / 2 grad E(x) + noise` and `noise = sqrt(2 step_size) n`. It
    equals implicit score matching to order `step_size`. The last term has mean 0 and
    removes the part of the variance that would grow as `1 / step_size`. The drift is
    half of Langevin's because the gradient also flows through `y`: nothing is stopped,
    unlike in contrastive divergence, which this loss resembles.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      step_size: Step size of the move, in units of x^2. It should be small: 0.001 for
        data of scale 1.

    Returns:
      A stateless `Objective`. Its metric `gradient_norm` is the norm of the energy's
      gradient at data.

    Raises:
      ValueError: If `step_size` is not positive.

    Source:
      Movellan (2008), "A minimum velocity approach to learning", technical report, UC
      San Diego. The estimator: Wang, Cheng, Li, Zhu & Zhang (2020), "A Wasserstein
      minimum velocity approach to learning unnormalized models",
      https://arxiv.org/abs/2002.07501, as cited by Song & Kingma (2021),
      https://arxiv.org/abs/2101.03288.
    """
    step_size = check_number("step_size", step_size, positive=True)
    energy = scalar_function("energy", energy)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        def energy_fn(x: Array) -> Array:
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
