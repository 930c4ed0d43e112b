"""The baselines: train through an ODE solver, with somebody else's solver (torchdiffeq, Chen 2018-2024).

``min_θ L(x(θ)),  x' = f(t, x, u; θ),  x(t0) = x0`` (Quaglino et al. 2020, eq. 1): every iteration integrates all
trajectories over their whole length. `bkpr-*` differentiates through the solver's steps, `adj-*` solves the adjoint
equation backward in time (Chen et al. 2018), `anode` keeps only √N states of the forward solution and repeats one
chunk at a time on the way back (Gholami et al. 2019). Adam 1e-2 moves θ, as in the paper.

What a solver cannot do (a step below the resolution of time, a state that is not finite) is a value, `failure`: the
iteration then reports a loss that is not finite, and the loop ends with the last good θ.
"""

from __future__ import annotations

import itertools
import math
import re
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint, odeint_adjoint

from snet_cli.errors import UsageError
from snet_cli.models.base import Model
from snet_cli.training.method import Step
from snet_cli.training.shooting_batches import ShootingBatch
from snet_cli.training.theta_step import adam_state, restore_adam

Solver = Literal["euler", "dopri5"]
Gradient = Literal["steps", "adjoint", "chunks"]


class ShootingKind(NamedTuple):
    """A baseline: which solver, and how it is differentiated."""

    solver: Solver
    gradient: Gradient


SHOOTING: Mapping[str, ShootingKind] = {
    "bkpr-euler": ShootingKind("euler", "steps"),
    "bkpr-dopri5": ShootingKind("dopri5", "steps"),
    "adj-euler": ShootingKind("euler", "adjoint"),
    "adj-dopri5": ShootingKind("dopri5", "adjoint"),
    "anode": ShootingKind("dopri5", "chunks"),
}
"""Registry name of a baseline -> what it is."""


@dataclass(frozen=True)
class SolverTolerances:
    """What DoPr5 must respect, and when a solution is given up.

    Attributes
    ----------
    rtol, atol : float
        Error per step, relative and absolute; the paper's values (1e-5 and 1e-7 for its agents after an underflow).
    max_evaluations : int
        Evaluations of f in one solution of one batch and its gradient: a stiff f would otherwise go on for hours.
    max_memory : float
        Bytes that this process may hold at its peak; every evaluation that is differentiated keeps its intermediates.
    """

    rtol: float = 1e-7
    atol: float = 1e-9
    max_evaluations: int = 20_000
    max_memory: float = math.inf


MEMORY_EVERY = 50
"""Evaluations of f between two looks at this process's memory."""


def _peak_bytes() -> float:
    """Largest resident size of this process so far (kB on Linux, bytes on macOS)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


class SolverFailureError(Exception):
    """A solver gave up; the message says why, in a few words."""


class Field(nn.Module):
    """f(t, x, u(t); θ) of one batch as torchdiffeq wants it: a module of (t (), x (B, n)), in float64.

    u is a function of t and not of θ or x. In the adjoint's backward solution the solver goes from later to earlier
    times, and u at an edge takes the value before it; that direction is recognised by gradients being enabled, which
    they are not in the adjoint's forward solution.
    """

    def __init__(self, model: Model, batch: ShootingBatch, tolerances: SolverTolerances, *, adjoint: bool) -> None:
        super().__init__()
        self.model = model
        self.inputs = batch.inputs
        self.dtype = next((p.dtype for p in model.parameters()), torch.float64)
        self.tolerances = tolerances
        self.adjoint = adjoint
        self.evaluations = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """ẋ, shape (B, n); zero for trajectories that have ended."""
        self.evaluations += 1
        self._stay_within_bounds()
        t = t.detach()
        interval = self.inputs.interval(t.item(), backward=self.adjoint and torch.is_grad_enabled())
        u = self.inputs.values(t, interval)
        features = self.model.features(t.expand(x.shape[0]), x, u)
        derivative = self.model.from_features(*(part.to(self.dtype) for part in features)).to(x.dtype)
        running = self.inputs.running(interval)
        return derivative if running is None else derivative * running

    def _stay_within_bounds(self) -> None:
        """End a solution that would take hours or all memory, while that can still be said in a sentence."""
        limits = self.tolerances
        if self.evaluations > limits.max_evaluations:
            raise SolverFailureError(f"more than {limits.max_evaluations} evaluations of f in one solution")
        if self.evaluations % MEMORY_EVERY == 0 and _peak_bytes() > limits.max_memory:
            raise SolverFailureError(f"more than {limits.max_memory / 1e6:.0f} MB of memory")


class Trajectory:
    """The solution of one batch as a differentiable function of θ."""

    def __init__(self, model: Model, batch: ShootingBatch, kind: ShootingKind, tolerances: SolverTolerances) -> None:
        self.batch = batch
        self.kind = kind
        self.tolerances = tolerances
        self.field = Field(model, batch, tolerances, adjoint=kind.gradient == "adjoint")
        self.parameters = tuple(model.parameters())
        self.edges = torch.tensor(batch.inputs.edges, dtype=batch.times.dtype, device=batch.times.device)

    def states(self) -> Tensor:
        """X at the batch's times, shape (T, B, n).

        Raises
        ------
        SolverFailureError
        """
        self.field.evaluations = 0
        if self.kind.gradient != "chunks":
            return self._solve(self.batch.x0, self.batch.times)
        parts, x = [self.batch.x0[None]], self.batch.x0
        for times in chunks(self.batch.times):
            part: Tensor = checkpoint(self._solve, x, times, use_reentrant=False, preserve_rng_state=False)
            parts.append(part[1:])
            x = part[-1]
        return torch.cat(parts)

    def _solve(self, x0: Tensor, times: Tensor) -> Tensor:
        tolerances: dict[str, Any] = {"rtol": self.tolerances.rtol, "atol": self.tolerances.atol}
        if self.kind.gradient == "adjoint":
            solve, own = odeint_adjoint, {"adjoint_params": self.parameters}
        else:
            solve, own = odeint, {}
        with named_failures():
            states: Tensor = solve(
                self.field, x0, times, method=self.kind.solver, options=self._options(times), **tolerances, **own
            )
        return states

    def _options(self, times: Tensor) -> dict[str, Any]:
        if self.kind.solver == "euler":
            return {"grid_constructor": self._grid_between}
        inside = (self.edges > times[0]) & (self.edges < times[-1])
        return {"jump_t": self.edges[inside]} if bool(inside.any()) else {}

    def _grid_between(self, f: object, x: Tensor, times: Tensor) -> Tensor:
        """Euler's steps: sample times and edges between the first and the last asked time, in their direction."""
        low, high = torch.minimum(times[0], times[-1]), torch.maximum(times[0], times[-1])
        grid = self.batch.grid[(self.batch.grid >= low) & (self.batch.grid <= high)]
        return grid if bool(times[0] <= times[-1]) else grid.flip(0)


def chunks(times: Tensor) -> list[Tensor]:
    """About √N pieces of N intervals, neighbours sharing an end: the split of least memory (Gholami et al. 2019)."""
    intervals = times.shape[0] - 1
    if intervals < 1:
        return []
    pieces = math.isqrt(intervals - 1) + 1
    ends = [round(k * intervals / pieces) for k in range(pieces + 1)]
    return [times[low : high + 1] for low, high in itertools.pairwise(ends)]


_FAILURES = re.compile(r"underflow in dt|non-finite values in state|max_num_steps exceeded")
"""How torchdiffeq's assertions begin that a model can cause; every other assertion is a bug and stays one."""


@contextmanager
def named_failures() -> Iterator[None]:
    """Turn torchdiffeq's assertions about the solution into `SolverFailureError`."""
    try:
        yield
    except AssertionError as error:
        known = _FAILURES.match(str(error))
        if known is None:
            raise
        raise SolverFailureError(known.group()) from error


class Shooting:
    """One of the baselines of `SHOOTING` as a training method.

    Parameters
    ----------
    name : str
        Key of `SHOOTING`.
    model : Model
    batches : sequence of ShootingBatch
    observation : ndarray, shape (d, n)
        C of y = C x.
    rate : float
        Learning rate of Adam.
    tolerances : SolverTolerances, optional
    held_out : sequence of ShootingBatch, optional
        Trajectories that only score.

    Attributes
    ----------
    failure : str or None
        Why the solver gave up, in a few words; the step that met it reported a loss that is not finite.

    Raises
    ------
    UsageError
        If the model has nothing to train.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        batches: Sequence[ShootingBatch],
        observation: NDArray[np.float64],
        *,
        rate: float = 1e-2,
        tolerances: SolverTolerances | None = None,
        held_out: Sequence[ShootingBatch] = (),
    ) -> None:
        parameters = list(model.parameters())
        if not parameters:
            raise UsageError(f"the model has no weights, so '{name}' has nothing to train.", "Choose another --model.")
        kind, tolerances = SHOOTING[name], tolerances or SolverTolerances()
        self.name = name
        self.model = model
        self.failure: str | None = None
        self.evaluations = 0
        self.solutions = [Trajectory(model, batch, kind, tolerances) for batch in batches]
        self.held_out_solutions = [Trajectory(model, batch, kind, tolerances) for batch in held_out]
        self.observation = torch.as_tensor(observation, dtype=torch.float64, device=parameters[0].device)
        self.optimizer = torch.optim.Adam(parameters, lr=rate)

    def gradient(self) -> float:
        """L; its gradient is left in the parameters. One batch at a time is held in memory.

        Raises
        ------
        SolverFailureError
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.evaluations += 1
        total = 0.0
        for solution in self.solutions:
            loss = solution.batch.misfit(solution.states(), self.observation)
            value = loss.item()
            if not math.isfinite(value):
                raise SolverFailureError("the solution is not finite")
            with named_failures():
                loss.backward()  # type: ignore[no-untyped-call]
            total += value
        for parameter in self.model.parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                raise SolverFailureError("the gradient is not finite")
        return total

    def step(self) -> Step:
        """One gradient and one Adam step; the loss is that before the step. There is no residual."""
        try:
            misfit = self.gradient()
        except SolverFailureError as failure:
            self.failure = str(failure)
            self.optimizer.zero_grad(set_to_none=True)
            return Step(math.nan, math.nan, math.nan)
        self.optimizer.step()
        return Step(math.nan, misfit, misfit)

    def held_out(self) -> Tensor | None:
        """L of the held-out trajectories; None where there are none, or the solver fails on them."""
        if not self.held_out_solutions:
            return None
        try:
            with torch.no_grad():
                shares = [s.batch.misfit(s.states(), self.observation) for s in self.held_out_solutions]
        except SolverFailureError:
            return None
        return torch.stack(shares).sum()

    def state(self) -> dict[str, Tensor]:
        """Adam's moments and the count of evaluations."""
        return {**adam_state(self.optimizer), "evaluations": torch.tensor(self.evaluations)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, on a model with the θ of that moment."""
        self.evaluations = int(state["evaluations"])
        restore_adam(self.optimizer, {key: value for key, value in state.items() if key != "evaluations"})
