"""When a simulated trajectory is sampled: uniform, random or Gauss-Lobatto times, and which samples are kept."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from snet_cli.errors import UsageError
from snet_cli.systems.streams import Stream, generator

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Sampling = Literal["uniform", "random", "lobatto"]


def sample_times(
    kind: Sampling, horizon: float, samples: int, seed: int, trajectories: int, first: int = 0
) -> FloatArray:
    """Strictly increasing times from 0 to the horizon, both included; shape (B, K), from trajectory `first` on.

    Raises
    ------
    UsageError
        If more samples are asked for than there are Gauss-Lobatto nodes of order 100.
    """
    if kind == "uniform":
        return np.broadcast_to(np.linspace(0.0, horizon, samples), (trajectories, samples))
    if kind == "lobatto":
        if samples > 101:
            raise UsageError(
                f"sampling 'lobatto' has at most 101 samples (order 100), got {samples}.",
                "Ask for fewer samples, or for '--sampling random'.",
            )
        from snet_cli.spectral.legendre import gauss_lobatto  # scipy, needed by nothing else here

        nodes = gauss_lobatto(samples - 1).nodes
        times = 0.5 * horizon * (1.0 + nodes)
        times[-1] = horizon
        return np.broadcast_to(times, (trajectories, samples))
    numbers = range(first, first + trajectories)
    return np.stack([_random_times(horizon, samples, generator(seed, Stream.SAMPLING, b)) for b in numbers])


def _random_times(horizon: float, samples: int, rng: np.random.Generator) -> FloatArray:
    """Uniform random times between both ends, drawn again where two coincide; shape (K,)."""
    times = np.array([0.0, horizon])
    while times.size < samples:
        times = np.unique(np.concatenate([times, rng.uniform(0.0, horizon, samples - times.size)]))
    return times


def kept_samples(kind: Sampling, keep: float, samples: int, seed: int, trajectories: int, first: int = 0) -> IntArray:
    """Which samples of each trajectory stay, ascending, both ends always; shape (B, kept), from `first` on.

    Evenly spaced ones; a random subset where the times are random.
    """
    count = min(samples, max(2, round(keep * samples)))
    if kind != "random" or count == samples:
        even = np.rint(np.linspace(0, samples - 1, count)).astype(np.int64)
        return np.broadcast_to(even, (trajectories, count))
    ends = np.array([0, samples - 1])
    rows = []
    for trajectory in range(first, first + trajectories):
        inner = 1 + generator(seed, Stream.KEEP, trajectory).permutation(samples - 2)[: count - 2]
        rows.append(np.sort(np.concatenate([ends, inner])))
    return np.stack(rows).astype(np.int64)
