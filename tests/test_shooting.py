"""The solver baselines: same loss as ours, right gradients, and failures that have names."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from snet_cli.errors import UsageError
from snet_cli.integration import InputSignal, integrate
from snet_cli.training.loop import Limits, run
from snet_cli.training.shooting import SHOOTING, Shooting, SolverTolerances, chunks, named_failures
from snet_cli.training.shooting_batches import batch_trajectories
from tests.shooting_cases import (
    Driven,
    Explosive,
    driven_data,
    gradient_of,
    layout_of,
    method_on,
    recording,
)


def our_loss(model, data):
    """L by our own integrator, each trajectory on its own times."""
    signal = InputSignal.from_inputs(data.inputs, len(data))
    solution = integrate(
        model,
        torch.from_numpy(data.x0),
        torch.from_numpy(data.start),
        torch.from_numpy(data.row_size),
        torch.from_numpy(data.time),
        signal,
    )
    mask = np.isfinite(data.outputs)
    error = np.where(mask, solution.states.numpy() - np.where(mask, data.outputs, 0.0), 0.0)
    return float((error**2).sum() / mask.any(1).sum())


def test_euler_takes_one_step_per_sample_and_per_jump_of_the_input():
    data = driven_data(trajectories=2)
    model = Driven()
    grid = np.unique(np.round(np.concatenate([data.time, 0.37 * np.arange(9)]), 12))
    signal = InputSignal.from_inputs(data.inputs, 2)
    x = torch.from_numpy(data.x0)
    visited = {0.0: x}
    for left, right in itertools.pairwise(grid.tolist()):
        time = torch.full((2,), left + 1e-10, dtype=torch.float64)
        x = x + (right - left) * model(time, x, signal.values(time)).detach()
        visited[float(right)] = x
    states = torch.stack([visited[float(t)] for t in np.round(data.time[:13], 12)])  # (T, B, n)
    error = states.transpose(0, 1).reshape(-1, 2).numpy() - data.outputs
    expected = (error**2).sum() / len(data.time)
    assert method_on("bkpr-euler", model, data).gradient() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("starts", [pytest.param(0.0, marks=pytest.mark.slow), 1.0e6])
@pytest.mark.parametrize("unlike", [False, True])
def test_dopri5_has_the_loss_of_our_integrator(unlike, starts):
    data = driven_data(unlike=unlike, starts=starts)
    model = Driven()
    for name in ("bkpr-dopri5", "adj-dopri5", "anode"):
        # one error norm for the whole batch there, one per trajectory here; absolute times of 1e6 carry 1e-10 s
        assert method_on(name, model, data).gradient() == pytest.approx(our_loss(model, data), rel=1e-6)


def test_missing_values_do_not_count_and_their_sample_times_neither():
    data = driven_data()
    data.outputs[::3, 0] = np.nan
    data.outputs[6] = np.nan
    model = Driven()
    assert method_on("bkpr-dopri5", model, data).gradient() == pytest.approx(our_loss(model, data), rel=1e-6)


def test_groups_do_not_change_loss_or_gradient():
    data = driven_data(trajectories=5, unlike=True)
    model = Driven()
    together = gradient_of(method_on("bkpr-dopri5", model, data))
    method = method_on("bkpr-dopri5", model, data, union_limit=30)
    assert len(method.solutions) > 1
    assert max(s.batch.grid.numel() for s in method.solutions) <= 30
    apart = gradient_of(method)
    assert apart[0] == pytest.approx(together[0], rel=1e-6)
    torch.testing.assert_close(apart[1], together[1], rtol=1e-5, atol=1e-7)


def test_equal_clocks_share_a_batch_whatever_the_limit():
    data = driven_data(trajectories=4)
    layout = layout_of(data)
    batches = batch_trajectories(data, layout, ("u",), (), scaled=False, union_limit=5)
    assert len(batches) == 1
    assert batches[0].times.numel() == 13


def test_the_gradient_through_steps_is_that_of_finite_differences():
    data = driven_data()
    model = Driven()
    method = method_on("bkpr-euler", model, data)
    _, gradient = gradient_of(method)
    losses = []
    for change in (1e-5, -2e-5):
        with torch.no_grad():
            model.decay += change
        losses.append(method.gradient())
    assert gradient[0].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-7)


def test_the_adjoint_has_the_gradient_of_backpropagation():
    data = driven_data(unlike=True)
    model = Driven()
    value, gradient = gradient_of(method_on("bkpr-dopri5", model, data))
    adjoint_value, adjoint = gradient_of(method_on("adj-dopri5", model, data))
    assert adjoint_value == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(adjoint, gradient, rtol=1e-5, atol=1e-7)


def test_the_adjoint_of_euler_errs_by_the_step():
    def error(samples):
        data = driven_data(samples=samples)
        data.outputs[:] = np.sin(data.time)[:, None]
        model = Driven()
        through_steps = gradient_of(method_on("bkpr-euler", model, data))[1]
        return float((gradient_of(method_on("adj-euler", model, data))[1] - through_steps).norm())

    assert error(31) / error(61) == pytest.approx(2.0, abs=0.1)  # first order, across the jumps of the input too


def test_anode_has_the_gradient_of_backpropagation():
    data = driven_data(samples=40)
    model = Driven()
    value, gradient = gradient_of(method_on("bkpr-dopri5", model, data))
    chunked_value, chunked = gradient_of(method_on("anode", model, data))
    assert chunked_value == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(chunked, gradient, rtol=1e-5, atol=1e-7)


def test_anode_keeps_less_between_forward_and_backward():
    data = driven_data(samples=40)

    def kept(name):
        method = method_on(name, Driven(), data)
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            method.solutions[0].states()
        return sum(sizes)

    # √40 of 40 pieces stay; what autograd saves inside a piece is some hundred times its end state
    assert kept("anode") < kept("bkpr-dopri5") / 10


@pytest.mark.parametrize("intervals", [0, 1, 2, 5, 9, 10, 99])
def test_chunks_cover_all_times_in_about_root_n_pieces(intervals):
    times = torch.arange(intervals + 1, dtype=torch.float64)
    pieces = chunks(times)
    assert len(pieces) == math.ceil(math.sqrt(intervals))
    assert [t for piece in pieces for t in piece[1:].tolist()] == times[1:].tolist()
    assert all(len(piece) >= 2 for piece in pieces)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "anode" else name for name in sorted(SHOOTING)]
)
def test_every_baseline_learns(name):
    data = driven_data(trajectories=1, samples=4)
    target = Driven()
    with torch.no_grad():
        target.decay += 0.5
        target.b *= 1.5
    signal = InputSignal.from_inputs(data.inputs, len(data))
    truth = integrate(
        target,
        torch.from_numpy(data.x0),
        torch.from_numpy(data.start),
        torch.from_numpy(data.row_size),
        torch.from_numpy(data.time),
        signal,
    )
    data.outputs[:] = truth.states.numpy()
    method = method_on(name, Driven(), data, scaled=True)
    result = run(method, Limits(iterations=6))
    assert result.status == "iterations"
    assert result.evaluations == 6
    assert result.history[-1, 2] < 0.95 * result.history[0, 2]


def test_weights_of_32_bits_are_trained_by_states_of_64():
    data = driven_data(samples=6)
    for name in ("bkpr-dopri5", "adj-dopri5"):
        model = Driven(torch.float32)
        method = method_on(name, model, data)
        assert math.isfinite(method.step().total)
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        assert method.solutions[0].states().dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("bkpr-dopri5", "underflow in dt"),
        ("adj-dopri5", "underflow in dt"),
        ("anode", "underflow in dt"),
        ("bkpr-euler", "the solution is not finite"),
        ("adj-euler", "the solution is not finite"),
    ],
)
def test_a_solver_failure_has_a_name_and_leaves_the_last_good_weights(name, failure):
    times = np.linspace(0.0, 10.0, 101)
    data = recording([times], [np.ones((101, 1))], ("x",), x0=np.array([[2.0]]))
    model = Explosive()
    method = method_on(name, model, data)
    result = run(method, Limits(iterations=5))
    assert result.status == "diverged"
    assert result.iterations == 0
    assert method.failure == failure
    assert model.theta.item() == 1.0


def test_a_solution_that_would_never_end_is_given_up():
    method = method_on("bkpr-dopri5", Driven(), driven_data(), tolerances=SolverTolerances(max_evaluations=20))
    assert math.isnan(method.step().total)
    assert method.failure == "more than 20 evaluations of f in one solution"


def test_a_solution_that_would_take_all_memory_is_given_up():
    method = method_on("bkpr-dopri5", Driven(), driven_data(), tolerances=SolverTolerances(max_memory=1e6))
    assert math.isnan(method.step().total)
    assert method.failure == "more than 1 MB of memory"


def test_other_assertions_stay_bugs():
    with pytest.raises(AssertionError, match="broken"), named_failures():
        raise AssertionError("broken")


def test_a_trajectory_that_has_ended_stands_still():
    long, short = np.linspace(0.0, 10.0, 21), np.linspace(0.0, 0.5, 6)
    outputs = [np.zeros((21, 1)), np.zeros((6, 1))]
    data = recording([long, short], outputs, ("x",), x0=np.array([[0.01], [1.0]]))
    method = method_on("bkpr-dopri5", Explosive(), data)  # the second would be infinite at t = 1
    exact = np.concatenate([0.01 / (1 - 0.01 * long), 1 / (1 - short)])
    assert method.gradient() == pytest.approx((exact**2).mean(), rel=1e-6)


def test_held_out_trajectories_only_score():
    data, other = driven_data(), driven_data(seed=5)
    model, layout = Driven(), layout_of(data)
    parts = [batch_trajectories(d, layout, ("u",), (), scaled=False) for d in (data, other)]
    method = Shooting("bkpr-dopri5", model, parts[0], layout.observation, held_out=parts[1])
    assert method.held_out().item() == pytest.approx(our_loss(model, other), rel=1e-6)
    assert method_on("bkpr-dopri5", model, data).held_out() is None


def test_a_missing_input_is_a_usage_error_before_training():
    data = driven_data()
    with pytest.raises(UsageError) as caught:
        batch_trajectories(data, layout_of(data), ("u", "w"), (), scaled=False)
    assert str(caught.value) == (
        "the model needs the input 'w'; the data has u. Name it on import (--inputs a=b), or choose --model mlp."
    )


def test_a_model_without_weights_is_a_usage_error():
    class Fixed(Driven):
        def parameters(self, recurse=True):
            return iter(())

    with pytest.raises(UsageError, match="the model has no weights, so 'adj-euler' has nothing to train"):
        method_on("adj-euler", Fixed(), driven_data())
