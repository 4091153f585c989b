"""HMC on oscillators, where a trajectory is a rotation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import STANDARD

from ebmjax import energies, metrics, samplers


def run(sampler, x, num_steps, energy_fn=STANDARD, key=0, **options):
    return samplers.sample_chains(
        sampler, energy_fn, jax.random.key(key), x, num_steps, **options
    )


def test_one_leapfrog_is_a_mala_proposal_of_half_its_square():
    """Same law of acceptance: the mean over a common start agrees within its error."""
    x = 1.5 * jax.random.normal(jax.random.key(5), (20_000, 4))
    _, one = run(samplers.hmc(step_size=0.9, num_leapfrog=1), x, 1)
    _, two = run(samplers.mala(step_size=0.405), x, 1, key=1)
    rates = one.acceptance_rate[0], two.acceptance_rate[0]
    error = 5 * (rates[0].var() / 20_000 + rates[1].var() / 20_000) ** 0.5
    np.testing.assert_allclose(rates[0].mean(), rates[1].mean(), atol=error)


@pytest.mark.quick
def test_the_end_of_a_trajectory_is_a_rotation():
    """On x^2 / 2 small leapfrogs turn (x, p) by the time: from x = 0 and p ~ N(0, 1),
    after a quarter turn x ~ N(0, 1), after a half none has moved."""
    quarter = samplers.hmc(step_size=np.pi / 2 / 64, num_leapfrog=64)
    half = samplers.hmc(step_size=np.pi / 64, num_leapfrog=64)
    with jax.enable_x64(True):
        x = jnp.zeros((10_000, 1))
        state, info = run(quarter, x, 1)
        again, _ = run(half, x, 1)
    assert np.abs(again.position).max() < 0.01
    x = np.asarray(state.position)[:, 0]
    np.testing.assert_allclose(x.var(), 1.0, rtol=5 * (2 / 10_000) ** 0.5)
    # The leapfrog keeps p^2 + (1 - h^2 / 4) x^2: from x = 0, H grows by h^2 / 8 x^2.
    is_accepted = np.asarray(info.is_accepted[0])
    np.testing.assert_allclose(
        np.asarray(info.energy_error[0])[is_accepted],
        (np.pi / 128) ** 2 / 8 * x[is_accepted] ** 2,
        rtol=1e-6,
        atol=1e-14,
    )


def test_masses_rescale_space():
    """Inverse masses v on precisions 1 / v make the same numbers as ones on ones."""
    scale = jnp.array([0.01, 1.0, 30.0])
    energy_fn = partial(energies.gaussian, {"mean": 0.0, "precision": scale**-2})
    x = jax.random.normal(jax.random.key(1), (300, 3))
    plain, info = run(samplers.hmc(step_size=1.2, num_leapfrog=3), x, 5)
    heavy = samplers.hmc(step_size=1.2, num_leapfrog=3, inverse_mass=scale**2)
    scaled, same = run(heavy, x * scale[None], 5, energy_fn)
    np.testing.assert_array_equal(info.is_accepted, same.is_accepted)
    np.testing.assert_allclose(scaled.position, plain.position * scale[None], rtol=2e-4)


@pytest.mark.parametrize("temperature", [0.2, 3.0])
def test_temperature_divides_the_energy(temperature):
    sampler = samplers.hmc(step_size=0.7, num_leapfrog=3, temperature=temperature)
    x = temperature**0.5 * jax.random.normal(jax.random.key(1), (10_000, 1))
    state, info = run(sampler, x, 10, collect=None)
    np.testing.assert_allclose(
        state.position.var(), temperature, rtol=5 * (2 / 10_000) ** 0.5
    )
    assert info.acceptance_rate.mean() < 0.99


def test_random_lengths_are_uniform_and_shared():
    """On 1, ..., 2 L - 1, chi-square over 2,000 moves; all chains make equally many,
    and those of moves 2 k and 2 k + 1 add up to 2 L."""
    sampler = samplers.hmc(step_size=0.1, num_leapfrog=3, randomize_num_leapfrog=True)
    state, info = run(sampler, jnp.zeros((3, 1)), 2_000)
    np.testing.assert_array_equal(state.num_moves, 2_000)
    counts = np.asarray(info.num_leapfrog)
    assert (counts == counts[:, :1]).all()
    np.testing.assert_array_equal(counts[::2] + counts[1::2], 2 * 3)
    observed = np.bincount(counts[:, 0], minlength=6)
    assert observed[0] == 0 and len(observed) == 6
    # Four degrees of freedom: 23.5 is exceeded once in ten thousand.
    assert ((observed[1:] - 400) ** 2 / 400).sum() < 23.5
    fixed = samplers.hmc(step_size=0.1, num_leapfrog=3)
    _, info = run(fixed, jnp.zeros((3, 1)), 5)
    np.testing.assert_array_equal(info.num_leapfrog, 3)


def test_a_fixed_length_resonates_and_a_random_one_does_not():
    """Frequencies 1 to 10: ten steps of .314 are half a turn of the first and a whole
    number of half turns of every other. The leapfrog's own frequency is a little
    higher, so that some are off, but the slow ones hardly move."""
    precision = jnp.geomspace(1.0, 25.0, 20)
    energy_fn = partial(energies.gaussian, {"mean": 0.0, "precision": precision})
    noise = jax.random.normal(jax.random.key(0), (64, 20))
    x = noise / jnp.sqrt(precision)[None]
    sizes = {}
    for is_random in (False, True):
        sampler = samplers.hmc(
            step_size=np.pi / 10,
            num_leapfrog=10,
            randomize_num_leapfrog=is_random,
        )
        _, draws = run(
            sampler, x, 400, energy_fn, collect=lambda state, info: state.position
        )
        sizes[is_random] = float(metrics.effective_sample_size(draws).min())
    assert sizes[False] < 0.05 * 64 * 400
    assert sizes[True] > 4 * sizes[False], sizes


def test_a_nan_is_refused_and_shown():
    energy_fn = lambda x: jnp.where(jnp.abs(x) < 1, 0.0, jnp.nan)  # noqa: E731
    sampler = samplers.hmc(step_size=1.0, num_leapfrog=2)
    state, info = run(sampler, jnp.zeros(500), 4, energy_fn)
    assert (jnp.abs(state.position) < 1).all()
    shown = jnp.isnan(info.acceptance_rate)
    assert shown.any() and not shown.all()
    assert (~info.is_accepted[shown]).all()
    np.testing.assert_array_equal(shown, jnp.isnan(info.energy_error))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"step_size": 0.0}, "step_size must be positive, got 0"),
        ({"num_leapfrog": 0}, "num_leapfrog must be a whole number of at least 1, got"),
        ({"num_leapfrog": 2.0}, "num_leapfrog must be a whole number.*got 2.0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"inverse_mass": np.array([1.0, 0.0])}, "inverse_mass must be positive"),
        (
            {"inverse_mass": np.ones(3)},
            r"inverse_mass must be.*shape \(2,\), got shape \(3,\)",
        ),
    ],
)
def test_hmc_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        sampler = samplers.hmc(**{"step_size": 1.0, "num_leapfrog": 2} | options)
        run(sampler, jnp.zeros((4, 2)), 1)
