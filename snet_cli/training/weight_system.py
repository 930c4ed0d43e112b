"""Damped normal equations in the weights θ, once everything else is fixed or eliminated: ``(S + μ diag(m)) dθ = -g``.

S is half the Gauss-Newton Hessian of the loss in θ: the Schur complement of the arrow where the trajectories are
eliminated (`linearisation`), Σ Gᵀ W G where they are fixed (`theta_lm`). Both damp, solve and measure θ alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snet_cli.models.base import Model
from snet_cli.models.theta_blocks import ThetaJacobian

START_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e-14, 1e8
"""μ at first, and its bounds."""

EASIER, HARDER = 5.0, 2.5
"""Factors of μ after a step and after a refusal, which costs no new S ("delayed gratification", Transtrum & Sethna
2012: networks are sloppy models, whose canyons are followed best with the least damping that still descends)."""

NO_CURVATURE = 1e-14
"""Least measure of a weight, relative to the largest curvature: one without any influence must not leave S singular."""

NO_SIZE = 1e-6
"""Mean cost of a tensor relative to that of all weights below which its magnitude says nothing about its scale."""

LINEAR = 1e-6
"""Measure of weights in which f is linear, relative to that of the others, on exact data."""

PANEL = 128
"""Rows of a product AᵀA that are formed at a time."""


@dataclass(frozen=True)
class WeightSystem:
    """S, g and the measure of the damping.

    Attributes
    ----------
    matrix : Tensor, shape (N_θ, N_θ)
        S, half the Gauss-Newton Hessian.
    gradient : Tensor, shape (N_θ,)
        g, half the gradient.
    measure : Tensor, shape (N_θ,)
        m, from `weight_measure`.
    """

    matrix: Tensor
    gradient: Tensor
    measure: Tensor

    @classmethod
    def build(cls, matrix: Tensor, gradient: Tensor, model: Model, *, exact: bool = False) -> WeightSystem:
        """The system with the measure that fits it."""
        return cls(matrix, gradient, weight_measure(matrix.diagonal(), model, exact=exact))

    def determined(self, prior: Tensor) -> Tensor | None:
        """Share of each weight, shape (N_θ,), that the data determines: 1 - p_i [S⁻¹]_ii for a prior p (N_θ,) within S.

        None where S is not positive definite.
        """
        L, info = torch.linalg.cholesky_ex(self.matrix)
        if int(info) != 0:
            return None
        return (1.0 - prior * torch.cholesky_inverse(L).diagonal()).clamp(0.0, 1.0)

    def solve(self, damping: float) -> Tensor | None:
        """Dθ for μ; None where S + μ diag(m) is not positive definite or the step is not finite."""
        damped = self.matrix.clone()
        damped.diagonal().add_(self.measure, alpha=damping)
        L, info = torch.linalg.cholesky_ex(damped)
        if int(info) != 0:
            return None
        step = -torch.cholesky_solve(self.gradient[:, None], L)[:, 0]
        return step if bool(torch.isfinite(step).all()) else None


def weight_measure(curvature: Tensor, model: Model, *, exact: bool = False) -> Tensor:
    """One over the mean square of each parameter's tensor, scaled so that on average it costs its own curvature.

    It scales with the units of a parameter as its curvature does, but gives all weights of a layer one measure: those
    that the data hardly feels stay as free as the others (Marquardt's diagonal would hold each by its own curvature,
    and halves the gain of a step on a wide network).

    On exact data weights in which f is linear are next to free. A damped step stays where the linear model of f can be
    trusted, and in them it can be anywhere: freed, they follow the others as their least-squares solution would, which
    is the step of variable projection (Golub & Pereyra 1973) in the form of Kaufman (1975). On the vehicle one step
    then does what thirty did. On noisy data they would go as fast to what the noise asks for: the same J to one
    percent, and two and a half times the error over ten horizons.
    """
    parameters = list(model.parameters())
    curvature = curvature.clamp_min(0.0)
    square = mean_squares(parameters)
    cost = curvature * square
    level = cost.mean()
    by_tensor = torch.cat(
        [part.mean().expand(part.numel()) for part in torch.split(cost, [p.numel() for p in parameters])]
    )
    # a tensor that is zero, or was a moment ago, tells no size (small units would come with a large curvature): its own
    # curvature serves
    sized = (square > 0) & (by_tensor > NO_SIZE * level)
    by_size = level / torch.where(square > 0, square, 1.0)
    floor = NO_CURVATURE * curvature.max() + torch.finfo(curvature.dtype).tiny
    measure = torch.where(sized, by_size, curvature)
    linear = {id(p) for p in model.linear_weights()}
    freed = torch.cat([p.new_full((p.numel(),), LINEAR if exact and id(p) in linear else 1.0) for p in parameters])
    return (measure * freed.to(measure)).clamp_min(floor)


def mean_squares(parameters: list[nn.Parameter]) -> Tensor:
    """For each weight the mean square of its tensor, shape (N_θ,)."""
    return torch.cat([p.detach().double().square().mean().expand(p.numel()) for p in parameters])


def weights_of(parameters: list[nn.Parameter]) -> Tensor:
    """θ in float64, in the order of the parameters, shape (N_θ,)."""
    return nn.utils.parameters_to_vector(parameters).detach().double()


def put_weights(parameters: list[nn.Parameter], theta: Tensor) -> None:
    """Set the parameters to θ."""
    with torch.no_grad():
        nn.utils.vector_to_parameters(theta.to(parameters[0].dtype), parameters)


def add_lower_gram(total: Tensor, rows: Tensor, sign: float = 1.0) -> None:
    """Add ±AᵀA of A (Q, r) to `total` (r, r), of its dtype, on and below the diagonal; `mirror` writes what is above.

    In panels of a few rows of AᵀA: that is little more than half of the products, and all of them where they are kept.
    """
    for begin in range(0, rows.shape[1], PANEL):
        end = begin + PANEL
        total[begin:end, :end].addmm_(rows[:, begin:end].mT, rows[:, :end], alpha=sign)


def mirror(total: Tensor) -> Tensor:
    """`total` (r, r) with what is below its diagonal copied above it, in place."""
    for begin in range(0, total.shape[0], PANEL):
        end = begin + PANEL
        total[:begin, begin:end] = total[begin:end, :begin].mT
        square = total[begin:end, begin:end]
        square.copy_(square.tril() + square.tril(-1).mT)
    return total


def add_gram(total: Tensor, G: ThetaJacobian) -> None:
    """Add GᵀG, summed over points and rows, to `total` (N_θ, N_θ), on and below the diagonal."""
    for _, columns, values in G.blocks:
        add_lower_gram(total[columns, columns], values.flatten(0, 1))
