"""Cutting recordings: every N-th sample, and windows of a given length.

Both act on trajectories, so that they work for tables and for files of ours alike, and never join what was recorded
apart. A window starts at the first sample at or after each multiple of the stride, counted from the recording's first
sample, and holds the samples up to its length, both ends; a window longer than what is left is dropped. Times are
compared with a tolerance of 1 % of the median sampling interval. Inputs keep their knots from the one that holds at
the window's start to the one that ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.signals import Inputs, Intersample
from snet_cli.data.trajectories import Trajectories, ragged_offsets
from snet_cli.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TIME_TOLERANCE = 0.01
"""Of the median sampling interval: times that differ by less are the same."""

CUBIC_KNOTS = 16
"""Knots kept beyond each end of a window for cubic inputs: a spline forgets a knot by a factor 0.27 a step, so that
the inputs inside the window stay what they were to about 1e-9."""


class Windows(NamedTuple):
    """Windows of trajectories: window w is the rows ``first[w]:stop[w]`` of trajectory ``owner[w]``."""

    owner: IntArray
    first: IntArray
    stop: IntArray


def thin(trajectories: Trajectories, every: int) -> Trajectories:
    """Every `every`-th sample of each trajectory, from its first one on; inputs keep their own clock."""
    if every == 1:
        return trajectories
    within = np.arange(trajectories.time.size) - trajectories.offsets[trajectories.trajectory_of_row()]
    return trajectories.select_rows(within % every == 0)


class Clock(Protocol):
    """Times of one trajectory, ascending, to be searched."""

    def __len__(self) -> int:
        """How many there are."""

    def at(self, rows: IntArray) -> FloatArray:
        """The times of rows, which ascend."""

    def search(self, values: FloatArray, side: Literal["left", "right"] = "left") -> IntArray:
        """As `numpy.searchsorted`, for values that ascend."""


@dataclass(frozen=True)
class ClockInMemory:
    """A clock whose times (K,) are in memory."""

    time: FloatArray

    def __len__(self) -> int:
        return self.time.size

    def at(self, rows: IntArray) -> FloatArray:
        """As `Clock.at`."""
        return self.time[rows]

    def search(self, values: FloatArray, side: Literal["left", "right"] = "left") -> IntArray:
        """As `Clock.search`."""
        return np.searchsorted(self.time, values, side=side)


def find_windows(trajectories: Trajectories, length: float, stride: float, tolerance: float | None = None) -> Windows:
    """All windows of a length (see the module docstring); two strides that start at the same sample are one window.

    `tolerance` is that of all trajectories, where these are a slice of them.
    """
    tolerance = TIME_TOLERANCE * trajectories.sampling_interval() if tolerance is None else tolerance
    offsets = trajectories.offsets
    clocks = (ClockInMemory(trajectories.time[first:stop]) for first, stop in pairwise(offsets))
    return windows_of(clocks, offsets, length, stride, tolerance)


def windows_of(clocks: Iterable[Clock], offsets: IntArray, length: float, stride: float, tolerance: float) -> Windows:
    """The windows of trajectories whose clocks come one after the other; `offsets` are their first rows."""
    owner, first, stop = [], [], []
    for number, (offset, clock) in enumerate(zip(offsets[:-1], clocks, strict=True)):
        if len(clock) == 0:
            continue
        begin_time, end_time = clock.at(np.array([0, len(clock) - 1]))
        if end_time - begin_time < length - tolerance:
            continue
        count = int((end_time - begin_time - length + tolerance) / stride) + 1
        starts = begin_time + np.arange(count) * stride
        begin = np.unique(clock.search(starts - tolerance))
        at_begin = clock.at(begin)
        inside = at_begin + length <= end_time + tolerance
        begin, at_begin = begin[inside], at_begin[inside]
        end = clock.search(at_begin + length + tolerance)
        owner.append(np.full(begin.size, number))
        first.append(begin + offset)
        stop.append(end + offset)
    if not owner:
        return Windows(*(np.zeros(0, np.int64),) * 3)
    return Windows(np.concatenate(owner), np.concatenate(first), np.concatenate(stop))


def cut(trajectories: Trajectories, length: float, stride: float) -> tuple[Trajectories, list[str]]:
    """Windows of the recordings as trajectories of their own, and notes on what was left out.

    The windows of the recording ``run`` are named ``run@0``, ``run@12.5``: the time from its first sample.
    `split`, `init_window` and the constants are the recording's; a known initial state is known for the window at the
    recording's first sample only.

    Raises
    ------
    DataError
        If no recording is as long as a window, or a window holds a single sample.
    """
    windows = find_windows(trajectories, length, stride)
    longest = float(np.max(trajectories.end - trajectories.start, initial=0.0))
    require_windows(windows, trajectories.ids, length, longest, trajectories.time_unit)
    since = trajectories.time[windows.first] - trajectories.start[windows.owner]
    rows = _slices(windows.first, windows.stop)
    pieces = replace(
        trajectories.select(windows.owner),
        ids=window_names(trajectories.ids, windows, since),
        row_size=windows.stop - windows.first,
        time=trajectories.time[rows],
        outputs=trajectories.outputs[rows],
        truth=None if trajectories.truth is None else trajectories.truth[rows],
        inputs=cut_inputs(
            trajectories.inputs, windows.owner, trajectories.time[windows.first], trajectories.time[windows.stop - 1]
        ),
    )
    if trajectories.x0 is not None:
        at_start = windows.first == trajectories.offsets[windows.owner]
        pieces = replace(pieces, x0=known_starts(trajectories.x0[windows.owner], at_start))
    return pieces, left_out(trajectories.ids, trajectories.time.size, windows, length)


def known_starts(x0: FloatArray, at_start: NDArray[np.bool_]) -> FloatArray:
    """The known initial states of windows (W, n): those of the windows at a recording's first sample."""
    return np.where(at_start[:, None], x0, np.nan)


def require_windows(windows: Windows, ids: Sequence[str], length: float, longest: float, time_unit: str) -> None:
    """Refuse a cut into no windows, or into some with a single sample."""
    if windows.owner.size == 0:
        raise DataError(
            f"no recording is as long as the window of {length:g} {time_unit}: the longest takes {longest:g}.",
            "Choose a shorter --window, or leave it out.",
        )
    row_size = windows.stop - windows.first
    if row_size.min() < 2:
        name = ids[windows.owner[row_size.argmin()]]
        raise DataError(
            f"a window of {length:g} {time_unit} of '{name}' holds a single sample, expected at least two.",
            "Choose a longer --window.",
        )


def window_names(ids: Sequence[str], windows: Windows, since: FloatArray) -> tuple[str, ...]:
    """``run@12.5``: the recording, and the time of the window's start from the recording's."""
    return tuple(f"{ids[b]}@{time:.6g}" for b, time in zip(windows.owner, since, strict=True))


def cut_inputs(inputs: Inputs, owner: IntArray, start: FloatArray, end: FloatArray) -> Inputs:
    """The inputs of trajectories `owner` (W,), sampled ones with the knots that decide u between `start` and `end`."""
    sampled = inputs.sampled
    chosen = replace(inputs, sampled=None).select(owner)  # whole clocks, once per window, would fill the memory
    if sampled is None:
        return chosen
    offsets = ragged_offsets(sampled.row_size)
    first, stop = knots_of(
        lambda b: ClockInMemory(sampled.time[offsets[b] : offsets[b + 1]]),
        offsets,
        owner,
        start,
        end,
        sampled.intersample,
    )
    rows = _slices(first, stop)
    return replace(
        chosen,
        sampled=replace(sampled, row_size=stop - first, time=sampled.time[rows], values=sampled.values[rows]),
    )


def knots_of(
    clock_of: Callable[[int], Clock],
    offsets: IntArray,
    owner: IntArray,
    start: FloatArray,
    end: FloatArray,
    holds: Sequence[Intersample],
) -> tuple[IntArray, IntArray]:
    """First and last row, (W,) each, of the knots that decide the inputs of windows from `start` to `end`.

    Parameters
    ----------
    clock_of : callable
        The knots of a trajectory.
    offsets : ndarray, shape (B + 1,)
        Its first row.
    """
    beyond = CUBIC_KNOTS if "cubic" in holds else 0
    first, stop = np.empty_like(owner), np.empty_like(owner)
    runs = np.flatnonzero(np.diff(owner, prepend=-1, append=-1))
    for low, high in pairwise(runs):  # windows of one trajectory, one after the other
        number = int(owner[low])
        clock = clock_of(number)
        before = np.maximum(clock.search(start[low:high], "right") - 1 - beyond, 0)
        after = np.minimum(clock.search(end[low:high], "left") + 1 + beyond, len(clock))
        first[low:high] = offsets[number] + before
        stop[low:high] = offsets[number] + np.maximum(after, before + 1)
    return first, stop


def _slices(first: IntArray, stop: IntArray) -> IntArray:
    """The rows of ``first[w]:stop[w]`` for all w, one after the other."""
    size = stop - first
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(size)])[:-1]
    return np.repeat(first - offsets, size) + np.arange(int(size.sum()))


def left_out(ids: Sequence[str], samples: int, windows: Windows, length: float) -> list[str]:
    """Notes on recordings shorter than a window, and on samples in no window."""
    notes = []
    short = np.setdiff1d(np.arange(len(ids)), windows.owner)
    if short.size:
        names = ", ".join(f"'{ids[b]}'" for b in short[:5]) + (" ..." if short.size > 5 else "")
        what = "1 recording is" if short.size == 1 else f"{short.size} recordings are"
        notes.append(f"{what} shorter than the window of {length:g} and left out: {names}.")
    before = np.concatenate([[0], np.maximum.accumulate(windows.stop)[:-1]])  # rows ascend from window to window
    lost = samples - int(np.maximum(windows.stop - np.maximum(windows.first, before), 0).sum())
    if lost:
        notes.append(f"{lost} of {samples} samples lie in no window.")
    return notes
