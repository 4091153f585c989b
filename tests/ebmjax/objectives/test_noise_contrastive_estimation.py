"""Noise contrastive estimation and flips: optima, efficiencies, limits in numbers."""

import inspect
import itertools
import math
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expectations import expected, normal_nodes

from ebmjax import energies, objectives

HALF_LOG = 0.5 * math.log(2 * math.pi)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(a, x):
    return 0.5 * a * x**2


def test_the_example_of_a_noise_distribution_runs_and_has_the_value_it_says():
    module = inspect.getmodule(objectives.noise_contrastive)
    _, _, text = inspect.getsource(module).partition("\nNoiseDistribution = ")
    _, first, rest = text.split('"""')[1].partition("    import jax\n")
    found = {}
    exec(textwrap.dedent(first + rest), found)
    np.testing.assert_allclose(found["loss"], 2 * math.log(2), rtol=1e-6)
    sample, log_prob = found["noise_distribution"]
    assert sample(found["key"]).shape == found["batch"].shape[1:]
    np.testing.assert_allclose(log_prob(jnp.zeros(2)), -2 * HALF_LOG, rtol=1e-6)


def pair_losses(make, params, data, noise):
    """Losses `[x, y]` of every example x beside every noise y, of their nodes."""

    def one(x, y):
        return make(y).loss(params, jax.random.key(0), x[None], ())[0]

    rows = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return rows(jnp.asarray(data[0]), jnp.asarray(noise[0]))


def contrast(variance, num_noise=1):
    """NCE whose noise is the number that it is handed."""

    def log_prob(x):
        return -0.5 * x**2 / variance - HALF_LOG - 0.5 * math.log(variance)

    def make(y):
        return objectives.noise_contrastive(
            quadratic, noise_distribution=(lambda key: y, log_prob), num_noise=num_noise
        )

    return make


@pytest.mark.parametrize("variance, num_noise", [(1.0, 1), (2.0, 1), (4.0, 3)])
def test_nce_finds_the_energy_and_its_log_partition(variance, num_noise):
    """Data N(0, 1): a = 1 and c = log(2 pi) / 2, whatever the noise."""
    data, noise = normal_nodes(), normal_nodes(variance=variance)

    def mean_loss(a, c):
        params = {"energy": a, "log_partition": c}
        losses = pair_losses(contrast(variance, num_noise), params, data, noise)
        return data[1] @ losses @ noise[1]

    gradient = jax.grad(mean_loss, (0, 1))(1.0, HALF_LOG)
    # 80 nodes resolve the sigmoid of a wide noise to 1e-7.
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    if variance == 1.0:
        np.testing.assert_allclose(
            mean_loss(1.0, HALF_LOG), 2 * math.log(2), rtol=1e-12
        )


def test_nce_finds_what_the_energy_of_mixed_sources_leaves_out():
    """Logistic sources over b: log Z is -log b, for the energy has no Jacobian."""
    unmixing, variance = 1.5, 4.0
    # The trapezoidal rule is exact to rounding for smooth integrands that vanish.
    x = np.linspace(-30, 30, 601)
    source = unmixing * x
    data = x, 0.1 * unmixing * 0.25 / np.cosh(source / 2) ** 2
    noise = x, 0.1 * np.exp(-0.5 * x**2 / variance) / math.sqrt(2 * math.pi * variance)

    def log_prob(x):
        return -0.5 * jnp.sum(x**2) / variance - HALF_LOG - 0.5 * math.log(variance)

    def make(y):
        return objectives.noise_contrastive(
            energies.ica, noise_distribution=(lambda key: y, log_prob)
        )

    @jax.jit
    def gradient(b, c):
        def mean_loss(b, c):
            params = {"energy": {"unmixing": b.reshape(1, 1)}, "log_partition": c}
            rows = (data[0][:, None], data[1]), (noise[0][:, None], noise[1])
            losses = pair_losses(make, params, *rows)
            return data[1] @ losses @ noise[1]

        return jnp.stack(jax.grad(mean_loss, (0, 1))(b, c))

    at = -math.log(unmixing)
    np.testing.assert_allclose(gradient(unmixing, at), 0.0, atol=1e-10)
    assert np.abs(gradient(unmixing, at + 0.1)).min() > 1e-3


@pytest.mark.parametrize(
    "variance, num_noise, expected_variances",
    [
        (1.0, 1, (4.0, 1.0)),
        (2.0, 1, (3.0042, 1.2606)),
        (4.0, 1, (2.9953, 1.8153)),
        (1.0, 10, (2.2, 0.55)),
        (2.0, 10, (2.1132, 0.5818)),
        (4.0, 10, (2.1219, 0.6450)),
        (1.0, 1000, (2.002, 0.5005)),
    ],
)
def test_nce_has_the_variance_of_theory(variance, num_noise, expected_variances):
    """Inverse Hessian, covariance of the gradient, inverse Hessian. Of so much noise
    the draws are independent, and all are one node here: the covariance of what it
    alone does is divided by their number. Maximum likelihood has 2 for the
    precision."""
    data, noise = normal_nodes(), normal_nodes(variance=variance)
    weights = np.outer(data[1], noise[1])

    def losses(theta):
        params = {"energy": theta[0], "log_partition": theta[1]}
        return pair_losses(contrast(variance, num_noise), params, data, noise)

    truth = jnp.array([1.0, HALF_LOG])
    gradients = jax.jacfwd(losses)(truth)
    hessian = jax.hessian(lambda theta: jnp.sum(weights * losses(theta)))(truth)
    of_data = jnp.einsum("y,xyi->xi", noise[1], gradients)
    of_noise = jnp.einsum("x,xyi->yi", data[1], gradients)
    # Both have the mean 0: at the truth, that of all gradients.
    mean = jnp.einsum("xy,xyi->i", weights, gradients)
    np.testing.assert_allclose(mean, 0.0, atol=1e-6)
    covariance = jnp.einsum("x,xi,xj->ij", data[1], of_data, of_data)
    covariance += jnp.einsum("y,yi,yj->ij", noise[1], of_noise, of_noise) / num_noise
    inverse = np.linalg.inv(hessian)
    found = np.diag(inverse @ covariance @ inverse)
    np.testing.assert_allclose(found, expected_variances, rtol=2e-4)


def test_every_noise_is_a_draw_of_its_own():
    """An energy that is a table, of 10,000 numbers: the gradient is not 0 where one was
    looked up. Of 40 draws two are the same with a chance of one in 13."""

    def draw(key):
        return jax.random.randint(key, (), 0, 10_000).astype(float)

    def energy(table, x):
        return table[x.astype(int)]

    objectives_of_table = {
        "noise": objectives.noise_contrastive(
            energy, noise_distribution=(draw, lambda x: 0.0 * x), num_noise=20
        ),
        "itself": objectives.self_contrastive(
            energy, sample=lambda params, key: draw(key), num_noise=20
        ),
    }
    for objective in objectives_of_table.values():

        def loss(table, objective=objective):
            params = {"energy": table, "log_partition": jnp.array(0.0)}
            return objective.loss(params, jax.random.key(0), jnp.zeros(2), ())[0]

        slope = jax.grad(loss)(jnp.zeros(10_000))
        assert np.sum(np.asarray(slope)[1:] != 0) >= 39


def test_nce_draws_as_much_noise_as_it_says_and_counts_it_once():
    """Log odds of zero but for the count: softplus(log n) + n softplus(-log n)."""
    objective = objectives.noise_contrastive(
        lambda params, x: 0.0 * x,
        noise_distribution=(jax.random.normal, lambda x: 0.0 * x),
        num_noise=5,
    )
    params = {"energy": {}, "log_partition": jnp.array(0.0)}
    value, aux = objective.loss(params, jax.random.key(0), jnp.zeros(3), ())
    log = math.log(5)
    exact = math.log1p(math.exp(log)) + 5 * math.log1p(math.exp(-log))
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    assert aux.metrics["accuracy_data"] == 0 and aux.metrics["accuracy_noise"] == 1


@pytest.mark.parametrize("num_noise", [1, 4])
def test_with_itself_as_noise_it_is_a_share_of_maximum_likelihood(num_noise):
    """Data of variance 1.5, a = .9: maximum likelihood's gradient is 1.5 / 2 - 1 / 1.8;
    the noise and its density do not move with a."""
    a, data = 0.9, normal_nodes(variance=1.5)
    noise = normal_nodes(variance=1 / a)

    def mean_loss(a):
        def make(y):
            return objectives.self_contrastive(
                quadratic, sample=lambda params, key: y, num_noise=num_noise
            )

        losses = pair_losses(make, {"energy": a}, data, noise)
        return data[1] @ losses @ noise[1]

    exact = (0.75 - 1 / 1.8) * num_noise / (1 + num_noise)
    np.testing.assert_allclose(jax.grad(mean_loss)(a), exact, rtol=1e-9)


def test_the_model_s_own_draws_are_held_fixed():
    """Draws that are a function of the parameters: no gradient runs through them."""
    objective = objectives.self_contrastive(
        quadratic, sample=lambda params, key: 1 / params
    )

    def value(a):
        return objective.loss({"energy": a}, jax.random.key(0), jnp.ones(1), ())[0]

    # (1 - 1 / a^2) / 4 at a = 2: half of E's derivatives at data 1 and noise 1 / 2.
    np.testing.assert_allclose(jax.grad(value)(2.0), (1 - 0.25) / 4, rtol=1e-12)


def test_conditional_nce_is_score_matching_for_small_noise(monkeypatch):
    """E = .3 x^4 / 4, standard normal data: (loss - log 2) / (s^2 / 4) is -.24917 at
    s = .1 and -.22829 at .03, towards 7.5 .09 - .9 = -.225."""

    def scaled(scale):
        objective = objectives.conditional_noise_contrastive(
            lambda theta, x: theta * x**4 / 4, noise_scale=scale
        )
        mean = expected(monkeypatch, objective, {"energy": 0.3}, normal_nodes())
        return (mean - math.log(2)) / (scale**2 / 4)

    np.testing.assert_allclose(scaled(0.1), -0.24917, atol=6e-6)
    np.testing.assert_allclose(scaled(0.03), -0.22829, atol=6e-6)


# --- two values

COUPLINGS = np.array([0.4, -0.7, 0.2])


def ising(couplings, spins):
    first, second, third = spins
    pairs = jnp.stack([first * second, first * third, second * third])
    return -jnp.sum(couplings * pairs)


def states(values):
    return np.array(list(itertools.product(values, repeat=3)), float)


def ising_mean_loss(objective, values=(-1.0, 1.0)):
    """Over all eight states with the probabilities of the true couplings."""
    spins = states((-1.0, 1.0))
    weights = np.exp([-ising(COUPLINGS, s) for s in spins])
    weights = jnp.asarray(weights / weights.sum())
    batch = jnp.asarray(states(values))

    def mean_loss(couplings):
        params = {"energy": couplings}
        one = jax.vmap(
            lambda x: objective.loss(params, jax.random.key(0), x[None], ())[0]
        )
        return weights @ one(batch)

    return mean_loss


@pytest.mark.parametrize("name", ["minimum_probability_flow", "ratio_matching"])
def test_three_spins_have_their_couplings_back(name):
    objective = getattr(objectives, name)(ising, values=(-1.0, 1.0))
    mean_loss = ising_mean_loss(objective)
    np.testing.assert_allclose(jax.grad(mean_loss)(COUPLINGS), 0.0, atol=1e-12)
    assert np.linalg.eigvalsh(jax.hessian(mean_loss)(COUPLINGS)).min() > 0.1
    if name == "minimum_probability_flow":
        np.testing.assert_allclose(mean_loss(COUPLINGS), 2.5399188, atol=5.1e-8)
    # The same with bits, 0 for -1.
    bits = getattr(objectives, name)(lambda c, x: ising(c, 2 * x - 1))
    np.testing.assert_allclose(
        ising_mean_loss(bits, (0.0, 1.0))(0.5 * COUPLINGS), mean_loss(0.5 * COUPLINGS)
    )


def test_ratio_matching_is_the_squared_miss_of_every_conditional():
    """One spin in a field h: p(up) = 1 / (1 + exp(-2 h))."""
    field = lambda h, x: -h * jnp.sum(x)  # noqa: E731
    objective = objectives.ratio_matching(field, values=(-1.0, 1.0))
    value, aux = objective.loss(
        {"energy": 0.7}, jax.random.key(0), jnp.array([[1.0], [-1.0]]), ()
    )
    up = 1 / (1 + math.exp(-1.4))
    np.testing.assert_allclose(value, ((1 - up) ** 2 + up**2) / 2, rtol=1e-12)
    np.testing.assert_allclose(aux.metrics["conditional_prob"], 0.5, rtol=1e-12)


# --- what is refused


@pytest.mark.quick
@pytest.mark.parametrize(
    "make, options, message",
    [
        (
            "noise_contrastive",
            {"noise_distribution": (None, None), "num_noise": 0},
            "num_noise must be a whole number of at least 1, got 0",
        ),
        ("self_contrastive", {"sample": None, "num_noise": 1.5}, "num_noise must.*1.5"),
        (
            "conditional_noise_contrastive",
            {"noise_scale": 0},
            "noise_scale must.*got 0",
        ),
        ("ratio_matching", {"values": (1, 1)}, r"values must be two.*\(1, 1\)"),
        ("minimum_probability_flow", {"values": (0, 0)}, r"values must be two.*\(0, 0"),
    ],
)
def test_bad_options_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(objectives, make)(quadratic, **options)
