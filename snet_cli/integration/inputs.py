"""u(t) in torch, for one time per trajectory: what `snet_cli.data.signals` stores, ready for the integrator.

Sampled inputs are piecewise polynomials. Their *breaks* are the knots where u or du/dt jumps, and the last knot: a
step must end there, and whoever evaluates u at a break says which side is meant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.signals import FourierInputs, Inputs, PiecewisePolynomials, SampledInputs
from snet_cli.data.trajectories import ragged_offsets
from snet_cli.integration.ragged_search import RaggedSearch

FloatArray = NDArray[np.float64]
Side = Literal["right", "left"]


@dataclass(frozen=True)
class FourierSignal:
    """mean + Σ_k amplitude_k cos(ω_k t - phase_k); shapes (B, m) and (B, m, H).

    One cosine per harmonic instead of a cosine and a sine.
    """

    mean: Tensor
    omega: Tensor
    amplitude: Tensor
    phase: Tensor

    @classmethod
    def build(cls, inputs: FourierInputs, device: torch.device | str) -> FourierSignal:
        """Amplitude and phase of every harmonic."""
        arrays = (inputs.mean, inputs.omega, np.hypot(inputs.cos, inputs.sin), np.arctan2(inputs.sin, inputs.cos))
        return cls(*(torch.as_tensor(array, dtype=torch.float64, device=device) for array in arrays))

    def select(self, rows: Tensor) -> FourierSignal:
        """The signals of these rows."""
        return FourierSignal(self.mean[rows], self.omega[rows], self.amplitude[rows], self.phase[rows])

    def values(self, time: Tensor) -> Tensor:
        """Shape (..., B, m) at times (..., B)."""
        waves = torch.cos(time[..., None, None] * self.omega - self.phase) * self.amplitude
        return self.mean + (waves[..., 0] if waves.shape[-1] == 1 else waves.sum(-1))


@dataclass(frozen=True)
class SampledSignal:
    """Piecewise polynomials, their knots, and the knots among them where a step must end.

    Attributes
    ----------
    knots, breaks : RaggedSearch
    coefficients : Tensor, shape (U, m, 1 + degree)
    """

    knots: RaggedSearch
    breaks: RaggedSearch
    coefficients: Tensor

    @classmethod
    def build(cls, inputs: SampledInputs, device: torch.device | str) -> SampledSignal:
        """Find the breaks, and drop the powers that no channel has."""
        pieces = inputs.pieces()
        degree = max((p for p in range(1, 4) if np.any(pieces.coefficients[:, :, p])), default=0)
        coefficients = torch.as_tensor(np.ascontiguousarray(pieces.coefficients[:, :, : degree + 1]), device=device)
        is_break = find_breaks(pieces)
        owner = np.repeat(np.arange(pieces.row_size.size), pieces.row_size)
        sizes = np.bincount(owner[is_break], minlength=pieces.row_size.size).astype(np.int64)
        return cls(
            RaggedSearch.build(pieces.knots, pieces.row_size, device),
            RaggedSearch.build(pieces.knots[is_break], sizes, device),
            coefficients,
        )

    def select(self, rows: Tensor) -> SampledSignal:
        """The signals of these rows."""
        return replace(self, knots=self.knots.select(rows), breaks=self.breaks.select(rows))

    def values(self, time: Tensor, side: Side) -> Tensor:
        """Shape (..., B, m) at times (..., B); the values at the ends hold outside the knots."""
        last_knot = self.knots.last - 1
        piece = self.knots.upto(time, inclusive=side == "right") - 1
        piece = torch.maximum(torch.minimum(piece, last_knot), self.knots.first)
        coefficients = self.coefficients[piece]  # (..., B, m, 1 + degree)
        value = coefficients[..., -1]
        if coefficients.shape[-1] > 1:
            since = (time - self.knots.values[piece]).clamp(min=0.0)[..., None]
            for power in range(coefficients.shape[-1] - 2, -1, -1):
                value = torch.addcmul(coefficients[..., power], value, since)
        return value


def find_breaks(pieces: PiecewisePolynomials) -> NDArray[np.bool_]:
    """Knots where a value or a slope jumps, and both end knots; shape (U,).

    A jump is more than 1e-10 of the channel's range; a jump of slope counts by what it changes until the next knot.
    The last rows of `coefficients` hold a value only, so that the end knot is always a break.
    """
    offsets = ragged_offsets(pieces.row_size)
    c, knots = pieces.coefficients, pieces.knots
    is_break = np.zeros(knots.size, bool)
    is_break[offsets[:-1][pieces.row_size > 0]] = True
    is_break[offsets[1:][pieces.row_size > 0] - 1] = True
    if knots.size < 2:
        return is_break
    spread = np.ptp(c[:, :, 0], axis=0)  # (m,)
    before = np.diff(knots)[:, None]
    left = ((c[:-1, :, 3] * before + c[:-1, :, 2]) * before + c[:-1, :, 1]) * before + c[:-1, :, 0]
    slope = (3 * c[:-1, :, 3] * before + 2 * c[:-1, :, 2]) * before + c[:-1, :, 1]
    jump = np.abs(c[1:, :, 0] - left) > 1e-10 * spread
    kink = np.abs(c[1:, :, 1] - slope) * np.abs(before) > 1e-9 * spread
    is_break[1:] |= np.any(jump | kink, axis=1)
    return is_break


@dataclass(frozen=True)
class InputSignal:
    """All inputs of B trajectories, and known constants behind them as further channels.

    Attributes
    ----------
    fourier, sampled : or None
    order : Tensor of int64, shape (m,), or None
        Where both kinds occur: column of the k-th input in (sampled, fourier).
    constants : Tensor, shape (B, c), or None
    end : Tensor, shape (B,)
        Where sampled inputs end; infinite for closed forms.
    """

    fourier: FourierSignal | None
    sampled: SampledSignal | None
    order: Tensor | None
    constants: Tensor | None
    end: Tensor

    @classmethod
    def from_inputs(
        cls,
        inputs: Inputs,
        trajectories: int,
        constants: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> InputSignal:
        """Prepare the inputs of `trajectories` trajectories.

        Parameters
        ----------
        inputs : Inputs
        trajectories : int
            B; needed where there is no input at all.
        constants : Tensor, shape (B, c), optional
            Values that are appended to u as its last channels.
        device : torch.device or str
        """
        fourier = FourierSignal.build(inputs.fourier, device) if inputs.fourier is not None else None
        sampled = SampledSignal.build(inputs.sampled, device) if inputs.sampled is not None else None
        order = None
        stored = (inputs.sampled.names if inputs.sampled else ()) + (inputs.fourier.names if inputs.fourier else ())
        if stored != inputs.names:
            order = torch.tensor([stored.index(name) for name in inputs.names], device=device)
        end = torch.full((trajectories,), torch.inf, dtype=torch.float64, device=device)
        if inputs.sampled is not None:
            end = torch.as_tensor(inputs.sampled_end(), dtype=torch.float64, device=device)
        if constants is not None:
            constants = constants.to(device=device, dtype=torch.float64)
        return cls(fourier, sampled, order, constants, end)

    @property
    def has_breaks(self) -> bool:
        """Whether steps have anything to stop at."""
        return self.sampled is not None

    def mean_interval(self) -> Tensor:
        """Mean time between neighbouring input samples, shape (B,); 0 for closed forms."""
        if self.sampled is None:
            return torch.zeros_like(self.end)
        knots = self.sampled.knots
        span = knots.values[knots.last - 1] - knots.values[knots.first]
        return span / (knots.last - knots.first - 1).clamp(min=1)

    def select(self, rows: Tensor) -> InputSignal:
        """The signals of these rows, in this order."""
        return InputSignal(
            self.fourier.select(rows) if self.fourier is not None else None,
            self.sampled.select(rows) if self.sampled is not None else None,
            self.order,
            self.constants[rows] if self.constants is not None else None,
            self.end[rows],
        )

    def values(self, time: Tensor, side: Side = "right") -> Tensor:
        """Shape (..., B, m + c) at times (..., B): every row at its own time.

        `side` says which value a jump has: "right" is the one that holds after it.
        """
        parts = []
        if self.sampled is not None:
            parts.append(self.sampled.values(time, side))
        if self.fourier is not None:
            parts.append(self.fourier.values(time))
        u = torch.cat(parts, -1) if len(parts) > 1 else parts[0] if parts else time.new_zeros((*time.shape, 0))
        if self.order is not None:
            u = u[..., self.order]
        if self.constants is None:
            return u
        constants = self.constants.expand(*time.shape, self.constants.shape[-1])
        return torch.cat([u, constants], -1) if u.shape[-1] else constants

    def at(self, trajectory: Tensor, time: Tensor, side: Side = "right") -> Tensor:
        """Shape (N, m + c) at one time per entry of `trajectory` (N,)."""
        return self.select(trajectory).values(time, side)

    def breaks_after(self, time: Tensor) -> Tensor:
        """First break strictly after each row's time, shape (B,); infinite where there is none."""
        if self.sampled is None:
            return torch.full_like(time, torch.inf)
        breaks = self.sampled.breaks
        following = breaks.upto(time, inclusive=True)
        value = breaks.values[following.clamp(max=breaks.values.shape[0] - 1)]
        return torch.where(following < breaks.last, value, torch.inf)

    def breaks_between(self, start: Tensor, end: Tensor) -> Tensor:
        """Number of breaks in (start, end] of each row, shape (B,)."""
        if self.sampled is None:
            return torch.zeros_like(start, dtype=torch.int64)
        breaks = self.sampled.breaks
        return breaks.upto(end, inclusive=True) - breaks.upto(start, inclusive=True)

    def next_break(self, trajectory: Tensor, time: Tensor) -> Tensor:
        """`breaks_after` for one time per entry of `trajectory` (N,)."""
        return self.select(trajectory).breaks_after(time)
