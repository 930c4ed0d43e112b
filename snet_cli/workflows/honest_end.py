"""The honest end of every fit: the model is integrated over the horizon of its data, the same way for every method.

A small residual does not promise a good forecast; only a rollout tells. Its error stands beside the loss.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from snet_cli.data.trajectories import Trajectories
from snet_cli.forecasting.rollout import rollout
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.trained_model import TrainedModel

STOPPED_SECONDS = 0.3
"""Time that is left for a rollout once the user asks to stop: the model is written, its score can wait."""


@dataclass(frozen=True)
class RolloutScore:
    """Mean squared error of the rollout against the recorded samples (None if all diverged), and how many diverged."""

    mse: float | None
    diverged: int


def rollout_score(
    trained: TrainedModel, data: Trajectories, device: torch.device, report: Reporter, seconds: float
) -> RolloutScore:
    """Forecast every trajectory from its start over its whole recording, and score it.

    Parameters
    ----------
    seconds : float
        Time that this may take: a model that explodes must not cost more than its training did. Forecasts that are
        still under way then count as not having reached their end.
    """
    end, asked = time.perf_counter() + seconds, False

    def time_is_up() -> bool:
        nonlocal end, asked
        if not asked and report.should_stop():
            end, asked = min(end, time.perf_counter() + STOPPED_SECONDS), True
        return time.perf_counter() > end

    forecast = rollout(trained.forecast_model(device), data, should_stop=time_is_up)
    if forecast.diverged:
        late = " (its time was up)" if time.perf_counter() > end else ""
        report.note(
            f"{forecast.diverged} of {len(forecast)} forecasts over the data's own horizon do not reach its "
            f"end{late}; the scores are over the rest. Shorter forecasts may still be good: snet evaluate --horizon."
        )
    return RolloutScore(forecast.mse, forecast.diverged)
