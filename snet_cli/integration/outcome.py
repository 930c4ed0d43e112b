"""How an integration ended, trajectory by trajectory, and what it was asked to respect."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class Outcome(IntEnum):
    """The end of one trajectory; a value, not an exception, because one failure says nothing about the others."""

    OK = 0
    DIVERGED = 1
    """Not finite, or farther than 1 000 training ranges from the training mean."""
    STEP_UNDERFLOW = 2
    """The error test wants a step below the resolution of time: f jumps, or is far too stiff for an explicit method."""
    BUDGET = 3
    """More evaluations of f than allowed, or stopped by the caller."""

    @property
    def label(self) -> str:
        """The word in files and JSON: "ok", "diverged", "step-underflow" or "budget"."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class Tolerances:
    """What a step must respect.

    Attributes
    ----------
    rtol : float
        Error per step relative to the state itself.
    atol : float
        Error per step relative to each state's scale.
    max_evaluations : int
        Evaluations of f per trajectory; every input jump inside the horizon adds 60 to it, because a step must end
        there.
    patience : int
        Evaluations of f in any thousandth of a trajectory's horizon, input jumps again apart: where f jumps back and
        forth across a surface, steps stay tiny without ever getting too small, and a long horizon would take years.
    divergence : float
        Distance from the centre, in scales, beyond which a trajectory counts as diverged.

    Notes
    -----
    Where f jumps, trajectories that pass on either side of a corner part for good, and the error of the steps decides
    on which side a forecast passes: the exact model of the paper's agents, integrated with rtol 1e-7, ends at a test
    error of 2.4e-4, all of it from one agent in a thousand. The default is tight enough that the model decides and not
    the steps; it costs one and a half (agents) to two and a half times as much.
    """

    rtol: float = 1e-9
    atol: float = 1e-11
    max_evaluations: int = 200_000
    patience: int = 20_000
    divergence: float = 1000.0


@dataclass(frozen=True)
class Solution:
    """States at the asked times and what became of every trajectory.

    Attributes
    ----------
    states : Tensor, shape (obs, n), float64
        At the asked times; NaN after a trajectory's failure.
    outcome : Tensor of int64, shape (B,)
        Values of `Outcome`.
    end_time : Tensor, shape (B,)
        Time reached.
    evaluations : int
        Calls of f, each on a batch.
    points : int
        Evaluations of f summed over trajectories.
    """

    states: Tensor
    outcome: Tensor
    end_time: Tensor
    evaluations: int
    points: int

    def count(self, outcome: Outcome) -> int:
        """Number of trajectories that ended so."""
        return int((self.outcome == int(outcome)).sum())
