"""`snet fit` on data that is larger than the memory: δ-SNet on sums over slices and blocks."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.distributed import ALONE, Team
from snet_cli.errors import CheckpointError
from snet_cli.forecasting.rollout import rollout
from snet_cli.integration import Tolerances
from snet_cli.training.block_delta import WARM_ELEMENTS, BlockDelta, warm_part
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.loop import FitResult
from snet_cli.training.method_choice import EXACT, MethodChoice
from snet_cli.training.options import FitOptions
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed import known_noise, scale_of_misfit
from snet_cli.training.relaxed_score import RelaxedRule
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows import memory
from snet_cli.workflows.build_delta import (
    DELTA,
    FEWEST_ELEMENTS_TO_SHARE,
    HELD_OUT_SHARE,
    PATIENCE,
    own_steps,
    prior_of,
)
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.fit_task import Begun, InSlices
from snet_cli.workflows.honest_end import RolloutScore, explained, residuals_between
from snet_cli.workflows.methods import check_method
from snet_cli.workflows.reporter import Reporter, Tick
from snet_cli.workflows.resources import set_threads
from snet_cli.workflows.sliced_data import SlicedData
from snet_cli.workflows.slices_setup import WORKING_ROOM, SlicedSetup, set_up_in_slices
from snet_cli.workflows.train_one import width_of
from snet_cli.workflows.training_plan import Ingredients, Training, iteration_limit, validation_of
from snet_cli.workflows.training_setup import STREAM_HELD_OUT, stream

ROLLOUT_SAMPLES = 50_000
"""Samples of the forecasts that are integrated at a time."""

ROLLOUT = Tolerances(rtol=1e-6, atol=1e-8)
"""Of the final rollout over data in slices: a quarter of the steps of any other forecast. What a model gets wrong is
far more than a millionth, and a million forecasts cost as much as hundreds of iterations."""

IN_SLICES = "slices"
"""Key of `Training.settled`."""


def build_in_slices(
    options: FitOptions,
    common: CommonOptions,
    data: SlicedData,
    device: torch.device,
    search_end: float,
    known: StepZero | None,
    report: Reporter,
    team: Team = ALONE,
) -> Begun:
    """Set up and build δ-SNet.

    Parameters
    ----------
    search_end : float
        When the search for order and elements has to end.
    known : StepZero, optional
        Of the run that goes on.
    """
    set_threads(common.threads, 0)
    sliced = set_up_in_slices(options, common, data.train, device, search_end, known, report, team)
    setup = sliced.setup
    check_method("delta", setup.layout)
    set_threads(common.threads, sliced.problem.points * team.size * width_of(setup), team.place.local_size)
    parts = Ingredients(
        setup, FitData(data.shell, data.validation, data.parents), options, common, device, {IN_SLICES: True}, team
    )
    reason = "the data is larger than memory, and its sums over slices are exact."
    return Begun(parts, MethodChoice("delta", reason), InSlices(data.train, sliced, _training(parts, sliced)))


def require_same_reading(settled: dict[str, object], *, sliced: bool, path: str) -> None:
    """A state of a run in slices goes on in slices, any other in one piece.

    Raises
    ------
    CheckpointError
    """
    was = bool(settled.get(IN_SLICES, False))
    if was != sliced:
        words = {True: "in slices", False: "in one piece"}
        raise CheckpointError(
            f"{path}: the run had its data {words[was]}, this one would have it {words[sliced]}.",
            "Give --max-memory as it was then, or start over with --force.",
        )


def _training(parts: Ingredients, sliced: SlicedSetup) -> Training:
    """The method and its limits, as `build_delta` has them."""
    options, setup, team = parts.options, parts.setup, parts.team
    rule = _rule(parts, sliced)
    validation = validation_of(parts, rule)
    problem: BlockProblem = replace(sliced.problem, room=_room(parts))
    held: Problem | BlockProblem | None = None
    patience = math.inf
    if validation is not None:
        held = validation.part(team)
    elif own_steps(options) and sliced.judged.elements >= FEWEST_ELEMENTS_TO_SHARE:
        problem, held = problem.split_elements(HELD_OUT_SHARE, stream(parts.common.seed, STREAM_HELD_OUT), team)
        problem, held = replace(problem, room=(1 - HELD_OUT_SHARE) * problem.room), replace(held, room=0.0)
        patience = PATIENCE
    prior = prior_of(setup, sliced.judged.elements) if options.prior == "auto" else options.prior
    warm = warm_part(problem, team) if own_steps(options) else None
    method = BlockDelta(
        problem, setup.trained.model, options.theta_step, setup.step_zero.misfit, held, prior, warm=warm, team=team
    )
    return Training(
        method,
        rule,
        iteration_limit(options, DELTA),
        patience,
        stalls=options.theta_step.name != "adam",
        notes=_notes(parts, sliced, warm=warm is not None),
        validation=validation,
        settled={IN_SLICES: True},
        team=team,
    )


def _notes(parts: Ingredients, sliced: SlicedSetup, *, warm: bool) -> tuple[str, ...]:
    """What differs from a run in one piece."""
    notes = [f"the first iterations descend on {WARM_ELEMENTS} elements."] if warm else []
    noise = parts.setup.step_zero.noise
    if np.isfinite(noise).all() and (noise < EXACT * sliced.judged.spread).all():
        notes.append("the samples are exact: in one piece R would be under Huber's loss, against kinks.")
    return tuple(notes)


def _room(parts: Ingredients) -> float:
    """Bytes that blocks may keep between two evaluations: what this process's share of the memory has left."""
    share = memory.share(parts.common, parts.team.place)
    limit = parts.common.max_memory
    left = share - (memory.resident() if limit is not None else 0.0)  # what the machine has left is left already
    return max(0.0, left - WORKING_ROOM)


def _rule(parts: Ingredients, sliced: SlicedSetup) -> RelaxedRule:
    """How held-out trajectories are scored, in training's scales."""
    options, setup, data = parts.options, parts.setup, parts.data.train
    noise = known_noise(data.noise_std, setup.layout.outputs)
    spread = sliced.judged.spread
    channels = scale_of_misfit(spread, noise) if options.scaled else np.ones_like(spread)
    return RelaxedRule(
        setup.step_zero.mesh.basis.order,
        float(setup.step_zero.mesh.width.mean()),
        tuple(sliced.problem.scale.tolist()),
        tuple(channels.tolist()),
        None,
        options.x0 != "free",
        options.loss,
    )


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
    setup, judged = sliced.setup, sliced.judged
    own = math.sqrt(float((judged.square / judged.spread**2).sum() / judged.values.sum()))

    def residuals() -> tuple[float, float]:
        begin, end = sliced.cuts[0]
        data: Trajectories = slices.read(begin, end)
        mesh = sliced.problem.mesh.between(0, len(data))
        scaled = replace(setup, problem=replace(setup.problem, scale=torch.from_numpy(sliced.problem.scale)))
        return residuals_between(scaled, mesh, sliced.problem.nodes[: mesh.elements], data)

    total = sum(score.outcomes.values())
    return explained(setup, training, setup.step_zero.mesh, own, residuals, total, score)
