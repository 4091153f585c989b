"""Text tables as cells: a line of names, and rows of as many cells below it."""

import csv
import io
import math
import pathlib

__all__ = ["is_number", "parse_number", "read_cells"]

Lines = list[tuple[int, list[str]]]
"""Numbers of the lines in the file, from 1, and their cells."""


def read_cells(
    path: pathlib.Path, delimiter: str | None = None, num_columns: int | None = None
) -> tuple[tuple[str, ...], Lines]:
    """Returns the names of a text file's columns, and its rows.

    Without `num_columns` there must be as many as there are names, and a file that
    begins with a line of numbers has the names "column 1", .... Without `delimiter` it
    is the comma, semicolon or tab that the first line has most of.

    Raises:
      ValueError: If the file is no text, a line has another number of cells, a column
        has no name or that of another, the first line has names and numbers, or there
        are no rows; the message has the line and the column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # with or without its mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}") from error
    if delimiter is None:
        first = next((line for line in text.splitlines() if line.strip()), "")
        delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [
            (reader.line_num, cells)
            for cells in reader
            if cells and (len(cells) > 1 or cells[0].strip())
        ]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not lines:
        raise ValueError(f"{path} is empty")
    number, cells = lines[0]
    if num_columns is None:
        num_columns = len(cells)
        are_numbers = [is_number(cell) for cell in cells]
        if all(are_numbers):
            lines.insert(0, (0, [f"column {i + 1}" for i in range(num_columns)]))
        elif any(are_numbers):
            raise ValueError(
                f"{path}, line {number}: must have names alone, or numbers alone, got"
                f" {cells[are_numbers.index(True)]!r} beside"
                f" {cells[are_numbers.index(False)]!r}"
            )
    for number, cells in lines:
        if len(cells) != num_columns:
            raise ValueError(
                f"{path}, line {number}: expected {num_columns} columns,"
                f" got {len(cells)}"
            )
    if len(lines) < 2:
        raise ValueError(f"{path}: no rows below the line of names")
    names = tuple(cell.strip() for cell in lines[0][1])
    if "" in names:
        raise ValueError(f"{path}: column {names.index('') + 1} has no name")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{path}: the names {twice} are there more than once")
    return names, lines[1:]


def is_number(cell: str) -> bool:
    """Returns whether a cell is a number, which may be infinite."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def parse_number(cell: str, place: str) -> float:
    """Returns the finite number in a cell, whose place is for messages."""
    try:
        number = float(cell)
    except ValueError as error:
        raise ValueError(f"{place}: {cell!r} is not a number") from error
    if not math.isfinite(number):
        raise ValueError(f"{place}: {cell!r} is not finite")
    return number
