"""Every route to ∂f/∂x and ∂f/∂θ gives the same numbers, for every model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snet_cli.errors import NumericalError
from snet_cli.models.base import Model, StateSpace
from snet_cli.models.options import LinearOptions, MlpOptions, MultiAgentOptions, VehicleOptions
from snet_cli.models.registry import build_model
from snet_cli.models.theta_blocks import ThetaJacobian
from snet_cli.models.user import UserModel
from snet_cli.models.vehicle import INPUTS, STATES
from snet_cli.training import theta_jacobian as routes
from snet_cli.training.state_jacobian import evaluate, state_jacobian
from snet_cli.training.weight_system import add_gram, mirror

F64 = torch.float64
POINTS = 5


class Oscillator(nn.Module):
    """x' = v, v' = -k x - c v |v| + u: scalar parameters, one frozen, one that f does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.c = nn.Parameter(torch.tensor(2.0, dtype=F64)), nn.Parameter(torch.tensor([0.3], dtype=F64))
        self.frozen = nn.Parameter(torch.tensor(0.5, dtype=F64), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2, dtype=F64))

    def forward(self, t, x, u):
        rate = -self.k * x[..., 0] - self.c * x[..., 1] * x[..., 1].abs() + self.frozen * u[..., 0]
        return torch.stack([x[..., 1], rate], -1)


class Branching(Oscillator):
    """The same with a branch on values, which vmap refuses."""

    def forward(self, t, x, u):
        return super().forward(t, x, u) if float(x.detach().sum()) < 1e9 else torch.zeros_like(x)


class Known(nn.Module):
    """No parameters at all."""

    def forward(self, t, x, u):
        return -x * u


class Undifferentiable(Oscillator):
    """Leaves torch on the way."""

    def forward(self, t, x, u):
        return torch.as_tensor((self.k * x).numpy() ** 2)


class Once(torch.autograd.Function):
    """The identity, whose derivative cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient.clone()


class DifferentiableOnce(Oscillator):
    """An operator that neither vmap nor a second derivative knows."""

    def forward(self, t, x, u):
        return Once.apply(super().forward(t, x, u))


def case(name: str, dtype=F64, **options) -> tuple[Model, tuple]:
    """A model and points for it."""
    n, m, c = {"vehicle": (6, 2, 2), "multi-agent": (9, 2, 7)}.get(name, (3, 2, 0))
    kinds = {"linear": LinearOptions, "mlp": MlpOptions, "vehicle": VehicleOptions, "multi-agent": MultiAgentOptions}
    states, inputs = (STATES, INPUTS) if name == "vehicle" else (tuple("qvz9876543"[:n]), tuple("ab"))
    model = build_model(name, kinds[name](**options), StateSpace(states, inputs), seed=1, dtype=dtype)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor += 0.5 * torch.rand(tensor.shape, generator=g, dtype=F64).to(tensor.dtype)
    return model, points(n, m + c)


def points(n: int, m: int) -> tuple:
    """t, x and u (positive, as masses are)."""
    g = torch.Generator().manual_seed(4)
    x = torch.randn(POINTS, n, generator=g, dtype=F64)
    return torch.rand(POINTS, generator=g, dtype=F64), x, 0.5 + torch.rand(POINTS, m, generator=g, dtype=F64)


CASES = {
    "linear": ("linear", {}),
    "mlp": ("mlp", {"hidden": [4, 3]}),
    "mlp, all that is known": (
        "mlp",
        {"hidden": [3], "angles": ["q", "a"], "second_order": {"q": "v"}, "exclude": ["z"], "time": True},
    ),
    "mlp, sine": ("mlp", {"hidden": [3, 2], "activation": "sin"}),
    "mlp, silu": ("mlp", {"hidden": [3, 2], "activation": "silu"}),
    "mlp, softplus": ("mlp", {"hidden": [3, 2], "activation": "softplus"}),
    "vehicle": ("vehicle", {"hidden": [3]}),
    "multi-agent": ("multi-agent", {"hidden": [3]}),
}


def arrays(jacobians) -> list[torch.Tensor]:
    """f, F and G with all its entries."""
    return [part.dense() if isinstance(part, ThetaJacobian) else part for part in jacobians]


def assert_same(got, wanted, tolerance):
    """Equal to rounding, relative to the largest entry of each array."""
    for mine, theirs in zip(arrays(got), arrays(wanted), strict=True):
        assert mine.dtype == F64
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=tolerance * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("name", CASES)
def test_every_model_agrees_with_automatic_differentiation(name):
    """Only the order of sums differs between a formula and torch.func: a few units of rounding."""
    model, at = case(CASES[name][0], **CASES[name][1])
    got = routes.theta_jacobian(model, *at)
    assert_same(got, routes._by_parameter(model, *at), 1e-12)
    value = evaluate(model, *at)
    by_state = torch.func.vmap(torch.func.jacrev(lambda x, t, u: evaluate(model, t[None], x[None], u[None])[0]))
    F = by_state(at[1], at[0], at[2]).detach()
    assert_same(got[:2], (value.detach(), F), 1e-12)
    assert_same(state_jacobian(model, *at), (value.detach(), F), 1e-12)
    with torch.no_grad():  # as the posterior calls it
        assert_same(state_jacobian(model, *at), (value.detach(), F), 1e-12)
    assert not any(part.requires_grad for part in arrays(got))


def test_torch_func_and_the_pass_per_parameter_agree():
    """Routes 2 and 3 on scalar, frozen and unused parameters; a branch on values leaves only route 3."""
    at = points(2, 1)
    wanted = routes._by_vmap(UserModel(Oscillator()), *at)
    x, G = at[1], wanted.G.dense()
    torch.testing.assert_close(G[:, 1, 0], -x[:, 0], rtol=0, atol=1e-15)
    torch.testing.assert_close(G[:, 1, 1], -x[:, 1] * x[:, 1].abs(), rtol=0, atol=1e-15)
    torch.testing.assert_close(G[:, 1, 2], at[2][:, 0], rtol=0, atol=1e-15)
    assert not G[..., 3:].any()
    with pytest.raises(RuntimeError):
        routes._by_vmap(UserModel(Branching()), *at)
    assert_same(routes.theta_jacobian(UserModel(Branching()), *at), wanted, 1e-14)


@pytest.mark.parametrize("name", ["mlp", "vehicle"])
def test_products_are_those_with_the_formed_matrix(name):
    """G dθ and Gᵀ v without forming G."""
    model, at = case(name, hidden=[3])
    f, _, formed = routes.theta_jacobian(model, *at)
    G, products = formed.dense(), routes.ThetaProducts(model, *at)
    direction, vectors = torch.randn(G.shape[2], dtype=F64), torch.randn_like(f)
    transposed = torch.einsum("qik,qi->k", G, vectors)
    assert_same([products.product(direction), products.transpose_product(vectors)], [G @ direction, transposed], 1e-13)
    assert_same([products.f, formed.transpose_product(vectors)], [f, transposed], 1e-13)


@pytest.mark.parametrize("name", ["mlp", "mlp, all that is known", "vehicle"])
def test_what_is_done_block_by_block_is_done_to_the_matrix(name):
    """Weights of rows, GᵀG, a map over the nodes of an element and a product from the left; two elements of 5 nodes."""
    kind, options = CASES[name]
    model, at = case(kind, **options)
    t, x, u = (torch.cat([part, part.flip(0)]) for part in at)
    _, _, G = routes.theta_jacobian(model, t, x, u)
    n, size = G.shape[1:]
    factor, left, nodes = torch.rand(2 * POINTS, n), torch.randn(2, 7, POINTS * n), torch.randn(2, POINTS, POINTS)
    factor, left, nodes = factor.to(F64), left.to(F64), nodes.to(F64)
    wanted = G.dense() * factor[:, :, None]
    G.weighted_(factor)
    gram = torch.zeros(size, size, dtype=F64)
    add_gram(gram, G)
    mirror(gram)
    by_element = wanted.view(2, POINTS, n * size)
    mapped = G.by_element(lambda values: nodes @ values, POINTS)
    assert_same(
        [G.dense(), gram, mapped.dense(), G.left_product(left)],
        [
            wanted,
            wanted.flatten(0, 1).T @ wanted.flatten(0, 1),
            (nodes @ by_element).view_as(wanted),
            left @ wanted.view(2, POINTS * n, size),
        ],
        1e-13,
    )
    torch.testing.assert_close(G.total(), wanted.sum(), rtol=1e-12, atol=1e-12)


def test_a_float32_network_gives_its_own_rates_in_float64():
    """f is to the bit what training evaluates; the derivatives are those of the same weights to float32 rounding."""
    for name in ("linear", "mlp", "vehicle", "multi-agent"):
        model, at = case(name, torch.float32)
        got = routes.theta_jacobian(model, *at)
        with torch.no_grad():
            torch.testing.assert_close(got.f, evaluate(model, *at), rtol=2e-6, atol=2e-6)
        assert_same(got, routes._by_parameter(model, *at), 2e-5)
        assert routes.ThetaProducts(model, *at).product(torch.ones(got.G.shape[2], dtype=F64)).dtype == F64


def test_a_model_without_parameters_has_an_empty_theta_jacobian():
    """N_θ = 0 is a size like any other."""
    at = points(2, 2)
    got = routes.theta_jacobian(UserModel(Known()), *at)
    assert got.G.shape == (POINTS, 2, 0)
    torch.testing.assert_close(got.F, torch.diag_embed(-at[2]))
    products = routes.ThetaProducts(UserModel(Known()), *at)
    assert products.transpose_product(got.f).shape == (0,)
    assert not products.product(torch.zeros(0, dtype=F64)).any()


def test_what_cannot_be_differentiated_is_refused():
    """A module that leaves torch, or whose product with G would silently be zero, gets a sentence."""
    for module in (Undifferentiable(), DifferentiableOnce()):
        with pytest.raises(NumericalError, match="cannot be differentiated"):
            routes.theta_jacobian(UserModel(module), *points(2, 1))


def test_chunks_cover_the_points_within_the_memory():
    """Every point once; at least one point even where the memory is too small."""
    slices = routes.chunks(100, 6, 969, 1_000_000)
    assert [k for s in slices for k in range(s.start, s.stop)] == list(range(100))
    assert all((s.stop - s.start) * 6 * (969 + 6) * 8 <= 1_000_000 for s in slices)
    assert len(routes.chunks(7, 6, 969, 1)) == 7
    assert routes.chunks(0, 6, 969, 1) == []
