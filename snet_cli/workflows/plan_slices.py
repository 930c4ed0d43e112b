"""The plan of ``snet fit --dry-run`` on data that is larger than the memory: sizes of slices and blocks, and the time.

The set-up and an iteration (of δ-SNet an evaluation of R) are timed on the first trajectories, and the times multiplied
by how many there are: cost per trajectory does not depend on their number. What is kept in memory and what is made or
read anew is timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.distributed import ALONE
from snet_cli.models.base import Model
from snet_cli.training.arrow import ArrowProblem
from snet_cli.training.block_delta import BlockDelta
from snet_cli.training.blocks import BLOCK_POINTS, BlockProblem
from snet_cli.training.descent import STATE_DAMPING
from snet_cli.training.joint import Joint
from snet_cli.training.linearisation import Linearisation
from snet_cli.training.method_choice import MethodChoice
from snet_cli.training.options import FitOptions
from snet_cli.training.theta_lm import LevenbergMarquardtStep
from snet_cli.training.weight_system import START_DAMPING
from snet_cli.workflows import memory
from snet_cli.workflows.fit_slices import build_in_slices
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.resources import choose_device
from snet_cli.workflows.sliced_data import load_slices
from snet_cli.workflows.slices_setup import MOVING, WORKING_ROOM, SlicedSetup, bytes_of_moves
from snet_cli.workflows.training_plan import Ingredients, Training

TRIED, TRIED_MOVING = 4000, 200
"""Trajectories that are timed, and where X moves with them, which costs hundreds of times as much."""


def plan_in_slices(
    train: str, options: FitOptions, common: CommonOptions, report: Reporter, deadline: float
) -> tuple[dict[str, Any], Ingredients, MethodChoice, list[str]]:
    """What `--dry-run` adds for such data, and the ingredients, method and notes of the part that was tried."""
    device = choose_device(common.device)
    with closing(load_slices(train, options, common, report)) as data:
        whole = data.train
        count = min(TRIED if options.method == "delta" else TRIED_MOVING, len(whole))
        few = replace(data, train=_first(whole, count))
        started = time.perf_counter()
        more = len(whole) / count
        begun = build_in_slices(options, common, few, device, deadline, None, report, more=more)
        assert begun.in_slices is not None
        (_, sliced, training), parts, choice = begun.in_slices, begun.parts, begun.choice
        seconds_setup = time.perf_counter() - started
        timed = _timed(training, sliced)
        resident = _resident(sliced, moving=choice.method in MOVING)
        share = _kept_share(timed.bytes_kept, resident, more, common)
        plan = {
            "trajectories": len(whole),
            "points": round(more * sliced.problem.points),
            "iterations": training.iterations,
            "slices": {
                "count": len(whole.cuts()),
                "trajectories_each": int(np.ceil(len(whole) / len(whole.cuts()))),
                "block_points": BLOCK_POINTS,
                "blocks_kept": share if timed.bytes_kept else None,
                "resident_mb": 1e-6 * more * resident,
                "seconds_setup": seconds_setup + (more - 1.0) * sliced.seconds,
                "seconds_per_iteration": more * (share * timed.kept + (1.0 - share) * timed.anew),
            },
        }
    return plan, parts, choice, [f"method {choice.method}: {choice.reason}", *training.choices]


def _first(slices: TrajectorySlices, count: int) -> TrajectorySlices:
    kept = slices.kept.copy()
    kept[np.flatnonzero(slices.kept)[count:]] = False
    return slices.where(kept)


class _Timed(NamedTuple):
    """Seconds of an iteration with everything kept and with nothing kept, and the bytes that keeping takes."""

    kept: float
    anew: float
    bytes_kept: float


def _resident(sliced: SlicedSetup, *, moving: bool) -> float:
    """Bytes that stay in memory of these trajectories whatever is kept beside them."""
    problem = sliced.problem
    size = float(problem.nodes.nbytes + problem.inputs.nbytes + problem.mesh.boundaries.nbytes)
    return size + bytes_of_moves(float(problem.nodes.nbytes), ALONE) if moving else size


def _timed(training: Training, sliced: SlicedSetup) -> _Timed:
    method = training.method
    if isinstance(method, Joint):
        seconds = _fastest(partial(_joint_step, method.arrow, method))
    elif isinstance(method, BlockDelta) and isinstance(method.theta, LevenbergMarquardtStep):
        seconds = _fastest(method.theta.step)
    else:
        return _timed_residual(sliced.problem, sliced.setup.trained.model)
    return _Timed(seconds, seconds, 0.0)


def _timed_residual(problem: BlockProblem, model: Model) -> _Timed:
    """One evaluation of R and its gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    seconds, taken = [], 0.0
    for room in (np.inf, 0.0):
        residual = replace(problem, room=room).residual(model)
        seconds.append(_fastest(partial(residual.evaluate, list(parameters))))
        taken = max(taken, residual.taken)
    return _Timed(seconds[0], seconds[1], taken)


def _joint_step(arrow: ArrowProblem, method: Joint) -> None:
    """One elimination, one step and its loss; the samples are read for each."""
    move = Linearisation(arrow, method.nodes, method.gamma, STATE_DAMPING).solve(START_DAMPING)
    if move is not None:
        arrow.loss(method.nodes + move.states)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of three."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def _kept_share(taken: float, resident: float, more: float, common: CommonOptions) -> float:
    """The share of everything that `--max-memory` lets a single process keep."""
    left = memory.share(common, memory.ONE) - memory.resident() - (more - 1.0) * resident - WORKING_ROOM
    return 1.0 if taken == 0.0 else float(np.clip(left / (more * taken), 0.0, 1.0))
