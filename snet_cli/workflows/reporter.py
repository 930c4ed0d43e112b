"""What a workflow tells people while it works, and how they stop it; the terminal implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Tick:
    """One moment of a long task.

    Attributes
    ----------
    phase : str
        What is being done: ``"training"``, ``"forecast"``, ``"simulation"``.
    done, total : int
        Iterations (or trajectories) done, and how many there are at most.
    residual : float or None
        R of the current x and θ.
    held_out : float or None
        Last score on held-out data.
    ms_each : float or None
        Milliseconds per iteration so far.
    seconds_left : float or None
        Estimate of the time that is left.
    """

    phase: str
    done: int
    total: int
    residual: float | None = None
    held_out: float | None = None
    ms_each: float | None = None
    seconds_left: float | None = None


class Reporter(Protocol):
    """Where a workflow's sentences go."""

    def note(self, text: str) -> None:
        """Say something that the user should know; once, in one sentence."""
        ...

    def detail(self, text: str) -> None:
        """Say something that only `--verbose` shows."""
        ...

    def progress(self, tick: Tick) -> None:
        """Show how far a long task is; cheap, may be called at every iteration."""
        ...

    def should_stop(self) -> bool:
        """Whether the user asked to stop (Ctrl-C, SIGTERM, SIGHUP): finish the step, keep the model so far."""
        ...


class Silent:
    """A reporter that says nothing: the default of the library."""

    def note(self, text: str) -> None:
        """Drop it."""

    def detail(self, text: str) -> None:
        """Drop it."""

    def progress(self, tick: Tick) -> None:
        """Drop it."""

    def should_stop(self) -> bool:
        """Never."""
        return False
