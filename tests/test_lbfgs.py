"""Laws of the L-BFGS step: it minimises, it never rises, scales do not matter, NaN is only a wall."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

from snet_cli.training.lbfgs import LINE_SEARCH_EVALUATIONS, PAIRS, LbfgsStep


class Point(nn.Module):
    """A vector of parameters."""

    def __init__(self, start):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(start, dtype=torch.float64).clone())


def minimise(loss, start, iterations, factor=1.0):
    """The losses after each of the iterations, and the point reached."""
    point = Point(start)
    method = LbfgsStep(point, lambda: factor * loss(point.theta))
    losses = [method.step() for _ in range(iterations)]
    return losses, point.theta.detach().numpy(), method


def rosenbrock(x):
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


def curve_fit(x):
    t = torch.linspace(0, 3, 40, dtype=torch.float64)
    model = x[0] * torch.exp(-x[1] * t) + x[2] * torch.sin(x[3] * t)
    target = 2.0 * torch.exp(-1.5 * t) + 0.5 * torch.sin(2.0 * t) + 0.05 * torch.cos(17 * t)
    return ((model - target) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "start"),
    [(rosenbrock, [-1.2, 1.0]), (rosenbrock, [-1.2, 1.0, 0.5, 2.0, -1.0]), (curve_fit, [1.0, 1.0, 1.0, 1.5])],
)
def test_it_reaches_the_minimum_that_scipy_reaches(loss, start):
    def numbers(x):
        theta = torch.tensor(x, requires_grad=True)
        value = loss(theta)
        value.backward()
        return float(value.detach()), theta.grad.numpy()

    oracle = scipy.optimize.minimize(numbers, start, jac=True, method="L-BFGS-B", tol=1e-14)
    losses, reached, _ = minimise(loss, start, 150)
    assert losses[-1] <= oracle.fun + 1e-10
    assert reached == pytest.approx(oracle.x, abs=1e-4)


def test_the_loss_never_rises():
    losses, _, _ = minimise(rosenbrock, [-1.2, 1.0, 3.0, -4.0], 120)
    assert (np.diff(losses) <= 0).all()


@pytest.mark.parametrize("factor", [1e-20, 1e-12, 1e12])
def test_the_size_of_the_loss_does_not_matter(factor):
    """torch's own drops all memory below 1e-10; the first step alone may depend on the scale (it has length ≤ 1)."""
    plain, reached, _ = minimise(rosenbrock, [-1.2, 1.0], 120)
    scaled, same, _ = minimise(rosenbrock, [-1.2, 1.0], 120, factor)
    assert same == pytest.approx([1.0, 1.0], abs=1e-6)
    assert reached == pytest.approx([1.0, 1.0], abs=1e-6)
    assert scaled[-1] <= 1e-12 * factor * rosenbrock(torch.tensor([-1.2, 1.0]))
    assert plain[-1] < 1e-12


def test_a_loss_that_is_nan_outside_a_ball_is_only_a_wall():
    centre = torch.tensor([0.6, 0.6], dtype=torch.float64)

    def walled(x):
        inside = ((x - 0.5) ** 2).sum() < 0.5
        value = 50.0 * ((x - centre) ** 2).sum() + ((x - centre) ** 4).sum()
        return value if inside else value * torch.nan

    losses, reached, _ = minimise(walled, [0.0, 0.2], 40)
    assert np.isfinite(losses).all()
    assert (np.diff(losses) <= 0).all()
    assert reached == pytest.approx(centre.numpy(), abs=1e-6)


def test_an_ill_conditioned_quadratic_converges_in_a_bounded_number_of_iterations():
    curvature = torch.logspace(0, 4, 30, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    matrix = rotation @ torch.diag(curvature) @ rotation.T
    losses, _, method = minimise(lambda x: 0.5 * x @ matrix @ x, torch.ones(30), 220)
    # steepest descent gains a factor of e in 10^4 / 4 iterations; scipy's, with as many pairs, needs 198 for this
    assert losses[-1] < 1e-14 * losses[0]
    assert method.evaluations < 1.5 * 220
    assert method.state()["S"].shape[0] <= PAIRS


def test_at_the_minimum_it_stays_and_says_so():
    losses, reached, method = minimise(lambda x: (x * x).sum(), torch.zeros(3), 5)
    assert losses == [0.0] * 5
    assert reached.tolist() == [0.0] * 3
    assert method.evaluations <= 5 * LINE_SEARCH_EVALUATIONS


def test_a_direction_without_descent_leaves_the_weights_where_they_were():
    start = torch.tensor([1.0, 2.0])
    losses, reached, _ = minimise(lambda x: x.sum() * torch.nan, start, 3)
    assert np.isnan(losses).all()
    assert reached.tolist() == start.tolist()


def test_weights_without_influence_do_not_move():
    point = nn.ParameterDict({"used": nn.Parameter(torch.ones(2)), "unused": nn.Parameter(torch.full((3,), 7.0))})
    method = LbfgsStep(point, lambda: ((point["used"] - 3.0) ** 2).sum())
    for _ in range(10):
        method.step()
    assert point["used"].tolist() == pytest.approx([3.0, 3.0])
    assert point["unused"].tolist() == [7.0] * 3
