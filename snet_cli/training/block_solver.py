"""Cholesky factor of the normal matrix of all trajectories: blocks of elements, chained by shared end nodes.

The unknowns of an element are its node values, n P of them. Neighbours share a node, trajectories share nothing, so
that the normal matrix is (elements a, b, c of one trajectory, L and R the n values at an end, I the inner ones)::

        L_a  I_a  R_a=L_b  I_b  R_b=L_c  I_c  R_c            after static condensation of all I:
      [  x    x      x                             ]
      [  x    x      x                             ]              [ K  U          ]
      [  x    x      x      x      x               ]              [ Uᵀ K  U       ]      n x n blocks, one per
      [              x      x      x               ]              [    Uᵀ K  U    ]      element boundary
      [              x      x      x      x     x  ]              [       Uᵀ K    ]
      [                            x      x     x  ]
      [                            x      x     x  ]

Inner values of every element are eliminated at once, ``A_II = L Lᵀ``, ``V = L⁻¹ A_IE``, ``K = A_EE - Vᵀ V``. What is
left is block-tridiagonal over the boundaries of all trajectories in one list, with U = 0 between trajectories. It is
factored by odd-even reduction (Buzbee, Golub & Nielson 1970; for a positive definite matrix this is Cholesky in nested
order, hence stable): every second boundary i is eliminated in one batch, ::

        D_i = L Lᵀ,  V_l = L⁻¹ U_{i-1}ᵀ,  V_r = L⁻¹ U_i
        D_{i-1} -= V_lᵀ V_l,   D_{i+1} -= V_rᵀ V_r,   U'_{i-1,i+1} = -V_lᵀ V_r

and half as many remain. So there is no loop over time: log2 of the number of boundaries levels, cost linear in the
number of elements, ragged trajectories without padding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

COLUMNS = 128
"""Columns of right sides that are reduced at a time: their arrays stay in the cache."""


class _Level(NamedTuple):
    """One batch of eliminated boundaries: L (S, n, n), V_l and V_r (S, n, n), and whether the chain was padded."""

    L: Tensor
    left: Tensor
    right: Tensor
    padded: bool


class BlockFactor:
    """Factor of the assembled matrix Σ_e Z_eᵀ A_e Z_e, Z_e picking the element's node values.

    Parameters
    ----------
    blocks : Tensor, shape (N, P n, P n)
        A_e, symmetric; rows ordered node by node. Their assembled sum is positive definite, up to rounding.
    trajectory : Tensor of int, shape (N,)
        Which trajectory each element belongs to: 0 … B - 1, ascending, without holes.
    states : int
        n.

    Attributes
    ----------
    failed : Tensor of bool, shape (B,)
        Trajectories whose matrix is not positive definite or not finite; their solutions mean nothing, those of the
        others are untouched.
    """

    def __init__(self, blocks: Tensor, trajectory: Tensor, states: int) -> None:
        n = states
        self.states = n
        self.left = torch.arange(trajectory.numel(), device=trajectory.device) + trajectory
        trajectories = int(trajectory[-1]) + 1
        self.failed = torch.zeros(trajectories, dtype=torch.bool, device=blocks.device)
        finite = torch.isfinite(blocks).flatten(1).all(1)
        if not bool(finite.all()):
            # one list holds all trajectories: a NaN would reach the neighbours through 0 · NaN
            self.failed[trajectory[~finite]] = True
            identity = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
            blocks = torch.where(finite[:, None, None], blocks, identity)
        self.trajectory = trajectory
        inner, right = slice(n, -n), slice(-n, None)
        ends = torch.cat([blocks[:, :, :n], blocks[:, :, right]], 2)  # (N, P n, 2n)
        self.L = self._cholesky(blocks[:, inner, inner], trajectory)
        self.V = torch.linalg.solve_triangular(self.L, ends[:, inner], upper=False)  # (N, n (P - 2), 2n)
        condensed = torch.cat([ends[:, :n], ends[:, right]], 1) - self.V.mT @ self.V
        boundaries = trajectory.numel() + trajectories
        D = blocks.new_zeros(boundaries, n, n)
        D.index_add_(0, self.left, condensed[:, :n, :n])
        D.index_add_(0, self.left + 1, condensed[:, n:, n:])
        U = blocks.new_zeros(boundaries - 1, n, n)
        U[self.left] = condensed[:, :n, n:]
        owner = torch.zeros(boundaries, dtype=torch.long, device=blocks.device)
        owner[self.left], owner[self.left + 1] = trajectory, trajectory
        self.levels = self._reduce(D, U, owner)

    def _cholesky(self, matrices: Tensor, owner: Tensor) -> Tensor:
        """Batched factors; a matrix that has none is replaced by the identity and its trajectory marked as failed."""
        L: Tensor
        L, info = torch.linalg.cholesky_ex(matrices)
        bad = info != 0
        if bool(bad.any()):
            self.failed[owner[bad]] = True
            L = torch.where(bad[:, None, None], torch.eye(L.shape[-1], dtype=L.dtype, device=L.device), L)
        return L

    def _reduce(self, D: Tensor, U: Tensor, owner: Tensor) -> list[_Level]:
        levels = []
        while D.shape[0] > 1:
            padded = D.shape[0] % 2 == 0
            if padded:
                D = torch.cat([D, torch.eye(self.states, dtype=D.dtype, device=D.device)[None]])
                U = torch.cat([U, torch.zeros_like(U[:1])])
                owner = torch.cat([owner, owner[-1:]])
            L = self._cholesky(D[1::2], owner[1::2])
            left = torch.linalg.solve_triangular(L, U[0::2].mT, upper=False)
            right = torch.linalg.solve_triangular(L, U[1::2], upper=False)
            levels.append(_Level(L, left, right, padded))
            D, U, owner = D[0::2].clone(), -(left.mT @ right), owner[0::2]
            D[:-1] -= left.mT @ left
            D[1:] -= right.mT @ right
            if padded:  # the identity is coupled to nothing
                D, U, owner = D[:-1], U[:-1], owner[:-1]
        L = self._cholesky(D, owner)
        levels.append(_Level(L, L[:0], L[:0], False))
        return levels

    def solve(self, right_side: Tensor) -> Tensor:
        """Solve for right sides given per element.

        Parameters
        ----------
        right_side : Tensor, shape (N, P n, r)
            b_e; contributions to a shared node are summed.

        Returns
        -------
        Tensor, shape (N, P n, r)
            The solution at every element's nodes; both copies of a shared node agree to the bit.
        """
        n = self.states
        inner, ends = self.condense(right_side)
        reduced = self._reduced(self._at_boundaries(ends))
        boundary = self._backward(reduced)
        values = torch.cat([boundary[self.left], boundary[self.left + 1]], 1)  # (N, 2n, r)
        middle = torch.linalg.solve_triangular(self.L.mT, inner - self.V @ values, upper=True)
        return torch.cat([values[:, :n], middle, values[:, n:]], 1)

    def gram_rows(self, right_side: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (·, r) whose products sum to ``Bᵀ A⁻¹ B`` for assembled right sides B (N, P n, r).

        That is what a Schur complement on further unknowns subtracts.
        """
        inner, ends = self.condense(right_side)
        return inner.flatten(0, 1), self.boundary_rows(ends)

    def condense(self, right_side: Tensor) -> tuple[Tensor, Tensor]:
        """L⁻¹ b of the inner values (N, n (P - 2), r), and what their elimination leaves of the end values (N, 2n, r).

        Both are linear in b and need nothing of other elements: for b_e = M_e G_e it is enough to condense M_e.
        """
        n = self.states
        if bool(self.failed.any()):
            right_side = torch.where(self.failed[self.trajectory, None, None], 0.0, right_side)
        inner = torch.linalg.solve_triangular(self.L, right_side[:, n:-n], upper=False)
        return inner, torch.cat([right_side[:, :n], right_side[:, -n:]], 1) - self.V.mT @ inner

    def boundary_rows(self, ends: Tensor) -> Tensor:
        """L⁻¹ b of the boundaries as rows (Σ S n, r), from what `condense` left of the ends (N, 2n, r)."""
        b = self._at_boundaries(ends)
        rows = b.new_empty(b.shape[0] * b.shape[1], b.shape[2])
        for begin in range(0, b.shape[2], COLUMNS):
            chosen = slice(begin, begin + COLUMNS)
            torch.cat([part.flatten(0, 1) for part in self._reduced(b[:, :, chosen])], out=rows[:, chosen])
        return rows

    def _at_boundaries(self, ends: Tensor) -> Tensor:
        """Right sides of all boundaries (N + B, n, r) from those of the ends of every element."""
        n = self.states
        b = ends.new_zeros(int(self.left[-1]) + 2, n, ends.shape[-1])
        b.index_add_(0, self.left, ends[:, :n])
        b.index_add_(0, self.left + 1, ends[:, n:])
        return b

    def _reduced(self, b: Tensor) -> list[Tensor]:
        """L⁻¹ b of the boundaries (N + B, n, r), one part (S, n, r) per level."""
        parts = []
        for level in self.levels[:-1]:
            if level.padded:
                b = torch.cat([b, torch.zeros_like(b[:1])])
            y = torch.linalg.solve_triangular(level.L, b[1::2], upper=False)
            b = b[0::2].clone()
            b[:-1] -= level.left.mT @ y
            b[1:] -= level.right.mT @ y
            b = b[:-1] if level.padded else b
            parts.append(y)
        parts.append(torch.linalg.solve_triangular(self.levels[-1].L, b, upper=False))
        return parts

    def _backward(self, parts: list[Tensor]) -> Tensor:
        """Lᵀ⁻¹ of the boundary parts: values at all boundaries (N + B, n, r)."""
        x: Tensor = torch.linalg.solve_triangular(self.levels[-1].L.mT, parts[-1], upper=True)
        for level, y in zip(reversed(self.levels[:-1]), reversed(parts[:-1]), strict=True):
            if level.padded:
                x = torch.cat([x, torch.zeros_like(x[:1])])
            y = y - level.left @ x[:-1] - level.right @ x[1:]
            odd = torch.linalg.solve_triangular(level.L.mT, y, upper=True)
            joined = x.new_empty(x.shape[0] + odd.shape[0], *x.shape[1:])
            joined[0::2], joined[1::2] = x, odd
            x = joined[:-1] if level.padded else joined
        return x
