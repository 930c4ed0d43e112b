"""Laws of the spectral room: quadrature, differentiation, rates of convergence, step 0."""

import numpy as np
import pytest
from numpy.polynomial import legendre as numpy_legendre

from snet_cli.spectral.fitting import Samples, fit_series, shared_derivative
from snet_cli.spectral.legendre import gauss_lobatto, legendre_basis, legendre_derivatives, legendre_values
from snet_cli.spectral.mesh import build_mesh
from snet_cli.spectral.selection import choose_discretisation
from tests.problems import oscillators

ORDERS = (1, 2, 3, 14, 15, 40, 100)


@pytest.mark.parametrize("order", ORDERS)
def test_quadrature_is_symmetric_to_the_last_bit_and_exact_to_degree_2p_minus_1(order):
    nodes, weights = gauss_lobatto(order)
    assert np.array_equal(nodes, -nodes[::-1])
    assert np.array_equal(weights, weights[::-1])
    assert nodes[0] == -1.0
    assert nodes[-1] == 1.0
    for degree in range(2 * order):
        exact = 0.0 if degree % 2 else 2.0 / (degree + 1)
        # sums of at most 101 positive terms of size 2 / p: a few hundred ulps at worst
        assert weights @ nodes**degree == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize("order", ORDERS)
def test_quadrature_is_not_exact_at_degree_2p(order):
    nodes, weights = gauss_lobatto(order)
    values = legendre_values(nodes, order)[:, order]
    assert weights @ values**2 == pytest.approx(2.0 / order)  # the continuous norm is 2 / (2p + 1)


@pytest.mark.parametrize("order", ORDERS)
def test_mass_matrix_is_diagonal_with_last_entry_two_over_p(order):
    basis = legendre_basis(order)
    mass = basis.M.T @ (basis.weights[:, None] * basis.M)
    expected = 2.0 / (2.0 * np.arange(order + 1) + 1.0)
    expected[-1] = 2.0 / order
    assert mass == pytest.approx(np.diag(expected), abs=1e-13)
    assert basis.M @ basis.M_inverse == pytest.approx(np.eye(order + 1), abs=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_values_and_derivatives_agree_with_numpy(order):
    tau = np.linspace(-1, 1, 41)
    assert legendre_values(tau, order) == pytest.approx(numpy_legendre.legvander(tau, order), abs=1e-12)
    top = numpy_legendre.legval(tau, numpy_legendre.legder(np.eye(order + 1)[order]))
    assert legendre_derivatives(tau, order)[:, order] == pytest.approx(top, abs=1e-9 * order**2)


@pytest.mark.parametrize("order", [2, 5, 14, 30])
def test_differentiation_is_exact_on_polynomials(order):
    basis = legendre_basis(order)
    assert basis.differentiation @ np.ones(order + 1) == pytest.approx(np.zeros(order + 1), abs=1e-12)
    for degree in range(1, order + 1):
        exact = degree * basis.nodes ** (degree - 1)
        # rounding grows like p² (Canuto et al. 1988, sec. 2.4)
        assert basis.differentiation @ basis.nodes**degree == pytest.approx(exact, abs=1e-13 * order**2 * degree)


def test_nodes_of_order_four_are_those_of_the_published_table():
    # Abramowitz & Stegun, table 25.6, n = 5
    nodes, weights = gauss_lobatto(4)
    assert nodes[3] == pytest.approx(0.6546536707, abs=5e-11)
    assert weights[[2, 3, 4]] == pytest.approx([0.7111111111, 0.5444444444, 0.1], abs=5e-11)


@pytest.mark.parametrize("order", [0, 101])
def test_order_outside_the_range_is_refused(order):
    with pytest.raises(ValueError, match=f"polynomial order {order} is outside 1 … 100"):
        gauss_lobatto(order)


def interpolation_error(function, order, elements):
    mesh = build_mesh(np.array([-1.0]), np.array([1.0]), elements, order)
    nodes = function(mesh.node_times())[:, :, None]
    fine = np.linspace(-1, 1, 2001)
    return np.abs(mesh.evaluate(nodes, np.zeros(fine.size, int), fine)[:, 0] - function(fine)).max()


def test_error_falls_exponentially_with_order_on_a_smooth_function():
    errors = [interpolation_error(lambda t: np.exp(np.sin(4 * t)), p, 1) for p in (10, 20, 30)]
    assert errors[1] < 1e-2 * errors[0]
    assert errors[2] < 1e-2 * errors[1]


def test_error_falls_algebraically_on_a_kink():
    errors = [interpolation_error(np.abs, p, 1) for p in (9, 19, 39, 79)]
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert rates == pytest.approx(np.ones(3), abs=0.1)  # |t| is approximated like 1 / p (Bernstein 1914)


def test_a_boundary_on_the_kink_restores_the_rate():
    def kinked(t):
        return np.abs(t) * np.exp(t)

    assert interpolation_error(kinked, 20, 1) > 1e-3
    assert interpolation_error(kinked, 20, 2) < 1e-12


def test_mesh_shares_elements_by_length_and_hits_both_ends():
    start, end = np.array([0.0, 5.0, -1.0]), np.array([10.0, 7.5, -0.9])
    mesh = build_mesh(start, end, 8, 4)
    assert np.diff(mesh.first_element).tolist() == [8, 2, 1]
    times = mesh.node_times()
    first, last = mesh.first_element[:-1], mesh.first_element[1:] - 1
    assert times[first, 0].tolist() == start.tolist()
    assert times[last, -1].tolist() == end.tolist()
    inner = np.flatnonzero(np.diff(mesh.trajectory) == 0)
    assert np.array_equal(times[inner, -1], times[inner + 1, 0])
    weights = np.bincount(mesh.trajectory, mesh.node_weights().sum(1))
    assert weights == pytest.approx(np.ones(3))


def test_mesh_puts_boundaries_on_jumps_where_there_is_room():
    jumps = [np.array([0.3, 0.7])]
    mesh = build_mesh(np.zeros(1), np.ones(1), 6, 3, jumps)
    assert mesh.elements == 6
    assert {0.3, 0.7} <= set(mesh.boundaries.tolist())
    crowded = build_mesh(np.zeros(1), np.ones(1), 2, 3, jumps)
    assert crowded.boundaries == pytest.approx([0, 0.5, 1])


def test_locate_finds_every_time_in_its_element():
    mesh = build_mesh(np.array([0.0, 100.0]), np.array([1.0, 103.0]), 7, 3)
    rng = np.random.default_rng(0)
    trajectory = rng.integers(0, 2, 500)
    time = mesh.start[trajectory] + rng.random(500) * mesh.horizon[trajectory]
    element, tau = mesh.locate(trajectory, time)
    assert np.array_equal(mesh.trajectory[element], trajectory)
    assert mesh.left[element] + 0.5 * (tau + 1) * mesh.width[element] == pytest.approx(time, abs=1e-12)


@pytest.mark.parametrize(("elements", "order"), [(1, 24), (4, 12), (16, 6)])
def test_step_zero_recovers_smooth_trajectories_and_their_slopes(elements, order):
    samples, exact, slope = oscillators(5, 120)
    mesh = build_mesh(np.zeros(5), np.full(5, 10.0), elements, order)
    fit = fit_series(mesh, samples)
    assert fit.determined.all()
    assert fit.penalty == 0.0
    times = mesh.node_times()
    owner = np.broadcast_to(mesh.trajectory[:, None], times.shape)
    assert np.abs(fit.nodes - exact(owner, times)).max() < 5e-4
    assert np.abs(shared_derivative(mesh, fit.nodes) - slope(owner, times)).max() < 2e-2


def test_step_zero_is_the_dense_least_squares_solution():
    rng = np.random.default_rng(1)
    time = np.sort(rng.random(60)) * 3
    values = rng.standard_normal((60, 2))
    values[rng.random((60, 2)) < 0.2] = np.nan
    mesh = build_mesh(np.zeros(1), np.full(1, 3.0), 3, 4)
    fit = fit_series(mesh, Samples(np.zeros(60, int), time, values))
    element, tau = mesh.locate(np.zeros(60, int), time)
    design = np.zeros((60, 3 * 4 + 1))
    for k in range(60):
        design[k, 4 * element[k] : 4 * element[k] + 5] = legendre_values(tau[k], 4) @ mesh.basis.M_inverse
    for channel in range(2):
        rows = np.isfinite(values[:, channel])
        dense = np.linalg.lstsq(design[rows], values[rows, channel], rcond=None)[0]
        ours = np.concatenate([fit.nodes[:, :-1, channel].ravel(), fit.nodes[-1, -1:, channel]])
        assert ours == pytest.approx(dense, abs=1e-9)


def test_a_known_start_is_met_exactly_and_others_stay_free():
    samples, exact, _ = oscillators(4, 40)
    noisy = samples._replace(values=samples.values + 0.1 * np.random.default_rng(0).standard_normal((160, 2)))
    x0 = exact(np.arange(4), np.zeros(4))
    x0[1, 0] = np.nan
    mesh = build_mesh(np.zeros(4), np.full(4, 10.0), 2, 8)
    fit = fit_series(mesh, noisy, x0)
    first = fit.nodes[mesh.first_element[:-1], 0]
    known = np.isfinite(x0)
    assert first[known] == pytest.approx(x0[known], abs=1e-13)
    free = fit_series(mesh, noisy)
    assert fit.nodes[mesh.trajectory == 1][:, :, 0] == pytest.approx(free.nodes[mesh.trajectory == 1][:, :, 0])


def test_conditioning_is_what_equispaced_samples_promise():
    for count, order, low, high in ((25, 14, 6, 9), (100, 28, 4, 7), (25, 20, 300, 1000)):
        samples, _, _ = oscillators(1, count)
        fit = fit_series(build_mesh(np.zeros(1), np.full(1, 10.0), 1, order), samples)
        assert low < fit.condition < high


def test_too_few_samples_are_held_by_a_penalty_and_say_so():
    samples, exact, _ = oscillators(3, 12, horizon=2.0)
    mesh = build_mesh(np.zeros(3), np.full(3, 2.0), 1, 20)
    fit = fit_series(mesh, samples)
    assert fit.penalty > 0
    assert not fit.determined.any()
    times = mesh.node_times()
    assert np.abs(fit.nodes - exact(np.broadcast_to(mesh.trajectory[:, None], times.shape), times)).max() < 0.2


def test_elements_in_a_gap_are_undetermined_and_bridged_without_spikes():
    samples, _, _ = oscillators(1, 400)
    outside = (samples.time < 4) | (samples.time > 7)
    mesh = build_mesh(np.zeros(1), np.full(1, 10.0), 20, 5)
    fit = fit_series(mesh, samples.subset(outside))
    gap = (mesh.left >= 4) & (mesh.left + mesh.width <= 7)
    assert not fit.determined[gap].any()
    assert fit.determined[~gap].mean() > 0.9
    assert np.abs(fit.nodes).max() < 3


def test_an_empty_channel_of_one_trajectory_takes_the_channels_mean():
    samples, _, _ = oscillators(3, 50)
    values = samples.values.copy()
    values[samples.trajectory == 1, 1] = np.nan
    mesh = build_mesh(np.zeros(3), np.full(3, 10.0), 2, 8)
    fit = fit_series(mesh, samples._replace(values=values))
    middle = np.nanmean(values[:, 1])
    assert fit.nodes[mesh.trajectory == 1][:, :, 1] == pytest.approx(middle, abs=1e-6)


def test_powers_of_two_on_a_channel_change_no_bit():
    samples, _, _ = oscillators(3, 50)
    mesh = build_mesh(np.zeros(3), np.full(3, 10.0), 2, 8)
    fit = fit_series(mesh, samples)
    scaled = fit_series(mesh, samples._replace(values=samples.values * 2.0**30))
    assert np.array_equal(scaled.nodes, fit.nodes * 2.0**30)


def test_slopes_are_observations_too():
    samples, exact, slope = oscillators(2, 31)
    every_other = samples.subset(np.arange(62) % 31 % 2 == 0)
    slopes = slope(every_other.trajectory, every_other.time)
    mesh = build_mesh(np.zeros(2), np.full(2, 10.0), 1, 18)
    times = mesh.node_times()
    owner = np.broadcast_to(mesh.trajectory[:, None], times.shape)
    with_slopes = fit_series(mesh, every_other._replace(slopes=slopes, slope_weight=np.ones(2)))
    without = fit_series(mesh, every_other)
    error = [np.abs(fit.nodes - exact(owner, times)).max() for fit in (with_slopes, without)]
    assert error[0] < 0.2 * error[1]


def test_automatic_order_follows_the_data():
    """Twice the frequency needs a finer discretisation, noise needs a coarser one."""
    samples, _, _ = oscillators(20, 100)
    start, end = np.zeros(20), np.full(20, 10.0)
    smooth = choose_discretisation(start, end, samples, None)
    longer, _, _ = oscillators(20, 100, horizon=20.0)
    fast = choose_discretisation(start, end, longer._replace(time=longer.time / 2), None)
    noise = 0.05 * np.random.default_rng(0).standard_normal(samples.values.shape)
    noisy = choose_discretisation(start, end, samples._replace(values=samples.values + noise), None)
    assert smooth.error < 1e-3
    assert noisy.order * noisy.elements < smooth.order * smooth.elements <= fast.order * fast.elements
    assert noisy.channel_error == pytest.approx([0.05, 0.05], rel=0.4)


def test_given_order_or_elements_are_kept():
    samples, _, _ = oscillators(4, 100)
    start, end = np.zeros(4), np.full(4, 10.0)
    assert choose_discretisation(start, end, samples, None, order=9).order == 9
    assert choose_discretisation(start, end, samples, None, elements=3).elements == 3
    both = choose_discretisation(start, end, samples, None, order=5, elements=2)
    assert (both.order, both.elements) == (5, 2)
