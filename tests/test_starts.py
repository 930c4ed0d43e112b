"""Several starts for hidden states: the guesses, the choice by the training rollout, and the command that uses them."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.spectral.mesh import build_mesh
from snet_cli.training.alpha_mesh import refine_for_alpha
from snet_cli.training.starts import choose_start, free_states, hidden_starts, lag
from snet_cli.training.state_layout import lay_out_states
from tests.command import Snet

RECORDING = Path(__file__).parents[2] / "shared" / "data" / "cascaded_tanks"


# --- guesses ---------------------------------------------------------------------------------------------------------


def test_a_lag_is_the_solution_of_its_equation_on_ragged_trajectories():
    # T s' = cos ωt - s, s(t0) = 1 at t0 = 0: (cos ωt + Tω sin ωt + (Tω)² e^{-t/T}) / (1 + (Tω)²)
    T, w = 0.7, 2.0
    mesh = build_mesh(np.zeros(2), np.array([10.0, 4.0]), 20, 8)
    t = mesh.node_times()
    a = T * w
    exact = (np.cos(w * t) + a * np.sin(w * t) + a**2 * np.exp(-t / T)) / (1 + a**2)
    found = lag(mesh, np.stack([np.cos(w * t), np.ones_like(t)], -1), T)
    # order 8 on elements of 0.5: the ninth derivative of an error below (ωh/4)^9 / 9! = 1e-11
    np.testing.assert_allclose(found[:, :, 0], exact, atol=1e-9)
    np.testing.assert_allclose(found[:, :, 1], 1.0, rtol=1e-12)  # at rest at its input


def test_guesses_leave_measured_states_alone_and_chain_the_lags():
    mesh = build_mesh(np.zeros(1), np.array([10.0]), 12, 6)
    t = mesh.node_times()
    layout = lay_out_states(("y",), None, {}, None, 2)
    nodes = np.stack([3.0 * np.sin(t), np.cos(t), -np.sin(t)], -1)
    u = np.cos(1.3 * t)[:, :, None]
    starts = hidden_starts(mesh, nodes, layout, u)
    assert len({start.name for start in starts}) == len(starts) > 2
    np.testing.assert_array_equal(starts[0].nodes, nodes)
    for start in starts[1:]:
        np.testing.assert_array_equal(start.nodes[:, :, 0], nodes[:, :, 0])
        # both hidden states have the size of the output, so that no scale hides one
        np.testing.assert_allclose(start.nodes[:, :, 1:].std((0, 1)), nodes[:, :, 0].std(), rtol=1e-12)
        constant = float(start.name.split()[-1])
        twice = lag(mesh, lag(mesh, u, constant), constant)[:, :, 0]
        # the name rounds the time constant to three digits
        assert np.corrcoef(start.nodes[:, :, 2].ravel(), twice.ravel())[0, 1] > 1 - 1e-4
    assert len(hidden_starts(mesh, nodes, layout, u[:, :, :0])) == 1


def test_a_velocity_of_a_pair_is_no_free_state():
    layout = lay_out_states(("q",), None, {"q": "v"}, None, 1)
    assert [layout.states[i] for i in free_states(layout)] == ["h1"]


def test_hidden_states_get_more_elements_where_samples_are_dense():
    assert refine_for_alpha(4, 32, 1024) == (4, 32)
    assert refine_for_alpha(4, 32, 1024, hidden=True) == (4, 85)  # a third of 1024 unknowns
    assert refine_for_alpha(4, 32, 1024, hidden=True, exact=True) == (4, 32)
    assert refine_for_alpha(5, 4, 30, hidden=True) == refine_for_alpha(5, 4, 30)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_best_rollout_wins_and_unstable_ones_are_discarded():
    errors = {"a": math.nan, "b": 0.5, "c": math.inf, "d": 0.3}
    calls: list[str] = []

    def train(name: str) -> str:
        calls.append(name)
        return name

    choice = choose_start([(name, lambda n=name: train(n)) for name in errors], errors.__getitem__)
    assert (choice.best, choice.name, choice.error) == ("d", "d", 0.3)
    assert calls == list("abcd")
    assert [one.error for one in choice.tried] == [math.inf, 0.5, math.inf, 0.3]
    unstable = choose_start([("a", lambda: "a"), ("c", lambda: "c")], errors.__getitem__)
    assert (unstable.best, unstable.error) == ("a", math.inf)


def test_without_time_the_first_start_is_kept():
    choice = choose_start([("a", lambda: 2.0), ("b", lambda: 1.0)], float, lambda: True)
    assert (choice.best, len(choice.tried)) == (2.0, 1)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def levels(snet: Snet) -> Snet:
    """`snet` beside `level.h5`: the lower of two tanks, its start unknown, the first eight samples unscored."""
    sampling = ("--samples", 30, "--horizon", 300)
    assert snet("simulate", "cascaded-tanks", "--trajectories", 2, *sampling, "-o", "t.h5").code == 0
    data = load_trajectories("t.h5")
    lower = data.outputs[:, [data.output_names.index("h2")]]
    window = np.full(len(data), 8, np.int32)
    data = replace(
        data, output_names=("level",), outputs=lower, truth=None, x0=None, state_names=(), init_window=window
    )
    save_trajectories("level.h5", replace(data, units={}))
    return snet


@pytest.mark.slow
def test_fit_names_the_start_that_it_kept_and_the_model_forecasts(levels: Snet):
    hidden = ("--set", "model={name: mlp, hidden: [4], hidden_states: 1}", "--order", 4, "--elements", 9)
    ran = levels("fit", "level.h5", "-o", "m.h5", *hidden, "--iterations", 5, "--json")
    assert ran.code == 0, ran.err
    told = re.search(r"hidden states start from (.+?), gamma (\S+), by", ran.err)
    assert told is not None
    errors = [float(word) for word in re.findall(r"([0-9.e-]+|inf) (?:from|at gamma)", ran.err)]
    assert len(errors) == 8  # five lags, the derivative, two smaller γ
    assert f"{min(errors):.3g} from {told[1]}" in ran.err or f"{min(errors):.3g} at gamma {told[2]}" in ran.err
    assert ran.json["gamma"] == float(told[2])
    score = levels("evaluate", "m.h5", "level.h5", "--json")
    assert score.json["nrmse"] < 0.3


def test_little_time_tries_one_start_with_ones_own_gamma_and_a_resumed_run_keeps_it(levels: Snet):
    hidden = ("--set", "model={name: mlp, hidden: [3], hidden_states: 1}", "--order", 4, "--elements", 10)
    fit = ("fit", "level.h5", "-o", "m.h5", *hidden, "--gamma", 2, "--json")
    ran = levels(*fit, "--max-time", 0.001)
    assert ran.code == 0, ran.err
    assert ran.json["gamma"] == 2.0
    assert "hidden states start from derivatives of the outputs, gamma 2" in ran.err
    assert "inputs lagged" not in ran.err
    again = levels(*fit, "--iterations", 2, "--resume")
    assert again.code == 0, again.err
    assert "hidden states started from derivatives of the outputs, gamma 2." in again.err
    assert again.json["iterations"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_recorded_tanks_are_forecast_as_well_as_published(snet: Snet, seed: int):
    if not RECORDING.is_dir():
        pytest.skip("the recording is not there")
    for name in ("train", "test"):
        columns = ("--time", "t_s", "--states", "y=y_V", "--inputs", "u=u_V")
        assert snet("import", RECORDING / f"{name}.csv", "-o", f"{name}.h5", *columns).code == 0
    model = ("--set", "model.hidden_states=1", "--set", "model.activation=softplus")
    assert snet("fit", "train.h5", "-o", "m.h5", "--method", "alpha", "--seed", seed, *model).code == 0
    score = snet("evaluate", "m.h5", "test.h5", "--init-window", 50, "--json")
    assert score.json["rmse"] <= 0.36
