"""Score matching by the data's own derivatives: exact, sliced, by finite differences.

All are estimators of one number, implicit score matching

    mean over data of  |score|^2 / 2 + divergence of the score,

which is the Fisher divergence `mean |score of data - score|^2 / 2` less a constant of
the data. With an energy the divergence is minus its Laplacian. None sees the log
partition function, and none sees the weights of modes that lie far apart. Energies and
scores must be smooth: a ReLU network's divergence is zero almost everywhere.
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
    check_choice,
    dot,
    score_metrics,
    score_of,
)
from ebmjax.types import Array, Energy, Key, Network

__all__ = [
    "finite_difference_score_matching",
    "non_negative_score_matching",
    "score_matching",
    "sliced_score_matching",
]

PROJECTIONS = ("rademacher", "gaussian", "sphere")

ScoreNetwork = Callable[..., Array] | Network


def score_matching(
    energy: Energy | Network | None = None,
    *,
    score_network: ScoreNetwork | None = None,
) -> Objective:
    """Implicit score matching with the exact trace.

    `|score|^2 / 2 + divergence of the score`; with an energy, `|grad E|^2 / 2 -
    laplacian E`. Texts that print a plus before the Laplacian of an energy have the
    sign wrong. Costs a Hessian-vector product for every dimension: for few dimensions,
    and to check others by.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      score_network: In its place a score of its own, `score_network(params, x) ->
        [*event]`, with the parameters `params["score"]`.

    Returns:
      A stateless `Objective`. Metrics: `score_norm`, the mean norm of the score.

    Raises:
      TypeError: Unless exactly one of the two is given.

    Source:
      Hyvarinen (2005), "Estimation of non-normalized statistical models by score
      matching".
    """
    score = score_of(energy, score_network)

    def example_loss(params, key, x):
        at_x = score(params, x)
        trace = energies.divergence(lambda y: score(params, y), x)
        return 0.5 * dot(at_x, at_x) + trace, score_metrics(at_x)

    return averaged(example_loss)


def sliced_score_matching(
    energy: Energy | Network | None = None,
    *,
    score_network: ScoreNetwork | None = None,
    num_projections: int = 1,
    projection: str = "rademacher",
    variance_reduced: bool = True,
) -> Objective:
    """Score matching along random directions: one Hessian-vector product for each.

    `|score|^2 / 2 + v . jacobian v` over directions with `mean v v^T = 1`: score
    matching with Hutchinson's estimate of the trace. Without variance reduction the
    first term is `(v . score)^2 / 2`, of the same mean. Directions of unit length,
    which some codes draw, would scale the second term by `1 / d` and fit another
    model. The product is forward over reverse: its memory does not grow with `d`.

    Args:
      energy: As in `score_matching`.
      score_network: As in `score_matching`.
      num_projections: Directions an example.
      projection: "rademacher" (elements +-1; for a symmetric Jacobian never of more
        variance than "gaussian", and of none for a diagonal one), "gaussian", or
        "sphere" (uniform, of radius `sqrt(d)`).
      variance_reduced: Whether the first term is the whole norm.

    Returns:
      A stateless `Objective`. Metrics: `score_norm`.

    Raises:
      TypeError: Unless exactly one of energy and score network is given.
      ValueError: If `num_projections` is below 1 or the projection unknown.

    Source:
      Song, Garg, Shi & Ermon (2019), "Sliced score matching".
    """
    check_count("num_projections", num_projections, 1)
    check_choice("projection", projection, PROJECTIONS)
    score = score_of(energy, score_network)

    def example_loss(params, key, x):
        shape = (num_projections, *x.shape)
        directions = draw_directions(key, projection, shape, x.dtype)

        def along(v):
            at_x, product = jax.jvp(lambda y: score(params, y), (x,), (v,))
            square = dot(at_x, at_x) if variance_reduced else dot(v, at_x) ** 2
            return 0.5 * square + dot(v, product), at_x

        values, scores = jax.vmap(along)(directions)
        return jnp.mean(values), score_metrics(scores[0])

    return averaged(example_loss)


def draw_directions(key: Key, projection: str, shape: tuple, dtype) -> Array:
    """`[num, *event]` with `mean v v^T = 1` over the elements of an event."""
    if projection == "rademacher":
        return jax.random.rademacher(key, shape, dtype)
    normal = jax.random.normal(key, shape, dtype)
    if projection == "gaussian":
        return normal
    flat = normal.reshape(shape[0], -1)
    radii = jnp.sqrt(jnp.sum(flat**2, axis=1, keepdims=True) / flat.shape[1])
    return (flat / radii).reshape(shape)


def finite_difference_score_matching(
    energy: Energy | Network | None = None,
    *,
    score_network: ScoreNetwork | None = None,
    step: float,
) -> Objective:
    """Sliced score matching without second derivatives, to order `step^2`.

    Three energies, or two scores, an example: at `x` and at `x +- v` with `v` uniform
    on the sphere of radius `step sqrt(d)`. The limit of small steps is sliced score
    matching on the sphere (with an energy not variance-reduced, with a score network
    variance-reduced); of a quadratic energy every step is exact.

    Args:
      energy: As in `score_matching`.
      score_network: As in `score_matching`.
      step: Length of `v` for each square root of a dimension, in units of x. In float32
        the difference of energies of size E is off by about `6e-8 E / step^2`: keep
        energies near 0 and steps near a tenth of the data's scale.

    Returns:
      A stateless `Objective` without metrics.

    Raises:
      TypeError: Unless exactly one of energy and score network is given.
      ValueError: If `step` is not positive.

    Source:
      Pang, Xu, Li, Song, Ermon & Zhu (2020), "Efficient learning of generative models
      via finite-difference score matching".
    """
    check_number("step", step, positive=True)
    score = score_of(energy, score_network)

    def of_energy(params, x, v):
        def at(y):
            return as_function(energy)(params["energy"], y)

        ahead, here, behind = jax.vmap(at)(jnp.stack([x + v, x, x - v]))
        # (ahead - here) - (here - behind): sums of energies would be rounded more.
        bend = (ahead - here) - (here - behind)
        return (0.125 * (ahead - behind) ** 2 - bend) / step**2

    def of_score(params, x, v):
        ahead, behind = (score(params, y) for y in (x + v, x - v))
        middle = 0.5 * (ahead + behind)
        return 0.5 * dot(middle, middle) + dot(ahead - behind, v) / (2 * step**2)

    def example_loss(params, key, x):
        v = step * draw_directions(key, "sphere", (1, *x.shape), x.dtype)[0]
        # Differences of nearly equal numbers: products in fewer digits would be noise.
        with jax.default_matmul_precision("highest"):
            return (of_energy if score_network is None else of_score)(params, x, v), {}

    return averaged(example_loss)


def non_negative_score_matching(
    energy: Energy | Network | None = None,
    *,
    score_network: ScoreNetwork | None = None,
) -> Objective:
    """Score matching for data with no negative elements.

    `sum_i 2 x_i s_i + x_i^2 d_i s_i + x_i^2 s_i^2 / 2` of the score `s`: half of the
    mean of `sum_i x_i^2 (s_i - score of data_i)^2` less a constant. Implicit score
    matching is wrong there: its partial integration leaves a term at `x_i = 0`, where
    a density need not vanish. This one needs `x_i^2 p` to vanish there.

    Args:
      energy: As in `score_matching`.
      score_network: As in `score_matching`.

    Returns:
      A stateless `Objective`. Metrics: `score_norm`.

    Raises:
      TypeError: Unless exactly one of the two is given.
    """
    score = score_of(energy, score_network)

    def example_loss(params, key, x):
        at_x = score(params, x)
        trace = energies.divergence(lambda y: score(params, y), x, weights=x**2)
        return dot(2 * x, at_x) + trace + 0.5 * dot(x**2, at_x**2), score_metrics(at_x)

    return averaged(example_loss)
