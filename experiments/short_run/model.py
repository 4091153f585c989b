"""The short-run model: an energy, the noise its chains start from, and their sampler.

Paper: Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent non-persistent short-run
MCMC toward energy-based model", https://arxiv.org/abs/1904.09770.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import networks, objectives, samplers, starts, training
from ebmjax.types import Array, DrawNoise, Key, Network, Params
from experiments.run.config import construct, make_optimizer, schedule
from experiments.run.experiment import Trained

NETWORKS = {
    "short_run": networks.short_run_energy,
    "resnet": networks.resnet_energy,
    "wide_resnet": networks.wide_resnet_energy,
    "mlp": networks.mlp_energy,
}

SAMPLERS = {"langevin": samplers.langevin, "mala": samplers.mala}


class Model(NamedTuple):
    """A short-run model, without its parameters and its number of moves.

    `samplers.chain_generator(model.sampler, energy_fn, num_steps)` is the generator,
    which interpolates between starts, and `samplers.invert_chain` finds the start of an
    image that is known in part.

    Attributes:
      network: Energy network. The density is `exp(-energy / temperature)` up to a
        constant, with the temperature of the config's `sampler`.
      sampler: Sampler of the chains, in training and in evaluation.
      draw_noise: `draw_noise(key, shape)`, the starts of the chains.
      event_shape: Shape of one example.
    """

    network: Network
    sampler: samplers.Sampler
    draw_noise: DrawNoise
    event_shape: tuple[int, ...]


def make_model(config: ConfigDict, event_shape: tuple[int, ...]) -> Model:
    """Returns the model of a config's sections `network`, `sampler` and `start`.

    Raises:
      ValueError: If an option of these sections is not valid.
    """
    return Model(
        network=construct("network", config.network, NETWORKS, event_shape),
        sampler=construct("sampler", config.sampler, SAMPLERS),
        draw_noise=make_noise(config.start.law, config.start.scale),
        event_shape=event_shape,
    )


def make_noise(law: str, scale: float) -> DrawNoise:
    """Returns `draw_noise(key, shape)`.

    Args:
      law: "uniform" on [-scale, scale], or "normal" with standard deviation `scale`.
      scale: Width of the law, in units of x.

    Raises:
      ValueError: If the law is unknown or the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"start.scale must be positive, got {scale}")
    if law == "uniform":
        return functools.partial(jax.random.uniform, minval=-scale, maxval=scale)
    if law == "normal":
        return lambda key, shape: scale * jax.random.normal(key, shape)
    raise ValueError(f"start.law must be 'uniform' or 'normal', got {law!r}")


def make_replay(model: Model, *, capacity: int, reinit_prob: float) -> starts.Start:
    """Returns a start from a memory of `capacity` chains on all devices together."""
    if capacity % jax.device_count():
        raise ValueError(
            f"start.capacity must be a multiple of the {jax.device_count()} devices,"
            f" got {capacity}"
        )
    return starts.replay(
        model.draw_noise,
        event_shape=model.event_shape,
        capacity=capacity // jax.device_count(),
        reinit_prob=reinit_prob,
    )


STARTS = {
    "noise": lambda model: starts.noise(model.draw_noise),
    "data": lambda model: starts.data(),
    "replay": make_replay,
}


def make_players(config: ConfigDict, model: Model) -> dict[str, training.Player]:
    """Returns the one player, which trains the energy by contrastive divergence."""
    start = {k: v for k, v in config.start.items() if k not in ("law", "scale")}
    objective = objectives.contrastive_divergence(
        model.network,
        sampler=model.sampler,
        start=construct("start", start, STARTS, model),
        data_noise_scale=schedule(**config.data_noise),
        **config.objective,
    )
    optimizer = make_optimizer(config.optimizer)
    return {"energy": training.Player(("energy",), objective, optimizer)}


def run_chains(
    model: Model,
    params: Params,
    start_key: Key,
    chain_key: Key,
    num: int,
    num_steps: int,
):
    """Runs `num` chains from noise; returns their last states and their mean infos."""
    energy_fn = functools.partial(model.network.apply, params)
    x = model.draw_noise(start_key, (num, *model.event_shape))
    return samplers.sample_chains(
        model.sampler, energy_fn, chain_key, x, num_steps, collect=None
    )


def draw_chunks(
    model: Model, params: Params, key: Key, num: int, num_steps: int, chunk_size: int
) -> tuple[np.ndarray, float]:
    """Runs at least `num` chains from noise, `chunk_size` of them at a time.

    Returns:
      The positions of whole chunks, `[chunks * chunk_size, *event]`, and the mean norm
      of the energy's gradient after a move. The first positions do not depend on `num`.
    """
    positions, norms = [], []
    for chunk in range(-(-num // chunk_size)):
        start_key, chain_key = jax.random.split(jax.random.fold_in(key, chunk))
        state, info = run_chains(
            model, params, start_key, chain_key, chunk_size, num_steps
        )
        positions.append(np.asarray(state.position))
        norms.append(float(info.gradient_norm.mean()))
    return np.concatenate(positions), float(np.mean(norms))


def bind_model(
    config: ConfigDict,
    model: Model,
    params,
    model_state,
    sample: Callable[[Key, int], Array],
) -> Trained:
    """Returns the trained model, whose energy is bound to its parameters."""
    return Trained(
        config,
        params,
        model_state,
        {"energy": model.network},
        energy_fn=functools.partial(model.network.apply, params["energy"]),
        sample=sample,
    )
