"""Laws of the initial state: one order, state by state, and no sample used that the rule does not name."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from snet_cli.forecasting.rollout import rollout
from snet_cli.forecasting.windows import plan_windows
from tests.forecasts import oscillator, recordings, sampled_force


def starts(forecast):
    return forecast.trajectories.x0


def test_known_starts_come_first_but_only_at_the_first_sample_of_a_trajectory():
    data = recordings(trajectories=1, noise=0.1, x0=True)
    forecast = rollout(oscillator(), data, plan_windows(data, horizon=2.0, from_every=4.0))
    np.testing.assert_array_equal(starts(forecast)[0], data.x0[0])
    np.testing.assert_array_equal(starts(forecast)[1], data.outputs[20])
    assert forecast.initial_state == {"x": "x0+first-sample", "v": "x0+first-sample"}


def test_each_state_takes_the_first_rule_that_it_can():
    data = recordings(trajectories=2, noise=0.1, x0=True)
    x0 = data.x0.copy()
    x0[0, 0] = np.nan
    forecast = rollout(oscillator(), replace(data, x0=x0))
    assert starts(forecast)[0].tolist() == [data.outputs[0, 0], x0[0, 1]]
    assert forecast.initial_state == {"x": "x0+first-sample", "v": "x0"}


def test_a_missing_first_value_is_replaced_by_the_first_that_was_measured():
    data = recordings(trajectories=1)
    outputs = data.outputs.copy()
    outputs[:2, 1] = np.nan
    forecast = rollout(oscillator(), replace(data, outputs=outputs))
    assert starts(forecast)[0].tolist() == [outputs[0, 0], outputs[2, 1]]


def test_a_hidden_state_starts_from_the_mean_start_of_training():
    data = recordings(outputs=("x",))
    forecast = rollout(oscillator(outputs=("x",)), data)
    np.testing.assert_array_equal(starts(forecast)[:, 1], 0.75)
    np.testing.assert_array_equal(starts(forecast)[:, 0], data.outputs[::41, 0])
    assert forecast.initial_state == {"x": "first-sample", "v": "mean-start"}


def test_outputs_that_mix_states_are_met_and_the_mean_start_holds_what_they_do_not_see():
    mixed = oscillator(outputs=("x", "v"), observation=np.array([[1.0, 1.0], [0.0, 1.0]]))
    forecast = rollout(mixed, recordings())
    assert forecast.initial_state == {"x": "first-sample", "v": "first-sample"}
    first = recordings().outputs[recordings().offsets[:-1]]
    np.testing.assert_allclose(starts(forecast) @ mixed.observation.T, first, atol=1e-12)
    one = oscillator(outputs=("x",), observation=np.array([[2.0, 0.0]]))
    forecast = rollout(one, recordings(outputs=("x",)))
    assert forecast.initial_state == {"x": "first-sample", "v": "mean-start"}
    np.testing.assert_allclose(starts(forecast)[:, 0], 0.5 * first[:, 0])


def test_no_sample_after_the_first_is_used_without_an_init_window():
    data = recordings(noise=0.1)
    changed = data.outputs + np.where(np.arange(data.time.size) % 41 > 0, 5.0, 0.0)[:, None]
    a, b = rollout(oscillator(), data), rollout(oscillator(), replace(data, outputs=changed))
    np.testing.assert_array_equal(a.states, b.states)


@pytest.mark.parametrize("from_every", [None, 3.0])
def test_the_init_window_finds_the_hidden_velocity_and_is_not_scored(from_every):
    data = recordings(trajectories=4, outputs=("x",))
    windows = plan_windows(data, horizon=4.0, from_every=from_every)
    forecast = rollout(oscillator(outputs=("x",)), data, windows, init_window=6)
    assert forecast.initial_state == {"x": "init-window", "v": "init-window"}
    truth = data.truth[windows.row[np.cumsum(windows.row_size) - windows.row_size]]
    np.testing.assert_allclose(starts(forecast), truth, atol=1e-5)
    assert forecast.mse < 1e-9
    np.testing.assert_array_equal(forecast.scored, windows.place_in_window() >= 6)


def test_the_init_window_is_the_least_squares_fit_and_uses_no_later_sample():
    data = recordings(trajectories=3, noise=0.2, seed=5)
    N = 9
    forecast = rollout(oscillator(), data, init_window=N)
    time = data.time[:N]
    # the oscillator's flow is linear: x(t) = rotation(t) x0
    flow = np.stack([[np.cos(time), np.sin(time)], [-np.sin(time), np.cos(time)]]).transpose(2, 0, 1).reshape(-1, 2)
    for b in range(3):
        values = data.outputs[41 * b : 41 * b + N].reshape(-1)
        expected = np.linalg.lstsq(flow, values, rcond=None)[0]
        np.testing.assert_allclose(starts(forecast)[b], expected, atol=1e-4)
    late = data.outputs + np.where(np.arange(data.time.size) % 41 >= N, 5.0, 0.0)[:, None]
    np.testing.assert_array_equal(
        rollout(oscillator(), replace(data, outputs=late), init_window=N).states, forecast.states
    )


def test_the_file_says_the_init_window_unless_the_option_does():
    data = replace(recordings(trajectories=2, noise=0.1), init_window=np.array([3, 0]))
    forecast = rollout(oscillator(), data)
    assert forecast.scored.reshape(2, -1).sum(1).tolist() == [38, 41]
    assert forecast.initial_state["x"] == "init-window+first-sample"
    assert forecast.observed.init_window.tolist() == [3, 0]
    assert rollout(oscillator(), data, init_window=0).scored.all()


def test_known_starts_are_held_in_the_init_window():
    data = recordings(trajectories=2, noise=0.3, x0=True)
    x0 = np.where([True, False], data.x0, np.nan)
    forecast = rollout(oscillator(), replace(data, x0=x0), init_window=8)
    np.testing.assert_array_equal(starts(forecast)[:, 0], x0[:, 0])
    assert forecast.initial_state == {"x": "x0", "v": "init-window"}
    assert not forecast.scored.reshape(2, -1)[:, :8].any()


def test_states_that_the_window_does_not_determine_stay_where_they_started():
    data = recordings(trajectories=2, outputs=("x",))
    forecast = rollout(oscillator(outputs=("x",)), data, init_window=1)
    np.testing.assert_allclose(starts(forecast), np.stack([data.outputs[::41, 0], [0.75, 0.75]], -1), atol=1e-6)


def test_a_window_without_a_measured_value_falls_back():
    data = recordings(trajectories=2)
    outputs = data.outputs.copy()
    outputs[:5] = np.nan
    forecast = rollout(oscillator(), replace(data, outputs=outputs), init_window=5)
    assert forecast.start_kind[0].tolist() == [2, 2]
    assert forecast.start_kind[1].tolist() == [1, 1]


@pytest.mark.slow
def test_a_guess_that_diverges_in_the_window_starts_again_from_the_mean_start():
    def cubic(t, x, u):  # blows up before t = 1 from x > 1, decays from the fitted start
        return torch.stack([x[:, 0] ** 3 - 2.0 * x[:, 0], -x[:, 1]], -1)

    data = recordings(trajectories=1, samples=11, horizon=2.0, outputs=("x",))
    decay = 0.5 * np.exp(-2.0 * data.time)
    values = decay / np.sqrt(1 + (decay**2 - 0.25) / 2.0)  # close to the solution from 0.5
    values[0] = 4.0  # an outlier at the very start
    model = oscillator(outputs=("x",), derivative=cubic)
    forecast = rollout(model, replace(data, outputs=values[:, None]), init_window=10)
    assert forecast.outcome == ("ok",)
    assert abs(starts(forecast)[0, 0]) < np.sqrt(2.0)
    assert forecast.initial_state["x"] == "init-window"


def test_a_float32_network_fits_its_window_as_well():
    def single(t, x, u):
        return torch.stack([x[:, 1], -x[:, 0]], -1).float().double() * np.float32(1.0)

    data = recordings(trajectories=2, outputs=("x",))
    forecast = rollout(oscillator(outputs=("x",), derivative=single), data, init_window=10, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(starts(forecast), data.truth[::41], atol=1e-3)


def test_a_lagged_input_starts_from_its_response_to_the_recorded_inputs():
    rate = 2.0

    def lagging(t, x, u):  # states x, v with v the force through a first-order lag
        return torch.stack([x[:, 1], rate * (u[:, 0] - x[:, 1])], -1)

    data = recordings(trajectories=1, samples=9, horizon=8.0, outputs=("x",))
    data = replace(data, inputs=sampled_force(1, [0.0, 2.0, 8.0], [1.0, 3.0, 3.0]))
    model = oscillator(outputs=("x",), inputs=("force",), derivative=lagging, lag_inputs={1: 0})
    forecast = rollout(model, data, plan_windows(data, horizon=2.0, from_every=3.0))
    expected = [1.0, 3.0 - 2.0 * np.exp(-rate * 1.0), 3.0 - 2.0 * np.exp(-rate * 4.0)]
    np.testing.assert_allclose(starts(forecast)[:, 1], expected, atol=1e-6)
    assert forecast.initial_state["v"] == "input-response"


def test_many_windows_are_fitted_as_each_alone():
    data = recordings(trajectories=6, noise=0.1, seed=2)
    together = rollout(oscillator(), data, init_window=7)
    for b in (0, 5):
        alone = rollout(oscillator(), data.select([b]), init_window=7)
        np.testing.assert_allclose(starts(alone)[0], starts(together)[b], atol=1e-6)
