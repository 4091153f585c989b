"""The circle: its laws are exact, and what is learned on it is them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ebmjax import training
from experiments import load
from experiments.generalized import circle
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {
    "data.batch_size": 16,
    "network.widths": (8,),
    "train.num_steps": 1,
    "evaluation.num_chains": 32,
    "evaluation.sampler.names": ("mala",),
    "evaluation.sampler.chain_lengths": (2, 4),
}


def tiny(preset="circle", **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return with_options(circle.get_config(preset), SMALL | changes)


@pytest.mark.parametrize("concentration", [0.5, 2.0])
def test_the_von_mises_law_has_its_mean_and_lies_on_the_circle(concentration):
    x = circle.von_mises(concentration).sample(jax.random.key(0), 100_000)
    exact = scipy.special.i1(concentration) / scipy.special.i0(concentration)
    np.testing.assert_allclose(x[:, 0].mean(), exact, atol=4 / (2 * 100_000) ** 0.5)
    np.testing.assert_allclose(x[:, 1].mean(), 0, atol=4 / 100_000**0.5)
    np.testing.assert_allclose(jnp.sum(x**2, 1), 1, rtol=1e-5)


def test_a_sharp_law_does_not_overflow_and_only_kale_learns_a_constant(tmp_path):
    """At k = 800 the entropy of the angle is that of N(0, 1 / k), to 1 / k."""
    config = tiny("circle,donsker_varadhan", data__concentration=800.0)
    experiment = circle.build(config, make_keys(0))
    params = dict(experiment.params)
    state = training.TrainState(0, None, params, {}, None, {}, {})
    found = experiment.evaluate(state, jax.random.key(0), tmp_path)
    exact = math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi * math.e / 800)
    np.testing.assert_allclose(found["kale_exact"], exact, atol=2 / 800)
    np.testing.assert_allclose(found["mean_exact"], 1 - 0.5 / 800, rtol=1e-5)
    assert "log_partition_learned" not in found and "log_partition" in found


@pytest.mark.slow
def test_the_energy_is_von_mises_s(tmp_path):
    """KALE by quadrature is within .01 of the divergence, and what every sampler
    draws has the mean of the refined law."""
    config = with_options(
        circle.get_config(),
        {
            "train.num_steps": 400,
            "optimizer.learning_rate.decay_steps": 400,
            "evaluation.sampler.chain_lengths": (200,),
        },
    )
    found = run(circle.build, config, tmp_path)
    np.testing.assert_allclose(found["kale"], found["kale_exact"], atol=0.01)
    assert found["kale"] <= found["kale_exact"] and found["kl_of_refined"] < 0.01
    np.testing.assert_allclose(
        found["log_partition_learned"], found["log_partition"], atol=0.05
    )
    # What is bounded by 1 moves by at most sqrt(2 KL), Pinsker's.
    np.testing.assert_allclose(
        found["mean_of_refined"],
        found["mean_exact"],
        atol=(2 * found["kl_of_refined"]) ** 0.5,
    )
    for name in config.evaluation.sampler.names:
        # A deviation of .41 of cos t under von Mises's law of 2; and of Langevin the
        # bias of a step of .1.
        np.testing.assert_allclose(
            found[f"mean_{name}"],
            found["mean_of_refined"],
            atol=4 * 0.41 / 4_000**0.5 + 0.03 * (name == "langevin"),
        )


def test_a_run_is_loaded_with_its_energy_and_its_draws(tmp_path):
    """The energy's average over the circle gives the evaluation's log partition
    function, and the first sampler's draws have the evaluation's mean."""
    config = tiny(evaluation__sampler__names=("mala", "independence"))
    found = run(circle.build, config, tmp_path)
    assert (tmp_path / "figures" / "circle.png").is_file()
    trained = load(tmp_path)
    angles = (jnp.arange(4_096) + 0.5) * (2 * math.pi / 4_096)
    points = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
    energy = jax.vmap(trained.energy_fn)(points)
    log_partition = jax.nn.logsumexp(-energy) - math.log(4_096)
    np.testing.assert_allclose(log_partition, found["log_partition"], atol=1e-6)
    with np.load(tmp_path / "samples.npz") as arrays:
        key, samples = jax.random.wrap_key_data(arrays["key"]), arrays["samples"]
    np.testing.assert_array_equal(trained.sample(key, 32), samples)
    assert (
        float(samples[:, 0].mean()) == found["mean_mala"] != found["mean_independence"]
    )
    np.testing.assert_allclose((samples**2).sum(1), 1, rtol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(
    "option, value, message",
    [
        ("evaluation__num_chains", 0, "evaluation.num_chains must be a"),
        ("data__concentration", -1.0, "data.concentration must not be neg"),
        ("objective__name", "hinge", "objective.name must be one of"),
        ("evaluation__sampler__step_size", 0.0, "step_size must be positive"),
        ("players__extra_every", -1, "players.extra_every must be a whole"),
    ],
)
def test_options_that_would_fail_after_training_are_refused_before_it(
    option, value, message
):
    with pytest.raises(ValueError, match=message):
        circle.build(tiny(**{option: value}), make_keys(0))
