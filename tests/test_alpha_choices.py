"""γ, the relaxed score, the choice of the method, and the mesh."""

import numpy as np
import pytest
import torch

from snet_cli.spectral.mesh import build_mesh
from snet_cli.training.alpha import Alpha
from snet_cli.training.alpha_mesh import refine_for_alpha
from snet_cli.training.alpha_options import AlphaOptions
from snet_cli.training.gamma import (
    NoiseLevelGamma,
    SampleCounts,
    choose_by_held_out,
    estimated_noise,
    mean_square_noise,
    misfit_deviation,
    noise_misfit,
    split_samples,
)
from snet_cli.training.gamma_search import plan_gamma, search_gamma
from snet_cli.training.method_choice import choose_method
from snet_cli.training.options import ThetaStepOptions
from snet_cli.training.relaxed import misfit, objective
from snet_cli.training.relaxed_data import channel_scale, relax
from snet_cli.training.relaxed_score import RelaxedScorer, relaxed_score
from tests.alpha_cases import relaxed_spirals, sparse
from tests.training_cases import network, problem_of, spirals, true_spiral

# --- γ ---------------------------------------------------------------------------------------------------------------


def test_gamma_moves_until_the_misfit_is_at_the_noise_level():
    noise = 0.05
    data = sparse(spirals(20, 60, noise=noise), 0.5)
    problem = problem_of(data, order=14, elements=1)
    relaxed = relax(problem, data, channel_scale(data.outputs, None, scaled=True))
    rule = NoiseLevelGamma(noise_misfit(SampleCounts.of(relaxed), np.full(2, noise)))
    alpha = Alpha(
        problem, relaxed, true_spiral(), AlphaOptions(warm_up=0, theta_steps=1), ThetaStepOptions(), gamma=rule
    )
    for _ in range(60):
        last = alpha.step()
    assert last.misfit == pytest.approx(rule.target, rel=0.1)


def test_the_noise_level_counts_measured_values_and_free_starts():
    _, _, free, nodes = relaxed_spirals(4, missing=0.0)
    _, _, known, _ = relaxed_spirals(4, missing=0.0, known=True)
    sigma = np.array([0.1, 0.2])
    expected = float((sigma**2 * free.observed.channel.numpy()).sum()) * free.observed.trajectory.numel()
    values = 2 * free.observed.trajectory.numel()
    assert noise_misfit(SampleCounts.of(free), sigma) == pytest.approx(expected * (1 - 8 / values))
    assert noise_misfit(SampleCounts.of(known), sigma) == pytest.approx(expected * (1 - 4 / values))
    assert misfit(free, nodes).sum() > 0


def test_only_dense_well_conditioned_noisy_data_tells_its_noise():
    error, deviation = np.array([0.1, 0.2]), np.ones(2)
    assert estimated_noise(error, 5.0, deviation, 2.0) is error
    assert estimated_noise(error, 2.0, deviation, 2.0) is None
    assert estimated_noise(error, 5.0, deviation, 50.0) is None
    assert estimated_noise(1e-9 * error, 5.0, deviation, 2.0) is None
    assert estimated_noise(np.array([0.1, np.nan]), 5.0, deviation, 2.0) is None


def test_the_scatter_of_the_misfit_is_that_of_a_chi_square():
    _, _, relaxed, _ = relaxed_spirals(4, missing=0.0)
    sigma = np.array([0.1, 0.1]) / np.sqrt(relaxed.observed.channel.numpy())  # the same (σ / c)² in both channels
    counts = SampleCounts.of(relaxed)
    assert misfit_deviation(counts, sigma) == pytest.approx(np.sqrt(2.0 / relaxed.observed.values.numel()))
    assert misfit_deviation(counts, np.zeros(2)) == 0.0
    assert mean_square_noise(counts, sigma) == pytest.approx(0.01 * relaxed.observed.trajectory.numel())
    rule = NoiseLevelGamma(1.0, deviation=0.02)
    assert [rule.arrived(value) for value in (0.97, 1.03, 0.94, 1.06)] == [True, True, False, False]


def test_held_out_samples_are_taken_from_the_others_and_never_the_first_of_a_trajectory():
    _, _, relaxed, _ = relaxed_spirals(6)
    kept, held = split_samples(relaxed, 0.3, seed=0)
    assert torch.equal(kept.observed.weight + held.observed.weight, relaxed.observed.weight)
    assert held.observed.weight.any()
    trajectory = relaxed.observed.trajectory
    first = torch.searchsorted(trajectory, torch.arange(6))
    assert not held.observed.weight[first].any()


def test_the_plan_of_gamma_says_what_decided():
    _, _, relaxed, nodes = relaxed_spirals(2)
    noise = np.array([0.4, 0.4])
    counts, start = SampleCounts.of(relaxed), float(misfit(relaxed, nodes).sum())

    def never():
        raise AssertionError("no search is needed")

    fixed = plan_gamma(0.3, counts, start, stated=noise, estimated=None, search=never)
    assert (fixed.gamma, fixed.reason) == (0.3, "gamma 0.3 as asked for.")
    stated = plan_gamma("auto", counts, start, stated=noise, estimated=3 * noise, search=never)
    assert isinstance(stated.gamma, NoiseLevelGamma)
    assert "stated in the file" in stated.reason
    seen = plan_gamma("auto", counts, start, stated=None, estimated=3 * noise, search=never)
    assert seen.gamma.target == pytest.approx(9 * stated.gamma.target)
    unfit = plan_gamma("auto", counts, start, stated=1e-6 * noise, estimated=None, search=never)
    assert unfit.gamma.target == start  # no γ brings L below what a free series leaves
    errors = {30.0: 2.0, 3.0: 1.0, 0.3: 1.5, 0.03: float("nan")}
    found = plan_gamma(
        "auto", counts, start, stated=None, estimated=None, search=lambda: choose_by_held_out(errors.get)
    )
    assert (found.gamma, found.noise) == (3.0, 1.0)
    assert found.reason == "gamma 3 by held-out samples (error 2 at 30, 1 at 3, 1.5 at 0.3, inf at 0.03)."


def test_the_search_leaves_the_model_as_it_is():
    data, problem, relaxed, _ = relaxed_spirals(4, elements=1, order=8)
    model = network(data)
    before = [p.clone() for p in model.parameters()]
    options = AlphaOptions(warm_up=2, theta_steps=2)
    choice = search_gamma(problem, relaxed, model, options, ThetaStepOptions(), iterations=2)
    assert np.isfinite([error for _, error in choice.tried]).all()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


# --- relaxed score ---------------------------------------------------------------------------------------------------


def test_the_relaxed_score_is_the_minimum_over_x_and_ranks_models_by_their_truth():
    data, _, relaxed, nodes = relaxed_spirals(5)
    score = relaxed_score(relaxed, nodes, true_spiral(), 1.0)
    assert score.total == pytest.approx(score.misfit + score.residual)
    assert score.total <= objective(relaxed, true_spiral(), nodes, 1.0).sum().item()
    off = true_spiral()
    with torch.no_grad():
        off.A.mul_(1.1)
    assert score.total < 0.5 * relaxed_score(relaxed, nodes, off, 1.0).total
    assert score.total < 0.1 * relaxed_score(relaxed, nodes, network(data), 1.0).total


def test_a_warm_start_does_not_change_the_score():
    data, _, relaxed, nodes = relaxed_spirals(5)
    scorer = RelaxedScorer(relaxed, nodes, 1.0)
    scorer.score(network(data))
    again = scorer.score(true_spiral()).total
    assert again == pytest.approx(relaxed_score(relaxed, nodes, true_spiral(), 1.0).total, rel=1e-3)


# --- method ----------------------------------------------------------------------------------------------------------


def _choice(data, order=8, **changes):
    mesh = build_mesh(data.start, data.end, 1, order)
    tests = {"condition": 3.0, "held_out_error": np.full(2, 1e-6), **changes}
    return choose_method(mesh, data, **tests)


def test_dense_exact_data_is_left_to_delta_and_every_other_test_says_alpha():
    data = spirals(3, 60)
    assert _choice(data).method == "delta"
    cases = [
        (_choice(data, hidden=("h1",)), "nothing measures h1"),
        (_choice(data, determined=False), "the outputs do not determine the states"),
        (_choice(data, order=40), "trajectory '0' has 1.5 samples of 'a' per unknown of its series, fewer than 2"),
        (_choice(data, condition=300.0), "step 0 is ill-conditioned (300, above 100)"),
        (_choice(data, held_out_error=np.array([1e-6, 0.1])), "standard deviations of 'b', not below 0.001"),
        (_choice(data, held_out_error=np.full(2, np.nan)), "no held-out sample"),
    ]
    for choice, words in cases:
        assert choice.method == "alpha"
        assert words in choice.reason


# --- the mesh ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "samples", "refined"),
    [
        ((4, 2), 25, (12, 2)),
        ((17, 1), 60, (18, 3)),
        ((10, 1), 11, (10, 1)),
        ((10, 1), 6, (10, 1)),
        ((8, 1), 30, (13, 2)),
        ((8, 1), 1000, (8, 1)),  # so many samples average the noise away
    ],
)
def test_alphas_mesh_is_finer_but_never_finer_than_the_samples(chosen, samples, refined):
    order, elements = refine_for_alpha(*chosen, samples)
    assert (order, elements) == refined
    assert refine_for_alpha(*chosen, samples, exact=True) == chosen
    assert order * elements + 1 <= max(samples, chosen[0] * chosen[1] + 1)
