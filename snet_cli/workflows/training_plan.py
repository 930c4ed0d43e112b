"""What every training method is built from, what building one gives, and the problems that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.shares import shares
from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import ALONE, Team
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.loop import HELD_OUT_EVERY
from snet_cli.training.method import Method
from snet_cli.training.options import FitOptions
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed import RelaxedProblem
from snet_cli.training.relaxed_data import channel_scale, known_noise
from snet_cli.training.relaxed_score import RelaxedRule
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.held_out import HeldOut, hold_out
from snet_cli.workflows.training_setup import Setup, build_problem

IN_SLICES = "slices"
"""Key of `Training.settled`: whether the data was read in slices."""

LOOK_SHARE = 0.2
"""Most of the training time that looking at held-out data may take."""


@dataclass(frozen=True)
class Training:
    """A method that is ready to run, and the limits that suit it.

    Attributes
    ----------
    method : Method
    rule : RelaxedRule
        How the model is scored on other data without integration.
    iterations : int
        Most iterations.
    patience : float
        Iterations without a better held-out score that end training.
    stalls : bool
        Whether a loss that no longer falls means convergence (deterministic line searches).
    closed_form : bool
        Whether one iteration solves the problem.
    mesh : Mesh or None
        The discretisation, where it is not step 0's.
    notes : tuple of str
        What was decided, and why.
    choices : tuple of str
        What training rollouts decided, told even without `--verbose`.
    validation : HeldOut or None
        The validation data as `rule` scores it.
    look_every : int
        Iterations between two looks at held-out data.
    settled : mapping
        What building found at a cost or by the clock, JSON-able; a resumed run builds with it (`Ingredients.settled`).
    team : Team
        The processes that train together.
    """

    method: Method
    rule: RelaxedRule
    iterations: int
    patience: float = math.inf
    stalls: bool = False
    closed_form: bool = False
    mesh: Mesh | None = None
    notes: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    validation: HeldOut | None = None
    look_every: int = HELD_OUT_EVERY
    settled: Mapping[str, Any] = field(default_factory=dict)
    team: Team = ALONE


@dataclass(frozen=True)
class Ingredients:
    """What every method is built from: all of it on every process, of which each then trains on its own trajectories.

    Attributes
    ----------
    settled : mapping
        `Training.settled` of the run that goes on; empty for a new one.
    team : Team
        The processes that train together.
    """

    setup: Setup
    data: FitData
    options: FitOptions
    common: CommonOptions
    device: torch.device
    settled: Mapping[str, Any] = field(default_factory=dict)
    team: Team = ALONE

    @property
    def own(self) -> tuple[int, int]:
        """The range of training trajectories that this process has."""
        part = shares(self.data.train.row_size, self.team.size)[self.team.rank]
        return part.start, part.stop

    def own_problem(self, problem: Problem) -> Problem:
        """Of a problem on all training trajectories, the part of this process."""
        return problem if self.team.size == 1 else problem.between(*self.own)

    def own_relaxed(self, relaxed: RelaxedProblem) -> RelaxedProblem:
        """The same of a relaxed problem."""
        return relaxed if self.team.size == 1 else relaxed.shard(*self.own)

    def with_own_data(self) -> Ingredients:
        """The same with this process's training trajectories alone."""
        if self.team.size == 1:
            return self
        train = self.data.train.select(range(*self.own))
        return replace(self, data=replace(self.data, train=train))


class MethodEntry(NamedTuple):
    """A line of the registry.

    Attributes
    ----------
    build : callable
        How the method is built.
    iterations : callable
        Its own limit of iterations under these options.
    needs_all_states : bool
        Whether step 0 is all it knows of the trajectories, so that every state and every element has to be determined
        by samples.
    """

    build: Callable[[Ingredients], Training]
    iterations: Callable[[FitOptions], int]
    needs_all_states: bool = False


def iteration_limit(options: FitOptions, entry: MethodEntry) -> int:
    """Most iterations: what the user says, else the limit that suits the method."""
    return entry.iterations(options) if options.iterations is None else options.iterations


def problem_of(parts: Ingredients, data: Trajectories, zero: StepZero) -> Problem:
    """The problem on the nodes of this step 0."""
    setup = parts.setup
    return build_problem(
        parts.options, data, setup.layout, zero, setup.trained.model.constants, setup.trained.inputs, parts.device
    )


def relaxed_rule(
    parts: Ingredients, problem: Problem, gamma: float | None = None, *, free: bool = False
) -> RelaxedRule:
    """How other trajectories are scored: on elements of the length that training uses, in training's scales.

    Parameters
    ----------
    problem : Problem
        The one that is trained on.
    gamma : float, optional
        γ of the score; X stays at step 0 unless given.
    free : bool
        Whether x(t0) is free even where the file knows it.
    """
    data, options = parts.data.train, parts.options
    channels = channel_scale(
        data.outputs, known_noise(data.noise_std, parts.setup.layout.outputs), scaled=options.scaled
    )
    return RelaxedRule(
        problem.mesh.basis.order,
        float(problem.mesh.width.mean()),
        tuple(problem.scale.tolist()),
        tuple(channels.tolist()),
        gamma,
        not (free or options.x0 == "free"),
        options.loss,
    )


def validation_of(parts: Ingredients, rule: RelaxedRule) -> HeldOut | None:
    """The validation data as this rule scores it, where there is any."""
    data = parts.data.validation
    if data is None:
        return None
    return parts.team.once(lambda team: hold_out(parts.setup.trained, rule, data, parts.common, parts.device))


def look_every(cost: float) -> int:
    """Iterations between two looks at held-out data: scoring takes at most `LOOK_SHARE` of the time of training.

    Parameters
    ----------
    cost : float
        Of a score, in iterations; counted, not timed, so that the same options give the same result.
    """
    return max(HELD_OUT_EVERY, math.ceil(cost / LOOK_SHARE))
