"""hp-refinement of meshes: split elements, raise the order, carry a series over, and tell which of the two it needs.

A series of order p on an element of length h has Legendre coefficients a_0 … a_p. Where x is smooth they fall like
e^{-σk}, where a derivative jumps inside like a power of k. The fitted σ decides (Mavriplis 1989, "Nonconforming
discretizations and a posteriori error estimators for adaptive spectral element techniques"): above 1 a higher order
gains a digit in two or three more coefficients; below 1 splitting gains at least as much and costs less, because a
pole near the element recedes, relative to h, and a kink ends up in an element of its own that shrinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from snet_cli.spectral.fitting import orthonormal_scale
from snet_cli.spectral.legendre import Basis, legendre_basis, legendre_values
from snet_cli.spectral.mesh import Mesh, mesh_between

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SMOOTH = 1.0
"""Decay σ per degree from which on a higher order is the better refinement (Mavriplis 1989)."""

FEWEST_COEFFICIENTS = 5
"""Coefficients that a decay rate can be fitted to."""

SLIVER = 0.02
"""An element is not cut closer to its ends than this part of its length."""

CHUNK_VALUES = 4_000_000
"""Numbers that the interpolation rows of one batch of elements may hold: 32 MB."""


def refine_mesh(mesh: Mesh, split: BoolArray, jumps: Sequence[FloatArray] | None = None) -> Mesh:
    """Cut some elements in two: at the input jump nearest to the middle where one lies inside, else in the middle.

    Parameters
    ----------
    mesh : Mesh
    split : ndarray of bool, shape (N,)
    jumps : sequence of B ndarrays, optional
        Times where an input jumps, as in `build_mesh`.
    """
    chosen = np.flatnonzero(split)
    cut = (mesh.left + 0.5 * mesh.width)[chosen]
    if jumps is not None:
        cut = _nearest_jump(mesh, jumps)[chosen]
    boundaries = np.insert(mesh.boundaries, mesh.left_boundary[chosen] + 1, cut)
    count = np.diff(mesh.first_element) + np.bincount(mesh.trajectory[chosen], minlength=mesh.trajectories)
    return mesh_between(boundaries, count, mesh.basis.order)


def raise_order(mesh: Mesh, order: int) -> Mesh:
    """The same elements with polynomials of another order."""
    return Mesh(legendre_basis(order), mesh.trajectory, mesh.boundaries, mesh.first_element)


def prolong(mesh: Mesh, nodes: FloatArray, finer: Mesh) -> FloatArray:
    """Node values (N, P, n) of a series -> those of the same series on a finer mesh, shape (N', P', n).

    The polynomials are evaluated, so that nothing is lost where every element of `finer` lies within one of `mesh` and
    its order is no lower. Ends of elements keep their values to the bit, and neighbours share them to the bit.

    Raises
    ------
    ValueError
        If an element of `finer` reaches over a boundary of `mesh`, or belongs to another trajectory.
    """
    left, right = finer.left, finer.boundaries[finer.left_boundary + 1]
    if mesh.trajectories != finer.trajectories:
        raise ValueError(f"a mesh of {finer.trajectories} trajectories is no refinement of one of {mesh.trajectories}")
    parent, _ = mesh.locate(finer.trajectory, 0.5 * (left + right))
    if (left < mesh.left[parent]).any() or (right > mesh.boundaries[mesh.left_boundary[parent] + 1]).any():
        raise ValueError("an element of the finer mesh reaches over a boundary of the coarser one")
    times = finer.node_times()
    order = mesh.basis.order
    result = np.empty((*times.shape, nodes.shape[2]))
    for part in _chunks(finer.elements, times.shape[1] * (order + 1)):
        own = parent[part]
        tau = 2.0 * (times[part] - mesh.left[own, None]) / mesh.width[own, None] - 1.0
        rows = legendre_values(np.clip(tau, -1.0, 1.0), order) @ mesh.basis.M_inverse  # (chunk, P', P)
        rows[tau == -1.0] = np.eye(order + 1)[0]
        rows[tau == 1.0] = np.eye(order + 1)[-1]
        result[part] = rows @ nodes[own]
    inner = np.flatnonzero(finer.trajectory[1:] == finer.trajectory[:-1])
    result[inner, -1] = result[inner + 1, 0]
    return result


def orthonormal_coefficients(basis: Basis, nodes: FloatArray) -> FloatArray:
    """Node values (N, P, n) -> coefficients (N, P, n) whose squares sum to the mean square over the element."""
    coefficients: FloatArray = np.matmul(basis.M_inverse, nodes) / orthonormal_scale(basis.order)[:, None]
    return coefficients


def decay_rate(coefficients: FloatArray, floor: FloatArray | float = 0.0) -> FloatArray:
    """σ of ``max_{j ≥ k} |a_j| ≈ C e^{-σk}``, fitted to the upper half of the coefficients by least squares.

    The envelope takes the place of |a_k| because every other coefficient of an even or odd function vanishes.

    Parameters
    ----------
    coefficients : ndarray, shape (N, P, n)
        Orthonormal.
    floor : ndarray, broadcastable to (N, n), or float
        What counts as zero; coefficients below are noise or rounding.

    Returns
    -------
    rate : ndarray, shape (N, n)
        Infinite where fewer than two coefficients of the upper half stand above the floor, or where there are fewer
        than `FEWEST_COEFFICIENTS` at all: these say nothing against a higher order.
    """
    P = coefficients.shape[1]
    if P < FEWEST_COEFFICIENTS:
        return np.full((coefficients.shape[0], coefficients.shape[2]), np.inf)
    envelope = np.maximum.accumulate(np.abs(coefficients[:, ::-1]), axis=1)[:, ::-1]
    k = np.arange(P)
    used = (envelope > np.expand_dims(np.broadcast_to(floor, envelope[:, 0].shape), 1)) & (k >= P // 2)[:, None]
    count = used.sum(1)
    level = np.log(np.where(used, envelope, 1.0))
    degree = np.where(used, k[:, None], 0.0)
    enough = count >= 2
    centre = degree.sum(1) / np.maximum(count, 1)
    offset = np.where(used, k[:, None] - centre[:, None], 0.0)
    slope = (offset * level).sum(1) / np.where(enough, (offset**2).sum(1), 1.0)
    return np.where(enough, -slope, np.inf)


def unresolved(basis: Basis, rates: FloatArray, width: FloatArray, order: int) -> FloatArray:
    """Root mean square, per element and state, of what a series of this order leaves out of ∫ f dt: shape (N, n).

    ẋ has degree p - 1, so that the parts of f of degree p and higher have nowhere to go. Integrated over an element of
    length h, ``∫ ψ_k dt = h / (2 (2k + 1)) (ψ_{k+1} - ψ_{k-1})``, whose mean square is known; the parts are added in
    squares. It is the error that x would have if the equations of degree < p held.

    Parameters
    ----------
    basis : Basis
        Of the nodes that f is given at: finer than `order`.
    rates : ndarray, shape (N, P', n)
        f at those nodes, x being the series.
    width : ndarray, shape (N,)
        h.
    order : int
        p of the series.
    """
    k = np.arange(order, basis.order + 1)
    high = orthonormal_coefficients(basis, rates)[:, order:]
    gain = 0.5 * width[:, None] * np.sqrt((1 / (2 * k + 3) + 1 / (2 * k - 1)) / (2 * k + 1))
    error: FloatArray = np.sqrt(((gain[:, :, None] * high) ** 2).sum(1))
    return error


def _nearest_jump(mesh: Mesh, jumps: Sequence[FloatArray]) -> FloatArray:
    """Where to cut each element, shape (N,): the jump inside it that is nearest to its middle, else the middle."""
    owner = np.repeat(np.arange(mesh.trajectories), [times.size for times in jumps])
    time = np.concatenate([*jumps, np.zeros(0)])
    end = mesh.start + mesh.horizon
    within = (time > mesh.start[owner]) & (time < end[owner])
    owner, time = owner[within], time[within]
    element, tau = mesh.locate(owner, time)
    inside = np.abs(tau) < 1.0 - 2.0 * SLIVER
    element, tau, time = element[inside], tau[inside], time[inside]
    order = np.lexsort((np.abs(tau), element))
    found, first = np.unique(element[order], return_index=True)
    cut: FloatArray = mesh.left + 0.5 * mesh.width
    cut[found] = time[order][first]
    return cut


def _chunks(elements: int, values: int) -> Iterator[slice]:
    """Ranges of elements whose arrays of `values` numbers each stay below `CHUNK_VALUES`."""
    step = max(1, CHUNK_VALUES // values)
    for begin in range(0, elements, step):
        yield slice(begin, min(begin + step, elements))
