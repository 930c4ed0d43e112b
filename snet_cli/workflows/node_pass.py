"""What a pass over the slices of a file keeps of a process's trajectories: x and u at their nodes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.constants import known_constants
from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import Team
from snet_cli.spectral.mesh import mesh_between
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.node_inputs import inputs_at_nodes
from snet_cli.training.relaxed_data import known_start_mask
from snet_cli.training.state_layout import StateLayout
from snet_cli.training.step_zero_slices import Discretisation, StepZeroSums

FloatArray = NDArray[np.float64]


def elements_of(spans: FloatArray, found: Discretisation) -> NDArray[np.int64]:
    """Elements of each trajectory, as `build_mesh` cuts them."""
    return np.maximum(1, np.rint(found.elements * np.nan_to_num(spans) / found.longest)).astype(np.int64)


class NodePass:
    """What a pass over this process's slices keeps."""

    def __init__(
        self,
        spans: FloatArray,
        found: Discretisation,
        layout: StateLayout,
        inputs: tuple[str, ...],
        constants: tuple[str, ...],
    ) -> None:
        self.found, self.layout, self.inputs, self.constants = found, layout, inputs, constants
        count, P = int(elements_of(spans, found).sum()), found.order + 1
        self.nodes = np.empty((count, P, len(layout.states)))
        self.u = np.empty((count, P, len(inputs)))
        self.determined = np.empty(count, bool)
        self.boundaries: list[FloatArray] = []
        self.counts: list[NDArray[np.int64]] = []
        self.known: list[FloatArray] = []
        self.values: list[NDArray[np.int64]] = []
        self.done = self.free = 0
        self.bounds: tuple[int, ...] = (0,)

    def take(self, data: Trajectories, sums: StepZeroSums) -> None:
        """Fit a slice, and keep it."""
        series = sums.add(data)
        part = slice(self.done, self.done + series.mesh.elements)
        columns = [data.inputs.names.index(name) for name in self.inputs]
        self.nodes[part], self.determined[part] = series.nodes, series.determined
        self.u[part] = inputs_at_nodes(series.mesh, data.inputs)[:, :, columns]
        self.boundaries.append(series.mesh.boundaries)
        self.counts.append(np.diff(series.mesh.first_element))
        self.bounds = (*self.bounds, self.bounds[-1] + len(data))
        measured = np.isfinite(data.outputs).astype(np.int64)
        self.values.append(np.add.reduceat(measured, data.offsets[:-1], axis=0).min(1))
        known_start = known_start_mask(data, self.layout.states)[0]
        known_start[:, [state for state, _ in self.layout.lags]] = True  # they start at u(t0)
        self.free += int((~known_start).sum())
        known = known_constants(data, self.constants)
        one = self.known[0][:1] if self.known else known[:1]
        alike = all(len(earlier) == 1 for earlier in self.known) and bool((known == one).all())
        self.known.append(known[:1] if alike else known)
        if not alike:  # those before had one row for all of theirs
            self.known = [
                np.repeat(one, len(count), 0) if len(rows) == 1 else rows
                for rows, count in zip(self.known, self.counts, strict=True)
            ]
        self.done = part.stop

    def problem(self, layout: StateLayout, device: torch.device, team: Team, *, everywhere: bool) -> BlockProblem:
        """All of it as a problem in blocks; elements in gaps do not count, unless they are most of all, or all do."""
        mesh = mesh_between(np.concatenate(self.boundaries), np.concatenate(self.counts), self.found.order)
        known, whole = team.total(float(self.determined.sum()), float(mesh.elements))
        counts = self.determined | (known < 0.5 * whole) | everywhere
        alike = all(len(rows) == 1 for rows in self.known)
        constants = self.known[0] if alike else np.concatenate(self.known)
        scale = np.ones(len(layout.states))
        problem = BlockProblem(layout, mesh, self.nodes, self.u, constants, np.flatnonzero(counts), 1.0, scale, device)
        return problem.of(problem.elements, team)

    def least_samples(self, spans: FloatArray, found: Discretisation, team: Team) -> float:
        """Measured values per unknown of a series on this discretisation, of the sparsest trajectory and channel."""
        ratio = np.concatenate(self.values) / (elements_of(spans, found) * found.order + 1)
        return -team.largest(-float(ratio.min()))[0]

    def mean_constants(self, team: Team) -> list[float]:
        """Mean of each known constant over all trajectories."""
        weights = [float(len(count)) / len(rows) for rows, count in zip(self.known, self.counts, strict=True)]
        sums = sum(weight * rows.sum(0) for weight, rows in zip(weights, self.known, strict=True))
        *totals, count = team.total(*np.atleast_1d(sums).tolist(), float(sum(len(count) for count in self.counts)))
        if all(len(rows) == 1 for rows in self.known):
            return [float(value) for value in self.known[0][0]]
        return [total / count for total in totals]
