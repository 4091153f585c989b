r"""Maximum entropy generators in the plane, where coverage and density are known.

Paper: Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
energy-based models", https://arxiv.org/abs/1901.08508.
Claim checked: with a bound on its entropy the generator covers all modes, and the
energy with it has the density of the data; without either part it does not.

    python -m experiments.max_entropy --workdir=runs/toy
    python -m experiments.max_entropy.plane --workdir=runs/swiss_roll \
        --config=swiss_roll
    python -m experiments.max_entropy.plane --workdir=runs/ablation --sweep

Presets: `toy` (25 Gaussians), `eight_gaussians` and `swiss_roll`, minutes on a CPU
each. After a comma stands the method: `max_entropy`, the default, `wgan_gp` or `gan`.
The sweep is the ablation: the method with both of its parts, with one, and with none.
"""

import functools
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import targets
from experiments.data import target_batches
from experiments.judge import plots
from experiments.judge.plane import (
    at_points,
    kl_divergence,
    make_plane,
    total_variation,
)
from experiments.max_entropy.model import (
    bind_networks,
    draw_and_move,
    load_networks,
    make_networks,
)
from experiments.max_entropy.players import (
    ablate,
    evaluation_chains,
    make_config,
    make_experiment,
    objective_section,
    players_section,
    training_chains,
)
from experiments.run import cli
from experiments.run.config import (
    adam_section,
    check_counts,
    construct,
    train_section,
)
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params
from experiments.run.sweep import Sweep

TARGETS = {
    "twenty_five_gaussians": targets.twenty_five_gaussians,
    "eight_gaussians": targets.eight_gaussians,
    "swiss_roll": targets.swiss_roll,
}

CHOICES = {"data": TARGETS}


def make_toy() -> dict:
    """Returns the problem's default: narrower networks than the paper's, which train
    at a higher rate instead of its 100,000 updates, for minutes."""
    config = {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": {
            "name": "twenty_five_gaussians",  # or another of TARGETS, with its options
            "spacing": 1 / math.sqrt(2.0),  # x, of neighbouring means
            "std": 0.05 / math.sqrt(8.0),  # x, of each Gaussian
            "batch_size": 256,  # of all devices
        },
        "networks": {
            "name": "mlp",  # dense layers, of every network
            "generator_widths": (128, 128, 128),  # hidden layers; paper: 512
            "energy_widths": (128, 128, 128),  # and those of the statistics; paper: 512
            "negative_slope": 0.2,  # of the leaky ReLUs
        },
        "latent_dim": 2,  # paper: the length of z
        # Steeper slopes than with the paper's 0.1 and 0.5, which leave the plane's
        # draws between the modes.
        "objective": objective_section(score_penalty=0.01, information_weight=0.25),
        "players": players_section(),
        **training_chains(),
        "optimizer": adam_section(1e-3, b1=0.5, b2=0.9),
        "ema_decay": 0.999,  # of the parameters that are evaluated; 0 for none
        "train": train_section(20_000),  # updates of the generator
        "evaluation": {
            "num_samples": 10_000,  # draws of the generator, and of the target
            "num_chains": 2_000,  # of every kind
            "bound": 2.0,  # densities are on [-bound, bound]^2
            "num_bins": 125,  # a side, each with 4 x 4 points
            **evaluation_chains(),
        },
    }
    config["optimizer"]["learning_rate"] |= {"final": 1e-5, "decay_steps": 20_000}
    return config


def make_eight_gaussians() -> dict:
    config = make_toy()
    config["data"] = {
        "name": "eight_gaussians",
        "radius": math.sqrt(2.0),  # x, of the circle of the means
        "std": 0.02 / math.sqrt(2.0),  # x, of each Gaussian
        "batch_size": 256,  # of all devices
    }
    return config


def make_swiss_roll() -> dict:
    config = make_toy()
    config["data"] = {
        "name": "swiss_roll",
        "noise_scale": 0.25 / 7.5,  # x, of the noise around the spiral
        "scale": 1 / 7.5,  # x, distance from the origin for each radian
        "batch_size": 256,  # of all devices
    }
    return config


PRESETS = {
    "toy": make_toy,
    "eight_gaussians": make_eight_gaussians,
    "swiss_roll": make_swiss_roll,
}


def get_config(preset: str = "toy") -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,method"`."""
    return make_config(PRESETS, preset)


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment of a config."""
    section = {k: v for k, v in config.data.items() if k != "batch_size"}
    target = construct("data", section, TARGETS)
    nets = make_networks(config, (2,))
    return make_experiment(
        config,
        keys,
        nets,
        batches=functools.partial(target_batches, keys.data, target),
        evaluate=make_evaluation(config, target, nets),
        facts={},
    )


def measure_coverage(x: np.ndarray, modes: np.ndarray, std: float) -> dict[str, float]:
    """Returns the number of modes that were found, and the share of good draws.

    Good draws are those within three standard deviations of a mode. A mode counts as
    found if it has at least a tenth of its due number of good draws.

    Args:
      x: Draws, `[n, 2]`.
      modes: Centres of equal Gaussians, `[m, 2]`.
      std: Standard deviation of each Gaussian.
    """
    distances = np.linalg.norm(x[:, None] - modes[None], axis=-1)
    is_good = distances.min(1) < 3 * std
    counts = np.bincount(distances.argmin(1)[is_good], minlength=len(modes))
    return {
        "num_modes": float((counts >= len(x) / (10 * len(modes))).sum()),
        "good_share": float(is_good.mean()),
    }


def make_evaluation(config, target: targets.Target, nets):
    """Returns `evaluate(state, key, directory) -> scalars`."""
    options = config.evaluation
    plots.check()
    check_counts("evaluation", options, num_samples=1, num_chains=1)
    check_counts("evaluation.sampler", options.sampler, num_steps=0)
    grid = make_plane(options.bound, options.num_bins)
    truth = grid.probabilities(target.energy_fn)

    def evaluate(state, key, directory):
        energy_fn, generator_fn = bind_networks(
            nets, evaluated_params(state), state.model_state
        )
        num = options.num_samples
        x, sampled = draw_and_move(
            config,
            energy_fn,
            generator_fn,
            key,
            num,
            directory / "samples.npz",
            num_saved=num,
        )
        # The first two keys are those of `draw_and_move`.
        _, _, data_key = jax.random.split(key, 3)
        data = np.asarray(target.sample(data_key, num))
        density = grid.probabilities(energy_fn)
        slope = jax.jit(jax.vmap(jax.grad(energy_fn)))
        energies = jax.jit(jax.vmap(energy_fn))
        scalars = dict(sampled.scalars)
        for name, points in (("data", data), ("model", x)):
            scalars[f"energy_{name}"] = float(energies(points).mean())
            norms = np.linalg.norm(slope(points), axis=1)
            scalars[f"score_norm_{name}_max"] = float(norms.max())
        scalars["energy_difference"] = scalars["energy_data"] - scalars["energy_model"]
        histogram, data_histogram = grid.histogram(x), grid.histogram(data)
        scalars |= {
            "total_variation": total_variation(histogram, data_histogram),
            # Off zero by one part in 1e12 of the grid, as a cold one underflows.
            "density_kl": kl_divergence(
                truth, (density + 1e-12) / (1 + 1e-12 * density.size)
            ),
        }
        if target.modes is not None:
            std = config.data.std
            scalars |= measure_coverage(x, target.modes, std)
            for name, points in sampled.x.items():
                found = measure_coverage(points, target.modes, std)
                scalars |= {f"{name}_chains_{k}": v for k, v in found.items()}
            distances = np.linalg.norm(
                np.asarray(grid.points)[:, None] - target.modes[None], axis=-1
            )
            is_near = distances.min(1) < 3 * std
            scalars["density_mass_near_modes"] = float(density[is_near].sum())
        panels = {
            "data": data_histogram,
            "generator": histogram,
            "exp(-E) / Z": grid.binned(density),
        }
        energy = np.asarray(at_points(energy_fn, grid.points), np.float64)
        # The landscape: what is high is dark, cut where it is flat and far.
        landscape = -energy.reshape([4 * options.num_bins] * 2)
        others = {"-E": landscape.clip(np.quantile(landscape, 0.05))}
        bounds = (-options.bound, options.bound)
        plots.densities(directory / "plane.png", panels, bounds=bounds, others=others)
        return scalars

    return evaluate


COLUMNS = (
    "num_modes",  # this and the next two of targets that have modes
    "good_share",
    "density_mass_near_modes",
    "total_variation",
    "density_kl",
    "energy_difference",
    "score_norm_data_max",
    "score_norm_model_max",
)


def sweep(preset: str) -> Sweep:
    """Returns the plan of the ablation, with three seeds."""
    return Sweep(ablate(preset), COLUMNS, num_seeds=3)


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model: `exp(-energy_fn(x))` is its density up to a constant,
    and `sample` makes draws of its generator."""
    return load_networks(config, (2,), params, model_state)


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
