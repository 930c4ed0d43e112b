"""Few residuals and many weights: the step in the space of the residuals is the one in that of the weights."""

from __future__ import annotations

import pytest
import torch

from snet_cli.training import row_system
from snet_cli.training.arrow import ArrowProblem
from snet_cli.training.linearisation import Linearisation
from snet_cli.training.row_system import RowSystem
from snet_cli.training.theta_lm import LevenbergMarquardtStep
from snet_cli.training.weight_system import WeightSystem, weights_of
from tests.alpha_cases import relaxed_spirals
from tests.training_cases import network

HIDDEN, GAMMA, DAMPINGS = [24], 1e-2, (1.0, 1e-2, 1e-4)


def steps(system):
    """For several dampings; the measures are those that each system estimates."""
    return torch.stack([system.solve(damping) for damping in DAMPINGS])


@pytest.mark.parametrize("prior", [0.0, 1e-3])
def test_the_step_on_theta_is_that_of_the_normal_equations(prior, monkeypatch):
    data, problem, _, _ = relaxed_spirals(2, elements=2, order=5)
    model = network(data, hidden=HIDDEN)
    theta = weights_of(list(model.parameters()))
    by_rows = LevenbergMarquardtStep(problem, model, prior).system(theta)
    monkeypatch.setattr(row_system, "FEW", 0.0)
    formed = LevenbergMarquardtStep(problem, model, prior).system(theta)
    assert isinstance(by_rows, RowSystem)
    assert isinstance(formed, WeightSystem)
    torch.testing.assert_close(by_rows.gradient, formed.gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(by_rows.measure, formed.measure, rtol=1e-10, atol=0)
    # S has condition 1e6 at the least of the dampings
    torch.testing.assert_close(steps(by_rows), steps(formed), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("prior", [0.0, 0.1])
def test_the_step_on_everything_is_that_with_the_schur_complement(known, prior, monkeypatch):
    data, _, relaxed, nodes = relaxed_spirals(2, elements=2, order=5, known=known)
    model = network(data, hidden=HIDDEN)

    def linearised():
        return Linearisation(ArrowProblem(relaxed, model, nodes, prior=prior), nodes, GAMMA, 1e-2)

    by_rows = linearised()
    monkeypatch.setattr(row_system, "FEW", 0.0)
    formed = linearised()
    assert isinstance(by_rows.reduced, RowSystem)
    assert isinstance(formed.reduced, WeightSystem)
    torch.testing.assert_close(by_rows.gradient, formed.gradient, rtol=1e-10, atol=1e-12)
    for damping in DAMPINGS:
        one, other = by_rows.solve(damping), formed.solve(damping)
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(one.states, other.states, rtol=1e-7, atol=1e-9)
        assert one.promise == pytest.approx(other.promise, rel=1e-7)


def test_little_damping_loses_no_digits():
    """S + μ diag(m) is singular to rounding there; the residuals that the step leaves are still those of the law."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    target = torch.randn(6, generator=generator, dtype=torch.float64)
    system = RowSystem(rows, None, target, 0.0 * rows[0], 0.0, torch.ones_like(rows[0]))
    step = system.solve(1e-14)
    # more unknowns than equations: the least of all solutions of G̃ dθ = ρ
    torch.testing.assert_close(step, torch.linalg.pinv(rows) @ target, rtol=1e-9, atol=1e-12)
