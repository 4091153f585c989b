"""The learned Stein discrepancy (LSD), with a critic as a second player.

See https://arxiv.org/abs/2002.05616.

It needs no second derivatives of the energy in the data. The Stein term of a critic
`f`, a network `(params, x) -> [*event]`, is the mean over data of
`score . f + divergence of f`, which is 0 for every critic if the model is the data's
law. The critic maximises it minus `l2_weight |f|^2`. The best critic is
`(score - score of data) / (2 l2_weight)`, at which the Stein term is the Fisher
divergence divided by `l2_weight`. The energy minimises it.

Source:
  Grathwohl, Wang, Jacobsen, Duvenaud & Zemel (2020), "Learning the Stein discrepancy
  for training and evaluating energy-based models without sampling",
  https://arxiv.org/abs/2002.05616.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax import energies
from ebmjax.checks import check_count, check_number
from ebmjax.objectives.base import (
    Objective,
    as_function,
    averaged,
    dot,
    score_of,
)
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params

__all__ = ["critic_objective", "energy_objective"]

Critic = Callable[[Params, Array], Array] | Network


def critic_objective(
    energy: Energy | Network,
    critic: Critic,
    *,
    l2_weight: float,
    num_projections: int | None = 1,
) -> Objective:
    """Returns the critic's loss in LSD, minus the Stein term plus `l2_weight |f|^2`.

    See https://arxiv.org/abs/2002.05616.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`, with the parameters
        `params["energy"]`; fixed.
      critic: `critic(params, x) -> [*event]`, with the parameters `params["critic"]`.
      l2_weight: Weight of `|f|^2`, positive; it scales the best critic and changes no
        minimum.
      num_projections: Number of normal directions in Hutchinson's estimate of the
        divergence; None for the exact divergence.

    Returns:
      A stateless `Objective` for a player that trains `("critic",)`. Its metrics are
      `stein`, the Stein term; `critic_square`, the mean of `|f|^2`.

    Raises:
      ValueError: If the weight is not positive or `num_projections` is below 1.

    Source:
      Grathwohl et al. (2020), "Learning the Stein discrepancy",
      https://arxiv.org/abs/2002.05616.
    """
    l2_weight = check_number("l2_weight", l2_weight, positive=True)
    stein = _stein_term(energy, critic, num_projections)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        params = params | jax.lax.stop_gradient({"energy": params["energy"]})
        value, at_x = stein(params, key, x)
        square = dot(at_x, at_x)
        return l2_weight * square - value, {"stein": value, "critic_square": square}

    return averaged(example_loss)


def energy_objective(
    energy: Energy | Network, critic: Critic, *, num_projections: int | None = 1
) -> Objective:
    """Returns the energy's loss in LSD, the Stein term of the critic, which is fixed.

    See https://arxiv.org/abs/2002.05616.

    Only `score . f` depends on the energy; the divergence is included so that the value
    is the discrepancy.

    Args:
      energy: Energy or `Network`, as in `critic_objective`.
      critic: Critic, as in `critic_objective`.
      num_projections: Number of directions, as in `critic_objective`.

    Returns:
      A stateless `Objective` for a player that trains `("energy",)`. Its metrics are
      `stein` and `critic_square`.

    Raises:
      ValueError: If `num_projections` is below 1.

    Source:
      Grathwohl et al. (2020), "Learning the Stein discrepancy",
      https://arxiv.org/abs/2002.05616.
    """
    stein = _stein_term(energy, critic, num_projections)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        params = params | jax.lax.stop_gradient({"critic": params["critic"]})
        value, at_x = stein(params, key, x)
        return value, {"stein": value, "critic_square": dot(at_x, at_x)}

    return averaged(example_loss)


def _stein_term(
    energy: Energy | Network, critic: Critic, num_projections: int | None
) -> Callable[[Params, Key, Array], tuple[Array, Array]]:
    """Returns `(params, key, x) -> (score . f + divergence of f, f)`."""
    if num_projections is not None:
        check_count("num_projections", num_projections, 1)
    score, critic = score_of(energy, None), as_function(critic)

    def stein(params: Params, key: Key, x: Array) -> tuple[Array, Array]:
        def field(x: Array) -> Array:
            return critic(params["critic"], x)

        at_x = field(x)
        if jnp.shape(at_x) != x.shape:
            raise ValueError(
                f"critic must return an array of the example's shape {x.shape},"
                f" got {jnp.shape(at_x)}"
            )
        if num_projections is None:
            divergence = energies.divergence(field, x)
        else:
            shape = (num_projections, *x.shape)
            directions = jax.random.normal(key, shape, x.dtype)

            def along(v: Array) -> Array:
                return dot(v, jax.jvp(field, (x,), (v,))[1])

            divergence = jnp.mean(jax.vmap(along)(directions))
        return dot(score(params, x), at_x) + divergence, at_x

    return stein
