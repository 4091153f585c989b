"""Classifiers in files: found by their data and options, and whole or not used."""

import functools
import os
import pathlib
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.data import load_images
from experiments.judge import store
from experiments.judge.classifier import VERSION, train_classifier
from experiments.judge.judge import make_judge

KEY = jax.random.key(0)
OPTIONS = dict(num_classes=3, num_levels=16, num_steps=2, batch_size=4, width=4)


def examples():
    """Twelve images of noise, of three classes."""
    images = np.random.RandomState(0).randint(0, 16, (12, 8, 8, 1)).astype(np.uint8)
    return images, np.arange(12, dtype=np.int32) % 3


def scores(classifier):
    """What a classifier says of two grey images and a bright one."""
    x = np.array([-0.5, 0.0, 0.9], np.float32)[:, None, None, None]
    x = np.broadcast_to(x, (3, 8, 8, 1))
    return classifier.features(x), classifier.log_probs(x)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("EBMJAX_CACHE", str(folder))
    return folder


@functools.wraps(train_classifier)
def refuse_to_train(*args, **options):
    raise AssertionError("a classifier is trained")


def stored(cache):
    """The only file in the cache."""
    (path,) = cache.iterdir()
    return path


def test_a_stored_classifier_is_bitwise_the_trained_one(cache, monkeypatch, capsys):
    trained = train_classifier(KEY, *examples(), **OPTIONS)
    first = store.prepare_classifier(KEY, *examples(), **OPTIONS)
    assert not cache.exists()  # nothing is trained before it is asked for
    assert first() is first()
    monkeypatch.setattr(store, "train_classifier", refuse_to_train)
    capsys.readouterr()
    again = store.prepare_classifier(KEY, *examples(), **OPTIONS)()
    assert capsys.readouterr().err == ""
    for found in (scores(first()), scores(again)):
        jax.tree.map(np.testing.assert_array_equal, found, scores(trained))
    params, record = store.read_stored(stored(cache))
    jax.tree.map(np.testing.assert_array_equal, params, trained.params)
    assert record["options"] == OPTIONS | {"learning_rate": 4e-3}
    assert record["command"].startswith("python ") and "commit" in record


@pytest.mark.quick
def test_bad_data_and_options_are_refused_before_it_is_asked_for(cache):
    images, labels = examples()
    prepare = functools.partial(store.prepare_classifier, KEY, images)
    with pytest.raises(ValueError, match="labels must be from 0 to 1, got 0 to 2"):
        prepare(labels, **OPTIONS | {"num_classes": 2})
    with pytest.raises(ValueError, match="width must be at least 2 for images"):
        prepare(labels, **OPTIONS | {"width": 1})
    with pytest.raises(ValueError, match="images must have labels for a classifier"):
        prepare(None, **OPTIONS)


@pytest.mark.quick
def test_a_name_depends_on_everything_that_is_trained_with(monkeypatch):
    images, labels = examples()
    name = functools.partial(store.name_classifier, options=OPTIONS)
    darker, other = images.copy(), labels.copy()
    darker[3, 4, 5, 0] -= 1
    other[7] = 0
    names = [
        name(KEY, images, labels),
        name(jax.random.key(1), images, labels),
        name(KEY, darker, labels),
        name(KEY, images[::-1], labels),
        name(KEY, images, other),
        *(
            store.name_classifier(KEY, images, labels, OPTIONS | {option: value + 1})
            for option, value in OPTIONS.items()
        ),
    ]
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    names.append(name(KEY, images, labels))
    assert len(set(names)) == len(names) == 11
    assert {len(name) for name in names} == {64}


def test_no_damage_to_a_file_is_read_as_another_classifier(cache):
    """Single bits flip, or the file is cut short, or it was written with other values,
    or it has the name of another one."""
    store.prepare_classifier(KEY, *examples(), **OPTIONS)()
    path = stored(cache)
    whole = path.read_bytes()
    params, _ = store.read_stored(path)
    draw, num_refused = random.Random(0), 0
    for _ in range(200):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            found, _ = store.read_stored(path)
        except ValueError as error:
            assert str(path) in str(error)
            num_refused += 1
        else:  # the bit was one of the archive's dates and the like
            jax.tree.map(np.testing.assert_array_equal, found, params)
    assert num_refused > 180
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            store.read_stored(path)
    path.write_bytes(whole)
    arrays = dict(np.load(path))
    record = str(arrays["record"])
    for name, value in {
        "params/Dense_1/bias": arrays["params/Dense_1/bias"] + 1e-6,
        "record": np.array(record.replace('"num_steps": 2', '"num_steps": 3')),
    }.items():
        np.savez(path, **arrays | {name: value})
        with pytest.raises(ValueError, match="is damaged: it has changed"):
            store.read_stored(path)
    path.write_bytes(whole)
    other = path.rename(path.with_stem(64 * "0"))
    with pytest.raises(ValueError, match="is damaged: it has changed"):
        store.read_stored(other)
    with pytest.raises(FileNotFoundError):
        store.read_stored(path)


def test_a_torn_file_is_trained_over_with_a_line_that_says_so(cache, capsys):
    trained = store.prepare_classifier(KEY, *examples(), **OPTIONS)()
    path = stored(cache)
    path.write_bytes(path.read_bytes()[:500])
    capsys.readouterr()
    again = store.prepare_classifier(KEY, *examples(), **OPTIONS)()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"a stored classifier is not used: {path} cannot be")
    assert lines[1] == "training a classifier of 12 images: 2 steps"
    jax.tree.map(np.testing.assert_array_equal, scores(again), scores(trained))
    params, _ = store.read_stored(path)
    jax.tree.map(np.testing.assert_array_equal, params, trained.params)


def test_a_cache_that_cannot_be_written_ends_nothing(cache, capsys):
    """Here it is a file, on any machine and for any user."""
    cache.write_text("not a folder")
    classifier = store.prepare_classifier(KEY, *examples(), **OPTIONS)()
    trained = train_classifier(KEY, *examples(), **OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, scores(classifier), scores(trained))
    assert "the classifier is not stored and will be" in capsys.readouterr().err
    assert cache.read_text() == "not a folder"


@pytest.mark.slow
def test_processes_share_a_cache(cache):
    """Two that begin together leave one whole file, whose scores both have."""
    program = (
        "from experiments.judge import store\n"
        "import jax, numpy as np\n"
        "images = np.random.RandomState(0).randint(0, 16, (12, 8, 8, 1))\n"
        "found = store.prepare_classifier(jax.random.key(0), images.astype(np.uint8),\n"
        f"    np.arange(12, dtype=np.int32) % 3, **{OPTIONS})()\n"
        "print(found.log_probs(np.zeros((1, 8, 8, 1), np.float32)).tolist())\n"
    )
    root = pathlib.Path(__file__).parents[3]
    environment = dict(os.environ, PYTHONPATH=str(root))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    printed = {process.communicate(timeout=300)[0] for process in processes}
    classifier = store.prepare_classifier(KEY, *examples(), **OPTIONS)()
    expected = classifier.log_probs(np.zeros((1, 8, 8, 1), np.float32)).tolist()
    assert printed == {f"{expected}\n"}
    store.read_stored(stored(cache))


@pytest.mark.quick
def test_the_cache_is_a_folder_of_the_user_or_the_one_that_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("EBMJAX_CACHE", "~/elsewhere")
    assert store.cache_folder() == pathlib.Path("/home/someone/elsewhere")
    monkeypatch.setenv("EBMJAX_CACHE", "")
    assert store.cache_folder() == pathlib.Path("/home/someone/.cache/ebmjax")
    monkeypatch.delenv("EBMJAX_CACHE")
    assert store.cache_folder() == pathlib.Path("/home/someone/.cache/ebmjax")


# --- the classifiers that come with the code


ACCURACY = {
    ("mnist", 4_000): 0.9927,
    ("fashion_mnist", 4_000): 0.9091,
    ("fashion_mnist", 1_000): 0.8789,
}
"""Data set and steps -> share of the 10,000 test images that is recognised."""


@pytest.mark.quick
def test_the_classifier_of_the_digits_comes_with_the_code(monkeypatch):
    """It knows 294 of the 297 held-out digits; a rounding may change one of them."""
    monkeypatch.setattr(store, "train_classifier", refuse_to_train)
    judge = make_judge(load_images("digits"), 10_000, 700)
    np.testing.assert_allclose(judge.accuracy(), 294 / 297, atol=1.1 / 297)


@pytest.mark.slow
@pytest.mark.parametrize("name, num_steps", ACCURACY)
@pytest.mark.skipif(
    "EBMJAX_TFDS" not in os.environ,
    reason="EBMJAX_TFDS, a prepared TFDS directory, is not set",
)
def test_those_of_published_images_come_with_the_code(name, num_steps, monkeypatch):
    monkeypatch.setattr(store, "train_classifier", refuse_to_train)
    data = load_images(name, data_dir=os.environ["EBMJAX_TFDS"])
    found = make_judge(data, 10_000, num_steps).accuracy()
    np.testing.assert_allclose(found, ACCURACY[name, num_steps], atol=3.1e-4)


@pytest.mark.quick
def test_every_file_that_comes_with_the_code_is_whole_listed_and_of_this_code():
    listed = (store.SHIPPED / "README.md").read_text()
    paths = sorted(store.SHIPPED.glob("*.npz"))
    assert len(paths) == listed.count("\n| `") == 1 + len(ACCURACY)
    for path in paths:
        _, record = store.read_stored(path)
        assert record["version"] == VERSION, f"{path} is never used: make it again"
        assert f"| `{path.stem[:8]}` | " in listed
        assert record["command"] and record["commit"]
        assert path.stat().st_size < 1.2e6
