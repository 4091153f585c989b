"""Every way to train an energy, on data whose law is known: which of them finds it?

Paper: Song & Kingma (2021), "How to train your energy-based models".
Claim checked: where they apply, its methods have the data's law as their optimum; what
they find of it differs. (Not quite so: denoising learns the noised data; finite
differences and minimum velocity have an error of the order of their step; a short-run
model is the chain, and the table has its energy; `f_contrastive` has chains for draws.)
`METHODS` says which apply where.

    python -m experiments.tutorial --workdir=runs/nce
    python -m experiments.tutorial --workdir=runs/x \
        --config=experiments/tutorial.py:sliced_score_matching,rings
    python -m experiments.tutorial --workdir=runs/tutorial --sweep \
        --config=experiments/tutorial.py:all,all

Presets are `method,target`: a key of `METHODS` and one of `TARGETS` or of the UCI
tables (`red_wine`, `white_wine`, `parkinsons`, from files in `data.data_dir`), or `all`
with `--sweep`. A sweep goes on where it stopped. Its cells are as their presets are,
but for `sweep.overrides`, such as "('data.data_dir=DIR', 'train.num_steps=100')", each
for the cells that have the option; without a `data.data_dir` the UCI tables are left
out. Several sweeps may share a workdir while their cells differ, such as `all,rings`
beside `all,two_moons`; one of `all,all` then puts the table together. In the plane
every cell takes less than two minutes on one core.
"""

import ast
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ebmjax import (
    energies,
    metrics,
    networks,
    objectives,
    samplers,
    starts,
    targets,
    training,
)
from ebmjax.types import Array, Energy, Key, Params
from experiments import _checkpoint, _data, _deep_kernel, _plane, _plots, _run, _sweep
from experiments._data import tabular

# --- targets -----------------------------------------------------------------------


def unmixing_of(*, dim: int, matrix_seed: int) -> np.ndarray:
    """A random matrix, drawn until its condition is below `dim`."""
    rng = np.random.default_rng(matrix_seed)
    while True:
        unmixing = rng.normal(size=(dim, dim))
        if np.linalg.cond(unmixing) < dim:
            return unmixing


def ica_mixing(*, dim: int, matrix_seed: int) -> np.ndarray:
    """Of sources mixed by a random matrix, and whitened by their exact covariance."""
    mixing = np.linalg.inv(unmixing_of(dim=dim, matrix_seed=matrix_seed))
    # The variance of a standard logistic is pi^2 / 3.
    covariance = math.pi**2 / 3 * mixing.T @ mixing
    return mixing @ np.linalg.inv(np.linalg.cholesky(covariance)).T


def _ica(**options) -> targets.Target:
    return targets.ica(ica_mixing(**options))


def _gaussian_bernoulli_rbm(
    *, dim: int, num_hidden: int, weight_scale: float, matrix_seed: int
) -> targets.Target:
    """Weights of one size and random signs, standard normal biases."""
    rng = np.random.default_rng(matrix_seed)
    weights = weight_scale * rng.choice([-1.0, 1.0], size=(dim, num_hidden))
    biases = rng.normal(size=dim), rng.normal(size=num_hidden)
    return targets.gaussian_bernoulli_rbm(weights, *biases)


CONSTRUCTORS = {
    "eight_gaussians": targets.eight_gaussians,
    "rings": targets.rings,
    "two_moons": targets.two_moons,
    "checkerboard": targets.checkerboard,
    "ica": _ica,
    "gaussian_bernoulli_rbm": _gaussian_bernoulli_rbm,
}

SMOOTH = ("eight_gaussians", "rings", "two_moons")
PLANE = (*SMOOTH, "checkerboard")
ICA = ("ica_10", "ica_50")
RBM = ("rbm_10",)
HIGH = (*ICA, *RBM)
UCI = tabular.SMALL

TARGETS = {
    # Neighbours five standard deviations apart: two modes, but not two worlds.
    "eight_gaussians": {"name": "eight_gaussians", "radius": 2.0, "std": 0.3},
    "rings": {"name": "rings", "radii": (1.0, 2.0, 3.0, 4.0), "std": 0.15},
    "two_moons": {"name": "two_moons", "noise_scale": 0.1},
    "checkerboard": {"name": "checkerboard", "num_squares": 4, "side": 2.0},
    "ica_10": {"name": "ica", "dim": 10, "matrix_seed": 0},
    "ica_50": {"name": "ica", "dim": 50, "matrix_seed": 0},
    "rbm_10": {
        "name": "gaussian_bernoulli_rbm",
        "dim": 10,
        "num_hidden": 5,
        "weight_scale": 1.0,
        "matrix_seed": 0,
    },
}

BOUNDS = {"eight_gaussians": 6.0, "rings": 8.0, "two_moons": 5.0, "checkerboard": 8.0}
"""Densities are integrated over `[-bound, bound]^2`, twice as wide as the data."""


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    distances = ((points[:, None] - centres[None]) ** 2).sum(-1)
    return distances.argmin(1)


def modes_of(section: Mapping[str, Any], points: np.ndarray) -> np.ndarray:
    """Which part of a target in the plane each point `[n, 2]` belongs to, `[n]`."""
    name = section["name"]
    if name == "eight_gaussians":
        angles = np.arange(8) * (math.pi / 4)
        return _nearest(points, np.stack([np.cos(angles), np.sin(angles)], 1))
    if name == "rings":
        radii = np.asarray(section["radii"])
        distance = np.linalg.norm(points, axis=1)
        return np.abs(distance[:, None] - radii[None]).argmin(1)
    if name == "two_moons":
        angles = np.linspace(0, math.pi, 64)
        upper = np.stack([np.cos(angles), np.sin(angles)], 1)
        arcs = np.concatenate([upper, np.array([1.0, 0.5]) - upper])
        return np.concatenate(
            [_nearest(part, arcs) // 64 for part in np.array_split(points, 100)]
        )
    num = section["num_squares"]
    index = np.floor(points / section["side"] + num / 2).clip(-1, num).astype(int) + 1
    return index[:, 0] * (num + 2) + index[:, 1]


# --- the model ---------------------------------------------------------------------


class Model(NamedTuple):
    """An energy to train.

    Attributes:
      init: `init(key) -> params` of the energy.
      energy: `energy(params, x) -> []`.
      log_partition: `log_partition(params) -> []`, exact; None where no formula is.
      sample: `sample(params, key) -> x`, an exact draw; None where there is none.
    """

    init: Callable[[Key], Params]
    energy: Energy
    log_partition: Callable[[Params], Array] | None = None
    sample: Callable[[Params, Key], Array] | None = None


def mlp_model(moments, *, widths, activation, with_scale: bool = False) -> Model:
    """Dense layers plus a normal energy twice as wide as the data: always integrable.

    With `with_scale`, the energy of a noised example: `energy(params, x, noise_scale)`.
    """
    mean, covariance = moments
    width = float(np.sqrt(np.trace(covariance) / len(mean)))
    mean = mean.astype(np.float32)
    shape = (len(mean) + with_scale,)
    network = networks.mlp_energy(shape, widths=widths, activation=activation)

    def energy(params, x, *scale):
        h = (x - mean) / width
        base = 0.125 * jnp.sum(h**2)
        if with_scale:
            h = jnp.append(h, jnp.log(scale[0]))
        return base + network.apply(params, h)

    return Model(lambda key: network.init(key)[0], energy)


def ica_model(moments) -> Model:
    mean, _ = moments

    def init(key):
        # Of sources with the variance of logistic ones, were the data white.
        rotation = jax.random.orthogonal(key, len(mean))
        return {"unmixing": rotation * (math.pi / math.sqrt(3))}

    def sample(params, key):
        sources = jax.random.logistic(key, mean.shape)
        return jnp.linalg.solve(params["unmixing"].T, sources)

    def log_partition(params):
        return -jnp.linalg.slogdet(params["unmixing"])[1]

    return Model(init, energies.ica, log_partition, sample)


def rbm_model(moments, *, num_hidden: int) -> Model:
    mean, _ = moments

    def init(key):
        weights = 0.3 * jax.random.normal(key, (len(mean), num_hidden))
        return {
            "weights": weights,
            "visible_bias": jnp.asarray(mean, weights.dtype),
            "hidden_bias": jnp.zeros(num_hidden),
        }

    bits = np.arange(2**num_hidden)[:, None] >> np.arange(num_hidden)[None]
    states = jnp.asarray(2.0 * (bits & 1) - 1.0, jnp.float32)

    def mixture(params):
        means = params["visible_bias"][None] + 0.5 * states @ params["weights"].T
        return means, states @ params["hidden_bias"] + 0.5 * jnp.sum(means**2, axis=1)

    def sample(params, key):
        state_key, noise_key = jax.random.split(key)
        means, logits = mixture(params)
        state = jax.random.categorical(state_key, logits)
        return means[state] + jax.random.normal(noise_key, mean.shape)

    def log_partition(params):
        constant = 0.5 * len(mean) * math.log(2 * math.pi)
        return jax.nn.logsumexp(mixture(params)[1]) + constant

    return Model(init, energies.gaussian_bernoulli_rbm, log_partition, sample)


MODELS = {"mlp": mlp_model, "ica": ica_model, "gaussian_bernoulli_rbm": rbm_model}


# --- methods -----------------------------------------------------------------------


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
    optimizer = optax.adam(
        _run.schedule(start=3e-3, final=1e-5, decay_steps=num_updates)
    )

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
        energy=model.energy, noise_scales=noise_scales
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


class Method(NamedTuple):
    """A line of the table.

    Attributes:
      make: `make(problem, **options) -> Setup`.
      targets: Where it applies.
      num_gradients: `num_gradients(options, dim)`: gradients of the energy for each
        example of a batch in one update. A value with its gradient in the parameters is
        one, a score one more, and differentiating a score doubles it.
      options: Of `make`, `objective.*` in the config.
      num_updates: Of training.
      overrides: Other values of the config than the common ones, dotted.
      per_target: Target -> options that differ there.
      has_opponent: Whether a flow, a critic or a generator is trained too.
    """

    make: Callable[..., Setup]
    targets: tuple[str, ...]
    num_gradients: Callable[[Mapping[str, Any], int], float]
    options: Mapping[str, Any] = {}
    num_updates: int = 10_000
    overrides: Mapping[str, Any] = {}
    per_target: Mapping[str, Mapping[str, Any]] = {}
    has_opponent: bool = False


DIFFERENTIABLE = (*SMOOTH, *HIGH)
"""Score matching and its kin compare scores, and a checkerboard has none."""

_CHAIN = {"eight_gaussians": 0.05, "rings": 0.01, "two_moons": 0.005}
_CHAIN |= {"checkerboard": 0.05, "ica_10": 0.4, "ica_50": 0.2}
_CHAIN |= {"rbm_10": 0.3}
"""Steps of the samplers: a fraction of the square of each target's narrowest width."""


STEPS = {target: {"step_size": step} for target, step in _CHAIN.items()}

FLOW = {"num_layers": 6, "width": 32}

SLOW_ENERGY = {
    # An opponent that lags behind lets the energy run away.
    "optimizer.learning_rate.start": 3e-4,
    "optimizer.b1": 0.5,
    "opponent.b1": 0.5,
}

METHODS = {
    "score_matching": Method(
        _alone(objectives.score_matching),
        (*DIFFERENTIABLE, *UCI),
        lambda options, dim: 2 * (1 + dim),
    ),
    "sliced_score_matching": Method(
        _alone(objectives.sliced_score_matching),
        (*DIFFERENTIABLE, *UCI),
        lambda options, dim: 2 + 2 * options["num_projections"],
        {"num_projections": 1, "projection": "rademacher", "variance_reduced": True},
    ),
    "finite_difference_score_matching": Method(
        _alone(objectives.finite_difference_score_matching),
        (*DIFFERENTIABLE, *UCI),
        lambda options, dim: 3,
        {"step": 0.05},
    ),
    "denoising_score_matching": Method(
        _alone(objectives.denoising_score_matching),
        (*PLANE, *HIGH, *UCI),
        lambda options, dim: 4 if options["variance_reduction"] else 2,
        {"noise_scale": 0.03, "variance_reduction": "antithetic"},
        per_target={"checkerboard": {"noise_scale": 0.1}},
    ),
    "multi_scale_denoising_score_matching": Method(
        multi_scale,
        PLANE,  # the exact models have no noise scale to be a function of
        lambda options, dim: 2,
        {"noise_scales": (0.03, 0.08, 0.2, 0.5, 1.3)},
        num_updates=30_000,
    ),
    "minimum_velocity": Method(
        _alone(objectives.minimum_velocity),
        DIFFERENTIABLE,
        lambda options, dim: 3,
        {"step_size": 1e-4},
    ),
    "kernel_stein": Method(
        _alone(objectives.kernel_stein),
        DIFFERENTIABLE,
        lambda options, dim: 2,
        {"kernel": "rbf", "bandwidth": 0.3, "statistic": "u"},
        per_target={name: {"bandwidth": None} for name in HIGH},
    ),
    "learned_stein": Method(
        learned_stein,
        DIFFERENTIABLE,
        lambda options, dim: 2 + options["num_critic_updates"],
        {"l2_weight": 0.1, "num_critic_updates": 5, "width": 64},
        num_updates=15_000,
        has_opponent=True,
        overrides=SLOW_ENERGY,
        per_target={name: {"l2_weight": 0.5, "width": 128} for name in HIGH},
    ),
    "conditional_noise_contrastive": Method(
        _alone(objectives.conditional_noise_contrastive),
        (*PLANE, *HIGH),
        lambda options, dim: 2,
        {"noise_scale": 0.3},
    ),
    "noise_contrastive": Method(
        noise_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: 1 + options["num_noise"],
        {"noise": "gaussian", "num_noise": 4},
    ),
    "noise_contrastive_flow": Method(
        noise_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: 1 + options["num_noise"],
        {"noise": "flow", "num_noise": 4, "num_updates": 3000, **FLOW},
        per_target={name: {"num_layers": 2, "width": 64} for name in HIGH},
    ),
    "flow_contrastive": Method(
        flow_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: 4,
        FLOW,
        num_updates=15_000,
        has_opponent=True,
        overrides={"opponent.learning_rate.start": 1e-3},
    ),
    "telescoping": Method(
        telescoping,
        PLANE,  # its model is a sum of energies, and none of the exact ones
        lambda options, dim: 2 * len(options["waymarks"]),
        {"waymarks": (0.6, 0.9, 1.0)},
        num_updates=20_000,
    ),
    "self_contrastive": Method(
        self_contrastive,
        HIGH,  # where the model can be drawn from
        lambda options, dim: 1 + options["num_noise"],
        {"num_noise": 1},
    ),
    "contrastive_divergence": Method(
        contrastive_divergence,
        (*PLANE, *HIGH),
        lambda options, dim: 3 + options["num_steps"],
        {"start": "data", "num_steps": 5, "step_size": 0.0},
        per_target=STEPS,
    ),
    "persistent_contrastive_divergence": Method(
        contrastive_divergence,
        (*PLANE, *HIGH),
        lambda options, dim: 3 + options["num_steps"],
        {
            "start": "replay",
            "num_steps": 20,
            "step_size": 0.0,
            # So few that each moves every fourth update: of chains that lag behind,
            # some are stuck where the energy is steep, and raise it further.
            "capacity": 1024,
            "reinit_prob": 0.002,
        },
        num_updates=20_000,
        per_target=STEPS,
    ),
    "short_run": Method(
        contrastive_divergence,
        PLANE,  # elsewhere its chains end where those of the others do
        lambda options, dim: 3 + options["num_steps"],
        {
            "start": "noise",
            "num_steps": 50,
            "step_size": 0.0,
            "energy_penalty": 0.001,
        },
        per_target=STEPS,
    ),
    "unbiased_contrastive_divergence": Method(
        _alone(objectives.unbiased_contrastive_divergence, start=starts.data()),
        (*PLANE, "rbm_10"),  # in many dimensions the chains do not meet
        lambda options, dim: 2 + 2 * options["max_steps"],
        {"num_burn_in": 0, "num_steps": 10, "max_steps": 40, "step_size": 0.0},
        overrides={"data.batch_size": 64},
        per_target={
            "eight_gaussians": {"step_size": 0.4},
            "rings": {"step_size": 0.2},
            "two_moons": {"step_size": 0.15},
            "checkerboard": {"step_size": 0.5},
            "rbm_10": {"step_size": 0.5},
        },
    ),
    "variational": Method(
        variational,
        (*PLANE, *HIGH),
        lambda options, dim: 2 + options["num_flow_updates"],
        {"num_flow_updates": 2, **FLOW},
        has_opponent=True,
        overrides=SLOW_ENERGY,
    ),
    "entropy_gradient": Method(
        entropy_gradient,
        (*PLANE, *HIGH),
        lambda options, dim: 2 + options["num_generator_updates"],
        {
            "noise_scale": 0.1,
            "num_generator_updates": 1,
            "num_importance": 20,
            "widening": 2.0,
            "width": 128,
            "score_penalty": 0.0,
        },
        has_opponent=True,
        overrides=SLOW_ENERGY,
    ),
    "f_contrastive": Method(
        f_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: (
            (1 + options["num_critic_updates"])
            * (3 + options["num_steps"] if options["num_steps"] else 2)
        ),
        {
            "divergence": "js",
            "num_critic_updates": 1,
            "num_steps": 50,
            "step_size": 0.0,
        },
        num_updates=5_000,
        has_opponent=True,
        overrides=SLOW_ENERGY,
        per_target=STEPS | {name: {"num_steps": 0} for name in HIGH},  # exact draws
    ),
    "maximum_likelihood": Method(maximum_likelihood, HIGH, lambda options, dim: 1),
}
"""What applies where. Not here, for want of data of their kind: `ratio_matching` and
`minimum_probability_flow` (two values), `non_negative_score_matching` (no negative
values); they are in the tests."""


# --- config ------------------------------------------------------------------------

DEFAULT = "noise_contrastive,two_moons"


def _num_turns(options) -> int:
    """Updates of an opponent for one of the energy."""
    turns = ("num_critic_updates", "num_flow_updates", "num_generator_updates")
    return max((options[name] for name in turns if name in options), default=1)


def _config(method_name: str, target_name: str) -> dict:
    table = {
        "base": f"{method_name},{target_name}",  # what the sections above are of
        "methods": (method_name,),
        "targets": (target_name,),
        "num_seeds": 3,
        "overrides": (),  # of the cells, such as ("train.num_steps=100",)
    }
    if target_name in UCI:
        return _deep_kernel.default_config(target_name, method_name) | {"sweep": table}
    method, data = METHODS[method_name], TARGETS[target_name]
    # Matrices of unit size take larger steps than networks do.
    rate, num_updates = 3e-3, method.num_updates
    if target_name in HIGH:
        rate, num_updates = 1e-2, max(num_updates, 15_000)
    rate = {
        "start": rate,
        "final": 1e-3 * rate,
        "warmup_steps": 0,
        "decay": "cosine",
        "decay_start": 0,
        "decay_steps": num_updates,
    }
    adam = {"name": "adam", "b1": 0.9, "b2": 0.999, "gradient_clip": 10.0}
    network = {"name": data["name"]}
    if target_name in PLANE:
        network = {"name": "mlp", "widths": (64, 64, 64), "activation": "swish"}
    elif target_name in RBM:
        network["num_hidden"] = data["num_hidden"]
    opponent = {"decay_steps": num_updates * _num_turns(method.options)}
    config = {
        "seed": 0,
        "data": {**data, "batch_size": 256},  # of all devices
        "network": network,
        "objective": {
            "name": method_name,
            **method.options,
            **method.per_target.get(target_name, {}),
        },
        "optimizer": {**adam, "learning_rate": rate},
        "opponent": {**adam, "learning_rate": rate | opponent},  # or critic, generator
        "ema_decay": 0.999,  # of the parameters that are evaluated; 0 for none
        "train": _run.train_section(
            num_updates, log_every=1_000, checkpoint_every=0, keep=1, abort_above=1e7
        ),
        "evaluation": {
            "num_points": 800,  # of the grid, a side, in the plane
            "num_examples": 20_000,  # draws of the target, elsewhere
        },
        "sweep": table,
    }
    if not method.has_opponent:
        del config["opponent"]
    config = ConfigDict(config)
    config.update_from_flattened_dict(method.overrides)
    if method.has_opponent and target_name in HIGH:
        config.optimizer.learning_rate.start = 3e-3
    return config.to_dict()


def _check_names(names, known) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} must be one of {sorted(known)}")


def get_config(preset: str = DEFAULT) -> ConfigDict:
    method, comma, target = preset.partition(",")
    if not comma:
        raise ValueError(f"preset must be 'method,target', got {preset!r}")
    every = (*TARGETS, *UCI)
    _check_names((method,), (*METHODS, "all"))
    _check_names((target,), (*every, "all"))
    methods = tuple(METHODS) if method == "all" else (method,)
    chosen = every if target == "all" else (target,)
    cells = [(m, t) for m in methods for t in chosen if t in METHODS[m].targets]
    if not cells:
        raise ValueError(
            f"{method} does not apply to {target}; it does to {METHODS[method].targets}"
        )
    config = ConfigDict(_config(*cells[0]))
    config.sweep.update(methods=methods, targets=chosen)
    return config.lock()


# --- building ----------------------------------------------------------------------


def _moments(sample, key) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(sample(key, 20_000), np.float64)
    return x.mean(0), np.cov(x.T)


def make_problem(config: ConfigDict, keys: _run.Keys) -> tuple[Problem, targets.Target]:
    """The model and the data: all that an evaluation of a trained energy needs."""
    section = {k: v for k, v in config.data.items() if k != "batch_size"}
    target = _run.construct(section, CONSTRUCTORS)
    moments = _moments(target.sample, jax.random.fold_in(keys.params, 1))
    problem = Problem(
        model=_run.construct(config.network, MODELS, moments),
        data=target.sample,
        moments=moments,
        optimizer=lambda: _run.make_optimizer(config.optimizer),
        opponent=(
            functools.partial(_run.make_optimizer, config.opponent)
            if "opponent" in config
            else None
        ),
        key=keys.params,
        network={k: v for k, v in config.network.items() if k != "name"},
    )
    return problem, target


def _set_up(config: ConfigDict, problem: Problem) -> Setup:
    makes = {name: method.make for name, method in METHODS.items()}
    return _run.construct(config.objective, makes, problem)


def build(config: ConfigDict, keys: _run.Keys) -> _run.Experiment:
    if "sweep" in config and len(config.sweep.methods) * len(config.sweep.targets) > 1:
        raise ValueError("a preset with 'all' is a table of runs: add --sweep")
    if config.data.name in UCI:
        return _deep_kernel.build(config, keys)
    problem, target = make_problem(config, keys)
    setup = _set_up(config, problem)
    num_microbatches = sum(player.num_updates for player in setup.players.values())
    evaluation = in_plane if config.data.name in PLANE else by_draws
    return _run.Experiment(
        players=setup.players,
        params=setup.params,
        batch=_data.target_batches(
            keys.data, target, config.data.batch_size * num_microbatches
        ),
        evaluate=evaluation(config, problem, target, setup.energy),
    )


# --- evaluation --------------------------------------------------------------------


def _fisher(energy_fn, true_fn):
    """Half the squared distance of two scores at one example."""

    def at(x):
        difference = jax.grad(energy_fn)(x) - jax.grad(true_fn)(x)
        return 0.5 * jnp.sum(difference**2)

    return at


def _learned(params) -> dict[str, float]:
    known = "log_partition" in params
    return {"learned_log_partition": params["log_partition"]} if known else {}


def _bound_energy(problem, energy, params):
    if energy is not None:
        return functools.partial(energy, params)
    return functools.partial(problem.model.energy, params["energy"])


def in_plane(config, problem, target, energy=None):
    """Divergences from the target on a grid; all to the rounding of float32.

    The model's log partition function is of a square three times as wide as the grid's:
    what of the model is off the grid, `mass_off_grid`, counts in its divergence.
    """
    section, bound = config.evaluation, BOUNDS[config.data.name]
    _plots.check()
    if section.num_points % 4 or section.num_points < 4:
        raise ValueError(
            "evaluation.num_points must be a positive multiple of 4,"
            f" got {section.num_points}"
        )
    cell = 2 * math.log(2 * bound / section.num_points)  # log of the area
    grid = _plane.plane(bound, section.num_points // 4)
    log_true = grid.log_probabilities(target.energy_fn)
    true = np.exp(log_true)
    used = true > 0
    modes = modes_of(config.data, np.asarray(grid.points))
    mode_probs = np.bincount(modes, true)

    def evaluate(state, key, directory):
        params = _run.evaluated_params(state)
        energy_fn = _bound_energy(problem, energy, params)
        wide = [(-3 * bound, 3 * bound)] * 2
        log_partition = float(
            metrics.quadrature(energy_fn, wide, section.num_points * 3 // 2)
        )
        at_points = np.asarray(_plane.at_points(energy_fn, grid.points), np.float64)
        log_model = cell - at_points - log_partition
        model = np.exp(log_model)
        kl = true[used] @ (log_true[used] - log_model[used])
        model_probs = np.bincount(modes, model, len(mode_probs))
        present = mode_probs > 0
        between = mode_probs[present] @ np.log(
            mode_probs[present] / np.maximum(model_probs[present], 1e-300)
        )
        scalars = {
            "kl": kl,  # nats, of the target from the model
            "kl_within_modes": kl - between,
            "mass_off_grid": max(1 - model.sum(), 0.0),
            "entropy": -(true[used] * log_true[used]).sum() + cell,
            "log_partition": log_partition,
        }
        if config.data.name in SMOOTH:
            at = _plane.at_points(_fisher(energy_fn, target.energy_fn), grid.points)
            scalars["fisher_divergence"] = true[used] @ np.asarray(at)[used]
        panels = {"data": grid.binned(true), config.objective.name: grid.binned(model)}
        _plots.densities(directory / "densities.png", panels, bounds=(-bound, bound))
        # A telescope's constants are part of its energy, whose own constant is 0.
        learned = _learned(params) if energy is None else {}
        return scalars | learned

    return evaluate


def by_draws(config, problem, target, energy=None):
    """Divergences from the target by means over draws; log partitions are exact."""
    num = config.evaluation.num_examples

    def evaluate(state, key, directory):
        params = _run.evaluated_params(state)
        energy_fn = _bound_energy(problem, energy, params)
        log_partition = problem.model.log_partition(params["energy"])
        x = target.sample(key, num)

        def excess(x):  # of the model's minus log density over the target's
            model = energy_fn(x) + log_partition
            return model - target.energy_fn(x) - target.log_partition

        at_x = np.asarray(_plane.at_points(excess, x), np.float64)
        likelihood = np.asarray(_plane.at_points(energy_fn, x), np.float64).mean()
        return {
            "kl": at_x.mean(),
            "kl_standard_error": at_x.std() / math.sqrt(num),
            "fisher_divergence": _plane.at_points(
                _fisher(energy_fn, target.energy_fn), x
            ).mean(),
            "test_log_likelihood": -likelihood - log_partition,
            "log_partition": log_partition,
        } | _learned(params)

    return evaluate


# --- the table ---------------------------------------------------------------------


def _cells(config: ConfigDict) -> dict[str, ConfigDict]:
    """`method,target,seed` -> config, of the cells that apply.

    Raises:
      ValueError: For what no cell has or is, or a config that is not as its preset.
    """
    section = config.sweep
    _check_names(section.methods, METHODS)
    _check_names(section.targets, (*TARGETS, *UCI))
    if section.num_seeds < 1:
        raise ValueError(f"sweep.num_seeds must be at least 1, got {section.num_seeds}")
    names = [
        (name, target)
        for target in section.targets
        for name in section.methods
        if target in METHODS[name].targets
    ]
    if not names:
        raise ValueError("no method of sweep.methods applies to any of sweep.targets")
    usual = _run.flat(_config(*section.base.split(",")))
    for option, value in _run.flat(config.to_dict()).items():
        if usual.get(option) != value and not option.startswith(("sweep.", "seed")):
            raise ValueError(
                f"a sweep is of presets: put {option}={value} into sweep.overrides"
            )
    overrides = dict(_override(text) for text in section.overrides)
    unused, cells = set(overrides), {}
    for name, target in names:
        if target in UCI and "data.data_dir" not in overrides:
            print(f"left out, without a data.data_dir: {name},{target}")
            continue
        cell = _config(name, target)
        del cell["sweep"]  # a cell is the same run in any sweep
        values = {k: v for k, v in overrides.items() if k in _run.flat(cell)}
        unused -= set(values)
        for seed in range(config.seed, config.seed + section.num_seeds):
            cells[f"{name},{target},{seed}"] = _sweep.overridden(
                ConfigDict(cell), values | {"seed": seed}
            )
    if unused:
        raise ValueError(f"no cell has the overrides {sorted(unused)}")
    return cells


def _override(text: str) -> tuple[str, Any]:
    """`"train.num_steps=100"` -> `("train.num_steps", 100)`; what is no literal is
    text."""
    option, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"sweep.overrides must be 'option=value', got {text!r}")
    try:
        return option, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return option, value


def _columns(target: str) -> tuple[str, ...]:
    if target in UCI:
        return "test_log_likelihood", "score_matching", "ais_bracket", "ais_bound_gap"
    within = ("kl_within_modes",) if target in PLANE else ()
    return "kl", *within, "fisher_divergence", "log_partition_error"


def _row(name: str, target: str, configs, folders) -> dict[str, str] | None:
    """A line of a target's table, from the seeds that have ended."""
    found, failures, seconds = [], 0, []
    for config, folder in zip(configs, folders, strict=True):
        failures += (folder / _sweep.FAILURE).is_file()
        scalars = _sweep.finished(folder, config)
        if scalars is None:
            continue
        if "learned_log_partition" in scalars:
            error = scalars["learned_log_partition"] - scalars["log_partition"]
            scalars = scalars | {"log_partition_error": error}
        found.append(scalars)
        rates = [x.get("steps_per_second") for x in _run.read_lines(folder)]
        if rates := [rate for rate in rates if rate]:
            seconds.append(1000 / np.median(rates))
    if not found and not failures:
        return None
    method, config = METHODS[name], configs[0]
    row = {"method": f"`{name}`"}
    for column in _columns(target):
        row[column] = _sweep.mean_and_spread([x[column] for x in found if column in x])
    if target not in UCI:
        dim = 2 if target in PLANE else TARGETS[target]["dim"]
        gradients = method.num_gradients(config.objective, dim)
        row["gradients"] = f"{gradients:g}"
    row |= {
        # The fastest seed's, which other work disturbed least.
        "s / 1000 updates": f"{min(seconds):.2g}" if seconds else "-",
        "updates": str(config.train.num_steps),
        "seeds": f"{len(found)}" + (f" ({failures} failed)" if failures else ""),
    }
    return row


def sweep(build, config: ConfigDict, workdir) -> None:
    """The table of methods and targets, one part for each target, and its picture."""
    workdir = pathlib.Path(workdir)
    cells = _cells(config)
    for cell in {cell.data.name: cell for cell in cells.values()}.values():
        if cell.data.name in UCI:
            tabular.load(cell.data.name, data_dir=cell.data.data_dir)  # is it there?

    def report(_):
        parts = []
        for target in config.sweep.targets:
            rows = []
            for name in config.sweep.methods:
                names = [c for c in cells if c.startswith(f"{name},{target},")]
                folders = [workdir / _sweep.CELLS / c for c in names]
                configs = [cells[c] for c in names]
                if names and (row := _row(name, target, configs, folders)):
                    rows.append(row)
            if rows:
                parts.append(f"### {target}\n\n{_run.format_table(rows)}")
        _run.write_atomically(workdir / "table.md", "\n".join(parts))

    _sweep.run_cells(build, cells, workdir, report, keeps_failures=True)
    print((workdir / "table.md").read_text())
    _picture(config, workdir, cells)


def _picture(config, workdir, cells) -> None:
    """Densities in the plane side by side, of the first seed."""
    rows, bounds = {}, {}
    for target in config.sweep.targets:
        if target not in PLANE:
            continue
        panels = {}
        for name in config.sweep.methods:
            cell = f"{name},{target},{config.seed}"
            folder = workdir / _sweep.CELLS / cell
            if cell not in cells or _sweep.finished(folder, cells[cell]) is None:
                continue
            energy_fn, true_fn = load(folder)
            bound = 0.6 * BOUNDS[target]
            grid = _plane.plane(bound, 100)
            if not panels:
                panels["data"] = grid.binned(grid.probabilities(true_fn))
            panels[name] = grid.binned(grid.probabilities(energy_fn))
        if panels:
            rows[target], bounds[target] = panels, (-bound, bound)
    if rows:
        _plots.density_table(workdir / "densities.png", rows, bounds)


def load(workdir: str | pathlib.Path):
    """`(energy_fn, energy_fn of the target)` of a run; not of the UCI tables."""
    has_average = bool(_checkpoint.read_config(pathlib.Path(workdir)).ema_decay)
    config, params, _ = _checkpoint.load(workdir, ema=has_average)
    if config.data.name in UCI:
        raise ValueError(
            f"{workdir} is a run on {config.data.name}: its energy is _deep_kernel's"
        )
    problem, target = make_problem(config, _run.make_keys(config.seed))
    setup = _set_up(config, problem)
    params = jax.tree.map(jnp.asarray, params)
    return _bound_energy(problem, setup.energy, params), target.energy_fn


if __name__ == "__main__":
    _run.main(build, __file__, sweep)
