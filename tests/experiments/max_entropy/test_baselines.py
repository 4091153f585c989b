"""Scores that need no training, against their known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ebmjax.types import Network
from experiments.max_entropy import anomalies, baselines

RNG = np.random.default_rng(0)
TRAIN = RNG.normal(size=(400, 3)).astype(np.float32)
# Anomalies differ in the second column alone, by 20 deviations downwards.
IS_ANOMALY = np.arange(300) % 5 == 0
TEST = RNG.normal(size=(300, 3)).astype(np.float32)
TEST[IS_ANOMALY, 1] -= 20


def test_simple_scores_are_those_of_their_names():
    test = np.float32([[0, 0, 3], [4, 0, 3]])
    found = baselines.simple_scores(np.float32([[-1, 0, 3], [1, 0, 3]]), test)
    np.testing.assert_allclose(found["mean"], [1, 7 / 3], rtol=1e-6)
    np.testing.assert_array_equal(found["minus the mean"], -found["mean"])
    np.testing.assert_allclose(found["distance to the mean"], [0, 4], atol=1e-6)


@pytest.mark.quick
def test_the_column_that_tells_is_found_with_its_sign():
    columns = ("one", "two", "three")
    key = jax.random.key(0)
    name, found = baselines.best_column(key, TEST, IS_ANOMALY, columns, 0.8)
    assert name == "-two" and found["auroc"] == 1.0
    # Half of the rows: their share of anomalies is not exactly that of all.
    half = np.array_split(np.asarray(jax.random.permutation(key, 300)), 2)[1]
    assert found["prevalence"] == pytest.approx(IS_ANOMALY[half].mean())
    name, _ = baselines.best_column(key, -TEST, IS_ANOMALY, columns, 0.8)
    assert name == "two"


def test_a_column_of_noise_is_chosen_on_one_half_and_judged_on_the_other():
    """The best of 200 columns of noise on one half has an area of far above a half
    there. On the other half the mean over ten keys is a half, up to its error: the
    deviation of an area of 30 against 120 is 0.06, that of the mean of ten 0.019."""
    noise = RNG.normal(size=(300, 200)).astype(np.float32)
    names = [str(column) for column in range(200)]
    areas = [
        baselines.best_column(jax.random.key(i), noise, IS_ANOMALY, names, 0.8)[1]
        for i in range(10)
    ]
    assert abs(np.mean([x["auroc"] for x in areas]) - 0.5) < 5 * 0.019


def test_the_slope_of_an_untrained_network_is_measured_where_it_is_converted_to():
    """The slope of |a x|^2 / 2 is a^2 x, and x is twice what is given."""

    def init(key):
        return jnp.float32(3.0), {}

    def apply(params, x):
        return 0.5 * jnp.sum((params * x) ** 2)

    network = Network(init, apply, apply)
    found = baselines.untrained_norm(
        network, lambda x: 2 * x, jax.random.key(0), TEST[:7]
    )
    np.testing.assert_allclose(found, 18 * np.linalg.norm(TEST[:7], axis=1), rtol=1e-5)


@pytest.mark.quick
def test_a_table_has_every_score_and_chance(monkeypatch):
    data = anomalies.make_rows(
        anomalies.anomalies.Anomalies(TRAIN, TEST, IS_ANOMALY, ("one", "two", "three"))
    )
    monkeypatch.setitem(anomalies.SOURCES, "kdd99", lambda **section: data)
    config = ConfigDict(anomalies.get_config("kdd99").to_dict())
    config.networks.update(generator_widths=(4,), energy_widths=(4,))
    rows = baselines.measure_baselines(config, 2)
    table = {row["cell"]: row for row in rows}
    assert set(table) == {
        "mean",
        "minus the mean",
        "distance to the mean",
        "best column: -two",
        "isolation forest",
        "slope of the untrained network",
        "chance",
    }
    seeds = [table[x]["seeds"] for x in ("mean", "isolation forest", "chance")]
    assert seeds == ["1", "2", "-"]
    # 20 % are anomalies and 20 % are called so: all of them, if they are separated.
    assert float(table["distance to the mean"]["f1"]) == 1.0
    assert float(table["best column: -two"]["auroc"]) == 1.0
    assert float(table["distance to the mean"]["auroc"]) == 1.0
    assert float(table["minus the mean"]["auroc"]) > 0.99
    assert float(table["mean"]["auroc"]) < 0.01
    assert table["chance"]["auprc"] == 0.2
    assert table["chance"]["f1"] == pytest.approx(0.2)
    unlabelled = data.data._replace(is_anomaly=None)
    monkeypatch.setitem(
        anomalies.SOURCES, "kdd99", lambda **section: data._replace(data=unlabelled)
    )
    with pytest.raises(ValueError, match="must have labels"):
        baselines.measure_baselines(config, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=kdd99", "--label=3"], "--label is no option of kdd99"),
        (["--seeds=0"], "--seeds must be .* got 0"),
        (["--config=kdd"], "preset must be one of .* got 'kdd'"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        baselines.main([*arguments, f"--out={tmp_path}/table.md"])
    assert not list(tmp_path.iterdir())


def test_rows_of_ones_own_are_measured(tmp_path, monkeypatch):
    """Both anomalies are 50 standard deviations away from the mean of the others."""
    monkeypatch.setattr(baselines, "keep_programs", lambda: None)
    rows = np.random.RandomState(0).randn(40, 2)
    np.savetxt(tmp_path / "x.csv", rows, "%.4f", ",", header="a,b", comments="")
    lines = [f"{a:.4f},{b:.4f},0" for a, b in rows[:8]] + ["50,50,1", "50,60,1"]
    (tmp_path / "y.csv").write_text("\n".join(["a,b,odd", *lines]))
    given = [f"--csv={tmp_path}/x.csv", f"--score_csv={tmp_path}/y.csv", "--seeds=1"]
    out = tmp_path / "table.md"
    given += ["--config=tabular", "--label_column=odd", f"--out={out}"]
    baselines.main(given)
    (row,) = [x for x in out.read_text().splitlines() if "distance to the mean" in x]
    assert row.split("|")[3:5] == [" 1 ", " 1 "]


def test_a_table_that_cannot_be_written_is_named_before_any_score(
    tmp_path, monkeypatch
):
    def refuse(*given):
        raise AssertionError("the scores were computed")

    monkeypatch.setattr(baselines, "measure_baselines", refuse)
    with pytest.raises(SystemExit, match=f"^error: {tmp_path}: Is a directory$"):
        baselines.main([f"--out={tmp_path}"])
