"""Laws of the residual R, of δ-SNet on it, of states and outputs, and of the loop that drives any method."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from snet_cli.data.options import CommonOptions
from snet_cli.data.signals import Inputs
from snet_cli.errors import UsageError
from snet_cli.models.base import Model
from snet_cli.training.delta import Delta
from snet_cli.training.loop import STALL_WINDOW, Limits, run
from snet_cli.training.method import Step
from snet_cli.training.options import FitOptions, ThetaStepOptions
from snet_cli.training.problem import Residual
from snet_cli.training.state_layout import lay_out_states
from snet_cli.workflows.build_delta import prior_strength
from snet_cli.workflows.training_setup import prepare
from tests.shooting_cases import held, recording
from tests.training_cases import network, pendulums, problem_of, series, spirals, true_spiral

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def residual_of(problem, model):
    with torch.no_grad():
        return float(Residual(problem, model)())


# R


def test_the_true_right_hand_side_leaves_next_to_no_residual_on_a_fine_series():
    data = spirals(samples=120)
    coarse, fine = (residual_of(problem_of(data, order=p, elements=2), true_spiral()) for p in (5, 14))
    assert fine < 1e-12
    assert coarse > 1e3 * fine


@pytest.mark.parametrize("scaled", [True, False])
def test_a_right_hand_side_of_zeros_leaves_the_mean_square_of_the_derivative(scaled):
    model = true_spiral()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    problem = problem_of(spirals(), scaled=scaled)
    mean_square = (problem.weight[:, None] * problem.derivative**2).sum(0)
    expected = 2.0 if scaled else float(mean_square.sum())  # one per state
    assert residual_of(problem, model) == pytest.approx(expected)
    wanted = 1 / mean_square.sqrt() if scaled else torch.ones(2)
    assert problem.scale.numpy() == pytest.approx(wanted.numpy())


def test_weights_sum_to_one_and_are_shared_by_duration():
    times = [np.linspace(0, 1, 30), np.linspace(5, 8, 30), np.linspace(-1, 1, 30)]
    data = recording(times, [np.sin(t)[:, None] for t in times], ("x",))
    problem = problem_of(data, order=5, elements=6)
    assert float(problem.weight.sum()) == pytest.approx(1.0)
    owner = np.repeat(problem.mesh.trajectory, 6)
    assert np.bincount(owner, problem.weight.numpy()) == pytest.approx(np.array([1, 3, 2]) / 6)
    assert problem.t.numpy()[owner == 1].max() == pytest.approx(3.0)


def test_a_state_that_never_moves_has_scale_one():
    data = recording([np.linspace(0, 1, 30)], [np.stack([np.sin(np.arange(30) / 9), np.full(30, 0.0)], -1)], ("x", "z"))
    problem = problem_of(data, order=5, elements=1)
    assert problem.scale[1] == 1.0
    assert math.isfinite(residual_of(problem, network(data)))


def test_split_elements_is_a_partition_with_weights_of_one_each():
    problem = problem_of(spirals(), order=5, elements=8)
    train, kept_back = problem.split_elements(0.25, seed=1)
    assert kept_back.t.numel() == round(0.25 * 48) * 6
    rows = torch.cat([torch.cat([p.t[:, None], p.x, p.u, p.derivative], 1) for p in (train, kept_back)])
    whole = torch.cat([problem.t[:, None], problem.x, problem.u, problem.derivative], 1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, whole.tolist()))
    for part in (train, kept_back):
        assert float(part.weight.sum()) == pytest.approx(1.0)
        assert part.t.numel() % 6 == 0
    again, _ = problem.split_elements(0.25, seed=1)
    other, _ = problem.split_elements(0.25, seed=2)
    assert torch.equal(again.x, train.x)
    assert not torch.equal(other.x, train.x)


def test_undetermined_elements_have_no_influence():
    zero = series(spirals(), order=6, elements=4)
    counts = zero.counts.copy()
    counts[[1, 6, 7]] = False
    data = spirals()
    problem = problem_of(data, replace(zero, counts=counts))
    spoiled = zero.nodes.copy()
    spoiled[[1, 6, 7]] += 1e3
    changed = problem_of(data, replace(zero, counts=counts, nodes=spoiled))
    model = network(data)
    model.fit_normalization(problem.node_data())
    values = []
    for part in (problem, changed):
        model.zero_grad()
        Residual(part, model)().backward()
        values.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(problem.scale, changed.scale)
    assert torch.equal(values[0], values[1])
    assert problem.node_data().t.numel() == problem.t.numel() - 3 * 7


def test_the_gradient_of_the_residual_is_that_of_finite_differences():
    data = spirals(2, 20)
    problem = problem_of(data, order=4, elements=1)
    model = network(data, hidden=[3])
    model.fit_normalization(problem.node_data())

    class AsModule(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.residual = Residual(problem, model)

        def forward(self):
            return self.residual()

    module = AsModule()
    names = [name for name, _ in module.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in module.parameters())

    def loss(*parameters):
        return functional_call(module, dict(zip(names, parameters, strict=True)), ())

    assert torch.autograd.gradcheck(loss, values)


def test_the_order_of_the_trajectories_does_not_matter():
    data = spirals(6, 40)
    model = true_spiral()
    with torch.no_grad():
        model.A.mul_(1.3)
    shuffled = data.select([3, 0, 5, 1, 4, 2])
    assert residual_of(problem_of(shuffled), model) == pytest.approx(residual_of(problem_of(data), model), rel=1e-12)


def test_a_held_input_that_jumps_on_boundaries_costs_no_accuracy():
    """x' = -x + u with u held: exact per element, so R of the true f is nothing although u jumps."""
    t, knots, levels = np.linspace(0, 2, 81), np.array([0.0, 0.5, 1.0, 1.5, 2.0]), np.array([1.0, -1.0, 2.0, 0.0, 0.0])
    starts = [0.3]
    for level in levels[:3]:
        starts.append(level + (starts[-1] - level) * math.exp(-0.5))
    piece = np.minimum((t / 0.5 + 1e-9).astype(int), 3)
    x = levels[piece] + (np.array(starts)[piece] - levels[piece]) * np.exp(-(t - knots[piece]))
    data = recording([t], [x[:, None]], ("x",), held([knots], [levels]))

    class Decay(Model):
        def from_features(self, *features):
            return features[2] - features[1]

    assert residual_of(problem_of(data, order=8, elements=8), Decay()) < 1e-13
    assert residual_of(problem_of(data, order=8, elements=1), Decay()) > 1e-4


# scales of data


def scaled_copy(data, channels, clock):
    """The same recording in other units: channels times factors, time times `clock`."""
    fourier = data.inputs.fourier
    waves = {key: getattr(fourier, key) * (1.0 / channels[-1]) for key in ("mean", "cos", "sin")}
    inputs = replace(data.inputs, fourier=replace(fourier, omega=fourier.omega / clock, **waves))
    return replace(data, time=data.time * clock, outputs=data.outputs * np.array(channels[:2]), inputs=inputs)


def trained(data, iterations=20, **options):
    """Normalised scores of an mlp: R after each iteration, and the weights at the end."""
    settings = FitOptions(model={"name": "mlp", "hidden": [8]}, order=6, elements=3, **options)
    setup = prepare(settings, CommonOptions(), data, CPU)
    prior = prior_strength(setup)
    method = Delta(setup.problem, setup.trained.model, settings.theta_step, setup.step_zero.misfit, prior=prior)
    history = [method.step().residual for _ in range(iterations)]
    return np.array(history), nn.utils.parameters_to_vector(setup.trained.model.parameters()).detach(), setup


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_powers_of_two_on_channels_and_time_change_no_bit(noise):
    data = spirals(noise=noise)
    history, theta, setup = trained(data)
    scaled_history, scaled_theta, scaled_setup = trained(scaled_copy(data, (2.0**30, 2.0**-40, 2.0**10), 2.0**-20))
    assert prior_strength(scaled_setup) == prior_strength(setup)
    assert scaled_history.tolist() == history.tolist()
    assert torch.equal(scaled_theta, theta)
    z, _ = setup.trained.model.features(setup.problem.t, setup.problem.x, setup.problem.u)
    other = scaled_setup.problem
    scaled_z, _ = scaled_setup.trained.model.features(other.t, other.x, other.u)
    assert torch.equal(scaled_z, z)


@pytest.mark.parametrize(("channels", "clock"), [((1e9, 1e-6, 1e-6), 1.0), ((1e-6, 1e9, 1e9), 1e-6), ((1, 1, 1), 1e9)])
def test_any_units_change_no_normalised_score_by_more_than_a_millionth(channels, clock):
    data = spirals(noise=0.01)
    history, _, _ = trained(data)
    other, _, _ = trained(scaled_copy(data, channels, clock))
    assert other == pytest.approx(history, rel=1e-6)


# δ-SNet


def test_delta_learns_a_linear_system_in_one_step():
    data = spirals(samples=120)
    method = Delta(problem_of(data, order=14), true_spiral(), ThetaStepOptions(), 0.125)
    step = method.step()
    assert step.residual < 1e-12
    assert step == Step(step.residual, 0.125, step.residual)
    assert method.evaluations == 1


@pytest.mark.parametrize("name", ["adam", "lbfgs", "lm"])
def test_delta_lowers_the_residual_on_training_and_held_out_elements(name):
    data = spirals(12, 60)
    train, other = problem_of(data, order=6, elements=6).split_elements(0.3, 0)
    model = network(data, hidden=[16])
    model.fit_normalization(train.node_data())
    method = Delta(train, model, ThetaStepOptions(name=name), 0.0, other)
    before = float(method.held_out())
    losses = [method.step().residual for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]
    assert float(method.held_out()) < 0.3 * before
    assert method.evaluations >= 60


def test_a_prior_makes_smaller_weights_and_is_not_part_of_the_residual_that_is_told():
    data = spirals(noise=0.05)
    sizes = []
    for prior in (0.0, 1e-3):
        problem, model = problem_of(data), network(data)
        model.fit_normalization(problem.node_data())
        method = Delta(problem, model, ThetaStepOptions(), 0.0, prior=prior)
        for _ in range(80):
            told = method.step().residual
        assert told == pytest.approx(residual_of(problem, model), rel=1e-9)
        sizes.append(float(nn.utils.parameters_to_vector(model.parameters()).detach().norm()))
    assert sizes[1] < 0.7 * sizes[0]


def test_noise_free_data_asks_for_next_to_no_prior():
    clean, noisy = (trained(spirals(noise=noise), 0)[2] for noise in (0.0, 0.1))
    assert prior_strength(noisy) > 1e-5
    assert prior_strength(clean) < 1e-2 * prior_strength(noisy)


def test_a_hidden_velocity_is_learned_from_the_position_alone():
    data = pendulums(8, 100, both=False)
    pair = {"q": "v"}
    problem = problem_of(data, second_order=pair, order=10, elements=3)
    model = network(data, states=("q", "v"), second_order=pair, hidden=[16])
    model.fit_normalization(problem.node_data())
    method = Delta(problem, model, ThetaStepOptions(), 0.0)
    for _ in range(150):
        residual = method.step().residual
    assert residual < 1e-3
    x = torch.tensor([[0.5, -0.5], [-0.3, 0.8]], dtype=torch.float64)
    rate = model(torch.zeros(2), x, torch.zeros(2, 0))
    truth = torch.stack([x[:, 1], -4 * x[:, 0] - 0.2 * x[:, 1]], -1)
    assert rate.detach().numpy() == pytest.approx(truth.numpy(), abs=0.15)


# states and outputs


def test_states_are_the_outputs_and_hidden_velocities_behind_them():
    layout = lay_out_states(("q", "w"), None, {"q": "v"})
    assert layout.states == ("q", "w", "v")
    assert layout.observation.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert layout.derived == ((2, 0),)
    assert layout.measured.tolist() == [0, 1, -1]
    assert lay_out_states(("q", "v"), None, {"q": "v"}).derived == ()


def test_a_structured_model_reorders_what_is_measured():
    layout = lay_out_states(("v", "q"), ("q", "v"), {})
    assert layout.states == ("q", "v")
    assert layout.observation.tolist() == [[0, 1], [1, 0]]
    assert layout.measured.tolist() == [1, 0]


def test_a_structured_model_keeps_states_that_nothing_measures_and_refuses_outputs_that_are_none():
    assert lay_out_states(("q",), ("q", "v"), {}).hidden == ("v",)
    with pytest.raises(UsageError) as caught:
        lay_out_states(("q", "v", "z"), ("q", "v"), {})
    assert str(caught.value) == (
        "the output 'z' observes no state of the model (q, v). Say observe: {z: STATE}, or choose --model mlp."
    )


# the loop


class Scripted:
    """A method whose totals and held-out scores are a script; θ counts its steps."""

    name = "scripted"

    def __init__(self, totals, held_out=None, pause=0.0):
        self.totals, self.scores, self.pause = totals, held_out, pause
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.evaluations = 0

    @property
    def theta(self):
        return float(self.model.weight.detach())

    def step(self):
        time.sleep(self.pause)
        total = self.totals(self.evaluations)
        self.evaluations += 1
        with torch.no_grad():
            self.model.weight.fill_(total if math.isnan(total) else float(self.evaluations))
        return Step(total, 0.0, total)

    def held_out(self):
        return None if self.scores is None else torch.tensor(self.scores(self.evaluations))


def falling(k):
    return 2.0**-k


def test_the_limit_of_iterations():
    method = Scripted(falling)
    result = run(method, Limits(7))
    assert (result.status, result.iterations, result.evaluations) == ("iterations", 7, 7)
    assert result.history[:, 2].tolist() == [2.0**-k for k in range(7)]
    assert np.isnan(result.history[:, 3]).all()
    assert result.best_iteration == 7
    assert result.last.total == 2.0**-6
    assert method.theta == 7.0


def test_the_tolerance():
    result = run(Scripted(falling), Limits(100, tolerance=0.1))
    assert (result.status, result.iterations) == ("converged", 5)


def test_the_deadline():
    begin = time.perf_counter()
    result = run(Scripted(lambda k: 1.0 / (k + 1), pause=0.01), Limits(10_000, deadline=begin + 0.2))
    assert result.status == "max-time"
    assert 0 < result.iterations < 25
    assert time.perf_counter() - begin < 1.0
    assert run(Scripted(falling), Limits(5, deadline=begin)).iterations == 0


def test_a_request_to_stop_is_asked_before_every_iteration():
    seen = []
    result = run(Scripted(falling), Limits(100), seen.append, lambda: len(seen) == 3)
    assert (result.status, result.iterations) == ("stopped", 3)
    assert [progress.iteration for progress in seen] == [1, 2, 3]
    assert [progress.residual for progress in seen] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_numbers_that_are_not_finite_end_training_with_the_last_good_weights(broken):
    method = Scripted(lambda k: broken if k >= 12 else falling(k))
    result = run(method, Limits(100))
    assert (result.status, result.iterations) == ("diverged", 12)
    assert np.isfinite(result.history[:, 2]).all()
    assert method.theta == 10.0  # θ is copied every few iterations
    assert math.isfinite(result.last.total)


def test_divergence_at_the_first_step_restores_the_initial_weights():
    method = Scripted(lambda k: math.nan)
    result = run(method, Limits(10))
    assert (result.status, result.iterations) == ("diverged", 0)
    assert method.theta == 0.0
    assert result.history.shape == (0, 4)


def test_a_method_that_gains_nothing_any_more_has_converged_unless_it_is_random():
    flat = run(Scripted(lambda k: max(falling(k), 0.25)), Limits(500))
    assert flat.status == "converged"
    assert STALL_WINDOW <= flat.iterations <= STALL_WINDOW + 5
    noisy = run(Scripted(lambda k: 0.25), Limits(200, stop_when_stalled=False))
    assert (noisy.status, noisy.iterations) == ("iterations", 200)


def test_the_best_weights_on_held_out_data_are_kept_and_patience_ends_the_search():
    method = Scripted(falling, held_out=lambda k: abs(k - 20.0) + 1.0)
    result = run(method, Limits(1000, patience=30))
    assert (result.status, result.best_iteration, result.best_held_out) == ("converged", 20, 1.0)
    assert result.iterations == 51
    assert method.theta == 20.0


def test_weights_of_the_best_score_survive_a_divergence():
    method = Scripted(lambda k: math.nan if k >= 33 else falling(k), held_out=lambda k: abs(k - 10.0))
    result = run(method, Limits(100))
    assert (result.status, result.best_iteration) == ("diverged", 10)
    assert method.theta == 10.0


def test_held_out_scores_that_are_not_finite_choose_nothing():
    method = Scripted(falling, held_out=lambda k: math.nan)
    result = run(method, Limits(10))
    assert (result.status, result.best_held_out, method.theta) == ("iterations", None, 10.0)


def test_the_last_iteration_is_always_scored():
    method = Scripted(falling, held_out=lambda k: 10.0 - k)
    result = run(method, Limits(7))
    assert (result.best_iteration, result.best_held_out) == (7, 3.0)


def test_inputs_are_optional():
    data = replace(spirals(), inputs=Inputs.none())
    assert problem_of(data).u.shape[1] == 0
