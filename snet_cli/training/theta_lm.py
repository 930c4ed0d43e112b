"""The θ-step by Levenberg-Marquardt: damped Gauss-Newton on R + λ|θ|² with the trajectories fixed.

Half the Gauss-Newton Hessian of R = Σ_q w_q |s ⊙ (f - ẋ)|² is Σ_q G_qᵀ w_q S² G_q + λ 1 with G = ∂f/∂θ: the corner of
the arrow (`arrow`), damped, measured and solved as its Schur complement is (`weight_system`, or `row_system` where
there are fewer residuals than weights). One iteration costs a sweep of G and N_θ² products a residual; it pays where
N_θ is some hundreds, and reaches minima in tens of iterations that L-BFGS needs thousands for. The sums run over the
parts of the points, which need not stand in memory together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.models.theta_blocks import ThetaJacobian
from snet_cli.training.problem import Points, Problem
from snet_cli.training.row_system import RowSystem, few_rows
from snet_cli.training.theta_jacobian import chunks, theta_jacobian
from snet_cli.training.weight_system import (
    EASIER,
    HARDER,
    LEAST_DAMPING,
    MOST_DAMPING,
    START_DAMPING,
    WeightSystem,
    add_gram,
    mirror,
    put_weights,
    weights_of,
)

TRIES = 12
"""Dampings tried with one Hessian before θ stays."""

MEMORY = 1_000_000_000
"""Bytes for G at a time; `theta_jacobian.chunks` takes less."""


class LevenbergMarquardtStep:
    """One iteration per call of `step`.

    Parameters
    ----------
    problem : Points
        The points, ẋ, weights and scales of R.
    model : Model
    prior : float
        λ.
    exact : bool
        Whether the data is, so that weights in which f is linear may go anywhere (`weight_system.weight_measure`).
    team : Team
        The processes; the problem is this one's part, the Hessian and the loss are sums.
    """

    def __init__(
        self, problem: Points, model: Model, prior: float = 0.0, *, exact: bool = False, team: Team = ALONE
    ) -> None:
        self.model, self.prior, self.exact, self.team = model, prior, exact, team
        self.parameters = list(model.parameters())
        self.damping, self.evaluations = START_DAMPING, 0
        self.stalled = False
        self.use(problem, prior)

    def use(self, problem: Points, prior: float) -> None:
        """Go on on other trajectories (α-SNet moves them), with another λ, or with squares that count otherwise."""
        self.problem, self.prior = problem, prior
        self.residual = problem.residual(self.model)
        self.stalled = False

    def step(self) -> float:
        """Move θ once and return R + λ|θ|² there; where no damping helps, θ stays."""
        theta = weights_of(self.parameters)
        before = self._loss(theta)
        system = self.system(theta)
        self.evaluations += 1
        for _ in range(TRIES):
            move = system.solve(self.damping)
            if move is not None:
                put_weights(self.parameters, theta + move)
                after = self._loss(theta + move)
                if after < before:  # false for NaN
                    self.damping = max(self.damping / EASIER, LEAST_DAMPING)
                    return after
            self.damping = min(self.damping * HARDER, MOST_DAMPING)
        put_weights(self.parameters, theta)
        self.stalled = True
        return before if math.isfinite(before) else math.nan

    def system(self, theta: Tensor) -> WeightSystem | RowSystem:
        """The normal equations of R + λ|θ|² at the model's θ."""
        size = theta.numel()
        if isinstance(self.problem, Problem) and few_rows(self.problem.x.numel(), size, self.team):
            G, defect = self._rows(self.problem, slice(None))
            target = -defect.flatten()
            prior = torch.full_like(theta, self.prior)
            return RowSystem.build(G.dense().flatten(0, 1), None, target, theta, prior, self.model, exact=self.exact)
        once = self.prior if self.team.is_lead else 0.0  # in the sum over the processes
        matrix = once * torch.eye(size, dtype=theta.dtype, device=theta.device)
        gradient = once * theta
        for problem in self.problem.parts():
            for part in chunks(problem.t.numel(), problem.scale.numel(), size, MEMORY):
                G, defect = self._rows(problem, part)
                add_gram(matrix, G)
                gradient = gradient + G.transpose_product(defect)
        matrix, gradient = self.team.sum(mirror(matrix), gradient)
        return WeightSystem.build(matrix, gradient, self.model, exact=self.exact)

    def _rows(self, problem: Problem, part: slice) -> tuple[ThetaJacobian, Tensor]:
        """W^½ S G and W^½ S (f - ẋ) (Q', n) of some of the points."""
        root = problem.weight[part].sqrt()[:, None] * problem.scale
        if problem.share is not None:
            root = root * problem.share[part].sqrt()
        rates, _, G = theta_jacobian(self.model, problem.t[part], problem.x[part], problem.u[part])
        return G.weighted_(root), root * (rates - problem.derivative[part])

    def _loss(self, theta: Tensor) -> float:
        with torch.no_grad():
            return float(self.team.sum(self.residual())[0]) + self.prior * float(theta.square().sum())

    def state(self) -> dict[str, Tensor]:
        """μ and the count of evaluations."""
        damping = torch.tensor(self.damping, dtype=torch.float64)
        return {"damping": damping, "evaluations": torch.tensor(self.evaluations)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit."""
        self.damping, self.evaluations = float(state["damping"]), int(state["evaluations"])
