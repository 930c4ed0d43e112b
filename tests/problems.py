"""Closed forms that tests measure against."""

import numpy as np

from snet_cli.spectral.fitting import Samples


def oscillators(trajectories: int, samples: int, horizon: float = 10.0, seed: int = 0):
    """Samples of x(t) = (sin(3t + φ), cos t) with one phase φ per trajectory, the exact functions beside them."""
    phase = np.random.default_rng(seed).uniform(0, 6, trajectories)
    trajectory = np.repeat(np.arange(trajectories), samples)
    time = np.tile(np.linspace(0.0, horizon, samples), trajectories)

    def exact(trajectory, time):
        return np.stack([np.sin(3 * time + phase[trajectory]), np.cos(time)], -1)

    def slope(trajectory, time):
        return np.stack([3 * np.cos(3 * time + phase[trajectory]), -np.sin(time)], -1)

    return Samples(trajectory, time, exact(trajectory, time)), exact, slope
