"""circle"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import networks, targets
from ebmjax.checks import check_number
from ebmjax.objectives import generalized
from ebmjax.types import Array
from experiments.generalized.latents import SAMPLER_NAMES, check_sampling, refine
from experiments.generalized.players import (
    _batch,
    _energy_player,
    _floor,
    _phases,
    _preset,
    _sampling,
    _target_batches,
)
from experiments.judge import plots
from experiments.judge.plane import kl_divergence
from experiments.run.config import check_counts
from experiments.run.experiment import Experiment, evaluated_params


def _thin(name: str, data: dict, num_steps: int, **evaluation) -> dict:
    config = _preset(
        {"name": name, "batch_size": 256, **data},
        {"widths": (64, 64, 64)},
        **evaluation,
    )
    config["objective"] |= {"gradient_penalty": 0.0, "num_draws": 4}
    config["players"] |= {"num_extra_updates": 0, "extra_every": 0}
    config["optimizer"]["b2"] = 0.9
    config["optimizer"]["learning_rate"] |= {
        "start": 1e-3,
        "final": 1e-5,
        "decay_steps": num_steps,
    }
    config["train"] |= {"num_steps": num_steps, "checkpoint_every": 0}
    return config


def _circle() -> dict:
    config = _thin(
        "circle",
        {"concentration": 2.0},  # of the von Mises law
        2_000,
        num_chains=4_000,
        sampling=_sampling(
            samplers=tuple(name for name in SAMPLER_NAMES if name != "transport"),
            chain_lengths=(50, 200),
            temperatures=(1.0,),
            step_size=0.1,
            decay_every=0,
        ),
    )
    config["players"]["num_energy_updates"] = 1
    return config


def _circle_of(latent: Array) -> Array:
    """`[1] -> [2]`: a uniform angle, from a normal latent through its rank."""
    angle = 2 * math.pi * jax.scipy.stats.norm.cdf(latent[0])
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def von_mises(concentration: float) -> targets.Target:
    """`exp(k cos t)` on the unit circle, drawn through a table of its ranks."""
    angles = np.linspace(-math.pi, math.pi, 20_001)
    density = np.exp(concentration * (np.cos(angles) - 1))
    ranks = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    table = jnp.asarray(ranks / ranks[-1]), jnp.asarray(angles)

    def sample(key, num):
        angle = jnp.interp(jax.random.uniform(key, (num,)), *table)
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)

    return targets.Target(sample, None, None)


def _on_circle(config, keys) -> Experiment:
    from scipy import special

    k = config.data.concentration
    check_number("data.concentration", k, positive=False)
    check_counts("evaluation", config.evaluation, num_chains=1)
    check_sampling(config.evaluation.sampling)
    network = networks.mlp_energy((2,), widths=config.network.widths)
    params, _ = network.init(keys.params)

    def base(params, latent):
        del params
        return _circle_of(latent)

    player = _energy_player(config, network, base, 1)
    # Bessel functions over exp(k), which alone is too large from k = 700 on.
    mean = special.i1e(k) / special.i0e(k)
    exact = {"kale": k * (mean - 1) - math.log(special.i0e(k)), "mean": mean}
    angles = (np.arange(4_096) + 0.5) * (2 * math.pi / 4_096)
    points = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)
    truth = np.exp(k * (np.cos(angles) - 1))
    truth /= truth.sum()

    def evaluate(state, key, directory):
        found = evaluated_params(state)
        energy_fn = generalized.floored(
            functools.partial(network.apply, found["energy"]), _floor(config)
        )
        energy = np.asarray(jax.vmap(energy_fn)(points), np.float64)
        log_partition = float(special.logsumexp(-energy) - math.log(len(energy)))
        model = np.exp(-energy - log_partition) / len(energy)
        # By quadrature on the circle: no draws in it.
        kale = -float(truth @ energy) - log_partition
        scalars = {
            "kale": kale,
            "kale_exact": exact["kale"],
            "kl_of_refined": kl_divergence(truth, model),
            "log_partition": log_partition,
            "mean_exact": exact["mean"],
            "mean_of_refined": float(model @ np.cos(angles)),
        }
        if config.objective.name == "kale":
            scalars["log_partition_learned"] = float(found["log_partition"])
        latent_key, *chain_keys = jax.random.split(key, 1 + len(SAMPLER_NAMES))
        section = config.evaluation.sampling
        latents = jax.random.normal(latent_key, (config.evaluation.num_chains, 1))
        scalars["mean_base"] = float(jax.vmap(_circle_of)(latents)[:, 0].mean())
        panels = {}
        for name, chain_key in zip(section.samplers, chain_keys):
            refined = refine(
                name,
                section,
                energy_fn,
                _circle_of,
                chain_key,
                latents,
                chain_lengths=section.chain_lengths,
            )
            last = refined[max(refined)]
            scalars[f"mean_{name}"] = float(last.x[:, 0].mean())
            shares, edges = np.histogram(
                np.arctan2(last.x[:, 1], last.x[:, 0]), 40, (-math.pi, math.pi)
            )
            shares = shares / len(last.x) / np.diff(edges)
            panels[name] = (0.5 * (edges[1:] + edges[:-1]), shares)
        order = np.argsort(np.where(angles > math.pi, angles - 2 * math.pi, angles))
        turned = np.where(angles > math.pi, angles - 2 * math.pi, angles)[order]
        scale = len(angles) / (2 * math.pi)
        panels |= {
            "von Mises": (turned, truth[order] * scale),
            "exp(-E) / Z": (turned, model[order] * scale),
        }
        plots.curves(
            directory / "circle.png", {"density of the angle": panels}, x_label="angle"
        )
        return scalars

    players = {"energy": player}
    phases = _phases(config, players)
    return Experiment(
        players=players,
        params={"energy": params, "base": {}, "log_partition": jnp.zeros(())},
        batch=_batch(
            config, keys.data, players, _target_batches(von_mises(k)), **phases
        ),
        evaluate=evaluate,
        **phases,
    )


if __name__ == "__main__":
    main(build, __file__, sweep)
