"""θ alone before X moves with it: δ-SNet on X of step 0, for as long as a network that knows nothing would spoil X.

    rough:  L-BFGS, whose steps cost an evaluation each; a hundred of them make a network that X may listen to, and six
            hundred, on exact data, one whose features carry Levenberg-Marquardt ten times as far as three hundred do
    fine:   on exact data, whose X is right, Levenberg-Marquardt until R has settled; under Huber's loss (`robust`)
            where few elements hold nearly all of R, which kinks do

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
from snet_cli.training.blocks import BlockResidual
from snet_cli.training.lbfgs import LbfgsStep
from snet_cli.training.problem import Points, Residual
from snet_cli.training.robust import MAD_TO_STD, TUNING, element_residuals, huber_weight, median_magnitude
from snet_cli.training.theta_lm import LevenbergMarquardtStep

STEPS = 10
"""Steps of L-BFGS in an iteration."""

ROUGH, ROUGH_IF_EXACT, ROUGH_IF_HURRIED = 10, 60, 30
"""Iterations of L-BFGS, on exact data, and there where little time or few iterations are given."""

FINE = 100
"""Most iterations of Levenberg-Marquardt, one step each, a fifth of the cost of a joint step."""

KINKED = 10.0
"""R over what medians of the elements' residuals make of it, above which few elements hold nearly all of R: measured
0.7 to 1.3 on smooth trajectories, 55 to 230 on agents whose bearing passes ±π."""

SETTLED_GAIN, SETTLED_FOR = 2e-2, 4
"""Relative fall of R in one such step, for how many in a row, that ends the warm-up early."""


class WarmUp:
    """Iterations on θ alone, resumable between any two.

    Parameters
    ----------
    problem : Points
        Step 0, all elements.
    model : Model
    exact : bool
        Whether step 0 is as good as the truth and N_θ² numbers are few, so that the fine part pays.
    rough : int
        Iterations of the rough part where it is exact.
    team : Team

    Attributes
    ----------
    done : bool
    share : Tensor, shape (N, n), or None
        What the squared residuals of each element count, where not all count alike.
    """

    def __init__(
        self, problem: Points, model: Model, exact: bool, *, rough: int = ROUGH_IF_EXACT, team: Team = ALONE
    ) -> None:
        self.problem, self.model, self.team = problem, model, team
        self.share: Tensor | None = None
        self.fine_step = LevenbergMarquardtStep(problem, model, exact=True, team=team)
        self.plain = self.fine_step.residual
        self.rough_step = LbfgsStep(model, self.plain, team)
        self.rough, self.fine = (rough, FINE) if exact else (ROUGH, 0)
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
        value = self._step()
        if self.done and isinstance(self.plain, BlockResidual):
            self.plain.release()
        return value

    def _step(self) -> float:
        self.iteration += 1
        if self.iteration <= self.rough:
            return [self.rough_step.step() for _ in range(STEPS)][-1]
        if self.share is not None or self.iteration == self.rough + 1:
            self._reweight()
        value = self.fine_step.step()
        gains = self.last - value > SETTLED_GAIN * value
        self.quiet, self.last = 0 if gains else self.quiet + 1, value
        return value

    def _reweight(self) -> None:
        """Let elements count as their residuals of now tell, once few of them were found to hold nearly all of R."""
        nodes = self.problem.mesh.basis.order + 1
        sizes, weights = [], []
        with torch.no_grad():
            for part in self.problem.parts():
                elements = part.weight.numel() // nodes
                sizes.append(element_residuals(Residual(part, self.model).defect(), part.weight, elements))
                weights.append(part.weight.view(elements, nodes).sum(1))
                scale = part.scale**2
        size, weight = torch.cat(sizes), torch.cat(weights)
        middle = median_magnitude(size, self.team)
        if self.share is None:
            (square,) = self.team.sum((weight[:, None] * size**2).sum(0))
            if float((scale * square).sum()) <= KINKED * float((scale * (MAD_TO_STD * middle) ** 2).sum()):
                return
        threshold = TUNING * MAD_TO_STD * middle
        self._count(torch.where(threshold > 0, huber_weight(size, threshold), 1.0))

    def _count(self, share: Tensor) -> None:
        self.share = share
        self.fine_step.use(self.problem.with_share(share), 0.0)

    def state(self) -> dict[str, Tensor]:
        """What the next iteration needs beside θ."""
        progress = torch.tensor([self.iteration, self.quiet, self.last], dtype=torch.float64)
        both = {"rough": self.rough_step.state(), "fine": self.fine_step.state()}
        counts = {} if self.share is None else {"share": self.team.collect(self.share)}
        return (
            {"progress": progress}
            | counts
            | {f"{part}.{name}": v for part, own in both.items() for name, v in own.items()}
        )

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit."""
        if "share" in state:
            self._count(self.team.own(state["share"], self.problem.mesh.elements).clone())
        iteration, quiet, self.last = state["progress"].tolist()
        self.iteration, self.quiet = int(iteration), int(quiet)
        self.rough_step.restore({k.removeprefix("rough."): v for k, v in state.items() if k.startswith("rough.")})
        self.fine_step.restore({k.removeprefix("fine."): v for k, v in state.items() if k.startswith("fine.")})
