"""Pictures of forecasts, as PNG: truth dotted red, model solid blue, as in Quaglino et al. 2020, figs. 2, 4 and 8.

``forecast.png``: channels in time; ``plane.png``: the path in the plane; ``error_by_horizon.png``: how errors grow
with the horizon, and how they spread over forecasts; ``learning_curve.png``: the loss against iterations. Figures are
objects drawn by Agg: no window, no global state, the same bytes for the same numbers.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from snet_cli.data.outputs import write_atomic
from snet_cli.evaluation.error_plots import draw_error_by_horizon, draw_learning_curve
from snet_cli.evaluation.forecast_plots import draw_forecast, draw_plane
from snet_cli.evaluation.picture_folder import check_folder
from snet_cli.forecasting.bands import Bands
from snet_cli.forecasting.rollout import Forecast

FloatArray = NDArray[np.float64]

RESOLUTION = 130
"""Dots per inch."""


def draw_pictures(
    forecast: Forecast, history: FloatArray | None = None, bands: Bands | None = None, total: int | None = None
) -> dict[str, bytes]:
    """All pictures that have something to show, as PNG by file name.

    Parameters
    ----------
    forecast : Forecast
    history : ndarray, shape (iterations, 4), optional
        Residual, misfit, total and held-out score of each iteration of training.
    bands : Bands, optional
    total : int, optional
        How many forecasts there are, where `forecast` holds some of them.
    """
    drawings: Mapping[str, Callable[[], Figure | None]] = {
        "forecast.png": lambda: draw_forecast(forecast, bands, total),
        "plane.png": lambda: draw_plane(forecast, total),
        "error_by_horizon.png": lambda: draw_error_by_horizon(forecast, total),
        "learning_curve.png": lambda: None if history is None else draw_learning_curve(history),
    }
    figures = ((name, draw()) for name, draw in drawings.items())
    return {name: render(figure) for name, figure in figures if figure is not None}


def write_pictures(
    folder: str | Path,
    forecast: Forecast,
    history: FloatArray | None = None,
    force: bool = False,
    bands: Bands | None = None,
    total: int | None = None,
) -> list[Path]:
    """Draw the pictures into a folder (`draw_pictures`); returns the files written.

    Raises
    ------
    OutputError
        If one cannot be written, or exists and `force` is false.
    """
    check_folder(folder, force)
    written: list[Path] = []
    for name, png in draw_pictures(forecast, history, bands, total).items():
        write_atomic(Path(folder) / name, png, force)
        written.append(Path(folder) / name)
    return written


def render(figure: Figure) -> bytes:
    """The figure as PNG; no program name, version or date in it."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # a name the font cannot spell is no reason to worry
        figure.savefig(buffer, format="png", dpi=RESOLUTION, metadata={"Software": None})
    return buffer.getvalue()
