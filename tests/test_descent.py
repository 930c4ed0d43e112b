"""One Levenberg-Marquardt step on X and θ: it descends, or says why not and leaves everything as it was."""

from __future__ import annotations

import math

import pytest
import torch

from snet_cli.training import descent
from snet_cli.training.arrow import ArrowProblem
from snet_cli.training.descent import MOST_STATE_DAMPING, STATE_DAMPING, Descent, Trust
from snet_cli.training.linearisation import Linearisation, Move
from snet_cli.training.weight_system import EASIER, HARDER, START_DAMPING
from tests.alpha_cases import relaxed_spirals
from tests.training_cases import network

GAMMA = 1e-3


def problem() -> tuple[ArrowProblem, torch.Tensor]:
    data, _, relaxed, nodes = relaxed_spirals(4, noise=0.02)
    return ArrowProblem(relaxed, network(data), nodes, prior=1e-4), nodes


def test_every_step_descends_and_they_get_longer() -> None:
    arrow, nodes = problem()
    steps, loss = Descent(), arrow.loss(nodes)
    for _ in range(6):
        found = steps.step(arrow, nodes, loss, GAMMA)
        assert found.failure is None
        assert found.loss == arrow.loss(found.nodes)
        assert found.loss.total(GAMMA) < loss.total(GAMMA)
        nodes, loss = found.nodes, found.loss
    assert steps.damping < START_DAMPING
    assert steps.evaluations == 6


def test_where_nothing_descends_x_and_theta_stay(monkeypatch) -> None:
    """As if every trial led uphill: all dampings of θ, then of X, are tried."""
    arrow, nodes = problem()
    theta, before = arrow.theta(), arrow.loss(nodes)
    uphill = before._replace(residual=2.0 * before.residual + 1.0)
    monkeypatch.setattr(arrow, "loss", lambda _: uphill)
    steps = Descent()
    found = steps.step(arrow, nodes, before, GAMMA)
    assert found.failure == "damping-at-limit"
    assert found.nodes is nodes
    assert found.loss is before
    assert torch.equal(arrow.theta(), theta)
    assert steps.state_damping == STATE_DAMPING
    assert steps.evaluations == 1 + math.floor(math.log(MOST_STATE_DAMPING / STATE_DAMPING, descent.STATE_FACTOR))


def test_what_is_not_finite_is_told() -> None:
    arrow, nodes = problem()
    broken = torch.full_like(nodes, math.nan)
    found = Descent().step(arrow, broken, arrow.loss(broken), GAMMA)
    assert found.failure == "not-finite"
    assert found.reason == "the residual is not finite"


def test_a_trial_that_the_last_step_foretells_to_fail_is_left_out(monkeypatch) -> None:
    """θ's damping falls by a fifth of the last step's, or less where that one says that this leads uphill."""
    arrow, nodes = problem()
    moves: list[tuple[float, Move]] = []
    solve = Linearisation.solve

    def solved(self: Linearisation, damping: float) -> Move | None:
        move = solve(self, damping)
        assert move is not None
        moves.append((damping, move))
        return move

    monkeypatch.setattr(Linearisation, "solve", solved)
    steps, before = Descent(), arrow.loss(nodes)
    first = steps.step(arrow, nodes, before, GAMMA)
    taken, move = moves[-1]
    kept = (before.total(GAMMA) - first.loss.total(GAMMA)) / move.promise
    assert steps.trust == Trust(GAMMA, taken, pytest.approx(max(1.0 - kept, 0.0)))

    begun, told = taken / EASIER, Trust(GAMMA, taken, 0.9)
    tried = []
    for trust, gamma in ((told, GAMMA), (told._replace(left_out=1e-3), GAMMA), (told, 2.0 * GAMMA)):
        moves.clear()
        steps.damping, steps.trust = begun, trust
        steps.step(arrow, first.nodes, first.loss, gamma)
        tried.append(moves[0][0])
    # at half of the last step's μ it would leave out 5.1 times what it promises, at a fifth 50 times
    assert tried[0] == pytest.approx(begun * HARDER**2)
    assert tried[1:] == [begun, begun], "nothing speaks against it after a good step, or on another level"
    assert steps.trust is not None
    assert steps.trust.gamma == 2.0 * GAMMA
