"""Search in many sorted lists at once: one query per trajectory, lists of unlike lengths.

Each list is divided into as many equal cells as it has values, and a table says where each cell begins. A query looks
up its cell and bisects inside it; on clocks that tick evenly that is one comparison, on any clock it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.trajectories import ragged_offsets

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class RaggedSearch:
    """B sorted lists, one after the other in `values`.

    Attributes
    ----------
    values : Tensor, shape (U,)
    table : Tensor of int64, shape (number of cells + 1,)
        First value of each cell, all lists one after the other.
    halvings : int
        Bisections that settle the fullest cell.
    first, last : Tensor of int64, shape (B,)
        The list of row b is ``values[first:last]``.
    cell_first, cell_last : Tensor of int64, shape (B,)
        First and last cell of the row.
    origin, density : Tensor, shape (B,)
        Start of the first cell, and cells per unit.
    """

    values: Tensor
    table: Tensor
    halvings: int
    first: Tensor
    last: Tensor
    cell_first: Tensor
    cell_last: Tensor
    origin: Tensor
    density: Tensor

    @classmethod
    def build(cls, values: FloatArray, row_size: IntArray, device: torch.device | str = "cpu") -> RaggedSearch:
        """Tables for sorted lists of `row_size` values each."""
        offsets = ragged_offsets(row_size)
        first, last = offsets[:-1], offsets[1:]
        padded = values if values.size else np.zeros(1)
        low = padded[np.minimum(first, padded.size - 1)]
        width = padded[np.maximum(last - 1, 0)] - low
        cells = np.maximum(row_size, 1)
        usable = (row_size > 1) & (width > 0)
        density = np.where(usable, cells / np.where(usable, width, 1.0), 0.0)
        density = np.where(np.isfinite(density), density, 0.0)
        cell_offsets = ragged_offsets(cells)
        owner = np.repeat(np.arange(row_size.size), row_size)
        inside = np.floor((values - low[owner]) * density[owner])
        cell = cell_offsets[owner] + np.clip(inside, 0, cells[owner] - 1).astype(np.int64)
        table = np.searchsorted(cell, np.arange(cell_offsets[-1] + 1))
        fullest = int(np.max(np.diff(table), initial=0))

        def put(array: NDArray[np.float64] | IntArray) -> Tensor:
            return torch.as_tensor(array, device=device)

        return cls(
            put(padded),
            put(table),
            fullest.bit_length(),
            put(first),
            put(last),
            put(cell_offsets[:-1]),
            put(cell_offsets[1:] - 1),
            put(low),
            put(density),
        )

    def select(self, rows: Tensor) -> RaggedSearch:
        """The lists of these rows, in this order; nothing but row tables is copied."""
        return replace(
            self,
            first=self.first[rows],
            last=self.last[rows],
            cell_first=self.cell_first[rows],
            cell_last=self.cell_last[rows],
            origin=self.origin[rows],
            density=self.density[rows],
        )

    def upto(self, query: Tensor, *, inclusive: bool) -> Tensor:
        """Index in `values` behind the last value that is < the query (<= with `inclusive`), shape (..., B).

        Parameters
        ----------
        query : Tensor, shape (..., B)
            Queries of row b in the last axis.
        """
        inside = torch.floor((query - self.origin) * self.density).nan_to_num(nan=0.0)
        room = (self.cell_last - self.cell_first).to(inside.dtype)
        cell = self.cell_first + torch.minimum(inside.clamp(min=0.0), room).to(torch.int64)
        low, high = self.table[cell], self.table[cell + 1]
        top = self.values.shape[0] - 1
        for _ in range(self.halvings):
            middle = (low + high) >> 1
            value = self.values[middle.clamp(max=top)]
            passed = (value <= query if inclusive else value < query) & (low < high)
            low, high = torch.where(passed, middle + 1, low), torch.where(passed, high, middle)
        return low
