"""Maximum entropy generators in the plane: coverage and density of known models, the
presets, the ablation, and the model back from its folder."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import targets, training
from ebmjax.types import Network
from experiments import load
from experiments.max_entropy import plane
from experiments.max_entropy.model import Networks
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import run_sweep
from experiments.run.workdir import finite_evaluations, read_lines

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {
    "train.num_steps": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 0,
    "data.batch_size": 16,
    "networks.generator_widths": (8,),
    "networks.energy_widths": (8,),
    "evaluation.num_samples": 64,
    "evaluation.num_chains": 32,
    "evaluation.num_bins": 20,
}


def tiny(preset, **changes):
    """A preset cut to seconds, with `section__option=value`."""
    options = {name.replace("__", "."): value for name, value in changes.items()}
    return with_options(plane.get_config(preset), TINY | options)


@pytest.mark.slow
def test_a_run_is_evaluated_and_loaded(tmp_path):
    """With chains in training and an average, whose energy and draws are judged."""
    config = tiny("toy", sampler__num_steps=2, evaluation__sampler__num_steps=3)
    scalars = run(plane.build, config, tmp_path)
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"plane.png"}
    lines = [line for line in read_lines(tmp_path) if line["kind"] == "train"]
    assert all(0 < line["energy/chain_acceptance_rate"] <= 1 for line in lines)

    trained = load(tmp_path)
    assert set(trained.networks) == {"generator", "energy", "statistics"}
    with np.load(tmp_path / "samples.npz") as found:
        samples, key = found["samples"], jax.random.wrap_key_data(found["key"])
    assert samples.shape == (64, 2) and samples.dtype == np.float32
    np.testing.assert_array_equal(trained.sample(key, 64), samples)
    energy = jax.vmap(trained.energy_fn)(samples)
    np.testing.assert_allclose(energy.mean(), scalars["energy_model"], rtol=1e-5)
    score = jax.vmap(trained.score_fn)(samples)
    norm = jnp.linalg.norm(score, axis=1).max()
    np.testing.assert_allclose(norm, scalars["score_norm_model_max"], rtol=1e-5)
    # Minus the slope: a small move along it lowers the energy.
    moved = jax.vmap(trained.energy_fn)(samples + 1e-3 * score)
    assert moved.mean() < energy.mean()
    modes = targets.twenty_five_gaussians().modes
    found = plane.measure_coverage(samples, modes, config.data.std)
    assert found.items() <= scalars.items()


@pytest.mark.parametrize("preset", plane.PRESETS)
@pytest.mark.parametrize("method", ["", ",gan", ",wgan_gp"])
def test_every_preset_builds_with_every_method(preset, method):
    config = tiny(preset + method)
    assert config.is_locked
    experiment = plane.build(config, make_keys(0))
    trains = ("generator", "statistics") if not method else ("generator",)
    assert list(experiment.players) == ["generator", "energy"]
    assert experiment.players["generator"].trains == trains
    assert set(experiment.params) == {*trains, "energy"}
    assert experiment.players["energy"].num_updates == 5
    assert experiment.batch(0).shape == (16 * 6, 2)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["eight_gaussians,wgan_gp", "swiss_roll,gan"])
def test_a_baseline_runs_without_statistics(preset, tmp_path):
    scalars = run(plane.build, tiny(preset, train__num_steps=1), tmp_path)
    assert ("num_modes" in scalars) == preset.startswith("eight")
    assert set(load(tmp_path).networks) == {"generator", "energy"}


@pytest.mark.quick
def test_presets_methods_and_options_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match="preset must be one of .*'toy'.*'kdd99'"):
        plane.get_config("kdd99")
    with pytest.raises(ValueError, match="method must be one of .*'wgan'; did you"):
        plane.get_config("toy,wgan")
    for preset, options, message in (
        ("toy", {"players__first": "both"}, "players.first must be .*'both'"),
        ("toy,gan", {"sampler__num_steps": 2}, "sampler.num_steps must be 0 .*'gan'"),
        ("toy", {"evaluation__num_samples": 0}, "evaluation.num_samples must be"),
        ("toy", {"data__name": "moons"}, "name must be one of .*'moons'"),
    ):
        with pytest.raises(ValueError, match=message):
            plane.build(tiny(preset, **options), make_keys(0))


@pytest.mark.quick
def test_the_ablation_is_a_plan_of_three_seeds():
    plan = plane.sweep("eight_gaussians")
    assert plan.num_seeds == 3
    changed = {name: set(cell.overrides.items()) for name, cell in plan.cells.items()}
    information = ("objective.information_weight", 0.0)
    penalty = ("objective.score_penalty", 0.0)
    assert changed == {
        "whole": set(),
        "no information": {information},
        "no penalty": {penalty},
        "neither": {information, penalty},
    }
    assert {cell.preset for cell in plan.cells.values()} == {"eight_gaussians"}
    alone = plane.sweep("toy,gan").cells
    assert {name: tuple(cell) for name, cell in alone.items()} == {
        "gan": ("toy,gan", {})
    }


@pytest.mark.slow
def test_two_cells_of_the_ablation_are_one_table(tmp_path):
    plan = plane.sweep("toy")
    cells = {name: plan.cells[name] for name in ("whole", "neither")}
    table = run_sweep(
        plane.build,
        plane.get_config,
        plan._replace(cells=cells),
        tmp_path,
        given=TINY | {"train.num_steps": 1},
        num_seeds=1,
    )
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert rows[0] == ["cell", *plane.COLUMNS, "seeds"]
    assert [row[0] for row in rows[2:]] == ["whole", "neither"]
    for name, row in zip(cells, rows[2:]):
        found = finite_evaluations(read_lines(tmp_path / "cells" / f"{name},0"))[1]
        np.testing.assert_allclose(float(row[5]), found["density_kl"], rtol=1e-3)


# --- coverage


@pytest.mark.parametrize("name", ["twenty_five_gaussians", "eight_gaussians"])
def test_exact_draws_cover_every_mode(name):
    """Within three deviations lie 1 - exp(-4.5) of a normal's draws in the plane."""
    target, std = plane.TARGETS[name](std=0.01), 0.01
    x = np.asarray(target.sample(jax.random.key(0), 10_000))
    coverage = functools.partial(plane.measure_coverage, modes=target.modes, std=std)
    found = coverage(x)
    assert found["num_modes"] == len(target.modes)
    share = 1 - math.exp(-4.5)
    np.testing.assert_allclose(
        found["good_share"], share, atol=4 * (share * (1 - share) / 10_000) ** 0.5
    )
    # Without the draws about two modes; and all of them moved away.
    nearest = np.asarray(jax.vmap(target.mode_of)(x))
    assert coverage(x[nearest > 1])["num_modes"] == len(target.modes) - 2
    away = coverage(x + 5 * std)
    assert away["num_modes"] == 0 or away["good_share"] < 0.05


def test_a_mode_counts_from_a_tenth_of_its_due_draws_within_three_deviations():
    modes = np.array([[0.0, 0.0], [10.0, 0.0]])
    x = np.zeros((400, 2))
    x[:20] = [10.29, 0.0]  # a tenth of 200, at 2.9 deviations
    found = plane.measure_coverage(x, modes, 0.1)
    assert found == {"num_modes": 2, "good_share": 1}
    x[0] = [10.31, 0.0]
    found = plane.measure_coverage(x, modes, 0.1)
    assert found == {"num_modes": 1, "good_share": 399 / 400}


@pytest.mark.slow
def test_the_plane_s_judge_knows_an_exact_model(tmp_path):
    """The energy is the target's and the generator draws from it."""
    config = tiny("toy", evaluation__num_bins=125, evaluation__num_samples=20_000)
    target = targets.twenty_five_gaussians()

    def generate(params, z):
        """Each coordinate of a latent, through its rank, to a line of five normals."""
        rank = jax.scipy.stats.norm.cdf(z) * 5
        place = jnp.clip(jnp.floor(rank), 0, 4)
        within = jax.scipy.stats.norm.ppf(jnp.clip(rank - place, 1e-6, 1 - 1e-6))
        return math.sqrt(0.5) * (place - 2) + 0.05 / math.sqrt(8.0) * within

    nets = Networks(
        generator=Network(None, generate),
        energy=Network(None, lambda params, x: target.energy_fn(x)),
        statistics=None,
    )
    state = training.TrainState(
        0, None, {"energy": (), "generator": ()}, {}, None, {}, {}
    )
    evaluate = plane.make_evaluation(config, target, nets)
    found = evaluate(state, jax.random.key(1), tmp_path)
    assert found["num_modes"] == 25 and abs(found["density_kl"]) < 1e-4
    share = 1 - math.exp(-4.5)
    np.testing.assert_allclose(found["good_share"], share, atol=0.004)
    # The sum over cells of .008 within a circle of .053: a few cells on its edge.
    np.testing.assert_allclose(found["density_mass_near_modes"], share, atol=0.01)
    np.testing.assert_allclose(found["energy_difference"], 0.0, atol=0.05)
    # A flat energy on the square of side 4: the area's logarithm less the entropy; the
    # reverse would be in the thousands.
    flat = nets._replace(energy=Network(None, lambda params, x: 0 * jnp.sum(x)))
    evaluate = plane.make_evaluation(config, target, flat)
    found = evaluate(state, jax.random.key(1), tmp_path)
    entropy = math.log(25) + math.log(2 * math.pi * math.e * 0.05**2 / 8)
    np.testing.assert_allclose(found["density_kl"], math.log(16) - entropy, atol=1e-3)
