"""Forecasts of the training data while a method trains: how far the model of now forecasts, and how well."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from snet_cli.forecasting.rollout import Forecast, rollout
from snet_cli.forecasting.windows import plan_windows
from snet_cli.spectral.fitting import channel_scales
from snet_cli.workflows.training_plan import Ingredients

FloatArray = NDArray[np.float64]

MOST_TRAJECTORIES = 64
"""Trajectories, evenly spread over all, that are forecast: enough to compare two models."""

FIRST, FEWEST_SAMPLES = 1.0 / 64.0, 8
"""The horizon that is tried first, as a part of the longest recording, and the least in sampling intervals."""

FORECASTABLE, LOST = 0.3, 0.5
"""Errors, in standard deviations of the data: up to the first a horizon is doubled, above the second it is halved."""

RTOL, ATOL, MOST_EVALUATIONS = 1e-4, 1e-5, 10_000
"""Of the forecasts, whose errors are percents, and which must not cost more than the training: a model that is stiff by
mistake is lost."""


class WindowForecast:
    """The `TrainingForecast` of a training.

    Parameters
    ----------
    parts : Ingredients
        Its model is the one that trains; each process of its team forecasts trajectories of its own.

    Attributes
    ----------
    horizon : float
        Of each forecast, one after the other over every recording: as long as the first model that was judged could
        forecast at all.
    unit : str
    """

    def __init__(self, parts: Ingredients) -> None:
        own = parts.with_own_data()
        data = own.data.train.select(np.flatnonzero(own.data.train.row_size > 1))
        self.parts, self.horizon, self.unit = own, 0.0, data.time_unit
        count = min(len(data), MOST_TRAJECTORIES)
        self.data = data.select(np.linspace(0, max(len(data) - 1, 0), count).astype(np.int64))

    def __call__(self) -> float:
        """Root mean square error over the standard deviation, of each forecast at most 1, at which it is lost."""
        if self.horizon:
            return self._error(self.horizon)
        time, ends = self.data.time, np.cumsum(self.data.row_size)
        own = float(np.max(time[ends - 1] - time[ends - self.data.row_size], initial=0.0))
        (longest,) = self.parts.team.largest(own)
        if longest == 0:
            return math.inf  # a sample each: there is nothing to forecast
        (interval,) = self.parts.team.largest(self.data.sampling_interval() or 0.0)
        least = min(max(FEWEST_SAMPLES * interval, FIRST**2 * longest), longest)
        self.horizon = max(FIRST * longest, least)
        error = self._error(self.horizon)
        while error < FORECASTABLE and self.horizon < longest:
            self.horizon = min(2.0 * self.horizon, longest)
            error = self._error(self.horizon)
        while error > LOST and self.horizon >= 2.0 * least:
            self.horizon *= 0.5
            error = self._error(self.horizon)
        return error

    def _error(self, horizon: float) -> float:
        squares = np.zeros(0)
        if len(self.data):
            model = self.parts.setup.trained.forecast_model(self.parts.device)
            windows = plan_windows(self.data, horizon=horizon, from_every=horizon)
            forecast = rollout(
                model, self.data, windows, init_window=0, rtol=RTOL, atol=ATOL, max_evaluations=MOST_EVALUATIONS
            )
            squares = _squares(forecast)
        total, count = self.parts.team.total(float(squares.sum()), float(squares.size))
        return float(np.sqrt(total / max(count, 1.0)))


def _squares(forecast: Forecast) -> FloatArray:
    """Mean squared error of each forecast in units of the channels' variances, at most 1; 1 where it was lost."""
    observed = forecast.observed.outputs
    relative = (forecast.errors / channel_scales(observed)[1]) ** 2
    counted = np.isfinite(relative)
    owner = forecast.windows.window_of_row()
    total = np.bincount(owner, np.where(counted, relative, 0.0).sum(1), minlength=len(forecast))
    values = np.bincount(owner, counted.sum(1), minlength=len(forecast))
    mean = np.divide(total, values, out=np.ones(len(forecast)), where=values > 0)
    return np.where(forecast.complete, np.minimum(mean, 1.0), 1.0)
