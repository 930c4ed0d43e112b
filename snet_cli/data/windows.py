"""Cutting recordings: every N-th sample, and windows of a given length.

Both act on trajectories, so that they work for tables and for files of ours alike, and never join what was recorded
apart. A window starts at the first sample at or after each multiple of the stride, counted from the recording's first
sample, and holds the samples up to its length, both ends; a window longer than what is left is dropped. Times are
compared with a tolerance of 1 % of the median sampling interval. Inputs keep their knots from the one that holds at
the window's start to the one that ends it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.signals import Inputs
from snet_cli.data.trajectories import Trajectories
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


def find_windows(trajectories: Trajectories, length: float, stride: float) -> Windows:
    """All windows of a length (see the module docstring); two strides that start at the same sample are one window."""
    tolerance = TIME_TOLERANCE * trajectories.sampling_interval()
    owner, first, stop = [], [], []
    for number, offset in enumerate(trajectories.offsets[:-1]):
        time = trajectories.time[offset : offset + trajectories.row_size[number]]
        if time.size == 0 or time[-1] - time[0] < length - tolerance:
            continue
        count = int((time[-1] - time[0] - length + tolerance) / stride) + 1
        starts = time[0] + np.arange(count) * stride
        begin = np.unique(np.searchsorted(time, starts - tolerance))
        begin = begin[time[begin] + length <= time[-1] + tolerance]
        end = np.searchsorted(time, time[begin] + length + tolerance)
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
    if windows.owner.size == 0:
        longest = float(np.max(trajectories.end - trajectories.start, initial=0.0))
        raise DataError(
            f"no recording is as long as the window of {length:g} {trajectories.time_unit}: the longest takes "
            f"{longest:g}.",
            "Choose a shorter --window, or leave it out.",
        )
    row_size = windows.stop - windows.first
    if row_size.min() < 2:
        name = trajectories.ids[windows.owner[row_size.argmin()]]
        raise DataError(
            f"a window of {length:g} {trajectories.time_unit} of '{name}' holds a single sample, "
            "expected at least two.",
            "Choose a longer --window.",
        )
    since = trajectories.time[windows.first] - trajectories.start[windows.owner]
    rows = _slices(windows.first, windows.stop)
    pieces = replace(
        trajectories.select(windows.owner),
        ids=tuple(f"{trajectories.ids[b]}@{time:.6g}" for b, time in zip(windows.owner, since, strict=True)),
        row_size=row_size,
        time=trajectories.time[rows],
        outputs=trajectories.outputs[rows],
        truth=None if trajectories.truth is None else trajectories.truth[rows],
        inputs=cut_inputs(
            trajectories.inputs, windows.owner, trajectories.time[windows.first], trajectories.time[windows.stop - 1]
        ),
    )
    if trajectories.x0 is not None:
        at_start = windows.first == trajectories.offsets[windows.owner]
        pieces = replace(pieces, x0=np.where(at_start[:, None], trajectories.x0[windows.owner], np.nan))
    return pieces, _left_out(trajectories, windows, length)


def cut_inputs(inputs: Inputs, owner: IntArray, start: FloatArray, end: FloatArray) -> Inputs:
    """The inputs of trajectories `owner` (W,), sampled ones with the knots that decide u between `start` and `end`."""
    sampled = inputs.sampled
    chosen = replace(inputs, sampled=None).select(owner)  # whole clocks, once per window, would fill the memory
    if sampled is None:
        return chosen
    stops = np.cumsum(sampled.row_size)
    beyond = CUBIC_KNOTS if "cubic" in sampled.intersample else 0
    first, stop = np.empty_like(owner), np.empty_like(owner)
    for window, number in enumerate(owner):
        low, high = stops[number] - sampled.row_size[number], stops[number]
        knots = sampled.time[low:high]
        before = max(int(np.searchsorted(knots, start[window], side="right")) - 1 - beyond, 0)
        after = min(int(np.searchsorted(knots, end[window], side="left")) + 1 + beyond, knots.size)
        first[window], stop[window] = low + before, low + max(after, before + 1)
    rows = _slices(first, stop)
    return replace(
        chosen,
        sampled=replace(sampled, row_size=stop - first, time=sampled.time[rows], values=sampled.values[rows]),
    )


def _slices(first: IntArray, stop: IntArray) -> IntArray:
    """The rows of ``first[w]:stop[w]`` for all w, one after the other."""
    size = stop - first
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(size)])[:-1]
    return np.repeat(first - offsets, size) + np.arange(int(size.sum()))


def _left_out(trajectories: Trajectories, windows: Windows, length: float) -> list[str]:
    """Notes on recordings shorter than a window, and on samples in no window."""
    notes = []
    short = sorted(set(range(len(trajectories))) - set(windows.owner.tolist()))
    if short:
        names = ", ".join(f"'{trajectories.ids[b]}'" for b in short[:5]) + (" ..." if len(short) > 5 else "")
        what = "1 recording is" if len(short) == 1 else f"{len(short)} recordings are"
        notes.append(f"{what} shorter than the window of {length:g} and left out: {names}.")
    covered = np.zeros(trajectories.time.size + 1, np.int64)
    np.add.at(covered, windows.first, 1)
    np.add.at(covered, windows.stop, -1)
    lost = int(np.sum(np.cumsum(covered)[:-1] == 0))
    if lost:
        notes.append(f"{lost} of {trajectories.time.size} samples lie in no window.")
    return notes
