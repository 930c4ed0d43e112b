"""`snet fit`: trajectory file -> checkpoint."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from snet_cli import __version__
from snet_cli.data.checkpoint_file import save_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.storage import check_no_input_is_overwritten, check_output
from snet_cli.errors import NumericalError
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.loop import FitResult, Limits, Progress, run
from snet_cli.training.options import FitOptions
from snet_cli.workflows.fit_data import FitData, load_fit_data
from snet_cli.workflows.honest_end import RolloutScore, rollout_score
from snet_cli.workflows.methods import build_training, iterations_of
from snet_cli.workflows.metrics_file import MetricsFile
from snet_cli.workflows.provenance import history_line, provenance
from snet_cli.workflows.reporter import Reporter, Silent, Tick
from snet_cli.workflows.resources import choose_device, peak_memory_mb, set_threads
from snet_cli.workflows.trained_model import to_checkpoint
from snet_cli.workflows.training_plan import Ingredients, Training
from snet_cli.workflows.training_setup import Setup, prepare

SHORTEST_ROLLOUT_LIMIT = 30.0
"""Seconds that the final rollout may always take."""

SEARCH_SHARE = 0.3
"""Share of what is left of `--max-time` after which the search for order and elements takes its best so far."""

ROLLOUT_SHARE = 0.15
"""Share of `--max-time` that is kept back for the final rollout, and a quarter of a second more."""


def fit(
    train: str,
    output: str,
    options: FitOptions | None = None,
    common: CommonOptions | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    metrics: str | None = None,
    report: Reporter | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Train a model on a trajectory file and write the checkpoint.

    Parameters
    ----------
    train, output : str
        Paths; "-" reads stdin or writes stdout.
    force : bool
        Overwrite an existing output.
    dry_run : bool
        Resolve, validate, fit step 0 and return the plan; write nothing.
    metrics : str, optional
        CSV file with one row per iteration.
    report : Reporter
        Receives notes and progress, and says when to stop; the model so far is written then.
    started : float, optional
        Reading of `time.perf_counter` from which `seconds` and `--max-time` count; the call's own start unless given.

    Returns
    -------
    dict
        The JSON of DESIGN, section 4.

    Raises
    ------
    SnetError
        Any of the tree; nothing is written then.
    """
    started = time.perf_counter() if started is None else started
    options, common, report = options or FitOptions(), common or CommonOptions(), report or Silent()
    if not dry_run:
        check_output(output, force)
        validation = options.validation if isinstance(options.validation, str) else None
        check_no_input_is_overwritten(output, train, validation)
        if metrics is not None:
            check_no_input_is_overwritten(metrics, train, validation)
            check_output(metrics, force)
    device = choose_device(common.device)
    data = load_fit_data(train, options, common, report)
    set_threads(common.threads, 0)
    setup = prepare(options, common, data.train, device, _search_end(options, started))
    set_threads(common.threads, setup.problem.t.numel() * _width(setup))
    _tell_setup(setup, report)
    if dry_run:
        return _plan(setup, data, options)
    training = build_training(options.method, Ingredients(setup, data, options, common, device))
    for note in training.notes:
        report.detail(note)
    setup_seconds = time.perf_counter() - started
    with MetricsFile.open(metrics, force) as metrics_file:
        result = _train(training, options, started, report, metrics_file)
    _require_a_model(training, result, report)
    seconds = _rollout_seconds(result, options, started)
    scores = [
        None if part is None else rollout_score(setup.trained, part, device, report, seconds)
        for part in (data.train, data.validation)
    ]
    summary = _summary(setup, training, result, scores[0], scores[1], data.validation is not None)
    resolved = _resolved(options, common, setup, training, device)
    record = provenance("fit", resolved, parents=data.parents)
    checkpoint = to_checkpoint(
        setup.trained,
        {"fit": resolved, "result": _deterministic(summary)},
        result.history,
        record,
        f"{setup.choice.name} model trained by {summary['method']}",
        history_line(record, [data.train.history]),
    )
    save_checkpoint(output, checkpoint, force=force)
    return {
        **summary,
        "seconds": time.perf_counter() - started,
        "seconds_setup": setup_seconds,
        "ms_per_iteration": 1e3 * result.seconds / max(result.iterations, 1),
        "peak_memory_mb": peak_memory_mb(),
        "output": output,
    }


def _search_end(options: FitOptions, started: float) -> float:
    """When the search for order and elements has to end."""
    if options.max_time is None:
        return math.inf
    now = time.perf_counter()
    return now + SEARCH_SHARE * max(started + options.max_time - now, 0.0)


def _width(setup: Setup) -> int:
    """Widest layer of the model, at least its number of states."""
    widths = [max(p.shape, default=1) for p in setup.trained.model.parameters()]
    return max([len(setup.layout.states), *widths])


def _tell_setup(setup: Setup, report: Reporter) -> None:
    zero, mesh = setup.step_zero, setup.step_zero.mesh
    for note in zero.notes:
        report.note(note)
    report.detail(
        f"step 0: order {mesh.basis.order}, {mesh.elements_of_longest} element(s), {setup.problem.t.numel()} points, "
        f"condition {zero.condition:.3g}, misfit {zero.misfit:.3g}"
    )


def _plan(setup: Setup, data: FitData, options: FitOptions) -> dict[str, Any]:
    """What `--dry-run` prints."""
    zero, names = setup.step_zero, setup.layout.outputs
    return {
        "command": "fit",
        "dry_run": True,
        "method": _method_name(options),
        "model": setup.choice.tree,
        "trajectories": len(data.train),
        "validation": None if data.validation is None else len(data.validation),
        "order": zero.mesh.basis.order,
        "elements": zero.mesh.elements_of_longest,
        "points": setup.problem.t.numel(),
        "parameters": sum(p.numel() for p in setup.trained.model.parameters()),
        "iterations": iterations_of(options),
        "step_zero": {
            name: {"error": float(error), "noise": float(noise) if math.isfinite(noise) else None}
            for name, error, noise in zip(names, zero.error, zero.noise, strict=True)
        },
        "notes": list(zero.notes),
    }


def _method_name(options: FitOptions) -> str:
    return "delta" if options.method == "auto" else options.method


def _train(
    training: Training, options: FitOptions, started: float, report: Reporter, metrics_file: MetricsFile
) -> FitResult:
    """Run the method to one of its limits; its model holds the result."""
    deadline = math.inf
    if options.max_time is not None:
        deadline = started + options.max_time - min(ROLLOUT_SHARE * options.max_time + 0.25, 0.5 * options.max_time)
    limits = Limits(
        iterations=1 if training.closed_form else training.iterations,
        tolerance=math.inf if training.closed_form else options.tolerance,
        deadline=deadline,
        patience=training.patience,
        stop_when_stalled=training.stalls,
    )

    def each(progress: Progress) -> None:
        metrics_file.write(progress)
        report.progress(_tick(progress, limits))

    return run(training.method, limits, each, report.should_stop)


def _tick(progress: Progress, limits: Limits) -> Tick:
    each = progress.seconds / progress.iteration
    left = min(each * (limits.iterations - progress.iteration), limits.deadline - time.perf_counter())
    return Tick(
        "training",
        progress.iteration,
        limits.iterations,
        residual=_finite(progress.residual),
        held_out=progress.held_out,
        ms_each=1e3 * each,
        seconds_left=max(left, 0.0),
    )


def _require_a_model(training: Training, result: FitResult, report: Reporter) -> None:
    """A run that failed before its first step has no model to write; one that failed later says so."""
    failure = getattr(training.method, "failure", None)
    if result.status == "max-time" and result.iterations == 0:
        report.note("the time was up before the first iteration: the model is untrained. Give it a longer --max-time.")
    if result.status != "diverged":
        return
    reason = f"the solver failed: {failure}" if failure else "the loss is not finite"
    if result.iterations == 0:
        raise NumericalError(
            f"{reason} at the very first iteration.",
            "Look at the data with `snet info`, or try another --seed, --order, --elements or --method.",
        )
    report.note(f"{reason} after {result.iterations} iterations; the last good model is kept.")


def _summary(
    setup: Setup,
    training: Training,
    result: FitResult,
    train: RolloutScore | None,
    validation: RolloutScore | None,
    has_validation: bool,
) -> dict[str, Any]:
    """The JSON except for times, memory and the output's name."""
    mesh = _mesh(setup, training)
    gamma = getattr(training.method, "gamma", None)
    return {
        "snet": __version__,
        "command": "fit",
        "method": training.method.name,
        "model": setup.choice.name,
        "status": result.status,
        "iterations": result.iterations,
        "loss": {
            "total": _finite(result.last.total),
            "residual": _finite(result.last.residual),
            "misfit": _finite(result.last.misfit),
        },
        "parameters": sum(p.numel() for p in setup.trained.model.parameters()),
        "order": mesh.basis.order,
        "elements": mesh.elements_of_longest,
        "gamma": None if gamma is None else float(gamma),
        "train_mse": None if train is None else train.mse,
        "train_diverged": None if train is None else train.diverged,
        "validation": None
        if not has_validation
        else {
            "relaxed": result.best_held_out,
            "mse": None if validation is None else validation.mse,
            "best_iteration": result.best_iteration,
        },
        "evaluations": result.evaluations,
        "best_iteration": result.best_iteration,
        "resumed_from": None,
    }


def _mesh(setup: Setup, training: Training) -> Mesh:
    """The discretisation that the method used."""
    return setup.step_zero.mesh if training.mesh is None else training.mesh


def _resolved(
    options: FitOptions, common: CommonOptions, setup: Setup, training: Training, device: torch.device
) -> dict[str, Any]:
    """All options that can change the result, with what `auto` and unset ones came to."""
    mesh = _mesh(setup, training)
    return {
        **options.model_dump(mode="json", exclude={"validation", "max_time"}),
        "method": training.method.name,
        "model": setup.choice.tree,
        "order": mesh.basis.order,
        "elements": mesh.elements_of_longest,
        "iterations": training.iterations,
        "seed": common.seed,
        "dtype": common.dtype,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _rollout_seconds(result: FitResult, options: FitOptions, started: float) -> float:
    """Time for the final rollouts: what is left of `--max-time`, else as long as training took, at least a while."""
    if options.max_time is not None:
        return max(started + options.max_time - time.perf_counter(), 0.1)
    return max(result.seconds, SHORTEST_ROLLOUT_LIMIT)


def _deterministic(summary: dict[str, Any]) -> dict[str, Any]:
    """What of the summary depends on options, data and seed only."""
    kept = ("method", "model", "status", "iterations", "best_iteration", "loss", "parameters", "order", "elements")
    return {key: summary[key] for key in (*kept, "gamma")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
