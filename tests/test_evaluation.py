"""Laws of scores, reports, requirements and the CSV of forecasts."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from snet_cli.errors import RequirementError, UsageError
from snet_cli.evaluation.coverage import judge_bands
from snet_cli.evaluation.csv_out import forecast_csv
from snet_cli.evaluation.metrics import BINS, forecast_errors, horizon_bins, score
from snet_cli.evaluation.report import Relaxed, build_report
from snet_cli.evaluation.requirements import check_requirements, flatten, parse_requirements, score_keys
from snet_cli.forecasting.bands import Band, Bands
from snet_cli.forecasting.rollout import rollout
from snet_cli.forecasting.windows import plan_windows
from tests.forecasts import hand_made, oscillator, recordings, without_samples

FIXED_KEYS = {
    "command", "trajectories", "diverged", "horizon", "initial_state", "mse", "mse_true", "rmse", "nrmse",
    "fit_percent", "channels", "by_horizon", "relaxed", "integrator", "seconds", "output",
}  # fmt: skip


@pytest.fixture
def noisy():
    rng = np.random.default_rng(0)
    measured = rng.standard_normal((4, 30, 2))
    return measured + 0.1 * rng.standard_normal(measured.shape), measured


def test_a_perfect_forecast_has_no_error_and_fits_by_100_per_cent(noisy):
    scores = score(hand_made(noisy[1], noisy[1], truth=noisy[1]))
    assert (scores.mse, scores.mse_true, scores.rmse, scores.nrmse, scores.fit_percent) == (0, 0, 0, 0, 100)
    for channel in scores.channels.values():
        assert (channel.mse, channel.fit_percent, channel.max_abs) == (0, 100, 0)
    assert all(value == 0 for each in scores.by_horizon for value in each.rmse.values() if value is not None)


def test_predicting_the_mean_fits_by_0_per_cent(noisy):
    measured = noisy[1]
    mean = np.broadcast_to(measured.mean((0, 1)), measured.shape)
    scores = score(hand_made(mean, measured))
    assert scores.fit_percent == pytest.approx(0, abs=1e-9)
    assert all(c.fit_percent == pytest.approx(0, abs=1e-9) for c in scores.channels.values())


def test_scores_of_three_samples_computed_by_hand():
    scores = score(hand_made([[[1.0], [2.0], [6.0]]], [[[0.0], [2.0], [4.0]]]))
    x = scores.channels["x"]
    assert scores.mse == x.mse == pytest.approx(5 / 3)
    assert x.rmse == pytest.approx(np.sqrt(5 / 3))
    assert x.max_abs == 2.0
    # |e| = √5, |y - mean y| = √8
    assert x.fit_percent == pytest.approx(100 * (1 - np.sqrt(5 / 8)))
    assert x.nrmse == pytest.approx(np.sqrt(5 / 8))


def test_mse_is_the_mean_over_all_values_of_all_channels(noisy):
    predicted, measured = noisy
    measured[0, 3:9, 1] = np.nan
    scores = score(hand_made(predicted, measured))
    assert scores.mse == pytest.approx(np.nanmean((predicted - measured) ** 2))
    assert scores.scored_values == np.isfinite(measured).sum()


def test_a_forecast_that_failed_is_counted_and_never_enters(noisy):
    predicted, measured = noisy
    broken = predicted.copy()
    broken[1] = np.nan
    broken[2] = 1e300
    mixed = score(hand_made(broken, measured, outcome=["ok", "diverged", "step-underflow", "ok"], truth=measured))
    rest = score(hand_made(predicted[[0, 3]], measured[[0, 3]], truth=measured[[0, 3]]))
    assert mixed.mse == pytest.approx(rest.mse)
    assert mixed.mse_true == pytest.approx(rest.mse_true)
    assert mixed.channels["x"].fit_percent == pytest.approx(rest.channels["x"].fit_percent)
    assert mixed.outcomes == {"ok": 2, "diverged": 1, "step-underflow": 1, "budget": 0}


def test_when_all_diverge_every_score_is_null_and_the_json_still_stands(noisy):
    forecast = hand_made(np.full((2, 5, 2), np.nan), np.zeros((2, 5, 2)), outcome=["diverged"] * 2)
    report = build_report(forecast, integrator="dopri5").to_json()
    assert report["diverged"] == report["trajectories"] == 2
    numbers = [report[key] for key in ("mse", "mse_true", "rmse", "nrmse", "fit_percent")]
    assert numbers == [None] * 5
    assert set(report["channels"]["x"].values()) == {None}
    assert [each["rmse"] for each in report["by_horizon"]] == [{"x": None, "y": None}] * BINS
    json.dumps(report, allow_nan=False)


def test_the_order_of_trajectories_changes_no_score(noisy):
    predicted, measured = noisy
    order = [2, 0, 3, 1]
    a, b = score(hand_made(predicted, measured)), score(hand_made(predicted[order], measured[order]))
    assert a.mse == pytest.approx(b.mse)
    assert a.fit_percent == pytest.approx(b.fit_percent)
    assert a.channels["y"].rmse == pytest.approx(b.channels["y"].rmse)
    for left, right in zip(a.by_horizon, b.by_horizon, strict=True):
        assert left.rmse == pytest.approx(right.rmse)


def test_normalised_scores_know_no_units(noisy):
    predicted, measured = noisy
    size = np.array([1e6, 1e-3])
    a, b = score(hand_made(predicted, measured)), score(hand_made(size * predicted, size * measured))
    assert b.nrmse == pytest.approx(a.nrmse)
    assert b.channels["x"].rmse == pytest.approx(1e6 * a.channels["x"].rmse)
    assert b.channels["y"].mse == pytest.approx(1e-6 * a.channels["y"].mse)


def test_a_channel_that_does_not_move_has_errors_but_no_fit():
    measured = np.zeros((1, 4, 2))
    measured[..., 0] = 3.0
    measured[0, :, 1] = [0, 1, 2, 3]
    scores = score(hand_made(measured + 0.5, measured))
    assert scores.channels["x"].rmse == 0.5
    assert scores.channels["x"].fit_percent is None
    assert scores.nrmse == scores.channels["y"].nrmse


def test_numbers_too_large_for_a_float_are_null_not_infinite():
    report = build_report(hand_made([[[1e200], [1.0]]], [[[0.0], [1.0]]]), integrator="dopri5").to_json()
    assert report["mse"] is None
    json.dumps(report, allow_nan=False)


def test_init_windows_are_not_scored(noisy):
    predicted, measured = noisy
    wrong = predicted.copy()
    wrong[:, :3] += 100.0
    a = score(hand_made(wrong, measured, init_window=[3] * 4))
    b = score(hand_made(predicted[:, 3:], measured[:, 3:]))
    assert a.mse == pytest.approx(b.mse)


def test_mse_true_is_against_the_truth_also_where_nothing_was_measured(noisy):
    predicted, truth = noisy
    measured = truth + 0.3
    measured[0, 5] = np.nan
    scores = score(hand_made(predicted, measured, truth=truth))
    assert scores.mse_true == pytest.approx(np.mean((predicted - truth) ** 2))
    assert scores.mse > scores.mse_true
    assert score(hand_made(predicted, measured)).mse_true is None


def test_bins_are_half_open_and_the_sample_at_the_horizon_belongs_to_the_last():
    time = np.linspace(0, 2, 21)
    bins = horizon_bins(hand_made(np.zeros((1, 21, 1)), np.zeros((1, 21, 1)), time=time))
    assert bins.tolist() == list(range(-1, 20))


@pytest.mark.parametrize("shift", [-9e-4, 9e-4])
def test_bins_forgive_clocks_one_per_cent_of_the_sampling_interval(shift):
    time = np.linspace(0, 2, 21)
    time[1:-1] += shift
    bins = horizon_bins(hand_made(np.zeros((1, 21, 1)), np.zeros((1, 21, 1)), time=time))
    assert bins.tolist() == list(range(-1, 20))


def test_errors_by_horizon_are_those_of_the_samples_in_the_bin():
    errors = np.zeros((2, 41, 1))
    errors[0, 1:3], errors[1, 1:3] = 3.0, 4.0
    by_horizon = score(hand_made(errors, np.zeros_like(errors), time=np.linspace(10, 14, 41))).by_horizon
    assert [each.t for each in by_horizon] == pytest.approx(0.2 * np.arange(1, 21))
    assert by_horizon[0].rmse["x"] == pytest.approx(np.sqrt(12.5))
    assert [each.rmse["x"] for each in by_horizon[1:]] == [0.0] * 19


def test_a_bin_without_samples_is_null():
    by_horizon = score(hand_made(np.ones((1, 3, 1)), np.zeros((1, 3, 1)), time=[0.0, 1.0, 10.0])).by_horizon
    filled = [k for k, each in enumerate(by_horizon) if each.rmse["x"] is not None]
    assert filled == [1, 19]


def test_the_error_of_each_forecast_is_in_standard_deviations(noisy):
    predicted, measured = noisy
    forecast = hand_made(predicted, measured, outcome=["ok", "ok", "diverged", "ok"])
    errors = forecast_errors(forecast)
    assert np.isnan(errors).tolist() == [False, False, True, False]
    assert np.sqrt(np.nanmean(errors**2)) == pytest.approx(score(forecast).nrmse)


def test_the_report_has_every_fixed_key_and_survives_json():
    data = recordings(noise=0.1, outputs=("x",))
    forecast = rollout(oscillator(outputs=("x",)), data, plan_windows(data, horizon=2.0, from_every=3.0))
    report = build_report(
        forecast, integrator="dopri5", relaxed=Relaxed(1.0, 0.5, 0.5), seconds=1.5, output="forecast.h5"
    ).to_json()
    assert set(report) >= FIXED_KEYS
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["trajectories"] == 3
    assert report["windows"] == 9
    assert report["initial_state"] == "first-sample+mean-start"
    assert report["initial_states"] == {"x": "first-sample", "v": "mean-start"}
    assert report["horizon"] == 2.0
    assert report["relaxed"] == {"total": 1.0, "residual": 0.5, "misfit": 0.5}
    assert len(report["by_horizon"]) == BINS


def test_a_file_without_outputs_has_null_scores():
    data = without_samples(recordings(x0=True))
    forecast = rollout(oscillator(), data, plan_windows(data, horizon=3.0))
    report = build_report(forecast, integrator="dopri5")
    assert report.to_json()["mse"] is None
    assert report.to_json()["diverged"] == 0
    assert ("scores", "none: nothing measured") in report.summary_rows()


def test_the_summary_says_what_happened_in_words(noisy):
    predicted, measured = noisy
    report = build_report(
        hand_made(predicted, measured, outcome=["ok", "diverged", "budget", "ok"]), integrator="dopri5"
    )
    rows = dict(report.summary_rows())
    assert rows["forecasts"] == "4, of which 1 diverged, 1 budget"
    assert rows["start"] == "first-sample"
    header, *channels = report.channel_rows()
    assert header[0] == "channel"
    assert [row[0] for row in channels] == ["x", "y"]
    assert all(len(row) == len(header) for row in channels)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("mse<=0.02", True),
        ("mse < 0.01", False),
        ("mse >= 1e-2", True),
        ("mse==0.01", True),
        ("diverged<=10", True),
        ("channels.x.rmse>0.2", False),
        ("channels.a.b.rmse<1", True),
        ("mse_true<=1", False),
        ("by_horizon.0.rmse.x<=1", True),
    ],
)
def test_bounds_on_any_number_of_the_report(text, met):
    report = {
        "mse": 0.01,
        "mse_true": None,
        "diverged": 10,
        "channels": {"x": {"rmse": 0.1}, "a.b": {"rmse": 0.5}},
        "by_horizon": [{"t": 1.0, "rmse": {"x": 0.5}}],
    }
    bounds = parse_requirements([text], ["x", "a.b"])
    if met:
        check_requirements(bounds, report)
    else:
        with pytest.raises(RequirementError, match="not met"):
            check_requirements(bounds, report)


def test_all_bounds_that_fail_are_named_with_what_was_reached():
    bounds = parse_requirements(["mse<=0.02", "diverged<1", "nrmse<1"], ["x"])
    with pytest.raises(RequirementError) as caught:
        check_requirements(bounds, {"mse": 0.5, "diverged": 0, "nrmse": None})
    assert caught.value.message == "not met: mse<=0.02 (it is 0.5); nrmse<1 (it is null: nothing was scored)."
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("text", ["mse", "mse<=", "<=3", "mse<=abc", "mse<=nan", "mse=<3", "mse<<3", ""])
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(UsageError, match="is no bound, expected KEY"):
        parse_requirements([text], ["x"])


@pytest.mark.parametrize(("key", "near"), [("msee", "mse"), ("channels.x.rms", "channels.x.rmse"), ("fit", "fit_")])
def test_an_unknown_score_is_refused_with_the_nearest(key, near):
    with pytest.raises(UsageError, match=f"no score is called '{key}'") as caught:
        parse_requirements([f"{key}<1"], ["x"])
    assert near in caught.value.hint


def test_the_keys_of_bounds_are_the_numbers_of_the_report(noisy):
    forecast = hand_made(*noisy)
    ends = Band(forecast.trajectories.outputs - 1.0, forecast.trajectories.outputs + 1.0)
    report = build_report(
        forecast,
        integrator="dopri5",
        relaxed=Relaxed(1.0, 1.0, 1.0),
        bands=judge_bands(forecast, Bands(ends, ends, 0, 79)),
        seconds=1.0,
    ).to_json()
    assert set(score_keys(["x", "y"])) == set(flatten(report)) - {"output"}


def test_csv_holds_the_forecast_beside_the_measurement(noisy):
    predicted, measured = noisy
    measured[0, 1, 0] = np.nan
    predicted[3, -1] = np.nan
    forecast = hand_made(predicted, measured, init_window=[1, 0, 0, 0])
    rows = list(csv.DictReader(io.StringIO(forecast_csv(forecast).decode())))
    assert list(rows[0]) == ["trajectory", "time [s]", "x [m]", "x_measured [m]", "y [m]", "y_measured [m]", "scored"]
    assert len(rows) == 120
    assert [row["scored"] for row in rows[:2]] == ["0", "1"]
    assert rows[1]["x_measured [m]"] == ""
    assert rows[-1]["x [m]"] == ""
    numbers = np.array([float(row["y_measured [m]"]) for row in rows])
    np.testing.assert_array_equal(numbers, measured[..., 1].reshape(-1))


def test_csv_quotes_what_needs_it(noisy):
    forecast = hand_made(*noisy)
    windows = replace(forecast.windows, ids=('a, "b"', "c", "d", "e"))
    rows = list(csv.reader(io.StringIO(forecast_csv(replace(forecast, windows=windows)).decode())))
    assert rows[1][0] == 'a, "b"'
