"""Unadjusted Langevin dynamics (ULA)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from ebmjax import energies
from ebmjax.checks import check_number
from ebmjax.samplers.normal import draw_normal
from ebmjax.samplers.sampler import Sampler, named, value_and_gradient
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["LangevinInfo", "LangevinState", "langevin"]


class LangevinState(NamedTuple):
    """State of a Langevin chain, adjusted by a Metropolis test or not.

    Attributes:
      position: Place of the chain, `[*event]`, in units of x.
      energy: Energy at `position`, `[]`, in nats.
      gradient: Gradient of the energy at `position`, `[*event]`, in nats / units of x.
    """

    position: Array
    energy: Array
    gradient: Array


class Tilted(NamedTuple):
    """Energy `energies.tilt`, for states that keep the values of the path's ends.

    Attributes:
      energy_fn: Energy at the end of the path.
      reference_fn: Energy at the start of the path.
      fraction: Place on the path, a scalar in [0, 1].
    """

    energy_fn: EnergyFn
    reference_fn: EnergyFn
    fraction: float | Array

    def __call__(self, x: Array) -> Array:
        return energies.tilt(*self)(x)


class TiltedState(NamedTuple):
    """State of a Langevin chain whose energy is known at every fraction of a path.

    Attributes:
      position: Place of the chain, `[*event]`, in units of x.
      energy: Energy at `position`, `[]`, in nats.
      gradient: Gradient of the energy at `position`, `[*event]`, in nats / units of x.
      end: Energy and gradient at `position` of the end of the path.
      start: Energy and gradient at `position` of the start of the path.
    """

    position: Array
    energy: Array
    gradient: Array
    end: tuple[Array, Array]
    start: tuple[Array, Array]

    def at(self, fraction: float | Array) -> "TiltedState":
        """Returns the state of the same position at another fraction of the path."""
        energy, gradient = (
            (1 - fraction) * start + fraction * end
            for start, end in zip(self.start, self.end)
        )
        gradient = gradient.astype(self.position.dtype)
        return self._replace(energy=energy, gradient=gradient)


def langevin_state(energy_fn: EnergyFn, x: Array) -> Any:
    """Returns a `LangevinState`, or a `TiltedState` if the energy is `Tilted`."""
    if not isinstance(energy_fn, Tilted):
        return LangevinState(x, *value_and_gradient(energy_fn, x))
    end = value_and_gradient(energy_fn.energy_fn, x)
    start = value_and_gradient(energy_fn.reference_fn, x)
    return TiltedState(x, *end, end, start).at(energy_fn.fraction)


class LangevinInfo(NamedTuple):
    """Report of one move of Langevin dynamics.

    Attributes:
      energy: Energy after the move, `[]`, in nats.
      gradient_norm: Norm of the energy's gradient after the move, before any clipping,
        `[]`, in nats / units of x.
    """

    energy: Array
    gradient_norm: Array


def _bounds(
    position_clip: float | tuple[float, float] | None,
) -> tuple[float, float] | None:
    """Returns `(low, high)`: a number `c` means (-c, c)."""
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


@named
def langevin(
    *,
    step_size: float | Array,
    temperature: float | Array = 1.0,
    gradient_clip: float | None = None,
    position_clip: float | tuple[float, float] | None = None,
    project: Callable[[Array], Array] = lambda x: x,
) -> Sampler:
    """Returns a sampler that runs the unadjusted Langevin algorithm (ULA).

    See https://doi.org/10.2307/3318418.

    A move is one gradient step with added noise, `x - step_size * grad E(x) + sqrt(2 *
    step_size * temperature) * n` with `n` standard normal. For small `step_size` the
    chain leaves `exp(-E / temperature)` invariant up to a bias of order `step_size`;
    nothing corrects that bias (see `mala`). On `E = x^2 / 2` the stationary variance is
    `temperature / (1 - step_size / 2)`.

    Energy-based models of images write the move as `x - a * grad E(x) + b * n` with `a`
    and `b` chosen freely. That is this sampler with

        step_size = a,    temperature = b^2 / (2 * a).

    The short-run paper's code has `a = 1, b = 0.01`, which is `temperature = 5e-5`: its
    chain aims at `exp(-E / 5e-5)`, and an energy of 1 there is 20,000 nats. Papers with
    `x - (e^2 / 2) * grad E(x) + e * n` have `step_size = e^2 / 2, temperature = 1`.

    Args:
      step_size: Length of the gradient step, in units of x^2 / energy. Positive.
      temperature: Scale of the noise's variance; 0 gives gradient descent.
      gradient_clip: Bound c: every element of the gradient is clipped to [-c, c] before
        the move. Off by default; it changes the law.
      position_clip: Bounds of every element of the position, which is clipped after the
        move: a number c for [-c, c], or a pair (low, high). Off by default; it changes
        the law.
      project: Function that is applied to the position after every move and clip. The
        default is the identity; anything else changes the law.

    Returns:
      A `Sampler` with `LangevinState` and `LangevinInfo`. A move takes one gradient,
      and so does the start.

    Raises:
      ValueError: If `step_size` is not positive, `temperature` is negative, or a clip
        is not an interval.

    Source:
      Roberts & Tweedie (1996), "Exponential convergence of Langevin distributions and
      their discrete approximations", Bernoulli 2, https://doi.org/10.2307/3318418.
    """
    step_size = check_number("step_size", step_size, positive=True)
    temperature = check_number("temperature", temperature, positive=False)
    if gradient_clip is not None:
        gradient_clip = check_number("gradient_clip", gradient_clip, positive=True)
    bounds = _bounds(position_clip)
    noise_std = (2.0 * step_size * temperature) ** 0.5

    def init(energy_fn: EnergyFn, x: Array) -> LangevinState:
        state: LangevinState = langevin_state(energy_fn, x)
        return state

    def step(
        energy_fn: EnergyFn, key: Key, state: LangevinState
    ) -> tuple[LangevinState, LangevinInfo]:
        x, gradient = state.position, state.gradient
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
