"""The θ-step: one iteration of Adam (Kingma & Ba 2015), L-BFGS or Levenberg-Marquardt on θ, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.training.lbfgs import LbfgsStep
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.problem import Points
from snet_cli.training.theta_lm import LevenbergMarquardtStep


class ThetaStep(Protocol):
    """One iteration on the weights."""

    @property
    def evaluations(self) -> int:
        """Evaluations of the loss and its gradient so far."""
        ...

    def step(self) -> float:
        """Move θ once; returns the loss before the move (Adam) or after it (L-BFGS)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What the next step needs beside θ; tensors by name."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit."""
        ...


class AdamStep:
    """One gradient, one Adam step; loss and gradient are sums over the processes of a team."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], rate: float, team: Team = ALONE) -> None:
        self.loss, self.team = loss, team
        self.evaluations = 0
        self.optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)

    def step(self) -> float:
        """Return the loss before the step, as every textbook loop does: no second evaluation."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        value = self._summed(loss.detach())
        self.optimizer.step()
        self.evaluations += 1
        return value

    def _summed(self, loss: Tensor) -> float:
        """Σ of the loss; leaves Σ of each gradient in its place."""
        if self.team.size == 1:
            return float(loss)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        value, *sums = self.team.sum(loss, *gradients)
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total)
        return float(value)

    def state(self) -> dict[str, Tensor]:
        """Moments and counts of Adam."""
        return {**adam_state(self.optimizer), "evaluations": torch.tensor(self.evaluations)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit."""
        self.evaluations = int(state["evaluations"])
        restore_adam(self.optimizer, {key: value for key, value in state.items() if key != "evaluations"})


def adam_state(optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Step counts and moments by parameter number: ``0.step``, ``0.exp_avg``, ``0.exp_avg_sq``, ..."""
    return {
        f"{number}.{name}": value.detach().clone()
        for number, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def restore_adam(optimizer: torch.optim.Adam, state: Mapping[str, Tensor]) -> None:
    """Put back what `adam_state` returned."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def build_theta_step(
    options: ThetaStepOptions,
    model: Model,
    loss: Callable[[], Tensor],
    problem: Points,
    prior: float,
    team: Team = ALONE,
) -> ThetaStep:
    """The optimiser that the options name.

    Parameters
    ----------
    loss : callable
        This process's part of R + λ|θ|² of the moment; what is minimised is its sum over the team.
    problem : Points
        Of this R; Levenberg-Marquardt needs more of it than its value.
    prior : float
        λ.
    team : Team
    """
    if options.name == "adam":
        return AdamStep(model, loss, options.rate, team)
    if options.name == "lm":
        return LevenbergMarquardtStep(problem, model, prior, team=team)
    return LbfgsStep(model, loss, team)
