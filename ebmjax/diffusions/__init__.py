"""Diffusions from data to noise (VE, VP and sub-VP SDEs), and noise ladders (NCSN).

See https://arxiv.org/abs/2011.13456.

A diffusion takes an example at time 0 to noise at time 1. All diffusions here are
linear in `x`, so the law at any time, given the example, is a normal one in closed
form: `x_t ~ N(mean_scale(t) x_0, std(t)^2)`. With the score of the noised data at every
time, a diffusion can be reversed, either randomly (`samplers.sample_diffusion`) or by
the deterministic flow that has the same marginals (`samplers.probability_flow`), which
also gives a density.

Source:
  Song et al. (2021), "Score-based generative modeling through stochastic differential
  equations", https://arxiv.org/abs/2011.13456.
"""

from ebmjax.diffusions.ladder import (
    largest_distance,
    noise_ladder,
    noise_overlap,
    relative_step_size,
)
from ebmjax.diffusions.linear import (
    Diffusion,
    energy_with_time,
    sub_variance_preserving,
    variance_exploding,
    variance_preserving,
    with_time,
)

__all__ = [
    "Diffusion",
    "energy_with_time",
    "largest_distance",
    "noise_ladder",
    "noise_overlap",
    "relative_step_size",
    "sub_variance_preserving",
    "variance_exploding",
    "variance_preserving",
    "with_time",
]
