"""Every trajectory its own step size and outcome; what fails hurts nobody else."""

import numpy as np
import pytest
import torch

from snet_cli.data.signals import Inputs, SampledInputs
from snet_cli.errors import DataError, UsageError
from snet_cli.integration import Outcome, Tolerances
from tests.integration_cases import blow_up, nan_behind_one, rotation, sign_flip, solve

TIMES = np.linspace(0.0, 10.0, 101)


def circle(t, phase=0.0):
    return np.stack([np.cos(t + phase), -np.sin(t + phase)], 1)


def held(values, tick, kind="zoh"):
    """One trajectory's input (K,) on an even clock."""
    values = np.asarray(values, float)
    clock = tick * np.arange(len(values))
    return Inputs(("u",), SampledInputs(("u",), np.array([len(values)]), clock, values[:, None], (kind,)))


@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8, 1e-10])
def test_error_follows_the_tolerance_at_every_asked_time(rtol):
    _, (states,) = solve(rotation, [[1.0, 0.0]], np.linspace(0, 10, 777), rtol=rtol, atol=rtol)
    assert np.abs(states - circle(np.linspace(0, 10, 777))).max() < 30 * rtol  # some 30 steps' errors add up


def test_work_grows_with_the_fifth_root_of_the_tolerance():
    work = [solve(rotation, [[1.0, 0.0]], [0.0, 50.0], rtol=r, atol=r)[0].points for r in (1e-6, 1e-11)]
    assert 8.0 < work[1] / work[0] < 11.0  # 1e5^(1/5) = 10


def test_dense_output_costs_no_evaluation():
    sparse, dense = (solve(rotation, [[1.0, 0.0]], np.linspace(0, 10, k))[0] for k in (2, 5000))
    assert sparse.points == dense.points


def test_ragged_times_starts_and_clocks():
    times = [np.array([0.0, 0.5]), np.array([]), np.array([2.5]), np.array([1.0, 1.0, 7.0])]
    solution, states = solve(rotation, circle(np.zeros(4)), times, t0=[0.0, 0.0, 2.0, 1.0], rtol=1e-9)
    for found, t, start in zip(states, times, [0.0, 0.0, 2.0, 1.0], strict=True):
        np.testing.assert_allclose(found, circle(t - start), atol=1e-7)
    assert solution.outcome.tolist() == [0, 0, 0, 0]
    assert solution.end_time.tolist() == [0.5, 0.0, 2.5, 7.0]


def test_f_sees_time_from_the_clock():
    for clock, expected in ((None, 0.5), (torch.tensor([0.0]), 4.5), (torch.tensor([2.0]), 2.5)):
        _, (states,) = solve(lambda t, x, u: t[:, None], [[0.0]], [5.0], t0=[4.0], clock=clock)
        assert states[0, 0] == pytest.approx(expected, abs=1e-12)


def test_a_trajectory_is_the_same_alone_and_in_company():
    rng = np.random.default_rng(0)
    x0 = rng.normal(size=(50, 2))
    f = lambda t, x, u: torch.stack([x[:, 1], -x[:, 0].sin() * 9 - 0.1 * x[:, 1].tanh()], 1)  # noqa: E731
    _, together = solve(f, x0, TIMES)
    for b in (0, 17, 49):
        _, (alone,) = solve(f, x0[b : b + 1], TIMES)
        np.testing.assert_allclose(alone, together[b], rtol=1e-12, atol=1e-12)


def test_one_that_blows_up_neither_spoils_nor_slows_the_others():
    healthy, _ = solve(blow_up, np.ones((9, 1)), TIMES, constants=torch.full((9, 1), -1.0))
    rates = torch.full((10, 1), -1.0)
    rates[4] = 0.2  # infinite at t = 5
    solution, states = solve(blow_up, np.ones((10, 1)), TIMES, constants=rates)
    assert solution.outcome.tolist() == [0, 0, 0, 0, int(solution.outcome[4]), 0, 0, 0, 0, 0]
    assert solution.outcome[4] in (Outcome.DIVERGED, Outcome.STEP_UNDERFLOW)
    assert solution.end_time[4] == pytest.approx(5.0, abs=1e-6)
    np.testing.assert_allclose(states[4][:49, 0], 1 / (1 - 0.2 * TIMES[:49]), rtol=1e-5)
    assert np.isnan(states[4][51:]).all()
    for b in (0, 9):
        np.testing.assert_allclose(states[b][:, 0], 1 / (1 + TIMES), atol=1e-6)
    assert solution.points - healthy.points < 10_000  # the failing one paid for itself alone


def test_farther_than_a_thousand_ranges_is_diverged_and_linear_drift_is_not():
    rates = torch.tensor([[0.2], [-1.0]])
    options = {"scale": torch.tensor([1.0]), "center": torch.tensor([0.0])}
    solution, _ = solve(blow_up, np.ones((2, 1)), TIMES, constants=rates, **options)
    assert solution.outcome.tolist() == [Outcome.DIVERGED, Outcome.OK]
    assert 4.99 < float(solution.end_time[0]) < 5.0
    drift, _ = solve(lambda t, x, u: torch.full_like(x, 10.0), [[0.0]], TIMES, **options)
    assert drift.outcome.tolist() == [Outcome.OK]


def test_a_state_that_is_not_a_number_ends_at_once_and_writes_nothing():
    solution, states = solve(rotation, [[np.nan, 0.0], [1.0, 0.0]], TIMES)
    assert solution.outcome.tolist() == [Outcome.DIVERGED, Outcome.OK]
    assert solution.end_time.tolist() == [0.0, 10.0]
    assert np.isnan(states[0][1:]).all()
    assert np.isfinite(states[1]).all()


def test_an_f_that_stops_being_a_number_ends_there():
    solution, (states, other) = solve(nan_behind_one, [[0.0], [-20.0]], TIMES)
    assert solution.outcome.tolist() == [Outcome.DIVERGED, Outcome.OK]
    assert solution.end_time[0] == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(states[:10, 0], TIMES[:10], atol=1e-9)
    assert np.isnan(states[11:]).all()
    np.testing.assert_allclose(other[:, 0], TIMES - 20.0, atol=1e-9)


def test_an_f_that_never_is_a_number_ends_at_the_start():
    solution, _ = solve(lambda t, x, u: x * torch.nan, [[1.0]], TIMES)
    assert solution.outcome.tolist() == [Outcome.DIVERGED]
    assert solution.evaluations < 5


def test_chattering_ends_by_patience_and_stiffness_by_budget():
    chatter, _ = solve(sign_flip, [[1.0]], TIMES, rtol=1e-12, atol=1e-14)
    assert chatter.outcome.tolist() == [Outcome.BUDGET]
    assert 0.99 < float(chatter.end_time[0]) < 1.02
    stiff = Tolerances(max_evaluations=600)
    solution, _ = solve(lambda t, x, u: -1e6 * (x - t[:, None].cos()), [[1.0]], TIMES, tolerances=stiff)
    assert solution.outcome.tolist() == [Outcome.BUDGET]
    assert solution.points < 700


def test_a_singularity_in_time_is_a_step_underflow():
    f = lambda t, x, u: (1.0 - t[:, None]).abs().clamp(min=1e-300).pow(-1.0)  # noqa: E731
    solution, _ = solve(f, [[0.0]], [0.0, 2.0], rtol=1e-10, atol=1e-12)
    assert solution.outcome.tolist() == [Outcome.STEP_UNDERFLOW]
    assert solution.end_time[0] == pytest.approx(1.0, abs=1e-9)


def test_the_caller_can_stop_it():
    asked = iter([False] * 5 + [True])
    solution, (states,) = solve(rotation, [[1.0, 0.0]], TIMES, should_stop=lambda: next(asked))
    assert solution.outcome.tolist() == [Outcome.BUDGET]
    reached = TIMES <= float(solution.end_time[0])
    assert 0 < reached.sum() < 101
    np.testing.assert_allclose(states[reached], circle(TIMES[reached]), atol=1e-6)


def test_with_jumps_the_answer_is_exact_and_no_step_is_wasted():
    values = np.array([1.0, -2.0, 3.0, 0.5, -1.0, 2.0, 0.0])
    times = np.linspace(0.0, 6.0, 61)
    f = lambda t, x, u: u - x  # noqa: E731
    solution, (states,) = solve(f, [[0.0]], times, held(values, 1.0), rtol=1e-10, atol=1e-12)
    exact, x = [0.0], 0.0
    for piece in range(6):
        tau = np.linspace(0.1, 1.0, 10)
        exact += list(values[piece] + (x - values[piece]) * np.exp(-tau))
        x = exact[-1]
    np.testing.assert_allclose(states[:, 0], exact, atol=3e-10)
    smooth, _ = solve(f, [[0.0]], [0.0, 1.0], held([1.0, 1.0], 1.0), rtol=1e-10, atol=1e-12)
    assert solution.points < 8 * smooth.points  # six transients and their jumps, no rejections at the jumps


def test_the_step_that_ends_on_a_jump_does_not_shrink_the_next():
    jumps = np.tile([1.0, 1.0 + 1e-6], 500)  # 1 000 jumps far denser than the steps that rtol asks for
    f = lambda t, x, u: u - x  # noqa: E731
    solution, _ = solve(f, [[0.0]], [0.0, 9.99], held(jumps, 0.01), rtol=1e-4, atol=1e-4)
    assert solution.outcome.tolist() == [Outcome.OK]
    assert solution.points < 7.2 * 1000  # one step and one recomputed stage per jump


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_inputs_between_samples(kind):
    clock = np.linspace(0, 10, 41)
    u = held(np.sin(clock), 0.25, kind)
    _, (states,) = solve(lambda t, x, u: u, [[0.0]], TIMES, u, rtol=1e-10, atol=1e-12)
    bound = {"linear": 0.25**2 / 12 * 10, "cubic": 1e-3}[kind]
    assert np.abs(states[:, 0] - (1 - np.cos(TIMES))).max() < bound
    if kind == "linear":  # the trapezoidal rule at the knots
        knots = np.concatenate([[0], np.cumsum(0.125 * (np.sin(clock[1:]) + np.sin(clock[:-1])))])
        np.testing.assert_allclose(states[::5, 0], knots[::2], atol=1e-11)


def test_euler_is_the_recursion_and_linear_between():
    x, expected = np.array([1.0, 0.0]), []
    for _ in range(101):
        expected.append(x)
        x = x + 0.1 * np.array([x[1], -x[0]])
    times = np.linspace(0, 10, 201)
    solution, (states,) = solve(rotation, [[1.0, 0.0]], times, method="euler", euler_step=0.1)
    np.testing.assert_allclose(states[::2], expected, atol=1e-12)
    np.testing.assert_allclose(states[1::2], 0.5 * (states[:-1:2] + states[2::2]), atol=1e-12)
    assert solution.evaluations <= 103


def test_euler_steps_end_on_jumps_and_return_to_the_grid():
    u = held([1.0, -1.0, 1.0], 0.25)
    _, (states,) = solve(lambda t, x, u: u, [[0.0]], [0.0, 0.25, 0.5], u, method="euler", euler_step=0.2)
    np.testing.assert_allclose(states[:, 0], [0.0, 0.25, 0.0], atol=1e-15)  # exact, because f is constant between


def test_euler_counts_divergence():
    rates = torch.tensor([[5.0], [-1.0]])
    solution, states = solve(blow_up, np.ones((2, 1)), TIMES, constants=rates, method="euler", euler_step=0.1)
    assert solution.outcome.tolist() == [Outcome.DIVERGED, Outcome.OK]
    assert np.isfinite(states[1]).all()


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(UsageError, match="do not belong together"):
        solve(rotation, [[1.0, 0.0]], TIMES, t0=[0.0, 1.0])
    with pytest.raises(UsageError, match="asked for at 0, before its start at 1"):
        solve(rotation, [[1.0, 0.0]], TIMES, t0=[1.0])
    with pytest.raises(UsageError, match="needs a positive step, got None"):
        solve(rotation, [[1.0, 0.0]], TIMES, method="euler")
    with pytest.raises(UsageError, match=r"f returned shape \(1,\) for states of shape \(1, 2\)"):
        solve(lambda t, x, u: x[:, 0], [[1.0, 0.0]], TIMES)
    with pytest.raises(DataError, match="trajectory 0 is asked for at time 10, but its sampled inputs end at 4"):
        solve(lambda t, x, u: u, [[0.0]], TIMES, held(np.zeros(5), 1.0))


def test_outcomes_have_the_words_of_the_files():
    assert [outcome.label for outcome in Outcome] == ["ok", "diverged", "step-underflow", "budget"]
