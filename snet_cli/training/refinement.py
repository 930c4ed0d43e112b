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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.spectral.mesh import Mesh, mesh_between
from snet_cli.spectral.refinement import (
    SMOOTH,
    decay_rate,
    orthonormal_coefficients,
    prolong,
    raise_order,
    refine_mesh,
    unresolved,
)
from snet_cli.training.observation import seen_part
from snet_cli.training.relaxed import RelaxedProblem
from snet_cli.training.relaxed_score import RelaxedScorer
from snet_cli.training.state_layout import StateLayout

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

RateFunction = Callable[[Mesh, FloatArray], FloatArray]
"""f(t, x, u) at the nodes of a mesh, from node values (N, P, n) to rates (N, P, n), u one-sided per element."""

NOISE_SHARE = 0.02
"""Error of an element, relative to a sample's noise, that nobody can tell: the estimate of a trajectory is wrong by a
third of the noise, errors add in squares, and an element's own error grows about tenfold along the trajectory."""

RELATIVE = 1e-5
"""The same relative to the state's deviation, where there is no noise."""

ROUNDING = 1e-13
"""Coefficients below this part of the state's deviation are zero."""

WORTH_IT = 1.5
"""A refinement must lower the largest relative error by this factor, else the next one is not tried ..."""

PATIENCE = 2
"""... twice running: the first cuts around a kink only bring it into a smaller element."""

HIGHEST_ORDER = 24
"""Order beyond which elements are split instead: blocks cost (p + 1)³."""

ORDER_GROWTH = 4 / 3
"""What the order is raised by at a time."""

MOSTLY = 0.5
"""Share of the marked elements that must be smooth for the order to rise."""


class Remeshed(NamedTuple):
    """A plan carried out.

    Attributes
    ----------
    plan : Refinement
    relaxed : RelaxedProblem
        On the new mesh, in the old scales; the old one where the plan is done.
    nodes : Tensor, shape (N', P', n)
        The series on it.
    """

    plan: Refinement
    relaxed: RelaxedProblem
    nodes: Tensor


class Remesher(Protocol):
    """What a method calls to go on on a finer mesh; only workflows know the data that problems are built from."""

    def refine(self, relaxed: RelaxedProblem, nodes: Tensor, before: Gain) -> Remeshed:
        """Judge the mesh by its converged series, and refine it where that is worth it."""
        ...

    def rebuild(self, relaxed: RelaxedProblem, mesh: Mesh, nodes: Tensor) -> RelaxedProblem:
        """The problem on another mesh, in the scales of `relaxed`."""
        ...

    def scorer(self, mesh: Mesh) -> RelaxedScorer | None:
        """The held-out data on elements like those of this mesh: a coarser one would prefer what was fitted on it."""
        ...


class Gain(NamedTuple):
    """What refinement has gained so far.

    Attributes
    ----------
    error : float
        Largest error of any element and state, relative to what is tolerated: below 1 nothing is refined.
    stale : int
        Refinements in a row that gained nothing.
    """

    error: float = np.inf
    stale: int = 0


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
    gain : Gain
    """

    split: BoolArray
    order: int
    reason: str
    done: bool
    gain: Gain

    def mesh(self, mesh: Mesh, jumps: Sequence[FloatArray] | None = None) -> Mesh:
        """The refined mesh; elements are cut on input jumps where there are any."""
        return refine_mesh(raise_order(mesh, self.order), self.split, jumps)


def plan_refinement(
    mesh: Mesh,
    nodes: FloatArray,
    rates: RateFunction,
    *,
    scale: FloatArray,
    noise: FloatArray,
    most_unknowns: IntArray | None = None,
    before: Gain | None = None,
    team: Team = ALONE,
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
    before : Gain, optional
        Of the plan that led to this mesh.
    team : Team
        The processes, each of which judges the mesh of its own trajectories; the order is that of all.
    """
    tolerance = np.maximum(NOISE_SHARE * np.nan_to_num(noise), RELATIVE * scale)
    error = element_errors(mesh, nodes, rates) / tolerance  # (N, n)
    worst = error.max(1)
    (largest,) = team.largest(float(worst.max()) if np.isfinite(worst).all() else np.inf)
    order, before = mesh.basis.order, before or Gain()
    gain = Gain(largest, before.stale + 1 if largest > before.error / WORTH_IT else 0)
    found = f"the mesh errs by {largest:.2g} of what noise hides"

    def stay(reason: str) -> Refinement:
        return Refinement(np.zeros(mesh.elements, bool), order, f"{reason}.", True, gain)

    if not np.isfinite(largest):
        return stay("f is not finite between the nodes")
    if largest <= 1.0:
        return stay(found)
    if gain.stale >= PATIENCE:
        return stay(f"{found}, {before.error:.2g} before: refining gains nothing")
    marked = worst > 1.0
    rate = decay_rate(orthonormal_coefficients(mesh.basis, nodes), ROUNDING * scale)
    smooth = np.where(error > 1.0, rate, np.inf).min(1) > SMOOTH
    raised = min(HIGHEST_ORDER, round(order * ORDER_GROWTH))
    of_marked, smooth_ones = team.total(float(marked.sum()), float(smooth[marked].sum()))
    (crowded,) = team.any(not _fits(mesh, raised, most_unknowns))
    if raised > order and smooth_ones > MOSTLY * of_marked and not crowded:
        reason = f"{found}, where x is smooth: order {order} to {raised}."
        return Refinement(np.zeros(mesh.elements, bool), raised, reason, False, gain)
    split = _within(mesh, marked, worst, most_unknowns)
    splits, elements = team.total(float(split.sum()), float(mesh.elements))
    if not splits:
        return stay(f"{found}, but has all the unknowns that it may have")
    return Refinement(split, order, f"{found}: {int(splits)} of {int(elements)} elements split.", False, gain)


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


def state_sizes(relaxed: RelaxedProblem, nodes: Tensor, team: Team = ALONE) -> FloatArray:
    """Standard deviation of each state over all trajectories, shape (n,); its magnitude, or 1, where it never moves."""
    (total,) = team.sum(relaxed.quadrature.sum())
    weight = (relaxed.quadrature / total)[:, :, None]
    (mean,) = team.sum((weight * nodes).sum((0, 1)))
    (variance,) = team.sum((weight * (nodes - mean) ** 2).sum((0, 1)))
    deviation = variance.sqrt()
    magnitude = torch.where(mean.abs() > 0, mean.abs(), torch.ones_like(mean))
    size: FloatArray = torch.where(deviation > 1e-12 * magnitude, deviation, magnitude).cpu().numpy()
    return size


def state_noise(
    relaxed: RelaxedProblem,
    nodes: Tensor,
    layout: StateLayout,
    scale: FloatArray,
    held_out: FloatArray,
    team: Team = ALONE,
) -> FloatArray:
    """Noise of one sample in each state's unit, shape (n,): the error at the samples, or step 0's held-out error.

    Whichever is smaller: where a coarse mesh misses the samples its error says nothing about their noise. A state that
    nothing measures gets the mean relative noise of the others.

    Parameters
    ----------
    scale : ndarray, shape (n,)
        Size of each state.
    held_out : ndarray, shape (d,)
        `StepZero.noise`; NaN where nothing was held out.
    """
    seen = relaxed.observed
    square, weight = team.sum((seen.weight * relaxed.error(nodes) ** 2).sum(0), seen.weight.sum(0))
    square = square / weight.clamp_min(1.0)
    error = square.sqrt().cpu().numpy()
    output = np.fmin(error, held_out)
    noise: FloatArray = np.sqrt(seen_part(layout) ** 2 @ output**2)
    known = (seen_part(layout) != 0).any(1)
    relative = (noise / scale)[known].mean() if known.any() else 0.0
    return np.where(known, noise, relative * scale)


def whole_mesh(mesh: Mesh, team: Team) -> Mesh:
    """The mesh of all processes, from each one's own."""
    return mesh_from_state({name: team.gather(v) if v.dim() else v for name, v in mesh_state(mesh).items()})


def mesh_state(mesh: Mesh) -> dict[str, Tensor]:
    """A mesh as tensors by name, for methods whose mesh changes while they train."""
    return {
        "order": torch.tensor(mesh.basis.order),
        "count": torch.from_numpy(np.diff(mesh.first_element)),
        "boundaries": torch.from_numpy(mesh.boundaries.copy()),
    }


def mesh_from_state(state: Mapping[str, Tensor]) -> Mesh:
    """The mesh that `mesh_state` described."""
    return mesh_between(state["boundaries"].numpy().copy(), state["count"].numpy().copy(), int(state["order"]))
