"""Tables as columns: text, arrays, and what pandas and Arrow hold or write."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.data import cells, tabular
from experiments.data.stored import naming

__all__ = ["Frame", "check_finite", "read_frame", "read_numbers"]

ARROW_FILES = (".arrow", ".feather", ".parquet")
MISSING = frozenset(["", "na", "n/a", "nan", "none", "null", "?"])
"""Cells of text, in lower case, that stand for a missing value."""


class Frame(NamedTuple):
    """A table that was read, with nothing encoded.

    Attributes:
      name: Name of the file, for messages.
      names: Names of the columns.
      columns: A column is either float64 `[n]`, with NaN for what is missing, or text
        `[n]` of Python's type, with None for it.
      lines: Lines of the rows in a text file, from 1; empty for other tables.
    """

    name: str
    names: tuple[str, ...]
    columns: tuple[np.ndarray, ...]
    lines: tuple[int, ...] = ()

    def place(self, row: int, column: str) -> str:
        """Returns where a cell is, for messages."""
        number = self.lines[row] if self.lines else row + 1
        kind = "line" if self.lines else "row"
        return f"{self.name}, {kind} {number}, column {column!r}"


def read_frame(source: Any) -> Frame:
    """Reads a table.

    Args:
      source: The path of a text file as `cells.read_cells` reads it, of an array
        `[n, columns]` (`.npy`), or of a file of Arrow (`.parquet`, `.feather`,
        `.arrow`), which needs pyarrow. Or a table in memory: such an array, a data
        frame of pandas, or a table of Arrow.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is damaged, a column has neither numbers nor text, or
        pyarrow is needed and not installed.
    """
    if isinstance(source, str | os.PathLike):
        return _read_file(pathlib.Path(source).expanduser())
    if hasattr(source, "column_names"):
        return _from_arrow("the table", source)
    if hasattr(source, "iloc"):
        return _from_pandas("the frame", source)
    return _from_array("the array", np.asarray(source))


def _read_file(path: pathlib.Path) -> Frame:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    suffix = path.suffix.lower()
    if suffix in ARROW_FILES:
        return _from_arrow(str(path), _read_arrow(path, suffix))
    if suffix == ".npy":
        with naming(path):
            rows = np.load(path)
        return _from_array(str(path), rows)
    names, lines = cells.read_cells(path)
    columns = zip(*(row for _, row in lines), strict=True)
    return Frame(
        str(path),
        names,
        tuple(_parse_texts(column) for column in columns),
        tuple(number for number, _ in lines),
    )


def _read_arrow(path: pathlib.Path, suffix: str):
    try:
        from pyarrow import feather, ipc, parquet
    except ImportError as error:
        raise ValueError(f"{path} is read by pyarrow: pip install pyarrow") from error
    with naming(path):
        if suffix == ".parquet":
            return parquet.read_table(path)
        if path.read_bytes()[:6] in (b"ARROW1", b"FEA1"):
            return feather.read_table(path)
        with path.open("rb") as file:  # a stream has no such mark
            return ipc.open_stream(file).read_all()


def _parse_texts(texts: Sequence[Any]) -> np.ndarray:
    """Returns numbers if all texts are numbers or missing, else the texts."""
    stripped = [None if text is None else str(text).strip() for text in texts]
    known = [x if x and x.lower() not in MISSING else None for x in stripped]
    if all(x is None or cells.is_number(x) for x in known):
        return np.array([np.nan if x is None else float(x) for x in known])
    return np.array(known, object)


def _from_array(name: str, rows: np.ndarray) -> Frame:
    if rows.ndim != 2 or rows.dtype.kind not in "biuf" or not rows.size:
        raise ValueError(
            f"{name} must be numbers [n, columns], got {rows.dtype} {rows.shape}"
        )
    names = tuple(f"column {i + 1}" for i in range(rows.shape[1]))
    return Frame(name, names, tuple(rows.T.astype(np.float64)))


def _from_pandas(name: str, frame) -> Frame:
    columns = []
    for index, column in enumerate(frame.columns):
        series = frame.iloc[:, index]
        if getattr(series.dtype, "kind", "O") in "biuf":
            columns.append(series.to_numpy(np.float64, na_value=np.nan))
        elif getattr(series.dtype, "kind", "O") in "mMc":
            raise ValueError(_no_column(name, column, series.dtype))
        else:
            texts = series.astype(object).where(series.notna(), None)
            columns.append(_parse_texts(texts.tolist()))
    return _named(name, [str(column) for column in frame.columns], columns)


def _from_arrow(name: str, table) -> Frame:
    from pyarrow import types

    columns = []
    for column, values in zip(table.column_names, table.columns, strict=True):
        kind = values.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        is_number = types.is_integer(kind) or types.is_floating(kind)
        if is_number or types.is_boolean(kind) or types.is_decimal(kind):
            found = [np.nan if x is None else float(x) for x in values.to_pylist()]
            columns.append(np.array(found))
        elif (
            types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
        ):
            columns.append(_parse_texts(values.to_pylist()))
        else:
            raise ValueError(_no_column(name, column, kind))
    return _named(name, table.column_names, columns)


def _named(name: str, names: Sequence[str], columns: list[np.ndarray]) -> Frame:
    if len(set(names)) < len(names) or not names or not len(columns[0]):
        raise ValueError(
            f"{name} must have rows, and columns of different names, got {list(names)}"
        )
    return Frame(name, tuple(names), tuple(columns))


def _no_column(name: str, column: str, kind: Any) -> str:
    return f"{name}: the column {column!r} must be numbers or text, got {kind}"


def read_numbers(source: Any) -> tabular.Rows:
    """Returns a table of finite numbers; see `read_frame`.

    Raises:
      ValueError: As `read_frame`, or if a cell is missing or no finite number.
    """
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(source).expanduser()
        if path.is_file() and path.suffix.lower() not in (*ARROW_FILES, ".npy"):
            return tabular.read_rows(path)
    frame = read_frame(source)
    for name, column in zip(frame.names, frame.columns, strict=True):
        check_finite(frame, name, column, False)
    return tabular.Rows(frame.names, np.stack(frame.columns, 1), frame.lines)


def check_finite(
    frame: Frame, name: str, column: np.ndarray, may_be_missing: bool
) -> None:
    """Raises a ValueError for the first cell of a column that is no finite number."""
    if column.dtype != object:
        wrong = np.isinf(column) if may_be_missing else ~np.isfinite(column)
    else:
        wrong = np.array([x is not None and not cells.is_number(x) for x in column])
        if not may_be_missing:
            wrong |= np.array([x is None for x in column])
    if wrong.any():
        row = int(wrong.argmax())
        found, place = column[row], frame.place(row, name)
        if found is None or found != found:
            raise ValueError(f"{place}: the value is missing")
        if column.dtype == object:
            raise ValueError(f"{place}: {found!r} is not a number")
        raise ValueError(f"{place}: {found:g} is not finite")
