"""Forecasts as CSV, for spreadsheets: what was predicted beside what was measured.

One row per forecast time: ``trajectory``, ``time [s]``, then for each channel ``x [m]`` and ``x_measured [m]`` (with
bands also ``x_lower [m]`` and ``x_upper [m]``), then ``scored`` (1 or 0). A cell is empty where a forecast had failed,
nothing was measured or a band has no end. Numbers are written with all their digits; `snet import --by trajectory`
reads such a file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from snet_cli.forecasting.bands import Bands
from snet_cli.forecasting.rollout import Forecast

ROWS_AT_A_TIME = 50_000


def forecast_csv(forecast: Forecast, bands: Bands | None = None, header: bool = True) -> bytes:
    """The forecasts as a CSV file in UTF-8 (RFC 4180, but lines end with a single newline).

    Parameters
    ----------
    header : bool
        Whether the names stand above: false for all slices of the forecasts but the first.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(_header(forecast, bands is not None))
    for rows in _blocks(forecast, bands):
        writer.writerows(rows)
    return text.getvalue().encode()


def _header(forecast: Forecast, with_bands: bool) -> list[str]:
    data = forecast.observed

    def with_unit(label: str, unit: str) -> str:
        return f"{label} [{unit}]" if unit else label

    kinds = ("", "_measured", "_lower", "_upper") if with_bands else ("", "_measured")
    groups = ([with_unit(f"{name}{kind}", data.units.get(name, "")) for kind in kinds] for name in data.output_names)
    return ["trajectory", with_unit("time", data.time_unit), *chain.from_iterable(groups), "scored"]


def _blocks(forecast: Forecast, bands: Bands | None) -> Iterator[Iterator[tuple[object, ...]]]:
    """Rows in blocks, so that a long forecast does not stand in memory twice as text."""
    predicted, measured = forecast.trajectories.outputs, forecast.observed.outputs
    ids = np.array(forecast.windows.ids, dtype=object)[forecast.windows.window_of_row()]
    for begin in range(0, predicted.shape[0], ROWS_AT_A_TIME):
        part = slice(begin, begin + ROWS_AT_A_TIME)
        columns: list[list[object]] = [ids[part].tolist(), forecast.windows.time[part].tolist()]
        for i in range(predicted.shape[1]):
            columns += [_cells(predicted[part, i]), _cells(measured[part, i])]
            columns += [] if bands is None else [_cells(ends[part, i]) for ends in bands.truth]
        columns.append(forecast.scored[part].astype(int).tolist())
        yield zip(*columns, strict=True)


def _cells(values: NDArray[np.float64]) -> list[object]:
    cells: list[object] = values.tolist()
    for k in np.flatnonzero(~np.isfinite(values)):
        cells[k] = ""
    return cells
