"""δ-SNet on data that is larger than the memory (`training.block_delta`)."""

from __future__ import annotations

import math
from dataclasses import replace

from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.training.block_delta import WARM_ELEMENTS, BlockDelta, warm_part
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.problem import Problem
from snet_cli.workflows.build_delta import (
    DELTA,
    FEWEST_ELEMENTS_TO_SHARE,
    HELD_OUT_SHARE,
    PATIENCE,
    own_steps,
    prior_of,
)
from snet_cli.workflows.slices_parts import room_left, rule_in_slices
from snet_cli.workflows.slices_setup import SlicedSetup
from snet_cli.workflows.training_plan import IN_SLICES, Ingredients, Training, iteration_limit, validation_of
from snet_cli.workflows.training_setup import STREAM_HELD_OUT, stream


def delta_in_slices(parts: Ingredients, sliced: SlicedSetup, slices: TrajectorySlices) -> Training:
    """The method and its limits, as `build_delta` has them."""
    options, setup, team = parts.options, parts.setup, parts.team
    rule = rule_in_slices(parts, sliced)
    validation = validation_of(parts, rule)
    problem: BlockProblem = replace(sliced.problem, room=room_left(parts))
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
    if sliced.exact and parts.options.theta_step.name == "lbfgs":
        notes.append("the samples are exact: in one piece R would be under Huber's loss, against kinks.")
    return tuple(notes)
