"""How a fit in slices ends: forecasts of all training data, and whether they are what the loss promised."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.distributed import ALONE, Team
from snet_cli.forecasting.rollout import rollout
from snet_cli.integration import Tolerances
from snet_cli.training.alpha import Alpha
from snet_cli.training.joint import Joint
from snet_cli.training.loop import FitResult
from snet_cli.training.relaxed_slices import squared_errors
from snet_cli.workflows.honest_end import RolloutScore, explained, residuals_between
from snet_cli.workflows.reporter import Reporter, Tick
from snet_cli.workflows.slices_frame import statistics_of
from snet_cli.workflows.slices_setup import SlicedSetup
from snet_cli.workflows.trained_model import with_hidden_statistics
from snet_cli.workflows.training_plan import Training
from snet_cli.workflows.training_setup import Setup

ROLLOUT_SAMPLES = 50_000
"""Samples of the forecasts that are integrated at a time."""

ROLLOUT = Tolerances(rtol=1e-6, atol=1e-8)
"""Of the final rollout over data in slices: a quarter of the steps of any other forecast. What a model gets wrong is
far more than a millionth, and a million forecasts cost as much as hundreds of iterations."""


def estimates_in_slices(sliced: SlicedSetup, training: Training) -> Setup:
    """The set-up with what training found of hidden states, where the method moves the trajectories."""
    setup = sliced.setup
    nodes: Tensor | None = getattr(training.method, "nodes", None)
    if nodes is None or not setup.layout.hidden:
        return setup
    found = statistics_of(replace(sliced.problem, nodes=nodes.detach().cpu().numpy()), training.team)
    return replace(setup, trained=with_hidden_statistics(setup.trained, *found))


def rollout_in_slices(
    sliced: SlicedSetup,
    slices: TrajectorySlices,
    device: torch.device,
    report: Reporter,
    seconds: float,
    team: Team = ALONE,
) -> RolloutScore:
    """`honest_end.rollout_score` on slices: every process forecasts its own trajectories.

    What time does not suffice for counts as not having reached its end.
    """
    end = time.perf_counter() + seconds
    model = sliced.setup.trained.forecast_model(device)
    square = np.zeros(len(sliced.judged.spread))
    values, outcomes, late = np.zeros_like(square), Counter[str](), 0

    def time_is_up() -> bool:
        return time.perf_counter() > end or report.should_stop()

    pieces = [cut for begin, stop in sliced.cuts for cut in slices.between(begin, stop, ROLLOUT_SAMPLES)]
    for number, (begin, stop) in enumerate(pieces, 1):
        if time_is_up():
            late += slices.count(begin, stop)
            continue
        data = slices.read(begin, stop)
        forecast = rollout(model, data, rtol=ROLLOUT.rtol, atol=ROLLOUT.atol, should_stop=time_is_up)
        errors = forecast.errors
        known = np.isfinite(errors)
        square += (np.where(known, errors, 0.0) ** 2).sum(0)
        values += known.sum(0)
        outcomes.update(forecast.outcome)
        report.progress(Tick("final rollout", number, len(pieces)))
    outcomes["budget"] += late
    words = ("ok", "diverged", "step-underflow", "budget")
    whole = team.total(*square.tolist(), *values.tolist(), *(float(outcomes[word]) for word in words), float(late > 0))
    d = len(square)
    square, values = np.array(whole[:d]), np.array(whole[d : 2 * d])
    counts = {word: int(count) for word, count in zip(words, whole[2 * d : -1], strict=True) if count}
    return _score(square, values, counts, sliced, report, late=whole[-1] > 0)


def _score(
    square: np.ndarray, values: np.ndarray, counts: dict[str, int], sliced: SlicedSetup, report: Reporter, *, late: bool
) -> RolloutScore:
    failed = sum(counts.values()) - counts.get("ok", 0)
    if failed:
        because = " (its time was up)" if late else ""
        report.note(
            f"{failed} of {sum(counts.values())} forecasts over the data's own horizon do not reach its end{because}; "
            "the scores are over the rest. Shorter forecasts may still be good: snet evaluate --horizon."
        )
    if late:
        counts = {word: count for word, count in counts.items() if word != "budget"}
    if not values.sum():
        return RolloutScore(None, failed, None, counts)
    relative = math.sqrt(float((square / sliced.judged.spread**2).sum() / values.sum()))
    return RolloutScore(float(square.sum() / values.sum()), failed, relative, counts)


def disagreement_in_slices(
    sliced: SlicedSetup, training: Training, result: FitResult, slices: TrajectorySlices, score: RolloutScore
) -> str | None:
    """`honest_end.disagreement` on slices; residuals between the nodes are those of the first slice."""
    setup, judged, method = sliced.setup, sliced.judged, training.method
    nodes: Tensor | None = getattr(method, "nodes", None)
    square = judged.square
    if isinstance(method, Alpha | Joint):
        source = method.arrow.source if isinstance(method, Joint) else method.relaxed
        square = squared_errors(source, method.nodes, training.team).cpu().numpy()
    own = math.sqrt(float((square / judged.spread**2).sum() / judged.values.sum()))

    def residuals() -> tuple[float, float]:
        begin, end = sliced.cuts[0]
        data: Trajectories = slices.read(begin, end)
        mesh = sliced.problem.mesh.between(0, len(data))
        scaled = replace(setup, problem=replace(setup.problem, scale=torch.from_numpy(sliced.problem.scale)))
        x = sliced.problem.nodes[: mesh.elements] if nodes is None else nodes[: mesh.elements].cpu().numpy()
        return residuals_between(scaled, mesh, x, data)

    total = sum(score.outcomes.values())
    return explained(setup, training, setup.step_zero.mesh, own, residuals, total, score)
