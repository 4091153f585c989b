"""Scores of a user's own examples by trained models."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import score
from experiments.data import own_tables
from experiments.data.anomalies import tables
from experiments.generalized import tables as density
from experiments.max_entropy import anomalies
from experiments.max_entropy.scores import make_scores
from experiments.run.config import with_options
from experiments.run.experiment import Trained, make_keys
from experiments.score_based import plane
from experiments.short_run import images
from experiments.tutorial import run as tutorial


def pretend(monkeypatch, folder, facts, trained):
    """Makes a folder that has the record of a run, and the model that is loaded."""
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"problem": "", "facts": facts}))
    monkeypatch.setattr(score, "load", lambda workdir, step: trained)
    return str(folder)


def quadratic(facts=None, **changes):
    """A model of `|x|^2 / 2`, which is minus the log density up to 0.5."""
    config = images.get_config("digits")
    functions = {
        "energy_fn": lambda x: jnp.sum(x**2) / 2,
        "score_fn": lambda x: -x,
        "log_prob": lambda x: 0.5 - jnp.sum(x**2) / 2,
    } | changes
    return Trained(config, {}, {}, {}, **functions)


def read(path):
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def test_every_function_of_a_model_is_a_column(tmp_path, monkeypatch):
    """|x| is 5 and 0.5: energies 12.5 and 0.125, log densities -12 and 0.375."""
    workdir = pretend(monkeypatch, tmp_path / "run", {}, quadratic())
    (tmp_path / "x.csv").write_text("3,4\n0.3,0.4\n")
    score.main([f"--workdir={workdir}", f"--csv={tmp_path / 'x.csv'}"])
    found = read(tmp_path / "x.scores.csv")
    assert list(found) == ["energy", "log_prob", "score_norm"]
    np.testing.assert_allclose(found["energy"], [12.5, 0.125], rtol=1e-6)
    np.testing.assert_allclose(found["log_prob"], [-12, 0.375], rtol=1e-6)
    np.testing.assert_allclose(found["score_norm"], [5, 0.5], rtol=1e-6)
    out = tmp_path / "new" / "some.csv"
    arguments = [f"--csv={tmp_path / 'x.csv'}", "--scores=energy", f"--out={out}"]
    score.main([f"--workdir={workdir}", *arguments])
    assert read(out) == {"energy": found["energy"]}


def test_a_table_has_the_scores_of_the_evaluation_whatever_its_columns_order(
    tmp_path, monkeypatch
):
    """The evaluation of a run writes scores.csv of the same rows."""
    rng = np.random.default_rng(0)
    rows = rng.normal([5.0, -300.0], [0.1, 40.0], (30, 2))
    text = "\n".join(f"{a:.6f},{b:.6f}" for a, b in rows)
    (tmp_path / "train.csv").write_text(f"a,b\n{text}\n")
    swapped = "\n".join(f"{b:.6f},1,{a:.6f}" for a, b in rows)
    (tmp_path / "all.csv").write_text(f"b,label,a\n{swapped}\n")
    data = tables(tmp_path / "train.csv", tmp_path / "train.csv")
    widths = {"networks.energy_widths": (8,), "networks.generator_widths": (8,)}
    config = with_options(anomalies.get_config("tabular"), widths)
    facts = {"event_shape": [2], "columns": list(data.columns)}
    facts |= {k: v.tolist() for k, v in data.scaling._asdict().items()}
    nets = anomalies.make_networks(config, (2,))
    params = {
        name: network.init(jax.random.key(i))[0]
        for i, (name, network) in enumerate(nets._asdict().items())
    }
    make_scores(config.evaluation, nets.energy.apply, data)(params["energy"], tmp_path)
    trained = anomalies.load(config, facts, params, {})
    workdir = pretend(monkeypatch, tmp_path / "run", facts, trained)
    found = score.score(workdir, csv=str(tmp_path / "all.csv"))
    expected = read(tmp_path / "scores.csv")
    assert list(found) == list(expected) == ["energy", "score_norm"]
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "text, facts, message",
    [
        ("a,c\n1,2\n", {"columns": ["a", "b"]}, r"lacks columns .*: \['b'\]"),
        ("1,2,3\n", {"columns": ["a", "b"]}, "the 2 columns of training.*got 3"),
        ("1,2\n", {"columns": ["a", "b"]}, "got 2 columns without names"),
        ("a,b\n1,2\n", {}, r"numbers alone.*records no names.*\['a', 'b'\]"),
        ("1,2,3\n", {"event_shape": [2]}, "must have 2 columns, got 3"),
        ("1,2\n", {"event_shape": [8, 8, 1]}, "trained on images .8, 8, 1.: give"),
        ("a\n1\nx\n", {"columns": ["a"]}, "line 3, column 'a': 'x' is not a number"),
        (
            "a\n1e9\n1000000001\n1000000002\n",
            {"columns": ["a"]},
            "'a' has values that float32",
        ),
    ],
)
@pytest.mark.quick
def test_a_table_of_other_columns_is_refused(
    text, facts, message, tmp_path, monkeypatch
):
    workdir = pretend(monkeypatch, tmp_path / "run", facts, quadratic())
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        score.score(workdir, csv=str(tmp_path / "x.csv"))
    assert not (tmp_path / "x.scores.csv").exists()


def test_images_are_scored_as_levels_and_as_numbers(tmp_path, monkeypatch):
    """Levels 0 to 16 of the digits are the middles of 17 cells of [-1, 1]."""
    facts = {"event_shape": [8, 8, 1]}
    workdir = pretend(monkeypatch, tmp_path / "run", facts, quadratic())
    levels = np.arange(3 * 64).reshape(3, 8, 8) % 17
    np.save(tmp_path / "levels.npy", levels.astype(np.uint8))
    floats = (2 * levels[..., None] + 1) / 17 - 1
    np.savez(tmp_path / "floats.npz", samples=floats.astype(np.float32), key=0)
    found = [
        score.score(workdir, images=str(tmp_path / name))["energy"]
        for name in ("levels.npy", "floats.npz")
    ]
    np.testing.assert_allclose(found[0], (floats**2).sum((1, 2, 3)) / 2, rtol=1e-5)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    # A model's own draws may be outside of [-1, 1].
    np.savez(tmp_path / "draws.npz", samples=2 * floats.astype(np.float32), key=0)
    draws = score.score(workdir, images=str(tmp_path / "draws.npz"))["energy"]
    np.testing.assert_allclose(draws, 4 * found[0], rtol=1e-5)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((2, 7, 7), np.uint8), r"the shape \(8, 8, 1\).*got an array \(2, 7"),
        (np.full((2, 8, 8), 17), "levels from 0 to 16.*got 0 to 17|got 17 to 17"),
        (np.linspace(0, 1, 64).reshape(1, 8, 8), r"in \[-1, 1\].*float64 from 0 to 1"),
        (np.linspace(-3, 3, 64).reshape(1, 8, 8), "from -3 to 3"),
        (np.r_[np.linspace(-1, 1, 63), np.nan].reshape(1, 8, 8), "from nan to nan"),
    ],
)
@pytest.mark.quick
def test_images_of_another_shape_or_scale_are_refused(
    array, message, tmp_path, monkeypatch
):
    facts = {"event_shape": [8, 8, 1]}
    workdir = pretend(monkeypatch, tmp_path / "run", facts, quadratic())
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=message):
        score.score(workdir, images=str(tmp_path / "x.npy"))


@pytest.mark.quick
def test_files_and_options_that_do_not_fit_are_named(tmp_path, monkeypatch):
    workdir = pretend(monkeypatch, tmp_path / "run", {"event_shape": [2]}, quadratic())
    np.savez(tmp_path / "x.npz", a=np.zeros(2), b=np.zeros(2))
    given = {"images": str(tmp_path / "x.npz")}
    with pytest.raises(ValueError, match=r"an array 'images' or 'samples'.*'a', 'b'"):
        score.score(workdir, **given)
    with pytest.raises(ValueError, match="give one of --csv and --images"):
        score.score(workdir)
    with pytest.raises(ValueError, match="--scores must be some of .*'kl'"):
        score.score(workdir, **given, scores=["kl"])
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="another file than .* got '.*x.csv"):
        score.score(workdir, csv=f"{tmp_path}/x.csv", out=f"{tmp_path}/x.csv")
    with pytest.raises(ValueError, match="rows of 3 columns: give --csv"):
        score.read_images(f"{tmp_path}/x.npy", {"matrix": np.eye(3).tolist()}, {})
    with pytest.raises(ValueError, match="rows of 2 columns: give --csv"):
        score.score(workdir, images=str(tmp_path / "x.npy"))
    with pytest.raises(SystemExit, match="error: there is no file"):
        score.main([f"--workdir={workdir}", f"--images={tmp_path / 'gone.npy'}"])
    (tmp_path / "x.csv").write_text("1,2\n")
    nothing = Trained(images.get_config("digits"), {}, {}, {})
    monkeypatch.setattr(score, "load", lambda workdir, step: nothing)
    with pytest.raises(ValueError, match="run has no energy or log_prob or score_norm"):
        score.score(workdir, csv=str(tmp_path / "x.csv"))


def test_a_model_of_all_noise_scales_is_scored_at_the_one_that_is_given(
    tmp_path, monkeypatch, capsys
):
    config = plane.get_config()
    model = plane.make_model(config, 30.0)
    params = {model.name: model.network.init(jax.random.key(0))[0]}
    trained = plane.load(config, {"largest_distance": 30.0}, params, {})
    workdir = pretend(monkeypatch, tmp_path / "run", {}, trained)
    (tmp_path / "x.csv").write_text("1,2\n3,-1\n")
    x, given = np.array([[1, 2], [3, -1]]), {"csv": str(tmp_path / "x.csv")}
    found = score.score(workdir, **given, noise_scale=2.0)
    expected = [jnp.linalg.norm(trained.score_fn(row, 2.0)) for row in x]
    np.testing.assert_allclose(found["score_norm"], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="of all noise scales, which needs --noise"):
        score.score(workdir, **given)
    assert "score_norm is left out" in capsys.readouterr().err


def test_an_estimated_likelihood_has_a_key_for_every_example(tmp_path, monkeypatch):
    """Two equal rows have other noise, and a seed gives the same file again."""

    def log_prob(x, key):
        return jax.random.normal(key) - jnp.sum(x**2) / 2

    trained = quadratic(log_prob=log_prob)
    workdir = pretend(monkeypatch, tmp_path / "run", {}, trained)
    (tmp_path / "x.csv").write_text("1,2\n1,2\n")
    given = {"csv": str(tmp_path / "x.csv"), "scores": ["log_prob"]}
    first, again = (score.score(workdir, **given)["log_prob"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first[0] != first[1]
    other = score.score(workdir, **given, seed=1)["log_prob"]
    assert (other != first).all()


def test_the_log_density_of_a_tutorial_model_is_minus_energy_less_its_constant(
    tmp_path, monkeypatch
):
    preset = next(x for x in tutorial.PRESETS if x.endswith(",ica_10"))
    config = tutorial.get_config(preset)
    dim = 10
    facts = {"mean": [0.0] * dim, "covariance": np.eye(dim).tolist()}
    moments = (np.array(facts["mean"]), np.array(facts["covariance"]))
    target = tutorial.make_target(config.data)
    problem = tutorial.make_problem(config, make_keys(0), target, moments)
    params = {"energy": problem.model.init(jax.random.key(0))}
    trained = tutorial.load(config, facts, params, {})
    workdir = pretend(monkeypatch, tmp_path / "run", facts, trained)
    rows = np.random.default_rng(0).normal(size=(4, dim)).astype(np.float32)
    np.savetxt(tmp_path / "x.csv", rows, delimiter=",")
    found = score.score(workdir, csv=str(tmp_path / "x.csv"))
    total = found["log_prob"] + found["energy"]
    np.testing.assert_allclose(total, total[0], rtol=1e-5)
    np.testing.assert_allclose(-total[0], problem.model.log_partition(params["energy"]))


def test_a_table_with_categories_has_the_likelihoods_of_the_evaluation(
    tmp_path, monkeypatch
):
    """The evaluation writes the mean of several draws within the categories."""
    rng = np.random.default_rng(0)
    rows = [(f"{rng.normal():.4f}", rng.choice(["cat", "dog"])) for _ in range(60)]
    text = "".join(f"{number},{animal}\n" for number, animal in rows)
    (tmp_path / "train.csv").write_text(f"a,b\n{text}")
    swapped = "".join(f"{animal},{number}\n" for number, animal in rows)
    (tmp_path / "all.csv").write_text(f"b,a\n{swapped}")
    files = {f"data.{x}csv": str(tmp_path / "train.csv") for x in ("", "score_")}
    small = {"network.widths": (4,), "network.num_layers": 1}
    config = density.get_config("own,likelihood")
    config = with_options(config, files | small)
    table = own_tables.from_section(config.data)
    facts = {"dim": 2, **table.encoding._asdict()}
    flow = density.make_flow(config, 2)
    params = {"energy": flow.init(jax.random.key(0))}

    def log_prob(rows):
        return jax.vmap(lambda row: flow.log_prob(params["energy"], row))(rows)

    _, expected = own_tables.log_likelihoods(table, log_prob)
    trained = density.load(config, facts, params, {})
    workdir = pretend(monkeypatch, tmp_path / "run", facts, trained)
    found = score.score(workdir, csv=str(tmp_path / "all.csv"), scores=["log_prob"])
    np.testing.assert_allclose(found["log_prob"], expected, rtol=1e-4, atol=1e-4)
    (tmp_path / "other.csv").write_text("b,a\ncow,1\n")
    with pytest.raises(ValueError, match="line 2, column 'b': 'cow' is not among"):
        score.score(workdir, csv=str(tmp_path / "other.csv"))
