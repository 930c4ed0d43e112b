"""Surrogate of the planar vehicle (Quaglino et al. 2020, eq. 8): η' = J(η) v, M v' + d(v) + C(v) v = u.

States x, y, phi (world frame) and vx, vy, omega (body frame); inputs Fx, tau. J, C (nine numbers each) and d (three)
are networks of one hidden layer; C and d have no bias, J sees (sin φ, cos φ). M = diag(m, m, I) is known.
"""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor

from snet_cli.models.base import Model, StateSpace, layers
from snet_cli.models.options import ModelOptions, VehicleOptions

STATES = ("x", "y", "phi", "vx", "vy", "omega")
INPUTS = ("Fx", "tau")


class Vehicle(Model):
    """One network each for J, C and d."""

    constants = ("m", "I")

    def __init__(self, options: VehicleOptions, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        width = options.hidden[0]
        self.J = layers([2, width, 9], options.activation, generator, dtype=dtype)
        self.C = layers([3, width, 9], options.activation, generator, bias=False, dtype=dtype)
        self.d = layers([3, width, 3], options.activation, generator, bias=False, dtype=dtype)

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
        J = self.J(heading).unflatten(-1, (3, 3))
        C = self.C(v).unflatten(-1, (3, 3))
        position = (J * v[..., None, :]).sum(-1)
        coriolis = (C * v[..., None, :]).sum(-1)
        return torch.cat([position, (force - self.d(v) - coriolis) / mass], -1)
