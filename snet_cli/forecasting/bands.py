"""Forecast bands: the forecasts of an ensemble of models drawn from the posterior of θ, and what most of them hold.

Every member is forecast from a start of its own: where the start was measured, its samples are drawn anew with the
measurement noise and the start is found by the rule for all starts (`initial_state`), so that the noise of a first
sample, or of an init window, is in the band; an x0 that the file knows is not drawn. The band at a time is the 2nd to
the 78th of the 79 members, in order: for members and truth drawn alike it holds the truth with probability
(78 - 2) / 80 = 95 %, whatever the distribution (order statistics; David & Nagaraja 2003, sec. 7.1). A member that does
not reach a time counts as infinitely far on either side: with one such the band is wider, with two it has no end.
The band is of the noise-free state; beside it stands the one of measurements, each member's with noise of its own.

All members of all forecasts are integrated in one batch, in parts that fit into memory; the numbers drawn belong to the
seed, the trajectory (or the forecast) and the member, so that no part or slice changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from snet_cli.data.posterior import Posterior
from snet_cli.data.signals import Inputs
from snet_cli.data.trajectories import Trajectories, ragged_offsets, ragged_rows
from snet_cli.forecasting.flow import Derivative, Flow, ForecastModel, Integrator
from snet_cli.forecasting.initial_state import initial_states
from snet_cli.forecasting.rollout import init_windows, measured_outputs
from snet_cli.forecasting.windows import Windows
from snet_cli.integration import Tolerances

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MEMBERS, OUTSIDE = 79, 1
"""Members, and how many of them a band leaves out at either side."""

WIDER = 0.2
"""What members are spread wider by than the Gauss-Newton covariance says, times the share of θ that the data leaves
undetermined. The covariance is that of forecasts linear in θ, at the very minimum of J. With weights that nothing
determines neither is true: bands of seven fits of vehicles held 88 to 96 % up to T, 92.2 % on average, where they
should hold 95 %. A model whose numbers are all determined by the data has the covariance as it is."""

RTOL, ATOL = 1e-5, 1e-7
"""Tolerances of the members, unless those of the forecast are looser."""

COPIES = 4
"""Arrays of all members' states that live at once."""

STREAM_WEIGHTS, STREAM_START, STREAM_NOISE = 1, 2, 3
"""Streams that the seed keys apart: θ of the members, the noise of their starts, and that of measurements."""


class Band(NamedTuple):
    """Ends at every forecast time, shape (obs, d); infinite where there is none."""

    lower: FloatArray
    upper: FloatArray

    def at(self, rows: IntArray) -> Band:
        """The ends at some of the times."""
        return Band(self.lower[rows], self.upper[rows])


@dataclass(frozen=True)
class Bands:
    """95 % bands of the outputs.

    Attributes
    ----------
    truth, measured : Band
        Of the noise-free outputs, and of measurements of them.
    failed : int
        Members' forecasts that did not reach their end, of `members` of each forecast.
    members : int
    """

    truth: Band
    measured: Band
    failed: int
    members: int

    def at(self, rows: IntArray) -> Bands:
        """The bands at some of the forecast times; failures are told of all."""
        return replace(self, truth=self.truth.at(rows), measured=self.measured.at(rows))


def joined_bands(parts: Sequence[Bands]) -> Bands:
    """Bands of forecasts that were made apart, one after the other."""
    ends = [
        Band(*(np.concatenate(each) for each in zip(*(getattr(part, kind) for part in parts), strict=True)))
        for kind in ("truth", "measured")
    ]
    return Bands(ends[0], ends[1], sum(part.failed for part in parts), parts[0].members)


class Numbers(NamedTuple):
    """Numbers among all, of the trajectories (B,) and forecasts (W,) of a slice: what is drawn belongs to them."""

    trajectories: IntArray
    forecasts: IntArray


Key = tuple[int, IntArray]
"""A seed, and the numbers that streams of it belong to."""


class _Part(NamedTuple):
    """Some forecasts, all members of each: windows, data and owners of a batch, member by member."""

    rows: slice
    windows: Windows
    data: Trajectories
    owner: IntArray
    member: IntArray


def draw_changes(posterior: Posterior, seed: int) -> FloatArray:
    """θ minus the estimate for every member, shape (MEMBERS, N_θ), from N(0, w² (L Lᵀ)⁻¹), w from `WIDER`."""
    normal = np.random.default_rng([seed, STREAM_WEIGHTS]).standard_normal((MEMBERS, len(posterior.factor)))
    changes: FloatArray = solve_triangular(posterior.factor, normal.T, trans="T", lower=True).T
    undetermined = min(max(1.0 - posterior.effective / max(len(posterior.factor), 1), 0.0), 1.0)
    return (1.0 + WIDER * undetermined) * changes


def forecast_bands(
    model: ForecastModel,
    ensemble: Derivative,
    noise_std: FloatArray,
    data: Trajectories,
    windows: Windows,
    *,
    seed: int,
    init_window: int | None = None,
    integrator: Integrator = "dopri5",
    rtol: float = RTOL,
    atol: float = ATOL,
    memory: int = 1_000_000_000,
    numbers: Numbers | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Bands:
    """Bands of every forecast at every time of it.

    Parameters
    ----------
    model : ForecastModel
    ensemble : callable
        f of all members; the number of the member is the last channel of u.
    noise_std : ndarray, shape (d,)
        Of the model's outputs.
    data, windows, init_window, integrator, should_stop
        As for `rollout`.
    seed : int
    rtol, atol : float
        Those of the forecast; the members' are not tighter than `RTOL` and `ATOL`.
    memory : int
        Bytes for the members that are integrated at a time; at least one forecast is.
    numbers : Numbers, optional
        Of the trajectories and forecasts among all, where these are a slice of them.
    """
    tolerances = Tolerances(rtol=max(rtol, RTOL), atol=max(atol, ATOL))
    flow = Flow.build(
        replace(model, derivative=ensemble),
        data,
        integrator=integrator,
        tolerances=tolerances,
        horizon=windows.horizon,
        should_stop=should_stop,
    )
    noise = dict(zip(model.output_names, noise_std.tolist(), strict=True))
    own = numbers or Numbers(np.arange(len(data)), np.arange(len(windows)))
    ends = [np.empty((windows.time.size, len(model.output_names))) for _ in range(4)]
    failed = 0
    for part in _parts(data, windows, noise, (seed, own.trajectories), memory, model):
        outputs, late = _members(flow, part, init_window)
        failed += late
        draws = _noise_draws(outputs.shape, part, windows, noise_std, (seed, own.forecasts))
        for kept, found in zip(ends, (*_ends(outputs), *_ends(outputs + draws)), strict=True):
            kept[part.rows] = found
    return Bands(Band(*ends[:2]), Band(*ends[2:]), failed, MEMBERS)


def with_bands(forecast: Trajectories, bands: Bands) -> Trajectories:
    """Forecasts with their bands as further channels ``<name>_lower`` and ``<name>_upper``, NaN where there is no end.

    Names that stand in the forecast already are left as they are: their bands are not written.
    """
    outputs, names, units = [forecast.outputs], list(forecast.output_names), dict(forecast.units)
    for i, name in enumerate(forecast.output_names):
        for side, ends in (("lower", bands.truth.lower), ("upper", bands.truth.upper)):
            channel = f"{name}_{side}"
            if channel in names:
                continue
            names.append(channel)
            outputs.append(np.where(np.isfinite(ends[:, i]), ends[:, i], np.nan)[:, None])
            units |= {channel: units[name]} if name in units else {}
    return replace(forecast, outputs=np.concatenate(outputs, axis=1), output_names=tuple(names), units=units)


def _members(flow: Flow, part: _Part, init_window: int | None) -> tuple[FloatArray, int]:
    """Outputs of all members, shape (MEMBERS, obs', d), NaN behind a failure; and how many forecasts failed."""
    model, windows = flow.model, part.windows
    rows = torch.as_tensor(part.owner, device=model.device)
    signal = flow.signal.select(rows)
    member = torch.as_tensor(part.member, dtype=torch.float64, device=model.device)[:, None]
    constants = member if signal.constants is None else torch.cat([signal.constants, member], 1)
    inputs = flow.inputs.select(part.owner) if model.lag_inputs else Inputs.none()
    own = replace(flow, signal=replace(signal, constants=constants), clock=flow.clock[rows], inputs=inputs)
    measured = measured_outputs(model, part.data, windows)
    start = initial_states(own, part.data, windows, measured, init_windows(part.data, windows, init_window))
    solution = own.solve(windows.owner, start.states, windows.start, windows.row_size, windows.time)
    outputs: FloatArray = solution.states.cpu().numpy() @ model.observation.T
    return outputs.reshape(MEMBERS, -1, outputs.shape[1]), int((solution.outcome != 0).sum())


def _ends(outputs: FloatArray) -> Band:
    """The order statistics that bound the band, shape (obs', d) each."""
    lost = np.isnan(outputs).sum(0)
    below = np.sort(np.where(np.isnan(outputs), -np.inf, outputs), axis=0)[OUTSIDE]
    above = np.sort(np.where(np.isnan(outputs), np.inf, outputs), axis=0)[-1 - OUTSIDE]
    endless = lost > OUTSIDE
    return Band(np.where(endless, -np.inf, below), np.where(endless, np.inf, above))


def _noise_draws(shape: tuple[int, ...], part: _Part, windows: Windows, noise_std: FloatArray, key: Key) -> FloatArray:
    """Measurement noise of every member at every time, shape (MEMBERS, obs', d)."""
    seed, number = key
    owner = windows.window_of_row()[part.rows]
    drawn, sizes = np.unique(owner, return_counts=True)
    draws = [
        np.random.default_rng([seed, STREAM_NOISE, int(number[w])]).standard_normal((shape[0], int(size), shape[2]))
        for w, size in zip(drawn, sizes, strict=True)
    ]
    return np.concatenate(draws, axis=1) * noise_std if draws else np.zeros(shape)


def _parts(
    data: Trajectories,
    windows: Windows,
    noise: dict[str, float],
    key: Key,
    memory: int,
    model: ForecastModel,
) -> Iterator[_Part]:
    """Consecutive forecasts whose members fit into memory together."""
    channels = COPIES * (len(model.state_names) + 2 * len(model.output_names)) + 2 * len(data.output_names)
    cost = 8 * MEMBERS * channels * np.maximum(windows.row_size, 1)
    offsets = ragged_offsets(windows.row_size)
    begin = 0
    while begin < len(windows):
        fits = int(np.searchsorted(np.cumsum(cost[begin:]), memory, side="right"))
        end = min(begin + max(fits, 1), len(windows))
        yield _part(data, windows, begin, end, slice(int(offsets[begin]), int(offsets[end])), noise, key)
        begin = end


def _part(
    data: Trajectories,
    windows: Windows,
    begin: int,
    end: int,
    rows: slice,
    noise: dict[str, float],
    key: Key,
) -> _Part:
    """Forecasts `begin` to `end`, repeated for each member on data with noise of its own."""
    own, rank = np.unique(windows.owner[begin:end], return_inverse=True)
    copied = replace(data, inputs=Inputs.none()).select(np.tile(own, MEMBERS))
    copied = replace(copied, outputs=_with_noise(copied.outputs, data, own, noise, key))
    # a row of the data among those of the chosen trajectories, then in the copy of each member
    place = np.full(data.time.size, -1)
    kept = ragged_rows(data.row_size, own)
    place[kept] = np.arange(kept.size)
    row = windows.row[rows]
    local = np.where(row >= 0, place[np.maximum(row, 0)] if data.time.size else -1, -1)
    member = np.repeat(np.arange(MEMBERS), row.size)
    repeated = np.tile(local, MEMBERS)
    count = end - begin
    tiled = Windows(
        ids=windows.ids[begin:end] * MEMBERS,
        owner=np.tile(rank, MEMBERS) + np.repeat(np.arange(MEMBERS), count) * own.size,
        start=np.tile(windows.start[begin:end], MEMBERS),
        at_first=np.tile(windows.at_first[begin:end], MEMBERS),
        row_size=np.tile(windows.row_size[begin:end], MEMBERS),
        time=np.tile(windows.time[rows], MEMBERS),
        row=np.where(repeated >= 0, repeated + member * kept.size, -1),
        horizon=windows.horizon,
        tolerance=windows.tolerance,
    )
    return _Part(rows, tiled, copied, np.tile(own, MEMBERS), np.repeat(np.arange(MEMBERS), own.size))


def _with_noise(
    outputs: FloatArray, data: Trajectories, own: IntArray, noise: dict[str, float], key: Key
) -> FloatArray:
    """Measurements (MEMBERS · obs', d') as each member might have had them; NaN stays NaN."""
    seed, number = key
    std = np.array([noise.get(name, 0.0) for name in data.output_names])
    draws = [
        np.random.default_rng([seed, STREAM_START, int(number[b])]).standard_normal(
            (MEMBERS, int(data.row_size[b]), len(data.output_names))
        )
        for b in own
    ]
    added: FloatArray = np.concatenate(draws, axis=1).reshape(outputs.shape) * std
    return outputs + added
