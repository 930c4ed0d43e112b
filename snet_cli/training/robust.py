"""Huber's loss (Huber 1964) by reweighting, for outliers: in step 0, in the x-step, and in the residual of exact data.

``ρ(r) = r² for |r| ≤ k, else 2k|r| - k²`` is touched from above by ``w r² + const`` with w = min(1, k / |r|) at the
current r, so that a step that lowers the weighted squares lowers Huber's loss (iteratively reweighted least squares).
Step 0 needs no weights: replacing y by ``C x + clip(y - C x, ±k)`` and fitting again has the same fixed point (the
method of modified residuals, Huber & Ronchetti 2009, sec. 7.8). The threshold k is 1.345 robust standard deviations
of a channel's errors, for 95 % efficiency on Gaussian noise, and stays fixed once it is known.

Where samples are exact, ẋ of step 0 is wrong by what its series cannot follow, and that is no noise: next to nothing on
most elements, and orders more on those few where x has a kink (agents whose bearing passes ±π). Squared, these decide
over θ; under Huber's loss they count linearly. There the threshold follows the defects while θ learns
(`residual_shares`; of whole elements where x moves too, `warm_up`), and held-out elements are scored by medians
(`median_residual`), which kinks do not move either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import ALONE, Team
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.relaxed import RelaxedPart, RelaxedParts, RelaxedProblem
from snet_cli.training.state_layout import StateLayout
from snet_cli.training.step_zero import StepZero

FloatArray = NDArray[np.float64]

TUNING = 1.345
"""Threshold in standard deviations."""

MAD_TO_STD = 1.4826
"""Median absolute deviation to standard deviation of a Gaussian."""

MOST_GATHERED = 100_000
"""Points that are gathered for a median, which is then one message instead of 63."""

ROUNDS, SETTLED = 30, 1e-3
"""Most repetitions of step 0, and the change of the errors, in thresholds, that ends them."""


def huber_weight(error: Tensor, threshold: Tensor) -> Tensor:
    """Weights min(1, k / |r|) of squared errors (K, d), thresholds (d,)."""
    return (threshold / error.abs().clamp_min(1e-300)).clamp_max(1.0)


def huber_threshold(error: FloatArray) -> FloatArray:
    """Threshold k of each channel, shape (d,), from errors (obs, d) with NaN where nothing was measured."""
    magnitude = np.abs(np.where(np.isfinite(error), error, np.nan))
    spread = np.array([np.median(m[np.isfinite(m)]) if np.isfinite(m).any() else 0.0 for m in magnitude.T])
    largest = np.nanmax(np.where(np.isfinite(magnitude), magnitude, 0.0), axis=0, initial=0.0)
    threshold: FloatArray = TUNING * MAD_TO_STD * spread
    return np.where(threshold > 1e-9 * largest, threshold, np.where(largest > 0, largest, 1.0))


@dataclass(frozen=True)
class WeighedParts:
    """Parts of a relaxed problem whose samples count as their errors at X tell, under Huber's loss.

    Attributes
    ----------
    source : RelaxedParts
    nodes : Tensor, shape (N, P, n)
        X.
    threshold : Tensor, shape (d,)
    """

    source: RelaxedParts
    nodes: Tensor
    threshold: Tensor

    @property
    def mesh(self) -> Mesh:
        """Of all trajectories of this process."""
        return self.source.mesh

    @property
    def quadrature(self) -> Tensor:
        """As in `relaxed.RelaxedParts`."""
        return self.source.quadrature

    @property
    def count(self) -> int:
        """Number of parts."""
        return self.source.count

    def sample_times(self, team: Team) -> int:
        """K of all processes."""
        return self.source.sample_times(team)

    def part(self, number: int) -> RelaxedPart:
        """One part with the weights of its samples."""
        part = self.source.part(number)
        far = huber_weight(part.relaxed.error(self.nodes[part.elements]), self.threshold)
        return part._replace(relaxed=part.relaxed.with_weight(part.relaxed.observed.weight * far))


def weighed(source: RelaxedParts, nodes: Tensor, threshold: Tensor) -> RelaxedParts:
    """The same with samples that count as their errors at X (N, P, n) tell, under Huber's loss, thresholds (d,)."""
    parts = WeighedParts(source, nodes, threshold)
    return parts.part(0).relaxed if isinstance(source, RelaxedProblem) else parts


def residual_shares(defect: Tensor, weight: Tensor, team: Team = ALONE) -> Tensor:
    """What each squared defect (Q, n) counts under Huber's loss, at the threshold of each state's defects of now.

    Points of weight (Q,) zero do not tell the threshold, those of all processes do.
    """
    threshold = TUNING * MAD_TO_STD * median_magnitude(defect[weight > 0], team)
    return torch.where(threshold > 0, huber_weight(defect, threshold), torch.ones_like(defect))


def element_residuals(defect: Tensor, weight: Tensor, elements: int) -> Tensor:
    """Root mean square of each state's f - ẋ in each element, shape (N, n).

    Parameters
    ----------
    defect, weight : Tensor, shapes (Q, n), (Q,)
        The points are those of the elements one after the other.
    elements : int
        N.
    """
    square = (weight[:, None] * defect.square()).view(elements, -1, defect.shape[1]).sum(1)
    return (square / weight.view(elements, -1).sum(1)[:, None]).sqrt()


def median_residual(defect: Tensor, weight: Tensor, scale: Tensor, team: Team = ALONE) -> Tensor:
    """R as the median defect of each state tells it: Σ_j (s_j · 1.4826 median |f - ẋ|_j)², from (Q, n), (Q,), (n,)."""
    return ((scale * MAD_TO_STD * median_magnitude(defect[weight > 0], team)) ** 2).sum()


def median_magnitude(values: Tensor, team: Team = ALONE) -> Tensor:
    """Lower median of |values| (Q, n) in each column, shape (n,), over the points of all processes.

    Where there are many points, none travels: magnitudes are ordered as their bits are, read as integers, and 63
    bisections of counts find the very number that a sort of all points would.
    """
    magnitude = values.abs()
    if team.size == 1:
        return magnitude.median(0).values
    (points,) = team.total(float(magnitude.shape[0]))
    if points <= MOST_GATHERED:
        whole = team.gather(magnitude)
        return team.once(lambda _: whole.median(0).values)
    bits = magnitude.double().contiguous().view(torch.int64)
    low = torch.zeros_like(bits[:1]).sum(0)
    high = torch.full_like(low, 0x7FF0_0000_0000_0000)  # infinity
    for _ in range(63):
        middle = low + (high - low) // 2
        (reached,) = team.sum((bits <= middle).sum(0))
        enough = reached > (points - 1) // 2
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    return high.view(torch.float64).to(values.dtype)


def robust_step_zero(
    fit: Callable[[Trajectories, int | None, int | None], StepZero],
    data: Trajectories,
    layout: StateLayout,
) -> StepZero:
    """Step 0 under Huber's loss.

    Parameters
    ----------
    fit : callable
        Step 0 of given data, order and elements (None = choose).
    data : Trajectories
    layout : StateLayout

    Returns
    -------
    zero : StepZero
        With its `threshold`; `misfit` and `error` are those of the clipped samples.

    Notes
    -----
    Outliers spoil the choice of order and elements too, so that it is made again once they are clipped.
    """
    zero = fit(data, None, None)
    threshold = huber_threshold(_error(zero, data, layout))
    for choose_again in (True, False):
        zero, threshold = _settle(fit, data, layout, zero)
        if choose_again:
            zero = fit(clipped(data, _error(zero, data, layout), threshold), None, None)
    return replace(zero, threshold=threshold)


def _settle(
    fit: Callable[[Trajectories, int | None, int | None], StepZero],
    data: Trajectories,
    layout: StateLayout,
    zero: StepZero,
) -> tuple[StepZero, FloatArray]:
    """Repeat step 0 on clipped samples, order and elements fixed, until the errors no longer change."""
    order, elements = zero.mesh.basis.order, zero.mesh.elements_of_longest
    error = _error(zero, data, layout)
    threshold = huber_threshold(error)
    for _ in range(ROUNDS):
        threshold = huber_threshold(error)
        zero = fit(clipped(data, error, threshold), order, elements)
        before, error = error, _error(zero, data, layout)
        if np.nanmax(np.abs(error - before) / threshold, initial=0.0) < SETTLED:
            break
    return zero, threshold


def _error(zero: StepZero, data: Trajectories, layout: StateLayout) -> FloatArray:
    """Series minus samples, (obs, d), NaN where nothing was measured."""
    series = zero.mesh.evaluate(zero.nodes, data.trajectory_of_row(), data.time)
    difference: FloatArray = series @ layout.observation.T - data.outputs
    return difference


def clipped(data: Trajectories, error: FloatArray, threshold: FloatArray) -> Trajectories:
    """The samples moved to within the threshold of the series."""
    return replace(data, outputs=data.outputs + error - np.clip(error, -threshold, threshold))


def as_tensor(threshold: FloatArray, device: torch.device) -> Tensor:
    """The thresholds for `Alpha`."""
    return torch.from_numpy(threshold).to(device)
