"""Score-based models in the plane: two far modes of unequal weights, whose weights
annealed Langevin dynamics finds, and plain Langevin dynamics does not.

Paper: Song & Ermon (2019), "Generative modeling by estimating gradients of the data
distribution", https://arxiv.org/abs/1907.05600, section 3.2.2 and figure 3.
Claim checked: chains that pass through noise scales find the weights 0.2 and 0.8, while
as many moves without noise keep the share that they started with. This is so with the
learned scores and with the exact ones.

    python -m experiments.score_based.plane --workdir=runs/modes

Preset: `two_modes`, a minute on one CPU core.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import diffusions, energies, objectives, samplers, targets
from ebmjax.checks import check_count
from ebmjax.types import Array, ConditionalScore, Key, Network, Params
from experiments.data import target_batches
from experiments.judge import plots
from experiments.judge.plane import make_plane
from experiments.run import cli
from experiments.run.config import adam_section, check_name, train_section
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params
from experiments.run.workdir import save_arrays
from experiments.score_based.model import (
    bind_model,
    find_step_size,
    make_family,
    make_ladder,
    make_network,
    make_players,
    model_argument,
    needs_distance,
)

MODES, WEIGHTS = ((-5.0, -5.0), (5.0, 5.0)), (0.2, 0.8)  # paper: with deviations of 1


def two_modes() -> dict[str, Any]:
    optimizer = adam_section(1e-3, b1=0.9, b2=0.999) | {"gradient_clip": 1.0}
    optimizer["learning_rate"] |= {
        "final": 1e-5,
        "warmup_steps": 100,
        "decay_steps": 5_000,
    }
    return {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": {"batch_size": 256},  # of all devices
        "network": {
            "name": "mlp",  # dense layers
            "widths": (128, 128, 128),  # of the hidden layers
            "activation": "softplus",  # or "swish", "elu"
            "conditioning": "embedding",  # or "division", NCSNv2's Technique 3
            "is_energy": False,  # whether the score is minus an energy's gradient
        },
        "process": {
            "largest": 20.0,  # x; 0 for the largest distance between examples
            "smallest": 0.1,  # x
            "num_scales": 20,  # noise scales; paper: L
        },
        "optimizer": optimizer,
        "ema_decay": 0.999,  # of the parameters that are evaluated; 0 for no average
        "train": train_section(5_000),
        "evaluation": {
            "sampler": {
                "num_steps_per_level": 100,  # moves; paper: T
                "relative_step_size": 0.05,  # of a scale's square; 0 for Technique 4
            },
            "num_samples": 8_000,  # chains
            "bound": 10.0,  # densities are shown on [-bound, bound]^2
            "num_bins": 60,  # bins a side
        },
    }


PRESETS = {"two_modes": two_modes}


def get_config(preset: str = "two_modes") -> ConfigDict:
    """Returns the locked config of a preset."""
    check_name("preset", preset, PRESETS)
    return ConfigDict(PRESETS[preset]()).lock()


class Model(NamedTuple):
    """A score-based model in the plane, without its parameters.

    Attributes:
      network: Network of scores, or of an energy.
      name: Name of its parameters, "score" or "energy".
      score: `score(params, x, noise_scale) -> [2]`.
      ladder: Noise scales `[scales]`, the largest first.
      make_sampler: `make_sampler(noise_scale)`, Langevin dynamics.
    """

    network: Network
    name: str
    score: ConditionalScore
    ladder: np.ndarray
    make_sampler: Callable[[Any], samplers.Sampler]


def make_model(config: ConfigDict, largest_distance: float = 0.0) -> Model:
    """Returns the model of a config, see `model.make_model`."""
    network, name, score = make_network(config.network, (2,))
    ladder = make_ladder(config.process, 2, largest_distance)
    relative = find_step_size(config.evaluation.sampler, ladder)

    def make_sampler(noise_scale):
        # The step suits the noised data, which are wider than the noise alone.
        return samplers.langevin(step_size=relative * (1 + noise_scale**2))

    return Model(network, name, score, ladder, make_sampler)


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment of a config."""
    target = targets.gaussian_mixture(means=MODES, std=1.0, weights=WEIGHTS)
    facts = {}
    if needs_distance(config.process):
        examples = target.sample(keys.evaluation, 1_000)
        facts["largest_distance"] = diffusions.largest_distance(examples)
    model = make_model(config, **facts)
    params, _ = model.network.init(keys.params)
    objective = objectives.multi_scale_denoising_score_matching(
        **model_argument(model.name, model.network), noise_scales=model.ladder
    )
    return Experiment(
        players=make_players(config, objective, model.name),
        params={model.name: params},
        batch=target_batches(keys.data, target, config.data.batch_size),
        evaluate=make_evaluation(config, target, model),
        facts=facts,
    )


def exact_score(params: Params, x: Array, noise_scale: Array) -> Array:
    """Returns the score of the data with noise of a scale. It has no parameters."""
    del params
    law = {
        "means": jnp.asarray(MODES),
        "precisions": 1 / (1 + noise_scale**2),
        "log_weights": jnp.log(jnp.asarray(WEIGHTS)),
    }
    return energies.score(energies.gaussian_mixture)(law, x)


def make_annealed(model: Model, score: ConditionalScore, num_steps: int):
    """Returns `anneal(params, key, num) -> [num, 2]`, annealed Langevin dynamics with
    `num_steps` moves at each level. `key` is that of a whole evaluation, which makes
    its other draws from other streams of it."""
    family = make_family(score)

    def anneal(params, key, num):
        start_key, chain_key, _ = jax.random.split(key, 3)
        state, _ = samplers.sample_annealed(
            model.make_sampler,
            family(params),
            model.ladder,
            chain_key,
            draw_starts(start_key, num),
            num_steps,
        )
        return state.position

    return anneal


def make_plain(model: Model, score: ConditionalScore, num_steps: int):
    """Returns `walk(params, key, num) -> [num, 2]`: chains with the same starts and as
    many moves, all of them at the smallest noise scale."""
    family, smallest = make_family(score), jnp.float32(model.ladder[-1])
    sampler = model.make_sampler(model.ladder[-1])

    def walk(params, key, num):
        start_key, chain_key, _ = jax.random.split(key, 3)
        state, _ = samplers.sample_chains(
            sampler,
            family(params)(smallest),
            chain_key,
            draw_starts(start_key, num),
            num_steps * len(model.ladder),
            collect=None,
        )
        return state.position

    return walk


def draw_starts(key: Key, num: int) -> Array:
    """Draws where chains start, uniformly on a square about both modes."""
    return jax.random.uniform(key, (num, 2), minval=-8.0, maxval=8.0)


def make_evaluation(config: ConfigDict, target: targets.Target, model: Model):
    """Returns `evaluate(state, key, directory) -> scalars`: the share of the heavier
    mode under annealed and plain chains, with learned and with exact scores."""
    options, num_steps = (
        config.evaluation,
        config.evaluation.sampler.num_steps_per_level,
    )
    plots.check()
    check_count("evaluation.num_samples", options.num_samples, 1)
    grid = make_plane(options.bound, options.num_bins)
    methods = {
        f"{name}{suffix}": make(model, score, num_steps)
        for suffix, score in (("", model.score), ("_exact", exact_score))
        for name, make in (("annealed", make_annealed), ("plain", make_plain))
    }

    def evaluate(state, key, directory):
        learned = evaluated_params(state)[model.name]
        *_, data_key = jax.random.split(key, 3)
        num = options.num_samples
        found = {
            name: method(() if name.endswith("_exact") else learned, key, num)
            for name, method in methods.items()
        }
        save_arrays(
            directory / "samples.npz",
            samples=found["annealed"],
            key=jax.random.key_data(key),
        )
        panels = {
            "data": grid.histogram(target.sample(data_key, num)),
            "annealed Langevin": grid.histogram(found["annealed"]),
            "plain Langevin": grid.histogram(found["plain"]),
        }
        bounds = (-options.bound, options.bound)
        plots.densities(directory / "densities.png", panels, bounds=bounds)
        return {
            f"share_{name}": float((position.sum(1) > 0).mean())
            for name, position in found.items()
        }

    return evaluate


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model.

    `score_fn(x, noise_scale)` is the score of data with noise of that scale, and so is
    `energy_fn(x, noise_scale)`, up to a constant, if the network is an energy.
    `sample(key, num)` is annealed Langevin dynamics by `config.evaluation.sampler`.
    """
    model = make_model(config, **facts)
    own = params[model.name]
    num_steps = config.evaluation.sampler.num_steps_per_level
    anneal = make_annealed(model, model.score, num_steps)
    functions = bind_model(model, own)
    return Trained(
        config, params, model_state, **functions, sample=functools.partial(anneal, own)
    )


if __name__ == "__main__":
    cli.main(build, __file__)
