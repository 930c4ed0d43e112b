"""Set-up of a fit whose data is larger than the memory: one pass over the file, a slice at a time.

Every process passes over its own range and keeps x and u at its nodes. What the model and the report need of the whole
(scales, statistics, errors of step 0) are sums and extremes over slices and processes.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_slices import TrajectorySlices, joined
from snet_cli.distributed import Team
from snet_cli.errors import DataError, UsageError
from snet_cli.models.base import NodeData
from snet_cli.models.mlp import Mlp
from snet_cli.spectral.fitting import channel_scales
from snet_cli.spectral.mesh import Mesh, mesh_between
from snet_cli.spectral.selection import SELECTION_SAMPLES
from snet_cli.training.alpha_mesh import refine_for_alpha
from snet_cli.training.arrow import MOST_WEIGHTS, SCHUR_COPIES
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.method_choice import MethodChoice, predicts_exactly, why_not_joint
from snet_cli.training.options import FitOptions
from snet_cli.training.starts import FIRST_LAG, free_states
from snet_cli.training.state_layout import StateLayout
from snet_cli.training.step_zero import StepZero
from snet_cli.training.step_zero_slices import Discretisation, Judged, discretise
from snet_cli.workflows import memory
from snet_cli.workflows.memory_limits import FEWER
from snet_cli.workflows.node_pass import elements_of
from snet_cli.workflows.reporter import Reporter, Tick
from snet_cli.workflows.slices_frame import Frame, make_frame
from snet_cli.workflows.training_setup import (
    STREAM_HELD_OUT,
    ModelChoice,
    Setup,
    fit_step_zero,
    require_moderate,
    second_order_of,
    stream,
)

FloatArray = NDArray[np.float64]

NORMALISING_POINTS = 200_000
"""Points from which a generic network's normalisation is fitted: the first ones."""

WORKING_ROOM = 250e6
"""Bytes that are left for what a slice or a block takes while it is worked on."""

LEAST_BATCH = 50e6
"""Bytes for the arrays of a batch of joint, and as many again for eliminations that are kept, at least."""

MOVING = ("alpha", "joint")
"""Methods that move X."""

TRIALS, STATE_COPIES = 2, 4
"""Copies of X beside step 0's where it moves: where it is, and a trial. Copies of all processes' X where a state is
written: collected, copied, in the file's image."""


class Counts(NamedTuple):
    """Numbers of the whole.

    Attributes
    ----------
    trajectories, all_starts, free_starts : int
        Trajectories, their initial states, and those of these that the file does not know.
    samples_per_unknown, condition : float
        How densely the samples of the sparsest trajectory and channel determine step 0 on the mesh that it chose
        itself, and its condition.
    """

    trajectories: int
    all_starts: int
    free_starts: int
    samples_per_unknown: float
    condition: float


@dataclass(frozen=True)
class SlicedSetup:
    """Everything before the first iteration.

    Attributes
    ----------
    method : MethodChoice
        One that moves X has every element count, on the finer mesh that α-SNet and joint take.
    setup : Setup
        As any fit has it, but that its problem is one block, and its step 0 a trajectory of mean length without
        values, which stands for all.
    problem : BlockProblem
        This process's part of the whole.
    judged : Judged
        Step 0 of the whole in numbers.
    cuts : list of (int, int)
        Ranges of the file that this process reads.
    bounds : tuple of int
        First trajectory of each range among those of this process, and their number.
    counts : Counts
    frame : Frame
        What is the same for all slices.
    found : Discretisation
    first : Trajectories
        The first ones, at which the search for that mesh looked.
    seconds : float
        Time of the pass over the ranges.
    """

    method: MethodChoice
    setup: Setup
    problem: BlockProblem
    judged: Judged
    cuts: list[tuple[int, int]]
    bounds: tuple[int, ...]
    counts: Counts
    frame: Frame
    found: Discretisation
    first: Trajectories
    seconds: float

    @property
    def exact(self) -> bool:
        """Whether step 0 predicts held-out samples as well as the truth would."""
        return predicts_exactly(self.setup.step_zero.noise, self.judged.spread)


def set_up_in_slices(
    options: FitOptions,
    common: CommonOptions,
    slices: TrajectorySlices,
    device: torch.device,
    deadline: float,
    known: StepZero | None,
    report: Reporter,
    team: Team,
    more: float = 1.0,
) -> SlicedSetup:
    """Step 0 of all slices, the problem in blocks, and a new model.

    Parameters
    ----------
    deadline : float
        Reading of `time.perf_counter` after which the search for order and elements takes its best so far.
    known : StepZero, optional
        Of the run that goes on: its order, elements and noise.
    more : float
        How many times as many trajectories there are in truth: a plan tries some of them.

    Raises
    ------
    DataError, UsageError
    """
    frame = make_frame(options, common, slices, device, team)
    cuts = slices.cuts(team.size, team.rank)
    spans = slices.spans(cuts)
    first = _first_trajectories(slices, spans, team)
    coarse = found = _discretisation(options, common, first, frame.layout, frame.choice, deadline, known, team)
    fine = coarse if known is not None else _refined(options, coarse, first, int(slices.row_size.max()))
    method = _method(frame, fine, spans, more)
    frame = replace(frame, moving=method.method in MOVING)
    if frame.moving:
        _require_known_states(method.method, frame.layout)
        found = fine
        if found.threshold is not None and known is None:
            found = replace(found, threshold=frame.threshold_on(found, first))
    require_room(slices, spans, found, frame.layout, len(frame.inputs), common, team, moving=frame.moving)
    if isinstance(frame.model, Mlp) and frame.model.lags:
        frame.model.first_lag.fill_(FIRST_LAG * first.sampling_interval())
    sums, passed = frame.sums(found, first), frame.node_pass(spans, found)
    begun = time.perf_counter()
    for number, (begin, end) in enumerate(cuts, 1):
        data = slices.read(begin, end)
        require_moderate(data)
        passed.take(data, sums)
        report.progress(Tick("step 0", number, len(cuts)))
    seconds = time.perf_counter() - begun
    judged = sums.total(team)
    _require_values(slices, judged)
    problem = passed.problem(frame.layout, device, team, everywhere=frame.moving)
    if options.scaled:
        problem = problem.with_scale(team)
    condition = judged.condition
    if (found.order, found.elements) == (coarse.order, coarse.elements):
        wanted = min(max(NORMALISING_POINTS - team.before(problem.points), 0), problem.points)
        points = NodeData(*(team.gather(column) for column in problem.node_data(wanted)))
    else:
        own, condition = frame.step_zero_of(first, coarse, device, everywhere=False)
        points = own.node_data(min(NORMALISING_POINTS, own.points))
    frame.model.fit_normalization(points)
    zero = _stand_in(problem, judged, found, options.scaled, team)
    setup = Setup(frame.choice, frame.layout, zero, problem.block(slice(0, 1)), frame.trained(passed, problem))
    trajectories, free = (int(count) for count in team.total(float(problem.mesh.trajectories), float(passed.free)))
    starts = trajectories * (len(frame.layout.states) - len(frame.layout.lags))
    counts = Counts(trajectories, starts, free, passed.least_samples(spans, coarse, team), condition)
    return SlicedSetup(method, setup, problem, judged, cuts, passed.bounds, counts, frame, found, first, seconds)


def _method(frame: Frame, fine: Discretisation, spans: FloatArray, more: float) -> MethodChoice:
    """The method that the options name; `auto` is joint where nothing keeps it from being used, else δ-SNet.

    On the fixed mesh of a run in slices joint still is the better one: on 3000 vehicles of 25 samples with noise 0.05
    (hidden 16, two minutes) its mean squared error over ten horizons was 0.015, that of δ-SNet, which had converged by
    then, 0.055.
    """
    options, common, team = frame.options, frame.common, frame.team
    if options.method != "auto":
        return MethodChoice(options.method, "as asked for.")
    n, weights = len(frame.layout.states), sum(p.numel() for p in frame.model.parameters())
    own = more * float(elements_of(spans, fine).sum()) * (fine.order + 1)
    (points,) = team.total(own)
    size = memory.NUMBER * own * n
    needed = size + memory.NUMBER * own * len(frame.inputs) + bytes_of_moves(size, team) + bytes_of_joint(weights)
    fits = not team.any(memory.resident() + needed > memory.share(common, team.place))[0]
    obstacle = why_not_joint(frame.layout, weights, int(points) * n, fits=fits and weights <= MOST_WEIGHTS)
    if options.preset == "paper" or frame.choice.source is not None:
        obstacle = "the paper has two methods of its own" if options.preset == "paper" else "the model is a module"
    if obstacle is None:
        return MethodChoice("joint", f"the Schur complement of its {weights} weights fits the memory.")
    return MethodChoice("delta", f"the data is larger than memory. (Not joint: {obstacle}.)")


def bytes_of_joint(weights: int) -> float:
    """Bytes that joint takes at least beside X: what a slice takes, S, and two batches."""
    return WORKING_ROOM + 2.0 * (LEAST_BATCH + SCHUR_COPIES * memory.NUMBER * min(weights, MOST_WEIGHTS) ** 2)


def _require_known_states(method: str, layout: StateLayout) -> None:
    """Refuse hidden states that training alone determines: their starts are compared on all trajectories at once.

    Raises
    ------
    UsageError
    """
    if hidden := [layout.states[i] for i in free_states(layout)]:
        raise UsageError(
            f"method {method} with the hidden state '{hidden[0]}' needs all trajectories in memory at once, "
            "and they do not fit.",
            FEWER,
        )


def _refined(options: FitOptions, found: Discretisation, first: Trajectories, samples: int) -> Discretisation:
    """As fine as the samples allow where X moves, as `build_alpha.refined`; the first trajectories tell the noise."""
    exact = predicts_exactly(found.noise, channel_scales(first.outputs)[1])
    order, elements = refine_for_alpha(found.order, found.elements, samples, exact=exact)
    return replace(
        found,
        order=order if options.order == "auto" else found.order,
        elements=elements if options.elements == "auto" else found.elements,
    )


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
    pairs = second_order_of(choice)
    if known is not None:
        return Discretisation.of(known, first, layout, pairs)
    if options.loss == "huber":
        zero = fit_step_zero(options, common, first, choice, layout, deadline)
        found = Discretisation.of(zero, first, layout, pairs)
    else:
        found = discretise(
            first,
            layout,
            pairs,
            order=None if options.order == "auto" else options.order,
            elements=None if options.elements == "auto" else options.elements,
            known_start=options.x0 != "free",
            seed=stream(common.seed, STREAM_HELD_OUT),
            deadline=deadline,
        )
    if math.isinf(deadline):
        return found
    own = (found.noise, found.noise_floor, found.threshold)
    order, elements = team.from_lead((found.order, found.elements))
    levels = team.from_lead([None if part is None else part.tolist() for part in own])
    noise, floor, threshold = (None if part is None else np.array(part) for part in levels)
    assert noise is not None
    return Discretisation(order, elements, found.longest, noise, floor, threshold)


def require_room(
    slices: TrajectorySlices,
    spans: FloatArray,
    found: Discretisation,
    layout: StateLayout,
    inputs: int,
    common: CommonOptions,
    team: Team,
    *,
    moving: bool = False,
) -> None:
    """Refuse what cannot be kept of all trajectories: x and u at the nodes of this process, and x of all that move.

    Raises
    ------
    UsageError
    """
    points = float(elements_of(spans, found).sum()) * (found.order + 1)
    size = memory.NUMBER * (points * (len(layout.states) + inputs) + 12.0 * spans.size)
    if moving:
        size += bytes_of_moves(memory.NUMBER * points * len(layout.states), team)
    memory.require_share(f"training on {len(slices)} trajectories", size + WORKING_ROOM, common, team.place)


def bytes_of_moves(size: float, team: Team) -> float:
    """Bytes that X takes beside step 0's where it moves, from its bytes on this process."""
    return TRIALS * size + STATE_COPIES * (team.total(size)[0] if team.size > 1 else size)


def _require_values(slices: TrajectorySlices, judged: Judged) -> None:
    """Every channel is measured somewhere."""
    for name, count in zip(slices.shell.output_names, judged.values, strict=True):
        if count == 0:
            raise DataError(
                f"the channel '{name}' has no measured value in the trajectories to train on.",
                "Leave it out on import, or train on trajectories that measure it.",
            )


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
        found.threshold,
    )
    return zero if undetermined == 0 else replace(zero, determined=counts & False)
