"""Common times of unlike trajectories, the edges where steps end, initial states, and gradient norms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snet_cli.models.options import VehicleOptions
from snet_cli.models.registry import build_model, state_space
from snet_cli.simulation.simulate import simulate
from snet_cli.spectral.mesh import build_mesh
from snet_cli.training.gradient_norms import horizons_of, residual_gradient_norms, shooting_gradient_norms
from snet_cli.training.node_inputs import inputs_at_nodes
from snet_cli.training.problem import assemble_problem
from snet_cli.training.shooting_batches import batch_trajectories, initial_states
from snet_cli.training.state_layout import StateLayout, lay_out_states
from snet_cli.training.step_zero import step_zero
from tests.shooting_cases import Explosive, driven_data, held, layout_of, recording


def batches_of(data, **options):
    return batch_trajectories(data, layout_of(data), data.inputs.names, (), **{"scaled": False, **options})


def test_the_union_holds_every_sample_time_once():
    data = driven_data(unlike=True)
    (batch,) = batches_of(data)
    since = data.time - data.start[data.trajectory_of_row()]
    np.testing.assert_allclose(batch.times.numpy(), np.unique(since), atol=1e-12)
    np.testing.assert_allclose(batch.times[batch.sample_time].numpy(), since, atol=1e-12)
    assert set(batch.times.tolist()) <= set(batch.grid.tolist())
    assert set(batch.inputs.edges) <= set(batch.grid.tolist())


def test_times_that_differ_by_rounding_are_one():
    times = [np.linspace(0.0, 1.0, 11), 1.0e6 + np.linspace(0.0, 1.0, 11)]
    data = recording(times, [np.zeros((11, 1))] * 2, ("x",))
    (batch,) = batches_of(data)
    assert batch.times.numel() == 11


def test_each_side_of_an_edge_sees_its_own_input():
    starts = np.array([0.0, 1.0e5])
    knots = [s + np.array([0.0, 0.4, 1.0]) for s in starts]
    values = [np.array([1.0, 2.0, 3.0]), np.array([-1.0, -2.0, -3.0])]
    times = [s + np.array([0.0, 0.5, 1.0]) for s in starts]
    data = recording(times, [np.zeros((3, 1))] * 2, ("x",), held(knots, values))
    (batch,) = batches_of(data)
    inputs = batch.inputs
    assert inputs.edges == pytest.approx([0.4], abs=1e-9)
    edge = torch.tensor(inputs.edges[0], dtype=torch.float64)
    before, after = torch.nextafter(edge, edge - 1), torch.nextafter(edge, edge + 1)
    cases = [(before, False, 1.0), (edge, False, 2.0), (after, False, 2.0), (edge, True, 1.0), (after, True, 2.0)]
    for t, backward, expected in cases:
        u = inputs.values(t, inputs.interval(t.item(), backward=backward))
        assert u.flatten().tolist() == [expected, -expected]


def test_trajectories_run_until_their_own_end():
    times = [np.linspace(0.0, end, 5) for end in (1.0, 2.0, 4.0)]
    (batch,) = batches_of(recording(times, [np.zeros((5, 1))] * 3, ("x",)))
    assert batch.inputs.edges == (1.0, 2.0)
    running = [batch.inputs.running(batch.inputs.interval(t)).flatten().tolist() for t in (0.0, 0.99, 1.0, 1.5, 3.0)]
    assert running == [[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_the_loss_is_measured_in_standard_deviations():
    data = driven_data()
    (batch,) = batches_of(data, scaled=True)
    c = data.outputs.std(0)
    np.testing.assert_allclose(batch.weight.numpy(), np.broadcast_to(1 / c**2 / 39, (39, 2)))


def test_initial_states_are_known_else_measured_else_the_mean_start():
    outputs = [np.array([[np.nan], [2.0], [3.0]]), np.array([[5.0], [6.0], [7.0]]), np.full((3, 1), np.nan)]
    times = [np.array([0.0, 1.0, 2.0])] * 3
    data = recording(times, outputs, ("q",), x0=np.array([[np.nan], [4.0], [np.nan]]))
    layout = lay_out_states(("q",), None, {"q": "v"})
    assert layout.states == ("q", "v")
    start = np.array([8.0, 9.0])
    assert initial_states(data, layout, start=start).tolist() == [[2.0, 9.0], [4.0, 9.0], [8.0, 9.0]]
    free = initial_states(data, layout, known_start=False)
    assert free.tolist() == [[2.0, 0.0], [5.0, 0.0], [0.0, 0.0]]


def test_a_mixed_output_moves_the_start_no_farther_than_it_must():
    data = recording([np.array([0.0, 1.0])], [np.ones((2, 1))], ("sum",))
    layout = StateLayout(("x1", "x2"), ("sum",), np.array([[1.0, 1.0]]), ())
    np.testing.assert_allclose(initial_states(data, layout), [[0.5, 0.5]])
    np.testing.assert_allclose(initial_states(data, layout, start=np.array([1.0, 2.0])), [[0.0, 1.0]], atol=1e-12)


def vehicle_problem(data):
    """Step 0 of order 14 with the settings of the paper, and an untrained model."""
    space = state_space("vehicle", data.output_names, data.inputs.names)
    layout = lay_out_states(data.output_names, space.states, {})
    zero = step_zero(data, layout, {}, order=14, elements=1, known_start=True, scaled_misfit=False, seed=0)
    mesh = build_mesh(data.start, data.end, 1, 14)
    u = inputs_at_nodes(mesh, data.inputs)
    constants = np.ones((*u.shape[:2], 2))
    problem = assemble_problem(
        layout,
        zero.mesh,
        zero.nodes,
        zero.counts,
        np.concatenate([u, constants], 2),
        scaled=False,
        device=torch.device("cpu"),
    )
    return problem, layout, space, build_model("vehicle", VehicleOptions(), space, seed=3, dtype=torch.float64)


def test_the_gradient_of_snet_does_not_grow_with_the_horizon_and_that_of_a_solver_does():
    data = simulate("vehicle", trajectories=10).trajectories
    problem, layout, space, model = vehicle_problem(data)
    horizons = horizons_of(data, count=3)
    assert horizons == (2.5, 5.0, 10.0)
    ours = [norm for _, norm in residual_gradient_norms(problem, model, horizons)]
    theirs = [
        norm
        for _, norm in shooting_gradient_norms("bkpr-euler", data, layout, space.inputs, model, horizons, scaled=False)
    ]
    assert max(ours) < 3 * min(ours)
    assert theirs[-1] > 10 * theirs[0]  # at a start small enough for every solver; it is hundreds at one that is not


def test_a_gradient_that_does_not_exist_is_none():
    times = np.linspace(0.0, 4.0, 41)
    data = recording([times], [np.ones((41, 1))], ("x",), x0=np.array([[0.5]]))  # infinite at t = 2
    norms = shooting_gradient_norms("bkpr-dopri5", data, layout_of(data), (), Explosive(), (1.0, 4.0), scaled=False)
    assert norms[0].norm > 0
    assert norms[1] == (4.0, None)
