"""Baselines, latent chains and draws in chunks, for energies with a generator."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import energies, samplers
from ebmjax.objectives import max_entropy
from ebmjax.objectives.base import Aux, Objective, generate, interpolate
from ebmjax.types import Array, Energy, EnergyFn, Key, Network
from experiments.data.arrays import over_accelerators

__all__ = [
    "Sampled",
    "bind",
    "draw",
    "follow_energy",
    "gan_energy",
    "gan_generator",
    "sample",
    "wgan_gp_energy",
]


# --- baselines ---------------------------------------------------------------------


def gan_energy(energy: Energy, generator, *, latent_dim: int) -> Objective:
    """Returns a plain GAN's discriminator, whose logit is minus the energy.

    `mean softplus(E(data)) + mean softplus(-E(draws))`, for the player ("energy",).
    """

    def loss_of(energy_data, energy_model, key, params, batch, negatives):
        loss = jax.nn.softplus(energy_data) + jax.nn.softplus(-energy_model)
        return loss.mean(), {}

    return _against(energy, generator, latent_dim, loss_of)


def wgan_gp_energy(
    energy: Energy, generator, *, latent_dim: int, gradient_penalty: float
) -> Objective:
    """WGAN-GP's critic, which is minus the energy, for the player ("energy",).

    `mean E(data) - mean E(draws) + gradient_penalty * mean (|grad E| - 1)^2`, the norm
    over the whole example, between data and draws: one random point an example.
    """

    def norm(params, x):
        return jnp.sqrt(jnp.sum(jax.grad(energy, argnums=1)(params, x) ** 2) + 1e-12)

    def loss_of(energy_data, energy_model, key, params, batch, negatives):
        points = interpolate(key, batch, negatives)
        norms = jax.vmap(norm, (None, 0))(params["energy"], points)
        penalty = jnp.mean((norms - 1) ** 2)
        loss = (energy_data - energy_model).mean() + gradient_penalty * penalty
        return loss, {"gradient_norm": norms.mean()}

    return _against(energy, generator, latent_dim, loss_of)


def _against(energy, generator, latent_dim, loss_of) -> Objective:
    def loss(params, key, batch, carry):
        latent_key, loss_key = jax.random.split(key)
        latents = jax.random.normal(latent_key, (len(batch), latent_dim))
        negatives, renewed = jax.lax.stop_gradient(
            generate(generator, jax.lax.stop_gradient(params), latents)
        )
        of_batch = functools.partial(jax.vmap(energy, (None, 0)), params["energy"])
        energy_data, energy_model = of_batch(batch), of_batch(negatives)
        value, metrics = loss_of(
            energy_data, energy_model, loss_key, params, batch, negatives
        )
        metrics |= {
            "energy_data": energy_data.mean(),
            "energy_model": energy_model.mean(),
        }
        return value, Aux(carry, jax.lax.stop_gradient(metrics), renewed)

    return Objective(init=lambda key: (), loss=loss)


def follow_energy(energy: Energy, generator, *, latent_dim: int) -> Objective:
    """Returns the player ("generator",) that lowers this energy and nothing else."""
    return max_entropy.generator_objective(
        energy, generator, None, latent_dim=latent_dim, information_weight=0
    )


def gan_generator(energy: Energy, generator, *, latent_dim: int) -> Objective:
    """Returns a plain GAN's generator, `mean softplus(E(draws))`: minus the logarithm
    of the probability of being taken for data."""

    def surprise(params, x):
        return jax.nn.softplus(energy(params, x))

    return follow_energy(surprise, generator, latent_dim=latent_dim)


# --- draws -------------------------------------------------------------------------


def bind(network: Network, params, state) -> Callable[[Array], Array]:
    """Returns a function of one example or latent, by running statistics if any."""
    if network.apply_stateful is None:
        return functools.partial(network.apply, params)
    return lambda x: network.apply_stateful(params, state, x)[0]


def draw(
    generator_fn: Callable[[Array], Array],
    key: Key,
    num: int,
    *,
    latent_dim: int,
    chunk_size: int,
) -> np.ndarray:
    """Returns `[num, *event]`, a chunk at a time."""
    of_chunk = jax.jit(jax.vmap(generator_fn))
    chunks = []
    for chunk in range(-(-num // chunk_size)):
        shape = (chunk_size, latent_dim)
        latents = jax.random.normal(jax.random.fold_in(key, chunk), shape)
        chunks.append(np.asarray(of_chunk(over_accelerators(latents))))
    return np.concatenate(chunks)[:num]


class Sampled(NamedTuple):
    """Ends of chains that begin at the generator's draws.

    Attributes:
      x: Name -> `[num, *event]`: "generator" draws; "latent" chains from them;
        "latent_without_energy", the control, whose moves see the prior alone;
        "visible" ones, of the energy itself.
      scalars: Acceptance rates, and the latents' mean squares.
    """

    x: dict[str, np.ndarray]
    scalars: dict[str, float]


def sample(
    section,
    energy_fn: EnergyFn,
    generator_fn: Callable[[Array], Array],
    key: Key,
    num: int,
    *,
    latent_dim: int,
) -> Sampled:
    """Runs chains in the latent space and in the visible one, from the same latents.

    Args:
      section: With `num_steps`, `step_size`, `temperature` and `prior` of latent MALA,
        and `visible_step_size` and `visible_temperature` of Langevin in x.
      energy_fn: Energy of an example.
      generator_fn: Example as a function of a latent.
      key: Key of starts and chains.
      num: Chains of each kind.
      latent_dim: Length of the latent.
    """
    start_key, *chain_keys = jax.random.split(key, 4)
    latents = jax.random.normal(start_key, (num, latent_dim))
    generated = jax.jit(jax.vmap(generator_fn))
    mala = samplers.mala(step_size=section.step_size)

    def nowhere(x):
        return jnp.zeros((), x.dtype)

    def chains(key, energy_fn, sampler, x):
        return samplers.sample_chains(
            sampler, energy_fn, key, x, section.num_steps, collect=None
        )

    def latent_chains(key, energy_fn):
        energy_fn = energies.latent_energy(
            energy_fn, generator_fn, section.temperature, section.prior
        )
        return chains(key, energy_fn, mala, latents)

    x, scalars = {"generator": generated(latents)}, {}
    for name, chain_key, fn in (
        ("latent", chain_keys[0], energy_fn),
        ("latent_without_energy", chain_keys[1], nowhere),
    ):
        state, info = latent_chains(chain_key, fn)
        x[name] = generated(state.position)
        scalars |= {
            f"{name}_acceptance_rate": float(info.acceptance_rate.mean()),
            f"{name}_mean_square": float(jnp.mean(state.position**2)),
        }
    langevin = samplers.langevin(
        step_size=section.visible_step_size, temperature=section.visible_temperature
    )
    state, _ = chains(chain_keys[2], energy_fn, langevin, x["generator"])
    x["visible"] = state.position
    return Sampled({k: np.asarray(v) for k, v in x.items()}, scalars)
