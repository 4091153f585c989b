"""Adaptation: rates that are aimed at are met by the fixed sampler."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import STANDARD
from laws import check_normal

from ebmjax import energies, samplers

SCALE = np.geomspace(0.01, 10.0, 20).astype(np.float32)
SKEWED = partial(
    energies.gaussian, {"mean": jnp.ones(20), "precision": jnp.asarray(SCALE**-2.0)}
)
RANDOM_HMC = partial(samplers.hmc, num_leapfrog=4, randomize_num_leapfrog=True)


@pytest.mark.parametrize("initial_step_size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(
    "make_sampler, target", [(samplers.mala, 0.574), (samplers.mala, 0.8)]
)
def test_the_fixed_sampler_accepts_as_often_as_was_asked(
    make_sampler, target, initial_step_size
):
    x = jax.random.normal(jax.random.key(0), (500, 10))
    adapted = samplers.adapt(
        make_sampler,
        STANDARD,
        jax.random.key(1),
        x,
        150,
        target_acceptance_rate=target,
        initial_step_size=initial_step_size,
    )
    assert adapted.inverse_mass is None
    state, info = samplers.sample_chains(
        adapted.sampler, STANDARD, jax.random.key(2), x, 50, collect=None
    )
    # The average of the last iterates wavers by the noise of 500 rates: one percent.
    np.testing.assert_allclose(info.acceptance_rate.mean(), target, atol=0.03)
    np.testing.assert_allclose(adapted.acceptance_rate, target, atol=0.03)
    check_normal(state.position, 0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 8])
def test_masses_become_the_variances(num_devices):
    """Scales from .01 to 10, chains begun at the mean; pooled over devices."""
    x = jnp.ones((203, 20))  # not a multiple of the devices
    if num_devices == 1:
        x = jax.device_put(x, jax.devices()[2])
    adapted = samplers.adapt(
        RANDOM_HMC,
        SKEWED,
        jax.random.key(1),
        x,
        420,
        target_acceptance_rate=0.8,
        adapt_mass=True,
    )
    # The last window has 120 moves of 203 chains, hundreds of them independent.
    np.testing.assert_allclose(adapted.inverse_mass, SCALE**2, rtol=0.2)
    start = 1.0 + SCALE * np.asarray(jax.random.normal(jax.random.key(4), (4_000, 20)))
    state, info = samplers.sample_chains(
        adapted.sampler, SKEWED, jax.random.key(2), start, 20, collect=None
    )
    np.testing.assert_allclose(info.acceptance_rate.mean(), 0.8, atol=0.08)
    check_normal(state.position, 1.0, SCALE**2)
    # And mixes: from the mean, twenty moves reach the law.
    far, _ = samplers.sample_chains(
        adapted.sampler, SKEWED, jax.random.key(3), jnp.ones((4_000, 20)), 30
    )
    check_normal(far.position, 1.0, SCALE**2)


@pytest.mark.slow
def test_one_chain_is_enough():
    adapted = samplers.adapt(
        RANDOM_HMC,
        STANDARD,
        jax.random.key(1),
        jnp.ones((1, 3)),
        700,
        target_acceptance_rate=0.7,
        adapt_mass=True,
    )
    # 200 draws of a single chain in the last window: a variance to a third or so.
    np.testing.assert_allclose(adapted.inverse_mass, 1.0, rtol=0.5)
    assert adapted.position.shape == (1, 3)


@pytest.mark.parametrize("outside", [0.0, jnp.nan])
def test_a_flat_energy_has_no_step_size_too_large_and_nan_none_small_enough(outside):
    energy_fn = lambda x: jnp.where(jnp.all(x == 0), 0.0, outside)  # noqa: E731
    with pytest.raises(ValueError, match="no step size was found"):
        samplers.adapt(
            samplers.mala,
            energy_fn,
            jax.random.key(0),
            jnp.zeros((5, 2)),
            50,
            target_acceptance_rate=0.5,
        )


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_acceptance_rate": 1.0}, "target_acceptance_rate must be between"),
        ({"num_steps": 10}, "num_steps must be a whole number of at least 50, got 10"),
        ({"num_steps": 60, "adapt_mass": True}, "of at least 100, got 60"),
        ({"initial_step_size": 0.0}, "initial_step_size must be positive"),
        ({"x": jnp.zeros(3, int)}, "x must be floating-point"),
        ({"make_sampler": samplers.langevin, "x": jnp.zeros((4, 2))}, "LangevinInfo"),
        (
            {"energy_fn": lambda x: jnp.where(x[0] > 0, jnp.inf, 0.0)},
            "energy must be finite where chains begin, got inf at chain 2",
        ),
    ],
)
def test_adapt_names_what_is_wrong(options, message):
    arguments = {
        "make_sampler": samplers.mala,
        "energy_fn": STANDARD,
        "key": jax.random.key(0),
        "x": jnp.zeros((4, 2)).at[2].set(1.0),
        "num_steps": 50,
        "target_acceptance_rate": 0.5,
    } | options
    with pytest.raises(ValueError, match=message):
        samplers.adapt(**arguments)
    with pytest.raises(ValueError, match="concrete arrays"):
        jax.jit(
            lambda x: (
                samplers.adapt(
                    samplers.mala,
                    STANDARD,
                    jax.random.key(0),
                    x,
                    50,
                    target_acceptance_rate=0.5,
                ).position
            )
        )(jnp.zeros((4, 2)))
