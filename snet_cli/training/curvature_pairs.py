"""The memory of L-BFGS for several models at once: pairs s_k = θ_{k+1} - θ_k, y_k = g_{k+1} - g_k, and -H g from them.

With the last m pairs, R the upper triangle of SᵀY and E its diagonal, the inverse Hessian in the compact form of Byrd,
Nocedal & Schnabel (1994, eq. 3.1) is

    H = γ 1 + [S  γY] [ R⁻ᵀ (E + γ YᵀY) R⁻¹   -R⁻ᵀ ] [ Sᵀ  ]
                      [        -R⁻¹             0   ] [ γYᵀ ]

SᵀY and YᵀY are kept, and get one row and column with each pair, so that a direction costs two passes over the pairs.
Models share nothing. What comes out for one does not depend on how many there are, to the last bit: every vector begins
on a cache line, because products of arrays that are aligned otherwise have other last digits, and products with one
vector, for which a library has other routines than for several, are products with two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

PAIRS = 50
"""Curvature pairs kept: fewer converge markedly slower on the vehicle, more cost memory only."""

SPARE = 10
"""Rows of memory beyond `PAIRS`: all pairs are moved once in so many iterations instead of in each."""

LINE = 16
"""Numbers to a cache line, of the smallest kind."""

LEAST_CURVATURE = 1e-12
"""Of a pair, relative to the lengths of s and y: beyond rounding."""


def padded_width(count: int) -> int:
    """The next multiple of a cache line."""
    return -(-count // LINE) * LINE


class CurvaturePairs:
    """Pairs of M models, vectors of length N filled up to whole cache lines.

    Parameters
    ----------
    theta : Tensor, shape (M, N')
        Says how many and how long, N' a multiple of `LINE`.

    Attributes
    ----------
    count : list of int
        Pairs of each model.
    """

    def __init__(self, theta: Tensor) -> None:
        models, width = theta.shape
        self.count = [0] * models
        self._rows = theta.new_zeros(models, PAIRS + SPARE, 2, width)  # s and y of a pair beside each other
        self._end = PAIRS
        self._sy, self._yy = _square(theta, models), _square(theta, models)

    def directions(self, gradient: Tensor) -> Tensor:
        """-H g of every model, shape (M, N'); the first step of a model has length at most one."""
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        plain = -gradient / norm.clamp_min(1e-300) * norm.clamp_max(1.0)
        if not any(self.count):
            return plain
        newest = self._rows[:, self._end - 1, 1]
        pairs = self._window().flatten(1, 2)  # (M, 2m, N'): s_1, y_1, s_2, ...
        products = torch.bmm(pairs, torch.stack([gradient, newest], 1).mT)
        by_s, by_y = products[:, 0::2], products[:, 1::2]
        self._sy[:, :, -1] = by_s[..., 1]
        self._yy[:, :, -1] = self._yy[:, -1, :] = by_y[..., 1]

        E = self._sy.diagonal(dim1=1, dim2=2)
        R = self._sy.triu()
        R.diagonal(dim1=1, dim2=2).add_((E == 0).to(E.dtype))  # empty places, which are coupled to nothing
        known = torch.tensor([count > 0 for count in self.count], device=E.device)[:, None]
        gamma = torch.where(known, E[:, -1:], 1.0) / torch.where(known, self._yy[:, -1, -1:], 1.0)
        w = torch.linalg.solve_triangular(R, _two(by_s[..., 0]), upper=True)
        inner = E * w[..., 0] + gamma * (torch.bmm(self._yy, w)[..., 0] - by_y[..., 0])
        v = torch.linalg.solve_triangular(R.mT, _two(inner), upper=False)[..., 0]
        share = torch.stack([v, -gamma * w[..., 0]], 2).flatten(1)
        return torch.where(known, -(gamma * gradient + torch.bmm(pairs.mT, _two(share))[..., 0]), plain)

    def append(self, models: Sequence[int], steps: Tensor, changes: Tensor) -> None:
        """Keep the pairs (A, N') of these models whose curvature is positive beyond rounding, by their size."""
        lengths = torch.linalg.vector_norm(steps, dim=1) * torch.linalg.vector_norm(changes, dim=1)
        enough = ((steps * changes).sum(1) > LEAST_CURVATURE * lengths).tolist()
        kept = [row for row, good in enumerate(enough) if good]
        if not kept:
            return
        self._make_room({models[row] for row in kept})
        for row in kept:
            m = models[row]
            self._rows[m, self._end - 1, 0], self._rows[m, self._end - 1, 1] = steps[row], changes[row]
            self.count[m] = min(self.count[m] + 1, PAIRS)

    def _make_room(self, moving: set[int]) -> None:
        """An empty newest place for these models; the pairs of the others stay the newest of theirs."""
        if self._end == PAIRS + SPARE:
            self._rows[:, :PAIRS] = self._rows[:, SPARE:].clone()
            self._end = PAIRS
        self._end += 1
        for products in (self._sy, self._yy):
            shifted = products[:, 1:, 1:].clone()
            if len(moving) == len(self.count):
                products[:, :-1, :-1] = shifted
            else:
                for m in moving:
                    products[m, :-1, :-1] = shifted[m]
        for m in set(range(len(self.count))) - moving:
            self._rows[m, self._end - PAIRS : self._end] = self._rows[m, self._end - PAIRS - 1 : self._end - 1].clone()

    def forget(self, models: Sequence[int]) -> None:
        """Empty the memory of these models."""
        for m in models:
            self.count[m] = 0
            for part in (self._rows, self._sy, self._yy):
                part[m] = 0.0

    def keep(self, models: Sequence[int]) -> None:
        """Go on with these models alone."""
        self.count = [self.count[m] for m in models]
        sy, yy = self._sy[list(models)], self._yy[list(models)]
        self._rows = self._rows[list(models)]
        self._sy, self._yy = _square(sy, len(models)), _square(yy, len(models))
        self._sy.copy_(sy)
        self._yy.copy_(yy)

    def state(self, model: int, width: int) -> dict[str, Tensor]:
        """Its pairs S and Y, shape (pairs, N), oldest first, and SᵀY and YᵀY."""
        pairs = self._window()[model, PAIRS - self.count[model] :, :, :width]
        return {"S": pairs[:, 0], "Y": pairs[:, 1], "SY": self._sy[model], "YY": self._yy[model]}

    def restore(self, model: int, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned, bit for bit."""
        self.forget([model])
        count, width = state["S"].shape
        self.count[model] = count
        for part, name in enumerate(("S", "Y")):
            self._window()[model, PAIRS - count :, part, :width] = state[name]
        self._sy[model], self._yy[model] = state["SY"], state["YY"]

    def _window(self) -> Tensor:
        """The last m pairs, shape (M, m, 2, N'), the newest at the end; zeros where there are fewer."""
        return self._rows[:, self._end - PAIRS : self._end]


def _square(like: Tensor, models: int) -> Tensor:
    """Zeros (M, m, m), each matrix beginning on a cache line."""
    room = like.new_zeros(models, padded_width(PAIRS * PAIRS))
    return room[:, : PAIRS * PAIRS].view(models, PAIRS, PAIRS)


def _two(vectors: Tensor) -> Tensor:
    """Vectors (M, r) as matrices (M, r, 2) with a column of zeros."""
    return torch.stack([vectors, torch.zeros_like(vectors)], 2)
