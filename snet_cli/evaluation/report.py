"""What `snet evaluate` says: one object of numbers for scripts, and its lines for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from snet_cli.evaluation.coverage import Coverage
from snet_cli.evaluation.metrics import Scores, score
from snet_cli.forecasting.flow import Integrator
from snet_cli.forecasting.initial_state import KINDS
from snet_cli.forecasting.rollout import Forecast


class Relaxed(NamedTuple):
    """J, R and L of the model on the data without integration (`--relaxed`); None where not finite.

    Attributes
    ----------
    total, residual, misfit : float or None
    """

    total: float | None
    residual: float | None
    misfit: float | None


@dataclass(frozen=True)
class EvaluationReport:
    """The result of one evaluation.

    Attributes
    ----------
    scores : Scores
    trajectories : int
        Trajectories of the data.
    windows : int
        Forecasts; with `--from-every` several of a trajectory.
    diverged : int
        Forecasts that did not reach their end; `outcomes` says why.
    horizon : float
        Length of the longest forecast.
    time_unit : str
    units : dict of str to str
        Of the channels.
    initial_state : str
        Where initial states came from, in the words of the rule, joined by "+" where several did.
    initial_states : dict of str to str
        The same state by state.
    integrator : str
    evaluations : int
        Calls of f, each on a batch.
    relaxed : Relaxed or None
    bands : Coverage or None
    seconds : float or None
    output : str or None
    pictures : tuple of str
    """

    scores: Scores
    trajectories: int
    windows: int
    diverged: int
    horizon: float
    time_unit: str
    units: dict[str, str]
    initial_state: str
    initial_states: dict[str, str]
    integrator: Integrator
    evaluations: int
    relaxed: Relaxed | None = None
    bands: Coverage | None = None
    seconds: float | None = None
    output: str | None = None
    pictures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object of DESIGN, section 4; all fixed keys, None where there is no number."""
        s = self.scores
        return {
            "command": "evaluate",
            "trajectories": self.trajectories,
            "windows": self.windows,
            "diverged": self.diverged,
            "outcomes": dict(s.outcomes),
            "horizon": self.horizon,
            "time_unit": self.time_unit,
            "units": dict(self.units),
            "initial_state": self.initial_state,
            "initial_states": dict(self.initial_states),
            "mse": s.mse,
            "mse_true": s.mse_true,
            "rmse": s.rmse,
            "nrmse": s.nrmse,
            "fit_percent": s.fit_percent,
            "channels": {name: asdict(channel) for name, channel in s.channels.items()},
            "by_horizon": [{"t": each.t, "rmse": dict(each.rmse)} for each in s.by_horizon],
            "scored_values": s.scored_values,
            "relaxed": None if self.relaxed is None else self.relaxed._asdict(),
            "bands": None if self.bands is None else self.bands.to_json(),
            "integrator": self.integrator,
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "output": self.output,
            "pictures": list(self.pictures),
        }

    def summary_rows(self) -> list[tuple[str, str]]:
        """Label and text of each line above the table of channels, for people."""
        s = self.scores
        forecasts = (
            f"{self.windows}"
            if self.windows == self.trajectories
            else (f"{self.windows} from {self.trajectories} trajectories")
        )
        failed = [f"{number} {word}" for word, number in s.outcomes.items() if number and word != "ok"]
        rows = [
            ("forecasts", forecasts + (f", of which {', '.join(failed)}" if failed else "")),
            ("horizon", f"{self.horizon:.6g} {self.time_unit}".rstrip()),
            ("start", _describe_start(self.initial_states)),
        ]
        if s.scored_values == 0:
            reason = "every forecast failed" if self.windows and self.diverged == self.windows else "nothing measured"
            return [*rows, ("scores", f"none: {reason}")]
        rows.append(("mse", number_text(s.mse)))
        if s.mse_true is not None:
            rows.append(("mse against the truth", number_text(s.mse_true)))
        rows.append(("fit", "-" if s.fit_percent is None else f"{s.fit_percent:.2f} %"))
        if self.relaxed is not None:
            rows.append(("residual R without integration", number_text(self.relaxed.residual)))
        return rows

    def channel_rows(self) -> list[tuple[str, ...]]:
        """Table of the channels for people, its header first: name, unit, rmse, fit, largest error."""
        table: list[tuple[str, ...]] = [("channel", "unit", "rmse", "fit %", "largest error")]
        for name, c in self.scores.channels.items():
            fit = "-" if c.fit_percent is None else f"{c.fit_percent:.2f}"
            table.append((name, self.units.get(name, ""), number_text(c.rmse), fit, number_text(c.max_abs)))
        return table


def number_text(value: float | None) -> str:
    """Four digits, or a dash where there is no number."""
    return "-" if value is None else f"{value:.4g}"


def _describe_start(initial_states: dict[str, str]) -> str:
    """States by the source of their start: ``first-sample; mean-start: h1``."""
    groups: dict[str, list[str]] = {}
    for state, word in initial_states.items():
        groups.setdefault(word, []).append(state)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{word}: {', '.join(states)}" for word, states in groups.items())


def start_words(initial_state: dict[str, str]) -> str:
    """Words for where initial states came from, of all states together, joined by "+"."""
    words = {word for joined in initial_state.values() for word in joined.split("+")}
    return "+".join(kind for kind in KINDS if kind in words)


def build_report(
    forecast: Forecast,
    *,
    integrator: Integrator,
    trajectories: int | None = None,
    relaxed: Relaxed | None = None,
    bands: Coverage | None = None,
    seconds: float | None = None,
    output: str | None = None,
    pictures: tuple[str, ...] = (),
) -> EvaluationReport:
    """Score a forecast and put everything that is told about it in one place.

    Parameters
    ----------
    forecast : Forecast
    integrator : {"dopri5", "euler"}
    trajectories : int, optional
        Trajectories of the data; by default those that any forecast is of.
    relaxed : Relaxed, optional
    bands : Coverage, optional
    seconds : float, optional
    output : str, optional
    pictures : tuple of str
    """
    names = forecast.observed.output_names
    return EvaluationReport(
        scores=score(forecast),
        trajectories=len(set(forecast.windows.owner.tolist())) if trajectories is None else trajectories,
        windows=len(forecast),
        diverged=forecast.diverged,
        horizon=forecast.windows.horizon,
        time_unit=forecast.observed.time_unit,
        units={name: forecast.observed.units.get(name, "") for name in names},
        initial_state=start_words(forecast.initial_state),
        initial_states=forecast.initial_state,
        integrator=integrator,
        evaluations=forecast.evaluations,
        relaxed=relaxed,
        bands=bands,
        seconds=seconds,
        output=output,
        pictures=pictures,
    )
