"""How wide forecast bands are, and how much of the truth they hold.

Against the noise-free truth where the file has it, else against the measurements, with the band of measurements then. A
value counts where a forecast is scored and its band is finite; one that is known exactly (the start at a known x0) has
no band and does not count. A band without an end holds everything and says nothing: those are counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.posterior import LEVEL
from snet_cli.evaluation.metrics import BINS, horizon_bins
from snet_cli.forecasting.bands import Bands
from snet_cli.forecasting.rollout import Forecast

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """What `evaluate --bands` says of the bands.

    Attributes
    ----------
    against : {"truth", "measurements"} or None
        What `coverage` counts; None where nothing is known.
    coverage : float or None
        Share of all values that lie in their band.
    channels : dict
        ``mean_width`` of the band of the noise-free output and ``coverage``, by channel.
    by_horizon : tuple of (t, mean widths by channel, coverage)
        In bins of the time since the start, as in `metrics`.
    unbounded : int
        Values whose band has no end, because members did not get there.
    failed, members : int
        Members' forecasts that did not reach their end, and members of each forecast.
    """

    against: str | None
    coverage: float | None
    channels: dict[str, dict[str, float | None]]
    by_horizon: tuple[tuple[float, dict[str, float | None], float | None], ...]
    unbounded: int
    failed: int
    members: int

    def to_json(self) -> dict[str, Any]:
        """The object under ``bands``."""
        return {
            "level": LEVEL,
            "against": self.against,
            "coverage": self.coverage,
            "channels": self.channels,
            "by_horizon": [{"t": t, "mean_width": width, "coverage": held} for t, width, held in self.by_horizon],
            "unbounded": self.unbounded,
            "failed": self.failed,
            "members": self.members,
        }


def judge_bands(forecast: Forecast, bands: Bands) -> Coverage:
    """Widths and coverage of the bands of a forecast."""
    names = forecast.trajectories.output_names
    width = bands.truth.upper - bands.truth.lower
    finite = np.isfinite(width)
    against, reference, band = None, forecast.true_outputs, bands.truth
    if reference is not None:
        against = "truth"
    elif np.isfinite(forecast.observed.outputs).any():
        against, reference, band = "measurements", forecast.observed.outputs, bands.measured
    if reference is None:
        reference = np.full_like(width, np.nan)
    counts = np.isfinite(reference) & finite & forecast.scored[:, None] & (band.upper > band.lower)
    held = np.where(counts, (reference >= band.lower) & (reference <= band.upper), False)
    bins = horizon_bins(forecast)
    horizon = forecast.windows.horizon
    return Coverage(
        against,
        _share(held, counts),
        {
            name: {"mean_width": _mean(width[:, i][finite[:, i]]), "coverage": _share(held[:, i], counts[:, i])}
            for i, name in enumerate(names)
        },
        tuple(
            (
                horizon * (b + 1) / BINS,
                {name: _mean(width[(bins == b) & finite[:, i], i]) for i, name in enumerate(names)},
                _share(held[bins == b], counts[bins == b]),
            )
            for b in range(BINS)
        ),
        int((~finite).sum()),
        bands.failed,
        bands.members,
    )


def _share(held: NDArray[np.bool_], counts: NDArray[np.bool_]) -> float | None:
    number = int(counts.sum())
    return float(held.sum() / number) if number else None


def _mean(values: FloatArray) -> float | None:
    return float(values.mean()) if values.size else None
