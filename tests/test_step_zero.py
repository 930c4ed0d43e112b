"""Laws of step 0 on a data set: pairs q' = v, gaps, notes, and what it believes of the noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from snet_cli.errors import DataError
from snet_cli.spectral.fitting import shared_derivative
from snet_cli.training.held_out_noise import noise_if_exact
from snet_cli.training.state_layout import lay_out_states
from snet_cli.training.step_zero import step_zero
from tests.shooting_cases import recording
from tests.training_cases import pendulums, problem_of, series, spirals

PAIR = {"q": "v"}


def chosen(data, second_order=None, **options):
    """Step 0 with the discretisation that it chooses."""
    layout = lay_out_states(data.output_names, None, second_order or {})
    values = {"order": None, "elements": None, "known_start": False, "scaled_misfit": True, "seed": 0, **options}
    return step_zero(data, layout, second_order or {}, **values)


@pytest.mark.parametrize("both", [True, False])
def test_the_velocity_of_a_pair_is_the_derivative_of_its_position_at_every_node(both):
    data = pendulums(noise=(0.01, 0.02), both=both)
    zero = series(data, PAIR, order=8, elements=3)
    q, v = zero.nodes[:, :, [0]], zero.nodes[:, :, 1]
    assert np.array_equal(v, shared_derivative(zero.mesh, q)[:, :, 0])


def test_an_unmeasured_velocity_is_found():
    measured, hidden = pendulums(), pendulums(both=False)
    zero = series(hidden, PAIR, order=12, elements=2)
    found = zero.mesh.evaluate(zero.nodes, measured.trajectory_of_row(), measured.time)[:, 1]
    assert np.abs(found - measured.outputs[:, 1]).max() < 1e-3


def test_samples_of_the_velocity_are_used_as_slopes_of_the_position():
    """With a noisy position and an exact velocity, the position's series is better than the position alone gives."""
    exact = pendulums(samples=60)
    noisy = pendulums(samples=60, noise=(0.1, 1e-4))
    alone = replace(noisy, outputs=noisy.outputs[:, :1], output_names=("q",), state_names=("q",))

    def error(zero):
        return np.sqrt(
            np.mean((zero.mesh.evaluate(zero.nodes, exact.trajectory_of_row(), exact.time) - exact.outputs)[:, 1] ** 2)
        )

    assert error(series(noisy, PAIR)) < 0.1 * error(series(alone, PAIR))


def test_a_chain_of_integrators_keeps_a_series_for_what_lies_between():
    data = pendulums()
    t = data.time
    triple = replace(
        data,
        outputs=np.stack([t**3, 3 * t**2, 6 * t], -1),
        output_names=("q", "v", "a"),
        state_names=("q", "v", "a"),
    )
    zero = series(triple, {"q": "v", "v": "a"}, order=5, elements=1)
    times = zero.mesh.node_times()
    assert zero.nodes[:, :, 0] == pytest.approx(times**3, abs=1e-8)
    assert zero.nodes[:, :, 1] == pytest.approx(3 * times**2, abs=1e-8)
    assert zero.nodes[:, :, 2] == pytest.approx(6 * times, abs=1e-7)


def test_elements_in_a_gap_do_not_count_and_a_note_says_how_many():
    data = spirals(4, 80)
    gap = (data.trajectory_of_row() == 2) & (data.time > 1.0) & (data.time < 3.0)
    zero = series(data.select_rows(~gap), order=5, elements=8)
    inside = (zero.mesh.trajectory == 2) & (zero.mesh.left >= 1.0) & (zero.mesh.left + zero.mesh.width <= 3.0)
    assert inside.sum() >= 3
    assert not zero.counts[inside].any()
    assert zero.counts[zero.mesh.trajectory != 2].all()
    out = int((~zero.counts).sum())
    assert zero.notes == (f"{out} of 32 elements lie in gaps of the data and do not count in the residual.",)


def test_data_that_determines_hardly_any_element_counts_all_the_same_and_says_so():
    zero = series(spirals(3, 8), order=20, elements=1)
    assert zero.counts.all()
    assert zero.penalty > 0
    (note,) = zero.notes
    assert note.startswith("3 of 3 elements are not determined by their samples; step 0 is smoothed (strength ")
    assert note.endswith("A lower --order or fewer --elements may serve better.")


def test_dense_smooth_data_needs_no_note():
    zero = chosen(spirals(4, 80))
    assert zero.notes == ()
    assert zero.penalty == 0.0
    assert zero.error.max() < 1e-5


@pytest.mark.parametrize(("order", "elements"), [(18, 1), (10, 2)])
def test_exact_data_is_known_beside_a_discretisation_that_is_given(order, elements):
    sizes = {"order": order, "elements": elements, "known_start": True, "seed": 0}
    exact, noisy, few = spirals(5, 60), spirals(5, 60, noise=0.02), spirals(5, 6)
    # 60 samples carry these coefficients of a spiral to five digits
    assert (noise_if_exact(exact, lay_out_states(exact.output_names, None, {}), **sizes) < 1e-5).all()
    for data in (noisy, few):  # what is noise there, and what the series misses, nobody knows
        assert np.isnan(noise_if_exact(data, lay_out_states(data.output_names, None, {}), **sizes)).all()


@pytest.mark.parametrize("noise", [1e-3, 0.03])
def test_the_noise_of_simulated_data_is_estimated_within_a_factor_of_two(noise):
    zero = chosen(spirals(10, 80, noise=noise))
    assert (zero.noise > 0.5 * noise).all()
    assert (zero.noise < 2.0 * noise).all()


def test_what_the_noise_leaves_in_the_derivative_is_estimated_within_a_factor_of_four():
    noise, sizes = 0.02, {"order": 8, "elements": 2}
    clean, noisy = spirals(20, 80), spirals(20, 80, noise=noise)
    exact, zero = series(clean, **sizes), series(noisy, **sizes)
    defect = zero.mesh.derivative(zero.nodes) - exact.mesh.derivative(exact.nodes)
    true = np.einsum("ep,epn->n", zero.mesh.node_weights(), defect**2) / 20
    assert (zero.rate_variance < 4.0 * true).all()
    assert (zero.rate_variance > true / 4.0).all()


def test_noise_free_data_leaves_next_to_nothing_in_the_derivative():
    zero = chosen(spirals(10, 80))
    rms = np.sqrt((zero.mesh.derivative(zero.nodes) ** 2).mean())
    assert (np.sqrt(zero.rate_variance) < 1e-3 * rms).all()


def test_a_trajectory_with_one_sample_is_refused_by_name():
    data = recording([np.linspace(0, 1, 9), np.array([2.0])], [np.zeros((9, 1)), np.ones((1, 1))], ("x",))
    with pytest.raises(DataError) as caught:
        series(data)
    assert caught.value.message == "trajectory '1' has 1 sample(s); training needs 2."
    assert caught.value.hint == "Leave it out of the file, or put it in the split 'test'."


def test_a_known_start_is_met_exactly_by_states_of_the_same_name():
    data = spirals(4, 60, noise=0.05)
    x0 = np.array([[0.1, 0.2]] * 4)
    x0[1, 0] = np.nan
    known = replace(data, x0=x0)
    zero = series(known, known_start=True)
    first = zero.nodes[zero.mesh.first_element[:-1], 0]
    assert first[np.isfinite(x0)] == pytest.approx(x0[np.isfinite(x0)], abs=1e-13)
    free = series(known, known_start=False)
    assert np.array_equal(free.nodes, series(data).nodes)


def test_the_misfit_counts_each_sample_time_once_and_missing_values_never():
    data = spirals(3, 60, noise=0.1)
    zero = series(data, order=4, elements=1)
    deviation = data.outputs.std(0)
    left = zero.mesh.evaluate(zero.nodes, data.trajectory_of_row(), data.time) - data.outputs
    assert zero.misfit == pytest.approx(((left / deviation) ** 2).sum() / data.time.size)
    assert zero.error == pytest.approx(np.sqrt((left**2).mean(0)))
    missing = data.outputs.copy()
    missing[::3, 0], missing[1::3] = np.nan, np.nan
    sparse = replace(data, outputs=missing)
    zero = series(sparse, order=4, elements=1)
    left = zero.mesh.evaluate(zero.nodes, data.trajectory_of_row(), data.time) - missing
    deviation = np.nanstd(missing, 0)
    times = np.isfinite(missing).any(1).sum()
    assert zero.misfit == pytest.approx(np.nansum((left / deviation) ** 2) / times)


def test_trajectories_may_start_anywhere_in_time():
    data = spirals(4, 60)
    moved = replace(data, time=data.time + 1000.0 * data.trajectory_of_row(), inputs=data.inputs)
    here, there = series(data), series(moved)
    assert there.nodes == pytest.approx(here.nodes, abs=1e-9)
    problem = problem_of(data)
    assert problem.t.min() == 0.0
