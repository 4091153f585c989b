"""Different objectives of one quantity: limits in numbers, the orders of their errors,
and what all of a family cannot see."""

import functools
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expectations import expected, normal_nodes

from ebmjax import energies, networks, objectives, samplers, starts

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(a, x):
    return 0.5 * a * x**2


def quartic(theta, x):
    return theta * x**4 / 4


def one_move(energy, step_size):
    """Contrastive divergence by one move from the data."""
    return objectives.contrastive_divergence(
        energy,
        sampler=samplers.langevin(step_size=step_size),
        num_steps=1,
        start=starts.data(),
    )


def mean_loss(monkeypatch, objective, params, data, noise=None):
    # As arguments: what is constant a compiler computes itself, and slowly.
    @jax.jit
    def mean(params, data, noise):
        return expected(monkeypatch, objective, {"energy": params}, data, noise)

    return mean(params, data, normal_nodes() if noise is None else noise)


def mean_slope(monkeypatch, objective, params, data, noise=None):
    """Derivative of `mean_loss`, compiled as a whole."""
    one = jax.grad(partial(mean_loss, monkeypatch, objective))
    return jax.jit(one)(params, data, normal_nodes() if noise is None else noise)


# --- contrastive divergence beside score matching


def test_one_move_from_the_data_is_score_matching_times_its_step(monkeypatch):
    """E = theta x^4 / 4 at .3 on standard normal data, whose score matching has the
    gradient 15 theta - 3 = 1.5. Polynomials of degree 12: quadrature is exact."""
    data = normal_nodes()
    matching = objectives.score_matching(quartic)
    limit = mean_slope(monkeypatch, matching, 0.3, data)
    np.testing.assert_allclose(limit, 1.5, rtol=1e-12)
    for step_size, exact in ((0.1, 0.5161), (0.01, 1.38438), (0.001, 1.48825)):
        objective = one_move(quartic, step_size)
        gradient = mean_slope(monkeypatch, objective, 0.3, data)
        # The table's last digits.
        np.testing.assert_allclose(gradient / step_size, exact, atol=5.1e-5)


@pytest.mark.quick
def test_its_fixed_point_has_the_data_s_variance_as_that_of_the_biased_chain(
    monkeypatch,
):
    """E = a x^2 / 2, data of variance .9, step .05: at rest at (1 - sqrt(1 - .1 / .9))
    / .05 = 1.1438192, not at 1 / .9."""
    data = normal_nodes(variance=0.9)
    gradient = jax.grad(partial(mean_loss, monkeypatch, one_move(quadratic, 0.05)))
    best = (1 - math.sqrt(1 - 0.1 / 0.9)) / 0.05
    np.testing.assert_allclose(best, 1.1438192, atol=5.1e-8)
    found = jax.jit(jax.vmap(gradient, (0, None)))(jnp.array([best, 1 / 0.9]), data)
    slopes = [0.0, -0.5 * 0.05**2 / 0.9]
    np.testing.assert_allclose(found, slopes, rtol=1e-10, atol=1e-13)


# --- a network, and noise of all sign vectors

NETWORK = networks.mlp_energy((3,), widths=(5, 4), activation="tanh")
SCALES = (2e-2, 1e-2)


@functools.cache  # once: a program that is compiled anew may round differently
def network_params():
    """Three times as large as drawn: bent enough for errors to be seen."""
    params, _ = jax.jit(NETWORK.init)(jax.random.key(0))
    return jax.tree.map(lambda leaf: 3 * np.asarray(leaf, np.float64), params)


def over_signs(monkeypatch, make, normalise=None):
    """Mean loss of the network and its gradient, `[scales]` and `[scales, params]`.

    Every normal draw is one of the eight vectors of signs: their mean outer product is
    the identity, their odd moments are 0, and all are of length sqrt(3), which is what
    directions for slices are asked for.

    Args:
      make: `make(scale) -> Objective`.
      normalise: `normalise(loss, scale)`; the loss itself if None.
    """
    batch = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=3)))

    def loss(params, scale, one):
        def draw(key, shape=(), dtype=jnp.float64):
            return jnp.broadcast_to(one, shape)

        objective = make(scale)
        with monkeypatch.context() as patch:
            patch.setattr(jax.random, "normal", draw)
            patch.setattr(jax.random, "rademacher", draw)
            key = jax.random.key(0)
            value, _ = objective.loss({"energy": params}, key, batch, carry(objective))
        return value if normalise is None else normalise(value, scale)

    def mean(params, scale):
        return jax.vmap(loss, (None, None, 0))(params, scale, signs).mean()

    both = jax.vmap(jax.value_and_grad(mean), (None, 0))
    values, gradients = jax.jit(both)(network_params(), jnp.array(SCALES))
    leaves = map(np.asarray, jax.tree.leaves(gradients))
    leaves = [leaf.reshape(len(SCALES), -1) for leaf in leaves]
    return np.asarray(values), np.concatenate(leaves, axis=1)


def carry(objective):
    return objective.init(jax.random.key(0))


@pytest.fixture(scope="module")
def exact():
    """Score matching of the network with the exact trace."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as monkeypatch:
        objective = objectives.score_matching(NETWORK)
        values, gradients = over_signs(monkeypatch, lambda scale: objective)
    return values[0], gradients[0]


@pytest.mark.parametrize(
    "options",
    [
        {"projection": "rademacher"},
        {"projection": "gaussian"},
        {"projection": "sphere", "num_projections": 2},
        {"variance_reduced": False},
    ],
)
def test_slices_of_a_network_along_all_signs_are_exact(monkeypatch, exact, options):
    """In value and gradient, each to rounding."""
    objective = objectives.sliced_score_matching(NETWORK, **options)
    values, gradients = over_signs(monkeypatch, lambda scale: objective)
    np.testing.assert_allclose(values[0], exact[0], rtol=1e-12)
    np.testing.assert_allclose(gradients[0], exact[1], rtol=1e-11, atol=1e-12)


class Limit(NamedTuple):
    make: Callable  # (scale) -> Objective
    normalise: Callable = lambda value, scale: value  # to score matching
    has_value: bool = True  # or only a gradient


LIMITS = {
    "finite differences": Limit(
        lambda s: objectives.finite_difference_score_matching(NETWORK, step=s)
    ),
    "denoising, antithetic": Limit(
        lambda s: objectives.denoising_score_matching(NETWORK, noise_scale=s)
    ),
    "denoising, control variate": Limit(
        lambda s: objectives.denoising_score_matching(
            NETWORK, noise_scale=s, variance_reduction="control_variate"
        ),
        lambda value, s: value - 3 / (2 * s**2),
    ),
    "denoising": Limit(
        lambda s: objectives.denoising_score_matching(
            NETWORK, noise_scale=s, variance_reduction=None
        ),
        lambda value, s: value - 3 / (2 * s**2),
    ),
    "conditional noise contrast": Limit(
        lambda s: objectives.conditional_noise_contrastive(NETWORK, noise_scale=s),
        lambda value, s: (value - math.log(2)) * 4 / s**2,
    ),
    "minimum velocity": Limit(
        lambda s: objectives.minimum_velocity(NETWORK, step_size=0.5 * s**2)
    ),
    "contrastive divergence": Limit(
        lambda s: one_move(NETWORK, 0.5 * s**2),
        lambda value, s: value / (0.5 * s**2),
        has_value=False,
    ),
}
"""Of noise that moves an example by the scale: a step of `s^2 / 2` for dynamics."""


@pytest.mark.parametrize("name", LIMITS)
def test_score_matching_of_a_network_is_the_limit_of_small_noise(
    monkeypatch, exact, name
):
    """A half of the noise leaves a quarter of the error, in the value and in every
    parameter. The next term is smaller by s^2 times the ratio of sixth and fourth
    derivatives, a few hundred here: by up to a tenth."""
    limit = LIMITS[name]
    found = over_signs(monkeypatch, limit.make, limit.normalise)
    pairs = list(zip(found, exact))
    for at_scales, truth in pairs if limit.has_value else pairs[1:]:
        coarse, fine = np.asarray(at_scales) - np.asarray(truth)
        size = np.abs(truth).max()
        np.testing.assert_allclose(coarse, 4 * fine, rtol=0.1, atol=1e-4 * size)
        assert 1e-5 * size < np.abs(fine).max() < 0.05 * size


# --- noise contrast with a shifted model


def shifted(step):
    """The noise is the data shifted by `step`, and the model shifted is its density."""

    def loss(theta, x):
        objective = objectives.noise_contrastive(
            quartic,
            noise_distribution=(
                lambda key: x + step,
                lambda y: -quartic(theta, y - step),
            ),
        )
        params = {"energy": theta, "log_partition": 0.0}
        return objective.loss(params, jax.random.key(0), x[None], ())[0]

    return loss


def test_noise_contrast_against_the_shifted_model_is_half_of_score_matching(
    monkeypatch,
):
    """E = .3 x^4 / 4, normal data: (loss - 2 log 2) / v^2 of the slice's own loss is
    .52474 for a shift of .1 and .50261 for .03, and so of the gradient; and the loss is
    that of conditional noise contrast by both signs, twice."""
    nodes, weights = data = normal_nodes()
    sliced = objectives.sliced_score_matching(quartic, variance_reduced=False)

    def slices(theta):
        return mean_loss(monkeypatch, sliced, theta, data, normal_nodes(2))

    def shift(theta, step):
        losses = jax.vmap(shifted(step), (None, 0))(theta, jnp.asarray(nodes))
        return (weights @ losses - 2 * math.log(2)) / step**2

    both = jax.jit(jax.vmap(jax.value_and_grad(shift), (None, 0)))
    values, slopes = both(0.3, jnp.array([0.1, 0.03, 0.02, 0.01]))
    value, slope = jax.jit(jax.value_and_grad(slices))(0.3)
    values = np.asarray(values)
    np.testing.assert_allclose(values[:2] / value, [0.52474, 0.50261], atol=5.1e-6)
    errors = np.asarray(slopes)[2:] / float(slope) - 0.5
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.01)

    def conditional(theta):
        objective = objectives.conditional_noise_contrastive(quartic, noise_scale=0.1)
        signs = normal_nodes(2)  # 1 and -1, of equal weights
        one = mean_loss(monkeypatch, objective, theta, data, signs)
        return (2 * one - 2 * math.log(2)) / 0.1**2

    value, slope = jax.jit(jax.value_and_grad(conditional))(0.3)
    np.testing.assert_allclose(value, values[0], rtol=1e-9)
    np.testing.assert_allclose(slope, slopes[0], rtol=1e-9)


# --- divergences


def normal_energy(variance, x):
    """Minus the log density."""
    params = {
        "means": jnp.zeros(1),
        "precisions": 1 / variance,
        "log_weights": jnp.zeros(1),
    }
    return energies.gaussian_mixture(params, x)


def divergence(data_fn, model_fn, grid):
    """Kullback and Leibler's, of two normalised energies, by quadrature."""
    at_data, at_model = jax.vmap(data_fn)(grid), jax.vmap(model_fn)(grid)
    step = grid[1] - grid[0]
    return step * jnp.sum(jnp.exp(-at_data) * (at_model - at_data))


def fisher_divergence(monkeypatch, energy, data, params, data_params):
    """Half of the mean squared difference of scores: what score matching is more than
    for the data's own energy."""
    objective = objectives.score_matching(energy)
    at = lambda p: mean_loss(monkeypatch, objective, p, data, normal_nodes(1))  # noqa: E731
    at_model, at_data = jax.jit(jax.vmap(at))(jnp.array([params, data_params]))
    return at_model - at_data


def test_divergences_fall_as_fast_as_fisher_s_says(monkeypatch):
    """Data of variance 1.7 and a model of .6: with heat poured on both, the divergence
    falls at once the Fisher divergence, .9885621; as the data move by Langevin dynamics
    at twice. Minimum velocity, with half of the drift, is off by a^3 S step / 8."""
    data = normal_nodes(20, variance=1.7)
    fisher = fisher_divergence(monkeypatch, normal_energy, data, 0.6, 1.7)
    np.testing.assert_allclose(fisher, 0.9885621, atol=5.1e-8)
    grid = jnp.linspace(-18, 18, 2_001)

    def heated(time):
        variances = 1.7 + time, 0.6 + time
        return divergence(*(partial(normal_energy, v) for v in variances), grid)

    np.testing.assert_allclose(jax.jit(jax.grad(heated))(0.0), -fisher, rtol=1e-10)

    def moved(step_size):
        """After one move: normal, with the variance of the moved nodes."""
        sampler = samplers.langevin(step_size=step_size)
        energy_fn = partial(normal_energy, 0.6)

        def square(x, noise):
            patch.setattr(jax.random, "normal", lambda *_: noise)
            state = sampler.init(energy_fn, x)
            return sampler.step(energy_fn, jax.random.key(0), state)[0].position ** 2

        with monkeypatch.context() as patch:
            nodes, weights = (jnp.asarray(part) for part in data)
            squares = jax.vmap(jax.vmap(square, (None, 0)), (0, None))
            variance = weights @ squares(nodes, nodes / 1.7**0.5) @ weights
        data_fn = partial(normal_energy, variance)
        return divergence(data_fn, energy_fn, grid)

    # Of a step of 1e-7: the second derivative, about 10, times that.
    np.testing.assert_allclose(jax.jit(jax.grad(moved))(1e-7), -1.9771242, rtol=1e-6)

    step_size = 0.01
    velocity = objectives.minimum_velocity(normal_energy, step_size=step_size)
    matching = objectives.score_matching(normal_energy)
    loss, limit = (mean_loss(monkeypatch, o, 0.6, data) for o in (velocity, matching))
    error = -(1.7 / 0.6**3) * step_size / 8
    np.testing.assert_allclose(loss - limit, error, rtol=1e-9)


# --- what far modes weigh


def two_modes(half_distance):
    """Energy of two normals at `+-half_distance`, whose parameter is the log odds of
    the one on the left."""

    def energy(log_odds, x):
        params = {
            "means": jnp.array([-1.0, 1.0]) * half_distance,
            "precisions": jnp.ones(()),
            "log_weights": jax.nn.log_sigmoid(jnp.array([1.0, -1.0]) * log_odds),
        }
        return energies.gaussian_mixture(params, x)

    return energy


@partial(jax.jit, static_argnums=0)
def law_of(energy, log_odds, half_distance):
    """Nodes and weights of the trapezoidal rule, which is exact to rounding: of the
    logistic functions between the modes its error is exp(-pi^2 / (s step))."""
    nodes = (half_distance + 9) * jnp.linspace(-1, 1, 401)
    density = jnp.exp(-jax.vmap(partial(energy, log_odds))(nodes))
    return nodes, density * (nodes[1] - nodes[0])


LOG_ODDS = math.log(0.8 / 0.2)


def test_the_fisher_divergence_forgets_what_far_modes_weigh(monkeypatch):
    """Weights of .8 and .2 against .2 and .8, modes at +-2, ..., +-5: beside Kullback
    and Leibler's, to the last digits that were published."""

    def both(half_distance):
        energy = two_modes(half_distance)
        data = law_of(energy, LOG_ODDS, half_distance)
        data_fn, model_fn = (partial(energy, odds) for odds in (LOG_ODDS, -LOG_ODDS))
        fisher = fisher_divergence(monkeypatch, energy, data, -LOG_ODDS, LOG_ODDS)
        return fisher, divergence(data_fn, model_fn, data[0])

    fisher, kullback = jax.jit(jax.vmap(both))(jnp.array([2.0, 3.0, 4.0, 5.0]))
    np.testing.assert_allclose(fisher, [0.14188, 0.018167, 7.42e-4, 1.04e-5], rtol=3e-3)
    np.testing.assert_allclose(kullback, [0.7709, 0.8281, 0.8317, 0.8318], atol=5.1e-5)


def broad_contrast(energy):
    """Noise of a standard deviation of 7 sees both modes."""
    normal = {"mean": 0.0, "precision": 7.0**-2}
    log_partition = 0.5 * math.log(2 * math.pi * 7.0**2)
    return objectives.noise_contrastive(
        energy,
        noise_distribution=(
            lambda key: 7.0 * jax.random.normal(key, ()),
            lambda x: -energies.gaussian(normal, x) - log_partition,
        ),
    )


def exact_draws(energy):
    """Chains that begin at the model's draws and stay there."""
    return objectives.contrastive_divergence(
        energy,
        sampler=samplers.langevin(step_size=1e-30, temperature=0.0),
        num_steps=1,
        start=starts.noise(lambda key, shape: jax.random.normal(key, shape)),
    )


BLIND = {
    "exact": (lambda e: objectives.score_matching(e), 1.0, 1e-4),
    "sliced": (lambda e: objectives.sliced_score_matching(e), 1.0, 1e-4),
    "finite differences": (
        lambda e: objectives.finite_difference_score_matching(e, step=0.1),
        1.0,
        0.13,
    ),
    "denoising": (
        lambda e: objectives.denoising_score_matching(e, noise_scale=0.1),
        1.0,
        0.13,
    ),
    "conditional noise contrast": (
        lambda e: objectives.conditional_noise_contrastive(e, noise_scale=0.1),
        4 / 0.1**2,
        0.13,
    ),
    "minimum velocity": (
        lambda e: objectives.minimum_velocity(e, step_size=0.005),
        1.0,
        0.13,
    ),
    "a move from the data": (lambda e: one_move(e, 0.005), 1 / 0.005, 0.13),
}
"""The objective, its scale as score matching, and its relative error."""


def slope_in_log_odds(monkeypatch, objective, energy, noise, scale=1.0):
    """Of the mean loss, at odds of .2 to .8 for data of .8 to .2, modes at -5 and 5."""

    @jax.jit
    @jax.grad
    def slope(log_odds, data, noise):
        params = {"energy": log_odds, "log_partition": 0.0}
        return scale * expected(monkeypatch, objective, params, data, noise)

    return slope(-LOG_ODDS, law_of(energy, LOG_ODDS, 5), noise)


@pytest.mark.parametrize("name", BLIND)
def test_all_that_looks_near_by_is_blind_to_what_far_modes_weigh(monkeypatch, name):
    """Score matching's slope is -8.5956e-6, where maximum likelihood's is .2 - .8: what
    exp(-s^2 / 2) is in between. Noise of variance v there makes it exp(-s^2 / 2 (1 +
    v)), with s = 5 and v = .01 larger by 13 %."""
    energy, (make, scale, error) = two_modes(5.0), BLIND[name]
    noise = normal_nodes(10)
    found = slope_in_log_odds(monkeypatch, make(energy), energy, noise, scale)
    np.testing.assert_allclose(found, -8.5956e-6, rtol=error)


def test_what_draws_from_model_or_broad_noise_sees_how_much_modes_weigh(monkeypatch):
    """Maximum likelihood's slope is .2 - .8 where modes do not overlap: all of it for
    exact draws, a half for the model as its own noise, much for broad noise."""
    energy = two_modes(5.0)
    model = law_of(energy, -LOG_ODDS, 5)
    itself = objectives.self_contrastive(
        energy, sample=lambda params, key: jax.random.normal(key, ())
    )
    for objective, exact in ((exact_draws(energy), -0.6), (itself, -0.3)):
        found = slope_in_log_odds(monkeypatch, objective, energy, model)
        # What overlaps is about exp(-25 / 2) / 5.
        np.testing.assert_allclose(found, exact, rtol=3e-6)
    broad = slope_in_log_odds(
        monkeypatch, broad_contrast(energy), energy, normal_nodes()
    )
    assert -0.6 < broad < -0.2
