"""Trajectories for a solver that knows one time vector per batch: unions of sample times, masks, and where steps end.

torchdiffeq integrates a batch on common times. Trajectories with unlike times therefore run on the union of their
times, and a mask says which state is compared with which sample. Time counts from each trajectory's own start. A union
of more than `UNION_LIMIT` times is divided into groups of trajectories, those with equal clocks together.

Steps must end where an input jumps, and where a trajectory ends before the others of its batch (it then stands still:
what a model does behind the data must not stop the batch). These times are the *edges*; u between two edges is smooth,
and asked at an edge it takes the value of the side that the step lies on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.constants import known_constants
from snet_cli.data.signals import SampledInputs
from snet_cli.data.trajectories import Trajectories, ragged_rows
from snet_cli.errors import UsageError
from snet_cli.forecasting.flow import choose_inputs
from snet_cli.forecasting.initial_state import start_from_outputs
from snet_cli.integration import InputSignal
from snet_cli.integration.inputs import find_breaks
from snet_cli.spectral.fitting import channel_scales
from snet_cli.training.state_layout import StateLayout

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

UNION_LIMIT = 2000
"""Times in one batch, at most, unless a single trajectory has more."""


@dataclass(frozen=True)
class BatchInputs:
    """u(t) of the B trajectories of one batch, smooth between edges.

    Attributes
    ----------
    signal : InputSignal
    start : Tensor, shape (B,)
        Time zero of each trajectory on the clock of its inputs.
    edges : tuple of float
        Ascending, inside the batch's horizon.
    last_interval : Tensor of int64, shape (B,), or None
        Number of the interval between edges in which each trajectory ends; None where all end together.
    margin : float
        Times closer to an edge than this are asked for at this distance: the edges of two trajectories are equal up
        to rounding only.
    """

    signal: InputSignal
    start: Tensor
    edges: tuple[float, ...]
    last_interval: Tensor | None
    margin: float

    def interval(self, t: float, *, backward: bool = False) -> int:
        """Number of the interval between edges that a step from t lies in, forward or backward in time."""
        return bisect_left(self.edges, t) if backward else bisect_right(self.edges, t)

    def values(self, t: Tensor, interval: int) -> Tensor:
        """U and known constants, shape (B, m + c), at time t () on the side of this interval."""
        if self.edges:
            left = self.edges[interval - 1] + self.margin if interval > 0 else -torch.inf
            right = self.edges[interval] - self.margin if interval < len(self.edges) else torch.inf
            t = t.clamp(left, right)
        return self.signal.values(self.start + t)

    def running(self, interval: int) -> Tensor | None:
        """1 for trajectories that have not ended yet, else 0, shape (B, 1); None where all still run."""
        if self.last_interval is None:
            return None
        return (self.last_interval >= interval).to(self.start.dtype)[:, None]


@dataclass(frozen=True)
class ShootingBatch:
    """Trajectories that are integrated together, and what the loss compares.

    Attributes
    ----------
    times : Tensor, shape (T,)
        Union of the sample times since each trajectory's start; the first is 0.
    grid : Tensor, shape (G,)
        `times` and edges: where the steps of a fixed-step method end.
    x0 : Tensor, shape (B, n)
    inputs : BatchInputs
    sample_time, sample_owner : Tensor of int64, shape (obs,)
        Place in `times`, and trajectory, of each sample.
    target : Tensor, shape (obs, d)
        Measured values; 0 where there is none.
    weight : Tensor, shape (obs, d)
        1 / c² / (number of sample times with any value, over all batches); 0 where there is no value.
    """

    times: Tensor
    grid: Tensor
    x0: Tensor
    inputs: BatchInputs
    sample_time: Tensor
    sample_owner: Tensor
    target: Tensor
    weight: Tensor

    def misfit(self, states: Tensor, observation: Tensor) -> Tensor:
        """The share of L that this batch has, a scalar.

        Parameters
        ----------
        states : Tensor, shape (T, B, n)
        observation : Tensor, shape (d, n)
            C of y = C x.
        """
        predicted = states[self.sample_time, self.sample_owner] @ observation.T  # (obs, d)
        return (self.weight * (predicted - self.target) ** 2).sum()


def batch_trajectories(
    data: Trajectories,
    layout: StateLayout,
    input_names: tuple[str, ...],
    constant_names: tuple[str, ...],
    *,
    scaled: bool,
    known_start: bool = True,
    start: FloatArray | None = None,
    scale: FloatArray | None = None,
    device: torch.device | str = "cpu",
    union_limit: int = UNION_LIMIT,
) -> tuple[ShootingBatch, ...]:
    """Lay out a data set for a solver with one time vector per batch.

    Parameters
    ----------
    data : Trajectories
    layout : StateLayout
    input_names, constant_names : tuple of str
        What the model expects as u, in this order.
    scaled : bool
        Whether c of the loss is the channel's standard deviation, else 1 (the paper's presets).
    known_start : bool
        Start from the file's x0 where it is known.
    start : ndarray, shape (n,), optional
        Where a state starts that is neither known nor measured; 0 by default.
    scale : ndarray, shape (d,), optional
        c itself, in place of `scaled`: held-out data is measured by the training data's.
    device : torch.device or str
    union_limit : int

    Raises
    ------
    UsageError
        If the data lacks an input of the model.
    DataError
        If a known constant is found nowhere.
    """
    missing = [name for name in input_names if name not in data.inputs.names]
    if missing:
        raise UsageError(
            f"the model needs the input '{missing[0]}'; the data has {', '.join(data.inputs.names) or 'none'}.",
            "Name it on import (--inputs a=b), or choose --model mlp.",
        )
    inputs = choose_inputs(data.inputs, input_names)
    constants = torch.as_tensor(known_constants(data, constant_names)) if constant_names else None
    mask = np.isfinite(data.outputs)
    c = scale if scale is not None else channel_scales(data.outputs)[1] if scaled else np.ones(data.outputs.shape[1])
    whole = _DataSet(
        data,
        InputSignal.from_inputs(inputs, len(data), constants, device),
        _Clocks.of(data, _jumps(data, inputs.sampled)),
        initial_states(data, layout, known_start=known_start, start=start),
        np.where(mask, data.outputs, 0.0),
        mask / c**2 / max(int(mask.any(1).sum()), 1),
    )
    return tuple(whole.batch(group, device) for group in whole.clocks.groups(union_limit))


def initial_states(
    data: Trajectories, layout: StateLayout, *, known_start: bool = True, start: FloatArray | None = None
) -> FloatArray:
    """x(t0), shape (B, n): the file's x0 where known, else what the first measured values tell, else `start` (or 0)."""
    owner = data.trajectory_of_row()
    values = np.full((len(data), len(layout.outputs)), np.nan)
    for output, column in enumerate(data.outputs.T):
        rows = np.flatnonzero(np.isfinite(column))
        with_value, first = np.unique(owner[rows], return_index=True)
        values[with_value, output] = column[rows[first]]
    n = len(layout.states)
    x0 = start_from_outputs(layout.observation, values, np.zeros(n) if start is None else start, np.ones(n))
    if known_start and data.x0 is not None:
        for state, name in enumerate(layout.states):
            if name in data.state_names:
                known = data.x0[:, data.state_names.index(name)]
                x0[:, state] = np.where(np.isfinite(known), known, x0[:, state])
    return x0


@dataclass(frozen=True)
class _Union:
    """Common times of a group, edges, their union, and the interval in which each trajectory ends."""

    times: FloatArray
    edges: FloatArray
    grid: FloatArray
    last_interval: IntArray | None


@dataclass(frozen=True)
class _Clocks:
    """Sample times and input jumps since each trajectory's start.

    Attributes
    ----------
    row_size : ndarray, shape (B,)
    time : ndarray, shape (obs,)
    jumps : list of ndarray
        B arrays.
    end : ndarray, shape (B,)
    tolerance : float
        Times that differ by less are the same: what rounding does to absolute times.
    """

    row_size: IntArray
    time: FloatArray
    jumps: list[FloatArray]
    end: FloatArray
    tolerance: float

    @classmethod
    def of(cls, data: Trajectories, jumps: list[FloatArray]) -> _Clocks:
        time = data.time - data.start[data.trajectory_of_row()]
        end = data.end - data.start
        largest = max(float(np.max(np.abs(data.time), initial=0.0)), float(np.max(end, initial=0.0)))
        tolerance = max(8.0 * float(np.spacing(largest)), 1e-12 * float(np.max(end, initial=0.0)))
        return cls(data.row_size, time, jumps, end, tolerance)

    def groups(self, limit: int) -> Sequence[IntArray]:
        """Trajectories that run together: one group if the union stays within the limit."""
        everyone = np.arange(self.row_size.size)
        if self._ticks(everyone).size <= limit:
            return [everyone]
        own = [self._ticks(everyone[b : b + 1]) for b in everyone]
        groups: list[list[int]] = []
        union = np.zeros(0)
        for b in sorted(everyone.tolist(), key=lambda b: (own[b].size, own[b].tobytes())):
            joined = _distinct(np.concatenate([union, own[b]]), self.tolerance)
            if groups and (joined.size <= limit or joined.size == union.size):
                groups[-1].append(b)
                union = joined
            else:
                groups.append([b])
                union = own[b]
        return [np.array(sorted(group)) for group in groups]

    def _ticks(self, group: IntArray) -> FloatArray:
        """Sample times and jumps of some trajectories, each once."""
        rows = ragged_rows(self.row_size, group)
        return _distinct(np.concatenate([self.time[rows], *(self.jumps[b] for b in group)]), self.tolerance)

    def union(self, group: IntArray) -> _Union:
        """The times that a group shares."""
        grid = self._ticks(group)
        times = np.unique(grid[self.place(grid, self.time[ragged_rows(self.row_size, group)])])
        ends = self.end[group]
        horizon = float(ends.max())
        together = bool((ends > horizon - self.tolerance).all())
        marks = np.concatenate([*(self.jumps[b] for b in group), np.zeros(0) if together else ends])
        edges = np.unique(grid[self.place(grid, marks)])
        edges = edges[(edges > self.tolerance) & (edges < horizon - self.tolerance)]
        last = None if together else np.searchsorted(edges, ends - self.tolerance).astype(np.int64)
        return _Union(times, edges, grid, last)

    @staticmethod
    def place(grid: FloatArray, wanted: FloatArray) -> IntArray:
        """Place in `grid` of times all of which are in it up to rounding."""
        above = np.minimum(np.searchsorted(grid, wanted), grid.size - 1)
        below = np.maximum(above - 1, 0)
        return np.where(wanted - grid[below] <= grid[above] - wanted, below, above)


@dataclass(frozen=True)
class _DataSet:
    """Everything of a data set that its batches share, one row per trajectory or per sample."""

    data: Trajectories
    signal: InputSignal
    clocks: _Clocks
    x0: FloatArray
    target: FloatArray
    weight: FloatArray

    def batch(self, group: IntArray, device: torch.device | str) -> ShootingBatch:
        """The trajectories of a group on their common times."""
        row_size = self.data.row_size
        rows, union = ragged_rows(row_size, group), self.clocks.union(group)

        def put(array: FloatArray | IntArray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), device=device)

        return ShootingBatch(
            times=put(union.times),
            grid=put(union.grid),
            x0=put(self.x0[group]),
            inputs=BatchInputs(
                signal=self.signal.select(put(group)),
                start=put(self.data.start[group]),
                edges=tuple(union.edges.tolist()),
                last_interval=None if union.last_interval is None else put(union.last_interval),
                margin=2.0 * self.clocks.tolerance,
            ),
            sample_time=put(self.clocks.place(union.times, self.clocks.time[rows])),
            sample_owner=put(np.repeat(np.arange(group.size), row_size[group])),
            target=put(self.target[rows]),
            weight=put(self.weight[rows]),
        )


def _distinct(times: FloatArray, tolerance: float) -> FloatArray:
    """Ascending times; of those that differ by rounding only, the first."""
    ordered = np.unique(times)
    return ordered[np.diff(ordered, prepend=-np.inf) > tolerance] if ordered.size else ordered


def _jumps(data: Trajectories, sampled: SampledInputs | None) -> list[FloatArray]:
    """Times since the start where u or its slope jumps, inside each trajectory's samples (B arrays)."""
    if sampled is None:
        return [np.zeros(0)] * len(data)
    pieces = sampled.pieces()
    is_break = find_breaks(pieces)
    ends = np.cumsum(pieces.row_size)
    since = [
        pieces.knots[low:high][is_break[low:high]] - start
        for low, high, start in zip(ends - pieces.row_size, ends, data.start, strict=True)
    ]
    return [t[(t > 0) & (t < length)] for t, length in zip(since, data.end - data.start, strict=True)]
