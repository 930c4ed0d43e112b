"""The θ-step: one iteration of Adam (Kingma & Ba 2015) or L-BFGS (Nocedal & Wright 2006, alg. 7.5) on the weights.

Both are torch's, because their state can be saved and restored; scipy keeps none that could be. L-BFGS evaluates the loss
again at the start of every call, although its line search ended there: a memory of the last evaluation answers instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from snet_cli.training.options import ThetaStepOptions

LBFGS_PAIRS = 50
"""Curvature pairs that L-BFGS keeps: fewer converge markedly slower on the vehicle, more cost time per iteration."""


class ThetaStep(Protocol):
    """One iteration on the weights."""

    evaluations: int

    def step(self) -> Tensor:
        """Move θ once; returns the loss before the move (Adam) or after it (L-BFGS)."""
        ...


class AdamStep:
    """One gradient, one Adam step."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], rate: float) -> None:
        self.loss = loss
        self.evaluations = 0
        self.optimizer = torch.optim.Adam(model.parameters(), lr=rate, foreach=True)

    def step(self) -> Tensor:
        """Return the loss before the step, as every textbook loop does: no second evaluation."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.evaluations += 1
        return loss.detach()


class LbfgsStep:
    """One L-BFGS iteration with a strong Wolfe line search."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        self.loss = loss
        self.evaluations = 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.LBFGS(
            self.parameters,
            max_iter=1,
            history_size=LBFGS_PAIRS,
            line_search_fn="strong_wolfe",
            tolerance_grad=0.0,
            tolerance_change=0.0,
        )
        self.last_point: list[Tensor] = []
        self.last_loss: Tensor | None = None
        self.last_gradient: list[Tensor] = []

    def _closure(self) -> Tensor:
        """The loss and its gradient, from memory if θ has not moved since the last evaluation."""
        if self.last_loss is not None and all(
            torch.equal(now, then) for now, then in zip(self.parameters, self.last_point, strict=True)
        ):
            for parameter, gradient in zip(self.parameters, self.last_gradient, strict=True):
                parameter.grad = gradient.clone()
            return self.last_loss
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.evaluations += 1
        self.last_loss = loss.detach()
        self.last_point = [p.detach().clone() for p in self.parameters]
        self.last_gradient = [p.grad.clone() for p in self.parameters if p.grad is not None]
        return self.last_loss

    def step(self) -> Tensor:
        """Return the loss at the new θ."""
        self.optimizer.step(self._closure)
        with torch.enable_grad():
            return self._closure()


def build_theta_step(options: ThetaStepOptions, model: nn.Module, loss: Callable[[], Tensor]) -> ThetaStep:
    """The optimiser that the options name."""
    if options.name == "adam":
        return AdamStep(model, loss, options.rate)
    return LbfgsStep(model, loss)
