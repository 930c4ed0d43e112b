"""u(t): inputs on their own clock (zero-order hold, linear, cubic) or in closed form (Fourier series).

Every sampled input is a piecewise polynomial: on the piece from knot k to knot k + 1
``u(t) = Σ_j coefficients[k, :, j] (t - knot_k)^j``. Zero-order hold has degree 0, linear 1, cubic 3
(not-a-knot spline). One form serves the integrator, the projection on elements, and plots.
A Fourier input is ``u(t) = mean + Σ_k cos_k cos(ω_k t) + sin_k sin(ω_k t)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Intersample = Literal["zoh", "linear", "cubic"]
INTERSAMPLE: tuple[Intersample, ...] = ("zoh", "linear", "cubic")


class PiecewisePolynomials(NamedTuple):
    """Sampled inputs of B trajectories as polynomials between their knots.

    Attributes
    ----------
    row_size : ndarray, shape (B,)
        Knots per trajectory (the pieces are one fewer; the last row of `coefficients` of a trajectory holds the
        value at the last knot).
    knots : ndarray, shape (uobs,)
    coefficients : ndarray, shape (uobs, m, 4)
        Ascending powers of the time since the knot.
    """

    row_size: IntArray
    knots: FloatArray
    coefficients: FloatArray


@dataclass(frozen=True)
class SampledInputs:
    """Inputs sampled on a clock of their own, one clock per trajectory.

    Attributes
    ----------
    names : tuple of str
    row_size : ndarray, shape (B,)
    time : ndarray, shape (uobs,)
    values : ndarray, shape (uobs, m)
    intersample : tuple of {"zoh", "linear", "cubic"}
        How each channel continues between its samples. The last sample ends the signal's domain.
    """

    names: tuple[str, ...]
    row_size: IntArray
    time: FloatArray
    values: FloatArray
    intersample: tuple[Intersample, ...]

    def pieces(self) -> PiecewisePolynomials:
        """The signals as piecewise polynomials (see the module docstring)."""
        coefficients = np.zeros((self.time.size, len(self.names), 4))
        coefficients[:, :, 0] = self.values
        ends = np.cumsum(self.row_size)
        inner = np.ones(self.time.size, bool)
        inner[ends[self.row_size > 0] - 1] = False  # the last knot of a trajectory starts no piece
        for channel, kind in enumerate(self.intersample):
            if kind == "linear":
                slope = np.zeros(self.time.size)
                slope[:-1] = np.diff(self.values[:, channel]) / np.where(inner[:-1], np.diff(self.time), 1.0)
                coefficients[inner, channel, 1] = slope[inner]
            elif kind == "cubic":
                for start, end in zip(ends - self.row_size, ends, strict=True):
                    coefficients[start:end, channel] = _cubic(self.time[start:end], self.values[start:end, channel])
        return PiecewisePolynomials(self.row_size, self.time, coefficients)


def _cubic(time: FloatArray, values: FloatArray) -> FloatArray:
    """Coefficients (K, 4) of the not-a-knot cubic spline; the parabola or line through fewer than 4 samples."""
    from scipy.interpolate import CubicSpline  # scipy costs 0.2 s at import and zoh and linear need none of it

    out = np.zeros((time.size, 4))
    out[:, 0] = values
    if time.size >= 2:
        coefficients = CubicSpline(time, values).c[::-1]  # (4, K - 1) ascending
        out[:-1, : coefficients.shape[0]] = coefficients.T
    return out


@dataclass(frozen=True)
class FourierInputs:
    """Inputs as Fourier series, defined for all time.

    Attributes
    ----------
    names : tuple of str
    mean : ndarray, shape (B, m)
    omega, cos, sin : ndarray, shape (B, m, H)
        Angular frequencies in radians per time unit, and the amplitudes.
    """

    names: tuple[str, ...]
    mean: FloatArray
    omega: FloatArray
    cos: FloatArray
    sin: FloatArray


@dataclass(frozen=True)
class Inputs:
    """All inputs of B trajectories: some sampled, some in closed form, in the order of `names`."""

    names: tuple[str, ...] = ()
    sampled: SampledInputs | None = None
    fourier: FourierInputs | None = None
    units: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def none(cls) -> Inputs:
        """No input at all."""
        return cls()

    def sampled_start(self) -> FloatArray:
        """First input sample of every trajectory, shape (B,); needs sampled inputs."""
        assert self.sampled is not None
        return self.sampled.time[np.cumsum(self.sampled.row_size) - self.sampled.row_size]

    def sampled_end(self) -> FloatArray:
        """Last input sample of every trajectory, shape (B,): sampled inputs are not extrapolated beyond it."""
        assert self.sampled is not None
        return self.sampled.time[np.cumsum(self.sampled.row_size) - 1]

    def select(self, chosen: Sequence[int] | IntArray) -> Inputs:
        """The inputs of the chosen trajectories, in the order given."""
        index = np.asarray(chosen, dtype=np.int64)
        sampled, fourier = self.sampled, self.fourier
        if sampled is not None:
            ends = np.cumsum(sampled.row_size)
            rows = np.concatenate(
                [np.arange(ends[i] - sampled.row_size[i], ends[i]) for i in index] or [np.zeros(0, np.int64)]
            )
            sampled = replace(
                sampled, row_size=sampled.row_size[index], time=sampled.time[rows], values=sampled.values[rows]
            )
        if fourier is not None:
            fourier = replace(
                fourier,
                mean=fourier.mean[index],
                omega=fourier.omega[index],
                cos=fourier.cos[index],
                sin=fourier.sin[index],
            )
        return replace(self, sampled=sampled, fourier=fourier)

    def at(self, trajectory: IntArray, time: FloatArray, side: Literal["left", "right"] = "right") -> FloatArray:
        """Values of all inputs, shape (N, m), at one time per row of `trajectory` (N,).

        `side` says which value a jump has: "right" is the one that holds after it.
        """
        out = np.zeros((time.size, len(self.names)))
        if self.fourier is not None:
            columns = [self.names.index(name) for name in self.fourier.names]
            phase = self.fourier.omega[trajectory] * time[:, None, None]
            waves = self.fourier.cos[trajectory] * np.cos(phase) + self.fourier.sin[trajectory] * np.sin(phase)
            out[:, columns] = self.fourier.mean[trajectory] + waves.sum(-1)
        if self.sampled is not None:
            columns = [self.names.index(name) for name in self.sampled.names]
            out[:, columns] = evaluate_pieces(self.sampled.pieces(), trajectory, time, side)
        return out


def evaluate_pieces(
    pieces: PiecewisePolynomials, trajectory: IntArray, time: FloatArray, side: Literal["left", "right"] = "right"
) -> FloatArray:
    """Values (N, m) of piecewise polynomials at one time per row; the end pieces hold outside the knots' range."""
    row, since = locate(pieces, trajectory, time, side)
    coefficients = pieces.coefficients[row]  # (N, m, 4)
    since = since[:, None]
    value: FloatArray = coefficients[:, :, 3]
    for power in (2, 1, 0):
        value = value * since + coefficients[:, :, power]
    return value


def locate(
    pieces: PiecewisePolynomials, trajectory: IntArray, time: FloatArray, side: Literal["left", "right"]
) -> tuple[IntArray, FloatArray]:
    """Row of the piece that holds at each time, and the time since its knot; both shape (N,).

    Ragged searches become one search: knots are ranked by (trajectory, time) with `np.lexsort`.
    """
    ends = np.cumsum(pieces.row_size)
    starts = ends - pieces.row_size
    owner = np.repeat(np.arange(pieces.row_size.size), pieces.row_size)
    # side "right": a knot at the asked time counts as passed; "left": it does not
    order_key = np.concatenate([np.zeros(pieces.knots.size), np.full(time.size, 1 if side == "right" else -1)])
    order = np.lexsort((order_key, np.concatenate([pieces.knots, time]), np.concatenate([owner, trajectory])))
    is_knot = order < pieces.knots.size
    passed = np.cumsum(is_knot) - 1
    row = np.empty(time.size, np.int64)
    row[order[~is_knot] - pieces.knots.size] = passed[~is_knot]
    # the last knot starts no piece: what is asked there or later belongs to the piece before it
    row = np.clip(row, starts[trajectory], np.maximum(ends[trajectory] - 2, starts[trajectory]))
    last_knot = ends[trajectory] - 1
    at_end = (time >= pieces.knots[last_knot]) & (side == "right")
    row = np.where(at_end, last_knot, row)
    return row, np.where(at_end, 0.0, time - pieces.knots[row])
