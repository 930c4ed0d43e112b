"""How the gradient of a row's method grows with the horizon (Quaglino et al. 2020, App. D), cheaply."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from snet_cli.data.trajectories import Trajectories
from snet_cli.evaluation.comparison import GradientPoint
from snet_cli.training.gradient_norms import horizons_of, residual_gradient_norms
from snet_cli.training.options import FitOptions
from snet_cli.workflows.build_shooting import SHOOTING_METHODS
from snet_cli.workflows.training_setup import Setup

HORIZONS = 6

FEW = 10
"""Trajectories that the norms are measured on, the first ones: a solver needs minutes for a hundred."""

MOST_EVALUATIONS = 2_000
"""Evaluations of f in one solution; a solver that needs more has no gradient here."""


def gradient_norms(
    setup: Setup, data: Trajectories, options: FitOptions, device: torch.device, seconds: float
) -> tuple[GradientPoint, ...]:
    """Norms at the weights that the model has now, on the first trajectories, at horizons that double.

    Parameters
    ----------
    setup : Setup
        The model's gradients are cleared.
    data : Trajectories
        The training data.
    seconds : float
        Time after which a solver is not asked for longer horizons.
    """
    few = data.select(range(min(FEW, len(data))))
    horizons = horizons_of(few, HORIZONS)
    if not any(True for _ in setup.trained.model.parameters()):
        return ()
    if options.method in SHOOTING_METHODS:
        return tuple(_of_solver(setup, few, options, horizons, device, seconds))
    problem = setup.problem
    owner = torch.from_numpy(setup.step_zero.mesh.trajectory).to(device)
    points = owner.repeat_interleave(problem.t.numel() // owner.numel()) < len(few)
    part = replace(problem, weight=torch.where(points, problem.weight, 0.0))
    return tuple(GradientPoint(*one) for one in residual_gradient_norms(part, setup.trained.model, horizons))


def _of_solver(
    setup: Setup,
    data: Trajectories,
    options: FitOptions,
    horizons: Sequence[float],
    device: torch.device,
    seconds: float,
) -> Iterator[GradientPoint]:
    """A solver that fails at one horizon, or is slow, is not asked for longer ones."""
    from snet_cli.training.gradient_norms import shooting_gradient_norms
    from snet_cli.training.shooting import SolverTolerances

    tolerances = SolverTolerances(
        options.solver.rtol, options.solver.atol, min(options.solver.max_evaluations, MOST_EVALUATIONS)
    )
    end = time.perf_counter() + seconds
    norm: float | None = 0.0
    for horizon in horizons:
        if norm is not None and time.perf_counter() < end:
            [(_, norm)] = shooting_gradient_norms(
                options.method,
                data,
                setup.layout,
                setup.trained.inputs,
                setup.trained.model,
                [horizon],
                scaled=options.scaled,
                known_start=options.x0 != "free",
                start=setup.trained.start,
                tolerances=tolerances,
                device=device,
            )
        else:
            norm = None
        yield GradientPoint(horizon, norm)
