"""The rows of a CSV file as numbers, only of the columns asked for, a block of rows at a time.

There are two ways to the same numbers: plain blocks go through NumPy's own parser (a million rows in two seconds);
from the first block on that this declines (quotes, comments, words) the file goes cell by cell, which also finds the
line of an error.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import shorten
from snet_cli.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none"})
"""Cells, in lower case, that mean: not measured."""

BLOCK_ROWS, BLOCK_CELLS = 50_000, 1_000_000
"""Rows and cells split at a time, at most: about 60 MB of Python strings."""

DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?|[+-]?\d+,([eE][+-]?\d+)?")


class Column(NamedTuple):
    """One column of the header: its number, the cell as written, the name without its unit, the unit."""

    position: int
    header: str
    name: str
    unit: str


@dataclass(frozen=True)
class Layout:
    """What the header says, and which columns are wanted.

    Attributes
    ----------
    source : str
        The file, for messages.
    delimiter : str
    width : int
        Cells of a row.
    columns : tuple of Column
        The columns to convert: time, states, inputs, in this order.
    by : Column or None
    output_names, input_names : tuple of str
    """

    source: str
    delimiter: str
    width: int
    columns: tuple[Column, ...]
    by: Column | None
    output_names: tuple[str, ...]
    input_names: tuple[str, ...]


class Rows(NamedTuple):
    """A block of rows: their line numbers (K,), values (K, columns), and labels (K, or none without `Layout.by`)."""

    lines: IntArray
    values: FloatArray
    labels: list[str]


def read_rows(stream: TextIO, start: int, layout: Layout) -> Iterator[Rows]:
    """All rows of a text that was read up to and with line `start`, in blocks; the text keeps its line ends."""
    size = max(1, min(BLOCK_ROWS, BLOCK_CELLS // layout.width))
    at = start
    while True:
        block = list(islice(stream, size))
        if not block:
            return
        found = _plain_rows("".join(block), at, layout, len(block) < size)
        if found is None:
            yield from _by_cells(chain(block, stream), at, layout)
            return
        yield found
        at += len(block)


def _by_cells(text: Iterator[str], start: int, layout: Layout) -> Iterator[Rows]:
    """The rows cell by cell."""
    reader = csv.reader(text, delimiter=layout.delimiter, strict=True)
    indices = [column.position for column in layout.columns] + ([] if layout.by is None else [layout.by.position])
    pick: Callable[[list[str]], Any] = itemgetter(*indices)
    for lines, rows in _blocks(reader, start, layout):
        columns = list(zip(*map(pick, rows), strict=True))
        labels = [] if layout.by is None else list(columns.pop())
        cells = zip(columns, layout.columns, strict=True)
        yield Rows(lines, np.stack([_numbers(c, column, lines, layout) for c, column in cells], axis=1), labels)


def _plain_rows(text: str, start: int, layout: Layout, at_end: bool) -> Rows | None:
    """All rows by NumPy's parser; None if the text holds anything but numbers and empty cells.

    The parser looks only at the columns asked for, so that the number of cells of every row is checked first.
    """
    mark = layout.delimiter
    body = text.replace("\r\n", "\n")
    body = body.rstrip("\n") if at_end else body.removesuffix("\n")
    if not body or any(other in body for other in '"#\r'):
        return None
    rows = body.split("\n")
    if {row.count(mark) for row in rows} != {layout.width - 1} or "" in rows:
        return None
    if mark != "\t":
        values = _parse(body, mark, layout)
    else:  # NumPy strips white space, tabs too, before it looks for empty cells
        values = None if " " in body or "," in body else _parse(body.replace("\t", ","), ",", layout)
    if values is None:
        return None
    labels = [] if layout.by is None else [row.split(mark)[layout.by.position] for row in rows]
    return Rows(np.arange(start + 1, start + 1 + len(values), dtype=np.int64), values, labels)


def _parse(body: str, mark: str, layout: Layout) -> FloatArray | None:
    """`numpy.loadtxt` with the empty cells spelled out."""
    body = f"\n{body}\n"
    for _ in range(2):  # two empty cells in a row share a delimiter
        body = body.replace(mark + mark, f"{mark}nan{mark}")
    body = body.replace(f"\n{mark}", f"\nnan{mark}").replace(f"{mark}\n", f"{mark}nan\n")
    indices = [column.position for column in layout.columns]
    try:
        values = np.loadtxt(io.StringIO(body[1:]), delimiter=mark, usecols=indices, comments=None, ndmin=2)
    except ValueError:
        return None
    return None if np.isnan(values).all(axis=1).any() else values  # a row of delimiters only counts as blank


def _blocks(reader: Any, start: int, layout: Layout) -> Iterator[tuple[IntArray, list[list[str]]]]:
    """Blocks of rows of the right width with their line numbers; blank lines and comments are left out."""
    size = max(1, min(BLOCK_ROWS, BLOCK_CELLS // layout.width))
    while True:
        before = reader.line_num
        rows: list[list[str]] = []
        lines: list[int] = []
        try:
            for row in islice(reader, size):
                rows.append(row)
                lines.append(reader.line_num)
        except csv.Error as error:
            raise malformed(error, layout.source, start + (lines[-1] if lines else before) + 1) from None
        if not rows:
            return
        if set(map(len, rows)) != {layout.width} or any(row[0].startswith("#") for row in rows):
            rows, lines = _regular(rows, lines, start, layout)
        if rows:
            yield np.array(lines, dtype=np.int64) + start, rows


def _regular(rows: list[list[str]], lines: list[int], start: int, layout: Layout) -> tuple[list[list[str]], list[int]]:
    """Leave blank lines and comments out, cut empty cells beyond the header off, refuse any other width."""
    kept, kept_lines = [], []
    for row, line in zip(rows, lines, strict=True):
        if not any(cell.strip() for cell in row) or row[0].lstrip().startswith("#"):
            continue
        if len(row) != layout.width:
            if len(row) < layout.width or any(cell.strip() for cell in row[layout.width :]):
                raise DataError(
                    f"{layout.source}, line {start + line}: {len(row)} cells, "
                    f"expected {layout.width} as in the header.",
                    "Check whether the file was cut off there, or a text with a delimiter lacks its quotes.",
                )
            row = row[: layout.width]
        kept.append(row)
        kept_lines.append(line)
    return kept, kept_lines


def _numbers(cells: Sequence[str], column: Column, lines: IntArray, layout: Layout) -> FloatArray:
    """The cells of one column as numbers; missing ones are NaN."""
    try:
        values = np.array(cells, dtype=np.float64)
    except ValueError:
        pass
    else:
        if not any("_" in cell for cell in cells):  # Python reads 1_000 as a number; in a table it is a name
            return values
    values = np.empty(len(cells))
    for row, cell in enumerate(cells):
        value = read_number(cell.strip(), decimal_comma=layout.delimiter != ",")
        if value is None:
            raise DataError(
                f"{layout.source}, line {lines[row]}: '{shorten(cell)}' in column '{shorten(column.name)}' "
                "is no number.",
                "Write numbers with a decimal point, and leave the cell empty where nothing was measured.",
            )
        values[row] = value
    return values


def read_number(text: str, decimal_comma: bool) -> float | None:
    """Value of a cell, NaN if it is missing, None if it is no number."""
    if text.lower() in MISSING:
        return float("nan")
    if decimal_comma and DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def malformed(error: csv.Error, source: str, line: int) -> DataError:
    """The error for a line that the CSV reader gave up on."""
    if "field limit" in str(error) or "unexpected end" in str(error):
        return DataError(
            f"{source}, line {line}: a quoted cell that starts here has no end (or one cell has "
            f"more than {csv.field_size_limit()} characters).",
            "Close the quote.",
        )
    return DataError(
        f"{source}, line {line}: the row is malformed ({error}).", "Check the quotes and delimiters there."
    )
