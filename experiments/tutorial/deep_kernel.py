"""The deep kernel exponential family on tables: kernels on learned features, whose
weights are solved for and not descended.

The log density is `sum_m alpha_m kernel(x, inducing_m) + log q0(x)` less a constant,
with `q0 = N(0, 2^2 I)` and a mixture of normal kernels, each on features of its own. A
loss that is quadratic in the weights `alpha` has its least in closed form: `alpha` is
that of one half of a batch, and the loss of the other half, with the derivative through
`alpha`, trains all else.

Papers: Wenliang, Sutherland, Strathmann & Gretton (2019), "Learning deep kernels for
exponential family densities"; Song, Garg, Shi & Ermon (2019), "Sliced score matching".

An experiment's file calls `default_config` and `build`; the data are
`_data.tabular`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import energies, metrics, objectives, samplers, training
from ebmjax.checks import check_count
from ebmjax.objectives import Aux, Objective
from ebmjax.types import Array, EnergyFn, Key, Params
from experiments.data import epoch_rows, process_rows, tabular
from experiments.run.config import construct, make_optimizer, train_section
from experiments.run.experiment import Experiment, Keys

REFERENCE_SCALE = 2.0
"""Standard deviation of `q0` in every direction."""


# --- the model ---------------------------------------------------------------------


def init_params(
    key: Key,
    inducing: np.ndarray | Array,
    *,
    width: int = 30,
    log_widths: tuple[float, ...] = (0.0, 0.5185, 1.0),
    log_ridge: float = -2.0,
) -> Params:
    """All that is trained; `energy` also needs the weights, `alpha`.

    Args:
      key: A typed key.
      inducing: `[inducing, d]`, where inducing points begin: training examples.
      width: Units of each of the three layers.
      log_widths: One kernel for each: the logarithm to base 10 of its squared width.
      log_ridge: The logarithm to base 10 of the ridge.
    """
    num, dim = len(log_widths), inducing.shape[1]

    def draw(key, *shape):
        # As published: by the units of the layer itself, not of the one before.
        return jax.random.normal(key, (num, *shape)) / math.sqrt(width)

    keys = iter(jax.random.split(key, 7))
    layers = [
        {"kernel": draw(next(keys), size, width), "bias": draw(next(keys), width)}
        for size in (dim, width, width)
    ]
    return {
        "layers": layers,
        "skip": draw(next(keys), dim, width),
        "inducing": jnp.asarray(inducing),
        "log_widths": jnp.asarray(log_widths),
        "mixture": jnp.zeros(num),
        "log_ridge": jnp.asarray(log_ridge),
    }


def _features(params: Params, x: Array) -> Array:
    """`[kernels, rows, width]` of `x [rows, d]`: softplus layers and a linear skip."""

    def one_kernel(layers, skip):
        first, second, last = layers
        y = jax.nn.softplus(x @ first["kernel"] + first["bias"][None])
        y = jax.nn.softplus(y @ second["kernel"] + second["bias"][None])
        return y @ last["kernel"] + last["bias"][None] + x @ skip

    return jax.vmap(one_kernel)(params["layers"], params["skip"])


def kernels(params: Params, x: Array, centers: Array | None = None) -> Array:
    """The kernel of an example `x [d]` with every inducing point, `[inducing]`.

    `centers` are the inducing points' features, for those who have them already.
    """
    if centers is None:
        centers = _features(params, params["inducing"])
    here = _features(params, x[None])
    # Distances do not change, and the products that they are made of are rounded less.
    middle = jax.lax.stop_gradient(jnp.mean(centers, axis=1, keepdims=True))
    here, centers = here - middle, centers - middle
    products = jnp.einsum("krw,kmw->km", here, centers)
    squares = jnp.sum(here**2, axis=2) + jnp.sum(centers**2, axis=2) - 2 * products
    scaled = squares / (2 * 10 ** params["log_widths"][:, None])
    weights = jax.nn.softmax(params["mixture"])
    return weights @ jnp.exp(-scaled)


def reference_energy(x: Array) -> Array:
    """Minus the log density of `q0`, normalised."""
    scale = REFERENCE_SCALE
    constant = 0.5 * math.log(2 * math.pi) + math.log(scale)
    return 0.5 * jnp.sum((x / scale) ** 2) + x.size * constant


def energy(params: Params, x: Array, centers: Array | None = None) -> Array:
    """Energy of an example `[d]`; `params` are those of `init_params` and `alpha`."""
    return reference_energy(x) - kernels(params, x, centers) @ params["alpha"]


def score(params: Params, x: Array) -> Array:
    """Minus the gradient of `energy`, with the weights last: linear in them, and a
    derivative in all of them costs hardly more than one."""
    slopes = jax.jacfwd(functools.partial(kernels, params))(x)
    return params["alpha"] @ slopes - x / REFERENCE_SCALE**2


def bind(params: Params) -> EnergyFn:
    """The energy of these parameters, with the inducing points' features computed."""
    params = jax.tree.map(jnp.asarray, params)
    centers = _features(params, params["inducing"])
    return functools.partial(_bound_energy, params, centers)


def _bound_energy(params, centers, x):
    return energy(params, x, centers)


# --- the weights -------------------------------------------------------------------


class Quadratic(NamedTuple):
    """A loss as a function of the weights, `alpha . matrix alpha / 2 + slope . alpha`,
    less a constant.

    Attributes:
      matrix: `[inducing, inducing]`.
      slope: `[inducing]`.
    """

    matrix: Array
    slope: Array


class Loss(NamedTuple):
    """An objective of the energy, and what it is in the weights.

    Attributes:
      objective: Of `energy`.
      of_batch: `of_batch(params, key, batch) -> Quadratic`, of the same draws as the
        objective's with the same key.
    """

    objective: Objective
    of_batch: Callable[[Params, Key, Array], Quadratic]


OBJECTIVES = {
    "score_matching": objectives.score_matching,
    "sliced_score_matching": objectives.sliced_score_matching,
    "denoising_score_matching": objectives.denoising_score_matching,
    "finite_difference_score_matching": objectives.finite_difference_score_matching,
}
"""Those that are quadratic in the energy, so that the weights have a closed form. Noise
contrastive and contrastive divergence losses are not."""

DEFAULTS = {
    "denoising_score_matching": {"noise_scale": 0.16},  # x; as published
    "finite_difference_score_matching": {"step": 0.1},  # x
}


def make_loss(section: dict[str, Any] | ConfigDict) -> Loss:
    """The loss that `section.name` names, with the section's other keys.

    Its matrix and slope in the weights are derivatives of the library's own objective
    at weights of zero: exact, since it is quadratic in them.
    """
    objective = construct(section, OBJECTIVES, energy)
    # Second derivatives in all weights, of the objective of a score in which they come
    # last. Finite differences have no such form, and need none: energies will do.
    of_score = objective
    if section["name"] != "finite_difference_score_matching":

        def on_score(make):
            return lambda **options: make(score_network=score, **options)

        makers = {name: on_score(make) for name, make in OBJECTIVES.items()}
        of_score = construct(section, makers)

    @jax.jit
    def of_batch(params, key, batch):
        def loss(objective, alpha):
            fitted = params | {"alpha": alpha}
            both = {"energy": fitted, "score": fitted}
            return objective.loss(both, key, batch, ())[0]

        zero = jnp.zeros(params["inducing"].shape[0], batch.dtype)
        slope = jax.grad(functools.partial(loss, objective))(zero)
        gradient = jax.grad(functools.partial(loss, of_score))
        _, product = jax.linearize(gradient, zero)
        return Quadratic(jax.vmap(product)(jnp.eye(len(zero), dtype=zero.dtype)), slope)

    return Loss(objective, of_batch)


def solve(quadratic: Quadratic, log_ridge: Array) -> tuple[Array, Array]:
    """The weights of least loss, with a ridge: `-(matrix + ridge)^-1 slope`.

    The ridge is `10^log_ridge`, and so much more as keeps Cholesky's rounding from
    finding a pivot below zero: 8 units in the last place of the matrix's trace, about
    1e-6 of it in float32. Differentiable in everything.

    Returns:
      The weights, and the size of what is left of the equation, relative to the slope.
    """
    matrix, slope = quadratic
    jitter = 8 * jnp.finfo(matrix.dtype).eps * jnp.trace(matrix)
    ridge = 10**log_ridge + jitter
    system = matrix + ridge * jnp.eye(len(slope), dtype=matrix.dtype)
    alpha = -jax.scipy.linalg.solve(system, slope, assume_a="pos")
    left = jnp.linalg.norm(system @ alpha + slope) / jnp.linalg.norm(slope)
    return alpha, jax.lax.stop_gradient(left)


def half_and_half(loss: Loss) -> Objective:
    """The loss of a batch's second half with the weights that suit its first best.

    The weights are functions of all that is trained, and nothing is stopped. Metrics:
    those of the loss's own, `log_ridge`, and `weights_residual`, what rounding left of
    the linear equation.
    """

    def halves(params, key, batch):
        size = batch.shape[0] // 2
        if 2 * size != batch.shape[0] or not size:
            raise ValueError(
                f"a device's batch must be two equal halves, got {batch.shape[0]} rows"
            )
        fit_key, loss_key = jax.random.split(key)
        params = params["energy"]
        quadratic = loss.of_batch(params, fit_key, batch[:size])
        alpha, left = solve(quadratic, params["log_ridge"])
        fitted = {"energy": params | {"alpha": alpha}}
        value, aux = loss.objective.loss(fitted, loss_key, batch[size:], ())
        extra = {"log_ridge": params["log_ridge"], "weights_residual": left}
        return value, aux.metrics | jax.lax.stop_gradient(extra)

    return objectives.stateless(halves)


# --- stopping early ----------------------------------------------------------------


class Best(NamedTuple):
    """The parameters that training would have stopped with.

    Attributes:
      num_updates: [], int32: calls so far.
      step: [], int32: at which the parameters were the best.
      loss: [], their validation loss.
      params: The parameters.
    """

    num_updates: Array
    step: Array
    loss: Array
    params: Params


def stopping_early(
    objective: Objective,
    validation_loss: Callable[[Params], Array],
    params: Params,
    *,
    every: int,
    patience: int,
) -> Objective:
    """Remembers the parameters of least validation loss, until patience is at an end.

    The parameters before every `every`-th update are looked at. Once none has been
    better than the best for more than `patience` updates, it stays the best for good,
    whatever comes: that is where training would have stopped. The run goes on to its
    end for all that, since its length is not a function of the data.

    Args:
      objective: Stateless, of `params["energy"]`.
      validation_loss: `validation_loss(params) -> scalar`, the same for the same
        parameters.
      params: The initial parameters.
      every: Updates from look to look.
      patience: In updates; 0 has no end.

    Returns:
      An `Objective` with the memory `Best`. Metrics: the objective's own,
      `validation_loss` of the best, and `best_step`.
    """

    def init(key):
        del key
        zero = jnp.zeros((), jnp.int32)
        params_now = jax.tree.map(jnp.asarray, params)
        return Best(zero, zero, jnp.full((), jnp.inf), params_now)

    def look(best, params):
        found = validation_loss(params).astype(best.loss.dtype)
        is_open = best.num_updates - best.step <= patience if patience else True
        new = best._replace(step=best.num_updates, loss=found, params=params)
        is_better = (found < best.loss) & is_open
        return jax.tree.map(lambda a, b: jnp.where(is_better, a, b), new, best)

    def loss(params, key, batch, best):
        value, aux = objective.loss(params, key, batch, ())
        now = jax.lax.stop_gradient(params["energy"])
        is_due = best.num_updates % every == 0
        best = jax.lax.cond(is_due, look, lambda best, params: best, best, now)
        extra = {"validation_loss": best.loss, "best_step": best.step}
        best = best._replace(num_updates=best.num_updates + 1)
        return value, Aux(best, aux.metrics | extra)

    return Objective(init, loss)


def validation_loss_of(
    loss: Loss, key: Key, fit_rows: np.ndarray, rows: np.ndarray
) -> Callable[[Params], Array]:
    """The loss of `rows` with the weights that suit `fit_rows`, of draws that are the
    same at every call: parameters are compared and not draws."""
    fit_key, loss_key = jax.random.split(key)
    fit_rows, rows = jnp.asarray(fit_rows), jnp.asarray(rows)

    def validation_loss(params):
        quadratic = loss.of_batch(params, fit_key, fit_rows)
        alpha, _ = solve(quadratic, params["log_ridge"])
        fitted = {"energy": params | {"alpha": alpha}}
        return loss.objective.loss(fitted, loss_key, rows, ())[0]

    return validation_loss


# --- after training ----------------------------------------------------------------

CHUNK = 500
"""Examples at a time, where a batch is a whole data set."""

LOG_RIDGE_STEPS = np.linspace(-1.0, 1.0, 201)
"""What the last ridge is tried at, from the trained one: the thousand steps of Adam at
1e-3 that were published reach as far."""


def _of_rows(loss: Loss, params: Params, key: Key, rows: np.ndarray):
    """The `Quadratic` of a whole data set, in float64."""
    total = Quadratic(0.0, 0.0)
    for index, first in enumerate(range(0, len(rows), CHUNK)):
        chunk = rows[first : first + CHUNK]
        found = loss.of_batch(params, jax.random.fold_in(key, index), chunk)
        share = len(chunk) / len(rows)
        total = Quadratic(
            *(a + share * np.asarray(b, np.float64) for a, b in zip(total, found))
        )
    return total


def finalize(
    loss: Loss, params: Params, key: Key, train: np.ndarray, validation: np.ndarray
) -> Params:
    """The ridge that suits the validation set best, with the weights of all the
    training data; the features stay.

    Both losses are quadratic in the weights, which for all ridges come from one
    decomposition: the best is found in float64 by trying all of `LOG_RIDGE_STEPS`.

    Returns:
      `params` with `alpha` and another `log_ridge`.
    """
    train_key, validation_key = jax.random.split(key)
    fit = _of_rows(loss, params, train_key, train)
    judge = _of_rows(loss, params, validation_key, validation)
    values, vectors = np.linalg.eigh(fit.matrix)
    log_ridges = float(params["log_ridge"]) + LOG_RIDGE_STEPS
    shrunk = np.maximum(values, 0)[:, None] + 10.0 ** log_ridges[None]
    alphas = -vectors @ ((vectors.T @ fit.slope)[:, None] / shrunk)
    losses = 0.5 * np.sum(alphas * (judge.matrix @ alphas), 0) + judge.slope @ alphas
    best = int(np.argmin(losses))
    return params | {
        "alpha": jnp.asarray(alphas[:, best], jnp.float32),
        "log_ridge": jnp.asarray(log_ridges[best], jnp.float32),
    }


def _reference(dim: int):
    """`q0` as what annealing begins from."""

    def sample(key):
        return REFERENCE_SCALE * jax.random.normal(key, (dim,))

    return sample, lambda x: -reference_energy(x)


def log_partitions(
    energy_fn: EnergyFn, key: Key, x: np.ndarray, section: ConfigDict
) -> dict[str, float]:
    """The log partition function from below, from above, and by importance sampling.

    Forwards from exact draws of `q0`, by annealed importance sampling with Hamiltonian
    moves: too small on average. Backwards it would be too large on average from exact
    draws of the model, which nobody has. The chains that begin it are the forward ones,
    drawn again by their weights and moved on for long: the bound is as good as they
    are, and a mode that no forward chain came upon is missing from both.

    Args:
      energy_fn: Of one example `[d]`.
      key: A typed key.
      x: Examples `[n, d]`, where chains begin that only find a step size.
      section: `num_chains`, `num_fractions`, `num_leapfrog`, `num_long` (moves of the
        chains before they go back), `num_importance` (draws), `chunk_size` (of them).

    Returns:
      In nats: `log_partition` (forwards) and `log_partition_reverse`; `ais_bracket`,
      the second less the first; `ais_bound_gap`, the same of the mean log weights,
      whose expectations the truth is between; `ais_effective_sample_size`;
      `ais_acceptance_rate`, the least of all fractions; `importance_log_partition` and
      `importance_effective_sample_size`, of draws of `q0`.
    """
    keys = jax.random.split(key, 6)
    dim, num_chains = x.shape[1], section.num_chains
    adapted = samplers.adapt(
        functools.partial(samplers.hmc, num_leapfrog=section.num_leapfrog),
        energy_fn,
        keys[0],
        jnp.asarray(x[np.arange(min(num_chains, 512)) % len(x)]),
        200,
        target_acceptance_rate=0.8,
        initial_step_size=0.1,
    )
    options = {"reference": _reference(dim), "fractions": section.num_fractions}
    forward = metrics.annealed_importance_sampling(
        adapted.sampler, energy_fn, keys[1], num_chains=num_chains, **options
    )
    rows = jax.random.categorical(keys[2], forward.log_weights, shape=(num_chains,))
    moved, _ = samplers.sample_chains(
        adapted.sampler,
        energy_fn,
        keys[3],
        forward.position[rows],
        section.num_long,
        collect=None,
    )
    reverse = metrics.reverse_annealed_importance_sampling(
        adapted.sampler, energy_fn, keys[4], moved.position, **options
    )
    simple, size = _importance(energy_fn, keys[5], dim, section)
    rates = jnp.concatenate([forward.acceptance_rate, reverse.acceptance_rate])
    found = {
        "log_partition": forward.log_partition,
        "log_partition_reverse": reverse.log_partition,
        "ais_bracket": reverse.log_partition - forward.log_partition,
        "ais_bound_gap": reverse.bound - forward.bound,
        "ais_effective_sample_size": forward.effective_sample_size,
        "ais_acceptance_rate": jnp.min(rates),
        "importance_log_partition": simple,
        "importance_effective_sample_size": size,
    }
    return {name: float(value) for name, value in found.items()}


def _importance(energy_fn, key, dim, section) -> tuple[float, float]:
    """Importance sampling from `q0` in chunks, put together."""

    @jax.jit
    def chunks(energy_fn, keys):
        def chunk(key):
            return metrics.importance_sampling(
                energy_fn,
                key,
                proposal=_reference(dim),
                num_samples=section.chunk_size,
            )

        return jax.lax.map(chunk, keys)

    num = -(-section.num_importance // section.chunk_size)
    found = chunks(jax.tree_util.Partial(energy_fn), jax.random.split(key, num))
    means, sizes = (np.asarray(value, np.float64) for value in found)
    # Sums of weights and of their squares, of every chunk, relative to the largest.
    largest = means.max()
    sums = np.exp(means - largest)
    return largest + np.log(sums.mean()), sums.sum() ** 2 / (sums**2 / sizes).sum()


def _normal_scalars(train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """What a normal distribution fitted to the training rows has: to compare with."""
    mean, covariance = train.mean(0), np.cov(train.T, bias=True)
    precision = np.linalg.inv(covariance)
    params = {"mean": jnp.asarray(mean), "precision": jnp.asarray(precision)}
    log_partition = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    energy_test = jax.vmap(functools.partial(energies.gaussian, params))(test)
    exact = objectives.score_matching(energies.gaussian)
    value, _ = exact.loss({"energy": params}, jax.random.key(0), test, ())
    return {
        "normal_score_matching": float(value),
        "normal_test_log_likelihood": -float(jnp.mean(energy_test)) - log_partition,
    }


# --- an experiment -----------------------------------------------------------------


def default_config(name: str, objective: str = "sliced_score_matching") -> dict:
    """The published sizes; lengths are of this file."""
    if name not in tabular.SMALL:
        raise ValueError(f"data must be one of {sorted(tabular.SMALL)}, got {name!r}")
    if objective not in OBJECTIVES:
        raise ValueError(
            f"the weights have a closed form for {sorted(OBJECTIVES)}, got"
            f" {objective!r}"
        )
    # Annealing must be slow to find the wells that these two leave far from the data.
    with_wells = objective in ("score_matching", "sliced_score_matching")
    num_moves = 4_000 if with_wells and name == "parkinsons" else 500
    return {
        "seed": 0,
        "data": {
            "name": name,
            "batch_size": 200,  # of all devices; half of it is for the weights
            "data_dir": "",  # folder with the file as published
            "split_seed": 2019,
            "whiten": "train",  # or "all", as published: test rows have a say
            "noise_scale": 0.05,  # whitened units
        },
        "network": {
            "num_inducing": 200,  # paper: M
            "width": 30,
            "log_widths": (0.0, 0.5185, 1.0),  # log10 of squared widths, one a kernel
            "log_ridge": -2.0,  # paper: log10 of lambda, at the start
        },
        "objective": {"name": objective, **DEFAULTS.get(objective, {})},
        "optimizer": {
            "name": "adam",
            "gradient_clip": 100.0,
            "learning_rate": {"start": 1e-2},
        },
        "validation": {
            "every": 10,  # updates
            "patience": 200,  # updates; 0 for no end
            "num_examples": 1_000,  # training rows that the weights are then fitted to
            # Of a row, here and for the last ridge: with one, draws are what is fitted.
            "num_draws": 1 if objective == "score_matching" else 10,
        },
        "ema_decay": 0.0,
        # The best parameters are in every checkpoint.
        "train": train_section(600, checkpoint_every=250, abort_above=0.0),
        "evaluation": {
            "num_chains": 1_000,
            "num_fractions": num_moves,
            "num_leapfrog": 5,
            "num_long": num_moves,  # moves of the chains that go back
            "num_importance": 1_000_000,
            "chunk_size": 10_000,
        },
    }


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Training with early stopping, and the evaluation of the best parameters."""
    section = config.data
    for name in ("every", "num_examples", "num_draws"):
        check_count(f"validation.{name}", config.validation[name], 1)
    table = tabular.from_section(section)
    network = dict(config.network)
    num_inducing = network.pop("num_inducing")
    if not 0 < num_inducing <= len(table.train):
        raise ValueError(
            f"network.num_inducing must be from 1 to {len(table.train)},"
            f" got {num_inducing}"
        )
    inducing_key, params_key = jax.random.split(keys.params)
    order = jax.random.permutation(inducing_key, len(table.train))
    inducing = table.train[np.asarray(order[:num_inducing])]
    params = init_params(params_key, inducing, **network)
    loss = make_loss(config.objective)
    fit_key, draw_key = jax.random.split(jax.random.fold_in(keys.evaluation, 0))
    order = jax.random.permutation(fit_key, len(table.train))
    fit_rows = table.train[np.asarray(order[: config.validation.num_examples])]
    objective = stopping_early(
        half_and_half(loss),
        validation_loss_of(
            loss,
            draw_key,
            fit_rows,
            np.tile(table.validation, (config.validation.num_draws, 1)),
        ),
        params,
        every=config.validation.every,
        patience=config.validation.patience,
    )
    rows = epoch_rows(keys.data, len(table.train), section.batch_size)
    local = process_rows(section.batch_size)
    optimizer = make_optimizer(config.optimizer)
    return Experiment(
        players={"energy": training.Player(("energy",), objective, optimizer)},
        params={"energy": params},
        batch=lambda step: table.train[rows(step)[local]],
        evaluate=_evaluate(config, table, loss),
    )


def _evaluate(config: ConfigDict, table: tabular.Table, loss: Loss):
    exact = objectives.score_matching(energy)
    num_draws = config.validation.num_draws

    def evaluate(state, key, directory):
        del directory
        finalize_key, partition_key = jax.random.split(key)
        best = jax.tree.map(lambda leaf: leaf[0], state.carry["energy"])
        rows = (np.tile(x, (num_draws, 1)) for x in (table.train, table.validation))
        params = finalize(loss, best.params, finalize_key, *rows)
        energy_fn = bind(params)
        found = log_partitions(energy_fn, partition_key, table.train, config.evaluation)
        energy_test = jnp.mean(jax.jit(jax.vmap(energy_fn))(table.test))
        run = jax.jit(lambda params: exact.loss(params, key, table.test, ())[0])
        return {
            "score_matching": float(run({"energy": params})),
            "test_log_likelihood": -float(energy_test) - found["log_partition"],
            "validation_loss": float(best.loss),
            "best_step": float(best.step),
            "log_ridge": float(params["log_ridge"]),
            **found,
            **_normal_scalars(table.train, table.test),
        }

    return evaluate
