"""Laws of u at the nodes: an exact projection that keeps each side of a jump and every element's mean."""

from __future__ import annotations

import numpy as np
import pytest

from snet_cli.data.signals import FourierInputs, Inputs, SampledInputs
from snet_cli.spectral.mesh import build_mesh
from snet_cli.training import node_inputs
from snet_cli.training.node_inputs import inputs_at_nodes, jump_times


def sampled(times, values, kind="zoh", names=("u",)):
    """One input per column of `values`, on one clock per trajectory."""
    values = [np.asarray(v, float).reshape(len(t), len(names)) for t, v in zip(times, values, strict=True)]
    rows = np.array([len(t) for t in times])
    return SampledInputs(names, rows, np.concatenate(times), np.concatenate(values), (kind,) * len(names))


def nodes_of(mesh, signal):
    return inputs_at_nodes(mesh, Inputs(signal.names, signal))


def element_means(mesh, nodes):
    """Mean of u over each element, by the element's own quadrature."""
    return 0.5 * np.einsum("p,epm->em", mesh.basis.weights, nodes)


@pytest.mark.parametrize("order", [1, 2, 7, 14])
def test_a_held_input_has_its_one_sided_values_where_boundaries_lie_on_its_jumps(order):
    knots, held = np.array([0.0, 0.3, 0.45, 1.0]), np.array([1.0, -2.0, 5.0, 7.0])
    signal = sampled([knots], [held])
    mesh = build_mesh(np.zeros(1), np.ones(1), 4, order, jump_times(signal, 1))
    expected = held[np.searchsorted(knots, mesh.left + 1e-9, side="right") - 1]
    nodes = nodes_of(mesh, signal)
    assert nodes[:, :, 0] == pytest.approx(np.repeat(expected[:, None], order + 1, axis=1), abs=1e-12)


@pytest.mark.parametrize("kind", ["zoh", "linear", "cubic"])
def test_every_element_keeps_the_mean_of_its_input(kind):
    rng = np.random.default_rng(0)
    knots = [np.sort(np.concatenate([[0.0, 2.0], rng.uniform(0, 2, 60)])), np.linspace(-1.0, 3.0, 50)]
    signal = sampled(knots, [rng.normal(size=k.size) for k in knots], kind)
    mesh = build_mesh(np.array([0.0, -0.5]), np.array([2.0, 2.7]), 5, 4)
    edges = 4001
    means = element_means(mesh, nodes_of(mesh, signal))[:, 0]
    for e in range(mesh.elements):
        cuts = np.union1d(np.linspace(mesh.left[e], mesh.left[e] + mesh.width[e], edges), knots[mesh.trajectory[e]])
        cuts = cuts[(cuts >= mesh.left[e]) & (cuts <= mesh.left[e] + mesh.width[e])]
        middle, width = 0.5 * (cuts[1:] + cuts[:-1]), np.diff(cuts)
        value = Inputs(("u",), signal).at(np.full(middle.size, mesh.trajectory[e]), middle)[:, 0]
        # the midpoint rule on each smooth cut: exact for zoh and linear, h² u'' / 24 for cubic
        assert means[e] == pytest.approx(value @ width / width.sum(), abs=1e-12 if kind != "cubic" else 1e-3)


def test_the_projection_is_orthogonal_to_what_it_leaves_out():
    rng = np.random.default_rng(1)
    knots = np.linspace(0.0, 1.0, 41)
    signal = sampled([knots], [rng.normal(size=41)])
    mesh = build_mesh(np.zeros(1), np.ones(1), 1, 6)
    nodes = nodes_of(mesh, signal)
    gauss, weight = np.polynomial.legendre.leggauss(8)
    t = (knots[:-1, None] + 0.5 * np.diff(knots)[:, None] * (gauss + 1)).ravel()
    w = (0.5 * np.diff(knots)[:, None] * weight).ravel()
    zero = np.zeros(t.size, int)
    defect = signal.values[np.searchsorted(knots, t, side="right") - 1, 0] - mesh.evaluate(nodes, zero, t)[:, 0]
    for degree in range(7):
        assert (w * defect * t**degree).sum() == pytest.approx(0.0, abs=1e-12)
    assert np.abs(defect).max() > 0.1


@pytest.mark.parametrize("order", [1, 3, 9])
def test_polynomials_up_to_the_order_come_out_exactly(order):
    knots = np.linspace(-0.5, 2.5, 12)

    def line(t):
        return 2.0 - 3.0 * t

    def cubic(t):
        return 1.0 + t - 2.0 * t**2 + 0.7 * t**3

    mesh = build_mesh(np.zeros(1), np.full(1, 2.0), 3, order)
    times = mesh.node_times()
    straight = sampled([knots], [line(knots)], "linear")
    assert nodes_of(mesh, straight)[:, :, 0] == pytest.approx(line(times), abs=1e-12)
    if order >= 3:
        curved = sampled([knots], [cubic(knots)], "cubic")  # a not-a-knot spline reproduces cubics
        assert nodes_of(mesh, curved)[:, :, 0] == pytest.approx(cubic(times), abs=1e-12)


def test_a_kinked_line_is_exact_per_element_where_a_boundary_lies_on_the_kink():
    knots, values = np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0, 1.0])
    mesh = build_mesh(np.zeros(1), np.full(1, 2.0), 2, 4)
    nodes = nodes_of(mesh, sampled([knots], [values], "linear"))
    assert nodes[:, :, 0] == pytest.approx(np.interp(mesh.node_times(), knots, values), abs=1e-13)


def test_fourier_inputs_are_evaluated_at_the_nodes_and_columns_keep_their_names():
    rng = np.random.default_rng(2)
    waves = [rng.normal(size=(2, 1, 3)) for _ in range(3)]
    fourier = FourierInputs(("w",), rng.normal(size=(2, 1)), *waves)
    knots = [np.linspace(0, 1, 4)] * 2
    held = sampled(knots, [np.ones((4, 2)) * [7.0, 9.0]] * 2, names=("z", "s"))
    inputs = Inputs(("s", "w", "z"), held, fourier)
    mesh = build_mesh(np.zeros(2), np.ones(2), 3, 5)
    nodes = inputs_at_nodes(mesh, inputs)
    times = mesh.node_times()
    owner = np.broadcast_to(mesh.trajectory[:, None], times.shape)
    assert nodes[:, :, 1].ravel() == pytest.approx(inputs.at(owner.ravel(), times.ravel())[:, 1], abs=1e-12)
    assert nodes[:, :, 0] == pytest.approx(9.0, abs=1e-12)
    assert nodes[:, :, 2] == pytest.approx(7.0, abs=1e-12)


def test_no_inputs_have_no_columns():
    mesh = build_mesh(np.zeros(2), np.ones(2), 3, 5)
    assert inputs_at_nodes(mesh, Inputs.none()).shape == (6, 6, 0)


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    knots = [np.sort(rng.uniform(-0.1, 1.1, 30)) for _ in range(3)]
    knots = [np.concatenate([[-0.2], k, [1.2]]) for k in knots]
    signal = sampled(knots, [rng.normal(size=32) for _ in knots])
    mesh = build_mesh(np.zeros(3), np.ones(3), 4, 6)
    whole = nodes_of(mesh, signal)
    monkeypatch.setattr(node_inputs, "CHUNK_PIECES", 7)
    assert nodes_of(mesh, signal) == pytest.approx(whole, abs=1e-14)


def test_jumps_are_the_changes_of_held_channels_alone():
    times = [np.array([0.0, 1.0, 2.0, 3.0]), np.array([5.0, 6.0])]
    mixed = SampledInputs(
        ("held", "line"),
        np.array([4, 2]),
        np.concatenate(times),
        np.array([[1.0, 0.0], [1.0, 5.0], [2.0, 6.0], [2.0, 7.0], [9.0, 0.0], [9.0, 1.0]]),
        ("zoh", "linear"),
    )
    assert [found.tolist() for found in jump_times(mixed, 2)] == [[2.0], []]
    assert [found.size for found in jump_times(sampled(times, [[1, 2, 3, 4], [5, 6]], "linear"), 2)] == [0, 0]
    assert [found.size for found in jump_times(None, 3)] == [0, 0, 0]
