"""Small data that is cut into small slices, as if the memory were small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from snet_cli.data import trajectory_slices
from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.data.trajectories import Trajectories
from snet_cli.simulation.simulate import simulate
from snet_cli.training import blocks
from snet_cli.workflows import forecast_plan, memory, sliced_data, slices_parts, slices_setup

LAST_DIGITS = 1e-9
"""What is summed over slices has other last digits: this is far above them and far below anything else."""


def recordings(system: str = "vehicle", trajectories: int = 20) -> Trajectories:
    """Ragged recordings of a known system: of each sample but the ends one in ten is lost, some values too."""
    horizon = 2.0 if system == "vehicle" else None
    data = simulate(
        system, trajectories=trajectories, horizon=horizon, samples=30, noise=0.01, missing=0.02
    ).trajectories
    keep = np.random.default_rng(1).random(data.time.size) < 0.9
    keep[data.offsets[:-1]] = keep[data.offsets[1:] - 1] = True
    data = data.select_rows(keep)
    return replace(data, split=np.where(np.arange(trajectories) % 5 == 2, 1, 0))


def slice_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is too large, and slices and blocks are small."""
    monkeypatch.setattr(trajectory_slices, "SLICE_SAMPLES", 80)
    monkeypatch.setattr(blocks, "BLOCK_POINTS", 40)
    monkeypatch.setattr(sliced_data, "NUMBERS_AT_LEAST", 0)
    monkeypatch.setattr(sliced_data, "FIT_COPIES", 1e12)
    monkeypatch.setattr(sliced_data, "MOVING_COPIES", 1e12)
    monkeypatch.setattr(slices_setup, "WORKING_ROOM", 0.0)
    monkeypatch.setattr(slices_parts, "WORKING_ROOM", 0.0)
    monkeypatch.setattr(slices_setup, "LEAST_BATCH", 1e5)
    monkeypatch.setattr(forecast_plan, "FORECAST_SAMPLES", 100)
    monkeypatch.setattr(memory, "of_forecasts", lambda times, states: 1e30)


def theta(path: str) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in load_checkpoint(path).state.values()])
