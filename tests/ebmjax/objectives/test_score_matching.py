"""Score matching: closed forms on normal data, and estimators of one quantity agree."""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from cases import GAUSSIAN_PARAMS, OBJECTIVES
from expectations import estimate, expected, normal_nodes

from ebmjax import diffusions, energies, objectives

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODULE = sys.modules["ebmjax.objectives.implicit_score_matching"]
A = np.array([[2.0, 0.5], [0.5, 1.0]])
DELTA = np.array([0.3, -0.4])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gaussian_params(precision=A, mean=DELTA):
    return {"energy": {"mean": jnp.asarray(mean), "precision": jnp.asarray(precision)}}


def quartic(params, x):
    """Neither quadratic nor a sum over elements."""
    flat = x.reshape(-1)
    bend = jnp.sum(params * flat) ** 4 / 4
    return bend + 0.5 * jnp.sum(flat**2) + jnp.sin(flat[0] * flat[-1])


def quartic_score(params, x):
    return -jax.grad(quartic, 1)(params, x)


QUARTIC = jnp.array([0.3, -0.5, 0.7])


def normal(*shape, seed=0):
    """Standard normal numbers, without a program of their own for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@functools.partial(jax.jit, static_argnums=0)
def loss(objective, params, batch, key=0):
    return objective.loss(params, jax.random.key(key), batch, ())[0]


def both_kinds(make):
    """The same objective of an energy and of the score that is its own."""
    yield make(quartic), {"energy": QUARTIC}
    yield make(score_network=quartic_score), {"score": QUARTIC}


# --- exact


@pytest.mark.quick
def test_on_normal_data_it_is_this_number_and_least_at_the_data_s_covariance():
    """tr(A^2 (S + delta delta^T)) / 2 - tr A, with S the covariance over n: exact of
    the examples there are, with a minimum of -tr S^-1 / 2 at the precision S^-1."""
    data = np.asarray(normal(50, 2)) @ np.array([[1, 0.6], [0, 0.8]])
    mean = data.mean(0)
    covariance = np.cov(data.T, bias=True)
    objective = objectives.score_matching(energies.gaussian)
    shift = mean - DELTA
    second = covariance + np.outer(shift, shift)
    np.testing.assert_allclose(
        loss(objective, gaussian_params(), data),
        0.5 * np.trace(A @ A @ second) - np.trace(A),
        rtol=1e-12,
    )
    best = gaussian_params(np.linalg.inv(covariance), mean)
    slope = jax.jit(jax.value_and_grad(lambda p: loss(objective, p, data)))
    value, gradient = slope(best)
    expected_value = -0.5 * np.trace(np.linalg.inv(covariance))
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-12)
    # A plus before the Laplacian would have no minimum among the precisions.
    assert value < loss(objective, gaussian_params(), data)


def test_a_score_network_is_matched_like_an_energy():
    """The divergence of a field that is no gradient: of (x y, x^2), y + 0."""
    x = jnp.array([[2.0, 3.0]])
    objective = objectives.score_matching(
        score_network=lambda scale, x: scale * jnp.stack([x[0] * x[1], x[0] ** 2])
    )
    value = loss(objective, {"score": 2.0}, x)
    np.testing.assert_allclose(value, 0.5 * 4 * (36 + 16) + 2 * 3)
    batch = normal(4, 3, seed=1)
    values = [
        loss(objective, params, batch)
        for objective, params in both_kinds(objectives.score_matching)
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)


# --- sliced


@pytest.mark.parametrize("variance_reduced", [True, False])
def test_over_all_sign_vectors_slices_are_exact(monkeypatch, variance_reduced):
    """Signs' mean outer product is the identity, in the first term and the second."""
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=3)))
    monkeypatch.setattr(MODULE, "draw_directions", lambda *_: signs)
    batch = normal(5, 3)
    make = lambda *args, **options: objectives.sliced_score_matching(  # noqa: E731
        *args, num_projections=8, variance_reduced=variance_reduced, **options
    )
    exact = loss(objectives.score_matching(quartic), {"energy": QUARTIC}, batch)
    for objective, params in both_kinds(make):
        np.testing.assert_allclose(loss(objective, params, batch), exact, rtol=1e-12)


@pytest.mark.parametrize("projection", ["rademacher", "gaussian", "sphere"])
def test_slices_have_the_exact_mean_and_the_variance_of_their_directions(projection):
    """Of v . H v: 2 sum of H_ij^2 off the diagonal for signs, 2 |H|^2 for normals, and
    for the sphere (2 |H|^2 - 2 tr(H)^2 / d) d / (d + 2)."""
    precision = np.array([[2.0, 0.5, -0.3], [0.5, 1.0, 0.8], [-0.3, 0.8, 1.5]])
    params = gaussian_params(precision, np.zeros(3))
    x = jnp.array([[0.4, -1.0, 0.3]])
    objective = objectives.sliced_score_matching(
        energies.gaussian, projection=projection
    )
    num = 40_000
    keys = jax.random.split(jax.random.key(2), num)
    one = lambda key: objective.loss(params, key, x, ())[0]  # noqa: E731
    values = np.asarray(jax.jit(jax.vmap(one))(keys))
    square, trace = (precision**2).sum(), np.trace(precision)
    variance = {
        "rademacher": 2 * (square - (np.diag(precision) ** 2).sum()),
        "gaussian": 2 * square,
        "sphere": (2 * square - 2 * trace**2 / 3) * 3 / 5,
    }[projection]
    exact = loss(objectives.score_matching(energies.gaussian), params, x)
    assert abs(values.mean() - exact) < 5 * (variance / num) ** 0.5
    # Of the variance's own error the fourth moment is at most that of a chi-square.
    np.testing.assert_allclose(values.var(), variance, rtol=5 * (14 / num) ** 0.5)


@pytest.mark.parametrize("projection", ["rademacher", "gaussian"])
def test_a_sliced_square_has_the_variance_of_its_directions(projection):
    """E = b . x has no second derivatives: (v . b)^2 / 2 is left, of mean |b|^2 / 2 and
    variance (|b|^4 - sum of b_i^4) / 2 for signs, |b|^4 / 2 for normals. With the
    reduction there is none."""
    b = jnp.array([1.0, -0.5, 2.0])
    objective, reduced = (
        objectives.sliced_score_matching(
            lambda params, x: jnp.sum(params * x),
            projection=projection,
            variance_reduced=is_reduced,
        )
        for is_reduced in (False, True)
    )
    num = 40_000
    keys = jax.random.split(jax.random.key(3), num)
    params, x = {"energy": b}, jnp.zeros((1, 3))
    one = lambda key: objective.loss(params, key, x, ())[0]  # noqa: E731
    values = np.asarray(jax.jit(jax.vmap(one))(keys))
    b = np.asarray(b)
    fourth = np.sum(b**2) ** 2
    variance = 0.5 * fourth
    if projection == "rademacher":
        variance -= 0.5 * np.sum(b**4)
    half = 0.5 * fourth**0.5
    assert abs(values.mean() - half) < 5 * (variance / num) ** 0.5
    # A chi-squared's fourth moment is 15 squares of its variance at most.
    np.testing.assert_allclose(values.var(), variance, rtol=5 * (14 / num) ** 0.5)
    np.testing.assert_allclose(loss(reduced, params, x, key=5), half, rtol=1e-12)


def test_directions_on_the_sphere_have_the_square_root_of_the_dimension():
    v = MODULE.draw_directions(jax.random.key(0), "sphere", (100, 2, 3), jnp.float64)
    np.testing.assert_allclose((np.asarray(v) ** 2).sum((1, 2)), 6.0, rtol=1e-12)


def test_a_diagonal_hessian_needs_one_sign_vector():
    params = gaussian_params(np.diag([3.0, 5.0]))
    batch = normal(7, 2)
    sliced = objectives.sliced_score_matching(energies.gaussian)
    exact = objectives.score_matching(energies.gaussian)
    np.testing.assert_allclose(
        loss(sliced, params, batch), loss(exact, params, batch), rtol=1e-12
    )


def test_more_projections_average():
    batch = jnp.ones((1, 3))
    params, spreads = {"energy": QUARTIC}, []
    for num in (1, 16):
        objective = objectives.sliced_score_matching(quartic, num_projections=num)
        keys = jax.random.split(jax.random.key(0), 2_000)
        run = jax.vmap(lambda k, f=objective: f.loss(params, k, batch, ())[0])
        spreads.append(np.asarray(jax.jit(run)(keys)).var())
    # A ratio of two sample variances of 2,000, each with a relative error of 5 %.
    np.testing.assert_allclose(spreads[0] / spreads[1], 16, rtol=0.3)


# --- finite differences


def test_of_a_quadratic_energy_every_step_is_exact():
    """The same direction for the same key: sliced on the sphere, to rounding."""
    batch = normal(6, 2)
    sliced = objectives.sliced_score_matching(
        energies.gaussian, projection="sphere", variance_reduced=False
    )
    expected_value = loss(sliced, gaussian_params(), batch)
    for step in (1e-2, 1.0, 10.0):
        objective = objectives.finite_difference_score_matching(
            energies.gaussian, step=step
        )
        value = loss(objective, gaussian_params(), batch)
        np.testing.assert_allclose(value, expected_value, rtol=1e-10 / step**2)


@pytest.mark.parametrize("kind", [0, 1])
def test_half_of_the_step_makes_a_quarter_of_the_error(kind):
    batch = 0.5 * normal(6, 3)
    pairs = [
        list(
            both_kinds(
                lambda *args, step=step, **options: (
                    objectives.finite_difference_score_matching(
                        *args, step=step, **options
                    )
                )
            )
        )[kind]
        for step in (0.02, 0.01)
    ]
    make = lambda *args, **options: objectives.sliced_score_matching(  # noqa: E731
        *args, projection="sphere", variance_reduced=kind == 1, **options
    )
    limit, params = list(both_kinds(make))[kind]
    exact = loss(limit, params, batch)
    errors = [loss(objective, params, batch) - exact for objective, _ in pairs]
    # The next term of the error is smaller by step^2 = 4e-4 times a number near 1.
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.02)
    assert abs(errors[0]) > 1e-7


# --- denoising


@pytest.mark.parametrize("variance_reduction", ["antithetic", "control_variate", None])
def test_denoising_learns_the_noised_data(monkeypatch, variance_reduction):
    """a^2 (S + s^2) / 2 - a plus 1 / (2 s^2), which the antithetic form leaves out;
    least at a = 1 / (S + s^2)."""
    a, variance, scale = 0.7, 1.6, 0.5
    objective = objectives.denoising_score_matching(
        energies.gaussian, noise_scale=scale, variance_reduction=variance_reduction
    )

    def mean_loss(a):
        params = {"energy": {"mean": 0.0, "precision": a}}
        return expected(monkeypatch, objective, params, normal_nodes(20, 0.0, variance))

    @jax.jit
    def derivatives(a):
        slope = jax.grad(mean_loss)
        return mean_loss(a), slope(a), jax.grad(slope)(a)

    constant = 0.0 if variance_reduction == "antithetic" else 0.5 / scale**2
    value = 0.5 * a**2 * (variance + scale**2) - a + constant
    np.testing.assert_allclose(derivatives(a)[0], value, rtol=1e-12)
    best = 1 / (variance + scale**2)
    _, slope, curvature = derivatives(best)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
    np.testing.assert_allclose(curvature, 1 / best, rtol=1e-9)


@pytest.mark.parametrize("variance_reduction", ["antithetic", "control_variate", None])
def test_denoising_three_numbers_learns_the_score_of_their_kernel_density(
    monkeypatch, variance_reduction
):
    """The mean of (x_i - x) / s^2 with the weights of normals about the x_i: moved from
    it in any direction, here two, the loss has no slope and curves upwards."""
    data, scale = np.array([-1.0, 0.2, 1.5]), 0.6

    def kernel_score(x):
        weights = jax.nn.softmax(-0.5 * (x - data) ** 2 / scale**2)
        return jnp.sum(weights * (data - x)) / scale**2

    def score(params, x):
        return kernel_score(x) + params[0] * jnp.sin(x) + params[1] * x**2

    objective = objectives.denoising_score_matching(
        score_network=score, noise_scale=scale, variance_reduction=variance_reduction
    )

    def mean_loss(params):
        points = data, np.full(3, 1 / 3)
        return expected(monkeypatch, objective, {"score": params}, points)

    derivatives = lambda at: (jax.grad(mean_loss)(at), jax.hessian(mean_loss)(at))  # noqa: E731
    slope, curvature = jax.jit(derivatives)(jnp.zeros(2))
    np.testing.assert_allclose(slope, 0.0, atol=1e-8)
    assert np.linalg.eigvalsh(curvature).min() > 0.1


def test_denoising_in_many_dimensions_has_the_same_law():
    """tr(A^2 Sigma) / 2 - tr A, Sigma = S + s^2, within five standard errors."""
    scale, root = 0.6, np.array([[1.0, 0.6], [0.0, 0.8]])
    data = normal(4_000, 16, 2) @ jnp.asarray(root)
    sigma = root.T @ root + scale**2 * np.eye(2)
    exact = 0.5 * np.trace(A @ A @ sigma) - np.trace(A)
    for reduction, constant in (("antithetic", 0), ("control_variate", 1), (None, 1)):
        objective = objectives.denoising_score_matching(
            energies.gaussian, noise_scale=scale, variance_reduction=reduction
        )
        params = gaussian_params(mean=np.zeros(2))
        run = jax.jit(functools.partial(estimate, objective))
        value, error = run(params, jax.random.key(1), data)
        assert abs(value - exact - constant / scale**2) < 5 * error


def test_with_small_noise_both_reductions_are_sliced_score_matching():
    """Along the same noise, the error falls with the scale (twice for the antithetic
    one); without reduction it grows."""
    batch = 0.5 * normal(6, 3, seed=1)
    params = {"energy": QUARTIC}
    sliced = objectives.sliced_score_matching(quartic, projection="gaussian")
    exact = loss(sliced, params, batch)
    for reduction, order in (("antithetic", 2), ("control_variate", 1)):
        errors = []
        for scale in (2e-3, 1e-3):
            objective = objectives.denoising_score_matching(
                quartic, noise_scale=scale, variance_reduction=reduction
            )
            constant = 0 if order == 2 else 3 / (2 * scale**2)
            errors.append(loss(objective, params, batch) - constant - exact)
        np.testing.assert_allclose(errors[0] / errors[1], 2**order, rtol=0.05)


def test_a_score_network_is_denoised_like_an_energy():
    batch = normal(5, 3)
    for reduction in ("antithetic", "control_variate", None):
        make = lambda *args, r=reduction, **options: (  # noqa: E731
            objectives.denoising_score_matching(
                *args, noise_scale=0.3, variance_reduction=r, **options
            )
        )
        values = [loss(objective, p, batch) for objective, p in both_kinds(make)]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-12)


@pytest.mark.parametrize("weighting", [None, lambda scale: 3 * scale])
def test_many_scales_are_weighted_and_each_has_its_own_score(weighting):
    """With the score -x / (S + s^2) of noised normal data in d dimensions, the mean of
    |s score + n|^2 is d S / (S + s^2); scales are drawn with equal shares."""
    scales, variance, dim = (0.5, 2.0), 1.5, 3
    objective = objectives.multi_scale_denoising_score_matching(
        score_network=lambda params, x, scale: -params * x / (variance + scale**2),
        noise_scales=scales,
        weighting=weighting,
    )
    data = normal(4_000, 8, dim) * variance**0.5
    run = jax.jit(functools.partial(estimate, objective))
    value, error = run({"score": 1.0}, jax.random.key(1), data)
    weights = [1.0 if weighting is None else 3 / scale for scale in scales]
    terms = [0.5 * dim * variance / (variance + s**2) for s in scales]
    assert abs(value - np.mean(np.multiply(weights, terms))) < 5 * error
    rows = np.asarray(data).reshape(-1, dim)
    _, aux = jax.jit(objective.loss)({"score": 0.0}, jax.random.key(2), rows, ())
    num = data.size
    np.testing.assert_allclose(aux.metrics["residual"], 1.0, atol=5 * (2 / num) ** 0.5)


def test_scales_are_not_rounded_to_the_type_of_the_examples():
    """Of 348 and of 1e-4 float16 has no square; of a score of zero the loss is that of
    the noise, 1 / 2 a dimension."""
    for scale in (348.0, 1e-4):
        objective = objectives.multi_scale_denoising_score_matching(
            score_network=lambda params, x, scale: params * x, noise_scales=[scale]
        )
        x = jnp.zeros((4_000, 3), jnp.float16)
        value = loss(objective, {"score": jnp.float16(0.0)}, x)
        error = 5 * 0.5 * (2 * 3 / 4_000) ** 0.5
        np.testing.assert_allclose(value, 1.5, atol=error)


DENOISING = {
    "one scale": functools.partial(
        objectives.denoising_score_matching, noise_scale=0.3
    ),
    "many scales": functools.partial(
        objectives.multi_scale_denoising_score_matching, noise_scales=[0.1, 1.0]
    ),
    "a diffusion": functools.partial(
        objectives.diffusion_score_matching,
        diffusion=diffusions.variance_exploding(noise_min=0.1, noise_max=3.0),
    ),
}


@pytest.mark.parametrize("name", DENOISING)
def test_an_energy_given_first_is_denoised_like_its_score(name):
    """The whole family takes the energy as its first argument; with the hand-written
    score of that energy, or the one of `energies.score`, the loss is the same."""

    def energy(params, x, *level):  # a noise scale or a time, except with one scale
        return params * jnp.sum(x**4) / (1 + sum(level))

    def by_hand(params, x, *level):
        return -4 * params * x**3 / (1 + sum(level))

    make = DENOISING[name]
    batch = normal(5, 3)
    expected = loss(make(energy), {"energy": 0.5}, batch)
    for score in (by_hand, energies.score(energy)):
        found = loss(make(score_network=score), {"score": 0.5}, batch)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


# --- non-negative


@pytest.mark.slow
def test_the_law_of_waiting_times_is_found_from_its_moments():
    """Gamma with shape 3 and rate 2, quadrature exact for its moments: no gradient
    there, and the value -sum of the squared data score's x^2 / 2, that is -k' / 2."""
    nodes, weights = scipy.special.roots_genlaguerre(10, 2.0)
    nodes, weights = nodes / 2.0, weights / weights.sum()
    energy = lambda p, x: p[1] * x - (p[0] - 1) * jnp.log(x)  # noqa: E731
    objective = objectives.non_negative_score_matching(energy)

    def mean_loss(params):
        one = jax.vmap(lambda x: loss(objective, {"energy": params}, x[None]))
        return jnp.asarray(weights) @ one(jnp.asarray(nodes))

    truth = jnp.array([3.0, 2.0])
    np.testing.assert_allclose(jax.grad(mean_loss)(truth), 0.0, atol=1e-10)
    assert np.linalg.eigvalsh(jax.hessian(mean_loss)(truth)).min() > 0.1
    # E x^2 s^2 = E ((k - 1) - rate x)^2 = var(rate x) + 1 = k + 1.
    np.testing.assert_allclose(mean_loss(truth), -0.5 * 4, rtol=1e-10)


# --- minimum velocity


def test_minimum_velocity_is_score_matching_to_the_order_of_its_step(monkeypatch):
    """E = theta x^4 / 4 on standard normal data: 7.5 theta^2 - 3 theta, whose gradient
    is 1.5 at .3; through y, for with it stopped the gradient would be another."""

    @functools.partial(jax.jit, static_argnums=1)
    @jax.value_and_grad
    def mean_loss(theta, step_size):
        energy = lambda theta, x: theta * x**4 / 4  # noqa: E731
        objective = objectives.minimum_velocity(energy, step_size=step_size)
        return expected(monkeypatch, objective, {"energy": theta}, normal_nodes())

    values = [mean_loss(0.3, step)[0] for step in (0.1, 0.01, 0.001)]
    np.testing.assert_allclose(values, [-0.334, -0.2365, -0.2262], atol=5.1e-4)
    gradients = [mean_loss(0.3, step)[1] for step in (2e-4, 1e-4)]
    errors = np.subtract(gradients, 1.5)
    assert abs(errors[1]) < 2e-2
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.01)


def test_the_control_variate_keeps_the_variance_bounded():
    """Of v . H v / step without the last term it would grow as 1 / step."""
    x = jnp.array([[0.5, -0.3, 0.8]])
    variances = []
    for step_size in (1e-2, 1e-4):
        objective = objectives.minimum_velocity(quartic, step_size=step_size)
        keys = jax.random.split(jax.random.key(0), 4_000)
        run = jax.vmap(lambda k, f=objective: f.loss({"energy": QUARTIC}, k, x, ())[0])
        variances.append(np.asarray(jax.jit(run)(keys)).var())
    np.testing.assert_allclose(variances[0], variances[1], rtol=0.3)


# --- all objectives whose loss is what its gradient says


HELD_FIXED = {"contrastive_divergence", "self_contrastive"}
HELD_FIXED |= {"unbiased_contrastive_divergence"}
"""Surrogates: their draws are functions of the parameters, held fixed."""


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if name.split(",")[0] not in HELD_FIXED]
)
def test_gradients_are_those_of_central_differences(name):
    """With one key; the error of a step of 1e-5 is 1e-10 and of rounding 1e-11."""
    objective = OBJECTIVES[name]()
    batch = normal(8, 2)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), GAUSSIAN_PARAMS)
    random = np.random.default_rng(0)
    along = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape), params)

    @jax.jit
    @jax.value_and_grad
    def value(t):
        moved = jax.tree.map(lambda leaf, v: leaf + t * v, params, along)
        return loss(objective, moved, batch, key=3)

    _, slope = value(0.0)
    difference = (value(1e-5)[0] - value(-1e-5)[0]) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-7)
    assert abs(slope) > 1e-3


# --- what is refused


@pytest.mark.parametrize(
    "make, options, message",
    [
        (
            "sliced_score_matching",
            {"num_projections": 0},
            "num_projections must.*got 0",
        ),
        ("sliced_score_matching", {"projection": "cube"}, "projection must.*'cube'"),
        ("finite_difference_score_matching", {"step": 0.0}, "step must be pos.*got 0"),
        ("denoising_score_matching", {"noise_scale": -1}, "noise_scale must.*got -1"),
        (
            "denoising_score_matching",
            {"noise_scale": 1, "variance_reduction": "none"},
            "variance_reduction must be one of.*'none'",
        ),
        ("minimum_velocity", {"step_size": 0}, "step_size must be positive, got 0"),
    ],
)
def test_bad_options_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(objectives, make)(quartic, **options)


def test_exactly_one_of_energy_and_score_network_is_asked_for():
    with pytest.raises(TypeError, match="exactly one of energy and score_.*neither"):
        objectives.score_matching()
    with pytest.raises(TypeError, match="exactly one of energy and score_.*both"):
        objectives.sliced_score_matching(quartic, score_network=quartic_score)
    with pytest.raises(ValueError, match="noise_scales must be positive.*-1"):
        objectives.multi_scale_denoising_score_matching(
            score_network=quartic_score, noise_scales=[1.0, -1.0]
        )
    with pytest.raises(ValueError, match="noise_scales must be positive.*inf"):
        objectives.multi_scale_denoising_score_matching(
            score_network=quartic_score, noise_scales=[1.0, np.inf]
        )
    scalar = objectives.score_matching(score_network=lambda params, x: params * 1.0)
    with pytest.raises(ValueError, match=r"of the example's shape \(3,\), got \(\)"):
        loss(scalar, {"score": 1.0}, jnp.ones((2, 3)))
