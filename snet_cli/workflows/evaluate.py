"""`snet evaluate`: checkpoint + trajectory file -> forecast, scores, pictures."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snet_cli.data.checkpoint_file import LoadedCheckpoint, load_checkpoint_with_notes
from snet_cli.data.options import CommonOptions
from snet_cli.data.storage import check_no_input_is_overwritten, check_output, write_atomic
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import load_with_notes, save_trajectories
from snet_cli.data.trajectory_slices import notes_on_file, open_slices
from snet_cli.distributed import ALONE, Team
from snet_cli.errors import CheckpointError
from snet_cli.evaluation.coverage import judge_bands
from snet_cli.evaluation.csv_out import forecast_csv
from snet_cli.evaluation.ensemble import ensemble_scores
from snet_cli.evaluation.options import EvaluateOptions
from snet_cli.evaluation.plots import check_folder, write_pictures
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

EVALUATION_WIDTH = 64
"""Typical width of a network, by which the work of one evaluation on all trajectories is judged."""


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
    if needs_slices(test, len(trained.layout.states), options, common, team):
        for note in loaded.notes:
            report.note(note)
        return _in_slices(test, model, output, options, common, force, dry_run, report, team, loaded, trained, started)
    data_file = load_with_notes(test, max_bytes=common.max_bytes, allow_missing_channels=True)
    for note in (*loaded.notes, *data_file.notes):
        report.note(note)
    data = data_file.trajectories if options.split is None else data_file.trajectories.of_split(options.split)
    trained.check_fits(data)
    team.require_same({"model file": loaded.sha256, "test file": data_file.sha256})
    if options.relaxed:
        _require_rule(trained, model)
    posterior = required_posterior(loaded.checkpoint, trained, model) if options.bands else None
    set_threads(common.threads, len(data) * EVALUATION_WIDTH, team.place.local_size)
    windows = plan_windows(data, horizon=options.horizon, from_every=options.from_every)
    _check_outputs(output, options, force, dry_run, model, test)
    if dry_run:
        return _plan(trained, data, windows)
    size = memory.of_forecasts(int(np.sum(windows.row_size)), len(trained.layout.states))
    memory.require_memory("the forecast", size, common)
    relaxed = _relaxed(trained, model, data, options, common, device, report, team)

    def forecast_of(model: TrainedModel) -> Forecast:
        return rollout(
            model.forecast_model(device),
            data,
            windows,
            init_window=options.init_window,
            integrator=options.integrator,
            rtol=options.rtol,
            atol=options.atol,
            should_stop=report.should_stop,
            team=team,
        )

    forecast = forecast_of(trained)
    members = [from_checkpoint(one, model, source) for one in members_of(loaded.checkpoint, model)]
    together = ensemble_scores([forecast_of(member) for member in members]).to_json() if members else None
    bands = None
    if posterior is not None:
        bands = band_maker(trained, posterior, options, common, device, report, team.place).of(data, windows)
        for note in band_notes(forecast.initial_state, bands.failed, len(forecast), bands.members):
            report.note(note)
    record = _record(options, common, loaded.sha256, data_file.sha256)
    if output is not None and team.is_lead:
        _write(output, forecast, bands, record, (loaded.checkpoint.history, data.history), force)
    history = loaded.checkpoint.extra.get("history", {}).get("loss")
    draws = options.plot is not None and team.is_lead
    pictures = write_pictures(str(options.plot), forecast, history, force, bands) if draws else []
    summary = build_report(
        forecast,
        integrator=options.integrator,
        trajectories=len(data),
        relaxed=relaxed,
        bands=None if bands is None else judge_bands(forecast, bands),
        seconds=time.perf_counter() - started,
        output=output,
        pictures=tuple(str(path) for path in pictures),
    )
    return {"command": "evaluate", **summary.to_json(), "ensemble": together}


def _in_slices(
    test: str,
    model: str,
    output: str | None,
    options: EvaluateOptions,
    common: CommonOptions,
    force: bool,
    dry_run: bool,
    report: Reporter,
    team: Team,
    loaded: LoadedCheckpoint,
    trained: TrainedModel,
    started: float,
) -> dict[str, Any]:
    """The same where the forecasts do not fit into the memory all at once."""
    device = choose_device(common.device, team.place)
    check_options(options)
    posterior = required_posterior(loaded.checkpoint, trained, model) if options.bands else None
    _check_outputs(output, options, force, dry_run, model, test)
    with open_slices(test, max_bytes=common.max_bytes) as whole:
        for note in notes_on_file(whole):
            report.note(note)
        trained.check_fits(whole.shell)
        team.require_same({"model file": loaded.sha256, "test file": whole.sha256})
        slices = chosen(whole, options.split)
        set_threads(common.threads, len(slices) * EVALUATION_WIDTH, team.place.local_size)
        if dry_run:
            return {
                "command": "evaluate",
                "dry_run": True,
                "model": trained.model_options["name"],
                "trajectories": len(slices),
                "in_slices": True,
            }
        source = None if options.model is None else read_source(options.model)
        members = [from_checkpoint(one, model, source) for one in members_of(loaded.checkpoint, model)]
        run = SlicedEvaluation(trained, members, posterior, slices, options, common, device, report, team)
        record = _record(options, common, loaded.sha256, whole.sha256)
        found = evaluate_in_slices(run, output, record, (loaded.checkpoint.history, whole.shell.history), force)
    pictures: list[Path] = []
    if found.pictured is not None and found.pictured.forecasts:
        forecast, bands = found.pictured.together()
        history = loaded.checkpoint.extra.get("history", {}).get("loss")
        pictures = write_pictures(str(options.plot), forecast, history, force, bands, found.pictured.total)
    summary = replace(
        found.report, seconds=time.perf_counter() - started, pictures=tuple(str(path) for path in pictures)
    )
    return {"command": "evaluate", **summary.to_json(), "ensemble": found.ensemble}


def _check_outputs(
    output: str | None, options: EvaluateOptions, force: bool, dry_run: bool, model: str, test: str
) -> None:
    """Refuse, before any work, what could not be written."""
    if output is not None:
        check_no_input_is_overwritten(output, model, test)
        check_output(output, force)
    if options.plot is not None and not dry_run:
        check_folder(options.plot, force)


def _record(options: EvaluateOptions, common: CommonOptions, model: str, test: str) -> dict[str, Any]:
    """Provenance of the forecasts; `model` and `test` are the sha256 of the files."""
    return provenance(
        "evaluate",
        {**options.model_dump(mode="json"), **common.model_dump(mode="json")},
        parents={"model": model, "test": test},
    )


def _require_rule(trained: TrainedModel, path: str) -> RelaxedRule:
    """How the model is scored without integration."""
    if trained.rule is None:
        raise CheckpointError(
            f"{path}: the checkpoint is of a version that kept no scales for --relaxed.",
            "Train it again, or leave --relaxed out.",
        )
    return trained.rule


def _relaxed(
    trained: TrainedModel,
    path: str,
    data: Trajectories,
    options: EvaluateOptions,
    common: CommonOptions,
    device: torch.device,
    report: Reporter,
    team: Team,
) -> Relaxed | None:
    """Eq. 4 on the whole recordings, no ODE solved; None unless it is asked for and can be had."""
    part = scorable(trained, data, report.note) if options.relaxed else None
    if part is None:
        return None
    held_out = hold_out(trained, _require_rule(trained, path), part, common, device)
    score = held_out.scorer(team).score(trained.model.to(device))
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
