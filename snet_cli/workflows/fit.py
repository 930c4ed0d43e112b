"""`snet fit`: trajectory file -> checkpoint."""

from __future__ import annotations

import math
import time
from typing import Any

from snet_cli.data.checkpoint_file import save_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.storage import check_no_input_is_overwritten, check_output
from snet_cli.errors import NumericalError
from snet_cli.training.loop import FitResult, Progress, run
from snet_cli.training.method_choice import MethodChoice
from snet_cli.training.options import FitOptions
from snet_cli.workflows.fit_data import load_fit_data
from snet_cli.workflows.honest_end import rollout_score
from snet_cli.workflows.methods import METHODS, build_training, check_unknowns, iterations_of, resolve_method
from snet_cli.workflows.metrics_file import MetricsFile
from snet_cli.workflows.reporter import Reporter, Silent
from snet_cli.workflows.resources import choose_device, peak_memory_mb
from snet_cli.workflows.train_one import checkpoint_of, limits_of, set_up, summary_of, tick_of, with_estimates
from snet_cli.workflows.training_plan import Ingredients, Training
from snet_cli.workflows.training_setup import Setup

SHORTEST_ROLLOUT_LIMIT = 30.0
"""Seconds that the final rollout may always take."""

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
    setup = set_up(options, common, data.train, device, started)
    parts = Ingredients(setup, data, options, common, device)
    choice = resolve_method(parts)
    notes = [f"method {choice.method}: {choice.reason}"] if options.method == "auto" else []
    notes += check_unknowns(choice.method, parts)
    if METHODS[choice.method].needs_all_states:
        notes += setup.step_zero.notes
    _tell_setup(setup, notes, report)
    if dry_run:
        return _plan(parts, choice, notes)
    training = build_training(choice.method, parts)
    for note in training.notes:
        report.detail(note)
    setup_seconds = time.perf_counter() - started
    with MetricsFile.open(metrics, force) as metrics_file:
        result = _train(training, options, started, report, metrics_file)
    _require_a_model(training, result, report)
    setup = with_estimates(setup, training)
    seconds = _rollout_seconds(result, options, started)
    scores = [
        None if part is None else rollout_score(setup.trained, part, device, report, seconds)
        for part in (data.train, data.validation)
    ]
    summary = summary_of(setup, training, result, scores[0], scores[1])
    checkpoint = checkpoint_of(setup, training, result, summary, data, options, common, device)
    save_checkpoint(output, checkpoint, force=force)
    return {
        **summary,
        "seconds": time.perf_counter() - started,
        "seconds_setup": setup_seconds,
        "ms_per_iteration": 1e3 * result.seconds / max(result.iterations, 1),
        "peak_memory_mb": peak_memory_mb(),
        "output": output,
    }


def _tell_setup(setup: Setup, notes: list[str], report: Reporter) -> None:
    zero, mesh = setup.step_zero, setup.step_zero.mesh
    for note in notes:
        report.note(note)
    report.detail(
        f"step 0: order {mesh.basis.order}, {mesh.elements_of_longest} element(s), {setup.problem.t.numel()} points, "
        f"condition {zero.condition:.3g}, misfit {zero.misfit:.3g}"
    )


def _plan(parts: Ingredients, choice: MethodChoice, notes: list[str]) -> dict[str, Any]:
    """What `--dry-run` prints."""
    setup, data = parts.setup, parts.data
    zero, names = setup.step_zero, setup.layout.outputs
    return {
        "command": "fit",
        "dry_run": True,
        "method": choice.method,
        "method_reason": choice.reason,
        "model": setup.choice.tree,
        "states": list(setup.layout.states),
        "hidden_states": list(setup.layout.hidden),
        "trajectories": len(data.train),
        "validation": None if data.validation is None else len(data.validation),
        "order": zero.mesh.basis.order,
        "elements": zero.mesh.elements_of_longest,
        "points": setup.problem.t.numel(),
        "parameters": sum(p.numel() for p in setup.trained.model.parameters()),
        "iterations": iterations_of(parts.options, choice.method),
        "step_zero": {
            name: {"error": float(error), "noise": float(noise) if math.isfinite(noise) else None}
            for name, error, noise in zip(names, zero.error, zero.noise, strict=True)
        },
        "notes": notes,
    }


def _train(
    training: Training, options: FitOptions, started: float, report: Reporter, metrics_file: MetricsFile
) -> FitResult:
    """Run the method to one of its limits; its model holds the result."""
    deadline = math.inf
    if options.max_time is not None:
        deadline = started + options.max_time - min(ROLLOUT_SHARE * options.max_time + 0.25, 0.5 * options.max_time)
    limits = limits_of(training, options, deadline)

    def each(progress: Progress) -> None:
        metrics_file.write(progress)
        report.progress(tick_of(progress, limits))

    return run(training.method, limits, each, report.should_stop)


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


def _rollout_seconds(result: FitResult, options: FitOptions, started: float) -> float:
    """Time for the final rollouts: what is left of `--max-time`, else as long as training took, at least a while."""
    if options.max_time is not None:
        return max(started + options.max_time - time.perf_counter(), 0.1)
    return max(result.seconds, SHORTEST_ROLLOUT_LIMIT)
