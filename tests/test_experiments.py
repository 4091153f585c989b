"""Every experiment and preset builds, trains, stops and resumes."""

import json

import jax
import numpy as np
import pytest
from resuming import check_resumes
from sklearn.decomposition import PCA

from experiments import short_run
from experiments.data import images
from experiments.judge.detection import area_under_roc, foreign_images
from experiments.judge.plane import kl_divergence, make_plane, total_variation
from experiments.run.checkpoint import read_config
from experiments.run.config import make_optimizer, schedule
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import over_seeds, run_sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = {
    "mnist": ("mnist", 28, 1),
    "fashion_mnist": ("fashion_mnist", 28, 1),
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
                images.npz_path(name, split, folder, size),
                images=rng.integers(0, 256, (num, size, size, channels), np.uint8),
                labels=rng.integers(0, 10, num, np.int32),
            )
    return folder


def tiny(preset, data_dir=None, **changes):
    """A preset cut to seconds; its method untouched."""
    config = short_run.get_config(preset).unlock()
    config.train.update(num_steps=4, log_every=1, eval_every=0, checkpoint_every=2)
    config.data.batch_size = 16
    if "jacobian" in config.evaluation:
        config.network.width = 2
        config.evaluation.update(
            num_samples=16 * bool(config.evaluation.num_samples),
            chunk_size=16,
            num_shown=16,
            num_inverted=16,
            num_iterations=2,
            long_run_steps=10 * bool(config.evaluation.long_run_steps),
            num_long_run=8,
            classifier_steps=2 * bool(config.evaluation.classifier_steps),
        )
        config.objective.num_steps = 10
    else:
        config.network.widths = (4,)
        config.evaluation.update(
            num_samples=64, num_steps=5, long_run_steps=10, num_long_run=32
        )
    if data_dir is not None:
        config.data.update(data_dir=str(data_dir), download=False, num_examples=40)
        config.evaluation.out_of_distribution = ("uniform", "kmnist")
        if config.data.name in ("cifar10", "celeb_a"):
            config.evaluation.out_of_distribution = ("uniform", "gaussian")
    if "capacity" in config.start:
        config.start.capacity = 64
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (config[section] if section else config)[key] = value
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
@pytest.mark.parametrize("preset", ["toy_convergent", "toy_nonconvergent"])
def test_a_toy_preset_runs_stops_and_resumes(preset, tmp_path):
    scalars = check_resumes(short_run.build, tiny(preset), tmp_path)
    assert names(tmp_path / "one" / "figures") == {"densities.png"}
    assert scalars["density_kl"] > 0
    # Exact draws are nearer to the truth than a chain that has hardly been trained.
    assert scalars["data_total_variation"] < scalars["samples_total_variation"]


@pytest.mark.slow
def test_digits_runs_stops_and_resumes_with_all_its_figures(tmp_path):
    scalars = check_resumes(short_run.build, tiny("digits"), tmp_path)
    figures = tmp_path / "one" / "figures"
    assert names(figures) == FIGURES | {"quality.md"}
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
    evaluation = [
        json.loads(line)
        for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    ][-1]
    assert evaluation["kind"] == "eval"
    shares = [evaluation[f"samples_class_share_{k}"] for k in range(10)]
    np.testing.assert_allclose(sum(shares), 1.0, rtol=1e-6)


@pytest.mark.slow
def test_images_without_labels_are_trained_on_from_arrays_without_tfds(
    data_dir, tmp_path
):
    config = tiny("celeb_a", data_dir, train__num_steps=2)
    scalars = run(short_run.build, config, tmp_path)
    assert 0.0 <= scalars["auroc_uniform"] <= 1.0
    assert "samples_confident_share" not in scalars
    assert FIGURES <= names(tmp_path / "figures")


@pytest.mark.slow
@pytest.mark.parametrize("preset", IMAGES)
def test_a_preset_on_images_has_an_energy_of_them(preset, data_dir):
    experiment = short_run.build(tiny(preset, data_dir), make_keys(0))
    _, size, channels = IMAGES[preset]
    batch = np.asarray(experiment.batch(0))
    assert batch.shape == (16, size, size, channels)
    assert -1 <= batch.min() < -0.9 and 0.9 < batch.max() <= 1
    objective = experiment.players["energy"].objective
    loss = jax.eval_shape(
        objective.loss,
        experiment.params,
        jax.random.key(0),
        batch,
        objective.init(jax.random.key(0)),
    )[0]
    assert loss.shape == ()


def test_a_foreign_data_set_that_is_not_there_is_left_out_and_named(data_dir, caplog):
    train = np.zeros((4, 28, 28, 1), np.float32)
    names = "uniform", "omniglot", "kmnist"
    with caplog.at_level("WARNING"):
        found = foreign_images(jax.random.key(0), names, train, data_dir=data_dir)
    assert list(found) == ["uniform", "kmnist"]
    assert "no out-of-distribution score on omniglot" in caplog.text
    with pytest.raises(ValueError, match="'kmnst' is not one of"):
        foreign_images(jax.random.key(0), ["kmnst"], train)
    with pytest.raises(ValueError, match=r"'kmnist' are \(28, 28, 1\), the model's"):
        colour = np.zeros((4, 28, 28, 3), np.float32)
        foreign_images(jax.random.key(0), ["kmnist"], colour, data_dir=data_dir)


def test_the_area_under_the_curve_is_the_share_of_ordered_pairs():
    """Known 1, 3 and foreign 2, 4: three of the four pairs are in order."""
    found = area_under_roc(
        lambda x: x, np.array([1.0, 3.0]), {"x": np.array([2.0, 4.0])}
    )
    assert found == {"auroc_x": 0.75}


@pytest.mark.slow
def test_a_resnet_with_autodiff_inversion_and_replay_runs_too(tmp_path):
    """Options that no preset takes."""
    config = tiny("digits").unlock()
    config.network = {"name": "resnet", "widths": (2,), "activation": "swish"}
    config.start = {
        "name": "replay",
        "law": "uniform",
        "scale": 1.0,
        "capacity": 64,
        "reinit_prob": 0.1,
    }
    config.evaluation.jacobian = "autodiff"
    config.objective.last_step_gradient = True
    scalars = run(short_run.build, config.lock(), tmp_path)
    assert np.isfinite(scalars["reconstruction_mse"])


def test_every_preset_says_what_it_is_and_is_locked():
    for preset in short_run.PRESETS:
        config = short_run.get_config(preset)
        with pytest.raises(AttributeError, match="Did you mean"):
            config.train.num_step = 5
    with pytest.raises(ValueError, match="preset must be one of.*got 'cifar'"):
        short_run.get_config("cifar")


def test_the_papers_scale_is_the_papers():
    """Sections 1.3 and 1.4 of the method: K, step, noise, widths, data noise, Adam."""
    config = short_run.get_config("cifar10")
    assert config.objective.num_steps == 100 and config.network.width == 128
    assert config.data.num_examples == 40_000
    a, temperature = config.sampler.step_size, config.sampler.temperature
    assert a == 1.0
    np.testing.assert_allclose((2 * a * temperature) ** 0.5, 0.01)
    assert config.data_noise.start == 0.03
    assert config.optimizer.learning_rate.start == 1e-4
    assert short_run.get_config("celeb_a").network.width == 64
    for section in (config.data_noise, config.optimizer.learning_rate):
        value = schedule(**section)
        assert value(0) == value(200_000) > value(225_000) > value(250_000)


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
        run(short_run.build, tiny("digits", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_section_that_does_not_fit_its_constructor_is_named(tmp_path):
    config = tiny("digits").unlock()
    config.sampler.friction = 1.0
    with pytest.raises(ValueError, match="section 'langevin' does not fit.*friction"):
        run(short_run.build, config.lock(), tmp_path / "run")


def test_schedules_are_these_numbers():
    rate = schedule(
        start=1.0, final=0.1, warmup_steps=4, decay_start=10, decay_steps=20
    )
    np.testing.assert_allclose(rate(0), 0.2)
    np.testing.assert_allclose(rate(4), 1.0)
    np.testing.assert_allclose(rate(10), 1.0)
    np.testing.assert_allclose(rate(20), 0.55, rtol=1e-6)  # half-way down a cosine
    np.testing.assert_allclose(rate(30), 0.1, rtol=1e-6)
    np.testing.assert_allclose(rate(1000), 0.1, rtol=1e-6)
    line = schedule(start=0.0, final=4.0, decay="linear", decay_steps=4)
    np.testing.assert_allclose([line(k) for k in range(6)], [0, 1, 2, 3, 4, 4])
    power = schedule(start=1.0, final=0.01, decay="exponential", decay_steps=2)
    np.testing.assert_allclose(
        [power(k) for k in range(3)], [1.0, 0.1, 0.01], rtol=1e-5
    )
    assert schedule(start=0.5)(10**6) == 0.5


def test_the_optimizer_clips_the_global_norm():
    optimizer = make_optimizer(
        {"name": "sgd", "learning_rate": {"start": 1.0}, "gradient_clip": 1.0}
    )
    gradient = {"a": np.float32(3.0), "b": np.float32(4.0)}
    change, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose([change["a"], change["b"]], [-0.6, -0.8], rtol=1e-6)


def test_pca_errors_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    train = (
        rng.normal(size=(60, 2, 3, 1))
        @ np.ones((1, 1))
        * np.arange(1, 7).reshape(2, 3, 1)
    )
    held_out = rng.normal(size=(10, 2, 3, 1))
    errors = _evaluation._pca_errors(train, held_out)
    for rank in range(1, 7):
        pca = PCA(rank).fit(train.reshape(60, 6))
        flat = held_out.reshape(10, 6)
        rebuilt = pca.inverse_transform(pca.transform(flat))
        np.testing.assert_allclose(
            errors[rank], ((rebuilt - flat) ** 2).mean(), atol=1e-12
        )


def test_pca_errors_of_few_large_images_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    train, held_out = rng.normal(size=(9, 5, 5, 1)), rng.normal(size=(4, 5, 5, 1))
    errors = _evaluation._pca_errors(train, held_out)
    assert len(errors) == 9
    for rank in (1, 4, 8):
        pca = PCA(rank).fit(train.reshape(9, 25))
        flat = held_out.reshape(4, 25)
        rebuilt = pca.inverse_transform(pca.transform(flat))
        np.testing.assert_allclose(
            errors[rank], ((rebuilt - flat) ** 2).mean(), atol=1e-12
        )


def test_densities_on_the_plane_are_these_numbers():
    grid = make_plane(2.0, 4)
    flat = grid.binned(grid.probabilities(lambda x: 0.0 * x.sum()))
    np.testing.assert_allclose(flat, np.full((4, 4), 1 / 16))
    # A point in the bin of [0, 1] x [-2, -1], one outside of the grid.
    counted = grid.histogram(np.array([[0.5, -1.5], [9.0, 0.0]]))
    expected = np.zeros((4, 4))
    expected[2, 0] = 0.5
    np.testing.assert_array_equal(counted, expected)
    # Half of the mass is outside: |1/16 - 1/2| + 15/16, plus the missing half.
    expected = 0.5 * (7 / 16 + 15 / 16 + 0.5)
    np.testing.assert_allclose(total_variation(counted, flat), expected)
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    np.testing.assert_allclose(kl_divergence(p, q), np.log(2))
    assert kl_divergence(q, p) == np.inf


def test_a_table_over_seeds_has_every_cell_and_no_column_that_is_nobody_s():
    """Of 1, 2 and 3 the mean is 2 and the deviation 1."""
    found = {
        "a": [{"x": 1.0, "y": 5.0}, {"x": 2.0, "y": 5.0}, {"x": 3.0, "y": 5.0}],
        "b": [{"x": 7.0}],
        "c": [],
    }
    rows = [
        {"cell": "a", "x": "2 ± 1", "y": "5 ± 0", "seeds": "3"},
        {"cell": "b", "x": "7", "y": "-", "seeds": "1"},
        {"cell": "c", "x": "-", "y": "-", "seeds": "0"},
    ]
    assert over_seeds(found) == rows
    only = [{k: v for k, v in row.items() if k != "y"} for row in rows]
    assert over_seeds(found, ["x"]) == only
    with pytest.raises(
        ValueError, match=r"no cell has \['z'\]; they have \['x', 'y'\]"
    ):
        over_seeds(found, ["x", "z"])
    assert over_seeds({"c": []}, ["z"])[0]["z"] == "-"


@pytest.mark.slow
def test_a_sweep_tabulates_its_cells_and_repeats_none(tmp_path, capsys):
    cells = {
        "narrow": {"network.widths": (2,)},
        "K=2": {"objective.num_steps": 2},
        "wide": {"objective.num_steps": 2, "network.widths": (4,)},  # the same as K=2
    }
    columns = ("samples_total_variation", "density_total_variation")
    config = tiny("toy_nonconvergent", train__num_steps=2)

    def run():
        return run_sweep(short_run.build, config, tmp_path, cells, columns)

    table = run()
    assert (tmp_path / "table.md").read_text() == table
    assert table.splitlines()[0] == f"| cell | {columns[0]} | {columns[1]} |"
    assert names(tmp_path / "cells") == {"narrow", "K=2"}
    rows = [row.split("|")[2:] for row in table.splitlines()[2:]]
    assert len(rows) == 3 and rows[1] == rows[2]
    found = read_config(tmp_path / "cells" / "K=2")
    assert found.objective.num_steps == 2 and tuple(found.network.widths) == (4,)
    capsys.readouterr()
    assert run() == table
    assert "cell 1/3" not in capsys.readouterr().out  # nothing ran again
    with pytest.raises(ValueError, match=r"config has no \['network.depth'\]"):
        run_sweep(
            short_run.build, config, tmp_path, {"x": {"network.depth": 1}}, columns
        )
