"""The batch in flight: what every method keeps per trajectory, when a trajectory ends, and who leaves the batch.

Rows that have ended stay in place with step zero until a fifth of the batch has ended; then the batch is compacted.
So a trajectory that finished or failed costs nothing, and one that struggles struggles alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from snet_cli.errors import UsageError
from snet_cli.integration.dopri5 import Tableau
from snet_cli.integration.inputs import InputSignal
from snet_cli.integration.outcome import Outcome, Solution, Tolerances
from snet_cli.integration.ragged_search import RaggedSearch
from snet_cli.integration.tape import Tape

Derivative = Callable[[Tensor, Tensor, Tensor], Tensor]
EVALUATIONS_PER_BREAK = 60
"""Allowance per input jump: some ten steps between two jumps."""


@dataclass(frozen=True)
class Problem:
    """x' = f(t - clock, x, u(t)) from x0 at t0, asked for at given times.

    Attributes
    ----------
    f : callable
        f(t, x, u), shapes (N,), (N, n), (N, m + c) -> (N, n), for any subset of the trajectories.
    x0 : Tensor, shape (B, n)
    t0, clock : Tensor, shape (B,)
    times : RaggedSearch
    inputs : InputSignal
    scale : Tensor, shape (n,)
        Positive.
    center : Tensor, shape (n,), or None
        Where given, a trajectory farther than `tolerances.divergence` scales from it has diverged.
    tolerances : Tolerances
    """

    f: Derivative
    x0: Tensor
    t0: Tensor
    clock: Tensor
    times: RaggedSearch
    inputs: InputSignal
    scale: Tensor
    center: Tensor | None
    tolerances: Tolerances


class March:
    """Steps all trajectories to their last asked time; a method defines `advance`.

    Attributes (N rows in flight)
    -----------------------------
    row : Tensor, shape (N,)
        Number of the trajectory.
    t, x, slope : Tensor, shapes (N,), (N, n), (N, n)
        Time, state, and f there with the value of u that holds afterwards.
    step : Tensor, shape (N,)
        Length of the next step.
    final, next_break, floor, budget : Tensor, shape (N,)
        Last asked time, next input jump, shortest sensible step, evaluations left.
    """

    def __init__(self, problem: Problem, tableau: Tableau) -> None:
        self.problem = problem
        device = problem.x0.device
        self.weights = torch.tensor(tableau.stages, device=device)
        self.error_weights = torch.tensor(tableau.error, device=device)
        self.nodes = torch.tensor(tableau.nodes[1:-1, None], device=device)
        self.evaluations = self.points = 0
        B, n = problem.x0.shape
        self.outcome = torch.zeros(B, dtype=torch.int64, device=device)
        self.end_time = problem.t0.clone()
        self.states = torch.full((problem.times.values.shape[0], n), torch.nan, dtype=torch.float64, device=device)

        self.row = torch.arange(B, device=device)
        self.t, self.x, self.clock, self.inputs = problem.t0, problem.x0, problem.clock, problem.inputs
        has_output = problem.times.last > problem.times.first
        last_time = problem.times.values[(problem.times.last - 1).clamp(min=0)]
        self.final = torch.where(has_output, torch.maximum(last_time, self.t), self.t)
        self.floor = 16 * torch.finfo(torch.float64).eps * torch.maximum(self.t.abs(), self.final.abs())
        self.next_break = self.inputs.breaks_after(self.t)
        allowance = EVALUATIONS_PER_BREAK * self.inputs.breaks_between(self.t, self.final)
        self.budget = (problem.tolerances.max_evaluations + allowance).to(torch.float64)
        self.active = torch.ones_like(self.row, dtype=torch.bool)
        self.slope = self.evaluate(self.t, self.x, self.inputs.values(self.t, "right"))
        self.step = torch.zeros_like(self.t)
        self.rejected = torch.zeros_like(self.active)
        self._start_output(torch.tensor(tableau.dense, device=device))

    def _start_output(self, dense: Tensor) -> None:
        """Write what is asked at t0 itself, and end what cannot start."""
        written = self.problem.times.upto(self.t, inclusive=True)
        counts = written - self.problem.times.first
        owner = torch.repeat_interleave(counts)
        within = torch.arange(owner.numel(), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        self.states[self.problem.times.first[owner] + within] = self.x[owner]
        self.tape = Tape(dense, self.problem.times, self.states, written)
        broken = ~(self.x.isfinite().all(-1) & self.slope.isfinite().all(-1))
        self.retire(broken | (self.t >= self.final), torch.where(broken, int(Outcome.DIVERGED), int(Outcome.OK)))

    def evaluate(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """Evaluate f at absolute times."""
        return self.call(t - self.clock, x, u)

    def call(self, local_time: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """Evaluate f at times counted from each trajectory's clock, and count the call."""
        self.evaluations += 1
        self.points += x.shape[0]
        value = self.problem.f(local_time, x, u)
        if value.shape != x.shape:
            raise UsageError(
                f"f returned shape {tuple(value.shape)} for states of shape {tuple(x.shape)}.",
                "f(t, x, u) must return one derivative per state, for any number of rows.",
            )
        return value

    def advance(self) -> None:
        """Do one step of every row, record it on the tape, and `retire` the rows that end."""
        raise NotImplementedError

    def run(self, should_stop: Callable[[], bool] | None = None) -> Solution:
        """Advance until every trajectory has ended."""
        alive = int(self.active.sum())
        while alive:
            if alive <= 0.8 * self.row.shape[0]:
                self.compact()
            self.advance()
            if self.tape.full:
                self.tape.flush()
            if should_stop is not None and should_stop():
                self.retire(self.active, torch.full_like(self.row, int(Outcome.BUDGET)))
            alive = int(self.active.sum())
        self.tape.flush()
        return Solution(self.states, self.outcome, self.end_time, self.evaluations, self.points)

    def far_away(self, x: Tensor) -> Tensor:
        """Rows outside the range where a forecast means anything, shape (N,)."""
        if self.problem.center is None:
            return torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        bound = self.problem.tolerances.divergence * self.problem.scale
        return ((x - self.problem.center).abs() > bound).any(-1)

    def end_rows(self, underflow: Tensor, nonfinite: Tensor) -> None:
        """Retire rows that arrived, diverged, cannot go on, or have spent their budget."""
        spent = self.budget <= 0
        far = self.far_away(self.x)
        ended = (self.t >= self.final) | far | nonfinite | underflow | spent
        if not bool((ended & self.active).any()):
            return
        outcome = torch.where(spent, int(Outcome.BUDGET), int(Outcome.OK))
        outcome = torch.where(underflow, int(Outcome.STEP_UNDERFLOW), outcome)
        outcome = torch.where(self.t >= self.final, int(Outcome.OK), outcome)
        outcome = torch.where(far | nonfinite, int(Outcome.DIVERGED), outcome)
        self.retire(ended, outcome)

    def retire(self, ended: Tensor, outcome: Tensor) -> None:
        """Freeze rows where they are: a last time that is reached, and a step of zero."""
        ended = ended & self.active
        rows = self.row[ended]
        self.outcome[rows] = outcome[ended]
        self.end_time[rows] = self.t[ended]
        self.active = self.active & ~ended
        self.final = torch.where(ended, self.t, self.final)
        self.step = torch.where(ended, 0.0, self.step)

    def pass_break(self, arrived: Tensor) -> None:
        """Behind an input jump f has another value: recompute the first stage, and look up the next jump."""
        rows = torch.nonzero(arrived & self.active & (self.t < self.final))[:, 0]
        if rows.numel() == 0:
            return
        inputs = self.inputs.select(rows)
        t = self.t[rows]
        self.next_break[rows] = inputs.breaks_after(t)
        self.slope[rows] = self.call(t - self.clock[rows], self.x[rows], inputs.values(t, "right")).to(torch.float64)
        self.budget[rows] -= 1

    def compact(self) -> None:
        """Drop the rows that have ended."""
        self.tape.flush()
        keep = torch.nonzero(self.active)[:, 0]
        self.tape.compact(keep)
        self.inputs = self.inputs.select(keep)
        for name in (
            "row", "t", "x", "slope", "step", "clock", "final", "floor", "next_break", "budget", "active", "rejected",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[keep])


def root_mean_square(values: Tensor) -> Tensor:
    """Norm over states, independent of their number; shape (N,)."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return norm / math.sqrt(values.shape[-1])
