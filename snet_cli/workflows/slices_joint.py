"""Joint Gauss-Newton on data that is larger than the memory: X stays in memory, the samples are read in every pass."""

from __future__ import annotations

from dataclasses import replace

from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.training.joint import Joint
from snet_cli.training.robust import as_tensor
from snet_cli.training.warm_up import FINE
from snet_cli.workflows import memory
from snet_cli.workflows.build_joint import JOINT, ROUGH, SCORE_GAMMA, evidence_of, noise_levels, rough_iterations
from snet_cli.workflows.methods import unknowns_notes
from snet_cli.workflows.slices_parts import (
    channels_in_slices,
    counts_in_slices,
    relaxed_slices,
    room_left,
    rule_in_slices,
)
from snet_cli.workflows.slices_setup import WORKING_ROOM, SlicedSetup, bytes_of_joint, bytes_of_moves
from snet_cli.workflows.training_plan import IN_SLICES, Ingredients, Training, iteration_limit, validation_of

NOTE = (
    "in slices the mesh stays that of step 0, which is refined where all data is in memory, and no confidence is kept, "
    "which snet evaluate --bands needs."
)
"""What a run in slices does without."""


def joint_in_slices(parts: Ingredients, sliced: SlicedSetup, slices: TrajectorySlices) -> Training:
    """The method and its limits, as `build_joint` has them."""
    options, setup, team = parts.options, parts.setup, parts.team
    free = options.x0 == "free"
    known_exactly = sliced.exact and not setup.layout.lags
    noise = noise_levels(parts, sliced.exact)
    channels = channels_in_slices(parts, sliced, noise)
    counts = counts_in_slices(sliced, channels, free=free)
    open_notes = unknowns_notes(setup, sliced.counts.trajectories, int(counts.values.sum()), counts.free)
    rule = rule_in_slices(parts, sliced, SCORE_GAMMA if options.gamma == "auto" else options.gamma, free=free)
    validation = validation_of(parts, rule)
    batch, kept = _memory(parts, sliced)
    rough = rough_iterations(parts)
    method = Joint(
        replace(sliced.problem, room=kept),
        relaxed_slices(sliced, slices, channels, free=free),
        setup.trained.model,
        gamma=None if options.gamma == "auto" else options.gamma,
        prior=0.0 if options.prior == "auto" else options.prior,
        evidence=evidence_of(options, counts, noise),
        held_out=None if validation is None else validation.scorer(team),
        threshold=None if setup.step_zero.threshold is None else as_tensor(setup.step_zero.threshold, parts.device),
        exact=known_exactly,
        rough=rough,
        memory=batch,
        team=team,
    )
    longer = known_exactly and options.iterations is None
    limit = iteration_limit(options, JOINT) + (rough + FINE if longer else 0)
    return Training(
        method,
        rule,
        limit,
        choices=(NOTE, *open_notes),
        validation=validation,
        settled={IN_SLICES: True, ROUGH: rough},
        team=team,
    )


def _memory(parts: Ingredients, sliced: SlicedSetup) -> tuple[int, float]:
    """Bytes for a batch, and for blocks of the warm-up that are kept.

    Raises
    ------
    UsageError
        Where there is not enough for one batch beside X.
    """
    weights = sum(p.numel() for p in parts.setup.trained.model.parameters())
    least = bytes_of_joint(weights)
    moves = bytes_of_moves(sliced.problem.nodes.nbytes, parts.team)
    taken = memory.resident() if parts.common.max_memory is not None else 0.0
    what = f"joint training on {sliced.counts.trajectories} trajectories"
    memory.require_share(what, taken + moves + least, parts.common, parts.team.place)
    left = room_left(parts) - moves
    batch = min(max(left / 3.0, 0.5 * (least - WORKING_ROOM)), memory.LARGEST_BATCH)
    return int(batch), max(left - 2.0 * batch, 0.0)
