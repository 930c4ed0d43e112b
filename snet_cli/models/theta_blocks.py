"""∂f/∂θ at many points as blocks: structured models have rows of f that only some of the weights reach.

The blocks share neither rows nor columns, so that everything that is done with ∂f/∂θ is done block by block: on the
vehicle, whose J reaches the rows of η' and whose C and d reach those of v', that is half the numbers to write and a
quarter of the products GᵀG.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class ThetaBlock(NamedTuple):
    """∂f_i/∂θ_k of the rows i and the weights k that belong together.

    Attributes
    ----------
    rows : slice or Tensor of int, length r
        Rows of f.
    columns : slice, length c
        Numbers of the weights.
    values : Tensor, shape (Q, r, c)
    """

    rows: slice | Tensor
    columns: slice
    values: Tensor


class ThetaJacobian:
    """G = ∂f/∂θ at Q points; entry [q, i, k] = ∂f_i/∂θ_k, zero outside the blocks.

    Parameters
    ----------
    blocks : sequence of ThetaBlock
        No two with a row or a column in common.
    shape : tuple of int
        (Q, n, N_θ).
    """

    def __init__(self, blocks: tuple[ThetaBlock, ...], shape: tuple[int, int, int]) -> None:
        self.blocks, self.shape = blocks, shape

    @classmethod
    def full(cls, values: Tensor) -> ThetaJacobian:
        """Of an f each of whose rows depends on every weight, from values (Q, n, N_θ)."""
        Q, n, size = values.shape
        return cls((ThetaBlock(slice(0, n), slice(0, size), values),), (Q, n, size))

    def dense(self) -> Tensor:
        """All entries, shape (Q, n, N_θ)."""
        like = self.blocks[0].values
        total = like.new_zeros(self.shape)
        for rows, columns, values in self.blocks:
            total[:, rows, columns] = values
        return total

    def weighted_(self, factor: Tensor) -> ThetaJacobian:
        """Multiply row i at point q by factor[q, i], in place; factor has shape (Q, n)."""
        for rows, _, values in self.blocks:
            values.mul_(factor[:, rows, None])
        return self

    def product(self, direction: Tensor) -> Tensor:
        """G_q dθ at every point, shape (Q, n), for `direction` dθ of shape (N_θ,)."""
        total = direction.new_zeros(self.shape[:2])
        for rows, columns, values in self.blocks:
            total[:, rows] = values @ direction[columns]
        return total

    def transpose_product(self, vectors: Tensor) -> Tensor:
        """Σ_q G_qᵀ v_q, shape (N_θ,), for vectors of shape (Q, n)."""
        total = vectors.new_zeros(self.shape[2])
        for rows, columns, values in self.blocks:
            total[columns] = vectors[:, rows].reshape(-1) @ values.flatten(0, 1)
        return total

    def by_element(self, operator: Callable[[Tensor], Tensor], nodes: int) -> ThetaJacobian:
        """The same after a linear map over the nodes of each element: of values (N, P, r), for any r, to as many.

        Parameters
        ----------
        nodes : int
            P; the points are those of the elements one after the other.
        """
        mapped = []
        for block in self.blocks:
            Q, r, c = block.values.shape
            values = operator(block.values.view(Q // nodes, nodes, r * c))
            mapped.append(block._replace(values=values.view(Q, r, c)))
        return ThetaJacobian(tuple(mapped), self.shape)

    def left_product(self, matrices: Tensor) -> Tensor:
        """A_e G_e for matrices A (N, R, P n) over the residuals of the nodes of each element, shape (N, R, N_θ)."""
        (N, R, unknowns), (_, n, size) = matrices.shape, self.shape
        if len(self.blocks) == 1 and self.blocks[0].values.shape == self.shape:
            return matrices @ self.blocks[0].values.view(N, unknowns, size)
        P = unknowns // n
        by_row = matrices.reshape(N, R, P, n)
        total = matrices.new_empty(N, R, size) if self._covers() else matrices.new_zeros(N, R, size)
        for rows, columns, values in self.blocks:
            total[:, :, columns] = by_row[..., rows].flatten(2) @ values.view(N, P * values.shape[1], values.shape[2])
        return total

    def _covers(self) -> bool:
        return sum(block.values.shape[2] for block in self.blocks) == self.shape[2]

    def total(self) -> Tensor:
        """The sum of all entries, which is not finite where one of them is not."""
        return torch.stack([block.values.sum() for block in self.blocks]).sum()
