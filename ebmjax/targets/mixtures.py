"""Mixtures of normal distributions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ebmjax import energies
from ebmjax.targets.target import Target, check_positive, one_example, probabilities
from ebmjax.types import Array, Key

__all__ = ["eight_gaussians", "gaussian_mixture", "twenty_five_gaussians"]


def gaussian_mixture(
    *, means: ArrayLike, std: float, weights: ArrayLike | None = None
) -> Target:
    """Returns a mixture of normal distributions of one width, equal in all directions.

    The density is `p(x) = sum_k weights[k] N(x; means[k], std^2)`. The energy is that
    of `energies.gaussian_mixture`, which takes any precisions and trainable parameters
    but has no sampler. At a mean far from the others the energy is `-log weights[k]`
    plus, for each dimension, `log(2 pi std^2) / 2`.

    Args:
      means: Means of the components, `[K, *event]`.
      std: Standard deviation in each direction, in units of x. It is not a precision.
      weights: K positive numbers, which are scaled to sum to one; equal by default.

    Returns:
      A `Target` on events of the means' shape. Its modes are the means, and an example
      belongs to the mean that is nearest, whatever the weights.

    Raises:
      ValueError: If `std` or a weight is not positive and finite, if there are not as
        many weights as means, or if there is no mean or one is not finite.
    """
    means = np.asarray(means, np.float64)
    if means.ndim == 0 or means.size == 0 or not np.all(np.isfinite(means)):
        raise ValueError(
            f"means must be [modes, *event] finite numbers, got {means}"
            f" of shape {means.shape}"
        )
    check_positive("std", std)
    num_modes, event_shape = means.shape[0], means.shape[1:]
    weights = probabilities(weights, num_modes, "means")
    params = {
        "means": means,
        "precisions": np.asarray(std**-2.0),
        "log_weights": np.log(weights),
    }

    def sample(key: Key, num: int) -> Array:
        mode_key, noise_key = jax.random.split(key)
        modes = jax.random.choice(mode_key, num_modes, (num,), p=jnp.asarray(weights))
        noise = jax.random.normal(noise_key, (num, *event_shape))
        return jnp.asarray(means)[modes] + std * noise

    def energy_fn(x: Array) -> Array:
        x = one_example(x, event_shape)
        cast = {name: jnp.asarray(value, x.dtype) for name, value in params.items()}
        return energies.gaussian_mixture(cast, x)

    def mode_of(x: Array) -> Array:
        x = one_example(x, event_shape, "mode_of")
        differences = (x[None] - jnp.asarray(means, x.dtype)).reshape(num_modes, -1)
        return jnp.argmin(jnp.sum(differences**2, axis=1))

    return Target(sample, energy_fn, 0.0, means, mode_of)


def eight_gaussians(
    *, radius: float = math.sqrt(2.0), std: float = 0.02 / math.sqrt(2.0)
) -> Target:
    """Returns eight equal normal distributions around a circle.

    The centres are at `radius * (cos, sin)` of the multiples of 45 degrees, the first
    on the x-axis. At a centre the energy is `log 8 + log(2 pi std^2)` if the others are
    far: -4.60 with the defaults, whose centres are 76 standard deviations apart.

    The name has three meanings in the literature. The defaults are the set of WGAN-GP
    (https://arxiv.org/abs/1704.00028), a radius of 2 and a standard deviation of 0.02
    divided by 1.414. FFJORD (https://arxiv.org/abs/1810.01367) has
    `radius=2.83, std=0.354`. Nijkamp et al. (2020, https://arxiv.org/abs/1903.12370)
    use `radius=1, std=0.15`, in which neighbours are five standard deviations apart, so
    that a chain can cross.

    Args:
      radius: Distance of the centres from the origin, in units of x.
      std: Standard deviation in each direction, in units of x.

    Returns:
      A `Target` on events of shape `(2,)`.

    Raises:
      ValueError: If `radius` or `std` is not positive and finite.
    """
    check_positive("radius", radius)
    angles = np.arange(8) * (math.pi / 4)
    return gaussian_mixture(means=radius * on_circle(angles, np), std=std)


def twenty_five_gaussians(
    *, spacing: float = 1 / math.sqrt(2.0), std: float = 0.05 / math.sqrt(8.0)
) -> Target:
    """Returns a five by five grid of equal normal distributions around the origin.

    At a centre the energy is `log 25 + log(2 pi std^2)` if the others are far: -3.01
    with the defaults, whose neighbours are 40 standard deviations apart. The variance
    of a draw is `2 * spacing^2 + std^2` in each coordinate, which is about 1.

    The defaults are the set of WGAN-GP (https://arxiv.org/abs/1704.00028), a spacing of
    2 and a standard deviation of 0.05 divided by 2.828.

    Args:
      spacing: Distance between neighbouring centres, in units of x.
      std: Standard deviation in each direction, in units of x.

    Returns:
      A `Target` on events of shape `(2,)`.

    Raises:
      ValueError: If `spacing` or `std` is not positive and finite.
    """
    check_positive("spacing", spacing)
    line = spacing * np.arange(-2.0, 3.0)
    means = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    return gaussian_mixture(means=means.reshape(25, 2), std=std)


def on_circle(angle: Any, xp: Any = jnp) -> Any:
    """Returns the point of the unit circle at an angle, `[...] -> [..., 2]`."""
    return xp.stack([xp.cos(angle), xp.sin(angle)], axis=-1)
