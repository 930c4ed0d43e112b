"""What is the same for all slices of a file: options, channels, the model, and how step 0 begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.models.registry import state_space
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.options import FitOptions
from snet_cli.training.starts import FIRST_LAG
from snet_cli.training.state_layout import StateLayout, observed_names
from snet_cli.training.step_zero_slices import Discretisation, StepZeroSums
from snet_cli.workflows.node_pass import NodePass
from snet_cli.workflows.trained_model import TrainedModel, extent_of
from snet_cli.workflows.training_setup import (
    STREAM_HELD_OUT,
    ModelChoice,
    choose_model,
    fit_step_zero,
    hold_of,
    lay_out,
    new_model,
    second_order_of,
    stream,
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """What is the same for all slices."""

    options: FitOptions
    common: CommonOptions
    shell: Trajectories
    choice: ModelChoice
    layout: StateLayout
    inputs: tuple[str, ...]
    model: Model
    team: Team
    moving: bool = False

    def sums(self, found: Discretisation, first: Trajectories) -> StepZeroSums:
        """Step 0 on this discretisation, before any slice."""
        return StepZeroSums(
            self.layout,
            second_order_of(self.choice),
            found,
            self.options.x0 != "free",
            stream(self.common.seed, STREAM_HELD_OUT),
            _means(first),
            FIRST_LAG * first.sampling_interval(),
        )

    def node_pass(self, spans: FloatArray, found: Discretisation) -> NodePass:
        """What a pass over trajectories of these lengths keeps."""
        return NodePass(spans, found, self.layout, self.inputs, self.model.constants)

    def step_zero_of(
        self, data: Trajectories, found: Discretisation, device: torch.device, *, everywhere: bool
    ) -> tuple[BlockProblem, float]:
        """Step 0 of some trajectories alone, and its condition.

        Parameters
        ----------
        everywhere : bool
            Whether elements in gaps count.
        """
        sums, passed = self.sums(found, data), self.node_pass(data.end - data.start, found)
        passed.take(data, sums)
        return passed.problem(self.layout, device, ALONE, everywhere=everywhere), sums.condition

    def threshold_on(self, found: Discretisation, first: Trajectories) -> FloatArray | None:
        """Huber's threshold of each output (d,) from step 0 of the first trajectories on this discretisation."""
        fixed = self.options.model_copy(update={"order": found.order, "elements": found.elements})
        return fit_step_zero(fixed, self.common, first, self.choice, self.layout).threshold

    def trained(self, passed: NodePass, problem: BlockProblem) -> TrainedModel:
        """The new model with what forecasts need of the data."""
        shell = self.shell
        return TrainedModel(
            self.model,
            self.choice.tree,
            self.layout,
            self.inputs,
            {name: unit for name, unit in {**shell.units, **shell.inputs.units}.items() if unit},
            shell.time_unit,
            {} if shell.inputs.sampled is None else dict(zip(*hold_of(shell), strict=True)),
            dict(zip(self.model.constants, passed.mean_constants(self.team), strict=True)),
            *statistics_of(problem, self.team),
            self.choice.source,
        )


def make_frame(
    options: FitOptions,
    common: CommonOptions,
    slices: TrajectorySlices,
    device: torch.device,
    team: Team,
) -> Frame:
    """The model and the channels for this file."""
    shell = slices.shell
    choice = choose_model(options, shell)
    layout = lay_out(options, choice, shell)
    seen = observed_names(shell.output_names, options.observe)
    space = state_space(choice.name, seen, shell.inputs.names)._replace(states=layout.states)
    model = new_model(choice, space, common).to(device)
    return Frame(options, common, shell, choice, layout, space.inputs, model, team)


def _means(data: Trajectories) -> FloatArray:
    """A value near the mean of each output, from which deviations are summed."""
    known = np.isfinite(data.outputs)
    means: FloatArray = np.where(known, data.outputs, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return means


def statistics_of(problem: BlockProblem, team: Team) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, range and mean start of each state, as `trained_model.training_statistics`."""
    nodes, starts = problem.nodes, problem.nodes[problem.mesh.first_element[:-1], 0]
    n = nodes.shape[2]
    extremes = team.largest(*(-nodes.min((0, 1))).tolist(), *nodes.max((0, 1)).tolist())
    low, high = -np.array(extremes[:n]), np.array(extremes[n:])
    sums = team.total(*nodes.sum((0, 1)).tolist(), *starts.sum(0).tolist(), nodes[:, :, 0].size, len(starts))
    mean, start = np.array(sums[:n]) / sums[2 * n], np.array(sums[n : 2 * n]) / sums[2 * n + 1]
    return mean, extent_of(low, high), start
