"""Meshes: every trajectory cut into elements, on each of which x is a polynomial of order p.

Elements of all trajectories stand in one flat list of length N, trajectory by trajectory, so that ragged horizons
need no padding. Node values have shape (N, P, n); neighbours within a trajectory share their end node, hence x is
continuous, and each of them holds its own copy of the shared value. Times are in the data's unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snet_cli.spectral.legendre import Basis, legendre_basis, legendre_values

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Mesh:
    """Elements of B trajectories.

    Attributes
    ----------
    basis : Basis
        The basis of order p that all elements use.
    trajectory : ndarray, shape (N,)
        Which trajectory each element belongs to; ascending.
    boundaries : ndarray, shape (N + B,)
        Element boundaries of trajectory after trajectory, E_b + 1 each.
    first_element : ndarray, shape (B + 1,)
        Where each trajectory's elements begin, and N.
    """

    basis: Basis
    trajectory: IntArray
    boundaries: FloatArray
    first_element: IntArray

    @property
    def elements(self) -> int:
        """Number of elements N of all trajectories together."""
        return int(self.trajectory.size)

    @property
    def trajectories(self) -> int:
        """Number of trajectories B."""
        return int(self.first_element.size - 1)

    @property
    def elements_of_longest(self) -> int:
        """The E of `--elements`: most elements that any trajectory has."""
        return int(np.diff(self.first_element).max())

    @property
    def left_boundary(self) -> IntArray:
        """Position of each element's left end in `boundaries`, shape (N,)."""
        return np.arange(self.elements) + self.trajectory

    @property
    def left(self) -> FloatArray:
        """Left end of each element, shape (N,)."""
        return self.boundaries[self.left_boundary]

    @property
    def width(self) -> FloatArray:
        """Length h of each element, shape (N,)."""
        return self.boundaries[self.left_boundary + 1] - self.left

    @property
    def horizon(self) -> FloatArray:
        """Length T_b of each trajectory, shape (B,)."""
        boundary = self.first_element + np.arange(self.trajectories + 1)
        return self.boundaries[boundary[1:] - 1] - self.boundaries[boundary[:-1]]

    @property
    def start(self) -> FloatArray:
        """Start time of each trajectory, shape (B,)."""
        return self.boundaries[self.first_element[:-1] + np.arange(self.trajectories)]

    def node_times(self) -> FloatArray:
        """Times of all nodes, shape (N, P); shared end nodes appear in both elements, to the same bit."""
        half = 0.5 * self.width[:, None]
        times = self.left[:, None] + half * (self.basis.nodes + 1.0)
        times[:, -1] = self.boundaries[self.left_boundary + 1]
        return times

    def node_weights(self) -> FloatArray:
        """Quadrature weights, shape (N, P), which sum to 1 over each trajectory (DESIGN: R_b = Σ_q w_q |...|²)."""
        share = self.width / self.horizon[self.trajectory]
        return 0.5 * share[:, None] * self.basis.weights

    def locate(self, trajectory: IntArray, time: FloatArray) -> tuple[IntArray, FloatArray]:
        """Element and τ in [-1, 1] of each time; both shape (K,).

        A time on an inner boundary belongs to the element on its right; times outside belong to the end elements.
        """
        # one search for all trajectories: shift each trajectory's clock so that their boundaries do not overlap
        start, horizon = self.start, self.horizon
        shift = 2.0 * np.arange(self.trajectories)
        owner = np.repeat(np.arange(self.trajectories), np.diff(self.first_element) + 1)
        scaled = (self.boundaries - start[owner]) / horizon[owner] + shift[owner]
        asked = (time - start[trajectory]) / horizon[trajectory]
        place = np.searchsorted(scaled, np.clip(asked, 0.0, 1.0) + shift[trajectory], side="right") - 1
        element = np.clip(place - trajectory, self.first_element[trajectory], self.first_element[trajectory + 1] - 1)
        tau = 2.0 * (time - self.left[element]) / self.width[element] - 1.0
        return element, np.clip(tau, -1.0, 1.0)

    def evaluate(self, nodes: FloatArray, trajectory: IntArray, time: FloatArray) -> FloatArray:
        """The series at any times: node values (N, P, n) -> (K, n)."""
        element, tau = self.locate(trajectory, time)
        rows = legendre_values(tau, self.basis.order) @ self.basis.M_inverse
        result: FloatArray = np.einsum("kp,kpn->kn", rows, nodes[element])
        return result

    def derivative(self, nodes: FloatArray) -> FloatArray:
        """dx/dt at the nodes, one-sided per element: (N, P, n) -> (N, P, n) (eq. 7 with the chain factor 2 / h)."""
        slope: FloatArray = np.matmul(self.basis.differentiation, nodes) * (2.0 / self.width)[:, None, None]
        return slope


def build_mesh(
    start: FloatArray, end: FloatArray, elements: int, order: int, jumps: Sequence[FloatArray] | None = None
) -> Mesh:
    """Cut B trajectories into elements of nearly equal length, with boundaries on input jumps where there is room.

    Parameters
    ----------
    start, end : ndarray, shape (B,)
    elements : int
        Elements on the longest trajectory; a shorter one gets its share, at least one.
    order : int
        Polynomial order p of every element.
    jumps : sequence of B ndarrays, optional
        Times where an input jumps. A trajectory with fewer jumps than elements gets a boundary on each; denser jumps
        are left to the projection of u on the elements.
    """
    horizon = end - start
    share = np.maximum(1, np.rint(elements * horizon / horizon.max())).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(share)])
    # k / E from 0 to 1 within each trajectory; the convex combination hits both ends to the bit
    position = np.arange(first[-1] + start.size) - np.repeat(first[:-1] + np.arange(start.size), share + 1)
    part = position / np.repeat(share, share + 1)
    boundaries = np.repeat(start, share + 1) * (1.0 - part) + np.repeat(end, share + 1) * part
    for b, times in enumerate(jumps or ()):
        inner = times[(times > start[b]) & (times < end[b])]
        if 0 < inner.size < share[b]:
            own = slice(first[b] + b, first[b + 1] + b + 1)
            boundaries[own] = _between(np.concatenate([[start[b]], inner, [end[b]]]), int(share[b]))
    return Mesh(legendre_basis(order), np.repeat(np.arange(start.size), share), boundaries, first)


def _between(fixed: FloatArray, elements: int) -> FloatArray:
    """`elements` + 1 boundaries that contain all `fixed` ones; the widest pieces are halved, thirded, ... first."""
    width = np.diff(fixed)
    count = np.ones(width.size, np.int64)
    for _ in range(elements - width.size):
        count[np.argmax(width / count)] += 1
    parts = [np.linspace(fixed[k], fixed[k + 1], count[k] + 1)[:-1] for k in range(width.size)]
    return np.concatenate([*parts, fixed[-1:]])
