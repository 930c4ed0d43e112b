"""What the derivatives of f at many points look like, and formulas for them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PointJacobians(NamedTuple):
    """f and its derivatives at Q points, each point for itself.

    Attributes
    ----------
    f : Tensor, shape (Q, n)
        ẋ = f(t, x, u; θ).
    F : Tensor, shape (Q, n, n)
        Entry [q, i, a] = ∂f_i / ∂x_a.
    G : Tensor, shape (Q, n, N_θ)
        Entry [q, i, k] = ∂f_i / ∂θ_k, with θ the model's parameters in their order, each flattened, concatenated.
    """

    f: Tensor
    F: Tensor
    G: Tensor
