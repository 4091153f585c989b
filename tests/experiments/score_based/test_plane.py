"""Two far modes: annealed chains find their weights, and plain ones do not."""

import jax
import numpy as np
import pytest

from ebmjax import diffusions
from experiments import load
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.score_based import plane

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {
    "train.num_steps": 2,
    "train.log_every": 1,
    "data.batch_size": 16,
    "network.widths": (8,),
    "evaluation.num_samples": 64,
    "evaluation.sampler.num_steps_per_level": 3,
}


def tiny(**changes):
    options = {name.replace("__", "."): value for name, value in changes.items()}
    return with_options(plane.get_config(), TINY | options)


@pytest.mark.slow
def test_two_modes_are_drawn_with_exact_and_learned_scores(tmp_path):
    config = tiny(
        evaluation__sampler__num_steps_per_level=20, evaluation__num_samples=4_000
    )
    scalars = run(plane.build, config, tmp_path)
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"densities.png"}
    # Exact scores do not depend on training. The 100 moves of the paper at each level
    # come nearer to 0.8 than these 20.
    assert 0.7 < scalars["share_annealed_exact"] < 0.84
    error = 5 * (0.25 / 4_000) ** 0.5
    np.testing.assert_allclose(scalars["share_plain_exact"], 0.5, atol=error)


@pytest.mark.slow
def test_an_energy_with_the_largest_distance_is_evaluated_and_loaded(tmp_path):
    """The largest noise scale comes from the data, and back from the run's record."""
    config = tiny(network__is_energy=True, process__largest=0.0)
    scalars = run(plane.build, config, tmp_path)
    trained = load(tmp_path)
    with np.load(tmp_path / "samples.npz") as found:
        samples, key = found["samples"], jax.random.wrap_key_data(found["key"])
    np.testing.assert_array_equal(trained.sample(key, 64), samples)
    assert scalars["share_annealed"] == (samples.sum(1) > 0).mean()
    x, scale = np.array([1.0, -2.0], np.float32), np.float32(0.5)
    gradient = jax.grad(trained.energy_fn)(x, scale)
    np.testing.assert_allclose(trained.score_fn(x, scale), -gradient, rtol=1e-6)
    assert trained.log_prob is None and set(trained.networks) == {"energy"}


def test_a_score_that_is_free_has_no_energy():
    config = tiny()
    experiment = plane.build(config, make_keys(0))
    assert experiment.facts == {}  # the largest scale is given
    trained = plane.load(config, {}, experiment.params, {})
    assert trained.energy_fn is None and set(trained.networks) == {"score"}
    (objective,) = [player.objective for player in experiment.players.values()]
    arguments = experiment.params, jax.random.key(0), experiment.batch(0), ()
    assert jax.eval_shape(objective.loss, *arguments)[0].shape == ()


def test_the_largest_distance_is_between_the_modes():
    """Of 1,000 examples the farthest two are 14.1 apart, and a few deviations more."""
    experiment = plane.build(tiny(process__largest=0.0), make_keys(0))
    distance = experiment.facts["largest_distance"]
    assert 200**0.5 < distance < 200**0.5 + 2 * 4
    model = plane.make_model(tiny(process__largest=0.0), distance)
    expected = diffusions.noise_ladder(distance, 0.1, num_scales=20)
    np.testing.assert_array_equal(model.ladder, expected)


@pytest.mark.quick
def test_the_exact_score_is_that_of_the_noised_data():
    """With noise of scale 2 near the heavier mode: that of N(mode, 1 + 4)."""
    x = np.array([6.0, 4.5], np.float32)
    found = plane.exact_score((), x, np.float32(2.0))
    np.testing.assert_allclose(found, (5.0 - x) / 5.0, rtol=1e-4)
    # Half-way between, the scores are weighed by 0.2 and 0.8.
    found = plane.exact_score((), np.zeros(2, np.float32), np.float32(2.0))
    np.testing.assert_allclose(found, (0.8 - 0.2) * 5.0 / 5.0, rtol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"evaluation__sampler__relative_step_size": 2.0},
            "evaluation.sampler.relative_step_size must be positive and below 2, or 0"
            " .* got 2",
        ),
        ({"evaluation__sampler__num_steps_per_level": 0}, "num_steps_per_level must"),
        ({"evaluation__num_samples": 0}, "evaluation.num_samples must be"),
        ({"process__num_scales": 0}, "process.num_scales must be given"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(changes, message):
    with pytest.raises(ValueError, match=message):
        plane.build(tiny(**changes), make_keys(0))


def test_a_process_of_the_plane_is_no_option():
    with pytest.raises(ValueError, match="got 'two_modes,variance_preserving'"):
        plane.get_config("two_modes,variance_preserving")
    with pytest.raises(AttributeError, match="Did you mean"):
        plane.get_config().train.num_step = 5
