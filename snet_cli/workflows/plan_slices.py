"""The plan of ``snet fit --dry-run`` on data that is larger than the memory: sizes of slices and blocks, and the time.

The set-up and two evaluations of R are timed on the first trajectories, and the times multiplied by how many there are:
cost per trajectory does not depend on their number.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.models.base import Model
from snet_cli.training.blocks import BLOCK_POINTS, BlockProblem
from snet_cli.training.options import FitOptions
from snet_cli.workflows import memory
from snet_cli.workflows.fit_slices import build_in_slices
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.resources import choose_device
from snet_cli.workflows.sliced_data import load_slices
from snet_cli.workflows.slices_setup import WORKING_ROOM

TRIED = 4000
"""Trajectories that are timed."""


def plan_in_slices(
    train: str, options: FitOptions, common: CommonOptions, report: Reporter, deadline: float
) -> tuple[dict[str, Any], Any, list[str]]:
    """What `--dry-run` adds for such data, and the ingredients and notes of the part that was tried."""
    device = choose_device(common.device)
    with closing(load_slices(train, options, common, report)) as data:
        whole = data.train
        count = min(TRIED, len(whole))
        few = replace(data, train=_first(whole, count))
        started = time.perf_counter()
        begun = build_in_slices(options, common, few, device, deadline, None, report)
        assert begun.in_slices is not None
        (_, sliced, training), parts, choice = begun.in_slices, begun.parts, begun.choice
        seconds_setup = time.perf_counter() - started
        more = len(whole) / count
        each = {kept: _seconds(sliced.problem, sliced.setup.trained.model, kept=kept) for kept in (True, False)}
        share = _kept_share(sliced.problem, sliced.setup.trained.model, more, common)
        plan = {
            "trajectories": len(whole),
            "points": round(more * sliced.problem.points),
            "iterations": training.iterations,
            "slices": {
                "count": len(whole.cuts()),
                "trajectories_each": int(np.ceil(len(whole) / len(whole.cuts()))),
                "block_points": BLOCK_POINTS,
                "blocks_kept": share,
                "resident_mb": 1e-6 * more * _resident(sliced.problem),
                "seconds_setup": seconds_setup + (more - 1.0) * sliced.seconds,
                "seconds_per_iteration": more * (share * each[True] + (1.0 - share) * each[False]),
            },
        }
    return plan, parts, [f"method {choice.method}: {choice.reason}"]


def _first(slices: TrajectorySlices, count: int) -> TrajectorySlices:
    kept = slices.kept.copy()
    kept[np.flatnonzero(slices.kept)[count:]] = False
    return slices.where(kept)


def _resident(problem: BlockProblem) -> float:
    return float(problem.nodes.nbytes + problem.inputs.nbytes + problem.mesh.boundaries.nbytes)


def _seconds(problem: BlockProblem, model: Model, *, kept: bool) -> float:
    """Seconds of one evaluation of R and its gradient, blocks kept or made anew."""
    residual = replace(problem, room=np.inf if kept else 0.0).residual(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        residual.evaluate(list(parameters))
        times.append(time.perf_counter() - begun)
    return min(times)


def _kept_share(problem: BlockProblem, model: Model, more: float, common: CommonOptions) -> float:
    """The share of all blocks that `--max-memory` lets a single process keep."""
    residual = replace(problem, room=np.inf).residual(model)
    residual.evaluate([])
    left = memory.share(common, memory.ONE) - memory.resident() - (more - 1.0) * _resident(problem) - WORKING_ROOM
    return float(np.clip(left / (more * residual.taken), 0.0, 1.0))
