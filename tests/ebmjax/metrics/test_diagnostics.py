"""Effective sample size and R-hat: known answers, and ArviZ on the same draws."""

import math

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ebmjax import metrics
from ebmjax.metrics import diagnostics

pytestmark = pytest.mark.usefixtures("quick_compilation")

FUNCTIONS = [metrics.effective_sample_size, metrics.potential_scale_reduction]
COMPILED = [jax.jit(function) for function in FUNCTIONS]
# Float32 on our side, float64 in ArviZ. A correlation errs by a few 1e-7, and so does
# each pair of lags that is summed: measured below 3e-6 in all.
close = np.testing.assert_allclose
RTOL = 2e-5


def size_of(draws):
    """Effective sample sizes, of one program for every shape of draws."""
    return np.asarray(COMPILED[0](draws))


def r_hat_of(draws):
    return np.asarray(COMPILED[1](draws))


def ar1(seed, rho, shape):
    """Stationary AR(1) draws of variance 1 / (1 - rho^2), in float32."""
    noise = np.random.RandomState(seed).normal(size=shape)
    draws = np.empty(shape)
    draws[0] = noise[0] / (1 - rho**2) ** 0.5
    for t in range(1, len(draws)):
        draws[t] = rho * draws[t - 1] + noise[t]
    return draws.astype(np.float32)


def by_arviz(function, draws):
    """ArviZ's number for every coordinate: it takes [chains, steps], in float64."""
    draws = np.asarray(draws, np.float64)
    columns = draws.reshape(*draws.shape[:2], -1)
    columns = [x.T.copy() for x in np.moveaxis(columns, 2, 0)]
    with np.errstate(divide="ignore", invalid="ignore"):
        if function is metrics.effective_sample_size:
            values = [arviz.ess(x, method="mean") for x in columns]
        else:
            values = [arviz.rhat(x, method="rank") for x in columns]
    return np.reshape(values, draws.shape[2:])


# --- effective sample size ---------------------------------------------------------


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_an_ar1_chain_is_worth_what_theory_says(rho):
    """total (1 - rho) / (1 + rho): a nineteenth for 0.9, three times as many for -0.5.

    A sum of `2 M + 1` lags over N draws has the relative variance 2 (2 M + 1) / N, and
    Geyer's ends where correlations sink into their noise: |rho|^M near N^(-1/2). Each
    of its correlations, estimated within halves of n steps, is 1 / n too small.
    """
    shape = (20_000, 50)
    total = math.prod(shape)
    tau = (1 + rho) / (1 - rho)
    size = size_of(ar1(0, rho, shape))
    lags = 1 - math.log(total) / math.log(abs(rho)) if rho else 3.0
    tolerance = 5 * (2 * lags / total) ** 0.5 + lags / (shape[0] // 2) / tau
    assert tolerance < 0.1
    close(size, total / tau, rtol=tolerance)


def test_it_predicts_the_variance_of_the_mean():
    """What it is for: var(mean) = var / size, over a thousand runs of four chains."""
    draws = ar1(1, 0.7, (1000, 4, 1000))
    size = size_of(draws)
    variance = 1 / (1 - 0.7**2)
    ratio = draws.mean((0, 1), dtype=np.float64).var() * size.mean() / variance
    # A variance of 1000 normals errs by sqrt(2 / 1000), which is also more than the
    # mean of 1000 sizes; and 1 / tau is biased by tau / steps of a half, 5.7 / 500.
    close(ratio, 1.0, atol=5 * (2 / 1000) ** 0.5 + 5.7 / 500)


@pytest.mark.parametrize("steps, chains", [(4, 2), (5, 1), (9, 2), (10, 3), (11, 2)])
@pytest.mark.parametrize("rho", [-0.9, 0.0, 0.8])
def test_size_agrees_with_arviz_where_every_term_counts(steps, chains, rho):
    draws = ar1(steps, rho, (steps, chains, 40))
    size = size_of(draws)
    close(size, by_arviz(metrics.effective_sample_size, draws), rtol=RTOL)


@pytest.mark.parametrize("steps, chains", [(100, 4), (101, 1), (1000, 2), (515, 16)])
@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.8, 0.99])
def test_size_agrees_with_arviz(steps, chains, rho):
    draws = ar1(steps, rho, (steps, chains, 12))
    size = size_of(draws)
    close(size, by_arviz(metrics.effective_sample_size, draws), rtol=RTOL)


def test_chains_that_drift_or_disagree_are_worth_little_as_in_arviz():
    draws = ar1(2, 0.3, (401, 4, 3))
    draws[:, :, 0] += np.linspace(0, 5, 401)[:, None]  # all drift together
    draws[:, 0, 1] += 10  # one is elsewhere
    size = size_of(draws)
    close(size, by_arviz(metrics.effective_sample_size, draws), rtol=RTOL)
    # Four chains in two places: about as many draws as halves, and never mind 1600.
    assert size[0] < 16 and size[1] < 16 and size[2] > 500


def test_chains_that_alternate_reach_the_largest_size():
    """+1, -1, +1, ...: tau would be 0 or less, and is 1 / log10(total)."""
    draws = np.tile(np.float32([1.0, -1.0]), 50)[:, None] * np.ones((1, 10), np.float32)
    close(size_of(draws), 1000 * 3.0, rtol=1e-6)


def test_an_offset_and_a_unit_change_no_size():
    """Float32 at 1e4 keeps steps of 1e-3; moments about 0 would lose all digits.

    And squares of 1e-30 or 1e30 are not float32 numbers at all.
    """
    draws = ar1(3, 0.5, (400, 4, 5))
    size = size_of(draws)
    for unit in (2.0**-100, 2.0**100, -1.0):
        close(size_of(unit * draws), size, rtol=RTOL)
    moved = draws + np.float32(1e4)
    expected = by_arviz(metrics.effective_sample_size, moved)
    close(size_of(moved), expected, rtol=RTOL)
    outlier = draws.copy()
    outlier[0, 0] = 1e4  # a start far away
    expected = by_arviz(metrics.effective_sample_size, outlier)
    close(size_of(outlier), expected, rtol=RTOL)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_draws_that_are_all_equal_count_in_full_as_in_arviz(value):
    draws = np.full((11, 3, 2), value, np.float32)
    np.testing.assert_array_equal(size_of(draws), 3 * 10)
    expected = by_arviz(metrics.effective_sample_size, draws)
    np.testing.assert_array_equal(expected, 3 * 10)  # the middle step is left out
    # Rejected forever, but in three places: these are another matter.
    draws += np.arange(3, dtype=np.float32)[None, :, None] * (1 + abs(value))
    expected = by_arviz(metrics.effective_sample_size, draws)
    assert (expected < 15).all()
    close(size_of(draws), expected, rtol=RTOL)


# --- R-hat -------------------------------------------------------------------------


def apart(num_halves):
    """R-hat of many draws, the lower half of them in one half of the half chains.

    Their scores are the two halves of a normal, which have the means +-sqrt(2 / pi) and
    the variance 1 - 2 / pi.
    """
    between = (2 / math.pi) * num_halves / (num_halves - 1)
    return math.sqrt(1 + between / (1 - 2 / math.pi))


# The scores of 2000 draws have lighter tails than a normal: the variance of each half
# of them is 0.43 % short, and R-hat, with its - 1 / n, above that by up to 0.07 %.
SCORES = 0.001


def halves_alike(values):
    """Every other value, then those between: a chain of which both halves are alike."""
    return np.concatenate([values[::2], values[1::2]])


def test_two_chains_apart_have_this_r_hat_however_far():
    low = halves_alike(np.linspace(-1, 0, 1000))
    expected = apart(4)
    close(expected, 1.8265, atol=1e-4)  # the docstring's 1.83
    for start, end in ((0.001, 1), (100, 200)):
        draws = np.stack([low, halves_alike(np.linspace(start, end, 1000))], 1)
        close(r_hat_of(draws), expected, rtol=SCORES)


def test_one_chain_is_compared_with_itself():
    """Its halves apart: two groups instead of four. ArviZ says NaN to one chain."""
    draws = np.linspace(-1, 1, 2000)
    r_hat = r_hat_of(draws[:, None])
    close(r_hat, apart(2), rtol=SCORES)
    # With both halves alike it is the least there is, the root of 1 - 1 / n.
    r_hat = r_hat_of(halves_alike(draws)[:, None])
    close(r_hat, (1 - 1 / 1000) ** 0.5, rtol=1e-5)


def test_chains_of_different_scales_are_as_far_apart_as_chains_in_different_places():
    """|x| is all below 1 in one chain and all above in the other; the means are equal.

    Folding makes this the case of two chains apart; without it R-hat would be 1.
    """
    signs = np.tile([1.0, 1.0, -1.0, -1.0], 250)  # both in both halves
    narrow = halves_alike(signs * np.linspace(0.001, 1, 1000))
    wide = halves_alike(signs * np.linspace(1.001, 5, 1000))
    draws = np.stack([narrow, wide], 1)
    close(r_hat_of(draws), apart(4), rtol=SCORES)


@pytest.mark.parametrize("law", ["normal", "standard_cauchy"])
def test_heavy_tails_are_as_good_as_any(law):
    """Ranks have one law for all: R^2 - 1 is (F - 1) / n, with m - 1 and many degrees.

    The deviation of F is sqrt(2 / (m - 1)), for the draws and for the folded ones.
    """
    num_steps, num_chains = 1000, 8
    draw = getattr(np.random.RandomState(0), law)
    draws = draw(size=(num_steps, num_chains, 50)).astype(np.float32)
    r_hat = r_hat_of(draws)
    half, num_halves = num_steps // 2, 2 * num_chains
    tolerance = 6 * (2 / (num_halves - 1)) ** 0.5 / (2 * half)  # < 0.003; chi^2 is skew
    close(r_hat, 1.0, atol=tolerance)
    # And a chain that is elsewhere is seen, which the means of Cauchy draws would hide.
    draws[:, 0] += 3
    assert (r_hat_of(draws) > 1 + 10 * tolerance).all()


@pytest.mark.parametrize("steps, chains", [(4, 2), (5, 2), (7, 3), (101, 4), (1000, 2)])
@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.95])
def test_r_hat_agrees_with_arviz(steps, chains, rho):
    draws = ar1(steps, rho, (steps, chains, 20))
    draws[:, 0, 5:10] += 1
    draws[:, 0, 10:15] *= 3
    draws[:, :, 15:] += np.linspace(0, 2, steps)[:, None, None]
    r_hat = r_hat_of(draws)
    close(r_hat, by_arviz(metrics.potential_scale_reduction, draws), rtol=RTOL)


def test_ties_share_their_mean_rank_as_in_arviz():
    """Quarters, so that a distance from the median is exact and ties stay ties."""
    draws = np.round(4 * ar1(4, 0.5, (101, 4, 10))) / 4
    draws[:, :, 5:] = np.sign(draws[:, :, 5:])  # three values
    draws[:, 0, 8:] = 1
    r_hat = r_hat_of(draws)
    close(r_hat, by_arviz(metrics.potential_scale_reduction, draws), rtol=RTOL)


def test_two_values_equally_many_are_judged_by_where_they_are():
    """All are as far from their median, so the folded part is 0 / 0 and has no say."""
    draws = np.tile(np.array([0.0, 1.0, 1.0, 0.0, 0.0, 1.0]), 10)[:, None]
    draws = np.concatenate([draws, draws[::-1]], 1)
    r_hat = r_hat_of(draws)
    close(r_hat, by_arviz(metrics.potential_scale_reduction, draws), rtol=RTOL)
    close(r_hat, (29 / 30) ** 0.5, rtol=1e-6)  # the least: halves of 30 have one mean


def test_chains_that_stand_still():
    """In one place there is nothing to compare; in several they are infinitely bad."""
    draws = np.full((10, 3, 2), 0.1, np.float32)
    draws[:, :, 1] += np.arange(3)[None]
    r_hat = r_hat_of(draws)
    assert np.isnan(r_hat[0]) and np.isposinf(r_hat[1])
    expected = by_arviz(metrics.potential_scale_reduction, draws)
    assert np.isnan(expected[0]) and expected[1] > 1e6


def test_infinite_draws_have_a_rank_but_no_mean():
    draws = ar1(5, 0.0, (100, 4, 2))
    draws[7, 2, 0], draws[8, 1, 0] = np.inf, -np.inf
    r_hat = r_hat_of(draws)
    close(r_hat, by_arviz(metrics.potential_scale_reduction, draws), rtol=RTOL)
    size = size_of(draws)
    assert np.isnan(size[0]) and np.isfinite(size[1])
    draws[:60, :, 0] = np.inf  # so is their median, and no distance from it is a number
    r_hat = r_hat_of(draws)
    close(r_hat, by_arviz(metrics.potential_scale_reduction, draws), rtol=RTOL)
    draws = ar1(5, 0.0, (4, 4, 2))  # so few that no correlation is looked at
    draws[0, 0, 0] = np.inf
    assert np.isnan(size_of(draws)[0])


def test_the_outermost_scores_of_many_draws_keep_their_digits():
    """In float32 1 - 0.6 / total has lost 2 % of what is left to 1, for 400,000."""
    total = 400_000
    draws = np.linspace(-1, 1, total, dtype=np.float32)
    scores = np.asarray(jax.jit(diagnostics._normal_scores)(draws))
    expected = scipy.stats.norm.ppf((np.arange(1, 5) - 3 / 8) / (total + 1 / 4))
    close(scores[:4], expected, rtol=1e-6)
    close(scores[-4:], -expected[::-1], rtol=1e-6)


# --- both --------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("event", [(), (4,), (2, 1, 2), (0,)])
def test_every_coordinate_is_on_its_own(function, event):
    draws = ar1(6, 0.5, (51, 3, *event))
    values = function(draws)
    assert values.shape == event and values.dtype == jnp.float32
    for index in np.ndindex(event):
        close(values[index], function(draws[:, :, *index]), rtol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape, num", [((2000, 40, 7), 3), ((2000, 140, 2), 1)])
def test_coordinates_of_many_draws_are_each_on_their_own(function, shape, num):
    """They are computed `num` at a time, and the rest after them."""
    assert diagnostics.MOST_ELEMENTS // math.prod(shape[:2]) <= num < shape[2]
    draws = ar1(6, 0.5, shape)
    values = function(draws)
    for index in (0, shape[2] - 1):
        close(values[index], function(draws[:, :, index]), rtol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("step", [0, 25, 50])
def test_a_nan_is_seen_in_its_coordinate_and_no_other(function, step):
    """Also in the middle step of 51, which neither half contains."""
    draws = ar1(7, 0.5, (51, 3, 2, 2))
    clean = function(draws)
    draws[step, 1, 0, 1] = np.nan
    values = function(draws)
    assert np.isnan(values[0, 1])
    expected = np.asarray(clean).copy()
    expected[0, 1] = np.nan
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_within_a_larger_program_it_is_the_same(function):
    draws = ar1(8, 0.5, (51, 3, 4))
    close(jax.jit(function)(draws), function(draws), rtol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_small_types_are_computed_in_float32(function):
    draws = jnp.asarray(ar1(9, 0.5, (51, 3, 4))).astype(jnp.bfloat16)
    values = function(draws)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, function(draws.astype(jnp.float32)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_chains_may_come_in_any_order_and_time_may_run_backwards(function):
    draws = ar1(10, 0.8, (51, 3, 4))
    close(function(draws[:, ::-1]), function(draws), rtol=RTOL)
    close(function(draws[::-1]), function(draws), rtol=RTOL)


@pytest.mark.quick
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "shape, dtype, shown",
    [
        ((100,), np.float32, r"float32\[100\]"),
        ((), np.float32, r"float32\[\]"),
        ((3, 4), np.float32, r"float32\[3, 4\]"),
        ((10, 0, 2), np.float32, r"float32\[10, 0, 2\]"),
        ((10, 4), np.int32, r"int32\[10, 4\]"),
        ((10, 4), bool, r"bool\[10, 4\]"),
        ((10, 4), np.complex64, r"complex64\[10, 4\]"),
    ],
)
def test_what_are_no_draws_is_refused(function, shape, dtype, shown):
    with pytest.raises(
        ValueError,
        match=r"draws must be floating-point \[steps, chains, \*event\] with at least 4"
        rf" steps and 1 chain, got {shown}",
    ):
        function(np.ones(shape, dtype))
