r"""Scores of your own examples by a trained model, one row for each of them.

    python -m experiments.score --workdir=runs/mine --csv=all.csv
    python -m experiments.score --workdir=runs/digits --images=images.npy \
        --out=scores.csv

The file that is written has a column for each function of the model, in the order of
the examples: `energy`, `log_prob` in nats, and `score_norm`, the norm of the score.
`--scores=energy` writes some of them alone. A model of all noise scales has the energy
and the score of one scale, which `--noise_scale` gives.

A table must have the columns that the model was trained on, by name and in any order;
others are left out. If the run records no names, the table has numbers alone, in the
units of training. It may also be a `.npy`, `.parquet`, `.feather` or `.arrow` file.
Images are `[n, height, width]` or `[n, height, width, channels]` in a `.npy` file, or
`images` in an `.npz` file: whole numbers, which are the levels of pixels, or numbers in
[-1, 1]. The array `samples` of an `.npz` file is taken as models draw it, where pixels
may be outside of that range.
"""

import argparse
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments import load
from experiments.data import in_chunks, middles
from experiments.data.anomalies import is_lost_in_float32
from experiments.data.frames import read_frame, read_numbers
from experiments.data.own_tables import NUM_DRAWS, Encoding
from experiments.models import read_facts
from experiments.run.cache import keep_programs
from experiments.run.errors import ending_in_one_line
from experiments.run.experiment import Trained
from experiments.run.files import check_writable
from experiments.run.remote import to_path
from experiments.run.workdir import save_columns, say

SCORES = ("energy", "log_prob", "score_norm")
DIGIT_LEVELS = 17  # of a pixel of the embedded digits; images of files have 256
CHUNK = 1_000  # examples at a time, where the config does not say


def score(
    workdir: str,
    *,
    csv: str = "",
    images: str = "",
    out: str = "",
    scores: Sequence[str] = (),
    noise_scale: float | None = None,
    seed: int = 0,
    step: int | None = None,
) -> dict[str, np.ndarray]:
    """Writes the scores of examples by a trained model, and returns them.

    Args:
      workdir: Whatever `experiments.load` takes.
      csv: File of rows; see the top of this file.
      images: File of images.
      out: File to write; the examples' own with the end `.scores.csv` by default.
      scores: Some of `SCORES`; all that the model has by default.
      noise_scale: Noise scale of the energy and the score of a model of all scales.
      seed: Seed of a likelihood that is estimated.
      step: Step of the checkpoint; the newest readable one by default.

    Returns:
      Name of a column -> `[n]`.

    Raises:
      FileNotFoundError: If there is no such run, checkpoint or file.
      ValueError: If the examples are not such as the model was trained on, or the model
        has none of the functions asked for.
    """
    if bool(csv) == bool(images):
        raise ValueError("give one of --csv and --images")
    if unknown := sorted(set(scores) - set(SCORES)):
        raise ValueError(f"--scores must be some of {SCORES}, got {unknown}")
    path = to_path(out or str(pathlib.Path(csv or images).with_suffix(".scores.csv")))
    if not path.name.endswith(".csv"):
        raise ValueError(f"--out must end with .csv, got {out!r}")
    if path == to_path(csv or images):
        raise ValueError(f"--out must be another file than the examples, got {out!r}")
    facts = read_facts(workdir)
    trained = load(workdir, step=step)
    if csv:
        draws = read_csv(csv, facts)
    else:
        draws = read_images(images, facts, trained.config)[None]
    num, shape = draws.shape[1], draws.shape[2:]
    functions = find_functions(trained, shape, scores, noise_scale)
    if not functions:
        raise ValueError(
            f"{workdir} has no {' or '.join(scores or SCORES)}: its model has no such"
            " function, or one of all noise scales, which needs --noise_scale"
        )
    check_writable(path)
    size = min(trained.config.evaluation.get("chunk_size", CHUNK), num)
    key = jax.random.key(seed)
    found = {
        name: np.mean([compute(function, x, key, size) for x in draws], axis=0)
        for name, function in functions.items()
    }
    save_columns(path, found)
    say(f"{path}: {', '.join(found)} of {num} examples")
    return found


# --- examples ------------------------------------------------------------------------


def read_csv(path: str, facts: Mapping[str, Any]) -> np.ndarray:
    """Returns the rows of a file, with their columns in the order of training.

    Categories become uniform numbers, as in training: scores are means over draws.

    Args:
      path: The file.
      facts: Facts of the run.

    Returns:
      The rows, `[draws, n, columns]`; one draw without categories.

    Raises:
      ValueError: If the file is damaged, lacks a column, or has rows of another length.
    """
    shape = facts.get("event_shape") or facts.get("image_shape") or ()
    if len(shape) > 1:
        raise ValueError(
            f"the model was trained on images {tuple(shape)}: give --images, not --csv"
        )
    if "matrix" in facts:
        encoding = Encoding.from_facts(facts)
        num_draws, frame = NUM_DRAWS if encoding.categories else 1, read_frame(path)
        return np.float32([encoding.encode(frame, draw) for draw in range(num_draws)])
    names, rows, _ = read_numbers(path)
    columns, is_named = list(facts.get("columns", ())), names[0] != "column 1"
    if columns:
        if not is_named and list(names) != columns:
            raise ValueError(
                f"{path} must have the {len(columns)} columns of training, {columns},"
                f" got {len(names)} columns without names"
            )
        if missing := [name for name in columns if name not in names]:
            raise ValueError(f"{path} lacks columns that were trained on: {missing}")
        if extra := [name for name in names if name not in columns]:
            say(f"{path}: columns that were not trained on are left out: {extra}")
        rows = rows[:, [names.index(name) for name in columns]]
    elif is_named:
        raise ValueError(
            f"{path} must have numbers alone, in the units of training, because the run"
            f" records no names of columns; it has {list(names)}"
        )
    if shape and rows.shape[1:] != tuple(shape):
        raise ValueError(f"{path} must have {shape[0]} columns, got {rows.shape[1]}")
    is_whole = (rows == np.round(rows)).all(0)
    if (lost := is_lost_in_float32(rows, is_whole)).any():
        name = (columns or names)[int(lost.argmax())]
        raise ValueError(
            f"{path}: the column {name!r} has values that float32 cannot tell apart"
        )
    return rows.astype(np.float32)[None]


def read_images(
    path: str, facts: Mapping[str, Any], config: Mapping[str, Any]
) -> np.ndarray:
    """Returns images `[n, height, width, channels]` in [-1, 1] from a file.

    Args:
      path: A `.npy` or `.npz` file.
      facts: Facts of the run.
      config: Config of the run.

    Raises:
      ValueError: If the file holds no images of the shape and the scale of training.
    """
    name, x = _read_array(pathlib.Path(path).expanduser())
    shape = tuple(facts.get("event_shape") or facts.get("image_shape") or x.shape[1:])
    if len(shape) == 1 or "matrix" in facts:
        num_columns = len(facts["matrix"]) if "matrix" in facts else shape[0]
        raise ValueError(
            f"the model was trained on rows of {num_columns} columns: give --csv, not"
            " --images"
        )
    if x.ndim == 3 and (shape == x.shape[1:] or shape == (*x.shape[1:], 1)):
        x, shape = x[..., None], (*x.shape[1:], 1)
    if x.shape[1:] != shape or not len(x):
        raise ValueError(
            f"{path}: images must have the shape {shape} that the model was trained on,"
            f" got an array {x.shape}"
        )
    low, high = x.min(), x.max()
    if x.dtype.kind in "iu":
        is_digits = config["data"]["name"] == "digits"
        num_levels = config["data"].get(
            "num_levels", DIGIT_LEVELS if is_digits else 256
        )
        if low < 0 or high >= num_levels:
            raise ValueError(
                f"{path}: whole numbers must be levels from 0 to {num_levels - 1}, as"
                f" the model was trained on, got {low} to {high}"
            )
        return middles(x, num_levels)
    # Numbers from 0 on are those of images that have another scale.
    is_in_range = name == "samples" or (-1 <= low < 0 and high <= 1)
    if x.dtype.kind != "f" or not (is_in_range and np.isfinite(x).all()):
        raise ValueError(
            f"{path}: images must be in [-1, 1], as the model was trained on, or whole"
            f" numbers, got {x.dtype} from {low:g} to {high:g}"
        )
    return x.astype(np.float32)


def _read_array(path: pathlib.Path) -> tuple[str, np.ndarray]:
    """Returns the name and the values of the array of images in a file."""
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"--images must be a .npy or .npz file, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        found = np.load(path)
        if isinstance(found, np.ndarray):
            return "", found
        with found:
            for name in ("images", "samples", *found.files[: len(found.files) == 1]):
                if name in found.files:
                    return name, found[name]
            names = sorted(found.files)
    except Exception as error:  # of zipfile, zlib, struct and numpy
        raise ValueError(f"{path} cannot be read: {error}") from error
    raise ValueError(f"{path} must have an array 'images' or 'samples', got {names}")


# --- scores --------------------------------------------------------------------------


def find_functions(
    trained: Trained,
    shape: tuple[int, ...],
    scores: Sequence[str],
    noise_scale: float | None,
) -> dict[str, Callable]:
    """Returns name of a column -> `function(x, key) -> []`, of what the model has.

    Args:
      trained: The model.
      shape: Shape of an example.
      scores: Names to return; all if empty.
      noise_scale: Noise scale of the functions that take one. Without it they are left
        out.

    Raises:
      ValueError: If the model takes no examples of the shape.
    """
    x, key = jax.ShapeDtypeStruct(shape, jnp.float32), jax.random.key(0)
    found, given = (
        {},
        {
            "energy": trained.energy_fn,
            "log_prob": trained.log_prob,
            "score_norm": trained.score_fn,
        },
    )
    for name, function in given.items():
        if function is None or (scores and name not in scores):
            continue
        takes_more = _takes_more(function, x, key if name == "log_prob" else 1.0)
        if takes_more and name != "log_prob" and noise_scale is None:
            say(f"{name} is left out, as it needs --noise_scale")
            continue
        found[name] = _bind(name, function, takes_more, noise_scale)
    return found


def _takes_more(function: Callable, x: Any, more: Any) -> bool:
    """Returns whether a function of an example needs one more argument."""
    try:
        jax.eval_shape(function, x)
        return False
    except Exception as error:
        try:
            jax.eval_shape(function, x, more)
            return True
        except Exception:
            raise ValueError(f"the examples do not fit the model: {error}") from error


def _bind(
    name: str, function: Callable, takes_more: bool, noise_scale: float | None
) -> Callable:
    def bound(x, key):
        more = (key if name == "log_prob" else noise_scale,) if takes_more else ()
        value = function(x, *more)
        return jnp.sqrt(jnp.sum(value**2)) if name == "score_norm" else value

    return bound


def compute(
    function: Callable, x: np.ndarray, key: jax.Array, chunk_size: int
) -> np.ndarray:
    """Returns `function(x, key)` of every example, `[n]`, each with a key of its own.

    Args:
      function: Function of one example and a key.
      x: Examples `[n, *event]`.
      key: Key of the scores.
      chunk_size: Number of examples at a time.
    """
    many, chunks = jax.jit(jax.vmap(function)), itertools.count()

    def compute_chunk(x):
        keys = jax.random.split(jax.random.fold_in(key, next(chunks)), len(x))
        return many(x, keys)

    return in_chunks(compute_chunk, x, chunk_size)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", required=True, help="folder of a run, or a URL")
    add("--csv", default="", help="file of rows to score")
    add("--images", default="", help="file of images to score, .npy or .npz")
    add("--out", default="", help="file to write [the examples' with .scores.csv]")
    add("--scores", default="", help=f"some of {','.join(SCORES)} [all there are]")
    add("--noise_scale", type=float, help="scale of the energy and the score")
    add("--seed", type=int, default=0, help="seed of estimated likelihoods [0]")
    add("--step", type=int, help="step of the checkpoint [the newest]")
    found = vars(parser.parse_args(arguments))
    found["scores"] = [x for x in found["scores"].split(",") if x]
    logging.set_verbosity(logging.WARNING)
    keep_programs()
    with ending_in_one_line():
        score(found.pop("workdir"), **found)


if __name__ == "__main__":
    main()
