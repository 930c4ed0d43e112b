"""Scores of forecasts: what DESIGN's JSON of `evaluate` calls mse, rmse, nrmse, fit_percent, max_abs, by_horizon.

With e the errors of one channel over all scored values of all forecasts that reached their end, y what was measured
there: mse = mean e², rmse = √mse, nrmse = rmse / std(y), fit_percent = 100 (1 - |e| / |y - mean y|) = 100 (1 - nrmse).
The document's own mse pools the values of all channels, in the data's units as in the tables of Quaglino et al. 2020;
its nrmse is the root mean square of the channels' nrmse, which has no unit, and its fit_percent is 100 (1 - nrmse).

A forecast that did not reach its end is counted and never enters. What cannot be said (nothing scored, a channel that
does not move, a number that is not finite) is None, never NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snet_cli.forecasting.rollout import Forecast, mean_square

FloatArray = NDArray[np.float64]

BINS = 20
"""Bins of `by_horizon`."""

OUTCOMES = ("ok", "diverged", "step-underflow", "budget")


@dataclass(frozen=True)
class ChannelScores:
    """Scores of one channel, in its own unit; None where there is nothing to say.

    Attributes
    ----------
    mse, rmse, nrmse, fit_percent, max_abs : float or None
    """

    mse: float | None = None
    rmse: float | None = None
    nrmse: float | None = None
    fit_percent: float | None = None
    max_abs: float | None = None


@dataclass(frozen=True)
class HorizonBin:
    """Errors of the samples with (previous t, t], counted from each forecast's start.

    Attributes
    ----------
    t : float
    rmse : dict of str to float or None
        By channel.
    """

    t: float
    rmse: dict[str, float | None]


@dataclass(frozen=True)
class Scores:
    """All scores of one set of forecasts.

    Attributes
    ----------
    mse, mse_true, rmse, nrmse, fit_percent : float or None
        Over all channels; `mse_true` against the noise-free truth.
    channels : dict of str to ChannelScores
    by_horizon : tuple of HorizonBin
    outcomes : dict of str to int
        Forecasts by outcome.
    scored_values : int
        Values that entered.
    """

    mse: float | None
    mse_true: float | None
    rmse: float | None
    nrmse: float | None
    fit_percent: float | None
    channels: dict[str, ChannelScores]
    by_horizon: tuple[HorizonBin, ...]
    outcomes: dict[str, int]
    scored_values: int


def score(forecast: Forecast) -> Scores:
    """Score forecasts against what was measured (see the module docstring)."""
    names = forecast.observed.output_names
    errors = forecast.errors
    channels = {name: score_channel(errors[:, i], forecast.observed.outputs[:, i]) for i, name in enumerate(names)}
    mse = mean_square(errors)
    relative = [scores.nrmse for scores in channels.values() if scores.nrmse is not None]
    nrmse = finite(float(np.sqrt(np.mean(np.square(relative))))) if relative else None
    return Scores(
        mse=mse,
        mse_true=None if forecast.true_errors is None else mean_square(forecast.true_errors),
        rmse=None if mse is None else math.sqrt(mse),
        nrmse=nrmse,
        fit_percent=None if nrmse is None else 100.0 * (1.0 - nrmse),
        channels=channels,
        by_horizon=score_by_horizon(forecast),
        outcomes={word: forecast.outcome.count(word) for word in OUTCOMES},
        scored_values=int(np.isfinite(errors).sum()),
    )


def score_channel(errors: FloatArray, measured: FloatArray) -> ChannelScores:
    """Scores of one channel.

    Parameters
    ----------
    errors : ndarray, shape (obs,)
        NaN where a value is not scored.
    measured : ndarray, shape (obs,)
    """
    counts = np.isfinite(errors)
    e, y = errors[counts], measured[counts]
    mse = mean_square(e)
    if mse is None:
        return ChannelScores()
    rmse = math.sqrt(mse)
    spread = spread_of(y)
    nrmse = finite(rmse / spread) if spread > 0 else None
    fit = None if nrmse is None else 100.0 * (1.0 - nrmse)
    return ChannelScores(mse, rmse, nrmse, fit, finite(float(np.abs(e).max())))


def spread_of(values: FloatArray) -> float:
    """Standard deviation; 0 where the values differ by rounding only, or are none."""
    if values.size == 0:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        spread = float(np.std(values))
    rounding = 1e-12 * float(np.abs(values).max())
    return spread if math.isfinite(spread) and spread > rounding else 0.0


def finite(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def horizon_bins(forecast: Forecast) -> NDArray[np.int64]:
    """Bin of each forecast time, 0 … BINS - 1, shape (obs,); -1 for the start itself.

    Bin i holds times in (t_{i-1}, t_i]. A time within the tolerance of a boundary lies on it, so that the sample at H
    belongs to the last bin.
    """
    windows = forecast.windows
    since = windows.time - np.repeat(windows.start, windows.row_size)
    if windows.horizon <= 0:
        return np.full(since.size, -1)
    width = windows.horizon / BINS
    index = np.ceil((since - windows.tolerance) / width).astype(np.int64) - 1
    return np.clip(index, -1, BINS - 1)


def score_by_horizon(forecast: Forecast) -> tuple[HorizonBin, ...]:
    """Root mean square errors by time from the start: `BINS` bins up to the horizon, None where one is empty."""
    names = forecast.observed.output_names
    errors, bins = forecast.errors, horizon_bins(forecast)
    counts = np.isfinite(errors) & (bins >= 0)[:, None]
    row, channel = np.nonzero(counts)
    cell = bins[row] * len(names) + channel
    with np.errstate(over="ignore"):
        squares = np.bincount(cell, errors[row, channel] ** 2, minlength=BINS * len(names))
    number = np.bincount(cell, minlength=BINS * len(names))
    rmse = np.sqrt(squares / np.maximum(number, 1)).reshape(BINS, len(names))
    filled = (number > 0).reshape(BINS, len(names))
    times = forecast.windows.horizon * np.arange(1, BINS + 1) / BINS
    return tuple(
        HorizonBin(
            float(times[b]),
            {name: finite(float(rmse[b, i])) if filled[b, i] else None for i, name in enumerate(names)},
        )
        for b in range(BINS)
    )


def forecast_errors(forecast: Forecast) -> FloatArray:
    """Normalised error of each forecast: root mean square over channels and samples of e / std(y), shape (W,).

    NaN for a forecast that did not reach its end or holds nothing scored. A channel that does not move counts as it is.
    """
    squares = normalised_squares(forecast)
    owner = forecast.windows.window_of_row()
    known = np.isfinite(squares)
    total = np.bincount(owner[known], squares[known], minlength=len(forecast))
    number = np.bincount(owner[known], minlength=len(forecast))
    return np.where(number > 0, np.sqrt(total / np.maximum(number, 1)), np.nan)


def normalised_squares(forecast: Forecast) -> FloatArray:
    """Mean over the channels of (e / std(y))² at each sample, shape (obs,); NaN where nothing is scored."""
    errors = forecast.errors
    counts = np.isfinite(errors)
    spreads = [spread_of(forecast.observed.outputs[counts[:, i], i]) for i in range(errors.shape[1])]
    relative = np.where(counts, errors / np.array([spread or 1.0 for spread in spreads]), 0.0)
    number = counts.sum(1)
    with np.errstate(over="ignore"):
        mean = (relative**2).sum(1) / np.maximum(number, 1)
    return np.where((number > 0) & np.isfinite(mean), mean, np.nan)
