"""Log partition functions: exact values in 1, 2, 10 and 100 dimensions, bracketed."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import energies, metrics, samplers

LOG_TWO_PI = math.log(2 * math.pi)


def normal_reference(dim, scale=1.0):
    def sample(key):
        return scale * jax.random.normal(key, (dim,))

    def log_prob(x):
        log_scale = math.log(scale) + 0.5 * LOG_TWO_PI
        return -0.5 * jnp.sum((x / scale) ** 2) - dim * log_scale

    return sample, log_prob


def wide_gaussian(dim):
    """An energy, its log partition function, and exact draws of its law."""
    precision = np.geomspace(0.25, 4.0, dim) if dim > 1 else np.array([0.25])
    params = {"mean": jnp.full(dim, 0.5), "precision": jnp.asarray(precision)}
    truth = 0.5 * (dim * LOG_TWO_PI - np.log(precision).sum())

    def draw(key, num):
        scales = jnp.sqrt(params["precision"])[None]
        return 0.5 + jax.random.normal(key, (num, dim)) / scales

    return functools.partial(energies.gaussian, params), truth, draw


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 10, 100])
def test_forwards_and_in_reverse_they_bracket_the_truth(dim):
    """The expectation of the forward bound is below, of the reverse above; both
    estimates within five standard errors, from the spread of their own weights."""
    energy_fn, truth, draw = wide_gaussian(dim)
    num_fractions = 1_000 if dim == 100 else 200
    options = {
        "reference": normal_reference(dim),
        "fractions": num_fractions,
        "num_steps": 2,
    }
    sampler = samplers.mala(step_size=0.35 / dim ** (1 / 3))
    forward = metrics.annealed_importance_sampling(
        sampler, energy_fn, jax.random.key(0), num_chains=800, **options
    )
    reverse = metrics.reverse_annealed_importance_sampling(
        sampler, energy_fn, jax.random.key(1), draw(jax.random.key(2), 800), **options
    )
    errors = []
    for found, sign in ((forward, 1), (reverse, -1)):
        weights = np.exp(sign * (found.log_weights - found.log_partition))
        np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-4)
        errors.append(5 * weights.std() / len(weights) ** 0.5)
        size = weights.sum() ** 2 / (weights**2).sum()
        np.testing.assert_allclose(found.effective_sample_size, size, rtol=1e-3)
        assert abs(found.log_partition - truth) < errors[-1] < 0.3
        rates = found.acceptance_rate
        assert rates.shape == (num_fractions - 1,) and rates.min() > 0.5
    spread = [found.log_weights.std() / 800**0.5 for found in (forward, reverse)]
    assert forward.bound < truth + 5 * spread[0]
    assert reverse.bound > truth - 5 * spread[1]
    assert forward.bound < forward.log_partition + 1e-4
    assert reverse.bound > reverse.log_partition - 1e-4


def test_a_chain_that_stays_weighs_as_importance_sampling():
    """Moves of a step of 1e-30: all of the way is one weight E - reference."""
    energy_fn, _, _ = wide_gaussian(1)
    reference = normal_reference(1, 3.0)
    still = samplers.mala(step_size=1e-30)
    found = metrics.annealed_importance_sampling(
        still, energy_fn, jax.random.key(0), reference=reference, num_chains=50
    )
    weights = [-energy_fn(x) - reference[1](x) for x in found.position]
    np.testing.assert_allclose(found.log_weights, weights, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("direction", ["forwards", "in reverse"])
def test_weights_of_unequal_fractions_are_these_numbers(direction):
    """Moves at every fraction except the last, by the sampler made for it: gradient
    descent on 2 x^2, from a standard normal. At fraction f a step of 0.1 f takes x to
    (1 - 0.1 f (1 + 3 f)) x. A chain at x weighs 0.5 log(2 pi) - 1.5 x^2 for a step
    of one."""
    _, log_prob = normal_reference(1)
    run = {
        "forwards": functools.partial(
            metrics.annealed_importance_sampling, num_chains=2
        ),
        "in reverse": functools.partial(
            metrics.reverse_annealed_importance_sampling, x=jnp.array([[0.4], [0.9]])
        ),
    }[direction]
    found = run(
        lambda f: samplers.langevin(step_size=0.1 * f, temperature=0.0),
        lambda x: 2.0 * jnp.sum(x**2),
        jax.random.key(0),
        reference=(lambda key: jnp.array([0.4]), log_prob),
        fractions=[0.3, 0.5, 1.0],
    )
    if direction == "forwards":
        x, moves, steps, sign = np.full(2, 0.4), [0.3, 0.5], [0.3, 0.2, 0.5], 1
    else:
        x, moves, steps, sign = np.array([0.4, 0.9]), [0.5, 0.3], [0.5, 0.2, 0.3], -1
    log_weights = steps[0] * (0.5 * LOG_TWO_PI - 1.5 * x**2)
    for f, step in zip(moves, steps[1:], strict=True):
        x = (1 - 0.1 * f * (1 + 3 * f)) * x
        log_weights += step * (0.5 * LOG_TWO_PI - 1.5 * x**2)
    np.testing.assert_allclose(found.position[:, 0], x, rtol=1e-5)
    np.testing.assert_allclose(found.log_weights, log_weights, rtol=1e-5)
    np.testing.assert_allclose(found.bound, log_weights.mean(), rtol=1e-5)
    weights = np.exp(sign * log_weights)
    truth = sign * math.log(weights.mean())
    np.testing.assert_allclose(found.log_partition, truth, rtol=1e-5)
    size = weights.sum() ** 2 / (weights**2).sum()
    np.testing.assert_allclose(found.effective_sample_size, size, rtol=1e-5)
    assert found.acceptance_rate.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dim, step_size", [(1, 0.5), (10, 0.2), (100, 0.08)])
def test_the_bracket_holds_the_truth_as_often_as_it_should(dim, step_size):
    """Of 200 brackets of 16 chains each, bounds widened by two standard errors: each
    side misses with a chance of at most 2.3 % for normal means, more for few; 8 % and
    four binomial errors."""
    energy_fn, truth, draw = wide_gaussian(dim)
    sampler = samplers.mala(step_size=step_size)
    num, size = 200, 16
    options = {"reference": normal_reference(dim), "fractions": 30}
    forward = metrics.annealed_importance_sampling(
        sampler, energy_fn, jax.random.key(0), num_chains=num * size, **options
    )
    reverse = metrics.reverse_annealed_importance_sampling(
        sampler,
        energy_fn,
        jax.random.key(1),
        draw(jax.random.key(2), num * size),
        **options,
    )
    sides = []
    for found, sign in ((forward, 1), (reverse, -1)):
        sets = np.asarray(found.log_weights).reshape(num, size)
        error = sets.std(1, ddof=1) / size**0.5
        sides.append((sign * (truth - sets.mean(1)) > -2 * error).mean())
        # And it is a bound: on average it is on its side by more than its error.
        assert sign * (truth - sets.mean()) > 3 * sets.std() / sets.size**0.5
    assert min(sides) > 0.92 - 4 * (0.08 * 0.92 / num) ** 0.5


@pytest.mark.parametrize("is_reverse", [False, True])
@pytest.mark.parametrize("factory", [samplers.mala, samplers.langevin])
def test_a_state_that_keeps_the_ends_of_the_path_gives_the_same_numbers(
    factory, is_reverse
):
    """As a sampler of the same moves whose states are made anew at every fraction."""
    energy_fn, _, draw = wide_gaussian(3)
    kept = lambda fraction: factory(step_size=0.3 - 0.1 * fraction)  # noqa: E731
    anew = lambda fraction: samplers.Sampler(  # noqa: E731
        init=lambda energy_fn, x: kept(fraction).init(energy_fn, x),
        step=lambda energy_fn, key, state: kept(fraction).step(energy_fn, key, state),
    )
    options = {"reference": normal_reference(3), "fractions": 20, "num_steps": 2}

    def run(sampler):
        key = jax.random.key(0)
        if not is_reverse:
            return metrics.annealed_importance_sampling(
                sampler, energy_fn, key, num_chains=50, **options
            )
        x = draw(jax.random.key(1), 50)
        return metrics.reverse_annealed_importance_sampling(
            sampler, energy_fn, key, x, **options
        )

    found, expected = run(kept), run(anew)
    if factory is samplers.mala:
        assert 0.5 < expected.acceptance_rate.mean() < 0.99
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-4)


def test_a_move_evaluates_the_energy_once():
    """It is evaluated at the start and in each of the nine moves of ten fractions."""
    count = []
    num_chains = jax.local_device_count()

    def energy_fn(x):
        jax.debug.callback(lambda x: count.append(1), x)
        return jnp.sum(x**2)

    metrics.annealed_importance_sampling(
        samplers.mala(step_size=0.1),
        energy_fn,
        jax.random.key(0),
        reference=normal_reference(3),
        num_chains=num_chains,
        fractions=10,
    )
    jax.effects_barrier()
    assert len(count) == 10 * num_chains


def test_importance_sampling_of_a_wider_proposal():
    energy_fn, truth, _ = wide_gaussian(1)
    proposal = normal_reference(1, 4.0)
    found, size = metrics.importance_sampling(
        energy_fn, jax.random.key(0), proposal=proposal, num_samples=50_000
    )
    # Weights' relative variance: 2 n / ESS - 1 is below 2 here.
    assert abs(found - truth) < 5 * (1 / size) ** 0.5 < 0.04
    assert 20_000 < size < 50_000
    exact, size = metrics.importance_sampling(
        lambda x: -proposal[1](x) - 1.5,
        jax.random.key(0),
        proposal=proposal,
        num_samples=100,
    )
    np.testing.assert_allclose([exact, size], [1.5, 100], rtol=1e-5)


@pytest.mark.parametrize("bounds", [(-8, 9), [(-8, 9)], [(-8, 9), (-7, 8)]])
def test_quadrature_of_one_and_two_dimensions(bounds):
    dim = np.size(bounds) // 2
    with jax.enable_x64(True):
        value = metrics.quadrature(
            lambda x: 0.5 * jnp.sum((x - 0.5) ** 2), bounds, num_points=300
        )
    # What lies beyond the bounds: at least 7.5 standard deviations.
    np.testing.assert_allclose(value, 0.5 * dim * LOG_TWO_PI, rtol=1e-12)
    # A box's area where the energy is 0.
    area = np.prod(np.diff(np.reshape(bounds, (-1, 2)), axis=1))
    flat = metrics.quadrature(lambda x: 0.0 * jnp.sum(x), bounds, num_points=50)
    np.testing.assert_allclose(flat, math.log(area), rtol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(
    "call, message",
    [
        ({"fractions": [0.5, 0.2, 1.0]}, "fractions must increase"),
        ({"fractions": [0.5, 0.9]}, "fractions must increase from above 0 to 1"),
        ({"fractions": 0}, "fractions must be a whole number of at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_chains": 0}, "num_chains must be a whole number.*got 0"),
    ],
)
def test_bad_options_are_named(call, message):
    options = {"reference": normal_reference(1), "num_chains": 2} | call
    with pytest.raises(ValueError, match=message):
        metrics.annealed_importance_sampling(
            samplers.mala(step_size=0.1), jnp.sum, jax.random.key(0), **options
        )


@pytest.mark.parametrize("bounds", [(1, 0), [(0, 1), (3, 2)], [(0, 1)] * 3])
def test_bounds_that_are_no_intervals_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds must be one or two intervals"):
        metrics.quadrature(jnp.sum, bounds)


@pytest.mark.parametrize("num_fractions", [2, 5])
def test_a_mean_weight_has_no_bias_however_few_the_fractions(num_fractions):
    """A normal of scale 0.5 at 1, from a standard one. The mean weight is the partition
    function of any number of fractions and moves, if a chain moves at the fraction at
    which it was weighed last. One that moves at the next leaves the law to which its
    weight belongs, and the mean is another."""

    def energy_fn(x):
        return 0.5 * jnp.sum(((x - 1) / 0.5) ** 2)

    found = metrics.annealed_importance_sampling(
        samplers.mala(step_size=0.3),
        energy_fn,
        jax.random.key(0),
        reference=normal_reference(1),
        num_chains=20_000,
        fractions=num_fractions,
        num_steps=10,
    )
    ratios = np.exp(found.log_weights - 0.5 * LOG_TWO_PI - math.log(0.5))
    error = 5 * ratios.std() / len(ratios) ** 0.5
    assert error < 0.1
    np.testing.assert_allclose(ratios.mean(), 1.0, atol=error)
