"""θ alone before X moves with it: δ-SNet on X of step 0, for as long as a network that knows nothing would spoil X.

    rough:  L-BFGS, whose steps cost an evaluation each; a hundred of them make a network that X may listen to
    fine:   on exact data, whose X is right, Levenberg-Marquardt until R has settled

With X free, θ follows a narrow canyon, so that on exact data θ is first taken as far as X of step 0 can tell. From the
first weights Levenberg-Marquardt would go there alone, but its weights in which f is linear are free
(`weight_system.weight_measure`) and become large where hidden features are still alike: on the vehicle it ends at
R = 8e-8, after 300 steps of L-BFGS at 4e-9, in six of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.training.lbfgs import LbfgsStep
from snet_cli.training.problem import Problem, Residual
from snet_cli.training.theta_lm import LevenbergMarquardtStep

STEPS = 10
"""Steps of L-BFGS in an iteration."""

ROUGH, ROUGH_IF_EXACT = 10, 30
"""Iterations of L-BFGS, and on exact data."""

FINE = 100
"""Most iterations of Levenberg-Marquardt, one step each, a fifth of the cost of a joint step."""

SETTLED_GAIN, SETTLED_FOR = 2e-2, 4
"""Relative fall of R in one such step, for how many in a row, that ends the warm-up early."""


class WarmUp:
    """Iterations on θ alone, resumable between any two.

    Parameters
    ----------
    problem : Problem
        Step 0, all elements.
    model : Model
    exact : bool
        Whether step 0 is as good as the truth and N_θ² numbers are few, so that the fine part pays.
    team : Team

    Attributes
    ----------
    done : bool
    """

    def __init__(self, problem: Problem, model: Model, exact: bool, *, team: Team = ALONE) -> None:
        self.rough_step = LbfgsStep(model, Residual(problem, model), team)
        self.fine_step = LevenbergMarquardtStep(problem, model, exact=True, team=team)
        self.rough, self.fine = (ROUGH_IF_EXACT, FINE) if exact else (ROUGH, 0)
        self.iteration, self.quiet, self.last = 0, 0, math.inf

    @property
    def done(self) -> bool:
        """Whether X may move now."""
        return self.iteration >= self.rough + self.fine or self.quiet >= SETTLED_FOR

    @property
    def evaluations(self) -> int:
        """Evaluations of f with a derivative by θ so far."""
        return self.rough_step.evaluations + self.fine_step.evaluations

    def step(self) -> float:
        """One iteration; returns R after it."""
        self.iteration += 1
        if self.iteration <= self.rough:
            return [self.rough_step.step() for _ in range(STEPS)][-1]
        value = self.fine_step.step()
        gains = self.last - value > SETTLED_GAIN * value
        self.quiet, self.last = 0 if gains else self.quiet + 1, value
        return value

    def state(self) -> dict[str, Tensor]:
        """What the next iteration needs beside θ."""
        progress = torch.tensor([self.iteration, self.quiet, self.last], dtype=torch.float64)
        both = {"rough": self.rough_step.state(), "fine": self.fine_step.state()}
        return {"progress": progress} | {f"{part}.{name}": v for part, own in both.items() for name, v in own.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit."""
        iteration, quiet, self.last = state["progress"].tolist()
        self.iteration, self.quiet = int(iteration), int(quiet)
        self.rough_step.restore({k.removeprefix("rough."): v for k, v in state.items() if k.startswith("rough.")})
        self.fine_step.restore({k.removeprefix("fine."): v for k, v in state.items() if k.startswith("fine.")})
