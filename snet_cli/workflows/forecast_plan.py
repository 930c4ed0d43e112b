"""Which forecasts a file that is larger than the memory asks for, and in which slices they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.data.windows import cut_inputs
from snet_cli.evaluation.options import EvaluateOptions
from snet_cli.forecasting.windows import Windows, no_forecast, plan_windows, time_tolerance, tolerance_of

IntArray = NDArray[np.int64]

FORECAST_SAMPLES = 50_000
"""Forecast times that are made at a time."""


@dataclass(frozen=True)
class ForecastPlan:
    """All forecasts, as a part of each slice.

    Attributes
    ----------
    pieces : list of (int, int)
        Ranges of trajectories of the file that hold any forecast.
    first_trajectory, first_forecast : list of int
        Numbers of the first of each slice among all.
    forecasts, times : int
        How many there are, and their times in all.
    input_times : int or None
        Knots of the inputs that decide them, where an output needs to know.
    horizon, tolerance : float
        The longest forecast, and what differs by less is the same time, by all trajectories.
    """

    pieces: list[tuple[int, int]]
    first_trajectory: list[int]
    first_forecast: list[int]
    forecasts: int
    times: int
    input_times: int | None
    horizon: float
    tolerance: float

    @property
    def sizes(self) -> dict[str, int]:
        """Lengths of an output's dimensions."""
        known = {} if self.input_times is None else {"uobs": self.input_times}
        return {"traj": self.forecasts, "obs": self.times, **known}

    def windows(self, data: Trajectories, options: EvaluateOptions) -> Windows:
        """The forecasts of a slice."""
        return replace(_planned(data, options, self.tolerance), horizon=self.horizon)


def plan_forecasts(slices: TrajectorySlices, options: EvaluateOptions, with_inputs: bool) -> ForecastPlan:
    """Lay out the forecasts of all trajectories, a slice at a time.

    Parameters
    ----------
    with_inputs : bool
        Whether an output will hold the inputs of the forecasts.

    Raises
    ------
    UsageError, DataError
        As from `plan_windows`.
    """
    pieces = slices.between(0, slices.kept.size, FORECAST_SAMPLES)
    tolerance = _tolerance(slices, pieces)
    inputs = with_inputs and slices.shell.inputs.sampled is not None
    if options.horizon is None and options.from_every is None and slices.row_size.min() > 0 and not inputs:
        counts = [slices.count(*piece) for piece in pieces]
        horizon = float(slices.spans(pieces).max())
        return _laid_out(slices, pieces, counts, int(slices.row_size.sum()), None, horizon, tolerance)
    found = _Found()
    for piece in pieces:
        found.add(slices.read(*piece), options, tolerance, inputs)
    if found.times > 2 * slices.row_size.sum():  # forecasts overlap, or go far beyond the samples: smaller slices
        samples = max(1, int(FORECAST_SAMPLES * slices.row_size.sum() // found.times))
        pieces, found = slices.between(0, slices.kept.size, samples), _Found()
        for piece in pieces:
            found.add(slices.read(*piece), options, tolerance, inputs)
    if not sum(found.counts):
        raise no_forecast(options.horizon, float(slices.spans(pieces).max()), slices.shell.time_unit)
    knots = found.knots if inputs else None
    return _laid_out(slices, pieces, found.counts, found.times, knots, found.horizon, tolerance)


class _Found:
    """What the forecasts of all slices come to."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.times = self.knots = 0
        self.horizon = 0.0

    def add(self, data: Trajectories, options: EvaluateOptions, tolerance: float, inputs: bool) -> None:
        """Count those of a slice."""
        windows = _planned(data, options, tolerance)
        self.counts.append(len(windows))
        self.times += int(windows.time.size)
        self.horizon = max(self.horizon, windows.horizon)
        if inputs and len(windows):
            end = windows.time[np.cumsum(windows.row_size) - 1]
            cut = cut_inputs(data.inputs, windows.owner, windows.start, end).sampled
            self.knots += 0 if cut is None else cut.time.size


def _planned(data: Trajectories, options: EvaluateOptions, tolerance: float) -> Windows:
    return plan_windows(data, horizon=options.horizon, from_every=options.from_every, tolerance=tolerance)


def _tolerance(slices: TrajectorySlices, pieces: list[tuple[int, int]]) -> float:
    """`windows.time_tolerance` of all; where there are no samples, of the first slice."""
    interval = slices.sampling_interval()
    return tolerance_of(interval, slices.latest()) if interval else time_tolerance(slices.read(*pieces[0]))


def _laid_out(
    slices: TrajectorySlices,
    pieces: list[tuple[int, int]],
    counts: list[int],
    times: int,
    knots: int | None,
    horizon: float,
    tolerance: float,
) -> ForecastPlan:
    """The slices that hold any forecast."""
    kept = [slices.count(*piece) for piece in pieces]
    trajectories = np.cumsum([0, *kept]).tolist()
    forecasts = np.cumsum([0, *counts]).tolist()
    own = [k for k, count in enumerate(counts) if count]
    return ForecastPlan(
        pieces=[pieces[k] for k in own],
        first_trajectory=[trajectories[k] for k in own],
        first_forecast=[forecasts[k] for k in own],
        forecasts=forecasts[-1],
        times=times,
        input_times=knots,
        horizon=horizon,
        tolerance=tolerance,
    )
