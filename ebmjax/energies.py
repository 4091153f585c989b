"""Closed-form energies, and operators that act on any energy.

An energy is `energy(params, x) -> []` for one example `x: [*event]`, and means the
density `p(x) ~ exp(-energy(params, x))`. An `energy_fn` is the same with its
parameters bound. Nothing here knows of batches: use `jax.vmap`.
"""

import functools
import math
from collections.abc import Callable

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

FEW_DIMENSIONS = 8
"""Events of at most so many elements have their mixtures written out."""


def _quadratic(precision: Array, difference: Array) -> Array:
    """`difference . precision . difference`; precision a scalar, diagonal or matrix."""
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
    """Log-determinant of the precision over the whole event."""
    size = math.prod(event_shape)
    if precision.ndim == 2 * len(event_shape) and event_shape:
        return jnp.linalg.slogdet(precision.reshape(size, size))[1]
    return jnp.sum(jnp.log(jnp.broadcast_to(precision, event_shape)))


def _quadratics(precisions: Array, means: Array, x: Array) -> Array:
    """`_quadratic` of every component, `[K]`."""
    if not _is_written_out(precisions, means):
        return jax.vmap(lambda p, mean: _quadratic(p, x - mean))(precisions, means)
    # Component by component of x: a sum over a short last axis, which the general form
    # has, takes a CPU four times as long. Differences first: expanding the square would
    # lose what is left after subtracting the mean.
    return sum(p * step**2 for p, step in _elements(precisions, means, x))


def _is_written_out(precisions: Array, means: Array) -> bool:
    """Whether precisions act element by element, on events of few elements."""
    is_elementwise = precisions.ndim in (1, means.ndim)
    return is_elementwise and 0 < math.prod(means.shape[1:]) <= FEW_DIMENSIONS


def _elements(precisions: Array, means: Array, x: Array) -> list[tuple[Array, Array]]:
    """For each element of x, every component's precision and `x - mean`, both `[K]`."""
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
    """Energy of a normal distribution, zero at its mean.

    `0.5 * (x - mean) . precision . (x - mean)`. Not normalised: its log partition
    function is `0.5 * (d * log(2 pi) - log det precision)`.

    Args:
      params: `{"mean": [*event] or [], "precision": [] | [*event] | [*event, *event]}`.
        The precision is the inverse covariance, not the covariance or a standard
        deviation: one number for all directions, one for each, or a symmetric matrix.
      x: One example `[*event]`.

    Returns:
      A scalar, in nats.

    Raises:
      ValueError: If the precision's shape is none of the three.
    """
    return 0.5 * _quadratic(jnp.asarray(params["precision"]), x - params["mean"])


def gaussian_mixture(params: Params, x: Array) -> Array:
    """Minus the log density of a mixture of normal distributions.

    `-log sum_k exp(log_weights[k]) N(x; means[k], precisions[k]^-1)`: every component
    carries its own normalising constant, so `log_weights` are log probabilities of the
    components and the log partition function is `logsumexp(log_weights)`, which is 0
    for weights that sum to one. They are not normalised here, so that they can be
    trained.

    Args:
      params: `{"means": [K, *event], "precisions": [] or [K, ...], "log_weights": [K]}`
        where each precision is as in `gaussian`; a scalar serves all components.
      x: One example `[*event]`.

    Returns:
      A scalar, in nats.
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
    mixture = _fast_mixture if is_fast else _mixture
    return constant + mixture(means, precisions, log_weights, x)


def _log_terms(means, precisions, log_weights, x):
    """What every component has of the density, `[K]`, but for a constant."""
    log_dets = jax.vmap(lambda precision: _log_det(precision, x.shape))(precisions)
    return log_weights + 0.5 * (log_dets - _quadratics(precisions, means, x))


def _mixture(means, precisions, log_weights, x):
    return -jax.nn.logsumexp(_log_terms(means, precisions, log_weights, x))


_fast_mixture = jax.custom_jvp(_mixture)


@functools.partial(_fast_mixture.defjvp, symbolic_zeros=True)
def _mixture_tangent(primals, tangents):
    """In x, the gradient is the sum of the components' own, weighted by what each has
    of the density: two thirds of the time, on a CPU, of what is made of a `logsumexp`
    by differentiating it. In the parameters that is what is done."""
    *params, x = primals
    *params_dot, x_dot = tangents
    log_terms = _log_terms(*params, x)
    largest = jax.lax.stop_gradient(jnp.max(log_terms))
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)  # as logsumexp has it
    weights = jnp.exp(log_terms - largest)
    total = jnp.sum(weights)
    energy_dot = jnp.zeros_like(total)
    if not isinstance(x_dot, SymbolicZero):
        means, precisions, _ = params
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

        def of_params(changed):
            new = [changed.get(index, param) for index, param in enumerate(params)]
            return _mixture(*new, x)

        here = {index: params[index] for index in moved}
        energy_dot += jax.jvp(of_params, (here,), (moved,))[1]
    return -(largest + jnp.log(total)), energy_dot


def gaussian_bernoulli_rbm(params: Params, x: Array) -> Array:
    """Energy of a restricted Boltzmann machine of normal and binary units, the binary
    ones summed out.

    The joint law is `exp(x . weights h / 2 + visible_bias . x + hidden_bias . h - |x|^2
    / 2)` with `h` in {-1, 1}: given `h` the `x` are normal of variance 1. What is left
    of it is `|x|^2 / 2 - visible_bias . x - sum log(2 cosh(x weights / 2 +
    hidden_bias))`, a mixture of `2^hidden` normals. Its log partition function is a sum
    of that many terms: see `targets.gaussian_bernoulli_rbm`.

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
    """Energy of independent logistic sources, mixed linearly.

    Minus the log density of the sources `x unmixing`, standard logistic each, as if
    they were the data: the Jacobian is left out, so that the log partition function is
    `-log |det unmixing|`, and a method that learns it can be held to that.

    Args:
      params: `{"unmixing": [d, d]}`.
      x: One example `[d]`.

    Returns:
      A scalar, in nats.
    """
    sources = x @ params["unmixing"]
    # -log of exp(-s) / (1 + exp(-s))^2, which is even in s.
    return jnp.sum(jax.nn.softplus(sources) + jax.nn.softplus(-sources))


def from_score(score: Callable[..., Array]) -> Energy:
    """An energy of which nothing but the score is known, for samplers that ask no more.

    Its gradient in `x` is `-score`, and its value NaN: a score need not be that of any
    energy, and an integral of it is not to be had at one point. So `langevin`,
    `underdamped` and `sample_annealed` run with it; what accepts by energies refuses
    every move, and shows NaN for the energy. Its gradient in the parameters is 0. The
    inverse of `score`, as far as there is one; `jax_debug_nans` stops at its value.

    Args:
      score: `score(params, x, ...) -> [*event]` of one example.

    Returns:
      `energy(params, x, ...) -> []`.
    """

    @jax.custom_jvp
    def value(x, found):
        del found
        return jnp.full((), jnp.nan, x.dtype)

    @value.defjvp
    def slope(primals, tangents):
        # Along x alone: the score's own change is of the second order.
        return value(*primals), -jnp.sum(primals[1] * tangents[0])

    def energy(params, x, *rest):
        found = score(params, x, *rest)
        if found.shape != x.shape:
            raise ValueError(
                f"score must return an array of the example's shape {x.shape}, got"
                f" {found.shape}"
            )
        return value(x, found)

    return energy


def score(energy: Energy) -> Callable[..., Array]:
    """The score `(params, x, ...) -> -grad_x energy(params, x, ...)`, of the event's
    shape.

    The score is the gradient of the log density; the gradient of the energy, which
    some papers call a score, has the other sign.
    """
    gradient = jax.grad(energy, argnums=1)
    return lambda params, x, *rest: -gradient(params, x, *rest)


def hvp(energy: Energy) -> Callable[[Params, Array, Array], Array]:
    """Hessian-vector product `(params, x, v) -> (d^2 energy / dx^2) v`.

    Forward over reverse: the cost of about two gradients, without forming the Hessian.
    It is the energy's Hessian; the Jacobian of the score is minus this.
    """
    gradient = jax.grad(energy, argnums=1)

    def product(params, x, v):
        return jax.jvp(lambda y: gradient(params, y), (x,), (v,))[1]

    return product


def laplacian(energy: Energy) -> Callable[[Params, Array], Array]:
    """Exact Laplacian `(params, x) -> trace(d^2 energy / dx^2)`, a scalar.

    Costs one Hessian-vector product for every dimension of the event, in blocks of 128,
    so that the memory does not grow with the square of the dimension. The divergence of
    the score is minus this.
    """
    gradient = jax.grad(energy, argnums=1)
    return lambda params, x: divergence(lambda y: gradient(params, y), x)


def divergence(
    field: Callable[[Array], Array], x: Array, weights: Array | None = None
) -> Array:
    """Exact `sum_i weights_i d field_i / d x_i` at `x [*event]`, a scalar.

    Costs one Jacobian-vector product for every element of the event, in blocks of 128.

    Args:
      field: `[*event] -> [*event]`.
      x: Where.
      weights: `[*event]`; ones if None.
    """
    _, product = jax.linearize(field, x)
    weights = jnp.ones_like(x) if weights is None else weights

    def diagonal(index):
        basis = jnp.zeros(x.size, x.dtype).at[index].set(1).reshape(x.shape)
        return product(basis).reshape(-1)[index] * weights.reshape(-1)[index]

    return jnp.sum(jax.lax.map(diagonal, jnp.arange(x.size), batch_size=128))


def tilt(energy_fn: EnergyFn, reference_fn: EnergyFn, fraction: Array) -> EnergyFn:
    """The geometric path from a reference to an energy.

    `x -> (1 - fraction) * reference_fn(x) + fraction * energy_fn(x)`: the reference at
    fraction 0, the energy at 1, as tempering and annealed importance sampling use it.
    To temper without a reference, divide the energy by a temperature instead.

    Args:
      energy_fn: Where the path ends.
      reference_fn: Where it begins.
      fraction: A scalar in [0, 1]; may be traced.
    """
    return lambda x: (1 - fraction) * reference_fn(x) + fraction * energy_fn(x)


def latent_energy(
    energy_fn: EnergyFn,
    generator_fn: Callable[[Array], Array],
    temperature: float = 1.0,
    prior: bool = True,
) -> EnergyFn:
    """Energy of a latent whose image under the generator has an energy.

    `z -> |z|^2 / 2 + energy_fn(generator_fn(z)) / temperature`. With the standard
    normal prior of the latent included this is the posterior of a generalised
    energy-based model; the temperature divides the energy and not the prior. Papers
    that multiply by a "temperature" mean the inverse of ours.

    Args:
      energy_fn: Energy of an example.
      generator_fn: Maps one latent `[latent_dim]` to one example, parameters bound.
      temperature: Positive.
      prior: False leaves out the prior term, as some published samplers do; the
        density may then not be normalisable.

    Returns:
      An `EnergyFn` of the latent.

    Raises:
      ValueError: If a temperature given as a number is not positive.
    """
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")

    def energy_of_latent(z):
        energy = energy_fn(generator_fn(z)) / temperature
        return 0.5 * jnp.sum(z**2) + energy if prior else energy

    return energy_of_latent
