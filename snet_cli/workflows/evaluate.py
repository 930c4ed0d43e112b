"""`snet evaluate`: checkpoint + trajectory file -> forecast, scores, pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.checkpoint_file import LoadedCheckpoint, load_checkpoint_with_notes
from snet_cli.data.options import CommonOptions
from snet_cli.data.outputs import check_no_input_is_overwritten, check_output, write_atomic
from snet_cli.data.posterior import Posterior
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import load_with_notes, save_trajectories
from snet_cli.data.trajectory_slices import notes_on_file, open_slices
from snet_cli.distributed import ALONE, Team
from snet_cli.errors import CheckpointError
from snet_cli.evaluation.coverage import judge_bands
from snet_cli.evaluation.csv_out import forecast_csv
from snet_cli.evaluation.ensemble import ensemble_scores
from snet_cli.evaluation.options import EvaluateOptions
from snet_cli.evaluation.picture_folder import check_folder
from snet_cli.evaluation.report import Relaxed, build_report
from snet_cli.evaluation.requirements import parse_requirements
from snet_cli.forecasting.bands import Bands, with_bands
from snet_cli.forecasting.rollout import Forecast, rollout
from snet_cli.forecasting.windows import Windows, plan_windows
from snet_cli.models.user import read_source
from snet_cli.training.relaxed_score import RelaxedRule
from snet_cli.workflows import memory
from snet_cli.workflows.bands import band_maker, band_notes, required_posterior
from snet_cli.workflows.ensemble import members_of
from snet_cli.workflows.evaluate_slices import (
    SlicedEvaluation,
    check_options,
    chosen,
    evaluate_in_slices,
    needs_slices,
)
from snet_cli.workflows.held_out import hold_out, scorable
from snet_cli.workflows.provenance import history_line, provenance
from snet_cli.workflows.reporter import Reporter, Silent
from snet_cli.workflows.resources import choose_device, set_threads
from snet_cli.workflows.trained_model import TrainedModel, from_checkpoint

FloatArray = NDArray[np.float64]

EVALUATION_WIDTH = 64
"""Typical width of a network, by which the work of one evaluation on all trajectories is judged."""


@dataclass(frozen=True)
class EvaluateTask:
    """What was asked for, and what stands ready before any data is read.

    Attributes
    ----------
    model, test : str
        Paths.
    output : str or None
    options : EvaluateOptions
    common : CommonOptions
    force, dry_run : bool
    report : Reporter
    team : Team
    started : float
        Reading of `time.perf_counter`.
    device : torch.device
    loaded : LoadedCheckpoint
    trained : TrainedModel
    members : list of TrainedModel
        Of an ensemble; else none.
    """

    model: str
    test: str
    output: str | None
    options: EvaluateOptions
    common: CommonOptions
    force: bool
    dry_run: bool
    report: Reporter
    team: Team
    started: float
    device: torch.device
    loaded: LoadedCheckpoint
    trained: TrainedModel
    members: list[TrainedModel]

    @property
    def posterior(self) -> Posterior | None:
        """What bands are drawn from, where they are asked for."""
        return required_posterior(self.loaded.checkpoint, self.trained, self.model) if self.options.bands else None

    def use_threads(self, trajectories: int) -> None:
        """As many as so many forecasts deserve."""
        set_threads(self.common.threads, trajectories * EVALUATION_WIDTH, self.team.place.local_size)

    def tell(self, notes: Iterable[str]) -> None:
        """Pass on the notes of a file."""
        for note in notes:
            self.report.note(note)

    def check_outputs(self) -> None:
        """Refuse, before any work, what could not be written."""
        if self.output is not None:
            check_no_input_is_overwritten(self.output, self.model, self.test)
            check_output(self.output, self.force)
        if self.options.plot is not None and not self.dry_run:
            check_folder(self.options.plot, self.force)

    def record(self, test_sha256: str) -> dict[str, Any]:
        """Provenance of the forecasts."""
        return provenance(
            "evaluate",
            {**self.options.model_dump(mode="json"), **self.common.model_dump(mode="json")},
            parents={"model": self.loaded.sha256, "test": test_sha256},
        )

    @property
    def losses(self) -> FloatArray | None:
        """History of the training, for its picture."""
        return self.loaded.checkpoint.extra.get("history", {}).get("loss")


def evaluate(
    model: str,
    test: str,
    output: str | None = None,
    options: EvaluateOptions | None = None,
    common: CommonOptions | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    report: Reporter | None = None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Forecast the trajectories of a file with a model and score the forecasts.

    Parameters
    ----------
    model, test : str
        Paths of the checkpoint and of the trajectory file; "-" reads stdin.
    output : str, optional
        Forecast as a trajectory file, or as CSV where the name ends so; "-" writes the file to stdout.
    force : bool
        Overwrite existing outputs.
    dry_run : bool
        Check everything, forecast nothing.
    team : Team
        The processes that share the forecasts; the lead writes.

    Returns
    -------
    dict
        The JSON of DESIGN, section 4.

    Raises
    ------
    SnetError
        Any of the tree; nothing is written then.
    """
    started = time.perf_counter()
    options, common, report = options or EvaluateOptions(), common or CommonOptions(), report or Silent()
    team.require_files(model, test)
    device = choose_device(common.device, team.place)
    loaded = load_checkpoint_with_notes(model, max_bytes=common.max_bytes)
    source = None if options.model is None else read_source(options.model)
    trained = from_checkpoint(loaded.checkpoint, model, source)
    parse_requirements(options.require, trained.layout.outputs)  # a bound that names nothing fails before any work
    members = [from_checkpoint(one, model, source) for one in members_of(loaded.checkpoint, model)]
    asked = (options, common, force, dry_run, report, team, started, device)
    task = EvaluateTask(model, test, output, *asked, loaded, trained, members)
    task.tell(loaded.notes)
    sliced = needs_slices(test, len(trained.layout.states), options, common, team)
    return _in_slices(task) if sliced else _in_one_piece(task)


def _in_one_piece(task: EvaluateTask) -> dict[str, Any]:
    """All forecasts at once."""
    options, report, team, trained = task.options, task.report, task.team, task.trained
    data_file = load_with_notes(task.test, max_bytes=task.common.max_bytes, allow_missing_channels=True)
    task.tell(data_file.notes)
    data = data_file.trajectories if options.split is None else data_file.trajectories.of_split(options.split)
    trained.check_fits(data)
    team.require_same({"model file": task.loaded.sha256, "test file": data_file.sha256})
    if options.relaxed:
        _require_rule(trained, task.model)
    posterior = task.posterior
    task.use_threads(len(data))
    windows = plan_windows(data, horizon=options.horizon, from_every=options.from_every)
    task.check_outputs()
    if task.dry_run:
        return _plan(trained, data, windows)
    size = memory.of_forecasts(int(np.sum(windows.row_size)), len(trained.layout.states))
    memory.require_memory("the forecast", size, task.common)
    relaxed = _relaxed(task, data)
    forecast = _forecast(task, trained, data, windows)
    together = None
    if task.members:
        together = ensemble_scores([_forecast(task, one, data, windows) for one in task.members]).to_json()
    bands = None
    if posterior is not None:
        maker = band_maker(trained, posterior, options, task.common, task.device, report, team.place)
        bands = maker.of(data, windows)
        task.tell(band_notes(forecast.initial_state, bands.failed, len(forecast), bands.members))
    pictures: list[Path] = []
    if team.is_lead:
        if task.output is not None:
            earlier = (task.loaded.checkpoint.history, data.history)
            _write(task.output, forecast, bands, task.record(data_file.sha256), earlier, task.force)
        if options.plot is not None:
            pictures = _draw(task, forecast, bands)
    summary = build_report(
        forecast,
        integrator=options.integrator,
        trajectories=len(data),
        relaxed=relaxed,
        bands=None if bands is None else judge_bands(forecast, bands),
        seconds=time.perf_counter() - task.started,
        output=task.output,
        pictures=tuple(str(path) for path in pictures),
    )
    return {"command": "evaluate", **summary.to_json(), "ensemble": together}


def _forecast(task: EvaluateTask, model: TrainedModel, data: Trajectories, windows: Windows) -> Forecast:
    """The forecasts of one model."""
    options = task.options
    return rollout(
        model.forecast_model(task.device),
        data,
        windows,
        init_window=options.init_window,
        integrator=options.integrator,
        rtol=options.rtol,
        atol=options.atol,
        should_stop=task.report.should_stop,
        team=task.team,
    )


def _in_slices(task: EvaluateTask) -> dict[str, Any]:
    """The same where the forecasts do not fit into the memory all at once."""
    options, common, report, team, trained = task.options, task.common, task.report, task.team, task.trained
    check_options(options)
    posterior = task.posterior
    task.check_outputs()
    with open_slices(task.test, max_bytes=common.max_bytes) as whole:
        task.tell(notes_on_file(whole))
        trained.check_fits(whole.shell)
        team.require_same({"model file": task.loaded.sha256, "test file": whole.sha256})
        slices = chosen(whole, options.split)
        task.use_threads(len(slices))
        if task.dry_run:
            return {
                "command": "evaluate",
                "dry_run": True,
                "model": trained.model_options["name"],
                "trajectories": len(slices),
                "in_slices": True,
            }
        run = SlicedEvaluation(trained, task.members, posterior, slices, options, common, task.device, report, team)
        earlier = (task.loaded.checkpoint.history, whole.shell.history)
        found = evaluate_in_slices(run, task.output, task.record(whole.sha256), earlier, task.force)
    pictures: list[Path] = []
    if found.pictured is not None and found.pictured.forecasts:
        forecast, bands = found.pictured.together()
        pictures = _draw(task, forecast, bands, found.pictured.total)
    summary = replace(
        found.report, seconds=time.perf_counter() - task.started, pictures=tuple(str(path) for path in pictures)
    )
    return {"command": "evaluate", **summary.to_json(), "ensemble": found.ensemble}


def _draw(task: EvaluateTask, forecast: Forecast, bands: Bands | None, total: int | None = None) -> list[Path]:
    """The pictures, of some of `total` forecasts."""
    from snet_cli.evaluation.plots import write_pictures  # matplotlib: not before it is needed

    return write_pictures(str(task.options.plot), forecast, task.losses, task.force, bands, total)


def _require_rule(trained: TrainedModel, path: str) -> RelaxedRule:
    """How the model is scored without integration."""
    if trained.rule is None:
        raise CheckpointError(
            f"{path}: the checkpoint is of a version that kept no scales for --relaxed.",
            "Train it again, or leave --relaxed out.",
        )
    return trained.rule


def _relaxed(task: EvaluateTask, data: Trajectories) -> Relaxed | None:
    """Eq. 4 on the whole recordings, no ODE solved; None unless it is asked for and can be had."""
    trained = task.trained
    part = scorable(trained, data, task.report.note) if task.options.relaxed else None
    if part is None:
        return None
    held_out = hold_out(trained, _require_rule(trained, task.model), part, task.common, task.device)
    score = held_out.scorer(task.team).score(trained.model.to(task.device))
    return Relaxed(*(value if math.isfinite(value) else None for value in score))


def _plan(trained: TrainedModel, data: Trajectories, windows: Windows) -> dict[str, Any]:
    """What `--dry-run` prints."""
    return {
        "command": "evaluate",
        "dry_run": True,
        "model": trained.model_options["name"],
        "trajectories": len(data),
        "forecasts": len(windows),
        "horizon": windows.horizon,
        "times": int(np.sum(windows.row_size)),
    }


def _write(
    output: str,
    forecast: Forecast,
    bands: Bands | None,
    record: dict[str, Any],
    earlier: tuple[str, ...],
    force: bool,
) -> None:
    """The forecast as a trajectory file, or as a table."""
    if output.lower().endswith(".csv"):
        write_atomic(output, forecast_csv(forecast, bands), force)
        return
    predicted = forecast.trajectories if bands is None else with_bands(forecast.trajectories, bands)
    predicted = replace(predicted, provenance=record, history=history_line(record, earlier))
    save_trajectories(output, predicted, force)
