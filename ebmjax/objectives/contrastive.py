"""Maximum likelihood by sampling: short-run, CD-k and persistent learning in one."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ebmjax.objectives.base import Aux, Objective, as_function
from ebmjax.samplers import Sampler, sample_chains
from ebmjax.starts import Start
from ebmjax.types import Array, Energy, Network

__all__ = ["ContrastiveCarry", "contrastive_divergence"]


class ContrastiveCarry(NamedTuple):
    memory: Any  # the start's: a replay buffer [capacity, *event], or ()
    count: Array  # [], int32: updates of this objective so far


def _nearest_distance(x: Array) -> Array:
    """Distance of each row `[n, *event]` to its nearest other row, `[n]`.

    Rows to measure from are held fixed: the gradient moves a sample, not its
    neighbours.
    """
    rows = x.reshape(x.shape[0], -1)
    others = jax.lax.stop_gradient(rows)

    def one(row, index):
        squares = jnp.sum((row[None] - others) ** 2, axis=1)
        nearest = jnp.min(jnp.where(jnp.arange(len(others)) == index, jnp.inf, squares))
        # Samples that coincide are this far apart: log and its gradient stay finite.
        return jnp.sqrt(jnp.maximum(nearest, jnp.finfo(rows.dtype).tiny))

    return jax.vmap(one)(rows, jnp.arange(len(rows)))


def contrastive_divergence(
    energy: Energy | Network,
    *,
    sampler: Sampler,
    num_steps: int,
    start: Start,
    data_noise_scale: float | Callable[[Array], Array] = 0.0,
    energy_penalty: float = 0.0,
    last_step_gradient: bool = False,
    entropy_weight: float = 0.0,
) -> Objective:
    """Energy of data minus energy of samples, the gradient of the log likelihood.

    The loss is `mean E(batch + data_noise) - mean E(negatives)`. Negatives are the ends
    of chains of `num_steps` moves and are held fixed: the gradient does not run through
    the chain. Where the chains begin makes the method: `starts.noise` is short-run
    learning (its model is the law of the chain's end, not `exp(-E)`), `starts.data` is
    CD-k, `starts.replay` persistent contrastive divergence. The loss's value tells
    nothing about progress: it hovers about 0 while all goes well.

    Args:
      energy: `energy(params, x)` on one example, or a `Network`; its parameters are
        `params["energy"]`.
      sampler: Moves the chains.
      num_steps: Moves of a chain; at least 1. The short-run paper's K.
      start: Where chains begin.
      data_noise_scale: Standard deviation of normal noise added to every batch, in
        units of x: a number, or a schedule `count -> number` of this objective's own
        updates. Data starts see the noisy batch. The model then learns the data
        convolved with that noise.
      energy_penalty: Adds this times `mean E(data)^2 + mean E(negatives)^2`, which pins
        the energy's level. It biases the model.
      last_step_gradient: "Improved contrastive divergence": adds the mean energy, with
        parameters held fixed, of the negatives as functions of the parameters through
        the last move alone.
      entropy_weight: Subtracts this times the mean log distance of a sample, a function
        of the parameters through the last move, to its nearest neighbour among the
        other samples of the batch. Pushes samples apart. (Du et al. measure to 100
        samples of the buffer.)

    Returns:
      An `Objective` with a `ContrastiveCarry`. Metrics: `energy_data`, `energy_model`,
      `energy_difference` (the first minus the second), `chain_<field>` for the
      sampler's info averaged over moves and chains (`chain_gradient_norm`, times
      `num_steps`, settles near the distance from start to data in short-run learning),
      `negatives_abs_max` (a mean over devices of each device's largest element).

    Raises:
      ValueError: If `num_steps` is below 1 or a weight is negative; at trace, if
        `entropy_weight` is used with a batch of one.

    Source:
      Nijkamp et al. (2019), "Learning non-convergent non-persistent short-run MCMC
      toward energy-based model", algorithm 1; Du et al. (2021), "Improved contrastive
      divergence training of energy-based models", for the last two options.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    for name, weight in (
        ("energy_penalty", energy_penalty),
        ("entropy_weight", entropy_weight),
    ):
        if not weight >= 0:
            raise ValueError(f"{name} must not be negative, got {weight}")
    if callable(data_noise_scale):
        noise_schedule = data_noise_scale
    elif data_noise_scale >= 0:
        noise_schedule = None
    else:
        raise ValueError(
            f"data_noise_scale must not be negative, got {data_noise_scale}"
        )
    energy = as_function(energy)
    is_last_attached = bool(last_step_gradient) or entropy_weight > 0

    def init(key):
        return ContrastiveCarry(start.init(key), jnp.zeros((), jnp.int32))

    def add_noise(key, batch, count):
        if noise_schedule is None and data_noise_scale == 0:
            return batch
        scale = data_noise_scale if noise_schedule is None else noise_schedule(count)
        return batch + scale * jax.random.normal(key, batch.shape, batch.dtype)

    def last_move(params, key, x):
        """One move from fixed positions, its end a function of the parameters."""
        energy_fn = partial(energy, params)

        def move(key, x):
            return sampler.step(energy_fn, key, sampler.init(energy_fn, x))

        state, info = jax.vmap(move)(jax.random.split(key, x.shape[0]), x)
        return state.position, info

    def loss(params, key, batch, carry):
        noise_key, start_key, sample_key, last_key = jax.random.split(key, 4)
        memory, count = carry
        batch = add_noise(noise_key, batch, count)
        x, slots = start.draw(start_key, memory, batch)
        chex.assert_equal_shape([x, batch])  # a start's noise may be of another shape
        if entropy_weight > 0 and x.shape[0] < 2:
            raise ValueError(
                "entropy_weight needs a batch of at least 2 examples, got 1"
            )

        trained = params["energy"]
        frozen = partial(energy, jax.lax.stop_gradient(trained))
        num_free = num_steps - is_last_attached
        state, info = sample_chains(
            sampler, frozen, sample_key, x, num_free, collect=None
        )
        ends = jax.lax.stop_gradient(state.position)
        if is_last_attached:
            ends, last = last_move(trained, last_key, ends)
            info = jax.tree.map(
                lambda mean, new: mean + (new - mean) / num_steps, info, last
            )
        negatives = jax.lax.stop_gradient(ends)

        energies = jax.vmap(partial(energy, trained))
        energy_data, energy_model = energies(batch), energies(negatives)
        value = energy_data.mean() - energy_model.mean()
        if energy_penalty > 0:
            squares = (energy_data**2).mean() + (energy_model**2).mean()
            value += energy_penalty * squares
        if last_step_gradient:
            value += jax.vmap(frozen)(ends).mean()
        if entropy_weight > 0:
            value -= entropy_weight * jnp.log(_nearest_distance(ends)).mean()

        metrics = {
            "energy_data": energy_data.mean(),
            "energy_model": energy_model.mean(),
            "energy_difference": energy_data.mean() - energy_model.mean(),
            "negatives_abs_max": jnp.abs(negatives).max(),
        } | {f"chain_{name}": mean.mean() for name, mean in info._asdict().items()}
        metrics = jax.lax.stop_gradient(metrics)
        carry = ContrastiveCarry(start.write(memory, slots, negatives), count + 1)
        return value, Aux(carry, metrics)

    return Objective(init, loss)
