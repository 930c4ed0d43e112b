"""The training loop: drives any method to its limit, keeps the best θ, and always ends with a status.

The loop knows time and stopping; methods know mathematics. A step whose loss is not finite ends training as `diverged`
with the last finite θ restored, so that no NaN ever reaches a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snet_cli.distributed import ALONE, Team
from snet_cli.training.method import Method, Step

Status = Literal["converged", "iterations", "max-time", "stopped", "diverged"]

STALL_WINDOW = 50
"""Iterations over which a stalled method must still have gained something."""

STALL_GAIN = 1e-6
"""Relative decrease over the window below which further iterations cannot change a forecast."""

HELD_OUT_EVERY = 5
"""Iterations between two looks at held-out data, unless a look is expensive."""


@dataclass(frozen=True)
class Limits:
    """When training ends.

    Attributes
    ----------
    iterations : int
    tolerance : float
        δ: the method's total at which it has converged.
    deadline : float
        Reading of the clock after which no iteration starts; infinity for none.
    patience : float
        Iterations without a better held-out score after which the method has converged.
    look_every : int
        Iterations between two looks at held-out data.
    stop_when_stalled : bool
        Whether a method that gains nothing any more counts as converged (deterministic line searches do stall).
    """

    iterations: int
    tolerance: float = 0.0
    deadline: float = math.inf
    patience: float = math.inf
    look_every: int = HELD_OUT_EVERY
    stop_when_stalled: bool = True


@dataclass(frozen=True)
class Progress:
    """One line of progress: what `--metrics` writes and the terminal shows."""

    iteration: int
    residual: float
    misfit: float
    total: float
    held_out: float | None
    seconds: float


@dataclass(frozen=True)
class FitResult:
    """Outcome of training; the model holds the best θ.

    Attributes
    ----------
    status : str
    history : ndarray, shape (iterations, 4)
        Columns residual, misfit, total, held-out (NaN where not looked at).
    best_iteration : int
        Iteration of the θ that was kept: the last, or the best on held-out data.
    seconds, longest : float
        Time in the loop alone, and of the longest iteration since the run was started or resumed.
    """

    status: Status
    iterations: int
    evaluations: int
    last: Step
    history: NDArray[np.float64]
    best_iteration: int
    best_held_out: float | None
    seconds: float
    longest: float = 0.0


@dataclass(frozen=True)
class RunState:
    """A run between two iterations: with it and the same method, data and options, training goes on bit for bit.

    Attributes
    ----------
    weights : dict
        `state_dict` of the model.
    buffers : dict
        `Method.state`.
    history : ndarray, shape (iterations, 4)
    best, good : list of Tensor
        θ that would be kept, and the last one that was seen to be finite; `best` is None while nothing was held out.
    best_iteration, best_score
        As in `FitResult`.
    seconds : float
        Time in the loop so far.
    random : dict
        States of torch's generators by device, for models that draw.
    diverged : bool
        Whether the next step gave numbers that are not finite; the weights are then the last finite ones.
    """

    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    history: NDArray[np.float64]
    best: list[Tensor] | None
    good: list[Tensor]
    best_iteration: int
    best_score: float | None
    seconds: float
    random: dict[str, Tensor]
    diverged: bool = False

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return int(self.history.shape[0])


class Save(Protocol):
    """What may keep the state of a run."""

    def __call__(self, iteration: int, state: Callable[[], RunState], *, last: bool) -> None:
        """Called before every iteration, and once more when the run ends; decides whether to make and keep a state."""
        ...


def keep_nothing(iteration: int, state: Callable[[], RunState], *, last: bool) -> None:
    """The `Save` of a run that need not go on."""


def run(
    method: Method,
    limits: Limits,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    is_enough: Callable[[Progress], bool] = lambda progress: False,
    clock: Callable[[], float] = time.perf_counter,
    resume: RunState | None = None,
    save: Save = keep_nothing,
    team: Team = ALONE,
) -> FitResult:
    """Iterate until a limit, convergence, a request to stop, or numbers that are not finite.

    Parameters
    ----------
    report : callable
        Called after every iteration; must be cheap.
    should_stop : callable
        Asked before every iteration.
    is_enough : callable
        Asked after every iteration; where it says so, training has converged and this θ is kept.
    clock : callable
        Tells the time in seconds, for `Limits.deadline` and `FitResult.seconds`; one that stands still while
        `is_enough` measures keeps that out of both.
    resume : RunState, optional
        Where to go on; the method and its model are brought to it. A run that had ended under these limits ends at
        once.
    save : Save
        Its time counts for the deadline, and not as time of the loop.
    team : Team
        The processes that train together: they stop together, and every iteration begins with the lead's θ.
    """
    course = Course(method, limits, resume, clock, team)
    status = course.ended()
    while status is None:
        course.save(save, last=False)
        # a method whose iterations are long, and grow, says how much longer than all before the next one may take
        expected = getattr(method, "growth", 0.0) * course.longest
        stopped, late = team.any(should_stop(), clock() + expected >= limits.deadline)
        if stopped:
            status = "stopped"
        elif late:
            status = "max-time"
        else:
            progress = course.advance()
            if progress is None:
                status = "diverged"
                break
            report(progress)
            if is_enough(progress):
                course.keeper.keep(progress.iteration)
                status = "converged"
            else:
                status = course.ended()
    course.save(save, last=True)  # before the last look at held-out data, which a longer run would not have taken
    return course.result(status)


class Course:
    """What has happened so far in a run; `run` and `loop_batch.run_in_step` drive it."""

    def __init__(
        self, method: Method, limits: Limits, resume: RunState | None, clock: Callable[[], float], team: Team
    ) -> None:
        self.method, self.limits, self.clock, self.team = method, limits, clock, team
        self.parameters: list[Tensor] = list(method.model.parameters())
        self.history: list[tuple[float, float, float, float]] = []
        self.diverged = False
        self.longest = 0.0
        self.begin = clock()
        if resume is not None:
            method.model.load_state_dict(resume.weights)
            method.restore(resume.buffers)
            self.history = [tuple(row) for row in resume.history.tolist()]
            self.diverged = resume.diverged
            self.begin -= resume.seconds
            _set_random(resume.random)
        self.keeper = _Keeper(method, resume)

    def advance(self) -> Progress | None:
        """One iteration; None if its loss is not finite."""
        self.team.align(self.parameters)
        before = self.clock()
        return self.after(self.method.step(), self.clock() - before)

    def after(self, step: Step, seconds: float) -> Progress | None:
        """The method has done an iteration that took so long; None if its loss is not finite."""
        self.longest = max(self.longest, seconds)
        if not math.isfinite(step.total):
            self.diverged = True
            return None
        iteration = len(self.history) + 1
        held_out = self.keeper.look(iteration) if iteration % self.limits.look_every == 0 else None
        self.history.append((step.residual, step.misfit, step.total, math.nan if held_out is None else held_out))
        return Progress(iteration, step.residual, step.misfit, step.total, held_out, self.clock() - self.begin)

    def ended(self) -> Status | None:
        """Whether what happened so far ends the run; it depends on the history and the limits only."""
        iteration, limits = len(self.history), self.limits
        if self.diverged:
            return "diverged"
        if iteration and getattr(self.method, "outcome", None) is not None:  # it knows its own end
            return "converged"
        if iteration:
            gained_nothing = _stalled(self.history) or iteration - self.keeper.best_iteration > limits.patience
            if self.history[-1][2] <= limits.tolerance or (limits.stop_when_stalled and gained_nothing):
                return "converged"
        return "iterations" if iteration >= limits.iterations else None

    def save(self, save: Save, *, last: bool) -> None:
        """Offer the state to whoever may keep it."""
        before = self.clock()
        save(len(self.history), self.state, last=last)
        self.begin += self.clock() - before

    def state(self) -> RunState:
        """The run as it stands, in copies of its own."""
        keeper, model = self.keeper, self.method.model
        if self.diverged:
            _put(self.method, keeper.good)
        return RunState(
            {name: value.detach().clone() for name, value in model.state_dict().items()},
            {name: value.detach().clone() for name, value in self.method.state().items()},
            np.array(self.history, dtype=np.float64).reshape(-1, 4),
            keeper.best,
            keeper.good,
            keeper.best_iteration,
            keeper.best_score,
            self.clock() - self.begin,
            _random(model),
            self.diverged,
        )

    def result(self, status: Status) -> FitResult:
        """Put the best θ into the model, after a last look at held-out data, and say how it went."""
        keeper, history = self.keeper, self.history
        if status != "diverged" and not keeper.kept and history:
            score = keeper.look(len(history))
            history[-1] = (*history[-1][:3], math.nan if score is None else score)
        keeper.restore_best(diverged=status == "diverged")
        return FitResult(
            status,
            len(history),
            self.method.evaluations,
            Step(*history[-1][:3]) if history else Step(math.nan, math.nan, math.nan),
            np.array(history, dtype=np.float64).reshape(-1, 4),
            keeper.best_iteration or len(history),
            keeper.best_score,
            self.clock() - self.begin,
            self.longest,
        )


def _stalled(history: list[tuple[float, float, float, float]]) -> bool:
    """Whether the total fell by less than STALL_GAIN of itself over the last STALL_WINDOW iterations."""
    if len(history) <= STALL_WINDOW:
        return False
    before, now = history[-1 - STALL_WINDOW][2], history[-1][2]
    return before - now <= STALL_GAIN * abs(before) and now <= before


def _random(model: nn.Module) -> dict[str, Tensor]:
    """States of the generators that a model on these devices may draw from."""
    on_cuda = any(p.is_cuda for p in model.parameters())
    return {"cpu": torch.get_rng_state(), **({"cuda": torch.cuda.get_rng_state()} if on_cuda else {})}


def _set_random(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _copy(method: Method) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in method.model.parameters()]


def _put(method: Method, values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(method.model.parameters(), values, strict=True):
            parameter.copy_(value)


class _Keeper:
    """Copies of θ: the best on held-out data, and the last that was finite."""

    def __init__(self, method: Method, resume: RunState | None) -> None:
        self.method = method
        self.best_iteration = 0 if resume is None else resume.best_iteration
        self.best_score = None if resume is None else resume.best_score
        self.best = None if resume is None else resume.best
        self.good = _copy(method) if resume is None else resume.good
        self.kept = False

    def look(self, iteration: int) -> float | None:
        """Score held-out data, and remember θ while everything is finite."""
        current = _copy(self.method)
        if not all(bool(torch.isfinite(p).all()) for p in current):
            return None
        self.good = current
        score = self.method.held_out()
        if score is None or not math.isfinite(float(score)):
            return None
        if self.best_iteration < getattr(self.method, "refined_at", 0):
            self.best_score = None  # of a coarser mesh, which prefers what was fitted on it
        if self.best_score is None or float(score) < self.best_score:
            self.best_score, self.best_iteration, self.best = float(score), iteration, current
        return float(score)

    def keep(self, iteration: int) -> None:
        """Take the θ of now for the best, whatever the held-out data says."""
        self.best_iteration, self.best, self.kept = iteration, _copy(self.method), True

    def restore_best(self, *, diverged: bool) -> None:
        """Put the best θ into the model: by held-out score, else the last finite one after a divergence."""
        wanted = self.best if self.best is not None else (self.good if diverged else None)
        if wanted is not None:
            _put(self.method, wanted)
