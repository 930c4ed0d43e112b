"""Relaxed cross-validation (Quaglino et al. 2020, Sec. 7): score θ on other trajectories without solving the ODE.

X of the held-out file minimises Eq. 4, γL + R, with θ fixed; what is left of γL + R is the score. Hidden states need
no special care: they are part of X. δ-SNet leaves X at step 0, and so does its score, which is R there. The methods
that integrate have no X; they are scored like δ-SNet where the outputs determine all states, else like α-SNet.

Scores are compared with each other, while training and between checkpoints, and so need one γ. One that follows the
noise falls or rises by orders of magnitude in a run, and γL + R with it, whatever θ does; the score then takes
`REFERENCE_GAMMA`. Its choice matters little: on a vehicle with noise 0.05 and a quarter of the samples, the scores of
fifteen stages of training at γ = 0.03, 0.3, 3, 30 and 300 have rank correlations of 0.993 or more with the error of the
rollout against the truth. With noise 0.2 and six trajectories, where training soon learns the noise, the stage that
γ = 3 prefers is within 4 % of the best; the γ of the moment prefers the last, whatever it is.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.training.relaxed import RelaxedProblem, misfit, residual
from snet_cli.training.state_step import DEFAULT_MEMORY, GaussNewtonStep

MOST_STEPS = 30
"""Gauss-Newton steps from step 0; a fitted model needs fewer than ten."""

ENOUGH = 1e-4
"""Relative decrease of J in one step below which X is at its minimum for the purpose of a score."""

REFERENCE_GAMMA = 3.0
"""γ of a score where that of training moves: the paper's value; γ has no dimension."""


@dataclass(frozen=True)
class RelaxedRule:
    """What of a model's training Eq. 4 needs on other data: a checkpoint keeps it.

    Attributes
    ----------
    order : int
        p of each element.
    width : float
        Mean length of training's elements, in the data's time unit: other trajectories get elements like these.
    state_scale : tuple of float
        s, one per state.
    channel_scale : tuple of float
        c, one per output.
    gamma : float or None
        γ of the score; None leaves X at step 0.
    known_start : bool
        Whether x(t0) is held where the file knows it.
    loss : {"squared", "huber"}
        Of step 0 and of the misfit: huber weighs samples far from step 0 down.
    """

    order: int
    width: float
    state_scale: tuple[float, ...]
    channel_scale: tuple[float, ...]
    gamma: float | None
    known_start: bool
    loss: Literal["squared", "huber"]

    def to_json(self) -> dict[str, Any]:
        """As JSON, exact to the last bit."""
        return asdict(self) | {"state_scale": list(self.state_scale), "channel_scale": list(self.channel_scale)}

    @classmethod
    def from_json(cls, tree: dict[str, Any], states: int, outputs: int) -> RelaxedRule:
        """What `to_json` gave, checked.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it does not make sense for this many states and outputs.
        """
        gamma = tree["gamma"]
        rule = cls(
            int(tree["order"]),
            float(tree["width"]),
            tuple(float(value) for value in tree["state_scale"]),
            tuple(float(value) for value in tree["channel_scale"]),
            None if gamma is None else float(gamma),
            bool(tree["known_start"]),
            "huber" if tree["loss"] == "huber" else "squared",
        )
        if len(rule.state_scale) != states or len(rule.channel_scale) != outputs:
            raise ValueError("the scales of the relaxed score do not fit the states and outputs")
        numbers = (rule.order, rule.width, 1.0 if rule.gamma is None else rule.gamma)
        if not all(math.isfinite(x) and x > 0 for x in (*numbers, *rule.state_scale, *rule.channel_scale)):
            raise ValueError("a number of the relaxed score is not positive")
        return rule


class RelaxedScore(NamedTuple):
    """γL + R at the best X (R alone where X stays at step 0), and its parts."""

    total: float
    residual: float
    misfit: float


class RelaxedScorer:
    """Scores any θ on one held-out problem; X starts where the last score left it.

    Parameters
    ----------
    relaxed : RelaxedProblem
        Of the held-out data, with s and c of the training data (`relaxed_data.relax` on a problem with that s).
    nodes : Tensor, shape (N, P, n)
        Step 0 of the held-out data.
    gamma : float or None
        None: X stays at step 0, and the total is R.
    memory : int
        Bytes that the blocks may take.
    team : Team
        The processes among which the held-out trajectories are divided; these are this one's.
    """

    def __init__(
        self,
        relaxed: RelaxedProblem,
        nodes: Tensor,
        gamma: float | None,
        memory: int = DEFAULT_MEMORY,
        team: Team = ALONE,
    ) -> None:
        self.relaxed, self.start, self.nodes, self.memory = relaxed, nodes, nodes, memory
        self.gamma, self.team = gamma, team

    def afresh(self) -> RelaxedScorer:
        """The same scorer at step 0."""
        return RelaxedScorer(self.relaxed, self.start, self.gamma, self.memory, self.team)

    def state(self) -> Tensor:
        """X of all processes on the lead."""
        return self.team.collect(self.nodes)

    def restore(self, whole: Tensor) -> None:
        """Take X over from what `state` returned on the lead."""
        self.nodes = self.team.own(whole, self.start.shape[0])

    def score(self, model: Model) -> RelaxedScore:
        """Minimise over X with θ fixed; the model is not changed."""
        fresh = self._at(model, self.start)
        if self.gamma is None:
            return fresh
        before = self._at(model, self.nodes)
        if not before.total <= fresh.total:  # θ moved far, or X of a θ that was not finite
            self.nodes, before = self.start, fresh
        stepper = GaussNewtonStep(self.relaxed, model, self.nodes, self.memory)
        for _ in range(MOST_STEPS):
            stepper.step(self.gamma)
            now = self._at(model, stepper.nodes)
            gain, before = before.total - now.total, now
            if not gain > ENOUGH * now.total:
                break
        self.nodes = stepper.nodes
        return before

    def _at(self, model: Model, nodes: Tensor) -> RelaxedScore:
        with torch.no_grad():
            sums = self.team.sum(residual(self.relaxed, model, nodes).sum(), misfit(self.relaxed, nodes).sum())
        R, L = (float(value) for value in sums)
        return RelaxedScore(R if self.gamma is None else self.gamma * L + R, R, L)


def relaxed_score(
    relaxed: RelaxedProblem, nodes: Tensor, model: Model, gamma: float | None, memory: int = DEFAULT_MEMORY
) -> RelaxedScore:
    """Eq. 4 at its minimum over X, θ fixed, from step 0's node values: what `evaluate --relaxed` reports."""
    return RelaxedScorer(relaxed, nodes, gamma, memory).score(model)
