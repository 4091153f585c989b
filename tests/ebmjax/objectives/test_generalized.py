"""Generalised energy-based models: KALE in numbers, whose gradient goes where."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from ebmjax import energies, networks, samplers
from ebmjax.objectives import generalized
from ebmjax.types import DEVICE

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def shifted(base, z):
    """The latent, moved."""
    return z + base


def linear(slope, x):
    return jnp.sum(slope * x)


def quadratic(params, x):
    """A normal's energy and a constant."""
    return 0.5 * params["precision"] * jnp.sum((x - params["mean"]) ** 2)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@functools.partial(jax.jit, static_argnums=0)
def value_of(objective, params, batch, key=None):
    return objective.loss(params, jax.random.key(0) if key is None else key, batch, ())


@functools.partial(jax.jit, static_argnums=0)
def slopes_of(objective, params, batch):
    """Returns `((value, aux), gradient)`."""
    of_params = functools.partial(value_of, objective)
    return jax.value_and_grad(of_params, has_aux=True)(params, batch)


def energy_objective(energy=linear, base=shifted, **options):
    return generalized.energy_objective(
        energy, base, **({"latent_dim": batch_dim(options)} | options)
    )


def batch_dim(options):
    return options.pop("dim", 1)


def estimate(objective, params, key, draw, num=200, size=2_000):
    """Mean metrics over many batches, and their standard errors."""

    def one(key):
        data_key, loss_key = jax.random.split(key)
        _, aux = objective.loss(params, loss_key, draw(data_key, size), ())
        return aux.metrics

    found = jax.jit(functools.partial(jax.lax.map, one))(jax.random.split(key, num))
    found = jax.tree.map(np.asarray, found)
    return {k: (float(v.mean()), float(v.std()) / num**0.5) for k, v in found.items()}


@pytest.mark.parametrize("estimator", ["kale", "donsker_varadhan"])
def test_kale_of_normals_at_the_best_energy_is_their_divergence(estimator):
    """T1. P = N(.5, .8), B = N(0, 1): E* = log b - log p, c* = 0, F = KL(P || B); and
    with E* + k the best c is -k, of the same value."""
    mean, variance, constant = 0.5, 0.8, 1.7

    def best(shift, x):
        log_ratio = 0.5 * x**2 - 0.5 * (x - mean) ** 2 / variance
        return jnp.sum(-log_ratio + 0.5 * math.log(variance)) + shift

    exact = 0.5 * (variance + mean**2 - 1 - math.log(variance))
    objective = energy_objective(best, estimator=estimator)
    for shift, c in ((0.0, 0.0), (constant, -constant)):
        params = {
            "energy": shift,
            "base": 0.0,
            "log_partition": jnp.asarray(c),
        }
        found = estimate(
            objective,
            params,
            jax.random.key(1),
            lambda key, num: mean + variance**0.5 * jax.random.normal(key, (num, 1)),
        )
        # The batch's own logarithm is biased by half the relative variance of exp(-E)
        # over the batch: less than .001 here.
        value, error = found["kale"]
        np.testing.assert_allclose(value, exact, atol=4 * error + 1e-3)
        np.testing.assert_allclose(
            found["mass"][0], 1.0, atol=4 * found["mass"][1] + 1e-6
        )
        np.testing.assert_allclose(
            found["log_partition"][0], -shift, atol=4 * found["log_partition"][1] + 1e-3
        )


def test_kale_of_normals_in_three_dimensions_with_correlations():
    """T1: half of tr(S0^-1 S1) + d' S0^-1 d - 3 + log det S0 / det S1."""
    rng = np.random.default_rng(0)
    roots = [np.eye(3) + 0.15 * rng.normal(size=(3, 3)) for _ in range(2)]
    means = [0.2 * rng.normal(size=3) for _ in range(2)]
    (root_0, root_1), (mean_0, mean_1) = roots, means
    s_0, s_1 = (root @ root.T for root in roots)
    shift, inverse = mean_1 - mean_0, np.linalg.inv(s_0)
    exact = 0.5 * (
        np.trace(inverse @ s_1)
        + shift @ inverse @ shift
        - 3
        + np.log(np.linalg.det(s_0) / np.linalg.det(s_1))
    )

    def log_normal(x, mean, covariance):
        return jax.scipy.stats.multivariate_normal.logpdf(x, mean, covariance)

    objective = generalized.energy_objective(
        lambda _, x: log_normal(x, mean_0, s_0) - log_normal(x, mean_1, s_1),
        lambda _, z: mean_0 + jnp.asarray(root_0, z.dtype) @ z,
        latent_dim=3,
    )
    found = estimate(
        objective,
        {"energy": 0.0, "base": 0.0, "log_partition": jnp.zeros(())},
        jax.random.key(1),
        lambda key, num: (
            mean_1[None] + jax.random.normal(key, (num, 3)) @ jnp.asarray(root_1.T)
        ),
    )
    assert exact > 0.1
    for name, value in (("kale", exact), ("mass", 1.0)):
        mean, error = found[name]
        np.testing.assert_allclose(mean, value, atol=4 * error + 1e-5)


def test_linear_energies_see_the_means_alone():
    """T2. P = N(m1, S1), B = N(0, S0): the best slope is -S0^-1 m1, KALE half of m1
    S0^-1 m1, whatever S1; trained to it."""
    mean, spread = jnp.array([1.0, -0.5]), jnp.array([1.0, 2.0])
    objective = generalized.energy_objective(
        linear, lambda base, z: base * z, latent_dim=2, num_draws=4
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 1_500))

    def update(carry, key):
        params, opt_state = carry
        data_key, loss_key = jax.random.split(key)
        batch = mean[None] + 0.3 * jax.random.normal(data_key, (1_000, 2))

        def loss(trained):
            return objective.loss(trained | {"base": spread}, loss_key, batch, ())

        slope, aux = jax.grad(loss, has_aux=True)(params)
        move, opt_state = optimizer.update(slope, opt_state)
        return (optax.apply_updates(params, move), opt_state), aux.metrics["kale"]

    params = {"energy": jnp.zeros(2), "log_partition": jnp.zeros(())}
    carry = params, optimizer.init(params)
    (params, _), history = jax.lax.scan(update, carry, jax.random.split(KEY, 1_500))
    best = -mean / spread**2
    np.testing.assert_allclose(params["energy"], best, atol=0.02)
    exact = 0.5 * float(jnp.sum(mean**2 / spread**2))
    # A = a^2 S0 / 2 = KALE here; c has learned it.
    np.testing.assert_allclose(params["log_partition"], exact, atol=0.02)
    np.testing.assert_allclose(history[-300:].mean(), exact, atol=0.02)


@pytest.mark.usefixtures("float64")
def test_the_bound_s_gap_and_both_gradients_of_the_constant():
    """T6, on a batch: L - F = exp d - 1 - d with d = A - c; dF/dc = exp d - 1; the
    transformed gradient of the loss is exp(-d) - 1; of no effect on the value."""
    batch = normal(2, 50, 1)
    base = {"energy": 0.6, "base": 0.3}
    for c in (-3.0, 0.1, 2.0):
        found = {}
        for transforms in (True, False):
            objective = energy_objective(transforms_log_partition=transforms)
            params = base | {"log_partition": c}
            (value, _), slope = slopes_of(objective, params, batch)
            found[transforms] = value, slope["log_partition"]
        _, aux = value_of(
            energy_objective(), base | {"log_partition": jnp.asarray(c)}, batch
        )
        log_mean = float(aux.metrics["log_partition"])
        likelihood = -float(aux.metrics["energy_data"]) - log_mean
        d = log_mean - c
        gap = likelihood - float(aux.metrics["kale"])
        np.testing.assert_allclose(gap, math.exp(d) - 1 - d, rtol=1e-10)
        np.testing.assert_allclose(found[False][1], 1 - math.exp(d), rtol=1e-10)
        np.testing.assert_allclose(found[True][1], math.expm1(-d), rtol=1e-10)
        np.testing.assert_allclose(found[True][0], found[False][0], rtol=1e-12)
        np.testing.assert_allclose(found[True][0], -aux.metrics["kale"], rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_the_energy_s_gradient_does_not_know_how_the_constant_moves():
    """d/da of mean E(data) + mean exp(-(E + c)): x over data less exp(-(a x + c)) x."""
    batch = normal(2, 50, 1)
    params = {"energy": 0.6, "base": 0.3, "log_partition": 0.2}
    draws = jax.random.normal(jax.random.split(KEY)[0], (50, 1), jnp.float64)
    draws = 0.3 + np.asarray(draws)
    exact = np.mean(batch) - (np.exp(-(0.6 * draws + 0.2)) * draws).mean()
    for transforms in (True, False):
        objective = energy_objective(transforms_log_partition=transforms)
        _, slope = slopes_of(objective, params, batch)
        np.testing.assert_allclose(slope["energy"], exact, rtol=1e-6)
        assert slope["base"] == 0


def test_a_constant_energy_is_no_energy():
    """T7 and T8: E = k with c = -k has KALE 0 and mass 1; every E has at most 0 where
    the data are the base's."""
    batch = normal(3, 4_000, 1)
    objective = energy_objective(lambda k, x: k + 0 * jnp.sum(x))
    params = {"energy": 5.0, "base": 0.0, "log_partition": jnp.asarray(-5.0)}
    _, aux = value_of(objective, params, batch)
    np.testing.assert_allclose(
        [aux.metrics["kale"], aux.metrics["mass"]], [0, 1], atol=1e-6
    )
    objective = energy_objective()
    for slope in (-1.0, 0.5):
        params = {"energy": slope, "base": 0.0}
        params["log_partition"] = jnp.asarray(slope**2 / 2)
        _, aux = value_of(objective, params, batch)
        assert aux.metrics["kale"] < 4 * (slope**2 + slope**4) ** 0.5 / 4_000**0.5


def test_energy_and_constant_may_be_shifted_against_each_other():
    """T8: E + k, c - k: the same loss; the base's gradient and its weights unmoved, to
    the rounding of 7."""
    batch = normal(3, 30, 1)

    def energy(params, x):
        return params[0] * jnp.sum(x**2) + params[1]

    of_energy = energy_objective(energy)
    of_base = generalized.base_objective(energy, shifted, latent_dim=1)
    found = []
    for k in (0.0, 7.0):
        params = {
            "energy": jnp.array([0.4, k]),
            "base": 0.3,
            "log_partition": jnp.asarray(-0.2 - k),
        }
        value, _ = value_of(of_energy, params, batch)
        (_, aux), slope = slopes_of(of_base, params, batch)
        found.append([value, slope["base"], aux.metrics["effective_draws"]])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.usefixtures("float64")
def test_the_base_s_gradient_is_weighed_by_its_energies():
    """T9. E = a . x: a, for any batch. E = |x - m|^2 / 2: (base - m) / 2 on average, as
    the weighed latents have the mean (m - base) / 2."""
    objective = generalized.base_objective(linear, shifted, latent_dim=2)
    slope = jnp.array([0.3, -2.0])
    params = {"energy": slope, "base": jnp.zeros(2)}
    batch = jnp.ones((5, 2))
    _, gradient = slopes_of(objective, params, batch)
    np.testing.assert_allclose(gradient["base"], slope, rtol=1e-12)
    np.testing.assert_array_equal(gradient["energy"], 0)

    target, place = 1.5, 0.5
    objective = generalized.base_objective(
        lambda mean, x: 0.5 * jnp.sum((x - mean) ** 2), shifted, latent_dim=1
    )
    batch = jnp.zeros((4_000, 1))
    keys = jax.random.split(jax.random.key(1), 200)

    def at(key):
        loss = lambda base: value_of(  # noqa: E731
            objective, {"energy": target, "base": base}, batch, key
        )[0]
        return jax.grad(loss)(place)

    gradients = np.asarray(jax.jit(functools.partial(jax.lax.map, at))(keys))
    # Self-normalised weights are biased by a term of order 1 / 4,000.
    error = 4 * float(gradients.std()) / 200**0.5 + 1e-3
    np.testing.assert_allclose(gradients.mean(), (place - target) / 2, atol=error)
    # Even weights would have place - target.
    assert error < 0.1


def test_a_batch_s_own_log_partition_is_biased_from_below():
    """T17. B = N(0, 1), E = a x: A = a^2 / 2, and of one draw 0 on average; KALE at a
    fixed c is unbiased however few the draws."""
    slope, c = 1.0, 0.4
    params = {"energy": slope, "base": 0.0, "log_partition": jnp.asarray(c)}
    found = {}
    for estimator in ("kale", "donsker_varadhan"):
        objective = energy_objective(estimator=estimator)
        found[estimator] = estimate(
            objective,
            params,
            jax.random.key(4),
            lambda key, num: jnp.zeros((num, 1)),
            num=40_000,
            size=1,
        )
    value, error = found["donsker_varadhan"]["kale"]
    np.testing.assert_allclose(value, 0.0, atol=4 * error)
    value, error = found["kale"]["kale"]
    np.testing.assert_allclose(
        value, -c - math.exp(slope**2 / 2 - c) + 1, atol=4 * error
    )


def test_the_penalty_is_the_squared_slope_whatever_the_points():
    """T16. E = a . x: |a|^2 times the weight, and not (|a| - 1)^2."""
    slope = jnp.array([3.0, 4.0])
    params = {"energy": slope, "base": jnp.zeros(2), "log_partition": jnp.asarray(5.0)}
    batch = normal(0, 6, 2)
    values = []
    for weight in (0.0, 0.2):
        objective = generalized.energy_objective(
            linear, shifted, latent_dim=2, gradient_penalty=weight
        )
        value, aux = value_of(objective, params, batch)
        values.append(value)
    np.testing.assert_allclose(values[1] - values[0], 0.2 * 25, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["gradient_square"], 25, rtol=1e-6)


def test_the_penalty_is_taken_between_data_and_draws_and_of_the_whole_energy():
    """Data at 1, draws at 0, E = x^2 / 2 + b x: a slope of u + b at a uniform u."""
    size = 100_000
    params = {"energy": 0.0, "base": 2.0, "log_partition": jnp.zeros(())}
    for log_prob, offset in ((None, 0.0), (lambda base, x: base * jnp.sum(x), 2.0)):
        objective = energy_objective(
            lambda _, x: 0.5 * jnp.sum(x**2),
            lambda base, z: 0 * z,
            gradient_penalty=0.1,
            base_log_prob=log_prob,
        )
        _, aux = value_of(objective, params, jnp.ones((size, 1)))
        exact = 1 / 3 + offset + offset**2
        variance = 1 / 5 + offset + 4 / 3 * offset**2 - (1 / 3 + offset) ** 2
        np.testing.assert_allclose(
            aux.metrics["gradient_square"], exact, atol=4 * (variance / size) ** 0.5
        )


def test_the_base_has_as_many_draws_as_are_asked_for_and_its_own_floor():
    """Of one draw the weight is 1; of eight, of a steep energy, they differ. Below the
    floor no draw has a slope."""
    params = {"energy": 3.0, "base": 0.0}
    batch = jnp.zeros((1, 1))
    for num, is_all in ((1, True), (8, False)):
        objective = generalized.base_objective(
            linear, shifted, latent_dim=1, num_draws=num
        )
        share = value_of(objective, params, batch)[1].metrics["effective_draws"]
        assert (share == 1) == is_all and share >= 1 / num
    objective = generalized.base_objective(
        linear, shifted, latent_dim=1, energy_floor=-5.0
    )
    below = params | {"base": -50.0}
    slope = slopes_of(objective, below, batch)[1]["base"]
    assert slope == 0
    assert value_of(objective, below, batch)[1].metrics["energy_model"] == -5


def test_without_mass_where_the_data_are_kale_has_no_bound():
    """T5: a point of the data, of p = 1/4, that the base never draws: lowering its
    energy by 1 is worth 1/4 each time."""
    batch = jnp.array([[5.0], [0.0], [0.0], [0.0]])
    objective = energy_objective(
        lambda depth, x: -depth * (x[0] > 4.0), lambda base, z: 0 * z
    )
    values = []
    for depth in (0.0, 10.0, 20.0):
        params = {"energy": depth, "base": 0.0, "log_partition": jnp.zeros(())}
        values.append(float(value_of(objective, params, batch)[1].metrics["kale"]))
    np.testing.assert_allclose(values, [0, 10 / 4, 20 / 4], atol=1e-6)


@pytest.mark.slow
def test_chains_of_a_shifted_energy_are_the_same_and_of_a_constant_one_the_prior():
    """T7, T8: gradients know of no constant; and E = k refuses no proposal of the
    prior's and has even weights."""
    start = jax.random.normal(KEY, (200, 1))

    def chains(energy_fn, sampler):
        latent_energy = energies.latent_energy(energy_fn, lambda z: z, 0.5)
        return samplers.sample_chains(
            sampler, latent_energy, jax.random.key(1), start, 20, collect=None
        )

    def energy(constant, x):
        return jnp.sum(x**2) + constant

    prior = samplers.independence(
        proposal=(
            lambda key: jax.random.normal(key, (1,)),
            lambda z: -0.5 * jnp.sum(z**2),
        )
    )
    for sampler in (
        samplers.langevin(step_size=0.1),
        samplers.underdamped(step_size=0.5, friction=1.0),
        samplers.mala(step_size=0.5),
        samplers.hmc(step_size=0.5, num_leapfrog=2),
        prior,
    ):
        plain, moved = (
            chains(functools.partial(energy, jnp.float32(k)), sampler)[0].position
            for k in (0.0, 64.0)
        )
        np.testing.assert_array_equal(plain, moved)
    _, info = chains(lambda x: 3.0 + 0 * jnp.sum(x), prior)
    np.testing.assert_allclose(info.acceptance_rate, 1, atol=1e-5)  # rounding
    objective = generalized.base_objective(
        lambda k, x: k + 0 * jnp.sum(x), shifted, latent_dim=1
    )
    params = {"energy": 3.0, "base": 0.0}
    _, aux = value_of(objective, params, jnp.zeros((50, 1)))
    np.testing.assert_allclose(aux.metrics["effective_draws"], 1, rtol=1e-5)


def test_an_energy_above_its_floor_is_itself_and_below_it_has_no_gradient():
    params = {"energy": 1.0, "base": 0.0, "log_partition": jnp.zeros(())}
    batch = jnp.array([[-3.0], [2.0]])
    objective = energy_objective(energy_floor=-2.0)
    _, aux = value_of(objective, params, batch)
    np.testing.assert_allclose(aux.metrics["energy_data"], (-2 + 2) / 2, atol=1e-6)
    far = params | {"base": 50.0}  # whose draws have weights of exp(-50)
    slope = slopes_of(objective, far, batch)[1]["energy"]
    np.testing.assert_allclose(slope, 2.0 / 2, rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_with_the_base_s_density_in_the_energy_the_model_is_the_energy_alone():
    """T10. E = r + log b with r = -log q + s: the log partition function is -s whatever
    the base, the loss at c = -s the negative log likelihood of q less the base's; where
    the base is q, one draw suffices."""
    s = 0.7

    def density(params, x):
        z = (x - params["mean"]) * jnp.sqrt(params["precision"])
        return jnp.sum(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi / params["precision"]))

    def draw(params, z):
        return params["mean"] + z / jnp.sqrt(params["precision"])

    mean_density = jax.jit(lambda p, x: jax.vmap(density, (None, 0))(p, x).mean())
    model = {"mean": 0.4, "precision": 2.0}
    batch = normal(1, 20, 1)
    for base, exactly in ((model, True), ({"mean": 0.0, "precision": 1.0}, False)):
        params = {"energy": model, "base": base, "log_partition": s}
        objective = generalized.energy_objective(
            lambda p, x: s - density(p, x),
            draw,
            latent_dim=1,
            base_log_prob=density,
            num_draws=1 if exactly else 100_000,
        )
        value, aux = value_of(objective, params, batch)
        log_likelihood, of_base = (mean_density(p, batch) for p in (model, base))
        # Two million draws of a ratio whose variance is below 1.
        atol = 1e-9 if exactly else 4 / 2e6**0.5
        np.testing.assert_allclose(aux.metrics["log_partition"], -s, atol=atol)
        # -KALE = mean E + c + mass - 1 with c = A = -s here.
        at_best = params | {"log_partition": -s}
        value, aux = value_of(objective, at_best, batch)
        np.testing.assert_allclose(value, of_base - log_likelihood, atol=atol)


@pytest.mark.usefixtures("float64")
def test_the_base_s_density_is_differentiated_at_data_and_along_draws():
    """For E = r + log b the base's loss is its negative log likelihood, and the term of
    the draws, whose gradient is 0 on average: the mean of many is the likelihood's."""

    def density(mean, x):
        return jnp.sum(-0.5 * (x - mean) ** 2)

    objective = generalized.base_objective(
        lambda p, x: 0.5 * jnp.sum((x - p) ** 2),
        shifted,
        latent_dim=1,
        base_log_prob=density,
    )
    batch = normal(1, 2_000, 1)
    keys = jax.random.split(jax.random.key(2), 100)

    def at(key):
        loss = lambda base: value_of(  # noqa: E731
            objective, {"energy": 0.4, "base": base}, batch, key
        )[0]
        return jax.grad(loss)(0.9)

    gradients = np.asarray(jax.jit(functools.partial(jax.lax.map, at))(keys))
    exact = 0.9 - np.mean(batch)
    error = 4 * float(gradients.std()) / 10 + 1e-3
    np.testing.assert_allclose(gradients.mean(), exact, atol=error)
    assert error < 0.03


def test_redescending_gradients():
    transform = generalized.redescending_gradients()
    gradient = {"a": jnp.array([0.0, 1.0, -1.0, 3.0, 1e6])}
    found, _ = transform.update(gradient, transform.init(gradient))
    np.testing.assert_allclose(found["a"], [0, 1, -1, 0.6, 2e-6], rtol=1e-6)


# --- sampling


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_latent_posterior_of_a_linear_base(temperature):
    """T11. G(z) = W z + b, E = (x - m) L (x - m) / 2: precision I + W' L W / T."""
    rng = np.random.default_rng(0)
    w, b, m = rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=3)
    spread = np.diag([1.0, 0.5, 2.0])
    precision = np.eye(2) + w.T @ spread @ w / temperature
    mean = np.linalg.solve(precision, w.T @ spread @ (m - b) / temperature)
    wj, bj, mj, lj = (jnp.asarray(x, jnp.float32) for x in (w, b, m, spread))
    energy_fn = energies.latent_energy(
        lambda x: 0.5 * (x - mj) @ lj @ (x - mj), lambda z: wj @ z + bj, temperature
    )
    covariance = np.linalg.inv(precision)
    smallest = np.linalg.eigvalsh(covariance).min()
    num = 8_000
    start = jax.random.normal(KEY, (num, 2))
    for sampler, num_steps in (
        (samplers.mala(step_size=0.7 * smallest), 200),
        (samplers.hmc(step_size=0.7 * smallest**0.5, num_leapfrog=4), 60),
        (samplers.underdamped(step_size=0.5 * smallest**0.5, friction=2.0), 300),
        (samplers.langevin(step_size=0.02 * smallest), 2_000),
    ):
        state, _ = samplers.sample_chains(
            sampler, energy_fn, jax.random.key(1), start, num_steps, collect=None
        )
        z = np.asarray(state.position, np.float64)
        scale = np.sqrt(np.diag(covariance))
        # Four deviations of a mean and of a variance; Langevin's bias is 1 %.
        np.testing.assert_allclose(z.mean(0), mean, atol=(4 * scale / num**0.5).max())
        np.testing.assert_allclose(
            np.cov(z.T),
            covariance,
            atol=(4 * (2 / num) ** 0.5 + 0.01) * covariance.max(),
        )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_log_partition_function_of_a_linear_base(temperature):
    """T11: -log det(S^-1) / 2 - (b - m)' L (b - m) / 2 T + h' S h / 2, with h = W' L (m
    - b) / T and S^-1 = 1 + W' L W / T."""
    rng = np.random.default_rng(0)
    w, b, m = (0.5 * rng.normal(size=shape) for shape in ((3, 2), 3, 3))
    spread = np.diag([1.0, 0.5, 2.0]) / temperature
    precision = np.eye(2) + w.T @ spread @ w
    h = w.T @ spread @ (m - b)
    exact = 0.5 * (
        h @ np.linalg.solve(precision, h)
        - (b - m) @ spread @ (b - m)
        - np.linalg.slogdet(precision)[1]
    )
    objective = generalized.base_objective(
        lambda _, x: 0.5 * (x - m) @ spread @ (x - m),
        lambda _, z: jnp.asarray(w, z.dtype) @ z + b,
        latent_dim=2,
        num_draws=200_000,
    )
    # At m the energy is 0, and KALE minus the log partition function. Weights of at
    # most 1 and of mean exp(A): their deviation is below exp(-A / 2) of it.
    params = {"energy": 0.0, "base": 0.0}
    _, aux = value_of(objective, params, jnp.asarray(m, jnp.float32)[None])
    np.testing.assert_allclose(
        -aux.metrics["kale"], exact, atol=4 * math.exp(-exact / 2) / 200_000**0.5
    )


@pytest.mark.slow
def test_a_base_on_the_circle_has_von_mises_weights():
    """T20. x = (cos z, sin z) of a uniform angle, E = -k x_1: the angle's law is von
    Mises, A = log I_0(k), mean x_1 = I_1 / I_0, and KALE their difference."""
    k = 2.0
    ratio = scipy.special.i1(k) / scipy.special.i0(k)
    log_partition = math.log(scipy.special.i0(k))

    def circle(base, z):
        angle = 2 * jnp.pi * jax.scipy.stats.norm.cdf(z[0])
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def energy(slope, x):
        return -slope * x[0]

    params = {
        "energy": k,
        "base": (),
        "log_partition": jnp.asarray(log_partition),
    }
    objective = generalized.energy_objective(energy, circle, latent_dim=1)

    def data(key, num):
        """Von Mises by a table of its quantiles."""
        angles = jnp.linspace(-jnp.pi, jnp.pi, 20_001)
        cdf = jnp.cumsum(jnp.exp(k * jnp.cos(angles)))
        uniform = jax.random.uniform(key, (num,)) * cdf[-1]
        angle = jnp.interp(uniform, cdf, angles)
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)

    found = estimate(objective, params, jax.random.key(5), data, num=100)
    for name, exact in (
        ("kale", k * ratio - log_partition),
        ("mass", 1.0),
        ("log_partition", log_partition),
        ("energy_data", -k * ratio),
    ):
        value, error = found[name]
        np.testing.assert_allclose(value, exact, atol=4 * error + 1e-3, err_msg=name)
    # And chains in the latent find the weights, on the circle exactly.
    energy_fn = energies.latent_energy(
        functools.partial(energy, k), functools.partial(circle, ())
    )
    z = jax.random.normal(jax.random.key(6), (20_000, 1))
    proposal = (
        lambda key: jax.random.normal(key, (1,)),
        lambda z: -0.5 * jnp.sum(z**2),
    )
    for sampler, num_steps in (
        (samplers.mala(step_size=0.1), 300),
        (samplers.hmc(step_size=0.3, num_leapfrog=3), 150),
        (samplers.independence(proposal=proposal), 40),
    ):
        state, _ = samplers.sample_chains(
            sampler, energy_fn, jax.random.key(7), z, num_steps, collect=None
        )
        x = jax.vmap(functools.partial(circle, ()))(state.position)
        np.testing.assert_allclose(jnp.sum(x**2, axis=1), 1.0, rtol=1e-5)
        # Variance of cos below 1/2.
        np.testing.assert_allclose(
            x[:, 0].mean(), ratio, atol=4 * (0.5 / 20_000) ** 0.5
        )


# --- states


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        layer = nn.SpectralNorm(nn.Dense(1), collection_name="spectral")
        return layer(x, update_stats=train)[0]


def test_power_iteration_moves_in_the_energy_s_objective_alone():
    network = networks.from_module(Spectral(), (3,))
    energy, state = jax.jit(network.init)(jax.random.key(0))
    params = {
        "energy": energy,
        "energy_state": state,
        "base": jnp.zeros(3),
        "log_partition": jnp.zeros(()),
    }
    batch = normal(0, 4, 3)
    _, aux = value_of(
        generalized.energy_objective(network, shifted, latent_dim=3), params, batch
    )
    renewed = aux.model_state["energy_state"]
    assert jax.tree.structure(renewed) == jax.tree.structure(state)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), renewed, state)
    assert any(jax.tree.leaves(moved))
    _, aux = value_of(
        generalized.base_objective(network, shifted, latent_dim=3), params, batch
    )
    assert aux.model_state == {}
    del params["energy_state"]
    with pytest.raises(ValueError, match="energy_state"):
        value_of(
            generalized.base_objective(network, shifted, latent_dim=3), params, batch
        )


def test_the_base_s_statistics_move_in_its_own_objective_alone():
    base = networks.strided_generator((4, 4, 1), latent_dim=2, widths=(2,))
    params, state = jax.jit(base.init)(jax.random.key(0))
    params = {
        "energy": 0.1,
        "base": params,
        "base_state": state,
        "log_partition": jnp.zeros(()),
    }
    batch = jnp.zeros((1, 6, 4, 4, 1))
    for factory, is_renewed in (
        (generalized.energy_objective, False),
        (generalized.base_objective, True),
    ):
        objective = factory(linear, base, latent_dim=2)
        mapped = jax.vmap(
            lambda p, key, x, objective=objective: objective.loss(p, key, x, ()),
            (None, None, 0),
            axis_name=DEVICE,
        )
        _, aux = jax.jit(mapped)(params, KEY, batch)
        assert ("base_state" in aux.model_state) == is_renewed


# --- what is refused


@pytest.mark.quick
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: energy_objective(estimator="mine"), "estimator must be one of"),
        (lambda: energy_objective(gradient_penalty=-1.0), "gradient_penalty must not"),
        (lambda: energy_objective(num_draws=0), "num_draws must be"),
        (
            lambda: generalized.base_objective(linear, shifted, latent_dim=0),
            "latent_dim must be",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_base_of_another_shape_is_refused():
    params = {"energy": 1.0, "base": 0.0, "log_partition": jnp.zeros(())}
    with pytest.raises(ValueError, match=r"base must return .* \(3,\), got \(1,\)"):
        value_of(energy_objective(), params, jnp.zeros((4, 3)))


def test_an_energy_that_is_no_scalar_is_refused():
    params = {"energy": 1.0, "base": 0.0, "log_partition": jnp.zeros(())}
    batch = jnp.zeros((4, 1))
    for make in (generalized.energy_objective, generalized.base_objective):
        objective = make(lambda a, x: a * x, shifted, latent_dim=1)
        with pytest.raises(ValueError, match=r"energy must return a scalar .* \(1,\)"):
            value_of(objective, params, batch)
    del params["log_partition"]
    with pytest.raises(ValueError, match=r"learns params\['log_partition'\], got"):
        value_of(energy_objective(), params, batch)
    value_of(energy_objective(estimator="donsker_varadhan"), params, batch)


# --- laws that are told apart


def test_refinement_never_worsens_kale_of_slopes_up_to_a_bound():
    """T2, T3, T21. P = N(2, 1), B = N(0, 1), slopes of at most .8: KALE is L |D| - L^2
    / 2 = 1.28, at -.8. What its latents' posterior draws is N(.8, 1), of which P has
    KALE .64; with the best of all slopes it is P's mean, and KALE 0."""
    bound, mean, num = 0.8, 2.0, 200_000
    objective = energy_objective(num_draws=1)
    batch = mean + jax.random.normal(jax.random.key(1), (num, 1))

    def kale(slope, base):
        """With the constant at its best, -a m + a^2 / 2."""
        constant = -slope * base + slope**2 / 2
        params = {"energy": slope, "base": base, "log_partition": constant}
        return value_of(objective, params, batch)[1].metrics["kale"]

    kales = jax.jit(jax.vmap(kale, (0, None)))
    slopes = np.linspace(-bound, bound, 17, dtype=np.float32)
    # Of the means of a x (L / sqrt n) and of exp(-a x) at its largest slope.
    error = (bound**2 + math.expm1(bound**2)) ** 0.5 / num**0.5
    worse = []
    for base, exact in ((0.0, 1.28), (0.8, 0.64), (mean, 0.0)):
        values = np.asarray(kales(slopes, base))
        np.testing.assert_allclose(values.max(), exact, atol=4 * error)
        best = float(slopes[values.argmax()])
        if exact:
            assert best == pytest.approx(-bound)
            worse.append(float(values.max()))
    assert worse[0] > worse[1]
    for best, place in ((-bound, 0.8), (-mean, mean)):
        latent_energy = energies.latent_energy(
            functools.partial(linear, best), functools.partial(shifted, 0.0)
        )
        state, _ = samplers.sample_chains(
            samplers.mala(step_size=0.5),
            latent_energy,
            jax.random.key(2),
            jax.random.normal(jax.random.key(3), (20_000, 1)),
            30,
            collect=None,
        )
        x = np.asarray(state.position)
        np.testing.assert_allclose(x.mean(), place, atol=4 / 20_000**0.5)
        np.testing.assert_allclose(x.var(), 1, rtol=4 * (2 / 20_000) ** 0.5)


def test_on_points_that_are_apart_kale_is_the_slope_times_the_distance():
    """T4. P at 0, B at t: an energy a x has KALE a t, at most L |t| of slopes to L,
    whatever the divergence; and so the base's gradient is the slope."""
    place, data = jnp.array([0.7]), jnp.zeros((5, 1))
    of_energy = [
        energy_objective(base=lambda base, z: base, estimator=estimator)
        for estimator in ("kale", "donsker_varadhan")
    ]
    of_base = generalized.base_objective(linear, lambda base, z: base, latent_dim=1)
    for slope in (-0.8, 0.3, 0.8):
        params = {"energy": slope, "base": place, "log_partition": -slope * 0.7}
        for objective in of_energy:
            value, _ = value_of(objective, params, data)
            np.testing.assert_allclose(-value, slope * 0.7, rtol=1e-5)
        _, moved = slopes_of(of_base, params, data)
        np.testing.assert_allclose(moved["base"], slope, rtol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2, math.pi])
def test_on_parallel_segments_kale_is_at_most_the_slope_times_the_distance(angle):
    """T4. P on {0} x [0, 1], B on {t} x [0, 1], slopes of size L = .8 in a direction:
    KALE is L t along the first coordinate, and less in any other, where it is L cos t
    and what a uniform law's second coordinate loses, log(sinh(h) / h), h = L sin / 2;
    so never above L W_1, though the divergence is infinite."""
    length, place, num = 0.8, 0.7, 200_000
    across, along = length * math.cos(angle), length * math.sin(angle)
    slope = jnp.array([across, along])

    def segment(base, z):
        return jnp.array([base, jax.scipy.stats.norm.cdf(z[0])])

    half = along / 2
    lost = math.log(math.sinh(half) / half) if abs(half) > 1e-3 else 0.0
    params = {
        "energy": slope,
        "base": place,
        "log_partition": -across * place - half + lost,
    }
    heights = jax.random.uniform(jax.random.key(1), (num,))
    data = jnp.stack([0 * heights, heights], 1)
    objective = generalized.energy_objective(linear, segment, latent_dim=1)
    _, aux = value_of(objective, params, data)
    # Deviations: of a uniform law's heights .29 `along`, twice.
    error = 4 * 0.5 * abs(along) / num**0.5 + 1e-5
    np.testing.assert_allclose(aux.metrics["kale"], across * place - lost, atol=error)
    assert aux.metrics["kale"] <= length * place + error


@pytest.mark.usefixtures("float64")
def test_a_table_of_energies_is_best_at_the_logarithm_of_the_ratio():
    """T5, T15. Data (1, 2, 5) / 8 against a base of (1, 1, 2) / 4: E* = -log(p / b),
    KALE the divergence; there no entry's gradient is left, and elsewhere it is what the
    data have less what the reweighed base has."""
    data, of_base = jnp.array([0, 1, 1, 2, 2, 2, 2, 2]), jnp.array([0, 1, 2, 2])
    p, b = np.array([1, 2, 5]) / 8, np.array([1, 1, 2]) / 4
    entries = jnp.eye(3)

    # The draws are the four points of the base, in order of the normal latents.
    def base(params, z):
        return params[jnp.clip(jnp.floor(z[0]), 0, 3).astype(int)]

    objective = energy_objective(
        lambda table, x: jnp.sum(table * x), base, num_draws=1, latent_dim=1
    )

    def loss(table, constant):
        params = {"energy": table, "log_partition": constant, "base": entries[of_base]}
        with pytest.MonkeyPatch.context() as patch:
            latents = jnp.arange(8.0)[:, None] / 2  # each of the four twice
            patch.setattr(generalized.jax.random, "normal", lambda *_: latents)
            return value_of(objective, params, entries[data])[0]

    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, slopes = both(-np.log(p / b), 0.0)
    np.testing.assert_allclose(-value, (p * np.log(p / b)).sum(), rtol=1e-10)
    np.testing.assert_allclose(slopes[0], 0, atol=1e-12)
    np.testing.assert_allclose(slopes[1], 0, atol=1e-12)
    table = np.array([0.3, -0.2, 0.5])
    weights = b * np.exp(-table)
    constant = math.log(weights.sum())
    slopes = both(table, constant)[1][0]
    np.testing.assert_allclose(slopes, p - weights / weights.sum(), rtol=1e-9)


def test_the_floor_of_a_sampled_energy_is_the_objective_s():
    energy_fn = generalized.floored(lambda x: jnp.sum(x), -10.0)
    for place, value, slope in ((-3.0, -3.0, 1.0), (-12.0, -10.0, 0.0)):
        x = jnp.array([place])
        assert energy_fn(x) == value and jax.grad(energy_fn)(x) == slope

    def plain(x):
        return x[0]

    assert generalized.floored(plain, None) is plain
