"""Which forecasts are made: where each one starts, how far it goes, and at which times it is asked.

Without `from_every` there is one forecast per trajectory, from its first sample. With `from_every` S a forecast starts
at the first sample at or after each multiple of S, counted from the recording's first sample; one that would need more
than what is left is dropped. Without `horizon` a forecast goes to the end of its recording. A horizon beyond the
recording continues on the sampling grid, where nothing can be scored. A file without samples is forecast on the clock
of its inputs, or at 200 points. Times are compared with a tolerance of 1 % of the median sampling interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.signals import Inputs
from snet_cli.data.trajectories import Trajectories, ragged_rows
from snet_cli.data.windows import TIME_TOLERANCE, find_windows
from snet_cli.errors import DataError, UsageError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GRID_POINTS = 200
"""Forecast times where neither samples nor sampled inputs suggest any."""

MAX_GRID = 10_000_000
"""Forecast times beyond the samples, at most: a horizon in the wrong unit must not fill the memory."""


@dataclass(frozen=True)
class Windows:
    """W forecasts to make.

    Attributes
    ----------
    ids : tuple of str
        The trajectory's own id, or ``run@12.5`` for the forecast that starts 12.5 after the first sample of ``run``.
    owner : ndarray, shape (W,)
        Trajectory of each forecast.
    start : ndarray, shape (W,)
        Time at which it starts.
    at_first : ndarray of bool, shape (W,)
        Whether that is the trajectory's first sample.
    row_size : ndarray, shape (W,)
        Forecast times of each.
    time : ndarray, shape (obs,)
    row : ndarray, shape (obs,)
        Row of the sample in the data; -1 where none was recorded.
    horizon : float
        H, the longest forecast.
    tolerance : float
        Times that differ by less are the same.
    """

    ids: tuple[str, ...]
    owner: IntArray
    start: FloatArray
    at_first: NDArray[np.bool_]
    row_size: IntArray
    time: FloatArray
    row: IntArray
    horizon: float
    tolerance: float

    def __len__(self) -> int:
        return len(self.ids)

    def between(self, begin: int, end: int) -> Windows:
        """Forecasts `begin` to `end` alone."""
        first = np.concatenate([[0], np.cumsum(self.row_size)])
        rows, part = slice(first[begin], first[end]), slice(begin, end)
        return replace(
            self,
            ids=self.ids[part],
            owner=self.owner[part],
            start=self.start[part],
            at_first=self.at_first[part],
            row_size=self.row_size[part],
            time=self.time[rows],
            row=self.row[rows],
        )

    def window_of_row(self) -> IntArray:
        """Number of the forecast that each time belongs to, shape (obs,)."""
        return np.repeat(np.arange(len(self)), self.row_size)

    def place_in_window(self) -> IntArray:
        """Number of each time within its forecast, from 0, shape (obs,)."""
        return np.arange(self.time.size) - np.repeat(np.cumsum(self.row_size) - self.row_size, self.row_size)


def plan_windows(
    data: Trajectories,
    *,
    horizon: float | None = None,
    from_every: float | None = None,
    tolerance: float | None = None,
) -> Windows:
    """Lay out the forecasts of a data set (see the module docstring).

    Parameters
    ----------
    data : Trajectories
    horizon : float, optional
        H, length of each forecast in the data's time unit; without it, all that was recorded.
    from_every : float, optional
        S, time between starts.
    tolerance : float, optional
        Of times, by all trajectories of which these are a slice; a slice may hold no forecast.

    Raises
    ------
    UsageError
        If a length is not positive, or a trajectory without samples leaves the horizon open.
    DataError
        If there is nothing to forecast.
    """
    for flag, value in (("--horizon", horizon), ("--from-every", from_every)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{flag} is {value:g}, expected a positive time in {data.time_unit}.")
    if len(data) == 0:
        raise DataError("the file holds no trajectory, so there is nothing to forecast.")
    if from_every is not None:
        return _repeated(data, horizon, from_every, tolerance)
    return _whole(data, horizon, time_tolerance(data) if tolerance is None else tolerance)


def time_tolerance(data: Trajectories) -> float:
    """1 % of the median interval of the samples, or of the inputs where there are no samples."""
    return tolerance_of(
        data.sampling_interval() or _input_interval(data), float(np.max(np.abs(data.time), initial=0.0))
    )


def tolerance_of(interval: float, latest: float) -> float:
    """The tolerance by the median sampling interval and the largest of all times."""
    return max(TIME_TOLERANCE * interval, 1e-12 * latest)


def _input_interval(data: Trajectories) -> float:
    """The median interval of the inputs' samples, where there are any."""
    clock = data.inputs.sampled
    if clock is None:
        return 0.0
    inside = np.diff(np.repeat(np.arange(len(data)), clock.row_size)) == 0
    steps = np.diff(clock.time)[inside]
    return float(np.median(steps)) if steps.size else 0.0


def _repeated(data: Trajectories, horizon: float | None, every: float, of_all: float | None) -> Windows:
    """Forecasts from every multiple of `every`; those of a slice where the tolerance of all is given."""
    tolerance = time_tolerance(data) if of_all is None else of_all
    if float(np.max(data.end - data.start)) / every > MAX_GRID:
        raise UsageError(
            f"--from-every {every:g} asks for more than {MAX_GRID} forecasts of a recording.",
            f"It counts in the data's unit, {data.time_unit}.",
        )
    found = find_windows(data, 0.0 if horizon is None else horizon, every, of_all)
    owner, first = found.owner, found.first
    stop = found.stop if horizon is not None else data.offsets[owner + 1]
    longer = stop - first > 1  # a forecast of its own start says nothing
    owner, first, stop = owner[longer], first[longer], stop[longer]
    if owner.size == 0 and of_all is None:
        longest = float(np.max(data.end - data.start, initial=0.0))
        raise no_forecast(horizon, longest, data.time_unit)
    start = data.time[first]
    rows = np.repeat(first - (np.cumsum(stop - first) - (stop - first)), stop - first) + np.arange(
        int((stop - first).sum())
    )
    since = start - data.start[owner]
    return Windows(
        ids=_name_windows(data.ids, owner, since),
        owner=owner,
        start=start,
        at_first=first == data.offsets[owner],
        row_size=stop - first,
        time=data.time[rows],
        row=rows,
        horizon=float(np.max(data.time[stop - 1] - start, initial=0.0)) if horizon is None else horizon,
        tolerance=tolerance,
    )


def no_forecast(horizon: float | None, longest: float, unit: str) -> DataError:
    """The error where `--from-every` finds no start that is followed by enough."""
    needed = "two samples" if horizon is None else f"the horizon of {horizon:g} {unit}"
    return DataError(
        f"no recording is long enough for a forecast over {needed}: the longest takes {longest:g}.",
        "Choose a shorter --horizon, or leave --from-every out.",
    )


def _name_windows(ids: tuple[str, ...], owner: IntArray, since: FloatArray) -> tuple[str, ...]:
    """``run@12.5``: the trajectory and the time from its first sample, with as many digits as make names unique."""
    for digits in (6, 10, 17):
        names = tuple(f"{ids[b]}@{t:.{digits}g}" for b, t in zip(owner, since, strict=True))
        if len(set(names)) == len(names):
            break
    return names


def _whole(data: Trajectories, horizon: float | None, tolerance: float) -> Windows:
    """One forecast per trajectory, over the samples and beyond them where the horizon asks for it."""
    start = data.start
    owner = data.trajectory_of_row()
    kept = np.ones(owner.size, bool) if horizon is None else data.time - start[owner] <= horizon + tolerance
    length = data.end - start
    beyond = data.row_size == 0 if horizon is None else length + tolerance < horizon
    beyond |= data.row_size == 0
    grids = {int(b): _grid(data, int(b), horizon, tolerance) for b in np.flatnonzero(beyond)}
    grid_owner = np.repeat(np.array(list(grids), np.int64), [g.size for g in grids.values()])
    owner = np.concatenate([owner[kept], grid_owner])
    time = np.concatenate([data.time[kept], *grids.values()])
    row = np.concatenate([np.flatnonzero(kept), np.full(grid_owner.size, -1)])
    order = np.lexsort((time, owner))
    owner, time, row = owner[order], time[order], row[order]
    reach = float(np.max(time - start[owner], initial=0.0))
    return Windows(
        ids=data.ids,
        owner=np.arange(len(data)),
        start=start,
        at_first=np.ones(len(data), bool),
        row_size=np.bincount(owner, minlength=len(data)).astype(np.int64),
        time=time,
        row=row,
        horizon=reach if horizon is None else horizon,
        tolerance=tolerance,
    )


def _grid(data: Trajectories, number: int, horizon: float | None, tolerance: float) -> FloatArray:
    """Forecast times of one trajectory beyond its samples, its own clock continued."""
    start = float(data.start[number])
    if data.row_size[number] == 0:
        return _grid_without_samples(data, number, horizon, tolerance)
    assert horizon is not None
    last = float(data.end[number])
    own = data.time[ragged_rows(data.row_size, np.array([number]))]
    interval = float(np.median(np.diff(own))) if own.size > 1 else data.sampling_interval()
    interval = interval or horizon / (GRID_POINTS - 1)
    ticks = (start + horizon - last) / interval
    if ticks > MAX_GRID:
        raise UsageError(
            f"--horizon {horizon:g} asks '{data.ids[number]}' for {ticks:.3g} steps beyond its samples, more than "
            f"{MAX_GRID}.",
            f"The horizon counts in the data's unit, {data.time_unit}.",
        )
    times = last + interval * np.arange(1, int(ticks + 1e-9) + 1)
    times = times[times < start + horizon - tolerance]
    return np.append(times, start + horizon)


def _grid_without_samples(data: Trajectories, number: int, horizon: float | None, tolerance: float) -> FloatArray:
    """The input's clock up to the horizon, or `GRID_POINTS` points."""
    start = float(data.start[number])
    sampled = data.inputs.sampled
    if sampled is None:
        if horizon is None:
            raise UsageError(
                f"trajectory '{data.ids[number]}' has no samples and no sampled inputs that would end its forecast.",
                "Say how far to forecast: --horizon H",
            )
        return np.linspace(start, start + horizon, GRID_POINTS)
    clock = sampled.time[ragged_rows(sampled.row_size, np.array([number]))]
    end = float(clock[-1]) if horizon is None else start + horizon
    times = clock[(clock >= start) & (clock < end - tolerance)]
    return np.append(times, end)


def check_inputs_reach(data: Trajectories, inputs: Inputs, windows: Windows) -> None:
    """Sampled inputs are not extrapolated: they must hold from the start of each forecast to its end.

    Parameters
    ----------
    data : Trajectories
        For ids and units.
    inputs : Inputs
        The inputs that the model uses.
    windows : Windows

    Raises
    ------
    DataError
        Naming the first trajectory and the time that no input sample covers.
    """
    if inputs.sampled is None or windows.time.size == 0:
        return
    end = windows.time[np.maximum(np.cumsum(windows.row_size) - 1, 0)]
    known_from, known_to = inputs.sampled_start()[windows.owner], inputs.sampled_end()[windows.owner]
    slack = windows.tolerance + 1e-12 * np.maximum(np.abs(end), np.abs(known_to))
    late, early = end > known_to + slack, windows.start < known_from - slack
    for wrong, asked, known, which in ((late, end, known_to, "last"), (early, windows.start, known_from, "first")):
        if not wrong.any():
            continue
        w = int(np.flatnonzero(wrong)[0])
        unit = data.time_unit
        raise DataError(
            f"the forecast of '{windows.ids[w]}' needs inputs at t = {asked[w]:.10g} {unit}, but its {which} input "
            f"sample is at t = {known[w]:.10g} {unit}; sampled inputs are not extrapolated.",
            f"Choose --horizon {max(known[w] - windows.start[w], 0.0):.10g} or less, or record more inputs."
            if which == "last"
            else "Start the recording where its inputs start.",
        )
