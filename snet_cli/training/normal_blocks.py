"""Gauss-Newton blocks of J in the node values of each element, without ever forming the Jacobian of the residuals.

The residuals of element e at node q are ``√w_q s ⊙ (Σ_j D_qj x_j - f(x_q))`` with D in units of time, so that half the
Hessian of R has the P x P blocks (n x n each; F_q = ∂f/∂x, S = diag(s))

    H_jq = (Dᵀ W D)_jq S² - w_q D_qj S² F_q - w_j D_jq F_jᵀ S² + δ_jq w_q F_qᵀ S² F_q

The misfit adds ``γ Σ_k ω_k l_k l_kᵀ ⊗ Cᵀ diag(1 / c²) C / K`` with l_k the Lagrange polynomials at the sample; channels
with one mask share the P x P matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snet_cli.training.relaxed import RelaxedProblem

CHUNK_SAMPLES = 50_000
"""Samples whose P x P products are formed at a time."""


class SampleGram(NamedTuple):
    """Σ_k ω_k l_k l_kᵀ of each element for channels with one mask.

    Attributes
    ----------
    gram : Tensor, shape (N, P, P)
    coupling : Tensor, shape (n, n)
        Cᵀ diag(1 / (c² K)) C of these channels.
    """

    gram: Tensor
    coupling: Tensor


def sample_grams(relaxed: RelaxedProblem) -> list[SampleGram]:
    """The misfit's blocks, which change only with the weights of the samples."""
    seen = relaxed.observed
    patterns, group = torch.unique(seen.weight, dim=1, return_inverse=True)
    grams = []
    for number in range(patterns.shape[1]):
        C = relaxed.observation[group == number]
        coupling = C.T @ (seen.channel[group == number, None] * C)
        P = seen.rows.shape[1]
        gram = seen.rows.new_zeros(relaxed.trajectory.numel(), P * P)
        for begin in range(0, seen.element.numel(), CHUNK_SAMPLES):
            part = slice(begin, begin + CHUNK_SAMPLES)
            rows = seen.rows[part]
            weighted = patterns[part, number, None] * rows
            gram.index_add_(0, seen.element[part], (weighted[:, :, None] * rows[:, None, :]).flatten(1))
        grams.append(SampleGram(gram.view(-1, P, P), coupling))
    return grams


def sample_pull(relaxed: RelaxedProblem) -> Tensor:
    """Σ_k ω_k l_k (Cᵀ diag(1 / (c² K)) y_k)ᵀ of each element, shape (N, P, n).

    With `sample_grams`, half the gradient of L in the node values x is ``Σ gram @ x @ coupling - pull``, at a cost
    that does not depend on the number of samples.
    """
    seen = relaxed.observed
    weighted = (seen.weight * seen.channel * seen.values) @ relaxed.observation  # (K, n)
    pull = seen.rows.new_zeros(relaxed.trajectory.numel(), seen.rows.shape[1], weighted.shape[1])
    return pull.index_add_(0, seen.element, seen.rows[:, :, None] * weighted[:, None, :])


class NormalBlocks(NamedTuple):
    """Half the Gauss-Newton Hessian and half the gradient of J.

    Attributes
    ----------
    blocks : Tensor, shape (N, P n, P n)
        Rows ordered node by node; contributions to a shared node are not yet summed.
    gradient : Tensor, shape (N, P n)
    """

    blocks: Tensor
    gradient: Tensor


def normal_blocks(
    relaxed: RelaxedProblem, nodes: Tensor, gamma: float, grams: list[SampleGram], defect: Tensor, F: Tensor
) -> NormalBlocks:
    """Assemble the blocks of J = γL + R around the node values.

    Parameters
    ----------
    nodes, defect : Tensor, shape (N, P, n)
    grams : list of SampleGram
        Of the same elements.
    F : Tensor, shape (N, P, n, n)
        ∂f/∂x at the nodes.
    """
    D = relaxed.differentiation * relaxed.rate[:, None, None]  # (N, P, P), row q
    w, s2 = relaxed.quadrature, relaxed.scale**2
    weighted = w[:, :, None, None] * s2[:, None] * F  # (N, P, n, n): w_q S² F_q
    cross = D.mT[:, :, None, :, None] * weighted.permute(0, 2, 1, 3)[:, None]  # [e, j, a, q, b] = D_qj (w S² F)_q,ab
    H = -(cross + cross.permute(0, 3, 4, 1, 2))
    stiffness = D.mT @ (w[:, :, None] * D)
    by_state = torch.diagonal(H, dim1=2, dim2=4)  # (N, P, P, n), a view
    by_state += stiffness[..., None] * s2
    by_node = torch.diagonal(H, dim1=1, dim2=3)  # (N, n, n, P), a view
    by_node += (F.mT @ weighted).permute(0, 2, 3, 1)
    for gram, coupling in grams:
        for a, b in torch.nonzero(coupling).tolist():
            H[:, :, a, :, b] += (gamma * coupling[a, b]) * gram
    scaled = w[:, :, None] * s2 * defect
    g = D.mT @ scaled - (F.mT @ scaled[..., None])[..., 0]
    seen = relaxed.observed
    pull = (seen.weight * seen.channel * relaxed.error(nodes)) @ relaxed.observation  # (K, n)
    g = g.index_add(0, seen.element, gamma * seen.rows[:, :, None] * pull[:, None, :])
    blocks, gradient = H.flatten(3, 4).flatten(1, 2), g.flatten(1)
    return _pinned(relaxed, blocks, gradient)


def _pinned(relaxed: RelaxedProblem, blocks: Tensor, gradient: Tensor) -> NormalBlocks:
    """Eliminate known x(t0), in place: its rows and columns become those of the identity, its gradient zero."""
    known = relaxed.known_start
    if bool(known.any()):
        first, n = relaxed.first_elements, known.shape[1]
        free = (~known).to(gradient.dtype)
        blocks[first, :n] *= free[:, :, None]
        blocks[first, :, :n] *= free[:, None, :]
        blocks[first[:, None], torch.arange(n), torch.arange(n)] += 1.0 - free
        gradient[first, :n] *= free
    return NormalBlocks(blocks, gradient)
