"""The kernelised Stein discrepancy (KSD) of the data from the model, as a loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax.checks import check_batch
from ebmjax.metrics.stein import STATISTICS, stein_kernel, stein_statistic
from ebmjax.objectives.base import Objective, check_choice, score_of, stateless
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params, Score

__all__ = ["kernel_stein"]


def kernel_stein(
    energy: Energy | Network | None = None,
    *,
    score_network: Score | Network | None = None,
    kernel: str | Callable[[Array], Array] = "rbf",
    bandwidth: float | None = None,
    statistic: str = "u",
) -> Objective:
    """Returns the squared kernelised Stein discrepancy (KSD) of a batch as a loss.

    See https://arxiv.org/abs/1602.03253.

    The loss is the mean over pairs of examples of `s . s' k + s . grad' k + s' . grad k
    + trace of grad grad' k`, with the model's scores `s`. It is the squared norm of the
    difference of the model's score and the data's, smoothed by the kernel. No
    derivative of the score is taken, so the energy is differentiated once in `x`, and
    the loss is quadratic in the parameters if the energy is linear in them. It needs a
    matrix of the squared size of the batch. The loss of a device uses that device's own
    pairs.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      score_network: Score to train instead of an energy,
        `score_network(params, x) -> [*event]`, with the parameters `params["score"]`.
      kernel: "rbf", "imq" (for many dimensions), or a smooth function of the squared
        distance over the squared bandwidth.
      bandwidth: Bandwidth in units of x; if None, the median distance in the batch.
      statistic: "u" takes pairs of different examples and is unbiased. "v" takes all
        pairs; it is never negative, and its bias is `1 / n` of the mean over pairs of
        an example and itself.

    Returns:
      A stateless `Objective`. Its metric is `score_norm`.

    Raises:
      TypeError: Unless exactly one of `energy` and `score_network` is given.
      ValueError: If the statistic is unknown; at trace, for an unknown kernel or a
        U-statistic of one example.

    Source:
      Liu, Lee & Jordan (2016), "A kernelized Stein discrepancy for goodness-of-fit
      tests", https://arxiv.org/abs/1602.03253.
    """
    check_choice("statistic", statistic, STATISTICS)
    score = score_of(energy, score_network)

    def loss(params: Params, key: Key, batch: Array) -> tuple[Array, Metrics]:
        check_batch(batch)
        scores = jax.vmap(score, (None, 0))(params, batch)
        pairs = stein_kernel(scores, batch, kernel=kernel, bandwidth=bandwidth)
        norms = jnp.sqrt(jnp.sum(scores.reshape(len(batch), -1) ** 2, axis=1))
        metrics = {"score_norm": jax.lax.stop_gradient(norms.mean())}
        return stein_statistic(pairs, statistic), metrics

    return stateless(loss)
