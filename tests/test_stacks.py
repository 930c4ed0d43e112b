"""R and its gradient by hand beside automatic differentiation of the same sum."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from snet_cli.dynamics.multi_agent import CONSTANTS
from snet_cli.models import stacks
from snet_cli.models.base import StateSpace
from snet_cli.models.elementwise import value_and_slope
from snet_cli.models.options import MlpOptions, MultiAgentOptions, VehicleOptions
from snet_cli.models.registry import build_model
from snet_cli.models.stacks import StackSquares
from snet_cli.models.vehicle import INPUTS, STATES

PLANE = StateSpace(("a", "q", "v"), ("u",))
AGENTS = StateSpace(tuple(f"{c}{i}" for i in (1, 2, 3) for c in ("x", "y", "phi")), ("w_v", "w_omega"))

MODELS = {
    "vehicle": ("vehicle", VehicleOptions(hidden=[7]), StateSpace(STATES, INPUTS), 2),
    "multi-agent": ("multi-agent", MultiAgentOptions(hidden=[7]), AGENTS, len(CONSTANTS)),
    "given row in the middle": ("mlp", MlpOptions(hidden=[5], second_order={"q": "v"}, angles=["q"]), PLANE, 0),
    "nothing learned but one row": ("mlp", MlpOptions(hidden=[5], second_order={"q": "v", "a": "q"}), PLANE, 0),
    **{
        f"three layers, {name}": ("mlp", MlpOptions(hidden=[6, 9, 4], activation=name, time=True), PLANE, 0)
        for name in ("tanh", "sin", "silu", "softplus")
    },
}


def case(name: str, points: int = 75, dtype: torch.dtype = torch.float64):
    """The model, R by hand, and R as `from_features` has it; some points count for nothing."""
    kind, options, space, constants = MODELS[name]
    model = build_model(kind, options, space, seed=1, dtype=dtype)
    g = torch.Generator().manual_seed(2)
    n, m = len(space.states), len(space.inputs) + constants

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    t, x, u, target = draw(points).abs(), draw(points, n), 0.3 + draw(points, m).abs(), draw(points, n)
    if hasattr(model, "output_scale"):
        model.output_scale.copy_(0.5 + draw(len(model.output_scale)).abs())
    factor = (draw(points).abs() * (draw(points) > -0.5))[:, None] * (0.1 + draw(n).abs())
    features = tuple(part.to(dtype) for part in model.features(t, x, u))

    def by_autograd() -> torch.Tensor:
        defect = model.from_features(*features) - target
        return (factor * defect * defect).sum()

    return model, StackSquares(model.in_stacks(*features), target, factor), by_autograd


def gradient(loss, model) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(), list(model.parameters()))])


@pytest.fixture(params=["one chunk", "many chunks"])
def _chunking(request, monkeypatch):
    if request.param == "many chunks":
        monkeypatch.setattr(stacks, "CHUNK_BYTES", 1)


@pytest.mark.usefixtures("_chunking")
@pytest.mark.parametrize("name", MODELS)
def test_value_and_gradient_are_those_of_automatic_differentiation(name):
    """To a small multiple of rounding: sums of 75 points in another order."""
    model, by_hand, by_autograd = case(name)
    with torch.no_grad():
        assert float(by_hand()) == pytest.approx(float(by_autograd()), rel=1e-13)
    assert by_hand().item() == pytest.approx(by_autograd().item(), rel=1e-13)
    ours, theirs = gradient(by_hand, model), gradient(by_autograd, model)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-13


@pytest.mark.parametrize("name", ["vehicle", "multi-agent", "three layers, tanh", "three layers, softplus"])
def test_single_precision_is_as_close_as_its_rounding(name):
    model, by_hand, by_autograd = case(name, dtype=torch.float32)
    ours, theirs = gradient(by_hand, model), gradient(by_autograd, model)
    assert ours.dtype == torch.float32
    assert by_hand().dtype == torch.float64
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert by_hand().item() == pytest.approx(by_autograd().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["vehicle", "multi-agent", "given row in the middle", "three layers, sin"])
def test_gradcheck(name):
    model, by_hand, _ = case(name, points=20)
    names = [k for k, _ in model.named_parameters()]

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> torch.Tensor:
            return by_hand()

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return functional_call(Loss(), {f"model.{k}": v for k, v in zip(names, values, strict=True)}, ())

    leaves = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(loss, leaves)


def test_the_same_bits_every_time_and_from_another_object():
    """Memory that is used again leaves no trace, and where it lies does not matter."""
    model, first, _ = case("vehicle", points=1000)
    before, value = gradient(first, model), first().item()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    first().backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.1)
    again, second, _ = case("vehicle", points=1000)
    model.load_state_dict(again.state_dict())
    assert torch.equal(gradient(first, model), before)
    assert torch.equal(gradient(second, again), before)
    assert second().item() == value


def test_a_gradient_outlives_the_next_evaluation():
    model, by_hand, _ = case("vehicle")
    loss = by_hand()
    expected = gradient(by_hand, model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
        by_hand()
    late = torch.cat([g.flatten() for g in torch.autograd.grad(3.0 * loss, list(model.parameters()))])
    assert torch.allclose(late, 3.0 * expected, rtol=1e-15, atol=0.0)


def test_frozen_weights_get_no_gradient():
    model, by_hand, _ = case("vehicle")
    model.C.requires_grad_(False)
    by_hand().backward()
    assert all(p.grad is None for p in model.C.parameters())
    assert all(p.grad is not None for p in (*model.J.parameters(), *model.d.parameters()))
    model.requires_grad_(False)
    assert not by_hand().requires_grad


def test_points_of_no_weight_have_exactly_no_influence():
    model, _, _ = case("vehicle")
    g = torch.Generator().manual_seed(5)
    x, u = (torch.randn(40, k, generator=g, dtype=torch.float64) for k in (6, 4))
    target, factor = torch.randn(40, 6, generator=g, dtype=torch.float64), torch.ones(40, 6, dtype=torch.float64)
    factor[7] = 0.0

    def bits() -> torch.Tensor:
        form = model.in_stacks(*model.features(x[:, 0], x, u))
        return gradient(StackSquares(form, target, factor), model)

    before = bits()
    x[7], target[7] = 3.0, -9.0
    assert torch.equal(bits(), before)


@pytest.mark.parametrize("name", ["tanh", "sin", "silu", "softplus"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 4e-16), (torch.float32, 3e-7)])
def test_layers_by_hand_are_the_layers(name, dtype, near):
    """Values and slopes to a few units in the last place of one, from the middle to far beyond saturation."""
    model = build_model("mlp", MlpOptions(hidden=[2], activation=name), PLANE, seed=0, dtype=dtype)
    layer = model.network[1]
    z = torch.cat([torch.linspace(-40, 40, 4001), torch.linspace(-1e-3, 1e-3, 101)]).to(dtype).requires_grad_()
    value, slope = value_and_slope(layer, z)
    (expected,) = torch.autograd.grad(layer(z).sum(), z)
    assert torch.allclose(value, layer(z).detach(), rtol=near, atol=near)
    assert torch.allclose(slope, expected, rtol=2 * near, atol=2 * near)
    assert bool((slope[z.abs() > 39] >= 0).all()) or name in ("sin", "silu")
    saved = z.detach().clone()
    value_and_slope(layer, z)
    assert torch.equal(z, saved)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vehicle", "multi-agent", "three layers, tanh"])
def test_on_a_device(name):
    kind, options, space, constants = MODELS[name]
    results = []
    for device in ("cpu", "cuda"):
        model = build_model(kind, options, space, seed=1, dtype=torch.float64).to(device)
        g = torch.Generator().manual_seed(2)
        n, m = len(space.states), len(space.inputs) + constants
        x, target = (torch.randn(500, n, generator=g, dtype=torch.float64).to(device) for _ in range(2))
        u = 0.3 + torch.rand(500, m, generator=g, dtype=torch.float64).to(device)
        form = model.in_stacks(*model.features(x[:, 0], x, u))
        results.append(gradient(StackSquares(form, target, torch.ones_like(target)), model).cpu())
    assert torch.allclose(*results, rtol=1e-10, atol=1e-12)
