import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from snet_cli.models.theta_blocks import ThetaBlock, ThetaJacobian
from snet_cli.training import krylov, linearisation, row_system, warm_up
from snet_cli.training.arrow import ArrowProblem
from snet_cli.training.continuation import Continuation
from snet_cli.training.joint import Joint
from snet_cli.training.linearisation import Linearisation
from snet_cli.training.relaxed import misfit, nodes_of
from snet_cli.training.warm_up import KINKED, ROUGH, ROUGH_IF_EXACT, WarmUp
from tests.alpha_cases import relaxed_spirals
from tests.training_cases import A, B, network, true_spiral

GAMMA, PRIOR = 0.7, 1e-3


class Dense:
    """All residuals of J as one vector of all unknowns, differentiated as a whole: nothing of `arrow` in it."""

    def __init__(self, relaxed, model, nodes):
        self.relaxed, self.model = relaxed, model
        N, P, self.n = nodes.shape
        start = torch.arange(N) * (P - 1) + relaxed.trajectory  # neighbours share a node, trajectories nothing
        self.place = start[:, None] + torch.arange(P)
        self.points = int(self.place.max()) + 1
        values = torch.zeros(self.points, self.n, dtype=torch.float64)
        values[self.place.flatten()] = nodes.flatten(0, 1)
        theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        self.start = torch.cat([values.flatten(), theta])
        free = torch.ones(self.points, self.n, dtype=torch.bool)
        free[self.place[relaxed.first_elements, 0]] = ~relaxed.known_start
        self.free = torch.cat([free.flatten(), torch.ones_like(theta, dtype=torch.bool)])

    def states(self, z):
        return z[: self.points * self.n].reshape(-1, self.n)[self.place]

    def residuals(self, z):
        relaxed, nodes, theta = self.relaxed, self.states(z), z[self.points * self.n :]
        pieces = theta.split([p.numel() for p in self.model.parameters()])
        named = zip(self.model.named_parameters(), pieces, strict=True)
        weights = {name: piece.view_as(p) for (name, p), piece in named}
        rates = torch.func.functional_call(self.model, weights, (relaxed.t, nodes, relaxed.u))
        basis = relaxed.mesh.basis
        keep = torch.ones(basis.order + 1, 1, dtype=torch.float64)
        keep[-1] = 0.0  # the p projected equations: without the highest Legendre coefficient
        projected = torch.tensor(basis.M) @ (keep * (torch.tensor(basis.M_inverse) @ (relaxed.slope(nodes) - rates)))
        seen = relaxed.observed
        return torch.cat(
            [
                (relaxed.quadrature.sqrt()[:, :, None] * relaxed.scale * projected).flatten(),
                ((GAMMA * seen.weight * seen.channel).sqrt() * relaxed.error(nodes)).flatten(),
                (GAMMA * PRIOR) ** 0.5 * theta,
            ]
        )


def measure_of(problem):
    return torch.cat([batch.measure for batch in problem.batches]).flatten(0, 1)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("memory", [10**9, 1])  # all trajectories at once, and one at a time
def test_a_step_is_that_of_the_dense_normal_equations(known, memory):
    data, _, relaxed, nodes = relaxed_spirals(3, elements=3, order=5, known=known)
    model, damping = network(data), 1e-2
    problem = ArrowProblem(relaxed, model, nodes, prior=PRIOR, memory=memory, formed=True)
    assert len(list(problem.batches)) == (1 if memory > 1 else 3)
    system = Linearisation(problem, nodes, GAMMA, damping)
    move = system.solve(damping)

    dense = Dense(relaxed, model, nodes)
    J, r = torch.func.jacrev(dense.residuals)(dense.start), dense.residuals(dense.start)
    assert problem.loss(nodes).total(GAMMA) == pytest.approx(float(r @ r), rel=1e-12)
    J[:, ~dense.free] = 0.0
    measure = torch.zeros(dense.points, dense.n, dtype=torch.float64)
    measure.index_add_(0, dense.place.flatten(), measure_of(problem))
    ridge = torch.cat([damping * GAMMA * measure.flatten(), damping * system.weight_measure])
    H = J.T @ J + torch.diag(torch.where(dense.free, ridge, 1.0))
    step = torch.linalg.solve(H, -J.T @ r)
    # both solve the same system; its condition number of about 1e4 leaves 1e-11
    torch.testing.assert_close(move.weights, step[dense.points * dense.n :], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(move.states, dense.states(step), rtol=1e-9, atol=1e-11)
    predicted = float(r @ r) - float((r + J @ step).square().sum())
    assert move.promise == pytest.approx(predicted, rel=1e-9)


@pytest.mark.parametrize("elements", [1, 3])
def test_the_minimum_is_that_of_scipy(elements):
    # a linear right-hand side: J is bilinear in x and θ, and both solvers go from the same start to the same minimum
    _, problem, relaxed, nodes = relaxed_spirals(2, elements=elements, order=5)
    method = Joint(problem, relaxed, true_spiral(), gamma=GAMMA, prior=PRIOR)
    dense = Dense(relaxed, method.model, nodes)
    oracle = least_squares(
        lambda z: dense.residuals(torch.from_numpy(z)).numpy(),
        dense.start.numpy(),
        jac=lambda z: torch.func.jacrev(dense.residuals)(torch.from_numpy(z)).numpy(),
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    for _ in range(25):
        method.outcome = None  # beyond what training needs
        total = method.step().total
    assert total == pytest.approx(2 * oracle.cost, rel=1e-8)  # scipy halves the sum of squares
    expected = torch.from_numpy(oracle.x)
    torch.testing.assert_close(method.nodes, dense.states(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(method.arrow.theta(), expected[dense.points * dense.n :], rtol=0, atol=1e-6)


def rough_network(data):
    model = network(data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)  # full steps overshoot
    return model


def test_no_step_increases_the_objective():
    data, problem, relaxed, _ = relaxed_spirals(4, noise=0.3)
    method = Joint(problem, relaxed, rough_network(data), gamma=GAMMA)
    method.warm_up = None
    before = method.arrow.loss(method.nodes).total(GAMMA)
    for _ in range(12):
        after = method.step().total
        assert after <= before
        assert after == pytest.approx(method.arrow.loss(method.nodes).total(GAMMA), rel=1e-12)
        before = after


def test_gamma_falls_until_the_discretised_equations_hold_and_the_truth_is_found():
    _, problem, relaxed, _ = relaxed_spirals(6, keep=1.0, missing=0.0, noise=0.02, order=8)
    method = Joint(problem, relaxed, true_spiral())
    with torch.no_grad():
        method.model.A.add_(0.3)
    while method.outcome is None and method.iteration < 60:
        method.step()
    loss = method.arrow.loss(method.nodes)
    assert method.outcome == "converged"
    assert method.gamma < 1e-2
    # closed: what is left of the p equations is small beside the discretisation error, or beside the noise
    assert loss.residual <= max(1e-3 * loss.tail, 1e-2 * method.gamma * loss.misfit)
    # 720 values of noise 0.02 of a signal of size 1 leave a few thousandths in each of the ten numbers
    np.testing.assert_allclose(method.model.A.detach().numpy(), A, atol=0.02)
    np.testing.assert_allclose(method.model.B.detach().numpy(), B, atol=0.02)
    # and the misfit is the noise: chi-square of 720 values has a standard deviation of 5 %; 22 are taken by unknowns
    seen = relaxed.observed
    noise = float((0.02**2 * seen.weight * seen.channel).sum())
    assert float(misfit(relaxed, method.nodes).sum()) == pytest.approx(noise, rel=0.2)


def test_a_fixed_gamma_stays():
    level = Continuation(0.5)
    assert [level.after(1e-3, 1.0, 1.0, 1.0), level.after(1e-5, 1.0, 1.0, 1.0)] == ["stay", "converged"]
    assert level.gamma == 0.5


def test_a_model_that_is_not_finite_ends_with_a_reason_and_keeps_its_weights():
    data, problem, relaxed, _ = relaxed_spirals(3)
    method = Joint(replace(problem, nodes=np.full_like(problem.nodes, np.nan)), relaxed, network(data))
    method.warm_up = None
    theta = method.arrow.theta()
    step = method.step()
    assert np.isnan(step.total)
    assert method.outcome == "not-finite"
    assert "not finite" in method.failure
    assert torch.equal(method.arrow.theta(), theta)


def test_exact_data_ends_a_level_sooner():
    gains = [0.04] * 30
    steps = []
    for exact in (False, True):
        level = Continuation(1.0, exact=exact)
        steps.append(next((k for k, gain in enumerate(gains) if level.after(gain, 1.0, 1.0, 1.0) == "converged"), None))
    assert steps == [None, 0]


def kinked(elements: int = 12):
    """An exact problem of spirals, but for ẋ of three elements, wrong by some times its size as beside a kink."""
    data, problem, relaxed, _ = relaxed_spirals(6, keep=1.0, missing=0.0, noise=0.0, order=8, elements=elements)
    derivative = problem.derivative.clone().view(problem.mesh.elements, -1, 2)
    spoiled = torch.tensor([7, 30, 55])
    derivative[spoiled] += torch.linspace(-10, 10, derivative.shape[1], dtype=torch.float64)[:, None]
    return data, replace(problem, derivative=derivative.flatten(0, 1)), relaxed, spoiled


@pytest.mark.slow
def test_kinks_do_not_decide_over_the_weights_of_exact_data(monkeypatch):
    _, problem, _, spoiled = kinked()
    wrong = []
    for bound in (float("inf"), KINKED):
        monkeypatch.setattr(warm_up, "KINKED", bound)
        model = true_spiral()  # ten numbers, which cannot bend around three elements
        with torch.no_grad():
            model.A.zero_()
        method = WarmUp(problem, model, exact=True)
        while not method.done:
            method.step()
        wrong.append(float((model.A.detach() - torch.from_numpy(A)).abs().max()))
    # squared, three of 72 elements decide; under Huber's loss each counts as much as two ordinary ones
    assert wrong[0] > 0.05
    assert wrong[1] < 1e-3
    clean = torch.ones(problem.mesh.elements, dtype=torch.bool)
    clean[spoiled] = False
    assert float(method.share[spoiled].max()) < 0.05 < 0.3 < float(method.share[clean].median())


def test_exact_trajectories_with_kinks_stay_as_they_are():
    data, problem, relaxed, _ = kinked()
    straight = Joint(problem, relaxed, network(data), exact=True)
    for _ in range(ROUGH_IF_EXACT + 2):
        straight.step()
    resumed = Joint(problem, relaxed, copy.deepcopy(straight.model), exact=True)
    resumed.restore(copy.deepcopy(straight.state()))
    while straight.outcome is None:
        assert resumed.step() == straight.step()
    assert resumed.outcome == straight.outcome == "converged"
    assert torch.equal(straight.nodes, nodes_of(problem))


@pytest.mark.parametrize("pause", [3, ROUGH + 4])  # in the warm-up, and behind it
def test_a_restored_method_continues_bit_for_bit(pause):
    data, problem, relaxed, _ = relaxed_spirals()
    straight = Joint(problem, relaxed, network(data))
    for _ in range(pause):
        straight.step()
    resumed = Joint(problem, relaxed, copy.deepcopy(straight.model))
    resumed.restore(copy.deepcopy(straight.state()))
    for _ in range(ROUGH):
        assert resumed.step() == straight.step()
    assert torch.equal(resumed.nodes, straight.nodes)
    assert torch.equal(resumed.arrow.theta(), straight.arrow.theta())


def test_fit_joint_writes_a_model_whose_gamma_has_fallen(snet):
    assert snet("simulate", "lotka-volterra", "--trajectories", 5, "--noise", 0.01, "-o", "t.h5").code == 0
    common = ("--method", "joint", "--set", "model.hidden=[4]", "--threads", 1, "--max-memory", "2GB", "--json")
    ran = snet("fit", "t.h5", "-o", "m.h5", "--iterations", 25, *common)
    assert ran.code == 0, ran.err
    assert ran.json["method"] == "joint"
    assert ran.json["gamma"] < 1.0
    assert ran.json["loss"]["total"] < 0.1
    fixed = snet("fit", "t.h5", "-o", "f.h5", "--gamma", 0.5, "--iterations", 12, *common)
    assert fixed.json["gamma"] == 0.5


@pytest.mark.parametrize("known", [False, True])
def test_a_step_without_the_schur_complement_is_the_one_with_it(known, monkeypatch):
    data, _, relaxed, nodes = relaxed_spirals(3, elements=3, order=5, known=known)
    model = network(data, hidden=[4])
    monkeypatch.setattr(krylov, "ACCURACY", 1e-9)
    moves = []
    for formed in (True, False):
        system = Linearisation(ArrowProblem(relaxed, model, nodes, prior=PRIOR, formed=formed), nodes, GAMMA, 1e-2)
        system.reduced.measure.fill_(1e-3)  # the measures differ: one is estimated
        if not formed:
            system.reduced.use_measure(system.reduced.measure)
        moves.append([system.solve(damping) for damping in (1.0, 1e-2)])
    for exact, krylov_move in zip(*moves, strict=True):
        torch.testing.assert_close(krylov_move.weights, exact.weights, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(krylov_move.states, exact.states, rtol=1e-6, atol=1e-8)
        assert krylov_move.promise == pytest.approx(exact.promise, rel=1e-6)


@pytest.mark.parametrize("hidden", [[3], [24]])  # fewer weights than unknowns in an element, and more
def test_the_schur_complement_is_that_of_the_dense_matrix(hidden, monkeypatch):
    monkeypatch.setattr(row_system, "FEW", 0.0)  # it would not be formed
    data, _, relaxed, nodes = relaxed_spirals(2, elements=2, order=8)
    model = network(data, hidden=hidden)
    system = Linearisation(ArrowProblem(relaxed, model, nodes), nodes, GAMMA, 1e-2)
    dense = Dense(relaxed, model, nodes)
    J = torch.func.jacrev(dense.residuals)(dense.start)
    count = dense.points * dense.n
    measure = torch.zeros(dense.points, dense.n, dtype=torch.float64)
    measure.index_add_(0, dense.place.flatten(), measure_of(system.problem))
    J = J[: len(J) - len(dense.start) + count]  # without the prior's rows
    A = J[:, :count].T @ J[:, :count] + torch.diag(1e-2 * GAMMA * measure.flatten())
    B, D = J[:, :count].T @ J[:, count:], J[:, count:].T @ J[:, count:]
    expected = D - B.T @ torch.linalg.solve(A, B)
    torch.testing.assert_close(system.schur, expected, rtol=0, atol=1e-11 * float(D.diagonal().max()))


def test_many_weights_train_without_the_schur_complement():
    data, problem, relaxed, _ = relaxed_spirals(3)
    method = Joint(problem, relaxed, network(data, hidden=[40, 40]), gamma=GAMMA, memory=40_000_000)
    assert not method.arrow.formed
    method.warm_up = None
    before = method.arrow.loss(method.nodes).total(GAMMA)
    totals = [method.step().total for _ in range(4)]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < 0.1 * before


def test_blocks_of_the_theta_jacobian_add_up_to_the_dense_product():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    N, P, n, size = 4, 3, 5, 9
    blocks = (
        ThetaBlock(torch.tensor([3, 0]), slice(2, 9), normal(N * P, 2, 7)),
        ThetaBlock(slice(1, 2), slice(0, 2), normal(N * P, 1, 2)),  # rows 2 and 4 reach no weight
    )
    G = ThetaJacobian(blocks, (N * P, n, size))
    unit = torch.nn.functional.normalize(normal(N, P), dim=1)
    basis = linearisation._complement(unit)
    projector = torch.eye(P, dtype=torch.float64) - unit[:, :, None] * unit[:, None, :]
    torch.testing.assert_close(basis.mT @ basis, projector, rtol=0, atol=1e-14)
    root = (normal(N, P * n, P, n).transpose(2, 3) @ projector[:, None]).transpose(2, 3).reshape(N, P * n, P * n)
    C = root.mT @ root
    total = torch.eye(size, dtype=torch.float64)
    linearisation._add_between_blocks(total, C, G, basis)
    linearisation.mirror(total)
    dense = G.dense().view(N, P * n, size)
    expected = torch.eye(size, dtype=torch.float64) + (dense.mT @ C @ dense).sum(0)
    torch.testing.assert_close(total, expected, rtol=1e-11, atol=1e-11)
