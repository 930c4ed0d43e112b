"""`snet evaluate` on data that is larger than the memory: forecast, scored and written a slice at a time.

Scores are sums over slices (`evaluation.scores_sum`). Every process reads every so many-th slice; the lead writes the
forecasts, where they are wanted, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from snet_cli.data.content import Content, open_in_place
from snet_cli.data.options import CommonOptions
from snet_cli.data.slice_writer import save_slices, stored
from snet_cli.data.storage import display
from snet_cli.data.trajectories import SPLIT_NAMES, Trajectories
from snet_cli.data.trajectory_slices import TrajectorySlices
from snet_cli.data.windows import cut_inputs
from snet_cli.distributed import Team
from snet_cli.errors import DataError, SnetError, UsageError
from snet_cli.evaluation.options import EvaluateOptions
from snet_cli.evaluation.report import EvaluationReport, start_words
from snet_cli.evaluation.scores_sum import ScoreSums
from snet_cli.forecasting.rollout import Forecast, rollout
from snet_cli.forecasting.windows import Windows, plan_windows, time_tolerance
from snet_cli.workflows import memory
from snet_cli.workflows.provenance import history_line
from snet_cli.workflows.reporter import Reporter, Tick
from snet_cli.workflows.sliced_team import in_turn
from snet_cli.workflows.trained_model import TrainedModel

FORECAST_SAMPLES = 50_000
"""Samples of the recordings that are forecast at a time."""

WHOLE_ONLY = {"plot": "--plot", "bands": "--bands", "relaxed": "--relaxed", "from_every": "--from-every"}
"""Options that look at all forecasts at once."""


def needs_slices(test: str, states: int, common: CommonOptions, team: Team) -> bool:
    """Whether the forecasts of this file do not fit into the memory all at once; judged by its header alone."""
    large = False
    try:
        with open_in_place(test, display(test), DataError, common.max_bytes) as content:
            rows = content.arrays["time"].shape[0]
        large = memory.of_forecasts(rows, states) > memory.share(common, team.place)
    except (SnetError, KeyError, IndexError):
        pass  # reading it in one piece says what is wrong
    return team.any(large)[0]


def chosen(slices: TrajectorySlices, split: str | None) -> TrajectorySlices:
    """The trajectories of one split, as `Trajectories.of_split`.

    Raises
    ------
    DataError
    """
    if split is None:
        return slices
    if slices.split is None:
        raise DataError(f"the file has no split, so '--split {split}' chooses nothing.", "Leave --split out.")
    kept = slices.split == SPLIT_NAMES.index(split)
    if not kept.any():
        raise DataError(f"no trajectory belongs to the split '{split}'.", "")
    return slices.where(kept)


def check_options(options: EvaluateOptions, ensemble: bool, output: str | None) -> None:
    """Refuse what needs all forecasts at once.

    Raises
    ------
    UsageError
    """
    asked = [flag for key, flag in WHOLE_ONLY.items() if getattr(options, key)]
    asked += ["several models in one checkpoint"] if ensemble else []
    asked += ["--integrator euler"] if options.integrator == "euler" else []
    asked += ["-o FILE.csv"] if output is not None and output.lower().endswith(".csv") else []
    if asked:
        raise UsageError(
            f"the forecasts do not fit into the memory at once, as {asked[0]} needs them.",
            "Leave it out, evaluate a part of the file (--split), or raise --max-memory.",
        )


def evaluate_in_slices(
    trained: TrainedModel,
    slices: TrajectorySlices,
    output: str | None,
    options: EvaluateOptions,
    record: dict[str, Any],
    earlier: tuple[str, ...],
    force: bool,
    device: torch.device,
    report: Reporter,
    team: Team,
) -> EvaluationReport:
    """Forecast, score, and write where an output is named.

    Parameters
    ----------
    record : dict
        Provenance of the output.
    earlier : tuple of str
        Histories of model and data.
    """
    pieces = slices.between(0, len(slices.kept), FORECAST_SAMPLES)
    first = slices.read(*pieces[0])
    tolerance = time_tolerance(first)
    horizon, times = _extent(slices, pieces, options)
    model = trained.forecast_model(device)
    sums = ScoreSums(model.output_names, _origin(first, model.output_names), model.state_names)

    def forecast_of(piece: tuple[int, int]) -> Forecast:
        data = slices.read(*piece, truth=True)
        windows = replace(plan_windows(data, horizon=options.horizon), horizon=horizon, tolerance=tolerance)
        found = rollout(
            model,
            data,
            windows,
            init_window=options.init_window,
            rtol=options.rtol,
            atol=options.atol,
            should_stop=report.should_stop,
        )
        sums.add(found)
        return found

    def written(piece: tuple[int, int]) -> Content:
        predicted = forecast_of(piece).trajectories
        predicted = replace(predicted, provenance=record, history=history_line(record, earlier))
        return stored(predicted, display(str(output)))

    if output is None:
        own = pieces[team.rank :: team.size]
        for number, piece in enumerate(own, 1):
            forecast_of(piece)
            report.progress(Tick("forecast", number, len(own)))
    else:
        sizes = {"traj": len(slices), "obs": times, **_input_times(slices, pieces, options)}
        _write(in_turn(pieces, written, team), output, sizes, force, team, len(pieces), report)
    sums.over(team)
    return _report(sums, horizon, slices, options, output)


def _write(
    contents: Iterator[Content],
    output: str,
    sizes: dict[str, int],
    force: bool,
    team: Team,
    pieces: int,
    report: Reporter,
) -> None:
    """The lead writes, the others send."""

    def told() -> Iterator[Content]:
        for number, content in enumerate(contents, 1):
            report.progress(Tick("forecast", number, pieces))
            yield content

    if team.is_lead:
        save_slices(output, told(), sizes, force)
        return
    for _ in told():
        pass


def _extent(slices: TrajectorySlices, pieces: list[tuple[int, int]], options: EvaluateOptions) -> tuple[float, int]:
    """The longest forecast, and the forecast times of all: of the recordings' own, where nothing else is asked for."""
    if options.horizon is None and slices.row_size.min() > 0:
        return float(slices.spans(pieces).max()), int(slices.row_size.sum())
    longest, times = 0.0, 0
    for piece in pieces:
        windows: Windows = plan_windows(slices.read(*piece), horizon=options.horizon)
        longest, times = max(longest, windows.horizon), times + int(windows.time.size)
    return longest, times


def _input_times(slices: TrajectorySlices, pieces: list[tuple[int, int]], options: EvaluateOptions) -> dict[str, int]:
    """Input samples that decide the forecasts (``uobs``), where inputs are sampled at all."""
    if slices.shell.inputs.sampled is None:
        return {}
    times = 0
    for piece in pieces:
        data = slices.read(*piece)
        windows = plan_windows(data, horizon=options.horizon)
        end = windows.time[np.cumsum(windows.row_size) - 1]
        cut = cut_inputs(data.inputs, windows.owner, windows.start, end).sampled
        times += 0 if cut is None else cut.time.size
    return {"uobs": times}


def _origin(data: Trajectories, names: tuple[str, ...]) -> np.ndarray:
    """A value near the mean of each channel; 0 where it is not measured."""
    origin = np.zeros(len(names))
    for i, name in enumerate(names):
        if name in data.output_names:
            column = data.outputs[:, data.output_names.index(name)]
            known = column[np.isfinite(column)]
            origin[i] = known.mean() if known.size else 0.0
    return origin


def _report(
    sums: ScoreSums, horizon: float, slices: TrajectorySlices, options: EvaluateOptions, output: str | None
) -> EvaluationReport:
    shell, scores = slices.shell, sums.scores(horizon)
    return EvaluationReport(
        scores=scores,
        trajectories=len(slices),
        windows=sums.forecasts,
        diverged=sums.forecasts - sums.outcomes["ok"],
        horizon=horizon,
        time_unit=shell.time_unit,
        units={name: shell.units.get(name, "") for name in sums.names},
        initial_state=start_words(sums.initial_state),
        initial_states=sums.initial_state,
        integrator=options.integrator,
        evaluations=int(sums.sums["evaluations"][0]),
        output=output,
    )
