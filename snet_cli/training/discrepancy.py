"""Errors at samples that are no noise: how long they repeat themselves, how large they are, what that costs θ.

Noise differs from sample to sample, the error of a model and of its training is smooth in time (`ErrorPattern`):

    τ = 1 + 2 Σ ρ_k     autocorrelation time of an output's errors (its window by Sokal 1997, sec. 3): so many
                        neighbours say the same, and each counts as the 1/τ-th part of an observation
    s = ρ_1             the share of their variance that the next sample repeats, where it is half of it or more

More data makes θ more certain and the discrepancy s e² no smaller: a posterior that shrinks with the number of samples
gives bands that are too narrow wherever s is not 0, most of all for exact data. The information I_d of each output is
therefore divided by a dispersion φ_d ≥ 1 of its own (McCullagh & Nelder 1989, sec. 4.5; a tempered likelihood), chosen
so that at the samples of training the band of each output is as wide as what it has to hold: the discrepancy, and the
uncertainty of θ that there is without one,

    Σ_k J_kd Cov(φ) J_kdᵀ / (σ_d² τ_d) = tr I_d Cov(φ)  =  Σ_k s_d e_kd² / (σ_d² τ_d)  +  tr I_d Cov(1),

    Cov(φ) = (Σ_d I_d / φ_d + 1)⁻¹     in units of the prior.

J_kd is the sensitivity of a value. White errors and mildly coloured ones give φ_d = 1. In the basis where Σ_d I_d is
the identity, Cov(1)⁻¹ = 1 + Λ⁻¹, and nothing of it is large: the equations are solved there by φ_d <- φ_d asked /
found, where what is found grows more slowly than φ_d. That the error of a model behaves like a change of its weights is
an assumption (Pernot 2017 shows where it fails): what no weights could cause has the right size where it was trained,
not the right shape.

Notes
-----
Two estimates that ask for no such assumption were tried on exact vehicles (50 trajectories, 318 numbers determined;
coverage of 95 % bands to T and to 10 T). Trajectories as independent units, Σ_b g_b g_bᵀ for the information (Liang &
Zeger 1986): 87 % and 87 %. The same with each trajectory left out (Bell & McCaffrey 2002): 100 %, 25 to 60 times too
wide, as one that determines up to fourteen numbers alone is missed too much. φ: 96 % and 96 %; without: 78 % and 80 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snet_cli.distributed import ALONE, Team
from snet_cli.training.relaxed import RelaxedProblem

FloatArray = NDArray[np.float64]

SOKAL = 5.0
"""Lags that are summed, in autocorrelation times."""

SIGNIFICANT = 2.0
"""Standard deviations of ρ_1 under white errors that chance may show."""

REPEATING = 0.5
"""Share below which errors are taken for coloured noise, which τ holds: the error of a model repeats itself over tens
of samples, and a small share of many values would widen the confidence of a few numbers without bound."""

KNOWN = 1e-8
"""Information in a direction, in units of the prior, below which it has no part in any trace."""

AGREES, MOST_ROUNDS = 1e-3, 200
"""Relative change of φ that is none, and after how many rounds it is taken as it is."""

TINY = 1e-300
"""Least trace that is divided by."""

MOST_DISPERSION = 1e12
"""Beyond all information that double precision tells from none: the prior alone is left."""


class ErrorPattern(NamedTuple):
    """What the errors at the samples look like in time, by output.

    Attributes
    ----------
    correlation : ndarray, shape (d,)
        τ in samples, at least 1; 1 where ρ_1 could be chance.
    share : ndarray, shape (d,)
        s, from 0 to 1; 0 where ρ_1 could be chance.
    """

    correlation: FloatArray
    share: FloatArray


def error_pattern(relaxed: RelaxedProblem, nodes: Tensor, team: Team = ALONE) -> ErrorPattern:
    """τ and s of each output's errors at X (N, P, n), over all processes.

    Lags count samples of one trajectory that both hold a value.
    """
    seen = relaxed.observed
    error = team.gather(seen.weight.sqrt() * relaxed.error(nodes)).cpu().numpy()
    held = team.gather(seen.weight).cpu().numpy() > 0
    owner = team.gather(seen.trajectory + team.before(relaxed.trajectories)).cpu().numpy()
    each = [pattern_of(error[held[:, i], i], owner[held[:, i]]) for i in range(error.shape[1])]
    share = np.array([share for _, share in each])
    return ErrorPattern(np.array([tau for tau, _ in each]), np.where(share >= REPEATING, share, 0.0))


def pattern_of(error: FloatArray, owner: NDArray[np.int64]) -> tuple[float, float]:
    """τ and s of one output's errors, ordered by trajectory and time; the sum of τ ends beyond `SOKAL` τ."""
    square = float(error @ error)
    if error.size < 3 or square == 0.0:
        return 1.0, 0.0
    longest = int(np.bincount(owner).max()) - 1
    tau, share = 1.0, 0.0
    for lag in range(1, longest + 1):
        together = owner[lag:] == owner[:-lag]
        pairs = int(together.sum())
        if pairs == 0:
            break
        # as a part of all values, not of the pairs: long lags of short trajectories must not weigh more than they are
        rho = float((error[lag:] * error[:-lag])[together].sum()) / square
        if lag == 1:
            share = rho * error.size / pairs - SIGNIFICANT / np.sqrt(pairs)
            if share <= 0.0:
                return 1.0, 0.0
        tau += 2.0 * rho
        if lag >= SOKAL * tau:
            break
    return max(tau, 1.0), min(share, 1.0)


def dispersions(roots: Sequence[FloatArray], information: FloatArray, discrepancy: FloatArray) -> FloatArray:
    """φ (d,), at least 1, that the equations above ask for.

    Parameters
    ----------
    roots : sequence of ndarray, shape (rows, r)
        R_d V with R_dᵀR_d = I_d in units of the prior, and V the directions of Σ_d I_d = V Λ Vᵀ.
    information : ndarray, shape (r,)
        Λ.
    discrepancy : ndarray, shape (d,)
        Σ s e² / (σ² τ) over all values of an output.

    Returns
    -------
    ndarray, shape (d,)
        `MOST_DISPERSION` where even the prior's band is narrower than the discrepancy.
    """
    phi, kept = np.ones(len(roots)), information > KNOWN
    if not (discrepancy > 0.0).any() or not kept.any():
        return phi
    parts = [root[:, kept] / np.sqrt(information[kept]) for root in roots]
    shares, precision = [part.T @ part for part in parts], 1.0 / information[kept]
    found = _traces(shares, precision, phi)
    asked = discrepancy + found
    for _ in range(MOST_ROUNDS):
        last, phi = phi, np.clip(phi * asked / np.maximum(found, TINY), 1.0, MOST_DISPERSION)
        if np.allclose(phi, last, rtol=AGREES, atol=0.0):
            break
        found = _traces(shares, precision, phi)
    return phi


def _traces(shares: Sequence[FloatArray], precision: FloatArray, phi: FloatArray) -> FloatArray:
    """The trace of I_d Cov(φ) for each output, from I_d where their sum is the identity, and the prior's precision."""
    total = np.diag(precision)
    for share, by in zip(shares, phi, strict=True):
        total += share / by
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(total))).numpy()
    return np.array([float((share * covariance).sum()) for share in shares])


def determined(information: FloatArray) -> float:
    """Σ λ/(λ + 1) over the eigenvalues of the information, in units of the prior: how many numbers it determines."""
    return float((information / (information + 1.0)).sum())
