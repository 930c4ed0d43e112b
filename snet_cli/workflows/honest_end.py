"""The honest end of every fit: the model is integrated over the horizon of its data, the same way for every method.

A small residual does not promise a good forecast; only a rollout tells. Its error stands beside the loss, and where it
is far above what the method's own trajectories leave at the samples, a sentence says why, as far as can be told:

    unstable or stiff        forecasts leave the range of the data, or need steps beyond all measure
    order too low            the residual between the nodes is far above that at them
    γ too large, or unfit    x is no solution of the model: the residual at the nodes is as large as the error itself
    its own solver           methods that integrate while they train, on steps that are too long
    growth                   none of these: small residuals that grow along the forecast
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.merging import merge
from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import ALONE, Team
from snet_cli.errors import DataError
from snet_cli.forecasting.choice import chosen
from snet_cli.forecasting.rollout import Forecast, rollout
from snet_cli.forecasting.windows import Windows, plan_windows, time_tolerance
from snet_cli.integration import Tolerances
from snet_cli.spectral.mesh import Mesh
from snet_cli.spectral.refinement import prolong, raise_order
from snet_cli.training.joint import Joint
from snet_cli.training.loop import FitResult
from snet_cli.workflows.remesh import rate_function
from snet_cli.workflows.reporter import Reporter
from snet_cli.workflows.trained_model import TrainedModel
from snet_cli.workflows.training_plan import Training
from snet_cli.workflows.training_setup import Setup

FloatArray = NDArray[np.float64]

FORECAST = Tolerances()
"""Those of any forecast."""

MOST_TOGETHER = 2_000_000
"""Numbers up to which data sets are forecast as one, of which there is then a copy."""

SAME_CLOCK = 1.1
"""Sampling intervals relative to each other up to which times of both are told apart by one tolerance."""

STOPPED_SECONDS = 0.3
"""Time that is left for a rollout once the user asks to stop: the model is written, its score can wait."""

APART, LEAST = 3.0, 0.05
"""A rollout disagrees with the loss where its error is so many times that of the method's own trajectories, and at
least this part of the data's standard deviation."""

BLURRED = 1.5
"""... or so many times, where the order is too low for the method's own trajectories to follow the samples either."""

BETWEEN = 4.0
"""Mean squared residual between the nodes, relative to that at them, from which on the order is too low; f of a smooth
model on a series that resolves it gives 1 to 2."""

MOST_TOLD = 1000
"""Ratio of residuals above which the number says nothing: at the nodes they may vanish."""


@dataclass(frozen=True)
class RolloutScore:
    """What a rollout over recorded data says.

    Attributes
    ----------
    mse : float or None
        Mean squared error against the recorded samples; None if all forecasts diverged.
    diverged : int
        Forecasts that do not reach their end.
    relative : float or None
        Root mean square over the values of error / the channel's standard deviation.
    outcomes : mapping
        Forecasts by outcome, those apart that only ran out of time.
    """

    mse: float | None
    diverged: int
    relative: float | None = None
    outcomes: Mapping[str, int] = field(default_factory=dict)


def rollout_score(
    trained: TrainedModel,
    data: Trajectories,
    device: torch.device,
    report: Reporter,
    seconds: float,
    team: Team = ALONE,
    tolerances: Tolerances = FORECAST,
) -> RolloutScore:
    """Forecast every trajectory from its start over its whole recording, and score it.

    Parameters
    ----------
    seconds : float
        Time that this may take: a model that explodes must not cost more than its training did. Forecasts that are
        still under way then count as not having reached their end.
    team : Team
        The processes that share the forecasts.
    tolerances : Tolerances
        Its `rtol` and `atol`.
    """
    forecast, late = _forecast(trained, data, device, report, seconds, team, tolerances)
    return _score(forecast, late, report)


def rollout_scores(
    trained: TrainedModel,
    parts: Sequence[Trajectories | None],
    device: torch.device,
    report: Reporter,
    seconds: float,
    team: Team = ALONE,
) -> list[RolloutScore | None]:
    """`rollout_score` of data sets, None of None, in one batch: its steps cost hardly more than those of one of them.

    Where they differ in channels, system or clock, or are large, they are forecast one after the other.
    """
    given = [part for part in parts if part is not None]
    if _go_together(given):
        try:
            judged = iter(_scored_together(trained, given, device, report, seconds, team))
            return [None if part is None else next(judged) for part in parts]
        except DataError:  # other channels; or an error that says what it is about where it comes from one of them
            pass
    return [None if part is None else rollout_score(trained, part, device, report, seconds, team) for part in parts]


def _go_together(parts: Sequence[Trajectories]) -> bool:
    """Whether there are several that one batch would forecast as each alone, and a copy of them is small."""
    if len(parts) < 2 or sum(map(_size, parts)) > MOST_TOGETHER:
        return False
    first, slack = parts[0], [time_tolerance(part) for part in parts]
    same = all(p.system == first.system and p.parameters.keys() == first.parameters.keys() for p in parts)
    return same and max(slack) <= SAME_CLOCK * min(slack)


def _scored_together(
    trained: TrainedModel,
    parts: Sequence[Trajectories],
    device: torch.device,
    report: Reporter,
    seconds: float,
    team: Team,
) -> list[RolloutScore]:
    """The scores of data sets from one batch.

    Raises
    ------
    DataError
        If they do not describe the same channels, or the inputs of one do not cover it.
    """
    ends = np.cumsum([len(part) for part in parts])
    whole, _ = merge(parts, [""] * len(parts), [str(number) for number in range(ends[-1])])
    windows = plan_windows(whole, tolerance=max(map(time_tolerance, parts)))
    forecast, late = _forecast(trained, whole, device, report, seconds, team, FORECAST, windows)
    found = [chosen(forecast, np.arange(end - len(part), end))[0] for part, end in zip(parts, ends, strict=True)]
    return [_score(own, late and "budget" in own.outcome, report) for own in found]


def _size(data: Trajectories) -> int:
    """Numbers of a data set."""
    sampled, fourier = data.inputs.sampled, data.inputs.fourier
    size = data.outputs.size + (0 if data.truth is None else data.truth.size)
    size += 0 if sampled is None else sampled.time.size + sampled.values.size
    return size + (0 if fourier is None else 2 * fourier.cos.size)


def _forecast(
    trained: TrainedModel,
    data: Trajectories,
    device: torch.device,
    report: Reporter,
    seconds: float,
    team: Team,
    tolerances: Tolerances,
    windows: Windows | None = None,
) -> tuple[Forecast, bool]:
    """The forecasts of a data set, and whether the time was up before all had ended."""
    end, asked = time.perf_counter() + seconds, False

    def time_is_up() -> bool:
        nonlocal end, asked
        if not asked and report.should_stop():
            end, asked = min(end, time.perf_counter() + STOPPED_SECONDS), True
        return time.perf_counter() > end

    forecast = rollout(
        trained.forecast_model(device),
        data,
        windows,
        rtol=tolerances.rtol,
        atol=tolerances.atol,
        should_stop=time_is_up,
        team=team,
    )
    return forecast, time.perf_counter() > end


def _score(forecast: Forecast, late: bool, report: Reporter) -> RolloutScore:
    """What a forecast says; `late` where its time was up."""
    if forecast.diverged:
        why = " (its time was up)" if late else ""
        report.note(
            f"{forecast.diverged} of {len(forecast)} forecasts over the data's own horizon do not reach its "
            f"end{why}; the scores are over the rest. Shorter forecasts may still be good: snet evaluate --horizon."
        )
    words = {word: forecast.outcome.count(word) for word in set(forecast.outcome) if not late or word != "budget"}
    return RolloutScore(forecast.mse, forecast.diverged, _relative(forecast.errors, _spread(forecast)), words)


def _spread(forecast: Forecast) -> FloatArray:
    return channel_spread(forecast.observed.outputs)


def channel_spread(outputs: FloatArray) -> FloatArray:
    """Standard deviation of each channel's measured values, shape (d,); 1 where it does not move."""
    held = np.isfinite(outputs)
    count = np.maximum(held.sum(0), 1)
    mean = np.where(held, outputs, 0.0).sum(0) / count
    spread = np.sqrt((np.where(held, outputs - mean, 0.0) ** 2).sum(0) / count)
    return np.where(spread > 0, spread, 1.0)


def _relative(errors: FloatArray, spread: FloatArray) -> float | None:
    """Root mean square of errors (obs, d) in units of the channels; NaN does not count; None where nothing does."""
    square = (errors / spread) ** 2
    known = np.isfinite(square)
    return math.sqrt(float(square[known].mean())) if known.any() else None


def disagreement(
    setup: Setup, training: Training, mesh: Mesh, result: FitResult, data: Trajectories, score: RolloutScore
) -> str | None:
    """Why the rollout over the training data is far worse than the loss promised; None where it is not.

    Parameters
    ----------
    mesh : Mesh
        The method's discretisation at the end.
    score : RolloutScore
        Of the training data.
    """
    nodes = _nodes(setup, training)
    own = _own_error(setup, mesh, nodes, result, data)

    def residuals() -> tuple[float, float]:
        return (math.nan, math.nan) if nodes is None else residuals_between(setup, mesh, nodes, data)

    return explained(setup, training, mesh, own, residuals, len(data), score)


def explained(
    setup: Setup,
    training: Training,
    mesh: Mesh,
    own: float | None,
    residuals: Callable[[], tuple[float, float]],
    trajectories: int,
    score: RolloutScore,
) -> str | None:
    """The same from numbers.

    Parameters
    ----------
    own : float or None
        The error that the method saw itself, in standard deviations.
    residuals : callable
        R at the nodes, and between them; NaN where there are none.
    trajectories : int
        How many were forecast.
    """
    failed = sum(score.outcomes.get(word, 0) for word in ("diverged", "step-underflow", "budget"))
    if own is None or not math.isfinite(own) or (score.relative is None and not failed):
        return None  # nothing to compare, or only time was up
    error_now = math.inf if score.relative is None else score.relative
    if not failed and error_now <= max(BLURRED * own, LEAST):
        return None
    at, between = residuals()
    if not failed and error_now <= APART * own and not between > BETWEEN * at:
        return None
    error = "no forecast reaches its end" if score.relative is None else f"the rollout's is {score.relative:.2g}"
    facts = f"the loss promises an error of {own:.2g} standard deviations at the samples, {error}"
    return f"{facts}: {_reason(setup, training, mesh, (at, between), trajectories, score)}"


def _nodes(setup: Setup, training: Training) -> FloatArray | None:
    """The method's own trajectories, shape (N, P, n): those of step 0 unless it moves them; None without a mesh."""
    nodes = getattr(training.method, "nodes", None)
    if nodes is not None:
        found: FloatArray = training.team.gather(nodes.detach()).cpu().numpy()
        return found
    return setup.step_zero.nodes if training.method.name == "delta" else None


def _own_error(
    setup: Setup, mesh: Mesh, nodes: FloatArray | None, result: FitResult, data: Trajectories
) -> float | None:
    """The error that the method saw itself, in standard deviations: of its series, or of its own integration."""
    if nodes is None:
        return math.sqrt(result.last.misfit / len(setup.layout.outputs)) if result.last.misfit >= 0 else None
    columns = [data.output_names.index(name) for name in setup.layout.outputs]
    outputs = data.outputs[:, columns]
    at_samples = mesh.evaluate(nodes, data.trajectory_of_row(), data.time)
    return _relative(at_samples @ setup.layout.observation.T - outputs, channel_spread(outputs))


def _reason(
    setup: Setup,
    training: Training,
    mesh: Mesh,
    residuals: tuple[float, float],
    total: int,
    score: RolloutScore,
) -> str:
    """The first cause in the order of the module docstring that the numbers point to, and the remedy."""
    at, between = residuals
    coarse = between > BETWEEN * at
    remedy = f"raise --order (now {mesh.basis.order}) or --elements (now {mesh.elements_of_longest})"
    ratio = f"{math.sqrt(between / at):.2g} times" if between < MOST_TOLD**2 * at else f"over {MOST_TOLD} times"
    low = f"the residual between the nodes is {ratio} that at them"
    if diverged := score.outcomes.get("diverged", 0):
        also = f" The order is too low as well: {low}; {remedy}." if coarse else ""
        return (
            f"the model is unstable where the data is not, {diverged} of {total} forecasts run away. Give it more data "
            f"or a smaller network, or try --method joint or another --seed.{also}"
        )
    if stiff := score.outcomes.get("step-underflow", 0) + score.outcomes.get("budget", 0):
        return (
            f"the model is stiff, {stiff} of {total} forecasts need steps too short to go on. Use a smoother or "
            "smaller network, or fewer iterations."
        )
    if math.isnan(at):
        return "its own integration while training took steps that are too long. Try a method with an adaptive solver."
    if coarse:
        return f"the order is too low, {low}. {remedy[0].upper()}{remedy[1:]}."
    own = math.sqrt(at / len(setup.layout.states))
    if own > LEAST:
        unmet = f"its trajectories are no solutions of the model, whose rates miss theirs by {own:.2g} of their size"
        warming_up = isinstance(training.method, Joint) and not training.method.moved
        if getattr(training.method, "gamma", None) is not None and not warming_up:
            return f"gamma is too large or the model too small, {unmet}. Lower --gamma, or use a larger network."
        other = "" if warming_up else ", or let the trajectories move too: --method joint"
        return f"{unmet}. Train longer{other}."
    other = "" if isinstance(training.method, Joint) else ", or try --method joint"
    return f"small residuals grow along the forecast. Forecast shorter, train longer{other}."


def residuals_between(setup: Setup, mesh: Mesh, nodes: FloatArray, data: Trajectories) -> tuple[float, float]:
    """R at the nodes, and on twice as many, between them."""
    rates = rate_function(setup.trained.model, data, setup.trained.inputs, setup.problem.t.device)
    scale = setup.problem.scale.cpu().numpy()
    finer = raise_order(mesh, min(2 * mesh.basis.order, 100))
    fine = prolong(mesh, nodes, finer)
    return _residual(mesh, nodes, rates(mesh, nodes), scale), _residual(finer, fine, rates(finer, fine), scale)


def _residual(mesh: Mesh, nodes: FloatArray, rates: FloatArray, scale: FloatArray) -> float:
    """R at the nodes of a mesh: the mean over time of |s ⊙ (ẋ - f)|²."""
    slope = np.einsum("qj,ejn->eqn", mesh.basis.differentiation, nodes) * (2.0 / mesh.width)[:, None, None]
    share = mesh.horizon / mesh.horizon.sum()
    weight = mesh.node_weights() * share[mesh.trajectory][:, None]
    return float((weight[:, :, None] * (scale * (slope - rates)) ** 2).sum())
