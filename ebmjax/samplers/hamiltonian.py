"""Hamiltonian Monte Carlo (HMC)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import at_precision, check_count, check_number
from ebmjax.samplers.normal import draw_normal
from ebmjax.samplers.sampler import (
    Sampler,
    metropolis,
    named,
    total,
    value_and_gradient,
)
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["HMCInfo", "HMCState", "hmc"]


DIVERGENCE = 1000.0
"""Energy error of a divergent move, in temperatures, as in Stan."""


class HMCState(NamedTuple):
    """State of a Hamiltonian Monte Carlo chain.

    Attributes:
      position: Place of the chain, `[*event]`, in units of x.
      energy: Energy at `position`, `[]`, in nats.
      gradient: Gradient of the energy at `position`, `[*event]`, in nats / units of x.
      num_moves: Number of moves since `init`, `[]`, int32. It decides the random
        numbers of leapfrogs.
    """

    position: Array
    energy: Array
    gradient: Array
    num_moves: Array


class HMCInfo(NamedTuple):
    """Report of one move of Hamiltonian Monte Carlo.

    Attributes:
      energy: Energy after the move, `[]`, in nats.
      gradient_norm: Norm of the energy's gradient after the move, `[]`, in nats / units
        of x.
      acceptance_rate: Probability of accepting,
        `min(1, exp(-energy_error / temperature))`, `[]`, in [0, 1].
      is_accepted: Whether the end of the trajectory was accepted, `[]`, bool.
      energy_error: Change of energy plus kinetic energy along the trajectory, `[]`, in
        nats.
      num_leapfrog: Number of leapfrogs of this move, `[]`, int32.
      is_divergent: Whether the energy error is more than 1,000 temperatures or NaN,
        `[]`, bool. The integrator is then unstable where the trajectory went.
    """

    energy: Array
    gradient_norm: Array
    acceptance_rate: Array
    is_accepted: Array
    energy_error: Array
    num_leapfrog: Array
    is_divergent: Array


@named
def hmc(
    *,
    step_size: float | Array,
    num_leapfrog: int,
    inverse_mass: float | Array | np.ndarray | None = None,
    randomize_num_leapfrog: bool = False,
    temperature: float | Array = 1.0,
    precision: str | None = "highest",
) -> Sampler:
    """Returns a sampler that runs Hamiltonian Monte Carlo (HMC) with the leapfrog rule.

    See https://doi.org/10.1016/0370-2693(87)91197-X and
    https://arxiv.org/abs/1206.1901.

    A move draws a momentum `p ~ N(0, temperature * mass)` and makes `num_leapfrog`
    times

        p -= step_size / 2 * grad E(x);  x += step_size * inverse_mass * p;
        p -= step_size / 2 * grad E(x).

    It accepts the end with probability `min(1, exp(-energy_error / temperature))`,
    which leaves `exp(-E / temperature)` invariant at every step size. Momenta are drawn
    anew at every move (`underdamped` keeps them). The step is a time, not a length as
    in `langevin`: one leapfrog of step h is a MALA proposal of step_size h^2 / 2.

    **A fixed number of leapfrogs resonates.** If `num_leapfrog * step_size` is near a
    multiple of half the period `2 pi sqrt(mass / curvature)` of some direction, the
    trajectory returns to its beginning or to its mirror image. That direction is then
    hardly sampled, although the acceptance rate looks good. `randomize_num_leapfrog`
    makes the number uniform on 1, ..., 2 num_leapfrog - 1, with mean `num_leapfrog`,
    which is the better choice for long runs. The number is a fixed pseudo-random
    function of the number of moves since `init`, not of the key. Chains under `vmap`
    therefore make equally many leapfrogs, and none waits for the longest. Any sequence
    of numbers that does not depend on the chain leaves the law invariant. Every call
    begins the sequence anew, so calls of one move all have the same length. The numbers
    of moves 2 k and 2 k + 1 add up to twice the mean.

    A trajectory to infinite energy is refused. A trajectory to NaN is refused too, and
    `acceptance_rate` and `energy_error` are then NaN, so that it is visible. Both are
    reported as divergent, and `sample_chains` warns of them.

    Args:
      step_size: Step size of a leapfrog, in units of x / sqrt(energy) at unit mass.
        Positive.
      num_leapfrog: Number of leapfrogs of a move, or its mean.
      inverse_mass: Diagonal of the inverse of the mass matrix, `[*event]` or `[]`,
        positive. The best values are near the variance of each direction (not its
        inverse). None means 1.
      randomize_num_leapfrog: Whether to randomize the number of leapfrogs, as described
        above.
      temperature: Temperature, as in `langevin`. Positive.
      precision: Precision of the products in the energy and its gradient, as in `mala`.

    Returns:
      A `Sampler` with `HMCState` and `HMCInfo`. A move takes `num_leapfrog` gradients,
      only the last of them with the energy; the start takes one.

    Raises:
      ValueError: If a number is not positive, `inverse_mass` is not positive or does
        not have the position's shape, or the precision is unknown.

    Source:
      Neal (2011), "MCMC using Hamiltonian dynamics", https://arxiv.org/abs/1206.1901,
      which also proposes random lengths against resonance. The method is from Duane,
      Kennedy, Pendleton & Roweth (1987), "Hybrid Monte Carlo", Physics Letters B 195,
      https://doi.org/10.1016/0370-2693(87)91197-X.
    """
    step_size = check_number("step_size", step_size, positive=True)
    temperature = check_number("temperature", temperature, positive=True)
    check_count("num_leapfrog", num_leapfrog, 1)
    diagonal = 1.0 if inverse_mass is None else inverse_mass
    if inverse_mass is not None and not isinstance(inverse_mass, jax.core.Tracer):
        diagonal = np.asarray(inverse_mass)
        if not (diagonal > 0).all():
            raise ValueError(f"inverse_mass must be positive, got {diagonal}")

    def check_mass(x: Array) -> None:
        if np.shape(diagonal) not in ((), x.shape):
            raise ValueError(
                f"inverse_mass must be a number or of the position's shape {x.shape},"
                f" got shape {np.shape(diagonal)}"
            )

    @at_precision(precision)
    def init(energy_fn: EnergyFn, x: Array) -> HMCState:
        check_mass(x)
        return HMCState(x, *value_and_gradient(energy_fn, x), jnp.zeros((), jnp.int32))

    @at_precision(precision)
    def step(
        energy_fn: EnergyFn, key: Key, state: HMCState
    ) -> tuple[HMCState, HMCInfo]:
        momentum_key, accept_key = jax.random.split(key)
        x, energy, gradient, num_moves = state
        dtype = x.dtype
        # Hyper-parameters of another type must not change the position's.
        inverse = jnp.asarray(diagonal, dtype)
        noise = draw_normal(momentum_key, x.shape, dtype)
        start = noise * jnp.asarray(temperature**0.5, dtype) / jnp.sqrt(inverse)

        count: int | Array = num_leapfrog
        if randomize_num_leapfrog:
            count = shared_num_leapfrog(num_moves, num_leapfrog)
        y, momentum, end_energy, end_gradient = trajectory(
            energy_fn, x, start, gradient, step_size, inverse, count
        )
        # (p - start) . (p + start) is less rounded than a difference of two squares.
        change = total(inverse * (momentum - start) * (momentum + start))
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
            is_divergent=~(-log_ratio <= DIVERGENCE),
        )

    return Sampler(init, step)


def trajectory(
    energy_fn: EnergyFn,
    x: Array,
    momentum: Array,
    gradient: Array,
    step_size: float | Array,
    inverse_mass: Array,
    num_leapfrog: int | Array,
) -> tuple[Array, Array, Array, Array]:
    """Makes `num_leapfrog` leapfrogs from `x [*event]`, whose gradient is given.

    The map preserves volume and is reversible: from the end, with its momentum
    reversed, it leads back to the start. The error in energy plus kinetic energy is of
    order step_size^2.

    Returns:
      Position, momentum, energy and gradient at the end.
    """
    step = jnp.asarray(step_size, x.dtype)
    drift = step * inverse_mass

    # Whole kicks between half ones; the energy is computed at the end alone.
    # If the number is traced, a GPU waits for the host at every turn. A masked loop of
    # the largest number would not wait, but would take twice the gradients on average.
    def leapfrog(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
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
    """Returns a uniform number in 1, ..., 2 mean - 1 that depends on the move alone.

    The numbers of moves 2 k and 2 k + 1 add up to twice the mean.

    Under `vmap` one number serves all chains. They have made equally many moves if they
    began together, so the trajectories make one loop of that length. If each chain had
    a number of its own, all chains would wait for the longest.
    """

    @jax.custom_batching.custom_vmap
    def draw(num_moves: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), num_moves // 2)
        number = jax.random.randint(key, (), 1, 2 * mean)
        return jnp.where(num_moves % 2 == 0, number, 2 * mean - number)

    @draw.def_vmap
    def _(
        axis_size: int, in_batched: list[bool], num_moves: Array
    ) -> tuple[Array, bool]:
        first = num_moves[0] if in_batched[0] else num_moves
        return draw(first), False

    number: Array = draw(num_moves)
    return number
