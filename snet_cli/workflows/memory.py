"""How much memory a run will need, judged before anything large is allocated, and how much there is.

The system lets a process ask for more than it has, and kills it when it takes it; so what a run will take is estimated
from its sizes and refused, with the figure, where it cannot fit. The constants below were fitted to measured peaks
(vehicle and mlp, 3 000 to 50 000 points); they are right to about a factor of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import Place
from snet_cli.errors import UsageError
from snet_cli.models.base import StateSpace
from snet_cli.models.options import ModelOptions
from snet_cli.training.arrow import BATCH_BYTES, CROSS_COPIES
from snet_cli.training.lbfgs import PAIRS
from snet_cli.training.options import FitOptions
from snet_cli.workflows.memory_limits import FEWER, free_memory, left, limits, require_memory, resident, size_text

NUMBER = 8
"""Bytes of a float64."""

ACTIVATION_COPIES, CHANNEL_COPIES = 6, 40
"""Numbers kept per point while R and its gradient are computed: for each unit of the network, for each channel."""

BLOCK_COPIES, LARGEST_BATCH = 3, float(BATCH_BYTES * CROSS_COPIES)
"""Blocks (P n, P n) per element where trajectories are moved by Gauss-Newton, and the most bytes of them at a time."""

SERIES_COPIES = 3
"""Blocks (P, P) kept per element by step 0."""

SIMULATED_COPIES, FORECAST_COPIES = 13, 22
"""Numbers kept per sample and state by `simulate` and by `evaluate`: samples, truth, stages, the file's image."""

ONE = Place()
"""A process that is alone."""

LAUNCHER = 250e6
"""Bytes of `torchrun`, which imports torch."""


def share(common: CommonOptions, place: Place) -> float:
    """Bytes that one of the processes of this machine may take in all, what it has included.

    `--max-memory` is that of all processes together, their launcher included: they share the machine.
    """
    limit = min(limits(common.max_memory))[0]
    return limit if place.local_size == 1 else max(limit - LAUNCHER, 0.0) / place.local_size


def require_share(what: str, needed: float, common: CommonOptions, place: Place) -> None:
    """Refuse work that cannot fit into the part of the memory that one of several processes has.

    Raises
    ------
    UsageError
    """
    free, reason = min(limits(common.max_memory))
    if needed > share(common, place):
        each = f" in each of {place.local_size} processes" if place.local_size > 1 else ""
        raise UsageError(
            f"{what} needs about {size_text(needed)} of memory{each}, more than the {size_text(free)} {reason}.", FEWER
        )


# Estimates, in bytes


def of_network(options: ModelOptions, space: StateSpace, theta_step: str) -> float:
    """Weights, and what the optimiser remembers of them."""
    widths = _widths(options, space)
    weights = sum((a + 1) * b for a, b in pairwise(widths))
    vectors = 2 * PAIRS if theta_step == "lbfgs" else 2
    return NUMBER * weights * (vectors + 6.0)


def of_training(options: FitOptions, model: ModelOptions, space: StateSpace, elements: int, order: int) -> float:
    """The relaxed problem on all points, its gradient, and the blocks of the x-step.

    Parameters
    ----------
    elements : int
        N, of all trajectories together.
    """
    points = elements * (order + 1.0)
    per_point = ACTIVATION_COPIES * sum(_widths(model, space)[1:])
    per_point += CHANNEL_COPIES * (len(space.states) + len(space.inputs))
    moves = options.method in ("alpha", "joint") and options.state_step.name == "gauss-newton"
    blocks = NUMBER * BLOCK_COPIES * elements * ((order + 1.0) * len(space.states)) ** 2 if moves else 0.0
    return NUMBER * points * per_point + min(blocks, LARGEST_BATCH) + of_network(model, space, options.theta_step.name)


def of_step_zero(options: FitOptions, data: Trajectories) -> float:
    """Step 0 where order or elements are given; `auto` is bounded by the samples."""
    order = 1 if options.order == "auto" else options.order
    longest = 1 if options.elements == "auto" else options.elements
    span = np.asarray(data.end - data.start)
    share = span / max(float(span.max(initial=0.0)), np.finfo(np.float64).tiny)
    elements = float(np.maximum(np.ceil(longest * share), 1.0).sum())
    series = SERIES_COPIES * (order + 1.0) ** 2 + CHANNEL_COPIES * (order + 1.0) * len(data.output_names)
    return NUMBER * (elements * series + data.time.size * (order + 1.0))


def of_simulation(trajectories: int, samples: int, states: int) -> float:
    """Samples and truth of all trajectories, and the file's image."""
    return float(NUMBER * SIMULATED_COPIES) * trajectories * samples * states


def of_forecasts(times: int, states: int) -> float:
    """Forecasts at so many times, of all windows together."""
    return float(NUMBER * FORECAST_COPIES) * times * states


def _widths(options: ModelOptions, space: StateSpace) -> Sequence[int]:
    """Widths of the layers: what goes in, hidden ones, and what comes out; of a user's model the ends."""
    hidden = getattr(options, "hidden", [])
    return [len(space.states) + len(space.inputs), *hidden, len(space.states)]


__all__ = ["free_memory", "left", "require_memory", "resident"]
