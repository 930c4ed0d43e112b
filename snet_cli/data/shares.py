"""Which process has which trajectories: contiguous ranges with nearly equal numbers of samples."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from snet_cli.errors import UsageError


def shares(size: NDArray[np.int64], parts: int) -> list[slice]:
    """Contiguous ranges of trajectories for each rank, none of them empty, with nearly equal sums of `size`.

    Parameters
    ----------
    size : ndarray of int, shape (B,)
        Samples of each trajectory.
    parts : int

    Raises
    ------
    UsageError
        If there are fewer trajectories than parts.
    """
    if parts > size.size:
        raise UsageError(
            f"{parts} processes for {size.size} trajectories: each needs at least one.",
            f"Start at most {size.size} (torchrun --nproc-per-node {size.size}).",
        )
    cost = np.cumsum(np.maximum(size, 1))
    middle = cost - 0.5 * np.maximum(size, 1)
    cut = np.searchsorted(middle, cost[-1] * np.arange(1, parts) / parts)
    numbers = np.arange(1, parts)
    cut = np.maximum.accumulate(np.maximum(cut, numbers) - numbers) + numbers  # at least one in front of each cut ...
    cut = np.minimum(cut, size.size - parts + numbers)  # ... and behind it
    bounds = [0, *cut.tolist(), size.size]
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]
