"""Laws of the learnable right-hand sides: they can be the truth, see what they should, and refuse in clear words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from snet_cli.dynamics.multi_agent import CONSTANTS
from snet_cli.errors import UsageError
from snet_cli.models.base import NodeData, StateSpace, layers
from snet_cli.models.linear import Linear
from snet_cli.models.multi_agent import MultiAgent
from snet_cli.models.options import LinearOptions, MlpOptions, MultiAgentOptions, UserOptions, VehicleOptions
from snet_cli.models.registry import build_model, default_model, state_space
from snet_cli.models.user import read_source
from snet_cli.models.vehicle import INPUTS, STATES, Vehicle
from snet_cli.systems.registry import get_system
from tests import training_cases

F64 = torch.float64
SMALL = 1e-4
"""tanh(SMALL z) / SMALL is z but for SMALL² |z|³ / 3: with it a tanh network is linear."""


pytestmark = pytest.mark.usefixtures("one_thread")


def become_linear(network, matrix, bias=None):
    """Set a network of one tanh layer to z -> matrix z + bias."""
    first, last = network[0], network[-1]
    matrix = torch.as_tensor(matrix, dtype=F64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        width = matrix.shape[1]
        first.weight[:width] = SMALL * torch.eye(width)
        last.weight[:, :width] = matrix / SMALL
        if bias is not None:
            last.bias.copy_(torch.as_tensor(bias, dtype=F64))


def mlp(states, inputs=(), *, seed=0, dtype=F64, **options):
    return build_model("mlp", MlpOptions(**options), StateSpace(states, inputs), seed=seed, dtype=dtype)


def points(count, n, m, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = [torch.randn(*shape, generator=g, dtype=F64) for shape in ((count,), (count, n), (count, m))]
    return draw[0].abs(), draw[1], draw[2]


def node_data(t, x, u, derivative=None):
    weight = torch.full_like(t, 1.0 / t.numel())
    return NodeData(t, x, u, torch.randn_like(x) if derivative is None else derivative, weight)


# vehicle


def test_the_vehicle_model_can_be_the_vehicle():
    model = build_model("vehicle", VehicleOptions(), StateSpace(STATES, INPUTS), seed=0, dtype=F64)
    assert isinstance(model, Vehicle)
    mass, inertia, damping = 1.3, 0.7, 0.4
    # J = [[c, -s, 0], [s, c, 0], [0, 0, 1]] of (s, c); C = [[0, -mω, 0], [mω, 0, 0], [0, 0, 0]] of (vx, vy, ω)
    J, bias, C = np.zeros((9, 2)), np.zeros(9), np.zeros((9, 3))
    J[0, 1], J[1, 0], J[3, 0], J[4, 1], bias[8] = 1.0, -1.0, 1.0, 1.0, 1.0
    C[1, 2], C[3, 2] = -mass, mass
    become_linear(model.J, J, bias)
    become_linear(model.C, C)
    become_linear(model.d, damping * np.eye(3))
    system = get_system("vehicle")
    truth = system.derivative(system.parameters(m=mass, I=inertia, k_d=damping))
    t, x, u = points(200, 6, 2)
    constants = torch.tensor([mass, inertia], dtype=F64).expand(200, 2)
    with torch.no_grad():
        ours = model(t, x, torch.cat([u, constants], -1))
    assert ours.numpy() == pytest.approx(truth(t, x, u).numpy(), abs=1e-6)


def test_the_vehicles_networks_have_the_biases_of_the_paper_and_no_others():
    model = build_model("vehicle", VehicleOptions(hidden=[5]), StateSpace(STATES, INPUTS), seed=0, dtype=F64)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "J.0.weight": (5, 2),
        "J.0.bias": (5,),
        "J.2.weight": (9, 5),
        "J.2.bias": (9,),
        "C.0.weight": (5, 3),
        "C.2.weight": (9, 5),
        "d.0.weight": (5, 3),
        "d.2.weight": (3, 5),
    }
    assert model.constants == ("m", "I")


# multi-agent


def agents(count=10, seed=0):
    outputs = tuple(f"{q}{i}" for i in range(1, count + 1) for q in ("x", "y", "phi"))
    space = state_space("multi-agent", outputs, ("w_v", "w_omega"))
    return build_model("multi-agent", MultiAgentOptions(), space, seed=seed, dtype=F64)


def policy(points_count, selectivity=1.0):
    return torch.tensor([0.05, 0.1, 0.001, 0.01, 0.01, selectivity, 1.0], dtype=F64).expand(points_count, 7)


def test_renumbering_the_agents_renumbers_their_derivatives():
    model = agents()
    t, x, u = points(20, 30, 2)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    full = torch.cat([u, policy(20)], -1)
    with torch.no_grad():
        plain = model(t, x, full).unflatten(-1, (10, 3))
        permuted = model(t, x.unflatten(-1, (10, 3))[:, order].flatten(-2), full).unflatten(-1, (10, 3))
    assert torch.allclose(permuted, plain[:, order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "selectivity"), [("multi-agent", 1.0), ("multi-agent-gains", 0.0)])
def test_the_agents_model_can_be_the_agents(name, selectivity):
    model = agents()
    assert isinstance(model, MultiAgent)
    J, bias = np.zeros((6, 2)), np.zeros(6)
    J[0, 1], J[2, 0], bias[5] = 1.0, 1.0, 1.0  # [[c, 0], [s, 0], [0, 1]]
    become_linear(model.J, J, bias)
    system = get_system(name)
    parameters = system.parameters()
    values = {**parameters.model_dump(), "heading_selectivity": selectivity}
    constants = torch.tensor([float(values[key]) for key in CONSTANTS], dtype=F64).expand(50, 7)
    t, x, u = points(50, 30, 2)
    with torch.no_grad():
        ours = model(t, x, torch.cat([u, constants], -1))
    assert ours.numpy() == pytest.approx(system.derivative(parameters)(t, x, u).numpy(), abs=1e-6)


def test_any_number_of_agents_is_counted_by_their_headings():
    outputs = ("x1", "y1", "phi1", "x2", "y2", "phi2")
    assert state_space("multi-agent", outputs, ("w_v", "w_omega")).states == outputs
    assert agents(1)(*points(3, 3, 9)).shape == (3, 3)


# mlp


def test_angles_are_periodic_and_nothing_else_is():
    model = mlp(("phi", "x"), ("psi",), angles=["phi", "psi"])
    t, x, u = points(30, 2, 1)
    turn = torch.tensor([2 * torch.pi, 0.0], dtype=F64)
    with torch.no_grad():
        plain = model(t, x, u)
        assert torch.allclose(model(t, x + turn, u - 4 * torch.pi), plain, atol=1e-12)
        assert not torch.allclose(model(t, x + turn.flip(0), u), plain, atol=1e-3)


def test_excluded_channels_have_no_influence():
    model = mlp(("x", "y", "phi"), ("u", "w"), exclude=["y", "phi", "w"], angles=["phi"])
    t, x, u = points(30, 3, 2)
    x, u = x.requires_grad_(), u.requires_grad_()
    gradients = torch.autograd.grad(model(t, x, u).square().sum(), (x, u))
    assert (gradients[0][:, 1:] == 0).all()
    assert (gradients[1][:, 1] == 0).all()
    assert (gradients[0][:, 0] != 0).all()
    assert (gradients[1][:, 0] != 0).all()


def test_given_rows_are_the_velocities_to_the_bit_whatever_the_order_of_the_states():
    model = mlp(("v", "a", "q", "w", "p"), second_order={"q": "v", "p": "w"})
    t, x, u = points(30, 5, 0)
    model.fit_normalization(node_data(t, x, u))
    with torch.no_grad():
        rate = model(t, x, u)
    assert torch.equal(rate[:, 2], x[:, 0])
    assert torch.equal(rate[:, 4], x[:, 3])
    moved = mlp(("v", "a", "q", "w", "p"), second_order={"q": "v", "p": "w"}, seed=9)
    with torch.no_grad():
        other = moved(t, x, u)
    assert torch.equal(other[:, [2, 4]], rate[:, [2, 4]])
    assert not torch.isclose(other[:, [0, 1, 3]], rate[:, [0, 1, 3]]).any()


def test_only_a_model_that_is_told_so_sees_time():
    t, x, u = points(30, 2, 1)
    blind, seeing = mlp(("a", "b"), ("u",)), mlp(("a", "b"), ("u",), time=True)
    with torch.no_grad():
        assert torch.equal(blind(t + 3.0, x, u), blind(t, x, u))
        assert not torch.isclose(seeing(t + 3.0, x, u), seeing(t, x, u)).any()


@pytest.mark.parametrize("activation", ["tanh", "sin", "silu", "softplus"])
def test_a_network_in_single_precision_is_close_to_one_in_double(activation):
    options = {"activation": activation, "hidden": [32, 32], "angles": ["a"], "second_order": {"a": "b"}}
    double, single = (mlp(("a", "b", "c"), ("u",), dtype=dtype, **options) for dtype in (F64, torch.float32))
    t, x, u = points(50, 3, 1)
    for model in (double, single):
        model.fit_normalization(node_data(t, x, u, 3.0 * x))
    with torch.no_grad():
        a, b = double(t, x, u), single(t, x, u)
    assert b.dtype == F64
    assert b.numpy() == pytest.approx(a.numpy(), abs=1e-5)  # a few hundred products of size 1 in 24 bits


@pytest.mark.parametrize(
    ("states", "options"),
    [
        (("a", "b", "c"), {}),
        (("a", "b", "c"), {"angles": ["b", "u"], "exclude": ["c"], "time": True, "activation": "sin"}),
        (("a", "b", "c"), {"second_order": {"c": "a"}, "hidden": [7], "activation": "softplus"}),
        (("a", "u_lag", "b"), {"second_order": {"b": "a"}, "input_lag": "shared", "activation": "silu"}),
    ],
    ids=["plain", "angles and time", "second order", "lag"],
)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_rates_for_an_integration_are_those_of_the_model(states, options, dtype):
    model = mlp(states, ("u",), dtype=dtype, **options)
    t, x, u = points(50, 3, 1)
    x, u = 1e3 + 10.0 * x, 1e-3 * u
    model.fit_normalization(node_data(t, x, u, 3.0 * x))
    unseen = [*states, "u"].index(options["exclude"][0]) if "exclude" in options else None
    if unseen is not None:
        x[:, unseen] = torch.inf  # what the network does not see may be anything
    with torch.no_grad():
        frozen, expected = model.frozen(), model(t, x, u)
        # normalised channels have size 1 behind a subtraction that is exact up to their distance from zero
        loss = 1e3 / 10.0 * torch.finfo(dtype).eps
        assert frozen(t, x, u).numpy() == pytest.approx(expected.numpy(), rel=1e2 * loss, abs=1e2 * loss)


@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5)])
def test_any_leading_shape_is_accepted(shape):
    model = mlp(("q", "v"), ("u",), second_order={"q": "v"}, angles=["q"], time=True)
    t, x, u = torch.ones(shape, dtype=F64), torch.ones(*shape, 2, dtype=F64), torch.ones(*shape, 1, dtype=F64)
    assert model(t, x, u).shape == (*shape, 2)


def test_normalised_inputs_have_mean_0_and_deviation_1_and_outputs_the_size_of_the_data():
    model = mlp(("a", "b"), ("u",))
    t, x, u = points(500, 2, 1)
    x, u = 1e6 * x + 5e6, 1e-9 * u
    model.fit_normalization(node_data(t, x, u, 1e9 * x))
    z, _ = model.features(t, x, u)
    assert z.mean(0).numpy() == pytest.approx(np.zeros(3), abs=1e-9)
    assert z.square().mean(0).numpy() == pytest.approx(np.ones(3))
    with torch.no_grad():
        assert 1e13 < model(t, x, u).abs().mean() < 1e16


def test_constant_channels_and_rates_that_are_zero_never_divide_by_zero():
    model = mlp(("a", "b"), ("u", "w"))
    t, x, u = points(50, 2, 2)
    x[:, 0], u[:, 0], u[:, 1] = 3.0, 0.0, -2e-30
    derivative = torch.randn_like(x)
    derivative[:, 1] = 0.0
    model.fit_normalization(node_data(t, x, u, derivative))
    rate = model(t, x, u)
    assert torch.isfinite(rate).all()
    assert all(bool((p > 0).all()) for p in (model.input_scale, model.output_scale, model.time_scale))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"angles": ["fhi"]},
            "model.angles names 'fhi', which is none of phi, x, u. Did you mean 'phi'?",
        ),
        ({"exclude": ["torque"]}, "model.exclude names 'torque', which is none of phi, x, u."),
        ({"second_order": {"x": "u"}}, "model.second_order names 'u', which is none of phi, x."),
        (
            {"second_order": {"x": "x"}},
            "model.second_order: 'x' cannot be its own velocity. Write {position: velocity}.",
        ),
    ],
)
def test_options_that_name_no_channel_are_refused(options, message):
    with pytest.raises(UsageError) as caught:
        mlp(("phi", "x"), ("u",), **options)
    assert str(caught.value) == message


# linear


def test_the_closed_form_recovers_a_linear_system_to_rounding():
    problem = training_cases.problem_of(training_cases.spirals(), order=18, elements=2)
    t, x, u = problem.t, problem.x, problem.u
    exact = training_cases.true_spiral()
    with torch.no_grad():
        data = NodeData(t, x, u, exact(t, x, u), problem.weight)
    model = Linear(StateSpace(("a", "b"), ("p", "r")), F64)
    assert model.solve_in_closed_form(data)
    assert model.A.detach().numpy() == pytest.approx(training_cases.A, abs=1e-11)
    assert model.B.detach().numpy() == pytest.approx(training_cases.B, abs=1e-11)
    assert model.c.detach().numpy() == pytest.approx(training_cases.OFFSET, abs=1e-11)


def test_the_closed_form_survives_scales_of_thirty_orders_and_collinear_channels():
    t, x, u = points(60, 2, 2)
    u[:, 1] = 2.0 * u[:, 0]
    scale = torch.tensor([1e15, 1e-15], dtype=F64)
    derivative = 3.0 * x * scale + u[:, :1] * scale
    model = Linear(StateSpace(("a", "b"), ("p", "r")), F64)
    assert model.solve_in_closed_form(node_data(t, x * scale, u, derivative))
    with torch.no_grad():
        assert torch.allclose(model(t, x * scale, u) / scale, derivative / scale, rtol=1e-9, atol=1e-9)
    assert model.A.diagonal().tolist() == pytest.approx([3.0, 3.0])


# registry and weights


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first = mlp(("a", "b"), seed=3).state_dict()
    torch.manual_seed(6)
    again = mlp(("a", "b"), seed=3).state_dict()
    other = mlp(("a", "b"), seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["network.0.weight"], other["network.0.weight"])


def test_weights_are_within_one_over_the_root_of_the_fan_in():
    network = layers([16, 400, 3], "tanh", torch.Generator().manual_seed(0), dtype=F64)
    for layer, bound in ((network[0], 0.25), (network[-1], 0.05)):
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert abs(layer.weight.mean()) < 0.1 * bound


def test_the_systems_choose_their_models():
    names = ("vehicle", "multi-agent", "multi-agent-test", "multi-agent-gains", "pendulum", None)
    assert [default_model(name) for name in names] == ["vehicle", *["multi-agent"] * 3, "mlp", "mlp"]


def test_a_structured_model_says_which_channels_it_needs():
    with pytest.raises(UsageError) as caught:
        state_space("vehicle", STATES, ("Fx",))
    assert str(caught.value) == (
        "the model 'vehicle' needs the states x, y, phi, vx, vy, omega and the inputs Fx, tau; the data has the "
        "outputs x, y, phi, vx, vy, omega and the inputs Fx. Rename the channels on import (a=b), or choose "
        "--model mlp."
    )


# the user's own


GOOD = """
import torch
class Drag(torch.nn.Module):
    def __init__(self, states, inputs):
        super().__init__()
        self.k = torch.nn.Parameter(torch.ones(len(states)))
        self.net = torch.nn.Linear(len(states) + len(inputs), len(states))
    def forward(self, t, x, u):
        return -self.k * x + self.net(torch.cat([x, u], -1))
class Other:
    pass
class Flat(torch.nn.Module):
    def forward(self, t, x, u):
        return x[..., 0]
class Picky(torch.nn.Module):
    def forward(self, x):
        return x
"""


def user_model(folder: Path, name: str, text: str = GOOD):
    path = folder / "mine.py"
    path.write_text(text, "utf-8")
    source = read_source(f"{path}:{name}")
    return build_model("user", UserOptions(), StateSpace(("a", "b"), ("u",)), seed=1, dtype=F64, source=source)


def test_a_module_of_the_users_own_is_a_model(tmp_path):
    before = torch.random.get_rng_state()
    model = user_model(tmp_path, "Drag")
    assert torch.equal(torch.random.get_rng_state(), before)
    t, x, u = points(4, 2, 1)
    assert model(t, x, u).shape == (4, 2)
    assert {p.dtype for p in model.parameters()} == {F64}
    assert torch.equal(user_model(tmp_path, "Drag").module.net.weight, model.module.net.weight)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "Drug",
            GOOD,
            "the model file has no torch module named 'Drug'. Define `class Drug(torch.nn.Module)` with "
            "forward(t, x, u).",
        ),
        (
            "Other",
            GOOD,
            "the model file has no torch module named 'Other'. Define `class Other(torch.nn.Module)` with "
            "forward(t, x, u).",
        ),
        (
            "Flat",
            GOOD,
            "Flat.forward returned shape (2,) for x of shape (2, 2). It must return one derivative per state, in the "
            "order of the states.",
        ),
        (
            "Picky",
            GOOD,
            "Picky.forward failed on t (2,), x (2, 2), u (2, 1): Picky.forward() takes 2 positional arguments but 4 "
            "were given. It must accept any leading shape and return ẋ with the shape of x.",
        ),
        ("Drag", "1 / 0", "the model file failed: ZeroDivisionError: division by zero. Run it with python."),
        (
            "Drag",
            "class",
            "the model file failed: SyntaxError: invalid syntax (<model file Drag>, line 1). Run it with python.",
        ),
    ],
)
def test_a_model_file_that_does_not_serve_is_refused_in_words(tmp_path, name, text, message):
    with pytest.raises(UsageError) as caught:
        user_model(tmp_path, name, text)
    assert str(caught.value) == message


def test_a_reference_without_file_or_class_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^'mine.py' does not name a model of your own. Write FILE.py:Class.$"):
        read_source("mine.py")
    missing = tmp_path / "none.py"
    with pytest.raises(UsageError) as caught:
        read_source(f"{missing}:Drag")
    assert caught.value.message.startswith(f"the model file '{missing}' cannot be read: ")


def test_linear_is_built_of_zeros():
    model = build_model("linear", LinearOptions(), StateSpace(("a",), ("u",)), seed=0, dtype=F64)
    assert model(*points(3, 1, 1)).tolist() == [[0.0]] * 3
