"""Motions whose right-hand sides are known: an input that jumps, and a friction that switches."""

from __future__ import annotations

import numpy as np
import torch
from scipy.integrate import solve_ivp

from snet_cli.models.base import Model
from snet_cli.spectral.mesh import build_mesh
from snet_cli.spectral.refinement import prolong
from snet_cli.training.node_inputs import inputs_at_nodes
from snet_cli.training.problem import assemble_problem
from snet_cli.training.refinement import plan_refinement
from snet_cli.training.relaxed import nodes_of
from snet_cli.training.relaxed_data import relax
from snet_cli.training.state_jacobian import evaluate
from snet_cli.training.state_layout import lay_out_states
from snet_cli.training.state_step import GaussNewtonStep
from tests.shooting_cases import held, recording

HORIZON = 6.0
KNOTS, LEVELS = np.array([0.0, 0.7, 1.9, 2.3, 4.4]), np.array([1.0, -2.0, 3.0, -1.0, 2.0])
"""When the held force of `Driven` changes, and its values."""


class Driven(Model):
    """q' = v, v' = u - sin 3q - 0.3 v: smooth where u is."""

    def from_features(self, *features):
        _, x, u = features
        q, v = x[..., 0], x[..., 1]
        return torch.stack([v, u[..., 0] - torch.sin(3 * q) - 0.3 * v], -1)


class Rubbing(Model):
    """q' = v, v' = 2 cos t - 0.6 tanh(v / 0.02): dry friction that switches sign within 0.02 s."""

    def from_features(self, *features):
        t, x, _ = features
        v = x[..., 1]
        return torch.stack([v, 2 * torch.cos(t) - 0.6 * torch.tanh(v / 0.02)], -1)


class Case:
    """A model, its exact motion from (0.2, 0.3), and 121 exact samples of it."""

    def __init__(self, model: Model, *, forced: bool) -> None:
        self.model, self.forced = model, forced
        self.fine = np.linspace(0.0, HORIZON, 2001)
        self.truth = self._integrate(self.fine)
        every = slice(None, None, 2000 // 100)
        inputs = held([KNOTS], [LEVELS]) if forced else None
        self.data = recording([self.fine[every]], [self.truth[every]], ("q", "v"), inputs, x0=self.truth[:1])

    def _integrate(self, times):
        """DOP853 from jump to jump at its tightest."""
        edges = np.append(KNOTS, HORIZON) if self.forced else np.array([0.0, HORIZON])
        state, out = np.array([0.2, 0.3]), np.empty((times.size, 2))
        for k in range(edges.size - 1):
            u = torch.tensor([LEVELS[k]], dtype=torch.float64)

            def f(t, x, u=u):
                return self.model(torch.tensor(t, dtype=torch.float64), torch.from_numpy(x), u).numpy()

            inside = (times >= edges[k]) & (times <= edges[k + 1])
            solved = solve_ivp(f, edges[k : k + 2], state, method="DOP853", rtol=1e-11, atol=1e-12, dense_output=True)
            out[inside] = solved.sol(times[inside]).T
            state = solved.y[:, -1]
        return out

    def rates(self, mesh, nodes):
        """The true f at the nodes."""
        t = torch.from_numpy(mesh.node_times())
        u = torch.from_numpy(inputs_at_nodes(mesh, self.data.inputs))
        return evaluate(self.model, t, torch.from_numpy(nodes), u).numpy()

    def guess(self, mesh):
        """The truth at the nodes, linearly between the fine times."""
        times = mesh.node_times()
        return np.stack([np.interp(times, self.fine, column) for column in self.truth.T], -1)

    def solve(self, mesh, nodes):
        """The minimum of R from the known start: γ is so small that the samples pull at nothing."""
        layout = lay_out_states(self.data.output_names, None, {})
        everywhere = np.ones(mesh.elements, bool)
        inputs = inputs_at_nodes(mesh, self.data.inputs)
        problem = assemble_problem(layout, mesh, nodes, everywhere, inputs, scaled=False, device=torch.device("cpu"))
        relaxed = relax(problem, self.data, np.ones(2), known_start=np.ones((1, 2), bool))
        step = GaussNewtonStep(relaxed, self.model, nodes_of(problem))
        for _ in range(12):
            step.step(1e-10)
        return step.nodes.numpy()

    def error(self, mesh, nodes):
        """Largest error of q and v at the fine times."""
        return np.abs(mesh.evaluate(nodes, np.zeros(self.fine.size, int), self.fine) - self.truth).max()

    def solved(self, elements, order, jumps=None):
        """Error on a uniform mesh."""
        mesh = build_mesh(np.zeros(1), np.array([HORIZON]), elements, order, jumps)
        return self.error(mesh, self.solve(mesh, self.guess(mesh)))

    def refined(self, elements, order, *, noise=0.0, jumps=None, rounds=16):
        """(mesh, error, plan) of every round of refinement."""
        mesh, gain, history = build_mesh(np.zeros(1), np.array([HORIZON]), elements, order), None, []
        nodes = self.guess(mesh)
        for _ in range(rounds):
            nodes = self.solve(mesh, nodes)
            plan = plan_refinement(mesh, nodes, self.rates, scale=np.ones(2), noise=np.full(2, noise), before=gain)
            history.append((mesh, self.error(mesh, nodes), plan))
            if plan.done:
                break
            finer = plan.mesh(mesh, jumps)
            nodes, mesh, gain = prolong(mesh, nodes, finer), finer, plan.gain
        return history
