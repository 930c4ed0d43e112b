"""δ-SNet on exact data: where step 0 cannot follow x, its ẋ is wrong, and that hardly moves θ."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from snet_cli.training.delta import REWEIGHT_EVERY, Delta
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.problem import Residual
from snet_cli.training.robust import median_residual, residual_shares
from tests.training_cases import network, problem_of, spirals

pytestmark = pytest.mark.usefixtures("one_thread")


def kinked():
    """A problem of exact data, the same with ẋ wrong at every 29th point, and the data."""
    data = spirals(6, 60)
    problem = problem_of(data, order=8, elements=2)
    derivative = problem.derivative.clone()
    derivative[::29] += 3.0 * problem.derivative.std(0)
    return problem, replace(problem, derivative=derivative), data


def delta(problem, data, **options):
    model = network(data, hidden=[8])
    model.fit_normalization(problem.node_data())
    return Delta(problem, model, ThetaStepOptions(), 0.0, **options)


def test_a_few_wrong_derivatives_hardly_move_the_model():
    clean, wrong, data = kinked()
    residual = {}
    for robust in (False, True):
        method = delta(wrong, data, robust=robust)
        for _ in range(3 * REWEIGHT_EVERY):
            told = method.step().residual
        with torch.no_grad():
            assert told == pytest.approx(float(Residual(wrong, method.model)()), rel=1e-9)
            residual[robust] = float(Residual(clean, method.model)())
    # bounded influence: in proportion to the threshold, not to the error
    assert residual[True] < 0.03 * residual[False]


def test_shares_are_one_below_the_threshold_and_fall_beyond_it():
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    defect = torch.tensor([1.0, -1.0, 1.0, -200.0, 1e9], dtype=torch.float64)[:, None]
    share = residual_shares(defect, weight)[:, 0]
    assert share[:3].tolist() == [1.0, 1.0, 1.0]
    assert float(share[3]) == pytest.approx(1.345 * 1.4826 / 200.0)
    assert (residual_shares(torch.zeros_like(defect), weight) == 1.0).all()
    assert float(median_residual(defect, weight, torch.tensor([2.0]))) == pytest.approx((2.0 * 1.4826) ** 2)


def test_a_resumed_run_continues_bit_for_bit():
    _, wrong, data = kinked()
    first = delta(wrong, data, robust=True)
    for _ in range(REWEIGHT_EVERY + 5):
        first.step()
    saved, weights = copy.deepcopy(first.state()), copy.deepcopy(first.model.state_dict())
    second = delta(wrong, data, robust=True)
    second.model.load_state_dict(weights)
    second.restore(saved)
    assert [first.step() for _ in range(REWEIGHT_EVERY)] == [second.step() for _ in range(REWEIGHT_EVERY)]
