"""Diffusions there and back: moments, point masses, Gaussians, exact densities."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import diffusions, metrics, objectives, samplers
from ebmjax.samplers import diffusion
from ebmjax.samplers.layout import BLOCK

# For tests that compile for longer than they run.
quick_compilation = pytest.mark.usefixtures("quick_compilation")

DIFFUSIONS = {
    "variance_preserving": diffusions.variance_preserving(),
    "sub_variance_preserving": diffusions.sub_variance_preserving(),
    "variance_exploding": diffusions.variance_exploding(noise_min=0.01, noise_max=50.0),
}
every_diffusion = pytest.mark.parametrize("name", DIFFUSIONS)
SMALL = diffusions.variance_exploding(noise_min=0.01, noise_max=3.0)


def normal(*shape, seed=1):
    """Standard normal numbers, without a program of their own for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def normal_score(process, variance, x, time):
    """Of data `N(0, variance)`, element by element."""
    total = process.mean_scale(time) ** 2 * variance + process.std(time) ** 2
    return -x / total


def point_score(process, point, x, time):
    return -(x - process.mean_scale(time) * point) / process.std(time) ** 2


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# --- the forward equation


@every_diffusion
def test_the_moments_satisfy_the_equation(name, x64):
    """d log mean = drift, and d std^2 = 2 drift std^2 + scale^2."""
    process = DIFFUSIONS[name]

    @jax.jit
    @jax.vmap
    def at(t):
        rate = process.drift_rate(t)
        slope = jax.grad(lambda t: jnp.log(process.mean_scale(t)))(t)
        change = jax.grad(lambda t: process.std(t) ** 2)(t)
        expected = 2 * rate * process.std(t) ** 2 + process.diffusion_scale(t) ** 2
        return rate, slope, change, expected

    rate, slope, change, expected = map(np.asarray, at(jnp.array([0.0, 0.2, 0.5, 1.0])))
    np.testing.assert_allclose(slope, rate, rtol=1e-12)
    if name == "variance_preserving":  # std is a square root at 0
        change, expected = change[1:], expected[1:]
    np.testing.assert_allclose(change, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.quick
def test_the_moments_are_the_papers():
    """By hand: at time 1 the integral of the rate is 10.05; VE's 0.01 5000^t."""
    vp, sub, ve = (DIFFUSIONS[name] for name in DIFFUSIONS)
    scale = math.exp(-10.05 / 2)
    np.testing.assert_allclose(vp.mean_scale(1.0), scale, rtol=1e-5)
    np.testing.assert_allclose(sub.mean_scale(1.0), scale, rtol=1e-5)
    np.testing.assert_allclose(vp.std(1.0), math.sqrt(1 - scale**2), rtol=1e-6)
    np.testing.assert_allclose(sub.std(1.0), 1 - scale**2, rtol=1e-6)
    np.testing.assert_allclose(vp.diffusion_scale(1.0), math.sqrt(20), rtol=1e-6)
    np.testing.assert_allclose(
        sub.diffusion_scale(1.0), math.sqrt(20 * (1 - math.exp(-20.1))), rtol=1e-6
    )
    half = 0.01 * math.sqrt(5000)
    np.testing.assert_allclose(ve.std(0.5), half, rtol=1e-6)
    np.testing.assert_allclose(
        ve.diffusion_scale(0.5), half * math.sqrt(2 * math.log(5000)), rtol=1e-6
    )
    # Small times: 1 - exp would have three digits left.
    np.testing.assert_allclose(
        vp.std(jnp.float32(1e-5)), math.sqrt(1.000995e-6), rtol=1e-5
    )
    np.testing.assert_allclose(sub.std(jnp.float32(1e-5)), 1.000994e-6, rtol=1e-5)


@every_diffusion
def test_a_score_of_noise_scales_serves_all_diffusions(name):
    process = DIFFUSIONS[name]

    def of_scale(variance, x, noise_scale):
        return -x / (variance + noise_scale**2)

    timed = diffusions.with_time(of_scale, process)
    x = jnp.array([0.3, -2.0])
    for time in (0.01, 0.4, 1.0):
        np.testing.assert_allclose(
            timed(0.7, x, jnp.float32(time)),
            normal_score(process, 0.7, x, jnp.float32(time)),
            rtol=1e-5,
        )


# --- the probability flow

T15 = {  # from the same data and point: the latent, and with the nominal prior
    "variance_preserving": (1.0756985, -1.3191725, -1.3191714),
    "variance_exploding": (53.788974, None, -1.3191833),
    # V = .7 m^2 + (1 - m^2)^2, with m^2 = exp(-10.05) at 1 and 1 - 1.001e-6 at 1e-5,
    # and the density N(latent; 0, 1) sqrt(V(1) / V(1e-5)): by hand.
    "sub_variance_preserving": (1.0756761, None, -1.3191682),
}


@quick_compilation
@pytest.mark.parametrize("name", T15)
def test_the_flow_of_a_normal_law_is_exact(name, x64):
    """x sqrt(V(1) / V(0)), whose density is N(x; 0, V(0)) if the prior is the law at
    time 1; the nominal prior's mismatch shows in the sixth digit."""
    process = DIFFUSIONS[name]
    latent, density, nominal = T15[name]
    x = jnp.full((1, 1), 0.9)

    def variance(time):
        time = jnp.float64(time)
        return process.mean_scale(time) ** 2 * 0.7 + process.std(time) ** 2

    run = functools.partial(
        metrics.probability_flow_log_prob,
        process,
        functools.partial(normal_score, process, 0.7),
        jax.random.key(0),
        x,
        tolerance=1e-9,
    )
    found, flowed = run(prior_std=float(variance(1.0) ** 0.5))
    np.testing.assert_allclose(flowed.x, latent, rtol=6e-8)
    exact = -0.5 * (0.81 / variance(1e-5) + jnp.log(2 * jnp.pi * variance(1e-5)))
    np.testing.assert_allclose(found[0], exact, atol=1e-8)
    if density is not None:
        np.testing.assert_allclose(found[0], density, atol=6e-8)
    np.testing.assert_allclose(run()[0][0], nominal, atol=6e-8)
    if name != "variance_preserving":
        return  # the way back is the same for all, and a program of its own
    back = samplers.probability_flow(
        process,
        functools.partial(normal_score, process, 0.7),
        jax.random.key(0),
        flowed.x,
        start=1.0,
        end=1e-5,
        trace="exact",
        tolerance=1e-9,
    )
    np.testing.assert_allclose(back.x, x, rtol=1e-8)
    np.testing.assert_allclose(back.log_det, -flowed.log_det, rtol=1e-8)


@quick_compilation
def test_the_flow_has_the_density_of_a_mixture(x64):
    """Of mean 0, as the prior. The prior, 200 wide, differs from the law at time 1 by
    the data's variance of 1.03, 2.6e-5 of its own: log densities by half of that, and
    as much again where a latent is 1.4 deviations out."""
    wide = diffusions.variance_exploding(noise_min=1e-3, noise_max=200.0)

    def score(x, time):
        variances = jnp.array([0.04, 0.25]) + wide.std(time) ** 2

        def log_density(x):
            squares = (x[0] - jnp.array([-1.4, 0.6])) ** 2 / variances
            logs = jnp.log(jnp.array([0.3, 0.7])) - 0.5 * jnp.log(variances)
            return jax.nn.logsumexp(logs - 0.5 * squares)

        return jax.grad(log_density)(x)

    x = jnp.array([-1.6, -0.9, -0.4, 0.6, 1.6])[:, None]
    found, _ = metrics.probability_flow_log_prob(
        wide, score, jax.random.key(0), x, start=1e-9, tolerance=1e-7, trace="exact"
    )
    variances = np.array([0.04, 0.25]) + 1e-6
    parts = np.exp(-0.5 * (np.asarray(x) - [-1.4, 0.6]) ** 2 / variances)
    density = (parts * [0.3, 0.7] / np.sqrt(2 * np.pi * variances)).sum(1)
    np.testing.assert_allclose(found, np.log(density), atol=5e-5)


@quick_compilation
def test_the_trace_by_signs_is_unbiased_and_kept_along_the_way():
    """A score -A x with rotated A: signs see A's off-diagonal, the exact trace none.
    One probe a trajectory: its estimate is v A v along the way, of the variance
    2 sum of squares off the diagonal, of the integral."""
    rotation = jnp.array([[0.8, -0.6], [0.6, 0.8]])

    def score(rotation, x, time):
        variances = jnp.array([0.1, 4.0]) + SMALL.std(time) ** 2
        return -rotation @ ((rotation.T @ x) / variances)

    num = 400
    run = functools.partial(
        samplers.probability_flow,
        SMALL,
        functools.partial(score, rotation),
        jax.random.key(1),
        jnp.asarray(np.tile(np.float32([0.5, -1.0]), (num, 1))),
        start=1e-5,
        end=1.0,
        tolerance=1e-4,
    )
    exact, signs = run(trace="exact"), run()
    # The log of the ratio of deviations, 3 and 0.01 being the noise at the ends.
    expected = 0.5 * (np.log(9.1 / 0.1001) + np.log(13 / 4.0001))
    np.testing.assert_allclose(exact.log_det, expected, rtol=1e-3)
    np.testing.assert_allclose(exact.log_det.std(), 0, atol=1e-4)
    # Signs alike or not: two values, expected +- the integral off the diagonal.
    gap = 2 * 0.8 * 0.6 * 0.5 * (np.log(9.1 / 0.1001) - np.log(13 / 4.0001))
    values = np.unique(np.round(np.asarray(signs.log_det), 2))
    np.testing.assert_allclose(values, [expected - gap, expected + gap], atol=0.011)
    error = 5 * gap / num**0.5
    np.testing.assert_allclose(signs.log_det.mean(), expected, atol=error)
    nothing = run(trace=None)
    np.testing.assert_allclose(nothing.log_det, 0)
    np.testing.assert_allclose(nothing.x, exact.x, rtol=2e-3)


@quick_compilation
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_flow_takes_positions_of_every_type(dtype, x64):
    """Also where times are of another: N(0, .7), of which the density is known. Flows
    are never in less than float32, to which float16 is cast as bfloat16 is."""
    x = jnp.array([[0.5, -1.0], [0.25, 2.0]], dtype)
    law = diffusions.variance_exploding(noise_min=1e-3, noise_max=200.0)
    found, flowed = metrics.probability_flow_log_prob(
        law, functools.partial(normal_score, law, 0.7), jax.random.key(0), x
    )
    expected = -0.5 * (np.asarray(x, float) ** 2 / 0.7).sum(1) - np.log(2 * np.pi * 0.7)
    # Some 50 steps, each to 1e-5.
    np.testing.assert_allclose(found, expected, atol=5e-4)
    wide = "float64" if dtype == "float64" else "float32"
    assert found.dtype == flowed.x.dtype == flowed.log_det.dtype == wide


@quick_compilation
def test_an_example_that_needs_more_steps_is_nan_and_no_other():
    def score(x, time):
        return -x / (0.1 + SMALL.std(time) ** 2) + jnp.sin(1e5 * time * (x > 5))

    flowed = samplers.probability_flow(
        SMALL,
        score,
        jax.random.key(0),
        jnp.array([[0.1], [9.0]]),
        start=1e-5,
        end=1.0,
        max_steps=60,
    )
    assert np.isnan(flowed.x[1]).all() and np.isnan(flowed.log_det[1])
    assert np.isfinite(flowed.x[0]).all() and flowed.num_evaluations[0] < 6 * 60


# --- predictors and the corrector


def start_of(process, mean, variance, shape):
    """Draws of the law at time 1, not of the nominal prior."""
    scale, std = process.mean_scale(1.0), process.std(1.0)
    return scale * mean + jnp.sqrt(scale**2 * variance + std**2) * normal(*shape)


@quick_compilation
@every_diffusion
def test_ancestral_steps_are_exact_on_a_point(name):
    """However few they are; and the final denoising finds the point itself."""
    process, point = DIFFUSIONS[name], 1.5
    shape = (4_000, 8)
    run = functools.partial(
        samplers.sample_diffusion,
        process,
        functools.partial(point_score, process, point),
        jax.random.key(3),
        start_of(process, point, 0.0, shape),
        5,
        time_min=0.05,
    )
    x, _ = run(predictor="ancestral", is_denoised=False)
    end = jnp.float32(0.05)
    mean, variance = process.mean_scale(end) * point, process.std(end) ** 2
    num = math.prod(shape)
    np.testing.assert_allclose(x.mean(), mean, atol=5 * (variance / num) ** 0.5)
    np.testing.assert_allclose(x.var(), variance, rtol=5 * (2 / num) ** 0.5)
    if name == "variance_exploding":  # with another predictor the test would fail
        other, _ = run(predictor="euler_maruyama", is_denoised=False)
        assert abs(other.var() / variance - 1) > 0.5
    denoised, _ = run(predictor="ancestral")
    np.testing.assert_allclose(denoised, point, atol=1e-4)


@every_diffusion
@pytest.mark.parametrize("predictor", diffusion.PREDICTORS)
def test_predictors_converge_to_the_exact_law_at_first_order(name, predictor, x64):
    """On normal data each step is affine in x, so that the variance at the end follows
    from every step's slope and noise; its error is halved by twice the steps."""
    process = DIFFUSIONS[name]
    step = diffusion.PREDICTORS[predictor]

    @functools.partial(jax.jit, static_argnums=0)
    def error(num_steps):
        times = jnp.linspace(1.0, 0.02, num_steps + 1)
        one = jnp.ones(())

        def move(variance, ends):
            time, end = ends
            score = normal_score(process, 0.7, one, time)
            slope, spread = step(process, one, score, time, end)
            return slope**2 * variance + spread**2, None

        def variance(time):
            return process.mean_scale(time) ** 2 * 0.7 + process.std(time) ** 2

        found, _ = jax.lax.scan(move, variance(times[0]), (times[:-1], times[1:]))
        return found / variance(times[-1]) - 1

    coarse, fine = (float(error(num)) for num in (4_000, 8_000))
    # More than halved where the first order's part is small.
    assert abs(fine) < 0.02 and coarse / fine > 1.95


@quick_compilation
@pytest.mark.parametrize("predictor", diffusion.PREDICTORS)
def test_the_loop_walks_the_predictors_steps(predictor):
    """Its law is that of the steps' own recursion on normal data, to Monte Carlo error,
    where the steps are few and the law far from the data's."""
    process, num_steps = DIFFUSIONS["sub_variance_preserving"], 20
    times = np.linspace(1.0, 0.1, num_steps + 1, dtype=np.float32)

    @jax.jit
    @jax.vmap
    def affine(time, end):
        score = normal_score(process, 0.3, jnp.ones(()), time)
        step = diffusion.PREDICTORS[predictor]
        return step(process, jnp.ones(()), score, time, end)

    variance = 1.0
    for slope, spread in zip(*map(np.asarray, affine(times[:-1], times[1:]))):
        variance = slope**2 * variance + spread**2
    shape = (5_000, 8)
    x, info = samplers.sample_diffusion(
        process,
        functools.partial(normal_score, process, 0.3),
        jax.random.key(0),
        normal(*shape),
        num_steps,
        predictor=predictor,
        time_min=0.1,
        is_denoised=False,
    )
    error = 5 * (2 / math.prod(shape)) ** 0.5
    np.testing.assert_allclose(x.var(), variance, rtol=error)
    # The first norm is the prior's: |x| / V(1), of 8 standard normals 2.740 a chain.
    first = 2.74 / (process.mean_scale(1.0) ** 2 * 0.3 + process.std(1.0) ** 2)
    np.testing.assert_allclose(info.score_norm[0], first, rtol=0.02)


def test_the_corrector_has_its_own_law():
    """At one time, on a normal law of variance V, of a step 2 (r |n| / |s|)^2 for the
    signal-to-noise ratio r: the stationary variance v solves v (1 - h / 2 V) = V with
    h = 2 r^2 V^2 / v, so v = (1 + r^2) V. VE takes nothing from the variance."""
    time, ratio = 0.5, 0.5
    shape = (4_000, 24)
    variance = float(0.7 + SMALL.std(jnp.float32(1.0)) ** 2)
    run = functools.partial(
        samplers.sample_diffusion,
        SMALL,
        functools.partial(normal_score, SMALL, 0.7),
        jax.random.key(0),
        variance**0.5 * normal(*shape),
        1,
        predictor=None,
        time_min=time,
        num_corrections=60,
        signal_to_noise=ratio,
        is_denoised=False,
    )
    x, info = run()
    error = 5 * (2 / math.prod(shape)) ** 0.5
    np.testing.assert_allclose(x.var(), (1 + ratio**2) * variance, rtol=error)
    expected = 2 * ratio**2 * variance / (1 + ratio**2)
    # A mean over the way there as well, and of norms' ratios: within 3 %.
    np.testing.assert_allclose(info.corrector_step_size[0], expected, rtol=0.03)


def test_the_corrector_s_step_is_less_by_what_the_forward_step_takes():
    """VP, from .9 to 1 in one: a share exp(-integral of the rate) = exp(-1.9005) of the
    variance is left, 0.1495, so that v = (1 + .1495 r^2) V; V is 1 to 1e-4."""
    shape, ratio = (4_000, 24), 1.5
    x, _ = samplers.sample_diffusion(
        DIFFUSIONS["variance_preserving"],
        functools.partial(normal_score, DIFFUSIONS["variance_preserving"], 0.7),
        jax.random.key(0),
        normal(*shape),
        1,
        predictor=None,
        time_min=0.9,
        num_corrections=60,
        signal_to_noise=ratio,
        is_denoised=False,
    )
    error = 5 * (2 / math.prod(shape)) ** 0.5
    expected = 1 + math.exp(-1.9005) * ratio**2
    np.testing.assert_allclose(x.var(), expected, rtol=error)


@quick_compilation
def test_where_all_scores_are_zero_the_corrector_stays():
    x = jnp.ones((3, 2))
    found, info = samplers.sample_diffusion(
        SMALL,
        lambda x, time: 0.0 * x,
        jax.random.key(0),
        x,
        1,
        predictor=None,
        num_corrections=2,
        is_denoised=False,
    )
    np.testing.assert_array_equal(found, x)
    assert info.corrector_step_size[0] == 0


@quick_compilation
def test_a_chain_without_a_number_is_not_taken_for_a_score_of_zero():
    """The corrector's step is of the mean over chains: there is none, and it shows."""
    x = jnp.array([[1.0, 2.0], [jnp.nan, 1.0]])
    found, info = samplers.sample_diffusion(
        SMALL,
        functools.partial(normal_score, SMALL, 1.0),
        jax.random.key(0),
        x,
        2,
        num_corrections=1,
    )
    assert np.isnan(info.corrector_step_size).all() and np.isnan(found).all()


@pytest.mark.quick
def test_predictors_by_hand():
    """One step from 1 to .9 at x = 1.2 with a score of -.7. VP: of the variance
    1 - b = exp(-1.9005) is left; the rate at 1 is 20. VE: scales 3 and 3 300^-.1."""
    vp, x, score = DIFFUSIONS["variance_preserving"], 1.2, -0.7
    left = math.exp(-1.9005)
    step = {
        name: functools.partial(predictor, vp, x, score, 1.0, 0.9)
        for name, predictor in diffusion.PREDICTORS.items()
    }
    mean, spread = step["reverse_diffusion"]()
    expected = (2 - left**0.5) * x + (1 - left) * score
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    np.testing.assert_allclose(spread, (1 - left) ** 0.5, rtol=1e-5)
    mean, spread = step["euler_maruyama"]()
    np.testing.assert_allclose(mean, x + 0.1 * (10 * x + 20 * score), rtol=1e-5)
    np.testing.assert_allclose(spread, 2**0.5, rtol=1e-5)
    # DDPM: (x + b score) / sqrt(1 - b), with the smaller variance b (1 - a') / (1 - a)
    # for a the share of the variance that is left since 0.
    mean, spread = step["ancestral"]()
    since = math.exp(-10.05), math.exp(-10.05 + 1.9005)
    expected = (x + (1 - left) * score) / left**0.5
    np.testing.assert_allclose(mean, expected, rtol=1e-4)
    variance = (1 - left) * (1 - since[1]) / (1 - since[0])
    np.testing.assert_allclose(spread, variance**0.5, rtol=1e-5)
    here, there = 3.0, 3.0 * 300**-0.1
    for name in ("reverse_diffusion", "ancestral"):
        mean, spread = diffusion.PREDICTORS[name](SMALL, x, score, 1.0, 0.9)
        np.testing.assert_allclose(mean, x + (9 - there**2) * score, rtol=1e-5)
        kept = there / here if name == "ancestral" else 1
        np.testing.assert_allclose(spread, kept * (9 - there**2) ** 0.5, rtol=1e-5)


@quick_compilation
def test_the_corrector_s_norms_are_of_all_devices_together():
    """Chains of one device far from the others' size: with its own norm it would take
    other steps. Padding, of a number that does not divide, counts for nothing."""
    x = np.repeat([[0.1], [10.0]], [30, 23], axis=0) * np.asarray(normal(53, 4))
    x = jnp.asarray(x, jnp.float32)
    run = functools.partial(
        samplers.sample_diffusion,
        SMALL,
        functools.partial(normal_score, SMALL, 0.7),
        jax.random.key(0),
        num_steps=3,
        num_corrections=2,
    )
    many, many_info = run(x)
    one, one_info = run(jax.device_put(x, jax.devices()[2]))
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        many_info.corrector_step_size, one_info.corrector_step_size, rtol=1e-5
    )
    # Without a corrector chains know nothing of each other.
    run = functools.partial(run, num_corrections=0)
    np.testing.assert_allclose(run(x)[0][:7], run(x[:7])[0], rtol=1e-5, atol=1e-6)
    assert BLOCK > 53


@every_diffusion
def test_predictor_and_corrector_together_sample_normal_data(name):
    """From the nominal prior to the denoised draw, as it is used. The draws are those
    of the data's law N(0, .7), less what denoising takes: (1 - V_noise / V)^2 of the
    variance at the last time, nearly nothing. The bias of 400 steps and of the
    corrector, 1 + r^2 = 1.01, is within 3 %."""
    process = DIFFUSIONS[name]
    shape = (3_000, 8)
    x, _ = samplers.sample_diffusion(
        process,
        functools.partial(normal_score, process, 0.7),
        jax.random.key(0),
        process.prior_std * normal(*shape),
        400,
        num_corrections=1,
        signal_to_noise=0.1,
    )
    error = 5 * (2 / math.prod(shape)) ** 0.5
    np.testing.assert_allclose(x.var(), 0.7, rtol=0.03 + error)
    np.testing.assert_allclose(x.mean(), 0, atol=5 * (0.7 / math.prod(shape)) ** 0.5)


@quick_compilation
@pytest.mark.parametrize(
    "name, num_corrections",
    [*((name, 0) for name in DIFFUSIONS), ("variance_preserving", 2)],
)
def test_what_is_known_comes_back_and_where_nothing_depends_on_it_nothing_else(
    name, num_corrections
):
    """Of independent elements, by predictors alone, the others are drawn as if nothing
    was known. Each chain has a known element and a value of its own; nine chains do
    not divide by the devices."""
    process = DIFFUSIONS[name]
    values = normal(9, 4)
    is_known = np.arange(4)[None] == (np.arange(9) % 4)[:, None]
    draw = functools.partial(
        samplers.sample_diffusion,
        process,
        functools.partial(normal_score, process, 0.7),
        jax.random.key(0),
        process.prior_std * normal(9, 4, seed=2),
        20,
        num_corrections=num_corrections,
    )
    (free, _), (x, _) = draw(), draw(known=(is_known, values))
    free, x, values = map(np.asarray, (free, x, values))
    np.testing.assert_array_equal(x[is_known], values[is_known])
    assert np.all(free[is_known] != values[is_known])
    if not num_corrections:
        np.testing.assert_allclose(x[~is_known], free[~is_known], rtol=1e-5)


@quick_compilation
@pytest.mark.parametrize(
    "name, num_corrections",
    [*((name, 1) for name in DIFFUSIONS), ("variance_preserving", 0)],
)
def test_scores_are_asked_for_where_the_known_has_the_time_s_noise(
    name, num_corrections
):
    """The second element's score points to what the first is, without its mean's
    scale: in the end it is the known value and noise of the last time, std / scale,
    which is drawn once for both corrector and predictor. A score is no number where
    the first is the value itself or further than six deviations from it."""
    process, last = DIFFUSIONS[name], jnp.float32(0.4)

    def score(x, time):
        mean, std = process.mean_scale(time), process.std(time)
        distance = jnp.abs(x[0] - mean * 1.3) / std
        is_noised = (distance > 0) & (distance < 6)
        second = (x[0] - x[1]) / std**2
        return jnp.where(is_noised, jnp.stack([0.0 * second, second]), jnp.nan)

    num = 4_000
    x, _ = samplers.sample_diffusion(
        process,
        score,
        jax.random.key(0),
        process.prior_std * normal(num, 2),
        5,
        time_min=float(last),
        num_corrections=num_corrections,
        known=(jnp.array([True, False]), jnp.full((num, 2), 1.3)),
    )
    x = np.asarray(x)
    np.testing.assert_array_equal(x[:, 0], np.float32(1.3))
    std = float(process.std(last) / process.mean_scale(last))
    np.testing.assert_allclose(x[:, 1].mean(), 1.3, atol=5 * std / num**0.5)
    np.testing.assert_allclose(x[:, 1].std(), std, rtol=5 / (2 * num) ** 0.5)


@quick_compilation
def test_the_known_has_noise_of_its_own_at_every_time():
    """Of two steps the second element's score is the first, which is known as 0 and is
    s n at noise scale s: it comes to a_1 s_1 n_1 + a_2 s_2 n_2, with a = s^2 - t^2 of
    the step to scale t, and the steps' own noise of variance a_1 + a_2. With one n for
    both its variance would be (a_1 s_1 + a_2 s_2)^2, 1.7 times as large."""
    num, times = 20_000, (1.0, 0.95, 0.9)
    x, _ = samplers.sample_diffusion(
        SMALL,
        lambda x, time: jnp.stack([0.0 * x[0], x[0]]),
        jax.random.key(0),
        jnp.zeros((num, 2)),
        2,
        time_min=times[-1],
        is_denoised=False,
        known=(jnp.array([True, False]), jnp.zeros((num, 2))),
    )
    scales = [3.0 * 300 ** (time - 1) for time in times]
    a = [s**2 - t**2 for s, t in zip(scales, scales[1:])]
    expected = sum(a) + sum((k * s) ** 2 for k, s in zip(a, scales))
    found = np.asarray(x)[:, 1].var()
    np.testing.assert_allclose(found, expected, rtol=5 * (2 / num) ** 0.5)


def test_with_corrections_the_rest_is_drawn_given_what_is_known():
    """Two elements of variance .1 and covariance .09: given the first, a, the second is
    N(.9 a, .019). Langevin dynamics of many small moves at every time go there, with a
    variance 1 + r^2 times as large, r = .1, where predictors alone do not."""
    covariance = jnp.array([[0.1, 0.09], [0.09, 0.1]])

    def score(x, time):
        return -jnp.linalg.solve(covariance + SMALL.std(time) ** 2 * jnp.eye(2), x)

    num = 4_000
    first = np.linspace(-0.5, 0.5, num, dtype=np.float32)
    x, _ = samplers.sample_diffusion(
        SMALL,
        score,
        jax.random.key(0),
        3.0 * normal(num, 2),
        50,
        num_corrections=40,
        signal_to_noise=0.1,
        known=(jnp.array([True, False]), jnp.asarray(np.stack([first, 0 * first], 1))),
    )
    x = np.asarray(x)
    rest = x[:, 1] - 0.9 * first
    variance = 0.1 - 0.09**2 / 0.1
    np.testing.assert_allclose(rest.mean(), 0.0, atol=5 * (variance / num) ** 0.5)
    np.testing.assert_allclose(rest.var(), 1.01 * variance, rtol=5 * (2 / num) ** 0.5)
    slope = np.sum(first * x[:, 1]) / np.sum(first**2)
    error = (variance / np.sum(first**2)) ** 0.5
    np.testing.assert_allclose(slope, 0.9, atol=5 * error)


@quick_compilation
def test_new_parameters_are_used_and_nothing_is_traced_again():
    traces = []

    def score(point, x, time):
        traces.append(1)
        return point_score(SMALL, point, x, time)

    ends = []
    for point in (0.0, 3.0):
        x, _ = samplers.sample_diffusion(
            SMALL,
            functools.partial(score, jnp.float32(point)),
            jax.random.key(0),
            jnp.zeros((4, 2)),
            3,
        )
        ends.append(x)
        counts = len(traces)
        flowed = samplers.probability_flow(
            SMALL,
            functools.partial(score, jnp.float32(point)),
            jax.random.key(0),
            jnp.full((2, 1), 3.0),
            start=0.9,
            end=0.5,
            trace=None,
        )
        ends.append(flowed.x)
    assert len(traces) == counts  # in the second round, as many as in the first
    np.testing.assert_allclose(ends[2] - ends[0], 3.0, atol=1e-4)
    assert np.abs(ends[3] - ends[1]).min() > 0.1


# --- the objective


def quadrature(function):
    """Mean over times uniform from 1e-5 to 1, by 200,000 midpoints in log time, as the
    weight by likelihood rises like 1 / t."""
    edges = np.geomspace(1e-5, 1.0, 200_001)
    middles = np.sqrt(edges[1:] * edges[:-1])
    return float((function(middles) * np.diff(edges)).sum() / (1 - 1e-5))


@every_diffusion
@pytest.mark.parametrize("weighting", ["noise", "likelihood"])
def test_the_loss_of_the_exact_score_is_what_cannot_be_known(name, weighting):
    """The exact score of normal data leaves (a^2 S / V) / 2 a dimension: the variance
    of the noise given x_t. A score of 0 leaves 1 / 2."""
    process = DIFFUSIONS[name]
    objective = objectives.diffusion_score_matching(
        score_network=lambda params, x, time: (
            params * normal_score(process, 0.7, x, time)
        ),
        diffusion=process,
        weighting=weighting,
    )
    num, dim = 4_000, 3
    batch = 0.7**0.5 * normal(num, dim)

    @functools.partial(jax.jit, static_argnames="of")
    def losses(of, scale):
        keys = jax.random.split(jax.random.key(2), 50)
        value = lambda scale, key: of.loss({"score": scale}, key, batch, ())[0]  # noqa: E731
        return jax.vmap(jax.value_and_grad(value), (None, 0))(scale, keys)

    def weight(t):
        if weighting == "noise":
            return np.ones_like(t)
        return np.asarray(process.diffusion_scale(t) / process.std(t), float) ** 2

    def left(t):
        signal = np.asarray(process.mean_scale(t), float) ** 2 * 0.7
        return 0.5 * dim * signal / (signal + np.asarray(process.std(t), float) ** 2)

    values, slopes = losses(objective, 1.0)
    error = 5 * values.std() / 50**0.5
    expected = quadrature(lambda t: weight(t) * left(t))
    np.testing.assert_allclose(values.mean(), expected, atol=error)
    assert error < 0.4 * expected
    # And nothing is gained by another size of it.
    np.testing.assert_allclose(slopes.mean(), 0, atol=5 * slopes.std() / 50**0.5)
    if weighting == "noise":
        values, _ = losses(objective, 0.0)
        np.testing.assert_allclose(
            values.mean(), 0.5 * dim, atol=5 * values.std() / 50**0.5
        )


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: diffusions.variance_exploding(noise_min=2.0, noise_max=1.0),
            "noise_min and noise_max must be positive, the second the larger, got 2.0",
        ),
        (
            lambda: diffusions.variance_preserving(rate_min=0.0),
            "rate_min and rate_max must be positive",
        ),
        (
            lambda: diffusions.sub_variance_preserving(rate_min=1.0, rate_max=160.0),
            "the mean of rate_min and rate_max must be at most 80.* got 1.0 and 160.0",
        ),
        (
            lambda: objectives.diffusion_score_matching(
                abs, diffusion=SMALL, weighting="all"
            ),
            "weighting must be one of",
        ),
        (
            lambda: objectives.diffusion_score_matching(
                abs, diffusion=SMALL, time_min=0
            ),
            "time_min must be between 0 and 1, got 0",
        ),
        (lambda: run_sampler(predictor="heun"), "predictor must be one of"),
        (lambda: run_sampler(predictor=None), "num_corrections must be positive"),
        (lambda: run_sampler(num_steps=0), "num_steps must be a whole number"),
        (lambda: run_sampler(time_min=1.0), "time_min must be between 0 and 1"),
        (lambda: run_sampler(x=jnp.zeros((2, 1), int)), "x must be floating-point"),
        (
            lambda: run_sampler(known=(jnp.zeros(2), jnp.zeros((2, 2)))),
            r"known must begin with booleans of shape \(2,\) or \(2, 2\), got float32",
        ),
        (
            lambda: run_sampler(known=(jnp.zeros(2, bool), jnp.zeros(2))),
            r"known values must have shape \(2, 2\), got \(2,\)",
        ),
        (lambda: run_flow(trace="gaussian"), "trace must be one of"),
        (lambda: run_flow(end=1.2), "start and end must be two times from 0 to 1"),
        (lambda: run_flow(end=0.5), "start and end must be two times from 0 to 1"),
        (lambda: run_flow(tolerance=0.0), "tolerance must be positive"),
        (lambda: run_flow(score=lambda x, t: x[:1]), r"shape \(2,\), got \(1,\)"),
        (lambda: run_sampler(score=lambda x, t: x[:1]), r"shape \(2,\), got \(1,\)"),
        (lambda: run_density(trace=None), "trace must not be None"),
        (lambda: run_density(prior_std=0.0), "prior_std must be positive, got 0.0"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


SCORE = functools.partial(normal_score, SMALL, 1.0)


def run_sampler(score=SCORE, **options):
    given = {"x": jnp.zeros((2, 2)), "num_steps": 2} | options
    return samplers.sample_diffusion(SMALL, score, jax.random.key(0), **given)


def run_flow(score=SCORE, **options):
    given = {"start": 0.5, "end": 1.0} | options
    x = jnp.zeros((2, 2))
    return samplers.probability_flow(SMALL, score, jax.random.key(0), x, **given)


def run_density(**options):
    x = jnp.zeros((2, 2))
    run = metrics.probability_flow_log_prob
    return run(SMALL, SCORE, jax.random.key(0), x, **options)
