"""Damped normal equations in θ where there are fewer residuals than weights: solved in the space of the residuals.

With G̃ (r, N_θ) and S = G̃ᵀ C G̃ + diag(p), C = 1 where the trajectories are fixed and what their elimination leaves of it
otherwise (`linearisation`), the system of `weight_system` is

    (G̃ᵀ C G̃ + Δ) dθ = G̃ᵀ ρ - p θ,      Δ = diag(p) + μ diag(m),

and with z = ρ - C G̃ dθ, what is left of ρ after the step, dθ = Δ⁻¹ (G̃ᵀ z - p θ):

    (1 + C H) z = ρ + C G̃ Δ⁻¹ p θ,      H = G̃ Δ⁻¹ G̃ᵀ.

That is r unknowns, and no difference of large numbers (the push-through identity; Woodbury's form would cancel where μ
is small). S, N_θ² numbers of rank r, is never formed: one recording of 60 samples and the default network of 1 218
weights have 50 residuals, and a step costs a hundredth of that with S.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snet_cli.distributed import Team
from snet_cli.models.base import Model
from snet_cli.training.weight_system import weight_measure

FEW = 0.5
"""Residuals relative to weights up to which this is the cheaper way."""


def few_rows(residuals: int, weights: int, team: Team) -> bool:
    """Whether to solve for the residuals. Those of several processes, or lanes, are never brought together."""
    return team.size == 1 and team.lanes == 1 and 0 < residuals <= FEW * weights


@dataclass(frozen=True)
class RowSystem:
    """The counterpart of `weight_system.WeightSystem` for few residuals.

    Attributes
    ----------
    rows : Tensor, shape (r, N_θ)
        G̃.
    inner : Tensor, shape (r, r), or None
        C, symmetric and positive semidefinite; None for 1.
    target : Tensor, shape (r,)
        ρ.
    pull : Tensor, shape (N_θ,)
        p θ.
    prior : Tensor, shape (N_θ,)
        p.
    measure : Tensor, shape (N_θ,)
        m.
    """

    rows: Tensor
    inner: Tensor | None
    target: Tensor
    pull: Tensor
    prior: Tensor
    measure: Tensor

    @classmethod
    def build(
        cls,
        rows: Tensor,
        inner: Tensor | None,
        target: Tensor,
        theta: Tensor,
        prior: Tensor,
        model: Model,
        *,
        exact: bool = False,
    ) -> RowSystem:
        """The system at θ with the measure that fits it (`weight_system.weight_measure`)."""
        curvature = (rows * (rows if inner is None else inner @ rows)).sum(0) + prior
        return cls(rows, inner, target, prior * theta, prior, weight_measure(curvature, model, exact=exact))

    @property
    def gradient(self) -> Tensor:
        """Half the gradient that is left when X follows, shape (N_θ,)."""
        return self.pull - self.rows.T @ self.target

    def determined(self, prior: Tensor) -> Tensor | None:
        """Share of each weight, shape (N_θ,), that the data determines: diagonal of p⁻¹ G̃ᵀ (1 + C H)⁻¹ C G̃ at μ = 0.

        The prior (N_θ,) is this system's p, given as `WeightSystem` needs it, which does not know what of S it is.

        None where a weight has no prior.
        """
        if not bool((prior > 0).all()):
            return None
        over = self.rows / prior
        H, inner = over @ self.rows.T, torch.eye(len(over)).to(over) if self.inner is None else self.inner
        matrix = inner @ H
        torch.diagonal(matrix).add_(1.0)
        left, info = torch.linalg.solve_ex(matrix, inner @ self.rows)
        return None if int(info) != 0 else (over * left).sum(0).clamp(0.0, 1.0)

    def solve(self, damping: float) -> Tensor | None:
        """Dθ for μ; None where the step is not finite."""
        diagonal = self.prior + damping * self.measure
        over = self.rows / diagonal
        H = over @ self.rows.T
        right_side = over @ self.pull
        if self.inner is not None:
            H, right_side = self.inner @ H, self.inner @ right_side
        torch.diagonal(H).add_(1.0)
        z, info = torch.linalg.solve_ex(H, self.target + right_side)
        if int(info) != 0:
            return None
        step = over.T @ z - self.pull / diagonal
        return step if bool(torch.isfinite(step).all()) else None
