"""Where to refine: elements to split, an order to raise, or nothing, judged from the series and the right-hand side.

Two numbers per element and state. *Error*: ẋ of a series of order p has degree p - 1; the parts of f(t, x, u) of
degree p and higher, seen at nodes of a finer mesh, are what the element cannot follow, and integrated once they
estimate its error in x (`spectral.refinement.unresolved`). What f misses of lower degrees is the model's misfit or
γ's relaxation, which no mesh mends. *Decay*: how fast the coefficients of x fall, which tells smooth from kinked.

An element is refined where its error exceeds a share of the noise of the estimated states (below, the samples cannot
tell), or of the state's size where there is no noise. Marked elements are split, all in one go; where they are smooth
the order of the whole mesh rises instead, because one order serves all elements. Splits stop at a number of unknowns
per trajectory, the largest errors first, and everything stops when the last refinement gained nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snet_cli.spectral.mesh import Mesh
from snet_cli.spectral.refinement import SMOOTH, decay_rate, orthonormal_coefficients, prolong, raise_order, unresolved

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

RateFunction = Callable[[Mesh, FloatArray], FloatArray]
"""f(t, x, u) at the nodes of a mesh, from node values (N, P, n) to rates (N, P, n), u one-sided per element."""

NOISE_SHARE = 0.1
"""Error of the discretisation, relative to a sample's noise, that nobody can tell: the estimate of a trajectory from a
few samples per unknown is wrong by a third of the noise or more, and errors add in squares."""

RELATIVE = 1e-6
"""The same relative to the state's deviation, where there is no noise."""

ROUNDING = 1e-13
"""Coefficients below this part of the state's deviation are zero."""

GAIN = 1.5
"""A refinement must lower the largest relative error by this factor, else the next one is not tried ..."""

PATIENCE = 2
"""... twice running: the first cuts around a kink only bring it into a smaller element."""

HIGHEST_ORDER = 24
"""Order beyond which elements are split instead: blocks cost (p + 1)³."""

ORDER_GROWTH = 4 / 3
"""What the order is raised by at a time."""

MOSTLY = 0.5
"""Share of the marked elements that must be smooth for the order to rise."""


@dataclass(frozen=True)
class Refinement:
    """What to do next, and why.

    Attributes
    ----------
    split : ndarray of bool, shape (N,)
        Elements to cut in two.
    order : int
        Order of the next mesh.
    reason : str
        One sentence.
    done : bool
        Whether the mesh is to stay as it is.
    error : float
        Largest error of any element and state, relative to what is tolerated: below 1 nothing is refined.
    stale : int
        Refinements in a row that gained nothing.
    """

    split: BoolArray
    order: int
    reason: str
    done: bool
    error: float
    stale: int = 0


def plan_refinement(
    mesh: Mesh,
    nodes: FloatArray,
    rates: RateFunction,
    *,
    scale: FloatArray,
    noise: FloatArray,
    most_unknowns: IntArray | None = None,
    previous: Refinement | None = None,
) -> Refinement:
    """Judge a mesh by the series that was found on it.

    Parameters
    ----------
    mesh : Mesh
    nodes : ndarray, shape (N, P, n)
        The series, converged on this mesh.
    rates : callable
        f of the model at hand.
    scale : ndarray, shape (n,)
        Size of each state, e.g. its standard deviation.
    noise : ndarray, shape (n,)
        Standard deviation of the noise of one sample in each state's unit; 0 or NaN where it is unknown.
    most_unknowns : ndarray of int, shape (B,), optional
        Unknowns that each trajectory may have per state; any number unless given.
    previous : Refinement, optional
        The plan that led to this mesh.
    """
    tolerance = np.maximum(NOISE_SHARE * np.nan_to_num(noise), RELATIVE * scale)
    error = element_errors(mesh, nodes, rates) / tolerance  # (N, n)
    worst = error.max(1)
    largest = float(worst.max()) if np.isfinite(worst).all() else np.inf
    order = mesh.basis.order
    nothing = np.zeros(mesh.elements, bool)
    if not np.isfinite(largest):
        return Refinement(
            nothing, order, "f is not finite between the nodes, so that no mesh can be judged.", True, largest
        )
    if largest <= 1.0:
        return Refinement(nothing, order, f"the mesh errs by {largest:.2g} of what noise hides.", True, largest)
    stale = 0
    if previous is not None and largest > previous.error / GAIN:
        stale = previous.stale + 1
        if stale >= PATIENCE:
            reason = f"refining gained nothing: {largest:.2g} of what noise hides, {previous.error:.2g} before."
            return Refinement(nothing, order, reason, True, largest, stale)
    marked = worst > 1.0
    rate = decay_rate(orthonormal_coefficients(mesh.basis, nodes), ROUNDING * scale)
    smooth = np.where(error > 1.0, rate, np.inf).min(1) > SMOOTH
    raised = min(HIGHEST_ORDER, round(order * ORDER_GROWTH))
    if raised > order and smooth[marked].mean() > MOSTLY and _fits(mesh, raised, most_unknowns):
        reason = f"order {order} -> {raised}: {largest:.2g} of what noise hides, where x is smooth."
        return Refinement(nothing, raised, reason, False, largest, stale)
    split = _within(mesh, marked, worst, most_unknowns)
    if not split.any():
        reason = f"the mesh errs by {largest:.2g} of what noise hides, but has all the unknowns that it may have."
        return Refinement(nothing, order, reason, True, largest, stale)
    reason = f"{int(split.sum())} of {mesh.elements} elements split: {largest:.2g} of what noise hides."
    return Refinement(split, order, reason, False, largest, stale)


def element_errors(mesh: Mesh, nodes: FloatArray, rates: RateFunction) -> FloatArray:
    """Error estimate in x per element and state, shape (N, n), in the state's unit.

    f is evaluated at twice as many nodes, where products of series of order p are still exact.
    """
    finer = raise_order(mesh, min(2 * mesh.basis.order, 100))
    return unresolved(finer.basis, rates(finer, prolong(mesh, nodes, finer)), mesh.width, mesh.basis.order)


def _fits(mesh: Mesh, order: int, most: IntArray | None) -> bool:
    """Whether this order leaves all trajectories within their unknowns."""
    return most is None or bool((np.diff(mesh.first_element) * order + 1 <= most).all())


def _within(mesh: Mesh, marked: BoolArray, worst: FloatArray, most: IntArray | None) -> BoolArray:
    """Of the marked elements those with the largest errors that each trajectory's unknowns allow to split."""
    if most is None:
        return marked
    room = (most - 1) // mesh.basis.order - np.diff(mesh.first_element)  # further elements, (B,)
    order = np.lexsort((-np.where(marked, worst, -np.inf), mesh.trajectory))
    rank = np.empty(mesh.elements, np.int64)
    rank[order] = np.arange(mesh.elements) - mesh.first_element[mesh.trajectory[order]]
    allowed: BoolArray = marked & (rank < room[mesh.trajectory])
    return allowed
