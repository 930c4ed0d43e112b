"""Surrogate of many vehicles under a known policy (Quaglino et al. 2020, App. B): η_i' = J(η_i) v_i, J learned.

States x1, y1, phi1, x2, ...; inputs w_v, w_omega, shared by all agents. One J: (sin φ, cos φ) -> 32 tanh -> 6 serves
all agents; the velocities v_i come from the policy, whose gains are known constants of the data.
"""

from __future__ import annotations

import re
from typing import Self, cast

import torch
from torch import Tensor

from snet_cli.dynamics.multi_agent import CONSTANTS, policy_velocities
from snet_cli.models.base import Model, StateSpace, layers
from snet_cli.models.options import ModelOptions, MultiAgentOptions


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
        J = self.J(heading).unflatten(-1, (3, 2))
        return (J * velocities[..., None, :]).sum(-1).flatten(-2)
