"""Partial observation and robust loss: y = C x, hidden states and outliers, from the layout to the command line."""

import numpy as np
import pytest

from snet_cli.errors import UsageError
from snet_cli.training.observation import guess_states
from snet_cli.training.relaxed import nodes_of
from snet_cli.training.state_layout import lay_out_states
from tests.training_cases import problem_of, spirals

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
