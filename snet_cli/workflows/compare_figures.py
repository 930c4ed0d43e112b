"""The pictures of a comparison, drawn from what its rows left: learning curves, gradients, and forecasts of a few."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snet_cli.data.checkpoint_file import load_checkpoint_with_notes
from snet_cli.data.options import CommonOptions
from snet_cli.data.outputs import write_atomic
from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import SnetError
from snet_cli.evaluation.comparison import ComparisonRow
from snet_cli.evaluation.comparison_plots import draw_forecasts, write_comparison_pictures
from snet_cli.evaluation.plots import render
from snet_cli.forecasting.rollout import Forecast, rollout
from snet_cli.models.user import read_source
from snet_cli.training.options import FitOptions
from snet_cli.workflows.compare_plan import Job
from snet_cli.workflows.compare_rows import load_test, snapshot_name
from snet_cli.workflows.compare_store import MODEL, folder_of, load_curve
from snet_cli.workflows.compare_tracking import TRACKED
from snet_cli.workflows.fit_data import load_fit_data
from snet_cli.workflows.reporter import Silent
from snet_cli.workflows.resources import choose_device
from snet_cli.workflows.trained_model import from_checkpoint

FEW = 4
"""Trajectories that are drawn, evenly spread over the file."""

SECONDS = 20.0
"""Most time of one forecast for a picture; it is drawn as far as it came."""


def draw_comparison(output: str, jobs: Sequence[Job], rows: Sequence[ComparisonRow]) -> list[Path]:
    """Draw all pictures into DIR; returns the files written."""
    data = _Few()
    curves = [load_curve(folder_of(output, job), row) for job, row in zip(jobs, rows, strict=True)]
    forecasts = []
    for job, row in zip(jobs, rows, strict=True):
        forecast = _forecast(folder_of(output, job) / MODEL, job, data, on_test=job.test is not None)
        forecasts += [] if forecast is None else [(row.label, forecast)]
    unit = next((each.observed.time_unit for _, each in forecasts), "s")
    shown = [curve for job, curve in zip(jobs, curves, strict=True) if curve is not None and job.method != "linear"]
    written = write_comparison_pictures(output, rows, shown, forecasts, unit, force=True)
    for job in jobs:
        stages = []
        for iteration in job.snapshots:
            forecast = _forecast(folder_of(output, job) / snapshot_name(iteration), job, data, on_test=False)
            stages += [] if forecast is None else [(f"iteration {iteration}", forecast)]
        figure = draw_forecasts(stages)
        if figure is not None:
            path = Path(output) / f"training-{job.label}.png"
            write_atomic(path, render(figure), force=True)
            written.append(path)
    return written


class _Few:
    """A few trajectories of each file, read once."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, bool], Trajectories] = {}

    def of(self, path: str, common: CommonOptions, *, test: bool) -> Trajectories:
        if (path, test) not in self._held:
            whole = load_test(path, common) if test else load_fit_data(path, FitOptions(), common, Silent()).train
            spread = np.unique(np.linspace(0, len(whole) - 1, FEW).round().astype(np.int64))
            self._held[path, test] = whole.select(spread)
        return self._held[path, test]


def _forecast(model: Path, job: Job, data: _Few, *, on_test: bool) -> Forecast | None:
    """What this model makes of a few trajectories; None without a model, or where it cannot."""
    path = job.test if on_test else job.train
    if path is None or not model.exists():
        return None
    common = CommonOptions.model_validate(dict(job.common))
    try:
        checkpoint = load_checkpoint_with_notes(model, max_bytes=common.max_bytes).checkpoint
        reference = job.model_file
        trained = from_checkpoint(checkpoint, str(model), None if reference is None else read_source(reference))
        end = time.perf_counter() + SECONDS
        few = data.of(path, common, test=on_test)
        return rollout(
            trained.forecast_model(choose_device(common.device)),
            few,
            rtol=TRACKED.rtol,
            atol=TRACKED.atol,
            should_stop=lambda: time.perf_counter() > end,
        )
    except SnetError:
        return None  # the row says what is wrong
