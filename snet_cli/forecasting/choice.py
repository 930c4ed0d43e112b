"""Some forecasts out of many, and forecasts that were made apart as one piece: for pictures of slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectories import ragged_rows
from snet_cli.data.trajectory_slices import joined
from snet_cli.forecasting.rollout import Forecast
from snet_cli.forecasting.windows import Windows

IntArray = NDArray[np.int64]


def chosen(forecast: Forecast, numbers: IntArray) -> tuple[Forecast, IntArray]:
    """The forecasts of these numbers, as if no other had been made, and their rows among all."""
    windows = forecast.windows
    rows = ragged_rows(windows.row_size, numbers)
    few = replace(
        windows,
        ids=tuple(windows.ids[w] for w in numbers),
        owner=np.arange(numbers.size),
        start=windows.start[numbers],
        at_first=windows.at_first[numbers],
        row_size=windows.row_size[numbers],
        time=windows.time[rows],
        row=np.where(windows.row[rows] >= 0, np.arange(rows.size), -1),
    )
    return Forecast(
        windows=few,
        trajectories=forecast.trajectories.select(numbers),
        observed=forecast.observed.select(numbers),
        true_outputs=None if forecast.true_outputs is None else forecast.true_outputs[rows],
        scored=forecast.scored[rows],
        states=forecast.states[rows],
        outcome=tuple(forecast.outcome[w] for w in numbers),
        end_time=forecast.end_time[numbers],
        start_kind=forecast.start_kind[numbers],
        evaluations=forecast.evaluations,
    ), rows


def in_one_piece(parts: Sequence[Forecast]) -> Forecast:
    """Forecasts of `chosen`, one after the other."""
    windows = [part.windows for part in parts]
    offsets = np.cumsum([0, *(each.time.size for each in windows)])
    truths = [part.true_outputs for part in parts]
    known = [
        np.full(part.observed.outputs.shape, np.nan) if t is None else t for part, t in zip(parts, truths, strict=True)
    ]
    return Forecast(
        windows=Windows(
            ids=tuple(name for each in windows for name in each.ids),
            owner=np.arange(sum(len(each) for each in windows)),
            start=np.concatenate([each.start for each in windows]),
            at_first=np.concatenate([each.at_first for each in windows]),
            row_size=np.concatenate([each.row_size for each in windows]),
            time=np.concatenate([each.time for each in windows]),
            row=np.concatenate([np.where(w.row >= 0, w.row + o, -1) for w, o in zip(windows, offsets, strict=False)]),
            horizon=windows[0].horizon,
            tolerance=windows[0].tolerance,
        ),
        trajectories=joined([part.trajectories for part in parts]),
        observed=joined([part.observed for part in parts]),
        true_outputs=None if all(truth is None for truth in truths) else np.concatenate(known),
        scored=np.concatenate([part.scored for part in parts]),
        states=np.concatenate([part.states for part in parts]),
        outcome=tuple(word for part in parts for word in part.outcome),
        end_time=np.concatenate([part.end_time for part in parts]),
        start_kind=np.concatenate([part.start_kind for part in parts]),
        evaluations=sum(part.evaluations for part in parts),
    )
