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
        length: FloatArray = self.boundaries[boundary[1:] - 1] - self.boundaries[boundary[:-1]]
        return length

    @property
    def start(self) -> FloatArray:
        """Start time of each trajectory, shape (B,)."""
        time: FloatArray = self.boundaries[self.first_element[:-1] + np.arange(self.trajectories)]
        return time

    def left_boundary_of(self, element: IntArray) -> IntArray:
        """Position of these elements' left ends in `boundaries`."""
        place: IntArray = element + self.trajectory[element]
        return place

    def start_of(self, trajectory: IntArray) -> FloatArray:
        """Start time of these trajectories."""
        time: FloatArray = self.boundaries[self.first_element[trajectory] + trajectory]
        return time

    def between(self, begin: int, end: int) -> Mesh:
        """The mesh of trajectories `begin` to `end` alone."""
        first = self.first_element
        boundaries = self.boundaries[first[begin] + begin : first[end] + end]
        return mesh_between(boundaries, np.diff(first[begin : end + 1]), self.basis.order)

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


def mesh_between(boundaries: FloatArray, count: IntArray, order: int) -> Mesh:
    """A mesh with explicit element boundaries, which may be spaced in any way.

    Parameters
    ----------
    boundaries : ndarray, shape (N + B,)
        Trajectory after trajectory, E_b + 1 each, strictly increasing within a trajectory.
    count : ndarray of int, shape (B,)
        E_b, at least 1.
    order : int
        Polynomial order p of every element.

    Raises
    ------
    ValueError
        If the numbers do not agree, or the boundaries of a trajectory do not increase.
    """
    first = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    if count.size == 0 or count.min() < 1 or boundaries.shape != (first[-1] + count.size,):
        trajectories = f"{count.sum()} elements in {count.size} trajectories"
        raise ValueError(f"{boundaries.size} boundaries do not make {trajectories}")
    mesh = Mesh(legendre_basis(order), np.repeat(np.arange(count.size), count), boundaries, first)
    if not (mesh.width > 0).all():
        raise ValueError("element boundaries must be finite and strictly increasing within a trajectory")
    return mesh


def build_mesh(
    start: FloatArray,
    end: FloatArray,
    elements: int,
    order: int,
    jumps: Sequence[FloatArray] | None = None,
    longest: float | None = None,
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
    longest : float, optional
        Length of the longest trajectory where these are a part of all.
    """
    horizon = end - start
    longest = horizon.max() if longest is None else longest
    share = np.maximum(1, np.rint(elements * horizon / longest)).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(share)])
    # k / E from 0 to 1 within each trajectory; the convex combination hits both ends to the bit
    position = np.arange(first[-1] + start.size) - np.repeat(first[:-1] + np.arange(start.size), share + 1)
    part = position / np.repeat(share, share + 1)
    boundaries = np.repeat(start, share + 1) * (1.0 - part) + np.repeat(end, share + 1) * part
    if jumps is not None:
        boundaries = _on_jumps(boundaries, start, end, share, jumps)
    return mesh_between(boundaries, share, order)


def _on_jumps(
    boundaries: FloatArray, start: FloatArray, end: FloatArray, share: IntArray, jumps: Sequence[FloatArray]
) -> FloatArray:
    """`boundaries` (N + B,), replaced for trajectories with fewer jumps than elements by some that hold all jumps.

    Jumps cut a trajectory into pieces; each further boundary goes to the piece whose elements are the widest. Taken one
    by one, that gives a piece of width w another boundary whenever w / 1, w / 2, w / 3, ... is the largest such number
    left: all of them are written down and sorted at once.
    """
    owner = np.repeat(np.arange(start.size), [times.size for times in jumps])
    time = np.concatenate([*jumps, np.zeros(0)])
    inside = (time > start[owner]) & (time < end[owner])
    held = np.bincount(owner[inside], minlength=start.size)
    room = (held > 0) & (held < share)
    inside &= room[owner]
    chosen = np.flatnonzero(room)
    # pieces: from the start or a jump to the next jump or the end
    piece_owner = np.concatenate([chosen, owner[inside]])
    left = np.concatenate([start[chosen], time[inside]])
    order = np.lexsort((left, piece_owner))
    piece_owner, left = piece_owner[order], left[order]
    last = np.append(piece_owner[1:] != piece_owner[:-1], True)[: left.size]
    right = np.where(last, end[piece_owner], np.append(left[1:], 0.0)[: left.size])
    count = _apportion(right - left, piece_owner, share)
    row = np.repeat(np.arange(left.size), count)
    place = np.arange(row.size) - np.repeat(np.cumsum(count) - count, count)
    part = place / count[row]
    cut = left[row] * (1.0 - part) + right[row] * part
    result = boundaries.copy()
    written = np.repeat(room, share + 1)
    written[np.cumsum(share + 1) - 1] = False  # the end of each trajectory stays
    result[written] = cut
    return result


def _apportion(width: FloatArray, owner: IntArray, share: IntArray) -> IntArray:
    """Elements of each piece, at least one, so that those of trajectory b's pieces sum to `share[b]`."""
    total = np.bincount(owner, width, minlength=share.size)
    # w / c is never among those taken once it is below total / E, because then some other piece has wider elements
    quotients = np.floor(width * (share / np.where(total > 0, total, 1.0))[owner]).astype(np.int64) + 1
    piece = np.repeat(np.arange(width.size), quotients)
    c = np.arange(piece.size) - np.repeat(np.cumsum(quotients) - quotients, quotients) + 1
    order = np.lexsort((piece, -width[piece] / c, owner[piece]))
    rank = np.arange(piece.size) - np.searchsorted(owner[piece][order], owner[piece][order])
    further = share - np.bincount(owner, minlength=share.size)
    taken = order[rank < further[owner[piece][order]]]
    return np.bincount(piece[taken], minlength=width.size) + 1
