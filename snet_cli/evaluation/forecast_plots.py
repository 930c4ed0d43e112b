"""Forecasts against truth: each channel in time, and paths in the plane."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from snet_cli.evaluation.plot_style import (
    BAND,
    DOTTED,
    FEW_SAMPLES,
    MEASURED,
    MODEL,
    SHOWN,
    TRUTH,
    WINDOW,
    chosen_forecasts,
    label,
    legend_handles,
    limits,
    reference,
    rows_of,
    shows_samples,
    tidy,
    title,
)
from snet_cli.forecasting.bands import Bands
from snet_cli.forecasting.rollout import Forecast

FloatArray = NDArray[np.float64]
Interval = tuple[float, float]

CHANNELS_SHOWN = 6
COLUMNS = 3
"""Forecasts of several channels side by side: what one can still read."""


class PositionPair(NamedTuple):
    """Columns of two channels that span a plane."""

    across: int
    up: int


def draw_forecast(forecast: Forecast, bands: Bands | None = None, total: int | None = None) -> Figure | None:
    """Forecasts in time: channels one below the other, forecasts side by side; None where there is nothing to draw.

    A single channel has its forecasts one below the other instead, each as wide as the picture. `total` says how many
    there are, where not all are given.
    """
    names = forecast.observed.output_names[:CHANNELS_SHOWN]
    shown = chosen_forecasts(forecast, SHOWN if len(names) == 1 else COLUMNS)
    if not shown or not names:
        return None
    lines, columns = (len(shown), 1) if len(names) == 1 else (len(names), len(shown))
    figure = Figure(figsize=(9.0 if columns == 1 else 1.0 + 3.0 * columns, 1.1 + 1.45 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex="none" if columns == 1 else "col")
    grid = panels.T if len(names) == 1 else panels  # one row a channel, one column a forecast
    truth, predicted = reference(forecast), forecast.trajectories.outputs
    every = np.concatenate([np.arange(rows.start, rows.stop) for rows in (rows_of(forecast, w) for w in shown)])
    for i, name in enumerate(names):
        interval = limits(truth[every, i], predicted[every, i])
        for axes, w in zip(grid[i], shown, strict=True):
            _draw_channel(axes, forecast, truth, w, i, bands)
            axes.set_ylim(*interval)
            axes.tick_params(labelleft=axes in panels[:, 0], labelbottom=len(names) == 1 or axes in panels[-1])
        for axes in set(grid[i]) & set(panels[:, 0]):
            axes.set_ylabel(label(name, forecast.observed.units.get(name, "")), fontsize=9, parse_math=False)
    for axes, w in zip(grid[0], shown, strict=True):
        axes.set_title(title(forecast, w), fontsize=9, parse_math=False)
    for axes in panels[-1]:
        axes.set_xlabel(label("time", forecast.observed.time_unit), fontsize=9, parse_math=False)
    figure.align_ylabels(panels[:, 0])
    _finish(figure, forecast, legend_handles(forecast, True, bands is not None), len(shown), len(names), total)
    return figure


def _draw_channel(axes: Axes, forecast: Forecast, truth: FloatArray, w: int, channel: int, bands: Bands | None) -> None:
    """One panel."""
    rows = rows_of(forecast, w)
    time = forecast.windows.time[rows]
    tidy(axes)
    axes.margins(x=0.01)
    recorded = forecast.windows.row[rows] >= 0
    unscored = recorded & ~forecast.scored[rows]
    if unscored.any():
        axes.axvspan(time[0], time[unscored][-1], color=WINDOW, linewidth=0)
    if bands is not None:
        lower, upper = (ends[rows, channel] for ends in bands.truth)
        known = np.isfinite(lower) & np.isfinite(upper)
        axes.fill_between(time, lower, upper, where=known, color=BAND, linewidth=0)
    if shows_samples(forecast):
        axes.plot(
            time, forecast.observed.outputs[rows, channel], color=MEASURED, linestyle="none", marker=".", markersize=2.5
        )
    axes.plot(time, forecast.trajectories.outputs[rows, channel], color=MODEL, linewidth=1.4)
    values = truth[rows, channel]
    known = np.isfinite(values)
    marker = "o" if known.sum() < FEW_SAMPLES and not shows_samples(forecast) else None
    axes.plot(time[known], values[known], color=TRUTH, linestyle=DOTTED, linewidth=1.6, marker=marker, markersize=2.2)


def draw_plane(forecast: Forecast, total: int | None = None) -> Figure | None:
    """Paths of up to six forecasts in the plane of two channels; None for a single channel.

    The plane is that of positions where the names tell them (x and y, x1 and y1 … of many agents), else that of the
    first two channels.
    """
    pairs = position_pairs(forecast.observed.output_names)
    shown = chosen_forecasts(forecast)
    if not pairs or not shown:
        return None
    columns = min(len(shown), 3)
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(0.8 + 3.3 * max(columns, 2), 0.9 + 3.0 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    first = [forecast.observed.output_names[i] for i in pairs[0]]
    units = [forecast.observed.units.get(name, "") for name in first]
    names = [re.sub(r"\d+$", "", name) for name in first] if len(pairs) > 1 else first
    positions = _is_position(forecast.observed.output_names, pairs[0])
    for panel, axes in enumerate(grid.flat):
        if panel >= len(shown):
            axes.set_axis_off()
            continue
        across, up = _draw_paths(axes, forecast, shown[panel], pairs)
        if positions:
            across, up = _same_extent(across, up)
            axes.set_aspect("equal")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlim(*across)
        axes.set_ylim(*up)
        axes.set_title(title(forecast, shown[panel]), fontsize=9, parse_math=False)
        if panel % columns == 0:
            axes.set_ylabel(label(names[1], units[1]), fontsize=9, parse_math=False)
        if panel + columns >= len(shown):
            axes.set_xlabel(label(names[0], units[0]), fontsize=9, parse_math=False)
    channels = len(forecast.observed.output_names)
    _finish(figure, forecast, legend_handles(forecast, False), len(shown), channels, total)
    return figure


def _draw_paths(axes: Axes, forecast: Forecast, w: int, pairs: list[PositionPair]) -> tuple[Interval, Interval]:
    """All pairs of one forecast, a dot where each path starts; returns the limits that show them."""
    rows = rows_of(forecast, w)
    truth, predicted = reference(forecast)[rows], forecast.trajectories.outputs[rows]
    tidy(axes)
    thin = len(pairs) > 1
    for across, up in pairs:
        known = np.isfinite(truth[:, across]) & np.isfinite(truth[:, up])
        marker = "o" if known.sum() < FEW_SAMPLES and not thin else None
        axes.plot(predicted[:, across], predicted[:, up], color=MODEL, linewidth=0.9 if thin else 1.3)
        axes.plot(
            truth[known, across],
            truth[known, up],
            color=TRUTH,
            linestyle=DOTTED,
            linewidth=1.1 if thin else 1.5,
            marker=marker,
            markersize=2.2,
        )
        axes.plot(predicted[:1, across], predicted[:1, up], color=MODEL, marker="o", markersize=4, linestyle="none")
    columns, lines = [pair.across for pair in pairs], [pair.up for pair in pairs]
    return limits(truth[:, columns], predicted[:, columns]), limits(truth[:, lines], predicted[:, lines])


def _same_extent(first: Interval, second: Interval) -> tuple[Interval, Interval]:
    """Both intervals about their middles, as long as the longer one: a square with equal units."""
    half = 0.5 * max(first[1] - first[0], second[1] - second[0])
    middle, other = 0.5 * (first[0] + first[1]), 0.5 * (second[0] + second[1])
    return (middle - half, middle + half), (other - half, other + half)


def position_pairs(names: tuple[str, ...]) -> list[PositionPair]:
    """Pairs of channels that are positions by name, or the first two channels; empty where there is only one.

    ``x, y``; ``X, Y``; ``pos_x, pos_y``; ``x1, y1, x2, y2, …``: the name with x exchanged for y exists too.
    """
    pairs = []
    for across, name in enumerate(names):
        if re.search(r"(^|_)p?[xX]\d*(_|$)", name):
            partner = re.sub(r"[xX](?=\d*(_|$))", lambda hit: "y" if hit[0] == "x" else "Y", name, count=1)
            if partner != name and partner in names:
                pairs.append(PositionPair(across, names.index(partner)))
    if pairs:
        return pairs
    return [PositionPair(0, 1)] if len(names) > 1 else []


def _is_position(names: tuple[str, ...], pair: PositionPair) -> bool:
    return names[pair.across].lower().replace("x", "y") == names[pair.up].lower()


def _finish(
    figure: Figure, forecast: Forecast, handles: list[Artist], shown: int, channels: int, total: int | None
) -> None:
    """The legend above the panels, and what was left out."""
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
    total, all_channels = total or len(forecast), len(forecast.observed.output_names)
    parts = [f"{shown} of {total} forecasts"] if shown < total else []
    parts += [f"{channels} of {all_channels} channels"] if channels < all_channels else []
    if parts:
        figure.suptitle(", ".join(parts), x=0.01, ha="left", fontsize=9, color="#555555")
