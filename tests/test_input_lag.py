import numpy as np
import pytest
import torch

from snet_cli import load
from snet_cli.models.base import StateSpace
from snet_cli.models.options import MlpOptions
from snet_cli.models.registry import build_model
from snet_cli.training.theta_jacobian import _by_vmap, theta_jacobian

SPACE = StateSpace(("a", "b", "p_lag", "r_lag"), ("p", "r"))


def lagged_model(kind="each", **more):
    return build_model("mlp", MlpOptions(hidden=[5], input_lag=kind, **more), SPACE, seed=0, dtype=torch.float64)


def points(count=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.zeros(count, dtype=torch.float64),
        torch.randn(count, 4, generator=g, dtype=torch.float64),
        torch.randn(count, 2, generator=g, dtype=torch.float64),
    )


@pytest.mark.parametrize("kind", ["shared", "each"])
@pytest.mark.parametrize("second_order", [{}, {"a": "b"}])
def test_the_formulas_are_those_of_automatic_differentiation(kind, second_order):
    model = lagged_model(kind, second_order=second_order)
    with torch.no_grad():
        model.log_lag.add_(torch.linspace(0.3, -0.4, model.log_lag.numel()))
    model.first_lag.fill_(0.7)
    closed, by_vmap = theta_jacobian(model, *points()), _by_vmap(model, *points())
    torch.testing.assert_close(closed.G.dense(), by_vmap.G.dense(), rtol=1e-11, atol=1e-12)
    for formula, automatic in zip(closed[:2], by_vmap[:2], strict=True):
        torch.testing.assert_close(formula, automatic, rtol=1e-11, atol=1e-12)


def test_the_network_sees_the_lagged_input_and_not_the_input():
    model, (t, x, u) = lagged_model(), points()
    before, after = model(t, x, u), model(t, x, u + 1.0)
    assert torch.equal(before[:, :2], after[:, :2])
    torch.testing.assert_close(after[:, 2:] - before[:, 2:], torch.ones(7, 2, dtype=torch.float64))  # τ = 1
    assert not torch.equal(before[:, :2], model(t, x + torch.tensor([0.0, 0, 1, 0]), u)[:, :2])


def test_shared_is_one_time_constant():
    assert lagged_model("shared").log_lag.numel() == 1
    assert lagged_model("each").log_lag.numel() == 2


def test_fit_recovers_the_time_constant_and_forecasts_start_from_the_response(snet, tmp_path):
    """x' = -x + s, s' = (u - s) / 0.4 under a zoh input: s is exact on every hold, and so is x."""
    rng = np.random.default_rng(0)
    step, count, tau = 0.1, 150, 0.4
    times = step * np.arange(count)
    for number in range(3):
        u = np.repeat(rng.uniform(-1, 1, 15), 10)
        s, x, rows = u[0], rng.uniform(-1, 1), []
        for k in range(count):
            rows.append((times[k], x, u[k]))
            c = (s - u[k]) / (1 - 1 / tau)  # x = u + c e^{-t/τ} + d e^{-t} on a hold
            d = x - u[k] - c
            x = u[k] + c * np.exp(-step / tau) + d * np.exp(-step)
            s = u[k] + (s - u[k]) * np.exp(-step / tau)
        np.savetxt(tmp_path / f"r{number}.csv", rows, delimiter=",", header="t,x,u", comments="")
    files = [f"r{number}.csv" for number in range(3)]
    assert snet("import", *files, "-o", "d.h5", "--states", "x", "--inputs", "u", "--split", "test=r2").code == 0
    options = ("--set", "model.hidden=[4]", "--set", "model.input_lag=each", "--threads", 1, "--json")
    ran = snet("fit", "d.h5", "-o", "m.h5", "--method", "joint", "--iterations", 40, *options)
    assert ran.code == 0, ran.err
    scored = snet("evaluate", "m.h5", "d.h5", "--split", "test", "--json")
    assert "input-response" in str(scored.json["initial_states"])
    assert scored.json["mse"] < 1e-3
    model = load(str(tmp_path / "m.h5"))
    found = next(float(f.lag_times().detach()[0]) for f in model.modules() if hasattr(f, "lag_times"))
    assert found == pytest.approx(tau, rel=0.05)


def test_delta_names_the_methods_that_can(snet, tmp_path):
    np.savetxt(
        tmp_path / "r.csv", np.column_stack([np.arange(30.0), np.sin(np.arange(30.0)), np.cos(np.arange(30.0))]),
        delimiter=",", header="t,x,u", comments="",
    )  # fmt: skip
    assert snet("import", "r.csv", "-o", "d.h5", "--states", "x", "--inputs", "u").code == 0
    ran = snet("fit", "d.h5", "-o", "m.h5", "--method", "delta", "--set", "model.input_lag=shared")
    assert ran.code == 2
    assert "nothing measures u_lag" in ran.err
    assert "joint or alpha" in ran.err


def test_a_lag_without_inputs_is_refused(snet):
    assert snet("simulate", "lotka-volterra", "--trajectories", 2, "-o", "t.h5").code == 0
    ran = snet("fit", "t.h5", "-o", "m.h5", "--set", "model.input_lag=each")
    assert ran.code == 2
    assert "no input that could lag" in ran.err
