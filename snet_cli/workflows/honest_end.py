"""The honest end of every fit: the model is integrated over the horizon of its data, the same way for every method.

A small residual does not promise a good forecast; only a rollout tells. Its error stands beside the loss.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RolloutScore:
    """Mean squared error of the rollout against the recorded samples (None if all diverged), and how many diverged."""

    mse: float | None
    diverged: int
