"""δ-SNet (`training.delta`) on more trajectories than belong into memory: the same steps on sums over blocks.

The full batch goes into every step, so that L-BFGS stays what it is; but where there are ten times as many elements as
a model of this kind needs to be nearly right, the first steps descend on every so many-th element alone, until that
gains little any more. From there the full batch has a short way to go.

Not here are formulas for θ and the robust form for exact data: they look at all points at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.lbfgs import LbfgsStep
from snet_cli.training.method import Step
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.problem import Problem
from snet_cli.training.theta_lm import LevenbergMarquardtStep
from snet_cli.training.theta_step import ThetaStep, build_theta_step

WARM_ELEMENTS = 20_000
"""Elements, of all processes, that the first steps descend on ..."""

WARM_SHARE = 0.1
"""... where they are at most this part of all."""

WARM_WINDOW, WARM_GAIN, WARM_MOST = 20, 0.01, 300
"""The warm-up ends when R fell by less than WARM_GAIN of itself over WARM_WINDOW steps, or after so many steps."""

LM_WINDOW, LM_MOST = 3, 30
"""The same for Levenberg-Marquardt, whose steps do what tens of others do."""


WARM_TOTALS = "warm_totals"
"""Key of the state."""


def warm_part(problem: BlockProblem, team: Team = ALONE) -> BlockProblem | None:
    """Every so many-th element of all processes, counted through; None where there are too few elements for that."""
    own = int(problem.elements.size)
    before, whole = team.before(own), int(team.total(float(own))[0])
    step = whole // WARM_ELEMENTS
    if WARM_ELEMENTS > WARM_SHARE * whole:
        return None
    return replace(problem.of(problem.elements[(-before) % step :: step], team), room=float("inf"))


class BlockDelta:
    """δ-SNet on a `BlockProblem`.

    Parameters
    ----------
    problem : BlockProblem
        Step 0 of this process's training data.
    model : Model
    options : ThetaStepOptions
    misfit : float
        L of step 0, which δ-SNet does not change.
    held_out : Problem or BlockProblem, optional
        Step 0 of held-out data, in the training data's scales.
    prior : float
        λ of a Gaussian prior on θ.
    warm : BlockProblem, optional
        What the first steps descend on (`warm_part`).
    team : Team
        The processes; all problems are this one's parts of the whole.
    """

    name = "delta"

    def __init__(
        self,
        problem: BlockProblem,
        model: Model,
        options: ThetaStepOptions,
        misfit: float,
        held_out: Problem | BlockProblem | None = None,
        prior: float = 0.0,
        *,
        warm: BlockProblem | None = None,
        team: Team = ALONE,
    ) -> None:
        self.model, self.team, self.prior, self.misfit = model, team, prior, misfit
        self.problem = problem
        self.residual = problem.residual(model)
        self.warm = None if warm is None else warm.residual(model)
        self.totals: list[float] = []
        self.held_out_residual = None if held_out is None else held_out.residual(model)
        first = problem if warm is None else warm
        self.theta: ThetaStep = build_theta_step(options, model, self._objective, first, prior, team)

    def _penalty(self) -> Tensor:
        return self.prior * torch.stack([(p * p).sum() for p in self.model.parameters()]).sum()

    def _objective(self) -> Tensor:
        """R + λ|θ|², the second once in the sum over the processes."""
        residual = (self.residual if self.warm is None else self.warm)()
        return residual + self._penalty() if self.prior > 0 and self.team.is_lead else residual

    @property
    def evaluations(self) -> int:
        """Evaluations of R and its gradient so far."""
        return self.theta.evaluations

    def step(self) -> Step:
        """One step on θ."""
        if self.warm is not None and self._is_warm():
            self._go_on_with_all()
        total = self.theta.step()
        if self.warm is not None:
            self.totals.append(total)
        if self.prior > 0:
            with torch.no_grad():
                total -= float(self._penalty())
        return Step(total, self.misfit, total)

    def _is_warm(self) -> bool:
        """Whether the warm-up has done what it can."""
        slow = not isinstance(self.theta, LevenbergMarquardtStep)
        window, most = (WARM_WINDOW, WARM_MOST) if slow else (LM_WINDOW, LM_MOST)
        if len(self.totals) <= window:
            return False
        before, now = self.totals[-1 - window], self.totals[-1]
        return len(self.totals) >= most or before - now < WARM_GAIN * abs(before)

    def _go_on_with_all(self) -> None:
        """Let the steps descend on all elements."""
        self.warm = None
        if isinstance(self.theta, LbfgsStep):
            self.theta.reopen()  # the objective changed; the curvature pairs stay a good guess
        elif isinstance(self.theta, LevenbergMarquardtStep):
            self.theta.use(self.problem, self.prior)

    def held_out(self) -> Tensor | None:
        """R on the held-out data's step 0."""
        if self.held_out_residual is None:
            return None
        with torch.no_grad():
            return self.team.sum(self.held_out_residual())[0]

    def state(self) -> dict[str, Tensor]:
        """The optimiser's memory, and the course of the warm-up while it lasts; x never moves."""
        totals = {} if self.warm is None else {WARM_TOTALS: torch.tensor(self.totals, dtype=torch.float64)}
        return {**self.theta.state(), **totals}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, on a model with the θ of that moment."""
        own = dict(state)
        if WARM_TOTALS in own:
            self.totals = own.pop(WARM_TOTALS).tolist()
        elif self.warm is not None:
            self._go_on_with_all()
        self.theta.restore(own)
