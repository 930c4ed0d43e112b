"""The models that one process trains of an ensemble: in one batch where the method can, else side by side on cores."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, NamedTuple

import torch

from snet_cli.data.checkpoint_file import Checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.delta import Delta
from snet_cli.training.delta_batch import even, models_at_once, why_not_in_step
from snet_cli.training.loop import FitResult, Limits, Progress, keep_nothing, run
from snet_cli.training.loop_batch import Together, Upkeep, run_in_step
from snet_cli.training.options import FitOptions
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.honest_end import rollout_scores
from snet_cli.workflows.member_runs import MemberRun
from snet_cli.workflows.methods import build_training, resolve_method
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.resume import StateWriter
from snet_cli.workflows.side_by_side import models_beside, side_by_side
from snet_cli.workflows.train_one import checkpoint_of, limits_of, summary_of, tick_of, with_estimates
from snet_cli.workflows.training_plan import Ingredients, Training
from snet_cli.workflows.training_setup import Setup, fit_step_zero, prepare

ROLLOUT_SECONDS = 30.0
"""Seconds that the rollouts of a member may take at most."""

MEMORY_SHARE = 0.25
"""Share of `--max-memory` for the points of a batch."""

TRAINING_SHARE = 0.8
"""Share of the time of a member, or of a batch of them, for training; the rest is for rollouts."""


@dataclass(frozen=True)
class Member:
    """One model.

    Attributes
    ----------
    told : dict
        What the JSON says of it: its seed or fold, status, iterations and scores.
    checkpoint : Checkpoint
        As if it had been trained alone.
    summary : dict
        The JSON of its fit.
    """

    told: dict[str, Any]
    checkpoint: Checkpoint
    summary: dict[str, Any]

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Smaller is better: untrained or not, forecasts that do not reach their end, and the error of the others."""
        mse = self.told["score"]
        return (self.told["iterations"] == 0, self.told["diverged"], math.inf if mse is None else mse)


@dataclass(frozen=True)
class MemberPlan:
    """What distinguishes a member: a seed, the trajectories that it trains on and is judged by, and its run."""

    common: CommonOptions
    data: FitData
    run: MemberRun


class _Built(NamedTuple):
    """A member that is ready to train."""

    plan: MemberPlan
    parts: Ingredients
    training: Training


def train_members(
    plans: Sequence[MemberPlan],
    options: FitOptions,
    base: Setup,
    data: FitData,
    device: torch.device,
    report: Reporter,
    end: float,
    processes: int = 1,
) -> list[Member | None]:
    """Each member, from its first weights to its scores; None if its very first step diverged.

    Parameters
    ----------
    base : Setup
        Of all training trajectories: its discretisation is that of every member, its step 0 too where a member trains
        on all of them.
    data : FitData
        All of it, on which the method is chosen.
    end : float
        Reading of `time.perf_counter` at which all must be done.
    processes : int
        Of this machine, which share its cores.
    """
    if not plans:
        return []
    method = resolve_method(Ingredients(base, data, options, plans[0].common, device)).method
    most = plans[0].common.max_memory
    memory = None if most is None else MEMORY_SHARE * most
    size = models_at_once(base.problem.t.numel(), memory) if method == "delta" else 1

    later = (_built(plan, options, method, base, data, device) for plan in plans)  # each when it is its turn
    first = list(islice(later, size))
    built = chain(first, later)
    reason = why_not_in_step([one.training.method for one in first])
    if reason is not None:
        workers = models_beside(plans[0].common, base.trained.model, device, processes)
        if len(plans) > 1:
            how = "one after the other" if workers == 1 else f"{min(workers, len(plans))} side by side"
            report.detail(f"{len(plans)} models are trained {how}: {reason}.")
        return side_by_side(built, len(plans), _alone, report, end, workers)
    if len(plans) > 1:
        report.detail(f"{len(plans)} models are trained in one batch.")
    members: list[Member | None] = []
    for begin in range(0, len(plans), size):
        group = list(islice(built, size))
        seconds = (end - time.perf_counter()) * len(group) / (len(plans) - begin)
        if even([one.training.method for one in group], [one.plan.run.begun for one in group]):
            members += _batch(group, report, seconds)
            continue
        report.detail(f"{len(group)} of them, which had come to different iterations, go on one after the other.")
        members += side_by_side(group, len(group), _alone, report, time.perf_counter() + seconds, 1)
    return members


def _built(
    plan: MemberPlan, options: FitOptions, method: str, base: Setup, data: FitData, device: torch.device
) -> _Built:
    saved = plan.run.saved
    if plan.data.train is data.train:
        setup = prepare(options, plan.common, data.train, device, zero=base.step_zero, problem=base.problem)
    else:
        zero = _zero_of_part(plan, options, base) if saved is None else saved.step_zero
        setup = prepare(options, plan.common, plan.data.train, device, zero=zero)
    parts = Ingredients(setup, plan.data, options, plan.common, device, {} if saved is None else saved.about["settled"])
    return _Built(plan, parts, build_training(method, parts))


def on_mesh(options: FitOptions, mesh: Mesh) -> FitOptions:
    """The options with order and elements of this mesh."""
    return options.model_copy(update={"order": mesh.basis.order, "elements": mesh.elements_of_longest})


def _zero_of_part(plan: MemberPlan, options: FitOptions, base: Setup) -> StepZero:
    """Step 0 of a member's trajectories on the discretisation of all, whose search has told the noise as well.

    Without it the method would not know exact data, which it trains on in another way.
    """
    fixed = on_mesh(options, base.step_zero.mesh)
    zero = fit_step_zero(fixed, plan.common, plan.data.train, base.choice, base.layout)
    return replace(zero, noise=base.step_zero.noise)


def _batch(built: Sequence[_Built], report: Reporter, seconds: float) -> list[Member | None]:
    """Train all of them in one batch, and score them."""
    begin = time.perf_counter()
    limits = [limits_of(one.training, one.parts.options, begin + TRAINING_SHARE * seconds) for one in built]
    methods = [one.training.method for one in built if isinstance(one.training.method, Delta)]
    writers = [_checked(one, limit, report) for one, limit in zip(built, limits, strict=True)]
    upkeep = [
        Upkeep(one.plan.run.state(one.parts.device), writer or keep_nothing, one.plan.run.watch)
        for one, writer in zip(built, writers, strict=True)
    ]

    def tell(together: Together) -> None:
        report.progress(tick_of(together.progress, limits[0]))

    results = run_in_step(methods, limits, upkeep, tell, report.should_stop)
    return [
        _scored(one, result, writer, report, begin + seconds)
        for one, result, writer in zip(built, results, writers, strict=True)
    ]


def _alone(one: _Built, report: Reporter, end: float) -> Member | None:
    """Train and score one."""
    begin, run_of = time.perf_counter(), one.plan.run
    report.detail(run_of.name.words)
    limits: Limits = limits_of(one.training, one.parts.options, begin + TRAINING_SHARE * (end - begin))
    writer = _checked(one, limits, report)

    def each(progress: Progress) -> None:
        run_of.watch(progress)
        report.progress(tick_of(progress, limits))

    result = run(
        one.training.method,
        limits,
        each,
        report.should_stop,
        resume=run_of.state(one.parts.device),
        save=writer or keep_nothing,
    )
    return _scored(one, result, writer, report, end)


def _checked(one: _Built, limits: Limits, report: Reporter) -> StateWriter | None:
    """What keeps the member's states, in the thread that trains it, once the state it goes on from is known to fit."""
    one.plan.run.check(limits, report)
    return one.plan.run.writer(one.parts, one.training, report)


def _scored(one: _Built, result: FitResult, writer: StateWriter | None, report: Reporter, end: float) -> Member | None:
    """The member with its rollouts; None if its very first step diverged."""
    if result.status == "diverged" and result.iterations == 0:
        if writer is not None:
            writer.discard()
        return None
    plan, training, device = one.plan, one.training, one.parts.device
    setup = with_estimates(one.parts.setup, training)
    left = max(min(end - time.perf_counter(), ROLLOUT_SECONDS), 0.1)
    scores = rollout_scores(setup.trained, (plan.data.train, plan.data.validation), device, report, left)
    saved = plan.run.saved
    summary = {
        **summary_of(setup, training, result, scores[0], scores[1]),
        "resumed_from": None if saved is None else saved.state.iteration,
    }
    checkpoint = checkpoint_of(setup, training, result, summary, plan.data, one.parts.options, plan.common, device)
    judge = scores[1] or scores[0]
    told = {
        plan.run.name.kind: plan.run.name.number,
        **{key: summary[key] for key in ("status", "iterations", "train_mse", "validation")},
        "score": None if judge is None else judge.mse,
        "diverged": 0 if judge is None else judge.diverged,
        "ms_per_iteration": 1e3 * result.seconds / max(result.iterations, 1),
    }
    return Member(told, checkpoint, summary)
