"""Textbook systems: pendulum, Duffing, van der Pol, Lotka-Volterra, cascaded tanks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from snet_cli.data.signals import Inputs
from snet_cli.systems.system import Channels, Derivative, FloatArray, System, SystemParameters
from snet_cli.systems.waves import fourier_inputs, level_inputs

if TYPE_CHECKING:
    from torch import Tensor

Positive = Annotated[float, Field(gt=0)]
Harmonics = Annotated[int, Field(ge=1, le=1000)]


class PendulumParameters(SystemParameters):
    """θ'' = -(g/l) sin θ - (c θ' - torque) / (m l²); θ = 0 hangs down."""

    g: Positive = Field(default=9.81, description="Gravity, m/s².")
    l: Positive = Field(default=1.0, description="Length, m.")  # noqa: E741
    m: Positive = Field(default=1.0, description="Mass, kg.")
    c: float = Field(default=0.2, description="Friction of the joint, N m s.")
    harmonics: Harmonics = Field(default=1, description="Harmonics of the torque.")
    amplitude: float = Field(default=1.0, description="Amplitude of the torque's fundamental, N m.")


def _pendulum(p: PendulumParameters) -> Derivative:
    import torch

    inertia = p.m * p.l**2

    def f(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        theta, omega = x[:, 0], x[:, 1]
        return torch.stack([omega, -(p.g / p.l) * theta.sin() + (u[:, 0] - p.c * omega) / inertia], 1)

    return f


PENDULUM_CHANNELS = Channels(("theta", "omega"), ("torque",), {"theta": "rad", "omega": "rad/s", "torque": "N m"})

PENDULUM = System(
    name="pendulum",
    title="damped pendulum driven by a torque",
    horizon=10.0,
    samples=100,
    parameters=PendulumParameters,
    channels=lambda p: PENDULUM_CHANNELS,
    start=lambda p, rng: rng.uniform(-1.0, 1.0, 2) * np.array([0.5 * math.pi, 1.0]),
    inputs=lambda p, draw: fourier_inputs(
        ("torque",), PENDULUM_CHANNELS.units, draw, amplitude=p.amplitude, harmonics=p.harmonics
    ),
    derivative=_pendulum,
)


class DuffingParameters(SystemParameters):
    """x'' = -delta x' - alpha x - beta x³ + force."""

    alpha: float = Field(default=-1.0, description="Linear stiffness; negative gives two wells.")
    beta: float = Field(default=1.0, description="Cubic stiffness.")
    delta: float = Field(default=0.3, description="Damping.")
    harmonics: Harmonics = Field(default=1, description="Harmonics of the force.")
    amplitude: float = Field(default=0.3, description="Amplitude of the force's fundamental.")


def _duffing(p: DuffingParameters) -> Derivative:
    import torch

    def f(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        q, v = x[:, 0], x[:, 1]
        return torch.stack([v, u[:, 0] - p.delta * v - (p.alpha + p.beta * q * q) * q], 1)

    return f


DUFFING_CHANNELS = Channels(("x", "v"), ("force",), {"x": "", "v": "", "force": ""})

DUFFING = System(
    name="duffing",
    title="forced Duffing oscillator with two wells",
    horizon=20.0,
    samples=200,
    parameters=DuffingParameters,
    channels=lambda p: DUFFING_CHANNELS,
    start=lambda p, rng: rng.uniform(-1.5, 1.5, 2),
    inputs=lambda p, draw: fourier_inputs(
        ("force",), DUFFING_CHANNELS.units, draw, amplitude=p.amplitude, harmonics=p.harmonics
    ),
    derivative=_duffing,
)


class VanDerPolParameters(SystemParameters):
    """x'' = mu (1 - x²) x' - x."""

    mu: float = Field(default=1.0, description="Strength of the nonlinear damping.")


def _van_der_pol(p: VanDerPolParameters) -> Derivative:
    import torch

    def f(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        q, v = x[:, 0], x[:, 1]
        return torch.stack([v, p.mu * (1.0 - q * q) * v - q], 1)

    return f


VAN_DER_POL = System(
    name="van-der-pol",
    title="van der Pol oscillator, no input",
    horizon=20.0,
    samples=200,
    parameters=VanDerPolParameters,
    channels=lambda p: Channels(("x", "v"), (), {"x": "", "v": ""}),
    start=lambda p, rng: rng.uniform(-2.0, 2.0, 2),
    inputs=lambda p, draw: Inputs.none(),
    derivative=_van_der_pol,
)


class LotkaVolterraParameters(SystemParameters):
    """prey' = (alpha - beta predator) prey, predator' = (delta prey - gamma) predator."""

    alpha: Positive = Field(default=1.0, description="Growth rate of the prey.")
    beta: Positive = Field(default=1.0, description="Loss of prey per predator.")
    delta: Positive = Field(default=1.0, description="Growth of predators per prey.")
    gamma: Positive = Field(default=1.0, description="Death rate of the predators.")


def _lotka_volterra(p: LotkaVolterraParameters) -> Derivative:
    import torch

    def f(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        prey, predator = x[:, 0], x[:, 1]
        return torch.stack([(p.alpha - p.beta * predator) * prey, (p.delta * prey - p.gamma) * predator], 1)

    return f


LOTKA_VOLTERRA = System(
    name="lotka-volterra",
    title="predators and prey, no input",
    horizon=20.0,
    samples=200,
    parameters=LotkaVolterraParameters,
    channels=lambda p: Channels(("prey", "predator"), (), {"prey": "", "predator": ""}),
    start=lambda p, rng: rng.uniform(0.5, 2.0, 2),
    inputs=lambda p, draw: Inputs.none(),
    derivative=_lotka_volterra,
)


class TanksParameters(SystemParameters):
    """h1' = k_u pump - k1 √h1, h2' = k1 √h1 - k2 √h2 (Torricelli); a full tank spills what would raise it further."""

    k_u: Positive = Field(default=0.04, description="Rise of the upper level per volt and second.")
    k1: Positive = Field(default=0.05, description="Outflow of the upper tank.")
    k2: Positive = Field(default=0.05, description="Outflow of the lower tank.")
    height: Positive = Field(default=10.0, description="Level at which a tank overflows.")
    lowest: Positive = Field(default=1.0, description="Smallest pump voltage.")
    highest: Positive = Field(default=3.5, description="Largest pump voltage.")
    hold: Positive = Field(default=40.0, description="Time for which each voltage is held, s.")

    @model_validator(mode="after")
    def _voltages_in_order(self) -> Self:
        if self.lowest > self.highest:
            raise ValueError(f"lowest ({self.lowest:g}) is above highest ({self.highest:g})")
        return self


def _tanks(p: TanksParameters) -> Derivative:
    import torch

    def f(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        outflow = x.clamp(min=0.0).sqrt() * torch.tensor([p.k1, p.k2], dtype=x.dtype, device=x.device)
        inflow = torch.stack([p.k_u * u[:, 0], outflow[:, 0]], 1)
        rate = inflow - outflow
        return torch.where(x >= p.height, rate.clamp(max=0.0), rate)

    return f


def _tank_start(p: TanksParameters, rng: np.random.Generator) -> FloatArray:
    return rng.uniform(0.2, 0.6, 2) * p.height


CASCADED_TANKS = System(
    name="cascaded-tanks",
    title="two tanks in cascade, pump voltage in steps, overflow",
    horizon=1000.0,
    samples=250,
    parameters=TanksParameters,
    channels=lambda p: Channels(("h1", "h2"), ("pump",), {"h1": "cm", "h2": "cm", "pump": "V"}),
    start=_tank_start,
    inputs=lambda p, draw: level_inputs("pump", "V", draw, lowest=p.lowest, highest=p.highest, hold=p.hold),
    derivative=_tanks,
)
