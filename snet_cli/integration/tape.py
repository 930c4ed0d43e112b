"""Dense output: the last few steps of every trajectory, kept until the asked times inside them are written.

Searching and interpolating once per 16 steps for all trajectories costs a sixteenth of doing it step by step, and
leaves the step itself free of anything that depends on how many outputs fall into it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snet_cli.integration.ragged_search import RaggedSearch

TAPE_STEPS = 16
TAPE_BYTES = 64_000_000


class Tape:
    """Steps of the rows in flight, and the solution that they are written to.

    Parameters
    ----------
    dense : Tensor, shape (s, q)
        The method's interpolant: x(t + θh) = x + h Σ_i k_i Σ_j dense[i, j] θ^(j+1).
    times : RaggedSearch
        Asked times of every row.
    states : Tensor, shape (obs, n)
        Filled as time passes; never touched behind a trajectory's failure.
    written : Tensor of int64, shape (B,)
        First output of each row that is not written yet.
    """

    def __init__(self, dense: Tensor, times: RaggedSearch, states: Tensor, written: Tensor) -> None:
        self.dense = dense
        self.times = times
        self.states = states
        self.written = written
        self._allocate()

    def _allocate(self) -> None:
        """Empty buffers for the rows in flight; as many steps as fit into `TAPE_BYTES`, at most `TAPE_STEPS`."""
        stages, rows, n = self.dense.shape[0], self.written.shape[0], self.states.shape[1]
        self.length = max(1, min(TAPE_STEPS, TAPE_BYTES // (8 * max(1, (stages + 1) * rows * n))))
        new = self.states.new_empty
        self._slopes = new((self.length, stages, rows, n))
        self._start, self._step, self._end = (
            new((self.length, rows)),
            new((self.length, rows)),
            new((self.length, rows)),
        )
        self._state = new((self.length, rows, n))
        self._used = 0

    @property
    def empty(self) -> bool:
        """Whether all steps are written."""
        return self._used == 0

    @property
    def full(self) -> bool:
        """Whether the next step needs a `flush` first."""
        return self._used == self.length

    def slopes(self) -> Tensor:
        """Where the next step puts its stages k_i, shape (s, N, n)."""
        return self._slopes[self._used]

    def record(self, start: Tensor, step: Tensor, state: Tensor, end: Tensor) -> None:
        """Keep a step from `start` (N,) at `state` (N, n) that covers outputs to `end`; `end` = `start` if rejected."""
        self._start[self._used] = start
        self._step[self._used] = step
        self._state[self._used] = state
        self._end[self._used] = end
        self._used += 1

    def flush(self) -> None:
        """Write every asked time that the kept steps cover, and forget the steps."""
        if self._used == 0:
            return
        reached = self.times.upto(self._end[: self._used], inclusive=True)  # (used, N)
        reached = torch.maximum(reached, self.written)
        before = torch.cat([self.written[None], reached[:-1]])
        counts = (reached - before).flatten()
        cell = torch.repeat_interleave(counts)  # (outputs,) flat index of (step, row)
        if cell.numel():
            within = torch.arange(cell.numel(), device=cell.device) - (counts.cumsum(0) - counts)[cell]
            self._interpolate(cell, before.flatten()[cell] + within)
        self.written = reached[-1]
        self._used = 0

    def _interpolate(self, cell: Tensor, output: Tensor) -> None:
        """States at the outputs' times from the steps in `cell`."""
        rows = self.written.shape[0]
        step_number, row = torch.div(cell, rows, rounding_mode="floor"), cell % rows
        length = self._step.flatten()[cell]
        theta = ((self.times.values[output] - self._start.flatten()[cell]) / length).clamp(0.0, 1.0)
        weights = torch.zeros_like(theta)[:, None]
        for power in range(self.dense.shape[1] - 1, -1, -1):
            weights = (weights + self.dense[:, power]) * theta[:, None]  # (outputs, s)
        slopes = self._slopes[step_number, :, row]  # (outputs, s, n)
        change = torch.bmm((weights * length[:, None])[:, None], slopes)[:, 0]
        self.states[output] = self._state[step_number, row] + change

    def compact(self, rows: Tensor) -> None:
        """Go on with these rows only; needs a flushed tape."""
        self.times = self.times.select(rows)
        self.written = self.written[rows]
        self._allocate()
