"""Scores of forecasts (`evaluation.metrics`) from sums over slices, for data that is larger than the memory.

Every score but the largest error is a mean: of squared errors, of measured values and of their squares (each channel
less a value near its mean, so that nothing cancels). Slices and processes add up, and the whole is the same up to
rounding.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.distributed import Team
from snet_cli.evaluation.metrics import BINS, OUTCOMES, ChannelScores, HorizonBin, Scores, finite, horizon_bins
from snet_cli.forecasting.initial_state import KINDS
from snet_cli.forecasting.rollout import Forecast

FloatArray = NDArray[np.float64]


class ScoreSums:
    """What the scores of all forecasts are made of.

    Parameters
    ----------
    names : tuple of str
        Channels.
    origin : ndarray, shape (d,)
        A value near the mean of each channel.
    states : tuple of str
    """

    def __init__(self, names: tuple[str, ...], origin: FloatArray, states: tuple[str, ...]) -> None:
        d = len(names)
        self.names, self.origin, self.states = names, origin, states
        self.outcomes: Counter[str] = Counter()
        self.kinds = np.zeros((len(states), len(KINDS)))
        self.largest = np.zeros(d)
        self.magnitude = np.zeros(d)
        self.sums = {
            "count": np.zeros(d),
            "square": np.zeros(d),
            "first": np.zeros(d),
            "second": np.zeros(d),
            "true": np.zeros(2),
            "bin_count": np.zeros((BINS, d)),
            "bin_square": np.zeros((BINS, d)),
            "evaluations": np.zeros(1),
        }

    def add(self, forecast: Forecast) -> None:
        """Take the forecasts of a slice; its windows know the horizon and the tolerance of the whole."""
        errors, measured = forecast.errors, forecast.observed.outputs
        known = np.isfinite(errors)
        e = np.where(known, errors, 0.0)
        y = np.where(known, measured - self.origin, 0.0)
        sums = self.sums
        sums["count"] += known.sum(0)
        sums["first"] += y.sum(0)
        with np.errstate(over="ignore"):
            sums["square"] += (e**2).sum(0)
            sums["second"] += (y**2).sum(0)
            bins = horizon_bins(forecast)
            inside = bins >= 0
            np.add.at(sums["bin_square"], bins[inside], e[inside] ** 2)
        np.add.at(sums["bin_count"], bins[inside], known[inside].astype(np.float64))
        self.largest = np.maximum(self.largest, np.abs(e).max(0, initial=0.0))
        self.magnitude = np.maximum(self.magnitude, np.abs(np.where(known, measured, 0.0)).max(0, initial=0.0))
        if forecast.true_errors is not None:
            true = forecast.true_errors[np.isfinite(forecast.true_errors)]
            with np.errstate(over="ignore"):
                sums["true"] += np.array([float((true**2).sum()), true.size])
        self.outcomes.update(forecast.outcome)
        for k in range(len(KINDS)):
            self.kinds[:, k] += (forecast.start_kind == k).sum(0)
        sums["evaluations"] += forecast.evaluations

    def over(self, team: Team) -> None:
        """Add up what the processes of a team have; every one of them has the whole then."""
        words = torch.tensor([float(self.outcomes[word]) for word in OUTCOMES])
        arrays = [torch.from_numpy(value) for value in self.sums.values()]
        *found, kinds, counts = team.sum(*arrays, torch.from_numpy(self.kinds), words)
        self.sums = {name: value.numpy() for name, value in zip(self.sums, found, strict=True)}
        self.kinds = kinds.numpy()
        self.outcomes = Counter({word: int(count) for word, count in zip(OUTCOMES, counts.tolist(), strict=True)})
        d = len(self.names)
        extremes = np.array(team.largest(*self.largest.tolist(), *self.magnitude.tolist()))
        self.largest, self.magnitude = extremes[:d], extremes[d:]

    @property
    def forecasts(self) -> int:
        """Number of forecasts."""
        return sum(self.outcomes.values())

    @property
    def initial_state(self) -> dict[str, str]:
        """Where each state's start came from, as `Forecast.initial_state`."""
        words = [[word for k, word in enumerate(KINDS) if row[k]] for row in self.kinds]
        return {name: "+".join(found) for name, found in zip(self.states, words, strict=True)}

    def scores(self, horizon: float) -> Scores:
        """All scores (`metrics.score`)."""
        channels = {name: self._channel(i) for i, name in enumerate(self.names)}
        count, square = self.sums["count"].sum(), self.sums["square"].sum()
        mse = finite(float(square / count)) if count else None
        relative = [one.nrmse for one in channels.values() if one.nrmse is not None]
        nrmse = finite(float(np.sqrt(np.mean(np.square(relative))))) if relative else None
        true, number = self.sums["true"].tolist()
        return Scores(
            mse=mse,
            mse_true=finite(true / number) if number else None,
            rmse=None if mse is None else math.sqrt(mse),
            nrmse=nrmse,
            fit_percent=None if nrmse is None else 100.0 * (1.0 - nrmse),
            channels=channels,
            by_horizon=self._by_horizon(horizon),
            outcomes={word: self.outcomes[word] for word in OUTCOMES},
            scored_values=int(count),
        )

    def _channel(self, i: int) -> ChannelScores:
        count = self.sums["count"][i]
        mse = finite(float(self.sums["square"][i] / count)) if count else None
        if mse is None:
            return ChannelScores()
        mean = self.sums["first"][i] / count
        variance = float(self.sums["second"][i] / count - mean**2)
        spread = math.sqrt(variance) if variance > 0 and math.isfinite(variance) else 0.0
        spread = spread if spread > 1e-12 * self.magnitude[i] else 0.0
        rmse = math.sqrt(mse)
        nrmse = finite(rmse / spread) if spread > 0 else None
        fit = None if nrmse is None else 100.0 * (1.0 - nrmse)
        return ChannelScores(mse, rmse, nrmse, fit, finite(float(self.largest[i])))

    def _by_horizon(self, horizon: float) -> tuple[HorizonBin, ...]:
        count, square = self.sums["bin_count"], self.sums["bin_square"]
        rmse = np.sqrt(square / np.maximum(count, 1))
        return tuple(
            HorizonBin(
                float(horizon * (b + 1) / BINS),
                {n: finite(float(rmse[b, i])) if count[b, i] else None for i, n in enumerate(self.names)},
            )
            for b in range(BINS)
        )
