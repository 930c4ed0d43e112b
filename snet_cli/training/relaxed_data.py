"""From recorded samples to the relaxed problem: the scales of the misfit, the known starts, and the rows of samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.spectral.fitting import channel_scales
from snet_cli.spectral.legendre import legendre_values
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.problem import Problem
from snet_cli.training.relaxed import Observations, RelaxedProblem

FloatArray = NDArray[np.float64]


def channel_scale(outputs: FloatArray, noise: FloatArray | None, *, scaled: bool) -> FloatArray:
    """C of L, shape (d,).

    The standard deviation of each channel; where all noise levels are known, proportional to them with mean
    (std / c)² = 1, so that γ keeps its meaning; 1 in the paper's presets.

    Parameters
    ----------
    outputs : ndarray, shape (obs, d)
        NaN = not measured.
    noise : ndarray, shape (d,), optional
        Known standard deviations of the noise.
    scaled : bool
        False: c = 1.
    """
    return scale_of_misfit(channel_scales(outputs)[1], noise) if scaled else np.ones(outputs.shape[1])


def scale_of_misfit(deviation: FloatArray, noise: FloatArray | None) -> FloatArray:
    """The same from the standard deviation of each channel, shape (d,)."""
    if noise is None or not (np.isfinite(noise) & (noise > 0)).all():
        return deviation
    ratio: FloatArray = noise * np.sqrt(np.mean((deviation / noise) ** 2))
    return ratio


def known_noise(noise_std: Mapping[str, float], names: tuple[str, ...]) -> FloatArray | None:
    """Noise levels in the order of the channels, shape (d,); None unless the file states all of them."""
    levels = np.array([noise_std.get(name, np.nan) for name in names])
    return levels if np.isfinite(levels).all() and (levels > 0).all() else None


def known_start_mask(data: Trajectories, states: tuple[str, ...]) -> tuple[NDArray[np.bool_], FloatArray]:
    """Which x(t0) the file knows, and their values (0 elsewhere); both shape (B, n)."""
    values = np.full((len(data), len(states)), np.nan)
    for column, name in enumerate(states):
        if data.x0 is not None and name in data.state_names:
            values[:, column] = data.x0[:, data.state_names.index(name)]
    known = np.isfinite(values)
    return known, np.where(known, values, 0.0)


def relax(
    problem: Problem,
    data: Trajectories,
    channels: FloatArray,
    *,
    known_start: NDArray[np.bool_] | None = None,
) -> RelaxedProblem:
    """The relaxed problem on the discretisation of `problem`.

    Parameters
    ----------
    problem : Problem
        All elements of the data (not a held-out part), in the order of its mesh.
    data : Trajectories
        The samples; their outputs are `problem.layout.outputs`.
    channels : ndarray, shape (d,)
        c, see `channel_scale`.
    known_start : ndarray of bool, shape (B, n), optional
        States held at x(t0); all free unless given. Those of lagged inputs are held in any case.
    """
    mesh, device = problem.mesh, problem.t.device
    N, P = mesh.elements, mesh.basis.order + 1
    columns = [data.output_names.index(name) for name in problem.layout.outputs]
    share = mesh.horizon / mesh.horizon.sum()
    observed = _observations(mesh, data, columns, channels, device)
    holds = torch.bincount(observed.trajectory[observed.weight.any(1)], minlength=mesh.trajectories)
    if known_start is None:
        known_start = np.zeros((mesh.trajectories, problem.scale.numel()), bool)
    known_start = known_start.copy()
    known_start[:, [state for state, _ in problem.layout.lags]] = True  # s(t0) is u(t0)
    return RelaxedProblem(
        mesh=mesh,
        trajectory=torch.from_numpy(mesh.trajectory).to(device),
        trajectories=mesh.trajectories,
        t=problem.t.reshape(N, P),
        u=problem.u.reshape(N, P, -1),
        quadrature=torch.from_numpy(mesh.node_weights() * share[mesh.trajectory][:, None]).to(device),
        rate=torch.from_numpy(2.0 / mesh.width).to(device),
        differentiation=torch.from_numpy(mesh.basis.differentiation.copy()).to(device),
        scale=problem.scale,
        observation=torch.from_numpy(problem.layout.observation).to(device),
        observed=observed,
        known_start=torch.from_numpy(known_start).to(device),
        misfit_share=holds.double() / max(int(holds.sum()), 1),
        residual_share=torch.from_numpy(share).to(device),
    )


def _observations(
    mesh: Mesh, data: Trajectories, columns: list[int], channels: FloatArray, device: torch.device
) -> Observations:
    outputs = data.outputs[:, columns]
    mask = np.isfinite(outputs)
    keep = mask.any(1)  # times that hold no value at all
    trajectory = data.trajectory_of_row()[keep]
    element, tau = mesh.locate(trajectory, data.time[keep])
    rows = legendre_values(tau, mesh.basis.order) @ mesh.basis.M_inverse
    count = max(int(keep.sum()), 1)
    return Observations(
        torch.from_numpy(trajectory).to(device),
        torch.from_numpy(element).to(device),
        torch.from_numpy(rows).to(device),
        torch.from_numpy(np.where(mask, outputs, 0.0)[keep]).to(device),
        torch.from_numpy(mask[keep].astype(np.float64)).to(device),
        torch.from_numpy(1.0 / (channels**2 * count)).to(device),
    )
