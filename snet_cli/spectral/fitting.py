"""Step 0 (Quaglino et al. 2020, eq. 2): the series closest to the samples, in closed form.

``x* = argmin Σ_k |y(t_k) - x(t_k)|²`` per channel, over all continuous piecewise polynomials of the mesh, optionally
with x(t0) held exactly. The unknowns are node values. On each element the samples give a P × P block
``A = Σ_k l_k l_kᵀ``, l_k the Lagrange polynomials at the sample. Static condensation eliminates the P - 2 inner nodes
of every element at once, and what is left couples only neighbouring end nodes::

        A = [A_EE A_EI]      K = A_EE - A_EI A_II⁻¹ A_IE     (2 x 2 per element, summed into one tridiagonal matrix)
            [A_IE A_II]      g = b_E  - A_EI A_II⁻¹ b_I

so that one banded solve serves all trajectories, and the cost is linear in the number of elements.

An element whose samples do not determine it (judged by the condition number of its block in the orthonormal basis, the
shared ends counted as known) is penalised: mode i of the orthonormal series by λ (i (i + 1))², which is curvature-like,
and a hundred-millionth of that on modes 0 and 1, which pulls a gap towards the straight line and an empty channel
towards the channel's mean. λ is chosen by held-out samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, solveh_banded

from snet_cli.spectral.legendre import Basis, legendre_derivatives, legendre_values
from snet_cli.spectral.mesh import Mesh

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

ILL_CONDITIONED = 100.0
"""Condition number of an element's least-squares problem above which it is penalised. Equispaced samples stay below 10
up to p = 2.8 √K and pass this bound near p = 3.6 √K (see the tests)."""

CHUNK_VALUES = 4_000_000
"""Numbers that one batch of padded sample rows may hold: 32 MB."""

PENALTIES = (1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Strengths λ that are tried on held-out samples, relative to the mean number of samples of an element."""


class Samples(NamedTuple):
    """Values of d channels at times of their own.

    Attributes
    ----------
    trajectory : ndarray, shape (K,)
    time : ndarray, shape (K,)
    values : ndarray, shape (K, d)
        NaN = not measured.
    slopes : ndarray, shape (K, d), optional
        Measured time derivatives of the same channels; NaN = not measured.
    slope_weight : ndarray, shape (d,), optional
        Weight of a squared slope error against a squared value error: (σ of a value / σ of a slope)².
    """

    trajectory: IntArray
    time: FloatArray
    values: FloatArray
    slopes: FloatArray | None = None
    slope_weight: FloatArray | None = None

    def subset(self, keep: BoolArray) -> Samples:
        """The samples where `keep` (K,) is true."""
        slopes = None if self.slopes is None else self.slopes[keep]
        return Samples(self.trajectory[keep], self.time[keep], self.values[keep], slopes, self.slope_weight)


class SeriesFit(NamedTuple):
    """What step 0 found.

    Attributes
    ----------
    nodes : ndarray, shape (N, P, d)
        Node values of the series.
    determined : ndarray of bool, shape (N,)
        Whether the samples of all channels determine the element; the others are held by the penalty.
    condition : float
        Largest condition number of any element's least-squares problem in the orthonormal basis, before penalties.
    penalty : float
        The strength λ that was used; 0 where nothing had to be penalised.
    """

    nodes: FloatArray
    determined: BoolArray
    condition: float
    penalty: float


class _Blocks(NamedTuple):
    """Normal equations per element: A (N, P, P) and b (N, P, c), for channels that share a mask."""

    A: FloatArray
    b: FloatArray


def fit_series(mesh: Mesh, samples: Samples, start: FloatArray | None = None, seed: int = 0) -> SeriesFit:
    """Step 0 for all trajectories and channels at once.

    Parameters
    ----------
    mesh : Mesh
    samples : Samples
        K samples of d channels, masked by NaN, in any order.
    start : ndarray, shape (B, d), optional
        Exactly known x(t0), which is eliminated from the unknowns; NaN = free.
    seed : int
        Keys the held-out draw that chooses the penalty, where one is needed.
    """
    centre, scale = channel_scales(samples.values)
    slopes = None if samples.slopes is None else samples.slopes / scale
    scaled = samples._replace(values=(samples.values - centre) / scale, slopes=slopes)
    fixed = None if start is None else (start - centre) / scale
    system = _System(mesh, scaled, fixed)
    condition = system.condition()
    determined: BoolArray = np.all(condition <= ILL_CONDITIONED, axis=1)
    penalty = 0.0
    if not determined.all():
        penalty = _choose_penalty(mesh, scaled, fixed, condition > ILL_CONDITIONED, seed)
    nodes = system.solve(condition > ILL_CONDITIONED, penalty)
    return SeriesFit(nodes * scale + centre, determined, float(condition.max()), penalty)


def shared_derivative(mesh: Mesh, nodes: FloatArray) -> FloatArray:
    """dx/dt at the nodes (N, P, d), made continuous: neighbours share the mean of their one-sided values."""
    slope = mesh.derivative(nodes)
    inner = np.flatnonzero(mesh.trajectory[1:] == mesh.trajectory[:-1])
    mean = 0.5 * (slope[inner, -1] + slope[inner + 1, 0])
    slope[inner, -1], slope[inner + 1, 0] = mean, mean
    return slope


def channel_scales(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of each channel over its measured values, both shape (d,).

    Homogeneous: factors of two on a channel change no bit. A constant channel gets its magnitude, or 1, as scale.
    """
    mask = np.isfinite(values)
    count = np.maximum(mask.sum(0), 1)
    largest = np.abs(np.where(mask, values, 0.0)).max(0, initial=0.0)
    magnitude = np.where(largest > 0, largest, 1.0)  # squares of values / magnitude neither overflow nor underflow
    relative = np.where(mask, values, 0.0) / magnitude
    centre = relative.sum(0) / count
    scale = np.sqrt((np.where(mask, relative - centre, 0.0) ** 2).sum(0) / count)
    return magnitude * centre, magnitude * np.where(scale > 1e-12, scale, 1.0)


def _choose_penalty(mesh: Mesh, samples: Samples, start: FloatArray | None, penalised: BoolArray, seed: int) -> float:
    """The strength λ with the smallest error on a fifth of the samples of penalised elements, held out at random."""
    element, _ = mesh.locate(samples.trajectory, samples.time)
    draw = np.random.default_rng([seed, 0x5E7]).random(samples.time.size) < 0.2
    open_elements: BoolArray = np.any(penalised, axis=1)
    held = draw & open_elements[element]
    if held.sum() < 2:
        return 1e-6  # too few to judge: nearly an interpolation by the smoothest polynomial
    kept, asked = samples.subset(~held), samples.subset(held)
    system = _System(mesh, kept, start)
    ill = penalised | (system.condition() > ILL_CONDITIONED)
    errors = []
    for penalty in PENALTIES:
        guess = mesh.evaluate(system.solve(ill, penalty), asked.trajectory, asked.time)
        errors.append(float(np.nanmean((guess - asked.values) ** 2)))
    return PENALTIES[int(np.argmin(errors))]


class _System:
    """The normal equations of step 0, assembled once and solved for any penalty.

    Channels with the same mask share their blocks: usually all of them.
    """

    def __init__(self, mesh: Mesh, samples: Samples, start: FloatArray | None) -> None:
        self.mesh = mesh
        self.start = start
        self.channels = samples.values.shape[1]
        self.blocks: list[tuple[IntArray, _Blocks]] = []
        for members in _alike(samples):
            rows = np.isfinite(samples.values[:, members[0]])
            blocks = _assemble(mesh, samples.subset(rows), samples.values[rows][:, members])
            if samples.slopes is not None and samples.slope_weight is not None:
                rows = np.isfinite(samples.slopes[:, members[0]])
                weight = float(samples.slope_weight[members[0]])
                slopes = samples.slopes[rows][:, members]
                more = _assemble(mesh, samples.subset(rows), slopes, derivative=True)
                blocks = _Blocks(blocks.A + weight * more.A, blocks.b + weight * more.b)
            self.blocks.append((members, blocks))

    def condition(self) -> FloatArray:
        """Condition number of each element's least-squares problem per channel, shape (N, d).

        The block is taken to the orthonormal Legendre basis, where it tends to a multiple of the identity for many
        equispaced samples; ends that a neighbour or x0 determines count as known.
        """
        mesh, basis = self.mesh, self.mesh.basis
        to_nodes = basis.M * orthonormal_scale(basis.order)
        inner_left = np.ones(mesh.elements, bool)
        inner_left[mesh.first_element[:-1]] = False
        inner_right = np.ones(mesh.elements, bool)
        inner_right[mesh.first_element[1:] - 1] = False
        out = np.empty((mesh.elements, self.channels))
        for members, blocks in self.blocks:
            known = inner_left.copy()
            if self.start is not None:
                known[mesh.first_element[:-1]] |= np.isfinite(self.start[:, members]).all(1)
            A = blocks.A.copy()
            weight = np.maximum(np.trace(A, axis1=1, axis2=2) / (basis.order + 1), 1e-300)
            A[:, 0, 0] += weight * known
            A[:, -1, -1] += weight * inner_right
            values = np.linalg.eigvalsh(to_nodes.T @ A @ to_nodes)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = values[:, -1] / np.maximum(values[:, 0], 0.0)
            out[:, members] = np.sqrt(np.where(np.isfinite(ratio), ratio, np.inf))[:, None]
        return out

    def solve(self, penalised: BoolArray, penalty: float) -> FloatArray:
        """Node values (N, P, d) of the minimiser, with penalty λ on the elements `penalised` (N, d) per channel."""
        nodes = np.empty((self.mesh.elements, self.mesh.basis.order + 1, self.channels))
        roughness = _roughness(self.mesh.basis)
        for members, blocks in self.blocks:
            A = blocks.A
            ill: BoolArray = np.any(penalised[:, members], axis=1)
            if ill.any() and penalty > 0:
                typical = max(float(np.trace(A, axis1=1, axis2=2).mean()), 1.0)
                strength = np.where(ill, typical * penalty, 0.0)
                A = A + strength[:, None, None] * roughness
            start = None if self.start is None else self.start[:, members]
            nodes[:, :, members] = _solve_condensed(self.mesh, _Blocks(A, blocks.b), start)
        return nodes


def orthonormal_scale(order: int) -> FloatArray:
    """√(2i + 1): Legendre polynomials times this are orthonormal for the mean over [-1, 1]."""
    scale: FloatArray = np.sqrt(2.0 * np.arange(order + 1) + 1.0)
    return scale


def _roughness(basis: Basis) -> FloatArray:
    """Penalty block (P, P) on node values: Σ_i (i (i + 1))² c_i² in orthonormal coefficients, tiny for i < 2."""
    i = np.arange(basis.order + 1)
    weight = np.where(i >= 2, (i * (i + 1.0)) ** 2, 1e-8 * (1.0 + i))
    coefficients = basis.M_inverse / orthonormal_scale(basis.order)[:, None]
    block: FloatArray = coefficients.T @ (weight[:, None] * coefficients)
    return block


def _alike(samples: Samples) -> list[IntArray]:
    """Channels that share masks and weight, hence blocks: usually all of them."""
    tables: list[NDArray[Any]] = [np.isfinite(samples.values)]
    if samples.slopes is not None and samples.slope_weight is not None:
        tables += [np.isfinite(samples.slopes), samples.slope_weight[None, :]]
    return _equal_columns(*tables)


def _equal_columns(*tables: NDArray[Any]) -> list[IntArray]:
    """Columns with the same content in every table, by their bytes; `numpy.unique` would sort all rows to find them."""
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for column in range(tables[0].shape[1]):
        groups.setdefault(tuple(table[:, column].tobytes() for table in tables), []).append(column)
    return [np.array(members) for members in groups.values()]


def _assemble(mesh: Mesh, samples: Samples, values: FloatArray, *, derivative: bool = False) -> _Blocks:
    """Blocks of the normal equations: padded batches of elements with similar numbers of samples, one matmul each.

    `values` (K, c) are what the series, or its time derivative, is to meet at the samples' times.
    """
    P = mesh.basis.order + 1
    element, tau = mesh.locate(samples.trajectory, samples.time)
    order = np.argsort(element, kind="stable")
    count = np.bincount(element, minlength=mesh.elements)
    first = np.concatenate([[0], np.cumsum(count)])
    by_count = np.argsort(count, kind="stable")
    A = np.zeros((mesh.elements, P, P))
    b = np.zeros((mesh.elements, P, values.shape[1]))
    begin = int(np.searchsorted(count[by_count], 1))
    while begin < mesh.elements:
        # elements come in ascending number of samples; take as many as the padded batch may hold
        longest = int(count[by_count[begin]])
        end = min(mesh.elements, begin + max(1, CHUNK_VALUES // (longest * (P + values.shape[1]))))
        while end > begin + 1 and count[by_count[end - 1]] * (end - begin) * (P + values.shape[1]) > 2 * CHUNK_VALUES:
            end = begin + max(1, (end - begin) // 2)
        chosen = by_count[begin:end]
        width = int(count[chosen].max())
        place = np.arange(width)[None, :]
        valid = place < count[chosen][:, None]
        row = order[np.where(valid, first[chosen][:, None] + place, 0)]
        psi = (legendre_derivatives if derivative else legendre_values)(tau[row], mesh.basis.order)
        factor = valid[:, :, None] * ((2.0 / mesh.width[chosen])[:, None, None] if derivative else 1.0)
        rows = (psi @ mesh.basis.M_inverse) * factor
        transposed = np.swapaxes(rows, 1, 2)
        A[chosen] = transposed @ rows
        b[chosen] = transposed @ values[row]
        begin = end
    return _Blocks(A, b)


def _solve_condensed(mesh: Mesh, blocks: _Blocks, start: FloatArray | None) -> FloatArray:
    """Node values (N, P, c) by static condensation (module docstring)."""
    ends = [0, mesh.basis.order]
    inner = np.arange(1, mesh.basis.order)
    A, b = blocks
    K, g = A[:, ends][:, :, ends], b[:, ends]
    if inner.size:
        A_IE, A_EI = A[:, inner][:, :, ends], A[:, ends][:, :, inner]
        eliminated = np.linalg.solve(A[:, inner][:, :, inner], np.concatenate([A_IE, b[:, inner]], axis=2))
        K = K - A_EI @ eliminated[:, :, :2]
        g = g - A_EI @ eliminated[:, :, 2:]
    shared = _solve_tridiagonal(mesh, K, g, start)
    nodes = np.empty_like(b)
    nodes[:, 0], nodes[:, -1] = shared[mesh.left_boundary], shared[mesh.left_boundary + 1]
    if inner.size:
        nodes[:, inner] = eliminated[:, :, 2:] - eliminated[:, :, :2] @ nodes[:, ends]
    return nodes


def _solve_tridiagonal(mesh: Mesh, K: FloatArray, g: FloatArray, start: FloatArray | None) -> FloatArray:
    """End-node values (N + B, c): one symmetric tridiagonal system for all trajectories, uncoupled between them.

    A known x(t0) is eliminated: its row becomes the identity and its column moves to the right-hand side.
    """
    left = mesh.left_boundary
    size = mesh.elements + mesh.trajectories
    diagonal, off = np.zeros(size), np.zeros(size)
    right_side = np.zeros((size, g.shape[2]))
    np.add.at(diagonal, left, K[:, 0, 0])
    np.add.at(diagonal, left + 1, K[:, 1, 1])
    np.add.at(right_side, left, g[:, 0])
    np.add.at(right_side, left + 1, g[:, 1])
    off[left + 1] = K[:, 0, 1]  # upper diagonal in LAPACK's banded form: entry j couples j - 1 and j
    if start is None or not np.isfinite(start).any():
        return _banded(diagonal, off, right_side)
    first = mesh.first_element[:-1] + np.arange(mesh.trajectories)
    solution = np.empty_like(right_side)
    known = np.isfinite(start)
    for columns in _equal_columns(known):  # channels that know x(t0) in the same trajectories
        pattern = known[:, columns[0]]
        rows, values = first[pattern], start[pattern][:, columns]
        d, o, r = diagonal.copy(), off.copy(), right_side[:, columns]
        r[rows + 1] -= o[rows + 1, None] * values
        o[rows + 1] = 0.0
        d[rows] = 1.0
        r[rows] = values
        solution[:, columns] = _banded(d, o, r)
    return solution


def _banded(diagonal: FloatArray, off: FloatArray, right_side: FloatArray) -> FloatArray:
    """Solve the symmetric positive definite tridiagonal system; a vanishing ridge where rounding spoiled that."""
    band = np.vstack([off, diagonal])
    try:
        solution: FloatArray = solveh_banded(band, right_side)
    except LinAlgError:
        band[1] += 1e-12 * max(float(diagonal.max(initial=0.0)), 1e-300)
        solution = solveh_banded(band, right_side)
    return solution
