"""The relaxed problem (`training.relaxed`) of more samples than belong into memory: they are read when they are needed.

X and u at the nodes stay in memory, as for R alone (`blocks`). What L needs beside them is the samples, of which every
pass over the trajectories asks for one slice after the other. None is kept: on vehicles reading one takes a hundredth
of the time that is spent on it. A slice gives the very `RelaxedProblem` that it would be in the whole, up to rounding,
so that methods which work on one part after the other stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import Team
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.relaxed import RelaxedPart, RelaxedParts, misfit
from snet_cli.training.relaxed_data import known_start_mask, relax

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RelaxedSlices:
    """One process's trajectories (`relaxed.RelaxedParts`).

    Attributes
    ----------
    problem : BlockProblem
        Mesh, inputs and scales; every element counts.
    bounds : tuple of int
        First trajectory of each slice among those of this process, and their number.
    read : callable
        The samples of the slice with this number.
    channels : ndarray, shape (d,)
        c of L.
    free : bool
        Whether x(t0) is, also where it is known.
    times : float
        K: sample times that hold any value, of all processes; the time of all trajectories is the problem's `total`.
    """

    problem: BlockProblem
    bounds: tuple[int, ...]
    read: Callable[[int], Trajectories]
    channels: FloatArray
    free: bool
    times: float

    @property
    def mesh(self) -> Mesh:
        """Of all trajectories of this process."""
        return self.problem.mesh

    @property
    def count(self) -> int:
        """Number of slices."""
        return len(self.bounds) - 1

    @property
    def quadrature(self) -> Tensor:
        """(T_b / ΣT) w_q of all elements, shape (N, P)."""
        weight = 0.5 * self.mesh.width[:, None] / self.problem.total * self.mesh.basis.weights
        return torch.from_numpy(weight).to(self.problem.device)

    def sample_times(self, team: Team) -> int:
        """K of all processes."""
        return int(self.times)

    def part(self, number: int) -> RelaxedPart:
        """One slice, read anew."""
        begin, end = self.bounds[number], self.bounds[number + 1]
        data = self.read(number)
        problem = self.problem.between(begin, end)
        known = None if self.free else known_start_mask(data, problem.layout.states)[0]
        relaxed = relax(problem, data, self.channels, known_start=known).among(self.problem.total, self.times)
        first = self.mesh.first_element
        return RelaxedPart(relaxed, slice(begin, end), slice(int(first[begin]), int(first[end])))


def total_misfit(parts: RelaxedParts, nodes: Tensor, team: Team) -> float:
    """L over all parts and processes."""
    own = [misfit(part.relaxed, nodes[part.elements]).sum() for part in map(parts.part, range(parts.count))]
    return float(team.sum(torch.stack(own).sum())[0])


def squared_errors(parts: RelaxedParts, nodes: Tensor, team: Team) -> Tensor:
    """Squared errors of each output (d,) at the samples, whatever these count, over all parts and processes."""
    sums = []
    for part in map(parts.part, range(parts.count)):
        measured = part.relaxed.observed.weight > 0
        sums.append(torch.where(measured, part.relaxed.error(nodes[part.elements]), 0.0).square().sum(0))
    return team.sum(torch.stack(sums).sum(0))[0]
