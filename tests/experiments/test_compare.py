"""Trained models of one data set are compared by one judge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import compare as comparing
from experiments.data import load_images
from experiments.judge import judge as judging
from experiments.judge.classifier import Classifier
from experiments.run.experiment import Trained

MEANS = Classifier(
    features=lambda x: (
        np.asarray(x, np.float64).mean((1, 2))
        + [[0.0, 1e-3 * np.sin(i)] for i in range(len(x))]
    ),
    log_probs=lambda x: np.log([[0.92, 0.08], [0.3, 0.7]])[
        (np.asarray(x).mean((1, 2, 3)) > 0).astype(int)
    ],
)


def make(value, *, name="digits", path="", size=0, **functions):
    """A model whose samples are all of one grey."""
    section = {"name": name, "batch_size": 8, "num_examples": 0}
    section |= {"path": path, "size": size} if path else {}
    return Trained(
        ConfigDict({"data": section}),
        {"energy": {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}},
        {},
        {},
        sample=lambda key, num: jnp.full((num, 8, 8, 1), value),
        **functions,
    )


@pytest.fixture
def loaded(monkeypatch):
    models = {
        "runs/dark": make(-1.0, energy_fn=lambda x: x.sum()),
        "runs/bright": make(
            0.5,
            log_prob=lambda x, key: 0.0,
            # The score of data that are all 0: the noise is known exactly from them.
            score_fn=lambda x, scale: -x / scale**2,
        ),
        "other/dark": make(-1.0, name="mnist", energy_fn=lambda x: x.sum()),
        "runs/silent": make(0.0)._replace(sample=None),
        "own/cats": make(0.0, name="arrays", path="cats", size=8),
        "own/dogs": make(0.0, name="arrays", path="dogs", size=8),
        "own/table": make(0.0)._replace(config=ConfigDict({"data": {"name": "own"}})),
    }
    monkeypatch.setattr(comparing, "load", models.__getitem__)
    monkeypatch.setattr(
        judging, "prepare_classifier", lambda *args, **options: lambda: MEANS
    )
    return models


@pytest.mark.quick
def test_samples_and_scores_of_two_models_are_tabulated(loaded, tmp_path, monkeypatch):
    white, black = np.ones((9, 8, 8, 1)), -np.ones((9, 8, 8, 1))
    monkeypatch.setattr(
        comparing, "foreign_images", lambda *a, **k: {"white": white, "black": black}
    )
    quality, detection = comparing.compare(
        ["runs/dark", "runs/bright"], tmp_path / "out", num=40, num_foreign=20
    )
    table = {row["name"]: row for row in quality}
    assert list(table) == ["data", "gaussian", "uniform", "runs/dark", "runs/bright"]
    assert table["gaussian"]["percent_of_gaussian"] == 100
    assert {row["num_samples"] for row in quality} == {40}
    # Grey of -1 and of 0.5 is of the first and of the second class.
    for name, sure in (("runs/dark", 1.0), ("runs/bright", 0.0)):
        assert table[name]["confident_share"] == sure
        assert (table[name]["rarest_class"], table[name]["commonest_class"]) == (0, 1)
        assert table[name]["parameters"] == 7
        assert table[name]["seconds_for_1000"] > 0
    assert table["data"]["parameters"] == "-"
    dark, bright = detection
    assert (dark["score"], bright["score"]) == ("energy", "denoising error")
    # The sum of the pixels is the highest for white, and the lowest for black.
    assert dark["white"] == 1.0 and dark["black"] == 0.0
    digits = load_images("digits")
    levels = digits.held_out[:20] * (2 / 17) - 1 + 1 / 17
    assert abs(dark["flipped"] - 0.5) < 0.02 and levels.shape == (20, 8, 8, 1)
    # |scale * (-(x + scale n) / scale^2) + n|^2 = |x|^2 / scale^2: white and black are
    # of the largest norm that there is.
    assert bright["white"] == bright["black"] == 1.0
    _, score = comparing.find_score(loaded["runs/bright"], jax.random.key(2))
    expected = 64 * sum(1 / scale**2 for scale in comparing.NOISE_SCALES)
    np.testing.assert_allclose(score(jnp.asarray(white[:2])), expected, rtol=1e-3)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"quality.md", "detection.md", "samples.png"}


@pytest.mark.quick
@pytest.mark.parametrize(
    "names, message",
    [
        (["runs/dark", "runs/dark"], r"different models, got \['runs/dark', 'runs/da"),
        (["runs/dark", "other/dark"], "one data set, got .*'other/dark': 'mnist'"),
        (["runs/silent"], r"a sampler, which \['runs/silent'\] have not"),
        ([], r"one or more different models, got \[\]"),
        ([""], r"one or more different models, got \[''\]"),
        (["own/cats", "own/dogs"], "one data set, .*'arrays, path=dogs, size=8'"),
        (["own/table"], r"of images, and \['own/table'\] are not"),
    ],
)
def test_models_that_do_not_compare_are_refused(loaded, names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        comparing.compare(names, tmp_path / "out")
    with pytest.raises(ValueError, match="--num must be .* at least 1, got 0"):
        comparing.compare(names, tmp_path / "out", num=0)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named_before_any_sample(
    loaded, tmp_path, monkeypatch
):
    def refuse(*given):
        raise AssertionError("the judge was made")

    monkeypatch.setattr(comparing, "make_judge", refuse)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="^error: .*/file/quality.md: Not a dir"):
        comparing.main(["--models=runs/dark", f"--out={tmp_path / 'file'}"])


def test_images_without_labels_are_compared_by_their_pixels():
    images = load_images("digits")._replace(labels_train=None, labels_held_out=None)
    judge = judging.make_judge(images, 40, 10)
    samples = {"copies": judge.train[:20], "grey": np.zeros((20, 8, 8, 1))}
    rows = {row["name"]: row for row in comparing.measure_quality(judge, samples)}
    assert rows["gaussian"]["percent_of_gaussian"] == 100
    assert rows["copies"]["frechet_distance"] < rows["grey"]["frechet_distance"]
    assert rows["copies"]["nearest_distance"] < rows["data"]["nearest_distance"]
    assert "confident_share" not in rows["data"]


def test_saved_samples_are_used_if_they_are_enough(tmp_path):
    saved = np.arange(12.0).reshape(6, 2)
    np.savez(tmp_path / "samples.npz", samples=saved)
    np.testing.assert_array_equal(comparing.find_samples(tmp_path, 4), saved[:4])
    assert comparing.find_samples(tmp_path, 7) is None
    assert comparing.find_samples(tmp_path / "none", 1) is None


def test_a_model_draws_so_many_samples_in_parts():
    given = []

    def sample(key, num):
        given.append((jax.random.key_data(key).tolist(), num))
        return jnp.zeros((num, 2))

    drawn = comparing.draw(make(0.0)._replace(sample=sample), jax.random.key(0), 1_200)
    assert len(drawn) == 1_200 and [num for _, num in given] == [500, 500, 200]
    assert len({tuple(key) for key, _ in given}) == 3
