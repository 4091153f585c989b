"""Underdamped Langevin dynamics."""

from typing import NamedTuple

import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.samplers.normal import draw_normal
from ebmjax.samplers.sampler import Sampler, value_and_gradient
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["UnderdampedInfo", "UnderdampedState", "underdamped"]


class UnderdampedState(NamedTuple):
    position: Array  # [*event]
    momentum: Array  # [*event]


class UnderdampedInfo(NamedTuple):
    energy: Array  # [], half-way through the move, where the gradient is taken
    gradient_norm: Array  # [], there too
    kinetic_energy: Array  # [], after the move; d / 2 temperatures in equilibrium


def underdamped(
    *, step_size: float, friction: float, temperature: float = 1.0
) -> Sampler:
    """Langevin dynamics with momentum, by the ABOBA splitting.

    Unit mass, momentum zero at the start. With `a = exp(-friction * step_size)`, a move
    is

        x += step_size / 2 * p                                       (A)
        p -= step_size / 2 * grad E(x)                               (B)
        p  = a * p + sqrt((1 - a^2) * temperature) * n               (O)
        p -= step_size / 2 * grad E(x)                               (B)
        x += step_size / 2 * p                                       (A)

    with one gradient, at the middle. Nothing is refused: the law of the position has a
    bias of order step_size^2, and none at all on a Gaussian energy, where the
    position's variance is exact at every stable step size (`step_size^2 * curvature <
    4`); the momentum's is not. Long-run draws are right; short runs begin cold, with no
    momentum.

    The step is a time, not `langevin`'s length: for large friction the move is that of
    `langevin` with `step_size^2 / 2`. GEBM's code, with a step gamma and a friction
    kappa, is `step_size = 2 sqrt(gamma), friction = kappa`. Friction 0 is Hamiltonian
    dynamics without any noise.

    Args:
      step_size: In units of x / sqrt(energy). Positive.
      friction: An inverse time; not negative. `1 / friction` is how long momentum
        lasts. About the square root of the smallest curvature mixes best.
      temperature: As in `langevin`; 0 is damped descent.

    Returns:
      A `Sampler` with `UnderdampedState` and `UnderdampedInfo`: one gradient a move.

    Raises:
      ValueError: If `step_size` is not positive, or another number is negative.

    Source:
      Arbel et al. (2021), "Generalized energy based models", Algorithm 3, the kinetic
      Langevin algorithm.
    """
    check_number("step_size", step_size, positive=True)
    check_number("friction", friction, positive=False)
    check_number("temperature", temperature, positive=False)

    def init(energy_fn: EnergyFn, x: Array) -> UnderdampedState:
        return UnderdampedState(x, jnp.zeros_like(x))

    def step(energy_fn: EnergyFn, key: Key, state: UnderdampedState):
        x, momentum = state
        # Hyper-parameters of another type must not change the position's.
        half = jnp.asarray(0.5 * step_size, x.dtype)
        damping = jnp.asarray(friction * step_size, x.dtype)
        variance = jnp.asarray(temperature, x.dtype) * -jnp.expm1(-2 * damping)
        x = x + half * momentum
        energy, gradient = value_and_gradient(energy_fn, x)
        noise = draw_normal(key, x.shape, x.dtype)
        momentum = jnp.exp(-damping) * (momentum - half * gradient)
        momentum = momentum + jnp.sqrt(variance) * noise - half * gradient
        x = x + half * momentum
        return UnderdampedState(x, momentum), UnderdampedInfo(
            energy=energy,
            gradient_norm=jnp.sqrt(jnp.sum(gradient**2)),
            kinetic_energy=0.5 * jnp.sum(momentum**2),
        )

    return Sampler(init, step)
