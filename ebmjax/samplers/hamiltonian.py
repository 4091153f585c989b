"""Hamiltonian Monte Carlo."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import check_count, check_number
from ebmjax.samplers.normal import draw_normal
from ebmjax.samplers.sampler import Sampler, metropolis, value_and_gradient
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["HMCInfo", "HMCState", "hmc"]


class HMCState(NamedTuple):
    position: Array  # [*event]
    energy: Array  # []
    gradient: Array  # [*event], of the energy, at `position`
    num_moves: Array  # [], moves since `init`; decides random numbers of leapfrogs


class HMCInfo(NamedTuple):
    energy: Array  # [], after the move
    gradient_norm: Array  # [], after the move
    acceptance_rate: Array  # [], min(1, exp(-energy_error / temperature))
    is_accepted: Array  # [], bool
    energy_error: Array  # [], of energy plus kinetic energy, along the trajectory
    num_leapfrog: Array  # [], in this move


def hmc(
    *,
    step_size: float,
    num_leapfrog: int,
    inverse_mass: Array | None = None,
    randomize_num_leapfrog: bool = False,
    temperature: float = 1.0,
) -> Sampler:
    """Hamiltonian trajectories by the leapfrog rule, accepted or refused.

    Draws a momentum `p ~ N(0, temperature * mass)`, makes `num_leapfrog` times

        p -= step_size / 2 * grad E(x);  x += step_size * inverse_mass * p;
        p -= step_size / 2 * grad E(x),

    and accepts the end with probability `min(1, exp(-energy_error / temperature))`,
    which leaves `exp(-E / temperature)` invariant at every step size. Momenta are drawn
    anew at every move (`underdamped` keeps them). The step is a time, not `langevin`'s
    length: one leapfrog of step h is a MALA proposal of step_size h^2 / 2.

    **A fixed number of leapfrogs resonates.** Where `num_leapfrog * step_size` is near
    a multiple of half the period `2 pi sqrt(mass / curvature)` of some direction, the
    trajectory comes back to where it began, or to its mirror image, and that direction
    is hardly sampled, though the acceptance looks well. `randomize_num_leapfrog` makes
    the number uniform on 1, ..., 2 num_leapfrog - 1, of mean `num_leapfrog`: for long
    runs, the better choice. The number is a fixed pseudo-random function of
    how many moves were made since `init`, not of the key, so that chains under `vmap`
    make equally many and none waits for the longest; any sequence of numbers that does
    not look at the chain leaves the law invariant. Every call begins the sequence
    anew: calls of one move have one length. Moves by twos add up to twice the mean.

    A trajectory to infinite energy is refused. One to NaN is refused too, and
    `acceptance_rate` and `energy_error` are then NaN, so that it is seen.

    Args:
      step_size: Of a leapfrog, in units of x / sqrt(energy) at unit mass. Positive.
      num_leapfrog: Leapfrogs a move, or their mean.
      inverse_mass: `[*event]` or `[]`, positive: the diagonal of the inverse of the
        mass matrix. Best near the variance of each direction (not its inverse). None
        is 1.
      randomize_num_leapfrog: See above.
      temperature: As in `langevin`. Positive.

    Returns:
      A `Sampler` with `HMCState` and `HMCInfo`: `num_leapfrog` gradients a move, only
      the last of them with the energy, and one to start.

    Raises:
      ValueError: If a number is not positive, or `inverse_mass` is not positive or not
        of the position's shape.

    Source:
      Neal (2011), "MCMC using Hamiltonian dynamics", which also proposes random lengths
      against resonance.
    """
    check_number("step_size", step_size, positive=True)
    check_number("temperature", temperature, positive=True)
    check_count("num_leapfrog", num_leapfrog, 1)
    if inverse_mass is None:
        inverse_mass = 1.0
    elif not isinstance(inverse_mass, jax.core.Tracer):
        inverse_mass = np.asarray(inverse_mass)
        if not (inverse_mass > 0).all():
            raise ValueError(f"inverse_mass must be positive, got {inverse_mass}")

    def check_mass(x):
        if np.shape(inverse_mass) not in ((), x.shape):
            raise ValueError(
                f"inverse_mass must be a number or of the position's shape {x.shape},"
                f" got shape {np.shape(inverse_mass)}"
            )

    def init(energy_fn: EnergyFn, x: Array) -> HMCState:
        check_mass(x)
        return HMCState(x, *value_and_gradient(energy_fn, x), jnp.zeros((), jnp.int32))

    def step(energy_fn: EnergyFn, key: Key, state: HMCState):
        momentum_key, accept_key = jax.random.split(key)
        x, energy, gradient, num_moves = state
        dtype = x.dtype
        # Hyper-parameters of another type must not change the position's.
        inverse = jnp.asarray(inverse_mass, dtype)
        noise = draw_normal(momentum_key, x.shape, dtype)
        start = noise * jnp.asarray(temperature**0.5, dtype) / jnp.sqrt(inverse)

        count = num_leapfrog
        if randomize_num_leapfrog:
            count = shared_num_leapfrog(num_moves, num_leapfrog)
        y, momentum, end_energy, end_gradient = trajectory(
            energy_fn, x, start, gradient, step_size, inverse, count
        )
        # (p - start) . (p + start) is less rounded than a difference of two squares.
        change = jnp.sum(inverse * (momentum - start) * (momentum + start))
        energy_error = end_energy - energy + 0.5 * change
        log_ratio = -energy_error / temperature
        proposed = HMCState(y, end_energy, end_gradient, num_moves)
        state, acceptance_rate, is_accepted = metropolis(
            accept_key, log_ratio, proposed, state
        )
        return state._replace(num_moves=num_moves + 1), HMCInfo(
            energy=state.energy,
            gradient_norm=jnp.sqrt(jnp.sum(state.gradient**2)),
            acceptance_rate=acceptance_rate,
            is_accepted=is_accepted,
            energy_error=energy_error,
            num_leapfrog=jnp.asarray(count, jnp.int32),
        )

    return Sampler(init, step)


def trajectory(
    energy_fn: EnergyFn,
    x: Array,
    momentum: Array,
    gradient: Array,
    step_size: float,
    inverse_mass: Array,
    num_leapfrog: Array,
) -> tuple[Array, Array, Array, Array]:
    """`num_leapfrog` leapfrogs from `x [*event]`, whose gradient is given.

    Returns position, momentum, energy and gradient at the end. Volume-preserving, and
    reversible: the end with its momentum turned round leads back to the start. The
    error in energy plus kinetic energy is of order step_size^2.
    """
    step = jnp.asarray(step_size, x.dtype)
    drift = step * inverse_mass

    # Whole kicks between half ones; the energy is computed at the end alone.
    def leapfrog(_, carry):
        y, momentum = carry
        momentum = momentum - step * jax.grad(energy_fn)(y)
        return y + drift * momentum, momentum

    momentum = momentum - 0.5 * step * gradient
    y, momentum = jax.lax.fori_loop(
        1, num_leapfrog, leapfrog, (x + drift * momentum, momentum)
    )
    energy, gradient = value_and_gradient(energy_fn, y)
    return y, momentum - 0.5 * step * gradient, energy, gradient


def shared_num_leapfrog(num_moves: Array, mean: int) -> Array:
    """Uniform on 1, ..., 2 mean - 1, a function of the move alone, moves by twos
    adding up to twice the mean.

    Under `vmap` one number serves all: they are equal where chains began together, and
    the trajectories then make one loop of that length. A number of each chain's own
    would have all of them wait for the longest.
    """

    @jax.custom_batching.custom_vmap
    def draw(num_moves):
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), num_moves // 2)
        number = jax.random.randint(key, (), 1, 2 * mean)
        return jnp.where(num_moves % 2 == 0, number, 2 * mean - number)

    @draw.def_vmap
    def _(axis_size, in_batched, num_moves):
        first = num_moves[0] if in_batched[0] else num_moves
        return draw(first), False

    return draw(num_moves)
