"""Images: every preset builds, one trains, resumes, is judged and loaded."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resuming import check_resumes

from ebmjax import training
from ebmjax.types import BATCH
from experiments import load
from experiments.data import images as sources
from experiments.data import load_images
from experiments.generalized import images
from experiments.generalized.latents import Refined
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import Cell

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {
    "data.batch_size": 16,
    "latent_dim": 4,
    "players.num_energy_updates": 2,
    "players.num_extra_updates": 2,
    "players.extra_every": 2,
    "train.num_steps": 2,
    "train.num_joint_steps": 1,
    "train.log_every": 1,
    "evaluation.num_samples": 32,
    "evaluation.num_examples": 40,
    "evaluation.num_shown": 4,
    "evaluation.chunk_size": 16,
    "evaluation.classifier_steps": 2,
    "evaluation.sampler.names": ("mala",),
    "evaluation.sampler.chain_lengths": (2, 4),
    "evaluation.sampler.temperatures": (0.5,),
}


def tiny(preset="digits", data_dir=None, **changes):
    """A preset cut to seconds; its method untouched."""
    config = images.get_config(preset)
    options = dict(SMALL)
    if "width" in config.network:
        options["network.width"] = 4
    else:
        options["network.widths"] = (1, 2)
    if "data_dir" in config.data:
        options |= {"data.data_dir": str(data_dir), "data.download": False}
        # The residual network is of 32 x 32 pixels.
        options["data.size"] = 32 if "width" in config.network else 8
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return with_options(config, options | changes)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Images of noise in the place of every data set of the presets."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for preset in images.PRESETS:
        section = images.get_config(preset).data
        if section.name not in sources.SOURCES:
            continue  # the digits are embedded, and your own images are elsewhere
        source, size = sources.SOURCES[section.name], 32 if "resnet" in preset else 8
        for split, num in zip(source.splits, (80, 40)):
            arrays = {"images": rng.integers(0, 256, (num, size, size, 3), np.uint8)}
            if source.label_name:
                arrays["labels"] = np.arange(num, dtype=np.int32) % 10
            np.savez(sources.npz_path(section.name, split, folder, size), **arrays)
    return folder


def make_state(experiment):
    params = dict(experiment.params)
    return training.TrainState(0, None, params, experiment.model_state, None, {}, {})


@pytest.mark.slow
def test_a_run_stops_resumes_is_judged_and_loaded(tmp_path):
    check_resumes(images.build, tiny(), tmp_path)
    workdir = tmp_path / "one"
    figures = {path.name for path in (workdir / "figures").iterdir()}
    assert figures == {"quality.md", "chains.png", "strips.png"}
    trained = load(workdir)
    with np.load(workdir / "samples.npz") as found:
        key, samples = jax.random.wrap_key_data(found["key"]), found["samples"]
    assert samples.shape == (32, 8, 8, 1) and samples.dtype == np.float32
    np.testing.assert_array_equal(trained.sample(key, 32), samples)
    # Other keys begin at other latents.
    other = trained.sample(jax.random.key(1), 32)
    assert np.abs(other - samples).max(axis=(1, 2, 3)).min() > 0
    network, params = trained.networks["energy"], trained.params["energy"]
    found = [trained.energy_fn(jnp.asarray(x)) for x in samples[:2]]
    state = trained.model_state["energy_state"]
    np.testing.assert_array_equal(
        found, [network.apply_stateful(params, state, x)[0] for x in samples[:2]]
    )


@pytest.mark.slow
def test_the_paper_s_scale_runs(data_dir, tmp_path):
    config = tiny(
        "cifar10_resnet,donsker_varadhan",
        data_dir,
        train__num_steps=1,
        evaluation__sampler__names=("underdamped", "transport"),
        evaluation__sampler__chain_lengths=(2,),
    )
    scalars = run(images.build, config, tmp_path)
    assert all(np.isfinite(value) for value in scalars.values())
    assert {"relative_underdamped_0.5_2", "relative_transport_1_2"} <= set(scalars)


@pytest.mark.parametrize("preset", sorted(images.PRESETS.keys() - {"own"}))
def test_every_preset_builds(preset, data_dir, monkeypatch):
    """With KALE; the batch of a step is for all of its updates."""
    monkeypatch.setattr(images, "Inception", lambda path, num_levels: None)
    config = tiny(preset, data_dir, evaluation__inception_weights="inception.npz")
    experiment = images.build(config, make_keys(0))
    assert experiment.players["energy"].trains == ("energy", "log_partition")
    size, channels = config.data.get("size", 8), 1 if preset == "digits" else 3
    shape = (size, size, channels)
    assert experiment.facts == {"image_shape": list(shape)}
    # At the first step the energy has 2 + 2 updates and the base 1.
    assert experiment.batch(0).shape == (16 * 5, *shape)


def test_data_without_labels_are_measured_by_their_pixels(capsys):
    """And copies of the images measure better than noise does."""
    data = load_images("digits")._replace(labels_train=None, labels_held_out=None)
    measure = images.make_measure(tiny(evaluation__num_examples=300), data)
    assert "no labels" not in capsys.readouterr().err
    noise = np.random.default_rng(0).uniform(-1, 1, (32, 8, 8, 1)).astype(np.float32)
    copies = (data.train[:32] + np.float32(0.5)) * np.float32(2 / 17) - 1
    measured = measure({"noise": noise, "copies": copies})
    assert "no labels" in capsys.readouterr().err
    assert set(measured["copies"]) >= {"kernel_distance", "distance_to_choose"}
    found = {name: row["frechet_distance"] for name, row in measured.items()}
    assert found["copies"] < 0.5 * found["noise"]


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("players__num_extra_updates", -5, "players.num_extra_updates must"),
        ("players__num_energy_updates", 0, "players.num_energy_updates must"),
        ("evaluation__num_samples", 1, "evaluation.num_samples must be a"),
        ("evaluation__num_examples", 0, "evaluation.num_examples must be a"),
        ("evaluation__num_shown", 0, "evaluation.num_shown must be a whole"),
        ("evaluation__chunk_size", 0, "evaluation.chunk_size must be a"),
        ("evaluation__sampler__names", ("gibbs",), "names must be some of .*gibbs"),
        ("data__name", "digit", "data.name 'digit' is not .*mean 'digits'"),
        ("network__name", "resnet", "name must be one of .*'sngan'"),
    ],
)
def test_options_that_would_fail_after_training_are_refused_before_it(
    option, value, message
):
    with pytest.raises(ValueError, match=message):
        images.build(tiny(**{option: value}), make_keys(0))


def test_images_are_judged_by_temperature_and_length_in_percent_of_the_base_s(
    tmp_path, monkeypatch
):
    """Chains that take a tenth off each image's size at every length; the distance is
    the mean square."""
    seen = []

    def make_refine(section, energy_fn, generator_fn):
        def refine(name, key, latents, temperature):
            lowest = float(energy_fn(jnp.zeros((8, 8, 1))))
            seen.append((name, temperature, lowest))
            x = np.asarray(jax.vmap(generator_fn)(latents))
            return {
                length: Refined(
                    latents,
                    x * (1 - length / 10),
                    length / 10 if name == "mala" else math.nan,
                )
                for length in section.chain_lengths
            }

        return refine

    def make_measure(config, data):
        # What chooses is smallest where the distance is not.
        return lambda sets: {
            name: {
                "frechet_distance": float(np.mean(x**2)),
                "distance_to_choose": 7.0 if name == "transport_1_2" else 9.0,
            }
            for name, x in sets.items()
        }

    monkeypatch.setattr(images, "make_refine", make_refine)
    monkeypatch.setattr(images, "sample_model", lambda *given: given[-1])
    monkeypatch.setattr(images, "make_measure", make_measure)
    config = tiny(
        objective__energy_floor=-1.5,
        evaluation__sampler__names=("mala", "transport"),
        evaluation__sampler__temperatures=(1.0, 0.1),
    )
    experiment = images.build(config, make_keys(0))
    state = make_state(experiment)
    state.params["energy"]["Dense_0"]["bias"] -= 1e6  # of the last layer
    found = experiment.evaluate(state, jax.random.key(0), tmp_path)
    assert seen == [
        ("mala", 1.0, -1.5),
        ("mala", 0.1, -1.5),
        ("transport", 1.0, -1.5),
    ]
    cells = [
        (f"{cell}_{length}", length)
        for cell in ("mala_1", "mala_0.1", "transport_1")
        for length in (2, 4)
    ]
    relative = {f"relative_{x}": 100 * (1 - length / 10) ** 2 for x, length in cells}
    relative |= {
        f"acceptance_rate_{x}": length / 10 for x, length in cells if "mala" in x
    }
    base = found.pop("base_frechet_distance")
    relative |= {
        "relative_chosen": 64,
        "chosen_frechet_distance": 0.64 * base,
        "chosen_distance_to_choose": 7,
        "base_distance_to_choose": 9,
    }
    assert found == pytest.approx(relative | {"relative_base": 100}, rel=1e-5)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "quality.md").read_text().splitlines()
    ]
    table = {row[0]: row[1:] for row in rows[2:]}
    assert table["base"][1:] == ["100", "-", "9"] and table["transport_1_4"][2] == "-"
    found = [float(cell) for cell in table["mala_0.1_4"]]
    np.testing.assert_allclose(found, [0.36 * base, 36, 0.4, 9], rtol=5e-3)


def test_a_sweep_has_three_seeds_of_the_preset():
    plan = images.sweep("")
    assert plan.cells == {"digits": Cell("")} and plan.num_seeds == 3
    assert images.sweep("mnist").cells == {"mnist": Cell("mnist")}


@pytest.mark.parametrize("name", ["sngan", "sngan_resnet", "dcgan", "strided"])
def test_options_of_devices_reach_the_base_and_the_energy(name):
    """Statistics of one device need no axis of devices; both compute in bfloat16."""
    given = {
        "network.name": name,
        "network.is_synchronized": "False",
        "network.compute_dtype": "bfloat16",
        "latent_dim": 4,
    }
    if name == "sngan_resnet":
        given |= {"network.width": 4, "network.num_blocks": 1}
    config = with_options(images.get_config(), given, images.CHOICES)
    built = images.make_networks(config, (8, 8, 1))
    for network, shape in ((built["base"], (4,)), (built["energy"], (8, 8, 1))):
        params, state = jax.jit(network.init)(jax.random.key(0))

        def apply(x, network=network, params=params, state=state):
            if network.apply_stateful is None:
                return network.apply(params, x)
            return network.apply_stateful(params, state, x, train=True)[0]

        over_examples = jax.vmap(apply, axis_name=BATCH)
        assert "bf16" in str(jax.make_jaxpr(over_examples)(jnp.zeros((2, *shape))))
