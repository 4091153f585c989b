"""Energies in closed form."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ebmjax.checks import at_precision
from ebmjax.types import Array, Params

__all__ = ["gaussian", "gaussian_bernoulli_rbm", "gaussian_mixture", "ica"]

FEW_DIMENSIONS = 8
"""Largest number of elements of an event whose mixtures are written out."""


def _quadratic(precision: Array, difference: Array) -> Array:
    """Returns `difference . precision . difference` for any form of the precision."""
    if precision.ndim == 2 * difference.ndim and difference.ndim > 0:
        size = difference.size
        flat = difference.reshape(size)
        return flat @ precision.reshape(size, size) @ flat
    if precision.ndim not in (0, difference.ndim):
        raise ValueError(
            "precision must be a scalar, of the event's shape, or of the event's shape"
            f" twice; got {precision.shape} for an event of shape {difference.shape}"
        )
    return jnp.sum(precision * difference**2)


def _log_det(precision: Array, event_shape: tuple[int, ...]) -> Array:
    """Returns the log-determinant of the precision over the whole event."""
    size = math.prod(event_shape)
    if precision.ndim == 2 * len(event_shape) and event_shape:
        log_det: Array = jnp.linalg.slogdet(precision.reshape(size, size))[1]
        return log_det
    return jnp.sum(jnp.log(jnp.broadcast_to(precision, event_shape)))


def _quadratics(precisions: Array, means: Array, x: Array) -> Array:
    """Returns `_quadratic` of every component, `[K]`."""
    if not _is_written_out(precisions, means):
        return jax.vmap(lambda p, mean: _quadratic(p, x - mean))(precisions, means)
    # Component by component of x: a sum over a short last axis, which the general form
    # has, takes a CPU four times as long. Differences first: expanding the square would
    # lose what is left after subtracting the mean.
    terms = [p * step**2 for p, step in _elements(precisions, means, x)]
    return jnp.asarray(sum(terms))


def _is_written_out(precisions: Array, means: Array) -> bool:
    """Returns whether precisions act element by element, on events of few elements."""
    is_elementwise = precisions.ndim in (1, means.ndim)
    return is_elementwise and 0 < math.prod(means.shape[1:]) <= FEW_DIMENSIONS


def _elements(precisions: Array, means: Array, x: Array) -> list[tuple[Array, Array]]:
    """Returns the precisions and `x - means`, both `[K]`, for each element of x."""
    means = means.reshape(len(means), x.size)
    if precisions.ndim > 1:
        precisions = precisions.reshape(len(means), x.size)
    return [
        (
            precisions if precisions.ndim == 1 else precisions[:, i],
            element - means[:, i],
        )
        for i, element in enumerate(x.reshape(-1))
    ]


@at_precision("highest")
def gaussian(params: Params, x: Array) -> Array:
    """Returns the energy of a normal distribution, which is zero at its mean.

    The energy is `0.5 * (x - mean) . precision . (x - mean)`. It is not normalised: its
    log partition function is `0.5 * (d * log(2 pi) - log det precision)`.

    Args:
      params: `{"mean": [*event] or [], "precision": [] | [*event] | [*event, *event]}`.
        The precision is the inverse covariance, not the covariance or a standard
        deviation: one number for all directions, one for each, or a symmetric matrix.
      x: One example `[*event]`.

    Returns:
      A scalar, in nats.

    Raises:
      ValueError: If the precision has none of the three shapes.
    """
    return 0.5 * _quadratic(jnp.asarray(params["precision"]), x - params["mean"])


@at_precision("highest")
def gaussian_mixture(params: Params, x: Array) -> Array:
    """Returns minus the log density of a mixture of normal distributions.

    The energy is `-log sum_k exp(log_weights[k]) N(x; means[k], precisions[k]^-1)`.
    Every component has its own normalising constant, so `log_weights` are log
    probabilities of the components. The log partition function is
    `logsumexp(log_weights)`, which is 0 for weights that sum to one. The weights are
    not normalised here, so that they can be trained.

    Args:
      params: `{"means": [K, *event], "precisions": [] or [K, ...], "log_weights":
        [K]}`, where each precision is as in `gaussian`; a scalar applies to all
        components.
      x: One example `[*event]`.

    Returns:
      A scalar, in nats.

    Raises:
      ValueError: If the means do not have the example's shape.
    """
    means = jnp.asarray(params["means"])
    precisions = jnp.asarray(params["precisions"])
    log_weights = jnp.asarray(params["log_weights"])
    num_modes = means.shape[0]
    if means.shape[1:] != x.shape:
        raise ValueError(
            f"means must be [modes, *event]; got {means.shape} for an event of shape"
            f" {x.shape}"
        )
    if precisions.ndim == 0:
        precisions = jnp.broadcast_to(precisions, (num_modes,))
    constant = 0.5 * x.size * math.log(2 * math.pi)

    is_fast = _is_written_out(precisions, means)
    mixture: Callable[..., Array] = _fast_mixture if is_fast else _mixture
    return constant + mixture(means, precisions, log_weights, x)


def _log_terms(means: Array, precisions: Array, log_weights: Array, x: Array) -> Array:
    """Returns the log density of every component up to a constant, `[K]`."""
    log_dets = jax.vmap(lambda precision: _log_det(precision, x.shape))(precisions)
    return log_weights + 0.5 * (log_dets - _quadratics(precisions, means, x))


def _mixture(means: Array, precisions: Array, log_weights: Array, x: Array) -> Array:
    return -jax.nn.logsumexp(_log_terms(means, precisions, log_weights, x))


_fast_mixture = jax.custom_jvp(_mixture)


@functools.partial(_fast_mixture.defjvp, symbolic_zeros=True)
def _mixture_tangent(
    primals: tuple[Array, ...], tangents: tuple[Array | SymbolicZero, ...]
) -> tuple[Array, Array]:
    """Returns the energy of a mixture and its tangent.

    In x, the gradient is the sum of the components' gradients, weighted by each
    component's share of the density. On a CPU this takes two thirds of the time of
    differentiating a `logsumexp`. The tangent in the parameters does differentiate the
    `logsumexp`.
    """
    means, precisions, log_weights, x = primals
    *params_dot, x_dot = tangents
    log_terms = _log_terms(means, precisions, log_weights, x)
    largest = jax.lax.stop_gradient(jnp.max(log_terms))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)  # as logsumexp has it
    weights = jnp.exp(log_terms - largest)
    total = jnp.sum(weights)
    energy_dot = jnp.zeros_like(total)
    if not isinstance(x_dot, SymbolicZero):
        sums = [
            jnp.sum(weights * precision * step)
            for precision, step in _elements(precisions, means, x)
        ]
        energy_dot += jnp.sum(jnp.stack(sums) * x_dot.reshape(-1)) / total
    moved = {
        index: dot
        for index, dot in enumerate(params_dot)
        if not isinstance(dot, SymbolicZero)
    }
    if moved:
        params = dict(enumerate((means, precisions, log_weights)))

        def of_params(changed: dict[int, Array]) -> Array:
            new = params | changed
            return _mixture(new[0], new[1], new[2], x)

        here = {index: params[index] for index in moved}
        energy_dot += jax.jvp(of_params, (here,), (moved,))[1]
    return -(largest + jnp.log(total)), energy_dot


@at_precision("highest")
def gaussian_bernoulli_rbm(params: Params, x: Array) -> Array:
    """Returns the energy of a Gaussian-Bernoulli restricted Boltzmann machine (RBM).

    The binary units are summed out. The joint law is `exp(x . weights h / 2 +
    visible_bias . x + hidden_bias . h - |x|^2 / 2)` with `h` in {-1, 1}: given `h`, the
    `x` are normal with variance 1. The marginal energy is `|x|^2 / 2 - visible_bias . x
    - sum log(2 cosh(x weights / 2 + hidden_bias))`, a mixture of `2^hidden` normals.
    Its log partition function is a sum of that many terms: see
    `targets.gaussian_bernoulli_rbm`.

    Args:
      params: `{"weights": [d, hidden], "visible_bias": [d], "hidden_bias": [hidden]}`.
      x: One example `[d]`.

    Returns:
      A scalar, in nats.
    """
    fields = 0.5 * x @ params["weights"] + params["hidden_bias"]
    hidden = jnp.sum(jnp.logaddexp(fields, -fields))
    return 0.5 * jnp.sum(x**2) - jnp.sum(params["visible_bias"] * x) - hidden


@at_precision("highest")
def ica(params: Params, x: Array) -> Array:
    """Returns the energy of linearly mixed independent logistic sources (ICA).

    The energy is minus the log density of the sources `x unmixing`, each standard
    logistic, as if they were the data. The Jacobian is left out, so the log partition
    function is `-log |det unmixing|`, and a method that learns it can be tested against
    that value.

    Args:
      params: `{"unmixing": [d, d]}`.
      x: One example `[d]`.

    Returns:
      A scalar, in nats.
    """
    sources = x @ params["unmixing"]
    # -log of exp(-s) / (1 + exp(-s))^2, which is even in s.
    return jnp.sum(jax.nn.softplus(sources) + jax.nn.softplus(-sources))
