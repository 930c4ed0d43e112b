"""The yardstick `hold`: every output stays at the last value that a forecast may know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from snet_cli.data.trajectories import Trajectories
from snet_cli.forecasting.rollout import Forecast, ForecastModel, rollout


def held_forecast(names: tuple[str, ...], data: Trajectories, device: torch.device) -> Forecast:
    """Outputs that stay at x0, at the first measured value, or at the last one of the init window where there is one.

    Parameters
    ----------
    names : tuple of str
        Outputs.
    data : Trajectories
        With at least one of them.
    """
    forecast = rollout(_constant(names, data, device), data)
    windows, measured = forecast.windows, forecast.observed.outputs
    if data.init_window is None or not data.init_window.any():
        return forecast
    owner = windows.window_of_row()
    inside = windows.place_in_window() < np.asarray(data.init_window)[windows.owner][owner]
    known = inside[:, None] & np.isfinite(measured)
    last = np.full((len(windows), len(names)), -1)
    np.maximum.at(last, owner, np.where(known, np.arange(owner.size)[:, None], -1))
    held = np.take_along_axis(measured, np.maximum(last, 0), axis=0)
    outputs = np.where(last[owner] >= 0, held[owner], forecast.trajectories.outputs)
    return replace(forecast, trajectories=replace(forecast.trajectories, outputs=outputs))


def _constant(names: tuple[str, ...], data: Trajectories, device: torch.device) -> ForecastModel:
    """X' = 0, whose states are the outputs of these names."""
    columns = [data.outputs[:, data.output_names.index(n)] if n in data.output_names else np.zeros(1) for n in names]
    return ForecastModel(
        derivative=lambda t, x, u: torch.zeros_like(x),
        state_names=names,
        output_names=names,
        observation=np.eye(len(names)),
        input_names=(),
        constant_names=(),
        constants={},
        center=np.zeros(len(names)),
        scale=np.array([np.nanmax(np.abs(column), initial=1.0) for column in columns]),
        start=np.zeros(len(names)),
        device=device,
    )
