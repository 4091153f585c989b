"""Replica exchange: mode weights that one chain cannot find, every level exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import STANDARD

from ebmjax import energies, samplers

MIXTURE = partial(
    energies.gaussian_mixture,
    {
        "means": jnp.array([[-3.0, 0.0], [3.0, 0.0]]),
        "precisions": jnp.array([4.0, 4.0]),
        "log_weights": jnp.log(jnp.array([0.3, 0.7])),
    },
)
LADDER = tuple(2.2**i for i in range(5))


def make(kind):
    if kind == "mala":
        return lambda t: samplers.mala(step_size=0.2, temperature=t)
    if kind == "hmc":
        return lambda t: samplers.hmc(step_size=0.3, num_leapfrog=3, temperature=t)
    # Without a Metropolis step: a small one, for a small bias.
    return lambda t: samplers.underdamped(step_size=0.3, friction=1.0, temperature=t)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, num_steps", [("mala", 400), ("hmc", 400), ("underdamped", 2_000)]
)
def test_it_finds_the_weights_of_modes_that_one_temperature_does_not(kind, num_steps):
    """All chains begin in the lighter mode."""
    num_chains = 2_000
    x = jnp.broadcast_to(jnp.array([-3.0, 0.0]), (num_chains, 2))
    alone, _ = samplers.sample_chains(
        make(kind)(1.0), MIXTURE, jax.random.key(0), x, 300
    )
    assert (alone.position[:, 0] > 0).mean() < 0.05
    sampler = samplers.replica_exchange(make(kind), temperatures=LADDER, swap_every=2)
    state, infos = samplers.sample_chains(
        sampler, MIXTURE, jax.random.key(1), x, num_steps, collect=None
    )
    share = (state.position[:, 0] > 0).mean()
    np.testing.assert_allclose(share, 0.7, atol=5 * (0.21 / num_chains) ** 0.5)
    # Every mode has its own width, too: 1/4 in each direction.
    np.testing.assert_allclose(
        state.position[:, 1].var(), 0.25, rtol=5 * (2 / num_chains) ** 0.5
    )
    np.testing.assert_allclose(state.position, state.replicas.position[:, 0])
    rate = infos.num_swapped.mean() / infos.num_attempted.mean()
    assert 0.15 < rate < 0.85


def test_every_level_has_its_own_law_and_momenta_stay_with_their_temperature():
    """On x^2 / 2 a level's variance is its temperature, and of its momentum
    T / (1 - h^2 / 4) after a move: swapped momenta would be mixtures."""
    num_chains, temperatures = 10_000, (4.0, 1.0, 2.0)  # in any order
    sampler = samplers.replica_exchange(
        make("underdamped"), temperatures=temperatures, swap_every=1
    )
    state, _ = samplers.sample_chains(
        sampler, STANDARD, jax.random.key(0), jnp.zeros(num_chains), 150
    )
    error = 5 * (2 / num_chains) ** 0.5
    expected = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(state.replicas.position.var(0), expected, rtol=error)
    np.testing.assert_allclose(
        state.replicas.momentum.var(0), expected / (1 - 0.3**2 / 4), rtol=error
    )


def test_swaps_are_accepted_as_theory_says():
    """Two levels of x^2 / 2, T = 1 and 4: (1 - 1/4) (x1^2 - x2^2) / 2 > log u, for
    x1 ~ N(0, 1), x2 ~ N(0, 4): twice the probability that 2 |n2| < |n1|,
    (4 / pi) atan(1 / 2), at every second move of an even-odd turn."""
    sampler = samplers.replica_exchange(
        lambda t: samplers.independence(
            proposal=(
                lambda key: jnp.sqrt(t) * jax.random.normal(key),
                lambda x: -0.5 * x**2 / t,
            ),
            temperature=t,
        ),
        temperatures=(1.0, 4.0),
        swap_every=3,
    )
    state, infos = samplers.sample_chains(
        sampler, STANDARD, jax.random.key(0), jnp.zeros(5_000), 120, num_burn_in=60
    )
    attempted = np.asarray(infos.num_attempted)
    assert (attempted == attempted[:, :1]).all()
    # Moves 3, 9, 15, ... of the run: one pair, tried at every second turn.
    np.testing.assert_array_equal(np.flatnonzero(attempted[:, 0]), range(2, 60, 6))
    rates = np.asarray(infos.num_swapped).sum(0) / attempted.sum(0)
    expected = 4 / np.pi * np.arctan(0.5)
    np.testing.assert_allclose(
        rates.mean(), expected, atol=5 * rates.std() / 5_000**0.5
    )


def test_what_the_replicas_cache_moves_with_their_places():
    sampler = samplers.replica_exchange(make("mala"), temperatures=LADDER, swap_every=1)
    x = jax.random.normal(jax.random.key(3), (200, 2))
    state, infos = samplers.sample_chains(sampler, MIXTURE, jax.random.key(0), x, 7)
    assert infos.num_swapped.sum() > 200
    value_and_gradient = jax.vmap(jax.vmap(jax.value_and_grad(MIXTURE)))
    energy, gradient = value_and_gradient(state.replicas.position)
    np.testing.assert_allclose(state.replicas.energy, energy, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.replicas.gradient, gradient, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(infos.energy[-1], energy[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperatures": (1.0,)}, "temperatures must be at least two different"),
        ({"temperatures": (1.0, 1.0)}, "temperatures must be at least two different"),
        ({"temperatures": (0.0, 1.0)}, "temperatures must be.*positive"),
        ({"swap_every": 0}, "swap_every must be a whole number of at least 1, got 0"),
        (
            {"make_sampler": lambda t: samplers.mala(step_size=1.0 - t)},
            "step_size must be positive",
        ),
    ],
)
def test_replica_exchange_names_what_is_wrong(options, message):
    arguments = {
        "make_sampler": make("mala"),
        "temperatures": (1.0, 2.0),
        "swap_every": 1,
    } | options
    with pytest.raises(ValueError, match=message):
        samplers.replica_exchange(arguments.pop("make_sampler"), **arguments)
