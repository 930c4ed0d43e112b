import copy

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from snet_cli.training.alpha_options import StateStepOptions
from snet_cli.training.relaxed import misfit, objective, residual
from snet_cli.training.state_jacobian import evaluate, state_jacobian
from snet_cli.training.state_step import GaussNewtonStep, GradientStep, build_state_step
from tests.alpha_cases import relaxed_spirals
from tests.training_cases import network, true_spiral

GAMMA = 0.7


def minimise(step, gamma=GAMMA, times=12):
    for _ in range(times):
        step.step(gamma)
    return step.nodes


def test_the_state_jacobian_is_that_of_autograd():
    data, problem, _, _ = relaxed_spirals()
    model = network(data)
    value, jacobian = state_jacobian(model, problem.t, problem.x, problem.u)
    torch.testing.assert_close(value, evaluate(model, problem.t, problem.x, problem.u).detach())
    for q in (0, 17):
        exact = torch.autograd.functional.jacobian(
            lambda x, q=q: evaluate(model, problem.t[q], x, problem.u[q]), problem.x[q]
        )
        torch.testing.assert_close(jacobian[q], exact)


@pytest.mark.parametrize("elements", [1, 3])
def test_the_minimum_is_that_of_scipy(elements):
    data, _, relaxed, start = relaxed_spirals(1, elements=elements, order=5)
    model = network(data)
    P, n = start.shape[1:]
    unknown = torch.arange(elements * (P - 1) + 1)
    place = torch.stack([unknown[e * (P - 1) : e * (P - 1) + P] for e in range(elements)])

    def residuals(values):
        nodes = torch.from_numpy(values).reshape(-1, n)[place]
        with torch.no_grad():
            defect = relaxed.quadrature.sqrt()[:, :, None] * relaxed.scale * relaxed.defect(model, nodes)
            seen = relaxed.observed
            error = (GAMMA * seen.weight * seen.channel).sqrt() * relaxed.error(nodes)
        return torch.cat([defect.flatten(), error.flatten()]).numpy()

    first = np.zeros((unknown.numel(), n))
    first[place.flatten()] = start.flatten(0, 1).numpy()
    oracle = least_squares(residuals, first.flatten(), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    found = minimise(GaussNewtonStep(relaxed, model, start))
    J = objective(relaxed, model, found, GAMMA).sum().item()
    assert J == pytest.approx(2 * oracle.cost, rel=1e-10)  # scipy halves the sum of squares
    expected = torch.from_numpy(oracle.x).reshape(-1, n)[place]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_step_on_a_linear_system_is_the_whole_way():
    # J is quadratic in x then, so that one undamped step ends at the minimum; the damping of 1e-4 remains
    _, _, relaxed, nodes = relaxed_spirals()
    step = GaussNewtonStep(relaxed, true_spiral(), nodes)
    step.step(GAMMA)
    once = objective(relaxed, true_spiral(), step.nodes, GAMMA).sum()
    best = objective(relaxed, true_spiral(), minimise(step), GAMMA).sum()
    assert once.item() == pytest.approx(best.item(), rel=1e-3)


def test_no_trajectory_ever_gets_worse():
    data, _, relaxed, nodes = relaxed_spirals(8, noise=0.5)
    model = network(data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)  # a rough right-hand side, where full steps overshoot
    step = GaussNewtonStep(relaxed, model, nodes)
    before = objective(relaxed, model, step.nodes, GAMMA)
    for _ in range(8):
        step.step(GAMMA)
        after = objective(relaxed, model, step.nodes, GAMMA)
        assert bool((after <= before).all())
        before = after


def test_a_right_hand_side_that_is_not_finite_leaves_the_trajectory_where_it_is():
    data, _, relaxed, nodes = relaxed_spirals(3)
    model = network(data)
    nodes[relaxed.trajectory == 1] = float("nan")
    alone = GaussNewtonStep(relaxed, model, nodes)
    alone.step(GAMMA)
    assert torch.isfinite(alone.nodes[relaxed.trajectory != 1]).all()
    assert (
        objective(relaxed, model, alone.nodes, GAMMA)[[0, 2]].sum()
        < objective(relaxed, model, nodes, GAMMA)[[0, 2]].sum()
    )


def test_a_batch_gives_what_each_trajectory_gives_alone():
    data, _, relaxed, nodes = relaxed_spirals(5)
    model = network(data)
    together = minimise(GaussNewtonStep(relaxed, model, nodes), times=3)
    for b in range(5):
        own = relaxed.trajectory == b
        part = relaxed.select(torch.tensor([b]))
        torch.testing.assert_close(
            objective(part, model, nodes[own], GAMMA), objective(relaxed, model, nodes, GAMMA)[[b]]
        )
    small = GaussNewtonStep(relaxed, model, nodes, memory=1)  # one trajectory at a time
    torch.testing.assert_close(minimise(small, times=3), together, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["gauss-newton", "sgd"])
@pytest.mark.parametrize("elements", [1, 3])
def test_a_known_start_stays_and_shared_nodes_stay_shared(name, elements):
    data, _, relaxed, nodes = relaxed_spirals(3, known=True, elements=elements)
    step = build_state_step(StateStepOptions(name=name), relaxed, network(data), nodes)
    moved = minimise(step, times=4)
    first = relaxed.first_elements
    torch.testing.assert_close(moved[first, 0, 0], nodes[first, 0, 0], rtol=0, atol=1e-14)
    assert (moved[first, 0, 1] != nodes[first, 0, 1]).all()
    inner = torch.nonzero(relaxed.trajectory[1:] == relaxed.trajectory[:-1])[:, 0]
    torch.testing.assert_close(moved[inner, -1], moved[inner + 1, 0], rtol=0, atol=1e-14)


def test_sgd_descends_on_the_legendre_coefficients_of_each_trajectorys_own_objective():
    data, problem, relaxed, nodes = relaxed_spirals(3, elements=1, horizon=2.0)
    model, rate = network(data), 1e-3
    basis = problem.mesh.basis
    coefficients = (torch.from_numpy(basis.M_inverse.copy()) @ nodes).requires_grad_()
    at_nodes = torch.from_numpy(basis.M.copy()) @ coefficients
    own = GAMMA * misfit(relaxed, at_nodes) / relaxed.misfit_share
    own = own + residual(relaxed, model, at_nodes) / relaxed.residual_share
    (gradient,) = torch.autograd.grad(own.sum(), coefficients)
    expected = torch.from_numpy(basis.M.copy()) @ (coefficients - rate * gradient)
    step = GradientStep(relaxed, model, nodes, rate, own=True)
    step.step(GAMMA)
    torch.testing.assert_close(step.nodes, expected.detach())


def test_a_restored_step_continues_bit_for_bit():
    data, _, relaxed, nodes = relaxed_spirals()
    model = network(data)
    straight = GaussNewtonStep(relaxed, model, nodes)
    minimise(straight, times=2)
    saved = copy.deepcopy(straight.state())
    resumed = GaussNewtonStep(relaxed, model, nodes)
    resumed.restore(saved)
    assert torch.equal(minimise(resumed, times=2), minimise(straight, times=2))
