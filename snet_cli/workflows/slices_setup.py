"""Set-up of a fit whose data is larger than the memory: one pass over the file, a slice at a time.

Every process passes over its own range and keeps x and u at its nodes. What the model and the report need of the whole
(scales, statistics, errors of step 0) are sums and extremes over slices and processes.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.constants import known_constants
from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_slices import TrajectorySlices, joined
from snet_cli.distributed import Team
from snet_cli.errors import DataError
from snet_cli.models.base import NodeData
from snet_cli.models.registry import state_space
from snet_cli.spectral.mesh import Mesh, mesh_between
from snet_cli.spectral.selection import SELECTION_SAMPLES
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.node_inputs import inputs_at_nodes
from snet_cli.training.options import FitOptions
from snet_cli.training.state_layout import StateLayout, observed_names
from snet_cli.training.step_zero import StepZero
from snet_cli.training.step_zero_slices import Discretisation, Judged, StepZeroSums, discretise
from snet_cli.workflows import memory
from snet_cli.workflows.reporter import Reporter, Tick
from snet_cli.workflows.trained_model import TrainedModel, extent_of
from snet_cli.workflows.training_setup import (
    STREAM_HELD_OUT,
    ModelChoice,
    Setup,
    choose_model,
    hold_of,
    lay_out,
    new_model,
    require_moderate,
    second_order_of,
    stream,
)

FloatArray = NDArray[np.float64]

NORMALISING_POINTS = 200_000
"""Points from which a generic network's normalisation is fitted: the first ones."""

WORKING_ROOM = 250e6
"""Bytes that are left for what a slice or a block takes while it is worked on."""


@dataclass(frozen=True)
class SlicedSetup:
    """Everything before the first iteration.

    Attributes
    ----------
    setup : Setup
        As any fit has it, but that its problem is one block, and its step 0 a trajectory of mean length without
        values, which stands for all.
    problem : BlockProblem
        This process's part of the whole.
    judged : Judged
        Step 0 of the whole in numbers.
    cuts : list of (int, int)
        Ranges of the file that this process reads.
    seconds : float
        Time of the pass over them.
    """

    setup: Setup
    problem: BlockProblem
    judged: Judged
    cuts: list[tuple[int, int]]
    seconds: float


def set_up_in_slices(
    options: FitOptions,
    common: CommonOptions,
    slices: TrajectorySlices,
    device: torch.device,
    deadline: float,
    known: StepZero | None,
    report: Reporter,
    team: Team,
) -> SlicedSetup:
    """Step 0 of all slices, the problem in blocks, and a new model.

    Parameters
    ----------
    deadline : float
        Reading of `time.perf_counter` after which the search for order and elements takes its best so far.
    known : StepZero, optional
        Of the run that goes on: its order, elements and noise.

    Raises
    ------
    DataError, UsageError
    """
    shell = slices.shell
    choice = choose_model(options, shell)
    layout = lay_out(options, choice, shell)
    seen = observed_names(shell.output_names, options.observe)
    space = state_space(choice.name, seen, shell.inputs.names)._replace(states=layout.states)
    model = new_model(choice, space, common).to(device)
    cuts = slices.cuts(team.size, team.rank)
    spans = slices.spans(cuts)
    first = _first_trajectories(slices, spans, team)
    found = _discretisation(options, common, first, layout, choice, deadline, known, team)
    sums = StepZeroSums(
        layout,
        second_order_of(choice),
        found,
        options.x0 != "free",
        stream(common.seed, STREAM_HELD_OUT),
        _means(first),
    )
    require_room(slices, spans, found, layout, len(space.inputs), common, team)
    passed = _Pass(spans, found, layout.states, space.inputs, model.constants)
    begun = time.perf_counter()
    for number, (begin, end) in enumerate(cuts, 1):
        data = slices.read(begin, end)
        require_moderate(data)
        passed.take(data, sums)
        report.progress(Tick("step 0", number, len(cuts)))
    seconds = time.perf_counter() - begun
    judged = sums.total(team)
    _require_values(slices, judged)
    problem = passed.problem(layout, device, team)
    if options.scaled:
        problem = problem.with_scale(team)
    wanted = min(max(NORMALISING_POINTS - team.before(problem.points), 0), problem.points)
    model.fit_normalization(NodeData(*(team.gather(column) for column in problem.node_data(wanted))))
    zero = _stand_in(problem, judged, found, options.scaled, team)
    trained = TrainedModel(
        model,
        choice.tree,
        layout,
        space.inputs,
        {name: unit for name, unit in {**shell.units, **shell.inputs.units}.items() if unit},
        shell.time_unit,
        {} if shell.inputs.sampled is None else dict(zip(*hold_of(shell), strict=True)),
        dict(zip(model.constants, passed.mean_constants(team), strict=True)),
        *_statistics(problem, team),
        choice.source,
    )
    return SlicedSetup(Setup(choice, layout, zero, problem.block(slice(0, 1)), trained), problem, judged, cuts, seconds)


def _first_trajectories(slices: TrajectorySlices, spans: FloatArray, team: Team) -> Trajectories:
    """What the search for a discretisation looks at, on every process: the first ones, the longest, and the largest."""
    count = int(np.searchsorted(np.cumsum(slices.row_size), SELECTION_SAMPLES, side="right")) + 1
    own = float(np.nanmax(spans, initial=0.0))
    (longest,) = team.largest(own)
    before = team.before(spans.size)
    place = before + int(np.argmax(spans == longest)) if own == longest else len(slices)
    place = -int(team.largest(-float(place))[0])
    extra = np.array([place, int(np.argmax(slices.row_size))])
    first = slices.first(count)
    return joined([first, *(slices.at(np.array([b])) for b in np.unique(extra[extra >= len(first)]))])


def _discretisation(
    options: FitOptions,
    common: CommonOptions,
    first: Trajectories,
    layout: StateLayout,
    choice: ModelChoice,
    deadline: float,
    known: StepZero | None,
    team: Team,
) -> Discretisation:
    """Order and elements: given, those of the run that goes on, or searched for by the lead, whose clock counts."""
    if known is not None:
        mesh = known.mesh
        longest = float((first.end - first.start).max())
        return Discretisation(mesh.basis.order, mesh.elements_of_longest, longest, known.noise, known.threshold)
    found = discretise(
        first,
        layout,
        second_order_of(choice),
        order=None if options.order == "auto" else options.order,
        elements=None if options.elements == "auto" else options.elements,
        known_start=options.x0 != "free",
        seed=stream(common.seed, STREAM_HELD_OUT),
        deadline=deadline,
    )
    if math.isinf(deadline):
        return found
    floor = None if found.noise_floor is None else found.noise_floor.tolist()
    order, elements, noise, floor = team.from_lead((found.order, found.elements, found.noise.tolist(), floor))
    floor = None if floor is None else np.array(floor)
    return Discretisation(order, elements, found.longest, np.array(noise), floor)


def _means(data: Trajectories) -> FloatArray:
    """A value near the mean of each output, from which deviations are summed."""
    known = np.isfinite(data.outputs)
    means: FloatArray = np.where(known, data.outputs, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return means


def require_room(
    slices: TrajectorySlices,
    spans: FloatArray,
    found: Discretisation,
    layout: StateLayout,
    inputs: int,
    common: CommonOptions,
    team: Team,
) -> None:
    """Refuse what cannot be kept of all trajectories: x and u at the nodes of this process.

    Raises
    ------
    UsageError
    """
    points = float(_elements(spans, found).sum()) * (found.order + 1)
    size = memory.NUMBER * (points * (len(layout.states) + inputs) + 12.0 * spans.size)
    memory.require_share(f"training on {len(slices)} trajectories", size + WORKING_ROOM, common, team.place)


def _elements(spans: FloatArray, found: Discretisation) -> NDArray[np.int64]:
    """Elements of each trajectory, as `build_mesh` cuts them."""
    return np.maximum(1, np.rint(found.elements * np.nan_to_num(spans) / found.longest)).astype(np.int64)


class _Pass:
    """What a pass over this process's slices keeps."""

    def __init__(
        self,
        spans: FloatArray,
        found: Discretisation,
        states: tuple[str, ...],
        inputs: tuple[str, ...],
        constants: tuple[str, ...],
    ) -> None:
        self.found, self.inputs, self.constants = found, inputs, constants
        count, P = int(_elements(spans, found).sum()), found.order + 1
        self.nodes = np.empty((count, P, len(states)))
        self.u = np.empty((count, P, len(inputs)))
        self.determined = np.empty(count, bool)
        self.boundaries: list[FloatArray] = []
        self.counts: list[NDArray[np.int64]] = []
        self.known: list[FloatArray] = []
        self.done = 0

    def take(self, data: Trajectories, sums: StepZeroSums) -> None:
        """Fit a slice, and keep it."""
        series = sums.add(data)
        part = slice(self.done, self.done + series.mesh.elements)
        columns = [data.inputs.names.index(name) for name in self.inputs]
        self.nodes[part], self.determined[part] = series.nodes, series.determined
        self.u[part] = inputs_at_nodes(series.mesh, data.inputs)[:, :, columns]
        self.boundaries.append(series.mesh.boundaries)
        self.counts.append(np.diff(series.mesh.first_element))
        known = known_constants(data, self.constants)
        one = self.known[0][:1] if self.known else known[:1]
        alike = all(len(earlier) == 1 for earlier in self.known) and bool((known == one).all())
        self.known.append(known[:1] if alike else known)
        if not alike:  # those before had one row for all of theirs
            self.known = [
                np.repeat(one, len(count), 0) if len(rows) == 1 else rows
                for rows, count in zip(self.known, self.counts, strict=True)
            ]
        self.done = part.stop

    def problem(self, layout: StateLayout, device: torch.device, team: Team) -> BlockProblem:
        """All of it as a problem in blocks; elements in gaps do not count, unless they are most of all."""
        mesh = mesh_between(np.concatenate(self.boundaries), np.concatenate(self.counts), self.found.order)
        known, whole = team.total(float(self.determined.sum()), float(mesh.elements))
        counts = self.determined | (known < 0.5 * whole)
        alike = all(len(rows) == 1 for rows in self.known)
        constants = self.known[0] if alike else np.concatenate(self.known)
        scale = np.ones(len(layout.states))
        problem = BlockProblem(layout, mesh, self.nodes, self.u, constants, np.flatnonzero(counts), 1.0, scale, device)
        return problem.of(problem.elements, team)

    def mean_constants(self, team: Team) -> list[float]:
        """Mean of each known constant over all trajectories."""
        weights = [float(len(count)) / len(rows) for rows, count in zip(self.known, self.counts, strict=True)]
        sums = sum(weight * rows.sum(0) for weight, rows in zip(weights, self.known, strict=True))
        *totals, count = team.total(*np.atleast_1d(sums).tolist(), float(sum(len(count) for count in self.counts)))
        if all(len(rows) == 1 for rows in self.known):
            return [float(value) for value in self.known[0][0]]
        return [total / count for total in totals]


def _require_values(slices: TrajectorySlices, judged: Judged) -> None:
    """Every channel is measured somewhere."""
    for name, count in zip(slices.shell.output_names, judged.values, strict=True):
        if count == 0:
            raise DataError(
                f"the channel '{name}' has no measured value in the trajectories to train on.",
                "Leave it out on import, or train on trajectories that measure it.",
            )


def _statistics(problem: BlockProblem, team: Team) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, range and mean start of each state, as `trained_model.training_statistics`."""
    nodes, starts = problem.nodes, problem.nodes[problem.mesh.first_element[:-1], 0]
    n = nodes.shape[2]
    extremes = team.largest(*(-nodes.min((0, 1))).tolist(), *nodes.max((0, 1)).tolist())
    low, high = -np.array(extremes[:n]), np.array(extremes[n:])
    sums = team.total(*nodes.sum((0, 1)).tolist(), *starts.sum(0).tolist(), nodes[:, :, 0].size, len(starts))
    mean, start = np.array(sums[:n]) / sums[2 * n], np.array(sums[n : 2 * n]) / sums[2 * n + 1]
    return mean, extent_of(low, high), start


def _stand_in(problem: BlockProblem, judged: Judged, found: Discretisation, scaled: bool, team: Team) -> StepZero:
    """Step 0 of one trajectory of mean length, without values: order, elements and errors for reports and states."""
    width, elements = team.total(float(problem.mesh.width.sum()), float(problem.mesh.elements))
    undetermined, _ = team.total(float(problem.mesh.elements - problem.elements.size), 0.0)
    E = found.elements
    mesh: Mesh = mesh_between(width / elements * np.arange(E + 1.0), np.array([E]), found.order)
    counts = np.ones(E, bool)
    zero = StepZero(
        mesh,
        np.zeros((E, found.order + 1, problem.nodes.shape[2])),
        counts,
        counts,
        judged.misfit(scaled=scaled),
        judged.error,
        found.noise,
        judged.rate_variance,
        judged.condition,
        judged.penalty,
        found.noise_floor,
    )
    return zero if undetermined == 0 else replace(zero, determined=counts & False)
