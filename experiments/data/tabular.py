"""Tables of the UCI repository, as density estimation has used them: wine, Parkinson's,
and two of particles that are large.

Read from files as published; nothing is downloaded.
"""

import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from ebmjax.checks import check_count
from experiments.data.arrays import digest
from experiments.data.cells import is_number, parse_number, read_cells

__all__ = [
    "SMALL",
    "SOURCES",
    "WHITENINGS",
    "Source",
    "Table",
    "find_file",
    "from_section",
    "load",
    "read_rows",
]

WHITENINGS = ("train", "all")
MOST_VALIDATED = 1_000
FEWEST = 2  # rows of a split
MOST_CORRELATION = 0.98
MOST_ROUNDING = 1e-13
"""Difference of two numbers, as a share of a column's largest, that rounding makes."""


class Table(NamedTuple):
    """A table, whitened and split.

    Attributes:
      train: `[n, d]`, float32.
      validation: The same, to choose by.
      test: The same, for the last evaluation only.
      columns: Names of the columns before whitening mixed them, `d` of them.
      dropped: Names of the columns left out, as nearly a copy of one that is kept.
      digest: Digest of the file.
      encoding: `own_tables.Encoding` of a table of your own; None for the others.
      scored: Rows of a second file of your own to score, `[draws, n, d]`, or None.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    columns: tuple[str, ...]
    dropped: tuple[str, ...]
    digest: str = ""
    encoding: Any = None
    scored: np.ndarray | None = None


class Source(NamedTuple):
    """Source of a table, and the changes that are made to it.

    Attributes:
      file: Name of the file as published.
      read: `read(path) -> Rows`, with the columns that are used and no others.
      folder: Folder below `data_dir` in which it may lie.
      url: Address where it is published.
      is_quantized: Whether few digits were measured, which uniform noise then fills.
      drops_copies: Whether columns that are nearly copies of others are left out.
      most_tested: Largest number of test rows; a tenth of all where that is fewer.
      num_rows: Number of rows as published; 0 where it is not known.
    """

    file: str
    folder: str
    url: str
    read: Callable[[pathlib.Path], "Rows"]
    is_quantized: bool = False
    drops_copies: bool = False
    most_tested: float = 1_000
    num_rows: int = 0


class Rows(NamedTuple):
    """Contents of a file of numbers.

    Attributes:
      names: Names of the columns.
      values: `[rows, columns]`, float64.
      lines: Line of each row in the file, from 1; empty where that is not asked.
    """

    names: tuple[str, ...]
    values: np.ndarray
    lines: tuple[int, ...] = ()


def _cells(delimiter: str, num_columns: int, used: slice):
    def read(path):
        names, values, _ = read_rows(path, delimiter, num_columns)
        if all(is_number(name) for name in names):
            raise ValueError(f"{path} must begin with a line of names, got {names}")
        return Rows(names[used], values[:, used])

    return read


def read_hepmass(path: pathlib.Path) -> Rows:
    """Returns the collisions with a particle (label 1, first of 28 columns), without
    six columns of few values. NumPy reads them, because they are millions of rows."""
    try:
        values = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
    except ValueError as error:
        raise ValueError(
            f"{path} must be numbers below a line of names: {error}"
        ) from error
    _check_matrix(path, values, 28)
    values = values[values[:, 0] == 1]
    return _numbered(np.delete(values, [0, 6, 10, 14, 18, 22], axis=1))


def _read_miniboone(path: pathlib.Path) -> Rows:
    """Returns the array that was published with masked autoregressive flows, in which
    columns and rows have been left out already."""
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} must be an array of numpy's: {error}") from error
    _check_matrix(path, values, 43)
    return _numbered(np.asarray(values, np.float64))


def _check_matrix(path, values, num_columns: int) -> None:
    if np.ndim(values) != 2 or values.shape[1] != num_columns or not len(values):
        raise ValueError(
            f"{path} must have {num_columns} columns, got the shape {np.shape(values)}"
        )
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
        raise ValueError(f"{path} must be of finite numbers")


def _numbered(values: np.ndarray) -> Rows:
    return Rows(tuple(f"column {i + 1}" for i in range(values.shape[1])), values)


def _wine(colour: str, num_rows: int) -> Source:
    return Source(
        num_rows=num_rows,
        file=f"winequality-{colour}.csv",
        folder="uci_wine_quality",
        url="https://archive.ics.uci.edu/dataset/186/wine+quality",
        read=_cells(";", 12, slice(0, -1)),  # not the quality, a judgement
        is_quantized=True,
    )


SOURCES = {
    "red_wine": _wine("red", 1_599),
    "white_wine": _wine("white", 4_898),
    "parkinsons": Source(
        file="parkinsons_updrs.data",
        folder="uci_parkinsons",
        url="https://archive.ics.uci.edu/dataset/189/parkinsons+telemonitoring",
        read=_cells(",", 22, slice(3, None)),  # not the subject, the age and the sex
        drops_copies=True,
        num_rows=5_875,
    ),
    "hepmass": Source(
        file="1000_train.csv",
        folder="hepmass",
        url="https://archive.ics.uci.edu/dataset/347/hepmass",
        read=read_hepmass,
        most_tested=math.inf,
    ),
    "miniboone": Source(
        file="data.npy",
        folder="miniboone",
        url="https://zenodo.org/records/1161203",
        read=_read_miniboone,
        most_tested=math.inf,
    ),
}
SMALL = ("red_wine", "white_wine", "parkinsons")
"""Those whose rows a laptop can compare in pairs."""


def find_file(name: str, data_dir: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a table's file.

    Raises:
      FileNotFoundError: If it is not there; the message says how to get it.
    """
    source = SOURCES[name]
    folder = pathlib.Path(data_dir).expanduser()
    places = [folder / source.file, folder / source.folder / source.file]
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{name} is not in {folder}: there is neither {places[0]} nor {places[1]}."
        f" Download {source.file} from {source.url} and put it there"
    )


def from_section(section: Mapping) -> Table:
    """`load` by a config's section, of which it takes `name`, `data_dir`, `split_seed`,
    `whiten` and `noise_scale`; or `own_tables.from_section` if it has `csv`.

    Raises:
      ValueError: As `load`, or if `data_dir` is "".
    """
    if "csv" in section:
        from experiments.data import own_tables  # which imports this

        return own_tables.from_section(section)
    if not section["data_dir"]:
        raise ValueError(f"data.data_dir must be the folder with {section['name']}")
    check_count("data.split_seed", section["split_seed"], 0)
    return load(
        section["name"],
        data_dir=section["data_dir"],
        seed=section["split_seed"],
        whiten=section["whiten"],
        noise_scale=section["noise_scale"],
    )


def read_rows(
    path: pathlib.Path, delimiter: str | None = None, num_columns: int | None = None
) -> Rows:
    """Returns a file of numbers below a line of names, which `cells.read_cells` reads.

    Raises:
      ValueError: As `read_cells`, or if a cell is no finite number; the message has the
        line and the column.
    """
    names, lines = read_cells(path, delimiter, num_columns)
    values = np.empty((len(lines), len(names)))
    for row, (number, cells) in zip(values, lines):
        for column, (name, cell) in enumerate(zip(names, cells)):
            row[column] = parse_number(cell, f"{path}, line {number}, column {name!r}")
    return Rows(names, values, tuple(number for number, _ in lines))


def is_constant(rows: np.ndarray) -> np.ndarray:
    """Returns whether columns `[n, d]` vary by no more than rounding, `[d]`.

    Sums and products of decimals differ in their last digits: 0.1 + 0.2 is not 0.3. The
    bound on the variance is that of scikit-learn for moments computed in float64, of at
    least a hundred rows. Whole numbers are never rounded.
    """
    is_whole = (rows == np.round(rows)).all(0)
    width = np.ptp(rows, axis=0)
    # In units of the largest value, so that no square overflows or vanishes.
    unit = np.abs(rows).max(0)
    unit = np.where((unit > 0) & np.isfinite(unit), unit, 1.0)
    rows = rows / unit
    mean, variance = (f(rows, 0, dtype=np.float64) for f in (np.mean, np.var))
    rounding = max(len(rows), 100) * np.finfo(np.float64).eps
    is_rounded = variance <= rounding * variance + (rounding * mean) ** 2
    constant: np.ndarray = (width == 0) | (is_rounded & ~is_whole)
    return constant


def _kept_columns(rows: np.ndarray) -> list[int]:
    """Returns columns without the first of any two that are correlated too much."""
    kept = list(range(rows.shape[1]))
    while True:
        correlation = np.abs(np.corrcoef(rows[:, kept].T))
        num_near = np.sum(correlation > MOST_CORRELATION, axis=1)  # itself is one
        if not np.any(num_near > 1):
            return kept
        del kept[int(np.flatnonzero(num_near > 1)[0])]


def dequantize_columns(
    rng: np.random.RandomState, rows: np.ndarray, names: tuple[str, ...]
) -> np.ndarray:
    """Returns rows with uniform noise as wide as neighbouring values are apart."""
    steps = []
    for name, column in zip(names, rows.T):
        values = np.unique(column)
        differences = np.diff(values)
        # Numbers that only rounding makes different were measured as one.
        differences = differences[differences > MOST_ROUNDING * np.abs(values).max()]
        if not len(differences):
            raise ValueError(f"column {name!r} has only one value")
        steps.append(np.median(differences))
    return rows + rng.uniform(-1, 1, rows.shape) * np.array(steps)


def whitening(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns `mean` and `matrix` that give `(rows - mean) @ matrix` covariance 1."""
    mean = rows.mean(0)
    _, singular, vectors = np.linalg.svd(rows - mean, full_matrices=False)
    # Whether columns are dependent does not depend on their units.
    is_dependent = len(rows) <= rows.shape[1] or is_constant(rows).any()
    if not is_dependent:
        in_units = (rows - mean) / rows.std(0)
        shares = np.linalg.svd(in_units, compute_uv=False)
        is_dependent = shares[-1] < 1e-10 * shares[0] or not singular[-1] > 0
    if is_dependent:
        raise ValueError(
            "the columns cannot be whitened: they are linearly dependent, or fewer"
            f" than {rows.shape[1] + 1} rows are left"
        )
    return mean, vectors.T / singular * math.sqrt(len(rows))


def load(
    name: str,
    *,
    data_dir: str | os.PathLike,
    seed: int = 2019,
    whiten: str = "train",
    noise_scale: float = 0.05,
) -> Table:
    """Returns a table, cleaned, split in three and whitened.

    The columns that are used are dequantised (wine) or rid of copies (Parkinson's), the
    rows shuffled, whitened along their principal axes, and given a little normal noise,
    once: a table of measurements has no density otherwise. The last tenth of the rows,
    of a small table at most 1,000, is the test set, a tenth of the others, at most
    1,000, the validation set.

    Args:
      name: "red_wine", "white_wine", "parkinsons" (the telemonitoring set), "hepmass"
        or "miniboone".
      data_dir: The folder with the file as published, or one above it (`SOURCES`).
      seed: Seed of the order and of the noise. 2019 is the published order.
      whiten: "train" takes mean and axes from the training rows. "all" takes them from
        all rows, as was published: the test rows then have a say in what they are
        tested on, and figures are to be compared with published ones only.
      noise_scale: Standard deviation of the noise, in whitened units. Published: 0.05.

    Returns:
      A `Table`.

    Raises:
      FileNotFoundError: If the file is not there; the message says how to get it.
      ValueError: For an unknown name or option, or a file that is damaged.

    Source:
      Wenliang, Sutherland, Strathmann & Gretton (2019), "Learning deep kernels for
      exponential family densities"; Song, Garg, Shi & Ermon (2019), "Sliced score
      matching".
    """
    if name not in SOURCES:
        raise ValueError(f"data.name {name!r} is not one of {sorted(SOURCES)}")
    if whiten not in WHITENINGS:
        raise ValueError(f"whiten must be one of {WHITENINGS}, got {whiten!r}")
    if not noise_scale >= 0:
        raise ValueError(f"noise_scale must not be negative, got {noise_scale}")
    source = SOURCES[name]
    path = find_file(name, data_dir)
    names, rows, _ = source.read(path)
    kept = _kept_columns(rows) if source.drops_copies else list(range(len(names)))
    columns, rows = tuple(names[index] for index in kept), rows[:, kept]
    # RandomState, not default_rng: numpy promises that its numbers never change.
    rng = np.random.RandomState([seed, 1])  # another stream than the order's
    if source.is_quantized:
        rows = dequantize_columns(rng, rows, columns)
    rows = rows[np.random.RandomState(seed).permutation(len(rows))]
    splits = split_rows(rows, source.most_tested)
    if source.num_rows and len(rows) != source.num_rows:
        logging.warning("%s has %d rows, not %d", path, len(rows), source.num_rows)
    mean, matrix = whitening(splits[0] if whiten == "train" else rows)
    noisy = [
        (split - mean) @ matrix + noise_scale * rng.standard_normal(split.shape)
        for split in splits
    ]
    sizes = [len(split) for split in splits]
    if min(sizes) < FEWEST:
        raise ValueError(f"{path}: a split must have {FEWEST} rows, got {sizes}")
    dropped = tuple(column for column in names if column not in columns)
    return Table(
        *(split.astype(np.float32) for split in noisy), columns, dropped, digest(path)
    )


def split_rows(rows: np.ndarray, most_tested: float) -> list[np.ndarray]:
    """Returns training, validation and test rows, in this order."""
    num_test = min(most_tested, len(rows) // 10)
    num_validation = min(MOST_VALIDATED, (len(rows) - num_test) // 10)
    num_train = len(rows) - num_test - num_validation
    return np.split(rows, [num_train, num_train + num_validation])
