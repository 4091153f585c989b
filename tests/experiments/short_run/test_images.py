"""Short-run MCMC on images: every preset builds, trains, is evaluated and loaded."""

import functools
import json

import jax
import numpy as np
import pytest

from experiments import load
from experiments.data import images as image_files
from experiments.data import load_section
from experiments.judge.judge import make_judge
from experiments.run.config import flat, schedule, with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import run_sweep
from experiments.short_run import images

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = {
    "mnist": ("mnist", 28, 1),
    "fashion_mnist": ("fashion_mnist", 28, 1),
    "mnist_small": ("mnist", 28, 1),
    "fashion_mnist_small": ("fashion_mnist", 28, 1),
    "cifar10": ("cifar10", 32, 3),
    "celeb_a": ("celeb_a", 64, 3),
    "celeb_a_128": ("celeb_a", 128, 3),
}
"""Preset -> data set, pixels a side, channels."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Small data sets of noise in the form that needs no TFDS."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, size, channels in {*IMAGES.values(), ("kmnist", 28, 1)}:
        for split, num in (("train", 40), ("test", 24)):
            np.savez(
                image_files.npz_path(name, split, folder, size),
                images=rng.integers(0, 256, (num, size, size, channels), np.uint8),
                labels=rng.integers(0, 10, num, np.int32),
            )
    return folder


def tiny_options(preset, data_dir=None):
    """Options that cut a preset to seconds and leave its method as it is."""
    config = images.get_config(preset)
    options = {
        "train.num_steps": 2,
        "train.log_every": 1,
        "train.eval_every": 0,
        "train.checkpoint_every": 2,
        "data.batch_size": 16,
        "network.width": 2,
        "objective.num_steps": 10,
        "evaluation.num_samples": 20 * bool(config.evaluation.num_samples),
        "evaluation.chunk_size": 16,
        "evaluation.num_shown": 16,
        "evaluation.num_inverted": 16,
        "evaluation.num_iterations": 2,
        "evaluation.long_run_steps": 10,
        "evaluation.num_long_run": 8,
        "evaluation.classifier_steps": 2 * bool(config.evaluation.classifier_steps),
    }
    if data_dir is not None:
        foreign = "kmnist" if "mnist" in preset else "gaussian"
        options |= {
            "data.data_dir": str(data_dir),
            "data.download": False,
            "data.num_examples": 40,
            "evaluation.out_of_distribution": ("uniform", foreign),
        }
    return options


def tiny(preset, data_dir=None, **changes):
    """A preset with `tiny_options` and `section__option=value`."""
    config = images.get_config(preset).unlock()
    config.update_from_flattened_dict(tiny_options(preset, data_dir))
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        config[section][key] = value
    return config.lock()


FIGURES = {
    "samples.png",
    "chain.png",
    "interpolation.png",
    "reconstruction.png",
    "inpainting.png",
    "super_resolution.png",
    "inversion.png",
    "long_run.png",
}


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_digits_are_evaluated_with_all_figures_and_loaded(tmp_path):
    scalars = run(images.build, tiny("digits"), tmp_path)
    figures = tmp_path / "figures"
    assert names(figures) == FIGURES | {"quality.md", "nearest.png", "scores.csv"}
    for path in figures.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    table = (figures / "quality.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in table[2:]] == [
        "data",
        "gaussian",
        "uniform",
        "samples",
    ]
    assert scalars["reconstruction_mse_of_pca_of_equal_rank"] < 1e-9
    assert set(images.sweep("digits").columns) <= set(scalars)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    evaluation = json.loads(lines[-1])
    assert evaluation["kind"] == "eval"
    shares = [evaluation[f"samples_class_share_{k}"] for k in range(10)]
    np.testing.assert_allclose(sum(shares), 1.0, rtol=1e-6)
    check_loaded(tmp_path, scalars)


def check_loaded(folder, scalars):
    """The loaded model draws the samples of the evaluation from its key, bitwise and
    whatever their number, and its energies are those that the evaluation found."""
    trained = load(folder)
    with np.load(folder / "samples.npz") as found:
        samples, key = found["samples"], jax.random.wrap_key_data(found["key"])
    assert samples.shape == (20, 8, 8, 1) and samples.dtype == np.float32
    np.testing.assert_array_equal(trained.sample(key, 20), samples)
    np.testing.assert_array_equal(trained.sample(key, 5), samples[:5])
    assert set(trained.networks) == {"energy"}
    assert trained.score_fn is None and trained.log_prob is None
    # The evaluation scores whole chunks, here two of sixteen.
    energies = jax.vmap(trained.energy_fn)(trained.sample(key, 32))
    np.testing.assert_allclose(energies.mean(), scalars["energy_model"], rtol=1e-4)
    options = trained.config.evaluation
    judge = make_judge(load_section(trained.config.data), options.num_examples, 0)
    energies = jax.vmap(trained.energy_fn)(judge.held_out)
    np.testing.assert_allclose(energies.mean(), scalars["energy_data"], rtol=1e-4)


@pytest.mark.slow
def test_images_without_labels_are_trained_on_from_arrays_without_tfds(tmp_path):
    """They are smaller than those of the preset, which takes less time."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    for split in ("train", "test"):
        np.savez(image_files.npz_path("celeb_a", split, tmp_path, 16), images=pixels)
    config = tiny("celeb_a", tmp_path, data__size=16)
    scalars = run(images.build, config, tmp_path / "run")
    assert 0.0 <= scalars["auroc_uniform"] <= 1.0
    assert "samples_confident_share" not in scalars
    assert FIGURES <= names(tmp_path / "run" / "figures")
    with np.load(tmp_path / "run" / "samples.npz") as found:  # those that are shown
        assert found["samples"].shape == (16, 16, 16, 3)


def compute_loss(experiment):
    """The shape of the loss of the energy on the first batch, traced and not run."""
    objective = experiment.players["energy"].objective
    key = jax.random.key(0)
    arguments = experiment.params, key, experiment.batch(0), objective.init(key)
    return jax.eval_shape(objective.loss, *arguments)[0]


@pytest.mark.slow
@pytest.mark.parametrize("preset", IMAGES)
def test_a_preset_on_images_has_an_energy_of_them(preset, data_dir):
    experiment = images.build(tiny(preset, data_dir), make_keys(0))
    _, size, channels = IMAGES[preset]
    batch = np.asarray(experiment.batch(0))
    assert batch.shape == (16, size, size, channels)
    assert -1 <= batch.min() < -0.9 and 0.9 < batch.max() <= 1
    assert experiment.facts == {"event_shape": [size, size, channels]}
    assert compute_loss(experiment).shape == ()


def test_presets_are_those_that_are_tested():
    assert set(images.PRESETS) == {"digits", "own", *IMAGES}


@pytest.mark.slow
def test_a_resnet_with_autodiff_inversion_and_replay_runs_too(tmp_path):
    """No preset has these options."""
    config = tiny("digits").unlock()
    config.network = {"name": "resnet", "widths": (2,), "activation": "swish"}
    config.start = {
        "name": "replay",
        "law": "uniform",
        "scale": 1.0,
        "capacity": 64,
        "reinit_prob": 0.1,
    }
    config.objective.last_step_gradient = True
    config.evaluation.jacobian = "autodiff"
    scalars = run(images.build, config.lock(), tmp_path)
    assert np.isfinite(scalars["reconstruction_mse"])


def test_every_preset_says_what_it_is_and_is_locked():
    for preset in images.PRESETS:
        config = images.get_config(preset)
        with pytest.raises(AttributeError, match="Did you mean"):
            config.train.num_step = 5
    with pytest.raises(ValueError, match="preset must be one of.*mean 'cifar10'"):
        images.get_config("cifar")


def test_the_papers_scale_is_the_papers():
    """K, step, noise, widths, data noise and Adam are those of sections 1.3 and 1.4."""
    config = images.get_config("cifar10")
    assert config.objective.num_steps == 100 and config.network.width == 128
    assert config.data.num_examples == 40_000
    a, temperature = config.sampler.step_size, config.sampler.temperature
    assert a == 1.0
    np.testing.assert_allclose((2 * a * temperature) ** 0.5, 0.01)
    assert config.data_noise.start == 0.03
    assert config.optimizer.learning_rate.start == 1e-4
    assert images.get_config("celeb_a").network.width == 64
    for section in (config.data_noise, config.optimizer.learning_rate):
        value = schedule(**section)
        assert value(0) == value(200_000) > value(225_000) > value(250_000)


@pytest.mark.quick
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"network__name": "short_ran"}, "name must be one of.*got 'short_ran'"),
        ({"start__law": "gaussian"}, "start.law must be 'uniform' or 'normal'"),
        ({"start__scale": 0.0}, "start.scale must be positive, got 0.0"),
        ({"evaluation__jacobian": "none"}, "evaluation.jacobian must be"),
        ({"data__num_examples": 10_000}, "num_examples must be at most 1500"),
        ({"sampler__step_size": -1.0}, "step_size must be positive, got -1.0"),
        ({"data_noise__decay": "step"}, "decay must be 'cosine'"),
        ({"optimizer__name": "adamax"}, "name must be one of.*got 'adamax'"),
        ({"network__negative_slope": "x"}, "negative_slope"),
        (
            {"evaluation__num_iterations": 0},
            "evaluation.num_iterations must be a whole",
        ),
        ({"evaluation__num_shown": 0}, "evaluation.num_shown must be a whole number"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_before_work(
    changes, message, tmp_path
):
    with pytest.raises((ValueError, TypeError), match=message):
        run(images.build, tiny("digits", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_section_that_does_not_fit_its_constructor_is_named(tmp_path):
    config = tiny("digits").unlock()
    config.sampler.friction = 1.0
    with pytest.raises(ValueError, match="sampler: 'langevin' does not fit.*friction"):
        run(images.build, config.lock(), tmp_path / "run")


def test_the_sweep_is_the_papers_tables():
    """Fewer moves need more data noise; the other cells vary one option alone."""
    plan = images.sweep("digits")
    base, found = flat(images.get_config("digits").to_dict()), {}
    for name, cell in plan.cells.items():
        config = with_options(images.get_config(cell.preset), cell.overrides)
        changed = {k: v for k, v in flat(config.to_dict()).items() if v != base[k]}
        assert changed.pop("evaluation.long_run_steps") == 0
        assert changed.pop("evaluation.num_iterations") == 50
        found[name] = changed
    moves, final, first = "objective.num_steps", "data_noise.final", "data_noise.start"
    assert found == {
        "K=5": {moves: 5, final: 0.1},
        "K=10": {moves: 10, final: 0.05},
        "K=20": {},  # the preset's own
        "K=40": {moves: 40},
        "noise=0.4": {final: 0.4, first: 0.4},
        "noise=0.2": {final: 0.2, first: 0.2},
        "noise=0.1": {final: 0.1},
        "noise=0.05": {final: 0.05},
        "noise=0.03": {},
        "width=8": {"network.width": 8},
        "width=16": {"network.width": 16},
        "width=32": {},
        "width=64": {"network.width": 64},
    }


@pytest.mark.slow
def test_the_sweep_runs_and_tabulates_its_cells(tmp_path):
    """Two cells are trained. A stand-in for the evaluation returns their options."""
    plan = images.sweep("digits")
    plan = plan._replace(cells={name: plan.cells[name] for name in ("K=5", "width=8")})

    @functools.wraps(images.build)
    def build(config, keys):
        found = {
            "reconstruction_mse": config.network.width,
            "gradient_norm_times_steps": config.objective.num_steps,
        }
        return images.build(config, keys)._replace(evaluate=lambda *_: found)

    given = tiny_options("digits")
    table = run_sweep(build, images.get_config, plan, tmp_path, given=given)
    assert names(tmp_path / "cells") == {"K=5,0", "width=8,0"}
    rows = [[x.strip() for x in row.split("|")[1:-1]] for row in table.splitlines()]
    # A column that no cell has is left out, and the cells' own options win.
    columns = ["reconstruction_mse", "gradient_norm_times_steps"]
    assert rows[0] == ["cell", *columns, "seeds"]
    assert rows[2:] == [["K=5", "2", "5", "1"], ["width=8", "8", "10", "1"]]
