"""A generator and its entropy's gradient: of a linear generator all is known.

x = W z + b + s n has the law N(b, W W^T + s^2), with the score, the entropy and the
posterior of its latent in closed form.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from expectations import normal_nodes

from ebmjax import energies, training
from ebmjax.objectives import entropy_gradient

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def linear(params, latent):
    return params["weight"] @ latent + params["shift"]


WEIGHT = np.array([[0.8, -0.3, 0.1], [0.2, 0.5, 0.4]])
SHIFT = np.array([0.5, -1.0])
SCALE = 0.6
COVARIANCE = WEIGHT @ WEIGHT.T + SCALE**2 * np.eye(2)


def params_of(width):
    return {
        "energy": {
            "mean": jnp.array([1.0, 0.3]),
            "precision": jnp.array([[0.9, 0.2], [0.2, 0.4]]),
        },
        "generator": {"weight": jnp.asarray(WEIGHT), "shift": jnp.asarray(SHIFT)},
        "posterior": jnp.full((3,), math.log(width)),
    }


@pytest.mark.parametrize("width", [1.3, 1.8])
def test_the_score_of_a_linear_generator_is_that_of_its_normal_law(width):
    """Whatever the proposal's width: at three of its draws.

    The bias of self-normalised weights is at most the estimate's deviation divided by
    the root of the effective number, here above 1,000: less than the error of the mean
    of 64.
    """
    score = entropy_gradient.generator_score(
        linear, noise_scale=SCALE, num_importance=4_000
    )
    latents = np.asarray(jax.random.normal(jax.random.key(0), (3, 3)))
    noise = np.asarray(jax.random.normal(jax.random.key(1), (3, 2)))
    x = latents @ WEIGHT.T + SHIFT + SCALE * noise
    exact = -np.linalg.solve(COVARIANCE, (x - SHIFT).T).T

    @jax.jit
    @jax.vmap
    def scores(key):
        keys = jax.random.split(key, 3)
        return jax.vmap(score, (None, 0, 0, 0))(params_of(width), keys, x, latents)

    found = np.asarray(scores(jax.random.split(jax.random.key(2), 64)))
    errors = found.std(0) / 64**0.5
    assert (np.abs(found.mean(0) - exact) < 5 * errors).all()
    assert errors.max() < 0.01 and np.abs(exact).max() > 0.5


def test_the_score_s_bias_and_variance_fall_as_theory_says():
    """One latent, 1 / N: with weights w of mean 1 and a sample's own score f of mean m,
    the bias is -E[w^2 (f - m)] / N and the variance E[w^2 (f - m)^2] / N, under the
    proposal, by quadrature."""
    weight, shift, scale, width = 1.2, 0.3, 0.8, 0.9
    latent, x = jnp.array(0.4), 1.7
    node, probability = normal_nodes(60, latent, width**2)
    precision = 1 + weight**2 / scale**2
    mean = weight * (x - shift) / scale**2 / precision
    log_ratio = -0.5 * precision * (node - mean) ** 2 + 0.5 * math.log(precision)
    log_ratio += 0.5 * (node - latent) ** 2 / width**2 + math.log(width)
    ratio = np.exp(log_ratio)
    np.testing.assert_allclose(probability @ ratio, 1.0, rtol=1e-10)
    exact = -(x - shift) / (weight**2 + scale**2)
    miss = -(x - weight * node - shift) / scale**2 - exact
    bias = -probability @ (ratio**2 * miss)
    variance = probability @ (ratio**2 * miss**2)

    params = {
        "generator": {
            "weight": jnp.array([[weight]]),
            "shift": jnp.array([shift]),
        },
        "posterior": jnp.array([math.log(width)]),
    }
    num_runs = 100_000
    for num in (20, 40):
        score = entropy_gradient.generator_score(
            linear, noise_scale=scale, num_importance=num
        )
        run = jax.vmap(lambda k, f=score: f(params, k, jnp.array([x]), latent[None]))
        found = np.asarray(jax.jit(run)(jax.random.split(jax.random.key(0), num_runs)))
        # Both are the first terms of series in 1 / num.
        errors = 4 * (variance / num / num_runs) ** 0.5 + 4 * abs(bias) / num**2
        np.testing.assert_allclose(found.mean() - exact, bias / num, atol=errors)
        np.testing.assert_allclose(found.var() * num, variance, rtol=3 / num)
        assert num > 20 or abs(bias) / num > 1.9 * errors


def gradients(objective, params, num, event=(2,)):
    """Of `num` draws, one by one."""

    def one(key):
        loss = lambda p: objective.loss(p, key, jnp.zeros((1, *event)), ())[0]  # noqa: E731
        return jax.grad(loss)(params)

    keys = jax.random.split(jax.random.key(0), num)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize("entropy_weight", [1.0, 0.3])
def test_the_generator_s_gradient_is_that_of_its_divergence(entropy_weight):
    """Of mean energy less the weighted entropy, N(b, S) against E = (x - m) A (x - m) /
    2: (tr A S + (b - m) A (b - m) - weight log det S) / 2."""
    params = params_of(1.4)
    objective = entropy_gradient.generator_objective(
        energies.gaussian,
        linear,
        latent_dim=3,
        noise_scale=SCALE,
        entropy_weight=entropy_weight,
        num_importance=200,
    )

    def exact(generator):
        covariance = generator["weight"] @ generator["weight"].T
        covariance += SCALE**2 * jnp.eye(2)
        precision = params["energy"]["precision"]
        miss = generator["shift"] - params["energy"]["mean"]
        energy = jnp.trace(precision @ covariance) + miss @ precision @ miss
        return 0.5 * (energy - entropy_weight * jnp.linalg.slogdet(covariance)[1])

    wanted = jax.jit(jax.grad(exact))(params["generator"])
    num = 4_000
    found = gradients(objective, params, num)["generator"]
    for name in ("weight", "shift"):
        errors = found[name].std(0) / num**0.5
        # The importance weights' bias, of order 1 / 200, is below a standard error.
        assert (np.abs(found[name].mean(0) - wanted[name]) < 5 * errors).all(), name
        assert errors.max() < 0.03


def test_one_importance_sample_is_not_weighed():
    """`-(x - g(z)) / s^2` of the one proposal, of no width: of the latent that made the
    draw; and the effective number is 1."""
    params = params_of(1e-12)
    score = entropy_gradient.generator_score(
        linear, noise_scale=SCALE, num_importance=1
    )
    x, latent = jnp.array([0.7, -0.2]), jnp.array([1.0, 2.0, -1.0])
    found = jax.jit(score)(params, jax.random.key(0), x, latent)
    # W z = (.1, .8), so that x - g(z) is (.1, 0).
    np.testing.assert_allclose(found, [-0.1 / 0.36, 0.0], atol=1e-9)
    objective = entropy_gradient.generator_objective(
        energies.gaussian, linear, latent_dim=3, noise_scale=SCALE, num_importance=1
    )
    _, aux = jax.jit(objective.loss)(params, jax.random.key(0), jnp.zeros((5, 2)), ())
    np.testing.assert_allclose(aux.metrics["effective_importance"], 1.0)


def over_draws(monkeypatch, objective, params, x, num_draws):
    """Mean of the loss at one example over three nodes for every normal number that is
    drawn, in turn: exact for squares."""
    nodes, weights = normal_nodes(3)
    grid = jnp.array(list(itertools.product(nodes, repeat=num_draws)))
    weights = [np.prod(w) for w in itertools.product(weights, repeat=num_draws)]

    def loss(chosen):
        draws = [chosen[i] for i in range(num_draws)]

        def draw(key, shape, dtype):
            return jnp.full(shape, draws.pop(0), dtype)

        with monkeypatch.context() as patch:
            patch.setattr(jax.random, "normal", draw)
            value = objective.loss(params, jax.random.key(0), x[None], ())[0]
        assert not draws
        return value

    return jax.vmap(loss)(grid) @ jnp.array(weights)


def scalar(params, latent):
    return params["weight"] * latent[0] + params["shift"]


ONE = {"generator": {"weight": 1.2, "shift": 0.3}, "energy": 0.7}


def quadratic(a, x):
    return 0.5 * a * x**2


@pytest.mark.quick
@pytest.mark.parametrize("score_penalty", [0.0, 0.5])
def test_the_energy_s_loss_is_this_number(monkeypatch, score_penalty):
    """E = .35 x^2, an example at 2, draws of mean square .09 + 1.44 + .25; half the
    squared score at 2 is .98."""
    objective = entropy_gradient.energy_objective(
        quadratic, scalar, latent_dim=1, noise_scale=0.5, score_penalty=score_penalty
    )
    both = jax.value_and_grad(
        lambda p: over_draws(monkeypatch, objective, p, jnp.array(2.0), 2)
    )
    value, gradient = jax.jit(both)(ONE)
    contrast = 0.5 * (4 - 1.78)
    exact = 0.7 * contrast + score_penalty * 0.98
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    slope = contrast + score_penalty * 0.7 * 4
    np.testing.assert_allclose(gradient["energy"], slope, rtol=1e-12)


def test_the_posterior_rests_at_its_best_width_above_the_entropy(monkeypatch):
    """exp(2 posterior) = 1 / (1 + W^2 / s^2), the true posterior's variance: the bound
    is half a nat above the entropy, for the centre that it has wrong."""
    objective = entropy_gradient.posterior_objective(
        scalar, latent_dim=1, noise_scale=0.5
    )
    best = -0.5 * math.log(1 + 1.44 / 0.25)

    @jax.jit
    @jax.value_and_grad
    def bound(log_scale):
        params = ONE | {"posterior": log_scale[None]}
        return over_draws(monkeypatch, objective, params, jnp.array(9.0), 3)

    value, slope = bound(jnp.array(best))
    entropy = 0.5 * math.log(2 * math.pi * math.e * (1.44 + 0.25))
    np.testing.assert_allclose(value, entropy + 0.5, rtol=1e-12)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
    # Elsewhere: the square of the ratio of widths, less 1.
    _, slope = bound(jnp.array(best + 0.2))
    np.testing.assert_allclose(slope, math.exp(0.4) - 1, rtol=1e-12)


@pytest.mark.parametrize("widening, share", [(1.0, 0.785), (2.0, 0.979)])
def test_the_learned_width_finds_a_share_of_the_entropy_s_gradient(widening, share):
    """The same for every linear generator of one latent: with t, the latent that made
    the draw in units of the posterior, and h, the importance mean begun from it, 1 - E
    t h of standard normals. By a simulation of two million of them."""
    num = 20_000
    for weight, scale in ((1.2, 0.5), (0.6, 0.9)):
        objective = entropy_gradient.generator_objective(
            lambda params, x: 0.0 * x,
            scalar,
            latent_dim=1,
            noise_scale=scale,
            num_importance=20,
            widening=widening,
        )
        best = -0.5 * math.log(1 + weight**2 / scale**2)
        params = {
            "energy": (),
            "generator": {"weight": jnp.array(weight), "shift": jnp.array(0.3)},
            "posterior": jnp.array([best]),
        }
        found = gradients(objective, params, num, event=())["generator"]["weight"]
        entropy = weight / (weight**2 + scale**2)
        error = 4 * found.std() / entropy / num**0.5 + 1e-3  # and the simulation's
        np.testing.assert_allclose(-found.mean() / entropy, share, atol=error)
        assert error < 0.07


def test_the_effective_number_of_samples_is_told():
    """A generator that forgets its latent: N(0, 1) by N(z, 4) has a mean squared weight
    of 4 / 7^.5 exp(z^2 / 7), and the mean over z of its inverse is 7 / 12."""
    objective = entropy_gradient.generator_objective(
        quadratic, scalar, latent_dim=1, noise_scale=0.5, num_importance=500
    )
    params = ONE | {
        "generator": {"weight": 0.0, "shift": 0.3},
        "posterior": jnp.array([math.log(2)]),
    }
    _, aux = jax.jit(objective.loss)(params, jax.random.key(0), jnp.zeros(2_000), ())
    # Every one lies between 0 and 7^.5 / 4, of 500: a deviation of less than a third.
    share = aux.metrics["effective_importance"] / 500
    np.testing.assert_allclose(share, 7 / 12, atol=4 * 0.33 / 2_000**0.5)


def test_three_players_learn_a_normal_law():
    """Data N(1, 2): the energy comes to (x - 1)^2 / 4, the generator to W^2 + s^2 = 2
    around 1, the posterior to its best width."""
    energy = lambda p, x: 0.5 * p["precision"] * (x - p["mean"]) ** 2  # noqa: E731
    options = {"latent_dim": 1, "noise_scale": 0.5}
    make = entropy_gradient.generator_objective
    objectives = {
        "posterior": entropy_gradient.posterior_objective(scalar, **options),
        "generator": make(energy, scalar, **options, widening=2.0),
        "energy": entropy_gradient.energy_objective(energy, scalar, **options),
    }
    players = {
        name: training.Player((name,), objective, optax.adam(0.03))
        for name, objective in objectives.items()
    }
    params = {
        "energy": {"mean": jnp.array(0.5), "precision": jnp.array(1.0)},
        "generator": {"weight": jnp.array(0.8), "shift": jnp.array(0.5)},
        "posterior": jnp.array([math.log(0.1)]),
    }
    state = training.init_state(players, params, jax.random.key(0), 1, ema_decay=0.99)
    update = jax.vmap(
        training.make_update(players, ema_decay=0.99),
        in_axes=(training.AXES, 0),
        out_axes=(training.AXES, None),
        axis_name="device",
    )

    def one(state, key):
        return update(state, 1 + 2**0.5 * jax.random.normal(key, (1, 3, 256)))

    keys = jax.random.split(jax.random.key(1), 500)
    state, _ = jax.jit(lambda state: jax.lax.scan(one, state, keys))(state)
    found = state.ema_params
    weight = 1.75**0.5
    exact = {
        "energy": {"mean": 1.0, "precision": 0.5},
        "generator": {"shift": 1.0, "weight": weight},
        "posterior": [-0.5 * math.log(1 + weight**2 / 0.25)],
    }
    # Draws of an average over 100 updates of 256 have a mean to 1 % and a variance to
    # 1 %; of the entropy's gradient 2 % are missing; the players circle.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0.08), found, exact)


GENERATOR = (energies.gaussian, linear)
OPTIONS = {"latent_dim": 3, "noise_scale": 0.5}


@pytest.mark.parametrize(
    "make, arguments, options, message",
    [
        ("generator", GENERATOR, {"latent_dim": 0}, "latent_dim must be.*got 0"),
        ("generator", GENERATOR, {"noise_scale": 0}, "noise_scale must be pos.*got 0"),
        ("generator", GENERATOR, {"entropy_weight": -1}, "entropy_weight must.*got -1"),
        ("generator", GENERATOR, {"num_importance": 0}, "num_importance must.*got 0"),
        ("generator", GENERATOR, {"widening": 0}, "widening must be positive, got 0"),
        ("energy", GENERATOR, {"latent_dim": 1.5}, "latent_dim must be.*got 1.5"),
        ("energy", GENERATOR, {"noise_scale": -1}, "noise_scale must.*got -1"),
        ("energy", GENERATOR, {"score_penalty": -1}, "score_penalty must.*got -1"),
        ("posterior", (linear,), {"latent_dim": -1}, "latent_dim must be.*got -1"),
        ("posterior", (linear,), {"noise_scale": 0}, "noise_scale must be.*got 0"),
    ],
)
def test_bad_options_are_named(make, arguments, options, message):
    factory = getattr(entropy_gradient, f"{make}_objective")
    with pytest.raises(ValueError, match=message):
        factory(*arguments, **OPTIONS | options)


def test_shapes_that_do_not_belong_are_named():
    params = params_of(1.0)
    for make, arguments in (("generator", GENERATOR), ("energy", GENERATOR)):
        factory = getattr(entropy_gradient, f"{make}_objective")
        with pytest.raises(ValueError, match=r"generator must.*\(5,\), got \(2,"):
            factory(*arguments, **OPTIONS).loss(
                params, jax.random.key(0), jnp.zeros((4, 5)), ()
            )
    objective = entropy_gradient.posterior_objective(linear, **OPTIONS)
    with pytest.raises(ValueError, match=r"posterior must be.*\(3,\), got \(\)"):
        objective.loss(
            params | {"posterior": 0.0}, jax.random.key(0), jnp.zeros((4, 2)), ()
        )
