"""Networks, draws and chains of every problem.

Paper: Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
energy-based models", https://arxiv.org/abs/1901.08508.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import networks
from ebmjax.types import Array, EnergyFn, Key, Network
from experiments.judge import generators, plots
from experiments.run.config import construct
from experiments.run.experiment import Trained
from experiments.run.workdir import save_arrays


class Networks(NamedTuple):
    """The three networks, without parameters.

    Attributes:
      generator: `apply(params, latent) -> x`, perhaps with batch statistics.
      energy: `apply(params, x) -> []`.
      statistics: `apply(params, x, latent) -> []`.
    """

    generator: Network
    energy: Network
    statistics: Network


def make_mlps(
    event_shape,
    latent_dim,
    *,
    generator_widths: Sequence[int],
    energy_widths: Sequence[int],
    negative_slope: float = 0.2,
) -> Networks:
    options = {"widths": energy_widths, "negative_slope": negative_slope}
    return Networks(
        networks.mlp(
            (latent_dim,), event_shape, widths=generator_widths, activation="relu"
        ),
        networks.mlp_energy(event_shape, **options),
        networks.mlp_statistics(event_shape, latent_dim=latent_dim, **options),
    )


def make_strided(
    event_shape,
    latent_dim,
    *,
    widths: Sequence[int],
    hidden_width: int,
    is_synchronized: bool = True,
    compute_dtype: str = "float32",
) -> Networks:
    options = {"widths": widths, "compute_dtype": compute_dtype}
    return Networks(
        networks.strided_generator(
            event_shape,
            latent_dim=latent_dim,
            is_synchronized=is_synchronized,
            **options,
        ),
        networks.strided_energy(event_shape, **options),
        networks.strided_statistics(
            event_shape, latent_dim=latent_dim, hidden_width=hidden_width, **options
        ),
    )


def make_convnets(
    event_shape,
    latent_dim,
    *,
    widths: Sequence[int],
    hidden_width: int,
    is_normal: bool,
    is_synchronized: bool = True,
    compute_dtype: str = "float32",
) -> Networks:
    options = {
        "widths": widths,
        "is_normal": is_normal,
        "compute_dtype": compute_dtype,
    }
    return Networks(
        networks.convnet_generator(
            event_shape,
            latent_dim=latent_dim,
            is_synchronized=is_synchronized,
            **options,
        ),
        networks.convnet_energy(event_shape, **options),
        networks.convnet_statistics(
            event_shape, latent_dim=latent_dim, hidden_width=hidden_width, **options
        ),
    )


FAMILIES = {"mlp": make_mlps, "strided": make_strided, "convnet": make_convnets}


def make_networks(config, event_shape: tuple[int, ...]) -> Networks:
    """Returns the networks of the config's section `networks`."""
    return construct(
        "networks", config.networks, FAMILIES, event_shape, config.latent_dim
    )


def bind_networks(
    nets: Networks, params, model_state
) -> tuple[EnergyFn, Callable[[Array], Array]]:
    """Returns `energy_fn` of an example and `generator_fn` of a latent."""
    return (
        functools.partial(nets.energy.apply, params["energy"]),
        generators.bind(
            nets.generator, params["generator"], model_state.get("generator_state")
        ),
    )


def draw_samples(
    config, generator_fn, key: Key, num: int, chunk_size: int | None = None
) -> np.ndarray:
    """Returns draws of the generator, `[num, *event]`.

    Args:
      config: Its `latent_dim` is read.
      generator_fn: The generator of one latent.
      key: Key of the draws.
      num: Number of draws.
      chunk_size: Number of draws that are made at a time; None for all at once. The
        first draws depend on it, and not on `num` unless it is None.
    """
    return generators.draw(
        generator_fn,
        key,
        num,
        latent_dim=config.latent_dim,
        chunk_size=chunk_size or num,
    )


def draw_and_move(
    config,
    energy_fn: EnergyFn,
    generator_fn: Callable[[Array], Array],
    key: Key,
    num: int,
    path: pathlib.Path,
    *,
    num_saved: int,
    chunk_size: int | None = None,
) -> tuple[np.ndarray, generators.Sampled]:
    """Returns draws of the generator, and chains in the latent and the visible space.

    Args:
      config: Its `latent_dim`, `evaluation.sampler` and `evaluation.num_chains` are
        read.
      energy_fn: The energy of one example.
      generator_fn: The generator of one latent.
      key: Key of draws and chains.
      num: Number of draws.
      path: File for the first `num_saved` draws and their key.
      num_saved: Number of draws in the file.
      chunk_size: As for `draw_samples`.
    """
    draw_key, chain_key = jax.random.split(key)
    x = draw_samples(config, generator_fn, draw_key, num, chunk_size)
    save_arrays(path, samples=x[:num_saved], key=jax.random.key_data(draw_key))
    return x, generators.sample(
        config.evaluation.sampler,
        energy_fn,
        generator_fn,
        chain_key,
        config.evaluation.num_chains,
        latent_dim=config.latent_dim,
    )


def load_networks(
    config: ConfigDict, event_shape: Sequence[int], params, model_state
) -> Trained:
    """Returns a trained model, whose `sample` makes draws of the generator.

    They are made `config.evaluation.chunk_size` at a time, if there is such an option.
    """
    nets = make_networks(config, tuple(event_shape))
    chunk_size = config.evaluation.get("chunk_size")
    energy_fn, generator_fn = bind_networks(nets, params, model_state)
    return Trained(
        config,
        params,
        model_state,
        {name: network for name, network in nets._asdict().items() if name in params},
        energy_fn=energy_fn,
        score_fn=lambda x: -jax.grad(energy_fn)(x),
        sample=lambda key, num: draw_samples(
            config, generator_fn, key, num, chunk_size
        ),
    )


def plot_images(
    directory: pathlib.Path, x: np.ndarray, chained: dict[str, np.ndarray], num: int
) -> None:
    """Draws `num` images in a square, and the ends of some chains of every kind."""
    plots.image_grid(
        directory / "samples.png", x[:num], columns=math.ceil(num**0.5), title="draws"
    )
    plots.image_panels(
        directory / "chains.png",
        {name.replace("_", " "): images[:32] for name, images in chained.items()},
        columns=16,
    )
