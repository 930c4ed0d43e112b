"""Trajectories whose samples lie on scratch, column by column: thinned and cut as ranges of rows, and written so.

Every step gives other ranges or another column; no sample is in memory but those of the block at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.content import Array, Content
from snet_cli.data.scratch import Reader, ScratchColumns, gathered, median
from snet_cli.data.trajectories import Trajectories, ragged_offsets
from snet_cli.data.trajectory_file import content_of, stored_variables
from snet_cli.data.windows import (
    TIME_TOLERANCE,
    Clock,
    ClockInMemory,
    knots_of,
    known_starts,
    left_out,
    require_windows,
    window_names,
    windows_of,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BLOCK = 200_000
"""Entries of a column that are looked at together."""

JUDGED = 1_000
"""Samples of the first trajectory by which the rules of the schema are checked; all obey them as they were made."""


@dataclass(frozen=True)
class SpooledTrajectories:
    """B trajectories on scratch.

    Attributes
    ----------
    bare : Trajectories
        The trajectories without their samples and knots: ids, constants, starts, Fourier series, and all names.
    row_size : ndarray, shape (B,)
    input_rows : ndarray, shape (B,), or None
        Knots of the inputs of each, where there are sampled inputs.
    columns : mapping of str to Reader
        ``time``, ``y_<name>``, ``xtrue_<name>``, ``u_time``, ``u_<name>``: what the file has for every sample or knot.
    """

    bare: Trajectories
    row_size: IntArray
    input_rows: IntArray | None
    columns: Mapping[str, Reader]

    def __len__(self) -> int:
        return len(self.bare)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all trajectories."""
        return self.bare.ids

    def stating(self, **known: Any) -> SpooledTrajectories:
        """The same with other facts of `bare`: ids, a split, init windows, provenance."""
        return replace(self, bare=replace(self.bare, **known))

    @property
    def samples(self) -> int:
        """Samples of all trajectories."""
        return int(self.row_size.sum())

    def blocks(self, name: str) -> Iterator[FloatArray]:
        """A column of samples, a block at a time."""
        return (self.columns[name](b, min(b + BLOCK, self.samples)) for b in range(0, self.samples, BLOCK))

    def measured(self) -> dict[str, int]:
        """How many values of each output were measured."""
        names = self.bare.output_names
        return {name: sum(int(np.isfinite(values).sum()) for values in self.blocks(f"y_{name}")) for name in names}

    def sampling_interval(self) -> float:
        """As `Trajectories.sampling_interval`."""
        starts = ragged_offsets(self.row_size)

        def steps() -> Iterator[FloatArray]:
            last, at = np.nan, 0
            for time in self.blocks("time"):
                step = np.diff(time, prepend=last)
                first = starts[np.searchsorted(starts, at) : np.searchsorted(starts, at + time.size)] - at
                yield np.delete(step, first)
                last, at = float(time[-1]), at + time.size

        return median(steps)

    def with_output(self, name: str, bare: Trajectories, column: Reader) -> SpooledTrajectories:
        """The same with one more output, which `bare` has already."""
        return replace(self, bare=bare, columns={**self.columns, f"y_{name}": column})

    def _of_samples(self) -> list[str]:
        return sample_columns(self.bare)

    def _of_knots(self) -> list[str]:
        return [name for name in self.columns if name not in self._of_samples()]

    def thinned(self, every: int) -> SpooledTrajectories:
        """Every `every`-th sample of each trajectory, as `windows.thin`."""
        if every == 1:
            return self
        names, starts = self._of_samples(), ragged_offsets(self.row_size)
        kept = ScratchColumns(len(names))
        for begin in range(0, self.samples, BLOCK):
            end = min(begin + BLOCK, self.samples)
            row = np.arange(begin, end)
            own = (row - starts[np.searchsorted(starts, row, side="right") - 1]) % every == 0
            kept.append(np.column_stack([self.columns[name](begin, end)[own] for name in names]))
        columns = {name: kept.column(i) for i, name in enumerate(names)}
        return replace(self, row_size=-(-self.row_size // every), columns={**self.columns, **columns})

    def cut(self, length: float, stride: float) -> tuple[SpooledTrajectories, list[str]]:
        """Windows as trajectories of their own, as `windows.cut`."""
        offsets, unit = ragged_offsets(self.row_size), self.bare.time_unit
        clocks = clocks_of(self.columns["time"], offsets)
        windows = windows_of(clocks, offsets, length, stride, TIME_TOLERANCE * self.sampling_interval())
        whole, any_sample = ClockOnScratch(self.columns["time"], 0, self.samples), self.row_size > 0
        start, end = np.zeros(len(self)), np.zeros(len(self))
        start[any_sample], end[any_sample] = (whole.at(at[any_sample]) for at in (offsets[:-1], offsets[1:] - 1))
        require_windows(windows, self.ids, length, float(np.max(end - start, initial=0.0)), unit)
        begins, ends = whole.at(windows.first), whole.at(windows.stop - 1)
        columns = {n: gathered(self.columns[n], windows.first, windows.stop) for n in self._of_samples()}
        input_rows = None
        if self.input_rows is not None and (sampled := self.bare.inputs.sampled) is not None:
            at, u_time = ragged_offsets(self.input_rows), self.columns["u_time"]
            first, stop = knots_of(
                lambda b: clock_of(u_time, int(at[b]), int(at[b + 1])),
                at,
                windows.owner,
                begins,
                ends,
                sampled.intersample,
            )
            columns |= {n: gathered(self.columns[n], first, stop) for n in self._of_knots()}
            input_rows = stop - first
        bare = self.bare.select(windows.owner)
        if bare.x0 is not None:
            bare = replace(bare, x0=known_starts(bare.x0, windows.first == offsets[windows.owner]))
        bare = replace(bare, ids=window_names(self.ids, windows, begins - start[windows.owner]))
        pieces = SpooledTrajectories(bare, windows.stop - windows.first, input_rows, columns)
        return pieces, left_out(self.ids, self.samples, windows, length)

    def content(self, label: str) -> tuple[Content, dict[str, int]]:
        """What a file holds of them, and the lengths of its dimensions.

        Raises
        ------
        DataError
            If they break a rule of the schema.
        """
        content, sizes = content_of(self._first(), label)
        sizes |= {"traj": len(self), "obs": self.samples}
        given = dict(stored_variables(self.bare))
        sizes_of = {"row_size": self.row_size, "u_row_size": self.input_rows}
        if self.input_rows is not None:
            sizes["uobs"] = int(self.input_rows.sum())
        arrays: dict[str, Array] = {}
        for name, array in content.arrays.items():
            if (rows := sizes_of.get(name)) is not None:
                arrays[name] = Array.of(rows.astype(array.dtype), array.dimensions, array.attributes)
            elif array.dimensions[0] == "traj":
                arrays[name] = given[name]
            else:
                arrays[name] = array.elsewhere(sizes[array.dimensions[0]], self.columns[name])
        return Content(content.attributes, arrays), sizes

    def _first(self) -> Trajectories:
        """The first samples of the first trajectory, as a trajectory."""
        first, rows = self.bare.select([0]), min(int(self.row_size[0]), JUDGED)

        def table(prefix: str, names: tuple[str, ...], count: int) -> FloatArray:
            return np.stack([self.columns[f"{prefix}{name}"](0, count) for name in names], axis=1)

        inputs, sampled = first.inputs, first.inputs.sampled
        if sampled is not None and self.input_rows is not None:
            knots = min(int(self.input_rows[0]), JUDGED)
            clock, values = self.columns["u_time"](0, knots), table("u_", sampled.names, knots)
            inputs = replace(inputs, sampled=replace(sampled, row_size=np.array([knots]), time=clock, values=values))
        return replace(
            first,
            row_size=np.array([rows]),
            time=self.columns["time"](0, rows),
            outputs=table("y_", first.output_names, rows) if first.output_names else np.zeros((rows, 0)),
            truth=None if first.truth is None else table("xtrue_", first.state_names, rows),
            inputs=inputs,
        )


def sample_columns(data: Trajectories) -> list[str]:
    """Names of the variables that have a row for every sample."""
    names = ["time", *(f"y_{name}" for name in data.output_names)]
    return names if data.truth is None else [*names, *(f"xtrue_{name}" for name in data.state_names)]


def without_samples(data: Trajectories) -> Trajectories:
    """The trajectories without their samples and knots."""
    inputs, sampled = data.inputs, data.inputs.sampled
    if sampled is not None:
        none = np.zeros_like(sampled.row_size)
        inputs = replace(
            inputs, sampled=replace(sampled, row_size=none, time=np.zeros(0), values=sampled.values[:0].copy())
        )
    return replace(data.select_rows(np.zeros(data.time.size, bool)), inputs=inputs)


class Spool:
    """Where trajectories go as they come, in slices or parts.

    Parameters
    ----------
    count : int
        Trajectories in all.
    """

    def __init__(self, count: int) -> None:
        self.row_size, self.input_rows = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.samples: ScratchColumns | None = None
        self.knots: ScratchColumns | None = None

    def add(self, data: Trajectories, first: int) -> None:
        """A slice, or a part of one trajectory, the first of which is number `first`."""
        own, sampled = slice(first, first + len(data)), data.inputs.sampled
        self.row_size[own] += data.row_size
        self.samples = self.samples or ScratchColumns(len(sample_columns(data)))
        self.samples.append(np.column_stack([data.time, data.outputs, *([] if data.truth is None else [data.truth])]))
        if sampled is not None:
            self.input_rows[own] += sampled.row_size
            self.knots = self.knots or ScratchColumns(1 + len(sampled.names))
            self.knots.append(np.column_stack([sampled.time, sampled.values]))

    def finished(self, bare: Trajectories) -> SpooledTrajectories:
        """All of them; `bare` is what they have beside samples and knots."""
        assert self.samples is not None
        columns = {name: self.samples.column(i) for i, name in enumerate(sample_columns(bare))}
        if self.knots is not None and bare.inputs.sampled is not None:
            inputs = ("u_time", *(f"u_{name}" for name in bare.inputs.sampled.names))
            columns |= {name: self.knots.column(i) for i, name in enumerate(inputs)}
        return SpooledTrajectories(bare, self.row_size, None if self.knots is None else self.input_rows, columns)


@dataclass(frozen=True)
class ClockOnScratch:
    """The times ``first:stop`` of a column, which ascend, as a `windows.Clock`."""

    column: Reader
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def at(self, rows: IntArray) -> FloatArray:
        """As `Clock.at`."""
        found = [np.zeros(0)]
        for begin, end in pairwise(np.flatnonzero(np.diff(rows // BLOCK, prepend=-1, append=-1))):
            own = rows[begin:end]
            low = self.first + int(own[0])
            found.append(self.column(low, self.first + int(own[-1]) + 1)[own - own[0]])
        return np.concatenate(found)

    def search(self, values: FloatArray, side: Literal["left", "right"] = "left") -> IntArray:
        """As `Clock.search`."""
        found, done = np.full(values.size, len(self)), 0
        for begin in range(self.first, self.stop, BLOCK):
            times = self.column(begin, min(begin + BLOCK, self.stop))
            here = int(np.searchsorted(values, times[-1], side="right" if side == "left" else "left"))
            found[done:here] = begin - self.first + np.searchsorted(times, values[done:here], side=side)
            done = max(done, here)
            if done == values.size:
                break
        return found


def clock_of(column: Reader, first: int, stop: int) -> Clock:
    """The clock of one trajectory."""
    return ClockOnScratch(column, first, stop) if stop - first > BLOCK else ClockInMemory(column(first, stop))


def clocks_of(column: Reader, offsets: IntArray) -> Iterator[Clock]:
    """The clocks of all trajectories, one after the other, short ones read together."""
    begin = 0
    while begin < len(offsets) - 1:
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + BLOCK, side="right")) - 1)
        if end == begin + 1:
            yield clock_of(column, int(offsets[begin]), int(offsets[end]))
        else:
            times = column(int(offsets[begin]), int(offsets[end]))
            for first, stop in pairwise(offsets[begin : end + 1] - offsets[begin]):
                yield ClockInMemory(times[first:stop])
        begin = end
