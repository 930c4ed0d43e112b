"""How well the data determines θ: the Gaussian posterior at the end of a joint fit.

Likelihood. The outputs are y = C x(t; θ, x(t0)) + noise, so that minus its logarithm is Σ e² / (2 σ²) over the observed
values. J says the same in its own units: L = Σ e² / (c² K), and γ(L + ν|θ|²) + R at small γ is minimal where L is under
the constraint that X solves the discretised ODE. With c ∝ σ, c² = σ² r, the log likelihood is -(r K / 2) L.

Information. Half the Gauss-Newton Hessian of J is the arrow of `arrow`; with X eliminated it is

    S = D - Bᵀ A⁻¹ B = γ Σ (1 / (c² K)) (de/dθ)ᵀ (de/dθ) + O(γ²),       de/dθ = C l_k dX/dθ,   dX/dθ = -A⁻¹ B,

S / γ times r K is the Fisher information Σ (de/dθ)ᵀ (de/dθ) / σ². It is taken from de/dθ and not from S: the difference
D - Bᵀ A⁻¹ B cancels to γ of its size, which rounding does not survive for exact data; its root (`information`) is
positive semidefinite whatever γ is, and holds twice the digits. Where x(t0) is free, A holds it,
and dX/dθ is that along the best x(t0).

Noise. σ is what the file states, but at least what the fit leaves: √(Σ e² / (K (1 - q / K_all))), q the numbers that
the data determines, ``effective`` below and the free x(t0). What a model cannot follow is no noise: its errors are
smooth in time. Neighbours that say the same count once, and as no number of observations makes such an error smaller,
the information of each output is divided by a dispersion φ_d that gives its bands their size (`discrepancy`). So bands
do not shrink to nothing for exact data, where the misfit is the error of the model, of its training and of the
discretisation.

Prior. What the data does not determine would otherwise be known exactly or not at all. Each number of θ has the prior
N(estimate, s²): s is what the evidence found (`evidence`), or else the root mean square of its tensor and at least 1.
Posterior: N(estimate, (Σ_d information_d / φ_d + diag(s)⁻²)⁻¹), the Laplace approximation with the Gauss-Newton matrix
(MacKay 1992); forecasts have to be linear in θ to mean it (`forecasting.ensemble`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from torch import Tensor

from snet_cli.data.posterior import Posterior
from snet_cli.distributed import Team
from snet_cli.models.base import Model
from snet_cli.training.arrow import ArrowProblem, Batch
from snet_cli.training.block_solver import BlockFactor
from snet_cli.training.discrepancy import determined, dispersions, error_pattern
from snet_cli.training.information import SQUARED, Information, Squares, Triangles
from snet_cli.training.relaxed import RelaxedProblem
from snet_cli.training.state_jacobian import state_jacobian
from snet_cli.training.theta_jacobian import theta_jacobian

FloatArray = NDArray[np.float64]

MOST_NUMBERS = 3000
"""N_θ beyond which there is none: the factor takes 36 MB of the checkpoint at 3 000."""

COPIES = 4
"""Matrices of N_θ² doubles that live at once beside two for each output: the information and its decomposition, the
posterior's factor and its inverse."""

LARGEST_GAMMA = 1e-8
"""γ of X and of its sensitivities, at most: dX/dθ is that of the ODE and not of a compromise with the samples. At 1e-6
half widths of a pendulum's parameters were 6 % too wide, at 1e-8 exact to three digits."""

RIDGE = 1e-9
"""Damping of X relative to γ: what no sample determines (an unobserved x(t0)) must not leave A singular."""

CHUNK_SAMPLES = 256
"""Samples whose de/dθ are formed at a time."""

ALIKE = 1.1
"""Changes of the channels' weights, relative to each other, up to which dX/dθ stays as it is. Along known x(t0) it does
not depend on them; the best x(t0) does, but the information is stationary in it."""

SETTLING_STEPS = 8
"""Most Newton steps of X towards its minimum for the θ that was kept, which need not be that of the last iteration."""


class _Likelihood(NamedTuple):
    """Everything in one place: the problem, X, γ and the known noise (d,), NaN where nothing is stated.

    `squares` where they may hold enough digits of the information.
    """

    relaxed: RelaxedProblem
    model: Model
    nodes: Tensor
    gamma: float
    stated: FloatArray
    squares: bool
    memory: int
    team: Team


def fits_memory(numbers: int, outputs: int, memory: int) -> bool:
    """Whether the posterior of this many numbers, judged by so many outputs, is kept."""
    return 0 < numbers <= MOST_NUMBERS and (COPIES + 2 * outputs) * 8 * numbers**2 <= memory


def posterior_of(
    arrow: ArrowProblem, nodes: Tensor, gamma: float, stated: FloatArray, chosen: FloatArray | None = None
) -> Posterior | None:
    """The posterior of the θ that the model holds; None where a derivative or a misfit is not finite.

    Parameters
    ----------
    arrow : ArrowProblem
        The problem of the fit, its weights of samples included; each process of its team has its own trajectories.
    nodes : Tensor, shape (N, P, n)
        X at the end.
    gamma : float
        γ at the end.
    stated : ndarray, shape (d,)
        Known standard deviation of each output's noise; NaN = not stated.
    chosen : ndarray, shape (N_θ,), optional
        Standard deviation of each number before the data, where the evidence chose it.
    """
    gamma = min(gamma, LARGEST_GAMMA)
    nodes = _settled(arrow, nodes, gamma)
    team = arrow.team
    problem = _Likelihood(arrow.relaxed, arrow.model, nodes, gamma, stated, not arrow.exact, arrow.memory, team)
    values = _values(problem.relaxed, team)
    if team.any(not bool(torch.isfinite(nodes).all()))[0] or values.max() == 0:
        return None
    prior = _prior_std(arrow.parameters) if chosen is None else chosen
    pattern = error_pattern(problem.relaxed, nodes, team)
    (starts,) = team.total(float((~problem.relaxed.known_start).sum()))
    noise, left = _noise_std(problem, 0.0)
    roots = _information_roots(problem, noise * np.sqrt(pattern.correlation), prior)
    for last in (False, True):  # the degrees of freedom depend on the information, and that on the noise
        if roots is None:
            return None
        information = Information.of(roots, prior)
        refined, left = _noise_std(problem, determined(information.values) + starts)
        ratio, noise = refined / noise, refined
        information = information.divided(float(np.exp(2.0 * np.log(ratio).mean())))
        if last or np.allclose(ratio, ratio[0], rtol=1e-2, atol=0.0):
            break  # all channels alike: what was found needs another unit only
        if starts and ratio.max() > ALIKE * ratio.min():
            problem = problem._replace(squares=float(information.values.sum()) <= SQUARED)
            del information, roots
            roots = _information_roots(problem, noise * np.sqrt(pattern.correlation), prior)
        else:
            roots = [root / by for root, by in zip(roots, ratio, strict=True)]
    repeated = values * pattern.share * (left / noise) ** 2 / pattern.correlation
    phi = dispersions(information.roots, information.values, repeated)
    upper = information.precision_root(phi)
    inverse = solve_triangular(upper, np.eye(len(prior)))
    named = list(arrow.model.named_parameters())
    return Posterior(
        tuple(name for name, _ in named),
        tuple(p.numel() for _, p in named),
        upper.T / prior[:, None],
        prior * np.sqrt((inverse**2).sum(1)),
        prior,
        noise,
        pattern.correlation,
        values,
        len(prior) - float((inverse**2).sum()),
        phi,
    )


def _settled(arrow: ArrowProblem, nodes: Tensor, gamma: float) -> Tensor:
    """X at the minimum of J for the θ that the model holds, by Newton steps in X alone while they descend."""
    J = arrow.loss(nodes).total(gamma)
    for _ in range(SETTLING_STEPS):
        states = nodes.clone()
        for batch in arrow.batches:
            x = nodes[batch.elements]
            system = arrow.state_system(batch, x, gamma, *state_jacobian(arrow.model, *batch.points(x)))
            blocks = batch.damped(system.blocks, RIDGE * gamma)
            factor = BlockFactor(blocks, batch.part.trajectory, nodes.shape[2])
            states[batch.elements] -= factor.solve(system.gradient[:, :, None])[:, :, 0].view_as(x)
        after = arrow.loss(states).total(gamma)
        if not after < J:  # true for NaN
            break
        gain, J, nodes = (J - after) / J, after, states
        if gain < 1e-6:
            break
    return nodes


def _information_roots(problem: _Likelihood, noise: FloatArray, prior: FloatArray) -> list[FloatArray] | None:
    """R_d with R_dᵀR_d = Σ (de_d/dθ)ᵀ (de_d/dθ) / noise_d² for each output, upper triangular, shape (at most N_θ, N_θ).

    None where they are not finite.

    Parameters
    ----------
    noise : ndarray, shape (d,)
        What an error of each output counts by.
    prior : ndarray, shape (N_θ,)
    """
    seen = problem.relaxed.observed
    weight = torch.from_numpy(noise**-2.0).to(seen.channel)
    same_size = float(torch.exp((seen.channel.log() - weight.log()).mean()))  # γ keeps its meaning
    relaxed = problem.relaxed.with_channel(weight * same_size)
    arrow = ArrowProblem(relaxed, problem.model, problem.nodes, memory=problem.memory, formed=True, team=problem.team)
    unit = torch.from_numpy(prior).to(weight)
    roots: list[Tensor] | None = None
    for kind in (Squares, Triangles) if problem.squares else (Triangles,):
        sums = kind(len(noise), unit)
        if problem.team.any(not all(_add_rows(sums, problem, arrow, batch, weight) for batch in arrow.batches))[0]:
            return None
        roots = sums.roots(problem.team)
        if roots is not None:
            break
    assert roots is not None
    found = [root.cpu().numpy() for root in roots]
    return found if all(np.isfinite(root).all() for root in found) else None


def _add_rows(
    sums: Squares | Triangles, problem: _Likelihood, arrow: ArrowProblem, batch: Batch, weight: Tensor
) -> bool:
    """Add what a batch tells; False where A has no factor, or a derivative is not finite."""
    x = problem.nodes[batch.elements]
    rates, F, G = theta_jacobian(problem.model, *batch.points(x))
    system = arrow.state_system(batch, x, problem.gamma, rates, F)
    cross = G.weighted_(batch.root.flatten(0, 1)).left_product(system.coupling)  # -B
    blocks = batch.damped(system.blocks, RIDGE * problem.gamma)
    factor = BlockFactor(blocks, batch.part.trajectory, problem.nodes.shape[2])
    if bool(factor.failed.any()) or not bool(torch.isfinite(cross).all()):
        return False
    for output, rows in enumerate(_rows(batch.part, factor.solve(cross), weight)):
        sums.add(output, rows)
    return True


def _rows(part: RelaxedProblem, slope: Tensor, weight: Tensor) -> Tensor:
    """For each output rows (d, r, N_θ) with the squares of a batch's de/dθ, weighted, from dX/dθ (N, P n, N_θ).

    The sign of dX/dθ does not matter.

    An element has far more values than node values, so that its samples are summed first: with e_k = l_k C X the
    squares of output d are those of S_d^½ C_d X, S_d = Σ_k w_kd l_k l_kᵀ.
    """
    seen, C, (N, _, size) = part.observed, part.observation, slope.shape
    P = seen.rows.shape[1]
    squares = slope.new_zeros(N, C.shape[0], P, P)
    for begin in range(0, seen.element.numel(), CHUNK_SAMPLES):
        chosen = slice(begin, begin + CHUNK_SAMPLES)
        rows, weights = seen.rows[chosen], seen.weight[chosen] * weight
        weighted = weights[:, :, None] * rows[:, None, :]
        squares.index_add_(0, seen.element[chosen], weighted[..., None] * rows[:, None, None, :])
    values, vectors = torch.linalg.eigh(squares)
    roots = values.clamp_min(0.0).sqrt()[..., None] * vectors.mT  # (N, d, P, P)
    outputs = torch.einsum("dn,epnk->edpk", C, slope.view(N, P, -1, size))
    return (roots @ outputs).transpose(0, 1).flatten(1, 2)


def _prior_std(parameters: list[torch.nn.Parameter]) -> FloatArray:
    """Standard deviation of every number before the data: the root mean square of its tensor, at least 1."""
    sizes = [max(1.0, float(p.detach().double().square().mean().sqrt())) if p.numel() else 1.0 for p in parameters]
    return np.repeat(sizes, [p.numel() for p in parameters])


def _values(relaxed: RelaxedProblem, team: Team) -> NDArray[np.int64]:
    (values,) = team.sum((relaxed.observed.weight > 0).sum(0))
    return values.cpu().numpy().astype(np.int64)


def _noise_std(problem: _Likelihood, freedom: float) -> tuple[FloatArray, FloatArray]:
    """σ of each output, and what the errors say alone with `freedom` numbers fitted to all values.

    σ is what is stated, but at least that.
    """
    seen = problem.relaxed.observed
    error = problem.relaxed.error(problem.nodes)
    sums = problem.team.sum((seen.weight * error**2).sum(0), (seen.weight * (error + seen.values) ** 2).sum(0))
    square, size = (part.cpu().numpy() for part in sums)
    values = np.maximum(_values(problem.relaxed, problem.team), 1)
    left = max(1.0 - freedom / values.sum(), 1.0 / values.sum())
    floor = np.finfo(np.float64).eps * np.sqrt(size / values) + np.finfo(np.float64).tiny ** 0.5
    estimated = np.sqrt(square / (values * left))
    return np.maximum(np.fmax(estimated, problem.stated), floor), estimated
