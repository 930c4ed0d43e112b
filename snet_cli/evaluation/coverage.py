"""How wide forecast bands are, and how much of the truth they hold.

Against the noise-free truth where the file has it, else against the measurements, with the band of measurements then. A
value counts where a forecast is scored and its band is finite; one that is known exactly (the start at a known x0) has
no band and does not count. A band without an end holds everything and says nothing: those are counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.posterior import LEVEL
from snet_cli.distributed import Team
from snet_cli.evaluation.metrics import BINS, horizon_bins
from snet_cli.forecasting.bands import MEMBERS, Bands
from snet_cli.forecasting.rollout import Forecast


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
    sums = CoverageSums(forecast.trajectories.output_names)
    sums.add(forecast, bands)
    return sums.coverage(forecast.windows.horizon)


class CoverageSums:
    """What the coverage of all bands is made of, in sums over slices of the forecasts.

    Parameters
    ----------
    names : tuple of str
        Channels.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        d = len(names)
        self.names, self.members = names, MEMBERS
        self.sums = {
            "width": np.zeros((BINS + 1, d)),  # by bin; those of no bin last
            "finite": np.zeros((BINS + 1, d)),
            "held_truth": np.zeros((BINS + 1, d)),
            "truth": np.zeros((BINS + 1, d)),
            "held_measurements": np.zeros((BINS + 1, d)),
            "measurements": np.zeros((BINS + 1, d)),
            "known": np.zeros(2),  # forecasts' slices with a truth, and with measurements
            "rest": np.zeros(2),  # values whose band has no end, and members that failed
        }

    def add(self, forecast: Forecast, bands: Bands) -> None:
        """Take the bands of a slice; its windows know the horizon and the tolerance of the whole."""
        width = bands.truth.upper - bands.truth.lower
        finite = np.isfinite(width)
        bins = horizon_bins(forecast)
        self._sum("width", np.where(finite, width, 0.0), bins)
        self._sum("finite", finite, bins)
        truth, measured = forecast.true_outputs, forecast.observed.outputs
        references = (("truth", truth, bands.truth), ("measurements", measured, bands.measured))
        for name, reference, band in references:
            if reference is None:
                continue
            counts = np.isfinite(reference) & finite & forecast.scored[:, None] & (band.upper > band.lower)
            held = counts & (reference >= band.lower) & (reference <= band.upper)
            self._sum(name, counts, bins)
            self._sum(f"held_{name}", held, bins)
        self.sums["known"] += np.array([truth is not None, np.isfinite(measured).any()], np.float64)
        self.sums["rest"] += np.array([(~finite).sum(), bands.failed], np.float64)

    def _sum(self, name: str, values: NDArray[Any], bins: NDArray[np.int64]) -> None:
        for b in range(-1, BINS):
            self.sums[name][b] += values[bins == b].sum(0)

    def over(self, team: Team) -> None:
        """Add up what the processes of a team have; every one of them has the whole then."""
        found = team.sum(*(torch.from_numpy(value) for value in self.sums.values()))
        self.sums = {name: value.numpy() for name, value in zip(self.sums, found, strict=True)}

    def coverage(self, horizon: float) -> Coverage:
        """What is said of all of them."""
        sums = self.sums
        known_truth, known_measurements = sums["known"] > 0
        against = "truth" if known_truth else "measurements" if known_measurements else None
        held, counts = (sums[f"{kind}{against or 'truth'}"] for kind in ("held_", ""))
        width, finite = sums["width"], sums["finite"]
        return Coverage(
            against,
            _ratio(held.sum(), counts.sum()),
            {
                name: {
                    "mean_width": _ratio(width[:, i].sum(), finite[:, i].sum()),
                    "coverage": _ratio(held[:, i].sum(), counts[:, i].sum()),
                }
                for i, name in enumerate(self.names)
            },
            tuple(
                (
                    horizon * (b + 1) / BINS,
                    {name: _ratio(width[b, i], finite[b, i]) for i, name in enumerate(self.names)},
                    _ratio(held[b].sum(), counts[b].sum()),
                )
                for b in range(BINS)
            ),
            int(sums["rest"][0]),
            int(sums["rest"][1]),
            self.members,
        )


def _ratio(total: float, number: float) -> float | None:
    return float(total / number) if number else None
