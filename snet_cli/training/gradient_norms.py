"""How the gradient with respect to θ grows with the horizon (Quaglino et al. 2020, App. D).

SNet's ∂R/∂θ is a weighted mean over points, none of which depends on another: its norm is bounded by the largest
summand (Theorem 1, eq. 14). The gradient through a solver is a sum of products of Jacobians, one factor per step
(eq. 12), and may vanish or explode. Both are measured at the same θ, on the same trajectories cut at each horizon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.models.base import Model
from snet_cli.spectral.fitting import channel_scales
from snet_cli.training.problem import Problem, Residual
from snet_cli.training.shooting import Shooting, SolverFailureError, SolverTolerances
from snet_cli.training.shooting_batches import batch_trajectories
from snet_cli.training.state_layout import StateLayout


class GradientNorm(NamedTuple):
    """One point of the curve.

    Attributes
    ----------
    horizon : float
        Time from each trajectory's start to where it was cut.
    norm : float or None
        Euclidean norm of the gradient with respect to all weights; None where the solver failed.
    """

    horizon: float
    norm: float | None


def horizons_of(data: Trajectories, count: int = 8) -> tuple[float, ...]:
    """Horizons that double up to the longest trajectory, each with at least two samples, ascending."""
    longest = float(np.max(data.end - data.start, initial=0.0))
    halved = [longest / 2**k for k in range(count)]
    interval = data.sampling_interval()
    return tuple(sorted(h for h in halved if h >= interval > 0))


def residual_gradient_norms(problem: Problem, model: Model, horizons: Sequence[float]) -> list[GradientNorm]:
    """|∂R/∂θ| of SNet on the points up to each horizon, their weights made to sum to 1.

    Parameters
    ----------
    problem : Problem
    model : Model
        Not changed.
    horizons : sequence of float
        Since each trajectory's start; one that leaves no point has norm 0.
    """
    norms = []
    for horizon in horizons:
        inside = problem.t <= horizon * (1.0 + 1e-12)
        weight = torch.where(inside, problem.weight, 0.0)
        cut = replace(problem, weight=weight / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny))
        gradient = torch.autograd.grad(Residual(cut, model)(), list(model.parameters()), allow_unused=True)
        norms.append(GradientNorm(horizon, _norm(gradient)))
    return norms


def shooting_gradient_norms(
    name: str,
    data: Trajectories,
    layout: StateLayout,
    input_names: tuple[str, ...],
    model: Model,
    horizons: Sequence[float],
    *,
    scaled: bool,
    known_start: bool = True,
    start: NDArray[np.float64] | None = None,
    tolerances: SolverTolerances | None = None,
    device: torch.device | str = "cpu",
) -> list[GradientNorm]:
    """|∂L/∂θ| of a baseline on the samples up to each horizon.

    Parameters
    ----------
    name : str
        Key of `SHOOTING`.
    data, layout, input_names, scaled, known_start, start, device
        As for `batch_trajectories`.
    model : Model
        Not changed, except that its gradients are cleared.
    horizons : sequence of float
    tolerances : SolverTolerances, optional
    """
    c = channel_scales(data.outputs)[1] if scaled else None
    since = data.time - data.start[data.trajectory_of_row()]
    norms = []
    for horizon in horizons:
        cut = data.select_rows(since <= horizon * (1.0 + 1e-12))
        batches = batch_trajectories(
            cut,
            layout,
            input_names,
            model.constants,
            scaled=False,
            scale=c,
            known_start=known_start,
            start=start,
            device=device,
        )
        method = Shooting(name, model, batches, layout.observation, tolerances=tolerances)
        try:
            method.gradient()
            norm = _norm([parameter.grad for parameter in model.parameters()])
        except SolverFailureError:
            norm = None
        norms.append(GradientNorm(horizon, norm))
        method.optimizer.zero_grad(set_to_none=True)
    return norms


def _norm(gradient: Sequence[torch.Tensor | None]) -> float | None:
    """Euclidean norm over all tensors; None if it is not finite."""
    norm = math.sqrt(sum(float(g.detach().double().square().sum()) for g in gradient if g is not None))
    return norm if math.isfinite(norm) else None
