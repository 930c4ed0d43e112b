"""What formulas for ∂f/∂x and ∂f/∂θ save over torch.func on the same chunks, in one run."""

from __future__ import annotations

import time

import pytest
import torch

from snet_cli.dynamics.multi_agent import CONSTANTS
from snet_cli.models.base import Model, StateSpace
from snet_cli.models.options import MlpOptions, MultiAgentOptions, VehicleOptions
from snet_cli.models.registry import build_model
from snet_cli.models.vehicle import INPUTS, STATES
from snet_cli.training import theta_jacobian as routes

ROUNDS = 5
MEMORY = 1_000_000_000

CASES = {
    "vehicle 8, 12000 points": ("vehicle", VehicleOptions(hidden=[8]), StateSpace(STATES, INPUTS), 12_000),
    "vehicle 32, 6000 points": ("vehicle", VehicleOptions(hidden=[32]), StateSpace(STATES, INPUTS), 6_000),
    "mlp 3-32-3, 6000 points": ("mlp", MlpOptions(hidden=[32]), StateSpace(("a", "b", "c"), ("u",)), 6_000),
    "mlp 3-32-32-3, 6000 points": ("mlp", MlpOptions(hidden=[32, 32]), StateSpace(("a", "b", "c"), ("u",)), 6_000),
    "10 agents, 1500 points": (
        "multi-agent",
        MultiAgentOptions(),
        StateSpace(tuple(f"{q}{i}" for i in range(10) for q in ("x", "y", "phi")), ("w_v", "w_omega")),
        1_500,
    ),
}


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(route, model: Model, at: tuple) -> float:
    """Processor time of one sweep over the points in chunks."""
    t, x, u = at
    parameters = sum(p.numel() for p in model.parameters())
    begin = time.thread_time()
    for part in routes.chunks(len(x), x.shape[1], parameters, MEMORY):
        route(model, t[part], x[part], u[part])
    return time.thread_time() - begin


@pytest.mark.bench
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("name", CASES)
def test_formulas_are_faster_than_torch_func(name, capsys):
    """The best of alternating rounds; a formula that is not faster would not be worth its lines."""
    kind, options, space, count = CASES[name]
    model = build_model(kind, options, space, seed=0, dtype=torch.float64)
    known = {"vehicle": 2, "multi-agent": len(CONSTANTS)}.get(kind, 0)
    n, m = len(space.states), len(space.inputs) + known
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, n, generator=g, dtype=torch.float64)
    u = 0.5 + torch.rand(count, m, generator=g, dtype=torch.float64)
    at = (torch.zeros(count, dtype=torch.float64), x, u)
    both = [[seconds(route, model, at) for route in (routes.theta_jacobian, routes._by_vmap)] for _ in range(ROUNDS)]
    formula, functional = (min(column) for column in zip(*both, strict=True))
    with capsys.disabled():
        print(f"\n{name}: {1e3 * formula:.0f} ms by formula, torch.func {functional / formula:.1f} times as long")
    assert functional > 1.3 * formula
