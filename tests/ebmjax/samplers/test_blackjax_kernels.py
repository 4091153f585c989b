"""Kernels of BlackJAX as samplers: the contract is in test_chains.py, the laws here."""

from functools import partial

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import STANDARD
from laws import check_normal

from ebmjax import energies, samplers

KEY = jax.random.key(0)
PRECISION = np.array([4.0, 1.0, 0.5], np.float32)
NUTS = samplers.from_blackjax(
    blackjax.nuts,
    step_size=0.5,
    inverse_mass_matrix=1 / PRECISION,
    max_num_doublings=3,
)


@pytest.mark.parametrize(
    "sampler, num_steps",
    [
        pytest.param(NUTS, 6, id="nuts", marks=pytest.mark.slow),
        pytest.param(
            samplers.from_blackjax(blackjax.barker, step_size=0.9), 20, id="barker"
        ),
    ],
)
def test_the_law_of_a_gaussian_stays_what_it_is(sampler, num_steps):
    """Begun in equilibrium, nothing but an error of the move can show."""
    energy_fn = partial(energies.gaussian, {"mean": 1.0, "precision": PRECISION})
    noise = jax.random.normal(jax.random.key(1), (4_000, 3))
    x = 1.0 + noise / jnp.broadcast_to(PRECISION**0.5, noise.shape)
    state, infos = samplers.sample_chains(
        sampler, energy_fn, KEY, x, num_steps, collect=None
    )
    check_normal(state.position, 1.0, 1 / PRECISION)
    assert 0.3 < infos.acceptance_rate.mean() < 0.97
    assert np.abs(state.position - x).max(1).min() > 1e-3 or num_steps == 20


def test_the_moves_are_those_of_blackjax_itself():
    """A tree of positions and a condition change nothing."""

    def energy_fn(x, precision):
        return 0.5 * jnp.sum(precision * jnp.append(x["a"], x["b"]) ** 2)

    x = {"a": jnp.ones((2, 2)), "b": jnp.zeros(2)}
    state, infos = samplers.sample_chains(
        NUTS, energy_fn, KEY, x, 2, condition=jnp.stack([PRECISION, 2 * PRECISION])
    )
    options = {"step_size": 0.5, "inverse_mass_matrix": 1 / PRECISION}
    kernel = blackjax.nuts(
        lambda x: -jnp.sum(PRECISION * x**2), **options, max_num_doublings=3
    )
    expected = kernel.init(jnp.array([1.0, 1.0, 0.0]))
    chain_key = jax.random.split(jax.random.fold_in(KEY, 0), 64)[1]
    for move in range(2):
        expected, info = kernel.step(jax.random.fold_in(chain_key, move), expected)
    found = np.append(state.position["a"][1], state.position["b"][1])
    np.testing.assert_allclose(found, expected.position, rtol=1e-4, atol=1e-5)
    last = jax.tree.map(lambda leaf: leaf[-1, 1], infos)
    np.testing.assert_allclose(last.energy, -expected.logdensity, rtol=1e-4)
    np.testing.assert_allclose(last.total_energy, info.energy, rtol=1e-4)
    assert last.num_leapfrog == info.num_integration_steps
    assert set(infos._fields) == {
        *("energy", "total_energy", "acceptance_rate", "is_divergent", "is_turning"),
        *("num_leapfrog", "num_trajectory_expansions"),
    }


@pytest.mark.quick
def test_divergent_moves_of_a_kernel_are_counted():
    sampler = samplers.from_blackjax(
        blackjax.hmc,
        step_size=3.0,
        inverse_mass_matrix=jnp.ones(2),
        num_integration_steps=8,
    )
    with pytest.warns(UserWarning, match="^15 of 15 moves after the burn-in diverged"):
        samplers.sample_chains(sampler, STANDARD, KEY, jnp.ones((3, 2)), 5)


def test_a_momentum_at_the_start_is_a_function_of_the_position():
    """MCLMC begins with a unit vector, another one at another place."""
    sampler = samplers.from_blackjax(blackjax.mclmc, L=1.0, step_size=0.3)
    x = jnp.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])
    state, _ = samplers.sample_chains(sampler, STANDARD, KEY, x, 0)
    momentum = np.asarray(state.momentum)
    np.testing.assert_allclose((momentum**2).sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(momentum[0], momentum[2])
    assert np.abs(momentum[0] - momentum[1]).max() > 0.01
    moved, infos = samplers.sample_chains(sampler, STANDARD, KEY, x, 3)
    np.testing.assert_allclose(infos.energy[-1], 0.5 * (moved.position**2).sum(1))
    assert len(np.unique(moved.position[:, 0])) == 3
