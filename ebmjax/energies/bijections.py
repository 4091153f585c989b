"""Bijections from real numbers to constrained positions, and energies under them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ebmjax.checks import scalar_energy
from ebmjax.types import Array

__all__ = ["Bijection", "constrained", "interval", "joint", "positive", "simplex"]


class Bijection(NamedTuple):
    """Smooth bijection from unconstrained positions to constrained ones.

    Attributes:
      forward: `forward(z) -> x` from an unconstrained position, any real numbers, to a
        constrained one.
      inverse: `inverse(x) -> z`.
      log_det: `log_det(z) -> []`, the log of the absolute determinant of the Jacobian
        of `forward`.
    """

    forward: Callable[[Any], Any]
    inverse: Callable[[Any], Any]
    log_det: Callable[[Any], Array]


def constrained(
    energy_fn: Callable[..., Array], bijection: Bijection
) -> Callable[..., Array]:
    """Returns the energy of the unconstrained positions of a constrained one.

    The energy is `z -> energy_fn(forward(z)) - log_det(z)`. If `z` has its law, then
    `forward(z)` has the law of `energy_fn` on the constrained support, so that any
    sampler of unconstrained positions samples it:

        energy_fn = energies.constrained(lambda x: x, energies.positive())
        state, z = sample_chains(sampler, energy_fn, key, jnp.zeros(100), 1000,
                                 collect=lambda state, info: state.position)
        x = jnp.exp(z)  # exponential, with mean 1

    Args:
      energy_fn: Energy of one constrained position; may have further arguments, such as
        a condition.
      bijection: Bijection to the support.

    Returns:
      An `EnergyFn` of the unconstrained position.
    """

    def energy(z: Any, *rest: Any, **options: Any) -> Array:
        x = bijection.forward(z)
        return scalar_energy(energy_fn)(x, *rest, **options) - bijection.log_det(z)

    return energy


def positive() -> Bijection:
    """Returns the bijection `x = exp(z)` to positive numbers, element by element."""
    return Bijection(jnp.exp, jnp.log, jnp.sum)


def interval(low: ArrayLike, high: ArrayLike) -> Bijection:
    """Returns the bijection to an open interval, element by element.

    It is `x = low + (high - low) * sigmoid(z)`.

    Args:
      low: Lower bounds, `[]` or `[*event]`, finite.
      high: Upper bounds, `[]` or `[*event]`, finite and above the lower ones.

    Returns:
      A `Bijection`.

    Raises:
      ValueError: If a bound is not finite, or not below its upper bound.
    """
    low, width = (
        np.asarray(low, float),
        np.asarray(high, float) - np.asarray(low, float),
    )
    if not (np.isfinite(low).all() and np.isfinite(width).all() and (width > 0).all()):
        raise ValueError(
            f"low and high must be finite with low < high, got {low!r}, {high!r}"
        )

    def forward(z: Array) -> Array:
        return _like(low, z) + _like(width, z) * jax.nn.sigmoid(z)

    def inverse(x: Array) -> Array:
        share: Array = jax.scipy.special.logit((x - _like(low, x)) / _like(width, x))
        return share

    def log_det(z: Array) -> Array:
        slopes = jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z)
        return jnp.sum(slopes + _like(np.log(width), z))

    return Bijection(forward, inverse, log_det)


def _like(constant: np.ndarray, x: Array) -> Array:
    """Returns a constant in the type of `x`, which it must not change."""
    return jnp.asarray(constant, x.dtype)


def simplex() -> Bijection:
    """Returns the bijection from `[..., k - 1]` numbers to `[..., k]` shares of one.

    The shares are positive and add up to 1. They break a stick: the first takes
    `sigmoid(z_1 - log(k - 1))` of it, the second `sigmoid(z_2 - log(k - 2))` of what is
    left, and so on, so that zeros mean equal shares. The law's density, and the
    Jacobian, are those of the first `k - 1` shares, as is usual for a Dirichlet
    distribution.

    Returns:
      A `Bijection`.
    """

    def logits(z: Array) -> Array:
        left = np.arange(z.shape[-1], 0, -1)
        return z - jnp.broadcast_to(_like(np.log(left), z), z.shape)

    def log_left(z: Array) -> Array:
        """Logs of what is left of the stick before each break and at the end."""
        first = jnp.zeros((*z.shape[:-1], 1), z.dtype)
        breaks = jnp.cumsum(jax.nn.log_sigmoid(-logits(z)), -1)
        return jnp.concatenate([first, breaks], -1)

    def forward(z: Array) -> Array:
        last = jnp.zeros((*z.shape[:-1], 1), z.dtype)
        taken = jnp.concatenate([jax.nn.log_sigmoid(logits(z)), last], -1)
        return jnp.exp(log_left(z) + taken)

    def inverse(x: Array) -> Array:
        # Sums from the end: 1 minus a sum from the start would be rounded.
        after = jnp.cumsum(x[..., ::-1], -1)[..., ::-1][..., 1:]
        zeros = jnp.zeros_like(after)
        return jnp.log(x[..., :-1]) - jnp.log(after) - logits(zeros)

    def log_det(z: Array) -> Array:
        slopes = jax.nn.log_sigmoid(logits(z)) + jax.nn.log_sigmoid(-logits(z))
        return jnp.sum(slopes + log_left(z)[..., :-1])

    return Bijection(forward, inverse, log_det)


def joint(bijections: Any) -> Bijection:
    """Returns the bijection of a tree of arrays, each by a bijection of its own.

        bijection = energies.joint({"mean": None, "scale": energies.positive()})

    Args:
      bijections: Tree of `Bijection`, with the structure of the positions; None leaves
        an array as it is.

    Returns:
      A `Bijection`.
    """

    def is_leaf(node: Any) -> bool:
        return node is None or isinstance(node, Bijection)

    def each(function: Callable[[Bijection, Any], Any], tree: Any, default: Any) -> Any:
        def of_leaf(bijection: Bijection | None, leaf: Any) -> Any:
            return default(leaf) if bijection is None else function(bijection, leaf)

        return jax.tree.map(of_leaf, bijections, tree, is_leaf=is_leaf)

    def forward(z: Any) -> Any:
        return each(
            lambda bijection, leaf: bijection.forward(leaf), z, lambda leaf: leaf
        )

    def inverse(x: Any) -> Any:
        return each(
            lambda bijection, leaf: bijection.inverse(leaf), x, lambda leaf: leaf
        )

    def log_det(z: Any) -> Array:
        terms = each(lambda b, leaf: b.log_det(leaf), z, lambda leaf: jnp.zeros(()))
        return jnp.asarray(sum(jax.tree.leaves(terms)))

    return Bijection(forward, inverse, log_det)
