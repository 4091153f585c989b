"""Out-of-distribution detection: is the energy higher on what is foreign?"""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import logging

from ebmjax.types import Array, Key
from experiments.data import dequantize, read_split
from experiments.judge.judge import gaussian_draws
from experiments.run.workdir import save_columns

__all__ = [
    "area_under_roc",
    "check_names",
    "foreign_images",
    "load_foreign",
    "save_energies",
    "separation",
]

NUM_NOISE = 2_000
MAX_IMAGES = 10_000


def foreign_images(
    key: Key,
    names: Sequence[str],
    train: np.ndarray,
    *,
    data_dir: str | None = None,
    download: bool = False,
) -> dict[str, Array]:
    """Returns images that are not of the training data, by name, in [-1, 1].

    Args:
      key: Key of noise and dequantisation.
      names: "uniform" (pixels on [-1, 1]), "gaussian" (a full-covariance normal fitted
        to `train`, clipped), or data sets of `_data`, whose test split is taken, or
        the split after a colon, as in "omniglot:small1".
      train: `[n, height, width, channels]` in [-1, 1].
      data_dir: Folder of the data sets.
      download: Whether they may be fetched.

    Returns:
      Name -> `[n, height, width, channels]`; a data set that is not there is left out,
      with a warning that says why.

    Raises:
      ValueError: For an unknown name, or images of another shape.
    """
    shape, found = train.shape[1:], {}
    for index, name in enumerate(names):
        name_key = jax.random.fold_in(key, index)
        if name == "uniform":
            noise = jax.random.uniform(name_key, (NUM_NOISE, *shape), minval=-1.0)
            found[name] = noise
        elif name == "gaussian":
            found[name] = gaussian_draws(name_key, train, NUM_NOISE).clip(-1, 1)
        else:
            data_set, _, split = name.partition(":")
            try:
                pixels, _ = read_split(
                    data_set,
                    split or "test",
                    data_dir=data_dir,
                    size=shape[0],
                    download=download,
                )
            except (FileNotFoundError, ImportError) as error:
                # An extra of the evaluation; the run does not depend on it.
                logging.warning("no out-of-distribution score on %s: %s", name, error)
                continue
            found[name] = dequantize(name_key, pixels[:MAX_IMAGES], 256)
        if found[name].shape[1:] != shape:
            raise ValueError(
                f"foreign images {name!r} are {found[name].shape[1:]}, the model's"
                f" {shape}"
            )
    return found


def load_foreign(key: Key, config, train: np.ndarray) -> dict[str, Array]:
    """`foreign_images` that `evaluation.out_of_distribution` names, from where the
    section `data` has its own."""
    return foreign_images(
        key,
        config.evaluation.out_of_distribution,
        train,
        data_dir=config.data.get("data_dir") or None,
        download=config.data.get("download", False),
    )


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError if one is no name for `foreign_images`."""
    from experiments.data import images

    known = ("uniform", "gaussian", *images.SOURCES)
    if unknown := sorted({name.partition(":")[0] for name in names} - set(known)):
        raise ValueError(
            f"evaluation.out_of_distribution must be of {known}, got {unknown}"
        )


def save_energies(directory: pathlib.Path, found: Mapping[str, np.ndarray]) -> None:
    """Writes `scores.csv`, which has a row for each example: its data and its energy.

    Args:
      directory: Folder of the file.
      found: Name of the data -> energies `[n]`.
    """
    names = np.repeat([*found], [len(energies) for energies in found.values()])
    energies = np.concatenate([*found.values()])
    save_columns(directory / "scores.csv", {"data": names, "energy": energies})


def separation(of_known: np.ndarray, of_foreign: np.ndarray) -> float:
    """Returns the probability that a foreign example has the higher score.

    Args:
      of_known: Scores `[n]`.
      of_foreign: Scores `[m]`.
    """
    from sklearn.metrics import roc_auc_score

    is_foreign = np.r_[np.zeros(len(of_known)), np.ones(len(of_foreign))]
    return float(roc_auc_score(is_foreign, np.r_[of_known, of_foreign]))


def area_under_roc(
    energies: Callable[[Array], np.ndarray],
    known: Array,
    foreign: dict[str, Array],
    directory: pathlib.Path,
) -> dict[str, float]:
    """Returns the probability, by name, that a foreign image has more energy than a
    known one.

    The energies of all images are written to `scores.csv` in `directory`.
    """
    of_known, scalars = energies(known), {}
    found = {"held_out": of_known}
    for name, images in foreign.items():
        of_foreign = found[name] = energies(images)
        scalars[f"auroc_{name}"] = separation(of_known, of_foreign)
    save_energies(directory, found)
    return scalars
