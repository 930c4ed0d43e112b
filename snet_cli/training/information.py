"""What each output tells of θ, Σ (de/dθ)ᵀ (de/dθ) / noise², held as roots R with RᵀR, upper triangular.

A root holds twice the digits of its square, which the information of exact data needs: it spans far more than the
sixteen digits that its own eigenvalues would be told apart in. What a double holds of RᵀR is 2e-13 of the largest,
thousands of times the prior, and all that lies below would seem to be unknown. So it is taken by orthogonal
triangularisation there. Where the largest is small enough that rounding of the squares stays far below the prior, as
with noise, they are summed, and the root is their Cholesky factor: a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.distributed import Team
from snet_cli.training.weight_system import add_lower_gram, mirror

FloatArray = NDArray[np.float64]

ROUNDING = 1e-10
"""Singular values of de/dθ below this part of the largest are rounding of the solution with A: they tell nothing."""

SQUARED = 5e11
"""Information in units of the prior up to which squares are summed: their rounding is 4e-4 of the prior then."""

RIDGE = 4.0 * float(np.finfo(np.float64).eps)
"""Added to the squares, relative to their trace: rounding must not leave them indefinite."""


class Squares:
    """Sums the information of each output as it is; for information that `SQUARED` allows.

    Parameters
    ----------
    outputs : int
    prior : Tensor, shape (N_θ,)
        Standard deviations, the unit of θ.
    """

    def __init__(self, outputs: int, prior: Tensor) -> None:
        self.prior = prior
        self.totals = prior.new_zeros(outputs, len(prior), len(prior))

    def add(self, output: int, rows: Tensor) -> None:
        """Add the squares of rows (r, N_θ)."""
        add_lower_gram(self.totals[output], rows * self.prior)

    def roots(self, team: Team) -> list[Tensor] | None:
        """Roots of all processes' sums in units of θ; None where squares do not hold enough digits."""
        (totals,) = team.sum(self.totals)
        trace = float(torch.diagonal(totals, dim1=1, dim2=2).sum())
        spoiled = not trace <= SQUARED  # true for NaN
        for total in () if spoiled else totals:
            mirror(total).diagonal().add_(RIDGE * trace)
            L, info = torch.linalg.cholesky_ex(total)
            spoiled |= int(info) != 0
            torch.div(L.mT, self.prior, out=total)
        # one answer for all: machines of different kinds round differently
        return None if team.any(spoiled)[0] else list(totals)


class Triangles:
    """Sums the information of each output as its root, whatever it spans."""

    def __init__(self, outputs: int, prior: Tensor) -> None:
        self.totals = [prior.new_zeros(1, len(prior))] * outputs

    def add(self, output: int, rows: Tensor) -> None:
        """Add the squares of rows (r, N_θ)."""
        self.totals[output] = triangle(self.totals[output], rows)

    def roots(self, team: Team) -> list[Tensor]:
        """Roots of all processes' sums in units of θ."""
        return self.totals if team.size == 1 else [triangle(team.gather(root)) for root in self.totals]


def triangle(*rows: Tensor) -> Tensor:
    """R of a QR factorisation of all rows: RᵀR is the sum of their squares, which is never formed."""
    upper: Tensor = torch.linalg.qr(torch.cat(rows), mode="r").R
    return upper


class Information(NamedTuple):
    """What each output tells, in units of the prior: Σ I_d = V Λ Vᵀ, and R_d V with R_dᵀR_d = I_d.

    Only the r directions that it tells anything of: Λ (r,), V (N_θ, r), R_d V (rows, r).
    """

    roots: tuple[FloatArray, ...]
    values: FloatArray
    directions: FloatArray

    @classmethod
    def of(cls, roots: Sequence[FloatArray], prior: FloatArray) -> Information:
        """From roots in units of θ."""
        scaled = [torch.from_numpy(root * prior) for root in roots]
        # torch's LAPACK keeps to the threads that the command was given: numpy's took eight times as long
        if sum(float(root.square().sum()) for root in scaled) <= SQUARED:
            values, vectors = (part.flip(-1) for part in torch.linalg.eigh(_sum_of_squares(scaled)))
            known = values > 2.0 * len(roots) * RIDGE * values.sum()  # roots of squares have a ridge each
        else:
            _, size, right = torch.linalg.svd(triangle(*scaled))
            known, values, vectors = size > ROUNDING * size[0], size.square(), right.mT[:, : size.numel()]
        told = vectors[:, known]
        return cls(tuple((root @ told).numpy() for root in scaled), values[known].numpy(), told.numpy())

    def divided(self, by: float) -> Information:
        """That of the information over a number."""
        return self._replace(values=self.values / by, roots=tuple(root / np.sqrt(by) for root in self.roots))

    def precision_root(self, phi: FloatArray) -> FloatArray:
        """U of UᵀU = Σ I_d / φ_d + 1, upper triangular with a positive diagonal."""
        parts = [torch.from_numpy(root / np.sqrt(by)) for root, by in zip(self.roots, phi, strict=True)]
        V = torch.from_numpy(self.directions)
        one = torch.eye(len(V), dtype=torch.float64)
        if self.values.sum() <= SQUARED:
            L: FloatArray = torch.linalg.cholesky(V @ _sum_of_squares(parts) @ V.mT + one).numpy()
            return L.T
        upper = triangle(one, torch.cat(parts) @ V.mT).numpy()
        signed: FloatArray = upper * np.where(np.diagonal(upper) < 0, -1.0, 1.0)[:, None]
        return signed


def _sum_of_squares(roots: Sequence[Tensor]) -> Tensor:
    """Σ RᵀR."""
    total = roots[0].new_zeros(roots[0].shape[1], roots[0].shape[1])
    for root in roots:
        add_lower_gram(total, root)
    return mirror(total)
