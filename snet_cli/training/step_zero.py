"""Step 0 of a data set: from Trajectories to node values of all states (Quaglino et al. 2020, eq. 2).

Measured states are fitted channel by channel. Where q' = v is given and both are measured, v is no series of its own: q
is fitted to the samples of q *and* of v (as slopes), each weighted by its noise, and v is its derivative. Two
independent series would contradict the known equation, and v' would be the derivative of a filtered signal: on a real
pendulum the forecast error falls by a factor of ten. An unmeasured v is the derivative of q as well. States that the
outputs see only through a matrix, or not at all, get a first guess (`observation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snet_cli.data.trajectories import Trajectories
from snet_cli.errors import DataError
from snet_cli.spectral.fitting import (
    Samples,
    SeriesFit,
    channel_scales,
    fit_series,
    orthonormal_scale,
    shared_derivative,
)
from snet_cli.spectral.mesh import Mesh, build_mesh
from snet_cli.spectral.selection import Selection, choose_discretisation
from snet_cli.training.node_inputs import jump_times
from snet_cli.training.observation import guess_states, seen_part
from snet_cli.training.relaxed_data import known_start_mask
from snet_cli.training.state_layout import StateLayout

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StepZero:
    """The series of all states.

    Attributes
    ----------
    mesh : Mesh
    nodes : ndarray, shape (N, P, n)
    counts : ndarray of bool, shape (N,)
        Elements that take part in R: those that their samples determine, or all where they are the smaller part.
    determined : ndarray of bool, shape (N,)
        Elements that their samples determine.
    misfit : float
        L of DESIGN, section 2: squared errors over c², per sample time that holds any value.
    error : ndarray, shape (d,)
        Root mean square error of each output at its samples.
    noise : ndarray, shape (d,)
        Held-out error of each output: an estimate of its noise; NaN where nothing was held out, as where order and
        elements are given (but see `held_out_noise`).
    rate_variance : ndarray, shape (n,)
        What that noise leaves in ẋ: mean square error of each state's derivative on the nodes; 0 for a hidden state,
        which has no samples.
    condition, penalty : float
        As in `SeriesFit`.
    threshold : ndarray, shape (d,), or None
        Huber's threshold of each output; None under squared errors.
    """

    mesh: Mesh
    nodes: FloatArray
    counts: NDArray[np.bool_]
    determined: NDArray[np.bool_]
    misfit: float
    error: FloatArray
    noise: FloatArray
    rate_variance: FloatArray
    condition: float
    penalty: float
    threshold: FloatArray | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user of δ-SNet should know of elements that their samples do not determine."""
        count = int((~self.determined).sum())
        if count == 0:
            return ()
        found = f"{count} of {self.determined.size} elements"
        if self.counts.all():
            return (
                f"{found} are not determined by their samples; step 0 is smoothed (strength {self.penalty:g}, by "
                "held-out samples). A lower --order or fewer --elements may serve better.",
            )
        return (f"{found} lie in gaps of the data and do not count in the residual.",)


@dataclass(frozen=True)
class FittedChannels:
    """Which outputs are fitted as series, and which give slopes to another."""

    fitted: list[int]
    """Outputs with a series of their own."""
    slope_of: dict[int, int]
    """Output of q -> output of v."""


def step_zero(
    data: Trajectories,
    layout: StateLayout,
    second_order: dict[str, str],
    *,
    order: int | None,
    elements: int | None,
    known_start: bool,
    scaled_misfit: bool,
    seed: int,
    deadline: float = math.inf,
) -> StepZero:
    """Choose the discretisation where it is not given, and fit all series.

    Parameters
    ----------
    data : Trajectories
    layout : StateLayout
    second_order : dict
        Pairs q: v with q' = v given.
    order, elements : int or None
        None = choose.
    known_start : bool
        Hold x(t0) of each state at the file's x0 where it is known.
    scaled_misfit : bool
        Whether c is the channel's standard deviation, else 1 (the paper's presets).
    deadline : float
        Reading of `time.perf_counter` after which the search for a discretisation takes its best so far.

    Raises
    ------
    DataError
        If a trajectory is too short to be fitted.
    """
    require_two_samples(data)
    channels = fitted_channels(layout, second_order)
    start, end = data.start, data.end
    samples = Samples(data.trajectory_of_row(), data.time, data.outputs)
    is_known, values = known_start_mask(data, layout.states)
    known = np.where(is_known & known_start, values, np.nan)
    x0 = start_of_outputs(known, layout)
    jumps = jump_times(data.inputs.sampled, len(data))
    if order is None or elements is None or channels.slope_of:
        search = search_discretisation(start, end, samples, x0, channels, order, elements, jumps, seed, deadline)
        order, elements, noise = search.order, search.elements, search.noise
        samples = search.samples
    else:
        noise = np.full(data.outputs.shape[1], np.nan)
        samples = fitted_samples(samples, channels, None)
    mesh = build_mesh(start, end, elements, order, jumps)
    fit = fit_series(mesh, samples, None if x0 is None else x0[:, channels.fitted], seed)
    nodes = all_states(mesh, fit, layout, channels)
    start_at(nodes, mesh, known)
    error, misfit = _misfit(data, mesh, nodes, layout, scaled_misfit)
    values = np.isfinite(data.outputs).sum(0)
    unknowns = mesh.elements * mesh.basis.order + mesh.trajectories
    gains = rate_gains(mesh, samples)
    variance = rate_variance(gains[:2] / gains[2], layout, channels, sample_noise(values, unknowns, error, noise))
    counts, determined = _elements_that_count(fit), fit.determined
    return StepZero(mesh, nodes, counts, determined, misfit, error, noise, variance, fit.condition, fit.penalty)


def require_two_samples(data: Trajectories) -> None:
    """Refuse a trajectory of which no series can be made.

    Raises
    ------
    DataError
    """
    short = np.flatnonzero(data.row_size < 2)
    if short.size:
        raise DataError(
            f"trajectory '{data.ids[short[0]]}' has {data.row_size[short[0]]} sample(s); training needs 2.",
            "Leave it out of the file, or put it in the split 'test'.",
        )


def fitted_channels(layout: StateLayout, second_order: dict[str, str]) -> FittedChannels:
    """Which outputs get a series, given the pairs q: v with q' = v."""
    output_of = {name: int(output) for name, output in zip(layout.states, layout.measured, strict=True) if output >= 0}
    slope_of = {output_of[q]: output_of[v] for q, v in second_order.items() if q in output_of and v in output_of}
    # v may itself be the q of another pair (a chain of integrators): then it keeps its own series
    slope_of = {q: v for q, v in slope_of.items() if v not in slope_of}
    fitted = [i for i in range(len(layout.outputs)) if i not in slope_of.values()]
    return FittedChannels(fitted, slope_of)


def start_of_outputs(known: FloatArray, layout: StateLayout) -> FloatArray | None:
    """C x0, shape (B, d), NaN where an output sees a state whose x0 is unknown; None where nothing is known."""
    sees = layout.observation != 0
    complete = ~(np.isnan(known)[:, None, :] & sees).any(2)
    x0 = np.where(complete, np.where(np.isnan(known), 0.0, known) @ layout.observation.T, np.nan)
    return x0 if complete.any() else None


def start_at(nodes: FloatArray, mesh: Mesh, known: FloatArray) -> None:
    """Move x(t0) to where it is known, by an offset that fades out over the first element; writes into `nodes`.

    A series that was fitted through x0 is there already. Others are not: velocities that are q', and hidden states. A
    jump of the first node alone would spoil the derivative on the whole element.
    """
    first = mesh.first_element[:-1]
    offset = np.where(np.isnan(known), 0.0, known - nodes[first, 0])
    offset[np.abs(offset) <= 1e-12 * np.abs(nodes).max((0, 1))] = 0.0
    fading = 0.5 * (1.0 - mesh.basis.nodes)
    nodes[first] += fading[:, None] * offset[:, None, :]
    nodes[first, 0] = np.where(offset != 0.0, known, nodes[first, 0])


@dataclass(frozen=True)
class SearchResult:
    """Order, elements of the longest trajectory, held-out errors, what is fitted, and the noise that weights slopes."""

    order: int
    elements: int
    noise: FloatArray
    samples: Samples
    noise_floor: FloatArray | None = None


def search_discretisation(
    start: FloatArray,
    end: FloatArray,
    samples: Samples,
    x0: FloatArray | None,
    channels: FittedChannels,
    order: int | None,
    elements: int | None,
    jumps: list[FloatArray],
    seed: int,
    deadline: float,
) -> SearchResult:
    """Discretisation and noise: first a series per output, which tells each one's noise, then with pairs joined."""

    def choose(part: Samples, known: FloatArray | None, scales: tuple[FloatArray, FloatArray] | None) -> Selection:
        scale, slope_scale = scales or (None, None)
        return choose_discretisation(
            start,
            end,
            part,
            known,
            order=order,
            elements=elements,
            scale=scale,
            slope_scale=slope_scale,
            jumps=jumps,
            seed=seed,
            deadline=deadline,
        )

    apart = choose(samples, x0, None)
    noise = apart.channel_error
    noise_floor = noise_of_slopes(noise, samples.values)
    if not channels.slope_of:
        return SearchResult(apart.order, apart.elements, noise, samples)
    joined = fitted_samples(samples, channels, noise_floor)
    fitted = channels.fitted
    slope_scale = np.array([noise_floor[channels.slope_of.get(i, i)] for i in fitted])
    together = choose(joined, None if x0 is None else x0[:, fitted], (noise_floor[fitted], slope_scale))
    return SearchResult(together.order, together.elements, noise, joined, noise_floor)


def noise_of_slopes(noise: FloatArray, values: FloatArray) -> FloatArray:
    """Noise of each output (d,) by which slopes are weighted: at least rounding, where it is known or not."""
    floor = 1e-12 * channel_scales(values)[1]
    return np.where(np.isfinite(noise), np.maximum(noise, floor), floor)


def fitted_samples(samples: Samples, channels: FittedChannels, noise: FloatArray | None) -> Samples:
    """The samples of the fitted outputs, with v's samples as slopes of q, weighted by (σ_q / σ_v)²."""
    values = samples.values[:, channels.fitted]
    if noise is None or not channels.slope_of:
        return samples._replace(values=values)
    slopes = np.full(values.shape, np.nan)
    weight = np.zeros(values.shape[1])
    for column, output in enumerate(channels.fitted):
        if output in channels.slope_of:
            v = channels.slope_of[output]
            slopes[:, column] = samples.values[:, v]
            weight[column] = (noise[output] / noise[v]) ** 2
    return samples._replace(values=values, slopes=slopes, slope_weight=weight)


def all_states(mesh: Mesh, fit: SeriesFit, layout: StateLayout, channels: FittedChannels) -> FloatArray:
    """Node values of all n states: fitted series, derivatives of them for given velocities, a guess for the rest."""
    series = np.zeros((*fit.nodes.shape[:2], len(layout.outputs)))
    slopes = shared_derivative(mesh, fit.nodes)
    for column, output in enumerate(channels.fitted):
        series[:, :, output] = fit.nodes[:, :, column]
        if output in channels.slope_of:
            series[:, :, channels.slope_of[output]] = slopes[:, :, column]
    if not layout.direct or len(layout.hidden) > len(layout.derived):
        return guess_states(mesh, series, layout)
    nodes = np.zeros((*fit.nodes.shape[:2], len(layout.states)))
    nodes[:, :, layout.observation.argmax(1)] = series
    for v, q in layout.derived:
        nodes[:, :, v] = shared_derivative(mesh, nodes[:, :, [q]])[:, :, 0]
    return nodes


def _misfit(
    data: Trajectories, mesh: Mesh, nodes: FloatArray, layout: StateLayout, scaled: bool
) -> tuple[FloatArray, float]:
    """Error per output (d,) and L."""
    series = mesh.evaluate(nodes, data.trajectory_of_row(), data.time) @ layout.observation.T
    mask = np.isfinite(data.outputs)
    square = np.where(mask, series - np.where(mask, data.outputs, 0.0), 0.0) ** 2
    scale = channel_scales(data.outputs)[1] if scaled else np.ones(data.outputs.shape[1])
    error = np.sqrt(square.sum(0) / np.maximum(mask.sum(0), 1))
    return error, float((square / scale**2).sum() / max(int(mask.any(1).sum()), 1))


def sample_noise(values: FloatArray, unknowns: int, error: FloatArray, held_out: FloatArray) -> FloatArray:
    """σ of each output (d,): its residual over the degrees of freedom left, or the held-out error where that is less.

    The held-out error alone would count what a coarse discretisation misses as noise of the data.

    Parameters
    ----------
    values : ndarray, shape (d,)
        Measured values of each output.
    unknowns : int
        Of the series of one output.
    """
    left = np.maximum(values - unknowns, 1)
    noise = error * np.sqrt(values / left)
    result: FloatArray = np.where(np.isfinite(held_out), np.minimum(noise, held_out), noise)
    return result


def rate_gains(mesh: Mesh, samples: Samples) -> FloatArray:
    """What a unit of noise of the samples leaves in first and second derivatives: two sums, and their weight.

    In the orthonormal basis the normal matrix of many samples tends to their number n_e times the identity, hence the
    coefficients have variance σ² / n_e, and the k-th derivative on the nodes has on average
    ``σ² / n_e (2/h)^{2k} Σ_q w_q/2 Σ_i (φ_i^{(k)}(τ_q))²``.
    """
    basis = mesh.basis
    element, _ = mesh.locate(samples.trajectory, samples.time)
    count = np.bincount(element, minlength=mesh.elements)
    share = np.where(count > 0, mesh.width, 0.0)
    rows = basis.M * orthonormal_scale(basis.order)
    gains = []
    for k in (1, 2):
        rows = basis.differentiation @ rows
        gain = 0.5 * float((basis.weights[:, None] * rows**2).sum())
        per_element = gain * (2.0 / mesh.width) ** (2 * k) / np.maximum(count, 1)
        gains.append(float((share * per_element).sum()))
    return np.array([*gains, float(share.sum())])


def rate_variance(gains: FloatArray, layout: StateLayout, channels: FittedChannels, noise: FloatArray) -> FloatArray:
    """Mean square error (n,) that noise (d,) of the samples leaves in each state's derivative.

    A velocity that is q' takes the second gain for its own derivative.
    """
    of_output = np.zeros(len(layout.outputs))
    for output in channels.fitted:
        of_output[output] = noise[output] ** 2 * gains[0]
        if output in channels.slope_of:
            of_output[channels.slope_of[output]] = noise[output] ** 2 * gains[1]
    variance: FloatArray = seen_part(layout) ** 2 @ of_output
    for v, q in layout.derived:
        variance[v] = variance[q] * gains[1] / gains[0]
    return variance


def _elements_that_count(fit: SeriesFit) -> NDArray[np.bool_]:
    """Elements of R: without those in gaps, unless that would leave out most of the data."""
    counts: NDArray[np.bool_] = fit.determined | (fit.determined.mean() < 0.5)
    return counts
