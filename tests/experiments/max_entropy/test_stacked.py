"""Maximum entropy generators of stacked digits: what is counted, the presets, the plan,
and the model back from its folder."""

import functools
import math

import jax
import numpy as np
import pytest

from experiments import load
from experiments.judge import store
from experiments.max_entropy import stacked
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import run_sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {
    "train.num_steps": 1,
    "train.log_every": 1,
    "train.checkpoint_every": 0,
    "data.batch_size": 16,
    "data.download": False,
    "networks.widths": (1, 2, 4, 8),
    "networks.hidden_width": 8,
    "latent_dim": 4,
    "evaluation.samples_a_mode": 1,
    "evaluation.chunk_size": 32,
    "evaluation.num_saved": 40,
    "evaluation.num_chains": 32,
    "evaluation.num_shown": 16,
    "evaluation.classifier_steps": 2,
    "evaluation.min_accuracy": 0.0,
}


def options(image_dir, **changes):
    """Options that cut a preset to seconds, with `section__option=value`."""
    given = {name.replace("__", "."): value for name, value in changes.items()}
    return TINY | {"data.data_dir": str(image_dir)} | given


def tiny(preset, image_dir, **changes):
    return with_options(stacked.get_config(preset), options(image_dir, **changes))


@pytest.mark.slow
def test_a_run_is_counted_and_loaded(tmp_path, image_dir):
    config = tiny("stacked_mnist_2,wgan_gp", image_dir)
    scalars = run(stacked.build, config, tmp_path)
    assert 1 <= scalars["num_modes"] <= 100 and scalars["kl_floor"] > 0
    trained = load(tmp_path)
    assert set(trained.networks) == {"generator", "energy"}
    with np.load(tmp_path / "samples.npz") as found:
        samples, key = found["samples"], jax.random.wrap_key_data(found["key"])
    assert samples.shape == (40, 28, 28, 2)
    np.testing.assert_array_equal(trained.sample(key, 40), samples)
    # All 100 draws that were counted begin with these.
    reader = stacked.make_reader(str(image_dir), False, 2)
    found = stacked.count_modes(reader.classifier(), trained.sample(key, 100))
    assert found.items() <= scalars.items()


@pytest.mark.slow
@pytest.mark.parametrize("preset", stacked.PRESETS)
def test_every_preset_builds(preset, image_dir):
    config = tiny(preset, image_dir)
    assert config.is_locked
    experiment = stacked.build(config, make_keys(0))
    assert set(experiment.params) == {"generator", "energy", "statistics"}
    num_digits = {"stacked_mnist": 3}.get(preset, int(preset[-1:] == "4") * 2 + 2)
    assert experiment.batch(0).shape == (16 * 6, 28, 28, num_digits)


@pytest.mark.slow
def test_a_classifier_that_is_wrong_too_often_ends_it_before_training(image_dir):
    config = tiny("stacked_mnist_2", image_dir, evaluation__min_accuracy=0.994)
    with pytest.raises(ValueError, match="right on 0.* below evaluation.min_accuracy"):
        stacked.build(config, make_keys(0))


def test_a_classifier_is_trained_before_training_only_to_be_checked(
    image_dir, monkeypatch
):
    """Without a least accuracy, nothing is trained before an evaluation."""

    @functools.wraps(store.train_classifier)
    def train(*args, num_steps, **options):
        raise InterruptedError(f"{num_steps} steps")

    monkeypatch.setattr(store, "train_classifier", train)
    changes = {"evaluation__classifier_steps": 3}
    stacked.build(tiny("stacked_mnist_2", image_dir, **changes), make_keys(0))
    changes["evaluation__min_accuracy"] = 0.5
    with pytest.raises(InterruptedError, match="3 steps"):
        stacked.build(tiny("stacked_mnist_2", image_dir, **changes), make_keys(0))


@pytest.mark.quick
def test_the_plan_has_the_parts_and_the_baselines():
    plan = stacked.sweep("stacked_mnist")
    configs = {
        name: with_options(stacked.get_config(cell.preset), cell.overrides)
        for name, cell in plan.cells.items()
    }
    assert list(configs) == ["whole", "no information", "no penalty", "wgan_gp", "gan"]
    assert {config.data.num_digits for config in configs.values()} == {3}
    assert configs["gan"].objective.to_dict() == {"name": "gan"}
    assert configs["wgan_gp"].objective.gradient_penalty == 10
    assert configs["no penalty"].objective.score_penalty == 0
    assert configs["no information"].objective.information_weight == 0
    assert configs["whole"] == stacked.get_config("stacked_mnist")
    assert plan.num_seeds == 3
    default = stacked.sweep("").cells
    assert default["whole"].preset == "" and default["gan"].preset.endswith("_2,gan")
    assert list(stacked.sweep("stacked_mnist,gan").cells) == ["gan"]


@pytest.mark.slow
def test_two_cells_of_the_plan_are_one_table(tmp_path, image_dir):
    plan = stacked.sweep("stacked_mnist_2")
    table = run_sweep(
        stacked.build,
        stacked.get_config,
        plan,
        tmp_path,
        given=options(image_dir),
        num_seeds=1,
        cells="*gan*",
    )
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert rows[0] == ["cell", *stacked.COLUMNS, "seeds"]
    assert [row[0] for row in rows[2:]] == ["wgan_gp", "gan"]
    assert all(1 <= float(row[1]) <= 100 for row in rows[2:])


# --- counting


def test_labels_of_stacked_digits_are_read_channel_by_channel():
    class Perfect:
        """Brightness is the digit."""

        def log_probs(self, x):
            digit = np.round((x[:, 0, 0, 0] + 1) * 4.5).astype(int)
            return np.log(np.eye(10)[digit] + 1e-9)

    digits = np.array([[3, 0, 7], [3, 0, 7], [9, 9, 9], [0, 0, 0]])
    x = (digits / 4.5 - 1)[:, None, None] * np.ones((1, 4, 4, 1))
    found = stacked.count_modes(Perfect(), x)
    assert found["num_modes"] == 3 and found["num_robust_modes"] == 0
    np.testing.assert_allclose(
        found["kl"], math.log(1000) - 0.5 * math.log(2) - 0.5 * math.log(4)
    )


def test_the_evaluator_is_checked_on_real_tuples_and_on_half_of_them():
    """A classifier without errors finds all and half; one that is wrong on a digit in
    200 some 650 instead of 500, which the robust count does not see."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 60_000)
    found = stacked.check_evaluator(labels, labels, 3, 26_000)
    assert (found["data_num_modes"], found["half_num_modes"]) == (1000, 500)
    # sqrt(2 * 999) / (2 * 26,000) is a deviation.
    np.testing.assert_allclose(found["data_kl_excess"], 0.0, atol=4 * 8.6e-4)
    np.testing.assert_allclose(
        found["half_kl"], math.log(2) + 499 / 52_000, atol=4 * 6.1e-4
    )
    is_wrong = rng.random(60_000) < 0.005
    predicted = np.where(is_wrong, (labels + rng.integers(1, 10, 60_000)) % 10, labels)
    found = stacked.check_evaluator(predicted, labels, 3, 26_000)
    assert 600 < found["half_num_modes"] < 720
    assert abs(found["half_num_robust_modes"] - 500) <= 5


def test_digits_lie_side_by_side_in_their_order():
    images = np.arange(2 * 4 * 3 * 2).reshape(2, 4, 3, 2)
    beside = stacked.lay_side_by_side(images)
    assert beside.shape == (2, 4, 6, 1)
    np.testing.assert_array_equal(beside[..., :3, 0], images[..., 0])
    np.testing.assert_array_equal(beside[..., 3:, 0], images[..., 1])
