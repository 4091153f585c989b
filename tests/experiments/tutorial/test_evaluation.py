"""The divergences from a target whose density is known, and the exact models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import energies, training
from experiments.tutorial.evaluation import draws_evaluation, plane_evaluation
from experiments.tutorial.models import Model, ica_model, rbm_model
from experiments.tutorial.targets import TARGETS, make_mixing, make_target

pytestmark = pytest.mark.usefixtures("quick_compilation")

MOMENTS = (np.zeros(10), np.eye(10))


def state_of(params):
    """Returns a state with these parameters, as an evaluation is given one."""
    fields = dict.fromkeys(training.TrainState._fields) | {"params": params}
    return training.TrainState(**fields)


def evaluate_plane(name, directory, energy, params, num_points=400, **data):
    """Returns the evaluation of an energy of `params["energy"]`."""
    evaluate = plane_evaluation(
        None,
        make_target(TARGETS[name].data | data),
        lambda params, x: energy(params["energy"], x),
        bound=TARGETS[name].evaluation["bound"],
        num_points=num_points,
        is_smooth=TARGETS[name].evaluation["is_smooth"],
    )
    return evaluate(state_of(params), jax.random.key(0), directory)


def test_where_the_model_is_the_target_all_divergences_are_zero(tmp_path):
    target = make_target(TARGETS["rings"].data)
    params = {"energy": np.float32(1.5), "log_partition": np.float32(-1.4)}
    found = evaluate_plane(
        "rings", tmp_path, lambda params, x: target.energy_fn(x) + params, params
    )
    # float32 energies of about 10 are off by 1e-6.
    assert abs(found["kl"]) < 1e-5 and abs(found["kl_within_modes"]) < 1e-5
    assert found["fisher_divergence"] < 1e-6
    np.testing.assert_allclose(found["log_partition"], -1.5, atol=1e-4)
    assert found["mass_off_grid"] < 1e-4
    np.testing.assert_allclose(found["learned_log_partition"], -1.4, rtol=1e-6)
    np.testing.assert_allclose(found["log_partition_error"], 0.1, atol=1e-4)


def test_a_model_off_the_grid_is_as_far_from_the_data_as_it_is_off(tmp_path):
    """Half of its mass is 9 to the right: log 2, and none of it within modes."""
    target = make_target(TARGETS["two_moons"].data)

    def halved(params, x):
        away = target.energy_fn(x - jnp.array([9.0, 0.0]))
        return -jnp.logaddexp(-target.energy_fn(x), -away)

    found = evaluate_plane("two_moons", tmp_path, halved, {"energy": 0.0})
    np.testing.assert_allclose(found["kl"], math.log(2), atol=1e-4)
    np.testing.assert_allclose(found["mass_off_grid"], 0.5, atol=1e-4)
    np.testing.assert_allclose(found["log_partition"], math.log(2), atol=1e-4)
    assert abs(found["kl_within_modes"]) < 1e-4


@pytest.mark.quick
def test_wrong_weights_of_modes_are_a_divergence_between_and_not_within(tmp_path):
    weights = np.arange(1.0, 9.0) / 36
    angles = np.arange(8) * (math.pi / 4)
    params = {
        "means": 2.0 * np.stack([np.cos(angles), np.sin(angles)], 1),
        "precisions": np.asarray(0.1**-2),
        "log_weights": np.log(weights),
    }
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    found = evaluate_plane(
        "eight_gaussians",
        tmp_path,
        energies.gaussian_mixture,
        {"energy": params},
        num_points=800,
        std=0.1,
    )
    # Modes 15 standard deviations apart share nothing that float32 could hold.
    expected = np.mean(np.log(1 / 8) - np.log(weights))
    np.testing.assert_allclose(found["kl"], expected, rtol=1e-4)
    assert abs(found["kl_within_modes"]) < 1e-4
    assert (tmp_path / "densities.png").is_file()


def test_a_checkerboard_has_no_fisher_divergence_and_light_squares_no_mode(tmp_path):
    """A model that is uniform on the whole board has half of every dark square's mass,
    a divergence of log 2, and the right shape within each. The edges of the board are
    found to one of the 100 points that the wide grid has along its side.
    """

    def uniform(params, x):
        return jnp.where(jnp.max(jnp.abs(x)) < 4, 0.0, jnp.inf)

    found = evaluate_plane("checkerboard", tmp_path, uniform, {"energy": 0.0})
    np.testing.assert_allclose(found["log_partition"], math.log(64), atol=2 / 100)
    expected = found["log_partition"] - math.log(32)
    np.testing.assert_allclose(found["kl"], expected, atol=1e-5)
    np.testing.assert_allclose(found["kl_within_modes"], 0.0, atol=1e-5)
    assert "fisher_divergence" not in found


def test_divergences_of_the_exact_models_are_zero_at_the_truth_and_this_elsewhere(
    tmp_path,
):
    model = ica_model(MOMENTS)
    evaluate = draws_evaluation(
        model,
        make_target(TARGETS["ica_10"].data),
        lambda params, x: model.energy(params["energy"], x),
        num_examples=20_000,
        num_samples=10,
    )
    mixing = make_mixing(dim=10, matrix_seed=0)
    unmixing = jnp.asarray(np.linalg.inv(mixing), jnp.float32)

    def at(scale):
        params = {"energy": {"unmixing": scale * unmixing}}
        return evaluate(state_of(params), jax.random.key(1), tmp_path)

    truth = at(1.0)
    assert abs(truth["kl"]) < 1e-4 and truth["fisher_divergence"] < 1e-6
    np.testing.assert_allclose(
        truth["test_log_likelihood"],
        -20 + np.linalg.slogdet(np.asarray(unmixing))[1],
        # 2 nats are a logistic's entropy; its -log density has a variance below 2.
        atol=4 * math.sqrt(10 * 2 / 20_000),
    )
    scale, nodes = 1.3, np.linspace(-60, 60, 200_001)
    density = 0.25 / np.cosh(nodes / 2) ** 2
    energy = np.logaddexp(0, scale * nodes) + np.logaddexp(0, -scale * nodes)
    mean = (density * energy).sum() * (nodes[1] - nodes[0])
    expected = 10 * (mean - 2 - math.log(scale))
    wrong = at(scale)
    error = abs(wrong["kl"] - expected)
    assert error < 4 * wrong["kl_standard_error"] < 0.1 * expected


@pytest.mark.parametrize(
    "model",
    [ica_model(MOMENTS), rbm_model(MOMENTS, num_hidden=5)],
    ids=["ica", "gaussian_bernoulli_rbm"],
)
def test_a_model_s_exact_draws_have_its_density(model: Model):
    """The mean score of draws is 0, and score times position minus one, by parts."""

    @jax.jit
    def evaluated(key):
        """Draws, their scores, and the slopes of energies and of log Z."""
        params = model.init(jax.random.key(1))
        x = jax.vmap(model.sample, (None, 0))(params, jax.random.split(key, 20_000))
        of_energy, scores = jax.vmap(jax.grad(model.energy, (0, 1)), (None, 0))(
            params, x
        )
        return x, -scores, of_energy, jax.grad(model.log_partition)(params)

    x, scores, of_energy, slopes = jax.tree.map(
        np.asarray, evaluated(jax.random.key(2))
    )
    products = scores[:, :, None] * x[:, None, :]
    errors = products.std(0) / math.sqrt(len(x))
    # 100 entries: 5 standard errors are exceeded by chance once in 20,000 tests.
    assert np.all(np.abs(products.mean(0) + np.eye(10)) < 5 * errors)
    # The slope of log Z is minus the mean slope of the energy over the model.
    for name, slope in slopes.items():
        error = of_energy[name].std(0) / math.sqrt(len(x))
        assert np.all(np.abs(slope + of_energy[name].mean(0)) < 5 * error)
