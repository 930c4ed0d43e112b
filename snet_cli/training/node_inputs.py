"""u at the nodes: its projection on each element's polynomials, one-sided at element boundaries (eq. 5).

A sampled input is a piecewise polynomial. Its Legendre coefficients on an element, ``u_i = (2i + 1)/2 ∫ u ψ_i dτ``, are
integrated exactly, piece by piece. Where u is a polynomial on the element this returns its values, each side of a
boundary its own; where it jumps inside, the projection keeps the element's mean force, which a point sample would not.
Fourier inputs are smooth and evaluated at the nodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.signals import FourierInputs, Inputs, PiecewisePolynomials, SampledInputs, locate
from snet_cli.spectral.legendre import gauss_lobatto, legendre_values
from snet_cli.spectral.mesh import Mesh

FloatArray = NDArray[np.float64]

CHUNK_PIECES = 20_000
"""Pieces that are integrated at a time: tens of megabytes at most."""


def inputs_at_nodes(mesh: Mesh, inputs: Inputs) -> FloatArray:
    """U at all nodes, shape (N, P, m), one-sided per element."""
    P = mesh.basis.order + 1
    out = np.zeros((mesh.elements, P, len(inputs.names)))
    if inputs.fourier is not None:
        columns = [inputs.names.index(name) for name in inputs.fourier.names]
        out[:, :, columns] = _fourier_values(mesh, inputs.fourier)
    if inputs.sampled is not None:
        columns = [inputs.names.index(name) for name in inputs.sampled.names]
        out[:, :, columns] = project(mesh, inputs.sampled.pieces())
    return out


def _fourier_values(mesh: Mesh, fourier: FourierInputs) -> FloatArray:
    """Σ_k a_k cos ω_k t + b_k sin ω_k t at the nodes, (N, P, m); one harmonic at a time bounds the memory."""
    times = mesh.node_times()[:, :, None]
    b = mesh.trajectory
    values = np.repeat(fourier.mean[b][:, None, :], times.shape[1], axis=1)
    for k in range(fourier.omega.shape[2]):
        phase = fourier.omega[b][:, None, :, k] * times
        values += fourier.cos[b][:, None, :, k] * np.cos(phase) + fourier.sin[b][:, None, :, k] * np.sin(phase)
    return values


def project(mesh: Mesh, pieces: PiecewisePolynomials) -> FloatArray:
    """Projection of piecewise polynomials on every element, as node values (N, P, m).

    The line is cut at all knots and all element boundaries; on each cut u ψ_i has degree at most p + 3, so that
    Gauss-Lobatto quadrature with (p + 3) // 2 + 2 nodes is exact.
    """
    P = mesh.basis.order + 1
    quadrature = gauss_lobatto((mesh.basis.order + 3) // 2 + 2)
    left, right, element = _cuts(mesh, pieces)
    coefficients = np.zeros((mesh.elements, P, pieces.coefficients.shape[1]))
    for begin in range(0, left.size, CHUNK_PIECES):
        part = slice(begin, begin + CHUNK_PIECES)
        half = 0.5 * (right[part] - left[part])
        times = left[part, None] + half[:, None] * (quadrature.nodes + 1.0)  # (C, Q)
        own = element[part]
        # the piece is found from the cut's midpoint: its ends lie on knots, where both neighbours would answer
        row, since = locate(pieces, mesh.trajectory[own], 0.5 * (left[part] + right[part]), "right")
        offset = since[:, None] + times - 0.5 * (left[part] + right[part])[:, None]
        c = pieces.coefficients[row]  # (C, m, 4)
        powers = np.stack([np.ones_like(offset), offset, offset**2, offset**3], -1)  # (C, Q, 4)
        values = np.einsum("cqk,cmk->cqm", powers, c)
        tau = 2.0 * (times - mesh.left[own][:, None]) / mesh.width[own][:, None] - 1.0
        psi = legendre_values(np.clip(tau, -1.0, 1.0), mesh.basis.order)  # (C, Q, P)
        weight = quadrature.weights * (half / mesh.width[own])[:, None]
        np.add.at(coefficients, own, np.einsum("cq,cqp,cqm->cpm", weight, psi, values))
    coefficients *= (2.0 * np.arange(P) + 1.0)[None, :, None]
    nodes: FloatArray = np.matmul(mesh.basis.M, coefficients)
    return nodes


def _cuts(mesh: Mesh, pieces: PiecewisePolynomials) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """Left and right ends and element of every cut: neighbours in the sorted union of boundaries and inner knots."""
    owner = np.repeat(np.arange(mesh.trajectories), np.diff(mesh.first_element) + 1)
    knot_owner = np.repeat(np.arange(pieces.row_size.size), pieces.row_size)
    end = mesh.start + mesh.horizon
    inside = (pieces.knots > mesh.start[knot_owner]) & (pieces.knots < end[knot_owner])
    time = np.concatenate([mesh.boundaries, pieces.knots[inside]])
    trajectory = np.concatenate([owner, knot_owner[inside]])
    order = np.lexsort((time, trajectory))
    time, trajectory = time[order], trajectory[order]
    real = (np.diff(time) > 0) & (np.diff(trajectory) == 0)
    left, right = time[:-1][real], time[1:][real]
    element, _ = mesh.locate(trajectory[:-1][real], 0.5 * (left + right))
    return left, right, element


def jump_times(sampled: SampledInputs | None, trajectories: int) -> list[FloatArray]:
    """Times where a zero-order hold changes its value, per trajectory (B arrays)."""
    if sampled is None:
        return [np.zeros(0)] * trajectories
    held = [k for k, kind in enumerate(sampled.intersample) if kind == "zoh"]
    changed = np.zeros(sampled.time.size, bool)
    changed[1:] = (np.diff(sampled.values[:, held], axis=0) != 0).any(1) if held else False
    ends = np.cumsum(sampled.row_size)
    return [
        sampled.time[start:end][changed[start:end] & (np.arange(start, end) > start)]
        for start, end in zip(ends - sampled.row_size, ends, strict=True)
    ]
