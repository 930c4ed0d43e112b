"""What every method on data that is larger than the memory is built from: memory, scales and counts of the whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.training.gamma import SampleCounts
from snet_cli.training.relaxed_data import known_noise, scale_of_misfit
from snet_cli.training.relaxed_score import RelaxedRule
from snet_cli.training.relaxed_slices import RelaxedSlices
from snet_cli.workflows import memory
from snet_cli.workflows.slices_setup import WORKING_ROOM, SlicedSetup
from snet_cli.workflows.training_plan import Ingredients

FloatArray = NDArray[np.float64]


def room_left(parts: Ingredients) -> float:
    """Bytes that may be kept between two evaluations: what this process's share of the memory has left."""
    left = memory.left(memory.share(parts.common, parts.team.place), parts.common)
    return max(0.0, left - WORKING_ROOM)


def rule_in_slices(
    parts: Ingredients, sliced: SlicedSetup, gamma: float | None = None, *, free: bool = False
) -> RelaxedRule:
    """How held-out trajectories are scored, in training's scales; as `training_plan.relaxed_rule`."""
    options, setup = parts.options, parts.setup
    stated = known_noise(parts.data.train.noise_std, setup.layout.outputs)
    return RelaxedRule(
        setup.step_zero.mesh.basis.order,
        float(setup.step_zero.mesh.width.mean()),
        tuple(sliced.problem.scale.tolist()),
        tuple(channels_in_slices(parts, sliced, stated).tolist()),
        gamma,
        not (free or options.x0 == "free"),
        options.loss,
    )


def channels_in_slices(parts: Ingredients, sliced: SlicedSetup, noise: FloatArray | None) -> FloatArray:
    """C of L, shape (d,), as `relaxed.channel_scale`."""
    spread = sliced.judged.spread
    return scale_of_misfit(spread, noise) if parts.options.scaled else np.ones_like(spread)


def counts_in_slices(sliced: SlicedSetup, channels: FloatArray, *, free: bool) -> SampleCounts:
    """What noise leaves in L depends on this.

    Parameters
    ----------
    free : bool
        Whether x(t0) is, also where it is known.
    """
    times = max(sliced.judged.times, 1)
    starts = sliced.counts.all_starts if free else sliced.counts.free_starts
    return SampleCounts(sliced.judged.values.astype(np.int64), 1.0 / (channels**2 * times), times, starts)


def relaxed_slices(sliced: SlicedSetup, slices: TrajectorySlices, channels: FloatArray, *, free: bool) -> RelaxedSlices:
    """The relaxed problem of this process."""
    cuts = sliced.cuts
    return RelaxedSlices(
        sliced.problem,
        sliced.bounds,
        lambda number: slices.read(*cuts[number]),
        channels,
        free,
        float(max(sliced.judged.times, 1)),
    )
