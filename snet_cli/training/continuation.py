"""γ continuation: from the relaxed problem J = γL + R to the exact constraint, each level started where the last ended.

R is that of the p projected equations (`arrow`), which can vanish. As γ falls its minimum tends to the solution of
``min L subject to the p equations of every element``: the maximum-likelihood fit of the discretised ODE. The
discretised solution differs from the ODE's own by what the ψ_p-component of f leaves open, ``tail`` = |ψ_p ψ_pᵀ W f|².
So there is nothing to gain from R far below it, and γ stops there; or earlier, where the misfit no longer rises as γ
falls: then X obeys the model as far as the data can tell.
"""

from __future__ import annotations

import math
from typing import Literal

START, LEAST, FACTOR = 1.0, 1e-8, 10.0
"""γ at first, its bound, and what it falls by: R falls with γ² where the constraint can be met."""

CLOSED = 1e-3
"""R relative to the tail at which the ODE holds to the discretisation error: 3 % of it in root mean square."""

SETTLED = 5e-3
"""Relative change of the misfit from one level to the next at which the constraint has taken all that it can."""

LEVEL_GAIN, LAST_GAIN = 1e-2, 1e-3
"""Relative decrease of J in one step below which a level, and the last one, has converged."""

EXACT_GAIN = 5e-2
"""The same for both on exact data: there J is what is left of the warm-up (`warm_up`), far below the error of any
forecast from it, and a step more costs as much as twenty of the warm-up."""

LEVEL_STEPS = 8
"""Most steps on a level that is not the last: a warm start needs the neighbourhood of its minimum only."""

Verdict = Literal["stay", "tighten", "converged"]


class Continuation:
    """γ, and when it falls.

    Parameters
    ----------
    gamma : float, optional
        A γ that stays; falling from `START` unless given.
    exact : bool
        Whether the data is.
    """

    def __init__(self, gamma: float | None = None, *, exact: bool = False) -> None:
        self.level_gain, self.last_gain = (EXACT_GAIN, EXACT_GAIN) if exact else (LEVEL_GAIN, LAST_GAIN)
        self.gamma = START if gamma is None else gamma
        self.steps = 0
        self.closed = self.fixed = gamma is not None
        self.last_misfit = math.inf

    def reopen(self) -> None:
        """Go on from this γ: a finer mesh has a smaller discretisation error."""
        self.closed, self.steps, self.last_misfit = self.fixed, 0, math.inf

    def after(self, gain: float, residual: float, tail: float, misfit: float) -> Verdict:
        """What a step at this γ leads to; γ has fallen where the answer is "tighten".

        Parameters
        ----------
        gain : float
            Relative decrease of J in the step.
        residual, tail : float
            R of the p equations and the discretisation error.
        misfit : float
            L.
        """
        self.steps += 1
        if self.closed:
            return "converged" if gain < self.last_gain else "stay"
        if gain >= self.level_gain and self.steps < LEVEL_STEPS:
            return "stay"
        settled = abs(misfit - self.last_misfit) <= SETTLED * misfit
        self.last_misfit = misfit
        if settled or residual <= CLOSED * tail or self.gamma <= LEAST * math.sqrt(FACTOR):
            self.closed = True
            return "converged" if gain < self.last_gain else "stay"
        self.gamma /= FACTOR
        self.steps = 0
        return "tighten"
