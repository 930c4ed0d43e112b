"""How strongly weights are held is what the probability of the data asks for, and forecasts gain from it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from snet_cli.data.shares import shares
from snet_cli.distributed import ALONE, Team
from snet_cli.models.mlp import Mlp
from snet_cli.training.arrow import ArrowProblem, Loss
from snet_cli.training.descent import STATE_DAMPING
from snet_cli.training.evidence import LEAST, MOST, MOST_ROUNDS, Evidence
from snet_cli.training.joint import Joint
from snet_cli.training.krylov import KrylovSystem
from snet_cli.training.linearisation import Linearisation
from snet_cli.training.row_system import RowSystem
from snet_cli.training.weight_system import WeightSystem
from tests.alpha_cases import relaxed_spirals
from tests.command import Snet
from tests.teams import answers
from tests.training_cases import network

SIZES = (3, 9)
NOISE = 0.3
EVIDENCE_UNIT = 1e-5


def regression(values: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """y = X θ + noise with θ in two tensors, one of large numbers and one of small ones."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(values, sum(SIZES)))
    theta = np.concatenate([rng.normal(size=SIZES[0]) * 4.0, rng.normal(size=SIZES[1]) * 0.1])
    return torch.from_numpy(X), torch.from_numpy(X @ theta + rng.normal(size=values) * NOISE)


def minus_log_evidence(log_alpha: np.ndarray, X: np.ndarray, y: np.ndarray) -> float:
    """Of y ~ N(0, NOISE² 1 + X diag(1/α) Xᵀ), which is exact for a linear model."""
    variance = np.repeat(np.exp(-log_alpha), SIZES)
    covariance = NOISE**2 * np.eye(len(y)) + (X * variance) @ X.T
    return 0.5 * float(np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y))


@pytest.mark.parametrize("rows", [False, True])
def test_alpha_is_where_the_probability_of_the_data_is_largest(rows: bool) -> None:
    """A linear model, whose evidence scipy maximises: each θ-step exact, then one choice of α, until nothing moves."""
    X, y = regression()
    parameters = [torch.nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in SIZES]
    theta = torch.zeros(sum(SIZES), dtype=torch.float64)
    unit, gamma = 1e-2, 0.1  # of L = c |y - X θ|², whose noise is NOISE² c = unit a value
    scale = (gamma * unit) ** 0.5 / NOISE
    arrow = SimpleNamespace(parameters=parameters, theta=lambda: theta, prior=torch.full_like(theta, unit))
    evidence = Evidence(unit)
    measure = torch.ones_like(theta)
    for _ in range(200):
        prior = gamma * arrow.prior
        H = scale**2 * X.T @ X + torch.diag(prior)
        theta = torch.linalg.solve(H, scale**2 * X.T @ y)
        system = (
            RowSystem(scale * X, torch.eye(len(y)).to(X), scale * y, prior * theta, prior, measure)
            if rows
            else WeightSystem(H, torch.zeros_like(theta), measure)
        )
        evidence.choose(arrow, Loss(0.0, 0.0, 1.0, 0.0), system, gamma)
    found = (arrow.prior / unit).log().numpy()[[0, -1]]
    oracle = minimize(minus_log_evidence, np.zeros(2), args=(X.numpy(), y.numpy()), tol=1e-10)
    np.testing.assert_allclose(found, oracle.x, atol=1e-3)  # scipy's differences leave 1e-4


def test_what_tells_nothing_keeps_alpha_within_bounds() -> None:
    """Weights that the data keeps at zero, enormous ones, and some that it knows nothing of."""
    theta = torch.tensor([0.0, 0.0, 1e3, 0.5], dtype=torch.float64)
    told = torch.tensor([1.0, 1e-3, 1.0, 0.0], dtype=torch.float64)
    parameters = [torch.nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in (2, 1, 1)]
    arrow = SimpleNamespace(parameters=parameters, theta=lambda: theta, prior=torch.ones_like(theta))
    for _ in range(60):
        system = WeightSystem(torch.diag(told + 0.5 * arrow.prior), theta, theta)
        Evidence(1.0).choose(arrow, Loss(0.0, 0.0, 1.0, 0.0), system, 0.5)
    assert arrow.prior.tolist() == pytest.approx([MOST, MOST, LEAST, 1.0])


def test_a_system_that_is_only_applied_or_has_no_factor_changes_nothing() -> None:
    theta = torch.ones(2, dtype=torch.float64)
    arrow = SimpleNamespace(parameters=[torch.nn.Parameter(theta)], theta=lambda: theta, prior=theta.clone())
    network_ = torch.nn.Linear(1, 1).double()
    network_.linear_weights = lambda: ()  # type: ignore[assignment]
    applied = KrylovSystem(lambda v: v, theta, network_)  # type: ignore[arg-type]
    indefinite = WeightSystem(-torch.eye(2, dtype=torch.float64), theta, theta)
    for system in (applied, indefinite):
        assert not Evidence(1.0).choose(arrow, Loss(0.0, 0.0, 1.0, 0.0), system, 1.0)
        assert torch.equal(arrow.prior, theta)


def noisy_joint() -> tuple[Joint, Mlp]:
    data, problem, relaxed, _ = relaxed_spirals(4, noise=0.05)
    model = network(data, hidden=[8])
    return Joint(problem, relaxed, model, evidence=Evidence(EVIDENCE_UNIT)), model


def test_training_ends_where_another_choice_of_alpha_changes_nothing() -> None:
    method, _ = noisy_joint()
    first = method.arrow.prior.clone()
    assert torch.equal(first, torch.full_like(first, method.evidence.unit))
    for _ in range(150):
        if method.outcome is not None:
            break
        method.step()
    assert method.outcome == "converged"
    assert 0 < method.evidence.rounds < MOST_ROUNDS
    assert method.step().total == method.arrow.loss(method.nodes).total(method.gamma)
    system = Linearisation(method.arrow, method.nodes, method.gamma, STATE_DAMPING).reduced
    chosen = method.arrow.prior.clone()
    assert not method.evidence.choose(method.arrow, method.arrow.loss(method.nodes), system, method.gamma)
    assert float((method.arrow.prior / chosen).log().abs().max()) < 0.7, "less than a factor of two, of what is small"
    assert not torch.equal(method.arrow.prior, first)
    sizes = [p.numel() for p in method.arrow.parameters]
    assert all(part.unique().numel() == 1 for part in method.arrow.prior.split(sizes))


@pytest.mark.parametrize("pause", [12, 27])
def test_a_restored_run_holds_its_weights_as_it_did(pause: int) -> None:
    straight, model = noisy_joint()
    for _ in range(pause):
        straight.step()
    resumed, other = noisy_joint()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.restore(copy.deepcopy(straight.state()))
    assert torch.equal(resumed.arrow.prior, straight.arrow.prior)
    assert (pause < 20) == torch.equal(straight.arrow.prior, torch.full_like(straight.arrow.prior, EVIDENCE_UNIT))
    for _ in range(25):
        assert straight.step() == resumed.step()
    assert resumed.evidence.rounds == straight.evidence.rounds > 0
    assert torch.equal(resumed.arrow.prior, straight.arrow.prior)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def chosen_by(team: Team) -> list[float]:
    """One choice of α, each process with its own trajectories."""
    data, _, relaxed, nodes = relaxed_spirals(5, noise=0.05)
    part, first = shares(data.row_size, team.size)[team.rank], relaxed.mesh.first_element
    own = nodes[first[part.start] : first[part.stop]]
    arrow = ArrowProblem(
        relaxed.shard(part.start, part.stop), network(data, hidden=[4]), own, prior=EVIDENCE_UNIT, team=team
    )
    system = Linearisation(arrow, own, 0.1, STATE_DAMPING).reduced
    Evidence(EVIDENCE_UNIT).choose(arrow, arrow.loss(own), system, 0.1)
    return list(arrow.prior.tolist())


def test_all_processes_choose_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = chosen_by(ALONE), answers(2, chosen_by)
    assert two[0] == two[1]
    np.testing.assert_allclose(two[0], one, rtol=1e-9)
    assert np.ptp(np.log(one)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("system", "horizon"), [("pendulum", 20), ("cascaded-tanks", 2000)])
def test_forecasts_from_little_noisy_data_gain(
    snet: Snet, monkeypatch: pytest.MonkeyPatch, system: str, horizon: float
) -> None:
    """Against α = 1 for all weights, over twice the training horizon, mean of two data sets: 0.6 and 0.4 over four.

    A van der Pol oscillator gains 0.87, less than one data set differs from another.
    """

    def error(seed: int) -> float:
        words = ("--trajectories", 4, "--noise", 0.05, "--unknown-x0", "--seed", seed, "--force")
        assert snet("simulate", system, "-o", "a.h5", *words).code == 0
        assert snet("fit", "a.h5", "-o", "m.h5", "--force", "--threads", 1).code == 0
        return float(snet("evaluate", "m.h5", "t.h5", "--json").json["nrmse"])

    longer = ("--horizon", horizon, "--samples", 400, "--trajectories", 20, "--seed", 1000)
    assert snet("simulate", system, "-o", "t.h5", *longer).code == 0
    chosen = [error(seed) for seed in (0, 1)]
    monkeypatch.setattr(Evidence, "choose", lambda *_: False)
    fixed = [error(seed) for seed in (0, 1)]
    assert np.log(chosen).mean() < np.log(fixed).mean() + np.log(0.85)
