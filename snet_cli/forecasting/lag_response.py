"""Response of first-order lags s' = (u - s) / τ to recorded inputs, in closed form.

Where u is a polynomial, so is the solution q = u - τ q', and every other one differs from it by a multiple of
exp(-t / τ). From one knot of the input to the next, s therefore follows

    s(t) = q(t) + (s(a) - q(a)) exp(-(t - a) / τ),        s_k+1 = A_k s_k + b_k  at the knots.

Such recurrences compose, ``(A, b) ∘ (A', b') = (A A', b + A b')``, so that doubling the reach of each finds s at all
knots in log2 of their number passes over arrays (Hillis and Steele 1986). 0 <= A <= 1: no error grows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snet_cli.integration.inputs import SampledSignal


def lag_response(
    signal: SampledSignal, columns: Tensor, tau: Tensor, begin: Tensor, owner: Tensor, time: Tensor
) -> Tensor:
    """s of each lagged input at W times, shape (W, L), at rest at u where its recording begins.

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
    q = u.clone()
    for power in range(u.shape[2] - 2, -1, -1):
        q[:, :, power] -= (power + 1) * tau * q[:, :, power + 1]
    first = torch.maximum(signal.knots.upto(begin, inclusive=True) - 1, signal.knots.first)
    anchor = knots.clone()  # where each piece's s is known
    anchor[first] = torch.maximum(begin, knots[first])

    def value(polynomial: Tensor, piece: Tensor, at: Tensor) -> Tensor:
        """Polynomials of pieces, at a time each, shape (len(piece), L)."""
        coefficients, since = polynomial[piece], (at - knots[piece])[:, None]
        result = coefficients[:, :, -1]
        for power in range(coefficients.shape[2] - 2, -1, -1):
            result = coefficients[:, :, power] + since * result
        return result

    def decay(duration: Tensor) -> Tensor:
        return torch.exp(-duration.clamp(min=0.0)[:, None] / tau)

    before = torch.arange(len(knots) - 1, device=knots.device)
    A = torch.cat([u.new_zeros(1, len(tau)), decay(knots[1:] - anchor[:-1])])
    s = torch.cat([u[:1, :, 0], value(q, before, knots[1:]) - A[1:] * value(q, before, anchor[:-1])])
    s[first] = value(u, first, anchor[first])
    A[first] = 0.0  # nothing of what stands before: another trajectory, or a time before `begin`
    reach = 1
    while reach < len(knots) and bool(A.any()):
        s[reach:] += A[reach:] * s[:-reach]
        A[reach:] *= A[:-reach].clone()
        reach *= 2
    piece = torch.maximum(signal.knots.select(owner).upto(time, inclusive=True) - 1, first[owner])
    time = torch.maximum(time, anchor[piece])
    return value(q, piece, time) + (s[piece] - value(q, piece, anchor[piece])) * decay(time - anchor[piece])
