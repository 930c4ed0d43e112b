"""Least squares of a model's own trajectory on the samples of an init window, over its initial state.

For every window, ``min over x(t_0) of Σ_k |(y_k - C x(t_k; x(t_0))) / c|²``, c the training range of each output, by
Levenberg-Marquardt (Marquardt 1963) on all windows at once. Sensitivities: the model and n copies of it, each with one
state displaced, are integrated as *one* system, so that they share every step and the difference quotient is that of
the discrete map itself ("internal numerical differentiation", Bock 1981). Directions of x(t_0) that the window hardly
determines do not move; a trial that diverges is a trial that failed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.forecasting.flow import Derivative, Flow

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DISPLACEMENT = 1e-4
"""Of a state's training range: far above the rounding of a float32 network, far below any curvature that matters."""

RANK_CUTOFF = 1e-3
"""Directions whose effect on the window is smaller than this, relative to the strongest, stay where they started."""

ITERATIONS = 50
CONVERGED = 1e-7
"""Step in units of the training range below which a window is done."""

TRIAL_EVALUATIONS = 20_000
"""Evaluations of f per trial: a start from which the model is this hard to integrate is not worth fitting."""

NEGLIGIBLE = 1e-12
"""Relative decrease of the squares that is not worth a step."""

FIRST_DAMPING, LEAST_DAMPING, HOPELESS_DAMPING = 1e-3, 1e-9, 1e6


class WindowSamples(NamedTuple):
    """Samples of V init windows.

    Attributes
    ----------
    owner : ndarray, shape (V,)
        Trajectory of each window.
    start : ndarray, shape (V,)
    row_size : ndarray, shape (V,)
    time : ndarray, shape (K,)
    values : ndarray, shape (K, d)
        NaN = not measured.
    """

    owner: IntArray
    start: FloatArray
    row_size: IntArray
    time: FloatArray
    values: FloatArray

    def select(self, chosen: IntArray) -> WindowSamples:
        """The chosen windows, in ascending order."""
        keep = np.isin(np.repeat(np.arange(self.row_size.size), self.row_size), chosen)
        return WindowSamples(
            self.owner[chosen], self.start[chosen], self.row_size[chosen], self.time[keep], self.values[keep]
        )


class Linearised(NamedTuple):
    """Residuals r and Jacobian at one initial state, as normal equations.

    Attributes
    ----------
    cost : ndarray, shape (V,)
        |r|²; infinite where the trajectory fails inside the window.
    gradient : ndarray, shape (V, n)
        Jᵀ r, in units of the training range.
    normal : ndarray, shape (V, n, n)
        JᵀJ.
    """

    cost: FloatArray
    gradient: FloatArray
    normal: FloatArray


def fit_starts(
    flow: Flow, samples: WindowSamples, guess: FloatArray, free: NDArray[np.bool_]
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Initial states that fit the windows best.

    Parameters
    ----------
    flow : Flow
    samples : WindowSamples
    guess : ndarray, shape (V, n)
        Where the iteration starts; also the values of states that are not free.
    free : ndarray of bool, shape (V, n)

    Returns
    -------
    states : ndarray, shape (V, n)
    found : ndarray of bool, shape (V,)
        False where a window holds no measured value or every trial diverged; its guess is returned as it was.
    """
    flow = replace(flow, tolerances=replace(flow.tolerances, max_evaluations=TRIAL_EVALUATIONS))
    unit = flow.model.unit
    x, linear = _choose_guess(flow, samples, guess, free)
    damping = np.full(len(x), FIRST_DAMPING)
    measured = np.bincount(
        np.repeat(np.arange(len(x)), samples.row_size), np.isfinite(samples.values).any(1), minlength=len(x)
    )
    found = np.isfinite(linear.cost) & (measured > 0)
    active = np.flatnonzero(found)
    for _ in range(ITERATIONS):
        if active.size == 0:
            break
        step = _step(linear.gradient[active], linear.normal[active], damping[active])
        trial = x[active] + step * unit
        before, promised = linear.cost[active], -np.einsum("vi,vi->v", linear.gradient[active], step)
        tried = _linearise(flow, samples.select(active), trial, free[active])
        better = tried.cost < linear.cost[active]
        accepted = active[better]
        x[accepted] = trial[better]
        for old, new in zip(linear, tried, strict=True):
            old[accepted] = new[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 10, LEAST_DAMPING), damping[active] * 10)
        done = np.abs(step).max(1) < CONVERGED
        done |= promised <= NEGLIGIBLE * before
        active = active[~done & (damping[active] < HOPELESS_DAMPING)]
    return x, found


def _choose_guess(
    flow: Flow, samples: WindowSamples, guess: FloatArray, free: NDArray[np.bool_]
) -> tuple[FloatArray, Linearised]:
    """The guess, or the mean start of training where the guess diverges inside its window."""
    x = guess.copy()
    linear = _linearise(flow, samples, x, free)
    lost = np.flatnonzero(~np.isfinite(linear.cost))
    if lost.size:
        other = np.where(free[lost], flow.model.start, x[lost])
        again = _linearise(flow, samples.select(lost), other, free[lost])
        saved = np.isfinite(again.cost)
        x[lost[saved]] = other[saved]
        for old, new in zip(linear, again, strict=True):
            old[lost[saved]] = new[saved]
    return x, linear


def _step(gradient: FloatArray, normal: FloatArray, damping: FloatArray) -> FloatArray:
    """-(JᵀJ + λ s_max² I)⁻¹ Jᵀ r without the directions below the rank cutoff, shape (V, n)."""
    square, directions = np.linalg.eigh(normal)
    square = np.maximum(square, 0.0)
    largest = square[:, -1:]
    usable = (square > RANK_CUTOFF**2 * largest) & (largest > 0)
    weight = np.where(usable, 1.0 / np.where(usable, square + damping[:, None] * largest, 1.0), 0.0)
    along = np.einsum("vij,vi->vj", directions, gradient)
    step: FloatArray = -np.einsum("vij,vj->vi", directions, weight * along)
    return step


def _linearise(flow: Flow, samples: WindowSamples, x0: FloatArray, free: NDArray[np.bool_]) -> Linearised:
    """Integrate the model and its displaced copies over all windows."""
    model = flow.model
    V, n = x0.shape
    copies = np.repeat(x0[:, None, :], n + 1, axis=1)  # (V, 1 + n, n), the first one undisplaced
    copies[:, 1:] += np.diag(DISPLACEMENT * model.unit)
    solution = flow.solve(
        samples.owner,
        copies.reshape(V, -1),
        samples.start,
        samples.row_size,
        samples.time,
        _side_by_side(model.derivative, n),
    )
    states = solution.states.cpu().numpy().reshape(-1, n + 1, n)
    outputs = states @ model.observation.T  # (K, 1 + n, d)
    weight = 1.0 / _output_unit(model.observation, model.unit)
    measured = np.isfinite(samples.values)
    residual = np.where(measured, (outputs[:, 0] - samples.values) * weight, 0.0)
    jacobian = (outputs[:, 1:] - outputs[:, :1]) * weight / DISPLACEMENT
    jacobian = np.where(measured[:, None, :], jacobian, 0.0)
    owner = np.repeat(np.arange(V), samples.row_size)
    cost, gradient, normal = np.zeros(V), np.zeros((V, n)), np.zeros((V, n, n))
    np.add.at(cost, owner, (residual**2).sum(1))
    np.add.at(gradient, owner, np.einsum("kid,kd->ki", jacobian, residual))
    np.add.at(normal, owner, np.einsum("kid,kjd->kij", jacobian, jacobian))
    gradient = np.where(free, gradient, 0.0)
    normal = np.where(free[:, :, None] & free[:, None, :], normal, 0.0)
    failed = ~(np.isfinite(cost) & np.isfinite(gradient).all(1) & np.isfinite(normal).all((1, 2)))
    failed |= solution.outcome.cpu().numpy() != 0
    cost[failed], gradient[failed], normal[failed] = np.inf, 0.0, 0.0
    return Linearised(cost, gradient, normal)


def _output_unit(observation: FloatArray, unit: FloatArray) -> FloatArray:
    """Training range of each output: of one state where it measures one, root sum of squares where several."""
    size = np.sqrt(((observation * unit) ** 2).sum(1))
    return np.where(size > 0, size, 1.0)


def _side_by_side(derivative: Derivative, n: int) -> Derivative:
    """The model and n copies of it as one system of (1 + n) n states."""

    def f(t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        N, width = x.shape
        k = width // n
        ones = derivative(t.repeat_interleave(k), x.reshape(N * k, n), u.repeat_interleave(k, dim=0))
        return ones.reshape(N, width)

    return f


__all__ = ["WindowSamples", "fit_starts"]
