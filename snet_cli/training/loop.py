"""The training loop: drives any method to its limit, keeps the best θ, and always ends with a status.

The loop knows time and stopping; methods know mathematics. A step whose loss is not finite ends training as `diverged`
with the last finite θ restored, so that no NaN ever reaches a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    seconds : float
        Time in the loop alone.
    """

    status: Status
    iterations: int
    evaluations: int
    last: Step
    history: NDArray[np.float64]
    best_iteration: int
    best_held_out: float | None
    seconds: float


def run(
    method: Method,
    limits: Limits,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    is_enough: Callable[[Progress], bool] = lambda progress: False,
    clock: Callable[[], float] = time.perf_counter,
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
    """
    begin = clock()
    keeper = _Keeper(method, limits.look_every)
    history: list[tuple[float, float, float, float]] = []
    status: Status = "iterations"
    last = Step(math.nan, math.nan, math.nan)
    for iteration in range(1, limits.iterations + 1):
        if should_stop():
            status = "stopped"
            break
        if clock() >= limits.deadline:
            status = "max-time"
            break
        step = method.step()
        if not math.isfinite(step.total):
            status = "diverged"
            break
        last = step
        held_out = keeper.look(iteration, last=iteration == limits.iterations)
        history.append((step.residual, step.misfit, step.total, math.nan if held_out is None else held_out))
        progress = Progress(iteration, step.residual, step.misfit, step.total, held_out, clock() - begin)
        report(progress)
        if is_enough(progress):
            keeper.keep(iteration)
            status = "converged"
            break
        gained_nothing = _stalled(history) or iteration - keeper.best_iteration > limits.patience
        if step.total <= limits.tolerance or (limits.stop_when_stalled and gained_nothing):
            status = "converged"
            break
    if status != "diverged" and not keeper.kept:
        keeper.look(len(history), last=True)
    keeper.restore_best(diverged=status == "diverged")
    return FitResult(
        status,
        len(history),
        method.evaluations,
        last,
        np.array(history, dtype=np.float64).reshape(-1, 4),
        keeper.best_iteration or len(history),
        keeper.best_score,
        clock() - begin,
    )


def _stalled(history: list[tuple[float, float, float, float]]) -> bool:
    """Whether the total fell by less than STALL_GAIN of itself over the last STALL_WINDOW iterations."""
    if len(history) <= STALL_WINDOW:
        return False
    before, now = history[-1 - STALL_WINDOW][2], history[-1][2]
    return before - now <= STALL_GAIN * abs(before) and now <= before


class _Keeper:
    """Copies of θ: the best on held-out data, and the last that was finite."""

    def __init__(self, method: Method, look_every: int) -> None:
        self.method, self.look_every = method, look_every
        self.best_iteration = 0
        self.best_score: float | None = None
        self.best: list[Tensor] | None = None
        self.good = self._copy()
        self.kept = False

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.method.model.parameters()]

    def look(self, iteration: int, *, last: bool) -> float | None:
        """Score held-out data now and then, and remember θ while everything is finite."""
        if not last and iteration % self.look_every:
            return None
        current = self._copy()
        if not all(bool(torch.isfinite(p).all()) for p in current):
            return None
        self.good = current
        score = self.method.held_out()
        if score is None or not math.isfinite(float(score)):
            return None
        if self.best_score is None or float(score) < self.best_score:
            self.best_score, self.best_iteration, self.best = float(score), iteration, current
        return float(score)

    def keep(self, iteration: int) -> None:
        """Take the θ of now for the best, whatever the held-out data says."""
        self.best_iteration, self.best, self.kept = iteration, self._copy(), True

    def restore_best(self, *, diverged: bool) -> None:
        """Put the best θ into the model: by held-out score, else the last finite one after a divergence."""
        wanted = self.best if self.best is not None else (self.good if diverged else None)
        if wanted is None:
            return
        with torch.no_grad():
            for parameter, value in zip(self.method.model.parameters(), wanted, strict=True):
                parameter.copy_(value)
