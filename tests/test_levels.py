"""γ falls only as far as forecasts of the training data get better, where the data is not the model's to its noise."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.training.joint import Joint
from snet_cli.training.levels import WORSE, Levels
from tests.alpha_cases import relaxed_spirals
from tests.training_cases import network


class Told:
    """Forecast errors that are given, one for each level."""

    def __init__(self, *errors):
        self.errors, self.horizon, self.unit, self.asked = errors, 0.0, "s", 0

    def __call__(self):
        self.horizon = 1.5
        self.asked += 1
        return self.errors[min(self.asked, len(self.errors)) - 1]


def joint(errors):
    """With errors that are given instead of forecasts."""
    data, problem, relaxed, _ = relaxed_spirals(3, noise=0.3)
    return Joint(problem, relaxed, network(data, hidden=[4]), levels=Levels(Told(*errors), 0.0))


def trained(errors, steps=60):
    method = joint(errors)
    method.warm_up = None
    gammas = []
    while method.outcome is None and method.iteration < steps:
        gammas.append(method.gamma)
        method.step()
    return method, gammas


def test_training_goes_back_to_the_level_that_forecast_best():
    best, gammas = trained([0.5, 0.4, 0.6])
    assert best.outcome == "converged"
    assert best.gamma == pytest.approx(0.1)
    assert min(gammas) == pytest.approx(0.01)  # the level that was too far
    assert "gamma stays at 0.1: at 0.01 forecasts" in best.finding
    assert "over 1.5 s are worse, 0.6 instead of 0.4" in best.finding
    stopped_there, _ = trained([0.5, 0.4, 0.6], steps=sum(g > 0.05 for g in gammas))
    assert torch.equal(best.nodes, stopped_there.nodes)
    assert torch.equal(best.arrow.theta(), stopped_there.arrow.theta())


def judged(errors, misfit=1.0, noise=0.0):
    """Which of these levels fell too far."""
    levels = Levels(Told(*errors), noise)
    x = torch.zeros(1, 2, 3)
    return [levels.fell_too_far(0.1**k, misfit, x, x[0, 0]) for k in range(len(errors))], levels


@pytest.mark.parametrize(
    "errors", [[0.5, 0.5 * (WORSE - 0.01), 0.5], [np.inf, np.inf, 0.3], [0.9, 0.5, 0.1], [0.03, 0.07, 0.05]]
)
def test_errors_that_are_no_worse_do_not_stop_it(errors):
    found, levels = judged(errors)
    assert found == [False, False, False]
    assert levels.best.error == min(errors)
    assert levels.finding is None


@pytest.mark.parametrize("bad", [0.9, np.inf, np.nan])
def test_one_that_is_worse_than_the_best_does(bad):
    assert judged([0.9, 0.5, bad])[0] == [False, False, True]


def test_on_data_that_the_model_obeys_to_its_noise_nothing_does():
    found, levels = judged([0.1, 0.9], misfit=9.0, noise=1.0)
    assert found == [False, False]
    assert levels.best.error == 0.1


def test_a_restored_method_goes_back_to_the_same_level():
    straight, gammas = trained([0.5, 0.4, 0.6])
    paused, _ = trained([0.5, 0.4, 0.6], steps=sum(g > 0.05 for g in gammas) + 2)
    resumed = joint([0.6])
    resumed.model.load_state_dict(paused.model.state_dict())
    resumed.warm_up = None
    resumed.restore(copy.deepcopy(paused.state()))
    assert resumed.levels.forecast.horizon == 1.5
    while resumed.outcome is None:
        resumed.step()
    assert torch.equal(resumed.nodes, straight.nodes)
    assert torch.equal(resumed.arrow.theta(), straight.arrow.theta())
    assert resumed.finding == straight.finding


@pytest.mark.slow
def test_a_recording_with_hidden_kicks_is_not_threaded_through(snet):
    """x'' = -x with kicks of v that no input tells: γ stops, and forecasts are those of the spring."""
    assert (
        snet("simulate", "van-der-pol", "--trajectories", 2, "--samples", 400, "--horizon", 40, "-o", "t.h5").code == 0
    )
    data, rng = load_trajectories("t.h5"), np.random.default_rng(0)
    outputs, step = data.outputs.copy(), data.time[1] - data.time[0]
    turn = np.array([[np.cos(step), np.sin(step)], [-np.sin(step), np.cos(step)]])
    for begin in (0, 400):
        x = rng.normal(size=2)
        for row in range(begin, begin + 400):
            outputs[row] = x
            x = turn @ x + (np.array([0.0, rng.normal()]) if row % 20 == 19 else 0.0)
    outputs += 1e-3 * rng.normal(size=outputs.shape)
    save_trajectories("kicked.h5", replace(data, outputs=outputs, truth=None, x0=None, noise_std={}))
    ran = snet("fit", "kicked.h5", "-o", "m.h5", "--set", "model.hidden=[8]", "--json")
    assert ran.code == 0, ran.err
    assert "note: gamma stays at" in ran.err
    assert ran.json["gamma"] > 1e-3
    scored = snet("evaluate", "m.h5", "kicked.h5", "--horizon", 1, "--from-every", 2, "--json")
    # a second before, and half of them behind, a kick of one standard deviation; exact, 0.35 remain
    assert scored.json["nrmse"] < 0.5
