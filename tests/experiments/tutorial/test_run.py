"""The methods on targets whose density is known: presets, runs, loading, the table."""

import json

import jax
import numpy as np
import pytest

from ebmjax import metrics, objectives
from experiments import load
from experiments.data import own_tables
from experiments.run.config import flat, with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import Cell, run_sweep
from experiments.run.workdir import read_lines
from experiments.tutorial.methods import METHODS, OWN_METHODS
from experiments.tutorial.run import (
    PRESETS,
    build,
    check_single,
    get_config,
    list_presets,
    sweep,
)
from experiments.tutorial.targets import TARGETS, make_target

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {
    "train.num_steps": 3,
    "train.log_every": 1,
    "data.batch_size": 32,
    "evaluation.num_points": 80,
    "evaluation.num_examples": 200,
    "evaluation.num_samples": 5,
    "objective.capacity": 64,
    "objective.num_updates": 2,
    "objective.num_critic_updates": 1,
    "objective.num_flow_updates": 1,
    "objective.num_layers": 2,
    "objective.max_steps": 10,
    "objective.num_importance": 4,
}


def small(preset, **overrides):
    """Returns the config of a run of a few updates."""
    config = get_config(preset)
    known = flat(config.to_dict())
    values = {name: value for name, value in SMALL.items() if name in known}
    values |= {name.replace("__", "."): value for name, value in overrides.items()}
    return with_options(config, values)


PLAIN = {"score_matching", "sliced_score_matching", "denoising_score_matching"}
PLAIN |= {"finite_difference_score_matching", "minimum_velocity", "kernel_stein"}
PLAIN |= {"conditional_noise_contrastive"}
"""Methods that are an objective and nothing else, of which one is run."""


def one_target_each():
    names = set(METHODS) - PLAIN | {"sliced_score_matching"}
    return [(name, METHODS[name].targets[0]) for name in sorted(names)]


@pytest.mark.slow
@pytest.mark.parametrize("name, target", one_target_each())
def test_every_method_trains_and_is_evaluated(tmp_path, name, target):
    scalars = run(build, small(f"{name},{target}"), tmp_path)
    assert scalars["kl"] > 0  # the model has barely begun
    lines = read_lines(tmp_path)
    players = {key.split("/")[0] for key in lines[0] if "/" in key}
    assert "energy" in players
    learns = {"noise_contrastive", "noise_contrastive_flow", "flow_contrastive"}
    assert ("learned_log_partition" in scalars) == (name in learns)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset):
    """Its players train what it has parameters of, on examples of its target."""
    config = small(preset)
    experiment = build(config, make_keys(0))
    trained = [name for x in experiment.players.values() for name in x.trains]
    assert sorted(trained) == sorted(experiment.params)
    num_updates = sum(player.num_updates for player in experiment.players.values())
    dim = config.data.get("dim", 2)
    assert experiment.batch(0).shape == (config.data.batch_size * num_updates, dim)
    assert len(experiment.facts["mean"]) == dim


def test_every_objective_has_a_method_or_data_of_another_kind():
    elsewhere = {"ratio_matching", "minimum_probability_flow"}
    elsewhere |= {"non_negative_score_matching", "max_entropy", "generalized"}
    elsewhere |= {"diffusion_score_matching"}  # of times, in `score_based`
    public = set(objectives.__all__) - elsewhere
    public -= {"Aux", "ContrastiveCarry", "NoiseDistribution", "Objective"}
    public -= {"stateless", "telescoping_energy", "generate", "interpolate"}
    assert public <= set(METHODS), public - set(METHODS)


@pytest.mark.slow
def test_a_loaded_model_in_the_plane_has_the_energy_that_was_evaluated(tmp_path):
    """A telescope's energy is a sum of all that is trained, and its average counts."""
    config = small("telescoping,eight_gaussians")
    scalars = run(build, config, tmp_path)
    trained = load(tmp_path)
    wide = [(-18.0, 18.0)] * 2
    log_partition = metrics.quadrature(trained.energy_fn, wide, 120)
    np.testing.assert_allclose(log_partition, scalars["log_partition"], rtol=1e-6)
    last = metrics.quadrature(load(tmp_path, ema=False).energy_fn, wide, 120)
    assert abs(last - log_partition) > 1e-4
    assert trained.log_prob is None and trained.sample is None
    x = np.array([0.3, -1.0], np.float32)
    slope = jax.grad(trained.energy_fn)(x)
    np.testing.assert_allclose(trained.score_fn(x), -slope, rtol=1e-5)


def test_a_loaded_exact_model_has_the_likelihood_and_the_draws_of_the_run(tmp_path):
    scalars = run(build, small("maximum_likelihood,ica_10"), tmp_path)
    trained = load(tmp_path)
    saved = np.load(tmp_path / "samples.npz")
    draws = trained.sample(jax.random.wrap_key_data(saved["key"]), 5)
    np.testing.assert_array_equal(draws, saved["samples"])
    config = json.loads((tmp_path / "config.json").read_text())
    key = jax.random.fold_in(make_keys(0).evaluation, 3)
    x = make_target(config["data"]).sample(key, 200)
    likelihood = np.mean(jax.vmap(trained.log_prob)(x))
    np.testing.assert_allclose(likelihood, scalars["test_log_likelihood"], rtol=1e-5)


def write_own(folder):
    """A table of two columns that depend on one another, in units of their own."""
    x = np.random.default_rng(0).normal(size=(300, 2)) @ [[1.0, 0.0], [2.0, 5.0]]
    path = folder / "own.csv"
    lines = [f"{a:.6f};{b:.6f}" for a, b in x + 100]
    path.write_text("\n".join(["a;b", *lines]) + "\n")
    return {"data.csv": str(path), "data.score_csv": str(path)}


def test_a_table_of_your_own_has_a_likelihood_in_its_units(tmp_path):
    """The log partition function of the loaded energy, by quadrature in the units of
    the file, is that of annealed importance sampling to its error."""
    given = write_own(tmp_path) | {
        "evaluation.num_chains": 400,
        "evaluation.num_fractions": 30,
        "evaluation.num_long": 10,
        "evaluation.num_importance": 500,
        "evaluation.chunk_size": 500,
        "network.widths": (8,),
        "ema_decay": 0.0,
    }
    config = with_options(small("noise_contrastive,own"), given)
    scalars = run(build, config, tmp_path / "run")
    trained = load(tmp_path / "run")
    table = own_tables.from_section(config.data)
    bounds = [(50.0, 150.0)] * 2
    log_partition = metrics.quadrature(trained.energy_fn, bounds, 400)
    test = table.encoding.undo(table.test)
    expected = -jax.vmap(trained.energy_fn)(test) - log_partition
    # Energies near that of a normal distribution twice as wide as the data, from which
    # annealing begins: weights hardly differ.
    np.testing.assert_allclose(
        scalars["test_log_likelihood"], expected.mean(), atol=0.03
    )
    assert "learned_log_partition" in scalars and trained.log_prob is None
    lines = (tmp_path / "run" / "figures" / "log_likelihoods.csv").read_text().split()
    rows = np.loadtxt(given["data.csv"], delimiter=";", skiprows=1, dtype=np.float32)
    expected = -jax.vmap(trained.energy_fn)(rows) - log_partition
    np.testing.assert_allclose(np.array(lines[1:], float), expected, atol=0.03)
    slope = jax.grad(trained.energy_fn)(rows[0])
    np.testing.assert_allclose(trained.score_fn(rows[0]), -slope, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", OWN_METHODS)
def test_every_method_of_your_own_table_builds(method, tmp_path):
    config = with_options(small(f"{method},own"), write_own(tmp_path))
    experiment = build(config, make_keys(0))
    assert experiment.batch(0).shape[1:] == (2,) and experiment.data_digest
    assert experiment.facts["columns"] == ["a", "b"]


def test_your_own_table_is_no_part_of_all():
    assert not any("own" in name for name in list_presets("all,all"))
    assert list_presets("all,own") == [f"{name},own" for name in OWN_METHODS]
    assert set(METHODS) - set(OWN_METHODS) == {"maximum_likelihood", "self_contrastive"}
    with pytest.raises(
        ValueError, match="method must be one of .*'maximum_likelihood'"
    ):
        get_config("maximum_likelihood,own")
    assert sweep("all,own").columns == ("test_log_likelihood", "ais_bracket")
    with pytest.raises(ValueError, match="data.csv must be the path of a table"):
        build(small("noise_contrastive,own"), make_keys(0))


@pytest.mark.slow
def test_a_sweep_has_a_part_for_each_target_and_a_picture_of_the_plane(tmp_path):
    plan = sweep("all,all")
    assert list(plan.cells) == list(PRESETS)
    # The loss of noise contrastive estimation begins at 2.9, which here is too large.
    failing = Cell("noise_contrastive,two_moons", {"train.abort_above": 2.5})
    names = ("kernel_stein,two_moons", "maximum_likelihood,ica_10")
    cells = {failing.preset: failing} | {name: plan.cells[name] for name in names}
    plan = plan._replace(cells=cells)
    given = SMALL | {"ema_decay": 0.0}
    known = {x for name in cells for x in flat(get_config(name).to_dict())}
    given = {name: value for name, value in given.items() if name in known}
    table = run_sweep(build, get_config, plan, tmp_path, given=given, num_seeds=1)
    moons, _, ica = table.partition("\n### ica_10\n")
    assert moons.startswith("### two_moons\n\n| method | kl | kl_within_modes |")
    (row,) = [line for line in moons.splitlines() if "`noise_contrastive`" in line]
    assert row.endswith("| 5 | - | 3 | 0 (1 failed) |")
    (row,) = [line for line in moons.splitlines() if "`kernel_stein`" in line]
    assert row.endswith("| 3 | 1 |") and "| 2 |" in row
    assert "| method | kl | fisher_divergence | gradients |" in ica
    assert "| `maximum_likelihood` |" in ica
    assert (tmp_path / "densities.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.quick
@pytest.mark.parametrize(
    "preset, message",
    [
        ("rings", "preset must be 'method,target', such as .*, got 'rings'$"),
        ("noise_contrastive_ring", "did you mean 'noise_contrastive,rings'"),
        ("magic,rings", "method must be one of .*, got 'magic'"),
        ("score_matching,ringz", "got 'ringz'; did you mean 'rings'"),
        (
            "score_matching,checkerboard",
            "score_matching does not apply to checkerboard; it does to",
        ),
    ],
)
def test_presets_that_make_no_sense_are_named(preset, message):
    for use in (get_config, sweep):
        with pytest.raises(ValueError, match=message):
            use(preset)


def test_all_stands_for_what_applies_and_needs_a_sweep():
    assert list_presets("score_matching,all") == [
        f"score_matching,{target}" for target in TARGETS if target != "checkerboard"
    ]
    boards = [name for name in METHODS if "checkerboard" in METHODS[name].targets]
    assert list_presets("all,checkerboard") == [f"{x},checkerboard" for x in boards]
    assert get_config("all,rings") == get_config("score_matching,rings")
    check_single("score_matching,rings")
    with pytest.raises(ValueError, match="'all,rings' is a table of runs: add --sweep"):
        check_single("all,rings")
