"""Where a forecast starts: the one rule for evaluation and for every choice made by a training rollout.

State by state, the first of these that exists:

1. ``x0_*`` of the file, only for a forecast from the trajectory's first sample;
2. with an init window of N > 0 samples, least squares of the model's own trajectory on them (`window_fit`);
3. the first measured value in the forecast, for a state that an output measures directly; where outputs are sums of
   states (y = C x), the states closest to the mean start that agree with the first measured values;
4. the mean start estimated in training, for a hidden state.

A state that is a lagged input starts from its response to the inputs recorded before the start, at rest at u of the
recording's first sample: inputs are known, and no output is used. No other sample is ever used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.trajectories import Trajectories
from snet_cli.forecasting.flow import Flow, ForecastModel
from snet_cli.forecasting.lag_response import lag_response
from snet_cli.forecasting.window_fit import WindowSamples, fit_starts
from snet_cli.forecasting.windows import Windows

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

KINDS = ("x0", "init-window", "first-sample", "mean-start", "input-response")
"""Words for where a state's start came from, in the order of the rule."""


class Start(NamedTuple):
    """Initial states of W forecasts.

    Attributes
    ----------
    states : ndarray, shape (W, n)
    kind : ndarray of int, shape (W, n)
        Index into `KINDS`.
    """

    states: FloatArray
    kind: NDArray[np.int8]


def initial_states(
    flow: Flow, data: Trajectories, windows: Windows, measured: FloatArray, init_window: IntArray
) -> Start:
    """Initial states by the rule above.

    Parameters
    ----------
    flow : Flow
    data : Trajectories
    windows : Windows
    measured : ndarray, shape (obs, d)
        What was measured at the forecast times, in the model's outputs; NaN = not measured.
    init_window : ndarray of int, shape (W,)
        N of each forecast; 0 = none.
    """
    model = flow.model
    states, kind = _first_samples(model, windows, measured)
    _take_input_response(flow, data, windows, states, kind)
    known = _known_starts(model, data, windows)
    hit = np.isfinite(known)
    states[hit], kind[hit] = known[hit], KINDS.index("x0")
    free = (kind != KINDS.index("x0")) & (kind != KINDS.index("input-response"))
    chosen = np.flatnonzero((init_window > 0) & free.any(1))
    if chosen.size:
        samples = _window_samples(windows, measured, init_window, chosen)
        fitted, found = fit_starts(flow, samples, states[chosen], free[chosen])
        states[chosen] = fitted
        kind[chosen] = np.where(free[chosen] & found[:, None], KINDS.index("init-window"), kind[chosen])
    return Start(states, kind)


def _first_samples(model: ForecastModel, windows: Windows, measured: FloatArray) -> tuple[FloatArray, NDArray[np.int8]]:
    """Start from the first measured value of each output in each forecast; the mean start of training elsewhere."""
    owner = windows.window_of_row()
    first = np.full((len(windows), len(model.output_names)), np.nan)
    for output, column in enumerate(measured.T):
        rows = np.flatnonzero(np.isfinite(column))
        with_value, place = np.unique(owner[rows], return_index=True)
        first[with_value, output] = column[rows[place]]
    states = start_from_outputs(model.observation, first, np.asarray(model.start, np.float64), model.unit)
    seen = (np.isfinite(first).astype(np.float64) @ (model.observation != 0)) > 0
    return states, np.where(seen, KINDS.index("first-sample"), KINDS.index("mean-start")).astype(np.int8)


def start_from_outputs(observation: FloatArray, values: FloatArray, mean: FloatArray, unit: FloatArray) -> FloatArray:
    """States that the outputs tell, shape (W, n): closest to the mean start among those with C x = y.

    Parameters
    ----------
    observation : ndarray, shape (d, n)
        C.
    values : ndarray, shape (W, d)
        y; NaN = not measured, and that row of C does not count.
    mean, unit : ndarray, shape (n,)
        The mean start of training, which stays along the directions that C does not see, and the unit in which
        "closest" is meant.

    Notes
    -----
    A state that an output measures as it is takes that value, the first such output's; the least squares of the others
    (``x = m + S (C S)⁺ (y - C m)``, S = diag(unit)) move the rest.
    """
    states = np.tile(mean, (len(values), 1))
    outputs, targets = direct_outputs(observation)
    fixed = np.zeros(states.shape, bool)
    for output, state in zip(outputs[::-1], targets[::-1], strict=True):  # the first output of a state wins
        told = np.isfinite(values[:, output])
        states[told, state] = values[told, output]
        fixed[told, state] = True
    rest = np.setdiff1d(np.arange(len(observation)), outputs)
    C, y = observation[rest], values[:, rest]
    told = np.isfinite(y)
    open_part = (told[:, :, None] * C) * (unit * ~fixed)[:, None, :]  # (W, d', n), zero rows and columns do not count
    size = np.sqrt((open_part**2).sum(2, keepdims=True))
    weight = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    error = np.where(told, y - states @ C.T, 0.0)
    if rest.size:
        inverse = np.linalg.pinv(weight * open_part, rcond=1e-9)
        states = states + unit * np.einsum("wid,wd->wi", inverse, weight[:, :, 0] * error)
    return states


def direct_outputs(observation: FloatArray) -> tuple[IntArray, IntArray]:
    """Outputs that measure a single state as it is, and those states: rows of C with one entry, a 1."""
    single = ((observation != 0).sum(1) == 1) & (observation == 1).any(1)
    outputs = np.flatnonzero(single)
    return outputs, observation[outputs].argmax(1)


def _known_starts(model: ForecastModel, data: Trajectories, windows: Windows) -> FloatArray:
    """`x0_*` of the forecasts from a first sample, by name, shape (W, n); NaN elsewhere."""
    known = np.full((len(windows), len(model.state_names)), np.nan)
    if data.x0 is not None:
        for i, name in enumerate(model.state_names):
            if name in data.state_names:
                value = data.x0[windows.owner, data.state_names.index(name)]
                known[:, i] = np.where(windows.at_first, value, np.nan)
    return known


def _take_input_response(
    flow: Flow, data: Trajectories, windows: Windows, states: FloatArray, kind: NDArray[np.int8]
) -> None:
    """Let every lagged input respond from the recording's first sample to the start; writes into `states`, `kind`."""
    lags = flow.model.lag_inputs
    if not lags:
        return
    rows, columns = np.array(list(lags)), np.array([lags[i] for i in lags])
    stored = flow.inputs.sampled.names if flow.inputs.sampled else ()
    lagging = [flow.model.input_names[column] for column in columns]
    if flow.signal.sampled is not None and set(lagging) <= set(stored):
        device = flow.model.device
        numbers = torch.tensor([stored.index(name) for name in lagging], device=device)
        owner, time = (torch.as_tensor(part, device=device) for part in (windows.owner, windows.start))
        tau = _lag_times(flow.model, rows)
        response = lag_response(flow.signal.sampled, numbers, tau, flow.clock, owner, time).cpu().numpy()
    else:
        response = _integrated_response(flow, data, windows, rows, columns)
    states[:, rows] = response
    kind[:, rows] = KINDS.index("input-response")


def _lag_times(model: ForecastModel, rows: IntArray) -> Tensor:
    """τ of the lagged inputs, shape (L,): each of their rows of f is (u - s) / τ."""
    x = torch.as_tensor(np.stack([model.center, model.center]), dtype=torch.float64, device=model.device)
    at = torch.as_tensor(rows, device=model.device)
    x[0, at], x[1, at] = 0.0, 1.0
    u = x.new_zeros(2, len(model.input_names) + len(model.constant_names))
    with torch.no_grad():
        at_rest, pulled = model.derivative(x.new_zeros(2), x, u)[:, at]
    return (1.0 / (at_rest - pulled)).clamp(min=torch.finfo(torch.float64).tiny)


def _integrated_response(
    flow: Flow, data: Trajectories, windows: Windows, rows: IntArray, columns: IntArray
) -> FloatArray:
    """The same to inputs of any kind, by the integrator: rows of f that depend on themselves and u alone."""
    begin = data.start[windows.owner]
    at_rest = np.tile(flow.model.center, (len(windows), 1))
    at_rest[:, rows] = flow.inputs.at(windows.owner, begin)[:, columns]
    moving = torch.zeros(at_rest.shape[1], dtype=torch.float64, device=flow.model.device)
    moving[torch.as_tensor(rows, device=moving.device)] = 1.0

    def lag_only(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return torch.where(moving > 0, flow.model.derivative(t, x, u), 0.0)

    one_each = np.ones(len(windows), np.int64)
    response = flow.solve(windows.owner, at_rest, begin, one_each, windows.start, lag_only).states.cpu().numpy()
    response = np.where(np.isfinite(response), response, at_rest)
    reached: FloatArray = response[:, rows]
    return reached


def _window_samples(windows: Windows, measured: FloatArray, init_window: IntArray, chosen: IntArray) -> WindowSamples:
    """The first N samples of the chosen forecasts."""
    rank = np.full(len(windows), -1)
    rank[chosen] = np.arange(chosen.size)
    owner = rank[windows.window_of_row()]
    keep = (owner >= 0) & (windows.place_in_window() < init_window[windows.window_of_row()]) & (windows.row >= 0)
    return WindowSamples(
        owner=windows.owner[chosen],
        start=windows.start[chosen],
        row_size=np.bincount(owner[keep], minlength=chosen.size).astype(np.int64),
        time=windows.time[keep],
        values=measured[keep],
    )
