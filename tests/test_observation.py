"""Partial observation and robust loss: y = C x, hidden states and outliers, from the layout to the command line."""

from dataclasses import replace

import numpy as np
import pytest

from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.errors import UsageError
from snet_cli.training.observation import guess_states
from snet_cli.training.relaxed import nodes_of
from snet_cli.training.state_layout import lay_out_states
from snet_cli.training.step_zero import step_zero
from tests.command import Snet, run_in
from tests.training_cases import pendulums, problem_of, spirals

FIT = ("--order", 14, "--elements", 1, "--json")


@pytest.fixture
def snet(tmp_path, monkeypatch, capsys) -> Snet:
    """`snet` in an empty folder with positions of oscillators: `q.h5` with noise 0.01 to train on, `test.h5`."""
    monkeypatch.chdir(tmp_path)
    save_trajectories("q.h5", pendulums(8, 60, noise=(0.01,), both=False))
    save_trajectories("test.h5", pendulums(4, 60, seed=1, both=False))
    return run_in(capsys)


def forecast_error(snet: Snet, *options, data="q.h5", test="test.h5", window=15) -> float:
    """Mean squared forecast error of a model trained with these options, started by an init window."""
    trained = snet("fit", data, "-o", "m.h5", "--force", *FIT, *options)
    assert trained.code == 0, trained.err
    score = snet("evaluate", "m.h5", test, "--init-window", window, "--json")
    assert score.code == 0, score.err
    return float(score.json["mse"])


# --- y = C x ---------------------------------------------------------------------------------------------------------


def test_outputs_measure_the_states_that_observe_names():
    layout = lay_out_states(("y", "z"), None, {}, {"y": "x2"}, hidden_states=1)
    assert layout.states == ("x2", "z", "h1")
    assert layout.hidden == ("h1",)
    assert not layout.all_measured
    matrix = lay_out_states(("y",), None, {}, [[0.0, 2.0]])
    assert (matrix.states, matrix.observation.tolist()) == (("x1", "x2"), [[0.0, 2.0]])
    assert matrix.hidden == ("x1",)
    structured = lay_out_states(("y",), ("a", "b"), {}, {"y": "b"})
    assert structured.observation.tolist() == [[0.0, 1.0]]
    pair = lay_out_states(("y",), None, {"q": "v"}, {"y": "q"})
    assert (pair.states, pair.derived) == (("q", "v"), ((1, 0),))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("y",), None, {}, {"u": "x2"}), "observe names the output 'u', which the data has not. The outputs are y."),
        (
            (("yaw",), None, {}, {"yw": "x2"}),
            "observe names the output 'yw', which the data has not. Did you mean 'yaw'?",
        ),
        (
            (("y", "z"), None, {}, [[1.0, 0.0]]),
            "observe is a 1 x 2 matrix; expected one row for each of the 2 outputs (y, z) and one column for each "
            "state. Write observe: [[...], ...] with y = C x.",
        ),
        (
            (("y",), ("a", "b"), {}, [[1.0]]),
            "observe is a 1 x 1 matrix; expected one row for each of the 1 outputs (y) and one column for each "
            "state (2). Write observe: [[...], ...] with y = C x.",
        ),
        (
            (("y",), None, {}, [[0.0, 0.0]]),
            "the output 'y' observes no state: row 1 of observe is zero. Leave that output out, or give its row an "
            "entry.",
        ),
        (
            (("y",), ("a", "b"), {}, {"y": "c"}),
            "the output 'y' observes no state of the model (a, b). Say observe: {y: STATE}, or choose --model mlp.",
        ),
        (
            (("h1", "b"), None, {}, None, 1),
            "model.hidden_states: 'h1' is the name of a hidden state and of a measured one. Give the channel another "
            "name on import (a=h1).",
        ),
    ],
)
def test_an_observation_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(UsageError) as error:
        lay_out_states(*arguments)
    assert str(error.value) == message


def test_the_guess_agrees_with_the_outputs_and_fills_the_rest_with_derivatives():
    data = spirals(3, 60)
    problem = problem_of(data, order=10, elements=2)
    series = nodes_of(problem).numpy()
    layout = lay_out_states(("a", "b"), None, {}, [[1.0, 1.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    nodes = guess_states(problem.mesh, series, layout)
    np.testing.assert_allclose(nodes @ layout.observation.T, series, atol=1e-12)
    slope = problem.mesh.derivative(series)[:, :, 0]
    for k in (2, 3):  # one of them is ẏ of 'a', the other of 'b'
        assert nodes[:, :, k].std() == pytest.approx(series[:, :, k - 2].std())
    assert max(abs(np.corrcoef(slope.ravel(), nodes[:, :, k].ravel())[0, 1]) for k in (2, 3)) > 0.99


# --- step 0 of all states --------------------------------------------------------------------------------------------


def test_step_zero_meets_the_outputs_through_any_matrix_and_the_start_where_it_is_known():
    C = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    whole = spirals(3, 60)
    x0 = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, np.nan], [np.nan, 0.8, 0.9]])
    data = replace(whole, x0=x0, state_names=("x1", "x2", "x3"))
    layout = lay_out_states(data.output_names, None, {}, C.tolist())
    zero = step_zero(data, layout, {}, order=12, elements=2, known_start=True, scaled_misfit=True, seed=0)
    first = zero.nodes[zero.mesh.first_element[:-1], 0]
    np.testing.assert_allclose(first[np.isfinite(x0)], x0[np.isfinite(x0)], atol=1e-12)
    free = step_zero(data, layout, {}, order=12, elements=2, known_start=False, scaled_misfit=True, seed=0)
    at_samples = free.mesh.evaluate(free.nodes, data.trajectory_of_row(), data.time) @ C.T
    np.testing.assert_allclose(at_samples, data.outputs, atol=1e-5)  # the series misses these spirals by 4e-6
    assert free.rate_variance[2] == 0.0  # nothing measures x3
    assert (free.rate_variance[:2] > 0).all()


# --- from the command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("observe={q: x}", "model.hidden_states=1"), ("observe=[[1, 0.5]]",)])
def test_a_model_of_the_position_alone_forecasts_it(snet, options):
    sets = [word for option in options for word in ("--set", option)]
    # the variance of q is 1.1, its noise 1e-4, and 480 samples determine 8 numbers
    assert forecast_error(snet, "--model", "linear", "--iterations", 30, "--gamma", 1, *sets) < 1e-4


def test_a_known_start_of_a_hidden_state_is_held_and_the_estimated_one_reaches_the_checkpoint(snet):
    data = pendulums(4, 60)
    v0 = data.outputs[data.offsets[:-1], 1]
    position = replace(data, output_names=("q",), outputs=data.outputs[:, :1], state_names=("v",), x0=v0[:, None])
    save_trajectories("known.h5", position)
    second_order = ("--set", "model={name: mlp, hidden: [4], second_order: {q: v}}", "--iterations", 22, "--gamma", 3)
    ran = snet("fit", "known.h5", "-o", "known_m.h5", *FIT, *second_order)
    assert ran.code == 0, ran.err
    np.testing.assert_allclose(load_checkpoint("known_m.h5").normalization["start"][1], v0.mean(), rtol=1e-12)
    ran = snet("fit", "known.h5", "-o", "free_m.h5", *FIT, *second_order, "--set", "x0=free")
    assert ran.code == 0, ran.err
    estimated = load_checkpoint("free_m.h5").normalization["start"][1]
    assert estimated != v0.mean()
    assert estimated == pytest.approx(v0.mean(), abs=0.1 * v0.std())  # the data is free of noise


@pytest.mark.slow
def test_hubers_loss_forecasts_nearly_as_if_there_were_no_outliers(snet):
    clean = spirals(6, 60, noise=0.01)
    wild = np.random.default_rng(1).random(clean.outputs.shape) < 0.05
    wild &= ((np.arange(clean.time.size) % 60 > 4) & (np.arange(clean.time.size) % 60 < 55))[:, None]
    save_trajectories("clean.h5", clean)
    save_trajectories("wild.h5", replace(clean, outputs=clean.outputs + np.where(wild, 3.0, 0.0)))
    save_trajectories("truth.h5", spirals(6, 60))
    base = ("--model", "linear", "--method", "alpha", "--iterations", 8, "--gamma", 3)
    without = forecast_error(snet, *base, data="clean.h5", test="truth.h5", window=10)
    huber = forecast_error(snet, *base, "--set", "loss=huber", data="wild.h5", test="truth.h5", window=10)
    squared = forecast_error(snet, *base, data="wild.h5", test="truth.h5", window=10)
    # its efficiency is 95 % and an outlier pulls like a sample at the threshold
    assert huber < 3 * without
    assert huber < 0.01 * squared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--method", "delta", "--set", "model.hidden_states=1"),
            "method delta needs the trajectory of every state, and nothing measures h1.",
        ),
        (
            ("--method", "delta", "--set", "observe=[[1, 1]]"),
            "method delta needs the trajectory of every state, and the outputs do not determine the states.",
        ),
        (("--set", "observe=[[1, 0], [0, 1]]"), "observe is a 2 x 2 matrix; expected one row for each of the 1"),
        (("--set", "observe=[[0, 0]]"), "the output 'q' observes no state: row 1 of observe is zero."),
        (("--set", "observe={p: x}"), "observe names the output 'p', which the data has not."),
        (("--set", "observe=3"), "--set observe is 3, expected a mapping"),
        (("--set", "loss=hubr"), "--set loss is 'hubr', expected 'squared' or 'huber'."),
        (("--gamma", "0"), "--gamma is 0, expected 'auto' or a number above 0."),
        (("--set", "theta_step.steps=0"), "--set theta_step.steps is 0, expected a whole number of at least 1."),
        (("--set", "state_step.steps=0"), "--set state_step.steps is 0, expected a whole number of at least 1."),
        (
            ("--set", "model.hidden_states=-1"),
            "--set model.hidden_states is -1, expected a whole number from 0 to 100.",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(snet, options, message):
    ran = snet("fit", "q.h5", "-o", "m.h5", *options)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {message}")


def test_more_initial_states_than_values_are_refused_and_open_weights_are_told(snet):
    ran = snet("fit", "q.h5", "-o", "m.h5", "--set", "model.hidden_states=60")
    assert ran.code == 3
    assert ran.err.startswith(
        "error: 480 measured values cannot determine 488 initial states (61 in each of 8 trajectories): 8 are missing."
    )
    ran = snet("fit", "q.h5", "-o", "m.h5", "--set", "model.hidden_states=1", "--dry-run")
    assert "480 measured values for 1218 weights and 16 initial states: 754 are missing" in ran.err
