"""`snet fit`: trajectory file -> checkpoint."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from snet_cli import __version__
from snet_cli.data.checkpoint_file import save_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.storage import check_output
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import load_with_notes
from snet_cli.errors import NumericalError, UsageError
from snet_cli.training.delta import Delta
from snet_cli.training.loop import FitResult, Limits, Progress, run
from snet_cli.training.options import ITERATION_LIMITS, FitOptions
from snet_cli.training.problem import Problem
from snet_cli.workflows.honest_end import RolloutScore, rollout_score
from snet_cli.workflows.metrics_file import MetricsFile
from snet_cli.workflows.provenance import history_line, provenance
from snet_cli.workflows.reporter import Reporter, Silent, Tick
from snet_cli.workflows.resources import choose_device, peak_memory_mb, set_threads
from snet_cli.workflows.trained_model import to_checkpoint
from snet_cli.workflows.training_setup import (
    STREAM_HELD_OUT,
    STREAM_SPLIT,
    Setup,
    build_problem,
    fit_step_zero,
    prepare,
    stream,
)

DEFAULT_ITERATIONS = {"lbfgs": 1500, "adam": 2000}
"""Limits outside the preset: L-BFGS has gained what a forecast can show by then (README, "What it reaches")."""

HELD_OUT_SHARE = 0.1
"""Share of the elements whose residual only decides when to stop, where there is no validation data."""

FEWEST_ELEMENTS_TO_SHARE = 20

PATIENCE = 100
"""Iterations without a better held-out score after which training has converged."""

SHORTEST_ROLLOUT_LIMIT = 30.0
"""Seconds that the final rollout may always take."""

ROLLOUT_SHARE = 0.15
"""Share of `--max-time` that is kept back for the final rollout, and half a second more."""


@dataclass(frozen=True)
class _Data:
    """Training and validation trajectories, and the sha256 of the files they came from."""

    train: Trajectories
    validation: Trajectories | None
    parents: dict[str, str]


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
    options, common, report = options or FitOptions(), common or CommonOptions(), report or Silent()
    if not dry_run:
        check_output(output, force)
    set_threads(common.threads)
    device = choose_device(common.device)
    data = _load(train, options, common, report)
    setup = prepare(options, common, data.train, device)
    _tell_setup(setup, report)
    if dry_run:
        return _plan(setup, data, options)
    setup_seconds = time.perf_counter() - started
    with MetricsFile.open(metrics, force) as metrics_file:
        result = _train(setup, data, options, common, device, started, report, metrics_file)
    if result.iterations == 0 and result.status == "diverged":
        raise NumericalError(
            "the residual is not finite at the very first iteration.",
            "Look at the data with `snet info`, or try another --seed, --order or --elements.",
        )
    seconds = _rollout_seconds(result, options, started)
    scores = [
        None if part is None else rollout_score(setup.trained, part, device, report, seconds)
        for part in (data.train, data.validation)
    ]
    summary = _summary(setup, result, options, scores[0], scores[1], data.validation is not None)
    resolved = _resolved(options, common, setup, device)
    record = provenance("fit", resolved, parents=data.parents)
    checkpoint = to_checkpoint(
        setup.trained,
        {"fit": resolved, "result": _deterministic(summary)},
        result.history,
        record,
        f"{setup.choice.name} model trained by {summary['method']}-SNet",
        history_line(record, [data.train.history]),
    )
    save_checkpoint(output, checkpoint, force=force)
    seconds = time.perf_counter() - started
    return {
        **summary,
        "seconds": seconds,
        "seconds_setup": setup_seconds,
        "ms_per_iteration": 1e3 * result.seconds / max(result.iterations, 1),
        "peak_memory_mb": peak_memory_mb(),
        "output": output,
    }


def _load(train: str, options: FitOptions, common: CommonOptions, report: Reporter) -> _Data:
    """Training data is split 0; validation is a file, a drawn fraction, or split 1; split 2 is never touched."""
    loaded = load_with_notes(train, max_bytes=common.max_bytes)
    for note in loaded.notes:
        report.note(note)
    data, parents = loaded.trajectories, {"train": loaded.sha256}
    validation = None
    if data.split is not None:
        if options.validation is None and bool((data.split == 1).any()):
            validation = data.of_split("valid")
        data = data.of_split("train")
    share = _fraction(options.validation)
    if share is not None:
        count = max(1, round(share * len(data)))
        if count >= len(data):
            raise UsageError(
                f"--validation {share:g} of {len(data)} trajectories leaves none to train on.",
                "Give a file, or a smaller fraction.",
            )
        order = np.random.default_rng(stream(common.seed, STREAM_SPLIT)).permutation(len(data))
        validation = data.select(np.sort(order[:count]))
        data = data.select(np.sort(order[count:]))
    elif options.validation is not None:
        other = load_with_notes(str(options.validation), max_bytes=common.max_bytes)
        validation, parents["validation"] = other.trajectories, other.sha256
        _require_same_channels(data, validation, str(options.validation))
    return _Data(data, validation, parents)


def _fraction(validation: str | float | None) -> float | None:
    """The fraction, if that is what `--validation` gives."""
    try:
        share = float(validation) if validation is not None else None
    except ValueError:
        return None
    if share is not None and not 0.0 < share < 1.0:
        raise UsageError(f"--validation {validation}: a fraction lies between 0 and 1.", "Give 0.2, or a file.")
    return share


def _require_same_channels(data: Trajectories, other: Trajectories, path: str) -> None:
    missing = [name for name in data.output_names if name not in other.output_names]
    missing += [name for name in data.inputs.names if name not in other.inputs.names]
    if missing:
        raise UsageError(
            f"{path}: the validation file has no channel '{missing[0]}', which the training file has.",
            "Import both with the same --states and --inputs.",
        )


def _tell_setup(setup: Setup, report: Reporter) -> None:
    zero, mesh = setup.step_zero, setup.step_zero.mesh
    for note in zero.notes:
        report.note(note)
    report.detail(
        f"step 0: order {mesh.basis.order}, {mesh.elements_of_longest} element(s), {setup.problem.t.numel()} points, "
        f"condition {zero.condition:.3g}, misfit {zero.misfit:.3g}"
    )


def _plan(setup: Setup, data: _Data, options: FitOptions) -> dict[str, Any]:
    """What `--dry-run` prints."""
    zero, names = setup.step_zero, setup.layout.outputs
    return {
        "command": "fit",
        "dry_run": True,
        "method": "delta",
        "model": setup.choice.tree,
        "trajectories": len(data.train),
        "validation": None if data.validation is None else len(data.validation),
        "order": zero.mesh.basis.order,
        "elements": zero.mesh.elements_of_longest,
        "points": setup.problem.t.numel(),
        "parameters": sum(p.numel() for p in setup.trained.model.parameters()),
        "iterations": _iterations(options),
        "step_zero": {
            name: {"error": float(error), "noise": float(noise) if math.isfinite(noise) else None}
            for name, error, noise in zip(names, zero.error, zero.noise, strict=True)
        },
        "notes": list(zero.notes),
    }


def _iterations(options: FitOptions) -> int:
    if options.iterations is not None:
        return options.iterations
    if options.preset == "paper":
        return ITERATION_LIMITS["delta"]
    return DEFAULT_ITERATIONS[options.theta_step.name]


def _train(
    setup: Setup,
    data: _Data,
    options: FitOptions,
    common: CommonOptions,
    device: torch.device,
    started: float,
    report: Reporter,
    metrics_file: MetricsFile,
) -> FitResult:
    """Run the method to one of its limits; the model in `setup` holds the result."""
    problem, held_out, patience = _held_out(setup, data, options, common, device)
    method = Delta(
        problem,
        setup.trained.model,
        options.theta_step,
        setup.step_zero.misfit,
        held_out,
        prior_strength(setup) if options.prior == "auto" else options.prior,
    )
    closed_form = method.theta is None
    deadline = math.inf
    if options.max_time is not None:
        deadline = started + options.max_time - min(ROLLOUT_SHARE * options.max_time + 0.5, 0.5 * options.max_time)
    limits = Limits(
        iterations=1 if closed_form else _iterations(options),
        tolerance=math.inf if closed_form else options.tolerance,
        deadline=deadline,
        patience=patience,
        stop_when_stalled=options.theta_step.name == "lbfgs",
    )

    def each(progress: Progress) -> None:
        metrics_file.write(progress)
        report.progress(_tick(progress, limits))

    return run(method, limits, each, report.should_stop)


def prior_strength(setup: Setup) -> float:
    """λ of λ|θ|²: the residual that the samples' noise leaves even with the true f, per scalar equation.

    R is then σ² times a chi-square of that many degrees of freedom over their number, and R + λ|θ|² the log of the
    posterior under weights of standard deviation one (MacKay 1992). Noise-free data gives next to no prior.
    """
    zero = setup.step_zero
    scale = setup.problem.scale.cpu().numpy()
    equations = zero.mesh.elements * zero.mesh.basis.order * scale.size
    return float((scale**2 * zero.rate_variance).sum() / equations)


def _tick(progress: Progress, limits: Limits) -> Tick:
    each = progress.seconds / progress.iteration
    left = min(each * (limits.iterations - progress.iteration), limits.deadline - time.perf_counter())
    return Tick(
        "training",
        progress.iteration,
        limits.iterations,
        residual=progress.residual,
        held_out=progress.held_out,
        ms_each=1e3 * each,
        seconds_left=max(left, 0.0),
    )


def _held_out(
    setup: Setup, data: _Data, options: FitOptions, common: CommonOptions, device: torch.device
) -> tuple[Problem, Problem | None, float]:
    """The problem to train on, the one that chooses the best θ, and the patience that goes with it."""
    if data.validation is not None:
        mesh = setup.step_zero.mesh
        fixed = options.model_copy(update={"order": mesh.basis.order, "elements": _elements_for(setup, data)})
        zero = fit_step_zero(fixed, common, data.validation, setup.choice, setup.layout)
        other = build_problem(
            fixed, data.validation, setup.layout, zero, setup.trained.model.constants, setup.trained.inputs, device
        )
        return setup.problem, other.with_scale_of(setup.problem), math.inf
    generic = options.theta_step.name == "lbfgs" and options.preset is None
    if generic and setup.step_zero.mesh.elements >= FEWEST_ELEMENTS_TO_SHARE:
        train, held = setup.problem.split_elements(HELD_OUT_SHARE, stream(common.seed, STREAM_HELD_OUT))
        return train, held, PATIENCE
    return setup.problem, None, math.inf


def _elements_for(setup: Setup, data: _Data) -> int:
    """Elements on the longest validation trajectory, of the length that training uses."""
    assert data.validation is not None
    width = float(setup.step_zero.mesh.width.mean())
    return max(1, round(float((data.validation.end - data.validation.start).max()) / width))


def _summary(
    setup: Setup,
    result: FitResult,
    options: FitOptions,
    train: RolloutScore | None,
    validation: RolloutScore | None,
    has_validation: bool,
) -> dict[str, Any]:
    """The JSON except for times, memory and the output's name."""
    mesh = setup.step_zero.mesh
    return {
        "snet": __version__,
        "command": "fit",
        "method": "delta",
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
        "gamma": None,
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


def _resolved(options: FitOptions, common: CommonOptions, setup: Setup, device: torch.device) -> dict[str, Any]:
    """All options that can change the result, with what `auto` and unset ones came to."""
    mesh = setup.step_zero.mesh
    return {
        **options.model_dump(mode="json", exclude={"validation", "max_time"}),
        "method": "delta",
        "model": setup.choice.tree,
        "order": mesh.basis.order,
        "elements": mesh.elements_of_longest,
        "iterations": _iterations(options),
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
    return {key: summary[key] for key in kept}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
