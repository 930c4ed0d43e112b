"""Against scipy's DOP853 at rtol 1e-10 or tighter, on every system, with input jumps; and the truth to 1e-9."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from snet_cli.data.signals import Inputs, SampledInputs
from snet_cli.integration import InputSignal
from snet_cli.simulation.simulate import integrate_truth, simulate
from snet_cli.systems.registry import SYSTEMS, get_system
from snet_cli.systems.streams import Stream, generators
from snet_cli.systems.system import InputDraw
from tests.integration_cases import solve

SMOOTH = ("vehicle", "pendulum", "duffing", "van-der-pol", "lotka-volterra", "cascaded-tanks")
HARD = {"cascaded-tanks": {"height": 100.0}}  # deep enough never to overflow: f is smooth
B = 2


def problem(name, horizon, parameters=None):
    """f, initial states, and the system's own inputs of B trajectories."""
    system = get_system(name)
    chosen = system.parameters(**(parameters or HARD.get(name, {})))
    x0 = np.stack([system.start(chosen, rng) for rng in generators(5, Stream.INITIAL_STATE, B)])
    inputs = system.inputs(chosen, InputDraw(generators(5, Stream.INPUTS, B), 10.0, horizon))
    return system.derivative(chosen), x0, inputs


def dop853(f, x0, inputs, times, rtol=1e-12):
    """The oracle, restarted at every knot of a sampled input so that each part is smooth; (B, K, n)."""
    signal = InputSignal.from_inputs(inputs, len(x0))
    out = np.empty((len(x0), times.size, x0.shape[1]))
    for b, x in enumerate(x0):
        knots = inputs.select([b]).sampled.time if inputs.sampled else np.array([0.0, times[-1]])
        edges = np.unique(np.concatenate([knots[knots < times[-1]], [0.0, times[-1]]]))
        out[b, 0] = x
        row = torch.tensor([b])
        for left, right in itertools.pairwise(edges):
            inner, outer = np.nextafter(left, right), np.nextafter(right, left)

            def g(t, x, inner=inner, outer=outer, row=row):
                time = torch.tensor([min(max(t, inner), outer)], dtype=torch.float64)
                return f(time, torch.tensor(x)[None], signal.at(row, time))[0].numpy()

            part = solve_ivp(g, (left, right), x, method="DOP853", rtol=rtol, atol=1e-13, dense_output=True)
            inside = (times > left) & (times <= right)
            if inside.any():
                out[b, inside] = part.sol(times[inside]).T
            x = part.y[:, -1]
    return out


@pytest.mark.parametrize("name", SMOOTH)
def test_truth_is_good_to_1e_9(name):
    horizon = 0.4 * SYSTEMS[name].horizon
    times = np.linspace(0.0, horizon, 41)
    f, x0, inputs = problem(name, horizon)
    oracle = dop853(f, x0, inputs, times)
    system = get_system(name)
    chosen = system.parameters(**HARD.get(name, {}))
    truth = integrate_truth(system, chosen, x0, inputs, np.broadcast_to(times, (B, times.size)))
    assert truth.outcome == ("ok",) * B
    assert np.abs(truth.states - oracle).max() < 1e-9 * max(1.0, np.abs(oracle).max())


JUMPS = [("pendulum", "zoh"), ("pendulum", "linear"), ("pendulum", "cubic"), ("duffing", "linear"), ("vehicle", "zoh")]


@pytest.mark.parametrize(("name", "kind"), JUMPS)
def test_jumping_inputs_cost_no_accuracy(name, kind):
    times = np.linspace(0.0, 3.0, 31)
    f, x0, own = problem(name, 3.0)
    clock = np.sort(np.concatenate([[0.0, 3.0], np.random.default_rng(1).uniform(0, 3, 9)]))
    values = np.random.default_rng(2).uniform(-2, 2, (B * clock.size, len(own.names)))
    kinds = (kind,) * len(own.names)
    inputs = Inputs(own.names, SampledInputs(own.names, np.full(B, clock.size), np.tile(clock, B), values, kinds))
    oracle = dop853(f, x0, inputs, times, rtol=1e-10)
    for rtol in (1e-6, 1e-9):
        _, states = solve(f, x0, times, inputs, rtol=rtol, atol=0.01 * rtol)
        assert np.abs(np.stack(states) - oracle).max() < 30 * rtol * max(1.0, np.abs(oracle).max())


def test_overflowing_tanks_stay_below_the_rim():
    levels = simulate("cascaded-tanks", {"lowest": 4.0, "highest": 9.0}, trajectories=5, seed=1).trajectories.truth
    assert levels.max() == pytest.approx(10.0, abs=1e-6)
    assert (np.abs(levels - 10.0) < 1e-6).mean() > 0.2


CONFIGURATIONS = ["multi-agent", "multi-agent-test", "multi-agent-gains"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_agents_agree_to_1e_4_over_ten_seconds(name):
    """f jumps where an angle wraps; the oracle's smallest tolerance resolves the jumps as well as any step can."""
    times = np.linspace(0.0, 10.0, 11)
    f, x0, inputs = problem(name, 10.0)
    _, states = solve(f, x0[:1], times, inputs.select([0]), rtol=1e-7, atol=1e-9)
    truth = integrate_truth(get_system(name), get_system(name).parameters(), x0[:1], inputs.select([0]), times[None])
    oracle = dop853(f, x0[:1], inputs.select([0]), times, rtol=1e-8)
    assert np.abs(states[0] - oracle[0]).max() < 1e-4
    assert np.abs(truth.states[0] - oracle[0]).max() < 1e-5
