import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from snet_cli.models.base import StateSpace
from snet_cli.models.options import MlpOptions
from snet_cli.models.registry import build_model
from snet_cli.spectral.fitting import Samples, fit_series
from snet_cli.spectral.mesh import build_mesh
from snet_cli.training.alpha import LEAST_WARM_UP, SETTLED_FOR, Alpha, perturbation
from snet_cli.training.alpha_options import ALPHA_PAPER_PRESET, AlphaOptions, StateStepOptions
from snet_cli.training.gamma import NoiseLevelGamma
from snet_cli.training.loop import Limits, run
from snet_cli.training.node_inputs import inputs_at_nodes
from snet_cli.training.observation import guess_states
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.problem import assemble_problem
from snet_cli.training.relaxed import misfit, nodes_of, objective, residual
from snet_cli.training.relaxed_data import channel_scale, known_noise, relax
from snet_cli.training.robust import as_tensor, robust_step_zero
from snet_cli.training.state_layout import lay_out_states
from tests.alpha_cases import relaxed_spirals, sparse
from tests.training_cases import network, pendulums, problem_of, series, spirals, true_spiral

GAMMA = 0.7
PAPER = AlphaOptions.model_validate(ALPHA_PAPER_PRESET)
ADAM = ThetaStepOptions(name="adam")


def alpha_on(data, model=None, *, options=None, theta=None, gamma=3.0, **mesh):
    problem = problem_of(data, **mesh)
    relaxed = relax(problem, data, channel_scale(data.outputs, None, scaled=True))
    options = options or AlphaOptions(warm_up=2)
    return Alpha(problem, relaxed, model or network(data), options, theta or ThetaStepOptions(), gamma=gamma)


# --- the relaxed problem --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 2])
def test_gradients_in_coefficients_and_weights_agree_with_finite_differences(elements):
    data, problem, relaxed, nodes = relaxed_spirals(2, order=4, elements=elements, keep=0.2)
    whole = _WithObjective(relaxed, network(data, hidden=[3]))
    names = [name for name, _ in whole.named_parameters()]
    M, inverse = (torch.from_numpy(m.copy()) for m in (problem.mesh.basis.M, problem.mesh.basis.M_inverse))

    def cost(coefficients, *theta):
        return torch.func.functional_call(whole, dict(zip(names, theta, strict=True)), M @ coefficients)

    theta = [p.detach().clone().requires_grad_() for p in whole.parameters()]
    assert torch.autograd.gradcheck(cost, ((inverse @ nodes).requires_grad_(), *theta), atol=1e-7, rtol=1e-5)


class _WithObjective(torch.nn.Module):
    """J as a module, so that its parameters can be exchanged."""

    def __init__(self, relaxed, model):
        super().__init__()
        self.relaxed, self.model = relaxed, model

    def forward(self, nodes):
        return objective(self.relaxed, self.model, nodes, GAMMA).sum()


def test_what_is_not_measured_has_no_influence_at_all():
    data = sparse(spirals(3, 40, noise=0.02), 0.6, missing=0.3)
    problem = problem_of(data, order=6, elements=2)
    scale = np.ones(2)
    nodes = nodes_of(problem).requires_grad_()
    results = []
    for padded in (data, _with_empty_times(data)):
        relaxed = relax(problem, padded, scale)
        J = objective(relaxed, network(data), nodes, GAMMA).sum()
        results.append((J, *torch.autograd.grad(J, nodes)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    values = relaxed.observed.values
    masked = replace(relaxed.observed, values=torch.where(relaxed.observed.weight > 0, values, 1e6))
    J = misfit(replace(relaxed, observed=masked), nodes).sum()
    assert torch.equal(J, misfit(relaxed, nodes).sum())


def _with_empty_times(data):
    """The same data with sample times between the others at which nothing was measured."""
    rows = np.repeat(np.arange(data.time.size), 2)
    extra = np.arange(rows.size) % 2 == 1
    last = np.isin(rows, data.offsets[1:] - 1)
    keep = ~(extra & last)
    gap = np.append(np.diff(data.time), 0.0)
    time = (data.time[rows] + np.where(extra, 0.5 * gap[rows], 0.0))[keep]
    outputs = np.where(extra[:, None], np.nan, data.outputs[rows])[keep]
    size = np.bincount(data.trajectory_of_row()[rows][keep])
    return replace(data, row_size=size, time=time, outputs=outputs)


def test_the_objective_is_the_sum_of_the_designs_formulas():
    data, problem, relaxed, nodes = relaxed_spirals(3, elements=1)
    model = network(data)
    T, K = problem.mesh.horizon, np.bincount(data.trajectory_of_row()[np.isfinite(data.outputs).any(1)])
    defect = relaxed.defect(model, nodes).detach().numpy()
    w = problem.mesh.basis.weights / 2
    R_b = np.einsum("q,bqn->b", w, (problem.scale.numpy() * defect) ** 2)
    series = problem.mesh.evaluate(nodes.numpy(), data.trajectory_of_row(), data.time)
    square = np.nan_to_num((data.outputs - series) / np.nanstd(data.outputs, axis=0)) ** 2
    L_b = np.array([square[data.trajectory_of_row() == b].sum() / K[b] for b in range(3)])
    np.testing.assert_allclose(residual(relaxed, model, nodes).detach(), T / T.sum() * R_b)
    np.testing.assert_allclose(misfit(relaxed, nodes), K / K.sum() * L_b)
    assert misfit(relaxed, nodes).sum().item() == pytest.approx(square.sum() / K.sum())


def test_a_part_of_the_trajectories_costs_what_it_costs_in_the_whole():
    data, _, relaxed, nodes = relaxed_spirals(5, elements=3)
    model = network(data)
    whole = objective(relaxed, model, nodes, GAMMA)
    chosen = torch.tensor([1, 4])
    keep = torch.isin(relaxed.trajectory, chosen)
    torch.testing.assert_close(objective(relaxed.select(chosen), model, nodes[keep], GAMMA), whole[chosen])
    own = (relaxed.trajectory >= 2) & (relaxed.trajectory < 4)
    torch.testing.assert_close(objective(relaxed.between(2, 4), model, nodes[own], GAMMA), whole[2:4])


def test_known_noise_levels_set_the_channels_scale_and_keep_its_mean():
    outputs = np.array([[0.0, 0.0], [2.0, 20.0], [np.nan, 10.0]])
    noise = known_noise({"a": 0.1, "b": 0.2}, ("a", "b"))
    scale = channel_scale(outputs, noise, scaled=True)
    assert scale[1] / scale[0] == pytest.approx(2.0)
    assert np.mean((np.nanstd(outputs, axis=0) / scale) ** 2) == pytest.approx(1.0)
    assert known_noise({"a": 0.1}, ("a", "b")) is None
    assert (channel_scale(outputs, noise, scaled=False) == 1.0).all()


def test_the_gradients_norm_does_not_grow_with_the_horizon():
    # backpropagation through a solver multiplies Jacobians along the horizon; the residual only averages over it
    norms = []
    for horizon in (2.0, 8.0, 32.0):
        data = spirals(4, 40 * int(horizon), horizon=horizon)
        problem = problem_of(data, order=8, elements=int(2 * horizon))
        relaxed = relax(problem, data, np.ones(2))
        model = network(data)
        nodes = nodes_of(problem)
        gradient = torch.autograd.grad(objective(relaxed, model, nodes, GAMMA).sum(), list(model.parameters()))
        norms.append(torch.cat([g.flatten() for g in gradient]).norm().item())
    assert max(norms) < 3.0 * norms[0]


# --- α-SNet ----------------------------------------------------------------------------------------------------------


def test_it_finds_the_system_behind_sparse_noisy_data():
    data = sparse(spirals(30, 60, noise=0.05), 0.25, missing=0.2)
    model = network(data, hidden=[12])
    alpha = alpha_on(data, model, order=14, elements=1, gamma=1.0)
    step_zero = _error_of(alpha, data)
    result = run(alpha, Limits(iterations=25))
    assert result.status in ("iterations", "converged")
    assert _error_of(alpha, data) < 0.5 * step_zero


def _error_of(alpha, data):
    """Root mean square distance of the series from the noise-free truth."""
    truth = spirals(30, 60)
    series = alpha.problem.mesh.evaluate(alpha.nodes.numpy(), truth.trajectory_of_row(), truth.time)
    return float(np.sqrt(np.mean((series - truth.outputs) ** 2)))


def test_it_stops_where_j_no_longer_falls_and_gamma_has_found_the_noise():
    data = sparse(spirals(20, 60, noise=0.05), 0.5)
    fixed = alpha_on(data, true_spiral(), options=AlphaOptions(warm_up=0), order=14, elements=1)
    result = run(fixed, Limits(iterations=100))
    assert (result.status, result.iterations < 40) == ("converged", True)
    total = result.last.total
    for _ in range(20):
        total = fixed.step().total
    assert total > 0.99 * result.last.total  # and rightly so
    wrong = alpha_on(data, true_spiral(), options=AlphaOptions(warm_up=0), order=14, elements=1)
    wrong.gamma_rule = NoiseLevelGamma(2.0 * result.last.misfit)
    for _ in range(SETTLED_FOR):
        wrong.step()
    assert wrong.outcome is None


def test_the_weights_warm_up_while_the_residual_still_falls():
    data = spirals(6, 60, noise=0.05)
    most = 400  # R falls by less than 1e-3 an iteration long before
    alpha = alpha_on(data, network(data), options=AlphaOptions(warm_up=most), order=6, elements=1)
    warm = 0
    while alpha.states.evaluations == 0 and warm < most:
        alpha.step()
        warm += 1
    assert LEAST_WARM_UP < warm < most


def test_noise_gives_the_weights_a_prior_and_keeps_them_small():
    data = spirals(4, 40, noise=0.1)
    plain, wary = (alpha_on(data, network(data), gamma=2.0, order=6, elements=1) for _ in range(2))
    wary.noise = 0.3
    samples = plain.relaxed.observed.trajectory.numel()

    def size_of(alpha):
        return torch.nn.utils.parameters_to_vector(alpha.model.parameters()).detach().square().sum().item()

    size = size_of(plain)
    added = wary._loss() - plain._loss()
    assert added.item() == pytest.approx(2.0 * 0.3 / samples * size)
    wary.noise = 1e3
    for alpha in (plain, wary):
        for _ in range(3):
            alpha.step()
    assert size_of(wary) < 0.1 * size < size_of(plain)


def test_a_linear_model_is_solved_in_closed_form_in_every_iteration():
    data = spirals(8, 60, noise=0.02)
    model = build_model("linear", None, StateSpace(("a", "b"), ("p", "r")), seed=0, dtype=torch.float64)
    alpha = alpha_on(data, model, order=10, elements=1)
    run(alpha, Limits(iterations=15))
    torch.testing.assert_close(model.A, true_spiral().A, rtol=0, atol=0.05)


def test_the_papers_preset_takes_ten_sgd_and_ten_adam_steps_on_perturbed_trajectories():
    data = spirals(4, 40, horizon=2.0)
    alpha = alpha_on(data, options=PAPER, theta=ADAM, gamma=3.0, order=6, elements=1)
    offset = alpha.nodes - nodes_of(alpha.problem)
    assert offset.abs().max() <= 0.1
    assert (offset.std(1) < 1e-14).all()  # one draw per trajectory and state, on the constant coefficient
    assert offset[:, 0].unique().numel() == 8
    before = alpha.step()
    assert alpha.evaluations == 20
    for _ in range(20):
        after = alpha.step()
    assert after.total < before.total


def test_a_known_start_is_not_perturbed():
    _, _, relaxed, _ = relaxed_spirals(3, known=True)
    offset = perturbation(relaxed, 0.1, seed=0)
    assert (offset[:, 0, 0] == 0).all()
    assert (offset[:, 0, 1] != 0).all()


@pytest.mark.parametrize(("options", "theta"), [(None, None), (PAPER, ADAM)])
def test_a_resumed_run_continues_bit_for_bit(options, theta):
    data = spirals(4, 40, horizon=2.0, noise=0.02)
    first = alpha_on(data, options=options, theta=theta, order=6, elements=1)
    for _ in range(4):
        first.step()
    saved, weights = copy.deepcopy(first.state()), copy.deepcopy(first.model.state_dict())
    second = alpha_on(data, options=options, theta=theta, order=6, elements=1)
    second.model.load_state_dict(weights)
    second.restore(saved)
    assert [first.step() for _ in range(3)] == [second.step() for _ in range(3)]


def test_hubers_loss_is_hardly_moved_by_outliers():

    clean = spirals(6, 60, noise=0.01)
    rng = np.random.default_rng(1)
    wild = rng.random(clean.outputs.shape) < 0.05
    place = np.arange(clean.time.size) % 60
    wild &= ((place > 4) & (place < 55))[:, None]  # at an end a polynomial follows any sample: no M-estimator helps
    data = replace(clean, outputs=clean.outputs + np.where(wild, 5.0, 0.0))
    layout = lay_out_states(data.output_names, None, {})
    robust = robust_step_zero(
        lambda part, order, elements: series(part, order=order or 8, elements=elements or 1), data, layout
    )
    plain, truth = (series(part, order=8, elements=1).nodes for part in (data, spirals(6, 60)))
    assert np.std(robust.nodes - truth) < 0.1 * np.std(plain - truth)
    assert robust.threshold is not None
    assert (robust.threshold < 0.1).all()
    problem = problem_of(data, robust)
    relaxed = relax(problem, data, np.ones(2))
    alpha = Alpha(
        problem,
        relaxed,
        network(data),
        AlphaOptions(warm_up=2),
        ThetaStepOptions(),
        threshold=as_tensor(robust.threshold, torch.device("cpu")),
    )
    for _ in range(12):
        alpha.step()
    assert np.std(alpha.nodes.numpy() - truth) < 0.1 * np.std(plain - truth)


def test_a_hidden_velocity_is_estimated():

    data = pendulums(8, 60, noise=(0.02,), both=False)
    layout = lay_out_states(("q",), None, {}, None, hidden_states=1)
    mesh = build_mesh(data.start, data.end, 1, 14)
    fit = fit_series(mesh, Samples(data.trajectory_of_row(), data.time, data.outputs))
    nodes = guess_states(mesh, fit.nodes, layout)
    problem = assemble_problem(
        layout, mesh, nodes, fit.determined, inputs_at_nodes(mesh, data.inputs), scaled=True, device=torch.device("cpu")
    )
    relaxed = relax(problem, data, channel_scale(data.outputs, None, scaled=True))
    model = build_model("mlp", MlpOptions(hidden=[8]), StateSpace(layout.states, ()), seed=0, dtype=torch.float64)
    model.fit_normalization(problem.node_data())
    alpha = Alpha(problem, relaxed, model, AlphaOptions(), ThetaStepOptions(), gamma=1.0)
    first = alpha.step()
    for _ in range(40):
        last = alpha.step()
    assert last.residual < 1e-2 * first.residual
    truth = mesh.evaluate(alpha.nodes.numpy(), data.trajectory_of_row(), data.time)[:, 0]
    clean = pendulums(8, 60, both=False).outputs[:, 0]
    assert np.std(truth - clean) < 0.02


def test_steps_on_the_states_and_the_weights_are_counted():
    data = spirals(3, 40)
    options = AlphaOptions(warm_up=1, theta_steps=2, state_step=StateStepOptions(steps=3))
    alpha = alpha_on(data, options=options, order=6, elements=1)
    alpha.step()
    assert alpha.states.evaluations == 0  # the weights warm up alone
    alpha.step()
    assert alpha.states.evaluations == 3
