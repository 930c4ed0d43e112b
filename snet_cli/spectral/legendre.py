"""Legendre basis on one element: Gauss-Lobatto nodes and weights, M and D (Quaglino et al. 2020, eqs. 5-7).

``x(τ) = Σ_i x_i ψ_i(τ)`` on τ in [-1, 1], ψ_i the Legendre polynomial of degree i. At the p + 1 Gauss-Lobatto
nodes ``M[q, i] = ψ_i(τ_q)`` and ``D[q, i] = ψ_i'(τ_q)``; on an element of length h the time derivative is
(2 / h) D. Nodes are the roots of the Jacobi polynomial P^(1,1)_{p-1} with both ends; weights are
``2 / (p (p + 1) P_p(τ_q)²)`` and integrate exactly to degree 2p - 1. There the discrete mass matrix Mᵀ W M is
diagonal, 2 / (2i + 1), **except its last entry, 2 / p** (Canuto et al. 1988, sec. 2.2.3).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import roots_jacobi

FloatArray = NDArray[np.float64]


class Quadrature(NamedTuple):
    """Nodes τ in [-1, 1], ascending, and weights that sum to 2; both shape (P,), read-only."""

    nodes: FloatArray
    weights: FloatArray


def legendre_values(tau: FloatArray, order: int) -> FloatArray:
    """ψ_i(τ) for i = 0 … order, shape (..., order + 1), by Bonnet's recurrence.

    The recurrence (i + 1) ψ_{i+1} = (2i + 1) τ ψ_i - i ψ_{i-1} is stable on [-1, 1] for every order.
    """
    tau = np.asarray(tau, np.float64)
    values = np.empty((*tau.shape, order + 1))
    values[..., 0] = 1.0
    if order >= 1:
        values[..., 1] = tau
    for i in range(1, order):
        values[..., i + 1] = ((2 * i + 1) * tau * values[..., i] - i * values[..., i - 1]) / (i + 1)
    return values


def legendre_derivatives(tau: FloatArray, order: int) -> FloatArray:
    """ψ_i'(τ) for i = 0 … order, shape (..., order + 1), by ψ_{i+1}' = ψ_{i-1}' + (2i + 1) ψ_i."""
    values = legendre_values(tau, order)
    derivatives = np.zeros_like(values)
    if order >= 1:
        derivatives[..., 1] = 1.0
    for i in range(1, order):
        derivatives[..., i + 1] = derivatives[..., i - 1] + (2 * i + 1) * values[..., i]
    return derivatives


def gauss_lobatto(order: int) -> Quadrature:
    """The P = order + 1 Gauss-Lobatto nodes and weights, exact to degree 2·order - 1.

    The positive half is computed and mirrored, so that nodes and weights are symmetric to the last bit.

    Parameters
    ----------
    order : int
        Polynomial order p, 1 … 100.

    Raises
    ------
    ValueError
        If the order is outside 1 … 100.
    """
    if not 1 <= order <= 100:
        raise ValueError(f"polynomial order {order} is outside 1 … 100")
    interior = roots_jacobi(order - 1, 1, 1)[0] if order > 1 else np.zeros(0)
    positive = np.concatenate([interior[(order - 1) - (order - 1) // 2 :], [1.0]])
    middle = [0.0] if order % 2 == 0 else []
    nodes = np.concatenate([-positive[::-1], middle, positive])
    weights = 2.0 / (order * (order + 1) * legendre_values(np.abs(nodes), order)[:, order] ** 2)
    nodes.setflags(write=False)
    weights.setflags(write=False)
    return Quadrature(nodes, weights)


class Basis(NamedTuple):
    """Everything that depends on the order alone; P = order + 1.

    Attributes
    ----------
    order : int
    nodes, weights : ndarray, shape (P,)
        Gauss-Lobatto quadrature on [-1, 1]; weights sum to 2.
    M : ndarray, shape (P, P)
        ψ_i(τ_q): Legendre coefficients -> node values (eq. 6).
    M_inverse : ndarray, shape (P, P)
        Node values -> Legendre coefficients, from the discrete mass matrix: no inversion.
    D : ndarray, shape (P, P)
        ψ_i'(τ_q): Legendre coefficients -> dx/dτ at the nodes (eq. 7).
    differentiation : ndarray, shape (P, P)
        D M⁻¹: node values -> dx/dτ at the nodes.
    """

    order: int
    nodes: FloatArray
    weights: FloatArray
    M: FloatArray
    M_inverse: FloatArray
    D: FloatArray
    differentiation: FloatArray


def legendre_basis(order: int) -> Basis:
    """Nodes, weights, M, M⁻¹ and D of one order (Quaglino et al. 2020, eqs. 5-7).

    M⁻¹ = (Mᵀ W M)⁻¹ Mᵀ W with the diagonal mass matrix of the module docstring. The differentiation matrix is
    corrected on its diagonal so that constants differentiate to exactly zero ("negative sum trick", Baltensperger &
    Trummer 2003).
    """
    nodes, weights = gauss_lobatto(order)
    M = legendre_values(nodes, order)
    D = legendre_derivatives(nodes, order)
    mass = 2.0 / (2.0 * np.arange(order + 1) + 1.0)
    mass[-1] = 2.0 / order
    M_inverse = (M * weights[:, None]).T / mass[:, None]
    differentiation = D @ M_inverse
    np.fill_diagonal(differentiation, 0.0)
    np.fill_diagonal(differentiation, -differentiation.sum(1))
    for array in (M, M_inverse, D, differentiation):
        array.setflags(write=False)
    return Basis(order, nodes, weights, M, M_inverse, D, differentiation)
