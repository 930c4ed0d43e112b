"""`snet evaluate` on data that is larger than the memory: forecast, scored and written a slice at a time.

Scores, coverage and the spread of ensembles are sums over slices. Every process reads every so many-th slice; the lead
writes the forecasts, where they are wanted, in order, and draws pictures of some that are evenly spread over its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.content import Array, Content, open_in_place
from snet_cli.data.options import CommonOptions
from snet_cli.data.outputs import write_in_place
from snet_cli.data.posterior import Posterior
from snet_cli.data.slice_writer import save_slices, stored
from snet_cli.data.storage import display
from snet_cli.data.trajectories import SPLIT_NAMES, Trajectories
from snet_cli.data.trajectory_slices import TrajectorySlices, open_slices
from snet_cli.distributed import Team
from snet_cli.errors import DataError, SnetError, UsageError
from snet_cli.evaluation.coverage import CoverageSums
from snet_cli.evaluation.csv_out import forecast_csv
from snet_cli.evaluation.ensemble import EnsembleSums
from snet_cli.evaluation.options import EvaluateOptions
from snet_cli.evaluation.report import EvaluationReport, start_words
from snet_cli.evaluation.scores_sum import ScoreSums
from snet_cli.forecasting.bands import Bands, Numbers, joined_bands, with_bands
from snet_cli.forecasting.choice import chosen as chosen_forecasts
from snet_cli.forecasting.choice import in_one_piece
from snet_cli.forecasting.rollout import Forecast, rollout
from snet_cli.workflows import memory
from snet_cli.workflows.bands import BandMaker, band_maker, band_notes
from snet_cli.workflows.forecast_plan import ForecastPlan, plan_forecasts
from snet_cli.workflows.provenance import history_line
from snet_cli.workflows.reporter import Reporter, Tick
from snet_cli.workflows.sliced_team import in_turn
from snet_cli.workflows.trained_model import TrainedModel

IntArray = NDArray[np.int64]

PICTURED, PICTURED_TIMES = 1_000, 200_000
"""Forecasts that pictures show, and their forecast times, at most."""

CSV = "csv"
"""The array in which text travels from a process to the lead."""


def needs_slices(test: str, states: int, options: EvaluateOptions, common: CommonOptions, team: Team) -> bool:
    """Whether the forecasts of this file do not fit into the memory all at once.

    Judged by its header alone; forecasts from many starts are laid out, a slice at a time.
    """
    large = False
    try:
        with open_in_place(test, display(test), DataError, common.max_bytes) as content:
            rows = content.arrays["time"].shape[0]
        if options.from_every is not None:
            with open_slices(test, max_bytes=common.max_bytes) as slices:
                rows = max(rows, plan_forecasts(chosen(slices, options.split), options, False).times)
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


def check_options(options: EvaluateOptions) -> None:
    """Refuse what needs all forecasts at once.

    Raises
    ------
    UsageError
    """
    asked = ["--relaxed"] if options.relaxed else []
    asked += ["--integrator euler"] if options.integrator == "euler" else []
    if asked:
        raise UsageError(
            f"the forecasts do not fit into the memory at once, as {asked[0]} needs them.",
            "Leave it out, evaluate a part of the file (--split), or raise --max-memory.",
        )


@dataclass(frozen=True)
class SlicedEvaluation:
    """What is forecast, and with what.

    Attributes
    ----------
    trained : TrainedModel
    members : sequence of TrainedModel
        The models of an ensemble, none for a single one.
    posterior : Posterior or None
        What bands are drawn from, where they are wanted.
    slices : TrajectorySlices
    options, common, device, report, team
    """

    trained: TrainedModel
    members: Sequence[TrainedModel]
    posterior: Posterior | None
    slices: TrajectorySlices
    options: EvaluateOptions
    common: CommonOptions
    device: torch.device
    report: Reporter
    team: Team


@dataclass
class Pictured:
    """Some of the forecasts, with their bands, evenly spread over all that the lead makes."""

    total: int
    forecasts: list[Forecast] = field(default_factory=list)
    bands: list[Bands] = field(default_factory=list)

    def together(self) -> tuple[Forecast, Bands | None]:
        """As one piece."""
        return in_one_piece(self.forecasts), joined_bands(self.bands) if self.bands else None


@dataclass(frozen=True)
class SlicedResult:
    """What was found: the report, the scores of an ensemble, and some forecasts where pictures are wanted."""

    report: EvaluationReport
    ensemble: dict[str, Any] | None
    pictured: Pictured | None


def evaluate_in_slices(
    run: SlicedEvaluation, output: str | None, record: dict[str, Any], earlier: tuple[str, ...], force: bool
) -> SlicedResult:
    """Forecast, score, and write where an output is named.

    Parameters
    ----------
    record : dict
        Provenance of the output.
    earlier : tuple of str
        Histories of model and data.
    """
    team, plan = run.team, plan_forecasts(run.slices, run.options, output is not None)
    work = _Work(run, plan)
    pieces = list(range(len(plan.pieces)))
    if output is None:
        own = pieces[team.rank :: team.size]
        for number, piece in enumerate(own, 1):
            work.forecast(piece)
            run.report.progress(Tick("forecast", number, len(own)))
    elif output.lower().endswith(".csv"):
        texts = in_turn(pieces, lambda piece: _as_text(*work.forecast(piece), piece == 0), team)
        _write_text(_told(texts, run, len(pieces)), output, force, team)
    else:
        part = partial(_as_file, display(output), record, earlier, _any_init_window(run))
        contents = in_turn(pieces, lambda piece: part(*work.forecast(piece)), team)
        _write(_told(contents, run, len(pieces)), output, plan, force, team)
    return work.result(output)


class _Work:
    """The sums over the slices that this process forecasts."""

    def __init__(self, run: SlicedEvaluation, plan: ForecastPlan) -> None:
        self.run, self.plan = run, plan
        self.model = run.trained.forecast_model(run.device)
        names = self.model.output_names
        first = run.slices.read(*plan.pieces[0])
        self.scores = ScoreSums(names, _origin(first, names), self.model.state_names)
        self.coverage = CoverageSums(names)
        self.members = [member.forecast_model(run.device) for member in run.members]
        self.ensemble = EnsembleSums(len(self.members), names)
        self.bands = self._bands()
        self.pictured = Pictured(plan.forecasts) if run.options.plot is not None and run.team.is_lead else None

    def _bands(self) -> BandMaker | None:
        run = self.run
        if run.posterior is None:
            return None
        place = run.team.place
        return band_maker(run.trained, run.posterior, run.options, run.common, run.device, run.report, place)

    def forecast(self, piece: int) -> tuple[Forecast, Bands | None]:
        """The forecasts of a slice, with their bands where these are wanted."""
        run, plan, options = self.run, self.plan, self.run.options
        data = run.slices.read(*plan.pieces[piece], truth=True)
        windows = plan.windows(data, options)

        def of(model: Any) -> Forecast:
            return rollout(
                model,
                data,
                windows,
                init_window=options.init_window,
                rtol=options.rtol,
                atol=options.atol,
                should_stop=run.report.should_stop,
            )

        found, bands = of(self.model), None
        self.scores.add(found)
        if self.members:
            self.ensemble.add([of(member) for member in self.members])
        numbers = Numbers(
            plan.first_trajectory[piece] + np.arange(len(data)), plan.first_forecast[piece] + np.arange(len(windows))
        )
        if self.bands is not None:
            bands = self.bands.of(data, windows, numbers)
            self.coverage.add(found, bands)
        if self.pictured is not None:
            self._keep(self.pictured, found, bands, numbers.forecasts)
        return found, bands

    def _keep(self, pictured: Pictured, forecast: Forecast, bands: Bands | None, numbers: IntArray) -> None:
        wanted = np.flatnonzero(np.isin(numbers, _spread_over(self.plan)))
        if wanted.size:
            few, rows = chosen_forecasts(forecast, wanted)
            pictured.forecasts.append(few)
            if bands is not None:
                pictured.bands.append(bands.at(rows))

    def result(self, output: str | None) -> SlicedResult:
        """The sums of all processes."""
        run, plan, team = self.run, self.plan, self.run.team
        self.scores.over(team)
        shell, found = run.slices.shell, self.scores
        coverage = None
        if self.bands is not None:
            self.coverage.over(team)
            coverage = self.coverage.coverage(plan.horizon)
            for note in band_notes(found.initial_state, coverage.failed, found.forecasts, coverage.members):
                run.report.note(note)
        if self.members:
            self.ensemble.over(team)
        report = EvaluationReport(
            scores=found.scores(plan.horizon),
            trajectories=len(run.slices),
            windows=found.forecasts,
            diverged=found.forecasts - found.outcomes["ok"],
            horizon=plan.horizon,
            time_unit=shell.time_unit,
            units={name: shell.units.get(name, "") for name in found.names},
            initial_state=start_words(found.initial_state),
            initial_states=found.initial_state,
            integrator=run.options.integrator,
            evaluations=int(found.sums["evaluations"][0]),
            bands=coverage,
            output=output,
        )
        return SlicedResult(report, self.ensemble.scores().to_json() if self.members else None, self.pictured)


def _spread_over(plan: ForecastPlan) -> IntArray:
    """Numbers of forecasts, evenly spread over all, that are few enough for pictures."""
    most = min(PICTURED, max(6, PICTURED_TIMES * plan.forecasts // max(plan.times, 1)), plan.forecasts)
    return np.unique(np.linspace(0, plan.forecasts - 1, most).round().astype(np.int64))


def _any_init_window(run: SlicedEvaluation) -> bool:
    """Whether any forecast has an init window, so that all slices of the output tell theirs."""
    stated, found = run.options.init_window, run.slices.content.arrays.get("init_window")
    if stated is not None or found is None:
        return bool(stated)
    return bool(found.read()[run.slices.kept].any())


def _as_file(
    label: str,
    record: dict[str, Any],
    earlier: tuple[str, ...],
    init_window: bool,
    forecast: Forecast,
    bands: Bands | None,
) -> Content:
    """Forecasts as a part of a trajectory file."""
    predicted = forecast.trajectories if bands is None else with_bands(forecast.trajectories, bands)
    if init_window and predicted.init_window is None:
        predicted = replace(predicted, init_window=np.zeros(len(predicted), np.int64))
    return stored(replace(predicted, provenance=record, history=history_line(record, earlier)), label)


def _as_text(forecast: Forecast, bands: Bands | None, first: bool) -> Content:
    """Forecasts as a part of a table."""
    return Content({}, {CSV: Array.of(np.frombuffer(forecast_csv(forecast, bands, header=first), np.uint8))})


def _told(contents: Iterator[Content], run: SlicedEvaluation, pieces: int) -> Iterator[Content]:
    for number, content in enumerate(contents, 1):
        run.report.progress(Tick("forecast", number, pieces))
        yield content


def _write(contents: Iterator[Content], output: str, plan: ForecastPlan, force: bool, team: Team) -> None:
    """The lead writes, the others send."""
    if team.is_lead:
        save_slices(output, contents, plan.sizes, force)
        return
    for _ in contents:
        pass


def _write_text(contents: Iterator[Content], output: str, force: bool, team: Team) -> None:
    """The same for a table."""

    def fill(descriptor: int, temporary: str) -> None:
        with os.fdopen(os.dup(descriptor), "wb") as stream:
            for content in contents:
                stream.write(content.arrays[CSV].read().tobytes())

    if team.is_lead:
        write_in_place(output, fill, force)
        return
    for _ in contents:
        pass


def _origin(data: Trajectories, names: tuple[str, ...]) -> np.ndarray:
    """A value near the mean of each channel; 0 where it is not measured."""
    origin = np.zeros(len(names))
    for i, name in enumerate(names):
        if name in data.output_names:
            column = data.outputs[:, data.output_names.index(name)]
            known = column[np.isfinite(column)]
            origin[i] = known.mean() if known.size else 0.0
    return origin
