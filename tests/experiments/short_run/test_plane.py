"""Short-run MCMC in the plane: both recipes train, resume, are compared and loaded."""

import jax
import numpy as np
import pytest
from resuming import check_resumes

from experiments import load
from experiments.judge.plane import make_plane, total_variation
from experiments.run.config import construct, with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import run_sweep
from experiments.short_run import plane

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {
    "train.num_steps": 4,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "data.batch_size": 16,
    "network.widths": (4,),
    "objective.num_steps": 10,
    "evaluation.num_samples": 64,
    "evaluation.num_steps": 5,
    "evaluation.long_run_steps": 5,  # as many as `num_steps`: still two panels
    "evaluation.num_long_run": 32,
}


def tiny(preset, **changes):
    """A preset cut to seconds, with `section__option=value`."""
    options = {name.replace("__", "."): value for name, value in changes.items()}
    if preset == "toy_convergent":
        options["start.capacity"] = 64
    return with_options(plane.get_config(preset), TINY | options)


@pytest.mark.slow
def test_persistent_chains_stop_resume_and_are_loaded(tmp_path):
    """With a memory of chains, the half and then the rest is bitwise the whole."""
    scalars = check_resumes(plane.build, tiny("toy_convergent"), tmp_path)
    folder = tmp_path / "one"
    assert {x.name for x in (folder / "figures").iterdir()} == {"densities.png"}
    assert scalars["density_kl"] > 0
    # Exact draws are nearer to the truth than a chain that has hardly been trained.
    assert scalars["data_total_variation"] < scalars["samples_total_variation"]
    check_loaded(folder, scalars)


def check_loaded(folder, scalars):
    """The loaded model has the samples and the density of the run's evaluation."""
    trained = load(folder)
    options = trained.config.evaluation
    with np.load(folder / "samples.npz") as found:
        samples, key = found["samples"], jax.random.wrap_key_data(found["key"])
    assert samples.shape == (64, 2)
    np.testing.assert_array_equal(trained.sample(key, 64), samples)
    grid = make_plane(options.bound, options.num_bins)
    temperature = trained.config.sampler.temperature
    density = grid.probabilities(lambda x: trained.energy_fn(x) / temperature)
    section = {k: v for k, v in trained.config.data.items() if k != "batch_size"}
    target = construct("data", section, plane.TARGETS)
    truth = grid.binned(grid.probabilities(target.energy_fn))
    distance = total_variation(grid.binned(density), truth)
    np.testing.assert_allclose(distance, scalars["density_total_variation"], rtol=1e-5)
    distance = total_variation(grid.histogram(samples), truth)
    np.testing.assert_allclose(distance, scalars["samples_total_variation"], rtol=1e-9)


def test_chains_from_noise_are_evaluated_and_loaded(tmp_path):
    """The number of moves is that of the evaluation and not of training."""
    config = tiny("toy_nonconvergent", evaluation__num_steps=3)
    scalars = run(plane.build, config, tmp_path)
    check_loaded(tmp_path, scalars)


@pytest.mark.parametrize("preset", plane.PRESETS)
def test_every_preset_builds_and_is_locked(preset):
    experiment = plane.build(tiny(preset), make_keys(0))
    assert np.asarray(experiment.batch(0)).shape == (16, 2)
    carry = experiment.players["energy"].objective.init(jax.random.key(0))
    chains = [leaf.shape for leaf in jax.tree.leaves(carry) if leaf.ndim]
    per_device = 64 // jax.device_count()
    assert chains == ([(per_device, 2)] if preset == "toy_convergent" else [])
    with pytest.raises(AttributeError, match="Did you mean"):
        plane.get_config(preset).train.num_step = 5
    with pytest.raises(ValueError, match="preset must be one of.*got 'toy'"):
        plane.get_config("toy")


@pytest.mark.quick
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__name": "nine_gaussians"}, "name must be one of.*'nine_gaussians'"),
        ({"start__capacity": 63}, "start.capacity must be a multiple of the 8 devices"),
        ({"evaluation__num_steps": 0}, "evaluation.num_steps must be a whole number"),
        ({"evaluation__bound": 0.0}, "bound must be positive"),
        ({"start__law": "gaussian"}, "start.law must be 'uniform' or 'normal'"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(changes, message):
    config = plane.get_config("toy_convergent")
    options = {name.replace("__", "."): value for name, value in changes.items()}
    config = with_options(config, TINY | options)
    with pytest.raises(ValueError, match=message):
        plane.build(config, make_keys(0))


@pytest.mark.slow
def test_the_sweep_trains_both_recipes(tmp_path):
    plan = plane.sweep("")
    assert {cell.preset for cell in plan.cells.values()} == set(plane.PRESETS)
    given = TINY | {"train.num_steps": 1, "start.capacity": 64}
    table = run_sweep(plane.build, plane.get_config, plan, tmp_path, given=given)
    rows = [row.split("|")[1].strip() for row in table.splitlines()]
    assert rows == ["cell", "---", "toy_nonconvergent", "toy_convergent"]
