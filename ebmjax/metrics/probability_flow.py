"""The density of a score-based model by its probability flow ODE."""

import math
from typing import Any

import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.diffusions import Diffusion
from ebmjax.samplers import Flowed, probability_flow
from ebmjax.types import Array, Key, TimedScoreFn

__all__ = ["probability_flow_log_prob"]


def probability_flow_log_prob(
    diffusion: Diffusion,
    score_fn: TimedScoreFn,
    key: Key,
    x: Array,
    *,
    start: float = 1e-5,
    prior_std: float | None = None,
    **options: Any,
) -> tuple[Array, Flowed]:
    """Returns log densities under the probability flow ODE from the prior, in nats.

    See https://arxiv.org/abs/2011.13456.

    The density is that of the law to which the flow takes the prior at time `start`. It
    is the data's density only as far as the score is the data's. It differs from the
    density of the diffusion that is reversed randomly, and it is not a bound on that
    density.

    Args:
      diffusion: Diffusion, as in `samplers.probability_flow`.
      score_fn: Score, as in `samplers.probability_flow`.
      key: Typed key, as in `samplers.probability_flow`.
      x: Examples `[n, *event]`. To compare with other densities of images, add uniform
        noise within each grey level.
      start: Time at which the examples are given, above 0 if the score does not exist
        at 0.
      prior_std: Standard deviation of the normal law at time 1; the diffusion's own if
        None.
      **options: Further arguments of `samplers.probability_flow`.

    Returns:
      The log densities, `[n]`, and the `Flowed`, whose `x` holds the latents.

    Raises:
      ValueError: If the trace is None, `prior_std` is not positive, or
        `samplers.probability_flow` refuses an argument.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations", https://arxiv.org/abs/2011.13456.
    """
    if options.get("trace", "exact") is None:
        raise ValueError("trace must not be None: a density needs it")
    if prior_std is not None:
        prior_std = check_number("prior_std", prior_std, positive=True)
    flowed = probability_flow(
        diffusion, score_fn, key, x, start=start, end=1.0, **options
    )
    scale = diffusion.prior_std if prior_std is None else prior_std
    latents = flowed.x.reshape(len(x), -1) / scale
    constant = latents.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(scale))
    prior = -0.5 * jnp.sum(latents**2, axis=1) - constant
    return prior + flowed.log_det, flowed
