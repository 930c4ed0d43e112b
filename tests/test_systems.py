"""The ground truths are the equations they say, and one seed is one truth."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from snet_cli.dynamics.multi_agent import CONSTANTS, kinematics, policy_velocities, wrap_angle
from snet_cli.errors import UsageError
from snet_cli.systems.registry import SYSTEMS, get_system, list_systems, system_parameters
from snet_cli.systems.streams import Stream, generator
from snet_cli.systems.system import InputDraw


def parameters(name, **values):
    return system_parameters(get_system(name), values)


def rate(name, x, u, **values):
    f = get_system(name).derivative(parameters(name, **values))
    return f(torch.zeros(len(x)), torch.as_tensor(np.asarray(x, float)), torch.as_tensor(np.asarray(u, float))).numpy()


def test_vehicle_is_the_matrix_equation_of_the_paper():
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=(7, 6)), rng.normal(size=(7, 2))
    m, inertia, k = 1.7, 0.6, 0.3
    for found, state, force in zip(rate("vehicle", x, u, m=m, I=inertia, k_d=k), x, u, strict=True):
        phi, v, omega = state[2], state[3:], state[5]
        J = np.array([[math.cos(phi), -math.sin(phi), 0], [math.sin(phi), math.cos(phi), 0], [0, 0, 1]])
        C = np.array([[0, -m * omega, 0], [m * omega, 0, 0], [0, 0, 0]])
        acceleration = np.linalg.solve(np.diag([m, m, inertia]), [force[0], 0, force[1]] - k * v - C @ v)
        np.testing.assert_allclose(found, np.concatenate([J @ v, acceleration]), atol=1e-13)


def one_policy(eta, w, k_v, k_phi, k_vo, k_phio, l_s, selectivity, wrap):
    """App. B with loops, for one group of agents (N, 3)."""

    def turned(angle):
        return math.pi - (math.pi - angle) % (2 * math.pi) if wrap else angle

    velocities = []
    for i, (xi, yi, phi) in enumerate(eta):
        total = np.array([k_v, k_phi * turned(math.atan2(-yi, -xi) - phi)])
        for j, (xj, yj, _) in enumerate(eta):
            if j != i:
                bearing = turned(math.atan2(yi - yj, xi - xj) - phi)
                near = math.exp(-math.hypot(xi - xj, yi - yj) / l_s)
                near *= math.exp(-selectivity * abs(bearing + math.pi / 2))
                total += np.array([-k_vo * near, k_phio * bearing]) / len(eta)
        velocities.append(np.tanh(w + total))
    return np.array(velocities)


@pytest.mark.parametrize("wrap", [0.0, 1.0])
@pytest.mark.parametrize("selectivity", [0.0, 1.0])
def test_policy_is_that_of_the_paper(selectivity, wrap):
    rng = np.random.default_rng(1)
    eta = rng.normal(size=(5, 4, 3)) * [0.2, 0.2, 4.0]
    w = rng.normal(size=(5, 2))
    constants = np.array([0.05, 0.1, 0.4, 0.3, 0.2, selectivity, wrap])
    assert len(constants) == len(CONSTANTS)
    found = policy_velocities(
        torch.tensor(eta.reshape(5, 12)), torch.tensor(w), torch.tensor(constants).expand(5, -1)
    ).numpy()
    np.testing.assert_allclose(found, [one_policy(e, v, *constants) for e, v in zip(eta, w, strict=True)], atol=1e-13)


def test_policy_takes_any_leading_shape_and_one_agent():
    x, w = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 2)
    constants = torch.tensor([0.05, 0.1, 0.001, 0.01, 0.01, 1.0, 1.0]).expand(2, 3, -1)
    v = policy_velocities(x, w, constants)
    assert v.shape == (2, 3, 3, 2)
    torch.testing.assert_close(v[1, 2], policy_velocities(x[1, 2], w[1, 2], constants[1, 2]))
    assert kinematics(x, v).shape == x.shape
    assert policy_velocities(x[..., :3], w, constants).shape == (2, 3, 1, 2)


def test_policy_and_its_derivative_are_finite_where_agents_meet():
    x = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    constants = torch.tensor([0.05, 0.1, 0.001, 0.01, 0.01, 1.0, 1.0], dtype=torch.float64)
    v = policy_velocities(x, torch.zeros(2, dtype=torch.float64), constants)
    (slope,) = torch.autograd.grad(v.sum(), x)
    assert torch.isfinite(v).all()
    assert torch.isfinite(slope[2::3]).all()
    apart = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, -0.5], dtype=torch.float64, requires_grad=True)
    v = policy_velocities(apart, torch.zeros(2, dtype=torch.float64), constants)
    (slope,) = torch.autograd.grad(v.sum(), apart)
    assert torch.isfinite(slope).all()


def test_wrapped_angles_lie_in_minus_pi_to_pi():
    angle = torch.tensor([math.pi, -math.pi, 3.0 * math.pi, 4.0, -4.0, 0.3, 100.0], dtype=torch.float64)
    wrapped = wrap_angle(angle)
    assert ((wrapped > -math.pi) & (wrapped <= math.pi)).all()
    torch.testing.assert_close(torch.exp(1j * wrapped), torch.exp(1j * angle))
    assert wrapped[0] == math.pi
    torch.testing.assert_close(wrap_angle(angle, 0.0), angle)


def test_classics_have_their_equilibria():
    np.testing.assert_allclose(rate("pendulum", [[0.0, 0.0], [math.pi, 0.0]], [[0.0], [0.0]]), 0.0, atol=1e-14)
    np.testing.assert_allclose(rate("duffing", [[1.0, 0.0], [-1.0, 0.0]], [[0.0], [0.0]]), 0.0)
    np.testing.assert_allclose(rate("van-der-pol", [[0.0, 0.0]], np.zeros((1, 0))), 0.0)
    np.testing.assert_allclose(rate("lotka-volterra", [[1.0, 1.0]], np.zeros((1, 0))), 0.0)
    level = (0.04 * 2.0 / 0.05) ** 2  # inflow = outflow
    np.testing.assert_allclose(rate("cascaded-tanks", [[level, level]], [[2.0]]), 0.0, atol=1e-15)
    assert rate("cascaded-tanks", [[10.0, 10.0]], [[9.0]])[0].tolist() == [0.0, 0.0]  # full: it spills
    assert rate("cascaded-tanks", [[10.0, 10.0]], [[1.0]])[0, 0] < 0.0  # and empties again


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_fits_together(name):
    system = get_system(name)
    chosen = system.parameters()
    channels = system.channels(chosen)
    rngs = [generator(3, Stream.INITIAL_STATE, b) for b in range(3)]
    x0 = np.stack([system.start(chosen, rng) for rng in rngs])
    assert x0.shape == (3, len(channels.states))
    inputs = system.inputs(chosen, InputDraw([generator(3, Stream.INPUTS, b) for b in range(3)], 10.0, system.horizon))
    assert inputs.names == channels.inputs
    assert set(channels.units) == set(channels.states + channels.inputs)
    u = inputs.at(np.arange(3), np.zeros(3))
    found = rate(name, x0, u)
    assert found.shape == x0.shape
    assert np.isfinite(found).all()


def test_more_harmonics_leave_the_first_as_it_is():
    def first(harmonics):
        draw = InputDraw([generator(0, Stream.INPUTS, b) for b in range(4)], 10.0, 10.0)
        return get_system("vehicle").inputs(parameters("vehicle", harmonics=harmonics), draw).fourier

    one, three = first(1), first(3)
    np.testing.assert_array_equal(one.cos, three.cos[:, :, :1])
    np.testing.assert_allclose(np.hypot(three.cos, three.sin), np.broadcast_to([1, 1 / 2, 1 / 3], three.cos.shape))
    np.testing.assert_allclose(three.omega[0, 0], 2 * math.pi / 10 * np.array([1, 2, 3]))


def test_configurations_of_the_agents_are_those_of_the_paper():
    gains = {name: parameters(name).model_dump() for name in SYSTEMS if name.startswith("multi-agent")}
    assert [gains["multi-agent"][k] for k in CONSTANTS] == [0.05, 0.1, 0.001, 0.01, 0.01, 1.0, True]
    for name in ("multi-agent-test", "multi-agent-gains"):
        assert [gains[name][k] for k in CONSTANTS] == [0.05, 0.1, 0.05, 0.1, 0.01, 0.0, True]
    assert {name: g["amplitude"] for name, g in gains.items()} == {
        "multi-agent": 0.1,
        "multi-agent-test": 0.0,
        "multi-agent-gains": 0.1,
    }


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"there is no system 'vehicel'. Did you mean 'vehicle'\?"):
        get_system("vehicel")
    with pytest.raises(UsageError, match=r"vehicle has no parameter 'harmonic'. Did you mean 'harmonics'\?"):
        parameters("vehicle", harmonic=3)
    with pytest.raises(UsageError, match="vehicle: parameter m = -1: Input should be greater than 0"):
        parameters("vehicle", m=-1)
    with pytest.raises(UsageError, match="lowest \\(5\\) is above highest"):
        parameters("cascaded-tanks", lowest=5.0)


def test_the_list_describes_everything_without_torch():
    entries = {entry.name: entry for entry in list_systems()}
    assert list(entries) == list(SYSTEMS)
    assert all(p.description.endswith(".") for entry in entries.values() for p in entry.parameters)
    assert (entries["vehicle"].horizon, entries["vehicle"].samples) == (10.0, 100)
    script = "import sys, snet_cli.systems.registry as r; r.list_systems(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
