"""Maximum entropy generators of images: the presets, a run that stops and resumes, and
the model back from its folder."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resuming import check_resumes

from ebmjax.types import BATCH
from experiments import load
from experiments.data.images import npz_path
from experiments.judge.inception import Inception
from experiments.max_entropy import images
from experiments.max_entropy.model import make_networks
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.workdir import read_lines

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {
    "train.num_steps": 4,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "data.batch_size": 16,
    "networks.hidden_width": 8,
    "latent_dim": 4,
    "evaluation.num_samples": 50,
    "evaluation.num_examples": 40,
    "evaluation.num_chains": 32,
    "evaluation.chunk_size": 32,
    "evaluation.num_shown": 16,
}


def tiny(preset, image_dir, **changes):
    """A preset cut to seconds, with `section__option=value`."""
    config = images.get_config(preset)
    options = {name.replace("__", "."): value for name, value in changes.items()}
    options["networks.widths"] = tuple(x // 16 for x in config.networks.widths)
    if config.evaluation.classifier_steps:
        options["evaluation.classifier_steps"] = 2
    if "data_dir" in config.data:
        options |= {"data.data_dir": str(image_dir), "data.download": False}
    return with_options(config, TINY | options)


def check_loaded(folder, scalars):
    """The loaded model has the draws and the energies of the run's evaluation."""
    trained = load(folder)
    with np.load(folder / "samples.npz") as found:
        samples, key = found["samples"], jax.random.wrap_key_data(found["key"])
    assert len(samples) == 50 and np.abs(samples).max() <= 1
    np.testing.assert_array_equal(trained.sample(key, 50), samples)
    # In chunks of 32: the first draws are the same, however many follow.
    np.testing.assert_array_equal(trained.sample(key, 40), samples[:40])
    energy = jax.vmap(trained.energy_fn)(samples)
    np.testing.assert_allclose(energy.mean(), scalars["energy_model"], rtol=1e-4)
    with (folder / "figures" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [float(row["energy"]) for row in rows if row["data"] == "samples"]
    np.testing.assert_allclose(found, energy, rtol=1e-4, atol=1e-6)
    others = [float(row["energy"]) for row in rows if row["data"] != "samples"]
    np.testing.assert_allclose(np.mean(others), scalars["energy_data"], rtol=1e-4)
    assert trained.score_fn(samples[0]).shape == samples[0].shape


@pytest.mark.slow
def test_digits_stop_resume_and_are_loaded(tmp_path):
    """With running statistics of the generator; half and then the rest is the whole."""
    scalars = check_resumes(images.build, tiny("digits", None), tmp_path)
    folder = tmp_path / "one"
    figures = {path.name for path in (folder / "figures").iterdir()}
    pictures = {"samples.png", "chains.png", "nearest.png"}
    assert figures == pictures | {"quality.md", "scores.csv"}
    lines = read_lines(folder)
    players = {key.split("/")[0] for line in lines for key in line if "/" in key}
    assert players == {"generator", "energy"}
    assert "samples_classifier_frechet_distance" in scalars
    check_loaded(folder, scalars)


@pytest.mark.slow
def test_the_paper_s_networks_run_and_are_loaded(tmp_path, image_dir):
    config = tiny("cifar10", image_dir, train__num_steps=1)
    check_loaded(tmp_path, run(images.build, config, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    sorted(images.PRESETS.keys() - {"own", "mnist_small", "fashion_mnist_small"}),
)
def test_every_preset_builds(preset, image_dir):
    config = tiny(preset, image_dir)
    assert config.is_locked
    experiment = images.build(config, make_keys(0))
    assert set(experiment.params) == {"generator", "energy", "statistics"}
    shape = tuple(experiment.facts["event_shape"])
    assert experiment.batch(0).shape == (16 * 6, *shape)
    assert (
        shape
        == {
            "digits": (8, 8, 1),
            "cifar10": (32, 32, 3),
            "celeb_a": (64, 64, 3),
        }[preset]
    )


@pytest.mark.quick
def test_images_without_labels_need_no_classifier(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    for split in ("train", "test"):
        np.savez(npz_path("cifar10", split, tmp_path), images=pixels)
    experiment = images.build(tiny("cifar10", tmp_path), make_keys(0))
    assert experiment.facts["event_shape"] == [32, 32, 3]


@pytest.mark.quick
def test_weights_come_from_a_file_and_are_checked_before_training(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluation.inception_weights"):
        Inception(tmp_path / "none.pth")
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match="damaged.npz cannot be read"):
        Inception(damaged)
    other = tmp_path / "other.npz"
    np.savez(other, a=np.zeros(3))
    config = tiny("digits", None, evaluation__inception_weights=str(other))
    with pytest.raises(ValueError, match="must have 'fc.bias'"):
        images.build(config, make_keys(0))


@pytest.mark.parametrize("name", ["strided", "convnet"])
def test_options_of_devices_reach_all_three_networks(name):
    """Statistics of one device need no axis of devices; all compute in bfloat16."""
    given = {
        "networks.name": name,
        "networks.is_synchronized": "False",
        "networks.compute_dtype": "bfloat16",
        "latent_dim": 4,
    }
    if name == "convnet":
        given["networks.is_normal"] = "True"
    config = with_options(images.get_config(), given, images.CHOICES)
    generator, energy, statistics = make_networks(config, (8, 8, 1))
    x, z = jnp.zeros((8, 8, 1)), jnp.zeros((2, 4))
    params, state = jax.jit(generator.init)(jax.random.key(0))

    def draw(z):
        return generator.apply_stateful(params, state, z, train=True)[0]

    programs = [jax.make_jaxpr(jax.vmap(draw, axis_name=BATCH))(z)]
    for network, arguments in ((energy, (x,)), (statistics, (x, z[0]))):
        params, _ = jax.eval_shape(network.init, jax.random.key(0))
        programs.append(jax.make_jaxpr(network.apply)(params, *arguments))
    assert all("bf16" in str(program) for program in programs)
