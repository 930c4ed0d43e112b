"""Inputs of ground truths: Fourier series with random phases, and multi-level steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from snet_cli.data.signals import FourierInputs, Inputs, SampledInputs
from snet_cli.systems.system import InputDraw


def fourier_inputs(
    names: tuple[str, ...], units: Mapping[str, str], draw: InputDraw, *, amplitude: float, harmonics: int
) -> Inputs:
    """u(t) = Σ_k (amplitude / k) cos(k ω t - phase_k), ω = 2π / period, k = 1 … harmonics.

    Phases are uniform, each input has its own, and they are drawn harmonic by harmonic: more harmonics leave the
    first ones as they are.
    """
    order = np.arange(1, harmonics + 1)
    phase = np.stack(
        [rng.uniform(0.0, 2.0 * math.pi, (harmonics, len(names))).T for rng in draw.generators]
    )  # (B, m, H)
    omega = np.broadcast_to(2.0 * math.pi / draw.period * order, phase.shape).copy()
    size = amplitude / order
    mean = np.zeros(phase.shape[:2])
    series = FourierInputs(names, mean, omega, size * np.cos(phase), size * np.sin(phase))
    return Inputs(names, fourier=series, units={name: units[name] for name in names})


def level_inputs(name: str, unit: str, draw: InputDraw, *, lowest: float, highest: float, hold: float) -> Inputs:
    """One input that holds uniformly drawn levels for `hold` seconds each, to the first multiple behind the horizon."""
    knots = math.ceil(draw.horizon / hold * (1.0 - 1e-12)) + 1
    values = np.concatenate([rng.uniform(lowest, highest, knots) for rng in draw.generators])
    trajectories = values.size // knots
    sampled = SampledInputs(
        (name,),
        np.full(trajectories, knots, np.int64),
        np.tile(hold * np.arange(knots), trajectories),
        values[:, None],
        ("zoh",),
    )
    return Inputs((name,), sampled=sampled, units={name: unit})
