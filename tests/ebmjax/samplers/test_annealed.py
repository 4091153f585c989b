"""Annealed chains: exact recursions, and the two modes that plain Langevin misses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import samplers
from ebmjax.samplers.layout import BLOCK


def energy(params, noise_scale, x):
    return 0.5 * jnp.sum(((x - params) / noise_scale) ** 2)


def family(params):
    return partial(_bind, params)


def _bind(params, noise_scale):
    return partial(energy, params, noise_scale)


def langevin(noise_scale):
    return samplers.langevin(step_size=0.2 * noise_scale**2)


def test_levels_follow_one_another_as_the_recursion_says():
    """At scale s the move is x' = 0.8 x + sqrt(0.4) s n, three times a level."""
    num_chains, levels = 20_000, jnp.array([2.0, 1.0, 0.25])
    state, infos = samplers.sample_annealed(
        langevin,
        family(jnp.zeros(1)),
        levels,
        jax.random.key(0),
        jnp.full((num_chains, 1), 5.0),
        num_steps_per_level=3,
    )
    variance, energies = 0.0, []
    mean = 5.0
    for level in levels:
        of_level = []
        for _ in range(3):
            mean, variance = 0.8 * mean, 0.64 * variance + 0.4 * level**2
            of_level.append(0.5 * (mean**2 + variance) / level**2)
        energies.append(np.mean(of_level))
    np.testing.assert_allclose(
        state.position.mean(), mean, atol=5 * (variance / num_chains) ** 0.5
    )
    np.testing.assert_allclose(
        state.position.var(), variance, rtol=5 * (2 / num_chains) ** 0.5
    )
    assert infos.energy.shape == (3, num_chains)
    means = np.asarray(infos.energy)
    np.testing.assert_allclose(
        means.mean(1), energies, atol=5 * means.std(1).max() / num_chains**0.5
    )


def test_it_finds_the_weights_of_far_modes_where_plain_langevin_does_not():
    """Modes .2 and .8 at -+5, smoothed by each noise scale: exact scores."""

    def smoothed(noise_scale):
        def energy_fn(x):
            modes = jnp.array([-5.0, 5.0])
            squares = (x - modes) ** 2 / (0.05 + noise_scale**2)
            return -jax.nn.logsumexp(jnp.log(jnp.array([0.2, 0.8])) - 0.5 * squares)

        return energy_fn

    num_chains, levels = 4_000, jnp.geomspace(10.0, 0.1, 12)
    x = jax.random.uniform(jax.random.key(1), (num_chains,), minval=-8, maxval=8)

    def sampler(noise_scale):
        return samplers.langevin(step_size=0.1 * (0.05 + noise_scale**2))

    state, _ = samplers.sample_annealed(
        sampler, smoothed, levels, jax.random.key(0), x, 40
    )
    share = (state.position > 0).mean()
    # Annealing is not exact: the levels' weights lag behind by a few hundredths.
    assert 0.72 < share < 0.84
    plain, _ = samplers.sample_chains(
        sampler(0.1), smoothed(0.1), jax.random.key(0), x, 480
    )
    error = 5 * (0.25 / num_chains) ** 0.5
    np.testing.assert_allclose((plain.position > 0).mean(), 0.5, atol=error)


def test_numbers_do_not_depend_on_how_the_chains_are_laid_out():
    """Nor on the chains beside them; and one level is `sample_chains`."""
    x = jax.random.normal(jax.random.key(2), (3 * BLOCK + 5, 2))
    run = partial(
        samplers.sample_annealed,
        langevin,
        family(jnp.ones(2)),
        key=jax.random.key(0),
        num_steps_per_level=4,
    )
    levels = jnp.array([1.0, 0.5])
    state, infos = run(levels=levels, x=x)
    fewer, _ = run(levels=levels, x=x[:50])
    np.testing.assert_allclose(state.position[:50], fewer.position, rtol=1e-6)
    here = jax.device_put(x, jax.devices()[3])
    alone, same = run(levels=levels, x=here)
    np.testing.assert_allclose(state.position, alone.position, rtol=1e-6)
    np.testing.assert_allclose(infos.energy, same.energy, rtol=1e-5)
    one, _ = run(levels=levels[1:], x=x)
    chains, _ = samplers.sample_chains(
        samplers.langevin(step_size=0.05),
        partial(energy, jnp.ones(2), jnp.float32(0.5)),
        jax.random.key(0),
        x,
        4,
    )
    np.testing.assert_allclose(one.position, chains.position, rtol=1e-5, atol=1e-6)


def test_new_parameters_are_used_and_nothing_is_traced_again():
    traces = []

    def traced(params, noise_scale, x):
        traces.append(1)
        return energy(params, noise_scale, x)

    def bind(params, noise_scale):
        return partial(traced, params, noise_scale)

    ends, counts = [], []
    for mean in (0.0, 3.0):
        state, _ = samplers.sample_annealed(
            langevin,
            partial(bind, jnp.full(2, mean)),
            jnp.array([1.0, 0.5]),
            jax.random.key(0),
            jnp.zeros((20, 2)),
            10,
        )
        ends.append(state.position.mean())
        counts.append(len(traces))
    assert counts[0] == counts[1] <= 5 and ends[1] - ends[0] > 2


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, message",
    [
        ({"levels": jnp.zeros((0,))}, "levels must be arrays"),
        ({"levels": 1.0}, "levels must be arrays"),
        ({"num_steps_per_level": 0}, "num_steps_per_level must be a whole number"),
        ({"x": jnp.zeros(())}, "x must be floating-point"),
        ({"key": jax.random.PRNGKey(0)}, "key must be a typed key"),
    ],
)
def test_sample_annealed_names_what_is_wrong(options, message):
    arguments = {
        "make_sampler": langevin,
        "energy_fns": family(jnp.zeros(2)),
        "levels": jnp.ones(2),
        "key": jax.random.key(0),
        "x": jnp.zeros((4, 2)),
        "num_steps_per_level": 2,
    } | options
    with pytest.raises(ValueError, match=message):
        samplers.sample_annealed(**arguments)
