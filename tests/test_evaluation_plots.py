"""Pictures: written, repeatable, and telling what they should."""

import struct

import numpy as np
import pytest

from snet_cli.errors import OutputError
from snet_cli.evaluation.error_plots import draw_error_by_horizon, draw_learning_curve
from snet_cli.evaluation.forecast_plots import draw_forecast, draw_plane, position_pairs
from snet_cli.evaluation.picture_folder import check_folder
from snet_cli.evaluation.plots import draw_pictures, render, write_pictures
from snet_cli.forecasting.rollout import rollout
from snet_cli.forecasting.windows import plan_windows
from tests.forecasts import hand_made, oscillator, recordings, without_samples

HISTORY = np.stack([np.geomspace(1, 1e-3, 20), np.full(20, 0.1), np.geomspace(1, 1e-3, 20), np.full(20, np.nan)], -1)


@pytest.fixture(scope="module")
def forecast():
    return rollout(oscillator(), recordings(trajectories=7, noise=0.05), init_window=4)


def test_pictures_are_written_as_png_and_named(tmp_path, forecast):
    written = write_pictures(tmp_path / "plots", forecast, HISTORY)
    names = ["forecast.png", "plane.png", "error_by_horizon.png", "learning_curve.png"]
    assert [path.name for path in written] == names
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", content[16:24])
        assert min(width, height) > 300
        assert b"tEXt" not in content  # no program, version or date
    with pytest.raises(OutputError, match=r"forecast\.png: exists already"):
        write_pictures(tmp_path / "plots", forecast, HISTORY)


def test_the_same_forecast_gives_the_same_bytes(forecast):
    assert render(draw_error_by_horizon(forecast)) == render(draw_error_by_horizon(forecast))
    assert render(draw_plane(forecast)) == render(draw_plane(forecast))


def test_truth_is_dotted_red_and_the_model_solid_blue(forecast):
    figure = draw_forecast(forecast)
    lines = {text.get_text(): line for text, line in zip(*_legend(figure), strict=True)}
    assert list(lines) == ["truth", "model", "measured", "init window, not scored"]
    assert lines["truth"].get_color() == "#d62728"
    assert lines["truth"].get_linestyle() != "-"
    assert lines["model"].get_linestyle() == "-"


def _legend(figure):
    legend = figure.legends[0]
    return legend.get_texts(), legend.legend_handles


def test_axes_carry_names_and_units(forecast):
    figure = draw_forecast(forecast)
    assert {axes.get_ylabel() for axes in figure.axes} == {"x [m]", "v [m/s]", ""}
    assert {axes.get_xlabel() for axes in figure.axes} == {"time [s]", ""}
    plane = draw_plane(forecast)
    assert {axes.get_xlabel() for axes in plane.axes} == {"x [m]", ""}


def test_a_forecast_that_runs_away_does_not_flatten_the_truth():
    measured = np.sin(np.linspace(0, 6, 30))[None, :, None]
    wild = measured * np.geomspace(1, 1e6, 30)[None, :, None]
    axes = draw_forecast(hand_made(wild, measured)).axes[0]
    low, high = axes.get_ylim()
    assert high - low < 6


def test_a_single_channel_has_no_plane_and_its_forecasts_stand_one_below_the_other():
    forecast = hand_made(np.random.default_rng(0).standard_normal((8, 20, 1)), np.zeros((8, 20, 1)))
    assert draw_plane(forecast) is None
    figure = draw_forecast(forecast)
    assert len(figure.axes) == 6
    assert len({round(axes.get_position().x0, 3) for axes in figure.axes}) == 1


def test_nothing_scored_draws_no_errors_but_the_forecast():
    data = without_samples(recordings(trajectories=2, x0=True))
    forecast = rollout(oscillator(), data, plan_windows(data, horizon=3.0))
    assert set(draw_pictures(forecast)) == {"forecast.png", "plane.png"}


def test_failed_and_empty_forecasts_are_drawn_without_a_complaint():
    gone = np.full((2, 10, 2), np.nan)
    assert draw_pictures(hand_made(gone, np.zeros((2, 10, 2)), outcome=["diverged"] * 2))
    assert draw_pictures(hand_made(gone[:, :1], gone[:, :1])) == {}


def test_names_that_are_markup_or_in_no_font_are_drawn_as_they_are():
    values = np.random.default_rng(0).standard_normal((1, 10, 2))
    assert draw_pictures(hand_made(values, values, names=("$x^{", "位置\u0e01")))


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("x", "y", "phi"), [(0, 1)]),
        (("yaw", "X", "Y"), [(1, 2)]),
        (("x1", "y1", "phi1", "x2", "y2", "phi2"), [(0, 1), (3, 4)]),
        (("vx", "vy", "pos_x", "pos_y"), [(2, 3)]),
        (("angle", "rate"), [(0, 1)]),
        (("flux", "fluy"), [(0, 1)]),
        (("level",), []),
    ],
)
def test_positions_are_found_by_name(names, pairs):
    assert [tuple(pair) for pair in position_pairs(names)] == pairs


def test_learning_curves_show_what_changes_once():
    labels = [line.get_label() for line in draw_learning_curve(HISTORY).axes[0].lines]
    assert labels == ["residual R"]
    assert draw_learning_curve(np.zeros((0, 4))) is None
    assert draw_learning_curve(np.full((5, 4), np.nan)) is None


def test_a_folder_that_cannot_hold_pictures_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file, expected a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="there is no folder"):
        check_folder(tmp_path / "a" / "b")
    check_folder(tmp_path / "new")
    assert (tmp_path / "new").is_dir()
