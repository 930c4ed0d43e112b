"""X alone with θ fixed: Newton steps towards the minimum of J, and the correction that lets a step on θ be a long one.

Where X follows θ, J falls along a curved valley. The linear model of a step makes X + dX obey f(θ + dθ) to first order;
what is left is of second order in the step, and J counts it by 1/γ of the misfit: at small γ only short steps descend,
however good the θ that a long one leads to (the effect of Maratos 1978 on sequential quadratic programming). A Newton
step in X at the new θ takes that away (the second-order correction of Fletcher 1982; Nocedal & Wright 2006, Sec. 15.4),
and needs no ∂f/∂θ: a vehicle's takes a tenth of the time of a step in X and θ.
"""

from __future__ import annotations

import math

from torch import Tensor

from snet_cli.training.arrow import ArrowProblem, Loss
from snet_cli.training.block_solver import BlockFactor
from snet_cli.training.state_jacobian import state_jacobian

FAITHFUL = 0.5
"""Share of the promised decrease of J from which on a step is taken as it is."""

CORRECTIONS = 2
"""Most Newton steps of X after one on θ."""

ENOUGH = 0.1
"""Gain of a correction relative to what is then missing from the promise below which no other follows."""


def after_newton_step(arrow: ArrowProblem, nodes: Tensor, gamma: float, damping: float) -> Tensor:
    """X after one Newton step at the model's θ; it need not descend.

    Parameters
    ----------
    arrow : ArrowProblem
    nodes : Tensor, shape (N, P, n)
    gamma : float
    damping : float
        Of X, in units of γ.
    """
    states = nodes.clone()
    for batch in arrow.batches:
        x = nodes[batch.elements]
        system = arrow.state_system(batch, x, gamma, *state_jacobian(arrow.model, *batch.points(x)))
        factor = BlockFactor(batch.damped(system.blocks, damping * gamma), batch.part.trajectory, nodes.shape[2])
        states[batch.elements] -= factor.solve(system.gradient[:, :, None])[:, :, 0].view_as(x)
    return states


def followed(
    arrow: ArrowProblem, nodes: Tensor, at: Loss, gamma: float, damping: float, goal: float
) -> tuple[Tensor, Loss]:
    """X moved on while that decreases J, and the loss there.

    Parameters
    ----------
    at : Loss
        That of `nodes`.
    goal : float
        J that the step should have led to.
    """
    for _ in range(CORRECTIONS if math.isfinite(at.total(gamma)) else 0):
        states = after_newton_step(arrow, nodes, gamma, damping)
        after = arrow.loss(states)
        gain = at.total(gamma) - after.total(gamma)
        if not gain > 0:  # true for NaN
            break
        nodes, at = states, after
        if gain < ENOUGH * (at.total(gamma) - goal):
            break
    return nodes, at
