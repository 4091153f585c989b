"""Maximum entropy generators that tell anomalies: the presets, the plans, and new rows
that a loaded model scores."""

import csv
import functools
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import load
from experiments.data import anomalies as data_sets
from experiments.max_entropy import anomalies
from experiments.run.config import with_options
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import mean_and_spread, run_sweep
from experiments.run.workdir import finite_evaluations, read_lines, read_run

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {
    "train.num_steps": 2,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.checkpoint_every": 0,
    "data.batch_size": 16,
    "latent_dim": 4,
    "evaluation.chunk_size": 32,
    "evaluation.num_samples": 50,
}
MLP = {"networks.generator_widths": (8,), "networks.energy_widths": (8,)}
STRIDED = {"networks.widths": (1, 2, 4, 8), "networks.hidden_width": 8}


@pytest.fixture(scope="module")
def table_dir(tmp_path_factory):
    """KDD's file with 400 rows, and tables of two columns of different scales."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    lines = []
    for index in range(400):
        cells = [str(rng.integers(0, 9)) for _ in range(41)]
        cells[1:4] = ["tcp", "http", "SF"]
        lines.append(",".join([*cells, "smurf." if index % 5 else "normal."]))
    with gzip.open(folder / data_sets.KDD_FILE, "wt") as file:
        file.write("\n".join(lines) + "\n")
    rows = rng.normal(size=(90, 2)) * [3, 100] + [5, -70]
    normal = [f"{a},{b},0\n" for a, b in rows[:60]]
    mixed = [f"{a},{b},{index % 3 // 2}\n" for index, (a, b) in enumerate(rows)]
    for name, table in (("train", normal), ("score", mixed)):
        (folder / f"{name}.csv").write_text("a,b,bad\n" + "".join(table))
    return folder


@pytest.fixture(autouse=True)
def small_kdd(monkeypatch):
    monkeypatch.setattr(data_sets, "NUM_ROWS", 400)
    monkeypatch.setattr(data_sets, "NUM_NORMAL", 80)


def options(preset, folder, **changes):
    """Options that cut a preset to seconds, with `section__option=value`."""
    given = {name.replace("__", "."): value for name, value in changes.items()}
    networks = STRIDED if preset.startswith("mnist") else MLP
    if preset.startswith("tabular"):
        paths = {f"data.{x}csv": str(folder / f"{y}.csv") for x, y in FILES.items()}
        return TINY | networks | paths | {"data.label_column": "bad"} | given
    place = {"data.data_dir": str(folder), "data.download": False}
    return TINY | networks | place | given


FILES = {"": "train", "score_": "score"}


def tiny(preset, folder, **changes):
    return with_options(
        anomalies.get_config(preset), options(preset, folder, **changes)
    )


def test_a_table_is_scored_and_the_loaded_model_scores_new_rows(table_dir, tmp_path):
    """Rows as they are in the file, whose columns were scaled for the network."""
    scalars = run(anomalies.build, tiny("tabular", table_dir), tmp_path)
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"roc.png", "precision_recall.png", "scores.csv"}
    assert 0 < scalars["energy_auroc"] < 1 and scalars["prevalence"] == 1 / 3
    assert read_run(tmp_path)["facts"]["columns"] == ["a", "b"]

    trained = load(tmp_path)
    rows = np.loadtxt(table_dir / "score.csv", delimiter=",", skiprows=1)[:, :2]
    with (tmp_path / "figures" / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    scores = {name: [float(line[name]) for line in lines] for name in lines[0]}
    energy = jax.vmap(trained.energy_fn)(rows)
    np.testing.assert_allclose(energy, scores["energy"], rtol=1e-4, atol=1e-6)
    norms = jnp.linalg.norm(jax.vmap(trained.score_fn)(rows), axis=1)
    np.testing.assert_allclose(norms, scores["score_norm"], rtol=1e-4)
    # By hand: scaled by the training rows.
    scaled = (rows[0] - rows[:60].mean(0)) / rows[:60].std(0)
    apply = trained.networks["energy"].apply
    by_hand = apply(trained.params["energy"], jnp.asarray(scaled, jnp.float32))
    np.testing.assert_allclose(energy[0], by_hand, rtol=1e-4, atol=1e-6)

    with np.load(tmp_path / "samples.npz") as found:
        samples, key = found["samples"], jax.random.wrap_key_data(found["key"])
    assert samples.shape == (50, 2) and samples.dtype == np.float32
    np.testing.assert_array_equal(trained.sample(key, 50), samples)
    # The generator starts near 0, which is the mean of the scaled rows.
    off = (samples.mean(0) - rows[:60].mean(0)) / rows[:60].std(0)
    assert np.abs(off).max() < 1


@pytest.mark.slow
def test_a_held_out_digit_is_scored_and_loaded(image_dir, tmp_path):
    config = tiny("mnist_anomaly", image_dir, train__num_steps=1)
    scalars = run(anomalies.build, config, tmp_path)
    assert 0 <= scalars["score_norm_auroc"] <= 1
    trained = load(tmp_path)
    with np.load(tmp_path / "samples.npz") as found:
        samples, key = found["samples"], jax.random.wrap_key_data(found["key"])
    assert samples.shape == (50, 28, 28, 1)
    np.testing.assert_array_equal(trained.sample(key, 50), samples)
    source = anomalies.load_held_out_digit(
        **{k: v for k, v in config.data.items() if k not in ("name", "batch_size")}
    )
    x = source.convert(source.data.test)
    energy = jax.vmap(trained.energy_fn)(x).mean()
    np.testing.assert_allclose(energy, scalars["energy_mean"], rtol=1e-4, atol=1e-6)
    norms = jnp.sqrt((jax.vmap(trained.score_fn)(x) ** 2).sum((1, 2, 3)))
    np.testing.assert_allclose(norms.mean(), scalars["score_norm_mean"], rtol=1e-4)


@pytest.mark.parametrize(
    "preset, num_updates",
    [
        ("kdd99", 1),
        ("kdd99,gan", 1),
        ("tabular", 1),
        pytest.param("mnist_anomaly", 5, marks=pytest.mark.slow),
    ],
)
def test_every_preset_builds_with_the_published_order(
    preset, num_updates, table_dir, image_dir
):
    folder = image_dir if preset == "mnist_anomaly" else table_dir
    config = tiny(preset, folder)
    assert config.is_locked
    experiment = anomalies.build(config, make_keys(0))
    assert list(experiment.players) == ["energy", "generator"]
    assert experiment.players["energy"].num_updates == num_updates
    assert len(experiment.batch(0)) == 16 * (num_updates + 1)


@pytest.mark.slow
def test_kdd_s_plan_is_of_the_last_evaluations_with_and_without_scaling(
    table_dir, tmp_path
):
    plan = anomalies.sweep("kdd99")
    assert plan.num_seeds == 5 and plan.choose is anomalies.choose_mean
    shorter = functools.partial(anomalies.choose_mean, num_last=2)
    table = run_sweep(
        anomalies.build,
        anomalies.get_config,
        plan._replace(choose=shorter),
        tmp_path,
        given=options("kdd99", table_dir, train__num_steps=3, train__eval_every=1),
        num_seeds=1,
    )
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert rows[0] == ["cell", *plan.columns, "seeds"]
    assert [row[0] for row in rows[2:]] == ["scaling=none", "scaling=min_max"]
    column = rows[0].index("energy_auprc")
    for row in rows[2:]:
        folder = tmp_path / "cells" / f"{row[0]},0"
        found = finite_evaluations(read_lines(folder))
        mean = np.mean([found[step]["energy_auprc"] for step in (2, 3)])
        assert row[column] == mean_and_spread([mean], 4)
        facts = read_run(folder)["facts"]
        assert (set(facts["scale"]) == {1.0}) == (row[0] == "scaling=none")


@pytest.mark.quick
def test_a_mean_is_of_as_many_evaluations_as_are_published():
    evaluations = {step: {"a": float(step)} for step in range(1, 13)}
    assert anomalies.choose_mean(evaluations, True) == {"a": 7.5}  # of 3 to 12
    assert anomalies.choose_mean(evaluations, False) is None
    assert anomalies.choose_mean({1: {"a": 1.0}}, True) is None


def test_digits_are_held_out_one_after_the_other():
    plan = anomalies.sweep("mnist_anomaly")
    labels = [cell.overrides["data.label"] for cell in plan.cells.values()]
    assert labels == [1, 4, 5, 7, 9] and plan.choose is anomalies.choose_mean
    assert {cell.preset for cell in plan.cells.values()} == {"mnist_anomaly"}
    alone = anomalies.sweep("tabular")
    assert list(alone.cells) == ["tabular"] and alone.choose({5: {"a": 1.0}}, True)


def test_a_digit_is_held_out_as_the_config_says(image_dir):
    """With its leak and without; scores are of the middle of each pixel's level."""
    for leaks in (False, True):
        source = anomalies.load_held_out_digit(
            data_dir=str(image_dir), download=False, label=3, split_seed=0, leaks=leaks
        )
        data = source.data
        train, test = (set(map(bytes, images)) for images in (data.train, data.test))
        assert len(data.train) == 120 - 12 - 21  # twelve of a digit; a fifth of 108
        assert bool(train & test) == leaks
        assert data.is_anomaly.sum() == 12
    levels = np.array([0, 127, 128, 255], np.uint8)
    np.testing.assert_allclose(
        source.convert(levels), np.array([-255, -1, 1, 255]) / 256, rtol=1e-6
    )


@pytest.mark.quick
def test_wrong_tables_are_refused_before_training(table_dir, tmp_path):
    with pytest.raises(ValueError, match="data.csv must be the path"):
        anomalies.build(tiny("tabular", table_dir, data__csv=""), make_keys(0))
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b,bad\n1,2,0\n1,x,0\n")
    with pytest.raises(ValueError, match="bad.csv, line 3, column 'b'"):
        anomalies.build(tiny("tabular", table_dir, data__csv=str(bad)), make_keys(0))
