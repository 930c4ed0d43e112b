"""Gauss-Newton systems of J in the trajectories X and the weights θ together: an arrow, solved by its Schur complement.

Residuals. With d = ẋ - f at the nodes of an element and S = diag(s),

    R = Σ_e dᵀ (W_e ⊗ S²) d,        W_e = W - W ψ_p ψ_pᵀ W / (ψ_pᵀ W ψ_p),

W the quadrature weights. ẋ has degree p - 1 and f, at P = p + 1 nodes, degree p: the ψ_p-component of d can never
vanish, so that W_e leaves it out. What is left is Σ_i < p of |Σ_q w_q ψ_i d_q|² over ψ_i's norm: zero exactly where the
p projected equations of an element hold. Together with continuity and x(t0) they are as many as the node values, so
that γ -> 0 leads to a solution of the discretised ODE and not to a compromise between p + 1 equations for p unknowns.

Blocks. The derivatives of d are J_x = D ⊗ 1 - diag(F_q) and J_θ = -G, with F = ∂f/∂x and G = ∂f/∂θ. Half the
Gauss-Newton Hessian of γ(L + ν|θ|²) + R is, element by element (A_e, B_e) and in one corner,

      [ A_1                B_1 ]        A_e = J_xᵀ (W_e ⊗ S²) J_x + γ (misfit)        Pn x Pn
      [      A_2           B_2 ]        B_e = J_xᵀ (W_e ⊗ S²) J_θ                      Pn x N_θ
      [           ...      ... ]        D   = Σ_e J_θᵀ (W_e ⊗ S²) J_θ + γν 1           N_θ x N_θ
      [                A_N B_N ]
      [ B_1ᵀ B_2ᵀ ...  B_Nᵀ D  ]

where the A_e of one trajectory overlap in the end nodes that they share (`block_solver`); trajectories share only θ.
J_xᵀ W J_x with the diagonal W is `normal_blocks`; the ψ_p-component takes n rows off each block.

Elimination. With A = L Lᵀ and g the half gradient,

    S = D - Bᵀ A⁻¹ B,   S dθ = -(g_θ - Bᵀ A⁻¹ g_x),   dX = -A⁻¹ (g_x + B dθ).

S is summed over batches of trajectories, so that B never stands in memory as a whole.

Damping (Levenberg 1944). X is damped by μ_x γ times the mass matrix over each state's variance: the pull that the
misfit itself would have if every state were measured everywhere, so that no γ makes it stiff. θ is damped in S, the
curvature that is left when X follows (`_weight_measure`). Both are invariant to the units of states and weights. Other
dampings of θ reuse S; only a damping of X needs a new elimination.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from snet_cli.models.base import Model
from snet_cli.training.block_solver import BlockFactor
from snet_cli.training.normal_blocks import NormalBlocks, SampleGram, normal_blocks, sample_grams
from snet_cli.training.relaxed import RelaxedProblem, misfit, weighted_square
from snet_cli.training.state_jacobian import evaluate, state_jacobian
from snet_cli.training.theta_jacobian import theta_jacobian, theta_product

DEFAULT_MEMORY = 1_000_000_000
"""Bytes that the arrays of one batch of trajectories may take."""

CROSS_COPIES, BLOCK_COPIES = 5, 6
"""Arrays of the size of B, and of A, that live at once: G, W G, B, L⁻¹ B; blocks, cross terms, damped, factor."""


NO_CURVATURE = 1e-14
"""Least measure of a weight, relative to the largest curvature: one without any influence must not leave S singular."""


class Loss(NamedTuple):
    """R of the projected equations, what the ψ_p-component adds to it, L and ν|θ|²; J = γ(L + ν|θ|²) + R."""

    residual: float
    tail: float
    misfit: float
    penalty: float

    def total(self, gamma: float) -> float:
        """J."""
        return gamma * (self.misfit + self.penalty) + self.residual


class Move(NamedTuple):
    """A step in X (N, P, n) and in θ (N_θ,), and the decrease of J that the linear model promises."""

    states: Tensor
    weights: Tensor
    promise: float


class _Batch(NamedTuple):
    """Some trajectories: their part of the problem, their elements in the whole, and what does not change with X."""

    part: RelaxedProblem
    elements: slice
    grams: list[SampleGram]
    top: Tensor
    measure: Tensor


class _System(NamedTuple):
    """A, B and g_x of a batch, its share of D and of g_θ; rows of a known x(t0) are those of the identity, or zero."""

    blocks: Tensor
    cross: Tensor
    gradient: Tensor
    corner: Tensor
    weights_gradient: Tensor


class ArrowProblem:
    """J = γ(L + ν|θ|²) + R over node values and weights: its value, and its damped Gauss-Newton steps.

    Parameters
    ----------
    relaxed : RelaxedProblem
    model : Model
        Holds θ.
    nodes : Tensor, shape (N, P, n)
        X at the start; sets the variance of each state in the damping's measure.
    prior : float
        ν: one value's share of L that its noise alone would leave, for weights of standard deviation 1.
    memory : int
        Bytes for the arrays of one batch; at least one trajectory is done at a time.
    """

    def __init__(
        self,
        relaxed: RelaxedProblem,
        model: Model,
        nodes: Tensor,
        *,
        prior: float = 0.0,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        self.model, self.prior, self.memory = model, prior, memory
        self.parameters = list(model.parameters())
        mode = torch.from_numpy(relaxed.mesh.basis.M[:, -1].copy()).to(nodes.device)
        top = relaxed.quadrature * mode
        self.top = top / (top * mode).sum(1, keepdim=True).sqrt()  # W ψ_p / |ψ_p|, shape (N, P)
        self.measure = relaxed.quadrature[:, :, None] / _variance(relaxed, nodes)
        self.use(relaxed)

    def use(self, relaxed: RelaxedProblem) -> None:
        """Take other sample weights over (robust losses); the discretisation stays."""
        self.relaxed = relaxed
        self.batches = list(self._cut())

    def _cut(self) -> Iterator[_Batch]:
        """Ranges of trajectories whose arrays fit into memory."""
        relaxed = self.relaxed
        grams = sample_grams(relaxed)
        first = relaxed.mesh.first_element
        rows = relaxed.t.shape[1] * relaxed.scale.numel()
        room = self.memory // (8 * rows * (CROSS_COPIES * self.theta().numel() + BLOCK_COPIES * rows))
        begin = 0
        while begin < relaxed.trajectories:
            fits = int((first <= first[begin] + room).sum()) - 1
            end = min(max(fits, begin + 1), relaxed.trajectories)
            own = slice(int(first[begin]), int(first[end]))
            part = [SampleGram(gram.gram[own], gram.coupling) for gram in grams]
            yield _Batch(relaxed.between(begin, end), own, part, self.top[own], self.measure[own])
            begin = end

    def theta(self) -> Tensor:
        """θ in float64, in the order of the model's parameters."""
        return nn.utils.parameters_to_vector(self.parameters).detach().double()

    def put_theta(self, theta: Tensor) -> None:
        """Set the model's weights."""
        with torch.no_grad():
            nn.utils.vector_to_parameters(theta.to(self.parameters[0].dtype), self.parameters)

    def loss(self, nodes: Tensor) -> Loss:
        """R, L and the penalty at node values X and the model's θ."""
        with torch.no_grad():
            defect = self.relaxed.defect(self.model, nodes)
            top = _component(self.top, self.relaxed.scale * defect)
            tail = float(top.square().sum())
            R = float(weighted_square(self.relaxed, defect).sum()) - tail
            L = float(misfit(self.relaxed, nodes).sum())
        return Loss(R, tail, L, self.prior * float(self.theta().square().sum()))

    def system(self, batch: _Batch, nodes: Tensor, gamma: float) -> _System:
        """A, B, g_x of one batch, and its share of D and g_θ."""
        part, x = batch.part, nodes[batch.elements]
        E, P, n = x.shape
        value, F, G = theta_jacobian(self.model, part.t.reshape(-1), x.reshape(-1, n), part.u.flatten(0, 1))
        F, G = F.reshape(E, P, n, n), G.reshape(E, P, n, -1)
        defect = part.slope(x) - value.reshape(E, P, n)
        blocks, gradient = _state_system(batch, x, gamma, defect, F)
        weighted = _weigh(batch, G)
        D = part.differentiation * part.rate[:, None, None]
        cross = F.mT @ weighted
        cross -= (D.mT @ weighted.flatten(2)).view_as(cross)
        cross[part.first_elements, 0] *= (~part.known_start)[:, :, None]
        return _System(
            blocks,
            cross.flatten(1, 2),
            gradient,
            _gram_by_output(G.flatten(0, 1), weighted.flatten(0, 1)),
            -(weighted.flatten(0, 2).T @ defect.flatten()),
        )

    def state_system(self, batch: _Batch, nodes: Tensor, gamma: float) -> NormalBlocks:
        """A and g_x of one batch alone."""
        part, x = batch.part, nodes[batch.elements]
        E, P, n = x.shape
        value, F = state_jacobian(self.model, part.t.reshape(-1), x.reshape(-1, n), part.u.flatten(0, 1))
        defect = part.slope(x) - value.reshape(E, P, n)
        return _state_system(batch, x, gamma, defect, F.reshape(E, P, n, n))

    def cross_product(self, batch: _Batch, nodes: Tensor, weights: Tensor) -> Tensor:
        """B dθ of one batch, shape (N, P n), as a product with ∂f/∂θ: no B is stored for it."""
        part = batch.part
        x = nodes[batch.elements]
        change = theta_product(self.model, part.t.reshape(-1), x.flatten(0, 1), part.u.flatten(0, 1), weights)
        weighted = _weigh(batch, change.view(*x.shape, 1))[..., 0]
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            total = (evaluate(self.model, part.t, x, part.u) * weighted).sum()
            (through_f,) = torch.autograd.grad(total, x, materialize_grads=True)
        D = part.differentiation * part.rate[:, None, None]
        product = through_f - D.mT @ weighted
        product[part.first_elements, 0] *= ~part.known_start
        return product.flatten(1)


class Linearisation:
    """J's Gauss-Newton model at X and the model's θ, with X eliminated.

    Parameters
    ----------
    problem : ArrowProblem
    nodes : Tensor, shape (N, P, n)
    gamma : float
    state_damping : float
        Damping of X; another one needs another elimination.

    Attributes
    ----------
    finite : bool
        Whether all derivatives are.
    failed : bool
        Whether there is no elimination: A is not positive definite, or something is not finite.
    """

    def __init__(self, problem: ArrowProblem, nodes: Tensor, gamma: float, state_damping: float) -> None:
        self.problem, self.nodes, self.gamma = problem, nodes, gamma
        self.ridge = state_damping * gamma
        self.finite, self.failed = True, False
        self._kept: tuple[NormalBlocks, BlockFactor] | None = None
        theta = problem.theta()
        size = theta.numel()
        prior = gamma * problem.prior
        self.schur = prior * torch.eye(size, dtype=theta.dtype, device=theta.device)
        self.gradient = prior * theta
        eliminated_gradient = torch.zeros_like(theta)
        for batch in problem.batches:
            system = problem.system(batch, nodes, gamma)
            factor = self._factor(batch, system.blocks)
            self.finite &= all(bool(torch.isfinite(part).all()) for part in system)
            self.failed |= not self.finite or bool(factor.failed.any())
            eliminated = factor.gram(torch.cat([system.cross, system.gradient[:, :, None]], 2))
            self.schur += system.corner - eliminated[:size, :size]
            self.gradient += system.weights_gradient
            eliminated_gradient += eliminated[:size, size]
            if len(problem.batches) == 1:
                self._kept = NormalBlocks(system.blocks, system.gradient), factor
        self.reduced_gradient = self.gradient - eliminated_gradient
        self.weight_measure = _weight_measure(self.schur.diagonal(), problem.parameters)

    def solve(self, damping: float) -> Move | None:
        """The step with θ damped by μ; None where the damped matrix is not positive definite or not finite."""
        if self.failed:
            return None
        ridge = damping * self.weight_measure
        L, info = torch.linalg.cholesky_ex(self.schur + torch.diag(ridge))
        if int(info) != 0:
            return None
        weights = -torch.cholesky_solve(self.reduced_gradient[:, None], L)[:, 0]
        states, promise = torch.empty_like(self.nodes), float(weights @ (ridge * weights - self.gradient))
        for batch in self.problem.batches:
            if self._kept is None:
                system = self.problem.state_system(batch, self.nodes, self.gamma)
                factor = self._factor(batch, system.blocks)
            else:
                system, factor = self._kept
            right_side = system.gradient + self.problem.cross_product(batch, self.nodes, weights)
            step = -factor.solve(right_side[:, :, None])[:, :, 0]
            promise += float((step * (self.ridge * batch.measure.flatten(1) * step - system.gradient)).sum())
            states[batch.elements] = step.view_as(states[batch.elements])
        finite = bool(torch.isfinite(states).all() and torch.isfinite(weights).all())
        return Move(states, weights, promise) if finite else None

    def _factor(self, batch: _Batch, blocks: Tensor) -> BlockFactor:
        damped = blocks.clone()
        torch.diagonal(damped, dim1=1, dim2=2).add_(self.ridge * batch.measure.flatten(1))
        return BlockFactor(damped, batch.part.trajectory, batch.measure.shape[2])


def _weight_measure(curvature: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """One over the mean square of each parameter's tensor, scaled so that on average it costs its own curvature.

    It scales with the units of a parameter as its curvature does, but gives all weights of a layer one measure: those
    that the data hardly feels stay as free as the others (Marquardt's diagonal would hold each by its own curvature,
    and halves the gain of a step on a wide network).
    """
    curvature = curvature.clamp_min(0.0)
    square = torch.cat([p.detach().double().square().mean().expand(p.numel()) for p in parameters])
    cost = curvature * square
    level = cost.mean()
    by_size = level / torch.where(square > 0, square, 1.0)
    # a tensor of zeros has no size yet: its own curvature serves
    floor = NO_CURVATURE * curvature.max() + torch.finfo(curvature.dtype).tiny
    return torch.where(square > 0, by_size, curvature).clamp_min(floor)


def _state_system(batch: _Batch, nodes: Tensor, gamma: float, defect: Tensor, F: Tensor) -> NormalBlocks:
    """A and g_x: the blocks of all P node residuals, less the n rows of the ψ_p-component (ẋ has none of it)."""
    part, (E, P, n) = batch.part, nodes.shape
    blocks, gradient = normal_blocks(part, nodes, gamma, batch.grams, defect, F)
    rows = batch.top[:, None, :, None] * (part.scale[:, None, None] * F.transpose(1, 2))  # (E, n, P, n), sign dropped
    rows[part.first_elements, :, 0] *= (~part.known_start)[:, None, :]
    rows = rows.reshape(E, n, P * n)
    top_defect = _component(batch.top, part.scale * defect)
    blocks = blocks - rows.mT @ rows
    return NormalBlocks(blocks, gradient + (rows.mT @ top_defect[:, :, None])[..., 0])


def _gram_by_output(G: Tensor, weighted: Tensor) -> Tensor:
    """Gᵀ W G of (Q, n, N_θ): output by output, because structured models have outputs that few weights reach."""
    total = G.new_zeros(G.shape[2], G.shape[2])
    for i in range(G.shape[1]):
        reached = torch.nonzero((G[:, i] != 0).any(0))[:, 0]
        if reached.numel() == G.shape[2]:
            total += G[:, i].T @ weighted[:, i]
        else:
            total[reached[:, None], reached] += G[:, i, reached].T @ weighted[:, i, reached]
    return total


def _weigh(batch: _Batch, values: Tensor) -> Tensor:
    """(W_e ⊗ S²) v for v of shape (N, P, n, r)."""
    part = batch.part
    top = _component(batch.top, values.flatten(2))  # (N, n r)
    weighted = part.quadrature[:, :, None] * values.flatten(2)
    weighted -= batch.top[:, :, None] * top[:, None, :]
    return weighted.view_as(values) * (part.scale**2)[:, None]


def _component(top: Tensor, values: Tensor) -> Tensor:
    """The ψ_p-component of values (N, P, r) in the norm of the quadrature, shape (N, r)."""
    return (top[:, None, :] @ values)[:, 0]


def _variance(relaxed: RelaxedProblem, nodes: Tensor) -> Tensor:
    """Variance of each state over all trajectories, shape (n,); of a state that rests, its square, or 1."""
    weight = relaxed.quadrature[:, :, None]
    mean = (weight * nodes).sum((0, 1))
    variance = (weight * (nodes - mean) ** 2).sum((0, 1))
    square = (weight * nodes**2).sum((0, 1))
    fallback = torch.where(square > 0, square, 1.0)
    return torch.where(variance > 1e-12 * square, variance, fallback)
