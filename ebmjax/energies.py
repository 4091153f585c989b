"""Energies in closed form, and operators that act on any energy.

An energy is `energy(params, x) -> []` for one example `x [*event]`; it means the
density `p(x) ~ exp(-energy(params, x))`. An `energy_fn` is an energy with its
parameters bound. Nothing here handles batches: use `jax.vmap`.
"""

import functools
import math
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ebmjax.types import Array, Energy, EnergyFn, Params

__all__ = [
    "divergence",
    "from_score",
    "gaussian",
    "gaussian_bernoulli_rbm",
    "gaussian_mixture",
    "hvp",
    "ica",
    "laplacian",
    "latent_energy",
    "score",
    "tilt",
]

Rest = ParamSpec("Rest")

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


def from_score(
    score: Callable[Concatenate[Params, Array, Rest], Array],
) -> Callable[Concatenate[Params, Array, Rest], Array]:
    """Returns an energy of which only the score is known, and no value.

    It is for samplers that use no values. Its gradient in `x` is `-score`, and its
    value is NaN: a score need not be that of any energy, and its integral cannot be
    computed at one point. `langevin`, `underdamped` and `sample_annealed` run with such
    an energy. A sampler that accepts or refuses by energies refuses every move and
    reports NaN for the energy. The gradient in the parameters is 0. This is the inverse
    of `score`, as far as one exists. `jax_debug_nans` stops at its value.

    Args:
      score: `score(params, x, ...) -> [*event]` of one example.

    Returns:
      `energy(params, x, ...) -> []`.
    """

    @jax.custom_jvp
    def value(x: Array, found: Array) -> Array:
        del found
        return jnp.full((), jnp.nan, x.dtype)

    @value.defjvp
    def slope(
        primals: tuple[Array, Array], tangents: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        # Along x alone: the score's own change is of the second order.
        return value(*primals), -jnp.sum(primals[1] * tangents[0])

    def energy(
        params: Params, x: Array, *rest: Rest.args, **options: Rest.kwargs
    ) -> Array:
        found = score(params, x, *rest, **options)
        if found.shape != x.shape:
            raise ValueError(
                f"score must return an array of the example's shape {x.shape}, got"
                f" {found.shape}"
            )
        return value(x, found)

    result: Callable[..., Array] = energy
    return result


def score(
    energy: Callable[Concatenate[Params, Array, Rest], Array],
) -> Callable[Concatenate[Params, Array, Rest], Array]:
    """Returns the score of an energy, which is minus its gradient in `x`.

    The score is the gradient of the log density and has the event's shape. The gradient
    of the energy, which some papers call a score, has the other sign.

    Args:
      energy: `energy(params, x, ...) -> []` of one example.

    Returns:
      `score(params, x, ...) -> [*event]`.
    """
    gradient: Callable[..., Array] = jax.grad(energy, argnums=1)

    def negated(
        params: Params, x: Array, *rest: Rest.args, **options: Rest.kwargs
    ) -> Array:
        return -gradient(params, x, *rest, **options)

    result: Callable[..., Array] = negated
    return result


def hvp(energy: Energy) -> Callable[[Params, Array, Array], Array]:
    """Returns the Hessian-vector product (HVP) of an energy.

    The result is the function `(params, x, v) -> (d^2 energy / dx^2) v`. It is computed
    forward over reverse, at the cost of about two gradients and without forming the
    Hessian. It is the product with the energy's Hessian; the Jacobian of the score is
    minus that.

    Args:
      energy: `energy(params, x) -> []` of one example.

    Returns:
      `product(params, x, v) -> [*event]`.
    """
    gradient: Callable[..., Array] = jax.grad(energy, argnums=1)

    def product(params: Params, x: Array, v: Array) -> Array:
        along: Array = jax.jvp(lambda y: gradient(params, y), (x,), (v,))[1]
        return along

    return product


def laplacian(energy: Energy) -> Callable[[Params, Array], Array]:
    """Returns the exact Laplacian of an energy, the trace of its Hessian in `x`.

    It costs one Hessian-vector product for every dimension of the event. They are
    computed in blocks of 128, so that the memory does not grow with the square of the
    dimension. The divergence of the score is minus the Laplacian.

    Args:
      energy: `energy(params, x) -> []` of one example.

    Returns:
      `(params, x) -> []`.
    """
    gradient: Callable[..., Array] = jax.grad(energy, argnums=1)
    return lambda params, x: divergence(lambda y: gradient(params, y), x)


def divergence(
    field: Callable[[Array], Array], x: Array, weights: Array | None = None
) -> Array:
    """Returns the exact divergence `sum_i weights_i d field_i / d x_i` at one `x`.

    It costs one Jacobian-vector product for every element of the event, in blocks of
    128.

    Args:
      field: `[*event] -> [*event]`.
      x: Place of the divergence, `[*event]`.
      weights: Weights of the elements, `[*event]`; ones if None.

    Returns:
      A scalar.
    """
    _, product = jax.linearize(field, x)
    weights = jnp.ones_like(x) if weights is None else weights

    def diagonal(index: Array) -> Array:
        basis = jnp.zeros(x.size, x.dtype).at[index].set(1).reshape(x.shape)
        along: Array = product(basis)
        return along.reshape(-1)[index] * weights.reshape(-1)[index]

    return jnp.sum(jax.lax.map(diagonal, jnp.arange(x.size), batch_size=128))


def tilt(
    energy_fn: EnergyFn, reference_fn: EnergyFn, fraction: float | Array
) -> EnergyFn:
    """Returns an energy on the geometric path from a reference to an energy.

    The energy is `x -> (1 - fraction) * reference_fn(x) + fraction * energy_fn(x)`. It
    is the reference at fraction 0 and the energy at 1, as tempering and annealed
    importance sampling (AIS) use it. To temper without a reference, divide the energy
    by a temperature instead.

    Args:
      energy_fn: Energy at the end of the path.
      reference_fn: Energy at the start of the path.
      fraction: Place on the path, a scalar in [0, 1]; may be traced.

    Returns:
      An `EnergyFn`.
    """
    return lambda x: (1 - fraction) * reference_fn(x) + fraction * energy_fn(x)


def latent_energy(
    energy_fn: EnergyFn,
    generator_fn: Callable[[Array], Array],
    temperature: float | Array = 1.0,
    prior: bool = True,
) -> EnergyFn:
    """Returns the energy of a generator's latent, as in GEBM.

    The energy is `z -> |z|^2 / 2 + energy_fn(generator_fn(z)) / temperature`. With the
    standard normal prior of the latent included, this is the posterior of a generalised
    energy-based model. The temperature divides the energy and not the prior. The
    "temperature" of papers that multiply by it is the inverse of this one.

    Args:
      energy_fn: Energy of an example.
      generator_fn: Function from one latent `[latent_dim]` to one example, with its
        parameters bound.
      temperature: Temperature, positive.
      prior: Whether to include the prior term. Some published samplers leave it out;
        the density may then not be normalisable.

    Returns:
      An `EnergyFn` of the latent.

    Raises:
      ValueError: If a temperature given as a number is not positive.

    Source:
      Arbel, Zhou & Gretton (2021), "Generalized energy based models",
      https://arxiv.org/abs/2003.05033.
    """
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")

    def energy_of_latent(z: Array) -> Array:
        energy = energy_fn(generator_fn(z)) / temperature
        return 0.5 * jnp.sum(z**2) + energy if prior else energy

    return energy_of_latent
