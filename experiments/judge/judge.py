"""What samples of a data set are compared with.

The classifier is trained on the same data as the model under test and is no Inception
network: its numbers compare samples with each other and with the references of
`reference_table`, and with nothing that is published. `make_judge` is the same for
every experiment, method and seed, so that samples of one data set compare across them.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from ebmjax import metrics
from ebmjax.types import Array, Key
from experiments.data import Images, dequantize
from experiments.judge.classifier import CONFIDENT, Classifier, accuracy
from experiments.judge.store import prepare_classifier

_JUDGE_SEED = 20_190_422  # of no run: what judges is independent of what is judged


def sample_quality(
    classifier: Classifier, samples: Array, data: Array
) -> dict[str, float]:
    """How samples compare with data, as the classifier sees them.

    Args:
      classifier: Trained on the same kind of data.
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
    """Draws from the normal distribution with the data's mean and full covariance."""
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


def reference_table(
    classifier: Classifier,
    key: Key,
    data: Array,
    samples: Mapping[str, Array] | None = None,
) -> list[dict[str, float | int | str]]:
    """`sample_quality` of three references, and of as many sets of samples as given.

    The data are divided at random. One half is what all rows are compared with; the
    other is the first row, "data": what new draws of the data's law are expected to do.
    Copies of the examples, most of which a model has been trained on, would do better.
    "gaussian" has the mean and the full covariance of the data, clamped to their range:
    better than it is the least to ask of a model. "uniform" is noise over that range.

    All rows and the data that they are compared with have the same number of examples,
    the smallest there is, as the distance is biased by it; longer sets are cut.

    Args:
      classifier: Trained on the same kind of data.
      key: For the division and the references.
      data: `[m, height, width, channels]`, scaled as the samples are.
      samples: Name -> `[n, height, width, channels]`.

    Returns:
      A dict a row: `name`, `num_samples`, then what `sample_quality` returns.

    Raises:
      ValueError: If a set of samples has the name of a reference.
    """
    samples = dict(samples or {})
    order_key, gaussian_key, uniform_key = jax.random.split(key, 3)
    data = np.asarray(data)
    num = min([len(data) // 2, *(len(x) for x in samples.values())])
    order = np.asarray(jax.random.permutation(order_key, len(data)))
    compared, other = data[order[:num]], data[order[num : 2 * num]]
    low, high = data.min(), data.max()
    uniform = jax.random.uniform(uniform_key, other.shape, minval=low, maxval=high)
    references = {
        "data": other,
        "gaussian": gaussian_draws(gaussian_key, data, num).clip(low, high),
        "uniform": np.asarray(uniform),
    }
    taken = sorted(references.keys() & samples.keys())
    if taken:
        raise ValueError(f"samples must not have the names of references, got {taken}")
    return [
        {"name": name, "num_samples": num}
        | sample_quality(classifier, x[:num], compared)
        for name, x in (references | samples).items()
    ]


class Judge(NamedTuple):
    """What samples of a data set are compared with, and how.

    Attributes:
      train: First examples of those trained on, `[n, height, width, channels]`, scaled.
      held_out: The same of those held out.
      table: `table(name -> samples) -> rows`, `reference_table` of them and of both
        sets of examples together. The first call loads or trains the classifier.
      accuracy: `accuracy() -> share` of the held-out examples that the classifier
        knows.
    """

    train: np.ndarray
    held_out: np.ndarray
    table: Callable[[Mapping[str, Array]], list[dict]]
    accuracy: Callable[[], float]


def make_judge(data: Images, num_examples: int, num_steps: int) -> Judge:
    """The judge of a data set: a function of these arguments and of no seed.

    Its classifier is loaded or trained when it is first needed: see `store`.

    Args:
      data: Images, with labels unless `num_steps` is 0.
      num_examples: First images of those trained on, and of those held out, that
        samples are compared with.
      num_steps: Number of updates of the classifier; 0 for none, in which case neither
        `table` nor `accuracy` can be called.

    Raises:
      ValueError: If a classifier is needed and the data have no labels for one.
    """
    if num_steps and data.labels_train is None:
        raise ValueError(
            "evaluation.classifier_steps must be 0 for images without labels, got"
            f" {num_steps}"
        )
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

    if num_steps:
        classifier = prepare_classifier(
            classifier_key,
            data.train,
            data.labels_train,
            num_classes=data.num_classes,
            num_levels=data.num_levels,
            num_steps=num_steps,
        )

    def table(samples):
        examples = np.concatenate([train_images, held_out])
        return reference_table(classifier(), reference_key, examples, samples)

    return Judge(
        train=train_images,
        held_out=held_out,
        table=table,
        accuracy=lambda: accuracy(
            classifier(), held_out, data.labels_held_out[:num_examples]
        ),
    )
