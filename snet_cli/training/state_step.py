"""The x-step: move the trajectories X with θ fixed, down J = γL + R (Quaglino et al. 2020, Alg. 2).

``sgd`` follows the gradient as the paper does. ``gauss-newton`` solves one damped linear problem per trajectory, all of
them in one batch: residuals are ``√w_q s ⊙ (ẋ - f)`` and ``√γ (y - C x) / c``, half the Hessian is the sum of their
squares' derivatives (`normal_blocks`), factored by `block_solver`. Trajectories share only θ, so that each has a
damping of its own and none waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from snet_cli.models.base import Model
from snet_cli.training.alpha_options import StateStepOptions
from snet_cli.training.block_solver import BlockFactor
from snet_cli.training.normal_blocks import NormalBlocks, SampleGram, normal_blocks, sample_grams, sample_pull
from snet_cli.training.relaxed import RelaxedParts, RelaxedProblem, misfit, objective, weighted_square
from snet_cli.training.state_jacobian import evaluate, state_jacobian

DEFAULT_MEMORY = 64_000_000
"""Bytes that the blocks of one batch of trajectories may take: more of them no longer fit into a cache."""

BLOCK_COPIES = 6
"""Arrays of the size of the blocks that live at once: the blocks, their cross terms, the damped copy, the factor."""

START_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-4, 1e-12, 1e12
"""Levenberg parameter relative to the diagonal of the blocks: at first, and its bounds."""

TRIES = 6
"""Dampings tried on the same blocks before a trajectory waits for the next step."""


class StateStep(Protocol):
    """One step on all trajectories.

    Attributes
    ----------
    nodes : Tensor, shape (N, P, n)
        X as node values; neighbours hold the same bits in their shared node.
    evaluations : int
        Evaluations of J with derivatives.
    """

    nodes: Tensor
    evaluations: int

    def step(self, gamma: float) -> None:
        """Move every trajectory once."""
        ...

    def use(self, relaxed: RelaxedParts) -> None:
        """Take other sample weights over (robust losses); the discretisation stays."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, apart from the options."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        ...


class GradientStep:
    """Steepest descent with a fixed rate on the Legendre coefficients, or on node values where elements share nodes.

    Parameters
    ----------
    relaxed : RelaxedProblem
    model : Model
    nodes : Tensor, shape (N, P, n)
    rate : float
    own : bool
        Each trajectory descends on its own γL_b + R_b (the paper's preset), not on its share of J.

    Notes
    -----
    A known x(t0) is kept by projecting the gradient of the coefficients on {Σ_i (-1)^i δx_i = 0}.
    """

    def __init__(self, relaxed: RelaxedProblem, model: Model, nodes: Tensor, rate: float, *, own: bool) -> None:
        self.model, self.nodes = model, nodes
        self.rate = rate
        self.evaluations = 0
        if own:
            self.misfit_factor = _reciprocal(relaxed.misfit_share)
            self.residual_factor = _reciprocal(relaxed.residual_share)
        else:
            self.misfit_factor = torch.ones_like(relaxed.misfit_share)
            self.residual_factor = torch.ones_like(relaxed.residual_share)
        self.series = relaxed.trajectory.numel() == relaxed.trajectories
        self.M = torch.from_numpy(relaxed.mesh.basis.M.copy()).to(nodes.device)
        self.use(relaxed)

    def step(self, gamma: float) -> None:
        """Move by x <- x - rate ∂(Σ_b J_b)/∂x."""
        own = self.relaxed.trajectory
        gradient = (gamma * self.misfit_factor[own])[:, None, None] * self._misfit_gradient()
        gradient = gradient + self.residual_factor[own][:, None, None] * self._residual_gradient()
        self.evaluations += 1
        self.nodes = self.nodes - self.rate * (self._along_series(gradient) if self.series else self._shared(gradient))

    def _misfit_gradient(self) -> Tensor:
        """∂L/∂x at the nodes, from sums over the samples that were formed once."""
        return 2.0 * (sum((gram @ (self.nodes @ C) for gram, C in self.grams), -self.pull))

    def _residual_gradient(self) -> Tensor:
        """∂R/∂x at the nodes: Dᵀ v - (∂f/∂x)ᵀ v with v = 2 w S² (ẋ - f), one backward pass through f."""
        relaxed = self.relaxed
        nodes = self.nodes.detach().requires_grad_()
        with torch.enable_grad():
            rates = evaluate(self.model, relaxed.t, nodes, relaxed.u)
        defect = relaxed.slope(self.nodes) - rates.detach()
        v = 2.0 * relaxed.quadrature[:, :, None] * relaxed.scale**2 * defect
        gradient = relaxed.differentiation.T @ (v * relaxed.rate[:, None, None])
        if rates.requires_grad:
            (through_f,) = torch.autograd.grad(rates, nodes, v, allow_unused=True)
            gradient = gradient if through_f is None else gradient - through_f
        return gradient

    def _along_series(self, gradient: Tensor) -> Tensor:
        """M (Mᵀ g): the node values of a step along the gradient in the coefficients."""
        in_coefficients = self.M.T @ gradient  # (B, P, n)
        sign = self.M[0][:, None]  # ψ_i(-1) = (-1)^i
        at_start = (sign * in_coefficients).sum(1, keepdim=True) / sign.numel()
        in_coefficients = in_coefficients - sign * at_start * self.relaxed.known_start[:, None, :]
        return self.M @ in_coefficients

    def _shared(self, gradient: Tensor) -> Tensor:
        """Both copies of a shared node move by the sum of their gradients; a known x(t0) stays."""
        P = gradient.shape[1]
        place = torch.arange(gradient.shape[0], device=gradient.device) + self.relaxed.trajectory
        ends = gradient.new_zeros(int(place[-1]) + 2, gradient.shape[2])
        ends.index_add_(0, place, gradient[:, 0])
        ends.index_add_(0, place + 1, gradient[:, P - 1])
        gradient = torch.cat([ends[place][:, None], gradient[:, 1:-1], ends[place + 1][:, None]], 1)
        gradient[self.relaxed.first_elements, 0] *= ~self.relaxed.known_start
        return gradient

    def use(self, relaxed: RelaxedParts) -> None:
        """Take other sample weights over."""
        assert isinstance(relaxed, RelaxedProblem)  # of all samples, whose sums it keeps
        self.relaxed = relaxed
        self.grams, self.pull = sample_grams(relaxed), sample_pull(relaxed)

    def state(self) -> dict[str, Tensor]:
        """X and the count of evaluations."""
        return {"nodes": self.nodes, "evaluations": torch.tensor(self.evaluations)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take both over."""
        self.nodes, self.evaluations = state["nodes"], int(state["evaluations"])


class GaussNewtonStep:
    """One damped Gauss-Newton step per trajectory (Levenberg 1944), which never increases any trajectory's J_b.

    Parameters
    ----------
    relaxed : RelaxedParts
        Trajectories share nothing in this step, so that it goes from part to part.
    model : Model
    nodes : Tensor, shape (N, P, n)
    memory : int
        Bytes that the blocks of one batch may take; at least one trajectory is done at a time.

    Attributes
    ----------
    damping : Tensor, shape (B,)
        Levenberg parameter of each trajectory, relative to the diagonal of its blocks.
    """

    def __init__(self, relaxed: RelaxedParts, model: Model, nodes: Tensor, memory: int = DEFAULT_MEMORY) -> None:
        self.model, self.nodes = model, nodes
        self.memory = memory
        self.evaluations = 0
        self.damping = torch.full((relaxed.mesh.trajectories,), START_DAMPING, dtype=nodes.dtype, device=nodes.device)
        self.use(relaxed)

    def use(self, relaxed: RelaxedParts) -> None:
        """Take other sample weights over (robust losses); the discretisation stays."""
        self.relaxed = relaxed
        self.grams = sample_grams(relaxed) if isinstance(relaxed, RelaxedProblem) else None

    def state(self) -> dict[str, Tensor]:
        """X, the dampings and the count of evaluations."""
        return {"nodes": self.nodes, "damping": self.damping, "evaluations": torch.tensor(self.evaluations)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them over; steps write into the dampings, so that these are a copy."""
        self.nodes, self.damping = state["nodes"], state["damping"].clone()
        self.evaluations = int(state["evaluations"])

    def step(self, gamma: float) -> None:
        """Move every trajectory to a smaller J_b, or leave it where it is and damp it more."""
        nodes = self.nodes.clone()
        for number in range(self.relaxed.count):
            relaxed, own, elements = self.relaxed.part(number)
            x, damping = nodes[elements], self.damping[own]  # views
            whole = sample_grams(relaxed) if self.grams is None else self.grams
            for begin, end, e0, e1 in self._batches(relaxed):
                part = relaxed.between(begin, end)
                grams = [SampleGram(g.gram[e0:e1], g.coupling) for g in whole]
                x[e0:e1], damping[begin:end] = self._move(part, x[e0:e1], damping[begin:end], gamma, grams)
        self.nodes = nodes
        self.evaluations += 1

    def _batches(self, relaxed: RelaxedProblem) -> Iterator[tuple[int, int, int, int]]:
        """Ranges of trajectories whose blocks fit into memory, with their ranges of elements."""
        _, P, n = self.nodes.shape
        first = relaxed.mesh.first_element
        room = max(1, self.memory // (8 * BLOCK_COPIES * (P * n) ** 2))
        begin = 0
        while begin < relaxed.trajectories:
            end = int((first <= first[begin] + room).sum()) - 1
            end = min(max(end, begin + 1), relaxed.trajectories)
            yield begin, end, int(first[begin]), int(first[end])
            begin = end

    def _move(
        self, part: RelaxedProblem, nodes: Tensor, damping: Tensor, gamma: float, grams: list[SampleGram]
    ) -> tuple[Tensor, Tensor]:
        """New node values and dampings of one batch of trajectories."""
        E, P, n = nodes.shape
        value, F = state_jacobian(self.model, part.t.reshape(-1), nodes.reshape(-1, n), part.u.flatten(0, 1))
        defect = part.slope(nodes) - value.reshape(E, P, n)
        before = gamma * misfit(part, nodes) + weighted_square(part, defect)
        system = normal_blocks(part, nodes, gamma, grams, defect, F.reshape(E, P, n, n))
        moved, damping = nodes.clone(), damping.clone()
        batch = _Batch(
            part,
            nodes,
            system,
            before,
            torch.arange(E, device=nodes.device),
            torch.arange(before.numel(), device=before.device),
        )
        for _ in range(TRIES):
            trial = _solve(batch, damping[batch.trajectories])
            with torch.no_grad():
                after = objective(batch.part, self.model, trial.nodes, gamma)
            gain = (batch.before - after) / trial.predicted.clamp_min(1e-300)
            better = (after < batch.before) & ~trial.failed  # false for NaN
            damping[batch.trajectories] = _adapted(damping[batch.trajectories], gain, better)
            accepted = better[batch.part.trajectory]
            moved[batch.elements[accepted]] = trial.nodes[accepted]
            # what is predicted to gain less than rounding shows is at its minimum
            waiting = ~better & ~(trial.predicted <= 1e-14 * batch.before)
            if not bool(waiting.any()):
                break
            batch = batch.restricted(waiting)
        return moved, damping


class _Batch(NamedTuple):
    """Trajectories that still look for a step, their blocks, J_b, and their places in the batch they came from."""

    part: RelaxedProblem
    nodes: Tensor
    system: NormalBlocks
    before: Tensor
    elements: Tensor
    trajectories: Tensor

    def restricted(self, chosen: Tensor) -> _Batch:
        """The trajectories where `chosen` (B,) is true."""
        keep = chosen[self.part.trajectory]
        return _Batch(
            self.part.select(torch.nonzero(chosen)[:, 0]),
            self.nodes[keep],
            NormalBlocks(self.system.blocks[keep], self.system.gradient[keep]),
            self.before[chosen],
            self.elements[keep],
            self.trajectories[chosen],
        )


class _Trial(NamedTuple):
    """Node values after a step, the decrease of J_b that the linear model promises, and where there is none."""

    nodes: Tensor
    predicted: Tensor
    failed: Tensor


def _solve(batch: _Batch, damping: Tensor) -> _Trial:
    """(H + λ diag H) δ = -g for every trajectory; the linear model's decrease is δᵀ(λ diag H δ - g)."""
    blocks, gradient = batch.system
    part, n = batch.part, batch.nodes.shape[2]
    ridge = damping[part.trajectory, None] * torch.diagonal(blocks, dim1=1, dim2=2)  # (N, P n)
    damped = blocks.clone()
    torch.diagonal(damped, dim1=1, dim2=2).add_(ridge)
    factor = BlockFactor(damped, part.trajectory, n)
    delta = factor.solve(-gradient[:, :, None])[:, :, 0]
    promise = torch.zeros_like(batch.before)
    promise.index_add_(0, part.trajectory, (delta * (ridge * delta - gradient)).sum(1))
    return _Trial(batch.nodes + delta.reshape(batch.nodes.shape), promise, factor.failed)


def _adapted(damping: Tensor, gain: Tensor, better: Tensor) -> Tensor:
    """Less damping where the linear model foretold the decrease, more where it did not."""
    adapted = torch.where(gain > 0.75, 0.1 * damping, torch.where(gain < 0.25, 4.0 * damping, damping))
    return torch.where(better, adapted, 10.0 * damping).clamp(LEAST_DAMPING, MOST_DAMPING)


def _reciprocal(share: Tensor) -> Tensor:
    """1 / share; 0 for a trajectory without any."""
    return torch.where(share > 0, 1.0 / share.clamp_min(1e-300), 0.0)


def _build_gradient(
    options: StateStepOptions, relaxed: RelaxedParts, model: Model, nodes: Tensor, own: bool, memory: int
) -> StateStep:
    assert isinstance(relaxed, RelaxedProblem)
    return GradientStep(relaxed, model, nodes, options.rate, own=own)


def _build_gauss_newton(
    options: StateStepOptions, relaxed: RelaxedParts, model: Model, nodes: Tensor, own: bool, memory: int
) -> StateStep:
    return GaussNewtonStep(relaxed, model, nodes, memory)


STATE_STEPS: dict[str, Callable[[StateStepOptions, RelaxedParts, Model, Tensor, bool, int], StateStep]] = {
    "sgd": _build_gradient,
    "gauss-newton": _build_gauss_newton,
}
"""Registry name -> builder; a new x-step is one class, one builder, one line here."""


def build_state_step(
    options: StateStepOptions,
    relaxed: RelaxedParts,
    model: Model,
    nodes: Tensor,
    *,
    own: bool = False,
    memory: int = DEFAULT_MEMORY,
) -> StateStep:
    """The x-step that the options name, starting from the node values (N, P, n).

    Parameters
    ----------
    own : bool
        See `GradientStep`; a Gauss-Newton step does not depend on it, but for the balance of L_b and R_b, which is
        that of J.
    memory : int
        Bytes for the blocks of one batch.
    """
    return STATE_STEPS[options.name](options, relaxed, model, nodes, own, memory)
