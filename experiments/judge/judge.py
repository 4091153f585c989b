"""Judge of the samples of a data set.

The classifier is trained on the same data as the model under test and is no Inception
network: its numbers compare samples with each other and with the references of
`reference_table`, and with nothing that is published. `make_judge` is the same for
every experiment, method and seed, so that samples of one data set compare across them.
Images without labels are compared by their pixels, see `pixels`.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import metrics
from ebmjax.types import Array, Key
from experiments.data import Images, dequantize, in_chunks, middles
from experiments.judge import plots
from experiments.judge.classifier import CONFIDENT, Classifier, accuracy
from experiments.judge.pixels import NUM_PAIRED, Pixels, fit_pixels, pixel_quality
from experiments.judge.store import prepare_classifier
from experiments.run.workdir import record_table, say

_JUDGE_SEED = 20_190_422  # of no run: what judges is independent of what is judged

LEAST_HELD_OUT = 4_000
"""Least number of held-out images for which they alone are the reference. A distance to
fewer is biased too much, and training images are then part of the reference."""

NUM_NEAREST = 1_000  # samples of a set whose nearest training images are looked for


def sample_quality(
    classifier: Classifier | Pixels, samples: Array, data: Array
) -> dict[str, float]:
    """Compares samples with data, in the features of the classifier.

    Args:
      classifier: Trained on the same kind of data; or their pixels, which give what
        `pixel_quality` returns.
      samples: `[n, height, width, channels]`, scaled as the data are.
      data: `[m, height, width, channels]`.

    Returns:
      `classifier_frechet_distance`, between the classifier's features of samples and
      data: not an FID, and biased upwards for few examples, see
      `metrics.frechet_distance`; `confident_share`, of the samples whose most probable
      class has a probability above 0.9, which says little alone, as a classifier can be
      sure of noise; and `class_share_<k>`, of the samples whose most probable class is
      `k`.
    """
    if samples.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"samples and data must have images of one shape, got {samples.shape[1:]}"
            f" and {data.shape[1:]}"
        )
    if isinstance(classifier, Pixels):
        return pixel_quality(classifier, samples, data)
    log_probs = classifier.log_probs(samples)
    num_classes = log_probs.shape[-1]
    shares = np.bincount(log_probs.argmax(-1), minlength=num_classes) / len(samples)
    return {
        "classifier_frechet_distance": metrics.frechet_distance(
            classifier.features(samples), classifier.features(data)
        ),
        "confident_share": float(np.mean(log_probs.max(-1) > math.log(CONFIDENT))),
    } | {f"class_share_{k}": float(share) for k, share in enumerate(shares)}


def gaussian_draws(key: Key, data: np.ndarray, num: int) -> np.ndarray:
    """Returns draws from the normal distribution with the data's mean and full
    covariance."""
    flat = data.reshape(len(data), -1).astype(np.float64)
    mean = flat.mean(0)
    centred = (flat - mean) / (len(flat) - 1) ** 0.5
    if centred.shape[1] <= len(flat):
        eigenvalues, vectors = np.linalg.eigh(centred.T @ centred)
        root = vectors * np.sqrt(eigenvalues.clip(0))
    else:  # fewer examples than dimensions: their span is all there is
        root = centred.T
    noise = np.asarray(jax.random.normal(key, (num, root.shape[1])), np.float64)
    return (mean + noise @ root.T).reshape(num, *data.shape[1:]).astype(np.float32)


class Neighbours(NamedTuple):
    """Nearest training images.

    Attributes:
      distances: Euclidean distances to them, `[n]`, in units of x.
      rows: Their rows among the training images, `[n]`.
    """

    distances: np.ndarray
    rows: np.ndarray


@jax.jit
def _nearest_rows(train: Array, norms: Array, x: Array) -> Array:
    return jnp.argmin(norms[None] - 2 * x @ train.T, axis=1)


def find_nearest(x: Array, train: Array) -> Neighbours:
    """Returns the training image that is nearest to each image, by its pixels.

    Args:
      x: `[n, height, width, channels]`.
      train: `[m, height, width, channels]`, scaled in the same way.
    """
    flat = np.asarray(train, np.float32).reshape(len(train), -1)
    norms = np.sum(flat.astype(np.float64) ** 2, 1).astype(np.float32)
    bound = functools.partial(_nearest_rows, jnp.asarray(flat), jnp.asarray(norms))
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    rows = in_chunks(bound, x, 250)
    # The expanded square above has rounding that a small distance would not survive.
    return Neighbours(np.linalg.norm(x - flat[rows], axis=1), rows)


def reference_table(
    classifier: Classifier | Pixels,
    key: Key,
    data: Array,
    samples: Mapping[str, Array] | None = None,
    train: Array | None = None,
    *,
    chooses: bool = False,
    unseen: Array | None = None,
) -> list[dict[str, float | int | str]]:
    """Returns `sample_quality` of three references, and of as many sets of samples as
    given.

    The data are divided at random. One half is what all rows are compared with; the
    other is the first row, "data": what new draws of the data's law are expected to do.
    Copies of the examples, most of which a model has been trained on, would do better.
    "gaussian" has the mean and the full covariance of the data, clamped to their range:
    better than it is the least to ask of a model. "uniform" is noise over that range.

    All rows and the data that they are compared with have the same number of examples,
    the smallest there is, as the distance is biased by it; longer sets are cut.

    If the data are held out, give the training images too. They are a row, "train",
    which is what copies of them achieve, and all rows have `nearest_distance`, the mean
    distance of the first images to their nearest training images. It is much smaller
    than that of the data for a model that has memorised its training images.

    Args:
      classifier: As for `sample_quality`.
      key: For the division and the references.
      data: `[m, height, width, channels]`, scaled as the samples are.
      samples: Name -> `[n, height, width, channels]`.
      train: Training images `[k, height, width, channels]`, scaled as the samples are,
        if none of them is among the data, or if `unseen` is given.
      chooses: Whether each row has `distance_to_choose`, which is the Frechet distance
        to the other half of the data. A row that is chosen because it is the smallest
        has an unbiased Frechet distance.
      unseen: Held-out images, `[j, height, width, channels]`, if the data have training
        images among them. The `nearest_distance` of "data" is then theirs, and "train"
        is no row.

    Returns:
      One dict for each row, with `name`, `num_samples`, the results of
      `sample_quality`, and `nearest_distance` if there are training images.

    Raises:
      ValueError: If a set of samples has the name of a reference.
    """
    samples = dict(samples or {})
    order_key, gaussian_key, uniform_key = jax.random.split(key, 3)
    data = np.asarray(data)
    num = min([len(data) // 2, *(len(x) for x in samples.values())])
    if train is not None:
        num = min(num, len(train))
    order = np.asarray(jax.random.permutation(order_key, len(data)))
    compared, other = data[order[:num]], data[order[num : 2 * num]]
    low, high = data.min(), data.max()
    uniform = jax.random.uniform(uniform_key, other.shape, minval=low, maxval=high)
    references = {
        "data": other,
        "gaussian": gaussian_draws(gaussian_key, data, num).clip(low, high),
        "uniform": np.asarray(uniform),
    }
    if train is not None and unseen is None:
        references["train"] = np.asarray(train[:num])
    taken = sorted(references.keys() & samples.keys())
    if taken:
        raise ValueError(f"samples must not have the names of references, got {taken}")
    rows = []
    sets = references | samples
    for name, x in sets.items():
        row = {"name": name, "num_samples": num}
        row |= sample_quality(classifier, x[:num], compared)
        if chooses:
            row["distance_to_choose"] = metrics.frechet_distance(
                classifier.features(x[:num]), classifier.features(other)
            )
        rows.append(row)
    if train is not None:
        shown = {name: x[: min(num, NUM_NEAREST)] for name, x in sets.items()}
        if unseen is not None:
            shown["data"] = unseen[:NUM_NEAREST]
        # All sets together, because the training images may be many to go through.
        found = find_nearest(np.concatenate([*shown.values()]), train).distances
        ends = np.cumsum([len(x) for x in shown.values()])
        for row, distances in zip(rows, np.split(found, ends[:-1]), strict=True):
            row["nearest_distance"] = float(distances.mean())
    return rows


class Judge(NamedTuple):
    """Comparison of samples with a data set.

    Attributes:
      train: First examples of those trained on, `[n, height, width, channels]`, scaled.
      held_out: The same of those held out.
      table: `table(name -> samples, chooses=False) -> rows`, `reference_table` of them
        and of the held-out examples, or of both sets together if fewer than
        `LEAST_HELD_OUT` are held out. The first call loads or trains the classifier.
        For images without labels the rows have what `pixel_quality` returns, and
        `nearest_distance`.
      distance: Name of the Frechet distance in the rows.
      accuracy: `accuracy() -> share` of the held-out examples that the classifier
        knows; None for images without labels.
      nearest: `nearest(images) -> images`, the training images that are nearest to
        them, without the noise within their levels.
    """

    train: np.ndarray
    held_out: np.ndarray
    table: Callable[..., list[dict]]
    distance: str
    accuracy: Callable[[], float] | None
    nearest: Callable[[Array], np.ndarray]


def make_judge(data: Images, num_examples: int, num_steps: int) -> Judge:
    """Returns the judge of a data set: a function of these arguments and of no seed.

    Its classifier is loaded or trained when it is first needed: see `store`.

    Args:
      data: Images, with labels or without.
      num_examples: First images of those trained on, and of those held out, that
        samples are compared with.
      num_steps: Number of updates of the classifier, if the images have labels; 0 for
        none, in which case neither `table` nor `accuracy` can be called.
    """
    has_labels = data.labels_train is not None
    data_key, classifier_key, reference_key = jax.random.split(
        jax.random.key(_JUDGE_SEED), 3
    )
    train_images, held_out = (
        np.asarray(
            dequantize(
                jax.random.fold_in(data_key, index),
                images[:num_examples],
                data.num_levels,
            )
        )
        for index, images in enumerate((data.train, data.held_out))
    )

    if not has_labels:

        @functools.cache
        def classifier():
            say(
                "the images have no labels: samples are judged by their pixels, not by"
                " a classifier"
            )
            num = min(len(train_images), NUM_PAIRED)
            key = jax.random.fold_in(reference_key, 1)
            normal = gaussian_draws(key, train_images, num).clip(-1, 1)
            return fit_pixels(train_images, normal)

    elif num_steps:
        classifier = prepare_classifier(
            classifier_key,
            data.train,
            data.labels_train,
            num_classes=data.num_classes,
            num_levels=data.num_levels,
            num_steps=num_steps,
        )

    @functools.cache
    def all_train():
        return middles(data.train, data.num_levels)

    def table(samples, chooses=False):
        train = unseen = None
        if len(held_out) >= LEAST_HELD_OUT:
            examples, train = held_out, all_train()
        else:
            examples = np.concatenate([train_images, held_out])
            if not has_labels:
                train, unseen = all_train(), held_out
        return reference_table(
            classifier(),
            reference_key,
            examples,
            samples,
            train,
            chooses=chooses,
            unseen=unseen,
        )

    def known_share():
        return accuracy(classifier(), held_out, data.labels_held_out[:num_examples])

    return Judge(
        train=train_images,
        held_out=held_out,
        table=table,
        distance=f"{'classifier' if has_labels else 'pixel'}_frechet_distance",
        accuracy=known_share if has_labels else None,
        nearest=lambda x: all_train()[find_nearest(x, all_train()).rows],
    )


def record_quality(
    directory: pathlib.Path, judge: Judge, *sets: Mapping[str, Array]
) -> dict[str, float]:
    """Writes the table of samples, and a picture of the first 32 of them with the
    nearest training images, and returns the table as scalars.

    Args:
      directory: Folder of `quality.md` and `nearest.png`.
      judge: Judge of the data.
      *sets: Name -> `[n, height, width, channels]`, clipped to [-1, 1]. All samples of
        one set are cut to the number of its smallest. The references are those of the
        first set.
    """
    first = np.asarray(next(iter(sets[0].values()))[:32])
    panels = {"samples": first, "nearest training images": judge.nearest(first)}
    plots.image_panels(directory / "nearest.png", panels, columns=16)
    rows = judge.table(sets[0])
    for samples in sets[1:]:
        rows += [row for row in judge.table(samples) if row["name"] in samples]
    return record_table(directory / "quality.md", rows)
