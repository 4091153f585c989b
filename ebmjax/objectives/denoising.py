"""Denoising score matching (DSM), which learns the score of noised data.

The minimiser is the score of the noised data, not of the data: with a noise of standard
deviation `s`, a normal of variance `S` is learned as one of variance `S + s^2`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import check_number
from ebmjax.diffusions import Diffusion
from ebmjax.objectives.base import (
    Objective,
    averaged,
    check_choice,
    dot,
    score_metrics,
    score_of,
)
from ebmjax.types import (
    Array,
    ConditionalEnergy,
    ConditionalScore,
    Energy,
    Key,
    Metrics,
    Network,
    Params,
    Score,
)

__all__ = [
    "denoising_score_matching",
    "diffusion_score_matching",
    "multi_scale_denoising_score_matching",
]

VARIANCE_REDUCTIONS = ("antithetic", "control_variate", None)
WEIGHTINGS = ("noise", "likelihood")


def denoising_score_matching(
    energy: Energy | Network | None = None,
    *,
    score_network: Score | Network | None = None,
    noise_scale: float,
    variance_reduction: str | None = "antithetic",
) -> Objective:
    """Returns denoising score matching (DSM) with one noise scale.

    See https://doi.org/10.1162/NECO_a_00142.

    The loss is `|score(x + noise_scale n) + n / noise_scale|^2 / 2` with `n` standard
    normal. Its mean is implicit score matching on the noised data plus
    `d / (2 noise_scale^2)`. The variance of this form grows as `noise_scale^-4`. Two
    variance reductions are available; with either, the variance for small noise is that
    of sliced score matching:

    - "antithetic" takes `n` and `-n` and leaves out `|n|^2 / (2 noise_scale^2)`, so
      that the mean has no constant;
    - "control_variate" subtracts `n . score(x) / noise_scale + (|n|^2 - d) / (2
      noise_scale^2)`, of mean 0. For small noise the result is `d / (2 noise_scale^2)`
      plus variance-reduced sliced score matching along `n`.

    Papers that multiply the loss by `noise_scale^2` (or its square) have the same
    minimiser and other learning rates.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      score_network: Score to train instead of an energy,
        `score_network(params, x) -> [*event]`, with the parameters `params["score"]`.
      noise_scale: Standard deviation of the noise, in units of x.
      variance_reduction: "antithetic" or "control_variate", which take two scores for
        each example, or None, which takes one.

    Returns:
      A stateless `Objective`. Its metric `score_norm` is the norm at a noised example.

    Raises:
      TypeError: Unless exactly one of `energy` and `score_network` is given.
      ValueError: If `noise_scale` is not positive or the reduction is unknown.

    Source:
      Vincent (2011), "A connection between score matching and denoising autoencoders",
      Neural Computation 23, https://doi.org/10.1162/NECO_a_00142. The control variate:
      Wang, Cheng, Li, Zhu & Zhang (2020), "A Wasserstein minimum velocity approach to
      learning unnormalized models", https://arxiv.org/abs/2002.07501, as cited by Song
      & Kingma (2021), https://arxiv.org/abs/2101.03288.
    """
    noise_scale = check_number("noise_scale", noise_scale, positive=True)
    check_choice("variance_reduction", variance_reduction, VARIANCE_REDUCTIONS)
    score = score_of(energy, score_network)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        noise = jax.random.normal(key, x.shape, x.dtype)
        ahead = score(params, x + noise_scale * noise)
        metrics = score_metrics(ahead)
        if variance_reduction is None:
            residual = ahead + noise / noise_scale
            return 0.5 * dot(residual, residual), metrics
        # The squares written out: what cancels is never computed.
        if variance_reduction == "antithetic":
            behind = score(params, x - noise_scale * noise)
            squares = 0.5 * (dot(ahead, ahead) + dot(behind, behind))
            slope = dot(noise, ahead - behind) / (2 * noise_scale)
            return 0.5 * squares + slope, metrics
        slope = dot(noise, ahead - score(params, x)) / noise_scale
        constant = x.size / (2 * noise_scale**2)
        return 0.5 * dot(ahead, ahead) + slope + constant, metrics

    return averaged(example_loss)


def multi_scale_denoising_score_matching(
    energy: ConditionalEnergy | Network | None = None,
    *,
    score_network: ConditionalScore | Network | None = None,
    noise_scales: Sequence[float] | Array,
    weighting: Callable[[Array], Array] | None = None,
) -> Objective:
    """Returns denoising score matching (DSM) with many noise scales, as in NCSN.

    See https://arxiv.org/abs/1907.05600.

    The loss is `weighting(s) |score(x + s n, s) + n / s|^2 / 2`, with one network for
    all scales. The scale `s` of an example is drawn uniformly among those given.

    Args:
      energy: `energy(params, x, noise_scale) -> []` of one example, or a `Network`; its
        parameters are `params["energy"]`.
      score_network: Score to train instead of an energy,
        `score_network(params, x, noise_scale) -> [*event]`, with the parameters
        `params["score"]`.
      noise_scales: Standard deviations of the noise, `[scales]`, in units of x.
      weighting: Weight as a function of a scale; if None, the square of the scale, with
        which all scales have about the same weight. Scales, and thus noised examples,
        are in float32 at least.

    Returns:
      A stateless `Objective`. Its metric `residual` is the mean of
      `|s score + n|^2 / d` over all scales, which is 1 for a score of zero.

    Raises:
      TypeError: Unless exactly one of `energy` and `score_network` is given.
      ValueError: If `noise_scales` is not a list of positive numbers.

    Source:
      Song & Ermon (2019), "Generative modeling by estimating gradients of the data
      distribution" (NCSN), https://arxiv.org/abs/1907.05600.
    """
    scales = np.asarray(noise_scales)
    is_sound = np.isfinite(scales) & (scales > 0)
    if scales.ndim != 1 or scales.size == 0 or not is_sound.all():
        raise ValueError(f"noise_scales must be positive numbers, got {noise_scales}")
    weight_of = jnp.square if weighting is None else weighting
    score = score_of(energy, score_network)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        scale_key, noise_key = jax.random.split(key)
        index = jax.random.randint(scale_key, (), 0, scales.size)
        # Never float16, which has no squares of scales such as 348 or 1e-4.
        scale = jnp.asarray(scales, jnp.promote_types(x.dtype, jnp.float32))[index]
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        # Times the scale: of small ones the other form would be large.
        residual = scale * score(params, x + scale * noise, scale) + noise
        square = dot(residual, residual)
        metrics = {"residual": square / x.size}
        return weight_of(scale) / scale**2 * 0.5 * square, metrics

    return averaged(example_loss)


def diffusion_score_matching(
    energy: ConditionalEnergy | Network | None = None,
    *,
    score_network: ConditionalScore | Network | None = None,
    diffusion: Diffusion,
    weighting: str = "noise",
    time_min: float = 1e-5,
) -> Objective:
    """Returns denoising score matching (DSM) at all times of a diffusion (VE, VP, ...).

    See https://arxiv.org/abs/2011.13456.

    One network serves all times. Let `x_t = mean_scale(t) x + std(t) n`, with a time
    drawn for every example, uniform from `time_min` to 1. The loss depends on the
    weighting:

    - "noise" gives `|std(t) score(x_t, t) + n|^2 / 2`, in which all times have the same
      weight;
    - "likelihood" gives `g(t)^2 |score(x_t, t) + n / std(t)|^2 / 2` with `g` the
      `diffusion_scale`, which weights times as the likelihood of the reversed diffusion
      does. Its small times have large and rare contributions. For a variance-exploding
      diffusion it is the other loss times a constant, 2 log(noise_max / noise_min).

    Both losses are sums over dimensions, never means: implementations that take means
    have other learning rates.

    Args:
      energy: `energy(params, x, time) -> []` of one example, or a `Network`; its
        parameters are `params["energy"]`. Use `diffusions.energy_with_time` to convert
        an energy of noise scales.
      score_network: Score to train instead of an energy,
        `score_network(params, x, time) -> [*event]`, with the parameters
        `params["score"]`. Use `diffusions.with_time` to convert a network of noise
        scales.
      diffusion: Diffusion from `ebmjax.diffusions`.
      weighting: "noise" or "likelihood".
      time_min: Smallest time, above 0, because nothing can be learned at time 0. Times,
        and thus noised examples, are in float32 at least.

    Returns:
      A stateless `Objective`. Its metric `residual` is the mean of
      `|std score + n|^2 / d` over all times, which is 1 for a score of zero.

    Raises:
      TypeError: Unless exactly one of `energy` and `score_network` is given.
      ValueError: If the weighting is unknown or `time_min` is not between 0 and 1.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations", https://arxiv.org/abs/2011.13456, and its released code
      for the weighting by likelihood.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    if not 0 < time_min < 1:
        raise ValueError(f"time_min must be between 0 and 1, got {time_min}")
    score = score_of(energy, score_network)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        time_key, noise_key = jax.random.split(key)
        dtype = jnp.promote_types(x.dtype, jnp.float32)  # of times, never bfloat16
        time = jax.random.uniform(time_key, (), dtype, time_min, 1.0)
        noise = jax.random.normal(noise_key, x.shape, x.dtype)
        std = diffusion.std(time)
        noised = diffusion.mean_scale(time) * x + std * noise
        residual = std * score(params, noised, time) + noise
        square = dot(residual, residual)
        weight: float | Array = 1.0
        if weighting == "likelihood":
            weight = (diffusion.diffusion_scale(time) / std) ** 2
        return weight * 0.5 * square, {"residual": square / x.size}

    return averaged(example_loss)
