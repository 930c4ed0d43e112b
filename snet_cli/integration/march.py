"""The batch in flight: what every method keeps per trajectory, when a trajectory ends, and who leaves the batch.

Rows that have ended stay in place with step zero until a fifth of the batch has ended; then it is compacted.
So a trajectory that finished or failed costs nothing, and one that struggles struggles alone.
"""

from __future__ import annotations

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
SMALL_BATCH = 4_000
"""Numbers in x below which a step costs the same with fewer rows, and compacting waits for an empty tape."""
MILESTONES = 1000
"""Parts of a horizon, each of which must be passed within `Tolerances.patience` evaluations."""


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
    final, next_break, floor : Tensor, shape (N,)
        Last asked time, next input jump, shortest sensible step.
    budget, patience, milestone, stride : Tensor, shape (N,)
        Evaluations left, evaluations left until the time `milestone`, and the time between two milestones.
    """

    def __init__(self, problem: Problem, tableau: Tableau) -> None:
        self.problem = problem
        device = problem.x0.device
        self.weights = [torch.tensor(row[:i], device=device) for i, row in enumerate(tableau.stages)]
        self.error_weights = torch.tensor(tableau.error, device=device)
        self.nodes = torch.tensor(tableau.nodes[1:-1, None], device=device)
        self.bound = problem.tolerances.divergence * problem.scale
        self.evaluations = self.points = self.owed = 0
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
        self.stride = (self.final - self.t) / MILESTONES
        self.milestone = self.t + self.stride
        self._full_patience = float(problem.tolerances.patience)
        self.patience = torch.full_like(self.t, self._full_patience)
        self.active = torch.ones_like(self.row, dtype=torch.bool)
        self.slope = self.evaluate(self.t, self.x, self.inputs.values(self.t, "right"))
        self.step = torch.zeros_like(self.t)
        self.rejected = torch.zeros_like(self.active)
        self.alive = B
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
        value = self.problem.f(local_time, x, u).to(torch.float64)
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
        while self.alive:
            self.advance()
            if self.tape.full:
                self.tape.flush()
                self.charge()
            if 0 < self.alive <= 0.8 * self.row.shape[0] and (self.tape.empty or self.x.numel() > SMALL_BATCH):
                self.compact()
            if should_stop is not None and should_stop():
                self.retire(self.active, torch.full_like(self.row, int(Outcome.BUDGET)))
        self.tape.flush()
        return Solution(self.states, self.outcome, self.end_time, self.evaluations, self.points)

    def charge(self) -> None:
        """Take the steps' evaluations from every row's budget; patience begins anew behind each milestone.

        Once per flushed tape, because exactness is not worth five operations per step.
        """
        passed = self.t >= self.milestone
        self.budget = self.budget - self.owed
        self.patience = torch.where(passed, self._full_patience, self.patience - self.owed)
        self.milestone = torch.where(passed, self.t + self.stride, self.milestone)
        self.owed = 0
        spent = (torch.minimum(self.budget, self.patience) <= 0) & self.active
        if bool(spent.any()):
            self.retire(spent, torch.full_like(self.row, int(Outcome.BUDGET)))

    def end_rows(self, stuck: Tensor, error: Tensor) -> None:
        """Retire rows that arrived, left the range of meaning, or are stuck; why depends on `error` being finite."""
        ended = (self.t >= self.final) | stuck
        far = None
        if self.problem.center is not None:
            far = ((self.x - self.problem.center).abs() > self.bound).any(-1)
            ended = ended | far
        if not bool((ended & self.active).any()):
            return
        outcome = torch.where(error.isfinite(), int(Outcome.STEP_UNDERFLOW), int(Outcome.DIVERGED))
        outcome = torch.where((self.t >= self.final) | ~stuck, int(Outcome.OK), outcome)
        if far is not None:
            outcome = torch.where(far, int(Outcome.DIVERGED), outcome)
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
        self.alive = int(self.active.sum())

    def pass_break(self, arrived: Tensor) -> None:
        """Behind an input jump f has another value: recompute the first stage, and look up the next jump."""
        rows = torch.nonzero(arrived & self.active & (self.t < self.final))[:, 0]
        if rows.numel() == 0:
            return
        inputs = self.inputs.select(rows)
        t = self.t[rows]
        self.next_break[rows] = inputs.breaks_after(t)
        self.slope[rows] = self.call(t - self.clock[rows], self.x[rows], inputs.values(t, "right"))
        self.budget[rows] -= 1
        self.patience[rows] = self._full_patience

    def compact(self) -> None:
        """Drop the rows that have ended."""
        self.tape.flush()
        self.charge()
        keep = torch.nonzero(self.active)[:, 0]
        self.tape.compact(keep)
        self.inputs = self.inputs.select(keep)
        for name in (
            "row", "t", "x", "slope", "step", "clock", "final", "floor", "next_break", "active", "rejected",
            "budget", "patience", "milestone", "stride",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[keep])


def largest(values: Tensor) -> Tensor:
    """Norm over states, shape (N,): the worst state decides.

    A root mean square over thirty states would let one of them miss its tolerance five times over.
    """
    return values.abs().amax(-1)
