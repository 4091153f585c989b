r"""Compares trained models of images by one judge: samples, and foreign images.

    python -m experiments.compare --models=runs/a,runs/b --data_dir=DIR --out=runs/both

The models are whatever `experiments.load` takes, all of one data set. The samples of a
run's last evaluation are used if they are `--num` or more, and are drawn otherwise.
They are compared with held-out images by the classifier of `experiments.judge`. The
folder gets `quality.md` and `samples.png`.

`detection.md` says how often a foreign image has a higher score than a held-out one.
The score is the energy. A score-based model that has none is judged by its error as a
denoiser, which is `|std score(x + std n, std) + n|^2` summed over noises of four sizes.
"""

import argparse
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from ebmjax.checks import check_count
from ebmjax.types import Array, Key
from experiments import load
from experiments.data import in_chunks, load_section
from experiments.judge import plots
from experiments.judge.detection import foreign_images, separation
from experiments.judge.judge import Judge, make_judge
from experiments.run.cache import keep_programs
from experiments.run.errors import ending_in_one_line
from experiments.run.experiment import Trained
from experiments.run.files import check_writable
from experiments.run.workdir import format_table, write_atomically

CLASSIFIER_STEPS = 4_000
NUM_EXAMPLES = 10_000  # held-out images of the reference
NOISE_SCALES = (0.1, 0.2, 0.5, 1.0)
FOREIGN = (
    "fashion_mnist",
    "mnist",
    "kmnist",
    "omniglot:small1",
    "uniform",
    "gaussian",
)
FLIPPED = "flipped"  # the held-out images, upside down
CHUNK = 250  # images at a time


def compare(
    names: Sequence[str],
    out: pathlib.Path,
    *,
    num: int = 2_000,
    num_foreign: int = 1_000,
    data_dir: str | None = None,
) -> tuple[list[dict], list[dict]]:
    """Writes the tables and the picture of several trained models, and returns the
    tables.

    Args:
      names: Whatever `experiments.load` takes. The last two parts of a path name a row.
      out: Folder to write.
      num: Samples of each model.
      num_foreign: Images of each foreign data set, and of the held-out ones.
      data_dir: Folder of the data sets.

    Returns:
      The rows of `quality.md` and of `detection.md`.

    Raises:
      ValueError: If there is no model, two have one name, a model has no sampler, or
        the models are of several data sets.
      FileNotFoundError: If a model or the data are missing.
    """
    check_count("--num", num, 1)
    titles = ["/".join(pathlib.PurePath(name).parts[-2:]) for name in names]
    if not all(names) or not names or len(set(titles)) < len(titles):
        raise ValueError(f"--models must be one or more different models, got {titles}")
    models = {title: load(name) for title, name in zip(titles, names)}
    data_sets = {title: name_data(trained) for title, trained in models.items()}
    if tables := [title for title, name in data_sets.items() if not name]:
        raise ValueError(f"the models must be of images, and {tables} are not")
    if len(set(data_sets.values())) > 1:
        raise ValueError(f"the models must be of one data set, got {data_sets}")
    if silent := [title for title, x in models.items() if x.sample is None]:
        raise ValueError(f"every model must have a sampler, which {silent} have not")
    section = ConfigDict(models[titles[0]].config.data.to_dict())
    name = section.name
    if data_dir is not None and "data_dir" in section:
        section.data_dir = data_dir
    data = load_section(section)
    check_writable(out / "quality.md")
    judge = make_judge(data, NUM_EXAMPLES, CLASSIFIER_STEPS)
    key = jax.random.key(0)
    samples, seconds = {}, {}
    for title, model in zip(titles, names):
        begin = time.monotonic()
        found = find_samples(model, num)
        if found is None:
            found = draw(models[title], key, num)
            seconds[title] = (time.monotonic() - begin) * 1_000 / num
        samples[title] = np.asarray(found).clip(-1, 1)
    quality = measure_quality(judge, samples)
    for row in quality:
        if row["name"] in models:
            row["parameters"] = count_parameters(models[row["name"]])
            row["seconds_for_1000"] = seconds.get(row["name"], "-")
    detection = measure_detection(models, judge, key, name, num_foreign, data_dir)
    write_atomically(out / "quality.md", format_table(quality))
    write_atomically(out / "detection.md", format_table(detection))
    shown = {title: x[:20] for title, x in samples.items()}
    shown["held-out images"] = judge.held_out[:20]
    plots.image_panels(out / "samples.png", shown, columns=20)
    return quality, detection


def name_data(trained: Trained) -> str:
    """Returns the name of a model's data with what else tells them apart; "" if they
    are no images."""
    section = trained.config.get("data", {})
    if "num_examples" not in section:  # as `load_section` needs it
        return ""
    told = [x for x in ("path", "size", "crop", "channels") if section.get(x)]
    return ", ".join([section["name"], *(f"{x}={section[x]}" for x in told)])


def find_samples(name: str, num: int) -> np.ndarray | None:
    """Returns the first `num` samples of a run's last evaluation, if it has so many."""
    path = pathlib.Path(name) / "samples.npz"
    if not path.is_file():
        return None
    with np.load(path) as found:
        samples = found["samples"]
    return samples[:num] if len(samples) >= num else None


def draw(trained: Trained, key: Key, num: int) -> np.ndarray:
    """Returns `num` samples, drawn 500 at a time so that memory does not grow."""
    parts = []
    for first in range(0, num, 500):
        part_key, size = jax.random.fold_in(key, first), min(500, num - first)
        parts.append(np.asarray(trained.sample(part_key, size)))
    return np.concatenate(parts)


def count_parameters(trained: Trained) -> int:
    """Returns the number of parameters of all networks of a model."""
    return sum(np.size(leaf) for leaf in jax.tree.leaves(trained.params))


def measure_quality(judge: Judge, samples: Mapping[str, Array]) -> list[dict]:
    """Returns the judge's rows, with the classes' shares summarised by their ends.

    Images without labels have no classes, and their rows no columns of classes.
    """
    rows = judge.table(samples)
    (reference,) = [row for row in rows if row["name"] == "gaussian"]
    shares = [name for name in rows[0] if name.startswith("class_share_")]

    def summarise(row):
        summary = {
            "name": row["name"],
            "num_samples": row["num_samples"],
            "frechet_distance": row[judge.distance],
            "percent_of_gaussian": 100
            * row[judge.distance]
            / reference[judge.distance],
        }
        if shares:
            summary |= {
                "confident_share": row["confident_share"],
                "rarest_class": min(row[name] for name in shares),
                "commonest_class": max(row[name] for name in shares),
            }
        nearest = row.get("nearest_distance", "-")
        return summary | {
            "nearest_distance": nearest,
            "parameters": "-",
            "seconds_for_1000": "-",
        }

    return [summarise(row) for row in rows]


def measure_detection(
    models: Mapping[str, Trained],
    judge: Judge,
    key: Key,
    name: str,
    num: int,
    data_dir: str | None,
) -> list[dict]:
    """Returns a row for each model, with the area under the curve of each data set."""
    wanted = [other for other in FOREIGN if other != name]
    foreign = foreign_images(key, wanted, judge.train, data_dir=data_dir)
    foreign[FLIPPED] = judge.held_out[:, ::-1]
    rows = []
    for title, trained in models.items():
        kind, score = find_score(trained, jax.random.fold_in(key, 1))
        known = in_chunks(score, judge.held_out[:num], CHUNK)
        areas = {
            other: separation(known, in_chunks(score, np.asarray(images[:num]), CHUNK))
            for other, images in foreign.items()
        }
        rows.append({"name": title, "score": kind} | areas)
    return rows


def find_score(trained: Trained, key: Key) -> tuple[str, Callable[[Array], Array]]:
    """Returns the name of a score, and `score(images) -> [n]`, which is higher for
    images that are foreign."""
    if trained.log_prob is None or trained.score_fn is None:
        return "energy", jax.jit(jax.vmap(trained.energy_fn))

    @jax.jit
    def errors(x: Array) -> Array:
        def of_scale(index, scale):
            noise = jax.random.normal(jax.random.fold_in(key, index), x.shape)
            found = jax.vmap(trained.score_fn, (0, None))(x + scale * noise, scale)
            return jnp.sum((scale * found + noise) ** 2, axis=(1, 2, 3))

        scales = enumerate(jnp.asarray(NOISE_SCALES))
        return sum(of_scale(index, scale) for index, scale in scales)

    return "denoising error", errors


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", required=True, help="models with commas between")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--num", type=int, default=2_000, help="samples each [2000]")
    parser.add_argument("--data_dir", help="folder of the data sets")
    found = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    keep_programs()
    with ending_in_one_line():
        tables = compare(
            found.models.split(","),
            pathlib.Path(found.out),
            num=found.num,
            data_dir=found.data_dir,
        )
        for table in tables:
            print(format_table(table))


if __name__ == "__main__":
    main()
