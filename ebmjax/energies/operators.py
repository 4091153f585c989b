"""Derivatives of an energy, and energies that are made of other functions."""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import jax
import jax.numpy as jnp

from ebmjax.checks import check_number, scalar_energy, scalar_valued
from ebmjax.types import Array, Energy, EnergyFn, Params

__all__ = [
    "divergence",
    "from_logdensity",
    "from_numpyro_potential",
    "from_score",
    "hvp",
    "laplacian",
    "latent_energy",
    "score",
    "tilt",
]

Rest = ParamSpec("Rest")


def from_logdensity(logdensity: Callable[Rest, Array]) -> Callable[Rest, Array]:
    """Returns the energy of a log density, which is minus its value.

    The log density may lack its normalising constant. Bind parameters afterwards, so
    that they are arguments of the compiled program:

        energy_fn = functools.partial(energies.from_logdensity(logdensity), params)

    Args:
      logdensity: `logdensity(x) -> []` of one example, or with parameters before it and
        a condition after it.

    Returns:
      An energy with the same arguments.

    Raises:
      ValueError: At trace, if a value is not a scalar.
    """

    def energy(*arguments: Rest.args, **options: Rest.kwargs) -> Array:
        return -scalar_valued("logdensity", logdensity)(*arguments, **options)

    return energy


def from_numpyro_potential(
    potential_fn: Callable[[Any], Array],
) -> Callable[[Any], Array]:
    """Returns the energy of a model of NumPyro, from its potential.

    The potential is that of unconstrained positions, a dict with an array for each
    latent variable of the model. It is minus the log of the joint density with the
    Jacobian, and so an energy. `sample_chains` takes such positions, and
    `postprocess_fn` turns draws into the model's own variables:

        model = numpyro.infer.util.initialize_model(key, model, model_args=(data,))
        energy_fn = energies.from_numpyro_potential(model.potential_fn)
        x = jax.tree.map(lambda z: jnp.stack([z] * 100), model.param_info.z)
        state, z = sample_chains(sampler, energy_fn, key, x, 1000,
                                 collect=lambda state, info: state.position)
        draws = jax.vmap(jax.vmap(model.postprocess_fn))(z)

    Args:
      potential_fn: Potential that `numpyro.infer.util.initialize_model` returns, called
        as `potential_fn(z) -> []`. With `dynamic_args=True` it returns a function of
        the model's arguments instead, which must be called first.

    Returns:
      An `EnergyFn` of the unconstrained position.

    Raises:
      ValueError: At trace, if the value is not a scalar.
    """
    return scalar_valued("potential_fn", potential_fn)


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
    gradient: Callable[..., Array] = jax.grad(
        scalar_valued("energy", energy), argnums=1
    )

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
    gradient: Callable[..., Array] = jax.grad(
        scalar_valued("energy", energy), argnums=1
    )

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
    gradient: Callable[..., Array] = jax.grad(
        scalar_valued("energy", energy), argnums=1
    )
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
    fraction = check_number("fraction", fraction, positive=False)

    def tilted(x: Array) -> Array:
        start = scalar_valued("reference_fn", reference_fn)(x)
        return (1 - fraction) * start + fraction * scalar_energy(energy_fn)(x)

    return tilted


def latent_energy(
    energy_fn: EnergyFn,
    generator_fn: Callable[[Array], Array],
    temperature: float | Array = 1.0,
    prior: bool = True,
) -> EnergyFn:
    """Returns the energy of a generator's latent, as in GEBM.

    See https://arxiv.org/abs/2003.05033.

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
    temperature = check_number("temperature", temperature, positive=True)

    def energy_of_latent(z: Array) -> Array:
        energy = scalar_energy(energy_fn)(generator_fn(z)) / temperature
        return 0.5 * jnp.sum(z**2) + energy if prior else energy

    return energy_of_latent
