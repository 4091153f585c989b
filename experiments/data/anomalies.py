"""Data for anomaly detection: normal examples to train on, and a test set of both.

KDD Cup 99's ten per cent, a class of images held out, or the user's own tables.
"""

import gzip
import os
import pathlib
from typing import NamedTuple

import numpy as np

from experiments.data.frames import read_numbers
from experiments.data.tabular import is_constant

__all__ = ["Anomalies", "Scaling", "held_out_class", "kdd99", "tables"]


class Scaling(NamedTuple):
    """A row of a file is `shift + scale * x`, with `x` what the model is given.

    Attributes:
      shift: `[columns]`.
      scale: `[columns]`; 1 for constant columns.
    """

    shift: np.ndarray
    scale: np.ndarray


class Anomalies(NamedTuple):
    """Data to train on, and data to score.

    Attributes:
      train: `[n, *event]`, of what is not anomalous; float32 or, of images, uint8.
      test: `[m, *event]`, of both kinds.
      is_anomaly: `[m]`, bool; None where it is not known.
      columns: Names of the columns of a table; `()` of images.
      scaling: Scaling of the columns; None for images.
    """

    train: np.ndarray
    test: np.ndarray
    is_anomaly: np.ndarray | None
    columns: tuple[str, ...] = ()
    scaling: Scaling | None = None


# --- KDD Cup 99

KDD_FILE = "kddcup.data_10_percent.gz"
KDD_URL = "https://archive.ics.uci.edu/dataset/130/kdd+cup+1999+data"
NUM_ROWS, NUM_NORMAL = 494_021, 97_278
NORMAL = "normal."
ANOMALOUS_SHARE = 0.2  # of the test rows, at most
SCALINGS = ("none", "min_max", "standard")
MOST_ROUNDED, MOST_MERGED = 1e-3, 0.01
"""Bounds of `is_lost_in_float32`."""

KDD_COLUMNS = (
    "duration protocol_type service flag src_bytes dst_bytes land wrong_fragment urgent"
    " hot num_failed_logins logged_in num_compromised root_shell su_attempted num_root"
    " num_file_creations num_shells num_access_files num_outbound_cmds is_host_login"
    " is_guest_login count srv_count serror_rate srv_serror_rate rerror_rate"
    " srv_rerror_rate same_srv_rate diff_srv_rate srv_diff_host_rate dst_host_count"
    " dst_host_srv_count dst_host_same_srv_rate dst_host_diff_srv_rate"
    " dst_host_same_src_port_rate dst_host_srv_diff_host_rate dst_host_serror_rate"
    " dst_host_srv_serror_rate dst_host_rerror_rate dst_host_srv_rerror_rate"
).split()
KDD_CATEGORIES = (
    "protocol_type service flag land logged_in is_host_login is_guest_login"
).split()


def kdd99(
    data_dir: str | os.PathLike | None = None,
    *,
    scaling: str = "none",
    split_seed: int = 42,
    download: bool = False,
) -> Anomalies:
    """Returns KDD Cup 99's ten per cent, as generative models are scored on it.

    Connections labelled `normal.` are the anomalies, as they are the fifth of all, and
    attacks what is learned. Seven columns are spread into one for each of their values,
    121 in all. Half of the rows, at random, is the test set: all of its attacks, and as
    many of its normal rows as make a fifth of it, which there are not quite, so all;
    19.7 %. The attacks of the other half are trained on.

    Args:
      data_dir: The folder with `kddcup.data_10_percent.gz`, or one above it with that
        in `kddcup99`; None or "" for where scikit-learn keeps it.
      scaling: "none", as published, where the scaling's result is thrown away by
        oversight: bytes of up to 10^9 and shares of 1; "min_max", each column to
        [0, 1] by the training rows; or "standard", to their mean 0 and variance 1.
      split_seed: Seed of the split. The runs' seeds are to vary, and not this one.
      download: Whether scikit-learn may fetch it.

    Returns:
      `Anomalies`, float32 `[198,371 or so, 121]` and `[247,011 or so, 121]`.

    Raises:
      FileNotFoundError: If the file is not there; the message says how to get it.
      ValueError: For an unknown scaling, or a file that is damaged or another one.
    """
    _check_scaling(scaling)
    table, labels = _read_kdd(data_dir, download)
    if (len(labels), (labels == NORMAL).sum()) != (NUM_ROWS, NUM_NORMAL):
        raise ValueError(
            f"KDD Cup 99's ten per cent has {NUM_ROWS} rows, {NUM_NORMAL} of them"
            f" {NORMAL!r}; got {len(labels)} and {(labels == NORMAL).sum()}"
        )
    parts, columns = [], []
    for name in KDD_COLUMNS:
        if name in KDD_CATEGORIES:
            values, index = np.unique(table[name], return_inverse=True)
            parts.append(np.eye(len(values), dtype=np.float32)[index])
            columns += [f"{name}={value}" for value in values]
        else:
            parts.append(np.asarray(table[name], np.float32)[:, None])
            columns.append(name)
    rows, is_anomaly = np.concatenate(parts, axis=1), labels == NORMAL
    # RandomState, not default_rng: numpy promises that its numbers never change.
    order = np.random.RandomState(split_seed).permutation(NUM_ROWS)
    train, test = order[: NUM_ROWS // 2], order[NUM_ROWS // 2 :]
    train = train[~is_anomaly[train]]
    known, foreign = test[~is_anomaly[test]], test[is_anomaly[test]]
    most = round(len(known) * ANOMALOUS_SHARE / (1 - ANOMALOUS_SHARE))
    test = np.concatenate([known, foreign[:most]])
    fitted = _fit_scaling(scaling, rows[train])
    return Anomalies(
        _scale(rows[train], fitted),
        _scale(rows[test], fitted),
        is_anomaly[test],
        tuple(columns),
        fitted,
    )


def _check_scaling(scaling: str) -> None:
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {SCALINGS}, got {scaling!r}")


def _fit_scaling(scaling: str, train: np.ndarray) -> Scaling:
    """Returns the scaling of the training rows. Constant columns are only moved."""
    if scaling == "none":
        shift, scale = np.zeros(train.shape[1]), np.ones(train.shape[1])
    elif scaling == "min_max":
        shift, scale = train.min(0), np.ptp(train, axis=0)
    else:
        shift, scale = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    # A column that varies by rounding alone is constant: its deviation is no scale.
    return Scaling(shift, np.where(is_constant(train), 1, scale))


def _scale(rows: np.ndarray, scaling: Scaling) -> np.ndarray:
    return ((rows - scaling.shift) / scaling.scale).astype(np.float32)


def _read_kdd(data_dir, download: bool):
    """`(columns by name, labels [n])`."""
    if not data_dir:
        from sklearn.datasets import fetch_kddcup99

        try:
            data = fetch_kddcup99(percent10=True, download_if_missing=download)
        except OSError as error:
            raise FileNotFoundError(
                "KDD Cup 99 is not where scikit-learn keeps it: allow the download, or"
                f" give the folder with {KDD_FILE} from {KDD_URL} as data_dir"
            ) from error
        table = {name: data.data[:, i] for i, name in enumerate(KDD_COLUMNS)}
        for name in KDD_CATEGORIES:  # bytes and integers
            table[name] = table[name].astype("S16").astype(str)
        return table, data.target.astype("S32").astype(str)
    folder = pathlib.Path(data_dir).expanduser()
    places = [folder / KDD_FILE, folder / "kddcup99" / KDD_FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"KDD Cup 99 is not in {folder}: there is neither {places[0]} nor"
            f" {places[1]}. Download {KDD_FILE} from {KDD_URL} and put it there"
        )
    kinds = [(name, "U16" if name in KDD_CATEGORIES else float) for name in KDD_COLUMNS]
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=[*kinds, ("label", "U32")])
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return table, table["label"]


# --- images of a class held out


def held_out_class(
    images: np.ndarray,
    labels: np.ndarray,
    label: int,
    *,
    split_seed: int = 0,
    leaks: bool = False,
) -> Anomalies:
    """Returns images of which one class is out of distribution, with a test set.

    Args:
      images: `[n, height, width, channels]`, of all splits together.
      labels: `[n]`.
      label: The class that is held out.
      split_seed: Seed of the split of the other classes.
      leaks: Whether the test set is drawn anew, from all of the others: four fifths of
        them were then trained on. So it was published, by oversight; for comparison.

    Raises:
      ValueError: If there is no such label, or no other.
    """
    found = np.unique(labels)
    if label not in found or len(found) < 2:
        raise ValueError(f"label must be one of several, {found}, got {label}")
    known, foreign = np.flatnonzero(labels != label), np.flatnonzero(labels == label)
    order = np.random.RandomState([split_seed, 0]).permutation(known)
    num_test = len(known) // 5
    train, test = order[num_test:], order[:num_test]
    if leaks:
        test = np.random.RandomState([split_seed, 1]).permutation(known)[:num_test]
    is_anomaly = np.repeat([False, True], [num_test, len(foreign)])
    test = np.concatenate([test, foreign])
    return Anomalies(images[train], images[test], is_anomaly)


# --- the user's own


def tables(
    train_csv: str | os.PathLike,
    score_csv: str | os.PathLike,
    *,
    label_column: str = "",
    scaling: str = "standard",
) -> Anomalies:
    """Returns two files of numbers: one to train on, one to score.

    Cells are divided by commas, semicolons or tabs. A first line that is not numbers
    has the names of the columns, which may then be in another order in the second file.

    Args:
      train_csv: File of the normal rows.
      score_csv: File of the rows to score.
      label_column: Name of a column of 0 and 1, 1 for anomalies; "" for none. It is not
        trained on. Where the training file has it, its rows of 1 are left out.
      scaling: See `kdd99`.

    Returns:
      `Anomalies`; without a label column in the second file `is_anomaly` is None.

    Raises:
      FileNotFoundError: If a file is not there.
      ValueError: With the file and the line of what is no number, too large for
        float32, or a label that is neither 0 nor 1, or of a row with another number of
        cells; if the files have other columns, the rows to score have labels of one
        kind alone, there is no such column or no other, no row is left to train on, or
        float32 cannot tell the values of a column apart.
    """
    _check_scaling(scaling)
    names, train, is_anomaly_train = _read_labelled(train_csv, label_column)
    score_names, test, is_anomaly = _read_labelled(score_csv, label_column)
    if sorted(names) != sorted(score_names):
        missing = sorted(set(names) - set(score_names))
        extra = sorted(set(score_names) - set(names))
        raise ValueError(
            f"{score_csv} must have the columns of {train_csv}; it lacks {missing} and"
            f" has {extra} beside them"
        )
    if label_column and is_anomaly is None and is_anomaly_train is None:
        raise ValueError(
            f"neither {train_csv} nor {score_csv} has the column {label_column!r}"
        )
    if is_anomaly_train is not None:
        train = train[~is_anomaly_train]
    if not len(train):
        raise ValueError(f"{train_csv}: all rows are labelled anomalies")
    if is_anomaly is not None and is_anomaly.all() == is_anomaly.any():
        raise ValueError(
            f"{score_csv}: labels in {label_column!r} must be of both kinds for scores"
            f" to be judged, got {int(is_anomaly[0])} alone"
        )
    test = test[:, [score_names.index(name) for name in names]]
    with np.errstate(over="ignore", invalid="ignore"):
        fitted = _fit_scaling(scaling, train)
        scaled = [_scale(rows, fitted) for rows in (train, test)]
    for path, rows, numbers in zip(
        (train_csv, score_csv), scaled, (train, test), strict=True
    ):
        # Squares of still larger ones would overflow, and their scale with them.
        is_large = np.abs(numbers).max(0) > np.finfo(np.float32).max
        wrong = is_large | ~np.isfinite(rows).all(0)
        if wrong.any():
            raise ValueError(
                f"{path}: the column {names[wrong.argmax()]!r} is too large for"
                f" float32, as it is or with scaling={scaling!r}"
            )
    exact = [(rows - fitted.shift) / fitted.scale for rows in (train, test)]
    together = np.concatenate([train, test])
    is_whole = (together == np.round(together)).all(0)
    lost = is_lost_in_float32(np.concatenate(exact), is_whole)
    if lost.any():
        column = together[:, lost.argmax()]
        raise ValueError(
            f"{train_csv} and {score_csv}: the column {names[lost.argmax()]!r}, from"
            f" {column.min():.17g} to {column.max():.17g}, has values that float32"
            f" cannot tell apart with scaling={scaling!r}; subtract a constant from it"
            " or choose another scaling"
        )
    return Anomalies(*scaled, is_anomaly, names, fitted)


def is_lost_in_float32(values: np.ndarray, is_whole: np.ndarray) -> np.ndarray:
    """Returns whether columns `[n, d]` lose what distinguishes their rows, `[d]`.

    They do if rounding moves a value by more than a thousandth of the column's
    standard deviation. Columns of whole numbers, such as identifiers, also do if it
    merges at least a hundredth of the different numbers with others. Columns that are
    constant are never lost.
    """
    rounded = values.astype(np.float32)
    moved = np.abs(rounded - values).max(0)
    is_lost = moved > MOST_ROUNDED * values.std(0)
    for column in np.flatnonzero(is_whole & (moved > 0)):
        num, num_left = (len(np.unique(x[:, column])) for x in (values, rounded))
        is_lost[column] |= num - num_left >= max(1, MOST_MERGED * num)
    lost: np.ndarray = is_lost & ~is_constant(values)
    return lost


def _read_labelled(path: str | os.PathLike, label_column: str):
    """`(names, rows, whether each is an anomaly or None)`, without the labels."""
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    names, rows, lines = read_numbers(path)
    index = names.index(label_column) if label_column in names else None
    if len(names) == (0 if index is None else 1):
        raise ValueError(f"{path}: there is no column but {label_column!r}")
    if not label_column or index is None:
        return names, rows, None
    labels = rows[:, index]
    if len(wrong := np.flatnonzero((labels != 0) & (labels != 1))):
        row = wrong[0]
        place = f"line {lines[row]}" if lines else f"row {row + 1}"
        raise ValueError(
            f"{path}, {place}, column {label_column!r}: a label must be 0 or 1, got"
            f" {labels[row]:g}"
        )
    names = (*names[:index], *names[index + 1 :])
    return names, np.delete(rows, index, axis=1), labels == 1
