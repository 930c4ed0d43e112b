"""The relaxed problem J = γL + R over trajectories and weights (Quaglino et al. 2020, eq. 4), on sampled data.

``R = Σ_b (T_b / ΣT) Σ_q w_q |s ⊙ (ẋ - f)(t_q)|²`` at the nodes, and
``L = Σ ((y - C x(t_k)) / c)² / K`` over the observed values, K the number of sample times that hold any value, c one
scale per channel. The series is evaluated at the sample times; no time is snapped to a node. L and R are sums over
trajectories, which share nothing but θ: the functions below return one number per trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.distributed import Team
from snet_cli.models.base import Model
from snet_cli.spectral.mesh import Mesh
from snet_cli.training.blocks import BlockProblem
from snet_cli.training.problem import Problem
from snet_cli.training.state_jacobian import evaluate

FloatArray = NDArray[np.float64]


SAMPLES = 2048
"""Samples whose elements' node values are gathered at a time: they stay in the cache, which is three times as fast as
gathering those of all samples."""


@dataclass(frozen=True)
class Observations:
    """Samples of all trajectories as linear functions of node values, ordered by trajectory.

    Attributes
    ----------
    trajectory, element : Tensor of int, shape (K,)
    rows : Tensor, shape (K, P)
        Lagrange polynomials of the element at the sample: x(t_k) = Σ_q rows[k, q] x_q.
    values : Tensor, shape (K, d)
        y; 0 where it was not measured.
    weight : Tensor, shape (K, d)
        1 where it was measured, else 0; between them under a robust loss.
    channel : Tensor, shape (d,)
        1 / (c² K): what one unit of squared error costs.
    """

    trajectory: Tensor
    element: Tensor
    rows: Tensor
    values: Tensor
    weight: Tensor
    channel: Tensor


class RelaxedPart(NamedTuple):
    """Some trajectories, and which of a process's own they are: ranges of its trajectories and elements."""

    relaxed: RelaxedProblem
    trajectories: slice
    elements: slice


class RelaxedParts(Protocol):
    """L and R of a process's trajectories: all in memory (`RelaxedProblem`), or read in parts (`relaxed_slices`)."""

    @property
    def mesh(self) -> Mesh:
        """Of all trajectories of this process."""
        ...

    @property
    def quadrature(self) -> Tensor:
        """(T_b / ΣT) w_q of all elements, shape (N, P)."""
        ...

    @property
    def count(self) -> int:
        """Number of parts."""
        ...

    def part(self, number: int) -> RelaxedPart:
        """One part, in the weights that it has in the whole."""
        ...

    def sample_times(self, team: Team) -> int:
        """K: sample times that hold any value, of all processes."""
        ...


@dataclass(frozen=True)
class RelaxedProblem:
    """Everything that L and R need but x and θ; float64 tensors on one device.

    Attributes
    ----------
    mesh : Mesh
        Of all trajectories, also where this is only a part of them.
    trajectory : Tensor of int, shape (N,)
        Which trajectory each element belongs to.
    trajectories : int
        B.
    t, u : Tensor, shapes (N, P), (N, P, m + c)
        Time since the trajectory's start; inputs, then known constants, one-sided per element.
    quadrature : Tensor, shape (N, P)
        (T_b / ΣT) w_q: sums to 1. Elements in gaps of the data count like all others.
    rate : Tensor, shape (N,)
        2 / h, from dτ to dt.
    differentiation : Tensor, shape (P, P)
        Node values -> dx/dτ.
    scale : Tensor, shape (n,)
        s.
    observation : Tensor, shape (d, n)
        C of y = C x.
    observed : Observations
    known_start : Tensor of bool, shape (B, n)
        States whose x(t0) is given: no step may move them.
    misfit_share, residual_share : Tensor, shape (B,)
        K_b / K and T_b / ΣT.
    """

    mesh: Mesh
    trajectory: Tensor
    trajectories: int
    t: Tensor
    u: Tensor
    quadrature: Tensor
    rate: Tensor
    differentiation: Tensor
    scale: Tensor
    observation: Tensor
    observed: Observations
    known_start: Tensor
    misfit_share: Tensor
    residual_share: Tensor

    @property
    def count(self) -> int:
        """One part is all (`RelaxedParts`)."""
        return 1

    def part(self, number: int) -> RelaxedPart:
        """All of it."""
        return RelaxedPart(self, slice(0, self.trajectories), slice(0, self.trajectory.numel()))

    def sample_times(self, team: Team) -> int:
        """K of all processes."""
        return int(team.total(self.observed.trajectory.numel())[0])

    @property
    def first_elements(self) -> Tensor:
        """The first element of each trajectory, shape (B,)."""
        return torch.searchsorted(self.trajectory, torch.arange(self.trajectories, device=self.trajectory.device))

    def slope(self, nodes: Tensor) -> Tensor:
        """ẋ at the nodes, one-sided per element: (N, P, n) -> (N, P, n)."""
        return (self.differentiation @ nodes) * self.rate[:, None, None]

    def defect(self, model: Model, nodes: Tensor) -> Tensor:
        """ẋ - f at the nodes, shape (N, P, n)."""
        return self.slope(nodes) - evaluate(model, self.t, nodes, self.u)

    def error(self, nodes: Tensor) -> Tensor:
        """C x - y at the samples, shape (K, d); meaningless where nothing was measured."""
        seen = self.observed
        at_samples = torch.cat(
            [
                torch.einsum("kp,kpn->kn", rows, nodes[element])
                for rows, element in zip(
                    torch.split(seen.rows, SAMPLES), torch.split(seen.element, SAMPLES), strict=True
                )
            ]
        )
        return at_samples @ self.observation.T - seen.values

    def select(self, chosen: Tensor) -> RelaxedProblem:
        """The part of some trajectories (ascending numbers), with the weights they have in the whole."""
        local = torch.full((self.trajectories,), -1, device=chosen.device)
        local[chosen] = torch.arange(chosen.numel(), device=chosen.device)
        elements = torch.nonzero(local[self.trajectory] >= 0)[:, 0]
        place = torch.full((self.trajectory.numel(),), -1, device=chosen.device)
        place[elements] = torch.arange(elements.numel(), device=chosen.device)
        samples = torch.nonzero(local[self.observed.trajectory] >= 0)[:, 0]
        seen = self.observed
        part = Observations(
            local[seen.trajectory[samples]],
            place[seen.element[samples]],
            seen.rows[samples],
            seen.values[samples],
            seen.weight[samples],
            seen.channel,
        )
        return self._part(elements, chosen, part, local)

    def between(self, begin: int, end: int) -> RelaxedProblem:
        """Trajectories `begin` to `end`, as views."""
        bounds = torch.tensor([begin, end], device=self.trajectory.device)
        e0, e1 = torch.searchsorted(self.trajectory, bounds).tolist()
        seen = self.observed
        k0, k1 = torch.searchsorted(seen.trajectory, bounds).tolist()
        samples = slice(k0, k1)
        part = Observations(
            seen.trajectory[samples] - begin,
            seen.element[samples] - e0,
            seen.rows[samples],
            seen.values[samples],
            seen.weight[samples],
            seen.channel,
        )
        return self._part(slice(e0, e1), slice(begin, end), part, None)

    def shard(self, begin: int, end: int) -> RelaxedProblem:
        """Trajectories `begin` to `end` as a problem of their own, with a mesh of theirs: what one process has."""
        return replace(self.between(begin, end), mesh=self.mesh.between(begin, end))

    def _part(
        self, elements: Tensor | slice, chosen: Tensor | slice, observed: Observations, local: Tensor | None
    ) -> RelaxedProblem:
        own = self.trajectory[elements]
        known = self.known_start[chosen]
        return replace(
            self,
            trajectory=own - chosen.start if isinstance(chosen, slice) else own if local is None else local[own],
            trajectories=known.shape[0],
            t=self.t[elements],
            u=self.u[elements],
            quadrature=self.quadrature[elements],
            rate=self.rate[elements],
            observed=observed,
            known_start=known,
            misfit_share=self.misfit_share[chosen],
            residual_share=self.residual_share[chosen],
        )

    def as_share(self, team: Team) -> RelaxedProblem:
        """What `relax` made of one process's trajectories alone, with the weights that they have among all."""
        if team.size == 1:
            return self
        return self.among(*team.total(float(self.mesh.horizon.sum()), float(max(self.observed.trajectory.numel(), 1))))

    def among(self, all_horizon: float, all_times: float) -> RelaxedProblem:
        """What `relax` made of some trajectories alone, with the weights they have among all: ΣT and K of these."""
        of_time = float(self.mesh.horizon.sum()) / all_horizon
        of_samples = max(self.observed.trajectory.numel(), 1) / all_times
        return replace(
            self,
            quadrature=self.quadrature * of_time,
            residual_share=self.residual_share * of_time,
            observed=replace(self.observed, channel=self.observed.channel * of_samples),
            misfit_share=self.misfit_share * of_samples,
        )

    def with_weight(self, weight: Tensor) -> RelaxedProblem:
        """The same with other sample weights (K, d), which robust losses change between steps."""
        return replace(self, observed=replace(self.observed, weight=weight))

    def with_channel(self, channel: Tensor) -> RelaxedProblem:
        """The same with another cost (d,) of each output's squared error."""
        return replace(self, observed=replace(self.observed, channel=channel))


def misfit(relaxed: RelaxedProblem, nodes: Tensor) -> Tensor:
    """Each trajectory's part of L, shape (B,): (K_b / K) L_b. Masked samples have no influence whatever."""
    seen = relaxed.observed
    cost = (seen.weight * seen.channel * relaxed.error(nodes) ** 2).sum(1)
    return torch.zeros_like(relaxed.misfit_share).index_add(0, seen.trajectory, cost)


def residual(relaxed: RelaxedProblem, model: Model, nodes: Tensor) -> Tensor:
    """Each trajectory's part of R, shape (B,): (T_b / ΣT) R_b. Differentiable in the node values and in θ."""
    return weighted_square(relaxed, relaxed.defect(model, nodes))


def weighted_square(relaxed: RelaxedProblem, defect: Tensor) -> Tensor:
    """Each trajectory's Σ_q w_q |s ⊙ defect|², from (N, P, n) to (B,)."""
    cost = (relaxed.quadrature[:, :, None] * (relaxed.scale * defect) ** 2).sum((1, 2))
    return torch.zeros_like(relaxed.residual_share).index_add(0, relaxed.trajectory, cost)


def objective(relaxed: RelaxedProblem, model: Model, nodes: Tensor, gamma: float) -> Tensor:
    """J_b = γ (K_b / K) L_b + (T_b / ΣT) R_b of each trajectory, shape (B,); their sum is J = γL + R."""
    return gamma * misfit(relaxed, nodes) + residual(relaxed, model, nodes)


def nodes_of(problem: Problem | BlockProblem) -> Tensor:
    """Step 0's node values (N, P, n) as a tensor on the problem's device, of its own unless they are many."""
    nodes = torch.from_numpy(problem.nodes)
    return nodes.to(problem.device) if isinstance(problem, BlockProblem) else nodes.to(problem.t.device).clone()
