"""Independence Metropolis-Hastings against importance ratios in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cases import STANDARD

from ebmjax import samplers


def _normal(scale, shape=()):
    def sample(key):
        return scale * jax.random.normal(key, shape)

    return sample, lambda x: -0.5 * jnp.sum((x / scale) ** 2)


@pytest.mark.parametrize("scale", [1.0, 1.5, 3.0])
def test_it_accepts_as_theory_says(scale):
    """In equilibrium the ratio is exp(-c (y^2 - x^2) / 2), c = 1 - 1 / s^2, of
    x ~ N(0, 1) and y ~ N(0, s^2): a refusal comes as often as an x^2 < y^2 draw of the
    swapped pair, twice the probability that s |n| < |n'|, (4 / pi) atan(1 / s)."""
    sampler = samplers.independence(proposal=_normal(scale))
    x = jax.random.normal(jax.random.key(0), (20_000,))
    state, info = samplers.sample_chains(sampler, STANDARD, jax.random.key(1), x, 5)
    rates = np.asarray(info.acceptance_rate.mean(0))
    expected = 4 / np.pi * np.arctan(1 / scale)
    np.testing.assert_allclose(
        rates.mean(), expected, atol=5 * rates.std() / 20_000**0.5 + 1e-6
    )
    assert scipy.stats.kstest(np.asarray(state.position), "norm").pvalue > 1e-4


def test_it_forgets_its_start_and_crosses_any_barrier():
    """A mixture with weights .2 and .8 and nothing between: all chains begin in one."""

    def energy_fn(x):
        modes = jnp.array([-8.0, 8.0])
        return -jax.nn.logsumexp(
            jnp.log(jnp.array([0.2, 0.8])) - 0.5 * (x - modes) ** 2
        )

    sampler = samplers.independence(proposal=_normal(8.0))
    x = jnp.full(4_000, -8.0)
    state, _ = samplers.sample_chains(sampler, energy_fn, jax.random.key(2), x, 150)
    share = (state.position > 0).mean()
    np.testing.assert_allclose(share, 0.8, atol=5 * (0.16 / 4_000) ** 0.5)


def test_temperature_divides_the_energy():
    sampler = samplers.independence(proposal=_normal(2.0), temperature=2.5)
    x = 2.5**0.5 * jax.random.normal(jax.random.key(0), (10_000,))
    state, info = samplers.sample_chains(sampler, STANDARD, jax.random.key(1), x, 20)
    np.testing.assert_allclose(state.position.var(), 2.5, rtol=5 * (2 / 10_000) ** 0.5)
    assert info.is_accepted.mean() < 0.9


def test_a_nan_is_refused_and_shown():
    energy_fn = lambda x: jnp.where(jnp.abs(x) < 1, 0.0, jnp.nan)  # noqa: E731
    sampler = samplers.independence(proposal=_normal(2.0))
    state, info = samplers.sample_chains(
        sampler, energy_fn, jax.random.key(0), jnp.zeros(500), 5
    )
    assert (jnp.abs(state.position) < 1).all()
    assert jnp.isnan(info.acceptance_rate).any()
    assert (~info.is_accepted[jnp.isnan(info.acceptance_rate)]).all()


@pytest.mark.quick
def test_a_proposal_of_another_shape_is_named():
    sampler = samplers.independence(proposal=_normal(1.0, (3,)))
    with pytest.raises(ValueError, match=r"chain's shape \(2,\), got \(3,\)"):
        samplers.sample_chains(
            sampler, STANDARD, jax.random.key(0), jnp.zeros((4, 2)), 1
        )
    with pytest.raises(ValueError, match="temperature must be positive"):
        samplers.independence(proposal=_normal(1.0), temperature=0.0)
