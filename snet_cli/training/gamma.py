"""γ, the weight of the misfit in J = γL + R: fixed, or chosen so that the misfit ends where the noise is.

*Noise level known* (stated in the file, or estimated from dense data): at the true trajectory the expected misfit is
``L = Σ (σ_j / c_j)² / K`` over the observed values, and γ is moved until the fitted one agrees (the discrepancy
principle, Morozov 1966), the degrees of freedom that the initial states take being allowed for. L falls as γ grows.

*Unknown*: γ with the smallest error at held-out samples, from a decreasing sequence, each started where the last ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.training.relaxed import RelaxedProblem

FloatArray = NDArray[np.float64]

START, LEAST, MOST = 3.0, 1e-4, 1e4
"""γ at first (the paper's value) and its bounds."""

MOST_CHANGE = 1.5
"""Factor by which γ may change in one iteration: θ has to follow."""

CLOSE = 0.01
"""Relative distance from the noise level, itself an estimate, below which γ need not move on."""

CANDIDATES = (30.0, 3.0, 0.3, 0.03)
"""Values tried where the noise level is unknown."""

DENSE_SAMPLES = 3.0
"""Samples per unknown of a series from which on step 0's held-out error tells the noise."""


class NoiseLevelGamma:
    """γ that follows the misfit to the noise level.

    Parameters
    ----------
    target : float
        L that the noise alone would leave.
    value : float
        γ at first.
    deviation : float
        Relative standard deviation of L under that noise: two of them cannot be told from the target.
    """

    def __init__(self, target: float, value: float = START, *, deviation: float = 0.0) -> None:
        self.target, self.value, self.deviation = target, value, deviation

    def arrived(self, misfit: float) -> bool:
        """Whether L is at the noise level as far as its own scatter shows, or γ at one of its bounds."""
        near = abs(misfit - self.target) <= max(2.0 * self.deviation, CLOSE) * self.target
        return near or not LEAST < self.value < MOST

    def update(self, misfit: float) -> float:
        """Move γ by (L / target), within bounds; L above the noise level asks for more weight on it."""
        ratio = misfit / self.target if self.target > 0 else np.inf
        self.value = float(np.clip(self.value * np.clip(ratio, 1 / MOST_CHANGE, MOST_CHANGE), LEAST, MOST))
        return self.value


class SampleCounts(NamedTuple):
    """What noise leaves in L depends on this alone.

    Attributes
    ----------
    values : ndarray of int, shape (d,)
        Measured values of each output.
    channel : ndarray, shape (d,)
        1 / (c² K).
    times : int
        K.
    free : int
        States of all trajectories whose x(t0) is free.
    """

    values: NDArray[np.int64]
    channel: FloatArray
    times: int
    free: int

    @classmethod
    def of(cls, relaxed: RelaxedProblem) -> SampleCounts:
        """Those of a problem."""
        seen = relaxed.observed
        values = (seen.weight > 0).sum(0).cpu().numpy()
        return cls(values, seen.channel.cpu().numpy(), seen.trajectory.numel(), int((~relaxed.known_start).sum()))


def noise_misfit(counts: SampleCounts, noise: FloatArray) -> float:
    """L that noise of these levels (d,) leaves at the fitted trajectories.

    Each trajectory takes one degree of freedom per state, its x(t0), unless that is known.
    """
    expected = float((counts.values * noise**2 * counts.channel).sum())
    values = max(int(counts.values.sum()), 1)
    return expected * max(1.0 - counts.free / values, 0.5)


def misfit_deviation(counts: SampleCounts, noise: FloatArray) -> float:
    """Relative standard deviation of L under Gaussian noise of these levels (d,): squares scatter by √2 each."""
    mean_square = noise**2 * counts.channel
    expected = float((counts.values * mean_square).sum())
    return float(np.sqrt(2.0 * (counts.values * mean_square**2).sum())) / expected if expected > 0 else 0.0


def mean_square_noise(counts: SampleCounts, noise: FloatArray) -> float:
    """Mean of (σ / c)² over the channels, from noise levels (d,)."""
    return float(np.mean(noise**2 * counts.channel)) * counts.times


def estimated_noise(
    error: FloatArray, samples_per_unknown: float, deviation: FloatArray, condition: float
) -> FloatArray | None:
    """Noise levels (d,) from step 0's held-out errors, where dense data shows them; else None.

    Parameters
    ----------
    error : ndarray, shape (d,)
        `StepZero.noise`; NaN where nothing was held out.
    samples_per_unknown : float
        Of the most sparsely sampled trajectory and channel.
    deviation : ndarray, shape (d,)
        Standard deviation of each channel: errors below a millionth of it are rounding, not noise.
    condition : float
        Of step 0; an ill-conditioned one shows its own error.
    """
    if samples_per_unknown < DENSE_SAMPLES or condition > 10.0 or not np.isfinite(error).all():
        return None
    return error if (error > 1e-6 * deviation).any() else None


class GammaChoice(NamedTuple):
    """The γ with the smallest held-out error, and what was tried: (γ, root mean square error in units of c)."""

    gamma: float
    tried: tuple[tuple[float, float], ...]


def choose_by_held_out(
    held_out_error: Callable[[float], float], candidates: Sequence[float] = CANDIDATES
) -> GammaChoice:
    """Try each γ and keep the best.

    Parameters
    ----------
    held_out_error : callable
        Trains shortly with γ on the kept samples, and returns the error at the others (`split_samples`,
        `sample_error`). Called from the largest γ to the smallest.
    """
    tried = []
    for gamma in sorted(candidates, reverse=True):
        error = held_out_error(gamma)
        tried.append((gamma, error if np.isfinite(error) else float("inf")))
    best = min(tried, key=lambda pair: pair[1])
    return GammaChoice(best[0], tuple(tried))


def split_samples(
    relaxed: RelaxedProblem, share: float, seed: int, team: Team = ALONE
) -> tuple[RelaxedProblem, RelaxedProblem]:
    """Two problems that differ in the samples that count: a share of the sample times is held out at random.

    The first of each trajectory stays: where x(t0) is free, nothing else would hold the beginning.
    """
    seen = relaxed.observed
    before, own = team.before(seen.trajectory.numel()), seen.trajectory.numel()
    draw = torch.from_numpy(np.random.default_rng([seed, 0x6A3]).random(before + own)[before:] < share)
    held = draw.to(seen.weight.device)
    held[:1] = False
    held[1:] &= seen.trajectory[1:] == seen.trajectory[:-1]
    keep = held[:, None].to(seen.weight.dtype)
    return relaxed.with_weight(seen.weight * (1.0 - keep)), relaxed.with_weight(seen.weight * keep)


def sample_error(relaxed: RelaxedProblem, nodes: Tensor, team: Team = ALONE) -> float:
    """Root mean square error at the samples that count, in units of c, over all processes."""
    seen = relaxed.observed
    cost = (seen.weight * seen.channel * relaxed.error(nodes) ** 2).sum()
    cost, weight, times = team.sum(cost, seen.weight.sum(), cost.new_tensor(seen.trajectory.numel()))
    return float((cost * times / weight.clamp_min(1e-300)).sqrt())
