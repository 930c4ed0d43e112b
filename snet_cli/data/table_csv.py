"""CSV: a header that names the columns, one row per time, cells that are numbers or empty.

The delimiter (comma, semicolon, tab) is the one that splits the header into most cells. A unit may stand behind a
name (``x [m]`` or ``x (m)``). Lines that start with # are comments. In files with semicolons or tabs a decimal
comma is read as a point.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TextIO

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import ChannelItem, Request, check_name, listing, nearest, shorten
from snet_cli.data.csv_rows import Column, FloatArray, Layout, Rows, malformed, read_number, read_rows
from snet_cli.data.recording import Recording
from snet_cli.errors import DataError

IntArray = NDArray[np.int64]

TIME_COLUMN = re.compile(r"(t|time|timestamp)([ _]?(s|sec|seconds?|ms|us|µs|ns|min|h))?", re.IGNORECASE)
"""Names of a column that is the time without being named by --time."""


def read_csv(data: bytes, source: str, stem: str, request: Request) -> list[Recording]:
    """Recordings of a CSV file: one, or one per value of the ``--by`` column.

    Parameters
    ----------
    data : bytes
        The file.
    source, stem : str
        Its name as the user wrote it, for messages, and its stem, the id of its recording.
    request : Request
        The columns wanted.

    Raises
    ------
    DataError
        For a file without header or rows, a column that it does not have, a row with too few or too many cells, a
        cell that is no number. The message names the line.
    """
    with text_of(io.BytesIO(data), encoding_of([data])) as text:
        table = open_table(text, source, request)
        blocks = list(table.rows)
    if not blocks:
        raise table.without_rows()
    lines, values = (np.concatenate([block[part] for block in blocks]) for part in (0, 1))
    groups: dict[str, IntArray] = {stem: np.arange(lines.size)}
    if table.layout.by is not None:
        labels = [label for block in blocks for label in block.labels]
        groups = group_rows(labels, lambda row: table.place(lines[row]), table.layout.by.header)
    return [table.recording(label, lines[rows], values[rows]) for label, rows in groups.items()]


@dataclass(frozen=True)
class CsvTable:
    """A CSV file whose header was read.

    Attributes
    ----------
    layout : Layout
    rows : iterator of Rows
        What stands below, a block at a time, to be taken once.
    """

    layout: Layout
    rows: Iterator[Rows]

    def place(self, line: int) -> str:
        """Where a line stands, for a message."""
        return f"{self.layout.source}, line {line}"

    def without_rows(self) -> DataError:
        """The error for a file that ends with its header."""
        return DataError(
            f"{self.layout.source}: there are column names but no rows.", "Check that the recording was written."
        )

    def recording(self, label: str, lines: IntArray, values: FloatArray) -> Recording:
        """Rows of one recording: their line numbers (K,) and values (K, 1 + d + m)."""
        layout = self.layout
        states = slice(1, 1 + len(layout.output_names))
        inputs = slice(states.stop, None)
        names = (layout.columns[0].name, *layout.output_names, *layout.input_names)
        return Recording(
            id=label,
            source=layout.source,
            row_word="line",
            rows=lines,
            time=values[:, 0],
            outputs=values[:, states],
            inputs=values[:, inputs],
            output_names=layout.output_names,
            input_names=layout.input_names,
            time_name=layout.columns[0].name,
            units={name: column.unit for name, column in zip(names, layout.columns, strict=True) if column.unit},
        )


def text_of(stream: BinaryIO, encoding: str) -> TextIO:
    """The text of a file, lines with the ends that they have."""
    return io.TextIOWrapper(stream, encoding, errors="replace", newline="")


def open_table(text: TextIO, source: str, request: Request) -> CsvTable:
    """Read the header of a CSV file, and find the wanted columns in it; its rows are read from the text later."""
    start, header, delimiter = find_header(text, source)
    layout = lay_out(header, delimiter, source, request)
    text.seek(0)
    for _ in range(start):
        next(text)
    return CsvTable(layout, read_rows(text, start, layout))


def encoding_of(blocks: Iterable[bytes]) -> str:
    """UTF-8 with or without byte-order mark, UTF-16 with one, else Latin-1 (only names can differ)."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    first, waiting = True, False
    for block in blocks:
        if first and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        first = False
        if not waiting and block.isascii():
            continue
        try:
            decoder.decode(block)
        except UnicodeDecodeError:
            return "latin-1"
        waiting = bool(decoder.getstate()[0])
    return "latin-1" if waiting else "utf-8-sig"


def find_header(lines: Iterable[str], source: str) -> tuple[int, list[str], str]:
    """Number of physical lines up to and with the header, its cells, and the delimiter.

    A comment directly above numbers is the header that `numpy.savetxt` writes.
    """
    comment = ""
    comment_line = 0
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if stripped.startswith("#"):
            comment, comment_line = stripped.lstrip("#").strip(), number
        elif stripped.strip(",;\t "):
            delimiter = sniff(line)
            cells = _split(line, delimiter, source, number)
            if all(_is_number(cell) for cell in cells):
                named = _split(comment, delimiter, source, comment_line) if comment else []
                if len(named) == len(cells) and not any(_is_number(cell) for cell in named):
                    return number - 1, named, delimiter
                raise DataError(
                    f"{source}, line {number}: the first row holds numbers, expected the names of the columns.",
                    "Add a first line with the names, such as t,x,y",
                )
            return number, cells, delimiter
    raise DataError(
        f"{source}: the file holds no table, expected a line of column names and rows of numbers.",
        "Check that the recording was written.",
    )


def sniff(header: str) -> str:
    """The delimiter that occurs most often in the header, outside quotes; a comma if there is none."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(",;\t", key=bare.count)


def lay_out(header: list[str], delimiter: str, source: str, request: Request) -> Layout:
    """Find the wanted columns in the header."""
    table = [split_unit(position, cell.strip()) for position, cell in enumerate(header)]
    by_name: dict[str, list[Column]] = {}
    for column in table:
        for key in {column.header, column.name}:
            by_name.setdefault(key, []).append(column)

    def find(name: str) -> Column:
        exact = [column for column in by_name.get(name, []) if column.header == name]
        found = exact or by_name.get(name, [])
        if len(found) == 1:
            return found[0]
        names = [column.name for column in table if column.name]
        if found:
            raise DataError(
                f"{source}: {len(found)} columns are named '{shorten(name)}'.", "Give each column a name of its own."
            )
        raise DataError(
            f"{source}: there is no column '{shorten(name)}'.", f"{nearest(name, names)}It has {listing(names)}."
        )

    def channel(item: ChannelItem, flag: str) -> tuple[str, Column]:
        column = find(item.left if item.right is None else item.right)
        return check_name(column.name if item.right is None else item.left, flag), column

    states = [channel(item, "--states") for item in request.states]
    inputs = [channel(item, "--inputs") for item in request.inputs]
    taken = {column.position for _, column in (*states, *inputs)}
    by = None if request.by is None else find(request.by)
    if request.time is not None:
        time = find(request.time)
    else:
        free = [c.name for c in table if c.position not in taken and (by is None or c.position != by.position)]
        time = find(find_time(free, source, [c.name for c in table]))
    columns = (time, *(column for _, column in states), *(column for _, column in inputs))
    return Layout(
        source=source,
        delimiter=delimiter,
        width=len(header),
        columns=columns,
        by=by,
        output_names=tuple(name for name, _ in states),
        input_names=tuple(name for name, _ in inputs),
    )


def find_time(free: Sequence[str], source: str, every: Sequence[str]) -> str:
    """The one column whose name says time; an error that lists the columns if there is none or several."""
    found = [name for name in free if TIME_COLUMN.fullmatch(name)]
    if len(found) == 1:
        return found[0]
    what = f"{listing(found)} could all be the time" if found else "no name tells which column is the time"
    raise DataError(f"{source}: {what}.", f"Say which it is: --time NAME. There is {listing(every)}.")


def split_unit(position: int, header: str) -> Column:
    """Name and unit of a header cell: ``x [m]``, ``x[m]`` and ``x (m)`` are x in m."""
    match = re.fullmatch(r"(.*\S)\s*\[([^\[\]]*)\]|(.*\S)\s+\(([^()]*)\)", header)
    if match is None:
        return Column(position, header, header, "")
    name, unit = (match[1], match[2]) if match[1] is not None else (match[3], match[4])
    return Column(position, header, name, unit.strip())


class Labels:
    """Values of the ``--by`` column as numbers, in the order of their first appearance."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def numbered(self, labels: Sequence[str]) -> IntArray:
        """The number of each label."""
        codes = np.empty(len(labels), np.int64)
        for row, label in enumerate(labels):
            codes[row] = self.numbers.setdefault(label.strip(), len(self.numbers))
        return codes

    @property
    def empty(self) -> int | None:
        """The number of the label without any text."""
        return self.numbers.get("")


def group_rows(labels: Sequence[str], place: Callable[[int], str], column: str) -> dict[str, IntArray]:
    """Rows of each value of the ``--by`` column, values in the order of their first appearance."""
    found = Labels()
    codes = found.numbered(labels)
    if found.empty is not None:
        raise without_label(place(int(np.argmax(codes == found.empty))), column)
    sizes = np.bincount(codes, minlength=len(found.numbers))
    rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
    return dict(zip(found.numbers, rows, strict=True))


def without_label(place: str, column: str) -> DataError:
    """The error for a row that belongs to no recording."""
    return DataError(
        f"{place}: '{shorten(column)}', named by --by, is empty.", "Say which recording the row belongs to."
    )


def _is_number(cell: str) -> bool:
    return read_number(cell.strip(), decimal_comma=True) is not None


def _split(line: str, delimiter: str, source: str, number: int) -> list[str]:
    """Cells of one line of text."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise malformed(error, source, number) from None
