"""Forecast bands where the members' forecasts are known, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from snet_cli.evaluation.coverage import judge_bands
from snet_cli.evaluation.forecast_plots import draw_forecast
from snet_cli.evaluation.plots import render
from snet_cli.forecasting.bands import MEMBERS, Band, Bands, _ends, forecast_bands
from snet_cli.forecasting.rollout import rollout
from snet_cli.forecasting.windows import plan_windows
from tests.forecasts import hand_made, oscillator, oscillator_derivative, recordings


def spread_out(size):
    """Members that differ by a constant force, evenly spaced in ±size."""

    def f(t, x, u):
        force = size * (2.0 * u[:, -1] / (MEMBERS - 1) - 1.0)
        return oscillator_derivative(t, x, u[:, :0]) + torch.stack([torch.zeros_like(force), force], -1)

    return f


def bands_of(data, ensemble, noise=0.0, **options):
    return forecast_bands(oscillator(), ensemble, np.full(2, noise), data, plan_windows(data), seed=0, **options)


def test_a_band_is_the_second_and_the_last_but_one_of_the_members():
    data = recordings(x0=True)
    found = bands_of(data, spread_out(0.1))
    # x = free motion + force (1 - cos t): members lie evenly, the band ends at 38/39 of the extreme force
    half = 0.1 * 38 / 39 * (1 - np.cos(data.time))
    np.testing.assert_allclose(found.truth.upper[:, 0] - data.truth[:, 0], half, atol=1e-4)
    np.testing.assert_allclose(found.truth.lower[:, 0] - data.truth[:, 0], -half, atol=1e-4)
    assert found.failed == 0
    assert (found.truth.upper[::41] == found.truth.lower[::41]).all()  # a known start has no band


def test_the_noise_of_a_measured_start_is_in_the_band():
    data = recordings(trajectories=40, samples=5)
    found = bands_of(data, spread_out(0.0), noise=0.1)
    width = (found.truth.upper - found.truth.lower)[:, 0]
    # rotation keeps a circular Gaussian: ± 1.96 σ at all times; 40 bands of 79 members scatter by 2 %
    np.testing.assert_allclose(width.reshape(40, 5).mean(0), 2 * 1.96 * 0.1, rtol=0.08)
    measured = (found.measured.upper - found.measured.lower)[:, 0]
    np.testing.assert_allclose(measured.reshape(40, 5).mean(0), 2 * 1.96 * 0.1 * np.sqrt(2), rtol=0.08)


def test_an_init_window_averages_the_noise_of_its_samples():
    data = recordings(trajectories=6, samples=41)
    wide = bands_of(data, spread_out(0.0), noise=0.1)
    narrow = bands_of(data, spread_out(0.0), noise=0.1, init_window=20)
    ratio = (narrow.truth.upper - narrow.truth.lower)[:, 0].mean() / (wide.truth.upper - wide.truth.lower)[:, 0].mean()
    # 20 samples of x and v over half a period: each phase of the motion is seen as if 20 times
    assert ratio == pytest.approx(1 / np.sqrt(20), rel=0.3)


def test_memory_changes_no_number():
    data = replace(recordings(trajectories=2, samples=5, noise=0.1), row_size=np.array([4, 6]))
    data = replace(data, time=np.concatenate([np.arange(k) * 0.5 for k in data.row_size]))
    windows = plan_windows(data, from_every=1.0, horizon=1.0)
    options = {"seed": 3, "init_window": 2}
    one, other = (
        forecast_bands(oscillator(), spread_out(0.1), np.full(2, 0.1), data, windows, memory=memory, **options)
        for memory in (10**9, 1)
    )
    for a, b in zip((*one.truth, *one.measured), (*other.truth, *other.measured), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)  # steps are each member's own


def test_members_that_fail_are_infinitely_far():
    values = np.tile(np.arange(79.0)[:, None, None], (1, 3, 1))
    values[10, 1], values[[10, 20], 2] = np.nan, np.nan
    lower, upper = _ends(values)
    assert (lower[:, 0].tolist(), upper[:, 0].tolist()) == ([1, 0, -np.inf], [77, 78, np.inf])


def test_a_member_that_explodes_leaves_the_others_alone():
    def f(t, x, u):
        return torch.where(u[:, -1:] < 2, x**3, oscillator_derivative(t, x, u[:, :0]))

    data = recordings(x0=True)
    found = bands_of(data, f)
    assert found.failed >= 2 * len(data) - 1  # a start near the origin may take longer
    assert np.isinf(found.truth.upper).any()
    verdict = judge_bands(rollout(oscillator(), data), found)
    assert verdict.unbounded == np.isinf(found.truth.upper).sum()


def test_coverage_counts_scored_values_with_a_band():
    truth = np.zeros((2, 4, 1))
    forecast = hand_made(truth + 0.1, truth + 5.0, truth=truth, init_window=[1, 0])
    lower, upper = np.full((8, 1), -1.0), np.full((8, 1), 1.0)
    lower[1] = 0.5  # misses
    lower[2], upper[2] = -np.inf, np.inf
    lower[4] = upper[4] = 0.0
    found = judge_bands(forecast, Bands(Band(lower, upper), Band(lower - 9, upper + 9), 0, MEMBERS))
    assert found.against == "truth"
    assert found.coverage == pytest.approx(4 / 5)  # of 8: one in the init window, one endless, one known exactly
    assert found.unbounded == 1
    assert found.channels["x"]["mean_width"] == pytest.approx((5 * 2.0 + 0.5) / 7)
    bare = replace(forecast, true_outputs=None)
    assert judge_bands(bare, Bands(Band(lower, upper), Band(lower, upper + 9), 0, MEMBERS)).against == "measurements"
    empty = replace(bare, observed=replace(bare.observed, outputs=np.full((8, 1), np.nan)))
    nothing = judge_bands(empty, Bands(Band(lower, upper), Band(lower, upper), 0, MEMBERS))
    assert (nothing.against, nothing.coverage) == (None, None)


def test_bands_are_drawn():
    data = recordings(x0=True)
    forecast = rollout(oscillator(), data)
    figure = draw_forecast(forecast, bands_of(data, spread_out(0.5)))
    assert figure is not None
    assert all(len(axes.collections) == 1 for axes in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "95 % band"
    assert render(figure) != render(draw_forecast(forecast))
