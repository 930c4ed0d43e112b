"""Errors at samples that are no noise: how long they repeat themselves, how large they are, what that costs θ.

Noise differs from sample to sample, the error of a model and of its training is smooth in time (`ErrorPattern`):

    τ = 1 + 2 Σ ρ_k     autocorrelation time of an output's errors (its window by Sokal 1997, sec. 3): so many
                        neighbours say the same, and each counts as the 1/τ-th part of an observation
    s = ρ_1             the share of their variance that the next sample repeats, where it is half of it or more

More data makes θ more certain and the discrepancy s e² no smaller: a posterior that shrinks with the number of samples
gives bands that are too narrow wherever s is not 0, most of all for exact data. Its information is therefore divided by
a dispersion φ ≥ 1 (McCullagh & Nelder 1989, sec. 4.5; a tempered likelihood), chosen so that at the samples of training
the band is as wide as what it has to hold: the discrepancy, and the uncertainty of θ that there is without one,

    Σ J_k Cov(φ) J_kᵀ / (σ² τ) = φ Σ λ/(λ + φ)  =  Σ s e² / (σ² τ)  +  Σ λ/(λ + 1).

J_k is the sensitivity of a value and λ are the eigenvalues of the information in units of the prior. White errors and
mildly coloured ones give φ = 1. That the error of a model behaves like a change of its weights is an assumption (Pernot
2017 shows where it fails): what no weights could cause has the right size where it was trained, not the right shape.

Notes
-----
Two estimates that ask for no such assumption were tried on exact vehicles (50 trajectories, 318 numbers determined;
coverage of 95 % bands to T and to 10 T). Trajectories as independent units, Σ_b g_b g_bᵀ for the information (Liang &
Zeger 1986): 87 % and 87 %. The same with each trajectory left out (Bell & McCaffrey 2002): 100 %, 25 to 60 times too
wide, as one that determines up to fourteen numbers alone is missed too much. φ: 96 % and 96 %; without: 78 % and 80 %.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
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


def dispersion(information: FloatArray, discrepancy: float) -> float:
    """φ ≥ 1 that the equation above asks for.

    Parameters
    ----------
    information : ndarray, shape (N_θ,)
        λ, not negative.
    discrepancy : float
        Σ s e² / (σ² τ) over all values.

    Returns
    -------
    float
        `MOST_DISPERSION` where even the prior's band is narrower than the discrepancy.
    """
    if discrepancy <= 0.0 or not (information > 0.0).any():
        return 1.0
    asked = discrepancy + determined(information, 1.0)

    def excess(log_phi: float) -> float:
        phi = float(np.exp(log_phi))
        return phi * determined(information, phi) - asked

    most = float(np.log(MOST_DISPERSION))
    return float(np.exp(brentq(excess, 0.0, most))) if excess(most) > 0.0 else MOST_DISPERSION


def determined(information: FloatArray, phi: float) -> float:
    """Σ λ/(λ + φ): how many numbers the data determines."""
    return float((information / (information + phi)).sum())
