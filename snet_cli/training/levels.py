"""Where γ stops falling on data that no model of this form obeys to its noise.

The exact constraint explains every disturbance of a recording by the model, over its whole length. Where there are
disturbances that the model cannot know (wind, a hand, a collision), the error of a forecast is theirs after a while,
and a model that has to thread x through all of them is bent away from the one that forecasts best. What tells is a
forecast: each level of γ is judged by the model's error on the training data over a horizon that it can forecast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

ABOVE_NOISE = 10.0
"""Misfit over that of the noise, up to which the data obeys the model and γ may fall."""

WORSE = 1.2
"""Error of a level over that of the best one before it, from which on γ has fallen too far."""

MATTERS = 0.05
"""Least difference of the two that tells, in standard deviations of the data: where forecasts are that good, levels
differ by how far their steps came. On a Duffing oscillator without noise γ stopped at 0.028 against 0.038, where going
on makes the error over the training horizon a seventh; a hovercraft in the wind has 0.47 against 0.59."""


class TrainingForecast(Protocol):
    """Error of forecasts of the training data by the model as it is.

    Attributes
    ----------
    horizon : float
        Of each forecast; 0 before the first one, which finds it.
    unit : str
        Of time; may be empty.
    """

    horizon: float
    unit: str

    def __call__(self) -> float:
        """Root mean square over the data's standard deviation; the same on every process of a team."""
        ...


class Level(NamedTuple):
    """A converged level: γ, X (N, P, n) and θ (N_θ,) at its end, and the error of its forecasts."""

    gamma: float
    nodes: Tensor
    theta: Tensor
    error: float


class Levels:
    """Remembers the level of γ that forecasts best.

    Parameters
    ----------
    forecast : TrainingForecast, optional
        Without one γ may fall as far as it likes.
    noise : float
        Misfit L that the noise alone leaves.

    Attributes
    ----------
    best : Level or None
    finding : str or None
        Why γ stopped, once it has.
    """

    def __init__(self, forecast: TrainingForecast | None, noise: float) -> None:
        self.forecast, self.noise = forecast, noise
        self.best: Level | None = None
        self.finding: str | None = None

    def fell_too_far(self, gamma: float, misfit: float, nodes: Tensor, theta: Tensor) -> bool:
        """Whether the level that ended here forecasts worse than the best one, to which training should go back."""
        if self.forecast is None:
            return False
        error = self.forecast()
        above_noise = misfit > ABOVE_NOISE * self.noise
        least = math.inf if self.best is None else self.best.error
        if above_noise and self.best is not None and not error <= max(WORSE * least, least + MATTERS):
            self.finding = (
                f"gamma stays at {self.best.gamma:g}: at {gamma:g} forecasts of the training data over "
                f"{f'{self.forecast.horizon:.3g} {self.forecast.unit}'.rstrip()} are worse, {error:.3g} instead of "
                f"{self.best.error:.3g} of its standard deviation. Something acts on it that the model does not know."
            )
            return True
        if self.best is None or error < self.best.error:
            self.best = Level(gamma, nodes.clone(), theta.clone(), error)
        return False

    def forget(self) -> None:
        """Begin anew on another mesh."""
        self.best = None

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs; X is that of this process."""
        horizon = 0.0 if self.forecast is None else self.forecast.horizon
        best = self.best
        if best is None:
            return {"known": torch.tensor([horizon, math.nan, math.nan], dtype=torch.float64)}
        known = torch.tensor([horizon, best.gamma, best.error], dtype=torch.float64)
        return {"known": known, "nodes": best.nodes, "theta": best.theta}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        horizon, gamma, error = state["known"].tolist()
        if self.forecast is not None:
            self.forecast.horizon = horizon
        self.best = Level(gamma, state["nodes"], state["theta"], error) if "nodes" in state else None
