"""Tables: densities whose values are known at first, methods, sweeps, loading."""

import json
import math

import jax
import numpy as np
import pytest

from ebmjax import training
from experiments import load
from experiments.data import tabular
from experiments.generalized import tables
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import Cell, Row, run_sweep

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {
    "data.batch_size": 16,
    "network.widths": (8,),
    "network.num_layers": 2,
    "players.num_energy_updates": 2,
    "players.num_extra_updates": 1,
    "train.num_steps": 2,
    "train.log_every": 1,
    "train.eval_every": 1,
    "evaluation.num_draws": 64,
}


def tiny(preset, data_dir, **changes):
    """A preset cut to seconds; its method untouched."""
    config = tables.get_config(preset)
    options = SMALL | {"data.data_dir": str(data_dir)}
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return with_options(config, options | changes)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A table of red wine in the published form."""
    folder = tmp_path_factory.mktemp("data")
    rows = np.round(np.random.default_rng(0).normal(size=(300, 12)), 2)
    names = ";".join(f'"name {index}"' for index in range(12))
    lines = [names, *(";".join(map(str, row)) for row in rows)]
    (folder / "winequality-red.csv").write_text("\n".join(lines) + "\n")
    return folder


def make_state(experiment):
    params = dict(experiment.params)
    return training.TrainState(0, None, params, experiment.model_state, None, {}, {})


def test_presets_and_methods_have_names(data_dir):
    with pytest.raises(ValueError, match="preset must be one of .*'red_wine'.*'svhn'"):
        tables.get_config("svhn")
    with pytest.raises(ValueError, match="method must be one of .*'likelihood'.*'cd'"):
        tables.get_config("red_wine,cd")
    assert set(tables.PRESETS) == {*tabular.SOURCES, "own"}
    for preset in tables.PRESETS:
        config = tables.get_config(preset)
        assert config.data.name == preset and config.objective.name == "kale"
    with pytest.raises(ValueError, match="data.data_dir must be the folder"):
        tables.build(tiny("red_wine", ""), make_keys(0))


def test_every_table_builds(data_dir, monkeypatch):
    """Whatever its number of columns; the rows are those of the section `data`."""
    for index, preset in enumerate(tabular.SOURCES):
        rows = np.zeros((40, 2 + index), np.float32)
        table = tabular.Table(rows, rows, rows, (), ())
        monkeypatch.setattr(tabular, "from_section", lambda section, table=table: table)
        experiment = tables.build(tiny(preset, data_dir), make_keys(0))
        assert experiment.facts == {"dim": 2 + index}
        assert experiment.batch(5).shape == (16 * 3, 2 + index)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("evaluation__num_draws", 0, "evaluation.num_draws must be a"),
        ("objective__l2", -1.0, "objective.l2 must not be negative, got -1"),
        ("players__num_energy_updates", 0, "players.num_energy_updates must be"),
        ("data__split_seed", -1, "data.split_seed must be a whole number"),
        ("data__name", "red_wines", "data.name 'red_wines' is not one of .*'red_wine'"),
        (
            "objective__name",
            "likelihood",
            "choose it by --config=red_wine,likelihood",
        ),
        ("objective__name", "hinge", "objective.name must be one of"),
    ],
)
def test_options_that_would_fail_after_training_are_refused_before_it(
    option, value, message, data_dir
):
    config = tiny("red_wine", data_dir, **{option: value})
    with pytest.raises(ValueError, match=message):
        tables.build(config, make_keys(0))


@pytest.mark.quick
def test_a_table_without_a_line_of_names_is_refused(data_dir, tmp_path):
    lines = (data_dir / "winequality-red.csv").read_text().splitlines()
    (tmp_path / "winequality-red.csv").write_text("\n".join(lines[1:]) + "\n")
    config = tiny("red_wine", tmp_path)
    with pytest.raises(ValueError, match="winequality-red.csv.* names"):
        tables.build(config, make_keys(0))


@pytest.mark.parametrize("flow", tables.FLOWS)
def test_at_first_both_flows_are_normal_and_the_constant_is_exact(
    flow, data_dir, tmp_path
):
    """T10, T18. All rows are white, so their mean likelihood under N(0, I) is that of
    11 / 2 log(2 pi e); the energy's is its exactly, the constant being -s."""
    config = tiny("red_wine", data_dir, network__name=flow)
    experiment = tables.build(config, make_keys(0))
    state = make_state(experiment)
    found = experiment.evaluate(state, jax.random.key(0), tmp_path)
    sizes = {"train": 243, "validation": 27, "test": 30}
    mean = sum(found[f"{name}_nll"] * num for name, num in sizes.items()) / 300
    np.testing.assert_allclose(mean, 5.5 * math.log(2 * math.pi * math.e), rtol=1e-4)
    for name in ("log_partition", "log_partition_of_draws"):
        np.testing.assert_allclose(found[name], found["log_partition_true"], rtol=1e-5)
    assert found["log_partition_true"] < -0.1
    for name in ("test_nll_by_kale", "base_test_nll"):
        np.testing.assert_allclose(found[name], found["test_nll"], rtol=1e-5)
    # A wrong constant is seen by KALE, and by it alone: e^d - 1 - d.
    state.params["log_partition"] -= 0.5
    wrong = experiment.evaluate(state, jax.random.key(0), tmp_path)
    np.testing.assert_allclose(
        wrong["test_nll_by_kale"] - found["test_nll"],
        math.exp(0.5) - 1 - 0.5,
        rtol=1e-3,
    )
    assert wrong["test_nll"] == found["test_nll"]
    # Donsker and Varadhan's has none to be wrong.
    config = tiny("red_wine,donsker_varadhan", data_dir)
    experiment = tables.build(config, make_keys(0))
    assert experiment.players["energy"].trains == ("energy",)
    found = experiment.evaluate(make_state(experiment), jax.random.key(0), tmp_path)
    assert found["log_partition"] == found["log_partition_of_draws"]
    np.testing.assert_allclose(found["test_nll_by_kale"], found["test_nll"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", tables.METHODS)
def test_a_run_of_every_method_is_loaded_as_the_density_that_was_judged(
    method, data_dir, tmp_path
):
    config = tiny(f"red_wine,{method}", data_dir)
    found = run(tables.build, config, tmp_path)
    trained = load(tmp_path)
    is_baseline = method in tables.BASELINES
    assert ("base_test_nll" in found) != is_baseline
    assert ("base" in trained.networks) != is_baseline
    test = tabular.from_section(config.data).test
    log_prob = jax.vmap(trained.log_prob)(test)
    np.testing.assert_allclose(-log_prob.mean(), found["test_nll"], rtol=1e-6)
    offset = jax.vmap(trained.energy_fn)(test) + log_prob
    np.testing.assert_allclose(offset, offset[0], rtol=1e-4)
    if not is_baseline:
        np.testing.assert_allclose(offset[0], -found["log_partition_true"], rtol=1e-4)
    with np.load(tmp_path / "samples.npz") as arrays:
        key, samples = jax.random.wrap_key_data(arrays["key"]), arrays["samples"]
    assert samples.shape == (64, 11) and samples.dtype == np.float32
    np.testing.assert_array_equal(trained.sample(key, 64), samples)


def write_own(folder, num=200):
    """A table with a column of numbers, one of categories and one to leave out."""
    rng = np.random.default_rng(0)
    lines = [f"{x:.6f},{'ab'[i % 2]},7" for i, x in enumerate(rng.gamma(3, size=num))]
    path = folder / "own.csv"
    path.write_text("\n".join(["length,kind,constant", *lines]) + "\n")
    return path


def test_a_table_of_your_own_is_modelled_in_its_units(tmp_path):
    """At a rate of 0 the flow is N(0, I) of white rows: in the units of the file, it is
    the normal distribution with the moments of the training rows."""
    path = write_own(tmp_path)
    given = {"data.columns": "length,kind", "data.noise_scale": 0.0}
    given |= {"data.csv": str(path), "data.score_csv": str(path)}
    given |= {f"optimizer.learning_rate.{end}": 0.0 for end in ("start", "final")}
    config = tables.get_config("own,likelihood")
    config = with_options(config, SMALL | given | {"train.num_steps": 1})
    scalars = run(tables.build, config, tmp_path / "run")
    table = tabular.from_section(config.data)
    rows = [table.encoding.undo(x).astype(np.float64) for x in table[:3]]
    mean, covariance = rows[0].mean(0), np.cov(rows[0].T, bias=True)

    def log_normal(x):
        squares = np.sum((x - mean) @ np.linalg.inv(covariance) * (x - mean), 1)
        return -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])

    expected = log_normal(rows[2])
    np.testing.assert_allclose(
        scalars["test_log_likelihood"], expected.mean(), rtol=1e-4
    )
    error = expected.std(ddof=1) / len(expected) ** 0.5
    np.testing.assert_allclose(scalars["test_log_likelihood_error"], error, rtol=1e-3)
    lines = (tmp_path / "run" / "figures" / "log_likelihoods.csv").read_text().split()
    assert lines[0] == "log_likelihood" and len(lines) == 1 + 200
    # The mean over all rows is that of the parts, which have one draw and not ten of
    # the numbers within a category.
    means = [log_normal(x).sum() for x in rows]
    np.testing.assert_allclose(
        np.mean([float(x) for x in lines[1:]]), sum(means) / 200, atol=0.05
    )
    trained = load(tmp_path / "run")
    with np.load(tmp_path / "run" / "samples.npz") as arrays:
        key, samples = jax.random.wrap_key_data(arrays["key"]), arrays["samples"]
    np.testing.assert_array_equal(trained.sample(key, 64), samples)
    # A mean of 64 draws has this standard error.
    assert np.abs(samples.mean(0) - mean).max() < 5 * rows[0].std(0).max() / 8
    at_rows = jax.vmap(trained.log_prob)(rows[2].astype(np.float32))
    np.testing.assert_allclose(at_rows, expected, rtol=1e-3)


def test_a_table_of_your_own_is_asked_for():
    config = with_options(tables.get_config("own"), SMALL)
    with pytest.raises(ValueError, match="data.csv must be the path of a table, got"):
        tables.build(config, make_keys(0))


def test_the_best_validation_is_chosen_and_of_equal_ones_the_last():
    losses = [3.0, 1.0, 1.0, 2.0]
    evaluations = {
        step: {"validation_nll": value, "test_nll": float(step)}
        for step, value in enumerate(losses, 1)
    }
    # A run that diverged has what was best before.
    for has_ended in (True, False):
        chosen = tables.choose_best(evaluations, has_ended)
        assert chosen == {"validation_nll": 1.0, "test_nll": 3.0}
    assert tables.choose_best({}, False) is None


def test_a_table_counts_the_runs_that_ended():
    found = [{"test_nll": 5.0, "evaluation_seconds": 9.0}, {"test_nll": 6.0}]
    rows = [Row("kale", [], [], found, 1, 1), Row("likelihood", [], [], [], 0, 2)]
    lines = tables.tabulate(rows, None).splitlines()
    assert lines[0] == "| cell | test_nll | seeds | ended |"
    assert lines[2] == "| kale | 5.5 ± 0.7 | 2 | 1 |"
    assert lines[3] == "| likelihood | - | 0 | 0 |"


def test_a_sweep_has_all_methods_or_that_of_the_preset():
    plan = tables.sweep("white_wine")
    assert plan.num_seeds == 3 and plan.choose is tables.choose_best
    assert list(plan.cells) == list(tables.METHODS)
    for method, cell in plan.cells.items():
        assert tables.get_config(cell.preset).objective.name == method
        assert tables.get_config(cell.preset).data.name == "white_wine"
    assert tables.sweep("").cells["kale"] == Cell("red_wine,kale")
    only = tables.sweep("parkinsons,likelihood").cells
    assert only == {"likelihood": Cell("parkinsons,likelihood")}


@pytest.mark.slow
def test_a_sweep_runs_and_has_every_method_at_its_best(data_dir, tmp_path):
    given = SMALL | {"data.data_dir": str(data_dir)}
    plan = tables.sweep("red_wine")
    table = run_sweep(
        tables.build,
        tables.get_config,
        plan,
        tmp_path,
        given=given,
        num_seeds=1,
        cells="[lc]*",  # the baselines, which have one flow
    )
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    by_method = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert set(by_method) == set(tables.BASELINES)
    for method, row in by_method.items():
        log = tmp_path / "cells" / f"{method},0" / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        found = [line for line in lines if line["kind"] == "eval"]
        assert [line["step"] for line in found] == [1, 2]
        best = min(found, key=lambda line: line["validation_nll"])
        assert row["test_nll"] == f"{best['test_nll']:.4g}"
        assert row["seeds"] == row["ended"] == "1"
