"""The θ-step: one iteration of Adam (Kingma & Ba 2015) or L-BFGS on the weights, behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from snet_cli.training.lbfgs import LbfgsStep
from snet_cli.training.options import ThetaStepOptions


class ThetaStep(Protocol):
    """One iteration on the weights."""

    evaluations: int

    def step(self) -> float:
        """Move θ once; returns the loss before the move (Adam) or after it (L-BFGS)."""
        ...


class AdamStep:
    """One gradient, one Adam step."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], rate: float) -> None:
        self.loss = loss
        self.evaluations = 0
        self.optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def step(self) -> float:
        """Return the loss before the step, as every textbook loop does: no second evaluation."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.evaluations += 1
        return float(loss.detach())


def build_theta_step(options: ThetaStepOptions, model: nn.Module, loss: Callable[[], Tensor]) -> ThetaStep:
    """The optimiser that the options name."""
    if options.name == "adam":
        return AdamStep(model, loss, options.rate)
    return LbfgsStep(model, loss)
