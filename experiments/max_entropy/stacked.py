"""stacked"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from ebmjax import metrics
from experiments.data import Images, dequantize, image_section, load_images, stacked
from experiments.judge import plots
from experiments.judge.classifier import Classifier, train_classifier
from experiments.max_entropy.players import (
    STRIDED,
    Problem,
    _bound,
    _drawn,
    _preset,
    _shown,
)


def _stacked(num_digits: int) -> dict:
    config = _preset(
        image_section("stacked_mnist", num_digits=num_digits, tuple_seed=111),
        dict(STRIDED),
        latent_dim=128,
        samples_a_mode=26,
        chunk_size=1_000,
        num_chains=1_000,
        num_shown=100,
        classifier_steps=3_000,
        min_accuracy=0.994,  # of the classifier on test images, or nothing is trained
    )
    del config["data"]["num_examples"], config["data"]["size"]
    config["objective"] |= {"score_penalty": 10.0, "reduction": "channel_mean"}
    return config


def _stacked_2() -> dict:
    config = _stacked(2)
    config["networks"] |= {"widths": (16, 32, 64, 128), "hidden_width": 128}
    config["latent_dim"] = 32
    config["optimizer"]["learning_rate"]["start"] = 2e-4
    config["optimizer"]["learning_rate"]["final"] = 2e-4
    config["train"] |= {"num_steps": 4_000, "eval_every": 1_000}
    return config


def _tuple_labels(digits: np.ndarray) -> np.ndarray:
    """`[n, num_digits]`, as numbers below `10^num_digits`."""
    return digits @ 10 ** np.arange(digits.shape[1])


def count_modes(classifier, x: np.ndarray) -> dict[str, float]:
    """Modes of stacked images `[n, height, width, num_digits]` in [-1, 1]."""
    digits = [
        classifier.log_probs(x[..., place, None]).argmax(-1)
        for place in range(x.shape[-1])
    ]
    return metrics.modes(_tuple_labels(np.stack(digits, 1)), 10 ** len(digits))


def check_evaluator(
    predicted: np.ndarray, labels: np.ndarray, num_digits: int, num: int
) -> dict[str, float]:
    """What the count makes of real digits: of all tuples, and of half of them.

    The first should find all, at the floor but for the digits' own frequencies; what
    the second finds beyond a half are the classifier's errors.

    Args:
      predicted: `[m]`, the classifier's digits of real images.
      labels: `[m]`, what they are.
      num_digits: In a tuple.
      num: Tuples to draw.
    """
    rng = np.random.RandomState(0)
    num_tuples = 10**num_digits
    anything = rng.randint(0, len(labels), (num, num_digits))
    half = rng.permutation(num_tuples)[: num_tuples // 2]
    chosen = rng.choice(half, num)[:, None] // 10 ** np.arange(num_digits) % 10
    of_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
    places = np.empty_like(chosen)
    for digit, rows in enumerate(of_digit):
        is_digit = chosen == digit
        places[is_digit] = rows[rng.randint(0, len(rows), is_digit.sum())]
    found = {}
    for name, rows in (("data", anything), ("half", places)):
        counted = metrics.modes(_tuple_labels(predicted[rows]), num_tuples)
        found |= {f"{name}_{k}": v for k, v in counted.items() if k != "kl_floor"}
    return found


class Judge(NamedTuple):
    """Digits, and what reads them in samples.

    Attributes:
      digits: The images that tuples are made of.
      classifier: Trained on them.
      accuracy: On the test images.
      predicted: Its digits of the test images.
    """

    digits: Images
    classifier: Classifier
    accuracy: float
    predicted: np.ndarray


@functools.lru_cache(maxsize=1)  # the runs of a sweep have one judge
def _judge(data_dir: str, download: bool, num_steps: int) -> Judge:
    digits = load_images("mnist", data_dir=data_dir or None, download=download)
    # The same for all seeds, which are the generator's.
    key, data_key = jax.random.split(jax.random.key(0))
    classifier = train_classifier(
        key,
        digits.train,
        digits.labels_train,
        num_classes=10,
        num_levels=digits.num_levels,
        num_steps=num_steps,
        batch_size=128,
        learning_rate=2e-3,
        width=128,
    )
    x = dequantize(data_key, digits.held_out, digits.num_levels)
    predicted = classifier.log_probs(x).argmax(-1)
    accuracy = float(np.mean(predicted == digits.labels_held_out))
    return Judge(digits, classifier, accuracy, predicted)


def _of_stacked(config, keys) -> Problem:
    section = config.data
    options = config.evaluation
    plots.check()
    judge = _judge(section.data_dir, section.download, options.classifier_steps)
    if judge.accuracy < options.min_accuracy:
        raise ValueError(
            f"the classifier is right on {judge.accuracy:.4f} of the test digits, below"
            f" evaluation.min_accuracy = {options.min_accuracy}: its errors would"
            " be counted as modes"
        )
    digits, num_digits = judge.digits, section.num_digits
    tuples = stacked.draw_tuples(len(digits.train), num_digits, section.tuple_seed)
    num_samples = options.samples_a_mode * 10**num_digits
    checks = {"classifier_accuracy": judge.accuracy} | check_evaluator(
        judge.predicted, digits.labels_held_out, num_digits, num_samples
    )

    def evaluation(nets):
        def evaluate(state, key, directory):
            energy_fn, generator_fn = _bound(nets, state)
            x, sampled = _drawn(
                config, energy_fn, generator_fn, key, num_samples, options.chunk_size
            )
            _shown_stacked(directory, x, sampled.x, options.num_shown)
            scalars = sampled.scalars | count_modes(judge.classifier, x)
            for name, chained in sampled.x.items():
                counted = count_modes(judge.classifier, chained.clip(-1, 1))
                scalars[f"{name}_chains_num_modes"] = counted["num_modes"]
                scalars[f"{name}_chains_kl_excess"] = counted["kl_excess"]
            return scalars | checks

        return evaluate

    batches = functools.partial(
        stacked.stacked_batches,
        keys.data,
        digits.train,
        tuples,
        num_levels=digits.num_levels,
    )
    return Problem((28, 28, num_digits), batches, evaluation)


def _shown_stacked(directory, x, sampled, num: int) -> None:
    """Three channels as colours; of two, or four, the digits side by side."""
    if x.shape[-1] == 3:
        _shown(directory, x, sampled, num)
        return

    def beside(images):
        return np.concatenate(np.split(images, images.shape[-1], axis=-1), axis=2)

    _shown(
        directory, beside(x[:num]), {k: beside(v[:32]) for k, v in sampled.items()}, num
    )


if __name__ == "__main__":
    main(build, __file__, sweep)
