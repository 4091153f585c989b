"""setups"""

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
from experiments.run.config import schedule
from experiments.tutorial.models import Model, mlp_model


class Problem(NamedTuple):
    """What a method is handed.

    Attributes:
      model: The energy to train.
      data: `data(key, num) -> [num, d]`, draws.
      moments: The data's mean and covariance, float64, of draws.
      optimizer: `optimizer() -> optax transformation`, of the energy.
      opponent: The same for a flow, a critic or a generator; None without one.
      key: Of initial parameters.
      network: The config's section, for methods that need a model of their own.
    """

    model: Model
    data: Callable[[Key, int], Array]
    moments: tuple[np.ndarray, np.ndarray]
    optimizer: Callable[[], optax.GradientTransformation]
    opponent: Callable[[], optax.GradientTransformation] | None
    key: Key
    network: Mapping[str, Any]


class Setup(NamedTuple):
    """A method on a problem.

    Attributes:
      players: As `_run.Experiment` has them.
      params: As `_run.Experiment` has them.
      energy: `energy(params, x)` of all of the trained `params`, where it is not the
        model's of `params["energy"]`.
    """

    players: dict[str, training.Player]
    params: dict[str, Params]
    energy: Energy | None = None


def _alone(make: Callable[..., objectives.Objective], **fixed):
    """A method of one player that trains the energy alone."""

    def method(problem: Problem, **options) -> Setup:
        objective = make(problem.model.energy, **fixed, **options)
        return _energy_player(problem, objective)

    return method


def _energy_player(problem, objective, **others) -> Setup:
    """The energy, and what of `others` is trained with it."""
    params = {"energy": problem.model.init(problem.key)} | others
    player = training.Player(tuple(params), objective, problem.optimizer())
    return Setup({"energy": player}, params)


def _opponent_key(problem: Problem) -> Key:
    return jax.random.fold_in(problem.key, 4)  # 1 to 3 are others' draws


def _against(problem, setup: Setup, objective, num_updates: int, **trained) -> Setup:
    """With an opponent, which moves first."""
    (name,) = trained
    player = training.Player((name,), objective, problem.opponent(), num_updates)
    return setup._replace(
        players={name: player} | setup.players, params=setup.params | trained
    )


def _gaussian(moments, widen: float = 1.0):
    """`(sample, log_prob)` of the normal law with the data's moments."""
    mean, covariance = moments
    size = len(mean)
    lower = widen * np.linalg.cholesky(covariance)
    log_det = np.log(np.diag(lower)).sum()
    inverse = np.linalg.inv(lower).astype(np.float32)
    mean, lower = mean.astype(np.float32), lower.astype(np.float32)

    def sample(key):
        return mean + lower @ jax.random.normal(key, (size,))

    def log_prob(x):
        normal = -0.5 * jnp.sum((inverse @ (x - mean)) ** 2)
        return normal - log_det - 0.5 * size * math.log(2 * math.pi)

    return sample, log_prob


def _flow(problem, num_layers: int, width: int):
    """A flow that begins as the normal law with the data's moments."""
    mean, covariance = problem.moments
    flow = networks.real_nvp(mean.shape, num_layers=num_layers, widths=(width, width))
    params = flow.init(_opponent_key(problem))
    lower = np.linalg.cholesky(covariance)
    np.fill_diagonal(lower, np.log(np.diag(lower)))
    params |= {
        "mean": jnp.asarray(mean, jnp.float32),
        "lower": jnp.asarray(lower, jnp.float32),
    }
    return flow, params


def _fit_flow(problem, num_updates: int, **options):
    """A flow of the largest likelihood."""
    flow, params = _flow(problem, **options)
    optimizer = optax.adam(schedule(start=3e-3, final=1e-5, decay_steps=num_updates))

    def loss(params, x):
        return -jnp.mean(jax.vmap(flow.log_prob, (None, 0))(params, x))

    def update(carry, key):
        params, opt_state = carry
        slope = jax.grad(loss)(params, problem.data(key, 256))
        moves, opt_state = optimizer.update(slope, opt_state)
        return (optax.apply_updates(params, moves), opt_state), ()

    @jax.jit
    def fit(params, key):
        keys = jax.random.split(key, num_updates)
        return jax.lax.scan(update, (params, optimizer.init(params)), keys)[0][0]

    params = fit(params, jax.random.fold_in(problem.key, 2))
    return functools.partial(flow.sample, params), functools.partial(
        flow.log_prob, params
    )


def _initial_log_partition(problem, log_prob) -> Array:
    """With which the data's log odds against a noise, one to one, are 0 on average."""
    params = problem.model.init(problem.key)
    x = problem.data(jax.random.fold_in(problem.key, 3), 1000)

    def excess(x):
        return -problem.model.energy(params, x) - log_prob(x)

    return jnp.mean(jax.vmap(excess)(x))


def noise_contrastive(problem, *, noise: str, num_noise: int, **options) -> Setup:
    makes = {"gaussian": _gaussian, "flow": lambda _: _fit_flow(problem, **options)}
    if noise not in makes:
        raise ValueError(f"objective.noise must be one of {list(makes)}, got {noise!r}")
    if noise == "gaussian" and options:
        raise ValueError(f"a normal noise takes no {sorted(options)}")
    distribution = makes[noise](problem.moments)
    objective = objectives.noise_contrastive(
        problem.model.energy, noise_distribution=distribution, num_noise=num_noise
    )
    constant = _initial_log_partition(problem, distribution[1])
    return _energy_player(problem, objective, log_partition=constant)


def flow_contrastive(problem, **options) -> Setup:
    flow, flow_params = _flow(problem, **options)
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
    return _against(problem, setup, objective, 1, flow=flow_params)


def variational(problem, *, num_flow_updates: int, **options) -> Setup:
    flow, flow_params = _flow(problem, **options)
    module, pair = objectives.variational, (flow.sample, flow.log_prob)
    setup = _energy_player(problem, module.energy_objective(problem.model.energy, pair))
    objective = module.flow_objective(problem.model.energy, pair)
    return _against(problem, setup, objective, num_flow_updates, flow=flow_params)


def learned_stein(
    problem, *, l2_weight: float, num_critic_updates: int, width: int
) -> Setup:
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
    return _against(problem, setup, objective, num_critic_updates, critic=params)


def _draw_of(problem, step_size: float = 0.0, num_steps: int = 0):
    """`sample(params, key) -> x` of the model: exact, or the end of a chain."""
    if problem.model.sample is not None:
        if num_steps:
            raise ValueError(
                "objective.num_steps must be 0 where the model is drawn from exactly,"
                f" got {num_steps}"
            )
        return problem.model.sample
    draw, _ = _gaussian(problem.moments, widen=1.5)
    sampler = samplers.mala(step_size=step_size)

    def sample(params, key):
        start_key, chain_key = jax.random.split(key)
        energy_fn = functools.partial(problem.model.energy, params)
        state, _ = samplers.sample_chain(
            sampler, energy_fn, chain_key, draw(start_key), num_steps
        )
        return state.position

    return sample


def f_contrastive(
    problem, *, divergence: str, num_critic_updates: int, **chain
) -> Setup:
    module = objectives.f_contrastive
    base = mlp_model(problem.moments, widths=(64, 64), activation="swish")

    def critic(params, x):
        # The best critic is the data's log density: minus an energy.
        return -base.energy(params, x)

    options = {"sample": _draw_of(problem, **chain), "divergence": divergence}
    arguments = problem.model.energy, critic
    setup = _energy_player(problem, module.energy_objective(*arguments, **options))
    objective = module.critic_objective(*arguments, **options)
    params = base.init(_opponent_key(problem))
    return _against(problem, setup, objective, num_critic_updates, critic=params)


def self_contrastive(problem, **options) -> Setup:
    objective = objectives.self_contrastive(
        problem.model.energy, sample=_draw_of(problem), **options
    )
    return _energy_player(problem, objective)


def _draw_noise(moments):
    """`draw(key, shape)`: a normal half as wide again as the data."""
    sample, _ = _gaussian(moments, widen=1.5)

    def draw(key, shape):
        return jax.vmap(sample)(jax.random.split(key, shape[0]))

    return draw


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
    draw = _draw_noise(problem.moments)
    devices = jax.device_count()
    makes = {
        "data": starts.data,
        "noise": lambda: starts.noise(draw),
        "replay": lambda: starts.replay(
            draw,
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
    """A generator that begins as the normal law with the data's moments."""
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
    setup = _against(problem, setup, climb, num_generator_updates, generator=params)
    fit = module.posterior_objective(generator, **shared)
    width_params = jnp.full(dim, math.log(0.1))
    return _against(problem, setup, fit, 1, posterior=width_params)


def telescoping(problem, *, waymarks) -> Setup:
    """A network for every bridge, from the normal law with the data's moments; all of
    it centred, as the waymarks want."""
    mean, covariance = problem.moments
    spread = np.sqrt(np.diag(covariance)).astype(np.float32)
    network = networks.mlp_energy(mean.shape, **problem.network)

    def bridge(params, x, index):
        own = jax.tree.map(lambda leaf: leaf[index], params)
        return network.apply(own, x / spread)

    noise = _gaussian((np.zeros_like(mean), covariance))
    mean = mean.astype(np.float32)
    centred = objectives.telescoping(
        bridge, noise_distribution=noise, waymarks=waymarks
    )
    energy = objectives.telescoping_energy(bridge, noise_distribution=noise)

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
    return Setup({"energy": player}, params, lambda params, x: energy(params, x - mean))


def multi_scale(problem, *, noise_scales) -> Setup:
    """One energy for all scales; the least of them is the model."""
    model = mlp_model(problem.moments, with_scale=True, **problem.network)
    objective = objectives.multi_scale_denoising_score_matching(
        model.energy, noise_scales=noise_scales
    )
    setup = _energy_player(problem._replace(model=model), objective)
    least = min(noise_scales)
    return setup._replace(
        energy=lambda params, x: model.energy(params["energy"], x, least)
    )


def maximum_likelihood(problem) -> Setup:
    """With the exact log partition function: what the others are to be held against."""

    def loss(params, key, batch):
        at_data = jax.vmap(problem.model.energy, (None, 0))(params["energy"], batch)
        constant = problem.model.log_partition(params["energy"])
        return jnp.mean(at_data) + constant, {"log_partition": constant}

    return _energy_player(problem, objectives.stateless(loss))
