"""Agents in the plane under a known policy (Quaglino et al. 2020, Sec. 6 and App. B), in three configurations.

The equations are in `snet_cli.dynamics.multi_agent`. f jumps where an angle wraps, so that the truth is held to a
tolerance that a discontinuous f allows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from snet_cli.data.signals import Inputs
from snet_cli.systems.system import Channels, Derivative, FloatArray, InputDraw, System, SystemParameters
from snet_cli.systems.waves import fourier_inputs

if TYPE_CHECKING:
    from torch import Tensor

TRUTH_RTOL = 1e-10
HORIZON, SAMPLES = 10.0, 100


class MultiAgentParameters(SystemParameters):
    """The paper's training configuration."""

    agents: Annotated[int, Field(ge=1, le=1000)] = Field(default=10, description="Number of agents N_a.")
    k_v: float = Field(default=0.05, description="Forward speed of the control policy.")
    k_phi: float = Field(default=0.1, description="Gain of the heading towards the origin.")
    k_vo: float = Field(default=0.001, description="Gain of slowing down near others.")
    k_phio: float = Field(default=0.01, description="Gain of turning away from others.")
    l_s: Annotated[float, Field(gt=0)] = Field(default=0.01, description="Length over which others are felt, m.")
    heading_selectivity: float = Field(
        default=1.0, description="Factor of |δφ_ij + π/2| in the exponent: 1 in the training policy, 0 in the test one."
    )
    wrap: bool = Field(
        default=True, description="Wrap differences of angles to (-π, π]; false is the system as it is printed."
    )
    harmonics: Annotated[int, Field(ge=1, le=1000)] = Field(default=1, description="Harmonics of w_v and w_omega.")
    amplitude: float = Field(
        default=0.1, description="Amplitude of the fundamental of w; harmonic k has amplitude / k."
    )


class MultiAgentGainsParameters(MultiAgentParameters):
    """The test policy and gains with w, used for training (App. C)."""

    k_vo: float = Field(default=0.05, description="Gain of slowing down near others.")
    k_phio: float = Field(default=0.1, description="Gain of turning away from others.")
    heading_selectivity: float = Field(
        default=0.0, description="Factor of |δφ_ij + π/2| in the exponent: 1 in the training policy, 0 in the test one."
    )


class MultiAgentTestParameters(MultiAgentGainsParameters):
    """The paper's test configuration: w = 0."""

    amplitude: float = Field(
        default=0.0, description="Amplitude of the fundamental of w; harmonic k has amplitude / k."
    )


def channels(parameters: MultiAgentParameters) -> Channels:
    """x1, y1, phi1, x2, ..., and the two shared inputs."""
    numbers = range(1, parameters.agents + 1)
    kinds = (("x", "m"), ("y", "m"), ("phi", "rad"))
    units = {f"{kind}{i}": unit for i in numbers for kind, unit in kinds}
    return Channels(tuple(units), ("w_v", "w_omega"), units | {"w_v": "m/s", "w_omega": "rad/s"})


def start(parameters: MultiAgentParameters, rng: np.random.Generator) -> FloatArray:
    """Positions uniform in ±1, headings in ±π."""
    unit: FloatArray = rng.uniform(-1.0, 1.0, (parameters.agents, 3)) * np.array([1.0, 1.0, math.pi])
    return unit.ravel()


def inputs(parameters: MultiAgentParameters, draw: InputDraw) -> Inputs:
    """The exogenous signal w, shared by all agents."""
    names, units = ("w_v", "w_omega"), {"w_v": "m/s", "w_omega": "rad/s"}
    return fourier_inputs(names, units, draw, amplitude=parameters.amplitude, harmonics=parameters.harmonics)


def derivative(parameters: MultiAgentParameters) -> Derivative:
    """η_i' = J(φ_i) v_i under the policy."""
    import torch

    from snet_cli.dynamics.multi_agent import CONSTANTS, kinematics, policy_velocities

    constants = torch.tensor([float(getattr(parameters, name)) for name in CONSTANTS], dtype=torch.float64)

    def f(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return kinematics(x, policy_velocities(x, u, constants.to(x.device).expand(x.shape[0], -1)))

    return f


MULTI_AGENT = System(
    name="multi-agent",
    title="ten agents in the plane, training policy (Quaglino et al. 2020, App. B)",
    horizon=HORIZON,
    samples=SAMPLES,
    parameters=MultiAgentParameters,
    channels=channels,
    start=start,
    inputs=inputs,
    derivative=derivative,
    rtol=TRUTH_RTOL,
)

MULTI_AGENT_TEST = System(
    name="multi-agent-test",
    title="ten agents in the plane, test policy and gains, w = 0 (App. B)",
    horizon=HORIZON,
    samples=SAMPLES,
    parameters=MultiAgentTestParameters,
    channels=channels,
    start=start,
    inputs=inputs,
    derivative=derivative,
    rtol=TRUTH_RTOL,
)

MULTI_AGENT_GAINS = System(
    name="multi-agent-gains",
    title="ten agents in the plane, test policy and gains with w, for training (App. C)",
    horizon=HORIZON,
    samples=SAMPLES,
    parameters=MultiAgentGainsParameters,
    channels=channels,
    start=start,
    inputs=inputs,
    derivative=derivative,
    rtol=TRUTH_RTOL,
)
