"""The rows of all tables on scratch, recording by recording, for an import that is larger than the memory.

A CSV file is read a block of rows at a time. Where the rows of its recordings are mixed they are sorted by recording on
the disk, each block's rows put where they belong. NPZ and MAT files can only be read whole, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import Request
from snet_cli.data.recording import Recording
from snet_cli.data.scratch import Require, ScratchRows
from snet_cli.data.table_arrays import read_arrays
from snet_cli.data.table_csv import CsvTable, Labels, encoding_of, open_table, text_of, without_label
from snet_cli.data.table_files import Kind, read_bytes, unreadable
from snet_cli.data.table_mat import open_mat5, open_mat73
from snet_cli.data.table_npz import open_npz

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ARRAY_COPIES = 6.0
"""Memory that an NPZ or MAT file takes, in bytes per byte of the file: packed numbers, arrays, and copies of them."""

SORTED_ROWS = 100_000
"""Rows that are put where they belong at a time."""

BLOCK = 1 << 22
"""Bytes of a file that are looked at together."""


class Found(NamedTuple):
    """A recording: which of the heads it has, its id, and where its rows lie."""

    head: int
    id: str
    store: ScratchRows
    begin: int
    size: int


@dataclass
class SpooledTables:
    """All recordings of all files.

    Attributes
    ----------
    heads : list of Recording
        Names, units and source of recordings, without rows.
    found : list of Found
    longer : list of str
        A longer id for each, with the file's name.
    """

    heads: list[Recording] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    longer: list[str] = field(default_factory=list)

    def add(self, head: Recording, stem: str, name: str, store: ScratchRows, begin: int, size: int) -> None:
        """A recording whose rows lie in the store."""
        if not self.heads or self.heads[-1] is not head:
            self.heads.append(head)
        self.found.append(Found(len(self.heads) - 1, name, store, begin, size))
        self.longer.append(stem if name == stem else f"{stem}-{name}")

    def recording(self, number: int, name: str, begin: int, end: int) -> Recording:
        """Rows ``begin:end`` of a recording under this name."""
        return self.several([(number, name)], begin, end)[0]

    def several(self, named: Sequence[tuple[int, str]], begin: int = 0, end: int | None = None) -> list[Recording]:
        """Recordings that lie one after the other in their store, each under its name."""
        first, last = self.found[named[0][0]], self.found[named[-1][0]]
        low = first.begin + begin
        rows = first.store.between(low, last.begin + (last.size if end is None else end))
        out = []
        for number, name in named:
            one = self.found[number]
            head = self.heads[one.head]
            at = one.begin - first.begin
            own = rows[at : at + one.size]
            d = len(head.output_names)
            out.append(
                replace(
                    head,
                    id=name,
                    rows=own[:, 0].astype(np.int64),
                    time=own[:, 1],
                    outputs=own[:, 2 : 2 + d],
                    inputs=own[:, 2 + d :],
                )
            )
        return out


def spool_tables(
    paths: Sequence[Path], kinds: Sequence[Kind], request: Request, max_bytes: int, require: Require, notes: list[str]
) -> SpooledTables:
    """Read all tables, and keep their rows on scratch.

    Raises
    ------
    DataError
        As from reading each of them in one piece.
    UsageError
        If a file that can only be read whole does not fit into the memory.
    """
    tables = SpooledTables()
    stores: dict[int, tuple[ScratchRows, ScratchRows]] = {}

    def stores_of(head: Recording) -> tuple[ScratchRows, ScratchRows]:
        width = 2 + len(head.output_names) + len(head.input_names)
        if width not in stores:
            stores[width] = ScratchRows(width), ScratchRows(width)
        return stores[width]

    for path, kind in zip(paths, kinds, strict=True):
        source, stem = str(path), path.stem
        if kind == "csv":
            with _opened(path) as stream:
                encoding = encoding_of(iter(partial(stream.read, BLOCK), b""))
                stream.seek(0)
                with text_of(stream, encoding) as text:
                    table = open_table(text, source, request)
                    head = table.recording(stem, np.zeros(0, np.int64), np.zeros((0, len(table.layout.columns))))
                    _spool_csv(table, head, stem, stores_of(head), tables)
            continue
        require(f"reading {source}, whose kind is read whole,", ARRAY_COPIES * path.stat().st_size)
        opener = {"npz": open_npz, "mat5": open_mat5, "mat73": open_mat73}[kind]
        for recording in read_arrays(opener(read_bytes(path, max_bytes), source, stem, max_bytes), request, notes):
            head = without_rows(recording)
            store = stores_of(head)[0]
            tables.add(head, stem, recording.id, store, len(store), len(recording.time))
            store.append(
                _with_lines(recording.rows, np.column_stack([recording.time, recording.outputs, recording.inputs]))
            )
    return tables


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from None


def _spool_csv(
    table: CsvTable, head: Recording, stem: str, stores: tuple[ScratchRows, ScratchRows], tables: SpooledTables
) -> None:
    """The rows of a CSV file, those of each recording together."""
    store, first = stores[0], len(stores[0])
    if table.layout.by is None:
        for rows in table.rows:
            store.append(_with_lines(rows.lines, rows.values))
        if len(store) == first:
            raise table.without_rows()
        tables.add(head, stem, stem, store, first, len(store) - first)
        return
    labels, sizes, codes = Labels(), np.zeros(0, np.int64), ScratchRows(1)
    mixed, latest, unlabelled = False, 0, 0
    for rows in table.rows:
        store.append(_with_lines(rows.lines, rows.values))
        own = labels.numbered(rows.labels)
        codes.append(own[:, None].astype(np.float64))
        mixed = mixed or bool((np.diff(own, prepend=latest) < 0).any())  # numbered as they first appear
        latest = int(own[-1])
        counts = np.bincount(own, minlength=len(labels.numbers))
        counts[: sizes.size] += sizes
        sizes = counts
        if labels.empty is not None and not unlabelled:
            unlabelled = int(rows.lines[np.argmax(own == labels.empty)])
    if len(store) == first:
        raise table.without_rows()
    if labels.empty is not None:
        raise without_label(table.place(unlabelled), table.layout.by.header)
    begin = first
    if mixed:
        begin, store = len(stores[1]), stores[1]
        _sort(stores[0], first, codes, begin + np.cumsum(sizes) - sizes, store)
    for name, size in zip(labels.numbers, sizes.tolist(), strict=True):
        tables.add(head, stem, name, store, begin, size)
        begin += size


def without_rows(recording: Recording) -> Recording:
    """What all parts of a recording share."""
    none = np.zeros((0, 0))
    return replace(recording, rows=np.zeros(0, np.int64), time=np.zeros(0), outputs=none, inputs=none)


def _with_lines(lines: IntArray, values: FloatArray) -> FloatArray:
    return np.column_stack([lines.astype(np.float64), values])


def _sort(store: ScratchRows, first: int, codes: ScratchRows, places: IntArray, out: ScratchRows) -> None:
    """Move the rows from `first` on to where those of their recording begin (`places`), in the order they have."""
    for begin in range(0, len(codes), SORTED_ROWS):
        end = min(begin + SORTED_ROWS, len(codes))
        code = codes.between(begin, end)[:, 0].astype(np.int64)
        order = np.argsort(code, kind="stable")
        rows = store.between(first + begin, first + end)[order]
        owners, at = np.unique(code[order], return_index=True)
        for owner, group in zip(owners, np.split(rows, at[1:]), strict=True):
            out.put(int(places[owner]), group)
            places[owner] += len(group)
    store.truncate(first)


def blocks_of(begin: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `step` entries from `begin` to `end`."""
    for low in range(begin, end, step):
        yield low, min(low + step, end)
