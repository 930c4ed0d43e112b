"""L-BFGS with a saved state (Liu & Nocedal 1989), for one model or for several that share nothing but the time.

Directions come from `curvature_pairs`. The step length obeys the weak Wolfe conditions by bracketing (Lewis & Overton
2013, alg. 2.6), which keeps y·s > 0. Several models take their iterations together: all that look for a step length are
evaluated in one batch, and a model goes where it would go alone.

Why not torch's: it drops every pair with y·s below 1e-10 and ends line searches at absolute lengths; R goes far below
that. scipy's keeps no state that could be saved. Here every test is relative: scaling the loss changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snet_cli.distributed import ALONE, Team
from snet_cli.training.curvature_pairs import PAIRS, CurvaturePairs, padded_width
from snet_cli.training.replay import Recorder, Replay

__all__ = ["PAIRS", "LbfgsBatch", "LbfgsStep"]

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
"""The two Wolfe constants (Nocedal & Wright 2006, sec. 3.1)."""

LINE_SEARCH_EVALUATIONS = 25
"""After this many trials the direction is given up and the memory is cleared."""

Evaluate = Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor]]
"""From θ (A, N) of the models with these numbers to (A, k) float64, the loss in front, and to gradients (A, N)."""


@dataclass
class _Search:
    """One model's way to a step length.

    Attributes
    ----------
    start, slope : float
        The loss and its derivative along the direction at length 0.
    length, low, high : float
        The next trial, and the bracket.
    best : tuple, optional
        Step (N',), numbers and gradient (N',) of the longest trial with a sufficient decrease.
    """

    start: float
    slope: float
    length: float = 1.0
    low: float = 0.0
    high: float = float("inf")
    best: tuple[Tensor, list[float], Tensor] | None = None

    def look(self, value: float, slope: float, trial: tuple[Tensor, list[float], Tensor]) -> bool:
        """Whether this trial ends the search; else `length` is the next one."""
        length = self.length
        if not value <= self.start + SUFFICIENT_DECREASE * length * self.slope:  # a NaN counts as too far
            self.high = length
            curvature = value - self.start - length * self.slope
            guess = -0.5 * self.slope * length**2 / curvature if curvature > 0 else 0.5 * length
            self.length = min(
                max(guess, self.low + 0.1 * (self.high - self.low)), self.low + 0.5 * (self.high - self.low)
            )
            return False
        self.best = trial
        if slope >= CURVATURE * self.slope:
            return True
        self.low = length
        self.length = 2.0 * length if self.high == float("inf") else 0.5 * (length + self.high)
        return False


class LbfgsBatch:
    """L-BFGS on M models in step.

    Parameters
    ----------
    theta : Tensor, shape (M, N)

    Attributes
    ----------
    theta : Tensor, shape (M, N)
        Where the models are; may be set between steps.
    numbers : list of list of float
        What `Evaluate` said there, the loss in front; empty where it has to be asked again (`reopen`).
    evaluations : list of int
    """

    def __init__(self, theta: Tensor) -> None:
        models, self.width = theta.shape
        self._theta = _padded(theta)
        self._gradient = torch.zeros_like(self._theta)
        self.pairs = CurvaturePairs(self._theta)
        self.numbers: list[list[float]] = [[] for _ in range(models)]
        self.evaluations = [0] * models

    @property
    def theta(self) -> Tensor:
        """θ of all models, a view."""
        return self._theta[:, : self.width]

    def reopen(self) -> None:
        """The losses have changed: they are evaluated again; the curvature pairs stay a good guess."""
        self.numbers = [[] for _ in self.numbers]

    def keep(self, models: Sequence[int]) -> None:
        """Go on with these models alone, renumbered."""
        chosen = list(models)
        self._theta, self._gradient = self._theta[chosen], self._gradient[chosen]
        self.numbers = [self.numbers[m] for m in chosen]
        self.evaluations = [self.evaluations[m] for m in chosen]
        self.pairs.keep(chosen)

    def step(self, evaluate: Evaluate) -> None:
        """Move every θ once; where no step helps, θ and its numbers stay."""
        everyone = range(len(self.numbers))
        stale = [m for m in everyone if not self.numbers[m]]
        if stale:
            numbers, gradients = self._ask(evaluate, _rows(self._theta, stale), stale)
            for row, m in enumerate(stale):
                self.numbers[m], self._gradient[m] = numbers[row], gradients[row]
        found = self._search(self.pairs.directions(self._gradient), everyone, evaluate)
        lost = [m for m in everyone if m not in found and self.pairs.count[m]]
        if lost:
            # rounding spoiled the memory: forget it and descend along the gradient
            self.pairs.forget(lost)
            found |= self._search(self.pairs.directions(self._gradient), lost, evaluate)
        if found:
            self._take(found)

    def _search(
        self, direction: Tensor, models: Sequence[int], evaluate: Evaluate
    ) -> dict[int, tuple[Tensor, list[float], Tensor]]:
        """Of each model the step, the numbers and the gradient there that obey the weak Wolfe conditions, if any do."""
        slopes = (self._gradient * direction).sum(1).tolist()
        searches = {m: _Search(self.numbers[m][0], slopes[m]) for m in models if slopes[m] < 0.0}
        pending = list(searches)
        for _ in range(LINE_SEARCH_EVALUATIONS):
            if not pending:
                break
            along = _rows(direction, pending)
            steps = along.new_tensor([[searches[m].length] for m in pending]) * along
            numbers, gradients = self._ask(evaluate, _rows(self._theta, pending) + steps, pending)
            slopes = (gradients * along).sum(1).tolist()
            pending = [
                m
                for row, m in enumerate(pending)
                if not searches[m].look(numbers[row][0], slopes[row], (steps[row], numbers[row], gradients[row]))
            ]
        return {m: search.best for m, search in searches.items() if search.best is not None}

    def _take(self, found: Mapping[int, tuple[Tensor, list[float], Tensor]]) -> None:
        """Go there, and remember what the curvature was."""
        models = list(found)
        steps = torch.stack([step for step, _, _ in found.values()])
        gradients = torch.stack([gradient for _, _, gradient in found.values()])
        self.pairs.append(models, steps, gradients - _rows(self._gradient, models))
        for m, (step, numbers, gradient) in found.items():
            self._theta[m] += step
            self._gradient[m], self.numbers[m] = gradient, numbers

    def _ask(self, evaluate: Evaluate, theta: Tensor, models: Sequence[int]) -> tuple[list[list[float]], Tensor]:
        """Numbers and gradients (A, N') at θ (A, N')."""
        numbers, gradients = evaluate(theta[:, : self.width], models)
        for m in models:
            self.evaluations[m] += 1
        return numbers.tolist(), _padded(gradients)

    def state(self, model: int) -> dict[str, Tensor]:
        """Pairs, last loss and gradient (empty where the next step computes it), and the count of evaluations."""
        numbers = self.numbers[model]
        return {
            **self.pairs.state(model, self.width),
            "gradient": self._gradient[model, : self.width if numbers else 0],
            "value": torch.tensor(numbers[0] if numbers else float("nan"), dtype=torch.float64),
            "evaluations": torch.tensor(self.evaluations[model]),
        }

    def restore(self, model: int, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit."""
        self.pairs.restore(model, state)
        known = state["gradient"].numel() > 0
        if known:
            self._gradient[model, : self.width] = state["gradient"]
        self.numbers[model] = [float(state["value"])] if known else []
        self.evaluations[model] = int(state["evaluations"])


class LbfgsStep:
    """One L-BFGS iteration of one model per call of `step`.

    Parameters
    ----------
    model : Module
        Its parameters are θ.
    loss : callable
        A scalar that can be differentiated with respect to θ.
    team : Team
        The processes over which loss and gradient are summed.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], team: Team = ALONE) -> None:
        self.team = team
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.objective = loss
        self.batch = LbfgsBatch(self._theta())
        self.value = float("nan")
        self.replay: Replay | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of the loss and its gradient so far."""
        return self.batch.evaluations[0]

    def _theta(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.parameters).detach()[None]

    def _put(self, theta: Tensor) -> None:
        with torch.no_grad():
            nn.utils.vector_to_parameters(theta[0].clone(), self.parameters)  # which become views of it

    def replay_with(self, recorder: Recorder) -> None:
        """Let evaluations be replayed where that is the same, and faster."""
        self.replay = Replay(self._of_process, recorder)

    def _evaluate(self, theta: Tensor, models: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Loss and gradient at θ, of all processes; leaves the model anywhere."""
        value, gradient = self.team.sum(*(self.replay or self._of_process)(theta[0]))
        return value.double().reshape(1, 1), gradient[None]

    def _of_process(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient at θ (N,), the part of this process; leaves the model there."""
        self._put(theta[None])
        loss = self.objective()
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        flat = [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        return loss.detach(), torch.cat(flat)

    def step(self) -> float:
        """Move θ once and return the loss there; where no step helps, θ and the loss stay."""
        self.batch.theta.copy_(self._theta())
        self.batch.step(self._evaluate)
        self._put(self.batch.theta)
        self.value = self.batch.numbers[0][0]
        return self.value

    def reopen(self) -> None:
        """The loss has changed, as in α-SNet when x moves."""
        self.batch.reopen()
        if self.replay is not None:
            self.replay.forget()

    def state(self) -> dict[str, Tensor]:
        """Pairs, last loss and gradient, and the count of evaluations."""
        return self.batch.state(0)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit."""
        self.batch.restore(0, state)
        if self.replay is not None:
            self.replay.forget()


def _padded(vectors: Tensor) -> Tensor:
    """Vectors (A, N) as (A, N'), zeros behind them."""
    room = vectors.new_zeros(len(vectors), padded_width(vectors.shape[1]))
    room[:, : vectors.shape[1]] = vectors
    return room


def _rows(whole: Tensor, models: Sequence[int]) -> Tensor:
    """The rows of these models; all of them without a copy."""
    return whole if len(models) == len(whole) else whole[list(models)]
