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
from snet_cli.data.trajectory_file import content_of
from snet_cli.data.windows import (
    TIME_TOLERANCE,
    Clock,
    ClockInMemory,
    knots_of,
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
    shell : Trajectories
        None of the trajectories, but everything else: names, units, holds, provenance.
    ids : tuple of str
    row_size : ndarray, shape (B,)
    input_rows : ndarray, shape (B,), or None
        Knots of the inputs of each, where there are inputs.
    columns : mapping of str to Reader
        ``time``, ``y_<name>``, ``u_time``, ``u_<name>``: the variables of the file that have a row for every sample or
        knot.
    split, init_window : ndarray of int, shape (B,), or None
    """

    shell: Trajectories
    ids: tuple[str, ...]
    row_size: IntArray
    input_rows: IntArray | None
    columns: Mapping[str, Reader]
    split: IntArray | None = None
    init_window: IntArray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def samples(self) -> int:
        """Samples of all trajectories."""
        return int(self.row_size.sum())

    def blocks(self, name: str) -> Iterator[FloatArray]:
        """A column of samples, a block at a time."""
        return (self.columns[name](b, min(b + BLOCK, self.samples)) for b in range(0, self.samples, BLOCK))

    def measured(self) -> dict[str, int]:
        """How many values of each output were measured."""
        names = self.shell.output_names
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

    def with_output(self, name: str, shell: Trajectories, column: Reader) -> SpooledTrajectories:
        """The same with one more output, which the shell has already."""
        return replace(self, shell=shell, columns={**self.columns, f"y_{name}": column})

    def _of_samples(self) -> list[str]:
        return ["time", *(f"y_{name}" for name in self.shell.output_names)]

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
        offsets, unit = ragged_offsets(self.row_size), self.shell.time_unit
        clocks = clocks_of(self.columns["time"], offsets)
        windows = windows_of(clocks, offsets, length, stride, TIME_TOLERANCE * self.sampling_interval())
        whole = ClockOnScratch(self.columns["time"], 0, self.samples)
        start, end = whole.at(offsets[:-1]), whole.at(offsets[1:] - 1)
        require_windows(windows, self.ids, length, float(np.max(end - start, initial=0.0)), unit)
        begins, ends = whole.at(windows.first), whole.at(windows.stop - 1)
        columns = {n: gathered(self.columns[n], windows.first, windows.stop) for n in self._of_samples()}
        input_rows = None
        if self.input_rows is not None and (sampled := self.shell.inputs.sampled) is not None:
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
        pieces = replace(
            self,
            ids=window_names(self.ids, windows, begins - start[windows.owner]),
            row_size=windows.stop - windows.first,
            input_rows=input_rows,
            columns=columns,
            split=None if self.split is None else self.split[windows.owner],
        )
        return pieces, left_out(self.ids, self.samples, windows, length)

    def content(self, label: str) -> tuple[Content, dict[str, int]]:
        """What a file holds of them, and the lengths of its dimensions.

        Raises
        ------
        DataError
            If they break a rule of the schema.
        """
        content, _ = content_of(self._first(), label)
        sizes = {"traj": len(self), "obs": self.samples}
        whole: dict[str, NDArray[Any] | None] = {
            "trajectory": np.array([name.encode() for name in self.ids]),
            "row_size": self.row_size,
            "u_row_size": self.input_rows,
            "split": self.split,
            "init_window": self.init_window,
        }
        if self.input_rows is not None:
            sizes["uobs"] = int(self.input_rows.sum())
        arrays: dict[str, Array] = {}
        for name, array in content.arrays.items():
            values = whole.get(name)
            if values is not None:
                arrays[name] = Array.of(values.astype(array.dtype), array.dimensions, array.attributes)
            else:
                arrays[name] = array.elsewhere(sizes[array.dimensions[0]], self.columns[name])
        return Content(content.attributes, arrays), sizes

    def _first(self) -> Trajectories:
        """The first samples of the first trajectory, as a trajectory."""
        rows = min(int(self.row_size[0]), JUDGED)
        outputs = [self.columns[f"y_{name}"](0, rows) for name in self.shell.output_names]
        inputs, sampled = self.shell.inputs, self.shell.inputs.sampled
        if sampled is not None and self.input_rows is not None:
            knots = min(int(self.input_rows[0]), JUDGED)
            values = np.column_stack([self.columns[f"u_{name}"](0, knots) for name in sampled.names])
            u_time = self.columns["u_time"](0, knots)
            sampled = replace(sampled, row_size=np.array([knots]), time=u_time, values=values)
            inputs = replace(inputs, sampled=sampled)
        return replace(
            self.shell,
            ids=self.ids[:1],
            row_size=np.array([rows]),
            time=self.columns["time"](0, rows),
            outputs=np.column_stack(outputs),
            inputs=inputs,
            split=None if self.split is None else self.split[:1],
            init_window=None if self.init_window is None else self.init_window[:1],
        )


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
