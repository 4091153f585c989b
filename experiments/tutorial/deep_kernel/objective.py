"""Losses that are quadratic in the weights, whose minimum has a closed form.

The weights of one half of a batch minimise its loss. The loss of the other half, with
the derivative through these weights, trains everything else.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import objectives
from ebmjax.objectives import Aux, Objective
from ebmjax.types import Array, Key, Params
from experiments.run.config import construct
from experiments.tutorial.deep_kernel.model import energy, score


class Quadratic(NamedTuple):
    """A loss as a function of the weights, up to a constant.

    It is `alpha . matrix alpha / 2 + slope . alpha`.

    Attributes:
      matrix: `[inducing, inducing]`.
      slope: `[inducing]`.
    """

    matrix: Array
    slope: Array


class Loss(NamedTuple):
    """An objective of the energy, and its expansion in the weights.

    Attributes:
      objective: An objective of `energy`.
      expand: `expand(params, key, batch) -> Quadratic`, with the same draws as the
        objective's for the same key.
    """

    objective: Objective
    expand: Callable[[Params, Key, Array], Quadratic]


OBJECTIVES = {
    "score_matching": objectives.score_matching,
    "sliced_score_matching": objectives.sliced_score_matching,
    "denoising_score_matching": objectives.denoising_score_matching,
    "finite_difference_score_matching": objectives.finite_difference_score_matching,
}
"""Objectives that are quadratic in the energy, so that the weights have a closed form.
Noise contrastive and contrastive divergence losses are not."""


def make_loss(section: dict[str, Any] | ConfigDict) -> Loss:
    """Returns the loss that `section.name` names, with the section's other keys.

    Its matrix and slope in the weights are derivatives of the library's own objective
    at weights of zero. They are exact, because the objective is quadratic in them.
    """
    objective = construct("objective", section, OBJECTIVES, energy)
    # Second derivatives in all weights need the objective of a score in which the
    # weights come last. Finite differences need no score: the energy will do.
    of_score = objective
    if section["name"] != "finite_difference_score_matching":

        def on_score(make):
            return lambda **options: make(score_network=score, **options)

        makers = {name: on_score(make) for name, make in OBJECTIVES.items()}
        of_score = construct("objective", section, makers)

    @jax.jit
    def expand(params, key, batch):
        def loss(objective, alpha):
            fitted = params | {"alpha": alpha}
            both = {"energy": fitted, "score": fitted}
            return objective.loss(both, key, batch, ())[0]

        zero = jnp.zeros(params["inducing"].shape[0], batch.dtype)
        slope = jax.grad(functools.partial(loss, objective))(zero)
        gradient = jax.grad(functools.partial(loss, of_score))
        _, product = jax.linearize(gradient, zero)
        return Quadratic(jax.vmap(product)(jnp.eye(len(zero), dtype=zero.dtype)), slope)

    return Loss(objective, expand)


def solve(quadratic: Quadratic, log_ridge: Array) -> tuple[Array, Array]:
    """Returns the weights of least loss with a ridge: `-(matrix + ridge)^-1 slope`.

    The ridge is `10^log_ridge` plus 8 units in the last place of the matrix's trace,
    about 1e-6 of it in float32. The addition keeps the rounding of Cholesky's
    decomposition from making a pivot negative. Differentiable in everything.

    Returns:
      The weights, and the norm of the equation's residual, relative to the slope.
    """
    matrix, slope = quadratic
    jitter = 8 * jnp.finfo(matrix.dtype).eps * jnp.trace(matrix)
    ridge = 10**log_ridge + jitter
    system = matrix + ridge * jnp.eye(len(slope), dtype=matrix.dtype)
    alpha = -jax.scipy.linalg.solve(system, slope, assume_a="pos")
    left = jnp.linalg.norm(system @ alpha + slope) / jnp.linalg.norm(slope)
    return alpha, jax.lax.stop_gradient(left)


def two_halves(loss: Loss) -> Objective:
    """Returns the loss of a batch's second half with the weights that fit the first.

    The weights are functions of all that is trained, and no gradient is stopped.
    Metrics: those of the loss, `log_ridge`, and `weights_residual`, the residual that
    rounding leaves of the linear equation.
    """

    def halves(params, key, batch):
        size = batch.shape[0] // 2
        if 2 * size != batch.shape[0] or not size:
            raise ValueError(
                f"a device's batch must be two equal halves, got {batch.shape[0]} rows"
            )
        fit_key, loss_key = jax.random.split(key)
        params = params["energy"]
        quadratic = loss.expand(params, fit_key, batch[:size])
        alpha, left = solve(quadratic, params["log_ridge"])
        fitted = {"energy": params | {"alpha": alpha}}
        value, aux = loss.objective.loss(fitted, loss_key, batch[size:], ())
        extra = {"log_ridge": params["log_ridge"], "weights_residual": left}
        return value, aux.metrics | jax.lax.stop_gradient(extra)

    return objectives.stateless(halves)


# --- early stopping ----------------------------------------------------------------


class Best(NamedTuple):
    """The parameters that training would have stopped with.

    Attributes:
      num_updates: [], int32: calls so far.
      step: [], int32: step at which the parameters were the best.
      loss: [], their validation loss.
      params: The parameters.
    """

    num_updates: Array
    step: Array
    loss: Array
    params: Params


def early_stopping(
    objective: Objective,
    validation_loss: Callable[[Params], Array],
    params: Params,
    *,
    every: int,
    patience: int,
) -> Objective:
    """Remembers the parameters of least validation loss, until patience ends.

    The parameters before every `every`-th update are looked at. If none has been better
    than the best for more than `patience` updates, the best is final, as if training
    had stopped there. The run still goes on to its end, because its length cannot be a
    function of the data.

    Args:
      objective: A stateless objective of `params["energy"]`.
      validation_loss: `validation_loss(params) -> scalar`, the same for the same
        parameters.
      params: The initial parameters.
      every: Number of updates between looks.
      patience: Number of updates; 0 for no end.

    Returns:
      An `Objective` with the memory `Best`. Its metrics are the objective's own,
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


def make_validation_loss(
    loss: Loss, key: Key, fit_rows: np.ndarray, rows: np.ndarray
) -> Callable[[Params], Array]:
    """Returns the loss of `rows` with the weights that fit `fit_rows`.

    Its draws are the same at every call, so that only parameters are compared.
    """
    fit_key, loss_key = jax.random.split(key)
    fit_rows, rows = jnp.asarray(fit_rows), jnp.asarray(rows)

    def validation_loss(params):
        quadratic = loss.expand(params, fit_key, fit_rows)
        alpha, _ = solve(quadratic, params["log_ridge"])
        fitted = {"energy": params | {"alpha": alpha}}
        return loss.objective.loss(fitted, loss_key, rows, ())[0]

    return validation_loss
