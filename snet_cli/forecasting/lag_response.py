"""Response of first-order lags s' = (u - s) / τ to recorded inputs, in closed form.

From a time a on, as long as u = Σ_p c_p (t - a)^p, with d = t - a and z = d / τ,

    s(t) = s(a) exp(-z) + Σ_p c_p d^p g_p(z),        g_p(z) = z ∫_0^1 w^p exp(-z (1 - w)) dw,

all terms without cancellation for any τ. At the knots of u this is s_k+1 = A_k s_k + b_k. Such recurrences compose,
``(A, b) ∘ (A', b') = (A A', b + A b')``, so that doubling the reach of each finds s at all knots in log2 of their
number passes over arrays (Hillis and Steele 1986). 0 <= A <= 1: no error grows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from snet_cli.integration.inputs import SampledSignal

QUADRATURE_POINTS = 10
"""Gauss points for g_p at z <= 1, where they are exact to rounding."""


def lag_response(
    signal: SampledSignal, columns: Tensor, tau: Tensor, begin: Tensor, owner: Tensor, time: Tensor
) -> Tensor:
    """Value of each lagged input at W times, shape (W, L), at rest at u where its recording begins.

    Parameters
    ----------
    signal : SampledSignal
        Of B trajectories.
    columns : Tensor of int, shape (L,)
        The channels that lag.
    tau : Tensor, shape (L,)
        Their τ, in the unit of time.
    begin : Tensor, shape (B,)
        When each lag is at rest at u; where the input begins later, then.
    owner, time : Tensor, shape (W,)
        Trajectory and time of each answer, not before `begin`.
    """
    knots, u = signal.knots.values, signal.coefficients[:, columns]
    first = torch.maximum(signal.knots.upto(begin, inclusive=True) - 1, signal.knots.first)
    anchor, u = knots.clone(), u.clone()
    anchor[first] = torch.maximum(begin, knots[first])
    u[first] = _about(u[first], anchor[first] - knots[first])

    def response(piece: Tensor, at: Tensor, s: Tensor | float) -> Tensor:
        """Value at a time in each piece, from s at the piece's anchor."""
        duration = (at - anchor[piece]).clamp(min=0.0)[:, None]
        z = duration / tau
        result = s * torch.exp(-z)
        for power, moment in enumerate(_moments(z, u.shape[2])):
            result = result + u[piece, :, power] * duration**power * moment
        return result

    before = torch.arange(len(knots) - 1, device=knots.device)
    A = torch.exp(-(knots[1:] - anchor[:-1]).clamp(min=0.0)[:, None] / tau)
    A, s = torch.cat([u.new_zeros(1, len(tau)), A]), torch.cat([u[:1, :, 0], response(before, knots[1:], 0.0)])
    A[first], s[first] = 0.0, u[first, :, 0]  # of another trajectory, or of a time before `begin`, nothing
    reach = 1
    while reach < len(knots) and bool(A.any()):
        s[reach:] += A[reach:] * s[:-reach]
        A[reach:] *= A[:-reach].clone()
        reach *= 2
    piece = torch.maximum(signal.knots.select(owner).upto(time, inclusive=True) - 1, first[owner])
    return response(piece, time, s[piece])


def _about(coefficients: Tensor, shift: Tensor) -> Tensor:
    """Coefficients (F, L, powers) of the same polynomials about a later time."""
    powers = range(coefficients.shape[2])
    shifted = [
        sum(math.comb(p, j) * shift[:, None] ** (p - j) * coefficients[:, :, p] for p in powers if p >= j)
        for j in powers
    ]
    return torch.stack([torch.as_tensor(part) for part in shifted], 2)


def _moments(z: Tensor, count: int) -> list[Tensor]:
    """g_0 … of z >= 0: by quadrature where z is small, else by g_p = 1 - (p / z) g_p-1, from integration by parts."""
    points, weights = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
    small, large = z.clamp(max=1.0), z.clamp(min=1.0)
    near = [torch.zeros_like(z) for _ in range(count)]
    for w, weight in zip(0.5 + 0.5 * points, 0.5 * weights, strict=True):
        pull = weight * small * torch.exp(-small * (1.0 - w))
        near = [total + w**power * pull for power, total in enumerate(near)]
    far = [1.0 - torch.exp(-large)]
    for power in range(1, count):
        far.append(1.0 - (power / large) * far[-1])
    return [torch.where(z < 1.0, a, b) for a, b in zip(near, far, strict=True)]
