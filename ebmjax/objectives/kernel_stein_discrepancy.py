"""The kernelised Stein discrepancy of the data from the model, as a loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax.metrics.stein import STATISTICS, stein_kernel, stein_statistic
from ebmjax.objectives.base import Objective, check_choice, score_of, stateless
from ebmjax.types import Array, Energy, Network

__all__ = ["kernel_stein"]


def kernel_stein(
    energy: Energy | Network | None = None,
    *,
    score_network: Callable[..., Array] | Network | None = None,
    kernel: str | Callable[[Array], Array] = "rbf",
    bandwidth: float | None = None,
    statistic: str = "u",
) -> Objective:
    """The squared kernelised Stein discrepancy of a batch.

    The mean over pairs of examples of `s . s' k + s . grad' k + s' . grad k + trace of
    grad grad' k`, of the model's scores `s`: the squared norm of the difference of the
    model's score and the data's, smoothed by the kernel. No derivative of the score is
    taken, so that the energy is differentiated once in `x`; quadratic in the parameters
    where the energy is linear in them. Costs a matrix of the batch's size squared. The
    loss of a device is that of its own pairs.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      score_network: In its place a score of its own, `score_network(params, x) ->
        [*event]`, with the parameters `params["score"]`.
      kernel: "rbf", "imq" (for many dimensions), or a smooth function of the squared
        distance over the squared bandwidth.
      bandwidth: In units of x; the median distance in the batch if None.
      statistic: "u", over pairs of different examples: unbiased; or "v", over all:
        never negative, and biased by `1 / n` of the mean of the pairs of an
        example and itself.

    Returns:
      A stateless `Objective`. Metrics: `score_norm`.

    Raises:
      TypeError: Unless exactly one of energy and score network is given.
      ValueError: If the statistic is unknown; at trace, for an unknown kernel or a
        U-statistic of one example.

    Source:
      Liu, Lee & Jordan (2016), "A kernelized Stein discrepancy for goodness-of-fit
      tests".
    """
    check_choice("statistic", statistic, STATISTICS)
    score = score_of(energy, score_network)

    def loss(params, key, batch):
        scores = jax.vmap(score, (None, 0))(params, batch)
        pairs = stein_kernel(scores, batch, kernel=kernel, bandwidth=bandwidth)
        norms = jnp.sqrt(jnp.sum(scores.reshape(len(batch), -1) ** 2, axis=1))
        metrics = {"score_norm": jax.lax.stop_gradient(norms.mean())}
        return stein_statistic(pairs, statistic), metrics

    return stateless(loss)
