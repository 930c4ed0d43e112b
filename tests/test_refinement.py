"""Laws of refinement: what it keeps, how it tells smooth from kinked, how errors fall, and where it stops."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from snet_cli.spectral.legendre import legendre_basis
from snet_cli.spectral.mesh import build_mesh, mesh_between
from snet_cli.spectral.refinement import (
    decay_rate,
    orthonormal_coefficients,
    prolong,
    raise_order,
    refine_mesh,
    unresolved,
)
from snet_cli.training.joint import Joint
from snet_cli.training.loop import Limits, run
from snet_cli.training.node_inputs import inputs_at_nodes
from snet_cli.training.problem import assemble_problem
from snet_cli.training.refinement import (
    Gain,
    Refinement,
    Remeshed,
    mesh_from_state,
    mesh_state,
    plan_refinement,
    state_noise,
    state_sizes,
)
from snet_cli.training.relaxed_data import channel_scale, relax
from snet_cli.training.state_layout import lay_out_states
from tests.alpha_cases import relaxed_spirals
from tests.refinement_cases import KNOTS, Case, Driven, Rubbing
from tests.training_cases import network


def uneven(order=4):
    """Two trajectories of 3 and 2 elements of unlike lengths."""
    return mesh_between(np.array([0.0, 0.1, 1.0, 1.5, -2.0, 1.0, 1.25]), np.array([3, 2]), order)


def series(mesh, degree, seed=0):
    """Node values of a polynomial of this degree per trajectory, two channels, and the polynomials."""
    coefficients = np.random.default_rng(seed).normal(size=(mesh.trajectories, degree + 1, 2))
    times = mesh.node_times()
    powers = times[:, :, None] ** np.arange(degree + 1)
    return np.einsum("epk,ekn->epn", powers, coefficients[mesh.trajectory])


def test_explicit_boundaries_may_be_spaced_in_any_way():
    mesh = uneven()
    assert mesh.width == pytest.approx([0.1, 0.9, 0.5, 3.0, 0.25])
    assert mesh.horizon == pytest.approx([1.5, 3.25])
    with pytest.raises(ValueError, match="strictly increasing"):
        mesh_between(np.array([0.0, 0.5, 0.5]), np.array([2]), 3)
    with pytest.raises(ValueError, match="3 boundaries do not make 3 elements in 1 trajectories"):
        mesh_between(np.array([0.0, 0.5, 1.0]), np.array([3]), 3)


def test_marked_elements_are_halved_and_no_other():
    mesh = uneven()
    finer = refine_mesh(mesh, np.array([False, True, False, True, False]))
    assert finer.boundaries == pytest.approx([0.0, 0.1, 0.55, 1.0, 1.5, -2.0, -0.5, 1.0, 1.25])
    assert finer.trajectory.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_an_element_is_cut_at_the_jump_nearest_to_its_middle_but_never_to_a_sliver():
    mesh = build_mesh(np.zeros(2), np.ones(2), 1, 3)
    jumps = [np.array([0.2, 0.6, 0.9]), np.array([0.001])]
    finer = refine_mesh(mesh, np.ones(2, bool), jumps)
    assert finer.boundaries == pytest.approx([0.0, 0.6, 1.0, 0.0, 0.5, 1.0])
    finest = refine_mesh(finer, np.ones(4, bool), jumps)
    assert finest.boundaries[:5] == pytest.approx([0.0, 0.2, 0.6, 0.9, 1.0])


def test_meshes_of_many_trajectories_hold_all_jumps_that_fit():
    rng = np.random.default_rng(0)
    start, end = rng.uniform(-1, 0, 7), rng.uniform(1, 4, 7)
    jumps = [np.sort(rng.uniform(start[b], end[b], b)) for b in range(7)]
    mesh = build_mesh(start, end, 9, 2, jumps)
    for b in range(7):
        own = mesh.boundaries[mesh.first_element[b] + b : mesh.first_element[b + 1] + b + 1]
        if jumps[b].size < own.size - 1:
            assert np.isin(jumps[b], own).all()
            # further boundaries go where elements are wide: no piece between jumps could lend another one of its own
            pieces = np.diff(np.concatenate([[start[b]], jumps[b], [end[b]]]))
            count = np.diff(np.searchsorted(own, np.concatenate([[start[b]], jumps[b], [end[b]]])))
            assert (pieces / count).max() <= (pieces / np.maximum(count - 1, 1e-9)).min() + 1e-12


@pytest.mark.parametrize("degree", [0, 3, 4])
def test_prolongation_is_exact_for_polynomials(degree):
    mesh = uneven(4)
    finer = raise_order(refine_mesh(mesh, np.array([True, False, True, True, False])), 7)
    found = prolong(mesh, series(mesh, degree), finer)
    assert found == pytest.approx(series(finer, degree), abs=1e-13 * 2.0**degree * 10)


def test_prolongation_keeps_ends_and_shares_nodes_to_the_bit():
    mesh = uneven(9)
    nodes = series(mesh, 3)
    inner = np.flatnonzero(mesh.trajectory[1:] == mesh.trajectory[:-1])
    nodes[inner, -1] = nodes[inner + 1, 0]
    finer = raise_order(refine_mesh(mesh, np.ones(5, bool)), 11)
    found = prolong(mesh, nodes, finer)
    assert (found[::2, 0] == nodes[:, 0]).all()
    assert (found[1::2, -1] == nodes[:, -1]).all()
    inner = np.flatnonzero(finer.trajectory[1:] == finer.trajectory[:-1])
    assert (found[inner, -1] == found[inner + 1, 0]).all()


def test_prolongation_refuses_meshes_that_are_not_finer():
    mesh = uneven()
    with pytest.raises(ValueError, match="reaches over a boundary"):
        prolong(mesh, series(mesh, 2), build_mesh(mesh.start, mesh.start + mesh.horizon, 2, 4))
    with pytest.raises(ValueError, match="no refinement"):
        prolong(mesh, series(mesh, 2), build_mesh(np.zeros(1), np.ones(1), 2, 4))


def test_the_decay_of_an_analytic_function_is_that_of_its_bernstein_ellipse():
    # the pole of 1 / (τ - c) lies on the ellipse of ρ = c + √(c² - 1): a_k falls like ρ^-k (Trefethen 2013, th. 8.2)
    basis = legendre_basis(24)
    for c in (1.2, 1.6, 3.0):
        nodes = (1.0 / (basis.nodes - c))[None, :, None]
        rate = decay_rate(orthonormal_coefficients(basis, nodes), 1e-13)[0, 0]
        assert rate == pytest.approx(np.log(c + np.sqrt(c**2 - 1)), rel=0.05)


def test_a_kink_decays_slowly_and_a_converged_series_says_nothing_against_a_higher_order():
    basis = legendre_basis(16)
    functions = np.stack([np.abs(basis.nodes - 0.13), np.exp(basis.nodes), np.ones(17), basis.nodes**2], -1)[None]
    kink, smooth, constant, parabola = decay_rate(orthonormal_coefficients(basis, functions), 1e-13)[0]
    assert kink < 0.4  # like k^-2: 2 / k at k = 8 … 16
    assert smooth > 1.0
    assert constant == parabola == np.inf


def test_the_unresolved_part_of_a_rate_is_the_error_of_its_integral():
    # ẋ = ψ_k with k ≥ p: x = h / (2 (2k + 1)) (ψ_{k+1} - ψ_{k-1}), whose mean square is known
    basis, h, p = legendre_basis(12), np.array([0.5, 3.0]), 4
    for k in (4, 7, 10):
        rates = np.repeat(basis.M[None, :, [k]], 2, axis=0)
        exact = h / (2 * (2 * k + 1)) * np.sqrt(1 / (2 * k + 3) + 1 / (2 * k - 1))
        assert unresolved(basis, rates, h, p)[:, 0] == pytest.approx(exact, rel=1e-12)
    assert unresolved(basis, np.repeat(basis.M[None, :, [3]], 2, axis=0), h, p) == pytest.approx(0.0, abs=1e-15)


def test_an_input_that_jumps_converges_spectrally_with_boundaries_on_its_jumps():
    case = Case(Driven(), forced=True)
    coarse, fine = case.solved(5, 8, [KNOTS[1:]]), case.solved(5, 16, [KNOTS[1:]])
    assert fine < 1e-3 * coarse  # measured 3e-4; algebraic convergence would give 2^-2 for the kink in v
    assert case.solved(1, 80) > 1000 * fine  # the same unknowns in one element


def test_refinement_finds_the_jumps_and_then_raises_the_order():
    history = Case(Driven(), forced=True).refined(1, 8, jumps=[KNOTS[1:]])
    mesh, error, plan = history[-1]
    assert plan.done
    assert plan.gain.error <= 1.0
    assert np.isin(KNOTS, mesh.boundaries).all()
    assert mesh.elements <= 8
    assert mesh.basis.order > 8
    assert error < 1e-4


def test_a_friction_that_switches_converges_with_refinement_where_one_element_stalls():
    case = Case(Rubbing(), forced=False)
    mesh, error, plan = case.refined(1, 6)[-1]
    unknowns = mesh.elements * mesh.basis.order
    assert plan.done
    assert unknowns < 140
    assert error < 1e-3
    assert case.solved(1, 64) > 30 * error
    assert case.solved(unknowns // 6, 6) > 30 * error
    switching = np.abs(case.truth[np.searchsorted(case.fine, mesh.left + 0.5 * mesh.width), 1])
    assert mesh.width[np.argmin(switching)] < 0.1 * mesh.width.max()  # small elements where v changes its sign


def test_noise_ends_refinement_sooner():
    case = Case(Driven(), forced=True)
    jumps = [KNOTS[1:]]
    exact, noisy = case.refined(1, 8, jumps=jumps), case.refined(1, 8, jumps=jumps, noise=0.05)
    assert noisy[-1][2].done
    assert noisy[-1][0].elements * noisy[-1][0].basis.order < 0.7 * exact[-1][0].elements * exact[-1][0].basis.order
    assert noisy[-1][1] < 0.05


def test_a_smooth_motion_is_left_alone():
    mesh = build_mesh(np.zeros(1), np.ones(1), 1, 14)
    nodes = np.stack([np.sin(mesh.node_times()), np.cos(mesh.node_times())], -1)

    def rates(mesh, nodes):
        return np.stack([nodes[:, :, 1], -nodes[:, :, 0]], -1)

    plan = plan_refinement(mesh, nodes, rates, scale=np.ones(2), noise=np.zeros(2))
    assert plan.done
    assert not plan.split.any()
    assert plan.order == 14
    coarse = raise_order(mesh, 3)
    nodes = np.stack([np.sin(coarse.node_times()), np.cos(coarse.node_times())], -1)
    assert not plan_refinement(coarse, nodes, rates, scale=np.ones(2), noise=np.zeros(2)).done


def test_unknowns_are_bounded_and_the_worst_elements_come_first():
    mesh = build_mesh(np.zeros(2), np.full(2, 4.0), 4, 5)
    nodes = np.zeros((8, 6, 1))
    size = np.array([1.0, 3.0, 2.0, 4.0, 4.0, 3.0, 2.0, 1.0])

    def rates(mesh, nodes):
        return (
            np.abs(mesh.basis.nodes - 0.1)[None, :, None] * size[mesh.trajectory * 4 + np.arange(8) % 4][:, None, None]
        )

    limits = np.array([4 * 5 + 1 + 2 * 5, 4 * 5 + 1])
    plan = plan_refinement(mesh, nodes, rates, scale=np.ones(1), noise=np.zeros(1), most_unknowns=limits)
    assert np.flatnonzero(plan.split).tolist() == [1, 3]
    full = plan_refinement(mesh, nodes, rates, scale=np.ones(1), noise=np.zeros(1), most_unknowns=limits - 10)
    assert full.done
    assert "all the unknowns" in full.reason


def test_refinement_that_gains_nothing_ends():
    mesh = build_mesh(np.zeros(1), np.ones(1), 2, 5)

    def rates(mesh, nodes):
        return np.abs(mesh.basis.nodes - 0.1)[None, :, None] * np.ones((2, 1, 1))

    plan = plan_refinement(mesh, np.zeros((2, 6, 1)), rates, scale=np.ones(1), noise=np.zeros(1))
    assert not plan.done
    again = plan_refinement(
        mesh, np.zeros((2, 6, 1)), rates, scale=np.ones(1), noise=np.zeros(1), before=Gain(plan.gain.error, 1)
    )
    assert again.done
    assert "gains nothing" in again.reason


def test_rates_that_are_not_finite_end_refinement():
    mesh = build_mesh(np.zeros(1), np.ones(1), 2, 5)
    plan = plan_refinement(
        mesh, np.zeros((2, 6, 1)), lambda m, x: np.full(x.shape, np.nan), scale=np.ones(1), noise=np.zeros(1)
    )
    assert plan.done
    assert "not finite" in plan.reason


def test_the_noise_of_a_state_is_what_its_samples_leave_or_that_of_the_others():
    data, _, relaxed, nodes = relaxed_spirals(6, noise=0.05, keep=1.0, missing=0.0, order=8)
    layout = lay_out_states(data.output_names, None, {})
    scale = state_sizes(relaxed, nodes)
    assert scale == pytest.approx(data.outputs.std(0), rel=0.1)
    noise = state_noise(relaxed, nodes, layout, scale, np.full(2, np.nan))
    assert noise == pytest.approx([0.05, 0.05], rel=0.3)  # 17 unknowns take 60 samples' errors down by a sixth
    assert state_noise(relaxed, nodes, layout, scale, np.array([0.01, 1.0]))[0] == pytest.approx(0.01)


def test_a_mesh_survives_being_saved():
    mesh = uneven(6)
    again = mesh_from_state({name: torch.clone(value) for name, value in mesh_state(mesh).items()})
    assert again.basis.order == 6
    assert (again.boundaries == mesh.boundaries).all()
    assert (again.first_element == mesh.first_element).all()


class HalvedOnce:
    """A remesher that halves every element of the spirals, once."""

    def __init__(self, data):
        self.data = data

    def refine(self, relaxed, nodes, before):
        mesh = relaxed.mesh
        everywhere, done = np.ones(mesh.elements, bool), before.stale > 0
        plan = Refinement(everywhere, mesh.basis.order, "", done, Gain(1.0, 1))
        if done:
            return Remeshed(plan, relaxed, nodes)
        finer = torch.from_numpy(prolong(mesh, nodes.numpy(), plan.mesh(mesh)))
        return Remeshed(plan, self.rebuild(relaxed, plan.mesh(mesh), finer), finer)

    def rebuild(self, relaxed, mesh, nodes):
        layout = lay_out_states(self.data.output_names, None, {})
        inputs, everywhere = inputs_at_nodes(mesh, self.data.inputs), np.ones(mesh.elements, bool)
        problem = assemble_problem(
            layout, mesh, nodes.numpy(), everywhere, inputs, scaled=True, device=torch.device("cpu")
        )
        channels = channel_scale(self.data.outputs, None, scaled=True)
        return relax(
            replace(problem, scale=relaxed.scale), self.data, channels, known_start=relaxed.known_start.numpy()
        )

    def scorer(self, mesh):
        return None


def joint_spirals():
    """Joint on noisy spirals with a mesh that is refined at its end."""
    data, problem, relaxed, _ = relaxed_spirals(3)
    return lambda model: Joint(problem, relaxed, model, gamma=0.1, remesher=HalvedOnce(data)), network(data)


def steps(method, number):
    for _ in range(number):
        method.step()
    return method


def test_joint_goes_on_on_the_refined_mesh_and_ends_there():
    make, model = joint_spirals()
    method = steps(make(model), 120)
    assert method.outcome == "converged"
    assert method.mesh.elements_of_longest == 4
    assert method.nodes.shape[0] == method.mesh.elements
    assert method.refined_at > 0


def test_what_scored_best_on_a_coarser_mesh_is_forgotten_when_the_mesh_is_refined():
    make, model = joint_spirals()

    class Scored(Joint):
        def held_out(self):
            return torch.tensor(1.0 + (self.refined_at > 0))  # scores of a finer mesh are larger here

    method = make(model)
    method.__class__ = Scored
    result = run(method, Limits(120, look_every=1))
    assert result.status == "converged"
    assert result.best_iteration >= method.refined_at > 0  # the step that refined is scored on the finer mesh


def test_joint_on_a_refined_mesh_is_resumed_bit_for_bit():
    make, model = joint_spirals()
    straight = make(model)
    while straight.mesh.elements_of_longest == 2:
        straight.step()
    steps(straight, 2)
    resumed = make(copy.deepcopy(straight.model))
    resumed.restore(copy.deepcopy(straight.state()))
    assert resumed.mesh.elements_of_longest == 4
    assert torch.equal(steps(resumed, 3).nodes, steps(straight, 3).nodes)
