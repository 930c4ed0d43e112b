"""What every training method is built from, what building one gives, and the problems that they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectories import Trajectories
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.method import Method
from snet_cli.training.options import FitOptions
from snet_cli.training.problem import Problem
from snet_cli.training.step_zero import StepZero
from snet_cli.workflows.fit_data import FitData
from snet_cli.workflows.training_setup import Setup, build_problem, fit_step_zero


@dataclass(frozen=True)
class Training:
    """A method that is ready to run, and the limits that suit it.

    Attributes
    ----------
    method : Method
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
    """

    method: Method
    iterations: int
    patience: float = math.inf
    stalls: bool = False
    closed_form: bool = False
    mesh: Mesh | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ingredients:
    """What every method is built from."""

    setup: Setup
    data: FitData
    options: FitOptions
    common: CommonOptions
    device: torch.device


class MethodEntry(NamedTuple):
    """A line of the registry: how a method is built, and its own limit of iterations under these options."""

    build: Callable[[Ingredients], Training]
    iterations: Callable[[FitOptions], int]


def iteration_limit(options: FitOptions, entry: MethodEntry) -> int:
    """Most iterations: what the user says, else the limit that suits the method."""
    return entry.iterations(options) if options.iterations is None else options.iterations


def problem_of(parts: Ingredients, data: Trajectories, zero: StepZero) -> Problem:
    """The problem on the nodes of this step 0."""
    setup = parts.setup
    return build_problem(
        parts.options, data, setup.layout, zero, setup.trained.model.constants, setup.trained.inputs, parts.device
    )


def validation_problem(parts: Ingredients) -> Problem:
    """The validation data on elements of the length that training uses, measured in training's scales."""
    setup, data = parts.setup, parts.data.validation
    assert data is not None
    mesh = setup.step_zero.mesh
    elements = max(1, round(float((data.end - data.start).max()) / float(mesh.width.mean())))
    fixed = parts.options.model_copy(update={"order": mesh.basis.order, "elements": elements})
    zero = fit_step_zero(fixed, parts.common, data, setup.choice, setup.layout)
    return problem_of(parts, data, zero).with_scale_of(setup.problem)
