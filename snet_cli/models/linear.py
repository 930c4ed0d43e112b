"""x' = A x + B u + c: the yardstick that every network has to beat, in closed form on step 0."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from snet_cli.models.base import Model, NodeData, StateSpace
from snet_cli.models.jacobian import PointJacobians, block_rows
from snet_cli.models.options import ModelOptions
from snet_cli.models.theta_blocks import ThetaJacobian


class Linear(Model):
    """x' = A x + B u + c with A (n, n), B (n, m), c (n,) in physical units."""

    def __init__(self, space: StateSpace, dtype: torch.dtype) -> None:
        super().__init__()
        n, m = len(space.states), len(space.inputs)
        self.A = nn.Parameter(torch.zeros(n, n, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(n, m, dtype=dtype))
        self.c = nn.Parameter(torch.zeros(n, dtype=dtype))

    @classmethod
    def build(cls, options: ModelOptions, space: StateSpace, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """A model of zeros, to be solved."""
        return cls(space, dtype)

    def from_features(self, *features: Tensor) -> Tensor:
        """A x + B u + c."""
        _, x, u = features
        return x @ self.A.T + u @ self.B.T + self.c

    def closed_form_jacobians(self, t: Tensor, x: Tensor, u: Tensor) -> PointJacobians:
        """∂f/∂x = A; ∂f_i/∂A_ij = x_j, ∂f_i/∂B_ij = u_j, ∂f_i/∂c_i = 1."""
        dtype, n = self.A.dtype, len(self.c)
        f = self.from_features(t, x.to(dtype), u.to(dtype)).detach().to(x.dtype)
        by_theta = [block_rows(part, n) for part in (x, u, torch.ones_like(x[:, :1]))]
        return PointJacobians(
            f, self.A.detach().to(x.dtype).expand(len(x), n, n), ThetaJacobian.full(torch.cat(by_theta, -1))
        )

    def solve_in_closed_form(self, data: NodeData) -> bool:
        """Weighted least squares of ẋ on (x, u, 1), with columns scaled to equal size before the QR factorisation.

        Directions that the data leaves open (collinear channels) get the solution of smallest norm.
        """
        regressors = torch.cat([data.x, data.u, torch.ones_like(data.x[:, :1])], dim=1).double()
        root = data.weight.double().sqrt()[:, None]
        scale = regressors.abs().amax(0).clamp_min(1e-300)
        solution = torch.linalg.lstsq(
            (root * regressors / scale).cpu(), (root * data.derivative.double()).cpu(), driver="gelsd"
        ).solution
        solution = (solution.to(scale.device) / scale[:, None]).T
        n, m = self.B.shape
        with torch.no_grad():
            self.A.copy_(solution[:, :n])
            self.B.copy_(solution[:, n : n + m])
            self.c.copy_(solution[:, -1])
        return True
