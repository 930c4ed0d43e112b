"""Step 0 (`training.step_zero`) a slice of the trajectories at a time, for data that is larger than the memory.

Series of different trajectories share nothing, so that a slice gives the very series that the whole would, up to
rounding. What the whole decides is decided from sums: order and elements on the first trajectories, as always, errors
and noise from sums over the slices of all processes. Only where samples do not determine an element, the strength of
its penalty is that of its slice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.distributed import Team
from snet_cli.spectral.fitting import Samples, SeriesFit, fit_series
from snet_cli.spectral.mesh import Mesh, build_mesh
from snet_cli.training.held_out_noise import noise_if_exact
from snet_cli.training.node_inputs import inputs_at_nodes, jump_times
from snet_cli.training.relaxed_data import known_start_mask
from snet_cli.training.robust import SETTLED, clipped
from snet_cli.training.starts import with_lagged_inputs
from snet_cli.training.state_layout import StateLayout
from snet_cli.training.step_zero import (
    FittedChannels,
    StepZero,
    all_states,
    fitted_channels,
    fitted_samples,
    noise_of_slopes,
    rate_gains,
    rate_variance,
    require_two_samples,
    sample_noise,
    search_discretisation,
    start_at,
    start_of_outputs,
)

FloatArray = NDArray[np.float64]


CLIPPED_FITS = 100
"""Most repetitions of a slice's fit under Huber's loss: outliers at the ends of a trajectory need as many."""


@dataclass(frozen=True)
class Discretisation:
    """What is the same for all slices.

    Attributes
    ----------
    order, elements : int
        Of the longest trajectory.
    longest : float
        Its length.
    noise : ndarray, shape (d,)
        Held-out error of each output, NaN where nothing was held out.
    noise_floor : ndarray, shape (d,), or None
        Noise by which slopes are weighted, where there are any.
    threshold : ndarray, shape (d,), or None
        Huber's threshold of each output; None under squared errors.
    """

    order: int
    elements: int
    longest: float
    noise: FloatArray
    noise_floor: FloatArray | None
    threshold: FloatArray | None = None

    @classmethod
    def of(
        cls, zero: StepZero, first: Trajectories, layout: StateLayout, second_order: dict[str, str]
    ) -> Discretisation:
        """That of a step 0 that is known, for the same first trajectories."""
        slopes = fitted_channels(layout, second_order).slope_of
        return cls(
            zero.mesh.basis.order,
            zero.mesh.elements_of_longest,
            float((first.end - first.start).max()),
            zero.noise,
            noise_of_slopes(zero.noise, first.outputs) if slopes else None,
            zero.threshold,
        )


def discretise(
    first: Trajectories,
    layout: StateLayout,
    second_order: dict[str, str],
    *,
    order: int | None,
    elements: int | None,
    known_start: bool,
    seed: int,
    deadline: float,
) -> Discretisation:
    """Order and elements as `step_zero` would choose them, from its first trajectories.

    Parameters
    ----------
    first : Trajectories
        As many as the search looks at, and behind them the longest one, and the one with most samples.
    """
    channels = fitted_channels(layout, second_order)
    start, end = first.start, first.end
    longest = float((end - start).max())
    if order is not None and elements is not None and not channels.slope_of:
        sizes = {"order": order, "elements": elements}
        noise = noise_if_exact(first, layout, **sizes, known_start=known_start, seed=seed)
        return Discretisation(order, elements, longest, noise, None)
    samples = Samples(first.trajectory_of_row(), first.time, first.outputs)
    x0 = start_of_outputs(_known(first, layout, known_start), layout)
    jumps = jump_times(first.inputs.sampled, len(first))
    found = search_discretisation(start, end, samples, x0, channels, order, elements, jumps, seed, deadline)
    return Discretisation(found.order, found.elements, longest, found.noise, found.noise_floor)


def _known(data: Trajectories, layout: StateLayout, known_start: bool) -> FloatArray:
    """x(t0) (B, n) that is held, NaN where none is."""
    is_known, values = known_start_mask(data, layout.states)
    return np.where(is_known & known_start, values, np.nan)


class SliceSeries(NamedTuple):
    """The series of a slice: its mesh, node values (N, P, n), and the elements (N,) that its samples determine."""

    mesh: Mesh
    nodes: FloatArray
    determined: NDArray[np.bool_]


@dataclass
class StepZeroSums:
    """Fits slices, and adds up what the whole is judged by.

    Attributes
    ----------
    square, values : ndarray, shape (d,)
        Squared errors of the series at the samples, and how many values were measured.
    first, second : ndarray, shape (d,)
        Sums of measured values and of their squares, both of values less `origin`.
    times : int
        Sample times with any value.
    gains : ndarray, shape (3,)
        As from `rate_gains`.
    lag_time : float
        Time constant that lagged inputs begin with.
    """

    layout: StateLayout
    second_order: dict[str, str]
    found: Discretisation
    known_start: bool
    seed: int
    origin: FloatArray
    lag_time: float = 0.0
    condition: float = 0.0
    penalty: float = 0.0
    sums: dict[str, FloatArray] = field(default_factory=dict)

    def add(self, data: Trajectories) -> SliceSeries:
        """Fit the series of some trajectories; under Huber's loss repeatedly, to samples that are clipped."""
        require_two_samples(data)
        mesh, nodes, fit = self._fit(data)
        kept, threshold = data, self.found.threshold
        for _ in range(0 if threshold is None else CLIPPED_FITS):
            assert threshold is not None
            error = self._error(data, mesh, nodes)
            kept = clipped(data, error, threshold)
            mesh, nodes, fit = self._fit(kept)
            change = np.abs(self._error(data, mesh, nodes) - error) / threshold
            if np.nanmax(change, initial=0.0) < SETTLED:
                break
        self.condition, self.penalty = max(self.condition, fit.condition), max(self.penalty, fit.penalty)
        self._count(data, kept, mesh, nodes)
        return SliceSeries(mesh, nodes, fit.determined)

    def _error(self, data: Trajectories, mesh: Mesh, nodes: FloatArray) -> FloatArray:
        """Series minus samples, (obs, d)."""
        series = mesh.evaluate(nodes, data.trajectory_of_row(), data.time) @ self.layout.observation.T
        error: FloatArray = series - data.outputs
        return error

    def _fit(self, data: Trajectories) -> tuple[Mesh, FloatArray, SeriesFit]:
        layout, found = self.layout, self.found
        channels = fitted_channels(layout, self.second_order)
        known = _known(data, layout, self.known_start)
        x0 = start_of_outputs(known, layout)
        samples = fitted_samples(
            Samples(data.trajectory_of_row(), data.time, data.outputs), channels, found.noise_floor
        )
        jumps = jump_times(data.inputs.sampled, len(data))
        mesh = build_mesh(data.start, data.end, found.elements, found.order, jumps, found.longest)
        fit = fit_series(mesh, samples, None if x0 is None else x0[:, channels.fitted], self.seed)
        nodes = all_states(mesh, fit, layout, channels)
        start_at(nodes, mesh, known)
        if layout.lags:
            constants = np.full(len(layout.lags), self.lag_time)
            nodes = with_lagged_inputs(mesh, nodes, layout, inputs_at_nodes(mesh, data.inputs), constants)
        return mesh, nodes, fit

    def _count(self, data: Trajectories, kept: Trajectories, mesh: Mesh, nodes: FloatArray) -> None:
        """Add up errors at the samples that were fitted, and what the measured ones are."""
        mask = np.isfinite(data.outputs)
        moved = np.where(mask, data.outputs - self.origin, 0.0)
        self._sum("square", (np.where(mask, self._error(kept, mesh, nodes), 0.0) ** 2).sum(0))
        self._sum("values", mask.sum(0).astype(np.float64))
        self._sum("first", moved.sum(0))
        self._sum("second", (moved**2).sum(0))
        self._sum("times", np.array([mask.any(1).sum(), mesh.elements, mesh.trajectories], dtype=np.float64))
        self._sum("gains", rate_gains(mesh, Samples(data.trajectory_of_row(), data.time, data.outputs)))

    def _sum(self, name: str, value: FloatArray) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def total(self, team: Team) -> Judged:
        """What all slices of all processes say."""
        names = list(self.sums)
        whole = team.sum(*(torch.from_numpy(np.asarray(self.sums[name])) for name in names))
        sums = {name: value.numpy() for name, value in zip(names, whole, strict=True)}
        condition, penalty = team.largest(self.condition, self.penalty)
        count = np.maximum(sums["values"], 1.0)
        mean = sums["first"] / count
        spread = np.sqrt(np.maximum(sums["second"] / count - mean**2, 0.0))
        magnitude = np.abs(self.origin) + np.abs(mean) + spread
        spread = np.where(spread > 1e-12 * magnitude, spread, np.where(magnitude > 0, magnitude, 1.0))
        error = np.sqrt(sums["square"] / count)
        times, elements, trajectories = sums["times"].tolist()
        unknowns = int(elements) * self.found.order + int(trajectories)
        noise = sample_noise(sums["values"], unknowns, error, self.found.noise)
        channels: FittedChannels = fitted_channels(self.layout, self.second_order)
        variance = rate_variance(sums["gains"][:2] / sums["gains"][2], self.layout, channels, noise)
        return Judged(
            sums["values"], sums["square"], error, spread, int(times), int(elements), variance, condition, penalty
        )


class Judged(NamedTuple):
    """The whole of step 0 in numbers.

    Attributes
    ----------
    values, square, error, spread : ndarray, shape (d,)
        Measured values of each output, squared errors of the series in all, their root mean square, and the outputs'
        standard deviations.
    times, elements : int
        Sample times with any value, and elements, of all processes.
    rate_variance : ndarray, shape (n,)
        As in `StepZero`.
    condition, penalty : float
    """

    values: FloatArray
    square: FloatArray
    error: FloatArray
    spread: FloatArray
    times: int
    elements: int
    rate_variance: FloatArray
    condition: float
    penalty: float

    def misfit(self, *, scaled: bool) -> float:
        """L: squared errors over c², per sample time that holds any value."""
        scale = self.spread if scaled else np.ones_like(self.spread)
        return float((self.square / scale**2).sum() / max(self.times, 1))
