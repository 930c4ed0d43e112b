"""`snet evaluate` from checkpoint and file to scores and forecasts: exact where the truth is known."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snet_cli.data.signals import Inputs
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.evaluation.options import EvaluateOptions
from snet_cli.training.options import FitOptions
from snet_cli.workflows.evaluate import evaluate
from snet_cli.workflows.fit import fit
from tests.shooting_cases import held, recording
from tests.training_cases import pendulums, spirals

KEYS = {
    "command", "trajectories", "diverged", "horizon", "initial_state", "mse", "mse_true", "rmse", "nrmse",
    "fit_percent", "channels", "by_horizon", "relaxed", "integrator", "seconds", "output",
}  # fmt: skip
"""The keys that DESIGN, section 4, fixes."""


pytestmark = pytest.mark.usefixtures("one_thread")


UNITS = {"a": "m", "b": "m/s", "p": "N"}


@pytest.fixture
def linear(tmp_path, monkeypatch):
    """`m.h5`, a linear model of the spirals as good as their series, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", replace(spirals(8, 120), units=UNITS))
    fit("a.h5", "m.h5", FitOptions(model="linear", order=16, elements=2))
    return tmp_path


def test_a_known_linear_system_is_forecast_far_beyond_the_recording(linear):
    test = spirals(5, 200, seed=7, horizon=40.0)
    save_trajectories("t.h5", test)
    result = evaluate("m.h5", "t.h5", "p.h5")
    assert result.keys() >= KEYS
    assert (result["trajectories"], result["diverged"], result["horizon"]) == (5, 0, 40.0)
    assert result["mse"] < 1e-8
    assert result["mse_true"] is None
    assert result["initial_state"] == "first-sample"
    assert result["channels"].keys() == {"a", "b"}
    assert result["fit_percent"] > 99.9
    assert len(result["by_horizon"]) == 20
    assert result["by_horizon"][-1]["t"] == 40.0
    forecast = load_trajectories("p.h5")
    assert np.sqrt(np.mean((forecast.outputs - test.outputs) ** 2)) < 1e-4
    assert forecast.time.tolist() == test.time.tolist()


def test_a_horizon_and_windows_within_the_recording(linear):
    short = evaluate("m.h5", "a.h5", options=EvaluateOptions(horizon=1.0))
    assert short["horizon"] == 1.0
    many = evaluate("m.h5", "a.h5", options=EvaluateOptions(horizon=1.0, from_every=1.0))
    assert many["windows"] == 3 * 8  # the sample after t = 3 lies past it, so that a fourth would end past the data
    assert many["mse"] < 1e-8


def test_forecast_files_keep_the_rules_of_trajectory_files(linear, snet):
    ran = snet("evaluate", "m.h5", "a.h5", "-o", "p.h5", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["output"] == "p.h5"
    checked = snet("info", "p.h5", "--check")
    assert checked.code == 0, checked.err
    again = snet("evaluate", "m.h5", "a.h5", "-o", "p.h5")
    assert again.code == 5
    first = Path("p.h5").read_bytes()
    assert snet("evaluate", "m.h5", "a.h5", "-o", "q.h5").code == 0
    assert Path("q.h5").read_bytes() == first


def test_forecasts_as_a_table(linear):
    evaluate("m.h5", "a.h5", "p.csv")
    rows = list(csv.reader(Path("p.csv").read_text().splitlines()))
    assert len(rows) == 8 * 120 + 1
    assert all(len(row) == len(rows[0]) for row in rows)
    assert any("a" in name for name in rows[0])


def test_other_units_are_refused_before_a_forecast(linear, snet):
    save_trajectories("t.h5", replace(spirals(2, 40), units={**UNITS, "b": "km/h"}))
    ran = snet("evaluate", "m.h5", "t.h5", "-o", "p.h5")
    assert ran.code == 4
    assert ran.err == (
        "error: 'b' is in km/h in the data and was in m/s in training.\n"
        "Convert the data, or state the right unit on import (--units).\n"
    )
    assert not Path("p.h5").exists()


def test_units_that_are_not_stated_are_believed(linear):
    save_trajectories("t.h5", spirals(2, 40))
    assert evaluate("m.h5", "t.h5")["mse"] < 1e-8


def test_another_time_unit_is_refused(linear, snet):
    save_trajectories("t.h5", replace(spirals(2, 40), time_unit="ms"))
    ran = snet("evaluate", "m.h5", "t.h5")
    assert ran.code == 4
    assert ran.err.startswith("error: 'time' is in ms in the data and was in s in training.\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": Inputs.none()}, "error: the model needs the input 'p'; the data has none.\n"),
        (
            {"output_names": ("c", "d"), "state_names": ("c", "d")},
            "error: the model's outputs are a, b; the data has c, d.\n",
        ),
    ],
)
def test_channels_that_the_model_does_not_know_are_refused(linear, snet, changes, message):
    save_trajectories("t.h5", replace(spirals(2, 40), **changes))
    ran = snet("evaluate", "m.h5", "t.h5")
    assert ran.code == 4
    assert ran.err.startswith(message)


def test_the_order_of_channels_in_the_file_does_not_matter(linear):
    test = spirals(3, 60, seed=3)
    swapped = replace(test, outputs=test.outputs[:, ::-1].copy(), output_names=("b", "a"), state_names=("b", "a"))
    waves = {key: getattr(test.inputs.fourier, key)[:, ::-1].copy() for key in ("mean", "omega", "cos", "sin")}
    fourier = replace(test.inputs.fourier, names=("r", "p"), **waves)
    swapped = replace(swapped, inputs=replace(test.inputs, names=("r", "p"), fourier=fourier))
    save_trajectories("t.h5", test)
    save_trajectories("s.h5", swapped)
    one, other = evaluate("m.h5", "t.h5"), evaluate("m.h5", "s.h5")
    assert other["mse"] == pytest.approx(one["mse"], rel=1e-6)
    assert other["channels"]["a"]["rmse"] == pytest.approx(one["channels"]["a"]["rmse"], rel=1e-6)


def test_a_horizon_beyond_the_sampled_inputs_is_refused_with_the_time(tmp_path, snet):
    t = np.linspace(0, 4, 60)
    knots, levels = np.arange(5.0), np.array([1.0, -1.0, 0.5, 2.0, 2.0])
    data = recording([t, t], [np.sin(t)[:, None], np.cos(t)[:, None]], ("x",), held([knots, knots], [levels, -levels]))
    save_trajectories("a.h5", data)
    fit("a.h5", "m.h5", FitOptions(model="linear", order=6, elements=4))
    save_trajectories("u.h5", replace(data.select_rows(np.zeros(120, bool)), x0=np.zeros((2, 1))))
    for file in ("a.h5", "u.h5"):
        ran = snet("evaluate", "m.h5", file, "--horizon", 9)
        assert ran.code == 3
        assert ran.err == (
            "error: the forecast of '0' needs inputs at t = 9 s, but its last input sample is at t = 4 s; sampled "
            "inputs are not extrapolated.\nChoose --horizon 4 or less, or record more inputs.\n"
        )


def test_a_file_without_outputs_is_forecast_and_not_scored(linear, snet):
    """x0 and inputs on their own: the times are those of the inputs."""
    data = spirals(2, 60)
    knots = [np.linspace(0, 4, 41)] * 2
    two = [np.stack([np.sin(k), np.cos(k)], -1) for k in knots]
    inputs = held(knots, [np.zeros(41)] * 2)
    sampled = replace(inputs.sampled, names=("p", "r"), values=np.concatenate(two), intersample=("linear", "linear"))
    empty = data.select_rows(np.zeros(120, bool))
    x0 = np.array([[1.0, 0.0], [0.0, -1.0]])
    save_trajectories("u.h5", replace(empty, inputs=Inputs(("p", "r"), sampled), x0=x0))
    ran = snet("evaluate", "m.h5", "u.h5", "-o", "p.h5", "--json")
    assert ran.code == 0, ran.err
    result = ran.json
    assert [result[key] for key in ("mse", "mse_true", "rmse", "nrmse", "fit_percent")] == [None] * 5
    assert (result["initial_state"], result["diverged"]) == ("x0", 0)
    forecast = load_trajectories("p.h5")
    assert np.isfinite(forecast.outputs).all()
    assert len(forecast) == 2
    assert forecast.outputs[forecast.offsets[:-1]] == pytest.approx(x0)
    assert forecast.end.tolist() == pytest.approx([4.0, 4.0])


def test_a_known_start_comes_before_a_measured_one(linear):
    test = spirals(3, 60, seed=3, noise=0.2)
    exact = spirals(3, 60, seed=3)
    save_trajectories("t.h5", replace(test, x0=exact.outputs[exact.offsets[:-1]], truth=exact.outputs))
    save_trajectories("n.h5", replace(test, truth=exact.outputs))
    known, measured = evaluate("m.h5", "t.h5"), evaluate("m.h5", "n.h5")
    assert known["initial_state"] == "x0"
    assert known["mse_true"] < 1e-8 < 1e-3 < measured["mse_true"]
    assert known["mse"] == pytest.approx(0.04, rel=0.3)
    window = evaluate("m.h5", "n.h5", options=EvaluateOptions(init_window=20))
    assert window["initial_state"] == "init-window"
    assert window["mse_true"] < 0.3 * measured["mse_true"]


def test_a_hidden_velocity_is_forecast_from_the_position(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", pendulums(10, 100, both=False))
    model = {"name": "mlp", "hidden": [16], "second_order": {"q": "v"}}
    fit("a.h5", "m.h5", FitOptions(model=model, order=10, elements=3, iterations=150))
    save_trajectories("t.h5", pendulums(4, 100, both=False, seed=4))
    blind = evaluate("m.h5", "t.h5")
    assert blind["initial_states"] == {"q": "first-sample", "v": "mean-start"}
    looking = evaluate("m.h5", "t.h5", options=EvaluateOptions(init_window=10))
    assert looking["initial_state"] == "init-window"
    assert looking["mse"] < 0.05 * blind["mse"]


def test_a_split_is_chosen_by_name(linear, snet):
    data = spirals(6, 40)
    save_trajectories("s.h5", replace(data, split=np.array([0, 1, 1, 0, 0, 1])))
    assert evaluate("m.h5", "s.h5", options=EvaluateOptions(split="valid"))["trajectories"] == 3
    assert evaluate("m.h5", "s.h5")["trajectories"] == 6
    ran = snet("evaluate", "m.h5", "s.h5", "--split", "test")
    assert ran.code == 3
    assert ran.err == "error: no trajectory belongs to the split 'test' (the file has train 3, valid 3, test 0).\n"


def test_a_dry_run_forecasts_and_writes_nothing(linear, snet):
    before = sorted(linear.iterdir())
    ran = snet("evaluate", "m.h5", "a.h5", "-o", "p.h5", "-n", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["forecasts"] == 8
    assert sorted(linear.iterdir()) == before


MODULE = """
import torch
class Spring(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 2)
    def forward(self, t, x, u):
        return self.net(torch.cat([x, u], -1))
"""


def test_a_model_of_ones_own_runs_only_when_it_is_named_and_unchanged(tmp_path, snet):
    save_trajectories("a.h5", spirals(6, 80))
    Path("mine.py").write_text(MODULE)
    ran = snet(
        "fit", "a.h5", "-o", "m.h5", "--model", "mine.py:Spring", "--order", 12, "--elements", 2,
        "--iterations", 60, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["model"] == "user"
    named = snet("evaluate", "m.h5", "a.h5", "--model", "mine.py:Spring", "--json")
    assert named.code == 0, named.err
    assert named.json["mse"] < 1e-4
    unnamed = snet("evaluate", "m.h5", "a.h5")
    assert unnamed.code == 2
    assert unnamed.err == (
        "error: m.h5: the model is of a class of your own, 'Spring', whose file runs only when you name it.\n"
        "Add --model FILE.py:Spring; `snet info m.h5` shows the text that was trained.\n"
    )
    Path("mine.py").write_text(MODULE + "\nprint('ran')\n")
    changed = snet("evaluate", "m.h5", "a.h5", "--model", "mine.py:Spring")
    assert changed.code == 4
    assert changed.out == ""
    assert changed.err.startswith("error: m.h5: the model file has changed since training (its sha256 differs).\n")
