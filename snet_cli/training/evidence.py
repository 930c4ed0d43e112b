"""How far the weights may go: the prior variance of each tensor of θ, by the evidence of the data (MacKay 1992).

At small γ, J/γ = L + Σ_i ν_i θ_i² is minus the log posterior in units of 2 ν_1, where ν_1 is the share of L that the
noise of one value leaves and ν_i = ν_1 α_k says that a number of tensor k has the prior N(0, 1/α_k). The weights
integrated out (Laplace's approximation, with the Gauss-Newton matrix), the probability of the data is stationary where

    α_k |θ_k|² = Σ_{i in k} (1 - ν_i [H⁻¹]_ii),        H = S / γ,  the Schur complement on θ with the prior in it:

the square of a tensor's weights in units of their prior is the number of them that the data determines. Each tensor has
its own α_k (as inputs have in automatic relevance determination, Neal 1996): the biases of a network that learns an odd
f, say, are found to be of no use. Where the data determines everything the prior is next to nothing beside it, and
where little is determined a network is as smooth as the data allows.

Each level of γ ends with one such step; the last one goes on until it changes nothing that matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snet_cli.training.arrow import ArrowProblem, Loss
from snet_cli.training.krylov import KrylovSystem
from snet_cli.training.linearisation import System

LEAST, MOST = 1e-2, 1e4
"""Bounds of α."""

ROUNDING = 1e-10
"""Numbers of a tensor that are determined, up to which none is."""

MATTERS = 3e-3
"""Change of L + Σ ν θ² relative to itself, by other α's at the same θ, from which on training goes on after the last
level; `continuation.LAST_GAIN` is a third of that."""

MOST_ROUNDS = 12
"""Most choices of α after the last level of a mesh. Where a tensor is of no use α doubles in each; more would change
forecasts by less than they scatter."""


class Evidence:
    """Chooses α of each tensor.

    Parameters
    ----------
    unit : float
        ν_1.

    Attributes
    ----------
    rounds : int
        How often the last level on this mesh went on for other α's.
    """

    def __init__(self, unit: float) -> None:
        self.unit = unit
        self.rounds = 0

    def standard_deviation(self, arrow: ArrowProblem) -> Tensor:
        """Of each number's prior as it is, shape (N_θ,)."""
        return (self.unit / arrow.prior).sqrt()

    def choose(self, arrow: ArrowProblem, at: Loss, system: System, gamma: float) -> bool:
        """Change `arrow.prior` to what the evidence asks for, half the way in the logarithm; whether that matters.

        Parameters
        ----------
        arrow : ArrowProblem
        at : Loss
            That of the model's θ.
        system : WeightSystem, RowSystem or KrylovSystem
            With this prior, of a θ nearby, X hardly damped. Where S is only applied its inverse has no diagonal, and α
            stays what it is.
        gamma : float
            γ of the system.
        """
        determined = None if isinstance(system, KrylovSystem) else system.determined(gamma * arrow.prior)
        if determined is None:
            return False
        square, sizes = arrow.theta().square(), [p.numel() for p in arrow.parameters]
        told, size = (
            torch.cat([part.sum().expand_as(part) for part in torch.split(each, sizes)])
            for each in (determined, square)
        )
        alpha = told / (size + torch.finfo(size.dtype).tiny)
        alpha = torch.where(told > ROUNDING, alpha, arrow.prior / self.unit)  # nothing is told: nothing to go by
        # the whole way would overshoot where a tensor is of little use: its weights follow with the next steps only
        chosen = (arrow.prior * self.unit * alpha.clamp(LEAST, MOST)).sqrt()
        change = float((chosen - arrow.prior).abs() @ square)
        arrow.prior = chosen
        return change > MATTERS * (at.misfit + at.penalty)
