"""Dormand-Prince 5(4) with a step size per trajectory (Hairer, Nørsett & Wanner 1993, sec. II.4).

A step that would pass an input jump, or nearly reach it, ends exactly there: all its stages see the value before the
jump. The shortened step never shrinks the next one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snet_cli.integration.dopri5 import DORMAND_PRINCE
from snet_cli.integration.march import March, Problem, largest

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
"""Fraction of the step that the error estimate allows, and the bounds of its change from step to step."""


class AdaptiveMarch(March):
    """All trajectories under the adaptive 5(4) pair."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, DORMAND_PRINCE)
        self.rtol = problem.tolerances.rtol
        self.atol = problem.tolerances.atol * problem.scale + 1e-300  # 0 / 0 is no error
        if bool(self.active.any()):
            self.step = torch.where(self.active, self._first_step(), 0.0)

    def _first_step(self) -> Tensor:
        """Hairer, Nørsett & Wanner (1993), sec. II.4, with the states' scales in place of x0, which may be zero."""
        size = self.atol + self.rtol * self.x.abs()
        speed = largest(self.slope / size)
        room = torch.minimum(self.next_break, self.final) - self.t
        trial = 0.01 * largest(self.problem.scale / size) / speed
        trial = torch.where(trial.isfinite(), torch.minimum(trial, room), 1e-3 * room)
        probe = self.x + trial[:, None] * self.slope
        slope = self.evaluate(self.t + trial, probe, self.inputs.values(self.t + trial, "left"))
        self.budget -= 1
        bend = largest((slope - self.slope) / size) / trial
        step = (0.01 / torch.maximum(speed, bend)).pow(1.0 / DORMAND_PRINCE.order)
        step = torch.where(step.isfinite(), torch.minimum(step, 100.0 * trial), trial)
        return torch.maximum(step, 2.0 * self.floor)

    def advance(self) -> None:
        """One step of every row, accepted where the error estimate is within the tolerance."""
        slopes = self.tape.slopes()  # (7, N, n)
        limit = torch.minimum(self.next_break, self.final)
        reaches = self.t + 1.01 * self.step >= limit
        step = torch.where(reaches, limit - self.t, self.step)
        x, error, end = self._stages(slopes, step, torch.where(reaches, limit, self.t + step))
        accepted = error <= 1.0

        factor = (SAFETY * error.pow(-1.0 / DORMAND_PRINCE.order)).clamp(SHRINK, GROW)
        factor = torch.where(self.rejected, factor.clamp(max=1.0), factor)
        proposal = step * factor
        self.step = torch.where(accepted & reaches, torch.maximum(proposal, self.step), proposal)
        self.rejected = ~accepted

        end = torch.where(accepted, end, self.t)
        self.tape.record(self.t, step, self.x, end)
        self.t = end
        self.x = torch.where(accepted[:, None], x, self.x)
        self.slope = torch.where(accepted[:, None], slopes[-1], self.slope)
        self.owed += len(self.weights) - 1
        stuck = self.step < self.floor
        if self.inputs.has_breaks:  # elsewhere the error estimate contains the slope at the step's end
            self.pass_break(accepted & reaches & (self.t >= self.next_break))
            broken = ~self.slope.isfinite().all(-1)
            stuck, error = stuck | broken, torch.where(broken, torch.inf, error)
        self.end_rows(stuck, error)

    def _stages(self, slopes: Tensor, step: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fill the stages k_i; the state at the step's end (N, n), the scaled error (N,) and the time `end` (N,).

        An error that is no number counts as infinite.
        """
        N, n = self.x.shape
        times = torch.addcmul(self.t, self.nodes, step)  # (5, N), c_2 … c_6
        times[-1] = end
        u = self.inputs.values(times, "left")
        times = times - self.clock
        length = step[:, None]
        slopes[0] = self.slope
        flat = slopes.view(-1, N * n)
        x = self.x
        for i in range(1, len(self.weights)):
            at = min(i, 5) - 1  # the last two stages share the end of the step
            x = torch.addcmul(self.x, length, (self.weights[i] @ flat[:i]).view(N, n))
            slopes[i] = self.call(times[at], x, u[at])
        error = length * (self.error_weights @ flat).view(N, n)
        size = torch.maximum(self.x.abs(), x.abs()).mul_(self.rtol).add_(self.atol)
        return x, largest(error / size).nan_to_num_(nan=torch.inf, posinf=torch.inf), end
