"""How errors grow with the horizon and spread over forecasts, and how the loss fell in training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from snet_cli.evaluation.metrics import BINS, forecast_errors, horizon_bins, normalised_squares
from snet_cli.evaluation.plot_style import MODEL, label, tidy
from snet_cli.forecasting.rollout import Forecast

FloatArray = NDArray[np.float64]

HISTORY = ("residual R", "misfit L", "total", "held out")
"""Columns of a training history."""

HISTORY_COLOURS = ("#1f5fb4", "#d62728", "#333333", "#2a9d5c")

FEW_FORECASTS = 5
"""Fewer than this make no histogram."""


def draw_error_by_horizon(forecast: Forecast, total: int | None = None) -> Figure | None:
    """Normalised errors against the time from the start, and their distribution; None where nothing is scored.

    `total` says how many forecasts there are, where not all are given.
    """
    squares, bins = normalised_squares(forecast), horizon_bins(forecast)
    counts = np.isfinite(squares) & (bins >= 0)
    if not counts.any():
        return None
    errors = forecast_errors(forecast)
    errors = errors[np.isfinite(errors)]
    many = errors.size >= FEW_FORECASTS
    figure = Figure(figsize=(10.0 if many else 6.2, 3.8), layout="constrained")
    panels = figure.subplots(1, 2 if many else 1, squeeze=False, width_ratios=(3, 2) if many else None)[0]
    _draw_growth(panels[0], forecast, np.sqrt(squares[counts]), bins[counts])
    if many:
        _draw_spread(panels[1], forecast, errors, total)
    return figure


def _draw_growth(axes: Axes, forecast: Forecast, errors: FloatArray, bins: NDArray[np.int64]) -> None:
    """Median and quantiles of the errors in each bin."""
    tidy(axes)
    width = forecast.windows.horizon / BINS
    filled = [b for b in range(BINS) if (bins == b).any()]
    time = np.array([(b + 0.5) * width for b in filled])
    levels = np.array([np.quantile(errors[bins == b], (0.1, 0.25, 0.5, 0.75, 0.9)) for b in filled]).T
    levels = np.maximum(levels, 1e-16)  # a perfect forecast has a place on the logarithmic axis
    axes.fill_between(time, levels[0], levels[4], color=MODEL, alpha=0.13, linewidth=0, label="10 - 90 %")
    axes.fill_between(time, levels[1], levels[3], color=MODEL, alpha=0.25, linewidth=0, label="25 - 75 %")
    axes.plot(time, levels[2], color=MODEL, linewidth=1.6, marker="o", markersize=3, label="median")
    _scale_errors(axes, levels)
    if axes.get_ylim()[1] > 0.3:
        axes.axhline(1.0, color="#777777", linestyle="--", linewidth=1.0, label="as wrong as the mean")
    axes.set_xlim(0.0, forecast.windows.horizon)
    axes.set_xlabel(label("time from the start of the forecast", forecast.observed.time_unit), fontsize=9)
    axes.set_ylabel("error / standard deviation", fontsize=9)
    axes.set_title("Error against horizon", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _scale_errors(axes: Axes, levels: FloatArray) -> None:
    """A logarithmic axis where errors span more than a decade, else a linear one from zero."""
    if levels.max() > 10 * levels.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(0.0, 1.1 * float(levels.max()))


def _draw_spread(axes: Axes, forecast: Forecast, errors: FloatArray, total: int | None) -> None:
    """Histogram of the error of each forecast."""
    tidy(axes)
    errors = np.maximum(errors, 1e-16)
    low, high = float(errors.min()), float(errors.max())
    number = int(np.clip(np.sqrt(errors.size) * 2, 8, 40))
    if high > 10 * low:
        edges = np.geomspace(low * 0.999, high * 1.001, number + 1)
        axes.set_xscale("log")
    else:
        edges = np.linspace(low * 0.999, high * 1.001, number + 1)
    axes.hist(errors, bins=edges.tolist(), color=MODEL, alpha=0.75, linewidth=0)
    axes.margins(y=0.14)
    axes.axvline(float(np.median(errors)), color="#333333", linewidth=1.2)
    axes.annotate(
        f"median {np.median(errors):.2g}",
        (float(np.median(errors)), 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, -10),
        textcoords="offset points",
        fontsize=8,
    )
    failed = f", {forecast.diverged} failed" if forecast.diverged else ""
    share = f" of {total}" if total is not None and total > len(forecast) else ""
    axes.set_title(f"{errors.size}{share} forecasts{failed}", fontsize=10)
    axes.set_xlabel("error / standard deviation", fontsize=9)
    axes.set_ylabel("forecasts", fontsize=9)


def draw_learning_curve(history: FloatArray) -> Figure | None:
    """The loss against iterations on a logarithmic axis.

    Parameters
    ----------
    history : ndarray, shape (iterations, c)
        The first c columns of `HISTORY`; NaN where not looked at. A column that repeats an earlier one, never changes
        or is nowhere positive is left out.
    """
    history = np.asarray(history, np.float64)
    columns = _telling_columns(history)
    if not columns:
        return None
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    tidy(axes)
    iteration = np.arange(1, history.shape[0] + 1)
    for i in columns:
        known = np.isfinite(history[:, i]) & (history[:, i] > 0)
        axes.plot(
            iteration[known],
            history[known, i],
            color=HISTORY_COLOURS[i],
            linewidth=1.3,
            marker="." if known.sum() < FEW_FORECASTS else None,
            label=HISTORY[i],
        )
    axes.set_yscale("log")
    axes.margins(x=0.01)
    axes.set_xlabel("iteration", fontsize=9)
    axes.set_ylabel("loss" if len(columns) > 1 else HISTORY[columns[0]], fontsize=9)
    axes.set_title("Training", fontsize=10)
    if len(columns) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _telling_columns(history: FloatArray) -> list[int]:
    chosen: list[int] = []
    for i in range(min(history.shape[1] if history.ndim == 2 else 0, len(HISTORY))):
        values = history[:, i]
        known = np.isfinite(values) & (values > 0)
        if not known.any() or (known.sum() > 1 and np.ptp(values[known]) == 0):
            continue
        if not any(np.array_equal(values, history[:, k], equal_nan=True) for k in chosen):
            chosen.append(i)
    return chosen
