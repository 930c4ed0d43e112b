"""`snet_cli.load`: a trained model as a plain torch module in physical units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import snet_cli
from snet_cli.data.checkpoint_file import load_checkpoint, save_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.errors import CheckpointError, UsageError
from snet_cli.training.options import FitOptions
from snet_cli.workflows.evaluate import evaluate
from snet_cli.workflows.fit import fit
from snet_cli.workflows.simulate import simulate
from tests import training_cases
from tests.training_cases import pendulums, spirals

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", spirals(8, 120))
    return tmp_path


def trained(**model):
    """A checkpoint of an mlp after a few iterations."""
    options = {"name": "mlp", "hidden": [8], **model}
    fit("a.h5", "m.h5", FitOptions(model=options, order=8, elements=2, iterations=20))
    return snet_cli.load("m.h5")


def test_it_is_a_plain_module_with_names(folder):
    model = trained()
    assert isinstance(model, nn.Module)
    assert not any(part.training for part in model.modules())
    assert (model.state_names, model.input_names, model.output_names) == (("a", "b"), ("p", "r"), ("a", "b"))
    x, u = torch.zeros(5, 7, 2, dtype=F64), torch.ones(5, 7, 2, dtype=F64)
    assert model(torch.zeros(5, 7, dtype=F64), x, u).shape == (5, 7, 2)
    assert snet_cli.load(Path("m.h5")).state_names == ("a", "b")


def test_it_agrees_with_the_derivative_of_its_forecast(folder):
    model = trained(time=True)
    save_trajectories("t.h5", spirals(2, 2001, seed=3))
    evaluate("m.h5", "t.h5", "p.h5")
    forecast = load_trajectories("p.h5")
    rows = slice(0, 2001)
    t, x = forecast.time[rows], forecast.outputs[rows]
    u = spirals(2, 2001, seed=3).inputs.at(np.zeros(2001, int), t)
    with torch.no_grad():
        rate = model(*(torch.from_numpy(np.ascontiguousarray(part)) for part in (t, x, u))).numpy()
    # five-point differences of steps of 2 ms err by h⁴ / 30 of the fifth derivative
    h = t[1] - t[0]
    slope = (x[:-4] - 8 * x[1:-3] + 8 * x[3:-1] - x[4:]) / (12 * h)
    assert slope == pytest.approx(rate[2:-2], abs=1e-4)


def test_the_jacobians_of_a_linear_model_are_its_matrices(folder):
    fit("a.h5", "m.h5", FitOptions(model="linear", order=16, elements=2))
    model = snet_cli.load("m.h5")
    t, x, u = torch.tensor(0.0, dtype=F64), torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.1, 0.0], dtype=F64)
    a, b = torch.func.jacrev(model, argnums=(1, 2))(t, x, u)
    assert torch.equal(a, model.model.A.detach())
    assert torch.equal(b, model.model.B.detach())
    assert a.detach().numpy() == pytest.approx(training_cases.A, abs=1e-3)
    assert b.detach().numpy() == pytest.approx(training_cases.B, abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"time": True}, {"angles": ["a"], "second_order": {"b": "a"}}])
def test_the_jacobian_at_one_operating_point_is_that_of_differences(folder, options):
    model = trained(**options)
    t, x, u = torch.tensor(0.5, dtype=F64), torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.1, 0.4], dtype=F64)
    a = torch.func.jacrev(model, argnums=1)(t, x, u).detach()
    h = 1e-6
    for column in range(2):
        step = h * torch.eye(2, dtype=F64)[column]
        with torch.no_grad():
            difference = (model(t, x + step, u) - model(t, x - step, u)) / (2 * h)
        assert a[:, column].numpy() == pytest.approx(difference.numpy(), abs=1e-7)


@pytest.mark.parametrize("options", [{}, {"angles": ["a"], "second_order": {"b": "a"}, "time": True}])
def test_an_exported_program_is_the_same_function(folder, options):
    model = trained(**options)
    g = torch.Generator().manual_seed(0)
    t, x, u = (torch.randn(*shape, generator=g, dtype=F64) for shape in ((4,), (4, 2), (4, 2)))
    program = torch.export.export(model, (t, x, u))
    torch.export.save(program, "f.pt2")
    again = torch.export.load("f.pt2").module()
    with torch.no_grad():
        assert torch.equal(again(t, x, u), model(t, x, u))


def test_an_exported_program_takes_any_number_of_points(folder):
    model = trained()
    points = torch.export.Dim("points", min=2)
    example = (torch.zeros(4, dtype=F64), torch.zeros(4, 2, dtype=F64), torch.zeros(4, 2, dtype=F64))
    program = torch.export.export(model, example, dynamic_shapes=({0: points}, {0: points}, {0: points}))
    x = torch.randn(9, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(program.module()(torch.zeros(9, dtype=F64), x, x), model(torch.zeros(9), x, x))


def test_known_constants_are_those_of_training(folder):
    simulate("vehicle", "v.h5", snet_cli.SimulateOptions(trajectories=3, samples=40))
    fit("v.h5", "m.h5", FitOptions(order=14, elements=1, iterations=3))
    model = snet_cli.load("m.h5")
    assert model.constants.tolist() == [1.0, 1.0]
    x, u = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=F64), torch.zeros(2, dtype=F64)
    pushed = u + torch.tensor([0.5, 0.0])
    with torch.no_grad():
        push = model(torch.tensor(0.0), x, pushed) - model(torch.tensor(0.0), x, u)
    assert push.tolist() == pytest.approx([0, 0, 0, 0.5, 0, 0], abs=1e-12)


def test_a_model_without_inputs_needs_none(folder):
    save_trajectories("p.h5", pendulums(3, 60))
    fit("p.h5", "m.h5", FitOptions(model="linear", order=12, elements=2))
    model = snet_cli.load("m.h5")
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64)
    rate = model(torch.zeros(2, dtype=F64), x).detach().numpy()
    assert rate == pytest.approx(np.array([[0.0, -4.0], [1.0, -0.2]]), abs=1e-2)


def test_single_precision_weights_are_kept(folder):
    options = FitOptions(model={"name": "mlp", "hidden": [8]}, order=8, elements=2, iterations=3)
    fit("a.h5", "s.h5", options, CommonOptions(dtype="float32"))
    model = snet_cli.load("s.h5")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.isfinite(model(torch.zeros(3), torch.ones(3, 2), torch.ones(3, 2))).all()


def test_a_model_of_ones_own_must_be_named(folder):
    Path("mine.py").write_text(
        "import torch\n"
        "class Mine(torch.nn.Module):\n"
        "    def __init__(self, states):\n"
        "        super().__init__()\n"
        "        self.k = torch.nn.Parameter(torch.ones(len(states)))\n"
        "    def forward(self, t, x, u):\n"
        "        return -self.k * x\n"
    )
    fit("a.h5", "m.h5", FitOptions(model="mine.py:Mine", order=8, elements=2, iterations=3))
    with pytest.raises(UsageError, match=r"^m\.h5: the model is of a class of your own, 'Mine', whose file runs only"):
        snet_cli.load("m.h5")
    model = snet_cli.load("m.h5", "mine.py:Mine")
    assert model(torch.zeros(1), torch.ones(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64)).shape == (1, 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: replace(c, contract={key: value for key, value in c.contract.items() if key != "states"}),
        lambda c: replace(c, contract={**c.contract, "model": {"name": "nothing"}}),
        lambda c: replace(c, contract={**c.contract, "model": {"name": "mlp", "hidden": [9]}}),
        lambda c: replace(c, contract={**c.contract, "observation": [[1.0]]}),
        lambda c: replace(c, contract={**c.contract, "dtype": "float16"}),
        lambda c: replace(c, state={key: value for key, value in c.state.items() if key != "network.0.bias"}),
        lambda c: replace(c, normalization={}),
    ],
)
def test_a_checkpoint_that_describes_no_model_is_refused(folder, change):
    trained()
    save_checkpoint("bad.h5", change(load_checkpoint("m.h5")))
    with pytest.raises(CheckpointError) as caught:
        snet_cli.load("bad.h5")
    assert caught.value.message.startswith("bad.h5: ")
    assert "\n" not in caught.value.message


def test_a_trajectory_file_is_no_model(folder):
    with pytest.raises(CheckpointError, match=r"^a\.h5: "):
        snet_cli.load("a.h5")
