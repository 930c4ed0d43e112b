"""Trajectories that a model was not trained on, discretised as its training data was (Quaglino et al. 2020, Sec. 7).

No ODE is solved: each held-out trajectory gets a series by step 0, on elements of training's mean length, and R and L
are measured in training's scales. `fit --validation` chooses θ by it, `evaluate --relaxed` reports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.shares import shares
from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import ALONE, Team
from snet_cli.models.mlp import Mlp
from snet_cli.models.options import MODEL_OPTIONS
from snet_cli.training.options import FitOptions
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed import RelaxedProblem, nodes_of
from snet_cli.training.relaxed_data import known_start_mask, relax
from snet_cli.training.relaxed_score import RelaxedRule, RelaxedScorer
from snet_cli.training.robust import as_tensor, huber_weight
from snet_cli.workflows.trained_model import TrainedModel
from snet_cli.workflows.training_setup import ModelChoice, build_problem, fit_step_zero, require_inputs_cover


@dataclass(frozen=True)
class HeldOut:
    """Held-out trajectories on their nodes.

    Attributes
    ----------
    problem : Problem
        Step 0, in training's s.
    relaxed : RelaxedProblem
        The same with the samples.
    gamma : float or None
        γ of the score; None where X stays at step 0.
    """

    problem: Problem
    relaxed: RelaxedProblem
    gamma: float | None

    def scorer(self, team: Team = ALONE) -> RelaxedScorer:
        """A scorer that starts from step 0; the processes of a team share the trajectories."""
        own = self.own(team)
        if own is None:  # more processes than trajectories: each scores all of them
            return RelaxedScorer(self.relaxed, nodes_of(self.problem), self.gamma)
        return RelaxedScorer(self.relaxed.shard(*own), nodes_of(self.problem.between(*own)), self.gamma, team=team)

    def part(self, team: Team) -> Problem:
        """Step 0 of this process's trajectories; where it is all of them, in weights that sum to 1 over the team."""
        own = self.own(team)
        return (
            replace(self.problem, weight=self.problem.weight / team.size) if own is None else self.problem.between(*own)
        )

    def own(self, team: Team) -> tuple[int, int] | None:
        """The range of trajectories that this process scores; None where it is all of them."""
        if team.size == 1 or team.size > self.relaxed.trajectories:
            return None
        samples = torch.bincount(self.relaxed.observed.trajectory, minlength=self.relaxed.trajectories)
        part = shares(samples.cpu().numpy(), team.size)[team.rank]
        return part.start, part.stop


def hold_out(
    trained: TrainedModel, rule: RelaxedRule, data: Trajectories, common: CommonOptions, device: torch.device
) -> HeldOut:
    """Step 0 of the data and the problem on it.

    Parameters
    ----------
    data : Trajectories
        With at least the model's outputs, two samples or more of each trajectory; the order of the channels is free.

    Raises
    ------
    DataError
        If the inputs do not cover the samples, or a known constant is found nowhere.
    """
    require_inputs_cover(data)
    layout = trained.layout
    columns = [data.output_names.index(name) for name in layout.outputs]
    data = replace(data, outputs=data.outputs[:, columns], output_names=layout.outputs)
    elements = max(1, round(float((data.end - data.start).max()) / rule.width))
    options = FitOptions(order=rule.order, elements=elements, x0=None if rule.known_start else "free", loss=rule.loss)
    model = trained.model
    lags = model.lag_times().detach().cpu().numpy() if isinstance(model, Mlp) and model.lags else None
    zero = fit_step_zero(options, common, data, _choice(trained), layout, lag_times=lags)
    problem = build_problem(
        options, data, layout, zero, trained.model.constants, trained.inputs, device, trained.constants
    )
    problem = replace(problem, scale=torch.tensor(rule.state_scale, dtype=torch.float64, device=device))
    known = known_start_mask(data, layout.states)[0] if rule.known_start else None
    relaxed = relax(problem, data, np.array(rule.channel_scale), known_start=known)
    if zero.threshold is not None:
        far = huber_weight(relaxed.error(nodes_of(problem)), as_tensor(zero.threshold, device))
        relaxed = relaxed.with_weight(relaxed.observed.weight * far)
    if rule.gamma is None:  # X stays where step 0 put it, so that gaps count no more than in training
        relaxed = replace(relaxed, quadrature=problem.weight.reshape(relaxed.quadrature.shape))
    return HeldOut(problem, relaxed, rule.gamma)


def scorable(trained: TrainedModel, data: Trajectories, note: Callable[[str], None]) -> Trajectories | None:
    """The trajectories of a file that can be scored without integration; None, and a note, where none can."""
    if not data.output_names or not np.isfinite(data.outputs).any():
        note("no relaxed score: the file holds no measured outputs.")
        return None
    seen = {n for n, column in zip(data.output_names, data.outputs.T, strict=True) if np.isfinite(column).any()}
    absent = [name for name in trained.layout.outputs if name not in seen]
    if absent:
        note(f"no relaxed score: the file does not measure the model's output '{absent[0]}'.")
        return None
    long = np.flatnonzero(data.row_size >= 2)
    if long.size < len(data):
        left = "no relaxed score: " if long.size == 0 else ""
        note(f"{left}{len(data) - long.size} trajectories have fewer than 2 samples and no series.")
    return data.select(long) if long.size else None


def _choice(trained: TrainedModel) -> ModelChoice:
    """The model's options as step 0 asks for them."""
    tree = trained.model_options
    name = str(tree["name"])
    return ModelChoice(name, MODEL_OPTIONS[name].model_validate(tree), tree, trained.source)
