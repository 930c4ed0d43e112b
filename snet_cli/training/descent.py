"""One Levenberg-Marquardt step on X and θ: dampings tried until J falls.

A step is taken only where it decreases J. θ's damping falls after one and rises for each trial that is refused, which
costs no new elimination (`weight_system`). Where no damping of θ helps, X is damped. A trial costs a factorisation of
S; a third of all would be refused as surely as the last step tells, and are left out (`Trust`).

Not here is a correction of X after the step, a Newton step in X alone at the new θ, which takes away what the linear
model leaves of second order. It makes longer steps at small γ, but in weights that the data hardly determines:
with noise forecasts of a van der Pol oscillator were up to four times better, of a vehicle a fifth worse, and of a real
pendulum as well, in three times the time.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor

from snet_cli.training.arrow import ArrowProblem, Loss
from snet_cli.training.linearisation import Linearisation, System
from snet_cli.training.weight_system import (
    EASIER,
    HARDER,
    LEAST_DAMPING,
    MOST_DAMPING,
    START_DAMPING,
)

TRIES = 12
"""Trials of θ's damping before X is damped as well."""

STATE_DAMPING, MOST_STATE_DAMPING, STATE_FACTOR = 1e-3, 1e6, 100.0
"""Damping of X: least and at first, bound, and factor after trials that all failed."""

ROUNDING = 1e-13
"""Promised decrease relative to J that rounding hides: X and θ are at their minimum."""

POWER, HOPELESS = 2.5, 5.0
"""What the linear model leaves out of a step, relative to the decrease that it promises, falls with this power of μ
(measured 2 to 3 on six recordings); above the second a trial is left out: J would rise by four times the promise. Of
800 trials 240 were, and 16 of them would have decreased J."""

Failure = Literal["stalled", "not-finite", "damping-at-limit"]


class Descended(NamedTuple):
    """Where a step led to.

    Attributes
    ----------
    nodes : Tensor, shape (N, P, n)
        X; what it was where nothing descends.
    loss : Loss
        At that X and the model's θ.
    system : WeightSystem, RowSystem or KrylovSystem, or None
        The last system that was solved.
    failure : str or None
        Why nothing descends, where it is no minimum.
    reason : str or None
        What was not finite.
    """

    nodes: Tensor
    loss: Loss
    system: System | None = None
    failure: Failure | None = None
    reason: str | None = None


class Trust(NamedTuple):
    """How far the linear model held in the last step that was taken.

    Attributes
    ----------
    gamma, damping : float
        γ and μ of that step.
    left_out : float
        What J decreased by less than promised, relative to the promise.
    """

    gamma: float
    damping: float
    left_out: float

    def hopeless(self, gamma: float, damping: float) -> bool:
        """Whether a step with this μ would be refused; another γ has another J, of which nothing is known."""
        return gamma == self.gamma and self.left_out * (self.damping / damping) ** POWER > HOPELESS


class Descent:
    """The dampings, from one step to the next.

    Attributes
    ----------
    damping, state_damping : float
        Of θ, and of X in units of γ.
    trust : Trust or None
    evaluations : int
        Eliminations so far.
    """

    def __init__(self) -> None:
        self.damping, self.state_damping = START_DAMPING, STATE_DAMPING
        self.trust: Trust | None = None
        self.evaluations = 0

    def step(self, arrow: ArrowProblem, nodes: Tensor, before: Loss, gamma: float) -> Descended:
        """Move θ in the model and X where that decreases J; else both stay."""
        J = before.total(gamma)
        if not math.isfinite(J):
            return Descended(nodes, before, None, "not-finite", "the residual is not finite")
        while self.state_damping <= MOST_STATE_DAMPING:
            system = Linearisation(arrow, nodes, gamma, self.state_damping)
            self.evaluations += 1
            if not system.finite:
                return Descended(nodes, before, None, "not-finite", "a derivative of the model is not finite")
            found = None if system.failed else self._tried(system, before)
            if found is not None:
                return found
            self.state_damping *= STATE_FACTOR
        self.state_damping = STATE_DAMPING
        return Descended(nodes, before, None, "damping-at-limit" if self.damping >= MOST_DAMPING else "stalled")

    def _tried(self, system: Linearisation, before: Loss) -> Descended | None:
        """The first damping of θ with which J falls, or that says that it is at its minimum; None where none does."""
        arrow, gamma, theta = system.problem, system.gamma, system.problem.theta()
        J = before.total(gamma)
        while self.trust is not None and self.trust.hopeless(gamma, self.damping):
            self.damping = min(self.damping * HARDER, MOST_DAMPING)
        for _ in range(TRIES):
            move = system.solve(self.damping)
            if move is not None:
                arrow.put_theta(theta + move.weights)
                nodes = move.states.add_(system.nodes)
                after = arrow.loss(nodes)
                if after.total(gamma) < J:  # false for NaN
                    kept = (J - after.total(gamma)) / move.promise if move.promise > 0 else 1.0
                    free = self.state_damping == STATE_DAMPING  # else X was held, and the next step is another
                    self.trust = Trust(gamma, self.damping, max(1.0 - kept, 0.0)) if free else None
                    self.damping = max(self.damping / EASIER, LEAST_DAMPING)
                    self.state_damping = max(self.state_damping / EASIER, STATE_DAMPING)
                    return Descended(nodes, after, system.reduced)
                arrow.put_theta(theta)
                if move.promise <= ROUNDING * J:
                    return Descended(system.nodes, before, system.reduced)
            self.damping = min(self.damping * HARDER, MOST_DAMPING)
        return None
