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

from snet_cli.forecasting.rollout import Forecast, mean_square


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
    first = forecasts[0]
    names = first.observed.output_names
    outputs = np.stack([_complete(forecast) for forecast in forecasts])  # (M, obs, d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # samples that no member reached: NaN, which nothing counts
        mean, deviation = np.nanmean(outputs, 0), np.nanstd(outputs, 0)
    error = np.where(first.scored[:, None], mean - first.observed.outputs, np.nan)
    several = (np.isfinite(outputs).sum(0) > 1) & first.scored[:, None]
    deviation = np.where(several, deviation, np.nan)
    return EnsembleScores(
        len(forecasts),
        tuple(forecast.mse for forecast in forecasts),
        tuple(forecast.diverged for forecast in forecasts),
        mean_square(error),
        dict(zip(names, map(_root, error.T), strict=True)),
        dict(zip(names, map(_root, deviation.T), strict=True)),
    )


def _complete(forecast: Forecast) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Outputs of the forecasts that reached their end, NaN elsewhere."""
    reached = np.repeat(forecast.complete, forecast.windows.row_size)
    return np.where(reached[:, None], forecast.trajectories.outputs, np.nan)


def _root(values: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    square = mean_square(values)
    return None if square is None else float(np.sqrt(square))
