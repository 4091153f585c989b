r"""Draws from a trained model, as a file.

    python -m experiments.sample --workdir=runs/digits --num=1000 --out=samples.npz
    python -m experiments.sample --workdir=runs/digits --num=100 --out=pictures
    python -m experiments.sample --workdir=runs/uci --num=1000 --out=rows.csv

The end of `--out` says what is written: `.npz` (the arrays `samples` and `key`),
`.npy`, `.csv` for rows, or a new folder of PNGs for images. Images are in [-1, 1] in
arrays, and are not clipped to that range. Rows are in the units that `load` of the
problem states. The draws are those of `experiments.load(WORKDIR).sample`.
"""

import argparse
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from ebmjax.checks import check_count
from experiments import load
from experiments.data import quantize
from experiments.models import read_facts
from experiments.run.cache import keep_programs
from experiments.run.errors import ending_in_one_line
from experiments.run.files import check_writable, replacing
from experiments.run.remote import AnyPath, to_path
from experiments.run.workdir import save_arrays, save_columns

ENDS = (".npz", ".npy", ".csv", "")


def sample(workdir: str, num: int, out: str, seed: int = 0, step: int | None = None):
    """Writes `num` draws of a trained model to a file, and returns them.

    Args:
      workdir: Whatever `experiments.load` takes.
      num: Number of draws.
      out: File or folder to write, see the top of this file.
      seed: Seed of the draws.
      step: Step of the checkpoint; the newest readable one by default.

    Returns:
      The draws, `[num, *event]`.

    Raises:
      FileNotFoundError: If there is no such run or checkpoint.
      ValueError: If the model has no sampler, or `out` does not suit its draws.
    """
    check_count("--num", num, 1)
    end = pathlib.PurePath(out).suffix
    if end not in ENDS:
        raise ValueError(
            f"--out must end with .npz, .npy or .csv, or be a folder, got {out!r}"
        )
    path = to_path(out)
    if not end:
        if not isinstance(path, pathlib.Path):
            raise ValueError(f"--out must be a local folder for PNGs, got {out}")
        if path.exists():
            raise ValueError(f"--out must be a new folder, but {path} exists")
    trained = load(workdir, step=step)
    if trained.sample is None:
        raise ValueError(
            f"{workdir} has no sampler: its model is an energy alone, which a chain of"
            " ebmjax.samplers draws from"
        )
    facts, key = read_facts(workdir), jax.random.key(seed)
    shape = facts.get("event_shape") or facts.get("image_shape")
    if shape is not None:  # else it is known from the draws alone
        check_shape(end, tuple(shape))
    check_writable(path)
    x = np.asarray(trained.sample(key, num))
    check_shape(end, x.shape[1:])
    write(path, end, x, key, facts)
    return x


def check_shape(end: str, shape: tuple[int, ...]) -> None:
    """Raises a ValueError if draws of a shape cannot be written to a kind of file."""
    if end == ".csv" and len(shape) != 1:
        raise ValueError(
            f"--out must end with .npz or .npy for draws {shape}, got .csv"
        )
    if not end and (len(shape) != 3 or shape[-1] not in (1, 3)):
        raise ValueError(
            "--out must end with .npz, .npy or .csv for draws that are no images of 1"
            f" or 3 channels, got a folder for draws {shape}"
        )


def write(
    path: AnyPath,
    end: str,
    x: np.ndarray,
    key: jax.Array,
    facts: Mapping[str, Any],
) -> None:
    """Writes draws to a file or a folder, whole or not at all.

    Args:
      path: File or folder to write.
      end: One of `ENDS`.
      x: Draws, `[num, *event]`.
      key: Key of the draws.
      facts: Facts of the run, which may name the columns of a row and categories.
    """
    if end == ".npz":
        save_arrays(path, samples=x, key=jax.random.key_data(key))
    elif end == ".npy":
        with replacing(path, suffix=".npy") as temporary:
            np.save(temporary, x)
    elif end == ".csv":
        names = facts.get("columns") or [f"column {i + 1}" for i in range(x.shape[1])]
        columns = dict(zip(names, x.T, strict=True))
        for name, values in facts.get("categories", {}).items():
            numbers = np.floor(columns[name]).clip(0, len(values) - 1)
            columns[name] = np.array(values)[numbers.astype(int)]
        save_columns(path, columns)
    else:
        write_pictures(path, x)


def write_pictures(folder: pathlib.Path, images: np.ndarray) -> None:
    """Writes images `[n, height, width, channels]` in [-1, 1] as PNGs to a new folder,
    which is there once all of them are."""
    from PIL import Image

    levels = quantize(images, 256)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        made = pathlib.Path(name) / "made"
        made.mkdir()
        for index, image in enumerate(levels):
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            picture.save(made / f"{index:06d}.png")
        os.replace(made, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of a run, or a URL")
    parser.add_argument("--out", required=True, help="file or folder to write")
    parser.add_argument("--num", type=int, default=1_000, help="number of draws [1000]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws [0]")
    parser.add_argument("--step", type=int, help="step of the checkpoint [the newest]")
    found = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    keep_programs()
    with ending_in_one_line():
        x = sample(found.workdir, found.num, found.out, found.seed, found.step)
        print(f"{found.out}: {len(x)} draws of shape {x.shape[1:]}")


if __name__ == "__main__":
    main()
