"""Angles without jumps, and rates of channels that were measured without them.

The rate of q at a sample is the slope there of the cubic that fits q best on the samples around it (local polynomial
regression; Savitzky & Golay 1964 is its equispaced case). How many samples decide between noise (few) and bias
(many); they are chosen per channel by the error of predicting each sample from the others of its window, which
linear smoothers give without refitting: ``(q - q̂) / (1 - h)``, h the sample's own weight in q̂. A window never crosses
from one trajectory to the next or over a gap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DEGREE = 3
WINDOW_SIZES = (5, 7, 9, 13, 19, 27, 39, 55, 79, 111)
"""Samples in a window that are tried; 5 are the fewest that leave a cubic an error to judge by."""

JUDGED = 20_000
"""Samples, spread evenly, by which the window is chosen: more cost time and change nothing."""

GAP = 10.0
"""A pause longer than this many median sampling intervals ends a stretch; of randomly sampled (Poisson) intervals
one in a thousand is longer."""

BLOCK = 20_000
"""Windows fitted at a time, which bounds the memory to some 50 MB."""


class Rate(NamedTuple):
    """Slopes (obs,), NaN where there is none, and the samples of a window."""

    values: FloatArray
    window: int

    def note(self, name: str, of: str) -> str:
        """A sentence on how they were found."""
        return f"'{name}' is the slope of cubics through {self.window} samples of '{of}' each."


class LocalFit(NamedTuple):
    """Slope at each sample, and the error of predicting the sample from its neighbours (NaN if not possible)."""

    slope: FloatArray
    prediction_error: FloatArray


class Turns:
    """The jumps of 2π that were taken out of an angle so far, while it comes in one part after the other.

    As `numpy.unwrap`, to the last bit, whatever the parts are.
    """

    def __init__(self) -> None:
        self.last, self.correction = np.nan, 0.0

    def without(self, angle: FloatArray) -> FloatArray:
        """The next part, in rad, without jumps."""
        if angle.size == 0:
            return angle
        step = np.diff(angle, prepend=angle[0] if np.isnan(self.last) else self.last)
        small = np.mod(step + np.pi, 2 * np.pi) - np.pi
        small[(small == -np.pi) & (step > 0)] = np.pi
        change = np.where(np.abs(step) < np.pi, 0.0, small - step)
        correction = np.cumsum(np.concatenate([[self.correction], change]))[1:]
        self.last, self.correction = float(angle[-1]), float(correction[-1])
        return angle + correction


def unwrap_angle(trajectories: Trajectories, name: str, degrees: bool, turns: Turns | None = None) -> Trajectories:
    """An output in rad, without jumps of 2π inside a trajectory, missing samples skipped; `degrees`: it is in °.

    Parameters
    ----------
    turns : Turns, optional
        Those of the part before, where this is a part of one trajectory.
    """
    column = trajectories.output_names.index(name)
    outputs = trajectories.outputs.copy()
    if degrees:
        outputs[:, column] = np.deg2rad(outputs[:, column])
    for first, stop in zip(trajectories.offsets[:-1], trajectories.offsets[1:], strict=True):
        values = outputs[first:stop, column]  # a view
        measured = np.isfinite(values)
        values[measured] = (turns or Turns()).without(values[measured])
    return replace(trajectories, outputs=outputs, units={**trajectories.units, name: "rad"})


def add_rate(trajectories: Trajectories, name: str, of: str) -> tuple[Trajectories, str]:
    """A new output, the rate of the output `of`, and a note on how it was found."""
    column = trajectories.output_names.index(of)
    rate = local_rate(trajectories.time, trajectories.outputs[:, column], trajectories.row_size)
    return with_rate(trajectories, name, of, rate.values), rate.note(name, of)


def with_rate(trajectories: Trajectories, name: str, of: str, values: FloatArray) -> Trajectories:
    """The trajectories with a new output, these rates (obs,) of the output `of`."""
    unit = trajectories.units.get(of, "")
    names = (*trajectories.output_names, name)
    return replace(
        trajectories,
        outputs=np.column_stack([trajectories.outputs, values]),
        output_names=names,
        state_names=names,
        units={**trajectories.units, name: f"{unit}/{trajectories.time_unit}" if unit else ""},
    )


def local_rate(time: FloatArray, values: FloatArray, row_size: IntArray) -> Rate:
    """Rate of change of one channel of ragged trajectories.

    Parameters
    ----------
    time, values : ndarray, shape (obs,)
        NaN in `values` = not measured; there the rate is NaN too.
    row_size : ndarray, shape (B,)

    Returns
    -------
    Rate
        Exact for cubics. A stretch of fewer than five samples is fitted by a parabola, a line; a single sample has no
        rate.
    """
    measured = np.isfinite(values)
    owner = np.repeat(np.arange(row_size.size), row_size)[measured]
    t, q = time[measured], values[measured]
    stretch = _stretches(t, owner)
    longest = int(np.max(np.bincount(stretch), initial=0))
    every = np.arange(t.size)
    some = every[:: max(1, t.size // JUDGED)]
    window, least = WINDOW_SIZES[0], np.inf
    for size in WINDOW_SIZES:
        errors = _fit_stretches(t, q, stretch, size, some).prediction_error
        judged = np.isfinite(errors)
        error = float(np.mean(errors[judged] ** 2)) if judged.any() else np.inf
        if error < least:
            window, least = size, error
        if size >= longest:
            break
    rate = np.full(time.size, np.nan)
    rate[measured] = _fit_stretches(t, q, stretch, window, every).slope
    return Rate(rate, window)


def _stretches(time: FloatArray, owner: IntArray) -> IntArray:
    """Number of the gapless stretch that each sample belongs to."""
    steps = np.diff(time)
    inside = np.diff(owner) == 0
    median = float(np.median(steps[inside])) if inside.any() else 0.0
    return np.concatenate([np.zeros(min(time.size, 1), np.int64), np.cumsum(~inside | (steps > GAP * median))])


def _fit_stretches(time: FloatArray, values: FloatArray, stretch: IntArray, size: int, rows: IntArray) -> LocalFit:
    """Local fits at `rows` with windows of `size` samples, or all of a stretch that has fewer."""
    lengths = np.bincount(stretch, minlength=1)
    firsts = np.cumsum(lengths) - lengths
    slope, error = np.full(rows.size, np.nan), np.full(rows.size, np.nan)
    for at in range(0, rows.size, BLOCK):
        part = slice(at, at + BLOCK)
        own = rows[part]
        first, length = firsts[stretch[own]], lengths[stretch[own]]
        window = np.minimum(size, length)
        begin = np.clip(own - window // 2, first, first + length - window)
        for width in np.unique(window[window >= 2]):
            places = np.flatnonzero(window == width)
            fit = _local_fit(time, values, own[places], begin[places], int(width))
            slope[at + places], error[at + places] = fit
    return LocalFit(slope, error)


def _local_fit(time: FloatArray, values: FloatArray, rows: IntArray, begin: IntArray, width: int) -> LocalFit:
    """Fit ``q ≈ Σ_j c_j s^j``, s the time from the middle of the window in half windows; slope and prediction error.

    With A the matrix of powers (width, degree + 1), a its row for the sample itself and G = AᵀA: c = G⁻¹Aᵀq, the fit
    is aᵀc, its slope a'ᵀc, and the sample's own weight in the fit is h = aᵀG⁻¹a. In s the numbers of G are of
    order 1, so that solving with G costs a few digits of sixteen and no orthogonal basis is needed.
    """
    degree = min(DEGREE, width - 1)
    inside = begin[:, None] + np.arange(width)  # (k, width)
    half = (time[inside[:, -1]] - time[inside[:, 0]]) / 2
    middle = (time[inside[:, -1]] + time[inside[:, 0]]) / 2
    exponents = np.arange(degree + 1)
    matrix = ((time[inside] - middle[:, None]) / half[:, None])[..., None] ** exponents  # (k, width, degree + 1)
    at = ((time[rows] - middle) / half)[:, None]
    own = at**exponents  # (k, degree + 1)
    own_slope = exponents * at ** np.maximum(exponents - 1, 0)
    around = values[inside] - values[rows, None]  # small numbers: a large offset costs no digits
    gram = np.einsum("kwi,kwj->kij", matrix, matrix)
    moments = np.stack([np.einsum("kwi,kw->ki", matrix, around), own], axis=-1)
    try:
        solved = np.linalg.solve(gram, moments)
    except np.linalg.LinAlgError:  # times that crowd together beyond the last digit
        solved = np.linalg.pinv(gram, hermitian=True) @ moments
    fitted = np.einsum("kj,kj->k", own, solved[..., 0])
    weight = np.einsum("kj,kj->k", own, solved[..., 1])
    judged = (width > degree + 1) & (weight < 1 - 1e-9)
    error = np.where(judged, fitted / np.where(judged, 1 - weight, 1.0), np.nan)
    return LocalFit(np.einsum("kj,kj->k", own_slope, solved[..., 0]) / half, error)
