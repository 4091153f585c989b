"""Underdamped Langevin dynamics, also called kinetic Langevin (ABOBA)."""

from typing import NamedTuple

import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.samplers.normal import draw_normal
from ebmjax.samplers.sampler import Sampler, named, value_and_gradient
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["UnderdampedInfo", "UnderdampedState", "underdamped"]


class UnderdampedState(NamedTuple):
    """State of an underdamped Langevin chain.

    Attributes:
      position: Place of the chain, `[*event]`, in units of x.
      momentum: Momentum at unit mass, `[*event]`, in sqrt(energy).
    """

    position: Array
    momentum: Array


class UnderdampedInfo(NamedTuple):
    """Report of one move of underdamped Langevin dynamics.

    Attributes:
      energy: Energy half-way through the move, where the gradient is taken, `[]`, in
        nats.
      gradient_norm: Norm of the energy's gradient at the same place, `[]`, in nats /
        units of x.
      kinetic_energy: Kinetic energy after the move, `[]`, in nats. Its mean in
        equilibrium is d / 2 temperatures.
    """

    energy: Array
    gradient_norm: Array
    kinetic_energy: Array


@named
def underdamped(
    *,
    step_size: float | Array,
    friction: float | Array,
    temperature: float | Array = 1.0,
) -> Sampler:
    """Returns a sampler that runs underdamped Langevin dynamics by the ABOBA splitting.

    See https://arxiv.org/abs/2003.05033 and https://arxiv.org/abs/1203.5428.

    The mass is one and the momentum is zero at the start. With
    `a = exp(-friction * step_size)`, a move is

        x += step_size / 2 * p                                       (A)
        p -= step_size / 2 * grad E(x)                               (B)
        p  = a * p + sqrt((1 - a^2) * temperature) * n               (O)
        p -= step_size / 2 * grad E(x)                               (B)
        x += step_size / 2 * p                                       (A)

    with one gradient, at the middle. Nothing is refused: the law of the position has a
    bias of order step_size^2. On a Gaussian energy the position has no bias: its
    variance is exact at every stable step size (`step_size^2 * curvature < 4`); the
    variance of the momentum is not. Draws of long runs are right; short runs begin with
    too little kinetic energy because the momentum starts at zero.

    The step is a time, not a length as in `langevin`: for large friction the move is
    that of `langevin` with `step_size^2 / 2`. GEBM's code, with a step gamma and a
    friction kappa, corresponds to `step_size = 2 sqrt(gamma), friction = kappa`.
    Friction 0 is Hamiltonian dynamics without any noise.

    Args:
      step_size: Step size, in units of x / sqrt(energy). Positive.
      friction: Friction, an inverse time; not negative. Momentum lasts for a time
        `1 / friction`. A value near the square root of the smallest curvature mixes
        best.
      temperature: Temperature, as in `langevin`; 0 is damped descent.

    Returns:
      A `Sampler` with `UnderdampedState` and `UnderdampedInfo`. A move takes one
      gradient.

    Raises:
      ValueError: If `step_size` is not positive, or another number is negative.

    Source:
      Arbel, Zhou & Gretton (2021), "Generalized energy based models" (GEBM), Algorithm
      3, the kinetic Langevin algorithm, https://arxiv.org/abs/2003.05033. The splitting
      is from Leimkuhler & Matthews (2013), "Rational construction of stochastic
      numerical methods for molecular sampling", https://arxiv.org/abs/1203.5428.
    """
    step_size = check_number("step_size", step_size, positive=True)
    friction = check_number("friction", friction, positive=False)
    temperature = check_number("temperature", temperature, positive=False)

    def init(energy_fn: EnergyFn, x: Array) -> UnderdampedState:
        return UnderdampedState(x, jnp.zeros_like(x))

    def step(
        energy_fn: EnergyFn, key: Key, state: UnderdampedState
    ) -> tuple[UnderdampedState, UnderdampedInfo]:
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
