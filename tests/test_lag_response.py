import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicSpline

from snet_cli.data.signals import SampledInputs
from snet_cli.forecasting.lag_response import lag_response
from snet_cli.integration.inputs import SampledSignal

KINDS = ("zoh", "linear", "cubic")
TAU = np.array([0.3, 0.07, 2.0])


def recorded(sizes=(12, 1, 40), seed=0, first=0.5):
    """Three channels, one of each kind, with knots at irregular times."""
    rng = np.random.default_rng(seed)
    time = np.concatenate([first + np.cumsum(rng.uniform(0.02, 0.6, size)) for size in sizes])
    return SampledInputs(("z", "l", "c"), np.array(sizes), time, rng.normal(size=(time.size, 3)), KINDS)


def respond(inputs, begin, owner, time, tau=TAU):
    tensors = (torch.as_tensor(np.asarray(part)) for part in (tau, begin, owner, time))
    tau, begin, owner, time = tensors
    return lag_response(SampledSignal.build(inputs, "cpu"), torch.arange(3), tau, begin, owner, time).numpy()


def signal_of(inputs, trajectory):
    """The three channels as functions of time, written without `pieces`."""
    end = np.cumsum(inputs.row_size)[trajectory]
    own = slice(end - inputs.row_size[trajectory], end)
    time, (held, line, curve) = inputs.time[own], inputs.values[own].T
    spline = CubicSpline(time, curve) if time.size > 1 else (lambda t: curve[0])

    def at(t):
        inside = np.clip(t, time[0], time[-1])
        return np.array(
            [held[np.searchsorted(time, inside, "right") - 1], np.interp(inside, time, line), spline(inside)]
        )

    return time, at


def rate(t, s, at, held):
    """Of the three lags; the first signal is held, also at the very end of a piece."""
    return (np.array([held, *at(t)[1:]]) - s) / TAU


@pytest.mark.parametrize("late", [False, True])
def test_it_is_the_solution_of_the_lag_on_every_kind_of_signal(late):
    inputs = recorded()
    starts = np.cumsum(inputs.row_size) - inputs.row_size
    first, last = inputs.time[starts], inputs.time[np.cumsum(inputs.row_size) - 1]
    begin = first + 0.37 * (last - first) if late else first - 1.0
    for trajectory in (0, 2):
        time, at = signal_of(inputs, trajectory)
        wanted = np.linspace(begin[trajectory], last[trajectory] + 0.5, 9)[1:]
        found = respond(inputs, begin, np.full(8, trajectory), wanted)
        s, now, expected = at(begin[trajectory]), begin[trajectory], []
        for stop in np.union1d(time[time > now], wanted):  # from knot to knot, where the signals are smooth
            held = at(0.5 * (now + stop))[0]
            s = solve_ivp(rate, (now, stop), s, args=(at, held), rtol=1e-11, atol=1e-12).y[:, -1]
            now = stop
            if stop in wanted:
                expected.append(s)
        # solve_ivp keeps to its tolerance over some fifty pieces
        np.testing.assert_allclose(found, expected, atol=1e-8)


def test_trajectories_and_times_are_answered_as_each_alone():
    inputs, rng = recorded(), np.random.default_rng(1)
    begin = np.array([0.0, 0.0, 3.0])
    owner = rng.integers(0, 3, 50)
    time = begin[owner] + rng.uniform(0, 12, 50)
    together = respond(inputs, begin, owner, time)
    alone = [respond(inputs, begin, owner[[k]], time[[k]])[0] for k in range(50)]
    np.testing.assert_allclose(together, alone, atol=1e-13)


def test_one_sample_is_a_constant():
    inputs = recorded()
    held = inputs.values[inputs.row_size[0]]
    np.testing.assert_allclose(respond(inputs, np.zeros(3), [1, 1], [0.1, 7.0]), [held, held], atol=1e-14)


@pytest.mark.parametrize("tau", [1e-7, 1e7])
def test_a_lag_of_no_time_follows_and_one_of_endless_time_rests(tau):
    inputs = recorded()
    time, at = signal_of(inputs, 2)
    wanted = 0.5 * (time[-2] + time[-1])
    (found,) = respond(inputs, np.zeros(3), [2], [wanted], np.full(3, tau))
    # a ten-millionth: of a second's slope, or of the way to u in some twenty seconds
    np.testing.assert_allclose(found, at(wanted) if tau < 1 else at(time[0]), atol=1e-5)
