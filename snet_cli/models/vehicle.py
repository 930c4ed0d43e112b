"""Surrogate of the planar vehicle (Quaglino et al. 2020, eq. 8): η' = J(η) v, M v' + d(v) + C(v) v = u.

States x, y, phi (world frame) and vx, vy, omega (body frame); inputs Fx, tau. J, C (nine numbers each) and d (three)
are networks of one hidden layer; C and d have no bias, J sees (sin φ, cos φ). M = diag(m, m, I) is known.
"""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor, nn

from snet_cli.models.base import Model, StateSpace, last_layers, layers
from snet_cli.models.jacobian import PointJacobians, StackPass, as_matrix, block_rows
from snet_cli.models.options import ModelOptions, VehicleOptions
from snet_cli.models.stacks import StackForm, StackTerm
from snet_cli.models.theta_blocks import ThetaBlock, ThetaJacobian

STATES = ("x", "y", "phi", "vx", "vy", "omega")
INPUTS = ("Fx", "tau")


START = 0.1
"""Size of the first output weights, relative to those of other networks.

C and d of full size make a vehicle that blows up: of the seeds 0 to 9 DoPr5 cannot integrate six over 10 s within 5 000
evaluations, so that no solver method could take its first step. With a tenth all ten take about 150. The paper does not
say how its weights start.
"""


class Vehicle(Model):
    """One network each for J, C and d."""

    constants = ("m", "I")

    def __init__(self, options: VehicleOptions, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        width = options.hidden[0]
        self.J = layers([2, width, 9], options.activation, generator, dtype=dtype)
        self.C = layers([3, width, 9], options.activation, generator, bias=False, dtype=dtype)
        self.d = layers([3, width, 3], options.activation, generator, bias=False, dtype=dtype)
        with torch.no_grad():
            for parameter in self.linear_weights():
                parameter.mul_(START)

    @classmethod
    def build(cls, options: ModelOptions, space: StateSpace, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """New networks; the channels are fixed by `required_space`."""
        return cls(cast(VehicleOptions, options), generator, dtype)

    @classmethod
    def required_space(cls, outputs: tuple[str, ...]) -> StateSpace | None:
        """The six states and two inputs of the planar vehicle."""
        return StateSpace(STATES, INPUTS)

    def features(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """(sin φ, cos φ), v, the force u = (Fx, 0, τ) and the diagonal of M."""
        phi, v = x[..., 2], x[..., 3:]
        force = torch.stack([u[..., 0], torch.zeros_like(u[..., 0]), u[..., 1]], -1)
        mass = torch.stack([u[..., 2], u[..., 2], u[..., 3]], -1)
        return torch.stack([phi.sin(), phi.cos()], -1), v, force, mass

    def from_features(self, *features: Tensor) -> Tensor:
        """η' = J v and v' = M⁻¹ (u - d - C v)."""
        heading, v, force, mass = features
        return _rates(self.J(heading), self.C(v), self.d(v), v, force, mass)

    def linear_weights(self) -> tuple[nn.Parameter, ...]:
        """The last layers of J, C and d."""
        return last_layers(self.J, self.C, self.d)

    def in_stacks(self, *features: Tensor) -> StackForm:
        """Rows of η' from J, those of v' from C and d; u is known."""
        heading, v, force, mass = features
        position, velocity = slice(0, 3), slice(3, 6)
        along = v[:, None, :].expand(-1, 3, -1)
        terms = (
            StackTerm(self.J, heading, along, position),
            StackTerm(self.C, v, -along / mass[..., None], velocity),
            StackTerm(self.d, v, -1.0 / mass[..., None], velocity),
        )
        return StackForm(torch.cat([torch.zeros_like(v), force / mass], -1), terms)

    def closed_form_jacobians(self, t: Tensor, x: Tensor, u: Tensor) -> PointJacobians:
        """The rows of η' pass back through J, those of v' through C and d; M and (sin φ, cos φ) are known."""
        dtype = next(self.parameters()).dtype
        heading, v, force, mass = (part.to(dtype) for part in self.features(t, x, u))
        J, C, d = StackPass(self.J, heading), StackPass(self.C, v), StackPass(self.d, v)
        f = _rates(J.output, C.output, d.output, v, force, mass)

        sizes = [sum(p.numel() for p in network.parameters()) for network in (self.J, self.C, self.d)]
        upper, lower = x.new_empty(len(x), 3, sizes[0]), x.new_empty(len(x), 3, sizes[1] + sizes[2])
        rows = block_rows(v, 3)
        by_heading = J.pull_back(rows, upper)
        by_v = C.pull_back(-rows / mass[..., None], lower[..., : sizes[1]])
        by_v = by_v + d.pull_back(torch.diag_embed(-1.0 / mass), lower[..., sizes[1] :])
        blocks = (
            ThetaBlock(slice(0, 3), slice(0, sizes[0]), upper),
            ThetaBlock(slice(3, 6), slice(sizes[0], sum(sizes)), lower),
        )

        F = x.new_zeros(*x.shape, 6)
        sine, cosine = heading[:, None].unbind(-1)
        F[:, :3, 2] = by_heading[..., 0] * cosine - by_heading[..., 1] * sine
        F[:, :3, 3:] = as_matrix(J.output, 3)
        F[:, 3:, 3:] = by_v - as_matrix(C.output, 3) / mass[..., None]
        return PointJacobians(f.to(x.dtype), F, ThetaJacobian(blocks, (*x.shape, sum(sizes))))


def _rates(J: Tensor, C: Tensor, d: Tensor, v: Tensor, force: Tensor, mass: Tensor) -> Tensor:
    """η' = J v and v' = M⁻¹ (u - d - C v), with J and C as the networks give them, row after row."""
    position = (as_matrix(J, 3) * v[..., None, :]).sum(-1)
    coriolis = (as_matrix(C, 3) * v[..., None, :]).sum(-1)
    return torch.cat([position, (force - d - coriolis) / mass], -1)
