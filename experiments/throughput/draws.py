"""The random numbers that our objectives draw from a key, for a peer's loss to use.

With them a peer's loss is ours at the same parameters. An objective that draws in
another order shows as a loss that differs.
"""

import functools

import jax
import numpy as np

from ebmjax import samplers
from ebmjax.samplers.layout import chain_keys
from experiments.throughput.tasks import Task


@functools.cache
def make_sampler(name: str, **options) -> samplers.Sampler:
    """Returns one sampler for equal options: another one would be compiled anew."""
    return getattr(samplers, name)(**options)


def without_energy(x):
    return 0.0 * x.sum()


def position(state, info):
    return state.position


def short_run(task: Task, params, player: str, key, batch):
    """Returns the starts of the chains, the noise of the data and of every move, and
    the ends of the chains."""
    from experiments.short_run.model import make_model

    made = make_model(task.config, batch.shape[1:])
    options, num_steps = task.config.sampler, task.config.objective.num_steps
    sampler = make_sampler(**options)
    noise_key, start_key, sample_key, _ = jax.random.split(key, 4)
    # Where the energy is 0, a chain moves by its noise alone.
    _, positions = samplers.sample_chains(
        sampler,
        without_energy,
        sample_key,
        np.zeros_like(batch),
        num_steps,
        collect=position,
    )
    std = (2 * options.step_size * options.temperature) ** 0.5
    noise = np.diff(np.asarray(positions), axis=0, prepend=0) / std
    start = made.draw_noise(start_key, batch.shape)
    return {
        "start": start,
        "data": jax.random.normal(noise_key, batch.shape),
        "noise": list(noise),
        "negatives": run_chains(
            sampler, made.network.apply, params, sample_key, start, num_steps
        ),
    }


def run_chains(sampler, energy, params, key, start, num_steps):
    energy_fn = functools.partial(energy, params["energy"])
    state, _ = samplers.sample_chains(
        sampler, energy_fn, key, start, num_steps, collect=None
    )
    return state.position


def score_based(task: Task, params, player: str, key, batch):
    """Returns a time and a noise for each example."""

    def one(key, x):
        time_key, noise_key = jax.random.split(key)
        time = jax.random.uniform(time_key, (), x.dtype, 1e-5, 1.0)
        return {"time": time, "noise": jax.random.normal(noise_key, x.shape)}

    return jax.vmap(one)(jax.random.split(key, len(batch)), batch)


def max_entropy(task: Task, params, player: str, key, batch):
    first_key, second_key = jax.random.split(key)
    latents = jax.random.normal(first_key, (len(batch), task.config.latent_dim))
    order = jax.random.permutation(second_key, len(batch))
    return {"latents": latents, "order": order}


def generalized(task: Task, params, player: str, key, batch):
    shape = (len(batch), task.config.latent_dim)
    if player == "base":
        return {"latents": jax.random.normal(key, shape)}
    latent_key, point_key = jax.random.split(key)
    return {
        "latents": jax.random.normal(latent_key, shape),
        "share": jax.random.uniform(point_key, (len(batch), 1, 1, 1)),
    }


def contrastive(task: Task, params, player: str, key, batch):
    """Returns the ends of the chains, which begin at the data."""
    section = task.config.objective
    sampler = make_sampler("mala", step_size=section.step_size)
    sample_key = jax.random.split(key, 4)[2]
    energy = task.facts["energy"]
    return {
        "negatives": run_chains(
            sampler, energy, params, sample_key, batch, section.num_steps
        )
    }


def denoising(task: Task, params, player: str, key, batch):
    """Returns a noise for each example."""
    keys = jax.random.split(key, len(batch))
    draw = functools.partial(jax.random.normal, shape=batch.shape[1:])
    return {"noise": jax.vmap(draw)(keys)}


def noise_contrastive(task: Task, params, player: str, key, batch):
    """Returns normal numbers for all noise examples of each example."""

    def one(key):
        keys = jax.random.split(key, task.config.objective.num_noise)
        draw = functools.partial(jax.random.normal, shape=batch.shape[1:])
        return jax.vmap(draw)(keys)

    return {"noise": jax.vmap(one)(jax.random.split(key, len(batch)))}


def sampling(task: Task, params, player: str, key, batch):
    """Returns the starts, of unit scale, and two noises for each step of the chains."""
    start_key, chain_key = jax.random.split(key)
    keys = chain_keys(chain_key, len(batch))

    def noise(index, place):
        def one(key):
            key = jax.random.fold_in(jax.random.fold_in(key, index), place)
            return jax.random.normal(key, batch.shape[1:])

        return jax.vmap(one)(keys)

    steps = range(task.config.evaluation.sampler.num_steps)
    return {
        "start": jax.random.normal(start_key, batch.shape),
        "noise": [(noise(index, 1), noise(index, 0)) for index in steps],
    }


def nothing(task: Task, params, player: str, key, batch):
    return {}


DRAWS = {
    "short_run": short_run,
    "score_based": score_based,
    "max_entropy": max_entropy,
    "generalized": generalized,
    "contrastive_divergence": contrastive,
    "denoising_score_matching": denoising,
    "noise_contrastive": noise_contrastive,
    "sampling": sampling,
    "score_matching": nothing,
    "likelihood": nothing,
}
"""Kind of a task -> `draws(task, params, player, key, batch)`, by name."""
