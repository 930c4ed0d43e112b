"""How a fit ends: whether there is a model, its forecasts, and whether they are what the loss promised."""

from __future__ import annotations

from dataclasses import replace

from snet_cli.errors import NumericalError
from snet_cli.training.loop import FitResult
from snet_cli.workflows.fit_task import Begun, FitTask
from snet_cli.workflows.honest_end import RolloutScore, disagreement, rollout_score, rollout_scores
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.slices_end import disagreement_in_slices, rollout_in_slices
from snet_cli.workflows.train_one import mesh_of
from snet_cli.workflows.training_plan import Training
from snet_cli.workflows.training_setup import Setup

SHORTEST_ROLLOUT_LIMIT = 30.0
"""Seconds that the final rollout may always take."""

Scores = tuple[RolloutScore | None, RolloutScore | None]
"""Of the training data and of the validation data."""


def final_scores(
    task: FitTask, begun: Begun, training: Training, result: FitResult, setup: Setup
) -> tuple[Scores, str | None]:
    """The scores of both forecasts, and why the first is far worse than the loss promised; None where it is not.

    Where the method itself has found that the data is not the model's, that is why.

    Parameters
    ----------
    setup : Setup
        With the states that training estimated.
    """
    report, team, data, device = task.report, task.team, begun.parts.data, begun.parts.device
    seconds = rollout_seconds(task, result)
    if begun.in_slices is not None:
        sliced, slices = replace(begun.in_slices.setup, setup=setup), begun.in_slices.slices
        score = rollout_in_slices(sliced, slices, device, report, seconds, team)
        held = data.validation
        held_score = None if held is None else rollout_score(setup.trained, held, device, report, seconds, team)
        return (score, held_score), disagreement_in_slices(sliced, training, result, slices, score)
    train_score, held_score = team.once(
        lambda own: rollout_scores(setup.trained, (data.train, data.validation), device, report, seconds, own)
    )
    if train_score is None:
        return (None, held_score), None
    reason = disagreement(setup, training, mesh_of(setup, training), result, data.train, train_score)
    return (train_score, held_score), reason and (getattr(training.method, "finding", None) or reason)


def rollout_seconds(task: FitTask, result: FitResult) -> float:
    """Time for the final rollouts: what is left of `--max-time`, else as long as training took, at least a while."""
    if task.options.max_time is not None:
        return max(task.options.max_time - task.seconds, 0.1)
    return max(result.seconds, SHORTEST_ROLLOUT_LIMIT)


def require_a_model(training: Training, result: FitResult, report: Reporter) -> None:
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
