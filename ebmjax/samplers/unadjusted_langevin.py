"""Unadjusted Langevin dynamics."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.samplers.normal import draw_normal
from ebmjax.samplers.sampler import Sampler, value_and_gradient
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["LangevinInfo", "LangevinState", "langevin"]


class LangevinState(NamedTuple):
    position: Array  # [*event]
    energy: Array  # []
    gradient: Array  # [*event], of the energy, at `position`


class LangevinInfo(NamedTuple):
    energy: Array  # [], after the move
    gradient_norm: Array  # [], after the move, before any clipping


def _bounds(position_clip):
    """`c` means [-c, c]; a pair is (low, high)."""
    if position_clip is None:
        return None
    low, high = (
        position_clip
        if isinstance(position_clip, tuple | list)
        else (-position_clip, position_clip)
    )
    if not low < high:
        raise ValueError(
            "position_clip must be a positive number or a pair (low, high) with"
            f" low < high, got {position_clip}"
        )
    return low, high


def langevin(
    *,
    step_size: float,
    temperature: float = 1.0,
    gradient_clip: float | None = None,
    position_clip: float | tuple[float, float] | None = None,
    project: Callable[[Array], Array] = lambda x: x,
) -> Sampler:
    r"""Unadjusted Langevin dynamics: one gradient step, one kick of noise.

    Moves by `x - step_size * grad E(x) + sqrt(2 * step_size * temperature) * n` with
    `n` standard normal. For small `step_size` the chain leaves `exp(-E / temperature)`
    invariant up to a bias of order `step_size`; nothing corrects that bias (see
    `mala`). On `E = x^2 / 2` the stationary variance is
    `temperature / (1 - step_size / 2)`.

    Energy-based models of images write the move as `x - a * grad E(x) + b * n` with `a`
    and `b` chosen freely. That is this sampler with

        step_size = a,    temperature = b^2 / (2 * a).

    The short-run paper's code has `a = 1, b = 0.01`, which is `temperature = 5e-5`: its
    chain aims at `exp(-E / 5e-5)`, and an energy of 1 there is 20,000 nats. Papers with
    `x - (e^2 / 2) * grad E(x) + e * n` have `step_size = e^2 / 2, temperature = 1`.

    Args:
      step_size: Length of the gradient step, in units of x^2 / energy. Positive.
      temperature: Scales the noise's variance; 0 gives gradient descent.
      gradient_clip: Clips every element of the gradient to [-c, c] before the move. Off
        by default; it changes the law.
      position_clip: Clips every element of the position after the move: a number c for
        [-c, c], or a pair (low, high). Off by default; it changes the law.
      project: Applied to the position after every move and clip. Identity by default;
        anything else changes the law.

    Returns:
      A `Sampler` with `LangevinState` and `LangevinInfo`: one gradient a move, and one
      to start.

    Raises:
      ValueError: If `step_size` is not positive, `temperature` is negative, or a clip
        is not an interval.

    Source:
      Roberts & Tweedie (1996), "Exponential convergence of Langevin distributions and
      their discrete approximations".
    """
    check_number("step_size", step_size, positive=True)
    check_number("temperature", temperature, positive=False)
    if gradient_clip is not None:
        check_number("gradient_clip", gradient_clip, positive=True)
    bounds = _bounds(position_clip)
    noise_std = (2.0 * step_size * temperature) ** 0.5

    def init(energy_fn: EnergyFn, x: Array) -> LangevinState:
        return LangevinState(x, *value_and_gradient(energy_fn, x))

    def step(energy_fn: EnergyFn, key: Key, state: LangevinState):
        x, _, gradient = state
        if gradient_clip is not None:
            gradient = jnp.clip(gradient, -gradient_clip, gradient_clip)
        noise = draw_normal(key, x.shape, x.dtype)
        x = x - step_size * gradient + noise_std * noise
        if bounds is not None:
            x = jnp.clip(x, *bounds)
        # Hyper-parameters of another type must not change the position's.
        state = init(energy_fn, project(x).astype(state.position.dtype))
        norm = jnp.sqrt(jnp.sum(state.gradient**2))
        return state, LangevinInfo(energy=state.energy, gradient_norm=norm)

    return Sampler(init, step)
