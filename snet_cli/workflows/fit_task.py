"""One call of `fit`: its arguments, and what training begins with, on a process or on one of its lanes."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from snet_cli.data.options import CommonOptions
from snet_cli.data.outputs import check_output
from snet_cli.data.shares import shares
from snet_cli.data.storage import display
from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.distributed import Lane, Team, lanes_for
from snet_cli.training.method_choice import MethodChoice
from snet_cli.training.options import FitOptions
from snet_cli.workflows.build_shooting import SHOOTING_METHODS
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.reporter import Reporter, Silent
from snet_cli.workflows.resume import SavedRun
from snet_cli.workflows.sliced_data import SlicedData
from snet_cli.workflows.slices_setup import SlicedSetup
from snet_cli.workflows.training_plan import Ingredients, Training


@dataclass(frozen=True)
class FitTask:
    """The arguments of `workflows.fit.fit`."""

    train: str
    output: str
    options: FitOptions
    common: CommonOptions
    force: bool
    resume: bool
    metrics: str | None
    checkpoint_every: str
    report: Reporter
    started: float
    team: Team

    @property
    def seconds(self) -> float:
        """Time since the command began."""
        return time.perf_counter() - self.started

    def on(self, lane: Lane) -> FitTask:
        """The same on one of this process's lanes, the first of which speaks."""
        return replace(self, team=lane, report=self.report if lane.speaks else _Unheard(self.report))


class _Unheard(Silent):
    """What a lane says that another one says too; the user's wish to stop reaches it."""

    def __init__(self, heard: Reporter) -> None:
        self.heard = heard

    def should_stop(self) -> bool:
        """As the process's reporter knows it."""
        return self.heard.should_stop()


class InSlices(NamedTuple):
    """Training data that is read in slices, step 0 on it, and its method."""

    slices: TrajectorySlices
    setup: SlicedSetup
    training: Training


@dataclass(frozen=True)
class Begun:
    """What training begins with: step 0, the problem, a new model, and which method."""

    parts: Ingredients
    choice: MethodChoice
    in_slices: InSlices | None = None

    @property
    def lanes(self) -> int:
        """How many lanes the processes have together."""
        parts = self.parts
        if self.choice.method in SHOOTING_METHODS or self.in_slices is not None:
            return 1
        weights = sum(p.numel() for p in parts.setup.trained.model.parameters())
        return lanes_for(len(parts.data.train), parts.team.size, weights, parts.device.type)

    @property
    def recorded(self) -> int:
        """How many processes a state says that there were: one where the result does not depend on it."""
        return 1 if self.lanes > 1 else self.parts.team.size

    def on(self, lane: Lane) -> Begun:
        """The same on a lane: a θ of its own."""
        setup = self.parts.setup
        trained = replace(setup.trained, model=copy.deepcopy(setup.trained.model))
        return replace(self, parts=replace(self.parts, setup=replace(setup, trained=trained), team=lane))


def require_agreement(team: Team, run_key: dict[str, Any], data: FitData | SlicedData, saved: SavedRun | None) -> None:
    """All processes have the same files, options and state, and a trajectory each.

    Raises
    ------
    UsageError
    """
    if team.size == 1:
        return
    same = {f"{role} file": digest for role, digest in data.parents.items()}
    same |= {"state of the run": "none" if saved is None else f"iteration {saved.state.iteration}"}
    team.require_same({**same, **{f"option {key}": json.dumps(value) for key, value in run_key.items()}})
    shares(data.row_size, team.size)


def start_afresh(task: FitTask, path: str) -> None:
    """`--resume` where there is no state, which would lie at `path`: a new run, unless that would overwrite a model.

    Raises
    ------
    OutputError
    """
    check_output(task.output, task.force)
    task.report.note(f"there is no state of an earlier run ({display(path)}): starting afresh.")
