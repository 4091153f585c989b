"""Samplers far from one: large and small units, infinite energies, other types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import STANDARD

from ebmjax import objectives, samplers, starts
from ebmjax.samplers.coupled import _reflected
from ebmjax.samplers.sampler import total
from ebmjax.samplers.walk import no_means

KEY = jax.random.key(0)


def normal_energy(scale, x):
    return 0.5 * jnp.sum((x / scale) ** 2)


@pytest.mark.parametrize("scale", [1e-15, 1e-10, 1e10, 1e15])
def test_adapt_finds_the_step_size_in_any_unit(scale):
    """MALA's step size is a squared length: at every scale the same one, squared."""
    start = jax.random.normal(jax.random.key(1), (64, 2))
    found = [
        samplers.adapt(
            samplers.mala,
            functools.partial(normal_energy, s),
            KEY,
            s * start,
            100,
            target_acceptance_rate=0.574,
        )
        for s in (jnp.float32(1.0), jnp.float32(scale))
    ]
    # Searches that end at neighbouring powers of two, and 6,400 noisy rates.
    ratio = found[1].step_size / float(scale) ** 2 / found[0].step_size
    np.testing.assert_allclose(ratio, 1.0, rtol=0.1)
    np.testing.assert_allclose(found[1].acceptance_rate, 0.574, atol=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_adapt_refuses_a_start_whose_gradient_is_not_finite(value):
    """The energy is 0 there; its chain would never move."""

    @jax.custom_jvp
    def energy_fn(x):
        return 0.5 * jnp.sum(x**2)

    @energy_fn.defjvp
    def _(primals, tangents):
        (x,), (dot,) = primals, tangents
        slope = jnp.where(x == 0, value, x)
        return energy_fn(x), jnp.sum(slope * dot)

    x = jnp.ones((4, 2)).at[2].set(0.0)
    with pytest.raises(ValueError, match=f"gradient must be .* {value} at chain 2"):
        samplers.adapt(samplers.mala, energy_fn, KEY, x, 50, target_acceptance_rate=0.5)


def test_adapt_tells_of_chains_that_never_moved():
    """One chain is at the bottom of a hole from which 1,000 nats lead out."""

    def energy_fn(x):
        return jnp.where(jnp.all(x == 0), -1e3, 0.5 * jnp.sum(x**2))

    x = jnp.ones((40, 2)).at[7].set(0.0)
    with pytest.warns(RuntimeWarning, match="1 of 40 chains never moved, .* chain 7"):
        samplers.adapt(samplers.mala, energy_fn, KEY, x, 50, target_acceptance_rate=0.5)


def test_adapt_refuses_masses_that_float32_does_not_have():
    scale = jnp.float32(1e-25)
    with pytest.raises(
        ValueError, match="adapt_mass needs variances that are positive"
    ):
        samplers.adapt(
            functools.partial(samplers.hmc, num_leapfrog=2),
            functools.partial(normal_energy, scale),
            KEY,
            scale * jax.random.normal(KEY, (20, 2)),
            100,
            target_acceptance_rate=0.7,
            adapt_mass=True,
            initial_step_size=1e-25,
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("shape", [(), (2,), (3, 700)])
def test_a_total_is_the_sum_of_all_elements(shape, dtype):
    """In float32 to its last digits: a product with fewer would decide acceptances."""
    x = jax.random.normal(KEY, (5, *shape)).astype(dtype)
    found = jax.jit(jax.vmap(total))(x)
    assert found.shape == (5,) and found.dtype == dtype
    values = np.asarray(x, np.float64).reshape(5, -1)
    error = float(jnp.finfo(dtype).eps) * np.abs(values).sum(1)
    assert (np.abs(np.asarray(found, np.float64) - values.sum(1)) <= error).all()
    np.testing.assert_array_equal(jax.grad(total)(x[0]), np.ones(shape))


def test_a_total_of_infinite_terms_is_infinite_or_no_number():
    inf = np.inf
    x = jnp.array([[1.0, -inf], [inf, inf], [inf, -inf], [np.nan, inf]])
    found = jax.jit(jax.vmap(total))(x)
    np.testing.assert_array_equal(found, [-inf, inf, np.nan, np.nan])


def wall(x):
    return jnp.where(x[0] > 0, x[0], jnp.inf)


def test_a_running_mean_of_infinite_infos_is_infinite():
    """Trajectories through a wall of infinite energy have an infinite error."""
    sampler = samplers.hmc(step_size=0.5, num_leapfrog=2)
    run = functools.partial(
        samplers.sample_chains, sampler, wall, KEY, jnp.ones((3, 1)), 50
    )
    _, means = run(collect=None)
    _, infos = run()
    assert np.isposinf(infos.energy_error).any(0).all()
    for mean, all_moves in zip(means, infos):
        expected = np.asarray(all_moves, np.float64).mean(0)
        np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_means_of_annealed_chains_and_of_training_are_infinite_too():
    sampler = samplers.hmc(step_size=0.5, num_leapfrog=2)
    x = jnp.ones((3, 1))
    _, means = samplers.sample_annealed(
        lambda level: sampler, lambda level: wall, jnp.ones(2), KEY, x, 30
    )
    assert np.isposinf(means.energy_error).all()
    for is_attached in (False, True):
        objective = objectives.contrastive_divergence(
            lambda params, x: params * wall(x),
            sampler=sampler,
            num_steps=30,
            start=starts.data(),
            last_step_gradient=is_attached,
        )
        carry = objective.init(KEY)
        _, aux = objective.loss({"energy": jnp.ones(())}, KEY, x, carry)
        assert np.isposinf(aux.metrics["chain_energy_error"])


def test_counts_of_running_means_do_not_end_where_float32_has_no_more_integers():
    """2^24 + 1 is 2^24 there, and later moves would weigh too much."""
    sampler = samplers.langevin(step_size=0.1)
    count, _ = no_means(sampler, STANDARD, jnp.ones((2, 3)))
    assert count.dtype == jnp.int32


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("step_size", [np.float64(0.5), jnp.float64(0.5)])
@pytest.mark.parametrize("coupling", ["reflection", "maximal"])
def test_coupled_chains_keep_the_type_of_their_positions(step_size, coupling):
    x = jnp.ones(3, jnp.float32)
    run = functools.partial(
        samplers.coupled_chains, STANDARD, KEY, x, x, max_steps=4, coupling=coupling
    )
    chains = run(step_size=step_size)
    assert chains.leader.dtype == chains.follower.dtype == jnp.float32
    np.testing.assert_array_equal(chains.leader, run(step_size=0.5).leader)


@pytest.mark.usefixtures("float64")
def test_inversion_keeps_the_type_of_its_positions():
    """x = z + 1: half a step of 0.5 from 0 goes to the target less one at once."""
    z = jnp.zeros((2, 3), jnp.float32)
    best, _ = samplers.invert_chain(
        lambda key, z: z + 1,
        KEY,
        z,
        jnp.full((2, 3), 5.0),
        num_iterations=2,
        step_size=np.float64(0.5),
    )
    assert best.dtype == jnp.float32
    np.testing.assert_allclose(best, 4.0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "make",
    [
        lambda h: samplers.langevin(step_size=h, temperature=h),
        lambda h: samplers.mala(step_size=h, temperature=h),
        lambda h: samplers.hmc(step_size=h, num_leapfrog=2, temperature=h),
        lambda h: samplers.underdamped(step_size=h, friction=h, temperature=h),
    ],
)
def test_infos_keep_their_type_whatever_that_of_hyper_parameters(make):
    x = jnp.ones((2, 3), jnp.float32)
    state, infos = samplers.sample_chains(make(np.float64(0.5)), STANDARD, KEY, x, 2)
    for leaf in jax.tree.leaves((state, infos)):
        assert leaf.dtype != jnp.float64


@pytest.mark.usefixtures("float64")
def test_losses_keep_their_type_whatever_that_of_hyper_parameters():
    params = {"energy": jnp.ones((), jnp.float32)}
    scale = np.float64(0.5)

    def energy(params, x):
        return params * jnp.sum(x**2)

    for objective in (
        objectives.denoising_score_matching(energy, noise_scale=scale),
        objectives.conditional_noise_contrastive(energy, noise_scale=scale),
        objectives.minimum_velocity(energy, step_size=scale),
        objectives.finite_difference_score_matching(energy, step=scale),
        objectives.contrastive_divergence(
            energy,
            sampler=samplers.langevin(step_size=scale),
            num_steps=2,
            start=starts.data(),
            data_noise_scale=scale,
            energy_penalty=scale,
        ),
    ):
        batch = jnp.ones((4, 3), jnp.float32)
        value, _ = objective.loss(params, KEY, batch, objective.init(KEY))
        assert value.dtype == jnp.float32


def test_coupled_chains_at_a_nan_energy_do_not_seem_to_meet():
    """Both would stay at their start for ever, and be equal there."""
    x = jnp.ones(2)
    chains = samplers.coupled_chains(
        lambda x: jnp.sum(x) * jnp.nan, KEY, x, x, step_size=1.0, max_steps=5
    )
    assert chains.meeting_time == 6
    assert np.isnan(chains.leader).all() and np.isnan(chains.follower).all()


def test_coupled_chains_begin_at_positions_of_one_shape():
    with pytest.raises(ValueError, match=r"one shape and type .*\(3,\) and float32\(1"):
        samplers.coupled_chains(
            STANDARD, KEY, jnp.ones(3), jnp.ones(1), step_size=1.0, max_steps=2
        )


@pytest.mark.parametrize("distance", [1e-25, 1.0, 1e25])
def test_a_reflection_keeps_the_length_of_the_noise(distance):
    """The follower's proposal mirrors the leader's noise along their difference."""
    x = jnp.zeros(3)
    y = jnp.array([distance, 0.0, 0.0])
    keys = jax.random.split(KEY, 200)
    step = jnp.float32(1e-3 * distance)  # far enough apart never to be equal
    ahead, behind = jax.vmap(lambda key: _reflected(key, x, y, step))(keys)
    noise, mirrored = (np.asarray(p) / step for p in (ahead - x[None], behind))
    np.testing.assert_allclose(mirrored[:, 1:], noise[:, 1:], rtol=1e-3, atol=1e-3)
    # y's own place, 1,000 steps away, takes four digits.
    np.testing.assert_allclose(mirrored[:, 0] - 1e3, -noise[:, 0], atol=1e-3)


@pytest.mark.parametrize("coupling", ["reflection", "maximal"])
def test_one_uniform_number_decides_both_acceptances(coupling):
    """Chains meet in their first common move with the probability that a quadrature
    gives: of proposals that are equal, both are accepted if one number is small enough
    for both. With a number for each it would be the product of the probabilities."""
    precision, step = 1.0, 4.0

    def energy_fn(x):
        return 0.5 * precision * jnp.sum(x**2)

    num, x, y = 20_000, 0.2, 0.3
    keys = jax.random.split(KEY, num)
    chains = jax.jit(
        jax.vmap(
            lambda key: samplers.coupled_chains(
                energy_fn,
                key,
                jnp.full((1,), x),
                jnp.full((1,), y),
                step_size=step,
                max_steps=2,
                coupling=coupling,
            )
        )
    )(keys)
    first = np.asarray(chains.leader[:, 1, 0], np.float64)
    grid = np.linspace(-20, 20, 3_001)
    places = np.linspace(-5, 5, 401)  # of the leader after its move alone

    def log_law(z):
        return -0.5 * precision * z**2

    def density(z, center):
        return np.exp(-0.5 * ((z - center) / step) ** 2) / step / np.sqrt(2 * np.pi)

    def accepts(z, center):
        return np.minimum(1, np.exp(log_law(z) - log_law(center)))

    column = places[:, None]
    equal = np.minimum(density(grid, column), density(grid, y))
    both = np.minimum(accepts(grid, column), accepts(grid, y))
    width = grid[1] - grid[0]
    probability = (equal * both).sum(1) * width
    product = (equal * accepts(grid, column) * accepts(grid, y)).sum(1) * width
    expected = np.interp(first, places, probability)
    error = 5 * np.sqrt((expected * (1 - expected)).mean() / num)
    found = np.mean(np.asarray(chains.meeting_time) == 2)
    np.testing.assert_allclose(found, expected.mean(), atol=error)
    # What the test would miss is far beyond its error.
    assert expected.mean() - np.interp(first, places, product).mean() > 3 * error
