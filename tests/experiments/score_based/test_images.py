"""Score-based models of images: every process trains, is measured and loaded."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from resuming import check_resumes

from ebmjax import diffusions, energies, objectives, training
from experiments import load
from experiments.data import dequantize, load_section
from experiments.data import images as image_files
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import run_sweep
from experiments.score_based import images
from experiments.score_based.model import DIFFUSIONS, make_diffusion, make_network

pytestmark = pytest.mark.usefixtures("quick_compilation")


# These compile in less time than a U-Net.
DENSE_ENERGY = {
    "name": "mlp",
    "widths": (8,),
    "activation": "swish",
    "conditioning": "embedding",
    "is_energy": True,
}
DENSE_SCORE = DENSE_ENERGY | {"is_energy": False}

TINY = {
    "train.num_steps": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "data.batch_size": 16,
    "network.widths": (2, 4),
    "evaluation.num_samples": 16,
    "evaluation.num_shown": 16,
    "evaluation.chunk_size": 16,
    "evaluation.classifier_steps": 2,
    "evaluation.num_likelihoods": 8,
    "evaluation.num_probes": 2,
    "evaluation.num_inpainted": 3,
    "evaluation.tolerance": 1e-2,
}
TINY_LADDER = {"evaluation.sampler.num_steps_per_level": 2}
TINY_DIFFUSION = {"evaluation.sampler.num_steps": 5}


def tiny(preset="digits", network=None, **changes):
    """A preset cut to seconds, with `section__option=value`."""
    few = TINY_LADDER if preset.endswith(",ladder") else TINY_DIFFUSION
    config = with_options(images.get_config(preset), TINY | few).unlock()
    if network is not None:
        config.network = ConfigDict(network)
    options = {name.replace("__", "."): value for name, value in changes.items()}
    return with_options(config, options)


def names(folder):
    return {path.name for path in folder.iterdir()}


def check_samples(folder):
    """The loaded model draws the samples of the evaluation; returns it."""
    trained = load(folder)
    with np.load(folder / "samples.npz") as found:
        samples, key = found["samples"], jax.random.wrap_key_data(found["key"])
    np.testing.assert_array_equal(trained.sample(key, len(samples)), samples)
    np.testing.assert_array_equal(trained.sample(key, 3), samples[:3])
    return trained


@pytest.mark.slow
def test_a_ladder_of_energies_runs_stops_resumes_and_is_loaded(tmp_path):
    config = tiny("digits,ladder", DENSE_ENERGY, evaluation__num_samples=20)
    scalars = check_resumes(images.build, config, tmp_path)
    folder = tmp_path / "one"
    figures = folder / "figures"
    pictures = {"samples.png", "inpainting.png", "nearest.png"}
    tables = {"quality.md", "scores.csv", "log_likelihoods.csv"}
    assert names(figures) == pictures | tables
    rows = (figures / "quality.md").read_text().splitlines()[2:]
    found = [row.split("|")[1].strip() for row in rows]
    assert found == ["data", "gaussian", "uniform", "samples"]
    # The Hessian of an energy is symmetric, to rounding, and an energy detects images.
    assert scalars["asymmetry_1"] < 1e-6
    assert 0 <= scalars["auroc_uniform"] <= 1
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["kind"] == "eval"
    trained = check_samples(folder)
    x, scale = trained.sample(jax.random.key(0), 1)[0], np.float32(0.5)
    gradient = jax.grad(trained.energy_fn)(x, scale)
    np.testing.assert_allclose(trained.score_fn(x, scale), -gradient, rtol=1e-5)


@pytest.mark.slow
def test_a_diffusion_runs_and_is_loaded_without_its_data(tmp_path):
    """The largest noise scale is the data's largest distance, which is recorded."""
    scalars = run(images.build, tiny("digits", network__widths=(2,)), tmp_path)
    figures = names(tmp_path / "figures")
    tables = {"quality.md", "log_likelihoods.csv"}
    assert figures == {"samples.png", "inpainting.png", "nearest.png"} | tables
    assert scalars["bits_per_dim_error"] > 0 and scalars["bits_per_dim_noise"] > 0
    # A free score is not the gradient of an energy, and it detects nothing.
    assert scalars["asymmetry_1"] > 1e-4 and "auroc_uniform" not in scalars
    trained = check_samples(tmp_path)
    assert trained.energy_fn is None and set(trained.networks) == {"score"}


@pytest.mark.slow
def test_a_loaded_model_has_the_likelihood_of_the_evaluation(tmp_path):
    """With a chunk for each image, the evaluation's bits are those of `log_prob`."""
    config = tiny(
        "digits,variance_preserving",
        DENSE_SCORE,
        evaluation__num_samples=0,
        evaluation__num_shown=1,
        evaluation__num_inpainted=0,
        evaluation__num_likelihoods=2,
        evaluation__num_probes=1,
        evaluation__chunk_size=1,
    )
    scalars = run(images.build, config, tmp_path)
    trained, data = load(tmp_path), load_section(config.data)
    key = jax.random.fold_in(make_keys(config.seed).evaluation, 2)
    _, _, key = jax.random.split(key, 3)  # of the samples, the asymmetry, the bits
    noise_key, flow_key = jax.random.split(jax.random.fold_in(key, 0))
    x = dequantize(noise_key, data.held_out[:2], data.num_levels)
    nats = [
        float(trained.log_prob(x[i], jax.random.fold_in(flow_key, i))) for i in (0, 1)
    ]
    bits = math.log2(data.num_levels / 2) - np.mean(nats) / (64 * math.log(2))
    np.testing.assert_allclose(scalars["bits_per_dim"], bits, rtol=1e-12)
    rows = np.loadtxt(
        tmp_path / "figures" / "log_likelihoods.csv", delimiter=",", skiprows=1
    )
    np.testing.assert_allclose(rows[:, 0], nats, rtol=1e-9)
    # And of many images at once, to rounding.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(flow_key, jnp.arange(2))
    together = jax.vmap(trained.log_prob)(x, keys)
    np.testing.assert_allclose(together, nats, rtol=1e-4)


def test_the_sweep_has_every_process_and_an_energy():
    """Each cell has the sections of its own process."""
    found = {}
    for name, cell in images.sweep("digits,variance_preserving").cells.items():
        config = with_options(images.get_config(cell.preset), cell.overrides)
        expected = images.process_sections(config.process.name)["process"]
        assert config.process.to_dict() == expected
        found[name] = config.process.name, config.network.is_energy
    assert found == {
        "variance_exploding": ("variance_exploding", False),
        "variance_preserving": ("variance_preserving", False),
        "sub_variance_preserving": ("sub_variance_preserving", False),
        "ladder": ("ladder", False),
        "variance_preserving,energy": ("variance_preserving", True),
    }
    assert images.sweep("").cells == images.sweep("digits").cells
    assert "variance_exploding,energy" in images.sweep("mnist").cells


@pytest.mark.slow
def test_the_sweep_runs_and_tabulates_its_cells(tmp_path):
    """A free score and an energy are run, on a network that compiles quickly."""
    given = {
        "evaluation.classifier_steps": 0,
        "evaluation.num_inpainted": 0,
        "evaluation.num_likelihoods": 2,
        "evaluation.num_probes": 1,
    }
    plan = images.sweep("digits,variance_preserving")
    table = run_sweep(
        images.build,
        lambda preset: tiny(preset, DENSE_SCORE),
        plan._replace(
            cells={k: plan.cells[k] for k in ("ladder", "variance_preserving,energy")}
        ),
        tmp_path,
        given=given,
    )
    assert names(tmp_path / "cells") == {"ladder,0", "variance_preserving,energy,0"}
    rows = [[x.strip() for x in row.split("|")[1:-1]] for row in table.splitlines()]
    # A scalar that no cell has gets no column; one that a cell lacks is a dash.
    assert "inpainting_mse" not in rows[0] and "bits_per_dim_noise" not in rows[0]
    free, energy = (dict(zip(rows[0], row)) for row in rows[2:])
    assert free["auroc_uniform"] == "-" and float(energy["auroc_uniform"]) <= 1
    assert float(energy["asymmetry_1"]) < 1e-6 < float(free["asymmetry_1"])


@pytest.mark.quick
def test_averages_are_the_papers_at_their_scale():
    """Diffusions that preserve the variance have 0.9999, the others 0.999."""
    found = {
        process: images.get_config(f"cifar10,{process}").ema_decay
        for process in images.PROCESSES
    }
    assert found == {
        "variance_exploding": 0.999,
        "variance_preserving": 0.9999,
        "sub_variance_preserving": 0.9999,
        "ladder": 0.999,
    }


def test_every_preset_is_locked_and_has_every_process():
    for preset in images.PRESETS:
        for process in images.PROCESSES:
            config = images.get_config(f"{preset},{process}")
            name = "arrays" if preset == "own" else preset.removesuffix("_small")
            assert (config.data.name, config.process.name) == (name, process)
            with pytest.raises(AttributeError, match="Did you mean"):
                config.train.num_step = 5


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["mnist", "fashion_mnist", "cifar10"])
def test_presets_at_the_papers_scale_are_built_from_files(preset, tmp_path):
    """The network has its own depth and is narrower; the loss is traced, not run."""
    config = images.get_config(f"{preset},ladder").unlock()
    side, channels = (32, 3) if preset == "cifar10" else (28, 1)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        np.savez(
            image_files.npz_path(preset, split, tmp_path, side),
            images=rng.integers(0, 9, (40, side, side, channels), np.uint8)
            + np.where(np.arange(side) < side // 2, 0, 200)[:, None].astype("u1"),
            labels=rng.integers(0, 10, 40, np.int32),
        )
    config.data.update(data_dir=str(tmp_path), download=False, batch_size=40)
    config.network.widths = tuple(width // 32 for width in config.network.widths)
    experiment = images.build(config.lock(), make_keys(0))
    (name,) = experiment.params
    loss = experiment.players[name].objective.loss
    value, _ = jax.eval_shape(
        loss, experiment.params, jax.random.key(0), experiment.batch(0), ()
    )
    assert value.shape == ()
    assert experiment.facts["event_shape"] == [side, side, channels]
    # All images are dark on the left. Natural images are mirrored, digits are not.
    is_turned = np.asarray(experiment.batch(0))[:, 0, 0, 0] > 0
    # Five standard errors of a half of 40 images are 16 images.
    assert 4 <= is_turned.sum() <= 36 if preset == "cifar10" else not any(is_turned)


@pytest.mark.parametrize(
    "preset, changes, message",
    [
        ("digits", {"process__noise_min": 50.0}, "noise_min and noise_max must be"),
        ("digits,ladder", {"process__smallest": 50.0}, "smallest and largest must be"),
        (
            "digits,ladder",
            {"evaluation__sampler__relative_step_size": -1.0},
            "evaluation.sampler.relative_step_size must be positive and below 2, or 0"
            " .* got -1",
        ),
        ("digits", {"data__name": "digit"}, "did you mean 'digits'"),
        ("digits", {"data__num_examples": -1}, "data.num_examples must be a whole num"),
        ("digits", {"process__name": "ve"}, "process.name must be one of .* got 've'"),
        ("digits", {"process__name": "ladder"}, "--config=digits,ladder"),
        (
            "digits",
            {"evaluation__out_of_distribution": ("mnits",)},
            r"evaluation.out_of_distribution must be of .*got \['mnits'\]",
        ),
        (
            "digits",
            {"evaluation__num_examples": 1},
            "evaluation.num_examples must be a",
        ),
        ("digits", {"optimizer__b1": 1.0}, "b1 must be from 0 to below 1, got 1.0"),
        (
            "digits",
            {"optimizer__learning_rate__start": -1.0},
            "learning_rate.start must be a number of at least 0, got -1.0",
        ),
        (
            "digits",
            {"evaluation__sampler__predictor": "heun"},
            "predictor must be one of",
        ),
        (
            "digits",
            {"evaluation__sampler__num_steps": 0},
            "num_steps must be a whole number",
        ),
        ("digits", {"evaluation__num_likelihoods": 1}, "num_likelihoods must be 0 or"),
        ("digits", {"evaluation__chunk_size": 0}, "evaluation.chunk_size must be a"),
        ("digits", {"evaluation__num_probes": 0}, "evaluation.num_probes must be a"),
        ("digits", {"evaluation__tolerance": 0.0}, "evaluation.tolerance must be abo"),
        ("digits", {"evaluation__tolerance": math.inf}, "tolerance must be above 0 an"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(preset, changes, message):
    with pytest.raises(ValueError, match=message):
        images.build(tiny(preset, **changes), make_keys(0))


@pytest.mark.parametrize(
    "preset, message",
    [
        ("digit", "preset must be one of .* mean 'digits'"),
        ("digits,ve", "process must be one of .* got 've'"),
    ],
)
def test_an_unknown_preset_or_process_is_refused(preset, message):
    with pytest.raises(ValueError, match=message):
        images.get_config(preset)


@pytest.mark.parametrize("process", DIFFUSIONS)
def test_an_energy_is_trained_on_the_score_that_is_sampled(process):
    """The loss of an energy is that of its score. A wrong division by the mean scale
    would be seen at late times, where little is left of the example."""
    config = tiny(f"digits,{process}", DENSE_ENERGY)
    law = make_diffusion(config.process, 8.0)

    def energy(params, x, noise_scale):
        distance = jnp.sum((x - params["mean"]) ** 2)
        return 0.5 * distance / (params["variance"] + noise_scale**2)

    timed = diffusions.energy_with_time(energy, law)
    sampled = diffusions.with_time(energies.score(energy), law)
    exact = {"mean": jnp.float32(0.2), "variance": jnp.float32(0.3)}
    x = jnp.array([0.3, -1.0])
    for time in (0.1, 0.5, 1.0):
        found = -jax.grad(timed, 1)(exact, x, jnp.float32(time))
        expected = sampled(exact, x, jnp.float32(time))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    _, name, score = make_network(config.network, (8, 8, 1))
    experiment = images.build(config, make_keys(0))
    assert name == "energy" and set(experiment.params) == {"energy"}
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32),
        experiment.params["energy"],
    )
    law = make_diffusion(config.process, experiment.facts.get("largest_distance", 0.0))
    free = objectives.diffusion_score_matching(
        score_network=diffusions.with_time(score, law), diffusion=law
    )
    batch = experiment.batch(0)
    loss = experiment.players["energy"].objective.loss
    found, _ = jax.jit(loss)({"energy": params}, jax.random.key(0), batch, ())
    expected, _ = jax.jit(free.loss)({"score": params}, jax.random.key(0), batch, ())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_a_network_that_has_learned_nothing_is_evaluated(tmp_path):
    """Its score is zero, so the corrector does not move and nothing is asymmetric."""
    config = tiny(
        "digits",
        train__num_steps=0,
        evaluation__num_likelihoods=0,
        evaluation__classifier_steps=0,
    )
    scalars = run(images.build, config, tmp_path)
    assert scalars["asymmetry_1"] == 0 and np.isfinite(scalars["samples_abs_max"])


@pytest.mark.quick
def test_images_without_labels_need_no_classifier(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    for split in ("train", "test"):
        np.savez(image_files.npz_path("mnist", split, tmp_path), images=pixels)
    config = tiny("mnist", DENSE_SCORE, data__data_dir=str(tmp_path))
    assert images.build(config, make_keys(0)).facts["event_shape"] == [28, 28, 1]


@pytest.mark.parametrize("process", ["ladder", "variance_preserving"])
def test_what_is_evaluated_is_the_average_in_draws_that_differ(process, tmp_path):
    """The evaluation uses the averaged parameters, and chunks have different draws."""
    config = tiny(
        f"digits,{process}",
        DENSE_SCORE,
        evaluation__num_samples=0,
        evaluation__num_shown=4,
        evaluation__chunk_size=2,
        evaluation__num_likelihoods=0,
        evaluation__num_inpainted=0,
    )
    experiment = images.build(config, make_keys(0))
    ones = jax.tree.map(jnp.ones_like, experiment.params)

    def drawn(params, ema_params):
        state = training.TrainState(
            step=0,
            params=params,
            opt_state={},
            carry={},
            key=None,
            model_state={},
            ema_params=ema_params,
        )
        experiment.evaluate(state, jax.random.key(0), tmp_path)
        with np.load(tmp_path / "samples.npz") as found:
            return found["samples"]

    first = drawn(ones, experiment.params)
    np.testing.assert_array_equal(first, drawn(experiment.params, experiment.params))
    assert np.abs(first - drawn(experiment.params, ones)).max() > 0.01
    assert np.abs(first[:2] - first[2:]).max() > 0.01


@pytest.mark.parametrize("weighting", ["noise", "likelihood"])
def test_the_objective_has_the_section_s_weighting(weighting):
    config = tiny(
        "digits,variance_preserving", DENSE_SCORE, objective__weighting=weighting
    )
    experiment = images.build(config, make_keys(0))
    law = make_diffusion(config.process, 0.0)
    _, _, score = make_network(config.network, (8, 8, 1))
    expected = objectives.diffusion_score_matching(
        score_network=diffusions.with_time(score, law),
        diffusion=law,
        weighting=weighting,
    )
    arguments = experiment.params, jax.random.key(0), experiment.batch(0), ()
    found, _ = jax.jit(experiment.players["score"].objective.loss)(*arguments)
    np.testing.assert_allclose(found, jax.jit(expected.loss)(*arguments)[0], rtol=1e-6)
