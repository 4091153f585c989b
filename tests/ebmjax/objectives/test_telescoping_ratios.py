"""Telescoping density ratios of two normal laws of very different widths: optima and
curvatures in numbers.

Noise N(0, 1), data N(0, s^2): a waymark `a` has the law N(0, 1 - a^2 + a^2 s^2), so
that every bridge's log ratio is a quadratic and a constant.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from ebmjax import objectives

HALF_LOG = 0.5 * math.log(2 * math.pi)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def log_prob(x):
    return -0.5 * x**2 - HALF_LOG


def nodes(scale, step):
    """Of N(0, 1), by the trapezoid rule in t with x = scale sinh(t), for functions that
    vary over `scale` and more. Where their nearest pole is at a distance d in t, the
    error is exp(-2 pi d / step)."""
    end = math.asinh(9 / scale)
    t = np.linspace(-end, end, 2 * math.ceil(end / step) + 1)
    x = scale * np.sinh(t)
    weights = np.cosh(t) * np.exp(-0.5 * x**2)
    return x, weights / weights.sum()


def waymarks_of(variances):
    """The waymarks whose laws have these variances, the last of which is the data's."""
    shares = np.sqrt((1 - np.asarray(variances)) / (1 - variances[-1]))
    return (*shares[:-1], 1.0)


def bridges(variances):
    """`(energy, params)`: every bridge a quadratic, at its exact values."""
    after = jnp.asarray(variances)
    ratios = after / jnp.asarray([1.0, *variances[:-1]])

    def energy(slopes, x, index):
        return 0.5 * slopes[index] * x**2 / after[index]

    return energy, {"energy": 1 - ratios, "log_partition": 0.5 * jnp.log(ratios)}


def mean_loss(energy, variances, params):
    """Over all pairs of noise and data."""
    # A sigmoid's poles, d = .4 of a bridge over a tenth and .16 of one over 1e-8.
    step = 0.03 if variances[0] < 0.1 else 0.08
    noise, noise_weights = nodes(variances[0] ** 0.5, step)
    data, data_weights = nodes(1.0, step)

    def one(x, y):
        objective = objectives.telescoping(
            energy,
            noise_distribution=(lambda key: y, log_prob),
            waymarks=waymarks_of(variances),
        )
        return objective.loss(params, jax.random.key(0), x[None], ())[0]

    rows = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    losses = rows(jnp.asarray(variances[-1] ** 0.5 * data), jnp.asarray(noise))
    return data_weights @ losses @ noise_weights


CHASM = [0.1, 0.01, 0.001, 0.0001]
"""Bridges over which the variance falls tenfold: of one difficulty all."""


def test_every_bridge_rests_at_its_exact_log_ratio():
    """And nowhere near; the sum is the log ratio of data and noise."""
    energy, truth = bridges(CHASM)
    gradient = jax.jit(jax.grad(lambda params: mean_loss(energy, CHASM, params)))
    for leaf in jax.tree.leaves(gradient(truth)):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-9)
    for leaf in jax.tree.leaves(gradient(jax.tree.map(lambda x: 1.1 * x, truth))):
        assert np.abs(leaf).min() > 1e-3
    model = objectives.telescoping_energy(
        energy, noise_distribution=(jax.random.normal, log_prob)
    )
    for x in (0.0, 0.013, -0.4):
        exact = 0.5 * x**2 / 1e-4 + HALF_LOG + math.log(0.01)
        np.testing.assert_allclose(model(truth, jnp.array(x)), exact, rtol=1e-10)


def overlap(before, after):
    """Integral of p q / (p + q) for N(0, before) and N(0, after): the curvature, in its
    constant, of the logistic regression that tells one from the other."""

    def integrand(t):
        x = after**0.5 * math.sinh(t)
        p = scipy.stats.norm.pdf(x, scale=before**0.5)
        q = scipy.stats.norm.pdf(x, scale=after**0.5)
        return p * q / (p + q) * after**0.5 * math.cosh(t)

    return 2 * scipy.integrate.quad(integrand, 0, 4, epsabs=1e-13, epsrel=1e-11)[0]


def curvatures(variances):
    energy, truth = bridges(variances)

    def loss(constants):
        return mean_loss(energy, variances, truth | {"log_partition": constants})

    return jax.jit(jax.hessian(loss))(truth["log_partition"])


def test_one_ratio_is_flat_where_bridges_are_not():
    """The curvature in the constant is the overlap of two laws: of data and noise it
    falls with the data's width, of laws a tenth apart in variance it stays."""
    for scale, number in ((1e-2, 0.0236390), (1e-4, 0.000340676)):
        found = curvatures([scale**2])[0, 0]
        np.testing.assert_allclose(found, overlap(1.0, scale**2), rtol=1e-8)
        np.testing.assert_allclose(found, number, rtol=1e-5)
    for num in (2, 4):
        found = curvatures(CHASM[:num])
        np.testing.assert_allclose(jnp.diag(found), overlap(1.0, 0.1), rtol=1e-8)
        np.testing.assert_allclose(jnp.diag(found), 0.3358399, rtol=1e-6)
        np.testing.assert_allclose(found - jnp.diag(jnp.diag(found)), 0, atol=1e-12)


def test_one_waymark_is_noise_contrastive_estimation():
    """With the noise's energy beside the bridge's: value and gradient, draw by draw."""

    def energy(params, x, index):
        return jnp.sum(params["slope"] * x**2 + params["shift"] * x) + index

    def noise_log_prob(x):
        return jnp.sum(log_prob(x))

    def sample(key):
        return jax.random.normal(key, (2,))

    one = objectives.telescoping(
        energy,
        # Noise contrastive estimation splits an example's key by the noise's number.
        noise_distribution=(lambda key: sample(jax.random.split(key, 1)[0]), None),
        waymarks=(1.0,),
    )
    other = objectives.noise_contrastive(
        lambda params, x: energy(params, x, 0) - noise_log_prob(x),
        noise_distribution=(sample, noise_log_prob),
    )
    params = {
        "energy": {"slope": jnp.array(0.3), "shift": jnp.array([0.2, -0.4])},
        "log_partition": jnp.array([0.7]),
    }
    batch = 0.5 + jax.random.normal(jax.random.key(1), (64, 2))

    def run(objective, params):
        loss = lambda p: objective.loss(p, jax.random.key(0), batch, ())  # noqa: E731
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (value, aux), gradient = run(one, params)
    scalar = params | {"log_partition": jnp.array(0.7)}
    (other_value, other_aux), other_gradient = run(other, scalar)
    np.testing.assert_allclose(value, other_value, rtol=1e-13)
    for leaf, other_leaf in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(other_gradient)
    ):
        # To rounding: the noise's log density was added and taken away again.
        np.testing.assert_allclose(jnp.squeeze(leaf), other_leaf, rtol=1e-12)
    shares = other_aux.metrics
    accuracy = (shares["accuracy_data"] + shares["accuracy_noise"]) / 2
    for name in ("accuracy", "accuracy_min", "accuracy_max"):
        np.testing.assert_allclose(aux.metrics[name], accuracy, rtol=1e-12)
    assert 0.3 < accuracy < 0.7
    np.testing.assert_allclose(aux.metrics["log_partition"], 0.7)


def test_waymarks_of_an_example_are_one_path():
    """With slopes of 0 a bridge's gradient is half of what the path moves along it:
    from the noise over .8 noise + .6 data to the data."""
    objective = objectives.telescoping(
        lambda slopes, x, index: -slopes[index] * x,
        noise_distribution=(jax.random.normal, log_prob),
        waymarks=(0.6, 1.0),
    )

    @jax.jit
    def gradient(key, x):
        params = {"energy": jnp.zeros(2), "log_partition": jnp.zeros(2)}
        loss = lambda p: objective.loss(p, key, x[None], ())[0]  # noqa: E731
        return jax.grad(loss)(params)["energy"]

    data = jnp.array(3.0)
    for key in jax.random.split(jax.random.key(0), 3):
        steps = -2 * gradient(key, data)
        noise = data - steps.sum()
        assert abs(noise) > 1e-3
        middle = 0.8 * noise + 0.6 * data
        np.testing.assert_allclose(steps, [middle - noise, data - middle], rtol=1e-12)


@pytest.mark.quick
def test_two_bridges_are_this_number():
    """Noise 1, data 3, between them .8 + 1.8 = 2.6; log ratios -.5 x - .1 and x - .2,
    of which the second is right about data alone and the first about noise alone."""
    slopes = jnp.array([0.5, -1.0])
    objective = objectives.telescoping(
        lambda slopes, x, index: slopes[index] * x,
        noise_distribution=(lambda key: jnp.array(1.0), None),
        waymarks=(0.6, 1.0),
    )
    params = {"energy": slopes, "log_partition": jnp.array([0.1, 0.2])}
    value, aux = objective.loss(params, jax.random.key(0), jnp.full(3, 3.0), ())
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    exact = softplus(1.4) + softplus(-0.6) + softplus(-2.8) + softplus(2.4)
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    np.testing.assert_allclose(aux.metrics["accuracy"], 0.5)
    np.testing.assert_allclose(aux.metrics["log_partition"], 0.3)


def test_the_easiest_and_the_hardest_bridge_are_told():
    """Normals are best told apart where their densities are equal: shares of .583 for
    a variance halved, .932 for one of a 250th."""
    variances = [0.5, 0.002]
    energy, truth = bridges(variances)
    objective = objectives.telescoping(
        energy,
        noise_distribution=(jax.random.normal, log_prob),
        waymarks=waymarks_of(variances),
    )
    num = 100_000
    batch = variances[-1] ** 0.5 * jax.random.normal(jax.random.key(1), (num,))
    _, aux = jax.jit(objective.loss)(truth, jax.random.key(0), batch, ())

    exact = []
    for before, after in ((1.0, 0.5), (0.5, 0.002)):
        edge = math.sqrt(math.log(before / after) / (1 / after - 1 / before))
        inside = [
            1 - 2 * scipy.stats.norm.sf(edge, scale=v**0.5) for v in (after, before)
        ]
        exact.append((1 + inside[0] - inside[1]) / 2)
    np.testing.assert_allclose(exact, [0.58303, 0.93154], atol=6e-6)
    # Shares of num examples, of two classes: at most 1 / 4 of variance for one.
    error = 4 * 0.5 / num**0.5
    found = aux.metrics
    np.testing.assert_allclose(found["accuracy_min"], exact[0], atol=error)
    np.testing.assert_allclose(found["accuracy_max"], exact[1], atol=error)
    np.testing.assert_allclose(found["accuracy"], np.mean(exact), atol=error)


def test_networks_of_their_own_are_one_with_stacked_parameters():
    """Of two bridges 2 x and 3 x^2: as the docstring spells it."""
    apply = lambda p, x: p["a"] * x + p["b"] * x**2  # noqa: E731
    model = objectives.telescoping_energy(
        lambda params, x, i: apply(jax.tree.map(lambda leaf: leaf[i], params), x),
        noise_distribution=(None, lambda x: -x),
    )
    params = {
        "energy": {"a": jnp.array([2.0, 0.0]), "b": jnp.array([0.0, 3.0])},
        "log_partition": jnp.array([0.25, 0.5]),
    }
    # 2 x + 3 x^2, the constants and minus the noise's log density, at 2.
    np.testing.assert_allclose(model(params, jnp.array(2.0)), 4 + 12 + 0.75 + 2)


@pytest.mark.parametrize(
    "waymarks",
    [(), (0.5,), (0.0, 1.0), (0.7, 0.5, 1.0), (0.5, 0.5, 1.0), (0.5, 1.0, 1.5), 1.0],
)
def test_waymarks_that_lead_nowhere_are_named(waymarks):
    with pytest.raises(ValueError, match="waymarks must increase from above 0 to 1"):
        objectives.telescoping(None, noise_distribution=(None, None), waymarks=waymarks)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_a_wrong_number_of_constants_is_named(shape):
    objective = objectives.telescoping(
        lambda params, x, index: params * x,
        noise_distribution=(jax.random.normal, log_prob),
        waymarks=(0.5, 1.0),
    )
    params = {"energy": 1.0, "log_partition": jnp.zeros(shape)}
    with pytest.raises(ValueError, match=r"log_partition must be of shape \(2,\)"):
        objective.loss(params, jax.random.key(0), jnp.ones(4), ())
