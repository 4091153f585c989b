"""Adaptation of step sizes and masses by running chains."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import (
    check_count,
    check_number,
    check_positions,
    scalar_energy,
    warn_of_chain_axis,
)
from ebmjax.samplers.closures import as_pytree
from ebmjax.samplers.layout import (
    Layout,
    chain_keys,
    lay_out,
    over_blocks,
    over_devices,
    pad_chains,
)
from ebmjax.samplers.positions import chain_energy, flatten, unflattener
from ebmjax.samplers.recompilation import watched_jit
from ebmjax.samplers.sampler import Sampler
from ebmjax.types import DEVICE, Array, EnergyFn, Key

__all__ = ["Adapted", "adapt"]

SHRINKAGE, OFFSET, DECAY = 0.05, 10.0, 0.75
"""The constants gamma, t0 and kappa of Hoffman & Gelman (2014)."""

MOST_FACTORS = 120
"""Largest number of factors of two by which the search changes a step size: float32 has
no more numbers. The search ends where the acceptance rate crosses a half."""

UNUSED = 2**31 - 1
"""Index of a move that no run reaches; its noise is used to try step sizes."""


class Adapted(NamedTuple):
    """Result of `adapt`.

    Attributes:
      sampler: Sampler with the step size, and the mass if it was adapted, fixed at the
        values that were found.
      position: Positions of the chains at the end, an array or a tree of `[chains,
        ...]` as at the start, in units of x. They are a start nearer to equilibrium.
      step_size: Step size that was found, a number in the sampler's own unit.
      inverse_mass: Diagonal of the inverse mass matrix, `[*event]`, in units of x^2;
        None if it was not adapted.
      acceptance_rate: Mean acceptance rate of the chains over the second half of the
        last stretch, a number in [0, 1]. The step size still varied around the one
        found at that time.
    """

    sampler: Sampler
    position: Array
    step_size: float
    inverse_mass: np.ndarray | None
    acceptance_rate: float


def adapt(
    make_sampler: Callable[..., Sampler],
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    num_steps: int,
    *,
    target_acceptance_rate: float,
    initial_step_size: float = 1.0,
    adapt_mass: bool = False,
) -> Adapted:
    """Finds a step size, and optionally a diagonal mass, for a Metropolis sampler.

    See https://arxiv.org/abs/1111.4246 (NUTS).

    The step size follows dual averaging of the acceptance rate, as in NUTS (Hoffman &
    Gelman). The rate is pooled over all chains on all devices, so the step size settles
    in tens of moves where one chain needs hundreds. With `adapt_mass`, the inverse mass
    becomes the variance of the position in each direction, pooled in the same way, in
    three windows. Each window uses the mass of the window before it, and the step size
    is found anew after every window.

    Moves made while something adapts are not draws from the target, so this function
    discards them. The returned sampler is fixed and leaves its law exactly invariant;
    draw from that sampler only.

        adapted = adapt(samplers.mala, energy_fn, key, x, 500,
                        target_acceptance_rate=0.574)
        state, info = sample_chains(adapted.sampler, energy_fn, next_key,
                                    adapted.position, num_steps)

    Args:
      make_sampler: Factory that is called as `make_sampler(step_size=...)`, and with
        `inverse_mass=...` as well if `adapt_mass`. The sampler's info must have a field
        `acceptance_rate`. Examples are `mala` and
        `functools.partial(hmc, num_leapfrog=10)`.
      energy_fn: Energy of one example.
      key: Typed key.
      x: Initial positions, `[chains, *event]`, spread as far as the law is known to be;
        may be a tree, as in `sample_chains`, whose `inverse_mass` is one flat array.
      num_steps: Number of all moves; at least 50, and with `adapt_mass` at least 100. A
        few hundred are enough.
      target_acceptance_rate: Acceptance rate to reach, in (0, 1). Use 0.574 for MALA
        and 0.65 to 0.8 for HMC.
      initial_step_size: Step size at which a search by factors of two begins.
      adapt_mass: Whether to adapt the inverse mass as well.

    Returns:
      An `Adapted`.

    Raises:
      ValueError: If a number is out of its range, the energy or its gradient at a
        chain's start is not finite, arrays are traced, or no step size that the chains
        accept is found.

    Warns:
      RuntimeWarning: If chains are at the end where they began.

    Source:
      Hoffman & Gelman (2014), "The No-U-Turn sampler", section 3.2,
      https://arxiv.org/abs/1111.4246.
    """
    x = check_positions(key, x)
    one = jax.tree.map(lambda leaf: leaf[:1], x)
    x, unflatten = flatten(x), unflattener(x)
    initial_step_size = check_number(
        "initial_step_size", initial_step_size, positive=True
    )
    target_acceptance_rate = float(target_acceptance_rate)
    if not 0 < target_acceptance_rate < 1:
        raise ValueError(
            "target_acceptance_rate must be between 0 and 1,"
            f" got {target_acceptance_rate}"
        )
    check_count("num_steps", num_steps, 100 if adapt_mass else 50)
    energy_fn = as_pytree(energy_fn)
    layout = lay_out(x, (energy_fn, key, x))
    if layout.is_traced:
        raise ValueError(
            "adapt must be called with concrete arrays, not under jit, pmap or vmap:"
            " the sampler that it returns has numbers in it"
        )
    flat_energy_fn = chain_energy(energy_fn, unflatten, None)
    _check_start(make_sampler, flat_energy_fn, x, initial_step_size)
    # Blocks save no work here, because every move pools over all chains. An accelerator
    # may still make a move in blocks.
    layout = layout._replace(
        num_blocks=1, block_size=layout.num_blocks * layout.block_size
    )
    stretches = [(num_steps, False)]
    if adapt_mass:
        first = num_steps // 7
        stretches = [(first, False), (first, True), (2 * first, True)]
        stretches += [(2 * first, True), (num_steps - 6 * first, False)]
    inverse_mass = jnp.ones(x.shape[1:], x.dtype) if adapt_mass else None
    positions, step_size, first = x, jnp.asarray(initial_step_size, x.dtype), 0
    for count, is_window in stretches:
        positions, step_size, variance, acceptance_rate = _stretch(
            energy_fn,
            key,
            positions,
            step_size,
            inverse_mass,
            one,
            first,
            count,
            make_sampler=make_sampler,
            target=target_acceptance_rate,
            num_chains=x.shape[0],
            layout=layout,
        )
        # Programs with collectives that queue up can deadlock on a CPU's devices.
        jax.block_until_ready(positions)
        first += count
        if is_window:
            inverse_mass = variance
            _check_mass(np.asarray(variance))
    found, rate = float(step_size), float(acceptance_rate)
    # Far from where the search began, the step size was found only if the rate is near
    # the target. For a flat energy the rate is 1 at every step, and for one that is NaN
    # around the start it is 0.
    is_far = not 2.0**-50 < found / initial_step_size < 2.0**50
    lowest, highest = target_acceptance_rate / 2, (1 + target_acceptance_rate) / 2
    is_lost = is_far and not lowest < rate < highest
    if is_lost or not rate > 0 or not 0 < found < math.inf:
        raise ValueError(
            "no step size was found that the chains accept as often as was asked: the"
            f" last was {found}, with an acceptance rate of {rate}"
        )
    _warn_of_stuck(x, positions)
    positions = positions if unflatten is None else jax.vmap(unflatten)(positions)
    if not adapt_mass:
        return Adapted(make_sampler(step_size=found), positions, found, None, rate)
    mass = np.asarray(inverse_mass)
    sampler = make_sampler(step_size=found, inverse_mass=mass)
    return Adapted(sampler, positions, found, mass, rate)


def _check_start(
    make_sampler: Callable[..., Sampler],
    energy_fn: EnergyFn,
    x: Array,
    step_size: float,
) -> None:
    """Raises unless energies, and gradients if the sampler has any, are finite."""
    warn_of_chain_axis(energy_fn, x)
    values = {"energy": jax.vmap(scalar_energy(energy_fn))(x)}
    states = jax.vmap(
        functools.partial(make_sampler(step_size=step_size).init, energy_fn)
    )(x)
    if hasattr(states, "gradient"):
        values["energy's gradient"] = states.gradient
    for name, found in values.items():
        rows = np.asarray(found).reshape(len(x), -1)
        is_bad = ~np.isfinite(rows)
        if is_bad.any():
            chain, element = np.argwhere(is_bad)[0]
            raise ValueError(
                f"the {name} must be finite where chains begin, got"
                f" {rows[chain, element]} at chain {chain}"
            )


def _check_mass(mass: np.ndarray) -> None:
    """Raises unless the variances that adaptation found can be an inverse mass."""
    if not (np.isfinite(mass) & (mass > 0)).all():
        raise ValueError(
            "adapt_mass needs variances that are positive and finite in"
            f" {mass.dtype}, got {mass.min()} to {mass.max()}; use other units of x"
        )


def _warn_of_stuck(x: Array, positions: Array) -> None:
    """Warns of chains that are where they began, after all moves."""
    is_same = np.asarray(x == positions).reshape(len(x), -1).all(1)
    if is_same.any():
        warnings.warn(
            f"adapt: {is_same.sum()} of {len(x)} chains never moved, the first of them"
            f" chain {np.argmax(is_same)}; their starts may be where no proposal is"
            " accepted",
            RuntimeWarning,
            stacklevel=3,
        )


@watched_jit(
    "adapt",
    ("make_sampler", "energy_fn"),
    static_argnames=("make_sampler", "target", "num_chains", "layout"),
)
def _stretch(
    energy_fn: EnergyFn,
    key: Key,
    x: Array,
    step_size: Array,
    inverse_mass: Array | None,
    one: Any,
    first: int | Array,
    num_steps: int | Array,
    *,
    make_sampler: Callable[..., Sampler],
    target: float,
    num_chains: int,
    layout: Layout,
) -> tuple[Array, Array, Array, Array]:
    """Returns position, step size, variance and rate after moves with one mass.

    `num_steps` is traced, so that one compiled program serves stretches of all lengths.
    `one` is a position `[1, ...]` as the energy takes it.
    """
    keys = chain_keys(key, layout.num_chains)
    x = pad_chains(x, layout.num_chains)
    # Chains that only pad a device's share have no weight.
    weights = jnp.where(jnp.arange(layout.num_chains) < num_chains, 1 / num_chains, 0.0)

    def local(
        energy_fn: EnergyFn,
        step_size: Array,
        inverse_mass: Array | None,
        first: Array,
        num_steps: Array,
        keys: Key,
        x: Array,
        weights: Array,
    ) -> tuple[Array, Array, Array, Array]:
        energy_fn = chain_energy(energy_fn, unflattener(one), None)

        def sampler_of(step_size: Array) -> Sampler:
            options = {} if inverse_mass is None else {"inverse_mass": inverse_mass}
            return make_sampler(step_size=step_size, **options)

        def pooled(values: Array) -> Array:
            # Means of positions: a GPU's rounding would be large far from 0.
            mean = jnp.tensordot(
                weights.astype(values.dtype), values, 1, precision="highest"
            )
            if layout.num_devices == 1:
                return mean
            total: Array = jax.lax.psum(mean, DEVICE)
            return total

        def move(
            step_size: Array, states: Any, index: int | Array
        ) -> tuple[Any, Array]:
            sampler = sampler_of(step_size)

            def one(key: Key, state: Any) -> tuple[Any, Any]:
                move_key = jax.random.fold_in(key, index)
                return sampler.step(energy_fn, move_key, state)

            states, infos = over_blocks(jax.vmap(one), layout, (0, 0))(keys, states)
            if not hasattr(infos, "acceptance_rate"):
                raise ValueError(
                    "make_sampler must make a sampler whose info has acceptance_rate,"
                    f" got one with {type(infos).__name__}: nothing to adapt to"
                )
            # A proposal of NaN energy is refused, and counts as such.
            return states, pooled(jnp.nan_to_num(infos.acceptance_rate, nan=0.0))

        init = functools.partial(sampler_of(step_size).init, energy_fn)
        states = jax.vmap(init)(x)

        # A first guess by factors of two, up or down until the rate crosses 0.5.
        def rate(step_size: Array) -> Array:
            return move(step_size, states, UNUSED)[1]

        direction = jnp.where(rate(step_size) > 0.5, 1.0, -1.0).astype(step_size.dtype)

        limits = jnp.finfo(step_size.dtype)
        smallest, largest = 4 * limits.tiny, limits.max / 128

        def goes_on(carry: tuple[Array, int]) -> Array:
            step_size, count = carry
            # No further than the numbers of this type go.
            room = jnp.where(direction > 0, step_size < largest, step_size > smallest)
            is_short = direction * (rate(step_size) - 0.5) > 0
            return (count < MOST_FACTORS) & room & is_short

        def widen(carry: tuple[Array, int]) -> tuple[Array, int]:
            step_size, count = carry
            return step_size * 2**direction, count + 1

        step_size, _ = jax.lax.while_loop(goes_on, widen, (step_size, 0))
        center = jnp.log(10 * step_size)

        def update(index: Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            states, log_step, averaged, error, count, mean, squares, rates = carry
            states, acceptance_rate = move(jnp.exp(log_step), states, first + index)
            time = index + jnp.ones((), log_step.dtype)
            error += (target - acceptance_rate - error) / (time + OFFSET)
            log_step = center - jnp.sqrt(time) / SHRINKAGE * error
            averaged += time**-DECAY * (log_step - averaged)
            # Welford's recursion, a whole batch of chains at a time.
            position = states.position
            batch_mean = pooled(position)
            batch_variance = pooled((position - batch_mean[None]) ** 2)
            difference = batch_mean - mean
            squares += batch_variance + difference**2 * count / (count + 1)
            mean += difference / (count + 1)
            # The mean of the second half, where the step size has settled.
            late = jnp.where(index < num_steps // 2, 0.0, 2.0 / num_steps)
            rates += late.astype(rates.dtype) * acceptance_rate
            return states, log_step, averaged, error, count + 1, mean, squares, rates

        zero = jnp.zeros((), step_size.dtype)
        still = jnp.zeros(x.shape[1:], x.dtype)
        log_step = jnp.log(step_size)
        carry = (states, log_step, log_step, zero, zero, still, still, zero)
        carry = jax.lax.fori_loop(0, num_steps, update, carry)
        states, _, averaged, _, count, _, squares, settled = carry
        variance = squares / count
        if inverse_mass is not None:
            # A little towards the last, in ratios, as few draws are a rough estimate.
            draws = count * num_chains
            ratio = (variance / inverse_mass) ** (draws / (draws + 5))
            variance = inverse_mass * ratio
        return states.position, jnp.exp(averaged), variance, settled

    positions, step_size, variance, acceptance_rate = over_devices(
        local, layout, (None, None, None, None, None, 0, 0, 0), (0, None, None, None)
    )(energy_fn, step_size, inverse_mass, first, num_steps, keys, x, weights)
    return positions[:num_chains], step_size, variance, acceptance_rate
