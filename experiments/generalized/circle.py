"""A generalised energy-based model of data on a circle, where all is known.

Paper: Arbel, Zhou & Gretton (2021), "Generalized energy based models",
https://arxiv.org/abs/2003.05033.
Claim checked: KALE is a divergence of the data from the base, the energy that attains
it corrects the base's weights, and chains in the base's latents draw the corrected law.
Base and data are on the unit circle, uniform and by von Mises's law, so that both KALE
and the corrected law are exact. The problem is ours.

    python -m experiments.generalized.circle --workdir=runs/circle

Preset: `circle` (a minute of a CPU core). After a comma stands the estimator: `kale`,
the default, or `donsker_varadhan`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import networks, targets
from ebmjax.checks import check_number
from ebmjax.objectives import generalized
from ebmjax.types import Array, Key, Network
from experiments.data import target_batches
from experiments.generalized.latents import (
    SAMPLER_NAMES,
    check_sampler,
    make_refine,
    sample_model,
    sampler_section,
)
from experiments.generalized.players import (
    check_players,
    energy_floor,
    energy_player,
    make_config,
    make_experiment,
    objective_section,
    players_section,
)
from experiments.judge import plots
from experiments.judge.plane import kl_divergence
from experiments.run import cli
from experiments.run.config import adam_section, check_counts, train_section
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params
from experiments.run.workdir import save_arrays


def make_default() -> dict:
    config = {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": {
            "batch_size": 256,  # of all devices
            "concentration": 2.0,  # of von Mises's law; 0 for a uniform one
        },
        "network": {"widths": (64, 64, 64)},  # hidden layers of the energy
        "objective": objective_section(gradient_penalty=0.0, num_draws=4),
        "players": players_section(
            num_energy_updates=1, num_extra_updates=0, extra_every=0
        ),
        "optimizer": adam_section(1e-3, b1=0.5, b2=0.9),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": train_section(2_000, checkpoint_every=0),
        "evaluation": {
            "num_chains": 4_000,  # of each sampler
            "sampler": sampler_section(
                names=tuple(name for name in SAMPLER_NAMES if name != "transport"),
                chain_lengths=(50, 200),
                step_size=0.1,
                decay_every=0,
            ),
        },
    }
    config["optimizer"]["learning_rate"] |= {"final": 1e-5, "decay_steps": 2_000}
    return config


PRESETS = {"circle": make_default}


def get_config(preset: str = "circle") -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,estimator"`."""
    return make_config(PRESETS, preset)


def circle_point(latent: Array) -> Array:
    """Returns the point, `[2]`, whose angle is the rank of a normal latent, `[1]`."""
    angle = 2 * math.pi * jax.scipy.stats.norm.cdf(latent[0])
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def von_mises(concentration: float) -> targets.Target:
    """Returns the law of density `exp(k cos t)` on the unit circle.

    It is drawn through a table of its ranks.
    """
    angles = np.linspace(-math.pi, math.pi, 20_001)
    density = np.exp(concentration * (np.cos(angles) - 1))
    ranks = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    table = jnp.asarray(ranks / ranks[-1]), jnp.asarray(angles)

    def sample(key, num):
        angle = jnp.interp(jax.random.uniform(key, (num,)), *table)
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)

    return targets.Target(sample, None, None)


def make_network(config) -> Network:
    """Returns the energy's network."""
    return networks.mlp_energy((2,), widths=config.network.widths)


def bind_energy(config, network: Network, params):
    """Returns `energy_fn` of a point in the plane, with its floor."""
    energy_fn = functools.partial(network.apply, params["energy"])
    return generalized.floored(energy_fn, energy_floor(config))


def split_key(key: Key) -> Key:
    """Returns a key of the latents, and one for each sampler."""
    return jax.random.split(key, 1 + len(SAMPLER_NAMES))


def draw_samples(config, refine, key: Key, num: int) -> np.ndarray:
    """Returns draws of the model, `[num, 2]`: see `load`."""
    latent_key, chain_key, *_ = split_key(key)
    latents = jax.random.normal(latent_key, (num, 1))
    return sample_model(config.evaluation.sampler, refine, chain_key, latents)


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment: the energy alone is trained, with a fixed base."""
    from scipy import special

    k, section = config.data.concentration, config.evaluation.sampler
    check_number("data.concentration", k, positive=False)
    check_counts("evaluation", config.evaluation, num_chains=1)
    check_players(config.players)
    check_sampler(section)
    network = make_network(config)
    params, _ = network.init(keys.params)

    def base(params, latent):
        del params
        return circle_point(latent)

    # Bessel functions over exp(k), which alone is too large from k = 700 on.
    mean = special.i1e(k) / special.i0e(k)
    exact = {"kale": k * (mean - 1) - math.log(special.i0e(k)), "mean": mean}
    angles = (np.arange(4_096) + 0.5) * (2 * math.pi / 4_096)
    points = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)
    truth = np.exp(k * (np.cos(angles) - 1))
    truth /= truth.sum()

    def evaluate(state, key, directory):
        found = evaluated_params(state)
        energy_fn = bind_energy(config, network, found)
        energy = np.asarray(jax.vmap(energy_fn)(points), np.float64)
        log_partition = float(special.logsumexp(-energy) - math.log(len(energy)))
        model = np.exp(-energy - log_partition) / len(energy)
        scalars = {
            # By quadrature on the circle: no draws in it.
            "kale": -float(truth @ energy) - log_partition,
            "kale_exact": exact["kale"],
            "kl_of_refined": kl_divergence(truth, model),
            "log_partition": log_partition,
            "mean_exact": exact["mean"],
            "mean_of_refined": float(model @ np.cos(angles)),
        }
        if config.objective.name == "kale":
            scalars["log_partition_learned"] = float(found["log_partition"])
        latent_key, *chain_keys = split_key(key)
        latents = jax.random.normal(latent_key, (config.evaluation.num_chains, 1))
        scalars["mean_base"] = float(jax.vmap(circle_point)(latents)[:, 0].mean())
        refine, draws, panels = make_refine(section, energy_fn, circle_point), {}, {}
        for name, chain_key in zip(section.names, chain_keys):
            refined = refine(name, chain_key, latents)
            x = draws[name] = refined[max(refined)].x
            scalars[f"mean_{name}"] = float(x[:, 0].mean())
            shares, edges = np.histogram(
                np.arctan2(x[:, 1], x[:, 0]), 40, (-math.pi, math.pi)
            )
            shares = shares / len(x) / np.diff(edges)
            panels[name] = (0.5 * (edges[1:] + edges[:-1]), shares)
        save_arrays(
            directory / "samples.npz",
            samples=draws[section.names[0]],
            key=jax.random.key_data(key),
        )
        turned = np.where(angles > math.pi, angles - 2 * math.pi, angles)
        order = np.argsort(turned)
        scale = len(angles) / (2 * math.pi)
        panels |= {
            "von Mises": (turned[order], truth[order] * scale),
            "exp(-E) / Z": (turned[order], model[order] * scale),
        }
        plots.curves(
            directory / "circle.png",
            {"": panels},
            x_label="angle in radians",
            y_label="density",
            truth="von Mises",
        )
        return scalars

    players = {"energy": energy_player(config, network, base, 1)}
    return make_experiment(
        config,
        keys,
        players,
        functools.partial(target_batches, target=von_mises(k)),
        params={"energy": params, "base": {}, "log_partition": jnp.zeros(())},
        evaluate=evaluate,
    )


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model.

    The model is the uniform law on the circle, reweighed by `exp(-energy_fn(x))`: it
    has no density of the plane. `sample` moves latents of its own by the first of
    `evaluation.sampler.names`, to the last of its lengths.
    """
    network = make_network(config)
    energy_fn = bind_energy(config, network, params)
    refine = make_refine(config.evaluation.sampler, energy_fn, circle_point)
    return Trained(
        config,
        params,
        model_state,
        {"energy": network},
        energy_fn=energy_fn,
        sample=functools.partial(draw_samples, config, refine),
    )


if __name__ == "__main__":
    cli.main(build, __file__)
