"""L-BFGS with a saved state (Liu & Nocedal 1989), in the compact form of Byrd, Nocedal & Schnabel (1994, eq. 3.1).

The inverse Hessian of the last m pairs s_k = θ_{k+1} - θ_k, y_k = g_{k+1} - g_k is, with R the upper triangle of SᵀY
and E its diagonal,

    H = γ I + [S  γY] [ R⁻ᵀ (E + γ YᵀY) R⁻¹   -R⁻ᵀ ] [ Sᵀ  ]
                      [        -R⁻¹             0   ] [ γYᵀ ]

so that a direction costs four products with (m, N_θ) matrices instead of 2m vector operations. The step length obeys
the weak Wolfe conditions by bracketing (Lewis & Overton 2013, alg. 2.6), which keeps y·s > 0.

Why not torch's: it drops every pair with y·s below 1e-10 and ends line searches at absolute lengths; R goes far below
that. scipy's keeps no state that could be saved. Here every test is relative: scaling the loss changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from snet_cli.distributed import ALONE, Team

PAIRS = 50
"""Curvature pairs kept: fewer converge markedly slower on the vehicle, more cost memory only."""

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
"""The two Wolfe constants (Nocedal & Wright 2006, sec. 3.1)."""

LINE_SEARCH_EVALUATIONS = 25
"""After this many trials the direction is given up and the memory is cleared."""


class LbfgsStep:
    """One L-BFGS iteration per call of `step`.

    Parameters
    ----------
    model : Module
        Its parameters are θ.
    loss : callable
        A scalar that can be differentiated with respect to θ.
    team : Team
        The processes over which loss and gradient are summed.
    """

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor], team: Team = ALONE) -> None:
        self.team = team
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.objective = loss
        self.evaluations = 0
        theta = self._theta()
        self.S = theta.new_zeros(0, theta.numel())
        self.Y = theta.new_zeros(0, theta.numel())
        self.gradient: Tensor | None = None
        self.value = float("nan")

    def _theta(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.parameters).detach()

    def _evaluate(self, theta: Tensor) -> tuple[float, Tensor]:
        """Loss and gradient at θ; leaves the model at θ."""
        with torch.no_grad():
            nn.utils.vector_to_parameters(theta, self.parameters)
        loss = self.objective()
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.evaluations += 1
        flat = [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        value, gradient = self.team.sum(loss.detach(), torch.cat(flat))
        return float(value), gradient

    def step(self) -> float:
        """Move θ once and return the loss there; where no step helps, θ and the loss stay."""
        theta = self._theta()
        if self.gradient is None:
            self.value, self.gradient = self._evaluate(theta)
        direction = self._direction(self.gradient)
        found = self._line_search(theta, direction)
        if found is None and self.S.shape[0]:
            # rounding spoiled the memory: forget it and descend along the gradient
            self.S, self.Y = self.S[:0], self.Y[:0]
            found = self._line_search(theta, self._direction(self.gradient))
        if found is None:
            with torch.no_grad():
                nn.utils.vector_to_parameters(theta, self.parameters)
            return self.value
        step, value, gradient = found
        self._remember(step, gradient - self.gradient)
        self.value, self.gradient = value, gradient
        return value

    def _direction(self, gradient: Tensor) -> Tensor:
        """-H g in the compact form; the first step has length at most one."""
        if self.S.shape[0] == 0:
            return -gradient / gradient.norm().clamp_min(1e-300) * min(1.0, float(gradient.norm()))
        sy = self.S @ self.Y.T
        diagonal = sy.diagonal()
        gamma = diagonal[-1] / self.Y[-1].dot(self.Y[-1])
        R = sy.triu()
        w = torch.linalg.solve_triangular(R, (self.S @ gradient)[:, None], upper=True)[:, 0]
        inner = diagonal * w + gamma * (self.Y @ (self.Y.T @ w)) - gamma * (self.Y @ gradient)
        v = torch.linalg.solve_triangular(R.T, inner[:, None], upper=False)[:, 0]
        return -(gamma * gradient + self.S.T @ v - gamma * (self.Y.T @ w))

    def _line_search(self, theta: Tensor, direction: Tensor) -> tuple[Tensor, float, Tensor] | None:
        """The step s, loss and gradient at θ + s that obey the weak Wolfe conditions; None if there are none."""
        assert self.gradient is not None
        slope = float(self.gradient.dot(direction))
        if not slope < 0.0:
            return None
        low, high, length = 0.0, float("inf"), 1.0
        best: tuple[Tensor, float, Tensor] | None = None
        for _ in range(LINE_SEARCH_EVALUATIONS):
            step = length * direction
            value, gradient = self._evaluate(theta + step)
            if not value <= self.value + SUFFICIENT_DECREASE * length * slope:  # a NaN counts as too far
                high = length
                curvature = value - self.value - length * slope
                guess = -0.5 * slope * length**2 / curvature if curvature > 0 else 0.5 * length
                length = min(max(guess, low + 0.1 * (high - low)), low + 0.5 * (high - low))
                continue
            best = (step, value, gradient)
            if float(gradient.dot(direction)) >= CURVATURE * slope:
                return best
            low = length
            length = 2.0 * low if high == float("inf") else 0.5 * (low + high)
        return best

    def _remember(self, step: Tensor, change: Tensor) -> None:
        """Keep the pair if its curvature is positive beyond rounding, relative to its own size."""
        curvature = float(step.dot(change))
        if curvature > 1e-12 * float(step.norm()) * float(change.norm()):
            # cut before joining: products of a view that is aligned otherwise than a copy have other last digits, and a
            # resumed run has copies
            self.S = torch.cat([self.S[1 - PAIRS :], step[None]])
            self.Y = torch.cat([self.Y[1 - PAIRS :], change[None]])

    def state(self) -> dict[str, Tensor]:
        """Pairs, last loss and gradient (empty where the next step computes it), and the count of evaluations."""
        gradient = self.S.new_zeros(0) if self.gradient is None else self.gradient
        counts = {"value": torch.tensor(self.value, dtype=torch.float64), "evaluations": torch.tensor(self.evaluations)}
        return {"S": self.S, "Y": self.Y, "gradient": gradient, **counts}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned, bit for bit."""
        self.S, self.Y = state["S"], state["Y"]
        self.gradient = state["gradient"] if state["gradient"].numel() else None
        self.value, self.evaluations = float(state["value"]), int(state["evaluations"])
