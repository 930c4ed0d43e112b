"""Surrogate of many vehicles under a known policy (Quaglino et al. 2020, App. B): η_i' = J(η_i) v_i, J learned.

States x1, y1, phi1, x2, ...; inputs w_v, w_omega, shared by all agents. One J: (sin φ, cos φ) -> 32 tanh -> 6 serves
all agents; the velocities v_i come from the policy, whose gains are known constants of the data.
"""

from __future__ import annotations

import re
from typing import Self, cast

import torch
from torch import Tensor, nn

from snet_cli.dynamics.multi_agent import CONSTANTS, policy_jacobian, policy_velocities
from snet_cli.models.base import Model, StateSpace, last_layers, layers
from snet_cli.models.jacobian import PointJacobians, StackPass, as_matrix, block_rows
from snet_cli.models.options import ModelOptions, MultiAgentOptions
from snet_cli.models.stacks import StackForm, StackTerm
from snet_cli.models.theta_blocks import ThetaJacobian


class MultiAgent(Model):
    """One network J, shared by all agents."""

    constants = CONSTANTS

    def __init__(self, options: MultiAgentOptions, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.J = layers([2, options.hidden[0], 6], options.activation, generator, dtype=dtype)

    @classmethod
    def build(cls, options: ModelOptions, space: StateSpace, generator: torch.Generator, dtype: torch.dtype) -> Self:
        """New networks; the channels are fixed by `required_space`."""
        return cls(cast(MultiAgentOptions, options), generator, dtype)

    @classmethod
    def required_space(cls, outputs: tuple[str, ...]) -> StateSpace | None:
        """Three states per agent, of which the outputs name some (x1, y1, phi1, x2, ...), and the two shared inputs."""
        numbers = [re.fullmatch(r"(?:x|y|phi)([1-9][0-9]{0,3})", name) for name in outputs]
        agents = max((int(found[1]) for found in numbers if found), default=1)
        states = tuple(f"{q}{i}" for i in range(1, agents + 1) for q in ("x", "y", "phi"))
        return StateSpace(states, ("w_v", "w_omega"))

    def features(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """(sin φ_i, cos φ_i), shape (..., N_a, 2), and the policy's velocities v_i, shape (..., N_a, 2)."""
        phi = x[..., 2::3]
        velocities = policy_velocities(x, u[..., :2], u[..., 2:])
        return torch.stack([phi.sin(), phi.cos()], -1), velocities

    def from_features(self, *features: Tensor) -> Tensor:
        """η_i' = J(φ_i) v_i for all agents at once."""
        heading, velocities = features
        return _rates(self.J(heading), velocities)

    def linear_weights(self) -> tuple[nn.Parameter, ...]:
        """The last layer of J."""
        return last_layers(self.J)

    def in_stacks(self, *features: Tensor) -> StackForm:
        """Every agent at every point is a point of the shared network."""
        heading, velocities = (part.flatten(0, 1) for part in features)
        gain = velocities[:, None, :].expand(-1, 3, -1)
        return StackForm(heading.new_zeros(len(heading), 3), (StackTerm(self.J, heading, gain, slice(0, 3)),))

    def closed_form_jacobians(self, t: Tensor, x: Tensor, u: Tensor) -> PointJacobians:
        """Every agent at every point is a point of the shared network J; the policy couples the agents in ∂f/∂x."""
        G = x.new_empty(*x.shape, sum(p.numel() for p in self.parameters()))
        f, F = self._pull_back(t, x, u, G)
        return PointJacobians(f, F, ThetaJacobian.full(G))

    def closed_form_state_jacobian(self, t: Tensor, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The same without ∂f/∂θ: the number of backward passes does not grow with the agents."""
        return self._pull_back(t, x, u, None)

    def _pull_back(self, t: Tensor, x: Tensor, u: Tensor, G: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rates f and ∂f/∂x; ∂f/∂θ is written to G where it is given."""
        dtype = next(self.parameters()).dtype
        heading, velocities = (part.to(dtype) for part in self.features(t, x, u))
        points, agents, _ = heading.shape
        J = StackPass(self.J, heading.flatten(0, 1))
        f = _rates(J.output.view(points, agents, 6), velocities)
        by_theta = None if G is None else G.view(points * agents, 3, G.shape[-1])
        by_heading = J.pull_back(block_rows(velocities.flatten(0, 1), 3), by_theta).view(points, agents, 3, 2)

        by_policy = policy_jacobian(x, u[:, :2], u[:, 2:])  # (Q, N_a, 2, 3 N_a)
        F = J.output.to(x.dtype).view(points, agents, 3, 2) @ by_policy
        by_own_phi = F.view(points, agents, 3, agents, 3)[..., 2].diagonal(dim1=1, dim2=3)  # (Q, 3, N_a)
        sine, cosine = heading.view(points, agents, 1, 2).unbind(-1)
        by_own_phi += (by_heading[..., 0] * cosine - by_heading[..., 1] * sine).mT
        return f.to(x.dtype), F.flatten(1, 2)


def _rates(J: Tensor, velocities: Tensor) -> Tensor:
    """η_i' = J(φ_i) v_i of all agents, with J (..., N_a, 6) as the network gives it, row after row."""
    return (as_matrix(J, 3) * velocities[..., None, :]).sum(-1).flatten(-2)
