r"""Short-run MCMC in the plane: the law of its chain, and the density of its energy.

Paper: Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent non-persistent short-run
MCMC toward energy-based model", https://arxiv.org/abs/1904.09770.
Claim checked: after non-convergent training (chains of K moves from noise) the law of
the chain matches the data, and `exp(-E)` does not; after convergent training
(persistent chains at the temperature of the density) both do.

    python -m experiments.short_run.plane --workdir=runs/nonconvergent
    python -m experiments.short_run.plane --workdir=runs/convergent \
        --config=toy_convergent
    python -m experiments.short_run.plane --workdir=runs/both --sweep

Presets: `toy_nonconvergent` and `toy_convergent`, each of which takes minutes on a CPU.
The sweep trains both.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from ebmjax import targets
from ebmjax.types import Array, Key, Params
from experiments.data import target_batches
from experiments.judge import plots
from experiments.judge.plane import kl_divergence, make_plane, total_variation
from experiments.run import cli
from experiments.run.config import (
    adam_section,
    check_counts,
    check_name,
    construct,
    train_section,
)
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params
from experiments.run.sweep import Cell, Sweep
from experiments.run.workdir import save_arrays
from experiments.short_run.model import (
    SAMPLERS,
    STARTS,
    Model,
    bind_model,
    make_model,
    make_players,
    run_chains,
)

TARGETS = {
    "eight_gaussians": targets.eight_gaussians,
    "twenty_five_gaussians": targets.twenty_five_gaussians,
    "rings": targets.rings,
    "swiss_roll": targets.swiss_roll,
    "two_moons": targets.two_moons,
    "checkerboard": targets.checkerboard,
}

CHOICES = {"data": TARGETS, "sampler": SAMPLERS, "start": STARTS}


def toy_nonconvergent() -> dict[str, Any]:
    optimizer = adam_section(1e-3, b1=0.9, b2=0.999)  # paper: eta
    optimizer["learning_rate"] |= {"final": 1e-4, "decay_steps": 5_000}
    return {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": {
            "name": "eight_gaussians",  # another of TARGETS has options of its own
            "radius": 1.0,  # x, of the circle of the eight means
            "std": 0.15,  # x, of each Gaussian
            "batch_size": 256,  # of all devices; also the number of chains
        },
        "network": {
            "name": "mlp",  # dense layers
            "widths": (64, 64, 64),  # of the hidden layers
            "activation": "leaky_relu",  # or "swish", "softplus"
            "negative_slope": 0.05,  # of the leaky ReLUs
        },
        "sampler": {
            "name": "langevin",  # or "mala"
            "step_size": 1.0,  # x^2 / energy
            "temperature": 5e-5,  # energy; 1 for the density itself
        },
        "start": {
            "name": "noise",  # or "data", "replay"
            "law": "normal",  # or "uniform"
            "scale": 1.0,  # x; standard deviation of the law, or half its width
        },
        "objective": {
            "num_steps": 100,  # moves in training; paper: K
            "energy_penalty": 0.0,  # weight of the mean squared energies
            "last_step_gradient": False,  # whether the last move is differentiated
            "entropy_weight": 0.0,  # weight of the chains' entropy
        },
        "data_noise": {
            "start": 0.0,  # x, standard deviation before the decay; paper: sigma
            "final": 0.0,  # x, standard deviation after the decay
            "decay": "linear",  # or "cosine", "exponential"
            "decay_start": 0,  # updates
            "decay_steps": 0,  # updates; 0 for no decay
        },
        "optimizer": optimizer,
        "ema_decay": 0.99,  # of the parameters that are evaluated; 0 for no average
        "train": train_section(5_000, abort_above=1e5),
        "evaluation": {
            "num_samples": 20_000,  # short chains
            "num_steps": 100,  # moves of the short chains, from noise
            "num_long_run": 2_000,  # long chains
            "long_run_steps": 10_000,  # moves of the long chains, from noise
            "bound": 2.0,  # densities are compared on [-bound, bound]^2
            "num_bins": 40,  # bins a side
        },
    }


def toy_convergent() -> dict[str, Any]:
    config = toy_nonconvergent()
    # The step and the temperature of the density itself; chains that persist, except
    # for a few that start anew. What the samples match, exp(-E) must match too.
    # The paper's step e = 0.125 is the square root of twice this one.
    config["sampler"] |= {"step_size": 0.0078125, "temperature": 1.0}
    config["start"] |= {
        "name": "replay",
        "capacity": 8_192,  # chains in the memory, on all devices together
        "reinit_prob": 0.01,  # probability that a chain starts anew
    }
    config["objective"]["num_steps"] = 40
    config["optimizer"]["learning_rate"] |= {
        "start": 3e-3,
        "final": 1e-5,
        "decay_steps": 10_000,
    }
    config["ema_decay"] = 0.999
    config["train"]["num_steps"] = 10_000
    config["evaluation"]["num_steps"] = 1_000
    return config


PRESETS = {"toy_nonconvergent": toy_nonconvergent, "toy_convergent": toy_convergent}


def get_config(preset: str = "toy_nonconvergent") -> ConfigDict:
    """Returns the locked config of a preset."""
    check_name("preset", preset, PRESETS)
    return ConfigDict(PRESETS[preset]()).lock()


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment of a config."""
    section = {k: v for k, v in config.data.items() if k != "batch_size"}
    target = construct("data", section, TARGETS)
    model = make_model(config, (2,))
    params, _ = model.network.init(keys.params)  # no network here has a mutable state
    return Experiment(
        players=make_players(config, model),
        params={"energy": params},
        batch=target_batches(keys.data, target, config.data.batch_size),
        evaluate=make_evaluation(config, target, model),
    )


def draw_samples(model: Model, params: Params, key: Key, num: int, num_steps: int):
    """Runs short chains from noise. `key` is that of a whole evaluation, which makes
    its other draws from other streams of it."""
    _, start_key, chain_key, _ = jax.random.split(key, 4)
    start_key = jax.random.fold_in(start_key, num_steps)
    return run_chains(model, params, start_key, chain_key, num, num_steps)[0].position


def make_evaluation(
    config: ConfigDict, target: targets.Target, model: Model
) -> Callable[..., dict[str, float]]:
    """Returns `evaluate(state, key, directory) -> scalars`, which compares the data
    with short chains, long chains and the density `exp(-E / temperature) / Z`."""
    section, temperature = config.evaluation, config.sampler.temperature
    plots.check()
    names = ("num_samples", "num_steps", "num_long_run", "long_run_steps")
    check_counts("evaluation", section, **dict.fromkeys(names, 1))
    grid = make_plane(section.bound, section.num_bins)
    truth = grid.probabilities(target.energy_fn)

    def evaluate(state, key, directory):
        data_key, start_key, _, long_key = jax.random.split(key, 4)
        params = evaluated_params(state)["energy"]
        energy_fn = functools.partial(model.network.apply, params)
        samples = draw_samples(
            model, params, key, section.num_samples, section.num_steps
        )
        save_arrays(
            directory / "samples.npz", samples=samples, key=jax.random.key_data(key)
        )
        far, _ = run_chains(
            model,
            params,
            jax.random.fold_in(start_key, section.long_run_steps),
            long_key,
            section.num_long_run,
            section.long_run_steps,
        )
        density = grid.probabilities(lambda x: energy_fn(x) / temperature)
        draws = grid.histogram(target.sample(data_key, section.num_samples))
        fewer = grid.histogram(target.sample(data_key, section.num_long_run))
        data, learned = grid.binned(truth), grid.binned(density)
        short, long = grid.histogram(samples), grid.histogram(far.position)
        panels = {
            "data": data,
            f"{section.num_steps} moves": short,
            "exp(-E / T) / Z": learned,
            f"{section.long_run_steps} moves, long run": long,
        }
        plots.densities(
            directory / "densities.png", panels, bounds=(-section.bound, section.bound)
        )
        return {
            "samples_total_variation": total_variation(short, data),
            "density_total_variation": total_variation(learned, data),
            "long_run_total_variation": total_variation(long, data),
            # As many exact draws, for comparison.
            "data_total_variation": total_variation(draws, data),
            "long_run_data_total_variation": total_variation(fewer, data),
            # Nats, KL(data || density). The density is kept off zero by one part in
            # 1e12 of the grid: a cold one underflows, and infinity would stop the run.
            "density_kl": kl_divergence(
                truth, (density + 1e-12) / (1 + 1e-12 * density.size)
            ),
        }

    return evaluate


def sweep(preset: str) -> Sweep:
    """Returns the plan that trains both presets."""
    return Sweep(
        cells={name: Cell(name) for name in PRESETS},
        columns=(
            "samples_total_variation",
            "density_total_variation",
            "long_run_total_variation",
            "density_kl",
        ),
    )


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model.

    Its density is `exp(-energy_fn(x) / config.sampler.temperature)` up to a constant.
    `sample(key, num)` runs `config.evaluation.num_steps` moves from noise.
    """
    model = make_model(config, (2,))

    def sample(key: Key, num: int) -> Array:
        num_steps = config.evaluation.num_steps
        return draw_samples(model, params["energy"], key, num, num_steps)

    return bind_model(config, model, params, model_state, sample)


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
