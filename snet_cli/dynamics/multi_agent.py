"""Policy and kinematics of N_a agents in the plane (Quaglino et al. 2020, App. B).

``v_i = tanh(w + K_c(η_i) + (1/N_a) Σ_{j≠i} K_o(η_i, η_j))`` with η_i = (x_i, y_i, φ_i), and η_i' = J(φ_i) v_i.
``K_c = (k_v, k_φ δφ_i)``, ``K_o = (-k_vo e^{-d/l_s} e^{-σ|δφ_ij + π/2|}, k_φo δφ_ij)``; the heading selectivity σ is
1 in the paper's training policy and 0 in its test policy. With `wrap` both differences of angles lie in (-π, π].

Notes
-----
The paper prints the differences unwrapped; then agents slide along the cut of atan2 and no adaptive solver gets past
about 35 s, so wrapping is our default.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CONSTANTS = ("k_v", "k_phi", "k_vo", "k_phio", "l_s", "heading_selectivity", "wrap")
"""Order of the known constants in the last axis of `constants`."""


def wrap_angle(angle: Tensor, wrap: Tensor | float = 1.0) -> Tensor:
    """The angle in (-π, π] where `wrap` is 1, unchanged where it is 0."""
    return angle - wrap * (2.0 * math.pi) * torch.ceil((angle - math.pi) / (2.0 * math.pi))


def policy_velocities(states: Tensor, w: Tensor, constants: Tensor) -> Tensor:
    """Linear and angular velocity of every agent under the known policy; all pairs in one tensor operation.

    Parameters
    ----------
    states : Tensor, shape (..., 3 N_a)
        x1, y1, φ1, x2, ...
    w : Tensor, shape (..., 2)
        Exogenous signal, shared by all agents.
    constants : Tensor, shape (..., 7)
        In the order of `CONSTANTS`.

    Returns
    -------
    Tensor, shape (..., N_a, 2)

    Notes
    -----
    Two agents at one point have d = 0 and heading difference atan2(0, 0) = 0; the direction (1, 0) is put in before
    the square root and atan2, so that derivatives are finite there and on the excluded diagonal i = j.
    """
    x, y, phi = _poses(states)
    return _velocities(x, y, phi, _differences(x), _differences(y), w, constants)


def policy_jacobian(states: Tensor, w: Tensor, constants: Tensor) -> Tensor:
    """Derivatives of `policy_velocities` by the states, shape (..., N_a, 2, 3 N_a), without a graph.

    Agent i is moved by its own pose and by its distances to the others, so that the gradient of Σ_i v_i by poses and
    distances holds the derivatives of every v_i apart: two backward passes for any number of agents.
    """
    pose = _poses(states.detach())
    by_pose, by_pair = [], []
    with torch.enable_grad():
        x, y, phi = (part.clone().requires_grad_() for part in pose)
        dx, dy = (_differences(part).requires_grad_() for part in pose[:2])
        velocities = _velocities(x, y, phi, dx, dy, w, constants)
        for component in velocities.unbind(-1):
            by_x, by_y, by_phi, by_dx, by_dy = torch.autograd.grad(
                component.sum(), (x, y, phi, dx, dy), retain_graph=True, materialize_grads=True
            )
            by_pose.append(torch.stack([by_x + by_dx.sum(-1), by_y + by_dy.sum(-1), by_phi], -1))  # (..., i, 3)
            by_pair.append(torch.stack([-by_dx, -by_dy, torch.zeros_like(by_dx)], -1))  # (..., i, j, 3)
    jacobian = torch.stack(by_pair, -3)  # (..., i, 2, j, 3)
    jacobian.diagonal(dim1=-4, dim2=-2).add_(torch.stack(by_pose, -2).movedim(-3, -1))
    return jacobian.flatten(-2)


def _poses(states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and φ of the agents, each (..., N_a)."""
    x, y, phi = states.reshape(*states.shape[:-1], states.shape[-1] // 3, 3).unbind(-1)
    return x, y, phi


def _differences(z: Tensor) -> Tensor:
    """z_i - z_j, shape (..., i, j)."""
    return z[..., :, None] - z[..., None, :]


def _velocities(x: Tensor, y: Tensor, phi: Tensor, dx: Tensor, dy: Tensor, w: Tensor, constants: Tensor) -> Tensor:
    """The policy from poses (..., N_a) and differences of positions (..., i, j)."""
    k_v, k_phi, k_vo, k_phio, l_s, selectivity, wrap = constants.unbind(-1)  # each (...,)
    agents = x.shape[-1]
    goal = wrap_angle(torch.atan2(-y, -x) - phi, wrap[..., None])  # δφ_i

    same = (dx == 0.0) & (dy == 0.0)
    dx = torch.where(same, 1.0, dx)
    distance = torch.where(same, 0.0, torch.hypot(dx, dy))
    bearing = wrap_angle(torch.atan2(dy, dx) - phi[..., :, None], wrap[..., None, None])  # δφ_ij
    nearness = distance / l_s[..., None, None]
    turned = selectivity[..., None, None] * (bearing + 0.5 * math.pi).abs()
    others = 1.0 - torch.eye(agents, dtype=x.dtype, device=x.device)
    slow = (torch.exp(-nearness - turned) * others).sum(-1) / agents  # (..., N_a)
    turn = (bearing * others).sum(-1) / agents
    linear = w[..., :1] + k_v[..., None] - k_vo[..., None] * slow
    angular = w[..., 1:2] + k_phi[..., None] * goal + k_phio[..., None] * turn
    return torch.stack([linear, angular], -1).tanh()


def kinematics(states: Tensor, velocities: Tensor) -> Tensor:
    """η_i' = J(φ_i) v_i with J = [[cos φ, 0], [sin φ, 0], [0, 1]]; shape (..., 3 N_a)."""
    phi = states[..., 2::3]
    speed = velocities[..., 0]
    return torch.stack([phi.cos() * speed, phi.sin() * speed, velocities[..., 1]], -1).flatten(-2)
