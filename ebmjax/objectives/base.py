"""What an objective is: a loss with a memory."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.types import BATCH, Array, Energy, Key, Network, Params

__all__ = ["Aux", "Objective", "stateless"]


class Aux(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
      carry: The objective's memory after this call.
      metrics: Scalars to log, by name.
      model_state: The entries of the model state that this call renewed.
    """

    carry: Any
    metrics: dict[str, Array] = {}
    model_state: dict[str, Any] = {}


class Objective(NamedTuple):
    """A loss to minimise, and the memory it needs.

    Attributes:
      init: `init(key) -> carry`; `()` where nothing is remembered.
      loss: `loss(params, key, batch, carry) -> (scalar, Aux)`. `params` is a dict keyed
        by network (`"energy"`, `"generator"`, ...), differentiated in argument 0.
    """

    init: Callable[[Key], Any]
    loss: Callable[[Params, Key, Array, Any], tuple[Array, Aux]]


def stateless(
    loss: Callable[[Params, Key, Array], tuple[Array, dict[str, Array]]],
) -> Objective:
    """An objective without a memory.

    Args:
      loss: `loss(params, key, batch) -> (scalar, metrics)`.
    """

    def with_carry(params, key, batch, carry):
        value, metrics = loss(params, key, batch)
        return value, Aux(carry, metrics)

    return Objective(init=lambda key: (), loss=with_carry)


def as_function(network: Energy | Network) -> Energy:
    """A plain function, from one or from a `Network`."""
    return network.apply if isinstance(network, Network) else network


def averaged(
    example_loss: Callable[[Params, Key, Array], tuple[Array, dict[str, Array]]],
) -> Objective:
    """An objective that is the mean of a loss of one example.

    Args:
      example_loss: `example_loss(params, key, x) -> (scalar, metrics)` for an example
        `x: [*event]`, with a key of its own.
    """

    def loss(params, key, batch):
        keys = jax.random.split(key, batch.shape[0])
        values, metrics = jax.vmap(example_loss, (None, 0, 0))(params, keys, batch)
        metrics = jax.tree.map(jnp.mean, jax.lax.stop_gradient(metrics))
        return jnp.mean(values), metrics

    return stateless(loss)


Score = Callable[..., Array]
"""`score(params, x, ...) -> [*event]` of the whole `params`, a dict by network."""


def score_of(
    energy: Energy | Network | None, score_network: Score | Network | None
) -> Score:
    """The score of an energy, `params["energy"]`, or a network that is one itself,
    `params["score"]`. What else is given, such as a noise scale, is handed on.

    Raises:
      TypeError: Unless exactly one of the two is given.
    """
    if (energy is None) == (score_network is None):
        given = "neither" if energy is None else "both"
        raise TypeError(f"give exactly one of energy and score_network, got {given}")
    if energy is not None:
        gradient = jax.grad(as_function(energy), argnums=1)
        return lambda params, x, *rest: -gradient(params["energy"], x, *rest)
    network = as_function(score_network)

    def score(params, x, *rest):
        result = network(params["score"], x, *rest)
        if jnp.shape(result) != x.shape:
            raise ValueError(
                f"score_network must return an array of the example's shape {x.shape},"
                f" got {jnp.shape(result)}"
            )
        return result

    return score


Generator = Callable[[Params, Array], Array] | Network
"""`generator(params, latent) -> x` of one example. A `Network` with `apply_stateful` is
one with batch statistics, which are in `params["<its name>_state"]`."""


def generate(
    generator: Generator, params: Params, latents: Array, name: str = "generator"
) -> tuple[Array, dict[str, Any]]:
    """`(draws, renewed model state)` of a batch of latents, as in training: what has
    batch statistics normalises by this batch, on all devices."""
    if not _has_state(generator):
        one = as_function(generator)
        return jax.vmap(one, (None, 0))(params[name], latents), {}
    state = _state(params, name)

    def one(latent):
        return generator.apply_stateful(params[name], state, latent, train=True)

    x, renewed = jax.vmap(one, out_axes=(0, None), axis_name=BATCH)(latents)
    return x, {f"{name}_state": renewed}


def single_generator(
    generator: Generator, params: Params, name: str = "generator"
) -> Callable[[Array], Array]:
    """The generator of one latent, by its running statistics where it has any."""
    if not _has_state(generator):
        return functools.partial(as_function(generator), params[name])
    state = _state(params, name)

    def one(latent):
        return generator.apply_stateful(params[name], state, latent)[0]

    return one


def refreshed(
    network: Energy | Network, params: Params, x: Array, name: str
) -> dict[str, Any]:
    """The state of a network that does not look at examples, such as power-iteration
    vectors, renewed once; `{}` for one without a state. No gradient runs through it."""
    if not _has_state(network):
        return {}
    state = _state(params, name)
    _, state = network.apply_stateful(params[name], state, x, train=True)
    return {f"{name}_state": jax.lax.stop_gradient(state)}


def between(key: Key, a: Array, b: Array) -> Array:
    """A uniformly random point on the way from each row of one batch to the other's."""
    shape = (len(a),) + (1,) * (a.ndim - 1)
    share = jax.random.uniform(key, shape, a.dtype)
    return share * a + (1 - share) * b


def scalars_of(name: str, values: Array) -> Array:
    """`[n]`, or said to be something else: means of `[n, 1]` would be the same, but not
    of its pairs."""
    if values.ndim != 1:
        raise ValueError(
            f"{name} must return a scalar for one example, got {values.shape[1:]}"
        )
    return values


def check_draws(name: str, draws: Array, batch: Array) -> None:
    if draws.shape[1:] != batch.shape[1:]:
        raise ValueError(
            f"{name} must return an array of the example's shape {batch.shape[1:]},"
            f" got {draws.shape[1:]}"
        )


def _has_state(generator: Generator) -> bool:
    return isinstance(generator, Network) and generator.apply_stateful is not None


def _state(params: Params, name: str):
    if f"{name}_state" not in params:
        raise ValueError(
            f"a {name} with a mutable state needs params['{name}_state'], from the"
            f" model_state of training.init_state; got {sorted(params)}"
        )
    return params[f"{name}_state"]


def score_metrics(score: Array) -> dict[str, Array]:
    return {"score_norm": jnp.sqrt(dot(score, score))}


def dot(a: Array, b: Array) -> Array:
    """Of two events of one shape, over all elements."""
    return jnp.sum(a * b)


def check_choice(name: str, value, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
