"""Underdamped Langevin against the algebra of a linear recursion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import energies, samplers

NUM_CHAINS = 20_000


def run(sampler, x, num_steps, curvature=1.0):
    energy_fn = partial(energies.gaussian, {"mean": 0.0, "precision": curvature})
    return samplers.sample_chains(
        sampler, energy_fn, jax.random.key(0), x, num_steps, collect=None
    )


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("friction", [0.4, 3.0])
@pytest.mark.parametrize("step", [0.2, 1.0, 1.7])
def test_the_position_of_a_gaussian_is_exact_at_every_stable_step(
    step, friction, temperature
):
    """`step` is step_size times the frequency, stable below 2. The momentum's variance
    is T / (1 - step^2 / 4), not T, and the two are uncorrelated."""
    curvature = 4.0
    sampler = samplers.underdamped(
        step_size=step / curvature**0.5, friction=friction, temperature=temperature
    )
    # The slowest root: (friction / 2) step or, overdamped, step / friction at least.
    num_steps = int(40 / (min(friction, 2.0 / friction) * step)) + 20
    x = jnp.full(NUM_CHAINS, 1.0)
    state, info = run(sampler, x, num_steps, curvature)
    x, p = np.asarray(state.position), np.asarray(state.momentum)
    error = 5 * (2 / NUM_CHAINS) ** 0.5
    np.testing.assert_allclose(x.var(), temperature / curvature, rtol=error)
    np.testing.assert_allclose(p.var(), temperature / (1 - step**2 / 4), rtol=error)
    assert abs(np.corrcoef(x, p)[0, 1]) < 5 / NUM_CHAINS**0.5


@pytest.mark.quick
def test_the_first_moves_are_those_of_the_splitting():
    """From x0 at rest, for E = k x^2 / 2 and a = exp(-friction h):

    x1 = x0 (1 - (1 + a) h^2 k / 4) + (h / 2) sqrt((1 - a^2) T) n.
    """
    h, friction, temperature, k, x0 = 0.5, 0.8, 0.6, 2.0, 3.0
    a = np.exp(-friction * h)
    sampler = samplers.underdamped(
        step_size=h, friction=friction, temperature=temperature
    )
    state, info = run(sampler, jnp.full(NUM_CHAINS, x0), 1, k)
    variance = h**2 / 4 * (1 - a**2) * temperature
    np.testing.assert_allclose(
        state.position.mean(),
        x0 * (1 - (1 + a) * h**2 * k / 4),
        atol=5 * (variance / NUM_CHAINS) ** 0.5,
    )
    np.testing.assert_allclose(
        state.position.var(), variance, rtol=5 * (2 / NUM_CHAINS) ** 0.5
    )
    # At the first midpoint nothing has moved: that is where the energy is reported.
    np.testing.assert_allclose(info.energy, 0.5 * k * x0**2, rtol=1e-6)
    np.testing.assert_allclose(info.gradient_norm, k * x0, rtol=1e-6)
    np.testing.assert_allclose(info.kinetic_energy, 0.5 * state.momentum**2, rtol=1e-6)


def test_without_friction_it_is_reversible():
    with jax.enable_x64(True):
        energy_fn = lambda x: jnp.sum(x**4 / 4 + jnp.cos(2 * x))  # noqa: E731
        sampler = samplers.underdamped(step_size=0.1, friction=0.0)
        state = sampler.init(energy_fn, jnp.array([0.3, -1.2]))
        state = state._replace(momentum=jnp.array([1.0, 0.5]))

        def walk(state):
            for _ in range(30):
                state, _ = sampler.step(energy_fn, jax.random.key(0), state)
            return state

        there = walk(state)
        assert np.abs(there.position - state.position).max() > 0.1
        back = walk(there._replace(momentum=-there.momentum))
        np.testing.assert_allclose(back.position, state.position, atol=1e-13)
        np.testing.assert_allclose(back.momentum, -state.momentum, atol=1e-13)


def test_large_friction_is_langevin_with_half_the_square():
    """Both are then x' = (1 - h^2 k / 2) x + h n, of the same noise, but that the first
    half kick is still on its way: after n moves the difference is of one move."""
    h = 0.2
    x = jnp.full(NUM_CHAINS, 2.0)
    heavy, _ = run(samplers.underdamped(step_size=h, friction=1e3), x, 30)
    light, _ = run(samplers.langevin(step_size=h**2 / 2), x, 30)
    # Means 2 (1 - h^2 / 2)^30 = 1.09, to a move's change of 2 % of it.
    np.testing.assert_allclose(heavy.position.mean(), light.position.mean(), rtol=0.03)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"step_size": -1.0}, "step_size must be positive, got -1"),
        ({"friction": -0.5}, "friction must not be negative, got -0.5"),
        ({"temperature": -2.0}, "temperature must not be negative, got -2"),
    ],
)
def test_underdamped_names_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        samplers.underdamped(**{"step_size": 1.0, "friction": 1.0} | options)
