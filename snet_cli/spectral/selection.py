"""Automatic order and elements: raise the order, then split, until the error on held-out samples stops falling.

A fifth of the samples is held out, step 0 is fitted to the rest, and the error at the held-out samples is the score,
each channel in units of its own standard deviation or, where it is known, its noise. Densely sampled recordings lose
runs of samples rather than single ones: their noise is usually correlated by a filter, and neighbours of a single
sample would betray it. Orders rise on one element while the samples carry them (condition number,
`fitting.ILL_CONDITIONED`); then elements double. The discretisation with the fewest unknowns within a few per cent of
the best score wins: what is finer only fits noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from snet_cli.spectral.fitting import Samples, channel_scales, fit_series, shared_derivative
from snet_cli.spectral.mesh import Mesh, build_mesh

FloatArray = NDArray[np.float64]

ORDERS = (4, 6, 8, 10, 12, 14, 17, 20, 24, 28, 34, 40)
"""Orders tried on one element."""

ELEMENT_ORDERS = (4, 7, 12)
"""Orders tried on several elements."""

WORTH_IT = 1.05
"""A finer discretisation must lower the held-out error by this factor to be preferred."""

PATIENCE = 2
"""Doublings without a gain after which the search ends ..."""

ENOUGH_UNKNOWNS = 16
"""... once there is at least one unknown per this many samples: a long recording looks equally bad on 1, 2 and 4
elements, and only then improves."""

DENSE = 1000
"""Samples of the longest trajectory from which on runs of RUN_LENGTH samples are held out."""

RUN_LENGTH = 4

FOLDS = 5
"""A fifth of the samples is held out ..."""

FEW_SAMPLES = 4000
"""... and up to this many samples each fifth in turn: a single draw of a few samples would decide by chance ..."""

VERY_FEW_SAMPLES = 60
"""... and up to this many, every sample in turn."""

SELECTION_SAMPLES = 20_000
"""Samples that the search looks at: whole trajectories, the first ones."""


GUESSES = ((12, 1), (8, 4), (8, 16))
"""Order and elements that are tried first where time is limited."""


class Candidate(NamedTuple):
    """One discretisation and its held-out score."""

    order: int
    elements: int
    error: float


class Selection(NamedTuple):
    """What was chosen.

    Attributes
    ----------
    order, elements : int
    error : float
        Root mean square of the held-out errors, in units of `scale`.
    channel_error : ndarray, shape (d,)
        Held-out root mean square error of each channel, in its own unit: an estimate of the noise.
    slope_error : ndarray, shape (d,)
        The same for measured slopes; NaN where there are none.
    tried : tuple of Candidate
    """

    order: int
    elements: int
    error: float
    channel_error: FloatArray
    slope_error: FloatArray
    tried: tuple[Candidate, ...]


def choose_discretisation(
    start: FloatArray,
    end: FloatArray,
    samples: Samples,
    x0: FloatArray | None,
    *,
    order: int | None = None,
    elements: int | None = None,
    scale: FloatArray | None = None,
    slope_scale: FloatArray | None = None,
    jumps: Sequence[FloatArray] | None = None,
    seed: int = 0,
    deadline: float = math.inf,
) -> Selection:
    """Choose order and elements for step 0; either may be given.

    Parameters
    ----------
    start, end : ndarray, shape (B,)
    samples : Samples
        Ordered by trajectory and time; may hold slopes.
    x0 : ndarray, shape (B, d), optional
        Known initial values, as in `fit_series`.
    scale, slope_scale : ndarray, shape (d,), optional
        Units of the score: the channels' standard deviations unless given.
    jumps : sequence of B ndarrays, optional
        Input jumps, as in `build_mesh`.
    deadline : float
        Reading of `time.perf_counter` after which the best so far is taken.
    """
    search = _Search(start, end, samples, x0, scale, slope_scale, jumps, seed, deadline)
    if math.isfinite(deadline) and None in (order, elements):
        search.guess(order, elements)
    if elements in (None, 1):
        for p in ORDERS if order is None else (order,):
            if not search.try_one(p, 1):
                break
    if elements is None:
        stale, count = 0, 2
        while count <= search.most_elements:
            before = search.best_error
            if not any([search.try_one(p, count) for p in (ELEMENT_ORDERS if order is None else (order,))]):
                break
            stale = stale + 1 if search.best_error > before / WORTH_IT else 0
            if stale >= PATIENCE and count * ELEMENT_ORDERS[-1] * ENOUGH_UNKNOWNS >= search.samples_of_longest:
                break
            count *= 2
    elif elements > 1:
        for p in ELEMENT_ORDERS if order is None else (order,):
            search.try_one(p, elements)
    return search.choose(order, elements)


class _Search:
    """Held-out errors of discretisations on a part of the data."""

    def __init__(
        self,
        start: FloatArray,
        end: FloatArray,
        samples: Samples,
        x0: FloatArray | None,
        scale: FloatArray | None,
        slope_scale: FloatArray | None,
        jumps: Sequence[FloatArray] | None,
        seed: int,
        deadline: float,
    ) -> None:
        self.deadline = deadline
        count = np.bincount(samples.trajectory, minlength=start.size)
        few = max(1, int(np.searchsorted(np.cumsum(count), SELECTION_SAMPLES, side="right")))
        part = samples.subset(samples.trajectory < few)
        self.start, self.end = start[:few], end[:few]
        self.longest = float((end - start).max())
        self.x0 = None if x0 is None else x0[:few]
        self.jumps = None if jumps is None else jumps[:few]
        change = np.flatnonzero(np.diff(part.trajectory))
        run = RUN_LENGTH if count.max() >= DENSE else 1
        folds = part.time.size if part.time.size <= VERY_FEW_SAMPLES else FOLDS
        fold = np.repeat(np.random.default_rng([seed, 0xE1E]).permutation(part.time.size // run + 1) % folds, run)
        fold = fold[: part.time.size]
        fold[np.concatenate([[0], change, change + 1, [part.time.size - 1]])] = -1  # ends would be extrapolated
        used = [k for k in range(folds) if (fold == k).any()]
        used = used if part.time.size <= FEW_SAMPLES else used[:1]
        self.folds = [(part.subset(fold != k), part.subset(fold == k)) for k in used]
        self.scale = channel_scales(part.values)[1] if scale is None else scale
        self.slope_scale = slope_scale
        self.samples_of_longest = int(count.max())
        self.most_elements = max(1, int(count.max()) // 2)
        self.tried: list[Candidate] = []
        self.guessed: list[Candidate] = []
        self.errors: dict[tuple[int, int], tuple[FloatArray, FloatArray]] = {}

    @property
    def best_error(self) -> float:
        """The smallest score so far."""
        return min((candidate.error for candidate in self.tried), default=np.inf)

    def try_one(self, order: int, elements: int) -> bool:
        """Fit and score; False if the samples do not carry it, none can be held out, or the time is up."""
        if not self.folds or (self.tried and time.perf_counter() > self.deadline):
            return False
        share = max(1, round(elements * float((self.end - self.start).max()) / self.longest))
        mesh = build_mesh(self.start, self.end, share, order, self.jumps)
        values, slopes = [], []
        for kept, asked in self.folds:
            if mesh.elements * order > kept.time.size:
                return False
            fit = fit_series(mesh, kept, self.x0)
            if (fit.determined | _lacking(mesh, kept)).mean() < 0.9:
                return False
            values.append(mesh.evaluate(fit.nodes, asked.trajectory, asked.time) - asked.values)
            if asked.slopes is not None:
                slope = mesh.evaluate(shared_derivative(mesh, fit.nodes), asked.trajectory, asked.time)
                slopes.append(slope - asked.slopes)
        value_error = _root_mean_square(np.concatenate(values))
        slope_error = _root_mean_square(np.concatenate(slopes)) if slopes else np.full(value_error.size, np.nan)
        parts = value_error / self.scale
        if self.slope_scale is not None:
            parts = np.concatenate([parts, slope_error / self.slope_scale])
        error = float(np.sqrt(np.nanmean(parts**2))) if np.isfinite(parts).any() else np.inf
        self.tried.append(Candidate(order, elements, error))
        self.errors[order, elements] = (value_error, slope_error)
        return True

    def guess(self, order: int | None, elements: int | None) -> None:
        """Try some that are often good: a search that time cuts short would know the lowest orders only."""
        for p, count in GUESSES:
            self.try_one(order or p, elements or count)
        self.guessed, self.tried = self.tried, []

    def choose(self, order: int | None, elements: int | None) -> Selection:
        """The candidate with fewest unknowns among those within WORTH_IT of the best."""
        if time.perf_counter() > self.deadline:  # else guesses count for nothing: the same choice as without a limit
            self.tried += self.guessed
        if not self.tried:
            nothing = np.full(self.scale.size, np.nan)
            return Selection(order or ORDERS[0], elements or 1, np.inf, nothing, nothing, ())
        good = [candidate for candidate in self.tried if candidate.error <= self.best_error * WORTH_IT]
        chosen = min(good, key=lambda candidate: (candidate.order * candidate.elements, candidate.elements))
        return Selection(*chosen, *self.errors[chosen.order, chosen.elements], tuple(self.tried))


def _lacking(mesh: Mesh, samples: Samples) -> NDArray[np.bool_]:
    """Elements (N,) on which some channel has no sample at all: no discretisation could determine it there."""
    element, _ = mesh.locate(samples.trajectory, samples.time)
    count = np.zeros((mesh.elements, samples.values.shape[1]))
    np.add.at(count, element, np.isfinite(samples.values).astype(np.float64))
    lacking: NDArray[np.bool_] = np.any(count == 0, axis=1)
    return lacking


def _root_mean_square(error: FloatArray) -> FloatArray:
    """Per channel over measured values, shape (d,); NaN where nothing is measured."""
    mask = np.isfinite(error)
    count = mask.sum(0)
    mean = (np.where(mask, error, 0.0) ** 2).sum(0) / np.maximum(count, 1)
    return np.where(count > 0, np.sqrt(mean), np.nan)
