r"""Maximum entropy generators of stacked digits, whose thousand modes can be counted.

Paper: Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
energy-based models", https://arxiv.org/abs/1901.08508.
Claim checked: with a bound on its entropy the generator covers all modes of images of
three digits of MNIST, one in each channel; a GAN misses some.

    python -m experiments.max_entropy.stacked --workdir=runs/stacked
    python -m experiments.max_entropy.stacked --workdir=runs/gan \
        --config=stacked_mnist,gan
    python -m experiments.max_entropy.stacked --workdir=runs/ablation --sweep

Presets: `stacked_mnist_2` (100 modes, twenty minutes of a CPU core), and for GPU or TPU
the paper's scale, `stacked_mnist` (1,000 modes) and `stacked_mnist_4` (10,000). After a
comma stands the method: `max_entropy`, the default, `wgan_gp` or `gan`. The sweep is
the method, the method without a part, and the baselines.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import metrics
from experiments.data import (
    Images,
    dequantize,
    digest,
    image_section,
    load_images,
    stacked,
)
from experiments.judge import plots
from experiments.judge.classifier import Classifier
from experiments.judge.store import prepare_classifier
from experiments.max_entropy.model import (
    bind_networks,
    draw_and_move,
    load_networks,
    make_networks,
    plot_images,
)
from experiments.max_entropy.players import (
    BASELINES,
    ablate,
    evaluation_chains,
    image_training,
    make_config,
    make_experiment,
)
from experiments.run import cli
from experiments.run.config import check_counts, train_section
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params
from experiments.run.sweep import Cell, Sweep


def make_stacked(num_digits: int = 3) -> dict:
    """Returns the problem's default, the paper's training of images."""
    data = image_section("stacked_mnist") | {
        "num_digits": num_digits,  # channels of an image; 10^num_digits modes
        "tuple_seed": 111,  # of the tuples, drawn once: they are the data set
    }
    del data["num_examples"], data["size"]
    return {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": data,
        "networks": {
            "name": "strided",  # or "convnet", with its own options
            "widths": (64, 128, 256, 512),  # channels of the energy's maps
            "hidden_width": 512,  # of the statistics network
            "is_synchronized": True,  # whether batch statistics are of all devices
            "compute_dtype": "float32",  # or "bfloat16"; parameters stay float32
        },
        "latent_dim": 128,  # paper: the length of z
        **image_training(),
        "train": train_section(100_000, eval_every=1_000),  # of the generator
        "evaluation": {
            "samples_a_mode": 26,  # draws of the generator for each mode
            "chunk_size": 1_000,  # draws at a time
            "num_saved": 1_000,  # first draws, in samples.npz
            "num_chains": 1_000,  # of every kind
            "num_shown": 100,  # draws in the picture
            "classifier_steps": 3_000,  # of the training of the one that reads digits
            "min_accuracy": 0.994,  # on test images, or nothing is trained; 0 for any
            **evaluation_chains(),
        },
    }


def make_stacked_2() -> dict:
    config = make_stacked(2)
    config["networks"] |= {"widths": (16, 32, 64, 128), "hidden_width": 128}
    config["latent_dim"] = 32
    config["optimizer"]["learning_rate"] |= {"start": 2e-4, "final": 2e-4}
    config["train"] |= {"num_steps": 4_000}
    return config


PRESETS = {
    "stacked_mnist_2": make_stacked_2,
    "stacked_mnist": make_stacked,
    "stacked_mnist_4": lambda: make_stacked(4),
}


def get_config(preset: str = "stacked_mnist_2") -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,method"`."""
    return make_config(PRESETS, preset)


# --- counting modes ------------------------------------------------------------------


def number_tuples(digits: np.ndarray) -> np.ndarray:
    """Returns a number below `10^num_digits` for each row of `[n, num_digits]`."""
    return digits @ 10 ** np.arange(digits.shape[1])


def count_modes(classifier, x: np.ndarray) -> dict[str, float]:
    """Counts the modes of stacked images `[n, height, width, num_digits]`."""
    digits = [
        classifier.log_probs(x[..., place, None]).argmax(-1)
        for place in range(x.shape[-1])
    ]
    return metrics.modes(number_tuples(np.stack(digits, 1)), 10 ** len(digits))


def check_evaluator(
    predicted: np.ndarray, labels: np.ndarray, num_digits: int, num: int
) -> dict[str, float]:
    """Counts the modes of real digits: of all tuples, and of half of them.

    The first count should find all, at the floor except for the digits' frequencies.
    What the second finds beyond a half are the classifier's errors.

    Args:
      predicted: `[m]`, the classifier's digits of real images.
      labels: `[m]`, their true digits.
      num_digits: Number of digits in a tuple.
      num: Number of tuples to draw.
    """
    rng = np.random.RandomState(0)
    num_tuples = 10**num_digits
    anything = rng.randint(0, len(labels), (num, num_digits))
    half = rng.permutation(num_tuples)[: num_tuples // 2]
    chosen = rng.choice(half, num)[:, None] // 10 ** np.arange(num_digits) % 10
    rows_of_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
    places = np.empty_like(chosen)
    for digit, rows in enumerate(rows_of_digit):
        is_digit = chosen == digit
        places[is_digit] = rows[rng.randint(0, len(rows), is_digit.sum())]
    found = {}
    for name, rows in (("data", anything), ("half", places)):
        counted = metrics.modes(number_tuples(predicted[rows]), num_tuples)
        found |= {f"{name}_{k}": v for k, v in counted.items() if k != "kl_floor"}
    return found


class DigitReader(NamedTuple):
    """Digits, and a classifier that reads them in samples.

    The first call of any of the functions loads or trains the classifier.

    Attributes:
      digits: The images that tuples are made of.
      classifier: `classifier() -> Classifier`, trained on them.
      predicted: `predicted() -> [m]`, its digits of the test images.
      accuracy: `accuracy() -> share` of these that are right.
    """

    digits: Images
    classifier: Callable[[], Classifier]
    predicted: Callable[[], np.ndarray]
    accuracy: Callable[[], float]


@functools.lru_cache(maxsize=1)  # the runs of a sweep have one reader
def make_reader(data_dir: str, download: bool, num_steps: int) -> DigitReader:
    """Returns a reader of MNIST, the same one for all seeds of the generator."""
    digits = load_images("mnist", data_dir=data_dir or None, download=download)
    key, data_key = jax.random.split(jax.random.key(0))
    classifier = prepare_classifier(
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

    @functools.cache
    def predicted():
        x = dequantize(data_key, digits.held_out, digits.num_levels)
        return classifier().log_probs(x).argmax(-1)

    def accuracy():
        return float(np.mean(predicted() == digits.labels_held_out))

    return DigitReader(digits, classifier, predicted, accuracy)


# --- the problem ---------------------------------------------------------------------


def event_shape(config) -> tuple[int, int, int]:
    """Returns the shape of an image."""
    return 28, 28, config.data.num_digits


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment of a config.

    The accuracy of the classifier is checked before training, so that no hours are lost
    when it is too low. The classifier is therefore loaded or trained here, unless every
    accuracy is allowed.
    """
    section, options = config.data, config.evaluation
    plots.check()
    counts = ("samples_a_mode", "chunk_size", "num_saved", "num_chains", "num_shown")
    check_counts("evaluation", options, **dict.fromkeys(counts, 1))
    reader = make_reader(section.data_dir, section.download, options.classifier_steps)
    digits = reader.digits
    tuples = stacked.draw_tuples(
        len(digits.train), section.num_digits, section.tuple_seed
    )
    nets = make_networks(config, event_shape(config))
    experiment = make_experiment(
        config,
        keys,
        nets,
        batches=functools.partial(
            stacked.stacked_batches,
            keys.data,
            digits.train,
            tuples,
            num_levels=digits.num_levels,
        ),
        evaluate=make_evaluation(config, reader, nets),
        facts={},
    )._replace(data_digest=digest(digits.train, digits.held_out))
    # This comes last, because it may take minutes.
    if options.min_accuracy > 0 and reader.accuracy() < options.min_accuracy:
        raise ValueError(
            f"the classifier is right on {reader.accuracy():.4f} of the test digits,"
            f" below evaluation.min_accuracy = {options.min_accuracy}: its errors would"
            " be counted as modes"
        )
    return experiment


def make_evaluation(config, reader: DigitReader, nets):
    """Returns `evaluate(state, key, directory) -> scalars`."""
    options, num_digits = config.evaluation, config.data.num_digits
    num_samples = options.samples_a_mode * 10**num_digits

    @functools.cache
    def checks():
        return {"classifier_accuracy": reader.accuracy()} | check_evaluator(
            reader.predicted(), reader.digits.labels_held_out, num_digits, num_samples
        )

    def evaluate(state, key, directory):
        x, sampled = draw_and_move(
            config,
            *bind_networks(nets, evaluated_params(state), state.model_state),
            key,
            num_samples,
            directory / "samples.npz",
            num_saved=options.num_saved,
            chunk_size=options.chunk_size,
        )
        num = options.num_shown
        shown = {name: images[:32] for name, images in sampled.x.items()}
        if num_digits == 3:  # channels as colours
            plot_images(directory, x[:num], shown, num)
        else:
            shown = {name: lay_side_by_side(images) for name, images in shown.items()}
            plot_images(directory, lay_side_by_side(x[:num]), shown, num)
        classifier = reader.classifier()
        scalars = sampled.scalars | count_modes(classifier, x)
        for name, chained in sampled.x.items():
            counted = count_modes(classifier, chained.clip(-1, 1))
            scalars[f"{name}_chains_num_modes"] = counted["num_modes"]
            scalars[f"{name}_chains_kl_excess"] = counted["kl_excess"]
        return scalars | checks()

    return evaluate


def lay_side_by_side(images: np.ndarray) -> np.ndarray:
    """Returns images of one channel, `[n, height, num_digits * width, 1]`."""
    return np.concatenate(np.split(images, images.shape[-1], axis=-1), axis=2)


COLUMNS = ("num_modes", "num_robust_modes", "kl", "kl_floor", "kl_excess")


def sweep(preset: str) -> Sweep:
    """Returns the plan of the ablation and the baselines, with three seeds."""
    cells, (name, _, method) = ablate(preset), preset.partition(",")
    if method not in BASELINES:
        del cells["neither"]
        name = name or "stacked_mnist_2"
        cells |= {baseline: Cell(f"{name},{baseline}") for baseline in BASELINES}
    return Sweep(cells, COLUMNS, num_seeds=3)


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model: `exp(-energy_fn(x))` is its density up to a constant,
    of images in [-1, 1], and `sample` makes draws of its generator."""
    return load_networks(config, event_shape(config), params, model_state)


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
