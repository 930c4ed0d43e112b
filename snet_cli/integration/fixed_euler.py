"""Explicit Euler with a given step, the yardstick of the paper: x(t + h) = x(t) + h f(t, x(t), u(t)).

Steps lie on the grid t0 + k h, and also end on input jumps and on the last asked time; between grid points the state
is linear.
"""

from __future__ import annotations

import numpy as np
import torch

from snet_cli.integration.dopri5 import Tableau
from snet_cli.integration.march import March, Problem


def _euler() -> Tableau:
    """Euler in first-same-as-last form: a second stage that has no weight; its interpolant is linear."""
    return Tableau(
        order=1,
        nodes=np.array([0.0, 1.0]),
        stages=np.array([[0.0, 0.0], [1.0, 0.0]]),
        error=np.zeros(2),
        dense=np.array([[1.0], [0.0]]),
    )


class EulerMarch(March):
    """All trajectories with the fixed step `length`."""

    def __init__(self, problem: Problem, length: float) -> None:
        super().__init__(problem, _euler())
        self.length = length
        self.grid = torch.zeros_like(self.t)  # steps of the grid that lie behind
        self.origin = self.t

    def advance(self) -> None:
        """One step of every row to its next grid point, input jump or last asked time."""
        slopes = self.tape.slopes()  # (2, N, n)
        target = self.origin + (self.grid + 1.0) * self.length
        limit = torch.minimum(self.next_break, self.final)
        end = torch.where(limit <= target + 1e-9 * self.length, limit, target)
        step = end - self.t
        x = self.x + step[:, None] * self.slope
        slopes[0] = self.slope
        slopes[1] = 0.0
        finite = x.isfinite().all(-1)
        end = torch.where(finite, end, self.t)
        self.tape.record(self.t, step, self.x, end)
        self.x = torch.where(finite[:, None], x, self.x)
        self.t = end
        self.grid = self.grid + (self.t >= target - 1e-9 * self.length)
        self.owed += 1
        self.slope = self.evaluate(self.t, self.x, self.inputs.values(self.t, "right"))
        if self.inputs.has_breaks:
            self.next_break = torch.where(self.t >= self.next_break, self.inputs.breaks_after(self.t), self.next_break)
        broken = ~(finite & self.slope.isfinite().all(-1))
        self.end_rows(broken, torch.where(broken, torch.inf, 0.0))

    def compact(self) -> None:
        """Drop the rows that have ended."""
        keep = self.active
        self.grid, self.origin = self.grid[keep], self.origin[keep]
        super().compact()
