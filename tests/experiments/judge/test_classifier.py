"""The classifier that looks at samples, and the table of references."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import metrics
from experiments.data import dequantize, load_images, quantize
from experiments.judge import classifier as classifiers
from experiments.judge import judge as judging
from experiments.judge import store
from experiments.judge.classifier import (
    VERSION,
    Classifier,
    accuracy,
    shift_images,
    train_classifier,
)
from experiments.judge.judge import (
    find_nearest,
    gaussian_draws,
    make_judge,
    reference_table,
    sample_quality,
)

KEY = jax.random.key(0)


def negative_first_pixel(x):
    """Log probabilities that the first pixel is negative, and that it is not."""
    first = np.asarray(x, np.float64).reshape(len(x), -1)[:, :1]
    return -np.logaddexp(0.0, np.concatenate([10 * first, -10 * first], 1))


PIXELS = Classifier(
    features=lambda x: np.asarray(x).reshape(len(x), -1), log_probs=negative_first_pixel
)


def bright_channel(num):
    """Noise of 32x32x3 in which the channel that is a little brighter is the class."""
    random = np.random.RandomState(0)
    labels = np.arange(num) % 3
    images = random.randint(0, 200, (num, 32, 32, 3))
    images[np.arange(num), :, :, labels] += 20
    return images.astype(np.uint8), labels.astype(np.int32)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def trained(digits):
    return train_classifier(
        KEY,
        digits.train,
        digits.labels_train,
        num_classes=digits.num_classes,
        num_levels=digits.num_levels,
    )


@pytest.fixture(scope="module")
def held_out(digits):
    return dequantize(jax.random.key(1), digits.held_out, digits.num_levels)


@pytest.mark.slow
def test_held_out_digits_are_recognised(digits, trained, held_out):
    """0.994 on average over keys; 0.975 is four standard errors of 297 below that."""
    found = accuracy(trained, held_out, digits.labels_held_out)
    assert found >= 0.975


@pytest.mark.slow
def test_probabilities_on_held_out_digits_are_honest(digits, trained, held_out):
    """They sum to one, and the likelihood of the labels is that of a good fit.

    Always sure and right 99 times of 100 would cost 0.01 * 40 nats and more.
    """
    log_probs = trained.log_probs(held_out)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1.0, rtol=1e-5)
    picked = log_probs[np.arange(len(log_probs)), digits.labels_held_out]
    assert -picked.mean() < 0.1
    right = log_probs.argmax(-1) == digits.labels_held_out
    assert abs(np.exp(log_probs.max(-1)).mean() - right.mean()) < 0.02


@pytest.mark.slow
def test_digits_gaussian_and_noise_are_told_apart(digits, trained, held_out):
    """Held-out digits as samples are as good as data; half-bright ones are not."""
    data = dequantize(KEY, digits.train[:900], digits.num_levels)
    table = reference_table(
        trained, KEY, data, {"held out": held_out, "dim": 0.5 * held_out - 0.5}
    )
    distance = {row["name"]: row["classifier_frechet_distance"] for row in table}
    assert list(distance) == ["data", "gaussian", "uniform", "held out", "dim"]
    assert {row["num_samples"] for row in table} == {297}
    assert max(distance["data"], distance["held out"]) < 0.5 * distance["dim"]
    assert 2 * distance["data"] < distance["gaussian"] < distance["uniform"]
    confident = {row["name"]: row["confident_share"] for row in table}
    assert confident["data"] > 0.9 > confident["gaussian"]
    shares = [table[3][f"class_share_{k}"] for k in range(10)]
    true = np.bincount(digits.labels_held_out) / len(held_out)
    np.testing.assert_allclose(shares, true, atol=0.025)  # wrong at most that often


@pytest.mark.slow
def test_an_example_is_seen_alike_in_every_batch(trained, held_out):
    """Batches are cut into padded blocks of 500; 1,188 rows take three."""
    many = np.tile(held_out, (4, 1, 1, 1))
    for look in (trained.features, trained.log_probs):
        whole = look(many)
        # Every block has the same shape and so the same arithmetic.
        np.testing.assert_array_equal(whole[297:594], whole[594:891])
        np.testing.assert_array_equal(look(held_out[5:6])[0], whole[5])
        np.testing.assert_array_equal(whole[5], whole[-292])


@pytest.mark.slow
def test_images_of_32_by_32_in_colour_can_be_learned():
    images, labels = bright_channel(600)
    classifier = train_classifier(
        KEY,
        images[:500],
        labels[:500],
        num_classes=3,
        num_levels=256,
        num_steps=40,
        width=8,
    )
    x = dequantize(KEY, images[500:], 256)
    assert accuracy(classifier, x, labels[500:]) > 0.95
    assert classifier.features(x).shape == (100, 64)


@pytest.mark.slow
def test_a_data_set_has_one_judge(digits):
    """Whoever asks gets the same examples and rows, and each example is its image."""
    samples = {"samples": np.full((20, 8, 8, 1), -0.9, np.float32)}
    one, two = (make_judge(digits, 30, 2) for _ in range(2))
    for name, images in (("train", digits.train), ("held_out", digits.held_out)):
        found = getattr(one, name)
        np.testing.assert_array_equal(found, getattr(two, name))
        levels = quantize(found, digits.num_levels)
        np.testing.assert_array_equal(levels, images[:30])
    # The noise within the levels is drawn for each set.
    noise = [
        getattr(one, name) - (2 * images[:30] + 1.0) / digits.num_levels + 1
        for name, images in (("train", digits.train), ("held_out", digits.held_out))
    ]
    assert np.all(np.abs(noise) <= 1.001 / digits.num_levels)
    assert np.all(noise[0] != noise[1])
    assert one.table(samples) == two.table(samples)
    assert one.accuracy() == two.accuracy()
    # Labels are those of the images: by a classifier that has learned.
    judge = make_judge(digits, 100, 150)
    assert judge.accuracy() > 0.8


@pytest.mark.quick
def test_a_judge_trains_nothing_before_it_is_asked(digits, monkeypatch):
    """And refuses before that what it could not train on."""

    @functools.wraps(train_classifier)
    def train(*args, **options):
        raise InterruptedError(f"{options['num_steps']} steps")

    monkeypatch.setattr(store, "train_classifier", train)
    judge = make_judge(digits, 30, 3)
    assert len(judge.train) == len(judge.held_out) == 30
    for ask in (lambda: judge.table({}), judge.accuracy):
        with pytest.raises(InterruptedError, match="3 steps"):
            ask()
    unlabelled = digits._replace(labels_train=None, labels_held_out=None)
    assert len(make_judge(unlabelled, 30, 3).train) == 30
    with pytest.raises(ValueError, match=r"\(1500, 8, 8, 1\) and \(1499,\)"):
        make_judge(digits._replace(labels_train=digits.labels_train[1:]), 30, 3)


def bright_quarters():
    """Images one quarter of which is bright, which a few steps tell apart."""
    labels = np.arange(40, dtype=np.int32) % 4
    quarters = np.eye(4, dtype=np.uint8)[labels].reshape(40, 2, 2, 1)
    return 15 * quarters.repeat(4, 1).repeat(4, 2), labels


SMALL = dict(
    num_classes=4,
    num_levels=16,
    num_steps=20,
    batch_size=8,
    learning_rate=1e-3,
    width=4,
)


@pytest.mark.quick
def test_training_is_announced_and_reported_every_ten_seconds(monkeypatch, capsys):
    """By a clock that advances by four seconds each time it is read, which is once for
    each step and once for each report."""
    before = "training a classifier of 40 images: 20 steps"
    plain = train_classifier(KEY, *bright_quarters(), **SMALL)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [before, "classifier: step 20/20  accuracy 1.000"]
    clock = types.SimpleNamespace(
        monotonic=functools.partial(next, itertools.count(0, 4))
    )
    monkeypatch.setattr(classifiers, "time", clock)
    reported = train_classifier(KEY, *bright_quarters(), **SMALL)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == before
    steps = [line.split("  ")[0] for line in lines[1:]]
    expected = (3, 6, 9, 12, 15, 18, 20)
    assert steps == [f"classifier: step {step}/20" for step in expected]
    # At first it says the same of every image, which is right for a quarter.
    assert lines[1].endswith("  accuracy 0.250")
    assert lines[-1].endswith("  accuracy 1.000")
    # A report changes nothing of the training.
    x = dequantize(KEY, bright_quarters()[0], 16)
    np.testing.assert_array_equal(reported.log_probs(x), plain.log_probs(x))


@pytest.mark.quick
def test_the_version_is_that_of_these_numbers():
    """Whoever changes them raises `VERSION`, or old files are taken for new ones."""
    classifier = train_classifier(KEY, *bright_quarters(), **SMALL)
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    found = [*classifier.log_probs(x)[0], classifier.features(x).sum()]
    assert VERSION == 1
    known = [-1.42986, -1.40744, -1.34565, -1.36447, 1.33276]
    np.testing.assert_allclose(found, known, rtol=1e-3)


def test_shifts_move_whole_images_and_repeat_their_edge():
    """Of a ramp: each image is the ramp moved by -1, 0 or 1, cut to its range."""
    ramp = jnp.tile(jnp.arange(8.0)[:, None, None], (400, 1, 8, 1))
    moved = np.asarray(shift_images(KEY, ramp, 1))
    np.testing.assert_array_equal(moved, np.broadcast_to(moved[:, :, :1], moved.shape))
    kinds = {tuple(image[:, 0, 0]) for image in moved}
    expected = {tuple(np.clip(np.arange(8.0) + move, 0, 7)) for move in (-1, 0, 1)}
    assert kinds == expected
    across = np.asarray(shift_images(KEY, ramp.swapaxes(1, 2), 1))
    assert {tuple(image[0, :, 0]) for image in across} == expected
    # A third each, with five standard errors.
    still = np.mean(moved[:, 0, 0, 0] == moved[:, 1, 0, 0])
    assert abs(still - 1 / 3) < 5 * (2 / 9 / 400) ** 0.5


def test_quality_is_these_numbers():
    """Probability of class 0 at first pixel a is 1 / (1 + exp(10 a)).

    It passes 0.9 at a = -log(9) / 10 = -0.2197.
    """
    first = np.array([-0.5, -0.22, -0.21, 0.1, 0.9])
    samples = np.stack([first, np.linspace(-1, 1, 5)], 1).reshape(5, 1, 2, 1)
    data = np.random.RandomState(0).normal(size=(50, 1, 2, 1))
    quality = sample_quality(PIXELS, samples, data)
    assert quality == {
        "classifier_frechet_distance": metrics.frechet_distance(
            samples.reshape(5, 2), data.reshape(50, 2)
        ),
        "confident_share": 0.6,
        "class_share_0": 0.6,
        "class_share_1": 0.4,
    }


@pytest.mark.parametrize("num_examples", [4000, 60], ids=["many", "fewer_than_pixels"])
def test_the_gaussian_reference_has_the_mean_and_covariance_of_the_data(num_examples):
    """With fewer examples than pixels too, where the covariance is singular."""
    random = np.random.RandomState(0)
    data = random.normal(size=(num_examples, 80)) @ random.normal(size=(80, 80)) + 5.0
    data = data.reshape(num_examples, 8, 10, 1)
    num = 20_000
    draws = gaussian_draws(KEY, data, num).reshape(num, 80)
    flat = data.reshape(num_examples, 80)
    cov, variance = np.cov(flat.T), flat.var(0)
    # Standard errors: sqrt(S_ii / n), and at most sqrt(2 S_ii S_jj / n); five of them,
    # six for the 80 * 80 entries.
    error = np.abs(draws.mean(0) - flat.mean(0)) / (variance / num) ** 0.5
    assert error.max() < 5.5
    scale = np.sqrt(2 * np.outer(np.diag(cov), np.diag(cov)) / num)
    assert np.max(np.abs(np.cov(draws.T) - cov) / scale) < 6


def test_references_stay_in_the_range_of_the_data_and_are_compared_in_equal_numbers():
    data = np.random.RandomState(0).uniform(-0.3, 0.9, (101, 1, 2, 1))
    data = data.astype(np.float32)
    seen = []

    def features(x):
        seen.append(np.asarray(x))
        return PIXELS.features(x)

    spy = Classifier(features, PIXELS.log_probs)
    samples = {"model": np.zeros((30, 1, 2, 1)), "other": np.ones((40, 1, 2, 1))}
    table = reference_table(spy, KEY, data, samples)
    assert [row["num_samples"] for row in table] == [30] * 5
    assert {x.shape for x in seen} == {(30, 1, 2, 1)}
    # Two calls a row: the samples, and the data that they are compared with.
    compared = seen[1]
    for x in seen[3::2]:
        np.testing.assert_array_equal(x, compared)
    other, gaussian, uniform = seen[0], seen[2], seen[4]
    held = {tuple(x.ravel()) for x in other} & {tuple(x.ravel()) for x in compared}
    assert not held  # the two halves have no example in common
    for x in (gaussian, uniform):
        assert data.min() <= x.min() and x.max() <= data.max()
    assert gaussian.max() == data.max()  # and was clamped there
    assert len(reference_table(PIXELS, KEY, data)) == 3
    # The distance that chooses is to the other half, and the other half has none.
    chosen = [
        row["distance_to_choose"]
        for row in reference_table(PIXELS, KEY, data, samples, chooses=True)
    ]
    np.testing.assert_allclose(chosen[0], 0.0, atol=1e-6)
    expected = metrics.frechet_distance(
        PIXELS.features(uniform), PIXELS.features(other)
    )
    np.testing.assert_allclose(chosen[2], expected, rtol=1e-6)


@pytest.mark.quick
def test_bad_arguments_are_named(digits):
    labels = digits.labels_train
    options = dict(num_levels=17, num_steps=1)
    with pytest.raises(ValueError, match="labels must be from 0 to 8, got 0 to 9"):
        train_classifier(KEY, digits.train, labels, num_classes=9, **options)
    with pytest.raises(ValueError, match=r"\(1500, 8, 8, 1\) and \(3,\)"):
        train_classifier(KEY, digits.train, labels[:3], num_classes=10, **options)
    with pytest.raises(ValueError, match="width must be at least 4 for images"):
        big = np.zeros((1, 28, 28, 1), np.uint8)
        train_classifier(KEY, big, labels[:1], num_classes=10, width=3, **options)
    x = np.zeros((4, 1, 2, 1))
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2, 1\) and \(2, 1, 1\)"):
        sample_quality(PIXELS, x, x.reshape(4, 2, 1, 1))
    with pytest.raises(ValueError, match=r"names of references, got \['data'\]"):
        reference_table(PIXELS, KEY, x, {"data": x})


def test_training_images_are_a_row_and_copies_of_them_are_found():
    """A copy is at distance 0 of its original, and an image moved by 0.5 in both of its
    pixels at sqrt(0.5). The first training image is nearer to no sample."""
    grid = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), -1)
    train = grid.reshape(400, 1, 2, 1).astype(np.float32)
    found = find_nearest(train[30:40], train)
    np.testing.assert_array_equal(found.rows, np.arange(30, 40))
    np.testing.assert_array_equal(found.distances, 0.0)
    moved = find_nearest(train[300:] + np.float32(0.5), train)
    np.testing.assert_allclose(moved.distances, 0.5**0.5, rtol=1e-6, atol=0)
    held_out = train[::2] + np.float32(0.25)
    samples = {"copies": train[100:200], "others": train[:50] - np.float32(0.5)}
    table = reference_table(PIXELS, KEY, held_out, samples, train)
    assert [row["name"] for row in table] == [
        *("data", "gaussian", "uniform", "train", "copies", "others")
    ]
    nearest = {row["name"]: row["nearest_distance"] for row in table}
    assert nearest["train"] == nearest["copies"] == 0.0
    np.testing.assert_allclose(nearest["data"], 0.125**0.5, rtol=1e-6)
    np.testing.assert_allclose(nearest["others"], 0.5**0.5, rtol=1e-6)
    assert nearest["data"] < nearest["uniform"]


@pytest.mark.parametrize("num, names", [(60, 4), (59, 3)])
def test_held_out_images_alone_are_the_reference_where_there_are_many(
    num, names, digits, monkeypatch
):
    monkeypatch.setattr(judging, "LEAST_HELD_OUT", 60)
    monkeypatch.setattr(
        judging, "prepare_classifier", lambda *args, **options: lambda: PIXELS
    )
    judge = make_judge(digits, num, 1)
    shown = judge.nearest(judge.train[:3])
    np.testing.assert_array_equal(quantize(shown, 17), digits.train[:3])
    rows = judge.table({"samples": judge.train})
    assert len(rows) == names + 1
    assert {row["num_samples"] for row in rows} == {num // 2 if names == 4 else num}
    if names == 4:
        # Only the noise within the levels keeps these from their originals.
        levels = (1 / 17) * 64**0.5
        assert 0.9 * levels / 3**0.5 < rows[-1]["nearest_distance"] < levels
