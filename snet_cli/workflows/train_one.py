"""One method on prepared data: what `fit` and `compare` share between the options and the checkpoint."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from snet_cli import __version__
from snet_cli.data.checkpoint_file import Checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.posterior import Posterior
from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import ALONE, Team
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.loop import FitResult, Limits, Progress
from snet_cli.training.options import FitOptions
from snet_cli.training.refinement import whole_mesh
from snet_cli.training.relaxed_score import RelaxedScorer
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.held_out import HeldOut
from snet_cli.workflows.honest_end import RolloutScore
from snet_cli.workflows.provenance import history_line, provenance
from snet_cli.workflows.remesh import rule_on
from snet_cli.workflows.reporter import Tick
from snet_cli.workflows.resources import set_threads
from snet_cli.workflows.run_state import decode_step_zero, encode_step_zero
from snet_cli.workflows.trained_model import to_checkpoint, with_estimated_states
from snet_cli.workflows.training_plan import Training
from snet_cli.workflows.training_setup import Setup, prepare

SEARCH_SHARE = 0.3
"""Share of what is left of `--max-time` after which the search for order and elements takes its best so far."""

ROUNDED = 1e-26
"""Loss in scaled units that is nothing but rounding: all data is at rest, or obeys the model to thirteen digits."""

PRODUCTS = 1000
"""Products of a Schur complement that count as one number of an evaluation of f: a million such numbers, below which
one thread is as fast as two, are then 30 ms of one core."""


def set_up(
    options: FitOptions,
    common: CommonOptions,
    train: Trajectories,
    device: torch.device,
    started: float,
    zero: StepZero | None = None,
    team: Team = ALONE,
) -> Setup:
    """Step 0, the problem and a new model, on as many threads as the work deserves.

    Parameters
    ----------
    started : float
        Reading of `time.perf_counter` from which `max_time` counts.
    zero : StepZero, optional
        Step 0 of the run that goes on.
    team : Team
        The processes, each of which computes all of this: it is the same on every one.
    """
    set_threads(common.threads, 0)
    timed = zero is None and options.max_time is not None and team.size > 1  # clocks differ: the lead's result counts
    if timed and not team.is_lead:
        zero = decode_step_zero(team.bytes_from_lead(b""))
    setup = prepare(options, common, train, device, search_end(options, started), zero)
    if timed and team.is_lead:
        team.bytes_from_lead(encode_step_zero(setup.step_zero))
    set_threads(common.threads, setup.problem.t.numel() * width_of(setup), team.place.local_size)
    return setup


def search_end(options: FitOptions, started: float) -> float:
    """When the search for order and elements has to end."""
    if options.max_time is None:
        return math.inf
    now = time.perf_counter()
    return now + SEARCH_SHARE * max(started + options.max_time - now, 0.0)


def set_threads_of_method(method: str, common: CommonOptions, setup: Setup, points: int, team: Team) -> None:
    """As many threads as the method's work deserves: products of `joint` are far larger than evaluations of f.

    Parameters
    ----------
    points : int
        Of all processes.
    """
    work = points * width_of(setup)
    if method == "joint":
        weights = sum(p.numel() for p in setup.trained.model.parameters())
        work = max(work, points * len(setup.layout.states) * weights**2 // PRODUCTS)
    set_threads(common.threads, work, team.place.local_size)


def width_of(setup: Setup) -> int:
    """Widest layer of the model, at least its number of states."""
    widths = [max(p.shape, default=1) for p in setup.trained.model.parameters()]
    return max([len(setup.layout.states), *widths])


def limits_of(training: Training, options: FitOptions, deadline: float) -> Limits:
    """When this training ends; a closed form is one iteration."""
    return Limits(
        iterations=1 if training.closed_form else training.iterations,
        tolerance=math.inf if training.closed_form else max(options.tolerance, ROUNDED if options.scaled else 0.0),
        deadline=deadline,
        patience=training.patience,
        look_every=training.look_every,
        stop_when_stalled=training.stalls,
    )


def tick_of(progress: Progress, limits: Limits) -> Tick:
    """What the terminal shows of an iteration."""
    each = progress.seconds / progress.iteration
    left = min(each * (limits.iterations - progress.iteration), limits.deadline - time.perf_counter())
    return Tick(
        "training",
        progress.iteration,
        limits.iterations,
        residual=finite(progress.residual),
        held_out=progress.held_out,
        ms_each=1e3 * each,
        seconds_left=max(left, 0.0),
    )


def summary_of(
    setup: Setup,
    training: Training,
    result: FitResult,
    train: RolloutScore | None,
    validation: RolloutScore | None,
) -> dict[str, Any]:
    """The JSON of `fit` except for times, memory and the output's name."""
    mesh = mesh_of(setup, training)
    gamma = getattr(training.method, "gamma", None)
    return {
        "snet": __version__,
        "command": "fit",
        "method": training.method.name,
        "model": setup.choice.name,
        "status": result.status,
        "iterations": result.iterations,
        "loss": {
            "total": finite(result.last.total),
            "residual": finite(result.last.residual),
            "misfit": finite(result.last.misfit),
        },
        "parameters": sum(p.numel() for p in setup.trained.model.parameters()),
        "order": mesh.basis.order,
        "elements": mesh.elements_of_longest,
        "gamma": None if gamma is None else float(gamma),
        "train_mse": None if train is None else train.mse,
        "train_diverged": None if train is None else train.diverged,
        "validation": None
        if training.validation is None
        else {
            "relaxed": finite(_fresh_scorer(training, training.validation).score(setup.trained.model).total),
            "mse": None if validation is None else validation.mse,
            "best_iteration": result.best_iteration,
        },
        "evaluations": result.evaluations,
        "best_iteration": result.best_iteration,
        "resumed_from": None,
    }


def with_estimates(setup: Setup, training: Training) -> Setup:
    """The set-up with what training found of hidden states, where the method moves the trajectories."""
    nodes = getattr(training.method, "nodes", None)
    if nodes is None:
        return setup
    first = mesh_of(setup, training).first_element[:-1]
    nodes = training.team.gather(nodes.detach()).cpu().numpy()
    return replace(setup, trained=with_estimated_states(setup.trained, nodes, first))


def mesh_of(setup: Setup, training: Training) -> Mesh:
    """The discretisation that the method used."""
    begun = setup.step_zero.mesh if training.mesh is None else training.mesh
    found: Mesh | None = getattr(training.method, "mesh", None)  # of methods that refine it
    return begun if found is None else whole_mesh(found, training.team)


def _fresh_scorer(training: Training, validation: HeldOut) -> RelaxedScorer:
    """The scorer of the method's last mesh, from its step 0."""
    used: RelaxedScorer | None = getattr(training.method, "scorer", None)
    return validation.scorer(training.team) if used is None else used.afresh()


def checkpoint_of(
    setup: Setup,
    training: Training,
    result: FitResult,
    summary: dict[str, Any],
    data: FitData,
    options: FitOptions,
    common: CommonOptions,
    device: torch.device,
    posterior: Posterior | None = None,
) -> Checkpoint:
    """The trained model with everything that a file keeps of its making."""
    resolved = resolved_options(options, common, setup, training, device)
    record = provenance("fit", resolved, parents=data.parents)
    return to_checkpoint(
        replace(setup.trained, rule=rule_on(training.rule, mesh_of(setup, training))),
        {"fit": resolved, "result": _deterministic(summary)},
        result.history,
        record,
        f"{setup.choice.name} model trained by {summary['method']}",
        history_line(record, [data.train.history]),
        posterior,
    )


def resolved_options(
    options: FitOptions, common: CommonOptions, setup: Setup, training: Training, device: torch.device
) -> dict[str, Any]:
    """All options that can change the result, with what `auto` and unset ones came to."""
    mesh = mesh_of(setup, training)
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
        **({} if training.team.recorded == 1 else {"processes": training.team.recorded}),
    }


def _deterministic(summary: dict[str, Any]) -> dict[str, Any]:
    """What of the summary depends on options, data and seed only."""
    kept = ("method", "model", "status", "iterations", "best_iteration", "loss", "parameters", "order", "elements")
    return {key: summary[key] for key in (*kept, "gamma")}


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
