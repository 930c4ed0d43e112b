"""One seed is one truth: every random number belongs to (seed, stream, trajectory) and to nothing else.

So initial states and inputs stay the same whatever is sampled, kept or disturbed, and 20 trajectories are the first
20 of 100.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random number is for; the numbers are part of what a seed means and never change."""

    INITIAL_STATE = 0
    INPUTS = 1
    SAMPLING = 2
    KEEP = 3
    NOISE = 4
    MISSING = 5


def generator(seed: int, stream: Stream, trajectory: int) -> np.random.Generator:
    """The random numbers of one stream of one trajectory."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(stream), trajectory))))


def generators(seed: int, stream: Stream, trajectories: int, first: int = 0) -> Iterator[np.random.Generator]:
    """One generator per trajectory, in order, from number `first` on."""
    return (generator(seed, stream, trajectory) for trajectory in range(first, first + trajectories))
