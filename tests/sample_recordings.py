"""The recordings `sample_data/recording_a.csv` and `recording_b.csv`, made anew.

A damped pendulum with a motor, ``angle' = rate``, ``rate' = -6 sin(angle) - 0.4 rate + 2 torque``, the torque held
for half a second at a time; integrated by Runge-Kutta 4 in steps of 1 ms. Logged as loggers do: times that jitter, a
row whenever the torque changes, angles in degrees, a value missing here and there, two rows in the wrong order.
Run ``python tests/sample_recordings.py sample_data``.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SAMPLES = 400
STEP = 1e-3
HOLD = 0.5
HEADER = ("t [s]", "angle [deg]", "rate [rad/s]", "torque [N m]")


def rates(state: NDArray[np.float64], torque: float) -> NDArray[np.float64]:
    """Right-hand side of the pendulum."""
    angle, rate = state
    return np.array([rate, -6.0 * np.sin(angle) - 0.4 * rate + 2.0 * torque])


def simulate(seed: int) -> list[list[str]]:
    """Rows of one recording of 20 s."""
    random = np.random.default_rng(seed)
    torques = random.uniform(-1.0, 1.0, 41)
    state = np.array([random.uniform(-1.5, 1.5), 0.0])
    ticks = np.round((np.linspace(0, 20, SAMPLES) + random.uniform(-0.01, 0.01, SAMPLES)) / STEP)
    changes = np.arange(0, 20_001, round(HOLD / STEP))
    ticks = np.union1d(np.clip(ticks, 0, 20_000), changes).astype(int)
    rows = []
    for tick in range(20_001):
        torque = float(torques[int(tick * STEP / HOLD)])
        if tick in ticks:
            angle = np.degrees(state[0]) + random.normal(0, 0.1)
            rows.append(
                [f"{tick * STEP:.3f}", f"{angle:.2f}", f"{state[1] + random.normal(0, 0.01):.4f}", f"{torque:.4f}"]
            )
        k1 = rates(state, torque)
        k2 = rates(state + STEP / 2 * k1, torque)
        k3 = rates(state + STEP / 2 * k2, torque)
        k4 = rates(state + STEP * k3, torque)
        state = state + STEP / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    rows[50][1] = ""
    rows[51][2] = ""
    rows[120][1] = rows[120][2] = ""
    rows[200], rows[201] = rows[201], rows[200]
    return rows


def write(folder: Path) -> None:
    """Write both recordings."""
    for name, seed in (("recording_a.csv", 1), ("recording_b.csv", 2)):
        with (folder / name).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows(simulate(seed))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
