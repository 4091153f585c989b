"""A generalised energy-based model of data on a curve, a GAN and a plain energy.

Paper: Arbel, Zhou & Gretton (2021), "Generalized energy based models",
https://arxiv.org/abs/2003.05033.
Claim checked: on a thin support a GAN has the support and not the weights, an
energy-based model of the plane the weights and not the support, and a generalised one
both. The paper's curve has no published formula; this one is ours.

    python -m experiments.generalized.curve --workdir=runs/curve
    python -m experiments.generalized.curve --workdir=runs/curves --sweep --seeds=3

Preset: `curve` (three minutes of a CPU core). After a comma stands the estimator:
`kale`, the default, or `donsker_varadhan`.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import networks, objectives, targets, training
from ebmjax.checks import check_number
from ebmjax.objectives import generalized
from ebmjax.types import Array, Key, Network
from experiments.data import target_batches
from experiments.generalized.latents import make_refine
from experiments.generalized.players import (
    base_player,
    check_players,
    energy_floor,
    energy_player,
    make_config,
    make_experiment,
    objective_section,
    player_optimizer,
    players_section,
)
from experiments.judge import generators, plots
from experiments.judge.plane import make_plane, total_variation
from experiments.run import cli
from experiments.run.config import adam_section, check_counts, train_section
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params
from experiments.run.workdir import save_arrays

NUM_PIECES = 1_000  # of the line from -1 to 1, on which the ridge's weights are summed


def make_default() -> dict:
    config = {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": {"batch_size": 256},  # of all devices
        "network": {
            "widths": (64, 64, 64),  # hidden layers, of every network
            "width": 0.1,  # of the energy-based model's ridge; sigma, in units of x
        },
        # The base begins off the curve, where without both the energy has no bounds.
        "objective": objective_section(
            gradient_penalty=0.005, num_draws=4, energy_floor=-5.0
        ),
        "players": players_section(num_extra_updates=0, extra_every=0),
        # Its lengths are in steps, however many updates a player makes in one.
        "optimizer": adam_section(1e-3, b1=0.5, b2=0.9),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": train_section(6_000, checkpoint_every=0)
        | {"num_joint_steps": 4_000},  # then the base rests
        "evaluation": {
            "num_samples": 20_000,  # draws of each model
            "num_bins": 60,  # a side
            "bound": 1.25,  # of both coordinates
            "sampler": {"num_steps": 200},  # moves of independence Metropolis-Hastings
        },
    }
    config["optimizer"]["learning_rate"] |= {"final": 1e-5, "decay_steps": 6_000}
    return config


PRESETS = {"curve": make_default}


def get_config(preset: str = "curve") -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,estimator"`."""
    return make_config(PRESETS, preset)


def wave(first: Array) -> Array:
    """Returns the second coordinate of the curve at the first one."""
    return 0.6 * jnp.sin(1.5 * math.pi * first)


def arcsine_wave() -> targets.Target:
    """Returns a wave in the plane, whose first coordinate has the arcsine law on
    (-1, 1): most draws are near the two ends."""

    def sample(key, num):
        first = jnp.sin(math.pi * (jax.random.uniform(key, (num,)) - 0.5))
        return jnp.stack([first, wave(first)], 1)

    return targets.Target(sample, None, None)


def rename_networks(
    objective: objectives.Objective, **names: str
) -> objectives.Objective:
    """Returns an objective whose networks have other names in `params`: own=other."""

    def loss(params, key, batch, carry):
        renamed = {own: params[other] for own, other in names.items()}
        return objective.loss(renamed, key, batch, carry)

    return objectives.Objective(objective.init, loss)


def make_networks(config) -> dict[str, Network]:
    """Returns the networks, without parameters.

    "graph" and "weights" are the ridge's, "critic" and "generator" the GAN's.
    """
    widths = config.network.widths
    graph = networks.mlp((1,), (1,), widths=widths)
    critic = networks.mlp_energy((2,), widths=widths)
    return {
        "energy": critic,
        "base": graph,
        "graph": graph,
        "weights": networks.mlp_energy((1,), widths=widths),
        "critic": critic,
        "generator": graph,
    }


def make_generator(network: Network):
    """Returns `generator(params, latent) -> x`, on the graph of the network."""

    def generator(params, latent):
        first = 2 * jax.scipy.stats.norm.cdf(latent) - 1
        return jnp.concatenate([first, network.apply(params, first)])

    return generator


def bind_networks(config, built: dict[str, Network], params):
    """Returns `energy_fn` of a point, with a floor, and `generator_fn` of a latent."""
    energy_fn = functools.partial(built["energy"].apply, params["energy"])
    generator_fn = functools.partial(make_generator(built["base"]), params["base"])
    return generalized.floored(energy_fn, energy_floor(config)), generator_fn


def bind_refine(config, built: dict[str, Network], params):
    """Returns `refine(key, latents) -> Refined` of the generalised model."""
    num_steps = config.evaluation.sampler.num_steps
    # Independence Metropolis-Hastings has no step, whatever its size.
    section = {"chain_lengths": (num_steps,), "step_size": 1.0, "decay_every": 0}
    refine = make_refine(section, *bind_networks(config, built, params))
    return lambda key, latents: refine("independence", key, latents)[num_steps]


def split_key(key: Key) -> Key:
    """Returns keys of latents and chains, then four of the other models."""
    draw_key, noise_key, latent_key, chain_key, *others = jax.random.split(key, 6)
    return latent_key, chain_key, draw_key, noise_key, *others


def draw_samples(refine, key: Key, num: int) -> np.ndarray:
    """Returns draws of the generalised model, `[num, 2]`."""
    latent_key, chain_key, *_ = split_key(key)
    latents = jax.random.normal(latent_key, (num, 1))
    return refine(chain_key, latents).x


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds three models of one family of curves `(u, g(u))`, trained side by side.

    They are a GAN, whose u is uniform; an energy-based model of the plane, which is a
    ridge along the curve with any weights; and a generalised one, whose base has a
    uniform u and whose energy gives any weights.
    """
    width, options = config.network.width, config.evaluation
    check_players(config.players)
    check_counts("evaluation", options, num_samples=1, num_bins=1)
    check_counts("evaluation.sampler", options.sampler, num_steps=1)
    for name, value in (("network.width", width), ("evaluation.bound", options.bound)):
        check_number(name, value, positive=True)
    built = make_networks(config)
    graph, weights, critic = (built[name] for name in ("graph", "weights", "critic"))
    generator = make_generator(graph)

    def ridge_energy(params, x):
        distance = x[1] - graph.apply(params["graph"], x[:1])[0]
        square = (distance / width) ** 2
        return square / 2 + weights.apply(params["weights"], x[:1])

    line = jnp.linspace(-1, 1, NUM_PIECES + 1)
    middles = 0.5 * (line[1:] + line[:-1])

    def ridge_weights(params):
        """Returns `[NUM_PIECES]`, log weights along the first coordinate."""
        return -jax.vmap(weights.apply, (None, 0))(params["weights"], middles[:, None])

    def ridge_log_prob(params, x):
        # The integral over the second coordinate is a normal's, over the first a sum.
        log_integral = jax.nn.logsumexp(ridge_weights(params))
        log_integral += math.log(2 / NUM_PIECES)
        log_partition = log_integral + math.log(width * (2 * math.pi) ** 0.5)
        return -ridge_energy(params, x) - log_partition

    gan = {"energy": "critic", "generator": "generator"}
    num = config.players.num_energy_updates
    players = {
        "energy": energy_player(config, critic, generator, 1),
        "base": base_player(config, critic, generator, 1),
        "ridge": training.Player(
            ("ridge",),
            generalized.likelihood(ridge_log_prob, name="ridge"),
            player_optimizer(config),
        ),
        "critic": training.Player(
            ("critic",),
            rename_networks(
                generators.gan_energy(critic.apply, generator, latent_dim=1), **gan
            ),
            player_optimizer(config, num),
            num,
        ),
        "generator": training.Player(
            ("generator",),
            rename_networks(
                generators.gan_generator(critic.apply, generator, latent_dim=1), **gan
            ),
            player_optimizer(config),
        ),
    }
    init_keys = jax.random.split(keys.params, len(built))
    params = {
        name: network.init(init_key)[0]
        for (name, network), init_key in zip(built.items(), init_keys, strict=True)
    }
    params["ridge"] = {name: params.pop(name) for name in ("graph", "weights")}
    params["log_partition"] = jnp.zeros(())
    target, num_samples = arcsine_wave(), options.num_samples
    grid = make_plane(options.bound, options.num_bins)
    edges = np.linspace(-1, 1, options.num_bins + 1)
    truth = np.diff(np.arcsin(edges)) / math.pi

    def judge(x):
        shares = np.histogram(np.asarray(x)[:, 0], edges)[0] / len(x)
        off = np.asarray(x[:, 1] - wave(x[:, 0]))
        return {
            "weights_total_variation": total_variation(shares, truth),
            "distance_off_support": float(np.sqrt((off**2).mean())),
        }

    def draw_ridge(params, noise_key, piece_key, width_key):
        piece = jax.random.categorical(
            piece_key, ridge_weights(params), shape=(num_samples,)
        )
        first = middles[piece] + (2 / NUM_PIECES) * (
            jax.random.uniform(width_key, (num_samples,)) - 0.5
        )
        second = jax.vmap(graph.apply, (None, 0))(params["graph"], first[:, None])[:, 0]
        noise = jax.random.normal(noise_key, (num_samples,))
        return np.asarray(jnp.stack([first, second + width * noise], 1))

    def evaluate(state, key, directory):
        found = evaluated_params(state)
        latent_key, chain_key, draw_key, *ridge_keys = split_key(key)
        latents = jax.random.normal(latent_key, (num_samples, 1))
        draw = jax.jit(jax.vmap(generator, (None, 0)))
        refined = bind_refine(config, built, found)(chain_key, latents)
        samples = {
            "data": np.asarray(target.sample(draw_key, num_samples)),
            "ebm": draw_ridge(found["ridge"], *ridge_keys),
            "gan": np.asarray(draw(found["generator"], latents)),
            "base": np.asarray(draw(found["base"], latents)),
            "gebm": refined.x,
        }
        save_arrays(
            directory / "samples.npz",
            samples=samples["gebm"],
            key=jax.random.key_data(key),
        )
        plots.densities(
            directory / "curve.png",
            {
                name if name in ("data", "base") else name.upper(): np.sqrt(
                    grid.histogram(x)
                )
                for name, x in samples.items()
            },
            bounds=(-options.bound, options.bound),
            label="square root of the probability of a bin",
        )
        return {
            f"{name}_{measure}": value
            for name, x in samples.items()
            for measure, value in judge(x).items()
        } | {"gebm_acceptance_rate": refined.acceptance_rate}

    batches = functools.partial(target_batches, target=target)
    return make_experiment(
        config, keys, players, batches, params=params, evaluate=evaluate
    )


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained generalised model; the other two are in `params` alone.

    It is the base's law, reweighed by `exp(-energy_fn(x))`: it has no density of the
    plane. `sample` moves latents of its own by `evaluation.sampler`.
    """
    built = make_networks(config)
    energy_fn, _ = bind_networks(config, built, params)
    sample = functools.partial(draw_samples, bind_refine(config, built, params))
    return Trained(
        config, params, model_state, built, energy_fn=energy_fn, sample=sample
    )


if __name__ == "__main__":
    cli.main(build, __file__)
