"""The papers' ladders and steps from their formulas; modes and diversity they buy."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ebmjax import energies, samplers
from experiments.data import digits

NATURAL = pathlib.Path(os.environ.get("EBMJAX_DATA", ""), "cifar10/cifar10_batch_0.png")
OFFICIAL = {  # largest scale, scales, dimensions, moves a level, step; smallest .01
    "cifar10": (50, 232, 32 * 32 * 3, 5, 6.2e-6),
    "celeb_a": (90, 500, 64 * 64 * 3, 5, 3.3e-6),
    "bedroom": (190, 1086, 128 * 128 * 3, 3, 1.8e-6),
    "ffhq": (348, 2311, 256 * 256 * 3, 3, 9e-7),
}


@pytest.mark.quick
@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_configurations_follow_from_the_formulas(name):
    """All four overlap by .567, and their steps are the formula's to two digits."""
    largest, num_scales, num_dims, num_steps, step = OFFICIAL[name]
    ladder = samplers.noise_ladder(largest, 0.01, num_scales=num_scales)
    assert ladder[0] == largest and ladder.size == num_scales
    np.testing.assert_allclose(ladder[-1], 0.01, rtol=1e-12)
    ratio = ladder[0] / ladder[1]
    np.testing.assert_allclose(
        samplers.noise_overlap(ratio, num_dims), 0.567, atol=6e-4
    )
    relative = samplers.relative_step_size(ratio, num_steps)
    np.testing.assert_allclose(relative * 0.01**2, step, rtol=0.02)
    again = samplers.noise_ladder(largest, 0.01, num_dims=num_dims, overlap=0.567)
    assert abs(again.size - num_scales) <= 1
    # Whole, and never with less than was asked for.
    ratio = again[0] / again[1]
    assert 0.567 <= samplers.noise_overlap(ratio, num_dims) < 0.58


def test_the_first_ladder_did_not_overlap():
    """NCSN on CIFAR-10: ten scales from 1 to .01."""
    ladder = samplers.noise_ladder(1.0, 0.01, num_scales=10)
    np.testing.assert_allclose(ladder[0] / ladder[1], 1.668, atol=5e-4)
    assert samplers.noise_overlap(ladder[0] / ladder[1], 3072) < 1e-10


def test_the_step_leaves_the_level_s_own_noise():
    """On data at one point: a Langevin chain of its moves, from the level before, has
    a variance nearer to the level's own than with a step of .7 or 1.4 of it."""
    ratio, num_steps, num_chains = 1.3, 5, 400_000
    relative = samplers.relative_step_size(ratio, num_steps)
    point = functools.partial(energies.gaussian, {"mean": 0.0, "precision": 1.0})
    errors = []
    for factor in (0.7, 1.0, 1.4):
        state, _ = samplers.sample_chains(
            samplers.langevin(step_size=factor * relative),
            point,
            jax.random.key(0),
            ratio * jax.random.normal(jax.random.key(1), (num_chains,)),
            num_steps,
            collect=None,
        )
        errors.append(float(state.position.var()) - 1)
    assert min(errors) == errors[1] > 0
    # Common random numbers: the differences are known better than the variances.
    assert min(errors[0], errors[2]) - errors[1] > 0.005


def test_the_largest_distance_is_that_of_all_pairs():
    """In blocks: the farthest two are in different ones."""
    x = np.random.default_rng(0).normal(size=(2_500, 2, 2))
    x[17], x[2_411] = 10.0, -10.0
    np.testing.assert_allclose(samplers.largest_distance(x), 40.0, rtol=1e-12)
    with pytest.raises(ValueError, match="at least two examples, got 1"):
        samplers.largest_distance(x[:1])
    x[1_203] = np.nan
    with pytest.raises(ValueError, match="x must be finite"):
        samplers.largest_distance(x)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"smallest": 2.0}, ValueError, "smallest and largest must be positive"),
        ({}, TypeError, "exactly one of num_dims and num_scales, got neither"),
        ({"num_dims": 3, "num_scales": 4}, TypeError, "got both"),
        ({"num_scales": 1}, ValueError, "num_scales must be a whole number of at"),
        ({"num_dims": 3, "overlap": 1.0}, ValueError, "overlap must be between 0"),
        ({"num_dims": 4}, ValueError, "num_dims must be a whole number of at least 5"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        samplers.noise_ladder(1.0, **({"smallest": 0.1} | options))


def test_ratios_are_above_one():
    for call in (samplers.noise_overlap, samplers.relative_step_size):
        with pytest.raises(ValueError, match="ratio must be above 1, got 1.0"):
            call(1.0, 3)


# --- what annealing is for, with exact scores


def two_modes(scale, x):
    """Score of .2 N((-5, -5), s^2 I) + .8 N((5, 5), s^2 I)."""
    means = jnp.array([[-5.0, -5.0], [5.0, 5.0]])
    params = {
        "means": means,
        "precisions": 1 / scale**2,
        "log_weights": jnp.log(jnp.array([0.2, 0.8])),
    }
    return energies.score(energies.gaussian_mixture)(params, x)


def _of_scale(scale):
    # A score is all that is known, as of a network.
    return functools.partial(energies.from_score(two_modes), scale)


def _step(scale):
    return samplers.langevin(step_size=0.05 * scale**2)


@pytest.mark.parametrize("largest", [10.0, 20.0])
def test_annealing_finds_the_weights_of_modes(largest):
    """Song & Ermon's toy: annealed Langevin dynamics puts .78 of the chains at the
    mode of weight .8, from uniform starts on a square about both; plain Langevin
    dynamics half of them. 1,000 moves each, in the papers' step of .1."""
    num_chains = 8_000
    x = jax.random.uniform(jax.random.key(0), (num_chains, 2), minval=-8, maxval=8)
    state, _ = samplers.sample_annealed(
        _step,
        _of_scale,
        np.geomspace(largest, 1.0, 10),
        jax.random.key(1),
        x,
        100,
    )
    share = float((state.position.sum(1) > 0).mean())
    error = 5 * (0.8 * 0.2 / num_chains) ** 0.5
    np.testing.assert_allclose(share, 0.781, atol=error)
    # Each mode has its own width: 1, and 1 / (1 - .05 / 2) of it by the last step.
    near = state.position[state.position.sum(1) > 0] - 5
    error = 5 * (2 / near.size) ** 0.5
    np.testing.assert_allclose(near.var(), 1 / (1 - 0.05 / 2), rtol=error)
    plain, _ = samplers.sample_chains(
        _step(1.0), _of_scale(1.0), jax.random.key(1), x, 1_000, collect=None
    )
    share = float((plain.position.sum(1) > 0).mean())
    np.testing.assert_allclose(share, 0.5, atol=5 * (0.25 / num_chains) ** 0.5)


def test_an_energy_of_a_score_is_its_gradient_and_no_number():
    energy = energies.from_score(lambda params, x, scale: params * jnp.sin(x) / scale)
    x = jnp.array([0.3, -1.2])
    value, gradient = jax.value_and_grad(energy, 1)(2.0, x, 0.5)
    assert np.isnan(value)
    np.testing.assert_allclose(gradient, -4 * np.sin(x), rtol=1e-6)
    # The Hessian is minus the score's Jacobian, and parameters have no gradient.
    hessian = jax.hessian(energy, 1)(2.0, x, 0.5)
    np.testing.assert_allclose(hessian, np.diag(-4 * np.cos(x)), rtol=1e-6, atol=1e-7)
    assert jax.grad(energy)(2.0, x, 0.5) == 0
    # What accepts by energies must not take moves as if all were equal.
    state, info = samplers.sample_chains(
        samplers.mala(step_size=0.1),
        functools.partial(energies.from_score(lambda params, x: params * x), 2.0),
        jax.random.key(0),
        x[None],
        3,
    )
    assert np.isnan(info.energy).all() and not info.is_accepted.any()
    np.testing.assert_array_equal(state.position, x[None])
    with pytest.raises(ValueError, match=r"the example's shape \(2,\), got \(\)"):
        energies.from_score(lambda params, x: 0.0 * x[0])(None, x)


def images_score(params, x, scale):
    """Of images with noise of that scale: towards their mean, by how near."""
    images, squares = params
    weights = jax.nn.softmax((images @ x - 0.5 * squares) / scale**2)
    return (weights @ images - x) / scale**2


def _of_images(params, scale):
    return functools.partial(_images_energy, params, scale)


def _images_energy(params, scale, x):
    return energies.from_score(images_score)(params, x, scale)


def mean_distance(x):
    x = np.asarray(x, float)
    squares = (x**2).sum(1)
    between = np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0)
    return float(np.sqrt(between[np.triu_indices(len(x), 1)]).mean())


def ends_of_chains(images, ladder, num_moves, x):
    """Ends of annealed chains with the exact scores of images, and how many images they
    end at."""
    relative = samplers.relative_step_size(ladder[0] / ladder[1], num_moves)
    params = jnp.asarray(images), jnp.asarray((images**2).sum(1))
    state, _ = samplers.sample_annealed(
        _relative(relative),
        functools.partial(_of_images, params),
        ladder,
        jax.random.key(1),
        x,
        num_moves,
    )
    ends = np.asarray(state.position, float)
    squares = np.stack([((images - end) ** 2).mean(1) for end in ends])
    # At an image but for the last scale's noise.
    assert np.sqrt(squares.min(1)).max() < 2 * ladder[-1]
    return ends, len(set(squares.argmin(1)))


def test_the_largest_scale_buys_diversity():
    """NCSNv2's test with exact scores of held images: from the largest distance chains
    end at as different images as there are, 200 of them at about as many of 297 as
    draws do: 297 (1 - exp(-200 / 297)) = 146. From a fiftieth of it they end at those
    few that uniform noise happens to be near to."""
    data = digits.load()
    images = (data.held_out.reshape(-1, 64) / 8.0 - 1).astype(np.float32)
    largest, smallest, num_chains = samplers.largest_distance(images), 0.05, 200
    x = jax.random.uniform(jax.random.key(0), (num_chains, 64), minval=-1, maxval=1)
    found, reached = {}, {}
    for first in (largest, largest / 50):
        ladder = samplers.noise_ladder(first, smallest, num_dims=64)
        ends, reached[first] = ends_of_chains(images, ladder, 10, x)
        found[first] = mean_distance(ends)
    noise = 2 * 64 * smallest**2  # in squared distances
    truth = (mean_distance(images) ** 2 + noise) ** 0.5
    np.testing.assert_allclose(found[largest], truth, rtol=0.03)
    assert found[largest / 50] < 0.96 * truth
    expected = len(images) * (1 - np.exp(-num_chains / len(images)))
    assert reached[largest] > 0.85 * expected
    assert reached[largest / 50] < 0.75 * expected


@pytest.mark.slow
@pytest.mark.skipif(
    not NATURAL.is_file(),
    reason=f"EBMJAX_DATA is not set, or has no {NATURAL}: 1,000 images, one a row",
)
def test_the_paper_s_ladder_buys_diversity_of_natural_images():
    """CIFAR-10 by the ladder and the step that are published for it, 232 scales from 50
    to .01: 32 chains end as far apart as 32 of 1,000 images are, at 32 (1 - 32 / 2000)
    different ones. From 1 they find a few. (Published, of 10,000: mean distances of
    18.65 and 10.12, of 17.78 among images.)"""
    images = np.asarray(Image.open(NATURAL).convert("RGB"), np.float32)
    images = images.reshape(-1, 3072) / 255
    x = jax.random.uniform(jax.random.key(0), (32, 3072))
    draws = np.random.default_rng(0).integers(0, len(images), (100, 32))
    distances = [mean_distance(images[draw]) for draw in draws]
    distinct = [len(set(draw)) for draw in draws]
    for first in (50.0, 1.0):
        ladder = samplers.noise_ladder(first, 0.01, num_scales=232)
        ends, reached = ends_of_chains(images, ladder, 5, x)
        if first == 50:
            error = 4 * np.std(distances)
            assert abs(mean_distance(ends) - np.mean(distances)) < error
            assert reached >= min(distinct)
        else:
            assert mean_distance(ends) < np.mean(distances) - error
            assert reached < min(distinct) / 2


def _relative(relative):
    return lambda scale: samplers.langevin(step_size=relative * scale**2)
