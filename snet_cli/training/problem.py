"""The relaxed problem on the nodes: the residual R of Quaglino et al. 2020, eqs. 3 and 7.

``R = Σ_b (T_b / ΣT) Σ_q w_q |s ⊙ (ẋ - f)(t_q)|²``, quadrature weights w summing to 1 over a trajectory, s one scale per
state. All points of all elements of all trajectories stand in one list of length Q = N P, so that R costs one
evaluation of f on one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model, NodeData
from snet_cli.models.stacks import StackSquares
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.state_layout import StateLayout

FloatArray = NDArray[np.float64]

RUNS = 200
"""Runs of elements at most that a held-out share is drawn from."""

ROUNDING = 1e-12
"""Way over an element, relative to its magnitude, that is the rounding of a state at rest."""


class Points(Protocol):
    """The points of R that a process has: all in memory (`Problem`), or made a block at a time (`blocks`).

    Attributes
    ----------
    mesh : Mesh
        Of all elements of this process.
    """

    @property
    def mesh(self) -> Mesh: ...  # noqa: D102

    def parts(self) -> Iterator[Problem]:
        """Problems on some points each, in the weights that they have in the whole, over which R is a sum."""
        ...

    def residual(self, model: Model) -> Callable[[], Tensor]:
        """R as a function of the weights of this model."""
        ...

    def with_share(self, share: Tensor) -> Self:
        """The same with squared residuals that count for so much, shape (N, n), by element and state."""
        ...


@dataclass(frozen=True)
class Problem:
    """Everything a method needs; float64 tensors on one device.

    Attributes
    ----------
    layout : StateLayout
    mesh : Mesh
    nodes : ndarray, shape (N, P, n)
        Node values of step 0.
    t : Tensor, shape (Q,)
        Time since the trajectory's start.
    x, derivative : Tensor, shape (Q, n)
        The series and ẋ.
    u : Tensor, shape (Q, m + c)
        Inputs, then known constants.
    weight : Tensor, shape (Q,)
        (T_b / ΣT) w_q; zero on elements that no sample determines; sums to 1.
    scale : Tensor, shape (n,)
        s, one over the root mean square of ẋ; ones in the paper's presets.
    share : Tensor, shape (Q, n), optional
        What each squared defect counts, where not all count alike.
    """

    layout: StateLayout
    mesh: Mesh
    nodes: FloatArray
    t: Tensor
    x: Tensor
    derivative: Tensor
    u: Tensor
    weight: Tensor
    scale: Tensor
    share: Tensor | None = None

    def parts(self) -> Iterator[Problem]:
        """All of it at once (`Points`)."""
        yield self

    def with_share(self, share: Tensor) -> Problem:
        """The same with squared residuals that count for so much, shape (N, n), by element and state."""
        return replace(self, share=share.repeat_interleave(self.weight.numel() // share.shape[0], 0))

    def node_data(self) -> NodeData:
        """What models set their normalisation from: the points that count."""
        counts = self.weight > 0
        return NodeData(self.t[counts], self.x[counts], self.u[counts], self.derivative[counts], self.weight[counts])

    def with_scale_of(self, other: Problem) -> Problem:
        """The same problem measured by another one's s, so that a held-out R is comparable."""
        return replace(self, scale=other.scale)

    def between(self, begin: int, end: int) -> Problem:
        """Trajectories `begin` to `end` with the weights that they have in the whole, which is not a split one."""
        first = self.mesh.first_element
        elements = slice(int(first[begin]), int(first[end]))
        P = self.mesh.basis.order + 1
        points = slice(elements.start * P, elements.stop * P)
        return replace(
            self,
            mesh=self.mesh.between(begin, end),
            nodes=self.nodes[elements],
            t=self.t[points],
            x=self.x[points],
            derivative=self.derivative[points],
            u=self.u[points],
            weight=self.weight[points],
            share=None if self.share is None else self.share[points],
        )

    def split_elements(self, share: float, seed: int, team: Team = ALONE) -> tuple[Problem, Problem]:
        """Two problems: a share of the elements is held out; the weights of both sum to 1 over all processes.

        Runs of neighbours are drawn at random, because neighbours share an end node and the noise in it: single
        elements would go on improving while the model learns that noise.
        """
        held = held_out_elements(self.mesh.elements, share, seed, team)
        points = torch.from_numpy(np.repeat(held, self.mesh.basis.order + 1)).to(self.t.device)
        return self._restricted(~points, team), self._restricted(points, team)

    def residual(self, model: Model) -> Residual:
        """R as a function of the weights of this model."""
        return Residual(self, model)

    def _restricted(self, points: Tensor, team: Team) -> Problem:
        weight = self.weight[points]
        (total,) = team.sum(weight.sum())
        return replace(
            self,
            t=self.t[points],
            x=self.x[points],
            derivative=self.derivative[points],
            u=self.u[points],
            weight=weight / total,
            share=None if self.share is None else self.share[points],
        )


def held_out_elements(own: int, share: float, seed: int, team: Team = ALONE) -> NDArray[np.bool_]:
    """Which of a process's `own` elements are held out, shape (own,); the draw is one over all processes."""
    elements, before = int(team.total(own)[0]), team.before(own)
    run = max(1, elements // RUNS)
    draw = np.random.default_rng([seed, 0x5B1]).permutation(-(-elements // run))
    held_runs = np.zeros(draw.size, bool)
    held_runs[draw[: max(1, round(share * draw.size))]] = True
    held: NDArray[np.bool_] = np.repeat(held_runs, run)[before : before + own]
    return held


class Residual:
    """R as a function of θ with x fixed: features are computed once, a call evaluates f at all points and sums.

    Models that are linear in stacks of layers have R and its gradient by hand (`models.stacks`), all others by
    automatic differentiation.

    Parameters
    ----------
    problem : Problem
    model : Model
    """

    def __init__(self, problem: Problem, model: Model) -> None:
        self.model = model
        dtype = next((p.dtype for p in model.parameters()), torch.float64)
        with torch.no_grad():
            self.features = tuple(part.to(dtype) for part in model.features(problem.t, problem.x, problem.u))
            self.target = problem.derivative
            self.factor = problem.weight[:, None] * problem.scale**2  # (Q, n)
            if problem.share is not None:
                self.factor = self.factor * problem.share
            form = model.in_stacks(*self.features) if len(self.target) else None
            self.squares = None if form is None else StackSquares(form, self.target, self.factor)

    def __call__(self) -> Tensor:
        """R, a scalar that can be differentiated with respect to θ."""
        if self.squares is not None:
            return self.squares()
        defect = self.defect()
        return (self.factor * defect * defect).sum()

    def defect(self) -> Tensor:
        """F - ẋ, shape (Q, n)."""
        return self.model.from_features(*self.features) - self.target


def assemble_problem(
    layout: StateLayout,
    mesh: Mesh,
    nodes: FloatArray,
    determined: NDArray[np.bool_],
    inputs: FloatArray,
    *,
    scaled: bool,
    device: torch.device,
) -> Problem:
    """Put step 0 and the inputs at the nodes on the device.

    Parameters
    ----------
    nodes : ndarray, shape (N, P, n)
    determined : ndarray, shape (N,)
        Elements that count in R.
    inputs : ndarray, shape (N, P, m + c)
    scaled : bool
        Whether s is one over the root mean square of ẋ, else 1.
    """
    derivative = mesh.derivative(nodes)
    weight = mesh.node_weights() * (mesh.horizon / mesh.horizon.sum())[mesh.trajectory][:, None]
    weight = weight * determined[:, None]
    weight = weight / weight.sum()
    points = weight.size

    def flat(array: FloatArray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array.reshape(points, *array.shape[2:])))
        return tensor.to(device)

    t = mesh.node_times() - mesh.start[mesh.trajectory][:, None]
    return Problem(
        layout,
        mesh,
        nodes,
        flat(t),
        flat(nodes),
        flat(derivative),
        flat(inputs),
        flat(weight),
        torch.from_numpy(derivative_scale(mesh, nodes, weight) if scaled else np.ones(nodes.shape[2])).to(device),
    )


def derivative_scale(mesh: Mesh, nodes: FloatArray, weight: FloatArray) -> FloatArray:
    """S = 1 / rms(ẋ) per state, shape (n,); of a state that never moves, horizon over magnitude, or 1.

    What rounding makes of the derivative of a constant is nothing that a model should follow.

    Parameters
    ----------
    nodes : ndarray, shape (N, P, n)
    weight : ndarray, shape (N, P)
        Sums to 1.
    """
    slope = np.sqrt(np.einsum("ep,epn->n", weight, mesh.derivative(nodes) ** 2))
    magnitude = np.abs(nodes).max((0, 1), initial=0.0)
    moves = slope > ROUNDING * magnitude / mesh.width.mean()
    at_rest = np.divide(mesh.horizon.mean(), magnitude, out=np.ones_like(magnitude), where=magnitude > 0)
    return np.where(moves, np.divide(1.0, slope, out=np.ones_like(slope), where=slope > 0), at_rest)
