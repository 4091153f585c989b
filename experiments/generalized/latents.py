"""Latents of a generator, moved by chains towards what the energy says."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import energies, samplers
from ebmjax.checks import check_count
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["NAMES", "Refined", "check", "refine"]

LIPSCHITZ_DRAWS = 500  # latents among which the steepest slope is looked for
CHUNK = 500  # latents whose images are made at once


class Refined(NamedTuple):
    """Where chains are after so many moves.

    Attributes:
      latents: `[n, latent_dim]`.
      x: `[n, *event]`, what the generator makes of them.
      acceptance_rate: Mean over the moves so far; NaN where nothing is refused. A
        proposal of no finite energy is refused.
    """

    latents: np.ndarray
    x: np.ndarray
    acceptance_rate: float


def _prior(latent_dim: int):
    """The standard normal law of latents, as a proposal."""

    def sample(key):
        return jax.random.normal(key, (latent_dim,))

    return sample, lambda z: -0.5 * jnp.sum(z**2)


# Name -> sampler of a step size (a squared length, `langevin`'s) and the dimension.
# Those that take a time have the step of the same length: h = sqrt(2 * step_size).
SAMPLERS = {
    "independence": lambda step, dim, section: samplers.independence(
        proposal=_prior(dim)
    ),
    "langevin": lambda step, dim, section: samplers.langevin(step_size=step),
    "mala": lambda step, dim, section: samplers.mala(step_size=step),
    "underdamped": lambda step, dim, section: samplers.underdamped(
        step_size=(2 * step) ** 0.5, friction=section["friction"]
    ),
    "hmc": lambda step, dim, section: samplers.hmc(
        step_size=(2 * step) ** 0.5,
        num_leapfrog=section["num_leapfrog"],
        randomize_num_leapfrog=True,
    ),
}
NAMES = (*SAMPLERS, "transport")
REFUSING = ("independence", "mala", "hmc")


def check(section) -> None:
    """Of a config's section `evaluation.sampling`, before anything is trained.

    Raises:
      ValueError: If a sampler is unknown or there is none, lengths do not rise from
        above 0, or a temperature, step or other number is not as it must be.
    """
    unknown = sorted(set(section["samplers"]) - set(NAMES))
    if unknown or not section["samplers"]:
        raise ValueError(
            f"evaluation.sampling.samplers must be of {NAMES}, got"
            f" {tuple(section['samplers'])}"
        )
    _check_lengths(section["chain_lengths"])
    if not section["temperatures"]:
        raise ValueError("evaluation.sampling.temperatures must not be empty")
    positive = {f"temperatures[{i}]": t for i, t in enumerate(section["temperatures"])}
    positive |= {
        name: section[name]
        for name in ("step_size", "decay", "friction", "transport_step_size")
    }
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(
                f"evaluation.sampling.{name} must be positive, got {value}"
            )
    check_count("evaluation.sampling.num_leapfrog", section["num_leapfrog"], 1)
    check_count("evaluation.sampling.decay_every", section["decay_every"], 0)


def _check_lengths(chain_lengths: Sequence[int]) -> None:
    lengths = list(chain_lengths)
    if not lengths or lengths[0] < 1 or sorted(set(lengths)) != lengths:
        raise ValueError(f"chain_lengths must rise from above 0, got {lengths}")


def refine(
    name: str,
    section,
    energy_fn: EnergyFn,
    generator_fn: Callable[[Array], Array],
    key: Key,
    latents: Array,
    *,
    chain_lengths: Sequence[int],
    temperature: float = 1.0,
) -> dict[int, Refined]:
    """Chains in the latent space, and their images, at every one of the lengths.

    After every `decay_every` moves the step is `decay` times as long. Momentum of
    "underdamped" is 0 at the start and goes on from there: begun anew at every length,
    it would be cold again each time, and what is looked at would depend on how often.

    "transport" is the discriminator optimal transport: no chain, but a descent of
    `E(G(z)) / L + |z - z_0 + 0.001|` from each latent `z_0`, with `L` the largest slope
    of `E(G)` among draws of the prior, and of the gradient without `1 / sqrt(d)` of its
    part along `z`. It knows no temperature.

    Args:
      name: One of `NAMES`.
      section: With `step_size` for temperature 1, which is multiplied by the
        temperature as the energy is divided by it; `decay`, `decay_every`; `friction`
        of "underdamped"; `num_leapfrog` of "hmc"; `transport_step_size`.
      energy_fn: Of an example.
      generator_fn: Of a latent.
      key: Of the moves.
      latents: `[n, latent_dim]`, where they begin: draws of the prior.
      chain_lengths: Rising numbers of moves.
      temperature: Divides the energy, not the prior.

    Returns:
      Length -> `Refined`.

    Raises:
      ValueError: If the name is unknown, or the lengths do not rise from above 0.
      FloatingPointError: If transport finds no slope to go by, latents cease to be
        finite, as where the step is too long for a sampler that refuses nothing, or the
        energy is not a number wherever a chain would go.
    """
    if name not in NAMES:
        raise ValueError(f"sampler must be one of {sorted(NAMES)}, got {name!r}")
    _check_lengths(chain_lengths)
    lengths = list(chain_lengths)
    position = latents
    if name == "transport":
        move = _transport(section, energy_fn, generator_fn, key, latents)
    else:
        if name == "underdamped":  # pairs of latent and momentum
            position = jnp.stack([latents, jnp.zeros_like(latents)], 1)
        move = _chains(name, section, energy_fn, generator_fn, temperature)
    every = section["decay_every"]
    decays = range(every, lengths[-1], every) if every else []
    generated = jax.jit(functools.partial(jax.lax.map, generator_fn, batch_size=CHUNK))
    found, rates, first = {}, [], 0
    for index, end in enumerate(sorted({*lengths, *decays})):
        scale = section["decay"] ** (first // every) if every else 1.0
        position, rate = move(
            jax.random.fold_in(key, index), position, end - first, scale
        )
        rates.append((end - first, rate))
        first = end
        if not jnp.isfinite(position).all():
            raise FloatingPointError(
                f"{name} at temperature {temperature:g}: latents are not finite after"
                f" {end} moves; a shorter step may help"
            )
        if end in lengths:
            mean = sum(num * rate for num, rate in rates) / end
            last = position[:, 0] if name == "underdamped" else position
            found[end] = Refined(np.asarray(last), np.asarray(generated(last)), mean)
    return found


def _acceptance(state, info):
    return info.acceptance_rate


def _chains(name, section, energy_fn, generator_fn, temperature):
    latent_energy = energies.latent_energy(energy_fn, generator_fn, temperature)

    @functools.cache  # a sampler made anew would be compiled anew
    def sampler_of(scale, dim):
        step = section["step_size"] * temperature * scale
        sampler = SAMPLERS[name](step, dim, section)
        if name != "underdamped":
            return sampler
        return sampler._replace(init=lambda _, pair: samplers.UnderdampedState(*pair))

    def move(key, position, num_steps, scale):
        sampler = sampler_of(scale, position.shape[-1])
        refuses = name in REFUSING
        state, found = samplers.sample_chains(
            sampler,
            latent_energy,
            key,
            position,
            num_steps,
            collect=_acceptance if refuses else None,
        )
        position = state.position
        if name == "underdamped":
            position = jnp.stack(state, 1)
        if not refuses:
            return position, math.nan
        if jnp.isnan(found).all():
            raise FloatingPointError(
                f"{name} at temperature {temperature:g}: of no proposal the energy is a"
                " number"
            )
        return position, float(jnp.nan_to_num(found).mean())

    return move


def _transport(section, energy_fn, generator_fn, key, starts):
    def of_latent(z):
        return energy_fn(generator_fn(z))

    draws = jax.random.normal(key, (LIPSCHITZ_DRAWS, starts.shape[1]))
    slopes = jax.jit(jax.vmap(jax.grad(of_latent)))(draws)
    steepest = jnp.linalg.norm(slopes, axis=1).max()
    if not 0 < steepest < math.inf:
        raise FloatingPointError(
            f"transport goes by the energy's slope, whose largest is {steepest} among"
            f" {LIPSCHITZ_DRAWS} draws: the energy is flat, or below its floor"
        )

    def one(pair, step_size, num_steps, steepest):
        z, start = pair

        def cost(z):
            distance = jnp.linalg.norm(z - start + 0.001)
            return of_latent(z) / steepest + distance

        def descend(_, z):
            gradient = jax.grad(cost)(z)
            along = jnp.dot(gradient, z) / len(z) ** 0.5
            return z - step_size * (gradient - along * z)

        return jax.lax.fori_loop(0, num_steps, descend, z)

    @jax.jit
    def of_all(position, *given):
        return jax.lax.map(
            lambda pair: one(pair, *given), (position, starts), batch_size=CHUNK
        )

    def move(key, position, num_steps, scale):
        step_size = section["transport_step_size"] * scale
        moved = of_all(position, step_size, num_steps, steepest)
        return moved, float("nan")

    return move
