"""Diagnostics of Markov chains: effective sample size (ESS) and R-hat."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from ebmjax.types import Array

__all__ = ["effective_sample_size", "potential_scale_reduction"]

MOST_ELEMENTS = 2**18
"""Largest number of draws of coordinates that are computed together. A CPU core keeps
as many in its cache."""


def effective_sample_size(draws: Array) -> Array:
    """Returns the effective sample size (ESS) of chains for the estimate of a mean.

    See https://doi.org/10.1214/ss/1177011137 and https://arxiv.org/abs/1903.08008.

    It is the number of independent draws whose mean is as exact as the mean of these:
    `total / tau` with `tau = 1 + 2 * sum_t autocorrelation(t)`. For an AR(1) process
    with coefficient `r` it is `total * (1 - r) / (1 + r)`: a third of the draws for
    `r = 1/2`, three times as many for `r = -1/2`.

    Every chain is cut into halves, which count as chains of their own. The middle step
    of an odd number of steps is left out and not counted in `total`. The
    autocorrelation combines the autocovariances within halves with the variance of
    their means, so chains that disagree have few effective draws however quickly each
    of them moves. It is summed in pairs of lags up to the first pair that is not
    positive (Geyer's initial positive sequence), and each pair is taken no larger than
    those before it (initial monotone sequence). `tau` is at least `1 / log10(total)`,
    so no estimate exceeds `total * log10(total)`. This is `ess(method="mean")` of
    ArviZ.

    The number holds for the mean alone: a chain may determine its mean well and its
    variance or tails badly. Pass `draws**2` to ask about those. It is not the effective
    sample size of importance weights. Chains that have all missed a mode look good;
    `potential_scale_reduction` cannot detect that either.

    Args:
      draws: Draws `[steps, chains, *event]`, floating-point, with at least 4 steps and
        1 chain, as `samplers.sample_chains` collects them. Any unit, offset and scale
        are allowed, but in float32 numbers below 1.2e-38 count as 0. Types below
        float32 are computed in float32. Working memory is several times that of the
        draws; coordinates are independent, so a large event can be cut into pieces.

    Returns:
      The number of effective draws in all chains together, `[*event]`. It is NaN for a
      coordinate that has a draw that is not finite. If all draws are equal it is
      `total`, as in ArviZ, because nothing better is known: a chain that never moved
      looks perfect here.

    Raises:
      ValueError: If the draws have another shape or type.

    Source:
      Geyer (1992), "Practical Markov chain Monte Carlo", Statistical Science 7,
      https://doi.org/10.1214/ss/1177011137. Combined over chains as in Vehtari, Gelman,
      Simpson, Carpenter & Burkner (2021), "Rank-normalization, folding, and
      localization: an improved R-hat for assessing convergence of MCMC", section 3.2,
      https://arxiv.org/abs/1903.08008.
    """
    return _over_coordinates(_effective_sample_size, draws)


def potential_scale_reduction(draws: Array) -> Array:
    """Returns the rank-normalised split R-hat, which tests whether chains agree.

    See https://arxiv.org/abs/1903.08008.

    It is the root of the variance of all draws over the variance within a chain, which
    is near 1 if chains agree. The source requires less than 1.01. Two long chains, one
    of which lies entirely below the other, give
    `sqrt(1 + (8 / (3 pi)) / (1 - 2 / pi)) = 1.83`, whatever their distance.

    Every chain is cut into halves, so that a chain that drifts disagrees with itself;
    the middle step of an odd number of steps is left out. Draws are replaced by the
    normal quantiles of their ranks among all draws, and ties by the quantile of their
    mean rank, so laws without a variance are allowed. The result is the larger of two
    values: that of the draws, which detects different places, and that of their
    distances from the median, which detects different scales. This is
    `rhat(method="rank")` of ArviZ, except that ArviZ gives NaN for one chain, whose two
    halves are compared here.

    It is not the R-hat of Gelman & Rubin (1992), which uses neither halves nor ranks,
    nor its square, as in some code. A value of 1 says that chains agree, not that they
    are right: all may have missed a mode, or have started in the same place and not
    left it.

    Args:
      draws: Draws `[steps, chains, *event]`, floating-point, with at least 4 steps and
        1 chain, as `samplers.sample_chains` collects them. Any unit is allowed, and
        infinite draws have a rank like others. The memory is that of
        `effective_sample_size`.

    Returns:
      R-hat `[*event]`, dimensionless, at least `sqrt(1 - 1 / (steps // 2))`, which is a
      little below 1. It is NaN for a coordinate that has a NaN or only equal draws (0 /
      0, as in ArviZ), and infinite if every half of a chain is constant but not all at
      one value.

    Raises:
      ValueError: If the draws have another shape or type.

    Source:
      Vehtari, Gelman, Simpson, Carpenter & Burkner (2021), "Rank-normalization,
      folding, and localization: an improved R-hat for assessing convergence of MCMC",
      https://arxiv.org/abs/1903.08008.
    """
    return _over_coordinates(_potential_scale_reduction, draws)


def _over_coordinates(statistic: Callable[[Array], Array], draws: Array) -> Array:
    """Maps a function of one coordinate's half chains, `[steps, halves] -> []`."""
    draws = jnp.asarray(draws)
    if (
        draws.ndim < 2
        or draws.shape[0] < 4
        or draws.shape[1] < 1
        or not jnp.issubdtype(draws.dtype, jnp.floating)
    ):
        raise ValueError(
            "draws must be floating-point [steps, chains, *event] with at least 4 steps"
            f" and 1 chain, got {draws.dtype}{list(draws.shape)}"
        )
    values: Array = _map_coordinates(draws, statistic=statistic)
    return values


@functools.partial(jax.jit, static_argnames="statistic")
def _map_coordinates(draws: Array, *, statistic: Callable[[Array], Array]) -> Array:
    num_steps, num_chains, *event_shape = draws.shape
    draws = draws.astype(jnp.promote_types(draws.dtype, jnp.float32))
    draws = draws.reshape(num_steps, num_chains, math.prod(event_shape))

    def of_coordinate(draws: Array) -> Array:
        half = num_steps // 2
        halves = jnp.concatenate([draws[:half], draws[-half:]], axis=1)
        # Asked of the draws and not of the halves, which may lack the middle step.
        return jnp.where(jnp.isnan(draws.max()), jnp.nan, statistic(halves))

    draws = jnp.moveaxis(draws, 2, 0)
    num_together = max(1, MOST_ELEMENTS // (num_steps * num_chains))
    if num_together >= len(draws):
        values = jax.vmap(of_coordinate)(draws)
    else:
        values = jax.lax.map(of_coordinate, draws, batch_size=num_together)
    return values.reshape(event_shape)


def _effective_sample_size(halves: Array) -> Array:
    num_steps, num_halves = halves.shape
    total = num_steps * num_halves
    # By a power of two, which is exact: the sum of large draws would overflow.
    halves = halves * jnp.where(jnp.abs(halves).max() > 1, 2.0**-64, 1.0)
    # About zero and of order one, so that float32 keeps its digits and no square
    # overflows or vanishes. The ratios below do not feel either.
    centred = halves - halves.mean()
    scale = jnp.abs(centred).max()
    centred = centred / scale
    means = centred.mean(0)

    # Zeros behind the draws: without them the first draws would follow the last.
    padded = 1 << (2 * num_steps - 1).bit_length()
    spectrum = jnp.fft.rfft(centred - means[None], padded, axis=0)
    power = (spectrum.real**2 + spectrum.imag**2).mean(1)
    autocovariance = jnp.fft.irfft(power, padded)[:num_steps] / num_steps

    # The last lags are left out, as ArviZ leaves them out: those of one or two terms.
    num_pairs = max((num_steps - 3) // 2, 0) + 1
    within = autocovariance[0]
    between = means.var(ddof=1)
    # 1 - (w - c_t) / v with the unbiased w = c_0 n / (n - 1) and v = c_0 + b.
    excess = between - within / (num_steps - 1)
    correlation = (autocovariance[: 2 * num_pairs] + excess) / (within + between)
    even, odd = correlation.at[0].set(1.0).reshape(num_pairs, 2).T
    pairs = even + odd

    index = jnp.arange(num_pairs)
    last = jnp.argmax((pairs <= 0) | (index == num_pairs - 1))
    summed = jnp.sum(jnp.where(index < last, jax.lax.cummin(pairs), 0.0))
    # Of the pair that ends the sum the even lag still counts, once.
    is_kept = (pairs[last] >= 0) | (even[last] > 0)
    tau = -1.0 + 2.0 * summed + jnp.where(is_kept, even[last], 0.0)
    size = total / jnp.maximum(tau, 1.0 / math.log10(total))

    size = jnp.where(jnp.isfinite(scale), size, jnp.nan)
    return jnp.where(halves.max() - halves.min() == 0, total, size)


def _potential_scale_reduction(halves: Array) -> Array:
    # By a power of two, which is exact: four times a large draw would overflow.
    halves = halves * jnp.where(jnp.abs(halves).max() > 1, 2.0**-3, 1.0)
    middle = halves.size // 2
    low, high = _from_keys(jnp.sort(_keys(halves.ravel()))[middle - 1 : middle + 1])
    # Twice the distance from the median. The median itself would be rounded, and the
    # two draws in the middle, equally far from it, no longer tied.
    folded = jnp.abs((halves - low) + (halves - high))
    bulk = _split_r_hat(_normal_scores(halves))
    tail = _split_r_hat(_normal_scores(folded))
    # Draws of two values, equally many, are all as far from their median: the tail is
    # then NaN, and the bulk is the answer.
    return jnp.where(tail > bulk, tail, bulk)


def _normal_scores(draws: Array) -> Array:
    """Returns Blom's normal scores, quantiles of `(rank - 3/8) / (total + 1/4)`."""
    flat = draws.ravel()
    keys = _keys(flat)
    num_below = jnp.searchsorted(jnp.sort(keys), keys)
    num_equal = jnp.zeros_like(num_below).at[num_below].add(1)[num_below]
    # From 2 to 2 * total; an integer even for ties.
    twice_rank = 2 * num_below + num_equal + 1
    # Both tails by the lower one: a probability close to 1 has no digits to spare.
    twice_lower = jnp.minimum(twice_rank, 2 * flat.size + 2 - twice_rank)
    probability = (twice_lower.astype(flat.dtype) / 2 - 3 / 8) / (flat.size + 1 / 4)
    side = jnp.sign(twice_rank - (flat.size + 1))
    scores = -side * ndtri(probability)
    return jnp.where(jnp.isnan(flat.max()), jnp.nan, scores).reshape(draws.shape)


def _keys(draws: Array) -> Array:
    """Returns integers in the order of the draws, which a CPU sorts five times as fast.

    They are the bits of the draws. Those of negative draws are turned round.
    """
    dtype = jnp.dtype(f"int{8 * draws.dtype.itemsize}")
    draws = jnp.where(draws == 0, 0.0, draws)  # -0 and 0 are tied
    return _turned(jax.lax.bitcast_convert_type(draws, dtype))


def _from_keys(keys: Array) -> Array:
    """Returns the draws of `_keys`."""
    dtype = jnp.dtype(f"float{8 * keys.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(_turned(keys), dtype)


def _turned(bits: Array) -> Array:
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _split_r_hat(halves: Array) -> Array:
    num_steps = halves.shape[0]
    means, variances = _mean_and_variance(halves)
    _, between = _mean_and_variance(means)
    return jnp.sqrt(between / variances.mean() + (num_steps - 1) / num_steps)


def _mean_and_variance(x: Array) -> tuple[Array, Array]:
    """Returns mean and unbiased variance over the first axis; 0 for equal values."""
    shifted = x - x[:1]
    mean = shifted.mean(0, keepdims=True)
    variance = jnp.sum((shifted - mean) ** 2, 0) / (len(x) - 1)
    return (x[:1] + mean)[0], variance
