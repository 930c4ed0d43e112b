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
    k_v, k_phi, k_vo, k_phio, l_s, selectivity, wrap = constants.unbind(-1)  # each (...,)
    x, y, phi = states.reshape(*states.shape[:-1], states.shape[-1] // 3, 3).unbind(-1)  # each (..., N_a)
    agents = x.shape[-1]
    goal = wrap_angle(torch.atan2(-y, -x) - phi, wrap[..., None])  # δφ_i

    dx = x[..., :, None] - x[..., None, :]  # (..., i, j)
    dy = y[..., :, None] - y[..., None, :]
    same = (dx == 0.0) & (dy == 0.0)
    dx = torch.where(same, 1.0, dx)
    distance = torch.where(same, 0.0, torch.hypot(dx, dy))
    bearing = wrap_angle(torch.atan2(dy, dx) - phi[..., :, None], wrap[..., None, None])  # δφ_ij
    nearness = distance / l_s[..., None, None]
    turned = selectivity[..., None, None] * (bearing + 0.5 * math.pi).abs()
    others = 1.0 - torch.eye(agents, dtype=states.dtype, device=states.device)
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
