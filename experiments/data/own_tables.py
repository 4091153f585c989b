"""Tables of your own as data of a density: a file, or an array or a frame in memory.

Columns of numbers are taken as they are. A column of text is a category: its values are
numbered, and the number `k` becomes a uniform number between `k` and `k + 1`, so that
the table has a density. The log density is then on average a lower bound of the log
probability of the category.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.data import cells, tabular
from experiments.data.arrays import digest
from experiments.data.frames import Frame, check_finite, read_frame

__all__ = [
    "Encoding",
    "from_section",
    "in_units",
    "log_likelihoods",
    "own_section",
]

WAYS = ("refuse", "impute")
NUM_DRAWS = 10
"""Number of draws of the numbers within a category whose log densities are averaged."""
MOST_VALUES = 1_000
"""Largest number of values of a category."""


# --- encoding ------------------------------------------------------------------------


class Encoding(NamedTuple):
    """Map from the rows of a table to the input of a model, of JSON values alone.

    A row with its categories numbered is `x`, and the model is given
    `(x - shift) @ matrix`.

    Attributes:
      columns: Names of the columns, in their order.
      categories: Name of a column -> its values, in the order of their numbers.
      fill: Name of a column -> value that replaces a missing one; empty if missing
        values are refused.
      shift: `[d]`.
      matrix: `[d, d]`.
    """

    columns: list[str]
    categories: dict[str, list[str]]
    fill: dict[str, float | str]
    shift: list[float]
    matrix: list[list[float]]

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Encoding":
        """Returns the encoding that the facts of a run have."""
        return cls(**{name: facts[name] for name in cls._fields})

    @property
    def log_determinant(self) -> float:
        """Returns the log density of `x` minus that of the model's input, in nats."""
        return float(np.linalg.slogdet(np.array(self.matrix))[1])

    def encode(self, frame: Frame, seed: int = 0) -> np.ndarray:
        """Returns the rows of a table, in float64, with uniform numbers in categories.

        Args:
          frame: A table with these columns, in any order; others are left out.
          seed: Seed of the uniform numbers.

        Returns:
          The rows `x`, `[n, d]`.

        Raises:
          ValueError: If the table lacks a column, or has a missing value, a value that
            is no number or a category that is not known.
        """
        if lacking := [x for x in self.columns if x not in frame.names]:
            raise ValueError(
                f"{frame.name} lacks the columns {lacking}, has {list(frame.names)}"
            )
        found, rng = [], np.random.RandomState(seed)
        for name in self.columns:
            column = frame.columns[frame.names.index(name)]
            if name in self.categories:
                found.append(self._number(frame, name, column, rng))
                continue
            check_finite(frame, name, column, name in self.fill)
            if column.dtype == object:
                column = np.array([np.nan if x is None else float(x) for x in column])
            missing = np.isnan(column)
            found.append(np.where(missing, self.fill.get(name, 0.0), column))
        return np.stack(found, 1)

    def _number(self, frame, name, column, rng) -> np.ndarray:
        """Returns a column of categories as numbers."""
        numbers = {value: k for k, value in enumerate(self.categories[name])}
        codes = np.empty(len(column))
        for row, value in enumerate(as_categories(column)):
            value = self.fill.get(name) if value is None else value
            if value is None:
                raise ValueError(f"{frame.place(row, name)}: the value is missing")
            if value not in numbers:
                raise ValueError(
                    f"{frame.place(row, name)}: {value!r} is not among the values of"
                    f" the rows trained on, {list(numbers)[:10]}"
                )
            codes[row] = numbers[value]
        return codes + rng.uniform(size=len(codes))

    def whiten(self, x: np.ndarray) -> np.ndarray:
        """Returns the input of the model, `[n, d]`, for encoded rows `[n, d]`."""
        return (x - np.array(self.shift)) @ np.array(self.matrix)

    def undo(self, z: np.ndarray) -> np.ndarray:
        """Returns rows in the units of the file, float32, of whitened ones `[n, d]`."""
        rows = np.linalg.solve(np.array(self.matrix).T, np.asarray(z, np.float64).T).T
        return (rows + np.array(self.shift)).astype(np.float32)


def as_categories(column: np.ndarray) -> list[str | None]:
    """Returns the cells of a column as text; numbers in their shortest form."""
    if column.dtype == object:
        return column.tolist()
    return [None if np.isnan(x) else f"{x:.17g}" for x in column]


def split_names(option: str, text: str, frame: Frame) -> list[str]:
    """Returns the names in an option such as "age,sex", which the table must have."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if lacking := [name for name in names if name not in frame.names]:
        raise ValueError(
            f"{option} must be names of columns of {frame.name}, which are"
            f" {list(frame.names)}, got {lacking}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{option} must name each column once, got {text!r}")
    return names


def fit(
    frame: Frame, train: np.ndarray, columns: str, categorical: str, missing: str
) -> Encoding:
    """Returns the encoding of a table, without its whitening.

    Args:
      frame: The table.
      train: Rows that are trained on, from which missing values are filled.
      columns: Names of the columns to model, divided by commas; "" for all.
      categorical: Names of those that are categories although they are numbers.
      missing: "refuse", or "impute": the median of a column of numbers, the most
        frequent value of a category.
    """
    if missing not in WAYS:
        raise ValueError(f"data.missing must be one of {WAYS}, got {missing!r}")
    names = split_names("data.columns", columns, frame) or list(frame.names)
    given = split_names("data.categorical", categorical, frame)
    if unused := [name for name in given if name not in names]:
        raise ValueError(f"data.categorical must be among data.columns, got {unused}")
    categories, fill = {}, {}
    for name in names:
        column = frame.columns[frame.names.index(name)]
        if name not in given and column.dtype == object:
            _check_text(frame, name, column)
        if name in given or column.dtype == object:
            values = as_categories(column)
            known = sorted({value for value in values if value is not None})
            if not 2 <= len(known) <= min(MOST_VALUES, len(column) // 2):
                raise ValueError(
                    f"{frame.name}: the column {name!r} has {len(known)} different"
                    f" values in {len(column)} rows, and is no category: leave it out"
                    " by data.columns"
                )
            categories[name] = known
            seen = [values[row] for row in train if values[row] is not None]
            most = max(known, key=seen.count)
        else:
            numbers = column[train][~np.isnan(column[train])]
            if not len(numbers):
                raise ValueError(f"{frame.name}: the column {name!r} has no numbers")
            most = float(np.median(numbers))
        if missing == "impute":
            fill[name] = most
    return Encoding(names, categories, fill, [], [])


def _check_text(frame: Frame, name: str, column: np.ndarray) -> None:
    """Raises a ValueError if a column has both numbers and text."""
    is_text = [x is not None and not cells.is_number(x) for x in column]
    num_numbers = sum(x is not None for x in column) - sum(is_text)
    if num_numbers:
        row = is_text.index(True)
        raise ValueError(
            f"{frame.place(row, name)}: {column[row]!r} is not a number, as"
            f" {num_numbers} others are; name the column in data.categorical if all are"
            " categories"
        )


# --- a table to train on -------------------------------------------------------------


def own_section(batch_size: int) -> dict[str, Any]:
    """Returns a config's section `data` of a table of your own."""
    return {
        "name": "own",  # a table of yours
        "csv": "",  # the table: a .csv, .parquet, .feather, .arrow or .npy file
        "score_csv": "",  # another one, each of whose rows is scored; "" for none
        "columns": "",  # names of the columns to model, "a,b"; "" for all
        "categorical": "",  # names of columns of numbers that are categories
        "missing": "refuse",  # or "impute": the median, or the most frequent category
        "batch_size": batch_size,  # of all devices
        "split_seed": 0,  # of training, validation and test rows
        "noise_scale": 0.05,  # of noise added to training rows, in whitened units
    }


def from_section(section: Mapping[str, Any]) -> tabular.Table:
    """Returns a table by a config's section `data`, of `csv` and the other options.

    The rows are shuffled; a tenth is the test set, and a tenth of the others the
    validation set. The training rows whiten all of them, and have normal noise of
    `noise_scale` in whitened units, once.

    Args:
      section: `csv`, `score_csv`, `columns`, `categorical`, `missing`, `split_seed` and
        `noise_scale`.

    Returns:
      The table, with its encoding and with the rows of `score_csv`, if it is given,
      `[draws, n, d]`, of which several draws are different in categories alone.

    Raises:
      FileNotFoundError: If a file is not there.
      ValueError: If a file or an option is not valid; the message names it.
    """
    if not section["csv"]:
        raise ValueError("data.csv must be the path of a table, got ''")
    seed, noise_scale = section["split_seed"], section["noise_scale"]
    if not noise_scale >= 0:
        raise ValueError(
            f"data.noise_scale must not be negative, got {section['noise_scale']}"
        )
    frame = read_frame(section["csv"])
    order = np.random.RandomState(seed).permutation(len(frame.columns[0]))
    train, validation, test = tabular.split_rows(order, np.inf)
    encoding = fit(
        frame, train, section["columns"], section["categorical"], section["missing"]
    )
    rows = encoding.encode(frame, seed)
    sizes = [len(train), len(validation), len(test)]
    if min(sizes) < tabular.FEWEST:
        raise ValueError(
            f"{frame.name}: each of the training, validation and test rows must be at"
            f" least {tabular.FEWEST}, got {sizes} of {len(rows)}"
        )
    constant = tabular.is_constant(rows[train])
    if constant.any():
        name = encoding.columns[int(constant.argmax())]
        raise ValueError(
            f"{frame.name}: the column {name!r} is constant in the rows trained on:"
            " leave it out by data.columns"
        )
    try:
        shift, matrix = tabular.whitening(rows[train])
    except ValueError as error:
        raise ValueError(f"{frame.name}: {error}") from error
    encoding = encoding._replace(shift=shift.tolist(), matrix=matrix.tolist())
    white = encoding.whiten(rows)
    noise = np.random.RandomState([seed, 1]).standard_normal(white[train].shape)
    to_score, scored = [], None
    if section["score_csv"]:
        other = read_frame(section["score_csv"])
        num_draws = NUM_DRAWS if encoding.categories else 1
        to_score = [encoding.encode(other, draw) for draw in range(num_draws)]
        scored = np.float32([encoding.whiten(rows) for rows in to_score])
    splits = (white[train] + noise_scale * noise, white[validation], white[test])
    return tabular.Table(
        *(split.astype(np.float32) for split in splits),
        columns=tuple(encoding.columns),
        dropped=(),
        # The digest is of the encoded rows: whitening may round differently elsewhere.
        digest=digest(rows, *to_score),
        encoding=encoding,
        scored=scored,
    )


def log_likelihoods(
    table: tabular.Table, log_prob: Callable[[np.ndarray], Any]
) -> tuple[dict[str, float], np.ndarray | None]:
    """Returns the log-likelihoods of a model in the units of the file.

    Args:
      table: A table of your own.
      log_prob: `log_prob(rows [n, d]) -> [n]`, of rows as the model is given them.

    Returns:
      The mean log-likelihood of the test rows in nats with its standard error, and that
      of a normal distribution fitted to the training rows, as scalars; and the
      log-likelihood of each row to score, `[n]`, or None.
    """
    shift = table.encoding.log_determinant
    test = np.asarray(log_prob(table.test), np.float64) + shift
    normal = normal_log_prob(table.train, table.test) + shift
    scalars = {
        "test_log_likelihood": float(test.mean()),
        "test_log_likelihood_error": float(test.std(ddof=1) / math.sqrt(len(test))),
        "normal_test_log_likelihood": float(normal.mean()),
    }
    if table.scored is None:
        return scalars, None
    draws = [np.asarray(log_prob(rows), np.float64) for rows in table.scored]
    return scalars, np.mean(draws, 0) + shift


def normal_log_prob(train: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns the log density of a normal distribution fitted to training rows, `[n]`.

    Args:
      train: Training rows, `[m, d]`.
      x: Rows to score, `[n, d]`.
    """
    train, x = train.astype(np.float64), x - train.mean(0, dtype=np.float64)
    covariance = np.atleast_2d(np.cov(train.T, bias=True))
    squares = np.sum(x @ np.linalg.inv(covariance) * x, 1)
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    return np.asarray(-0.5 * (squares + log_det))


def in_units(trained, facts: Mapping[str, Any]):
    """Returns a `Trained` model whose functions take rows in the units of the file.

    Args:
      trained: A model of rows as the encoding makes them.
      facts: Facts of the run, which have the encoding.
    """
    encoding = Encoding.from_facts(facts)
    shift, matrix = (np.float32(x) for x in (encoding.shift, encoding.matrix))

    def whiten(row):
        return (row - shift) @ matrix

    changed = {
        "energy_fn": lambda row: trained.energy_fn(whiten(row)),
        "score_fn": lambda row: trained.score_fn(whiten(row)) @ matrix.T,
        "log_prob": lambda row: (
            trained.log_prob(whiten(row)) + encoding.log_determinant
        ),
        "sample": lambda key, num: encoding.undo(trained.sample(key, num)),
    }
    known = {k: v for k, v in changed.items() if getattr(trained, k) is not None}
    return trained._replace(**known)
