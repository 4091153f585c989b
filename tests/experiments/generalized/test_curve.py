"""The curve: its law, the density of the ridge, and the three models on it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import objectives
from experiments import load
from experiments.generalized import curve
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {
    "data.batch_size": 16,
    "network.widths": (8,),
    "players.num_energy_updates": 2,
    "train.num_steps": 2,
    "train.num_joint_steps": 1,
    "evaluation.num_samples": 32,
    "evaluation.num_bins": 20,
    "evaluation.sampler.num_steps": 3,
}


def tiny(preset="curve", **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return with_options(curve.get_config(preset), SMALL | changes)


def test_the_first_coordinate_has_the_arcsine_law():
    x = np.asarray(curve.arcsine_wave().sample(jax.random.key(0), 100_000))
    np.testing.assert_array_equal(x[:, 1], curve.wave(x[:, 0]))
    for place in (-0.9, 0.0, 0.5):
        share = 0.5 + math.asin(place) / math.pi
        np.testing.assert_allclose(
            (x[:, 0] < place).mean(), share, atol=4 * (0.25 / 100_000) ** 0.5
        )


@pytest.mark.quick
def test_the_base_alone_rests_after_the_joint_steps():
    experiment = curve.build(tiny(), make_keys(0))
    rests = set(experiment.players) - set(experiment.phases["tuning"])
    assert rests == {"base"}
    assert [experiment.phase(step) for step in range(3)] == ["", "tuning", "tuning"]


def test_the_ridge_is_a_density_of_the_plane():
    """Its likelihood, one point at a time, integrates to 1 over [-1, 1] x R."""
    experiment = curve.build(tiny(), make_keys(3))
    objective = experiment.players["ridge"].objective
    first = (np.arange(200) + 0.5) / 100 - 1
    second = (np.arange(400) + 0.5) / 100 - 2
    points = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)

    def log_prob(x):
        value, _ = objective.loss(
            experiment.params, jax.random.key(0), x[None].astype(jnp.float32), ()
        )
        return -value

    density = np.exp(np.asarray(jax.jit(jax.vmap(log_prob))(points), np.float64))
    np.testing.assert_allclose(density.sum() * 0.01**2, 1, rtol=1e-3)


def test_names_of_networks_are_changed_for_an_objective_alone():
    def loss(params, key, batch, carry):
        return params["energy"] * 2, objectives.Aux(carry)

    objective = objectives.Objective(lambda key: (), loss)
    renamed = curve.rename_networks(objective, energy="critic")
    slope = jax.grad(lambda p: renamed.loss(p, None, None, ())[0])(
        {"critic": 3.0, "energy": 5.0}
    )
    assert slope == {"critic": 2.0, "energy": 0.0}


@pytest.mark.slow
def test_a_run_is_judged_and_loaded(tmp_path):
    """The loaded draws are those judged: their distance from the curve is the
    evaluation's, and none is below the energy's floor."""
    config = tiny(train__num_steps=1, objective__energy_floor=-0.01)
    found = run(curve.build, config, tmp_path)
    models = ("data", "ebm", "gan", "base", "gebm")
    measures = ("weights_total_variation", "distance_off_support")
    expected = {f"{model}_{measure}" for model in models for measure in measures}
    assert set(found) == expected | {"gebm_acceptance_rate"}
    assert found["data_distance_off_support"] == 0
    assert (tmp_path / "figures" / "curve.png").is_file()
    trained = load(tmp_path)
    with np.load(tmp_path / "samples.npz") as arrays:
        key, samples = jax.random.wrap_key_data(arrays["key"]), arrays["samples"]
    np.testing.assert_array_equal(trained.sample(key, 32), samples)
    off = samples[:, 1] - np.asarray(curve.wave(jnp.asarray(samples[:, 0])))
    distance = found["gebm_distance_off_support"]
    np.testing.assert_allclose((off**2).mean() ** 0.5, distance, rtol=1e-5)
    far = 100 * jax.random.normal(jax.random.key(0), (100, 2))
    network, params = trained.networks["energy"], trained.params["energy"]
    energy = jax.vmap(network.apply, (None, 0))(params, far)
    assert (energy < -0.01).any() and (energy > 0).any()
    np.testing.assert_allclose(
        jax.vmap(trained.energy_fn)(far), jnp.maximum(energy, -0.01), atol=1e-5
    )


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("evaluation__num_samples", 0, "evaluation.num_samples must be a whole"),
        ("evaluation__sampler__num_steps", 0, "sampler.num_steps must be a whole"),
        ("network__width", 0.0, "network.width must be positive, got 0.0"),
        ("evaluation__bound", -1.0, "evaluation.bound must be positive, got -1.0"),
    ],
)
def test_options_that_would_fail_after_training_are_refused_before_it(
    option, value, message
):
    with pytest.raises(ValueError, match=message):
        curve.build(tiny(**{option: value}), make_keys(0))
