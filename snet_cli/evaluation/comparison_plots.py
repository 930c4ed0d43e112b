"""Pictures of a comparison, as PNG: how the methods learn, where they end, how their gradients grow.

``loss.png``: loss against iterations and against seconds (Quaglino et al. 2020, figs. 1, 3, 5, 6), each method's own
above, and below the train rollout MSE, the loss that all have in common; ``forecasts.png``: forecasts in the plane, a
panel per method (figs. 2, 4, 8); ``gradient_norms.png``: the norm of the gradient against the horizon (App. D).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from snet_cli.data.outputs import write_atomic
from snet_cli.evaluation.comparison import ComparisonRow
from snet_cli.evaluation.forecast_plots import position_pairs
from snet_cli.evaluation.plot_style import (
    DOTTED,
    MODEL,
    TRUTH,
    chosen_forecasts,
    label,
    limits,
    reference,
    rows_of,
    tidy,
)
from snet_cli.evaluation.plots import render
from snet_cli.forecasting.rollout import Forecast

FloatArray = NDArray[np.float64]

COLOURS: Mapping[str, str] = {
    "delta": "#1f5fb4",
    "alpha": "#0b9e9e",
    "joint": "#6a3d9a",
    "bkpr-euler": "#e08214",
    "bkpr-dopri5": "#c51b1b",
    "adj-euler": "#b8860b",
    "adj-dopri5": "#8b1a5b",
    "anode": "#7f7f7f",
}
"""The same method has the same colour in every picture."""

LINES = ("-", "--", ":", "-.")
"""Cases of a method, in order."""

COMPARISON_PICTURES = ("loss.png", "forecasts.png", "gradient_norms.png")
"""All pictures; those that have nothing to show are not drawn."""

PANELS = 12
"""Methods in the picture of forecasts, at most."""


@dataclass(frozen=True)
class LearningCurve:
    """How one method learned.

    Attributes
    ----------
    method : str
    case : str or None
    loss : ndarray, shape (iterations,)
        The method's own loss after each iteration.
    seconds : ndarray, shape (iterations,)
        Time in the training loop up to then.
    rollout_iteration, rollout_seconds, rollout_mse : ndarray, shape (points,)
        Where the train rollout MSE was tracked, and what it was.
    """

    method: str
    case: str | None
    loss: FloatArray
    seconds: FloatArray
    rollout_iteration: FloatArray = field(default_factory=lambda: np.zeros(0))
    rollout_seconds: FloatArray = field(default_factory=lambda: np.zeros(0))
    rollout_mse: FloatArray = field(default_factory=lambda: np.zeros(0))

    @property
    def label(self) -> str:
        """Method and case."""
        return self.method if self.case is None else f"{self.method} {self.case}"


class _Look(NamedTuple):
    """How a curve is drawn."""

    colour: str
    line: str


class _Style:
    """Colour by method, line by case: the first case of each method is solid."""

    def __init__(self) -> None:
        self.cases: dict[str, list[str | None]] = {}

    def of(self, method: str, case: str | None) -> _Look:
        cases = self.cases.setdefault(method, [])
        if case not in cases:
            cases.append(case)
        return _Look(COLOURS.get(method, "#333333"), LINES[cases.index(case) % len(LINES)])


def draw_loss(curves: Sequence[LearningCurve]) -> Figure | None:
    """Loss against iterations and seconds on logarithmic axes; None where no method iterated."""
    curves = [curve for curve in curves if curve.loss.size]
    if not curves:
        return None
    tracked = any(curve.rollout_mse.size for curve in curves)
    figure = Figure(figsize=(9.0, 6.8 if tracked else 3.7), layout="constrained")
    grid = figure.subplots(2 if tracked else 1, 2, squeeze=False)
    style = _Style()
    for curve in curves:
        look = style.of(curve.method, curve.case)
        steps = np.arange(1, curve.loss.size + 1, dtype=np.float64)
        for column, across in enumerate((steps, curve.seconds)):
            _line(grid[0][column], across, curve.loss, curve.label, look)
        if tracked:
            for column, across in enumerate((curve.rollout_iteration, curve.rollout_seconds)):
                _line(grid[1][column], across, curve.rollout_mse, curve.label, look, marker=".")
    for row, what in enumerate(("own loss", "train rollout MSE")[: 2 if tracked else 1]):
        for column, name in enumerate(("iterations", "seconds of training")):
            axes = grid[row][column]
            _logarithmic(axes)
            axes.set_xlabel(name, fontsize=9)
            if column == 0:
                axes.set_ylabel(what, fontsize=9)
    _legend(figure, grid[0][0])
    return figure


def _line(axes: Axes, across: FloatArray, up: FloatArray, name: str, look: _Look, marker: str | None = None) -> None:
    """One curve; what is not finite or not positive has no place on logarithmic axes."""
    shown = np.isfinite(up) & (up > 0) & (across > 0)
    axes.plot(
        across[shown],
        up[shown],
        label=name,
        color=look.colour,
        linestyle=look.line,
        linewidth=1.3,
        marker=marker,
        markersize=3.5,
    )


def _logarithmic(axes: Axes) -> None:
    tidy(axes)
    if any(np.size(line.get_xdata()) for line in axes.get_lines()):
        axes.set_xscale("log")
        axes.set_yscale("log")


def _legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, above them."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        longest = max(len(name) for name in names)
        room = int(figure.get_figwidth() / (0.07 * longest + 0.55))  # inches of a letter at this size, and of a handle
        columns = max(1, min(len(handles), 5, room))
        figure.legend(handles, names, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)


def draw_forecasts(forecasts: Sequence[tuple[str, Forecast]]) -> Figure | None:
    """Forecasts in the plane: a panel per method, the same trajectories in each, truth dotted and model solid.

    Parameters
    ----------
    forecasts : sequence of (str, Forecast)
        Label and forecast of each method; at most `PANELS` are shown. None is returned where nothing is a plane.
    """
    shown = [(name, each) for name, each in forecasts if position_pairs(each.observed.output_names)][:PANELS]
    if not shown:
        return None
    columns = min(len(shown), 4)
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.9 * columns + 0.4, 2.9 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, forecast) in zip(panels, shown, strict=False):
        _paths(axes, forecast)
        axes.set_title(name, fontsize=9, parse_math=False)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    against = "measured" if shown[0][1].true_outputs is None else "truth"
    handles = [
        Line2D([], [], color=TRUTH, linestyle=DOTTED, linewidth=1.5, label=against),
        Line2D([], [], color=MODEL, linewidth=1.3, label="model"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def _paths(axes: Axes, forecast: Forecast) -> None:
    """A few forecasts of one method, within the limits of the truth and a margin."""
    tidy(axes)
    data = forecast.observed
    pairs = position_pairs(data.output_names)
    truth, predicted = reference(forecast), forecast.trajectories.outputs
    few = chosen_forecasts(forecast, 1 if len(pairs) > 1 else 4)
    rows = np.concatenate([np.arange(predicted.shape[0])[rows_of(forecast, w)] for w in few])
    for w in few:
        part = rows_of(forecast, w)
        for across, up in pairs:
            known = np.isfinite(truth[part, across]) & np.isfinite(truth[part, up])
            axes.plot(predicted[part, across], predicted[part, up], color=MODEL, linewidth=1.0)
            axes.plot(truth[part, across][known], truth[part, up][known], color=TRUTH, linestyle=DOTTED, linewidth=1.3)
    columns, lines = [pair.across for pair in pairs], [pair.up for pair in pairs]
    axes.set_xlim(*limits(truth[rows][:, columns], predicted[rows][:, columns]))
    axes.set_ylim(*limits(truth[rows][:, lines], predicted[rows][:, lines]))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    first = pairs[0]
    names = [data.output_names[first.across], data.output_names[first.up]]
    if len(pairs) == 1:
        axes.set_xlabel(label(names[0], data.units.get(names[0], "")), fontsize=8, parse_math=False)
        axes.set_ylabel(label(names[1], data.units.get(names[1], "")), fontsize=8, parse_math=False)


MOST_TICKS = 8
"""Horizons that have a tick of their own."""


def draw_gradient_norms(rows: Sequence[ComparisonRow], time_unit: str = "s") -> Figure | None:
    """Norm of the gradient against the horizon; None where no row has any."""
    rows = [row for row in rows if any(point.norm is not None for point in row.gradient_norm)]
    if not rows:
        return None
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    style = _Style()
    for row in rows:
        horizon = np.array([point.horizon for point in row.gradient_norm], dtype=np.float64)
        norm = np.array([np.nan if p.norm is None else p.norm for p in row.gradient_norm], dtype=np.float64)
        _line(axes, horizon, norm, row.label, style.of(row.method, row.case), marker="o")
    _logarithmic(axes)
    horizons = sorted({point.horizon for row in rows for point in row.gradient_norm})
    if len(horizons) <= MOST_TICKS:  # decades would leave most of them without a number, or numbers that overlap
        axes.set_xticks(horizons, [f"{horizon:.3g}" for horizon in horizons])
        axes.set_xticks([], minor=True)
    axes.set_xlabel(label("horizon", time_unit), fontsize=9)
    axes.set_ylabel("norm of the gradient with respect to the weights", fontsize=9)
    _legend(figure, axes)
    return figure


def write_comparison_pictures(
    folder: str | Path,
    rows: Sequence[ComparisonRow],
    curves: Sequence[LearningCurve] = (),
    forecasts: Sequence[tuple[str, Forecast]] = (),
    time_unit: str = "s",
    force: bool = False,
) -> list[Path]:
    """Draw what there is to show into the folder; returns the files written.

    Raises
    ------
    OutputError
        If one cannot be written, or exists and `force` is false.
    """
    figures = (draw_loss(curves), draw_forecasts(forecasts), draw_gradient_norms(rows, time_unit))
    written = []
    for name, figure in zip(COMPARISON_PICTURES, figures, strict=True):
        if figure is not None:
            write_atomic(Path(folder) / name, render(figure), force)
            written.append(Path(folder) / name)
    return written
