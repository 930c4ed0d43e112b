"""`integrate`: many initial value problems at once, each with its own step size, inputs, times and outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from snet_cli.errors import DataError, UsageError
from snet_cli.integration.adaptive import AdaptiveMarch
from snet_cli.integration.fixed_euler import EulerMarch
from snet_cli.integration.inputs import InputSignal
from snet_cli.integration.march import Derivative, March, Problem
from snet_cli.integration.outcome import Solution, Tolerances
from snet_cli.integration.ragged_search import RaggedSearch

Method = Literal["dopri5", "euler"]


def integrate(
    f: Derivative,
    x0: Tensor,
    t0: Tensor,
    row_size: Tensor,
    times: Tensor,
    inputs: InputSignal,
    *,
    scale: Tensor | None = None,
    center: Tensor | None = None,
    clock: Tensor | None = None,
    tolerances: Tolerances | None = None,
    method: Method = "dopri5",
    euler_step: float | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Solution:
    """Solve x' = f(t - clock, x, u(t)), x(t0) = x0 for B trajectories.

    Parameters
    ----------
    f : callable
        f(t, x, u) for shapes (N,), (N, n), (N, m + c) -> (N, n), float64; called with any subset of the trajectories,
        whose own constants come as the last channels of u. Gradients are not recorded.
    x0 : Tensor, shape (B, n)
    t0 : Tensor, shape (B,)
    row_size : Tensor of int64, shape (B,)
        Number of asked times of each trajectory.
    times : Tensor, shape (obs,)
        Asked times, one trajectory after the other, not decreasing, none before its t0.
    inputs : InputSignal
    scale : Tensor, shape (n,), optional
        Size of each state (for a model: its training range); 1 where not given or not positive.
    center : Tensor, shape (n,), optional
        Training mean; where given, a trajectory farther than 1 000 scales from it has diverged.
    clock : Tensor, shape (B,), optional
        What f calls time zero; t0 by default.
    tolerances : Tolerances, optional
    method : {"dopri5", "euler"}
    euler_step : float, optional
        Step of "euler".
    should_stop : callable, optional
        Asked after every step; trajectories still in flight then end with outcome `budget`.

    Returns
    -------
    Solution

    Raises
    ------
    UsageError
        If shapes do not agree, a time lies before its start, or "euler" has no positive step.
    DataError
        If a time lies behind the end of a trajectory's sampled inputs: they are not extrapolated.
    """
    device = x0.device
    x0, t0 = x0.to(torch.float64), t0.to(device=device, dtype=torch.float64)
    B, n = x0.shape
    sizes, asked = row_size.cpu().numpy().astype(np.int64), times.to(torch.float64).cpu().numpy()
    if t0.shape != (B,) or sizes.shape != (B,) or int(sizes.sum()) != asked.size or inputs.end.shape != (B,):
        raise UsageError(
            f"integrate: x0 {tuple(x0.shape)}, t0 {tuple(t0.shape)}, row_size {sizes.shape} with sum {sizes.sum()}, "
            f"times {asked.shape} and inputs of {inputs.end.shape[0]} trajectories do not belong together.",
            "Expected x0 (B, n), t0 (B,), row_size (B,) and one time per row.",
        )
    _check_times(asked, sizes, t0, inputs)
    scale = torch.ones(n, dtype=torch.float64) if scale is None else scale.to(torch.float64)
    problem = Problem(
        f,
        x0,
        t0,
        t0 if clock is None else clock.to(device=device, dtype=torch.float64),
        RaggedSearch.build(asked, sizes, device),
        inputs,
        torch.where((scale > 0) & scale.isfinite(), scale, 1.0).to(device),
        None if center is None else center.to(device=device, dtype=torch.float64),
        tolerances or Tolerances(),
    )
    with torch.no_grad():
        if method == "dopri5":
            march: March = AdaptiveMarch(problem)
        elif euler_step is not None and euler_step > 0:
            march = EulerMarch(problem, euler_step)
        else:
            raise UsageError(f"method 'euler' needs a positive step, got {euler_step}.", "Give euler_step.")
        solution = march.run(should_stop)
    return solution


def _check_times(asked: np.ndarray, sizes: np.ndarray, t0: Tensor, inputs: InputSignal) -> None:
    """Refuse times before the start, and times more than rounding behind the end of sampled inputs."""
    owner = np.repeat(np.arange(sizes.size), sizes)
    start, end = t0.cpu().numpy()[owner], inputs.end.cpu().numpy()[owner]
    slack = 1e-9 * np.maximum(np.abs(start), np.abs(asked))
    if np.any(bad := ~(asked >= start - slack)):
        k = int(np.flatnonzero(bad)[0])
        raise UsageError(
            f"integrate: trajectory {owner[k]} is asked for at {asked[k]:g}, before its start at {start[k]:g}."
        )
    tick = inputs.mean_interval().cpu().numpy()[owner]
    if np.any(bad := asked > end + 0.01 * tick + slack):
        k = int(np.flatnonzero(bad)[-1])
        raise DataError(
            f"trajectory {owner[k]} is asked for at time {asked[k]:g}, but its sampled inputs end at {end[k]:g}.",
            "Inputs are not extrapolated: choose a shorter horizon, or give longer inputs.",
        )
