"""Colours, labels and axes that all pictures share, and which forecasts are shown."""

from __future__ import annotations

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from snet_cli.forecasting.rollout import Forecast

FloatArray = NDArray[np.float64]

TRUTH = "#d62728"
MODEL = "#1f5fb4"
MEASURED = "#b5b5b5"
WINDOW = "#f2e9d0"
BAND = "#c3d5ee"
DOTTED = (0, (1.2, 1.4))
"""Dots as long as the line is wide."""

SHOWN = 6
"""Forecasts in a picture, at most."""

FEW_SAMPLES = 60
"""Fewer samples than this are marked one by one."""


def label(name: str, unit: str) -> str:
    """``x [m]``; the bare name where the unit is not stated."""
    return f"{name} [{unit}]" if unit else name


def tidy(axes: Axes) -> None:
    """A light grid, no box on the right and at the top."""
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def chosen_forecasts(forecast: Forecast, most: int = SHOWN) -> list[int]:
    """Forecasts to show: evenly spread over all that hold more than their start, never picked by their error."""
    candidates = np.flatnonzero(forecast.windows.row_size > 1)
    if candidates.size <= most:
        return [int(w) for w in candidates]
    return [int(candidates[k]) for k in np.linspace(0, candidates.size - 1, most).round().astype(int)]


def title(forecast: Forecast, w: int) -> str:
    """The forecast's id, and its outcome where it failed."""
    name = forecast.windows.ids[w]
    short = name if len(name) <= 24 else name[:21] + "..."
    if forecast.outcome[w] == "ok":
        return short
    return f"{short} ({forecast.outcome[w]} at {forecast.end_time[w]:.4g} {forecast.observed.time_unit})"


def rows_of(forecast: Forecast, w: int) -> slice:
    """Rows of one forecast."""
    end = int(forecast.windows.row_size[: w + 1].sum())
    return slice(end - int(forecast.windows.row_size[w]), end)


def reference(forecast: Forecast) -> FloatArray:
    """What forecasts are drawn against, shape (obs, d): the truth where there is one, else the measurements."""
    measured = forecast.observed.outputs
    if forecast.true_outputs is None:
        return measured
    return np.where(np.isfinite(forecast.true_outputs), forecast.true_outputs, measured)


def limits(reference_values: FloatArray, predicted: FloatArray) -> tuple[float, float]:
    """Axis limits that show all of the reference and the forecast as far as it stays in its neighbourhood.

    A forecast that runs away leaves the picture instead of flattening everything else.
    """
    values = reference_values[np.isfinite(reference_values)]
    if values.size == 0:
        values = predicted[np.isfinite(predicted)]
    if values.size == 0:
        return -1.0, 1.0
    low, high = float(values.min()), float(values.max())
    extent = high - low if high > low else max(abs(high), 1.0) * 0.1
    inside = predicted[np.isfinite(predicted)]
    if inside.size:
        low = max(min(low, float(inside.min())), low - 0.6 * extent)
        high = min(max(high, float(inside.max())), high + 0.6 * extent)
    margin = 0.06 * (high - low if high > low else extent)
    return low - margin, high + margin


def legend_handles(forecast: Forecast, in_time: bool, bands: bool = False) -> list[Artist]:
    """What the lines mean; samples, init windows and bands are drawn in time only."""
    against = "measured" if forecast.true_outputs is None else "truth"
    handles: list[Artist] = [
        Line2D([], [], color=TRUTH, linestyle=DOTTED, linewidth=1.6, label=against),
        Line2D([], [], color=MODEL, linewidth=1.4, label="model"),
    ]
    if np.isfinite(forecast.observed.outputs).sum() == 0 and forecast.true_outputs is None:
        del handles[0]
    if not in_time:
        handles.append(Line2D([], [], color=MODEL, linestyle="none", marker="o", markersize=4, label="start"))
        return handles
    if bands:
        handles.append(Patch(color=BAND, label="95 % band"))
    if shows_samples(forecast):
        handles.append(Line2D([], [], color=MEASURED, linestyle="none", marker=".", markersize=5, label="measured"))
    if not forecast.scored[forecast.windows.row >= 0].all():
        handles.append(Patch(color=WINDOW, label="init window, not scored"))
    return handles


def shows_samples(forecast: Forecast) -> bool:
    """Whether measurements are drawn beside the truth: where they differ from it by more than rounding."""
    if forecast.true_outputs is None:
        return False
    difference = np.abs(forecast.observed.outputs - forecast.true_outputs)
    known = np.isfinite(difference)
    size = np.nanmax(np.abs(forecast.true_outputs), initial=0.0, where=np.isfinite(forecast.true_outputs))
    return bool(known.any() and difference[known].max() > 1e-6 * size)
