"""(S + μ diag(m)) dθ = -g for every μ from products with S alone: Lanczos in the damping's own metric.

With S̃ = m^-½ S m^-½ and g̃ = m^-½ g the system is ``(S̃ + μ 1) y = -g̃``, dθ = m^-½ y: the Krylov spaces of S̃ + μ 1 from
g̃ are the same for all μ, so that one orthonormal basis V with S̃ V = V T + β v eᵀ (Lanczos 1950) serves every damping
that a step tries, as the Cholesky factor's matrix does where S is formed:

    y = -|g̃| V (T + μ 1)⁻¹ e_1,      |residual| = β |e_kᵀ (T + μ 1)⁻¹ e_1| |g̃|.

m is the preconditioner: it takes the scales of the layers out. Galerkin's y is the minimiser of the damped model in
its space, so that the promised decrease of J is that of the formed system's formula.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snet_cli.models.base import Model
from snet_cli.training.weight_system import mean_squares, weight_measure

MOST_VECTORS = 80
"""Vectors of the basis: products with S that an iteration may take."""

ACCURACY = 0.03
"""Residual relative to |g| at which a step is as good as the exact one (Dembo, Eisenstat & Steihaug 1982)."""

PROBES = 4
"""Random vectors from which the mean curvature is estimated (Hutchinson 1990): one number for the measure."""

INVARIANT = 1e-12
"""β relative to |T| below which the space holds the exact solution."""


class KrylovSystem:
    """The counterpart of `weight_system.WeightSystem` where S is only known as a product.

    Parameters
    ----------
    product : callable
        S v for v of shape (N_θ,).
    gradient : Tensor, shape (N_θ,)
        g.
    model : Model

    Attributes
    ----------
    measure : Tensor, shape (N_θ,)
        m.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], gradient: Tensor, model: Model) -> None:
        self.product, self.gradient = product, gradient
        self.use_measure(_estimated_measure(product, model))

    def use_measure(self, measure: Tensor) -> None:
        """Start the basis anew in the metric of another m."""
        self.measure, self.root = measure, measure.sqrt()
        start = -self.gradient / self.root
        self.size = float(start.norm())
        self.basis = [start / self.size] if self.size > 0 else []
        self.diagonal: list[float] = []
        self.next_to_it: list[float] = []  # below the diagonal of T

    def solve(self, damping: float) -> Tensor | None:
        """Dθ for μ, the basis extended until it is accurate enough; None where the step is not finite."""
        if not self.basis:
            return torch.zeros_like(self.measure) if self.size == 0 else None
        while True:
            found = self._in_the_space(damping)
            if found is not None and (found[1] <= ACCURACY or len(self.diagonal) >= MOST_VECTORS):
                break
            if not self._extend():
                return None
        y = torch.stack(self.basis[: len(self.diagonal)], 1) @ found[0]
        step: Tensor = self.size * y / self.root
        return step if bool(torch.isfinite(step).all()) else None

    def _in_the_space(self, damping: float) -> tuple[Tensor, float] | None:
        """Coordinates of y in the basis, and the relative residual; None before the first product."""
        count = len(self.diagonal)
        if count == 0:
            return None
        T = torch.diag(torch.tensor(self.diagonal, dtype=torch.float64) + damping)
        off = torch.tensor(self.next_to_it[: count - 1], dtype=torch.float64)
        T = T + torch.diag(off, 1) + torch.diag(off, -1)
        first = torch.zeros(count, 1, dtype=torch.float64)
        first[0] = 1.0
        found = torch.linalg.solve(T, first)[:, 0]
        return found.to(self.measure.device), abs(self.next_to_it[-1] * float(found[-1]))

    def _extend(self) -> bool:
        """One more vector; False where a product is not finite."""
        last = self.basis[-1]
        image = self.product(last / self.root) / self.root
        if not bool(torch.isfinite(image).all()):
            return False
        self.diagonal.append(float(last @ image))
        V = torch.stack(self.basis, 1)
        for _ in range(2):  # twice is enough (Parlett 1980)
            image = image - V @ (V.T @ image)
        beta = float(image.norm())
        if beta <= INVARIANT * max(self.diagonal, default=0.0):
            beta = 0.0
        self.next_to_it.append(beta)
        self.basis.append(image / beta if beta > 0 else image)
        return True


def _estimated_measure(product: Callable[[Tensor], Tensor], model: Model) -> Tensor:
    """`weight_measure` from the mean over all weights of curvature times mean square, estimated by random signs."""
    square = mean_squares(list(model.parameters()))
    usual = torch.where(square > 0, square, square.mean())
    usual = torch.where(usual > 0, usual, 1.0)
    generator = torch.Generator().manual_seed(0)
    cost = 0.0
    for _ in range(PROBES):
        signs = 2.0 * torch.randint(0, 2, (square.numel(),), generator=generator).to(square) - 1.0
        probe = signs * usual.sqrt()
        cost += float(probe @ product(probe)) / (PROBES * square.numel())
    return weight_measure(max(cost, torch.finfo(square.dtype).tiny) / usual, model)
