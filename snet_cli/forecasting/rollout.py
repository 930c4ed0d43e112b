"""Forecasts: a trained model integrated forward from each window's start, beside what was measured there.

A forecast that diverges, underflows its step or runs out of budget ends with NaN and its outcome; the others never
notice. What is scored, and what is not, is decided here once, for `evaluate` and for `train_mse` alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.shares import shares
from snet_cli.data.signals import Inputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.windows import cut_inputs
from snet_cli.distributed import ALONE, Team
from snet_cli.errors import CheckpointError
from snet_cli.forecasting.flow import Flow, ForecastModel, Integrator
from snet_cli.forecasting.initial_state import KINDS, Start, initial_states
from snet_cli.forecasting.windows import Windows, check_inputs_reach, plan_windows
from snet_cli.integration import Outcome, Tolerances

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ATOL_SHARE = 1e-2
"""Least `atol` of a network in single precision, relative to the least `rtol`, which is its rounding."""


@dataclass(frozen=True)
class Forecast:
    """W forecasts of d outputs at `obs` times in all.

    Attributes
    ----------
    windows : Windows
        Where each starts, and its times.
    trajectories : Trajectories
        The forecasts: `outputs` are predicted (NaN after a failure), `x0` the initial states that were used.
    observed : Trajectories
        What was measured at the same times, in the same channels (NaN = not measured); `truth` where the data has one.
    true_outputs : ndarray, shape (obs, d), or None
        The noise-free outputs of a simulation; NaN where the file does not tell them.
    scored : ndarray of bool, shape (obs,)
        Samples that count: recorded, and not in an init window.
    states : ndarray, shape (obs, n)
    outcome : tuple of str
        Of each forecast: "ok", "diverged", "step-underflow" or "budget".
    end_time : ndarray, shape (W,)
        Time reached.
    start_kind : ndarray of int, shape (W, n)
        Where each initial state came from, an index into `initial_state.KINDS`.
    evaluations : int
        Calls of f in the final integration, each on a batch.
    """

    windows: Windows
    trajectories: Trajectories
    observed: Trajectories
    true_outputs: FloatArray | None
    scored: NDArray[np.bool_]
    states: FloatArray
    outcome: tuple[str, ...]
    end_time: FloatArray
    start_kind: NDArray[np.int8]
    evaluations: int

    def __len__(self) -> int:
        return len(self.windows)

    @cached_property
    def complete(self) -> NDArray[np.bool_]:
        """Forecasts that reached their end, shape (W,); only these are scored."""
        return np.array([word == "ok" for word in self.outcome], bool)

    @property
    def diverged(self) -> int:
        """Number of forecasts that did not reach their end, for whatever reason."""
        return len(self) - int(self.complete.sum())

    @property
    def initial_state(self) -> dict[str, str]:
        """Where each state's start came from; several words joined by "+" where forecasts differ."""
        names = self.trajectories.state_names
        kinds = [
            [word for k, word in enumerate(KINDS) if (self.start_kind[:, i] == k).any()] for i in range(len(names))
        ]
        return {name: "+".join(words) for name, words in zip(names, kinds, strict=True)}

    @cached_property
    def errors(self) -> FloatArray:
        """Forecast minus measurement where it counts, NaN elsewhere, shape (obs, d)."""
        return self._errors_against(self.observed.outputs)

    @cached_property
    def true_errors(self) -> FloatArray | None:
        """Forecast minus noise-free truth at the same sample times, shape (obs, d); None without truth."""
        return None if self.true_outputs is None else self._errors_against(self.true_outputs)

    @property
    def mse(self) -> float | None:
        """Mean squared error over all scored values, in the data's units; None where there is none."""
        return mean_square(self.errors)

    def _errors_against(self, values: FloatArray) -> FloatArray:
        counts = self.scored & np.repeat(self.complete, self.windows.row_size)
        return np.where(counts[:, None], self.trajectories.outputs - values, np.nan)


def mean_square(errors: FloatArray) -> float | None:
    """Mean of the squares of all values that are not NaN; None where there is none or it is not finite."""
    values = errors[np.isfinite(errors)]
    if values.size == 0:
        return None
    with np.errstate(over="ignore"):
        result = float(np.mean(values**2))
    return result if np.isfinite(result) else None


def rollout(
    model: ForecastModel,
    data: Trajectories,
    windows: Windows | None = None,
    *,
    init_window: int | None = None,
    integrator: Integrator = "dopri5",
    rtol: float = Tolerances.rtol,
    atol: float = Tolerances.atol,
    max_evaluations: int = Tolerances.max_evaluations,
    should_stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
) -> Forecast:
    """Forecast every window of a data set, all of them in one batch.

    Parameters
    ----------
    model : ForecastModel
    data : Trajectories
        With the model's outputs (as far as measured), inputs and constants, by name.
    windows : Windows, optional
        From `plan_windows`; by default every recording from its first sample to its last.
    init_window : int, optional
        Samples that start a forecast, unscored; by default what the data says, trajectory by trajectory.
    integrator : {"dopri5", "euler"}
    rtol, atol : float
        `atol` is relative to each state's training range. Not below what f rounds to.
    max_evaluations : int
        Of f for each forecast, more where inputs jump; one that needs more ends as "budget".
    should_stop : callable, optional
        Asked after every step; what is still in flight then ends as "budget".
    team : Team
        The processes that share the forecasts; each of them has the whole in the end.

    Raises
    ------
    CheckpointError
        If the data has outputs, but none of the model's, or lacks an input.
    DataError
        If sampled inputs do not cover a forecast, or a known constant is found nowhere.
    """
    windows = plan_windows(data) if windows is None else windows
    flow = Flow.build(
        model,
        data,
        integrator=integrator,
        tolerances=Tolerances(
            rtol=max(rtol, model.rounding),
            atol=max(atol, ATOL_SHARE * model.rounding),
            max_evaluations=max_evaluations,
        ),
        horizon=windows.horizon,
        should_stop=should_stop,
    )
    check_inputs_reach(data, flow.inputs, windows)
    measured = measured_outputs(model, data, windows)
    N = init_windows(data, windows, init_window)
    found = _integrated(flow, data, windows, measured, N, team)
    states = found.states
    shell = _shell(model, data, windows, N)
    return Forecast(
        windows=windows,
        trajectories=replace(shell, outputs=states @ model.observation.T, x0=found.start.states, title="Forecast"),
        observed=replace(shell, outputs=measured, truth=_at_rows(data.truth, windows), state_names=data.state_names),
        true_outputs=_true_outputs(model, data, windows),
        scored=(windows.row >= 0) & (windows.place_in_window() >= np.repeat(N, windows.row_size)),
        states=states,
        outcome=tuple(Outcome(code).label for code in found.outcome),
        end_time=found.end_time,
        start_kind=found.start.kind,
        evaluations=found.evaluations,
    )


class _Integrated(NamedTuple):
    """What the integration found for all windows: states (obs, n), codes of outcomes, times reached (W,)."""

    start: Start
    states: FloatArray
    outcome: list[int]
    end_time: FloatArray
    evaluations: int


def _integrated(
    flow: Flow, data: Trajectories, windows: Windows, measured: FloatArray, init_window: IntArray, team: Team
) -> _Integrated:
    """Integrate from each window's start; the processes of a team share the windows, where there are enough."""
    team = team if team.size <= len(windows) else ALONE
    part = shares(windows.row_size, team.size)[team.rank]
    own = windows.between(part.start, part.stop)
    first = int(windows.row_size[: part.start].sum())
    start = initial_states(flow, data, own, measured[first : first + own.time.size], init_window[part])
    solution = flow.solve(own.owner, start.states, own.start, own.row_size, own.time)

    def whole(values: Tensor | NDArray[Any]) -> NDArray[Any]:
        return team.gather(torch.as_tensor(values).cpu()).numpy()

    (evaluations,) = team.largest(float(solution.evaluations))
    return _Integrated(
        Start(whole(start.states), whole(start.kind)),
        whole(solution.states),
        whole(solution.outcome).tolist(),
        whole(solution.end_time),
        int(evaluations),
    )


def measured_outputs(model: ForecastModel, data: Trajectories, windows: Windows) -> FloatArray:
    """Measurements of the model's outputs at the forecast times, shape (obs, d); NaN where there is none."""
    if data.output_names and not set(data.output_names) & set(model.output_names):
        raise CheckpointError(
            f"the model's outputs are {', '.join(model.output_names)}; the data has {', '.join(data.output_names)}.",
            "Rename the channels on import (a=b).",
        )
    values = np.full((data.time.size, len(model.output_names)), np.nan)
    for column, name in enumerate(model.output_names):
        if name in data.output_names:
            values[:, column] = data.outputs[:, data.output_names.index(name)]
    measured = _at_rows(values, windows)
    assert measured is not None
    return measured


def _at_rows(values: FloatArray | None, windows: Windows) -> FloatArray | None:
    """Rows of the data at the forecast times; NaN where nothing was recorded."""
    if values is None:
        return None
    out = np.full((windows.row.size, values.shape[1]), np.nan)
    recorded = windows.row >= 0
    out[recorded] = values[windows.row[recorded]]
    return out


def _true_outputs(model: ForecastModel, data: Trajectories, windows: Windows) -> FloatArray | None:
    """Noise-free outputs: the true state of that name, else C x where x is known; None if the data has no truth."""
    if data.truth is None:
        return None
    values = np.full((data.time.size, len(model.output_names)), np.nan)
    for column, name in enumerate(model.output_names):
        seen = [model.state_names[i] for i in np.flatnonzero(model.observation[column])]
        if name in data.state_names:
            values[:, column] = data.truth[:, data.state_names.index(name)]
        elif all(state in data.state_names for state in seen):
            truth = data.truth[:, [data.state_names.index(state) for state in seen]]
            values[:, column] = truth @ model.observation[column][np.flatnonzero(model.observation[column])]
    return _at_rows(values, windows) if np.isfinite(values).any() else None


def init_windows(data: Trajectories, windows: Windows, init_window: int | None) -> IntArray:
    """N of each forecast, shape (W,): the option, else the file's, else 0."""
    if init_window is not None:
        return np.full(len(windows), init_window, np.int64)
    if data.init_window is None:
        return np.zeros(len(windows), np.int64)
    return np.asarray(data.init_window, np.int64)[windows.owner]


def _shell(model: ForecastModel, data: Trajectories, windows: Windows, init_window: IntArray) -> Trajectories:
    """Times, inputs, units and constants of the forecasts; outputs, truth and x0 are the caller's to fill in."""
    bare = data.select_rows(np.zeros(data.time.size, bool))  # samples and inputs of all windows are cut, not repeated
    cut = replace(bare, inputs=Inputs.none(), truth=None).select(windows.owner)
    end = windows.time[np.maximum(np.cumsum(windows.row_size) - 1, 0)] if windows.time.size else windows.start
    return replace(
        cut,
        ids=windows.ids,
        row_size=windows.row_size,
        time=windows.time,
        outputs=np.zeros((windows.time.size, 0)),
        output_names=model.output_names,
        state_names=model.state_names,
        inputs=cut_inputs(data.inputs, windows.owner, windows.start, end),
        noise_std={},
        truth=None,
        x0=None,
        init_window=init_window if init_window.any() else None,
        system=None,
        provenance={},
        history="",
    )


__all__ = ["Forecast", "ForecastModel", "init_windows", "mean_square", "measured_outputs", "rollout"]
