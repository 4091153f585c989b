"""Chains in the latents of a generator, which follow the energy of what it makes."""

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

__all__ = [
    "REFUSING",
    "SAMPLERS",
    "SAMPLER_NAMES",
    "Refined",
    "check_sampler",
    "make_refine",
    "sample_model",
    "sampler_section",
]

LIPSCHITZ_DRAWS = 500  # latents among which the steepest slope is looked for
CHUNK = 500  # latents whose images are made at once


class Refined(NamedTuple):
    """Positions of chains after some number of moves.

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
    """Returns the standard normal law of latents, as a proposal."""

    def sample(key):
        return jax.random.normal(key, (latent_dim,))

    return sample, lambda z: -0.5 * jnp.sum(z**2)


# Each name has a function that makes the sampler from a step size (a squared length, as
# `langevin` takes it) and the latents' dimension. Samplers that take a time get the one
# whose step has the same length: h = sqrt(2 * step_size).
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
SAMPLER_NAMES = (*SAMPLERS, "transport")
REFUSING = ("independence", "mala", "hmc")


def sampler_section(**others) -> dict:
    """Returns a config's section `evaluation.sampler` with some options changed."""
    return {
        "names": SAMPLER_NAMES,  # each is run and judged; the first draws samples.npz
        "chain_lengths": (10, 50, 100, 200),  # moves at which chains are looked at
        "step_size": 0.02,  # length^2, at temperature 1; times the temperature
        "decay": 0.1,  # factor of the step after every
        "decay_every": 200,  # moves; 0 for never
        "friction": 1.0,  # 1 / time, of "underdamped"
        "num_leapfrog": 2,  # steps in a move of "hmc", on average
        "transport_step_size": 0.01,  # length^2 / cost, of "transport"
        **others,
    }


def check_sampler(section) -> None:
    """Checks the section `evaluation.sampler` of a config before training.

    Raises:
      ValueError: If a sampler is unknown or there is none, lengths do not rise from
        above 0, or a temperature, step or other number is not as it must be.
    """
    unknown = sorted(set(section["names"]) - set(SAMPLER_NAMES))
    if unknown or not section["names"]:
        raise ValueError(
            f"evaluation.sampler.names must be some of {SAMPLER_NAMES}, got"
            f" {tuple(section['names'])}"
        )
    _check_lengths(section["chain_lengths"])
    temperatures = section.get("temperatures", (1.0,))
    if not temperatures:
        raise ValueError("evaluation.sampler.temperatures must not be empty")
    positive = {f"temperatures[{i}]": t for i, t in enumerate(temperatures)}
    positive |= {
        name: section[name]
        for name in ("step_size", "decay", "friction", "transport_step_size")
    }
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"evaluation.sampler.{name} must be positive, got {value}")
    check_count("evaluation.sampler.num_leapfrog", section["num_leapfrog"], 1)
    check_count("evaluation.sampler.decay_every", section["decay_every"], 0)


def _check_lengths(chain_lengths: Sequence[int]) -> None:
    lengths = list(chain_lengths)
    if not lengths or lengths[0] < 1 or sorted(set(lengths)) != lengths:
        raise ValueError(f"chain_lengths must rise from above 0, got {lengths}")


def make_refine(
    section, energy_fn: EnergyFn, generator_fn: Callable[[Array], Array]
) -> Callable[..., dict[int, Refined]]:
    """Returns `refine(name, key, latents, temperature=1.0) -> {length: Refined}`.

    `refine` runs chains in the latent space, by one of `SAMPLER_NAMES` from latents
    `[n, latent_dim]`, which are draws of the prior. It returns where they are at each
    of the lengths. The temperature divides the energy and not the prior. What has been
    compiled is kept with `refine`.

    After every `decay_every` moves the step is multiplied by `decay`. The momentum of
    "underdamped" is 0 at the start and is kept from one length to the next: if it began
    anew at each length, the law would depend on how often the chains are looked at.

    "transport" is discriminator optimal transport, which is no chain. It descends
    `E(G(z)) / L + |z - z_0 + 0.001|` from each latent `z_0`, where `L` is the largest
    slope of `E(G)` among draws of the prior; the part of the gradient along `z` is
    reduced by `1 / sqrt(d)` of itself. It has no temperature.

    Args:
      section: Holds `chain_lengths`, rising; `step_size`, which is for temperature 1
        and is multiplied by the temperature as the energy is divided by it; `decay` and
        `decay_every`; `friction` of "underdamped"; `num_leapfrog` of "hmc";
        `transport_step_size`.
      energy_fn: The energy of one example.
      generator_fn: Makes an example from a latent.

    Raises:
      ValueError: If the lengths do not rise from above 0; in `refine`, if the name is
        unknown.
      FloatingPointError: In `refine`, if transport finds no slope, if latents cease to
        be finite (the step may be too long for a sampler that refuses nothing), or if
        the energy is not a number wherever a chain would go.
    """
    lengths, every = list(section["chain_lengths"]), section["decay_every"]
    _check_lengths(lengths)
    decays = range(every, lengths[-1], every) if every else []
    generate = jax.jit(functools.partial(jax.lax.map, generator_fn, batch_size=CHUNK))

    @functools.cache  # new functions would be compiled anew
    def chains(name, temperature):
        return make_chains(name, section, energy_fn, generator_fn, temperature)

    def refine(name, key, latents, temperature=1.0):
        if name not in SAMPLER_NAMES:
            raise ValueError(
                f"sampler must be one of {sorted(SAMPLER_NAMES)}, got {name!r}"
            )
        position = latents
        if name == "transport":
            move = make_transport(section, energy_fn, generator_fn, key, latents)
        else:
            if name == "underdamped":  # pairs of latent and momentum
                position = jnp.stack([latents, jnp.zeros_like(latents)], 1)
            move = chains(name, temperature)
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
                    f"{name} at temperature {temperature:g}: latents are not finite"
                    f" after {end} moves; a shorter step may help"
                )
            if end in lengths:
                mean = sum(num * rate for num, rate in rates) / end
                last = position[:, 0] if name == "underdamped" else position
                x = np.asarray(generate(last))
                found[end] = Refined(np.asarray(last), x, mean)
        return found

    return refine


def sample_model(section, refine, key: Key, latents: Array) -> np.ndarray:
    """Returns draws of the model, `[n, *event]`, one for each latent.

    They are the images of chains of the section's first sampler at its first
    temperature (1 if it has none), after the last length.
    """
    temperature = section.get("temperatures", (1.0,))[0]
    refined = refine(section["names"][0], key, latents, temperature)
    return refined[max(refined)].x


def _acceptance(state, info):
    return info.acceptance_rate


def make_chains(name, section, energy_fn, generator_fn, temperature):
    """Returns `move(key, position, num_steps, scale) -> (position, acceptance)`."""
    latent_energy = energies.latent_energy(energy_fn, generator_fn, temperature)

    @functools.cache  # a sampler made anew would be compiled anew
    def make_sampler(scale, dim):
        step = section["step_size"] * temperature * scale
        sampler = SAMPLERS[name](step, dim, section)
        if name != "underdamped":
            return sampler
        return sampler._replace(init=lambda _, pair: samplers.UnderdampedState(*pair))

    def move(key, position, num_steps, scale):
        sampler = make_sampler(scale, position.shape[-1])
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
                f"{name} at temperature {temperature:g}: the energy of no proposal is a"
                " number"
            )
        return position, float(jnp.nan_to_num(found).mean())

    return move


def make_transport(section, energy_fn, generator_fn, key, starts):
    """Returns `move` as `make_chains` does, of the transport from `starts`."""

    def energy_at(z):
        return energy_fn(generator_fn(z))

    draws = jax.random.normal(key, (LIPSCHITZ_DRAWS, starts.shape[1]))
    slopes = jax.jit(jax.vmap(jax.grad(energy_at)))(draws)
    steepest = jnp.linalg.norm(slopes, axis=1).max()
    if not 0 < steepest < math.inf:
        raise FloatingPointError(
            f"transport needs a slope of the energy, whose largest is {steepest} among"
            f" {LIPSCHITZ_DRAWS} draws: the energy is flat, or below its floor"
        )

    # All stretches are multiples of one length, which the program knows. If the length
    # were an argument, a GPU would wait for the host after every step of the loop.
    length = math.gcd(*section["chain_lengths"], section["decay_every"])

    def descend(pair, step_size, steepest):
        z, start = pair

        def cost(z):
            distance = jnp.linalg.norm(z - start + 0.001)
            return energy_at(z) / steepest + distance

        def move_once(z, _):
            gradient = jax.grad(cost)(z)
            along = jnp.dot(gradient, z) / len(z) ** 0.5
            return z - step_size * (gradient - along * z), None

        return jax.lax.scan(move_once, z, length=length)[0]

    @jax.jit
    def descend_all(position, *given):
        return jax.lax.map(
            lambda pair: descend(pair, *given), (position, starts), batch_size=CHUNK
        )

    def move(key, position, num_steps, scale):
        step_size = section["transport_step_size"] * scale
        for _ in range(num_steps // length):
            position = descend_all(position, step_size, steepest)
        return position, float("nan")

    return move
