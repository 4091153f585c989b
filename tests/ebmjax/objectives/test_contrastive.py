"""Learning by sampling, against its exact fixed points.

The model of most tests is one-dimensional: E(x) = -(t1 x + t2 x^2), moved by
x <- x - grad E + s n from a start of mean 0 and variance v0. The chain is an AR(1) with
a = 1 + 2 t2, so that after K moves

    mean = t1 (1 - a^K) / (1 - a),  var = a^(2 K) v0 + s^2 (1 - a^(2 K)) / (1 - a^2),

and training is at rest where these are the data's mean and variance.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats
from cases import (
    DRAW_NOTHING,
    GAUSSIAN_PARAMS,
    NOT_OBJECTIVES,
    OBJECTIVES,
    PAIRS,
)

from ebmjax import energies, objectives, samplers, starts, training

S = 0.1
SAMPLER = samplers.langevin(step_size=1.0, temperature=S**2 / 2)

# K -> t1, t2, by solving the two equations above for data of mean 0.5, variance 0.04
# and a start of variance 1/3.
FIXED_POINTS = {
    1: (0.5, -0.35),
    5: (0.164245, -0.125559),
    20: (0.072283, -0.068485),
    100: (0.066987, -0.066987),
}


def linear_energy(params, x):
    return -(params[0] * x + params[1] * x**2)


def uniform(key, shape):
    """Mean 0, variance 1/3."""
    return jax.random.uniform(key, shape, minval=-1.0)


def position_of(state, info):
    return state.position


def law(params, num_steps, start_variance=1 / 3):
    """Exact mean and variance after K moves."""
    t1, t2 = np.asarray(params, np.float64)
    a = 1 + 2 * t2
    powers = a ** (2 * num_steps)
    mean = t1 * (1 - a**num_steps) / (1 - a)
    return mean, powers * start_variance + S**2 * (1 - powers) / (1 - a**2)


def quantiles(num, mean, variance):
    """Normal data without sampling error: exactly this mean and variance."""
    x = scipy.stats.norm.ppf((np.arange(num) + 0.5) / num)
    return jnp.asarray(mean + variance**0.5 * x / x.std(), jnp.float32)


def train(
    num_steps, batch, num_updates, rate, *, draw=uniform, start=None, energy=None
):
    """Training through the real objective and update; the last half's average."""
    objective = objectives.contrastive_divergence(
        energy or linear_energy,
        sampler=SAMPLER,
        num_steps=num_steps,
        start=start or starts.noise(draw),
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, num_updates, alpha=0.01))
    players = {"energy": training.Player(("energy",), objective, optimizer)}
    state = training.init_state(
        players, {"energy": jnp.zeros(2)}, jax.random.key(0), 1, ema_decay=0.99
    )
    update = training.pmap_update(players, ema_decay=0.99)
    for _ in range(num_updates):
        state, _ = update(state, batch[None, None])
    return np.asarray(state.ema_params["energy"])


@pytest.mark.parametrize(
    "num_steps", [1, 5, *(pytest.param(k, marks=pytest.mark.slow) for k in (20, 100))]
)
def test_training_ends_at_the_exact_fixed_point(num_steps):
    """The trained chain has the data's mean and variance, its density has not.

    A batch's mean has standard error 0.2 / sqrt(n) and its variance 0.04 sqrt(2 / n);
    the average over about 100 updates takes off a factor of ten, the optimizer's own
    wandering puts some back: five of one batch's standard errors are allowed.
    """
    n = 2048 if num_steps < 100 else 512
    params = train(num_steps, quantiles(n, 0.5, 0.04), 1200, 0.005)
    mean, variance = law(params, num_steps)
    np.testing.assert_allclose(mean, 0.5, atol=5 * 0.2 / n**0.5)
    np.testing.assert_allclose(variance, 0.04, rtol=5 * (2 / n) ** 0.5)
    # The parameters follow from the moments; dt/dmoments is at most about 1 here.
    np.testing.assert_allclose(params, FIXED_POINTS[num_steps], atol=0.03)
    # The "wrong model": exp(-E / T) of a short chain has another variance.
    model_variance = S**2 / 2 / (-2 * params[1])
    exact = S**2 / 2 / (-2 * FIXED_POINTS[num_steps][1])
    np.testing.assert_allclose(model_variance, exact, rtol=0.15)
    if num_steps <= 5:
        assert model_variance < 0.03  # against the data's 0.04


@pytest.mark.parametrize("num_steps", FIXED_POINTS)
def test_the_gradient_vanishes_at_the_fixed_point_and_nowhere_near(num_steps):
    """Through the objective's own gradient, many chains at once."""
    n = 200_000
    batch = quantiles(n, 0.5, 0.04)
    objective = objectives.contrastive_divergence(
        linear_energy, sampler=SAMPLER, num_steps=num_steps, start=starts.noise(uniform)
    )
    carry = objective.init(jax.random.key(0))

    @jax.jit
    def gradient(params):
        loss = lambda p: objective.loss(p, jax.random.key(1), batch, carry)[0]  # noqa: E731
        return jax.grad(loss)({"energy": params})["energy"]

    # d loss / d (t1, t2) = -(mean data moments) + (mean sample moments).
    params = jnp.array(FIXED_POINTS[num_steps])
    # var(x) = .04; var(x^2) = 4 mean^2 var + 2 var^2 = .0432 for a normal.
    errors = 5 * np.sqrt(np.array([0.04, 0.0432]) / n)
    # The six digits of the table move the moments by at most 1e-4.
    assert (np.abs(gradient(params)) < errors + 1e-4).all()
    mean, variance = law(params * 1.2, num_steps)
    expected = [mean - 0.5, variance + mean**2 - 0.04 - 0.25]
    np.testing.assert_allclose(gradient(params * 1.2), expected, atol=3e-3)
    assert np.abs(expected).max() > 5e-3


@pytest.mark.parametrize(
    "trained_steps, laws",
    [
        (20, {5: (0.27507, 0.10661), 10: (0.40676, 0.05464), 20: (0.5, 0.04)}),
        (20, {200: (0.52773, 0.03919)}),
        (5, {20: (0.65204, 0.02277)}),
    ],
)
def test_another_number_of_moves_gives_another_law(trained_steps, laws):
    """The chain is the model: its K must be the training's."""
    n = 100_000
    _, positions = samplers.sample_chains(
        SAMPLER,
        partial(linear_energy, jnp.array(FIXED_POINTS[trained_steps])),
        jax.random.key(0),
        uniform(jax.random.key(1), (n,)),
        max(laws),
        collect=position_of,
    )
    for num_steps, (mean, variance) in laws.items():
        x = np.asarray(positions[num_steps - 1])
        error = 5 * (variance / n) ** 0.5 + 1e-4  # and the table's digits
        np.testing.assert_allclose(x.mean(), mean, atol=error)
        # A uniform start has less kurtosis than a normal: smaller errors than this.
        np.testing.assert_allclose(x.var(), variance, rtol=5 * (2 / n) ** 0.5 + 2e-3)


def test_the_chain_can_be_right_where_the_density_does_not_exist():
    """A start narrower than the data makes t2 positive: exp(-E) has no integral."""
    n = 2048
    draw = lambda key, shape: 0.001**0.5 * jax.random.normal(key, shape)  # noqa: E731
    params = train(5, quantiles(n, 0.5, 0.16), 1200, 0.005, draw=draw)
    mean, variance = law(params, 5, start_variance=0.001)
    np.testing.assert_allclose(mean, 0.5, atol=5 * 0.4 / n**0.5)
    np.testing.assert_allclose(variance, 0.16, rtol=5 * (2 / n) ** 0.5)
    np.testing.assert_allclose(params, [0.060466, 0.126933], atol=0.02)
    assert params[1] > 0.1


def test_divergence_to_the_chains_own_law_falls_with_every_move():
    """KL of N(mean_K, var_K) to the stationary law, begun at N(0, 1/3)."""
    expected = [14.87, 8.01, 4.27, 2.25, 1.18, 0.618, 0.328, 0.176, 0.096, 0.053]
    n = 100_000
    _, positions = samplers.sample_chains(
        SAMPLER,
        partial(linear_energy, jnp.array(FIXED_POINTS[5])),
        jax.random.key(0),
        3**-0.5 * jax.random.normal(jax.random.key(1), (n,)),
        9,
        collect=position_of,
    )
    stationary_mean, stationary_variance = 0.65406, 0.02277
    means, variances = np.asarray(positions.mean(1)), np.asarray(positions.var(1))
    ratio = variances / stationary_variance
    shift = (means - stationary_mean) ** 2 / stationary_variance
    divergence = 0.5 * (ratio + shift - 1 - np.log(ratio))
    # d KL = (ratio - 1) / 2 dvar/var + shift^.5 dmean / std; five standard errors.
    error = 5 * (np.abs(ratio - 1) / 2 * (2 / n) ** 0.5 + np.sqrt(shift * ratio / n))
    assert (np.abs(divergence - expected[1:]) < error + 0.006).all()  # table's digits
    assert (np.diff(np.r_[expected[0], divergence]) < 0).all()


def test_pythagorean_identity_of_matched_moments():
    """KL(q|p) = KL(q|p*) + KL(p*|p) for any p of the family and q with p*'s moments."""
    x = np.linspace(-3, 3, 61)

    def log_density(params):
        energy = jax.vmap(partial(energies.gaussian, params))(jnp.asarray(x))
        return np.asarray(jax.nn.log_softmax(-energy), np.float64)

    q = np.exp(-((np.abs(x - 0.3) - 1.0) ** 2) * 3)
    q /= q.sum()  # two humps: far from the family

    def moment_gap(theta):
        p = np.exp(log_density({"mean": theta[0], "precision": theta[1]}))
        return [(p - q) @ x, (p - q) @ x**2]

    best = scipy.optimize.root(moment_gap, [0.3, 0.8]).x

    def divergence(log_p, log_r):
        return np.exp(log_p) @ (log_p - log_r)

    log_q, log_best = np.log(q), log_density({"mean": best[0], "precision": best[1]})
    for other in ({"mean": -0.5, "precision": 2.0}, {"mean": 1.0, "precision": 0.3}):
        log_other = log_density(other)
        left = divergence(log_q, log_other)
        right = divergence(log_q, log_best) + divergence(log_best, log_other)
        np.testing.assert_allclose(left, right, rtol=1e-5)
    entropy = lambda log_p: -np.exp(log_p) @ log_p  # noqa: E731
    np.testing.assert_allclose(
        divergence(log_q, log_best), entropy(log_best) - entropy(log_q), rtol=1e-4
    )


def double_well(params, x):
    return params[0] * x**2 + params[1] * x**4


@pytest.mark.slow
def test_persistent_chains_learn_the_maximum_likelihood():
    """Against exact maximum likelihood of exp(-c1 x^2 - c2 x^4), Z by quadrature."""
    grid = np.linspace(-4, 4, 4001)
    truth = np.array([-1.0, 0.5])
    weights = np.exp(-(truth[0] * grid**2 + truth[1] * grid**4))
    cumulative = np.cumsum(weights) / weights.sum()
    n = 1024
    batch = np.interp((np.arange(n) + 0.5) / n, cumulative, grid)

    def negative_log_likelihood(c):
        log_weights = -(c[0] * grid**2 + c[1] * grid**4)
        log_z = np.logaddexp.reduce(log_weights) + np.log(grid[1] - grid[0])
        return c[0] * (batch**2).mean() + c[1] * (batch**4).mean() + log_z

    exact = scipy.optimize.minimize(negative_log_likelihood, [0.0, 1.0]).x

    objective = objectives.contrastive_divergence(
        double_well,
        # Begun within reach: far out a quartic's drift overshoots and is refused.
        sampler=samplers.mala(step_size=0.1),
        num_steps=5,
        start=starts.replay(
            lambda key, shape: 1.5 * uniform(key, shape),
            event_shape=(),
            capacity=4096,
            reinit_prob=0.0,
        ),
    )
    rate = optax.cosine_decay_schedule(0.02, 1500, alpha=0.02)
    players = {"energy": training.Player(("energy",), objective, optax.adam(rate))}
    params = {"energy": jnp.array([0.0, 1.0])}
    state = training.init_state(players, params, jax.random.key(0), 1, ema_decay=0.99)
    update = training.pmap_update(players, ema_decay=0.99)
    rows = jnp.asarray(batch, jnp.float32)[None, None]
    for _ in range(1500):
        state, _ = update(state, rows)
    # Fisher information of (x^2, x^4) at the truth; 4096 chains and an average over 100
    # updates of correlated chains: five standard errors of 4096 independent draws.
    moments = np.stack([grid**2, grid**4])
    p = np.exp(-exact @ moments)
    p /= p.sum()
    centred = moments - (moments @ p)[:, None]
    covariance = np.linalg.inv((centred * p) @ centred.T) / 4096
    found = np.asarray(state.ema_params["energy"])
    assert (np.abs(found - exact) < 5 * np.sqrt(np.diag(covariance))).all()
    memory = np.asarray(state.carry["energy"].memory)
    assert memory.shape == (1, 4096)
    np.testing.assert_allclose(memory.var(), (batch**2).mean(), rtol=0.1)


# --- the options -------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def loss_and_gradient(objective, params, batch, key=0):
    """Compiled as a whole: operation by operation it takes a hundred compilations."""
    carry = objective.init(jax.random.key(9))
    loss = lambda p: objective.loss(p, jax.random.key(key), batch, carry)  # noqa: E731
    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, aux, gradient["energy"]


STILL = samplers.langevin(step_size=1e-30, temperature=0.0)
"""A chain that stays where it begins."""


@pytest.mark.quick
def test_contrastive_divergence_of_a_quadratic_is_this_number():
    """E = theta x^2 / 2, data 1 and 3, chains that stay at 2: theta (5 - 4) / 2."""
    energy = lambda theta, x: 0.5 * theta * x**2  # noqa: E731
    objective = objectives.contrastive_divergence(
        energy,
        sampler=STILL,
        num_steps=3,
        start=starts.noise(lambda key, shape: jnp.full(shape, 2.0)),
        energy_penalty=0.1,
    )
    batch = jnp.array([1.0, 3.0])
    value, aux, gradient = loss_and_gradient(
        objective, {"energy": jnp.array(4.0)}, batch
    )
    # Energies 2 and 18 of data, 8 of samples: penalty 0.1 (164 + 64).
    np.testing.assert_allclose(value, 4.0 * 0.5 + 0.1 * 228, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0.5 + 0.1 * 2 * 228 / 4.0, rtol=1e-6)
    metrics = {name: float(x) for name, x in aux.metrics.items()}
    assert metrics["energy_data"] == 10.0
    assert metrics["energy_model"] == 8.0
    assert metrics["energy_difference"] == 2.0
    assert metrics["negatives_abs_max"] == 2.0
    np.testing.assert_allclose(metrics["chain_gradient_norm"], 8.0, rtol=1e-6)


def test_no_gradient_runs_through_the_chain():
    """E = theta x^2 / 2 from data x: samples move with theta, the gradient must not.

    With x' = (1 - h theta) x the derivative of the loss is (x^2 - x'^2) / 2; through
    the chain it would have theta h (1 - h theta) x^2 more. Every number on the way is
    exact in float32.
    """
    energy = lambda theta, x: 0.5 * theta * x**2  # noqa: E731
    h, theta = 0.25, 2.0
    objective = partial(
        objectives.contrastive_divergence,
        energy,
        sampler=samplers.langevin(step_size=h, temperature=0.0),
        num_steps=1,
        start=starts.data(),
    )
    batch, params = jnp.array([3.0]), {"energy": jnp.array(theta)}
    _, _, gradient = loss_and_gradient(objective(), params, batch)
    plain = 0.5 * (9 - (1 - h * theta) ** 2 * 9)
    np.testing.assert_allclose(gradient, plain, rtol=1e-6)

    # Improved: + d/dtheta of theta_fixed x'^2 / 2 with x' = (1 - h theta) x.
    value, _, gradient = loss_and_gradient(
        objective(last_step_gradient=True), params, batch
    )
    through = theta * (1 - h * theta) * 3 * (-h * 3)
    np.testing.assert_allclose(gradient, plain + through, rtol=1e-6)
    np.testing.assert_allclose(value, theta * 9 / 2, rtol=1e-6)  # the two E(x') cancel


def test_the_last_move_alone_is_differentiated():
    """Three moves: x_2 = c^2 x is fixed, x_3 = c x_2 is not."""
    energy = lambda theta, x: 0.5 * theta * x**2  # noqa: E731
    h, theta = 0.1, 2.0
    c = 1 - h * theta
    objective = objectives.contrastive_divergence(
        energy,
        sampler=samplers.langevin(step_size=h, temperature=0.0),
        num_steps=3,
        start=starts.data(),
        last_step_gradient=True,
    )
    params = {"energy": jnp.array(theta)}
    _, aux, gradient = loss_and_gradient(objective, params, jnp.array([3.0]))
    plain = 0.5 * (9 - c**6 * 9)
    through = theta * c * (c**2 * 3) * (-h * c**2 * 3)
    np.testing.assert_allclose(gradient, plain + through, rtol=1e-6)
    # The info is the mean over all three moves, the attached one included.
    np.testing.assert_allclose(
        aux.metrics["chain_gradient_norm"], 2 * 3 * (c + c**2 + c**3) / 3, rtol=1e-6
    )


def test_the_gradient_at_the_end_of_a_chain_is_not_taken():
    """The end of a chain is fixed before the energy there is known. Three moves take
    three gradients: one at the start, and two in the loop."""
    energy = lambda theta, x: 0.5 * theta * jnp.sum((jnp.eye(7) @ x) ** 2)  # noqa: E731
    h, theta = 0.1, 2.0
    c = 1 - h * theta
    objective = objectives.contrastive_divergence(
        energy,
        sampler=samplers.langevin(step_size=h, temperature=0.0),
        num_steps=3,
        start=starts.data(),
    )
    params, batch = {"energy": jnp.array(theta)}, jnp.ones((5, 7))
    carry = objective.init(jax.random.key(0))

    def loss(params):
        return objective.loss(params, jax.random.key(1), batch, carry)

    value, aux = jax.jit(loss)(params)
    np.testing.assert_allclose(value, theta * 7 / 2 * (1 - c**6), rtol=1e-6)
    # The mean over the first two moves; the third is left out.
    norm = theta * 7**0.5 * (c + c**2) / 2
    np.testing.assert_allclose(aux.metrics["chain_gradient_norm"], norm, rtol=1e-6)
    text = jax.jit(loss).lower(params).compile().as_text()
    # Beside the loop of moves are those of five rounds that draw random numbers.
    assert set(re.findall(r'known_trip_count":{"n":"(\d+)"', text)) == {"2", "5"}
    # Two products for each gradient that is written, and one for the energy of the
    # ends. The start has that of the data.
    assert sum(" dot(" in line for line in text.splitlines()) == 2 + 2 + 1


def test_entropy_term_is_the_log_distance_to_the_nearest_other_sample():
    """Chains at 0, 1, 3 after one move: distances 1, 1, 2. Neighbours are fixed."""
    energy = lambda theta, x: -theta * x  # a move adds h theta to every sample  # noqa: E731
    h = 0.5
    objective = objectives.contrastive_divergence(
        energy,
        sampler=samplers.langevin(step_size=h, temperature=0.0),
        num_steps=1,
        start=starts.data(),
        entropy_weight=0.6,
    )
    batch, theta = jnp.array([0.0, 1.0, 3.0]), 2.0
    value, _, gradient = loss_and_gradient(
        objective, {"energy": jnp.array(theta)}, batch
    )
    contrast = theta * h * theta  # E(x) - E(x + h theta) = h theta^2
    entropy = np.log(2.0) / 3
    np.testing.assert_allclose(value, contrast - 0.6 * entropy, rtol=1e-6)
    # d log distance / d x: 1/(x - nearest) = -1, 1, 1/2, each times dx/dtheta = h.
    through = h * (-1 + 1 + 0.5) / 3
    np.testing.assert_allclose(gradient, h * theta - 0.6 * through, rtol=1e-6)


def test_samples_that_coincide_leave_the_entropy_term_finite():
    objective = objectives.contrastive_divergence(
        linear_energy,
        sampler=STILL,
        num_steps=1,
        start=starts.noise(lambda key, shape: jnp.zeros(shape)),
        entropy_weight=1.0,
    )
    value, _, gradient = loss_and_gradient(
        objective, {"energy": jnp.ones(2)}, jnp.zeros(4)
    )
    # log sqrt(tiny): about -43.7 for float32; energies are all zero.
    np.testing.assert_allclose(value, 43.67, rtol=1e-3)
    np.testing.assert_allclose(gradient, np.zeros(2), atol=1e-20)


def test_data_noise_has_its_scale_and_follows_its_schedule():
    """Energy x^2: mean energy of zeros with noise is scale^2; scale is 1, 2, 3, ...."""
    n = 20_000
    energy = lambda params, x: params * x**2  # noqa: E731
    objective = objectives.contrastive_divergence(
        energy,
        sampler=STILL,
        num_steps=1,
        start=starts.data(),
        data_noise_scale=lambda count: 1.0 + count,
    )
    params, batch = {"energy": jnp.array(1.0)}, jnp.zeros(n)
    carry, loss = objective.init(jax.random.key(0)), jax.jit(objective.loss)
    for scale in (1.0, 2.0, 3.0):
        value, aux = loss(params, jax.random.key(1), batch, carry)
        error = 5 * (2 / n) ** 0.5
        np.testing.assert_allclose(aux.metrics["energy_data"], scale**2, rtol=error)
        # Data starts see the noisy batch, and these chains stay there.
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
        carry = aux.carry
    assert carry.count == 3


def test_replay_writes_the_ends_back_to_where_they_came_from():
    """Chains that add 1 a move: after each call the drawn slots are 2 higher."""
    start = starts.replay(
        lambda key, shape: jnp.asarray(100.0 * np.arange(*shape), jnp.float32),
        event_shape=(),
        capacity=8,
        reinit_prob=0.0,
    )
    objective = objectives.contrastive_divergence(
        lambda params, x: -params * x,
        sampler=samplers.langevin(step_size=1.0, temperature=0.0),
        num_steps=2,
        start=start,
    )
    carry, loss = objective.init(jax.random.key(0)), jax.jit(objective.loss)
    params, batch = {"energy": jnp.array(1.0)}, jnp.zeros(3)
    total = 0
    for key in range(4):
        before = np.asarray(carry.memory)
        _, aux = loss(params, jax.random.key(key), batch, carry)
        carry = aux.carry
        moved = np.asarray(carry.memory) - before
        assert sorted(moved) == [0] * 5 + [2] * 3
        total += moved
    assert (total > 0).sum() > 3  # not always the same slots


def test_every_public_objective_has_a_case():
    factories = {
        name for name in objectives.__all__ if name.islower() and name.isidentifier()
    }
    assert factories - NOT_OBJECTIVES - PAIRS == {
        name.split(",")[0] for name in OBJECTIVES
    }


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_uses_no_key_twice_and_repeats_itself_with_its_key_alone(name):
    objective, batch = OBJECTIVES[name](), jax.random.normal(jax.random.key(2), (16, 2))
    with jax.debug_key_reuse(True):  # raises where a key is used twice
        _, aux, one = loss_and_gradient(objective, GAUSSIAN_PARAMS, batch, key=1)
        _, again, same = loss_and_gradient(objective, GAUSSIAN_PARAMS, batch, key=1)
        _, _, other = loss_and_gradient(objective, GAUSSIAN_PARAMS, batch, key=2)
    # The gradient: of self-contrastive estimation the value is a constant.
    one, same, other = (tuple(g["mean"].tolist()) for g in (one, same, other))
    assert one == same
    assert (one == other) == (name in DRAW_NOTHING)
    jax.tree.map(np.testing.assert_array_equal, aux.carry, again.carry)
    init, end = jax.eval_shape(objective.init, jax.random.key(0)), aux.carry
    assert jax.tree.structure(init) == jax.tree.structure(end)
    assert jax.tree.map(jnp.shape, init) == jax.tree.map(jnp.shape, end)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"energy_penalty": -1.0}, "energy_penalty must not be negative, got -1"),
        ({"entropy_weight": -1.0}, "entropy_weight must not be negative, got -1"),
        ({"data_noise_scale": -0.1}, "data_noise_scale must not be negative, got -0.1"),
    ],
)
def test_contrastive_divergence_refuses_what_makes_no_sense(options, message):
    arguments = {"sampler": STILL, "num_steps": 1, "start": starts.data()}
    with pytest.raises(ValueError, match=message):
        objectives.contrastive_divergence(linear_energy, **arguments | options)


def test_the_nearest_other_sample_needs_another_sample():
    objective = objectives.contrastive_divergence(
        linear_energy,
        sampler=STILL,
        num_steps=1,
        start=starts.data(),
        entropy_weight=1.0,
    )
    with pytest.raises(ValueError, match="batch of at least 2 examples, got 1"):
        loss_and_gradient(objective, {"energy": jnp.ones(2)}, jnp.zeros(1))
