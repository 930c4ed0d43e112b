"""X follows θ: what a step leaves of second order is taken away, so that steps may be long where γ is small."""

from __future__ import annotations

import math

import pytest
import torch

from snet_cli.training import descent
from snet_cli.training.arrow import ArrowProblem
from snet_cli.training.descent import Descent
from snet_cli.training.following import after_newton_step, followed
from tests.alpha_cases import relaxed_spirals
from tests.training_cases import network, true_spiral

GAMMA = 1e-5


def problem(model=None, *, known: bool = False):
    data, _, relaxed, nodes = relaxed_spirals(4, noise=0.02, known=known)
    return ArrowProblem(relaxed, model or network(data), nodes, prior=1e-4), nodes


@pytest.mark.parametrize("known", [False, True])
def test_one_newton_step_is_all_where_the_model_is_linear(known: bool) -> None:
    """J is quadratic in X then: the step ends at its minimum, up to the damping of 1e-9 and the condition 1e5."""
    arrow, nodes = problem(true_spiral(), known=known)
    once = after_newton_step(arrow, nodes, GAMMA, 1e-9)
    twice = after_newton_step(arrow, once, GAMMA, 1e-9)
    assert arrow.loss(once).total(GAMMA) < 0.1 * arrow.loss(nodes).total(GAMMA)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-7 * float((once - nodes).abs().max()))
    if known:
        first = arrow.relaxed.first_elements
        assert torch.equal(once[first, 0, 0], nodes[first, 0, 0])


def test_following_never_climbs_and_leaves_the_model_alone() -> None:
    arrow, nodes = problem()
    theta = arrow.theta()
    for spread in (1e-3, 1.0, 1e3):
        moved = nodes + spread * torch.randn(nodes.shape, generator=torch.Generator().manual_seed(1), dtype=nodes.dtype)
        at = arrow.loss(moved)
        end, after = followed(arrow, moved, at, GAMMA, 1e-3, 0.0)
        assert after.total(GAMMA) <= at.total(GAMMA)
        assert after == arrow.loss(end)
    assert torch.equal(arrow.theta(), theta)


def test_what_is_not_finite_stays_where_it_is() -> None:
    arrow, nodes = problem()
    broken = torch.full_like(nodes, math.nan)
    end, _ = followed(arrow, broken, arrow.loss(broken), GAMMA, 1e-3, 0.0)
    assert end is broken


def test_steps_go_further_where_x_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one start at a small γ: the decrease of J after eight steps that cost as many eliminations."""

    def after_eight(faithful: float) -> tuple[float, int]:
        monkeypatch.setattr(descent, "FAITHFUL", faithful)
        arrow, nodes = problem()
        steps, loss = Descent(), arrow.loss(nodes)
        for _ in range(8):
            found = steps.step(arrow, nodes, loss, GAMMA)
            assert found.failure is None
            assert found.loss.total(GAMMA) <= loss.total(GAMMA)
            nodes, loss = found.nodes, found.loss
        return loss.total(GAMMA), steps.evaluations

    alone, eliminations = after_eight(-math.inf)
    following, as_many = after_eight(0.5)
    assert following < 0.7 * alone
    assert as_many <= eliminations
