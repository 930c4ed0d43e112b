"""`snet import` of what is larger than the memory: what `tables.import_tables` gives, to the last bit.

Rows go to scratch as they are read (`table_spool`), trajectories to scratch as they are assembled, a few at a time or
one in parts (`recording_parts`); there they lie column by column, and are thinned, cut and written as ranges of rows.
In memory are the ids, a few numbers for each trajectory, and with ``--derive`` two columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.channel_spec import Request
from snet_cli.data.derivatives import Turns, local_rate, with_rate
from snet_cli.data.merge_slices import merged_in_slices
from snet_cli.data.options import ImportOptions
from snet_cli.data.recording import ChannelFacts, Recording, Repairs, assemble_one, joined
from snet_cli.data.recording_parts import assembled_parts, in_time_order
from snet_cli.data.scratch import NUMBER, Reader, Require, ScratchColumns
from snet_cli.data.splits import assign_split
from snet_cli.data.spooled import Spool, SpooledTrajectories, without_samples
from snet_cli.data.table_files import Kind
from snet_cli.data.table_meaning import Meaning, meaning_of, require_alike, unique_ids
from snet_cli.data.table_spool import SpooledTables, blocks_of, spool_tables
from snet_cli.data.tables import check_numbers, check_thinned, init_windows, kinds_of, refuse_table_flags, request_of
from snet_cli.data.trajectories import Trajectories

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SLICE_NUMBERS = 1_000_000
"""Numbers of rows that are assembled at a time."""

SORT_COPIES = 8.0
"""Memory that the rows of a recording take while they are sorted by time, in copies of them."""

RATE_NUMBERS = 22.0
"""Numbers in memory for each sample of a channel whose rate is derived."""


def import_in_slices(
    paths: Sequence[Path], options: ImportOptions, *, max_bytes: int, require: Require
) -> tuple[SpooledTrajectories, list[str]]:
    """Trajectories of recorded tables, on scratch, and what the user should know about them.

    Parameters
    ----------
    paths, options, max_bytes
        As for `tables.import_tables`.
    require : callable
        Refuses work for which there is no memory.

    Raises
    ------
    UsageError, DataError
        As from `import_tables`, and for what cannot be done in slices.
    """
    o = options
    check_numbers(o.window, o.stride, o.decimate, o.init_window)
    notes: list[str] = []
    kinds = kinds_of(paths, max_bytes)
    if kinds[0] == "own":
        refuse_table_flags(o.states, o.inputs, o.time, o.by, o.hold, o.units, o.angle, o.derive)
        data = merged_in_slices(paths, max_bytes, require, notes)
    else:
        request = request_of(o.states, o.inputs, o.time, o.by)
        data = _assembled(paths, kinds, request, o, max_bytes, require, notes)
    if o.split:
        numbers, said = assign_split(o.split, data.ids)
        data, notes = data.stating(split=numbers), notes + said
    data = data.thinned(o.decimate)
    check_thinned(data.row_size, data.ids, o.decimate)
    if o.window is not None:
        data, said = data.cut(o.window, o.window if o.stride is None else o.stride)
        data, notes = data.stating(ids=unique_ids(data.ids, data.ids)), notes + said
    if o.init_window:
        data = data.stating(init_window=init_windows(data.row_size, data.ids, o.init_window))
    return data, notes


def _assembled(
    paths: Sequence[Path],
    kinds: Sequence[Kind],
    request: Request,
    options: ImportOptions,
    max_bytes: int,
    require: Require,
    notes: list[str],
) -> SpooledTrajectories:
    """The recordings as trajectories, with angles and rates."""
    tables = spool_tables(paths, kinds, request, max_bytes, require, notes)
    require_alike(tables.heads)
    ids = unique_ids([one.id for one in tables.found], tables.longer)
    meaning = meaning_of(tables.heads, options.hold, options.units, options.angle, options.derive)
    repairs, facts, spool, shell = Repairs(), ChannelFacts(len(ids)), Spool(len(ids)), None
    for number, part in _trajectories(tables, ids, meaning, repairs, require):
        facts.add(part, number)
        spool.add(part, number)
        shell = without_samples(part).select([0])
    assert shell is not None
    notes += repairs.notes() + facts.notes(shell, ids)
    data = spool.finished(replace(shell.select(np.zeros(len(ids), np.int64)), ids=ids))
    return _with_rates(data, meaning, require, notes)


def _trajectories(
    tables: SpooledTables, ids: Sequence[str], meaning: Meaning, repairs: Repairs, require: Require
) -> Iterator[tuple[int, Trajectories]]:
    """Slices of trajectories, or parts of one, each with the number of its first."""
    for first, end in _groups(tables):
        if end == first + 1 and _is_long(tables, first):
            yield from _parts(tables, first, ids[first], meaning, repairs, require)
            continue
        recordings = tables.several([(number, ids[number]) for number in range(first, end)])
        parts = [assemble_one(recording, meaning.hold, repairs) for recording in recordings]
        yield first, meaning.applied(joined(recordings[0], parts, ids[first:end], meaning.hold, meaning.units))


def _groups(tables: SpooledTables) -> Iterator[tuple[int, int]]:
    """Recordings that lie one after the other and are few enough to be assembled at a time; long ones alone."""
    first = 0
    while first < len(tables.found):
        begin, end = tables.found[first], first + 1
        numbers = begin.size * begin.store.width
        while end < len(tables.found):
            before, one = tables.found[end - 1], tables.found[end]
            numbers += one.size * one.store.width
            together = one.store is begin.store and one.begin == before.begin + before.size
            if not together or numbers > SLICE_NUMBERS:
                break
            end += 1
        yield first, end
        first = end


def _is_long(tables: SpooledTables, number: int) -> bool:
    one = tables.found[number]
    return one.size * one.store.width > 2 * SLICE_NUMBERS


def _parts(
    tables: SpooledTables, number: int, name: str, meaning: Meaning, repairs: Repairs, require: Require
) -> Iterator[tuple[int, Trajectories]]:
    """The trajectory of a long recording in parts; in one where its rows have to be sorted by time."""
    one = tables.found[number]
    blocks = list(blocks_of(0, one.size, max(2, SLICE_NUMBERS // one.store.width)))

    def rows(begin: int, end: int) -> Recording:
        return tables.recording(number, name, begin, end)

    if not in_time_order(rows(max(begin - 1, 0), end) for begin, end in blocks):
        size = SORT_COPIES * NUMBER * one.size * one.store.width
        source = tables.heads[one.head].source
        require(f"sorting the {one.size} rows of '{name}' in {source} by time, which they are not,", size)
        found = iter([assemble_one(rows(0, one.size), meaning.hold, repairs)])
    else:
        found = assembled_parts(((rows(b, e), e == one.size) for b, e in blocks), meaning.hold, repairs)
    head = rows(0, 0)
    turns = {angle: Turns() for angle in meaning.angles}
    for part in found:
        data = joined(head, [part], [name], meaning.hold, meaning.units)
        yield number, meaning.applied(data, turns)


def _with_rates(data: SpooledTrajectories, meaning: Meaning, require: Require, notes: list[str]) -> SpooledTrajectories:
    """The trajectories with the rates of `--derive`."""
    meaning.check_rates(data.bare.output_names)
    count = int(data.row_size.sum())
    for name, of in meaning.rates.items():
        require(f"--derive from {count} samples of '{of}'", RATE_NUMBERS * NUMBER * count)
        rate = local_rate(data.columns["time"](0, count), data.columns[f"y_{of}"](0, count), data.row_size)
        notes.append(rate.note(name, of))
        data = data.with_output(name, with_rate(data.bare, name, of, np.zeros(0)), _kept(rate.values))
    stated = {name: meaning.stated[name] for name in meaning.rates if name in meaning.stated}
    return data.stating(units={**data.bare.units, **stated})


def _kept(values: FloatArray) -> Reader:
    """A column on scratch."""
    column = ScratchColumns(1)
    column.append(values[:, None])
    return column.column(0)
