"""One row of a comparison: train a method, hold the last value or take a trained model; test it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from snet_cli.data.checkpoint_file import load_checkpoint_with_notes, save_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import load_with_notes
from snet_cli.errors import SnetError
from snet_cli.evaluation.comparison import ComparisonRow, failed_row
from snet_cli.models.user import read_source
from snet_cli.training.loop import FitResult, Progress, run
from snet_cli.training.options import FitOptions
from snet_cli.workflows.compare_gradients import gradient_norms
from snet_cli.workflows.compare_hold import held_forecast
from snet_cli.workflows.compare_plan import Job
from snet_cli.workflows.compare_store import MODEL, Finished, save_curve, save_finished
from snet_cli.workflows.compare_tracking import TRACKED, Stopwatch, Tracker
from snet_cli.workflows.fit_data import FitData, load_fit_data
from snet_cli.workflows.honest_end import RolloutScore, rollout_score
from snet_cli.workflows.methods import build_training, resolve_method
from snet_cli.workflows.reporter import Reporter, Silent
from snet_cli.workflows.resources import choose_device, peak_memory_mb, set_threads
from snet_cli.workflows.train_one import (
    checkpoint_of,
    finite,
    limits_of,
    set_threads_of_method,
    set_up,
    summary_of,
    tick_of,
    with_estimates,
)
from snet_cli.workflows.trained_model import TrainedModel, from_checkpoint
from snet_cli.workflows.training_plan import Ingredients, Training
from snet_cli.workflows.training_setup import Setup


def make_row(job: Job, folder: Path, fingerprint: str, report: Reporter) -> Finished:
    """Do the work of one row, and write all of it into its folder; an error of the method is a row that says so."""
    kinds: dict[str, Callable[[Job, Path, Reporter], ComparisonRow]] = {
        "train": _train_row,
        "hold": _hold_row,
        "checkpoint": _checkpoint_row,
    }
    try:
        finished = Finished(kinds[job.kind](job, folder, report))
    except SnetError as error:
        finished = Finished(failed_row(job.method, job.case, error.message), error.exit_code, error.hint)
    except MemoryError:
        finished = Finished(failed_row(job.method, job.case, "the memory does not suffice"))
    save_finished(folder, fingerprint, finished)
    return finished


@dataclass(frozen=True)
class _Trained:
    """What a training left."""

    setup: Setup
    training: Training
    result: FitResult
    tracker: Tracker
    setup_seconds: float
    peak_memory_mb: float


def _train_row(job: Job, folder: Path, report: Reporter) -> ComparisonRow:
    """Train, roll out over the training and the test data, and measure gradients at the initial weights."""
    if job.train is None:
        return ComparisonRow(job.method, job.case, "failed", f"{job.method} is trained: it needs TRAIN.")
    options, common = FitOptions.model_validate(dict(job.fit)), CommonOptions.model_validate(dict(job.common))
    device = choose_device(common.device)
    _load_libraries()
    started = time.perf_counter()
    data = load_fit_data(job.train, options, common, report)
    setup = set_up(options, common, data.train, device, started)
    initial = deepcopy(setup.trained.model.state_dict())
    trained = _train(job, setup, data, options, common, device, started, report)
    setup, result, tracker = trained.setup, trained.result, trained.tracker
    save_curve(folder, tracker.points)
    train_score = test_score = None
    rollout_seconds = 0.0
    if result.iterations or result.status != "diverged":
        begin = time.perf_counter()
        limit = max(job.seconds.train, result.seconds)
        train_score = rollout_score(setup.trained, data.train, device, Silent(), limit)
        rollout_seconds = time.perf_counter() - begin
        _save_models(trained, folder, train_score, data, options, common, device)
        test_score = _tested(setup.trained, job, common, device)
    setup.trained.model.load_state_dict(initial)
    norms = () if job.method == "linear" else gradient_norms(setup, data.train, options, device, job.seconds.gradients)
    status, message = _ending(trained, train_score, test_score)
    return ComparisonRow(
        job.method,
        job.case,
        status,
        message,
        1e3 * result.seconds / result.iterations if result.iterations else None,
        result.iterations,
        trained.setup_seconds + result.seconds + rollout_seconds,
        trained.setup_seconds,
        finite(result.last.total),
        None if train_score is None else train_score.mse,
        None if test_score is None else test_score.mse,
        None if test_score is None else test_score.diverged,
        trained.peak_memory_mb,
        norms,
    )


def _load_libraries() -> None:
    """What torch imports at the first optimiser and we at the first solver, 1.5 s, is no part of a method's set-up."""
    import torchdiffeq  # noqa: F401

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def _train(
    job: Job,
    setup: Setup,
    data: FitData,
    options: FitOptions,
    common: CommonOptions,
    device: torch.device,
    started: float,
    report: Reporter,
) -> _Trained:
    """The timed part: build the method and iterate."""
    parts = Ingredients(setup, data, options, common, device)
    method = resolve_method(parts).method
    set_threads_of_method(method, common, setup, setup.problem.t.numel(), parts.team)
    training = build_training(method, parts)
    clock = Stopwatch()
    setup_seconds = clock() - started
    limits = limits_of(training, options, math.inf if options.max_time is None else started + options.max_time)

    def score() -> RolloutScore:
        now = with_estimates(setup, training).trained
        return rollout_score(now, data.train, device, Silent(), job.seconds.track, tolerances=TRACKED)

    def each(progress: Progress) -> None:
        report.progress(tick_of(progress, limits))

    tracker = Tracker(setup.trained.model, score, clock, limits.iterations, job.target_mse, job.snapshots)
    result = run(training.method, limits, each, report.should_stop, is_enough=tracker, clock=clock)
    return _Trained(with_estimates(setup, training), training, result, tracker, setup_seconds, peak_memory_mb())


def _ending(trained: _Trained, train: RolloutScore | None, test: RolloutScore | None) -> tuple[str, str | None]:
    """Status and message of a row; a solver that gave up is ``failed``, whatever it learned before."""
    result, limit = trained.result, "the last good model is tested"
    if result.status == "diverged":
        failure = getattr(trained.training.method, "failure", None)
        reason = f"failed: {failure}" if failure else "the loss is not finite"
        after = f" after {result.iterations} iterations; {limit}" if result.iterations else " at the first iteration"
        return ("failed" if failure or not result.iterations else "diverged"), f"{reason}{after}"
    if result.status == "max-time" and result.iterations == 0:
        return result.status, "the time was up before the first iteration: the model is untrained"
    return result.status, _late(train, test)


def _late(train: RolloutScore | None, test: RolloutScore | None) -> str | None:
    """How many forecasts do not reach their end, if any."""
    scores = {"training": train, "test": test}
    parts = [f"{score.diverged} {name}" for name, score in scores.items() if score is not None and score.diverged]
    return f"forecasts that do not reach their end: {' and '.join(parts)}; scores are over the rest" if parts else None


def _save_models(
    trained: _Trained,
    folder: Path,
    score: RolloutScore,
    data: FitData,
    options: FitOptions,
    common: CommonOptions,
    device: torch.device,
) -> None:
    """The final model, and those of the snapshots."""
    setup, training, result = trained.setup, trained.training, trained.result
    summary = summary_of(setup, training, result, score, None)

    def save(name: str, part: FitResult) -> None:
        about = {**summary, "iterations": part.iterations, "best_iteration": part.best_iteration}
        checkpoint = checkpoint_of(setup, training, part, about, data, options, common, device)
        save_checkpoint(folder / name, checkpoint, force=True)

    save(MODEL, result)
    final = deepcopy(setup.trained.model.state_dict())
    for iteration, state in trained.tracker.snapshots.items():
        setup.trained.model.load_state_dict(state)
        history = result.history[:iteration]
        save(snapshot_name(iteration), replace(result, history=history, iterations=iteration, best_iteration=iteration))
    setup.trained.model.load_state_dict(final)


def snapshot_name(iteration: int) -> str:
    """File of the model after so many iterations."""
    return f"model-{iteration}.h5"


def _tested(trained: TrainedModel, job: Job, common: CommonOptions, device: torch.device) -> RolloutScore | None:
    """The score on TEST; None without one."""
    if job.test is None:
        return None
    data = load_test(job.test, common)
    trained.check_fits(data)
    return rollout_score(trained, data, device, Silent(), job.seconds.test)


def load_test(path: str, common: CommonOptions) -> Trajectories:
    """TEST; it may hold no outputs."""
    return load_with_notes(path, max_bytes=common.max_bytes, allow_missing_channels=True).trajectories


def _checkpoint_row(job: Job, folder: Path, report: Reporter) -> ComparisonRow:
    """Test a trained model; what its training cost is not known here."""
    assert job.checkpoint is not None
    common = CommonOptions.model_validate(dict(job.common))
    device = choose_device(common.device)
    set_threads(common.threads, 0)
    checkpoint = load_checkpoint_with_notes(job.checkpoint, max_bytes=common.max_bytes).checkpoint
    source = None if job.model_file is None else read_source(job.model_file)
    trained = from_checkpoint(checkpoint, job.checkpoint, source)
    scores: list[RolloutScore | None] = [None, None]
    if job.train is not None:
        train = load_fit_data(job.train, FitOptions(), common, report).train
        trained.check_fits(train)
        scores[0] = rollout_score(trained, train, device, Silent(), job.seconds.test)
    scores[1] = _tested(trained, job, common, device)
    save_checkpoint(folder / MODEL, checkpoint, force=True)
    known = dict(checkpoint.config.get("result") or {})
    return ComparisonRow(
        job.method,
        job.case,
        str(known.get("status") or "converged"),
        _late(scores[0], scores[1]),
        iterations=known.get("iterations"),
        final_loss=dict(known.get("loss") or {}).get("total"),
        train_mse=None if scores[0] is None else scores[0].mse,
        test_mse=None if scores[1] is None else scores[1].mse,
        diverged=None if scores[1] is None else scores[1].diverged,
    )


def _hold_row(job: Job, folder: Path, report: Reporter) -> ComparisonRow:
    """What stays as it was: x' = 0 from the start that every forecast has."""
    started = time.perf_counter()
    common = CommonOptions.model_validate(dict(job.common))
    device = choose_device(common.device)
    set_threads(common.threads, 0)
    train = None if job.train is None else load_fit_data(job.train, FitOptions(), common, report).train
    test = None if job.test is None else load_test(job.test, common)
    names = () if (first := train or test) is None else first.output_names
    mse: list[float | None] = [None, None]
    diverged = None
    for k, data in enumerate((train, test)):
        if data is not None and data.output_names:
            forecast = held_forecast(names, data, device)
            mse[k] = forecast.mse
            diverged = forecast.diverged if k == 1 else None
    seconds = time.perf_counter() - started
    return ComparisonRow(
        "hold",
        job.case,
        seconds=seconds,
        train_mse=mse[0],
        test_mse=mse[1],
        diverged=diverged,
    )
