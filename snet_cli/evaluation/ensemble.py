"""What the forecasts of several models say together: how well each does, how well their mean does, how far they differ.

The spread of a channel is the root mean square, over all scored samples, of the standard deviation between the members:
in the channel's unit, beside the rmse of the mean forecast. Members that were trained alike differ by what the data
leaves open in training, not by all that the model may be wrong about: the spread is a lower bound of the error.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.distributed import Team
from snet_cli.evaluation.metrics import finite
from snet_cli.forecasting.rollout import Forecast

FloatArray = NDArray[np.float64]


class EnsembleScores(NamedTuple):
    """Scores of M members on the same samples.

    Attributes
    ----------
    members : int
    mse : tuple of float or None
        Of each member.
    diverged : tuple of int
        Forecasts of each member that do not reach their end.
    mean_mse : float or None
        Of the mean forecast: at each sample the mean of the members that got there.
    rmse : dict of str to float or None
        Of the mean forecast in each channel.
    spread : dict of str to float or None
        Between the members in each channel; None where fewer than two got anywhere.
    """

    members: int
    mse: tuple[float | None, ...]
    diverged: tuple[int, ...]
    mean_mse: float | None
    rmse: dict[str, float | None]
    spread: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """For `evaluate --json`."""
        return {**self._asdict(), "mse": list(self.mse), "diverged": list(self.diverged)}


def ensemble_scores(forecasts: Sequence[Forecast]) -> EnsembleScores:
    """Compare the members' forecasts of the same windows.

    Parameters
    ----------
    forecasts : sequence of Forecast
    """
    sums = EnsembleSums(len(forecasts), forecasts[0].observed.output_names)
    sums.add(forecasts)
    return sums.scores()


class EnsembleSums:
    """What the scores of an ensemble are made of, in sums over slices of the forecasts.

    Parameters
    ----------
    members : int
    names : tuple of str
        Channels.
    """

    def __init__(self, members: int, names: tuple[str, ...]) -> None:
        self.names = names
        shapes = {"member": members, "diverged": members, "error": len(names), "deviation": len(names)}
        self.sums = {name: np.zeros((2, size)) for name, size in shapes.items()}  # squares, and how many

    def add(self, forecasts: Sequence[Forecast]) -> None:
        """Take the members' forecasts of a slice."""
        first = forecasts[0]
        outputs = np.stack([_complete(forecast) for forecast in forecasts])  # (M, obs, d)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # samples that no member reached: NaN, which nothing counts
            mean, deviation = np.nanmean(outputs, 0), np.nanstd(outputs, 0)
        error = np.where(first.scored[:, None], mean - first.observed.outputs, np.nan)
        several = (np.isfinite(outputs).sum(0) > 1) & first.scored[:, None]
        self.sums["member"] += np.array([_squares(forecast.errors.reshape(-1)) for forecast in forecasts]).T
        self.sums["diverged"][0] += [forecast.diverged for forecast in forecasts]
        self.sums["error"] += _squares(error)
        self.sums["deviation"] += _squares(np.where(several, deviation, np.nan))

    def over(self, team: Team) -> None:
        """Add up what the processes of a team have; every one of them has the whole then."""
        found = team.sum(*(torch.from_numpy(value) for value in self.sums.values()))
        self.sums = {name: value.numpy() for name, value in zip(self.sums, found, strict=True)}

    def scores(self) -> EnsembleScores:
        """The scores of all of them."""
        error = self.sums["error"]
        return EnsembleScores(
            self.sums["member"].shape[1],
            tuple(_mean(*pair) for pair in self.sums["member"].T.tolist()),
            tuple(int(number) for number in self.sums["diverged"][0]),
            _mean(*error.sum(1).tolist()),
            {name: _root(*pair) for name, pair in zip(self.names, error.T.tolist(), strict=True)},
            {name: _root(*pair) for name, pair in zip(self.names, self.sums["deviation"].T.tolist(), strict=True)},
        )


def _complete(forecast: Forecast) -> FloatArray:
    """Outputs of the forecasts that reached their end, NaN elsewhere."""
    reached = np.repeat(forecast.complete, forecast.windows.row_size)
    return np.where(reached[:, None], forecast.trajectories.outputs, np.nan)


def _squares(values: FloatArray) -> FloatArray:
    """Sum of the squares of each channel, and how many there are, shape (2, d); of all values where there is no d."""
    known = np.isfinite(values)
    with np.errstate(over="ignore"):
        if values.ndim == 1:  # as `rollout.mean_square` sums them
            return np.array([(values[known] ** 2).sum(), known.sum()])
        return np.stack([(np.where(known, values, 0.0) ** 2).sum(0), known.sum(0)])


def _mean(total: float, number: float) -> float | None:
    """A mean square; None where there is none or it is not finite."""
    return finite(total / number) if number else None


def _root(total: float, number: float) -> float | None:
    square = _mean(total, number)
    return None if square is None else float(np.sqrt(square))
