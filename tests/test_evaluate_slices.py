"""`snet evaluate` in slices: bands, tables, pictures, many starts and ensembles are what they are in one piece.

What is summed over slices, and integrated in other batches, has other last digits.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.evaluation import plots
from snet_cli.evaluation.forecast_plots import draw_forecast
from snet_cli.forecasting import choice
from snet_cli.workflows import evaluate_slices, forecast_plan, memory
from tests.children import leftovers, limit_file_size, run_child
from tests.command import Snet
from tests.teams import together
from tests.training_cases import spirals

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = 1e-7


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """JSON values agree up to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, where)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=CLOSE, abs=1e-12), where
    else:
        assert found == expected, where


def said(ran: Any) -> dict[str, Any]:
    """What a command said, but for what says how and where it was done."""
    found = ran.json if hasattr(ran, "json") else json.loads(ran.out)
    return {key: value for key, value in found.items() if key not in ("seconds", "evaluations", "output")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of measured spirals, a model with a posterior, and an ensemble."""
    from snet_cli.cli.main import main

    path = tmp_path_factory.mktemp("sliced")
    data = spirals(9, 12, horizon=1.0)
    split = np.where(np.arange(9) % 3 == 1, 1, 0)
    save_trajectories(path / "a.h5", replace(data, split=split, init_window=np.where(np.arange(9) > 6, 2, 0)))
    words = ["fit", str(path / "a.h5"), "--model", "mlp", "--set", "model.hidden=[2]", "--threads", "1", "-q"]
    words += ["--order", "5", "--elements", "1", "-o"]
    assert main([*words, str(path / "joint.h5"), "--method", "joint", "--iterations", "3"]) == 0
    assert main([*words, str(path / "both.h5"), "--method", "delta", "--iterations", "2", "--seeds", "2"]) == 0
    return path


@pytest.fixture
def in_slices(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """From now on all is too large for one piece."""

    def switch() -> None:
        monkeypatch.setattr(forecast_plan, "FORECAST_SAMPLES", 40)
        monkeypatch.setattr(memory, "of_forecasts", lambda times, states: 1e30)

    return switch


def words_for(folder: Path, model: str, *more: object) -> tuple[object, ...]:
    tolerances = ("--rtol", 1e-4, "--atol", 1e-6)  # steps belong to each trajectory, whatever its batch
    return ("evaluate", folder / model, folder / "a.h5", "--json", "--threads", 1, *tolerances, *more)


@pytest.mark.parametrize(
    ("model", "kind", "more"),
    [
        ("joint.h5", "h5", ("--bands", "--split", "train", "--seed", 3)),
        ("joint.h5", "csv", ("--bands", "--from-every", 0.3, "--horizon", 0.4)),
        ("both.h5", "h5", ("--from-every", 0.8)),
        ("both.h5", "csv", ("--horizon", 1.2)),
    ],
)
def test_slices_say_and_write_what_one_piece_does(
    snet: Snet, folder: Path, in_slices: Any, model: str, kind: str, more: tuple[object, ...]
) -> None:
    words = words_for(folder, model, *more)
    whole = snet(*words, "-o", f"whole.{kind}")
    in_slices()
    sliced = snet(*words, "-o", f"sliced.{kind}")
    assert sliced.code == whole.code == 0, sliced.err
    assert_close(said(sliced), said(whole))
    assert sliced.err == whole.err.replace("whole", "sliced")
    (assert_same_outputs if kind == "h5" else assert_same_tables)(f"sliced.{kind}", f"whole.{kind}")
    assert leftovers() == []


def assert_same_outputs(name: str, other: str) -> None:
    """Forecasts in files of these names agree."""
    found, expected = (load_trajectories(each, allow_missing_channels=True) for each in (name, other))
    assert (found.ids, found.output_names, found.units) == (expected.ids, expected.output_names, expected.units)
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=CLOSE, atol=1e-9)
    np.testing.assert_array_equal(found.time, expected.time)
    np.testing.assert_array_equal(found.init_window, expected.init_window)


def assert_same_tables(name: str, other: str) -> None:
    """Forecasts in tables of these names agree."""
    rows, expected_rows = ([*csv.reader(Path(each).read_text().splitlines())] for each in (name, other))
    assert rows[0] == expected_rows[0]
    assert len(rows) == len(expected_rows)
    for row, expected_row in zip(rows[1:], expected_rows[1:], strict=True):
        assert row[0] == expected_row[0]
        numbers, wanted = ([float(cell or "nan") for cell in cells[1:]] for cells in (row, expected_row))
        np.testing.assert_allclose(numbers, wanted, rtol=CLOSE, atol=1e-9)


def test_two_processes_share_slices_with_bands_and_pictures(snet: Snet, folder: Path, in_slices: Any) -> None:
    words = words_for(folder, "joint.h5", "--bands", "--plot")
    whole = snet(*words, "whole", "-o", "whole.csv")
    in_slices()
    members = together(2, *words, "team", "-o", "team.csv")
    assert [member.code for member in members] == [0, 0]
    wanted = said(whole)
    wanted["pictures"] = [path.replace("whole", "team") for path in wanted["pictures"]]
    assert_close(said(members[0]), wanted)
    assert_same_tables("team.csv", "whole.csv")
    assert sorted(os.listdir("team")) == sorted(os.listdir("whole"))
    assert leftovers() == []


def test_pictures_are_of_forecasts_spread_over_all(
    snet: Snet, folder: Path, in_slices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "draw_pictures", lambda *args: drawn.append(args) or {"forecast.png": b"drawn"})
    monkeypatch.setattr(evaluate_slices, "PICTURED", 4)
    words = words_for(folder, "joint.h5", "--bands", "--plot")
    whole = snet(*words, "whole")
    in_slices()
    sliced = snet(*words, "sliced")
    assert os.listdir("sliced") == os.listdir("whole") == ["forecast.png"]
    assert [path.replace("sliced", "whole") for path in sliced.json["pictures"]] == whole.json["pictures"]
    (forecast, _, bands, _), (few, _, few_bands, total) = drawn
    numbers = np.array([0, 3, 5, 8])
    expected, rows = choice.chosen(forecast, numbers)
    assert (len(forecast), total, few.windows.ids) == (9, 9, expected.windows.ids)
    np.testing.assert_allclose(few.trajectories.outputs, expected.trajectories.outputs, rtol=CLOSE, atol=1e-9)
    np.testing.assert_allclose(few_bands.truth.upper, bands.truth.upper[rows], rtol=CLOSE, atol=1e-9)
    np.testing.assert_array_equal(few.scored, expected.scored)
    np.testing.assert_array_equal(few.windows.row >= 0, expected.windows.row >= 0)
    figure = draw_forecast(few, few_bands, total)
    assert figure is not None
    assert figure.get_suptitle() == "3 of 9 forecasts"


def test_a_table_that_cannot_be_finished_leaves_the_old_one(snet: Snet, folder: Path, in_slices: Any) -> None:
    in_slices()
    Path("old.csv").write_text("old")
    words = words_for(folder, "joint.h5", "-o", "old.csv", "--force")
    ended = run_child(words, before=limit_file_size(6000))
    assert ended.code == 5, ended.said
    assert "The limit on file sizes" in ended.said
    assert Path("old.csv").read_text() == "old"
    assert leftovers() == []
    assert snet(*words[:-1]).code == 5


def test_starts_that_nothing_follows_are_refused_alike(snet: Snet, folder: Path, in_slices: Any) -> None:
    words = words_for(folder, "joint.h5", "--from-every", 0.5, "--horizon", 1000)
    whole = snet(*words)
    in_slices()
    sliced = snet(*words)
    assert (sliced.code, sliced.err) == (whole.code, whole.err)
    assert whole.code == 3
