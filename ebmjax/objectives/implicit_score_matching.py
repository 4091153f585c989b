"""Implicit score matching (ISM): exact, sliced (SSM), by finite differences (FD-SSM).

All are estimators of one number, implicit score matching

    mean over data of  |score|^2 / 2 + divergence of the score,

which is the Fisher divergence `mean |score of data - score|^2 / 2` minus a constant of
the data. For an energy, the divergence of the score is minus its Laplacian. None of
them depends on the log partition function, and none is sensitive to the weights of
modes that lie far apart. Energies and scores must be smooth: the divergence of a ReLU
network is zero almost everywhere.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ebmjax import energies
from ebmjax.checks import check_count, check_number
from ebmjax.objectives.base import (
    Objective,
    averaged,
    check_choice,
    dot,
    scalar_function,
    score_metrics,
    score_of,
)
from ebmjax.types import Array, Energy, EnergyFn, Key, Metrics, Network, Params, Score

__all__ = [
    "finite_difference_score_matching",
    "non_negative_score_matching",
    "score_matching",
    "sliced_score_matching",
]

PROJECTIONS = ("rademacher", "gaussian", "sphere")

ScoreNetwork = Score | Network


def score_matching(
    energy: Energy | Network | None = None,
    *,
    score_network: ScoreNetwork | None = None,
) -> Objective:
    """Returns implicit score matching (ISM) with the exact trace.

    See https://www.jmlr.org/papers/v6/hyvarinen05a.html.

    The loss is `|score|^2 / 2 + divergence of the score`; for an energy it is
    `|grad E|^2 / 2 - laplacian E`. Texts that print a plus before the Laplacian of an
    energy have the wrong sign. The cost is one Hessian-vector product for every
    dimension, so use it in few dimensions and to check other estimators.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      score_network: Score to train instead of an energy,
        `score_network(params, x) -> [*event]`, with the parameters `params["score"]`.

    Returns:
      A stateless `Objective`. Its metric `score_norm` is the mean norm of the score.

    Raises:
      TypeError: Unless exactly one of the two is given.

    Source:
      Hyvarinen (2005), "Estimation of non-normalized statistical models by score
      matching", Journal of Machine Learning Research 6,
      https://www.jmlr.org/papers/v6/hyvarinen05a.html.
    """
    score = score_of(energy, score_network)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
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
    """Returns sliced score matching (SSM), score matching along random directions.

    See https://arxiv.org/abs/1905.07088.

    The loss is `|score|^2 / 2 + v . jacobian v` over directions with `mean v v^T = 1`,
    which is score matching with Hutchinson's estimate of the trace. It takes one
    Hessian-vector product for each direction. Without variance reduction the first term
    is `(v . score)^2 / 2`, which has the same mean. Directions of unit length, which
    some codes draw, would scale the second term by `1 / d` and fit another model. The
    product is computed forward over reverse, so its memory does not grow with `d`.

    Args:
      energy: Energy or `Network`, as in `score_matching`.
      score_network: Score to train instead of an energy, as in `score_matching`.
      num_projections: Number of directions for each example.
      projection: Law of the directions. "rademacher" has elements +-1; for a symmetric
        Jacobian it never has more variance than "gaussian", and for a diagonal one it
        has none. "sphere" is uniform on the sphere of radius `sqrt(d)`.
      variance_reduced: Whether the first term is the whole norm.

    Returns:
      A stateless `Objective`. Its metric is `score_norm`.

    Raises:
      TypeError: Unless exactly one of `energy` and `score_network` is given.
      ValueError: If `num_projections` is below 1 or the projection is unknown.

    Source:
      Song, Garg, Shi & Ermon (2019), "Sliced score matching",
      https://arxiv.org/abs/1905.07088.
    """
    check_count("num_projections", num_projections, 1)
    check_choice("projection", projection, PROJECTIONS)
    score = score_of(energy, score_network)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        shape = (num_projections, *x.shape)
        directions = draw_directions(key, projection, shape, x.dtype)

        def along(v: Array) -> tuple[Array, Array]:
            at_x, product = jax.jvp(lambda y: score(params, y), (x,), (v,))
            square = dot(at_x, at_x) if variance_reduced else dot(v, at_x) ** 2
            return 0.5 * square + dot(v, product), at_x

        values, scores = jax.vmap(along)(directions)
        return jnp.mean(values), score_metrics(scores[0])

    return averaged(example_loss)


def draw_directions(
    key: Key, projection: str, shape: tuple[int, ...], dtype: DTypeLike
) -> Array:
    """Returns directions `[num, *event]` with `mean v v^T = 1` over the elements."""
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
    """Returns finite-difference sliced score matching (FD-SSM), to order `step^2`.

    See https://arxiv.org/abs/2007.03317.

    It needs no second derivatives. It takes three energies, or two scores, for each
    example: at `x` and at `x +- v` with `v` uniform on the sphere of radius
    `step sqrt(d)`. Its limit for small steps is sliced score matching on the sphere
    (without variance reduction for an energy, and with it for a score network). For a
    quadratic energy every step is exact.

    Args:
      energy: Energy or `Network`, as in `score_matching`.
      score_network: Score to train instead of an energy, as in `score_matching`.
      step: Length of `v` divided by `sqrt(d)`, in units of x. In float32 the difference
        of energies of size E has an error of about `6e-8 E / step^2`: keep energies
        near 0 and steps near a tenth of the data's scale.

    Returns:
      A stateless `Objective` without metrics.

    Raises:
      TypeError: Unless exactly one of `energy` and `score_network` is given.
      ValueError: If `step` is not positive.

    Source:
      Pang, Xu, Li, Song, Ermon & Zhu (2020), "Efficient learning of generative models
      via finite-difference score matching", https://arxiv.org/abs/2007.03317.
    """
    step = check_number("step", step, positive=True)
    score = score_of(energy, score_network)

    def of_energy(energy_fn: EnergyFn, x: Array, v: Array) -> Array:
        ahead, here, behind = jax.vmap(energy_fn)(jnp.stack([x + v, x, x - v]))
        # (ahead - here) - (here - behind): sums of energies would be rounded more.
        bend = (ahead - here) - (here - behind)
        value: Array = (0.125 * (ahead - behind) ** 2 - bend) / step**2
        return value

    def of_score(params: Params, x: Array, v: Array) -> Array:
        ahead, behind = (score(params, y) for y in (x + v, x - v))
        middle = 0.5 * (ahead + behind)
        return 0.5 * dot(middle, middle) + dot(ahead - behind, v) / (2 * step**2)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        v = step * draw_directions(key, "sphere", (1, *x.shape), x.dtype)[0]
        # Differences of nearly equal numbers: products in fewer digits would be noise.
        with jax.default_matmul_precision("highest"):
            if energy is None:
                return of_score(params, x, v), {}
            energy_fn = functools.partial(
                scalar_function("energy", energy), params["energy"]
            )
            return of_energy(energy_fn, x, v), {}

    return averaged(example_loss)


def non_negative_score_matching(
    energy: Energy | Network | None = None,
    *,
    score_network: ScoreNetwork | None = None,
) -> Objective:
    """Returns score matching for data without negative elements (Hyvarinen 2007).

    See https://doi.org/10.1016/j.csda.2006.09.003.

    The loss is `sum_i 2 x_i s_i + x_i^2 d_i s_i + x_i^2 s_i^2 / 2` for the score `s`,
    which is half of the mean of `sum_i x_i^2 (s_i - score of data_i)^2` minus a
    constant. Implicit score matching is wrong for such data: its partial integration
    leaves a term at `x_i = 0`, where a density need not vanish. This loss needs only
    `x_i^2 p` to vanish there.

    Args:
      energy: Energy or `Network`, as in `score_matching`.
      score_network: Score to train instead of an energy, as in `score_matching`.

    Returns:
      A stateless `Objective`. Its metric is `score_norm`.

    Raises:
      TypeError: Unless exactly one of the two is given.

    Source:
      Hyvarinen (2007), "Some extensions of score matching", Computational Statistics &
      Data Analysis 51, https://doi.org/10.1016/j.csda.2006.09.003.
    """
    score = score_of(energy, score_network)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        at_x = score(params, x)
        trace = energies.divergence(lambda y: score(params, y), x, weights=x**2)
        return dot(2 * x, at_x) + trace + 0.5 * dot(x**2, at_x**2), score_metrics(at_x)

    return averaged(example_loss)
