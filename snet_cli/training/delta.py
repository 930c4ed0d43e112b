"""δ-SNet (Quaglino et al. 2020, Alg. 1): step 0 once, then θ alone until R ≤ δ.

x* = argmin_x L(Mx)                      (step 0, `spectral.fitting`)
while R(Mx*, θ) > δ:  θ <- step on R(Mx*, θ)

Outside the paper, exact data has a robust form: the steps descend on R under Huber's loss (`training.robust`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.training.closed_form import solve_in_closed_form
from snet_cli.training.lbfgs import LbfgsStep
from snet_cli.training.method import Step
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.problem import Problem, Residual
from snet_cli.training.replay import recorder_for
from snet_cli.training.robust import median_residual, residual_shares
from snet_cli.training.theta_step import ThetaStep, build_theta_step

REWEIGHT_EVERY = 50
"""Iterations between two looks at what each defect counts, where R is robust: the weights have followed by then."""


class Delta:
    """δ-SNet.

    Parameters
    ----------
    problem : Problem
        Step 0 of the training data.
    model : Model
    options : ThetaStepOptions
    misfit : float
        L of step 0, which δ-SNet does not change.
    held_out : Problem, optional
        Step 0 of held-out data, in the training data's scales.
    prior : float
        λ of a Gaussian prior on θ: what is minimised is R + λ|θ|². Zero in the paper.
    robust : bool
        Descend on R under Huber's loss, which is then the total of a step; its residual is R all the same.
    by_median : bool
        Score the held-out data by medians instead of R.
    team : Team
        The processes; both problems are this one's parts of the whole.
    """

    name = "delta"

    def __init__(
        self,
        problem: Problem,
        model: Model,
        options: ThetaStepOptions,
        misfit: float,
        held_out: Problem | None = None,
        prior: float = 0.0,
        robust: bool = False,
        by_median: bool = False,
        *,
        team: Team = ALONE,
    ) -> None:
        self.model, self.team = model, team
        self.parameters = list(model.parameters())
        self.problem = problem
        self.prior, self.robust, self.by_median = prior, robust, by_median
        self.misfit = misfit
        self.residual = Residual(problem, model)
        self.descended = self.residual
        self.share: Tensor | None = None
        self.iteration = 0
        self.held_out_problem = held_out
        self.held_out_residual = None if held_out is None else Residual(held_out, model)
        self.solved = False
        self.evaluated = 0  # in a batch, or in closed form
        self.theta: ThetaStep | None = None
        if solve_in_closed_form(model, problem.node_data(), team):
            self.solved, self.evaluated = True, 1
        else:
            objective = self._objective if prior > 0 or robust else self.residual
            self.theta = build_theta_step(options, model, objective, problem, prior, team)
            self._replay_evaluations()

    def _replay_evaluations(self) -> None:
        """Let L-BFGS replay what it evaluates, where that is made of operators that we know and one process has all.

        x is fixed and all points are one batch, so that the same operators run on the same memory every time.
        """
        recorder = recorder_for(self.problem.t.device)
        known = self.residual.squares is not None and self.team.size == 1
        if recorder is not None and known and isinstance(self.theta, LbfgsStep):
            self.theta.replay_with(recorder)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What became of it, for those who ask."""
        replay = self.theta.replay if isinstance(self.theta, LbfgsStep) else None
        return () if replay is None or replay.verdict is None else (f"theta-step: {replay.verdict}",)

    def _penalty(self) -> Tensor:
        return penalty(nn.utils.parameters_to_vector(self.parameters)[None], self.prior)[0]

    def _objective(self) -> Tensor:
        """R + λ|θ|², R under Huber's loss where it is robust."""
        adds_prior = self.prior > 0 and self.team.is_lead  # once in the sum over the processes
        return self.descended() + self._penalty() if adds_prior else self.descended()

    @property
    def evaluations(self) -> int:
        """Evaluations of R and its gradient so far."""
        return self.evaluated if self.theta is None else max(self.evaluated, self.theta.evaluations)

    def step(self) -> Step:
        """One step on θ; a model that was solved in closed form only reports its R."""
        if self.theta is None:
            with torch.no_grad():
                residual = total = float(self.team.sum(self.residual())[0])
            return self.after(residual, total)
        if self.reweight() and isinstance(self.theta, LbfgsStep):
            self.theta.reopen()
        total = self.theta.step()
        with torch.no_grad():
            if self.prior > 0:
                total -= float(self._penalty())
            residual = total if self.share is None else float(self.team.sum(self.residual())[0])
        return self.after(residual, total)

    def reweight(self) -> bool:
        """Look anew at what each defect counts, where it is time to; whether what is minimised has changed."""
        due = self.robust and self.iteration > 0 and self.iteration % REWEIGHT_EVERY == 0
        if due:
            with torch.no_grad():
                self._count(residual_shares(self.residual.defect(), self.problem.weight, self.team))
        return due

    def after(self, residual: float, total: float) -> Step:
        """An iteration is done, here or in a batch (`delta_batch`)."""
        self.iteration += 1
        return Step(residual, self.misfit, total)

    def _count(self, share: Tensor) -> None:
        """Let each squared defect count for so much from now on."""
        self.share, self.descended = share, Residual(replace(self.problem, share=share), self.model)

    def held_out(self) -> Tensor | None:
        """R on the held-out data's step 0 (Sec. 7: no ODE is solved), or what medians make of it."""
        if self.held_out_residual is None or self.held_out_problem is None:
            return None
        with torch.no_grad():
            if self.by_median:
                data = self.held_out_problem
                return median_residual(self.held_out_residual.defect(), data.weight, data.scale, self.team)
            return self.team.sum(self.held_out_residual())[0]

    def state(self) -> dict[str, Tensor]:
        """The optimiser's memory, and what each defect counts, of all processes on the lead; x never moves."""
        if self.theta is None or not self.robust:
            return {} if self.theta is None else self.theta.state()
        counts = {} if self.share is None else {"share": self.team.collect(self.share)}
        return {**self.theta.state(), **counts, "iteration": torch.tensor(self.iteration)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, on a model with the θ of that moment."""
        own = dict(state)
        if "iteration" in own:
            self.iteration = int(own.pop("iteration"))
        if "share" in own:
            self._count(self.team.own(own.pop("share"), self.problem.weight.numel()))
        if self.theta is not None:
            self.theta.restore(own)


def penalty(theta: Tensor, prior: float | Tensor) -> Tensor:
    """λ|θ|² of each row of (M, N)."""
    return prior * (theta * theta).sum(1)
