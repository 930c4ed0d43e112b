"""The planar vehicle of Quaglino et al. (2020), Sec. 5 and App. A: η' = J(φ) v, M v' + d(v) + C(v) v = (Fx, 0, τ).

η = (x, y, φ) in the world frame, v = (vx, vy, ω) in the body frame; J the rotation by φ, M = diag(m, m, I),
C(v) = [[0, -mω, 0], [mω, 0, 0], [0, 0, 0]], d(v) = k_d v.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from snet_cli.data.signals import Inputs
from snet_cli.systems.system import Channels, Derivative, FloatArray, InputDraw, System, SystemParameters
from snet_cli.systems.waves import fourier_inputs

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = Channels(
    ("x", "y", "phi", "vx", "vy", "omega"),
    ("Fx", "tau"),
    {"x": "m", "y": "m", "phi": "rad", "vx": "m/s", "vy": "m/s", "omega": "rad/s", "Fx": "N", "tau": "N m"},
)


class VehicleParameters(SystemParameters):
    """Parameters of the vehicle; m = I = k_d = 1 in the paper."""

    m: Annotated[float, Field(gt=0)] = Field(default=1.0, description="Mass, kg.")
    I: Annotated[float, Field(gt=0)] = Field(default=1.0, description="Moment of inertia, kg m².")  # noqa: E741
    k_d: float = Field(default=1.0, description="Linear damping of all three body velocities.")
    harmonics: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="Harmonics of each input; 1 reproduces the paper's errors, 3 is harder."
    )
    amplitude: float = Field(default=1.0, description="Amplitude of the fundamental; harmonic k has amplitude / k.")


def start(parameters: VehicleParameters, rng: np.random.Generator) -> FloatArray:
    """All six states uniform in ±1."""
    return rng.uniform(-1.0, 1.0, 6)


def inputs(parameters: VehicleParameters, draw: InputDraw) -> Inputs:
    """Fx and τ as Fourier series."""
    return fourier_inputs(
        CHANNELS.inputs, CHANNELS.units, draw, amplitude=parameters.amplitude, harmonics=parameters.harmonics
    )


def derivative(parameters: VehicleParameters) -> Derivative:
    """η' = J v and v' = M⁻¹ (u - d - C v), written out."""
    import torch

    inverse_mass = torch.tensor([1.0 / parameters.m, 1.0 / parameters.I], dtype=torch.float64)
    damping = torch.tensor(
        [parameters.k_d / parameters.m, parameters.k_d / parameters.m, parameters.k_d / parameters.I],
        dtype=torch.float64,
    )

    def f(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        nonlocal inverse_mass, damping
        inverse_mass, damping = inverse_mass.to(x.device), damping.to(x.device)
        phi, vx, vy, omega = x[:, 2], x[:, 3], x[:, 4], x[:, 5]
        c, s = phi.cos(), phi.sin()
        rate = torch.empty_like(x)
        rate[:, 0] = c * vx - s * vy
        rate[:, 1] = s * vx + c * vy
        rate[:, 2] = omega
        rate[:, 3:] = -damping * x[:, 3:]
        rate[:, 3::2] += inverse_mass * u
        rate[:, 3] += omega * vy
        rate[:, 4] -= omega * vx
        return rate

    return f


VEHICLE = System(
    name="vehicle",
    title="planar vehicle with drift (Quaglino et al. 2020, App. A)",
    horizon=10.0,
    samples=100,
    parameters=VehicleParameters,
    channels=lambda parameters: CHANNELS,
    start=start,
    inputs=inputs,
    derivative=derivative,
)
