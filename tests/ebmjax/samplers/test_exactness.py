"""Every Metropolis sampler leaves its law as it is; broken ones fail the same test."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import check_normal

from ebmjax import energies, samplers
from ebmjax.samplers.hamiltonian import trajectory
from ebmjax.samplers.sampler import Sampler, metropolis, value_and_gradient

NUM_CHAINS, NUM_STEPS = 4_000, 25


def gaussian(dimension):
    """Precisions from 8 to 0.5 and a mean of 1."""
    precision = np.geomspace(8.0, 0.5, dimension).astype(np.float32)
    params = {"mean": jnp.ones(dimension), "precision": jnp.asarray(precision)}
    return partial(energies.gaussian, params), precision


def proposal(dimension):
    """Normal, wider than any of the target's directions by a tenth at least."""
    _, precision = gaussian(dimension)
    spread = jnp.asarray((1.0 + 1.0 / dimension) / precision**0.5)

    def sample(key):
        return 1.0 + spread * jax.random.normal(key, (dimension,))

    return sample, lambda x: -0.5 * jnp.sum(((x - 1.0) / spread) ** 2)


def exchange(dimension):
    return samplers.replica_exchange(
        lambda t: samplers.mala(step_size=0.2 * dimension**-0.33 * t, temperature=t),
        temperatures=1.0 * (1 + 1.5 / dimension**0.5) ** np.arange(3),
        swap_every=1,
    )


EXACT = {
    "mala": lambda d: samplers.mala(step_size=0.25 * d**-0.33),
    "hmc": lambda d: samplers.hmc(step_size=0.62 * d**-0.25, num_leapfrog=4),
    "hmc, one leapfrog": lambda d: samplers.hmc(
        step_size=0.65 * d**-0.2, num_leapfrog=1
    ),
    "hmc, random lengths and masses": lambda d: samplers.hmc(
        step_size=1.3 * d**-0.25,
        num_leapfrog=3,
        inverse_mass=0.7 / np.geomspace(9.0, 0.4, d),
        randomize_num_leapfrog=True,
    ),
    "independence": lambda d: samplers.independence(proposal=proposal(d)),
    "replica_exchange": exchange,
}


def check_law(sampler, dimension, num_chains=NUM_CHAINS):
    """Begun in equilibrium, nothing but an error of the move can show."""
    energy_fn, precision = gaussian(dimension)
    start_key, key = jax.random.split(jax.random.key(11))
    noise = jax.random.normal(start_key, (num_chains, dimension))
    x = 1.0 + noise / jnp.broadcast_to(precision**0.5, noise.shape)
    state, infos = samplers.sample_chains(
        sampler, energy_fn, key, x, NUM_STEPS, collect=None
    )
    check_normal(state.position, 1.0, 1 / precision)
    return state, infos


@pytest.mark.parametrize("dimension", [1, 10, 100])
@pytest.mark.parametrize("name", EXACT)
def test_the_law_of_a_gaussian_stays_what_it_is(name, dimension):
    state, infos = check_law(EXACT[name](dimension), dimension)
    rate = getattr(infos, "coldest", infos).acceptance_rate.mean()
    assert 0.2 < rate < 0.97, rate  # both branches were really taken
    if name == "replica_exchange":
        assert 0.1 < infos.num_swapped.mean() / infos.num_attempted.mean() < 0.9


@pytest.mark.parametrize("dimension", [1, 10, 100])
@pytest.mark.parametrize("name", ["langevin", "underdamped"])
def test_unadjusted_samplers_are_biased_in_every_direction_as_theory_says(
    name, dimension
):
    """Variances T / (p (1 - h p / 2)) and, at every stable step, T / p."""
    energy_fn, precision = gaussian(dimension)
    if name == "langevin":
        sampler, num_steps = samplers.langevin(step_size=0.1, temperature=2.0), 200
        variance = 2.0 / (precision * (1 - 0.05 * precision))
    else:
        sampler = samplers.underdamped(step_size=0.5, friction=1.5, temperature=2.0)
        variance, num_steps = 2.0 / precision, 60
    noise = jax.random.normal(jax.random.key(1), (NUM_CHAINS, dimension))
    x = 1.0 + noise * jnp.broadcast_to(jnp.float32(variance) ** 0.5, noise.shape)
    state, _ = samplers.sample_chains(
        sampler, energy_fn, jax.random.key(2), x, num_steps, collect=None
    )
    check_normal(state.position, 1.0, variance)


@pytest.mark.quick
def test_a_uniform_number_of_zero_accepts_nothing_bad(monkeypatch):
    """A uniform in [0, 1) is 0 once in 2^23, and its logarithm minus infinity."""
    zeros = lambda key, shape=(), dtype=jnp.float32, *bounds: jnp.zeros(shape, dtype)  # noqa: E731
    monkeypatch.setattr(jax.random, "uniform", zeros)
    for log_ratio, is_taken in ((-80.0, False), (-jnp.inf, False), (0.5, True)):
        state = samplers.HMCState(*map(jnp.float32, range(4)))
        proposed = samplers.HMCState(*map(jnp.float32, range(1, 5)))
        moved, _, is_accepted = metropolis(
            jax.random.key(0), jnp.float32(log_ratio), proposed, state
        )
        assert is_accepted == is_taken and moved.position == is_taken


def _broken_mala(error, step_size):
    """The same move with one published mistake."""

    def step(energy_fn, key, state):
        noise_key, accept_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, state.position.shape)
        x, energy, gradient = state
        y = x - step_size * gradient + (2 * step_size) ** 0.5 * noise
        proposed = samplers.MALAState(y, *value_and_gradient(energy_fn, y))
        ahead = y - x + step_size * gradient
        back = x - y + step_size * proposed.gradient
        power = 1 if error == "norm that is not squared" else 2
        ratio = energy - proposed.energy
        if error != "no proposal ratio":
            ratio += jnp.linalg.norm(ahead) ** power / (4 * step_size)
            ratio -= jnp.linalg.norm(back) ** power / (4 * step_size)
        is_accepted = jnp.log(jax.random.uniform(accept_key)) < ratio
        kept = jax.tree.map(
            lambda new, old: jnp.where(is_accepted, new, old), proposed, state
        )
        if error == "gradient of what was refused":
            kept = kept._replace(gradient=proposed.gradient)
        rate = jnp.exp(jnp.minimum(ratio, 0.0))
        norm = jnp.linalg.norm(kept.gradient)
        return kept, samplers.MALAInfo(kept.energy, norm, rate, is_accepted)

    return Sampler(samplers.mala(step_size=step_size).init, step)


@pytest.mark.parametrize("dimension, step_size", [(1, 0.15), (10, 0.19)])
@pytest.mark.parametrize(
    "error",
    [
        "no proposal ratio",
        "norm that is not squared",
        "gradient of what was refused",
    ],
)
def test_a_broken_sampler_fails_the_test_of_laws(error, dimension, step_size):
    """With ten times the chains; the same sampler without the error passes."""
    num_chains = 10 * NUM_CHAINS
    check_law(_broken_mala(None, step_size), dimension, num_chains)
    with pytest.raises(AssertionError):
        check_law(_broken_mala(error, step_size), dimension, num_chains)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda h: samplers.mala(step_size=h**2 / 2),
        lambda h: samplers.hmc(step_size=h, num_leapfrog=3),
        lambda h: samplers.hmc(
            step_size=h, num_leapfrog=3, randomize_num_leapfrog=True
        ),
    ],
    ids=["mala", "hmc", "hmc, random lengths"],
)
def test_acceptance_goes_to_one_with_the_step(make):
    """A refusal is of order h^3 (MALA in h, HMC h^2 of random sign): it falls by 4 at
    least as h halves, from moves that start in equilibrium."""
    energy_fn, precision = gaussian(10)
    noise = jax.random.normal(jax.random.key(0), (4_000, 10))
    x = 1.0 + noise / jnp.broadcast_to(precision**0.5, noise.shape)
    refused = []
    for h in (0.3, 0.15, 0.075):
        _, info = samplers.sample_chains(
            make(h), energy_fn, jax.random.key(1), x, 4, collect=None
        )
        refused.append(1 - float(info.acceptance_rate.mean()))
    assert refused[1] < refused[0] / 3.5 and refused[2] < refused[1] / 3.5, refused
    assert 0 < refused[2] < 0.01


# --- a generator's latent space -------------------------------------------------------

WEIGHT = np.array([[1.0, 0.5], [-0.3, 0.8], [0.6, -0.4]])
SHIFT, CENTER = np.array([0.2, -0.1, 0.4]), np.array([0.5, 0.3, -0.2])
PRECISION = np.array([2.0, 1.0, 3.0])
PRIOR = (lambda key: jax.random.normal(key, (2,)), lambda z: -0.5 * jnp.sum(z**2))


def _check_posterior(sampler, temperature, prior=True):
    """Of G(z) = W z + b and E(x) = (x - m) . L (x - m) / 2, with the standard normal
    prior: precision I + W'LW / T, mean its inverse times W'L(m - b) / T."""
    energy_fn = partial(
        energies.gaussian,
        {"mean": jnp.float32(CENTER), "precision": jnp.float32(PRECISION)},
    )
    generator_fn = lambda z: jnp.float32(WEIGHT) @ z + jnp.float32(SHIFT)  # noqa: E731
    latent = energies.latent_energy(energy_fn, generator_fn, temperature, prior)
    start_key, key = jax.random.split(jax.random.key(2))
    state, infos = samplers.sample_chains(
        sampler, latent, key, jax.random.normal(start_key, (NUM_CHAINS, 2)), 60
    )
    pull = WEIGHT.T * PRECISION / temperature
    precision = np.eye(2) + pull @ WEIGHT
    mean = np.linalg.solve(precision, pull @ (CENTER - SHIFT))
    root = np.linalg.cholesky(precision)  # z = mean + root'^-1 n
    check_normal((np.asarray(state.position) - mean) @ root, 0.0, 1.0)
    return infos


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(
    "sampler",
    [
        samplers.mala(step_size=0.15),
        samplers.hmc(step_size=0.5, num_leapfrog=3, randomize_num_leapfrog=True),
        samplers.independence(proposal=PRIOR),
    ],
    ids=["mala", "hmc", "independence"],
)
def test_the_posterior_of_a_latent_is_sampled_with_its_prior(sampler, temperature):
    infos = _check_posterior(sampler, temperature)
    assert 0.1 < infos.is_accepted.mean() < 0.99


def test_without_the_prior_a_latent_has_another_law():
    with pytest.raises(AssertionError):
        _check_posterior(samplers.mala(step_size=0.15), 4.0, prior=False)


# --- integrators ---------------------------------------------------------------------


def anharmonic(x):
    return jnp.sum(x**4 / 4 + jnp.cos(2 * x)) + 0.3 * x[0] * x[1]


def _leapfrogs(x, momentum, step_size, num_leapfrog, inverse_mass=1.0):
    gradient = jax.grad(anharmonic)(x)
    return trajectory(
        anharmonic, x, momentum, gradient, step_size, inverse_mass, num_leapfrog
    )


@pytest.mark.parametrize("num_leapfrog", [1, 2, 25])
def test_a_trajectory_turned_round_leads_back(num_leapfrog):
    with jax.enable_x64(True):
        x, p = jnp.array([0.3, -1.1, 0.7]), jnp.array([1.0, 0.4, -0.8])
        mass = jnp.array([0.5, 1.0, 2.0])
        y, q, _, _ = _leapfrogs(x, p, 0.1, num_leapfrog, mass)
        assert np.abs(y - x).max() > 0.02
        back, turned, energy, gradient = _leapfrogs(y, -q, 0.1, num_leapfrog, mass)
        np.testing.assert_allclose(back, x, atol=1e-13)
        np.testing.assert_allclose(turned, -p, atol=1e-13)
        np.testing.assert_allclose(energy, anharmonic(x), rtol=1e-13)
        np.testing.assert_allclose(gradient, jax.grad(anharmonic)(x), atol=1e-12)


def test_a_trajectory_keeps_volume():
    """The determinant of its Jacobian in position and momentum is one."""
    with jax.enable_x64(True):

        def flow(z):
            y, q, _, _ = _leapfrogs(z[:3], z[3:], 0.2, 7)
            return jnp.concatenate([y, q])

        jacobian = jax.jacfwd(flow)(jnp.array([0.3, -1.1, 0.7, 1.0, 0.4, -0.8]))
        np.testing.assert_allclose(np.linalg.det(jacobian), 1.0, rtol=1e-11)
        assert np.abs(jacobian - np.eye(6)).max() > 0.5


def test_the_energy_error_of_a_trajectory_is_of_second_order():
    """Over one fixed time: four times less for half the step."""
    with jax.enable_x64(True):
        x, p = jnp.array([0.3, -1.1, 0.7]), jnp.array([1.0, 0.4, -0.8])
        before = anharmonic(x) + 0.5 * jnp.sum(p**2)
        errors = []
        for num_leapfrog in (20, 40, 80):
            _, q, energy, _ = _leapfrogs(x, p, 2.0 / num_leapfrog, num_leapfrog)
            errors.append(float(energy + 0.5 * jnp.sum(q**2) - before))
        ratios = np.array(errors[:-1]) / errors[1:]
        np.testing.assert_allclose(ratios, 4.0, rtol=0.05)  # h^4 terms: (0.1)^2 x O(5)
