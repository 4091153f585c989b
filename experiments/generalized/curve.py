"""curve"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import networks, objectives, targets, training
from ebmjax.checks import check_number
from ebmjax.objectives import generalized
from ebmjax.types import Array
from experiments.generalized.circle import _thin
from experiments.generalized.latents import refine
from experiments.generalized.players import (
    _base_player,
    _batch,
    _energy_player,
    _floor,
    _optimizer,
    _phases,
    _sampling,
    _target_batches,
)
from experiments.judge import generators, plots
from experiments.judge.plane import make_plane, total_variation
from experiments.run.config import check_counts
from experiments.run.experiment import Experiment, evaluated_params


def _curve() -> dict:
    config = _thin(
        "curve",
        {},
        6_000,
        num_samples=20_000,
        num_bins=60,  # a side
        bound=1.25,
        num_moves=200,  # of independence Metropolis-Hastings
    )
    config["network"]["width"] = 0.1  # sigma of the EBM's ridge
    # The base begins off the curve, where without both the energy has no bounds.
    config["objective"] |= {"gradient_penalty": 0.005, "energy_floor": -5.0}
    config["train"]["num_joint_steps"] = 4_000  # then the base rests
    return config


def wave(first: Array) -> Array:
    """The second coordinate of the curve, of the first."""
    return 0.6 * jnp.sin(1.5 * math.pi * first)


def curve() -> targets.Target:
    """A wave in the plane, its first coordinate by the arcsine law on (-1, 1): most of
    it at the two ends."""

    def sample(key, num):
        first = jnp.sin(math.pi * (jax.random.uniform(key, (num,)) - 0.5))
        return jnp.stack([first, wave(first)], 1)

    return targets.Target(sample, None, None)


def _renamed(objective: objectives.Objective, **names: str) -> objectives.Objective:
    """An objective whose networks have other names in `params`: its own=another."""

    def loss(params, key, batch, carry):
        renamed = {own: params[other] for own, other in names.items()}
        return objective.loss(renamed, key, batch, carry)

    return objectives.Objective(objective.init, loss)


def _on_curve(config, keys) -> Experiment:
    """Three models of one family of curves `(u, g(u))`, trained side by side: a GAN,
    whose u is uniform; an energy-based model of the plane, a ridge along the curve
    with any weights; and a generalised one, uniform draws with any weights."""
    network, options = config.network, config.evaluation
    check_counts("evaluation", options, num_samples=1, num_bins=1, num_moves=1)
    for name, value in (
        ("network.width", network.width),
        ("evaluation.bound", options.bound),
    ):
        check_number(name, value, positive=True)
    graph = networks.mlp((1,), (1,), widths=network.widths)
    critic = networks.mlp_energy((2,), widths=network.widths)
    weights = networks.mlp_energy((1,), widths=network.widths)

    def generator(params, latent):
        first = 2 * jax.scipy.stats.norm.cdf(latent) - 1
        return jnp.concatenate([first, graph.apply(params, first)])

    def ridge_energy(params, x):
        distance = x[1] - graph.apply(params["graph"], x[:1])[0]
        square = (distance / network.width) ** 2
        return square / 2 + weights.apply(params["weights"], x[:1])

    line = jnp.linspace(-1, 1, 1_001)
    middles = 0.5 * (line[1:] + line[:-1])

    def ridge_weights(params):
        """`[1000]`: logarithms of the weights along the first coordinate."""
        return -jax.vmap(weights.apply, (None, 0))(params["weights"], middles[:, None])

    def ridge_log_prob(params, x):
        # The integral over the second coordinate is a normal's, over the first a sum.
        log_integral = jax.nn.logsumexp(ridge_weights(params)) + math.log(2 / 1_000)
        log_partition = log_integral + math.log(network.width * (2 * math.pi) ** 0.5)
        return -ridge_energy(params, x) - log_partition

    gan = {"energy": "critic", "generator": "generator"}
    num = config.players.num_energy_updates
    players = {
        "energy": _energy_player(config, critic, generator, 1),
        "base": _base_player(config, critic, generator, 1),
        "ridge": training.Player(
            ("ridge",),
            generalized.likelihood(ridge_log_prob, name="ridge"),
            _optimizer(config),
        ),
        "critic": training.Player(
            ("critic",),
            _renamed(
                generators.gan_energy(critic.apply, generator, latent_dim=1), **gan
            ),
            _optimizer(config, num),
            num,
        ),
        "generator": training.Player(
            ("generator",),
            _renamed(
                generators.gan_generator(critic.apply, generator, latent_dim=1), **gan
            ),
            _optimizer(config),
        ),
    }
    names = iter(jax.random.split(keys.params, 6))
    params = {
        "energy": critic.init(next(names))[0],
        "base": graph.init(next(names))[0],
        "log_partition": jnp.zeros(()),
        "ridge": {
            "graph": graph.init(next(names))[0],
            "weights": weights.init(next(names))[0],
        },
        "critic": critic.init(next(names))[0],
        "generator": graph.init(next(names))[0],
    }
    phases = _phases(config, players)
    target, num_samples = curve(), options.num_samples
    grid = make_plane(options.bound, options.num_bins)
    edges = np.linspace(-1, 1, options.num_bins + 1)
    truth = np.diff(np.arcsin(edges)) / math.pi

    def judged(x):
        shares = np.histogram(np.asarray(x)[:, 0], edges)[0] / len(x)
        off = np.asarray(x[:, 1] - wave(x[:, 0]))
        return {
            "weights_total_variation": total_variation(shares, truth),
            "distance_off_support": float(np.sqrt((off**2).mean())),
        }

    def evaluate(state, key, directory):
        found = evaluated_params(state)
        draw_key, noise_key, latent_key, chain_key, ridge_key, width_key = (
            jax.random.split(key, 6)
        )
        latents = jax.random.normal(latent_key, (num_samples, 1))
        drawn = jax.jit(jax.vmap(generator, (None, 0)))
        energy_fn = generalized.floored(
            functools.partial(critic.apply, found["energy"]), _floor(config)
        )
        generator_fn = functools.partial(generator, found["base"])
        refined = refine(
            "independence",
            _sampling(decay_every=0),
            energy_fn,
            generator_fn,
            chain_key,
            latents,
            chain_lengths=(options.num_moves,),
        )[options.num_moves]
        place = jax.random.categorical(
            ridge_key, ridge_weights(found["ridge"]), shape=(num_samples,)
        )
        first = middles[place] + (2 / 1_000) * (
            jax.random.uniform(width_key, (num_samples,)) - 0.5
        )
        second = jax.vmap(graph.apply, (None, 0))(
            found["ridge"]["graph"], first[:, None]
        )[:, 0]
        noise = jax.random.normal(noise_key, (num_samples,))
        sampled = {
            "data": np.asarray(target.sample(draw_key, num_samples)),
            "ebm": np.asarray(jnp.stack([first, second + network.width * noise], 1)),
            "gan": np.asarray(drawn(found["generator"], latents)),
            "base": np.asarray(drawn(found["base"], latents)),
            "gebm": refined.x,
        }
        plots.densities(
            directory / "curve.png",
            {
                name if name in ("data", "base") else name.upper(): np.sqrt(
                    grid.histogram(x)
                )
                for name, x in sampled.items()
            },
            bounds=(-options.bound, options.bound),
        )
        return {
            f"{name}_{measure}": value
            for name, x in sampled.items()
            for measure, value in judged(x).items()
        } | {"gebm_acceptance_rate": refined.acceptance_rate}

    return Experiment(
        players=players,
        params=params,
        batch=_batch(config, keys.data, players, _target_batches(target), **phases),
        evaluate=evaluate,
        **phases,
    )


if __name__ == "__main__":
    main(build, __file__, sweep)
