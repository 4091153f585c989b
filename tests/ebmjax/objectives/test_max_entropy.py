"""Maximum entropy generators: the information in numbers, whose gradient goes where."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from expectations import normal_nodes

from ebmjax import energies, networks, samplers, training
from ebmjax.networks.layer import batch_norm
from ebmjax.objectives import max_entropy
from ebmjax.types import DEVICE

pytestmark = pytest.mark.usefixtures("quick_compilation")

ESTIMATORS = ("jsd", "nce", "donsker_varadhan")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def linear(slope, x):
    return jnp.sum(slope * x)


def quadratic(precision, x):
    return 0.5 * jnp.sum(precision * x**2)


def scaled(scale, z):
    return scale * z


def product(slope, x, z):
    return slope * jnp.sum(x * z)


def generator_objective(**options):
    options = {"latent_dim": 1, "information_weight": 1.0} | options
    return max_entropy.generator_objective(quadratic, scaled, product, **options)


def energy_objective(energy=quadratic, generator=scaled, **options):
    options = {"latent_dim": 1, "score_penalty": 0.1} | options
    return max_entropy.energy_objective(energy, generator, **options)


PARAMS = {"energy": 0.7, "generator": 1.3, "statistics": 0.4}


@functools.partial(jax.jit, static_argnums=0)
def loss_of(objective, params, key, batch):
    return objective.loss(params, key, batch, ())


@functools.partial(jax.jit, static_argnums=0)
def slopes_of(objective, params, key, batch):
    """Returns `((value, aux), gradient)`."""
    return jax.value_and_grad(
        lambda p: objective.loss(p, key, batch, ()), has_aux=True
    )(params)


def test_the_penalty_is_the_whole_squared_slope_or_its_mean_over_pixels():
    """E = a . x: |a|^2, or with "channel_mean" |a|^2 / (H W); of vectors the same."""
    key = jax.random.key(0)
    for shape in ((5,), (4, 6, 3)):
        rng = np.random.default_rng(0)
        slope = rng.normal(size=shape).astype(np.float32)
        batch = rng.normal(size=(7, *shape)).astype(np.float32)
        square = float(np.sum(slope**2))
        params = {"energy": slope, "generator": jnp.zeros(shape)}
        for reduction in ("sum", "channel_mean"):
            objective = energy_objective(
                linear,
                lambda shift, z: shift,
                score_penalty=3.0,
                reduction=reduction,
                penalty_on="data_and_model",
            )
            value, aux = loss_of(objective, params, key, batch)
            pixels = 24 if reduction == "channel_mean" and len(shape) == 3 else 1
            np.testing.assert_allclose(
                [aux.metrics["score_square_data"], aux.metrics["score_square_model"]],
                square / pixels,
                rtol=1e-5,
            )
            # Twice three times the penalty, and the data's own mean energy.
            difference = float(np.sum(batch * slope[None])) / 7
            np.testing.assert_allclose(
                value, difference + 6 * square / pixels, rtol=1e-5
            )


def test_the_penalty_has_no_half_and_is_on_the_data_alone():
    """E = a x^2 / 2: a^2 x^2 at the data, whatever the draws; d/da is 2 w a x^2."""
    batch = jnp.array([[1.0], [3.0]])

    @jax.jit
    @jax.value_and_grad
    def penalty(a, scale):
        params = {"energy": a, "generator": scale}
        with_penalty, without = (
            energy_objective(score_penalty=w).loss(params, jax.random.key(1), batch, ())
            for w in (0.3, 0.0)
        )
        assert "score_square_data" not in without[1].metrics
        return with_penalty[0] - without[0]

    for scale in (1.0, 100.0):
        value, slope = penalty(0.7, scale)
        rounding = 1e-6 * 0.7 * scale**2 * 20  # of what is subtracted
        np.testing.assert_allclose(value, 0.3 * 0.49 * 5, atol=1e-6 + rounding)
        np.testing.assert_allclose(slope, 0.6 * 0.7 * 5, atol=1e-5 + rounding)


def test_each_penalty_is_at_its_own_points():
    """E = a x^2 / 2, data at 1 and 3, every draw at 2: a^2 5 and a^2 4."""
    objective = energy_objective(
        generator=lambda place, z: jnp.full(1, place), penalty_on="data_and_model"
    )
    params = {"energy": 0.7, "generator": 2.0}
    batch = jnp.array([[1.0], [3.0]])
    value, aux = loss_of(objective, params, jax.random.key(0), batch)
    np.testing.assert_allclose(aux.metrics["score_square_data"], 0.49 * 5, rtol=1e-6)
    np.testing.assert_allclose(aux.metrics["score_square_model"], 0.49 * 4, rtol=1e-6)
    exact = 0.35 * (5 - 4) + 0.1 * 0.49 * 9
    np.testing.assert_allclose(value, exact, rtol=1e-6)


def test_every_call_draws_latents_of_its_own_key():
    """E = a x^2 / 2 of x = g z: mean energies are chi-squared of the batch's size."""
    keys, batch = jax.random.split(jax.random.key(0), 4_000), jnp.zeros((8, 1))
    mean = 0.7 * 1.3**2 / 2
    for objective in (energy_objective(), generator_objective()):
        one = lambda key, o=objective: o.loss(PARAMS, key, batch, ())[1].metrics  # noqa: E731
        found = np.asarray(jax.jit(jax.vmap(one))(keys)["energy_model"]) / mean
        deviation = (2 / 8) ** 0.5
        np.testing.assert_allclose(found.mean(), 1, atol=4 * deviation / 4_000**0.5)
        # Of a chi-squared of 8 degrees the kurtosis is 3 + 12 / 8.
        error = 4 * ((3.5) / 4_000) ** 0.5
        np.testing.assert_allclose(found.var(), deviation**2, rtol=error)


def test_other_latents_are_what_they_are_called():
    key, latents = jax.random.key(0), jax.random.normal(jax.random.key(1), (50, 2))

    def rows(x):
        return {tuple(row) for row in np.asarray(x).tolist()}

    permuted = max_entropy._others(key, latents, "permutation", "jsd")
    assert rows(permuted) == rows(latents) and np.any(permuted != latents)
    # Coordinates change places each for themselves: the pairs are new ones.
    shuffled = max_entropy._others(key, latents, "shuffle_dimensions", "jsd")
    np.testing.assert_array_equal(np.sort(shuffled, 0), np.sort(latents, 0))
    assert len(rows(shuffled) & rows(latents)) < 10
    fresh = max_entropy._others(key, latents, "fresh", "jsd")
    assert not np.isin(fresh, latents).any() and fresh.shape == latents.shape


def information_of(objective, params, key, num):
    _, aux = loss_of(objective, params, key, jnp.zeros((num, 1)))
    return aux.metrics["information"]


@pytest.mark.parametrize("marginal", ["permutation", "shuffle_dimensions", "fresh"])
@pytest.mark.usefixtures("float64")
def test_what_cannot_tell_draws_from_latents_finds_no_information(marginal):
    """T = 0: -2 log 2 for "jsd", 0 for the others, exactly."""
    for estimator, exact in zip(ESTIMATORS, (-2 * math.log(2), 0.0, 0.0)):
        objective = generator_objective(estimator=estimator, marginal=marginal)
        found = information_of(
            objective, PARAMS | {"statistics": 0.0}, jax.random.key(0), 9
        )
        np.testing.assert_allclose(found, exact, atol=1e-12)


@pytest.mark.parametrize("marginal", ["permutation", "shuffle_dimensions", "fresh"])
@pytest.mark.usefixtures("float64")
def test_the_information_of_a_bilinear_statistic(marginal):
    """x = g z, T = a x z, and with c = a g the values by quadrature over two normals;
    Donsker and Varadhan's is c + log(1 - c^2) / 2. Of 100 times 2,000 rows."""
    c = 0.4 * 1.3
    nodes, weights = normal_nodes(120)
    own, other = np.meshgrid(nodes, nodes, indexing="ij")
    area = np.outer(weights, weights)
    exact = {
        "jsd": -(weights * np.logaddexp(0, -c * nodes**2)).sum()
        - (area * np.logaddexp(0, c * own * other)).sum(),
        "donsker_varadhan": c + 0.5 * math.log(1 - c**2),
    }
    keys = jax.random.split(jax.random.key(3), 100)
    for estimator, value in exact.items():
        objective = generator_objective(estimator=estimator, marginal=marginal)
        one = functools.partial(information_of, objective, PARAMS, num=2_000)
        found = np.asarray(jax.jit(functools.partial(jax.lax.map, one))(keys))
        # Of order 1 / n: fixed points of a permutation; the logarithm's curvature,
        # half of the relative variance (1 - c^2) / sqrt(1 - 4 c^2) of exp T, which is
        # infinite for c = .52: what the standard error allows covers it here.
        error = 4 * found.std() / 10 + 3 / 2_000
        np.testing.assert_allclose(found.mean(), value, atol=error)


@pytest.mark.usefixtures("float64")
def test_noise_contrastive_information_of_two_rows_is_a_double_integral():
    """The mean over two normals of T(own) - log mean exp(T(own), T(other)); its most is
    the logarithm of the number of rows."""
    c = 0.4 * 1.3
    nodes, weights = normal_nodes(120)
    own, other = np.meshgrid(nodes, nodes, indexing="ij")
    terms = c * own**2 - np.logaddexp(c * own**2, c * own * other) + math.log(2)
    exact = (np.outer(weights, weights) * terms).sum()
    keys = jax.random.split(jax.random.key(5), 200_000)
    for marginal in ("permutation", "fresh"):
        objective = generator_objective(estimator="nce", marginal=marginal)
        one = functools.partial(information_of, objective, PARAMS, num=2)
        found = np.asarray(jax.jit(jax.vmap(one))(keys))
        np.testing.assert_allclose(
            found.mean(), exact, atol=4 * found.std() / len(keys) ** 0.5
        )
    sure = PARAMS | {"statistics": 1e6}
    objective = max_entropy.generator_objective(
        quadratic,
        scaled,
        lambda slope, x, z: -slope * jnp.sum((x - 1.3 * z) ** 2),
        latent_dim=3,
        information_weight=1.0,
        estimator="nce",
    )
    batch = jnp.zeros((32, 3))
    _, aux = loss_of(objective, sure, jax.random.key(0), batch)
    np.testing.assert_allclose(aux.metrics["information"], math.log(32), rtol=1e-9)


@pytest.mark.usefixtures("float64")
def test_the_loss_with_weight_one_half_is_the_binary_cross_entropy():
    """BCE over 2 N logits, labels 1 for the joint ones, is minus half the information:
    the same value and the same gradients in both networks."""

    def statistics(slope, x, z):
        return slope * jnp.sum(x * z) + jnp.sum(x**2)

    key, batch = jax.random.key(2), jnp.zeros((50, 3))
    objective = max_entropy.generator_objective(
        quadratic,
        scaled,
        statistics,
        latent_dim=3,
        information_weight=0.5,
        marginal="permutation",
    )

    def released(params):
        # The latents that the objective draws from this key.
        latent_key, marginal_key = jax.random.split(key)
        z = jax.random.normal(latent_key, (50, 3), jnp.float64)
        others = jax.random.permutation(marginal_key, z)
        x = params["generator"] * z
        one = functools.partial(statistics, params["statistics"])
        logits = jnp.concatenate([jax.vmap(one)(x, z), jax.vmap(one)(x, others)])
        labels = jnp.repeat(jnp.array([1.0, 0.0]), 50)
        cross_entropy = optax.sigmoid_binary_cross_entropy(logits, labels).mean()
        energy = jax.vmap(quadratic, (None, 0))(params["energy"], x).mean()
        return energy + cross_entropy, cross_entropy

    (value, aux), gradient = slopes_of(objective, PARAMS, key, batch)
    released = jax.jit(jax.value_and_grad(released, has_aux=True))
    (expected, cross_entropy), slopes = released(PARAMS)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(
        aux.metrics["information"], -2 * cross_entropy, rtol=1e-12
    )
    for name in ("generator", "statistics"):
        np.testing.assert_allclose(gradient[name], slopes[name], rtol=1e-10)
    assert gradient["energy"] == 0 and slopes["energy"] != 0


def test_nobody_moves_another_player_s_networks():
    key, batch = jax.random.key(0), jnp.asarray(np.linspace(-1, 2, 8))[:, None]
    for estimator in ESTIMATORS:
        objective = generator_objective(estimator=estimator)
        _, slopes = slopes_of(objective, PARAMS, key, batch)
        assert slopes["energy"] == 0
        assert slopes["generator"] != 0 and slopes["statistics"] != 0
    for options in (
        {},
        {"penalty_on": "data_and_model"},
        {"sampler": samplers.mala(step_size=0.1), "num_steps": 2},
    ):
        objective = energy_objective(**options)
        _, slopes = slopes_of(objective, PARAMS, key, batch)
        assert slopes["generator"] == 0 and slopes["statistics"] == 0
        assert slopes["energy"] != 0


@pytest.mark.parametrize("statistics", [product, None])
def test_without_information_the_generator_sees_the_energy_alone(statistics):
    objective = max_entropy.generator_objective(
        quadratic, scaled, statistics, latent_dim=1, information_weight=0.0
    )
    batch = jnp.zeros((100, 1))
    (value, aux), slopes = slopes_of(objective, PARAMS, jax.random.key(0), batch)
    assert slopes["statistics"] == 0
    assert ("information" in aux.metrics) == (statistics is not None)
    # Mean energy a g^2 mean z^2 / 2: its slope is 2 / g of it.
    np.testing.assert_allclose(slopes["generator"], 2 * value / 1.3, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_statistics_network_learns_whether_there_is_information(estimator):
    """The identity has much, what ignores its latent none."""
    network = networks.mlp_statistics((2,), latent_dim=2, widths=(32, 32))
    found = {}
    for name, generator in (
        ("identity", lambda params, z: z),
        ("constant", lambda params, z: jnp.ones(2)),
    ):
        objective = max_entropy.generator_objective(
            quadratic,
            generator,
            network,
            latent_dim=2,
            information_weight=1.0,
            estimator=estimator,
        )
        optimizer = optax.adam(3e-3)
        batch = jnp.zeros((128, 2))

        def update(carry, key, objective=objective, batch=batch, optimizer=optimizer):
            params, opt_state = carry

            held = {"energy": 1.0, "generator": ()}
            slope, aux = jax.grad(
                lambda p: objective.loss(held | {"statistics": p}, key, batch, ()),
                has_aux=True,
            )(params)
            move, opt_state = optimizer.update(slope, opt_state)
            params = optax.apply_updates(params, move)
            return (params, opt_state), aux.metrics["information"]

        params, _ = network.init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 600)
        _, history = jax.lax.scan(update, (params, optimizer.init(params)), keys)
        found[name] = float(history[-100:].mean())
    if estimator == "jsd":
        # Binary cross-entropies: well below log 2, and within .01 of it.
        assert -found["identity"] / 2 < 0.35
        np.testing.assert_allclose(-found["constant"] / 2, math.log(2), atol=0.01)
    else:
        assert found["identity"] > 1.5
        np.testing.assert_allclose(found["constant"], 0.0, atol=0.03)


@pytest.mark.parametrize(
    "options, temperature, prior",
    [
        ({}, 1.0, 1.0),
        ({"temperature": 0.5}, 0.5, 1.0),
        ({"temperature": 0.5, "prior": False}, 0.5, 0.0),
    ],
)
def test_chains_of_latents_make_negatives_of_the_latent_s_posterior(
    options, temperature, prior
):
    """E = a x^2 / 2 of x = g z at temperature T: the latent's precision is 1 + a g^2 /
    T (without the 1 and the prior), and mean energy d a g^2 / 2 over that."""
    a, g = 0.7, 1.3
    precision = a * g**2 / temperature + prior
    objective = energy_objective(
        latent_dim=4, sampler=samplers.mala(step_size=0.2), num_steps=60, **options
    )
    batch = jnp.zeros((20_000, 4))
    _, aux = loss_of(objective, PARAMS, jax.random.key(0), batch)
    exact = 4 * a * g**2 / 2 / precision
    # A chi-squared of 4 degrees: its deviation is its mean over sqrt 2.
    error = 4 * exact / 2**0.5 / 20_000**0.5
    np.testing.assert_allclose(aux.metrics["energy_model"], exact, atol=error)
    assert 0.5 < aux.metrics["chain_acceptance_rate"] < 1


# --- batch statistics


class Normalised(nn.Module):
    """A generator of one number whose batch statistics can be followed on paper."""

    @nn.compact
    def __call__(self, z, train=False):
        return batch_norm(z, train)


GENERATOR = networks.from_module(Normalised(), (2,))


def of_device(loss):
    """As the update calls it: one device of the mapped axis."""
    mapped = jax.vmap(
        lambda params, key, batch: loss(params, key, batch, ()),
        (None, None, 0),
        axis_name=DEVICE,
    )
    return jax.jit(mapped)


def with_state(energy=0.7, statistics=0.4):
    params, state = jax.jit(GENERATOR.init)(jax.random.key(0))
    return {
        "energy": jnp.asarray(energy),
        "statistics": jnp.asarray(statistics),
        "generator": params,
        "generator_state": state,
    }


def test_in_training_draws_are_normalised_by_the_batch_and_statistics_move():
    """Standard normal latents have mean square 1 after normalisation, whatever they
    were; running statistics go a tenth of the way to the batch's."""
    batch = jnp.zeros((1, 64, 2))
    for objective in (
        energy_objective(generator=GENERATOR, latent_dim=2),
        max_entropy.generator_objective(
            quadratic, GENERATOR, product, latent_dim=2, information_weight=0.5
        ),
    ):
        _, aux = of_device(objective.loss)(with_state(), jax.random.key(3), batch)
        # Mean of a x^2 / 2 over two coordinates of variance 1 - 1e-5.
        np.testing.assert_allclose(aux.metrics["energy_model"], 0.7, rtol=1e-4)
        statistics = aux.model_state["generator_state"]["batch_stats"]["BatchNorm_0"]
        mean, variance = (np.asarray(statistics[name])[0] for name in ("mean", "var"))
        assert np.all(np.abs(mean) < 0.1 * 5 / 8) and np.all(mean != 0)
        np.testing.assert_allclose(variance, 1.0, atol=0.1 * 5 * (2 / 64) ** 0.5)
        assert np.all(variance != 1)


def test_batches_are_normalised_over_devices_together():
    """A device's rows alone would have another mean: the statistics that come back are
    equal, and they are those of all rows."""
    batch = jnp.zeros((4, 8, 2))
    objective = energy_objective(generator=GENERATOR, latent_dim=2)
    keys = jax.random.split(jax.random.key(0), 4)
    mapped = jax.vmap(
        lambda params, key, batch: objective.loss(params, key, batch, ()),
        (None, 0, 0),
        axis_name=DEVICE,
    )
    _, aux = jax.jit(mapped)(with_state(), keys, batch)
    (mean,) = {
        tuple(np.asarray(row).tolist())
        for row in aux.model_state["generator_state"]["batch_stats"]["BatchNorm_0"][
            "mean"
        ]
    }
    np.testing.assert_allclose(aux.metrics["energy_model"].mean(), 0.7, rtol=1e-4)
    assert np.ptp(np.asarray(aux.metrics["energy_model"])) > 0.01
    assert all(value != 0 for value in mean)


def test_chains_see_running_statistics_and_leave_them():
    """Running statistics of mean 3 and variance 4: G(z) = (z - 3) / 2 of each latent
    alone. With a step that goes nowhere the draws' mean energy is that of N(-1.5, .25)
    twice."""
    params = with_state()
    params["generator_state"] = {
        "batch_stats": {
            "BatchNorm_0": {"mean": jnp.full(2, 3.0), "var": jnp.full(2, 4.0 - 1e-5)}
        }
    }
    objective = energy_objective(
        generator=GENERATOR,
        latent_dim=2,
        sampler=samplers.langevin(step_size=1e-12),
        num_steps=1,
    )
    _, aux = loss_of(objective, params, jax.random.key(0), jnp.zeros((10_000, 2)))
    assert aux.model_state == {}
    exact = 0.7 * (1.5**2 + 0.25)
    # Of a (g - 1.5)^2 with deviation .5: 2 * (.35)^2 (2 * .0625 + 4 * .25 * 2.25).
    deviation = (2 * 0.35**2 * (2 * 0.25**2 + 4 * 0.25 * 1.5**2)) ** 0.5
    np.testing.assert_allclose(
        aux.metrics["energy_model"], exact, atol=4 * deviation / 100
    )


@pytest.mark.slow
def test_two_players_with_batch_statistics_train_on_any_number_of_devices():
    """Through the update, which refuses statistics that differ between devices; biases
    that a normalisation takes away again are held where they were."""
    shape = (8, 8, 1)
    generator = networks.strided_generator(shape, latent_dim=3, widths=(4, 8))
    energy = networks.strided_energy(shape, widths=(4, 8))
    statistics = networks.strided_statistics(
        shape, latent_dim=3, widths=(4, 8), hidden_width=8
    )
    players = {
        "generator": training.Player(
            ("generator", "statistics"),
            max_entropy.generator_objective(
                energy, generator, statistics, latent_dim=3, information_weight=0.5
            ),
            optax.adam(1e-3, b1=0.5),
        ),
        "energy": training.Player(
            ("energy",),
            max_entropy.energy_objective(
                energy, generator, latent_dim=3, score_penalty=10.0
            ),
            optax.adam(1e-3, b1=0.5),
            num_updates=2,
        ),
    }
    inits = {
        "generator": generator.init,
        "energy": energy.init,
        "statistics": statistics.init,
    }
    made = {
        name: init(jax.random.key(i)) for i, (name, init) in enumerate(inits.items())
    }
    params = {name: pair[0] for name, pair in made.items()}
    model_state = {"generator_state": made["generator"][1]}
    batch = jax.random.uniform(jax.random.key(7), (3, 8, *shape), minval=-1.0)
    update = training.make_update(players)
    for num_devices in (1, 4):
        state = training.init_state(
            players, params, jax.random.key(0), num_devices, model_state=model_state
        )
        rows = batch.reshape(3, num_devices, 8 // num_devices, *shape).swapaxes(0, 1)
        mapped = jax.vmap(
            update, (training.AXES, 0), (training.AXES, None), axis_name=DEVICE
        )
        state, _ = jax.jit(mapped)(state, rows)
        found = state.params | state.model_state
        moved = jax.tree.map(
            lambda a, b: bool(np.any(a != b)), found, params | model_state
        )
        # Nothing depends on the constant of an energy either.
        held = [moved["generator"]["TransposedConv_0"].pop("bias")]
        held.append(moved["energy"]["Dense_0"].pop("bias"))
        assert not any(held) and all(jax.tree.leaves(moved))


# --- what is refused


@pytest.mark.quick
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: energy_objective(penalty_on="model"), "penalty_on must be one of"),
        (lambda: energy_objective(reduction="mean"), "reduction must be one of"),
        (lambda: energy_objective(score_penalty=-1.0), "score_penalty must not be"),
        (lambda: energy_objective(num_steps=3), "belong together, got no sampler"),
        (
            lambda: energy_objective(sampler=samplers.mala(step_size=0.1)),
            "a sampler and num_steps=0",
        ),
        (lambda: energy_objective(latent_dim=0), "latent_dim must be"),
        (lambda: generator_objective(estimator="mine"), "estimator must be one of"),
        (lambda: generator_objective(marginal="roll"), "marginal must be one of"),
        (
            lambda: generator_objective(information_weight=-0.5),
            "information_weight must not be",
        ),
        (
            lambda: max_entropy.generator_objective(
                quadratic, scaled, None, latent_dim=1, information_weight=0.5
            ),
            "information_weight must be 0, got 0.5",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_fit_is_refused_with_its_shape():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"example's shape \(3,\), got \(1,\)"):
        energy_objective().loss(PARAMS, key, jnp.zeros((4, 3)), ())
    with pytest.raises(ValueError, match="at least 2 examples"):
        generator_objective().loss(PARAMS, key, jnp.zeros((1, 1)), ())
    for name, networks_of in (
        ("energy", {"energy": lambda a, x: a * x**2}),
        ("statistics", {"statistics": lambda a, x, z: a * x * z}),
    ):
        given = {"energy": quadratic, "generator": scaled, "statistics": product}
        objective = max_entropy.generator_objective(
            **given | networks_of, latent_dim=1, information_weight=1.0
        )
        with pytest.raises(ValueError, match=rf"{name} must return a scalar .*\(1,\)"):
            objective.loss(PARAMS, key, jnp.zeros((4, 1)), ())
    with pytest.raises(ValueError, match="energy must return a scalar"):
        energy_objective(lambda a, x: a * x**2, score_penalty=0.0).loss(
            PARAMS, key, jnp.zeros((4, 1)), ()
        )
    params = with_state()
    del params["generator_state"]
    objective = energy_objective(generator=GENERATOR, latent_dim=2)
    with pytest.raises(ValueError, match="generator_state"):
        of_device(objective.loss)(params, key, jnp.zeros((1, 4, 2)))


# --- the sampler's rule


def rule_of(log_ratio):
    """Metropolis with Langevin's proposal and an acceptance of one's own."""

    def step(energy_fn, step_size, key, z):
        noise_key, accept_key = jax.random.split(key)
        gradient = jax.grad(energy_fn)
        forward = z - step_size * gradient(z)
        noise = jax.random.normal(noise_key, z.shape)
        proposed = forward + (2 * step_size) ** 0.5 * noise
        backward = proposed - step_size * gradient(proposed)
        there, back = proposed - forward, z - backward
        ratio = energy_fn(z) - energy_fn(proposed) + log_ratio(step_size, there, back)
        is_accepted = jnp.log(jax.random.uniform(accept_key)) < ratio
        return jnp.where(is_accepted, proposed, z), is_accepted

    return step


WRONG = {
    "norms that are not squared": rule_of(
        lambda h, there, back: (
            (jnp.linalg.norm(there) - jnp.linalg.norm(back)) / (4 * h)
        )
    ),
    "no ratio of proposals": rule_of(lambda h, there, back: 0.0),
}

# Of E = |z|^2 / 2 with step .01: (dimension, share accepted, variance), as published
# chains of the three rules have them.
MALA_TABLE = {
    "ours": [(2, 1.0, 1.0), (32, 0.998, 1.0), (128, 0.997, 1.0)],
    "norms that are not squared": [(32, 0.89, 0.73), (128, 0.67, 0.62)],
    "no ratio of proposals": [(2, 0.95, 0.52), (32, 0.77, 0.50), (128, 0.57, 0.50)],
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", MALA_TABLE)
def test_mala_in_a_latent_space_is_exact_and_two_published_rules_are_not(rule):
    """Chains from the prior stay there; the others settle elsewhere. 800 moves
    are sixteen relaxations of the variance."""
    energy_fn = energies.latent_energy(lambda x: jnp.zeros(()), lambda z: z)
    for dim, acceptance, variance in MALA_TABLE[rule]:
        num = 16_384 // dim
        start_key, key = jax.random.split(jax.random.key(dim))
        z = jax.random.normal(start_key, (num, dim))
        if rule == "ours":
            sampler = samplers.mala(step_size=0.01)
            state, infos = samplers.sample_chains(sampler, energy_fn, key, z, 800)
            position, share = state.position, infos.acceptance_rate.mean()
        else:
            step = functools.partial(WRONG[rule], energy_fn, 0.01)

            def move(position, key, step=step, num=num):
                return jax.vmap(step)(jax.random.split(key, num), position)

            position, accepted = jax.lax.scan(move, z, jax.random.split(key, 800))
            share = accepted[400:].mean()
        # Of 16,384 independent numbers the variance is known to 4 sqrt(2 / n) = 4.4 %
        # of itself. What was published has two digits, of fewer chains.
        np.testing.assert_allclose(position.var(), variance, rtol=0.06)
        np.testing.assert_allclose(share, acceptance, atol=0.012)
