"""Gauss-Newton systems of J in the trajectories X and the weights θ together: an arrow, solved by its Schur complement.

Residuals. With d = ẋ - f at the nodes of an element, W the quadrature weights and S = diag(s),

    R = Σ_e |T_e d|²,        T_e = (1 - t tᵀ) W^½ ⊗ S,        t = W^½ ψ_p / |W^½ ψ_p|.

ẋ has degree p - 1 and f, at P = p + 1 nodes, degree p: the ψ_p-component of d can never vanish, so that the projection
1 - t tᵀ leaves it out. What is left is Σ_i < p of |Σ_q w_q ψ_i d_q|² over ψ_i's norm: zero exactly where the p
projected equations of an element hold. Together with continuity and x(t0) they are as many as the node values, so that
γ -> 0 leads to a solution of the discretised ODE and not to a compromise between p + 1 equations for p unknowns.

Blocks. The derivatives of d are J_x = D ⊗ 1 - diag(F_q) and J_θ = -G, with F = ∂f/∂x and G = ∂f/∂θ. With the coupling
M = J_xᵀ T_eᵀ and G̃ = (W^½ ⊗ S) G, half the Gauss-Newton Hessian of γ(L + Σ ν θ²) + R is, element by element (A_e, B_e)
and in one corner,

      [ A_1                B_1 ]        A_e = M_e M_eᵀ + γ (misfit)                    Pn x Pn
      [      A_2           B_2 ]        B_e = -M_e G̃_e                                 Pn x N_θ
      [           ...      ... ]        D   = Σ_e G̃_eᵀ (1 - t tᵀ) G̃_e + γ diag(ν)      N_θ x N_θ
      [                A_N B_N ]
      [ B_1ᵀ B_2ᵀ ...  B_Nᵀ D  ]

where the A_e of one trajectory overlap in the end nodes that they share (`block_solver`); trajectories share only θ.
M Mᵀ is formed by `normal_blocks` from all P residuals, less the n rows of the ψ_p-component.

Elimination (`linearisation`). With g the half gradient,

    S = D - Bᵀ A⁻¹ B,   S dθ = -(g_θ - Bᵀ A⁻¹ g_x),   dX = -A⁻¹ (g_x + B dθ).

S is summed over batches of trajectories, so that B never stands in memory as a whole.

Damping (Levenberg 1944). X is damped by μ_x γ times the mass matrix over each state's variance: the pull that the
misfit itself would have if every state were measured everywhere, so that no γ makes it stiff. θ is damped in S, the
curvature that is left when X follows (`weight_system`). Both are invariant to the units of states and weights. Other
dampings of θ reuse S; only a damping of X needs a new elimination.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.models.base import Model
from snet_cli.training.normal_blocks import SampleGram, normal_blocks, sample_grams
from snet_cli.training.relaxed import RelaxedPart, RelaxedParts, RelaxedProblem, misfit, weighted_square
from snet_cli.training.relaxed_slices import total_misfit
from snet_cli.training.robust import weighed
from snet_cli.training.weight_system import put_weights, weights_of

DEFAULT_MEMORY = 1_000_000_000
"""Bytes that the arrays of one batch of trajectories may take."""

CROSS_COPIES, BLOCK_COPIES = 4, 9
"""Arrays of the size of B, and of A, that live at once: G, its rows in S, B and what the boundaries leave of it;
blocks, products for them, coupling, damped, factor, what is condensed."""

BATCH_BYTES = 100_000_000
"""A batch is never larger: arrays of hundreds of megabytes are fetched anew from the system for every operation
(vehicle, hidden 32, 2500 points: 1.95 s an elimination in one batch, 1.57 in eight)."""


MOST_WEIGHTS = 3000
"""N_θ beyond which S is applied, not formed: forming costs N_θ² a residual, applying N_θ a residual and vector."""

SCHUR_COPIES = 4
"""Arrays as large as S that live at once: S, a batch's share of it, damped, factor."""


def schur_fits(weights: int, memory: float) -> bool:
    """Whether S is formed: not for thousands of weights, and not where it alone would not fit into memory (bytes)."""
    return weights <= MOST_WEIGHTS and 8 * SCHUR_COPIES * weights**2 <= memory


def batch_bytes(unknowns: int, weights: int, rows: int) -> int:
    """Bytes that elements of together so many unknowns take, `rows` of them in each."""
    return 8 * unknowns * (CROSS_COPIES * weights + BLOCK_COPIES * rows)


class Loss(NamedTuple):
    """R of the projected equations, what the ψ_p-component adds to it, L and Σ ν θ²; J = γ(L + Σ ν θ²) + R."""

    residual: float
    tail: float
    misfit: float
    penalty: float

    def total(self, gamma: float) -> float:
        """J."""
        return gamma * (self.misfit + self.penalty) + self.residual


class Batch(NamedTuple):
    """Some trajectories: their part of the problem, their elements in the whole, and what does not change with X.

    Attributes
    ----------
    part : RelaxedProblem
    elements : slice
    grams : list of SampleGram
    tail : Tensor, shape (N, P)
        t.
    projected : Tensor, shape (N, P, P)
        W^½ (1 - t tᵀ).
    slopes : Tensor, shape (N, P, P)
        Dᵀ W^½ (1 - t tᵀ), in units of time.
    measure : Tensor, shape (N, P, n)
        Mass over each state's variance, which the damping of X multiplies.
    """

    part: RelaxedProblem
    elements: slice
    grams: list[SampleGram]
    tail: Tensor
    projected: Tensor
    slopes: Tensor
    measure: Tensor

    @property
    def root(self) -> Tensor:
        """W^½ ⊗ S on the residuals of each node, shape (N, P, n)."""
        return self.part.quadrature.sqrt()[:, :, None] * self.part.scale

    def points(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Times (Q,), x (Q, n) and u (Q, m + c) at all nodes in one list, for node values (N, P, n)."""
        return self.part.t.reshape(-1), x.flatten(0, 1), self.part.u.flatten(0, 1)

    def damped(self, blocks: Tensor, ridge: float) -> Tensor:
        """A (N, Pn, Pn) plus `ridge` times the measure."""
        damped = blocks.clone()
        torch.diagonal(damped, dim1=1, dim2=2).add_(ridge * self.measure.flatten(1))
        return damped

    def project(self, whitened: Tensor) -> Tensor:
        """Leave the ψ_p-component out of values (N, P, r) that W^½ multiplies already."""
        return whitened - self.tail[:, :, None] * (self.tail[:, None, :] @ whitened)


class Piece:
    """Trajectories whose samples stand in memory together, and what does not change with X.

    Attributes
    ----------
    relaxed : RelaxedProblem
    elements : slice
        Among all of this process.
    root, tail : Tensor, shape (N, P)
        W^½ and t.
    batches : list of Batch
        Empty until they are needed.
    """

    def __init__(self, part: RelaxedPart) -> None:
        self.relaxed, self.elements = part.relaxed, part.elements
        self.root = self.relaxed.quadrature.sqrt()
        mode = torch.from_numpy(self.relaxed.mesh.basis.M[:, -1].copy()).to(self.root.device)
        tail = self.root * mode
        self.tail = tail / tail.norm(dim=1, keepdim=True)
        self.batches: list[Batch] = []

    def losses(self, model: Model, x: Tensor) -> Tensor:
        """What the ψ_p-component adds to R, R of all P residuals, and L; shape (3,)."""
        defect = self.relaxed.defect(model, x)
        whitened = self.root[:, :, None] * self.relaxed.scale * defect
        square = weighted_square(self.relaxed, defect).sum()
        top = (self.tail[:, None, :] @ whitened).square().sum()
        return torch.stack([top, square, misfit(self.relaxed, x).sum()])


class StateSystem(NamedTuple):
    """A, g_x, M and the projected residuals T d of a batch; rows of a known x(t0) are those of the identity, or zero.

    Shapes (N, Pn, Pn), (N, Pn), (N, Pn, Pn) and (N, P, n).
    """

    blocks: Tensor
    gradient: Tensor
    coupling: Tensor
    residual: Tensor


class ArrowProblem:
    """J = γ(L + Σ ν θ²) + R over node values and weights: its value, and the parts of its Gauss-Newton systems.

    Parameters
    ----------
    relaxed : RelaxedParts
        Parts that do not stand in memory anyway are read anew in every pass over the trajectories.
    model : Model
        Holds θ.
    nodes : Tensor, shape (N, P, n)
        X at the start; sets the variance of each state in the damping's measure.
    prior : float or Tensor, shape (N_θ,)
        ν: one value's share of L that its noise alone would leave, for weights of standard deviation 1; times α for
        those of standard deviation α^-½ (`evidence`).
    memory : int
        Bytes for the arrays of one batch; at least one trajectory is done at a time.
    formed : bool, optional
        Whether S is formed; unless given: not for thousands of weights, and not where it would not fit into memory.
    exact : bool
        Whether the data is: weights in which f is linear are then next to free (`weight_system.weight_measure`).
    team : Team
        The processes; the problem and X are this one's parts of the whole.
    """

    def __init__(
        self,
        relaxed: RelaxedParts,
        model: Model,
        nodes: Tensor,
        *,
        prior: float | Tensor = 0.0,
        memory: int = DEFAULT_MEMORY,
        formed: bool | None = None,
        exact: bool = False,
        team: Team = ALONE,
    ) -> None:
        self.model, self.memory, self.exact, self.team = model, memory, exact, team
        self.parameters = list(model.parameters())
        self.prior = torch.zeros_like(self.theta()) + prior
        self.formed = schur_fits(self.theta().numel(), memory) if formed is None else formed
        self.source = self._unweighed = relaxed
        self.rows = nodes.shape[1] * nodes.shape[2]
        self.variance = _variance(relaxed.quadrature, nodes, team)
        self._whole: Piece | None = None

    @property
    def relaxed(self) -> RelaxedProblem:
        """The problem with the sample weights of now, where it stands in memory in one piece."""
        (piece,) = self.pieces()
        return piece.relaxed

    def weigh(self, nodes: Tensor, threshold: Tensor) -> None:
        """Let samples count from now on as their errors at these X tell, under Huber's loss with thresholds (d,)."""
        self.source, self._whole = weighed(self._unweighed, nodes, threshold), None

    def pieces(self) -> Iterator[Piece]:
        """All trajectories, those together that stand in memory together."""
        return map(self._piece, range(self.source.count))

    @property
    def batches(self) -> Iterator[Batch]:
        """All trajectories, as many at a time as their arrays fit into memory."""
        for piece in self.pieces():
            piece.batches = piece.batches or list(self._cut(piece))
            yield from piece.batches

    def _piece(self, number: int) -> Piece:
        if self._whole is not None:
            return self._whole
        piece = Piece(self.source.part(number))
        if isinstance(self.source, RelaxedProblem):
            self._whole = piece
        return piece

    def _cut(self, piece: Piece) -> Iterator[Batch]:
        """Ranges of trajectories whose arrays fit into memory."""
        relaxed, tail, root = piece.relaxed, piece.tail, piece.root
        P = root.shape[1]
        projector = torch.eye(P, dtype=root.dtype, device=root.device) - tail[:, :, None] * tail[:, None, :]
        projected = root[:, :, None] * projector
        slopes = (relaxed.differentiation * relaxed.rate[:, None, None]).mT @ projected
        measure = relaxed.quadrature[:, :, None] / self.variance
        grams = sample_grams(relaxed)
        first, before = relaxed.mesh.first_element, piece.elements.start
        one = batch_bytes(self.rows, self.theta().numel() * self.formed, self.rows)
        room = min(self.memory, BATCH_BYTES * CROSS_COPIES) // one
        begin = 0
        while begin < relaxed.trajectories:
            fits = int((first <= first[begin] + room).sum()) - 1
            end = min(max(fits, begin + 1), relaxed.trajectories)
            own = slice(int(first[begin]), int(first[end]))
            part = [SampleGram(gram.gram[own], gram.coupling) for gram in grams]
            constant = (tail[own], projected[own], slopes[own], measure[own])
            yield Batch(relaxed.between(begin, end), slice(before + own.start, before + own.stop), part, *constant)
            begin = end

    def theta(self) -> Tensor:
        """θ in float64, in the order of the model's parameters."""
        return weights_of(self.parameters)

    def put_theta(self, theta: Tensor) -> None:
        """Set the model's weights."""
        put_weights(self.parameters, theta)

    def loss(self, nodes: Tensor) -> Loss:
        """R, L and the penalty at node values X and the model's θ."""
        with torch.no_grad():
            sums = torch.stack([piece.losses(self.model, nodes[piece.elements]) for piece in self.pieces()]).sum(0)
            tail, R, L = self.team.sum(sums)[0].tolist()
        # rounding may make the difference negative where nothing is left; a NaN stays one
        return Loss(max(R - tail, 0.0), tail, L, self.penalty())

    def penalty(self) -> float:
        """Σ ν θ² alone."""
        return float(self.prior @ self.theta().square())

    def misfit(self, nodes: Tensor) -> float:
        """L alone."""
        return total_misfit(self.source, nodes, self.team)

    def state_system(self, batch: Batch, x: Tensor, gamma: float, rates: Tensor, F: Tensor) -> StateSystem:
        """A, g_x, M and T d of one batch.

        Parameters
        ----------
        x : Tensor, shape (N, P, n)
            Its node values.
        rates, F : Tensor, shapes (Q, n), (Q, n, n)
            f and ∂f/∂x at its Q = N P nodes.
        """
        part, (N, P, n) = batch.part, x.shape
        F = F.reshape(N, P, n, n)
        defect = part.slope(x) - rates.reshape(N, P, n)
        blocks, gradient = normal_blocks(part, x, gamma, batch.grams, defect, F)
        free = (~part.known_start).to(x.dtype)
        # the ψ_p-component of the residuals: n rows (sign dropped), and their values
        top = (batch.tail * part.quadrature.sqrt())[:, None, :, None] * (part.scale[:, None, None] * F.transpose(1, 2))
        top[part.first_elements, :, 0] *= free[:, None, :]
        top = top.reshape(N, n, P * n)
        whitened = batch.root * defect
        at_top = batch.tail[:, None, :] @ whitened  # (N, 1, n)
        return StateSystem(
            blocks - top.mT @ top,
            gradient + (top.mT @ at_top.mT)[..., 0],
            _coupling(batch, F, free),
            whitened - batch.tail[:, :, None] * at_top,
        )


def _coupling(batch: Batch, F: Tensor, free: Tensor) -> Tensor:
    """M = J_xᵀ T_eᵀ, shape (N, Pn, Pn): node a and state j in the rows, residual q and i in the columns."""
    part = batch.part
    scaled = part.scale[:, None] * F  # s_i F_a,ij
    M = -scaled.mT[:, :, :, None, :] * batch.projected[:, :, None, :, None]  # [e, a, j, q, i]
    by_state = torch.diagonal(M, dim1=2, dim2=4)  # (N, P, P, n), a view
    by_state += batch.slopes[..., None] * part.scale
    M[part.first_elements, 0] *= free[:, :, None, None]
    return M.flatten(3, 4).flatten(1, 2)


def _variance(quadrature: Tensor, nodes: Tensor, team: Team) -> Tensor:
    """Variance of each state over all trajectories, shape (n,); of a state that rests, its square, or 1."""
    weight = quadrature[:, :, None]
    mean, square = team.sum((weight * nodes).sum((0, 1)), (weight * nodes**2).sum((0, 1)))
    (variance,) = team.sum((weight * (nodes - mean) ** 2).sum((0, 1)))
    fallback = torch.where(square > 0, square, 1.0)
    return torch.where(variance > 1e-12 * square, variance, fallback)
