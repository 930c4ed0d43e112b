"""`snet fit` on data that is larger than the memory: set-up and method, on sums over slices and blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.distributed import ALONE, Team
from snet_cli.errors import CheckpointError
from snet_cli.training.options import FitOptions
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.fit_task import Begun, InSlices
from snet_cli.workflows.methods import check_method
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.resources import set_threads
from snet_cli.workflows.sliced_data import SlicedData
from snet_cli.workflows.slices_alpha import alpha_in_slices
from snet_cli.workflows.slices_delta import delta_in_slices
from snet_cli.workflows.slices_joint import joint_in_slices
from snet_cli.workflows.slices_setup import SlicedSetup, set_up_in_slices
from snet_cli.workflows.train_one import set_threads_of_method
from snet_cli.workflows.training_plan import IN_SLICES, Ingredients, Training

SLICED_METHODS: dict[str, Callable[[Ingredients, SlicedSetup, TrajectorySlices], Training]] = {
    "delta": delta_in_slices,
    "alpha": alpha_in_slices,
    "joint": joint_in_slices,
}
"""Registry name -> how it is built on slices."""


def build_in_slices(
    options: FitOptions,
    common: CommonOptions,
    data: SlicedData,
    device: torch.device,
    search_end: float,
    known: StepZero | None,
    report: Reporter,
    team: Team = ALONE,
    settled: Mapping[str, Any] | None = None,
    more: float = 1.0,
) -> Begun:
    """Set up and build the method.

    Parameters
    ----------
    search_end : float
        When the search for order and elements has to end.
    known : StepZero, optional
    settled : mapping, optional
        Of the run that goes on.
    more : float
        As for `set_up_in_slices`.
    """
    set_threads(common.threads, 0)
    sliced = set_up_in_slices(options, common, data.train, device, search_end, known, report, team, more)
    setup, choice = sliced.setup, sliced.method
    check_method(choice.method, setup.layout)
    set_threads_of_method(choice.method, common, setup, sliced.problem.points * team.size, team)
    own = FitData(data.shell, data.validation, data.parents)
    parts = Ingredients(setup, own, options, common, device, {IN_SLICES: True, **(settled or {})}, team)
    training = SLICED_METHODS[choice.method](parts, sliced, data.train)
    return Begun(parts, choice, InSlices(data.train, sliced, training))


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
