"""Baselines with a generator, and draws and chains of it, against numbers on paper."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ebmjax import networks
from ebmjax.networks.layer import batch_norm
from ebmjax.types import Network
from experiments.judge import generators

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.quick
def test_a_gan_s_losses_on_paper():
    """E = a x^2 / 2 and draws g z: mean softplus of both signs, by the batch's own."""
    objective = generators.gan_energy(
        lambda a, x: a * jnp.sum(x**2) / 2, lambda g, z: g * z, latent_dim=1
    )
    params = {"energy": 0.7, "generator": 0.0}  # every draw is 0, with energy 0
    batch = jnp.array([[1.0], [2.0]])
    value, aux = objective.loss(params, jax.random.key(0), batch, ())
    exact = np.mean(np.logaddexp(0, [0.35, 1.4])) + math.log(2)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["energy_data"], 0.875, rtol=1e-6)


def test_a_gan_s_generator_wants_to_be_taken_for_data():
    """Draws at 2 with E = .35 x^2: softplus(1.4), and its slope by the place."""
    objective = generators.gan_generator(
        lambda a, x: a * jnp.sum(x**2) / 2,
        lambda place, z: jnp.full(1, place),
        latent_dim=1,
    )
    params = {"energy": 0.7, "generator": 2.0}
    (value, _), slope = jax.value_and_grad(
        lambda p: objective.loss(p, jax.random.key(0), jnp.zeros((2, 1)), ()),
        has_aux=True,
    )(params)
    np.testing.assert_allclose(value, math.log1p(math.exp(1.4)), rtol=1e-6)
    exact = 1.4 / (1 + math.exp(-1.4))
    np.testing.assert_allclose(slope["generator"], exact, rtol=1e-6)
    assert slope["energy"] == 0


def test_wgan_gp_s_penalty_is_between_data_and_draws():
    """E = x^2 / 2 has the slope |x|, between 0 and 2 at 2 u: mean (2 u - 1)^2 = 1/3,
    where at the data it would be 1 and at the draws as well."""
    objective = generators.wgan_gp_energy(
        lambda a, x: a * jnp.sum(x**2) / 2,
        lambda place, z: jnp.full(1, place),
        latent_dim=1,
        gradient_penalty=10.0,
    )
    params = {"energy": 1.0, "generator": 2.0}
    value, _ = objective.loss(params, jax.random.key(0), jnp.zeros((4_000, 1)), ())
    deviation = (1 / 5 - 1 / 9) ** 0.5
    np.testing.assert_allclose(value, -2 + 10 / 3, atol=10 * 4 * deviation / 4_000**0.5)


def test_wgan_gp_s_penalty_wants_a_slope_of_one():
    """E = a . x has the slope |a| everywhere: 10 (|a| - 1)^2."""
    slope = jnp.array([3.0, 4.0])
    objective = generators.wgan_gp_energy(
        lambda a, x: jnp.sum(a * x),
        lambda g, z: g * z,
        latent_dim=2,
        gradient_penalty=10.0,
    )
    batch = jnp.ones((3, 2))
    params = {"energy": slope, "generator": 0.0}
    value, aux = objective.loss(params, jax.random.key(0), batch, ())
    np.testing.assert_allclose(value, 7 + 10 * 16, rtol=1e-5)
    gradient = jax.grad(lambda p: objective.loss(p, jax.random.key(0), batch, ())[0])(
        params
    )
    assert gradient["generator"] == 0


def test_a_generator_is_bound_by_its_running_statistics():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, z, train=False):
            return batch_norm(z, train)

    network = networks.from_module(Normalised(), (2,))
    params, state = network.init(jax.random.key(0))
    norm = state["batch_stats"]["BatchNorm_0"]
    norm |= {"mean": jnp.full(2, 3.0), "var": jnp.full(2, 4.0 - 1e-5)}
    generator_fn = generators.bind(network, params, state)
    np.testing.assert_allclose(generator_fn(jnp.array([5.0, 3.0])), [1, 0], atol=1e-6)
    plain = generators.bind(Network(None, lambda g, z: g * z), 2.0, None)
    assert plain(3.0) == 6


def test_draws_in_chunks_are_all_different():
    x = generators.draw(
        lambda z: 2 * z, jax.random.key(0), 5_000, latent_dim=2, chunk_size=700
    )
    assert x.shape == (5_000, 2) and len(np.unique(x)) > 9_990
    np.testing.assert_allclose(x.var(), 4, rtol=4 * (2 / 10_000) ** 0.5)


@pytest.mark.parametrize(
    "temperature, prior, visible_temperature", [(1.0, True, 1.0), (2.0, False, 0.5)]
)
def test_chains_and_their_control(temperature, prior, visible_temperature):
    """E = 2 |x|^2 of x = z: the latent's precision is 4 over the temperature, and 1
    more with the prior; in the control the prior's alone. In x it is 4 over its own."""
    section = ConfigDict(
        {
            "num_steps": 150,
            "step_size": 0.05,
            "temperature": temperature,
            "prior": prior,
            "visible_step_size": 0.02,
            "visible_temperature": visible_temperature,
        }
    )
    found = generators.sample(
        section,
        lambda x: 2 * jnp.sum(x**2),
        lambda z: z,
        jax.random.key(0),
        4_000,
        latent_dim=2,
    )
    error = 4 * (2 / 8_000) ** 0.5  # of a variance, relative
    latent = 1 / (4 / temperature + prior)
    variances = {
        "generator": 1.0,
        "latent": latent,
        # Unadjusted: T / (p (1 - h p / 2)) with p = 4.
        "visible": visible_temperature * 0.25 / (1 - 0.02 * 2),
        # Without the prior nothing holds it: a walk of 150 moves from where it was.
        "latent_without_energy": 1.0 if prior else 1 + 150 * 2 * 0.05,
    }
    for name, variance in variances.items():
        np.testing.assert_allclose(
            found.x[name].var(), variance, rtol=error + 0.01, err_msg=name
        )
    np.testing.assert_allclose(
        found.scalars["latent_mean_square"], latent, rtol=error + 0.01
    )
    assert 0.9 < found.scalars["latent_acceptance_rate"] < 1
