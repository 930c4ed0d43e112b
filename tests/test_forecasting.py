"""Laws of windows and rollouts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from snet_cli.data.signals import Inputs
from snet_cli.errors import CheckpointError, DataError, UsageError
from snet_cli.forecasting.rollout import rollout
from snet_cli.forecasting.windows import plan_windows
from tests.forecasts import fourier_force, oscillator, recordings, sampled_force, without_samples


def test_a_forecast_from_x0_reproduces_the_truth_of_every_recording():
    data = recordings(x0=True)
    forecast = rollout(oscillator(), data)
    np.testing.assert_allclose(forecast.trajectories.outputs, data.truth, atol=1e-6)
    assert forecast.outcome == ("ok",) * 3
    assert forecast.initial_state == {"x": "x0", "v": "x0"}
    assert forecast.windows.horizon == 8.0
    assert forecast.trajectories.ids == data.ids
    assert forecast.mse < 1e-12


def test_forecast_and_observation_share_rows_ids_and_units():
    forecast = rollout(oscillator(), recordings())
    a, b = forecast.trajectories, forecast.observed
    assert a.ids == b.ids
    np.testing.assert_array_equal(a.time, b.time)
    assert dict(a.units) == dict(b.units)
    assert a.outputs.shape == b.outputs.shape == b.truth.shape


@pytest.mark.parametrize("start", [0.0, 1900.0])
def test_windows_start_at_multiples_of_s_and_those_longer_than_what_is_left_are_dropped(start):
    data = recordings(trajectories=1, samples=81, horizon=8.0, start=start)
    windows = plan_windows(data, horizon=2.0, from_every=1.5)
    np.testing.assert_allclose(windows.start - start, [0, 1.5, 3.0, 4.5, 6.0])
    assert windows.ids == ("000@0", "000@1.5", "000@3", "000@4.5", "000@6")
    assert windows.at_first.tolist() == [True, False, False, False, False]
    ends = windows.time[np.cumsum(windows.row_size) - 1]
    np.testing.assert_allclose(ends - windows.start, 2.0)


def test_windows_on_an_irregular_clock_start_at_the_first_sample_at_or_after_each_multiple():
    data = recordings(trajectories=1, samples=6)
    data = replace(data, time=np.array([10.0, 10.9, 12.1, 12.9, 14.0, 15.0]))
    windows = plan_windows(data, from_every=1.0, horizon=2.0)
    assert windows.start.tolist() == [10.0, 12.1]  # 11 and 12 start at the same sample


def test_times_within_one_per_cent_of_the_sampling_interval_are_the_same():
    data = recordings(trajectories=1, samples=11, horizon=1.0)
    assert plan_windows(data, horizon=0.5 - 5e-4).row_size.tolist() == [6]
    assert plan_windows(data, horizon=0.5 - 2e-3).row_size.tolist() == [5]
    assert plan_windows(data, horizon=1.0 + 5e-4).row_size.tolist() == [11]
    assert len(plan_windows(data, horizon=0.5 + 5e-4, from_every=0.5)) == 2


def test_without_a_horizon_forecasts_from_every_s_go_to_the_end_of_the_recording():
    data = recordings(trajectories=2, samples=9, horizon=8.0)
    windows = plan_windows(data, from_every=4.0)
    assert windows.row_size.tolist() == [9, 5, 9, 5]  # the one that would start at the last sample says nothing
    assert windows.horizon == 8.0


def test_a_horizon_beyond_the_samples_continues_on_their_grid_unscored():
    data = recordings(trajectories=2, samples=9, horizon=8.0, x0=True)
    forecast = rollout(oscillator(), data, plan_windows(data, horizon=10.5))
    time = forecast.trajectories.time.reshape(2, -1)
    np.testing.assert_allclose(time, [[*range(11), 10.5]] * 2)
    assert forecast.scored.reshape(2, -1).sum(1).tolist() == [9, 9]
    assert np.isnan(forecast.observed.outputs.reshape(2, -1, 2)[:, 9:]).all()
    assert np.isfinite(forecast.trajectories.outputs).all()


def test_windows_see_the_time_of_their_trajectory_not_their_own():
    data = recordings(trajectories=1, samples=9, horizon=8.0, start=100.0)
    seen = oscillator(derivative=lambda t, x, u: torch.stack([t, torch.ones_like(t)], -1))
    forecast = rollout(seen, data, plan_windows(data, horizon=2.0, from_every=4.0))
    for w, begin in enumerate([0.0, 4.0]):
        t = begin + np.arange(3)
        x = forecast.states.reshape(-1, 3, 2)[w, :, 0]
        np.testing.assert_allclose(x - x[0], (t**2 - begin**2) / 2, atol=1e-9)


def test_sampled_inputs_are_not_extrapolated_and_the_error_names_time_and_trajectory():
    data = replace(recordings(trajectories=2, samples=9), inputs=sampled_force(2, [0, 4, 8], [0, 0, 0]))
    model = oscillator(inputs=("force",))
    assert rollout(model, data).mse < 1e-12
    with pytest.raises(DataError, match=r"forecast of '000' needs inputs at t = 9 s, but its last input .* t = 8 s"):
        rollout(model, data, plan_windows(data, horizon=9.0))
    late = replace(data, inputs=sampled_force(2, [1, 4, 8], [0, 0, 0]))
    with pytest.raises(DataError, match=r"forecast of '000' needs inputs at t = 0 s, but its first input"):
        rollout(model, late)


def test_fourier_inputs_continue_and_drive_the_forecast():
    data = replace(recordings(trajectories=1, samples=9, x0=True), inputs=fourier_force(1))
    forecast = rollout(oscillator(inputs=("force",)), data, plan_windows(data, horizon=20.0))
    t = forecast.trajectories.time
    x0, v0 = data.x0[0]
    # x'' = -x + cos 2t: particular solution -cos(2t)/3
    expected = (x0 + 1 / 3) * np.cos(t) + v0 * np.sin(t) - np.cos(2 * t) / 3
    np.testing.assert_allclose(forecast.states[:, 0], expected, atol=1e-5)


def test_an_input_that_the_model_does_not_use_bounds_nothing():
    data = replace(recordings(samples=9), inputs=sampled_force(3, [0, 1], [0, 0]))
    assert rollout(oscillator(), data).mse < 1e-12


def test_a_file_without_outputs_is_forecast_on_the_clock_of_its_inputs():
    data = replace(recordings(trajectories=2, x0=True), inputs=sampled_force(2, np.linspace(1, 5, 9), np.zeros(9)))
    forecast = rollout(oscillator(inputs=("force",)), without_samples(data))
    np.testing.assert_allclose(forecast.trajectories.time.reshape(2, -1), [np.linspace(1, 5, 9)] * 2)
    assert forecast.mse is None
    assert not forecast.scored.any()
    assert np.isfinite(forecast.trajectories.outputs).all()
    with pytest.raises(DataError, match="needs inputs at t = 7"):
        rollout(oscillator(inputs=("force",)), without_samples(data), plan_windows(without_samples(data), horizon=6.0))


def test_a_file_without_outputs_and_without_input_samples_needs_a_horizon():
    data = without_samples(recordings(trajectories=1, x0=True))
    with pytest.raises(UsageError, match="no samples and no sampled inputs") as caught:
        rollout(oscillator(), data)
    assert "--horizon" in caught.value.hint
    forecast = rollout(oscillator(), data, plan_windows(data, horizon=4.0))
    np.testing.assert_allclose(forecast.trajectories.time, np.linspace(0, 4, 200))
    x, v = data.x0[0]
    np.testing.assert_allclose(
        forecast.states[-1], [x * np.cos(4) + v * np.sin(4), v * np.cos(4) - x * np.sin(4)], atol=1e-6
    )


def test_one_forecast_that_blows_up_leaves_the_others_alone():
    def explosive(t, x, u):
        return torch.stack([x[:, 0] ** 3, -x[:, 1]], -1)

    data = recordings(trajectories=3, samples=9)
    starts = np.array([[0.1, 1.0], [2.0, 1.0], [-0.1, 1.0]])
    forecast = rollout(oscillator(derivative=explosive), replace(data, x0=starts))
    assert forecast.outcome == ("ok", "diverged", "ok")
    assert forecast.diverged == 1
    assert np.isnan(forecast.errors.reshape(3, 9, 2)[1]).all()
    assert np.isfinite(forecast.errors.reshape(3, 9, 2)[[0, 2]]).all()
    assert forecast.end_time[1] < 1.0


def test_constants_come_from_the_file_then_from_the_model():
    model = oscillator(derivative=lambda t, x, u: -u[:, -1:] * x, constant_names=("rate",), constants={"rate": 0.5})
    data = recordings(trajectories=2, samples=3, horizon=2.0, x0=True)
    for given, rates in ((data, [0.5, 0.5]), (replace(data, parameters={"rate": np.array([0.1, 2.0])}), [0.1, 2.0])):
        states = rollout(model, given).states.reshape(2, 3, 2)
        np.testing.assert_allclose(states[:, 2], data.x0 * np.exp(-2.0 * np.array(rates))[:, None], atol=1e-6)


def test_euler_steps_by_the_sampling_interval():
    data = recordings(trajectories=1, samples=5, horizon=2.0, x0=True)
    states = rollout(oscillator(), data, integrator="euler").states
    x = data.x0[0]
    for k in range(5):
        np.testing.assert_allclose(states[k], x, atol=1e-12)
        x = x + 0.5 * np.array([x[1], -x[0]])


def test_windows_carry_their_own_part_of_the_inputs():
    data = replace(recordings(trajectories=1, samples=9), inputs=sampled_force(1, np.arange(9), np.arange(9)))
    forecast = rollout(oscillator(inputs=("force",)), data, plan_windows(data, horizon=2.0, from_every=3.0))
    cut = forecast.trajectories
    np.testing.assert_allclose(
        cut.inputs.at(cut.trajectory_of_row(), cut.time)[:, 0], data.inputs.at(np.zeros(9, int), cut.time)[:, 0]
    )


def test_scores_do_not_depend_on_the_order_of_the_trajectories():
    data = recordings(trajectories=5, noise=0.1, seed=3)
    order = [3, 1, 4, 0, 2]
    a, b = rollout(oscillator(), data), rollout(oscillator(), data.select(order))
    np.testing.assert_allclose(a.errors.reshape(5, -1)[order], b.errors.reshape(5, -1), atol=1e-12)


@pytest.mark.parametrize(("flag", "value"), [("horizon", 0.0), ("horizon", np.inf), ("from_every", -1.0)])
def test_lengths_must_be_positive_times(flag, value):
    with pytest.raises(UsageError, match="expected a positive time in s"):
        plan_windows(recordings(), **{flag: value})


def test_absurd_lengths_are_refused_before_they_fill_the_memory():
    data = recordings()
    with pytest.raises(UsageError, match="more than 10000000"):
        plan_windows(data, horizon=1e12)
    with pytest.raises(UsageError, match="more than 10000000"):
        plan_windows(data, from_every=1e-12)


def test_windows_that_fit_nowhere_are_an_error_that_says_how_long_the_recordings_are():
    with pytest.raises(DataError, match="horizon of 9 s: the longest takes 8"):
        plan_windows(recordings(), horizon=9.0, from_every=1.0)


def test_data_of_other_channels_does_not_fit_the_model():
    data = recordings()
    with pytest.raises(CheckpointError, match="outputs are x, v; the data has a, b"):
        rollout(oscillator(), replace(data, output_names=("a", "b"), state_names=("a", "b")))
    with pytest.raises(CheckpointError, match="needs the input 'force'; the data has none"):
        rollout(oscillator(inputs=("force",)), replace(data, inputs=Inputs.none()))


def test_channels_are_matched_by_name_and_may_be_missing():
    data = recordings(trajectories=1, x0=True)
    swapped = replace(data, outputs=data.outputs[:, ::-1], output_names=("v", "x"))
    assert rollout(oscillator(), swapped).mse < 1e-12
    only_x = recordings(trajectories=1, x0=True, outputs=("x",))
    errors = rollout(oscillator(), only_x).errors
    assert np.isfinite(errors[:, 0]).all()
    assert np.isnan(errors[:, 1]).all()


def test_a_stopped_forecast_ends_as_budget():
    forecast = rollout(oscillator(), recordings(), should_stop=lambda: True)
    assert set(forecast.outcome) == {"budget"}
    assert forecast.mse is None
