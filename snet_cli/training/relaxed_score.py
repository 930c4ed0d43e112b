"""Relaxed cross-validation (Quaglino et al. 2020, Sec. 7): score θ on other trajectories without solving the ODE.

X of the held-out file minimises Eq. 4, γL + R, with θ fixed; what is left of γL + R is the score. Hidden states need
no special care: they are part of X.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snet_cli.models.base import Model
from snet_cli.training.relaxed import RelaxedProblem, misfit, residual
from snet_cli.training.state_step import DEFAULT_MEMORY, GaussNewtonStep

MOST_STEPS = 30
"""Gauss-Newton steps from step 0; a fitted model needs fewer than ten."""

ENOUGH = 1e-4
"""Relative decrease of J in one step below which X is at its minimum for the purpose of a score."""


class RelaxedScore(NamedTuple):
    """γL + R at the best X, and its parts."""

    total: float
    residual: float
    misfit: float


class RelaxedScorer:
    """Scores any θ on one held-out problem; X starts where the last score left it.

    Parameters
    ----------
    relaxed : RelaxedProblem
        Of the held-out data, with s and c of the training data (`relaxed.relax` on a problem `with_scale_of`).
    nodes : Tensor, shape (N, P, n)
        Step 0 of the held-out data.
    memory : int
        Bytes that the blocks may take.
    """

    def __init__(self, relaxed: RelaxedProblem, nodes: Tensor, memory: int = DEFAULT_MEMORY) -> None:
        self.relaxed, self.start, self.nodes, self.memory = relaxed, nodes, nodes, memory

    def score(self, model: Model, gamma: float) -> RelaxedScore:
        """Minimise over X with θ fixed; the model is not changed."""
        before = self._total(model, self.nodes, gamma)
        fresh = self._total(model, self.start, gamma)
        if not before.total <= fresh.total:  # θ moved far, or X of a θ that was not finite
            self.nodes, before = self.start, fresh
        stepper = GaussNewtonStep(self.relaxed, model, self.nodes, self.memory)
        for _ in range(MOST_STEPS):
            stepper.step(gamma)
            now = self._total(model, stepper.nodes, gamma)
            gain, before = before.total - now.total, now
            if not gain > ENOUGH * now.total:
                break
        self.nodes = stepper.nodes
        return before

    def _total(self, model: Model, nodes: Tensor, gamma: float) -> RelaxedScore:
        with torch.no_grad():
            R = float(residual(self.relaxed, model, nodes).sum())
            L = float(misfit(self.relaxed, nodes).sum())
        return RelaxedScore(gamma * L + R, R, L)


def relaxed_score(
    relaxed: RelaxedProblem, nodes: Tensor, model: Model, gamma: float, memory: int = DEFAULT_MEMORY
) -> RelaxedScore:
    """Eq. 4 at its minimum over X, θ fixed, from step 0's node values: what `evaluate --relaxed` reports."""
    return RelaxedScorer(relaxed, nodes, memory).score(model, gamma)
