"""δ-SNet (Quaglino et al. 2020, Alg. 1): step 0 once, then θ alone until R ≤ δ.

x* = argmin_x L(Mx)                      (step 0, `spectral.fitting`)
while R(Mx*, θ) > δ:  θ <- step on R(Mx*, θ)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snet_cli.models.base import Model
from snet_cli.training.method import Step
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.problem import Problem, Residual
from snet_cli.training.theta_step import ThetaStep, build_theta_step


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
    ) -> None:
        self.model = model
        self.prior = prior
        self.misfit = misfit
        self.residual = Residual(problem, model)
        self.held_out_residual = None if held_out is None else Residual(held_out, model)
        self.solved = False
        self.theta: ThetaStep | None = None
        if model.solve_in_closed_form(problem.node_data()):
            self.solved = True
        else:
            self.theta = build_theta_step(
                options, model, self._objective if prior > 0 else self.residual, problem, prior
            )

    def _penalty(self) -> Tensor:
        return self.prior * torch.stack([(p * p).sum() for p in self.model.parameters()]).sum()

    def _objective(self) -> Tensor:
        """R + λ|θ|²."""
        return self.residual() + self._penalty()

    @property
    def evaluations(self) -> int:
        """Evaluations of R and its gradient so far."""
        return 1 if self.theta is None else self.theta.evaluations

    def step(self) -> Step:
        """One step on θ; a model that was solved in closed form only reports its R."""
        if self.theta is None:
            with torch.no_grad():
                residual = float(self.residual())
        else:
            residual = self.theta.step()
            if self.prior > 0:
                with torch.no_grad():
                    residual -= float(self._penalty())
        return Step(residual, self.misfit, residual)

    def held_out(self) -> Tensor | None:
        """R on the held-out trajectories' step 0 (Sec. 7: no ODE is solved)."""
        if self.held_out_residual is None:
            return None
        with torch.no_grad():
            return self.held_out_residual()

    def state(self) -> dict[str, Tensor]:
        """The optimiser's memory; x never moves."""
        return {} if self.theta is None else self.theta.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, on a model with the θ of that moment."""
        if self.theta is not None:
            self.theta.restore(state)
