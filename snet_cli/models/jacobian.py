"""What the derivatives of f at many points look like, and how a stack of layers passes them back.

The models here are f(x, θ) = K(x) o(z(x), θ) + r(x): known linear maps K of the outputs o of small stacks of linear and
elementwise layers a_l = σ(W_l a_{l-1} + b_l), so that the rows of f need one backward pass for all points and rows at
once. With δ_L = K and δ_{l-1} = (δ_l W_l) σ'(a_{l-1}),

    ∂f_i / ∂W_l = δ_l[i] ⊗ a_{l-1},   ∂f_i / ∂b_l = δ_l[i],   ∂f_i / ∂z = δ_1 W_1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from snet_cli.models.elementwise import value_and_slope
from snet_cli.models.theta_blocks import ThetaJacobian


class PointJacobians(NamedTuple):
    """f and its derivatives at Q points, each point for itself.

    Attributes
    ----------
    f : Tensor, shape (Q, n)
        ẋ = f(t, x, u; θ).
    F : Tensor, shape (Q, n, n)
        Entry [q, i, a] = ∂f_i / ∂x_a.
    G : ThetaJacobian, shape (Q, n, N_θ)
        Entry [q, i, k] = ∂f_i / ∂θ_k, with θ the model's parameters in their order, each flattened, concatenated.
    """

    f: Tensor
    F: Tensor
    G: ThetaJacobian


class StackPass:
    """One forward pass of a stack, with what its backward passes need.

    Parameters
    ----------
    stack : nn.Sequential
        Linear layers and elementwise ones without parameters.
    z : Tensor, shape (Q, k_0)
        Inputs at Q points; computed in the dtype of the stack.

    Attributes
    ----------
    output : Tensor, shape (Q, k_L)
    """

    def __init__(self, stack: nn.Sequential, z: Tensor) -> None:
        self._steps: list[tuple[nn.Linear | None, Tensor]] = []
        for layer in stack:
            if isinstance(layer, nn.Linear):
                self._steps.append((layer, z))
                z = layer(z.to(layer.weight.dtype)).detach()
            else:
                z, slope = value_and_slope(layer, z)
                self._steps.append((None, slope))
        self.output = z

    def pull_back(self, rows: Tensor, by_theta: Tensor | None) -> Tensor:
        """Derivatives of r linear functions of the outputs by θ and by z.

        Parameters
        ----------
        rows : Tensor, shape (Q, r, k_L)
            The functions.
        by_theta : Tensor, shape (Q, r, number of the stack's parameters), or None
            Where the derivatives by the parameters are written; None where they are not wanted.

        Returns
        -------
        Tensor, shape (Q, r, k_0)
        """
        for layer, saved in reversed(self._steps):
            if layer is None:
                rows = rows * saved[:, None, :]
                continue
            if by_theta is not None:
                by_theta = _write_layer(layer, rows, saved, by_theta)
            rows = rows @ layer.weight.detach()
        return rows


def _write_layer(layer: nn.Linear, rows: Tensor, inputs: Tensor, by_theta: Tensor) -> Tensor:
    """Write δ ⊗ a and δ at the end of `by_theta`, where the layer's weights and biases are; returns what is before."""
    end = by_theta.shape[-1]
    if layer.bias is not None:
        end -= layer.bias.numel()
        by_theta[..., end:] = rows
    begin = end - layer.weight.numel()
    block = by_theta[..., begin:end].view(*rows.shape[:2], *layer.weight.shape)
    torch.mul(rows[..., None], inputs[:, None, None, :], out=block)
    return by_theta[..., :begin]


def block_rows(v: Tensor, count: int) -> Tensor:
    """The rows of A v as functions of A (count, k) flattened: shape (Q, count, count k) from v (Q, k)."""
    eye = torch.eye(count, dtype=v.dtype, device=v.device)
    return (eye[:, :, None] * v[:, None, None, :]).flatten(-2)


def as_matrix(outputs: Tensor, count: int) -> Tensor:
    """Outputs (..., count k) of a network that stand for a matrix row after row, as that matrix (..., count, k)."""
    return outputs.reshape(*outputs.shape[:-1], count, outputs.shape[-1] // count)
