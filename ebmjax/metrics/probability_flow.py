"""The density of a score-based model, by its probability flow."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.diffusions import Diffusion
from ebmjax.samplers import Flowed, probability_flow
from ebmjax.types import Array, Key

__all__ = ["probability_flow_log_prob"]


def probability_flow_log_prob(
    diffusion: Diffusion,
    score_fn: Callable[[Array, Array], Array],
    key: Key,
    x: Array,
    *,
    start: float = 1e-5,
    prior_std: float | None = None,
    **options,
) -> tuple[Array, Flowed]:
    """Log density of examples under the flow from the prior, in nats.

    Of the law that the flow takes the prior to, at time `start`. It is that of the data
    only as far as the score is theirs, and is neither a bound on, nor the same as, the
    density of what the diffusion run backwards by chance would give.

    Args:
      diffusion: As in `samplers.probability_flow`, as are `score_fn`, `key` and
        `options`.
      x: `[n, *event]`. Images with uniform noise within each level, if it is to be
        compared with other densities of images.
      start: The time at which the examples are taken to be there, above 0 where the
        score is not to be had at 0.
      prior_std: Of the normal law at time 1; the diffusion's own if None.

    Raises:
      ValueError: As `probability_flow`, if the trace is None, or `prior_std` is not
        positive.

    Returns:
      `([n] log densities, Flowed)`, of which `x` is the latents.
    """
    if options.get("trace", "exact") is None:
        raise ValueError("trace must not be None: a density needs it")
    if prior_std is not None:
        check_number("prior_std", prior_std, positive=True)
    flowed = probability_flow(
        diffusion, score_fn, key, x, start=start, end=1.0, **options
    )
    scale = diffusion.prior_std if prior_std is None else prior_std
    latents = flowed.x.reshape(len(x), -1) / scale
    constant = latents.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(scale))
    prior = -0.5 * jnp.sum(latents**2, axis=1) - constant
    return prior + flowed.log_det, flowed
