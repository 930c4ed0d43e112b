"""δ-SNet (`training.delta`) on more trajectories than belong into memory: the same steps on sums over blocks.

The full batch goes into every step, so that L-BFGS stays what it is. Not here are Levenberg-Marquardt, formulas for θ
and the robust form for exact data, which look at all points at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.lbfgs import LbfgsStep
from snet_cli.training.method import Step
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.problem import Problem
from snet_cli.training.theta_step import AdamStep, ThetaStep


class BlockDelta:
    """δ-SNet on a `BlockProblem`.

    Parameters
    ----------
    problem : BlockProblem
        Step 0 of this process's training data.
    model : Model
    options : ThetaStepOptions
        L-BFGS or Adam.
    misfit : float
        L of step 0, which δ-SNet does not change.
    held_out : Problem or BlockProblem, optional
        Step 0 of held-out data, in the training data's scales.
    prior : float
        λ of a Gaussian prior on θ.
    team : Team
        The processes; both problems are this one's parts of the whole.
    """

    name = "delta"

    def __init__(
        self,
        problem: BlockProblem,
        model: Model,
        options: ThetaStepOptions,
        misfit: float,
        held_out: Problem | BlockProblem | None = None,
        prior: float = 0.0,
        *,
        team: Team = ALONE,
    ) -> None:
        self.model, self.team, self.prior, self.misfit = model, team, prior, misfit
        self.residual = problem.residual(model)
        self.held_out_residual = None if held_out is None else held_out.residual(model)
        self.theta: ThetaStep = (
            AdamStep(model, self._objective, options.rate, team)
            if options.name == "adam"
            else LbfgsStep(model, self._objective, team)
        )

    def _penalty(self) -> Tensor:
        return self.prior * torch.stack([(p * p).sum() for p in self.model.parameters()]).sum()

    def _objective(self) -> Tensor:
        """R + λ|θ|², the second once in the sum over the processes."""
        return self.residual() + self._penalty() if self.prior > 0 and self.team.is_lead else self.residual()

    @property
    def evaluations(self) -> int:
        """Evaluations of R and its gradient so far."""
        return self.theta.evaluations

    def step(self) -> Step:
        """One step on θ."""
        total = self.theta.step()
        if self.prior > 0:
            with torch.no_grad():
                total -= float(self._penalty())
        return Step(total, self.misfit, total)

    def held_out(self) -> Tensor | None:
        """R on the held-out data's step 0."""
        if self.held_out_residual is None:
            return None
        with torch.no_grad():
            return self.team.sum(self.held_out_residual())[0]

    def state(self) -> dict[str, Tensor]:
        """The optimiser's memory; x never moves."""
        return self.theta.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, on a model with the θ of that moment."""
        self.theta.restore(state)
