"""The type of an objective, and functions that all objectives share."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from ebmjax.checks import check_batch, scalar_valued
from ebmjax.types import (
    BATCH,
    Array,
    Aux,
    Energy,
    Key,
    Metrics,
    Network,
    NetworkApplyStateful,
    Objective,
    Params,
)

__all__ = ["Aux", "Objective", "generate", "interpolate", "stateless"]

Function = TypeVar("Function", bound=Callable[..., Array])


def stateless(
    loss: Callable[[Params, Key, Array], tuple[Array, Metrics]],
) -> Objective:
    """Returns an objective that has no memory.

    Args:
      loss: `loss(params, key, batch) -> (scalar, metrics)`.

    Returns:
      An `Objective` whose carry is `()`.
    """

    def with_carry(
        params: Params, key: Key, batch: Array, carry: Any
    ) -> tuple[Array, Aux]:
        value, metrics = loss(params, key, batch)
        return value, Aux(carry, metrics)

    return Objective(init=lambda key: (), loss=with_carry)


def as_function(network: Function | Network) -> Function:
    """Returns the plain function of a function or of a `Network`."""
    if isinstance(network, Network):
        # What a network's module takes is known to the caller alone.
        return cast(Function, network.apply)
    return network


def scalar_function(name: str, network: Function | Network) -> Function:
    """Returns the plain function, which raises if its value is not a scalar."""
    return scalar_valued(name, as_function(network))


def averaged(
    example_loss: Callable[[Params, Key, Array], tuple[Array, Metrics]],
    *,
    allows_integers: bool = False,
) -> Objective:
    """Returns an objective that is the mean over the batch of a loss of one example.

    Args:
      example_loss: `example_loss(params, key, x) -> (scalar, metrics)` for an example
        `x [*event]`, with a key of its own.
      allows_integers: Whether the batch may be of integers.

    Returns:
      A stateless `Objective`. Its metrics are the means of the examples' metrics.
    """

    def loss(params: Params, key: Key, batch: Array) -> tuple[Array, Metrics]:
        if not allows_integers:
            check_batch(batch)
        keys = jax.random.split(key, batch.shape[0])
        values, metrics = jax.vmap(example_loss, (None, 0, 0))(params, keys, batch)
        values = scalars_of("the loss", values)
        metrics = jax.tree.map(jnp.mean, jax.lax.stop_gradient(metrics))
        return jnp.mean(values), metrics

    return stateless(loss)


def score_of(
    energy: Callable[..., Array] | Network | None,
    score_network: Callable[..., Array] | Network | None,
) -> Callable[..., Array]:
    """Returns the score of an energy, or of a network that is a score itself.

    The energy's parameters are `params["energy"]`, and the score network's are
    `params["score"]`. Further arguments, such as a noise scale, are passed on.

    Raises:
      TypeError: Unless exactly one of the two is given.
    """
    if energy is not None and score_network is None:
        gradient: Callable[..., Array] = jax.grad(
            scalar_function("energy", energy), argnums=1
        )
        return lambda params, x, *rest: -gradient(params["energy"], x, *rest)
    if energy is not None or score_network is None:
        given = "neither" if energy is None else "both"
        raise TypeError(f"give exactly one of energy and score_network, got {given}")
    network = as_function(score_network)

    def score(params: Params, x: Array, *rest: Any) -> Array:
        result = network(params["score"], x, *rest)
        if jnp.shape(result) != x.shape:
            raise ValueError(
                f"score_network must return an array of the example's shape {x.shape},"
                f" got {jnp.shape(result)}"
            )
        return result

    return score


Generator = Callable[[Params, Array], Array] | Network
"""Function `generator(params, latent) -> x` of one example, or a `Network`. If it has
`apply_stateful`, its batch statistics are in `params["<its name>_state"]`."""


def generate(
    generator: Generator, params: Params, latents: Array, name: str = "generator"
) -> tuple[Array, dict[str, Any]]:
    """Returns draws of a batch of latents and the renewed model state, as in training.

    A network with batch statistics normalises by this batch, on all devices.

    Args:
      generator: `generator(params, latent) -> x`, or a `Network`.
      params: Parameters by network, with the model state if there is one.
      latents: Latents, `[n, latent_dim]`.
      name: Name of the generator in `params`.

    Returns:
      `(x, model_state)`, the draws `[n, *event]` and the entry `"<name>_state"` that
      was renewed, or `{}`.
    """
    apply_stateful = _apply_stateful(generator)
    if apply_stateful is None:
        draws = jax.vmap(as_function(generator), (None, 0))
        return draws(params[name], latents), {}
    state = _state(params, name)

    def one(latent: Array) -> tuple[Array, dict[str, Any]]:
        return apply_stateful(params[name], state, latent, train=True)

    x, renewed = jax.vmap(one, out_axes=(0, None), axis_name=BATCH)(latents)
    return x, {f"{name}_state": renewed}


def single_generator(
    generator: Generator, params: Params, name: str = "generator"
) -> Callable[[Array], Array]:
    """Returns the generator of one latent, with running statistics if it has any."""
    apply_stateful = _apply_stateful(generator)
    if apply_stateful is None:
        return functools.partial(as_function(generator), params[name])
    state = _state(params, name)

    def one(latent: Array) -> Array:
        return apply_stateful(params[name], state, latent)[0]

    return one


def refreshed(
    network: Energy | Network, params: Params, x: Array, name: str
) -> dict[str, Any]:
    """Returns the state of a network, renewed once; `{}` for a network without a state.

    The state must not depend on examples, as with power-iteration vectors. No gradient
    flows through it.
    """
    apply_stateful = _apply_stateful(network)
    if apply_stateful is None:
        return {}
    state = _state(params, name)
    _, state = apply_stateful(params[name], state, x, train=True)
    return {f"{name}_state": jax.lax.stop_gradient(state)}


def interpolate(key: Key, a: Array, b: Array) -> Array:
    """Returns a uniformly random point between each pair of rows of two batches.

    Args:
      key: Typed key.
      a: Batch `[n, *event]`.
      b: Batch `[n, *event]`.

    Returns:
      Points `[n, *event]`, one for each row.
    """
    shape = (len(a),) + (1,) * (a.ndim - 1)
    share = jax.random.uniform(key, shape, a.dtype)
    return share * a + (1 - share) * b


def scalars_of(name: str, values: Array) -> Array:
    """Returns `values`, which must have shape [n].

    With [n, 1] the means would agree, but pairwise terms would broadcast silently.
    """
    if values.ndim != 1:
        raise ValueError(
            f"{name} must return a scalar for one example, got {values.shape[1:]}"
        )
    return values


def constant_of(params: Params, shape: tuple[int, ...] = ()) -> Array:
    """Returns `params["log_partition"]`, or raises unless it has the shape.

    With shape [1] the log odds would broadcast silently.
    """
    constant: Array = params["log_partition"]
    if jnp.shape(constant) != shape:
        raise ValueError(
            f"log_partition must be of shape {shape}, got {jnp.shape(constant)}"
        )
    return constant


def check_draws(name: str, draws: Array, batch: Array) -> None:
    """Raises unless draws have the shape of the batch's examples."""
    if draws.shape[1:] != batch.shape[1:]:
        raise ValueError(
            f"{name} must return an array of the example's shape {batch.shape[1:]},"
            f" got {draws.shape[1:]}"
        )


def _apply_stateful(
    network: Callable[..., Array] | Network,
) -> NetworkApplyStateful | None:
    """Returns the function of a network with mutable collections; None for others."""
    return network.apply_stateful if isinstance(network, Network) else None


def _state(params: Params, name: str) -> Any:
    """Returns the model state of the network with this name."""
    if f"{name}_state" not in params:
        raise ValueError(
            f"a {name} with a mutable state needs params['{name}_state'], from the"
            f" model_state of training.init_state; got {sorted(params)}"
        )
    return params[f"{name}_state"]


def score_metrics(score: Array) -> Metrics:
    """Returns the metric `score_norm` of one score, `[*event]`."""
    return {"score_norm": jnp.sqrt(dot(score, score))}


def dot(a: Array, b: Array) -> Array:
    """Returns the inner product of two events of one shape, over all elements."""
    return jnp.sum(a * b)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises unless `value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
