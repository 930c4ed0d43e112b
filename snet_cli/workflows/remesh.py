"""Refinement while a method trains: its series judged, and its problem built anew from the data on the finer mesh."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.spectral.mesh import Mesh
from snet_cli.spectral.refinement import prolong
from snet_cli.training.node_inputs import jump_times
from snet_cli.training.refinement import (
    Gain,
    RateFunction,
    Remeshed,
    plan_refinement,
    state_noise,
    state_sizes,
)
from snet_cli.training.relaxed import RelaxedProblem
from snet_cli.training.relaxed_data import relax
from snet_cli.training.relaxed_score import RelaxedRule, RelaxedScorer
from snet_cli.training.state_jacobian import evaluate
from snet_cli.workflows.training_plan import Ingredients, problem_of, validation_of
from snet_cli.workflows.training_setup import node_channels

FloatArray = NDArray[np.float64]

CHUNK_POINTS = 100_000
"""Points at which f is evaluated at a time: tens of megabytes of activations."""


class DataRemesher:
    """The `Remesher` of the training data.

    Parameters
    ----------
    parts : Ingredients
        Of the whole training; each process of its team has the mesh of its own trajectories.
    channels : ndarray, shape (d,)
        c of L.
    rule : RelaxedRule
        How held-out trajectories are scored, but for the mesh.
    unknowns_per_sample : float
        Most unknowns per state that a trajectory may have, in sample times of its own.
    """

    def __init__(self, parts: Ingredients, channels: FloatArray, rule: RelaxedRule, unknowns_per_sample: float) -> None:
        self.parts, self.channels, self.rule = parts.with_own_data(), channels, rule
        data = self.parts.data.train
        self.most = np.ceil(unknowns_per_sample * data.row_size).astype(np.int64)
        self.jumps = jump_times(data.inputs.sampled, len(data))

    def refine(self, relaxed: RelaxedProblem, nodes: Tensor, before: Gain) -> Remeshed:
        """The next mesh and the problem on it; both are as they were where the plan is `done`."""
        setup, team = self.parts.setup, self.parts.team
        scale = state_sizes(relaxed, nodes, team)
        values = nodes.detach().cpu().numpy()
        plan = plan_refinement(
            relaxed.mesh,
            values,
            rate_function(setup.trained.model, self.parts.data.train, setup.trained.inputs, self.parts.device),
            scale=scale,
            noise=state_noise(relaxed, nodes, setup.layout, scale, setup.step_zero.noise, team),
            most_unknowns=self.most,
            before=before,
            team=team,
        )
        if plan.done:
            return Remeshed(plan, relaxed, nodes)
        mesh = plan.mesh(relaxed.mesh, self.jumps)
        finer = torch.from_numpy(prolong(relaxed.mesh, values, mesh)).to(nodes.device)
        return Remeshed(plan, self.rebuild(relaxed, mesh, finer), finer)

    def rebuild(self, relaxed: RelaxedProblem, mesh: Mesh, nodes: Tensor) -> RelaxedProblem:
        """The problem on another mesh with these node values, every element counting, in the scales of `relaxed`."""
        parts = self.parts
        everywhere = np.ones(mesh.elements, bool)
        zero = replace(
            parts.setup.step_zero, mesh=mesh, nodes=nodes.cpu().numpy(), counts=everywhere, determined=everywhere
        )
        problem = replace(problem_of(parts, parts.data.train, zero), scale=relaxed.scale)
        known = relaxed.known_start.cpu().numpy()
        return relax(problem, parts.data.train, self.channels, known_start=known).as_share(parts.team)

    def scorer(self, mesh: Mesh) -> RelaxedScorer | None:
        """The validation data on elements like those of this mesh; None where there is none."""
        team = self.parts.team
        validation = validation_of(self.parts, rule_on(self.rule, mesh, team))
        return None if validation is None else validation.scorer(team)


def rule_on(rule: RelaxedRule, mesh: Mesh, team: Team = ALONE) -> RelaxedRule:
    """The rule on elements like those of this mesh, of which each process of a team has its part."""
    length, elements = team.total(float(mesh.width.sum()), float(mesh.elements))
    return replace(rule, order=mesh.basis.order, width=length / elements)


def rate_function(model: Model, data: Trajectories, inputs: tuple[str, ...], device: torch.device) -> RateFunction:
    """Rates f at the nodes of any mesh of these trajectories, under their own inputs and constants."""

    def rates(mesh: Mesh, nodes: FloatArray) -> FloatArray:
        n = nodes.shape[2]
        u = node_channels(mesh, data, model.constants, inputs)
        t = (mesh.node_times() - mesh.start[mesh.trajectory][:, None]).reshape(-1)
        x, u = nodes.reshape(-1, n), u.reshape(t.size, -1)
        result = np.empty_like(x)
        with torch.no_grad():
            for begin in range(0, t.size, CHUNK_POINTS):
                part = slice(begin, begin + CHUNK_POINTS)
                arrays = (torch.from_numpy(a[part]).to(device) for a in (t, x, u))
                result[part] = evaluate(model, *arrays).cpu().numpy()
        return result.reshape(nodes.shape)

    return rates
