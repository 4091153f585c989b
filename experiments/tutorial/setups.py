"""Methods set up on a problem: their players and initial parameters."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ebmjax import networks, objectives, samplers, starts, training
from ebmjax.types import Array, Energy, Key, Params
from experiments.tutorial.distributions import Moments, fit_flow, gaussian, make_flow
from experiments.tutorial.models import Model, mlp_model


class Problem(NamedTuple):
    """Inputs of a method.

    Attributes:
      model: The energy to train.
      data: `data(key, num) -> [num, d]`, draws of the data.
      moments: Mean and covariance of the data.
      key: Key of the initial parameters.
      network: Options of `mlp_model`, for methods that need a model of their own.
      optimizer: `optimizer() -> optax transformation` of the energy.
      opponent: The same for a flow, a critic or a generator.
    """

    model: Model
    data: Callable[[Key, int], Array]
    moments: Moments
    key: Key
    network: Mapping[str, Any]
    optimizer: Callable[[], optax.GradientTransformation]
    opponent: Callable[[], optax.GradientTransformation]


class Setup(NamedTuple):
    """A method on a problem: `players` and `params` of an `Experiment`."""

    players: dict[str, training.Player]
    params: dict[str, Params]


# --- energies ----------------------------------------------------------------------


def model_energy(problem: Problem, **options) -> Energy:
    """Returns `energy(params, x)` of all trained `params`: the model's own energy."""
    del options
    return lambda params, x: problem.model.energy(params["energy"], x)


def least_scale_energy(problem: Problem, *, noise_scales) -> Energy:
    """Returns the energy of the least noise scale."""
    model = mlp_model(problem.moments, with_scale=True, **problem.network)
    least = min(noise_scales)
    return lambda params, x: model.energy(params["energy"], x, least)


def summed_energy(problem: Problem, *, waymarks) -> Energy:
    """Returns the sum of a telescope's bridges and of their constants."""
    del waymarks
    _, bridge, noise = _make_bridge(problem)
    energy = objectives.telescoping_energy(bridge, noise_distribution=noise)
    mean = problem.moments[0].astype(np.float32)
    return lambda params, x: energy(params, x - mean)


# --- one player --------------------------------------------------------------------


def single_player(make: Callable[..., objectives.Objective], **fixed):
    """Returns the method that trains the model by one objective of its energy."""

    def method(problem: Problem, **options) -> Setup:
        objective = make(problem.model.energy, **fixed, **options)
        return _energy_player(problem, objective)

    return method


def _energy_player(problem, objective, **others) -> Setup:
    """Sets up the energy's player, which also trains the parameters `others`."""
    params = {"energy": problem.model.init(problem.key)} | others
    player = training.Player(tuple(params), objective, problem.optimizer())
    return Setup({"energy": player}, params)


def maximum_likelihood(problem) -> Setup:
    """Sets up maximum likelihood with the exact log partition function."""

    def loss(params, key, batch):
        at_data = jax.vmap(problem.model.energy, (None, 0))(params["energy"], batch)
        constant = problem.model.log_partition(params["energy"])
        return jnp.mean(at_data) + constant, {"log_partition": constant}

    return _energy_player(problem, objectives.stateless(loss))


def multi_scale(problem, *, noise_scales) -> Setup:
    """Sets up one energy for all noise scales."""
    model = mlp_model(problem.moments, with_scale=True, **problem.network)
    objective = objectives.multi_scale_denoising_score_matching(
        model.energy, noise_scales=noise_scales
    )
    return _energy_player(problem._replace(model=model), objective)


def noise_contrastive(problem, *, num_noise: int) -> Setup:
    """Sets up noise contrastive estimation against a normal with the data's moments."""
    return _tell_apart(problem, gaussian(problem.moments), num_noise)


def noise_contrastive_flow(
    problem, *, num_noise: int, num_updates: int, **options
) -> Setup:
    """Sets up noise contrastive estimation against a flow, which is fitted first."""
    flow, params = make_flow(_opponent_key(problem), problem.moments, **options)
    key = jax.random.fold_in(problem.key, 2)
    noise = fit_flow(key, flow, params, problem.data, num_updates)
    return _tell_apart(problem, noise, num_noise)


def _tell_apart(problem, noise, num_noise: int) -> Setup:
    objective = objectives.noise_contrastive(
        problem.model.energy, noise_distribution=noise, num_noise=num_noise
    )
    constant = _initial_log_partition(problem, noise[1])
    return _energy_player(problem, objective, log_partition=constant)


def _initial_log_partition(problem, log_prob) -> Array:
    """Returns the constant that makes the mean log odds of data and noise zero."""
    params = problem.model.init(problem.key)
    x = problem.data(jax.random.fold_in(problem.key, 3), 1000)

    def excess(x):
        return -problem.model.energy(params, x) - log_prob(x)

    return jnp.mean(jax.vmap(excess)(x))


def telescoping(problem, *, waymarks) -> Setup:
    """Sets up a network for every bridge, from the normal with the data's moments.

    The data are centred, because the waymarks scale them.
    """
    network, bridge, noise = _make_bridge(problem)
    centred = objectives.telescoping(
        bridge, noise_distribution=noise, waymarks=waymarks
    )
    mean = problem.moments[0].astype(np.float32)

    def loss(params, key, batch):
        value, aux = centred.loss(params, key, batch - mean[None], ())
        return value, aux.metrics

    keys = jax.random.split(problem.key, len(waymarks))
    params = {
        "energy": jax.vmap(lambda key: network.init(key)[0])(keys),
        "log_partition": jnp.zeros(len(waymarks)),
    }
    objective = objectives.stateless(loss)
    player = training.Player(tuple(params), objective, problem.optimizer())
    return Setup({"energy": player}, params)


def _make_bridge(problem):
    """Returns the network of a bridge, `bridge(params, x, index)` and the noise."""
    mean, covariance = problem.moments
    spread = np.sqrt(np.diag(covariance)).astype(np.float32)
    network = networks.mlp_energy(mean.shape, **problem.network)

    def bridge(params, x, index):
        own = jax.tree.map(lambda leaf: leaf[index], params)
        return network.apply(own, x / spread)

    return network, bridge, gaussian((np.zeros_like(mean), covariance))


# --- chains and draws of the model -------------------------------------------------


def _make_sample(problem, step_size: float = 0.0, num_steps: int = 0):
    """Returns `sample(params, key) -> x`: an exact draw, or the end of a chain."""
    if problem.model.sample is not None:
        if num_steps:
            raise ValueError(
                "objective.num_steps must be 0 for a model with exact draws,"
                f" got {num_steps}"
            )
        return problem.model.sample
    draw, _ = gaussian(problem.moments, widen=1.5)
    sampler = samplers.mala(step_size=step_size)

    def sample(params, key):
        start_key, chain_key = jax.random.split(key)
        energy_fn = functools.partial(problem.model.energy, params)
        state, _ = samplers.sample_chain(
            sampler, energy_fn, chain_key, draw(start_key), num_steps
        )
        return state.position

    return sample


def self_contrastive(problem, **options) -> Setup:
    """Sets up noise contrastive estimation against the model of the last update."""
    objective = objectives.self_contrastive(
        problem.model.energy, sample=_make_sample(problem), **options
    )
    return _energy_player(problem, objective)


def contrastive_divergence(
    problem,
    *,
    start: str,
    step_size: float,
    num_steps: int,
    capacity: int = 0,
    reinit_prob: float = 0.0,
    **options,
) -> Setup:
    """Sets up contrastive divergence by Metropolis-adjusted Langevin chains.

    Chains start at the data, at noise, or where earlier chains ended ("replay"). The
    noise is a normal 1.5 times as wide as the data.
    """
    sample, _ = gaussian(problem.moments, widen=1.5)

    def draw_noise(key, shape):
        return jax.vmap(sample)(jax.random.split(key, shape[0]))

    devices = jax.device_count()
    makes = {
        "data": starts.data,
        "noise": lambda: starts.noise(draw_noise),
        "replay": lambda: starts.replay(
            draw_noise,
            event_shape=problem.moments[0].shape,
            capacity=capacity // devices,
            reinit_prob=reinit_prob,
        ),
    }
    if start not in makes:
        raise ValueError(f"objective.start must be one of {list(makes)}, got {start!r}")
    if capacity % devices:
        raise ValueError(
            f"objective.capacity must be a multiple of the {devices} devices,"
            f" got {capacity}"
        )
    objective = objectives.contrastive_divergence(
        problem.model.energy,
        sampler=samplers.mala(step_size=step_size),
        num_steps=num_steps,
        start=makes[start](),
        **options,
    )
    return _energy_player(problem, objective)


# --- with an opponent --------------------------------------------------------------


def _opponent_key(problem: Problem) -> Key:
    return jax.random.fold_in(problem.key, 4)  # 1 to 3 have other uses


def _add_opponent(problem, setup: Setup, objective, num_updates: int, **trained):
    """Adds a player that moves before the others and trains one more network."""
    (name,) = trained
    player = training.Player((name,), objective, problem.opponent(), num_updates)
    return Setup({name: player} | setup.players, setup.params | trained)


def flow_contrastive(problem, **options) -> Setup:
    """Sets up noise contrastive estimation against a flow that is trained too."""
    flow, flow_params = make_flow(_opponent_key(problem), problem.moments, **options)
    module, pair = objectives.flow_contrastive, (flow.sample, flow.log_prob)
    constant = _initial_log_partition(
        problem, functools.partial(flow.log_prob, flow_params)
    )
    setup = _energy_player(
        problem,
        module.energy_objective(problem.model.energy, pair),
        log_partition=constant,
    )
    objective = module.flow_objective(problem.model.energy, pair)
    return _add_opponent(problem, setup, objective, 1, flow=flow_params)


def variational(problem, *, num_flow_updates: int, **options) -> Setup:
    """Sets up maximum likelihood with draws of a flow for those of the model."""
    flow, flow_params = make_flow(_opponent_key(problem), problem.moments, **options)
    module, pair = objectives.variational, (flow.sample, flow.log_prob)
    setup = _energy_player(problem, module.energy_objective(problem.model.energy, pair))
    objective = module.flow_objective(problem.model.energy, pair)
    return _add_opponent(problem, setup, objective, num_flow_updates, flow=flow_params)


def learned_stein(
    problem, *, l2_weight: float, num_critic_updates: int, width: int
) -> Setup:
    """Sets up the learned Stein discrepancy."""
    mean, covariance = problem.moments
    spread = np.sqrt(np.diag(covariance)).astype(np.float32)
    network = networks.mlp(mean.shape, mean.shape, widths=(width, width))

    def critic(params, x):
        return network.apply(params, (x - mean.astype(np.float32)) / spread)

    module = objectives.learned_stein
    setup = _energy_player(
        problem, module.energy_objective(problem.model.energy, critic)
    )
    objective = module.critic_objective(
        problem.model.energy, critic, l2_weight=l2_weight
    )
    params, _ = network.init(_opponent_key(problem))
    return _add_opponent(problem, setup, objective, num_critic_updates, critic=params)


def f_contrastive(
    problem, *, divergence: str, num_critic_updates: int, **chain
) -> Setup:
    """Sets up an f-divergence, estimated by a critic."""
    module = objectives.f_contrastive
    base = mlp_model(problem.moments, widths=(64, 64), activation="swish")

    def critic(params, x):
        # The best critic is the data's log density: minus an energy.
        return -base.energy(params, x)

    options = {"sample": _make_sample(problem, **chain), "divergence": divergence}
    arguments = problem.model.energy, critic
    setup = _energy_player(problem, module.energy_objective(*arguments, **options))
    objective = module.critic_objective(*arguments, **options)
    params = base.init(_opponent_key(problem))
    return _add_opponent(problem, setup, objective, num_critic_updates, critic=params)


def entropy_gradient(
    problem,
    *,
    noise_scale: float,
    num_generator_updates: int,
    num_importance: int,
    widening: float,
    width: int,
    score_penalty: float,
) -> Setup:
    """Sets up a generator with the gradient of its entropy estimated.

    The generator begins as the normal distribution with the data's moments.
    """
    module = objectives.entropy_gradient
    mean, covariance = (array.astype(np.float32) for array in problem.moments)
    lower = np.linalg.cholesky(covariance)
    dim = len(mean)
    network = networks.mlp((dim,), (dim,), widths=(width, width))

    def generator(params, latent):
        return mean + lower @ (latent + network.apply(params, latent))

    shared = {"latent_dim": dim, "noise_scale": noise_scale}
    setup = _energy_player(
        problem,
        module.energy_objective(
            problem.model.energy, generator, score_penalty=score_penalty, **shared
        ),
    )
    climb = module.generator_objective(
        problem.model.energy,
        generator,
        num_importance=num_importance,
        widening=widening,
        **shared,
    )
    params, _ = network.init(_opponent_key(problem))
    setup = _add_opponent(
        problem, setup, climb, num_generator_updates, generator=params
    )
    fit = module.posterior_objective(generator, **shared)
    width_params = jnp.full(dim, math.log(0.1))
    return _add_opponent(problem, setup, fit, 1, posterior=width_params)
