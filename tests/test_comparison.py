"""Tables and pictures of a comparison: every key in every row, nothing invented, nothing ranked."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from snet_cli.errors import OutputError
from snet_cli.evaluation.comparison import (
    KEYS,
    Comparison,
    ComparisonRow,
    GradientPoint,
    failed_row,
    table_csv,
    table_markdown,
    table_rows,
    write_tables,
)
from snet_cli.evaluation.comparison_plots import (
    LearningCurve,
    draw_forecasts,
    draw_gradient_norms,
    draw_loss,
    write_comparison_pictures,
)
from snet_cli.forecasting.rollout import rollout
from tests.forecasts import oscillator, recordings

FIXED = {
    "method",
    "case",
    "status",
    "message",
    "ms_per_iteration",
    "iterations",
    "seconds",
    "final_loss",
    "train_mse",
    "test_mse",
    "diverged",
    "peak_memory_mb",
    "gradient_norm",
}

DELTA = ComparisonRow(
    "delta",
    "50%",
    "iterations",
    ms_per_iteration=1.2345,
    iterations=480,
    seconds=2.5,
    seconds_setup=0.5,
    final_loss=0.011,
    train_mse=1e-3,
    test_mse=0.0625,
    diverged=0,
    peak_memory_mb=412.0,
    gradient_norm=(GradientPoint(5.0, 0.25), GradientPoint(10.0, 0.2)),
)
FAILED = failed_row("bkpr-dopri5", "50%", "underflow in dt", iterations=200, final_loss=float("inf"))
HOLD = ComparisonRow("hold", None, "converged", test_mse=3.5, diverged=0)


def test_every_fixed_key_stands_in_every_row_and_no_number_is_not_finite():
    result = Comparison((DELTA, FAILED, HOLD), "out").to_json()
    assert result["command"] == "compare"
    assert result["output"] == "out"
    for row in result["rows"]:
        assert set(row) >= FIXED
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text)["rows"][1]["final_loss"] is None
    assert result["rows"][0]["gradient_norm"] == [{"horizon": 5.0, "norm": 0.25}, {"horizon": 10.0, "norm": 0.2}]
    assert result["rows"][2]["gradient_norm"] == []


def test_a_failure_is_a_row():
    assert (FAILED.status, FAILED.message, FAILED.iterations) == ("failed", "failed: underflow in dt", 200)


def test_a_row_survives_json():
    assert ComparisonRow.from_json(DELTA.to_json()) == DELTA


def test_rows_keep_their_order_and_the_table_says_what_was_not_measured():
    header, *body = table_rows([FAILED, HOLD, DELTA])
    assert [row[0] for row in body] == ["bkpr-dopri5", "hold", "delta"]
    assert body[1][header.index("ms/iteration")] == "-"
    assert body[0][header.index("final loss")] == "-"
    assert "case" not in table_rows([HOLD])[0]


def test_the_markdown_table_is_this():
    text = table_markdown([DELTA, FAILED])
    assert text == (
        "| method | case | ms/iteration | iterations | seconds | of which set-up | final loss | train MSE | test MSE "
        "| diverged | peak MB | status |\n"
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n"
        "| delta | 50% | 1.23 | 480 | 2.5 | 0.5 | 0.011 | 0.001 | 0.0625 | 0 | 412 | iterations |\n"
        "| bkpr-dopri5 | 50% | - | 200 | - | - | - | - | - | - | - | failed |\n"
        "\n"
        "- bkpr-dopri5 50%: failed: underflow in dt\n"
    )


def test_text_from_outside_cannot_break_the_markdown_table():
    text = table_markdown([ComparisonRow("delta", "a|b\nc", message="x\n| y")])
    assert "| a\\|b c |" in text
    assert text.splitlines()[-1] == "- delta a\\|b c: x \\| y"


def test_the_csv_has_all_keys_and_all_digits():
    rows = list(csv.DictReader(io.StringIO(table_csv([DELTA, FAILED]))))
    assert tuple(rows[0]) == KEYS
    assert float(rows[0]["ms_per_iteration"]) == 1.2345
    assert json.loads(rows[0]["gradient_norm"])[1]["norm"] == 0.2
    assert rows[1]["final_loss"] == ""
    assert rows[1]["gradient_norm"] == ""


def test_tables_are_written_once(tmp_path):
    comparison = Comparison((DELTA, HOLD), str(tmp_path))
    written = write_tables(tmp_path, comparison)
    assert [path.name for path in written] == ["table.csv", "table.md", "result.json"]
    assert json.loads((tmp_path / "result.json").read_text("utf-8")) == comparison.to_json()
    with pytest.raises(OutputError, match=r"table\.csv: exists already"):
        write_tables(tmp_path, comparison)
    write_tables(tmp_path, comparison, force=True)


def curves():
    steps = np.arange(1.0, 31.0)
    tracked = {"rollout_iteration": steps[::10], "rollout_seconds": steps[::10] / 99, "rollout_mse": 1 / steps[::10]}
    return [
        LearningCurve("delta", None, 1 / steps, steps / 100, **tracked),
        LearningCurve("bkpr-euler", "50%", np.where(steps < 20, 2 / steps, np.nan), steps),
        LearningCurve("bkpr-euler", "25%", 3 / steps, steps),
        LearningCurve("bkpr-dopri5", None, np.zeros(0), np.zeros(0)),
    ]


def test_learning_curves_are_drawn_against_iterations_and_seconds_on_logarithmic_axes():
    figure = draw_loss(curves())
    assert [axes.get_xlabel() for axes in figure.axes] == ["iterations", "seconds of training"] * 2
    assert [axes.get_ylabel() for axes in figure.axes] == ["own loss", "", "train rollout MSE", ""]
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines) == ["delta", "bkpr-euler 50%", "bkpr-euler 25%"]
    assert len(lines["bkpr-euler 50%"].get_xdata()) == 19  # what is not finite is not drawn
    assert lines["bkpr-euler 50%"].get_color() == lines["bkpr-euler 25%"].get_color()
    assert lines["bkpr-euler 50%"].get_linestyle() != lines["bkpr-euler 25%"].get_linestyle()
    assert draw_loss(curves()[3:]) is None


def test_forecasts_of_methods_stand_side_by_side_in_the_plane():
    forecast = rollout(oscillator(), recordings(trajectories=3))
    figure = draw_forecasts([("delta", forecast), ("hold", forecast), ("linear", forecast)])
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["delta", "hold", "linear"]
    assert len({axes.get_xlim() for axes in figure.axes if axes.axison}) == 1
    assert draw_forecasts([]) is None


def test_gradient_norms_leave_out_what_failed():
    points = (GradientPoint(1.0, 2.0), GradientPoint(2.0, 30.0), GradientPoint(4.0, None))
    figure = draw_gradient_norms([DELTA, ComparisonRow("bkpr-euler", gradient_norm=points), HOLD])
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].get_lines()}
    assert lines == {"delta 50%": [0.25, 0.2], "bkpr-euler": [2.0, 30.0]}
    shown = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert shown == ["1", "2", "4", "5", "10"]
    assert draw_gradient_norms([HOLD]) is None


def test_pictures_are_written_where_there_is_something_to_show(tmp_path):
    forecast = rollout(oscillator(), recordings(trajectories=2))
    written = write_comparison_pictures(tmp_path, [DELTA], curves(), [("delta", forecast)])
    assert [path.name for path in written] == ["loss.png", "forecasts.png", "gradient_norms.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert write_comparison_pictures(tmp_path, [HOLD]) == []
