"""J's Gauss-Newton model with X eliminated: the Schur complement on θ, formed or only applied, and its damped steps.

The whole arrow stands in `arrow`. Inner values of every element are condensed first (`block_solver`): with L_I the
factor of A's inner rows, Q = L_I⁻¹ M_I (M's inner rows) and E what is left of M's end rows, the Schur complement is

    S = Σ_e G̃_eᵀ (1 - t tᵀ - Q_eᵀ Q_e) G̃_e - Σ yᵀ y + γ diag(ν),       y: the boundaries' part of L⁻¹ (-E_e G̃_e).

The matrix in brackets is positive semidefinite. What it has in the rows of one block of ∂f/∂θ (`theta_blocks`) is
K_eᵀ K_e by a Cholesky factor, so that the large products are one K_e G̃_e per element and half of one product of all
those rows with themselves; it maps t to zero, so that P - 1 rows for each of f's hold all of it. Where an element has
more unknowns than there are weights, B_e = -M_e G̃_e is condensed itself, which is cheaper than K_e.

Where there are fewer residuals than weights, they are solved for (`row_system`). Where N_θ² numbers are too many, S is
only applied to vectors, ``S v = G̃ᵀ (1 - t tᵀ - Mᵀ A⁻¹ M) G̃ v + γ ν ⊙ v``, by one forward and one backward pass of f and
one solution with A; `krylov` does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from snet_cli.models.theta_blocks import ThetaJacobian
from snet_cli.training.arrow import ArrowProblem, Batch, StateSystem
from snet_cli.training.block_solver import BlockFactor
from snet_cli.training.krylov import KrylovSystem
from snet_cli.training.row_system import RowSystem, few_rows
from snet_cli.training.state_jacobian import state_jacobian
from snet_cli.training.theta_jacobian import ThetaProducts, theta_jacobian
from snet_cli.training.weight_system import WeightSystem, add_gram, add_lower_gram, mirror

System = WeightSystem | RowSystem | KrylovSystem
"""The damped equations of θ: formed, in the space of the residuals, or only applied."""

NOT_NEGATIVE = 4e-15
"""Added to the diagonal of 1 - t tᵀ - QᵀQ, whose least eigenvalues are zero and round to either side; ten times more
until the factor exists. In S it is what a damping of that size would be."""

KEPT_COPIES = 5
"""Arrays of the size of A that stay for back-substitution beside G̃: blocks, coupling, factor, room for a solution."""


class Move(NamedTuple):
    """A step in X (N, P, n) and in θ (N_θ,), and the decrease of J that the linear model promises."""

    states: Tensor
    weights: Tensor
    promise: float


class WeightedProducts(NamedTuple):
    """Products with G̃ where it is not formed: those with ∂f/∂θ, and the factor (Q, n) of each residual."""

    products: ThetaProducts
    factor: Tensor

    def product(self, direction: Tensor) -> Tensor:
        """G̃ dθ, shape (Q, n)."""
        return self.factor * self.products.product(direction)

    def transpose_product(self, vectors: Tensor) -> Tensor:
        """G̃ᵀ v, shape (N_θ,), for vectors of shape (Q, n)."""
        return self.products.transpose_product(self.factor * vectors)


class _Eliminated(NamedTuple):
    """A batch with A factored, and G̃ = (W^½ ⊗ S) ∂f/∂θ at its points: formed, or as products."""

    batch: Batch
    system: StateSystem
    factor: BlockFactor
    by_theta: ThetaJacobian | WeightedProducts

    def forward(self, weights: Tensor) -> Tensor:
        """G̃ dθ, shape (N, Pn, 1)."""
        return self.by_theta.product(weights).view_as(self.system.residual).flatten(1)[..., None]

    def back(self, vector: Tensor) -> Tensor:
        """G̃ᵀ v, shape (N_θ,), for v with the entries of (N, P, n)."""
        return self.by_theta.transpose_product(vector.reshape(-1, self.system.residual.shape[2]))

    def left_over(self, vector: Tensor) -> Tensor:
        """(1 - t tᵀ - Mᵀ A⁻¹ M) v for v of shape (N, Pn, r)."""
        M, (N, P, _) = self.system.coupling, self.system.residual.shape
        return self.batch.project(vector.view(N, P, -1)).view_as(vector) - M.mT @ self.factor.solve(M @ vector)

    def inner(self) -> Tensor:
        """1 - t tᵀ - Mᵀ A⁻¹ M, shape (r, r) for all r residuals of the batch."""
        N, P, n = self.system.residual.shape
        columns = torch.eye(N * P * n, dtype=self.system.residual.dtype, device=self.system.residual.device)
        return self.left_over(columns.view(N, P * n, -1)).view_as(columns)

    def reduced_residual(self) -> Tensor:
        """T d - Mᵀ A⁻¹ g_x, shape (N, Pn, 1): its G̃ᵀ is minus the gradient that is left when X follows."""
        response = self.factor.solve(self.system.gradient[:, :, None])
        return self.system.residual.flatten(1)[..., None] - self.system.coupling.mT @ response


class Linearisation:
    """J's Gauss-Newton model at X and the model's θ, with X eliminated; what concerns θ is summed over the team.

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
    gradient : Tensor, shape (N_θ,)
        g_θ.
    reduced : WeightSystem, RowSystem or KrylovSystem
        (S + μ diag(m)) dθ = -(g_θ - Bᵀ A⁻¹ g_x); meaningless where `failed`.
    """

    def __init__(self, problem: ArrowProblem, nodes: Tensor, gamma: float, state_damping: float) -> None:
        self.problem, self.nodes, self.gamma = problem, nodes, gamma
        self.ridge = state_damping * gamma
        self.finite, self.failed = True, False
        self._kept: list[_Eliminated] = []
        theta, self.team = problem.theta(), problem.team
        rows = KEPT_COPIES * problem.rows + theta.numel() * problem.formed
        elements = nodes.shape[0] * self.team.lanes  # lanes stand in one memory
        self._keeps = 8 * rows * problem.rows * elements <= problem.memory
        self.prior = gamma * problem.prior * float(self.team.is_lead)  # once in the sum over the processes
        self.gradient = self.prior * theta
        self._reduced_gradient = self.gradient.clone()
        few = problem.formed and few_rows(nodes.numel(), theta.numel(), self.team)
        self.reduced = self._rows(theta) if few else self._form() if problem.formed else self._apply()

    @property
    def schur(self) -> Tensor:
        """S, shape (N_θ, N_θ), where it is formed."""
        assert isinstance(self.reduced, WeightSystem)
        return self.reduced.matrix

    @property
    def weight_measure(self) -> Tensor:
        """What the damping of θ multiplies, shape (N_θ,)."""
        return self.reduced.measure

    def solve(self, damping: float) -> Move | None:
        """The step with θ damped by μ; None where the damped matrix is not positive definite or not finite."""
        weights = None if self.failed else self.reduced.solve(damping)
        if weights is None:
            return None
        states = torch.empty_like(self.nodes)
        promise = 0.0
        for done in self._kept or map(self._eliminate, self.problem.batches):
            system, batch = done.system, done.batch
            right_side = system.gradient[..., None] - system.coupling @ done.forward(weights)
            step = -done.factor.solve(right_side)[:, :, 0]
            promise += float((step * (self.ridge * batch.measure.flatten(1) * step - system.gradient)).sum())
            states[batch.elements] = step.view_as(states[batch.elements])
        promise, spoiled = self.team.total(promise, float(not torch.isfinite(states).all()))
        # true of every step that is optimal in the space it was sought in, all or Krylov's
        promise += float(weights @ (damping * self.weight_measure * weights - self.gradient))
        return None if spoiled else Move(states, weights, promise)

    def _form(self) -> WeightSystem:
        """S and g over all batches."""
        matrix = torch.diag(self.prior)
        for done, G in self._with_theta():
            _add_schur_share(matrix, done, G)
        (matrix,) = self._summed(mirror(matrix))
        return WeightSystem.build(matrix, self._reduced_gradient, self.problem.model, exact=self.problem.exact)

    def _rows(self, theta: Tensor) -> RowSystem:
        """G̃, what X leaves between its rows, and ρ."""
        rows, inner, target = [theta.new_zeros(0, theta.numel())], [theta.new_zeros(0, 0)], [theta.new_zeros(0)]
        for done, G in self._with_theta():
            rows.append(G.dense().flatten(0, 1))
            inner.append(done.inner())
            target.append(done.reduced_residual().flatten())
        self._summed()
        parts = torch.cat(rows), torch.block_diag(*inner), torch.cat(target)  # type: ignore[no-untyped-call]
        return RowSystem.build(*parts, theta, self.prior, self.problem.model, exact=self.problem.exact)

    def _with_theta(self) -> Iterator[tuple[_Eliminated, ThetaJacobian]]:
        """Each batch, eliminated, with G̃, and its share of the gradients added; none after one that cannot be used."""
        for batch in self.problem.batches:
            x = self.nodes[batch.elements]
            rates, F, G = theta_jacobian(self.problem.model, *batch.points(x))
            G.weighted_(batch.root.flatten(0, 1))
            done = self._factored(batch, x, rates, F, G)
            if not self._usable(done, G.total()):
                return
            yield done, G
            self._add_gradients(done)

    def _apply(self) -> KrylovSystem:
        """The same with S as products only."""
        for batch in self.problem.batches:
            done = self._eliminate(batch)
            if not self._usable(done, done.system.residual):
                break
            self._add_gradients(done)
        self._summed()
        return KrylovSystem(self._product, self._reduced_gradient, self.problem.model)

    def _product(self, vector: Tensor) -> Tensor:
        """S v."""
        total = self.prior * vector
        for done in self._kept or map(self._eliminate, self.problem.batches):
            total = total + done.back(done.left_over(done.forward(vector)))
        (total,) = self.team.sum(total)
        return total

    def _summed(self, *others: Tensor) -> tuple[Tensor, ...]:
        """Sum gradients, and others with them, over the processes; what failed on one has failed."""
        not_finite, self.failed = self.team.any(not self.finite, self.failed)
        self.finite = not not_finite
        self.gradient, self._reduced_gradient, *sums = self.team.sum(self.gradient, self._reduced_gradient, *others)
        return tuple(sums)

    def _eliminate(self, batch: Batch) -> _Eliminated:
        """Factor A of a batch without ∂f/∂θ."""
        x = self.nodes[batch.elements]
        points = batch.points(x)
        rates, F = state_jacobian(self.problem.model, *points)
        products = ThetaProducts(self.problem.model, *points)
        return self._factored(batch, x, rates, F, WeightedProducts(products, batch.root.flatten(0, 1)))

    def _factored(
        self, batch: Batch, x: Tensor, rates: Tensor, F: Tensor, by_theta: ThetaJacobian | WeightedProducts
    ) -> _Eliminated:
        system = self.problem.state_system(batch, x, self.gamma, rates, F)
        factor = BlockFactor(batch.damped(system.blocks, self.ridge), batch.part.trajectory, x.shape[2])
        return _Eliminated(batch, system, factor, by_theta)

    def _usable(self, done: _Eliminated, *others: Tensor) -> bool:
        """Whether everything is finite and A has a factor; says so in `finite` and `failed`."""
        # one that is not finite spoils the sum, which is far cheaper than a mask as large as G
        self.finite = all(bool(torch.isfinite(part.sum())) for part in (*done.system, *others))
        self.failed = not self.finite or bool(done.factor.failed.any())
        if self._keeps and not self.failed:
            self._kept.append(done)
        return not self.failed

    def _add_gradients(self, done: _Eliminated) -> None:
        """A batch's share of g_θ, and of what is left of it when X follows."""
        self.gradient = self.gradient - done.back(done.system.residual)
        self._reduced_gradient = self._reduced_gradient - done.back(done.reduced_residual())


def _add_schur_share(total: Tensor, done: _Eliminated, G: ThetaJacobian) -> None:
    """Add a batch's part of S from G̃ to `total`, on and below the diagonal."""
    batch, factor, M = done.batch, done.factor, done.system.coupling
    N, P, n = done.system.residual.shape
    if G.shape[2] < P * n:
        add_gram(total, G.by_element(batch.project, P))
        for part in factor.gram_rows(G.left_product(M)):
            add_lower_gram(total, part, -1.0)
        return
    inner, ends = factor.condense(M)
    projector = batch.project(torch.eye(P * n, dtype=M.dtype, device=M.device).view(1, P, -1).expand(N, -1, -1))
    _add_between_blocks(total, projector.reshape(N, P * n, P * n) - inner.mT @ inner, G, _complement(batch.tail))
    add_lower_gram(total, factor.boundary_rows(G.left_product(ends)), -1.0)


def _add_between_blocks(total: Tensor, C: Tensor, G: ThetaJacobian, basis: Tensor) -> None:
    """Add Σ_e G_eᵀ C_e G_e for positive semidefinite C (N, P n, P n), on and below the diagonal.

    Of each block of G only its own rows are needed.

    Parameters
    ----------
    basis : Tensor, shape (N, P', P)
        Orthonormal rows that span, over the nodes, all that C does not map to zero.
    """
    N, n = len(C), G.shape[1]
    by_row = C.view(N, -1, n, C.shape[1] // n, n)
    own = [(rows, columns, values.reshape(N, -1, values.shape[2])) for rows, columns, values in G.blocks]
    own.sort(key=lambda block: block[1].start)
    for number, (rows, columns, values) in enumerate(own):
        reduced = torch.einsum("eap,epiqj,ebq->eaibj", basis, by_row[:, :, rows][..., rows], basis)
        count = reduced.shape[1] * reduced.shape[2]
        root = _root(reduced.reshape(N, count, count)).view(N, count, *reduced.shape[1:3])
        K = torch.einsum("ekai,eap->ekpi", root, basis).reshape(N, count, -1)
        add_lower_gram(total[columns, columns], (K @ values).flatten(0, 1))
        for other_rows, other_columns, other in own[:number]:
            between = by_row[:, :, rows][..., other_rows].reshape(N, values.shape[1], -1)
            total[columns, other_columns].addmm_(values.flatten(0, 1).mT, (between @ other).flatten(0, 1))


def _complement(unit: Tensor) -> Tensor:
    """Orthonormal rows (N, P - 1, P) that span what is orthogonal to unit vectors (N, P): those of a reflection."""
    v = unit.clone()
    v[:, -1] += torch.where(v[:, -1] < 0, -1.0, 1.0)
    mirror = (
        torch.eye(v.shape[1], dtype=v.dtype, device=v.device)
        - 2.0 * v[:, :, None] * v[:, None, :] / (v.square().sum(1)[:, None, None])
    )
    return mirror[:, :-1]


def _root(matrices: Tensor) -> Tensor:
    """K with KᵀK = C for positive semidefinite C (N, r, r) with eigenvalues up to 1, upper triangular."""
    diagonal = torch.diagonal(matrices, dim1=1, dim2=2)
    added = NOT_NEGATIVE
    diagonal += added
    while True:
        L, info = torch.linalg.cholesky_ex(matrices)
        if not bool((info != 0).any()) or added > 1e-6:
            return L.mT
        diagonal += 9.0 * added
        added *= 10.0
