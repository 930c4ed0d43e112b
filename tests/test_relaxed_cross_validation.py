"""Relaxed cross-validation: the score is the minimum of Eq. 4, for every method, and predicts the rollout."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from snet_cli.data.checkpoint_file import load_checkpoint, save_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.signals import Inputs
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.evaluation.options import EvaluateOptions
from snet_cli.training.alpha import Alpha
from snet_cli.training.alpha_options import AlphaOptions
from snet_cli.training.options import FitOptions, ThetaStepOptions
from snet_cli.training.relaxed import weighted_square
from snet_cli.training.relaxed_score import RelaxedRule, RelaxedScorer, relaxed_score
from snet_cli.workflows.evaluate import evaluate
from snet_cli.workflows.fit import fit
from snet_cli.workflows.held_out import hold_out
from snet_cli.workflows.trained_model import from_checkpoint
from tests.alpha_cases import relaxed_spirals, sparse
from tests.training_cases import network, pendulums, spirals

SMALL = {"name": "mlp", "hidden": [6]}
RELAXED = EvaluateOptions(relaxed=True)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """`a.h5` to train on and `v.h5` held out: ragged times and gaps in single channels, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", sparse(spirals(6, 50, noise=0.02), 0.7, missing=0.1))
    save_trajectories("v.h5", sparse(spirals(4, 50, noise=0.02, seed=5), 0.7, missing=0.1))
    return tmp_path


def trained(method: str = "alpha", iterations: int = 3, **options):
    """`m.h5` from `a.h5`, validated on `v.h5`, γ not searched for; the JSON of `fit`."""
    chosen = {"model": SMALL, "order": 8, "elements": 2, "gamma": 3.0, "validation": "v.h5", **options}
    return fit("a.h5", "m.h5", FitOptions(method=method, iterations=iterations, **chosen), force=True)


def held_out(path: str = "v.h5"):
    """The problem by which `evaluate --relaxed` scores `m.h5`, and the model."""
    model = from_checkpoint(load_checkpoint("m.h5"), "m.h5", None)
    assert model.rule is not None
    return hold_out(model, model.rule, load_trajectories(path), CommonOptions(), torch.device("cpu")), model


# --- the number ------------------------------------------------------------------------------------------------------


def test_the_score_is_the_minimum_that_a_dense_solver_finds():
    """scipy's least squares on the vector of all residuals, over node values that neighbours share."""
    data, _, relaxed, start = relaxed_spirals(2, order=5)
    model, gamma = network(data), 2.0
    N, P, n = start.shape
    place = torch.arange(P) + torch.tensor([0, P - 1, 2 * P - 1, 3 * P - 2])[:, None]  # 2 trajectories, 2 elements
    unknowns = torch.zeros(int(place.max()) + 1, n, dtype=torch.float64)
    unknowns[place] = start

    def residuals(flat):
        nodes = torch.from_numpy(flat).reshape(-1, n)[place]
        with torch.no_grad():
            defect = relaxed.quadrature[:, :, None].sqrt() * relaxed.scale * relaxed.defect(model, nodes)
            seen = relaxed.observed
            error = (gamma * seen.weight * seen.channel).sqrt() * relaxed.error(nodes)
        return torch.cat([defect.flatten(), error.flatten()]).numpy()

    best = least_squares(residuals, unknowns.flatten().numpy(), xtol=1e-12, ftol=1e-12, gtol=1e-12)
    found = relaxed_score(relaxed, start, model, gamma)
    assert N == place.shape[0]
    assert found.total >= 2 * best.cost * (1 - 1e-9)
    assert found.total == pytest.approx(2 * best.cost, rel=1e-3)  # steps end at a gain of 1e-4


def test_without_a_gamma_x_stays_at_step_zero():
    data, _, relaxed, start = relaxed_spirals(3)
    model = network(data)
    found = relaxed_score(relaxed, start, model, None)
    with torch.no_grad():
        assert found.residual == pytest.approx(float(weighted_square(relaxed, relaxed.defect(model, start)).sum()))
    assert found.total == found.residual
    assert found.misfit > 0


# --- evaluate --relaxed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["delta", "alpha", "bkpr-euler"])
def test_fit_and_evaluate_give_the_same_score_for_every_method(files, snet, method):
    result = trained(method)
    ran = snet("evaluate", "m.h5", "v.h5", "--relaxed", "--json")
    assert ran.code == 0, ran.err
    relaxed = ran.json["relaxed"]
    assert relaxed.keys() == {"total", "residual", "misfit"}
    mse = pytest.approx(ran.json["mse"], rel=1e-9)  # forecast in another batch: other last digits
    assert result["validation"] == {"relaxed": relaxed["total"], "mse": mse, "best_iteration": 3}
    if method == "alpha":
        gamma = (relaxed["total"] - relaxed["residual"]) / relaxed["misfit"]
        assert gamma == pytest.approx(held_out()[1].rule.gamma)
    else:
        assert relaxed["total"] == relaxed["residual"]
    shown = snet("evaluate", "m.h5", "v.h5", "--relaxed")
    assert "without integration (relaxed): total" in shown.out + shown.err


def test_a_relaxed_score_is_given_where_it_is_asked_for_and_can_be_required(files, snet):
    trained("delta", validation=None)
    assert snet("evaluate", "m.h5", "v.h5", "--json").json["relaxed"] is None
    assert snet("evaluate", "m.h5", "v.h5", "--relaxed", "--require", "relaxed.total<=0").code == 7


def test_held_out_elements_are_as_long_as_those_of_training(files):
    trained()
    assert held_out()[0].problem.mesh.elements_of_longest == 2
    save_trajectories("long.h5", spirals(2, 200, seed=3, horizon=40.0))
    save_trajectories("short.h5", spirals(2, 20, seed=3, horizon=1.0))
    assert held_out("long.h5")[0].problem.mesh.elements_of_longest == 20
    assert held_out("short.h5")[0].problem.mesh.elements_of_longest == 1
    assert evaluate("m.h5", "short.h5", options=RELAXED)["relaxed"]["total"] > 0


def test_the_order_of_channels_and_values_that_were_not_measured_have_no_influence(files):
    trained()
    before = evaluate("m.h5", "v.h5", options=RELAXED)["relaxed"]
    data = load_trajectories("v.h5")
    extra = replace(
        data,
        outputs=np.column_stack([data.outputs[:, 1], np.full(data.time.size, 7.0), data.outputs[:, 0]]),
        output_names=("b", "other", "a"),
        state_names=("b", "other", "a"),
    )
    save_trajectories("s.h5", extra)
    assert evaluate("m.h5", "s.h5", options=RELAXED)["relaxed"] == pytest.approx(before, rel=1e-6)


def test_a_file_that_cannot_be_scored_gets_a_note(files, snet):
    trained()
    data = load_trajectories("v.h5")
    wave = replace(data.inputs.fourier, omega=0 * data.inputs.fourier.omega)
    empty = data.select_rows(np.zeros(data.time.size, bool))
    start = np.zeros((4, 2))
    save_trajectories("u.h5", replace(empty, inputs=Inputs(("p", "r"), fourier=wave), x0=start))
    ran = snet("evaluate", "m.h5", "u.h5", "--relaxed", "--json", "--horizon", 1)
    assert ran.code == 0, ran.err
    assert ran.json["relaxed"] is None
    assert "no relaxed score: the file holds no measured outputs." in ran.err
    lacking = replace(data, outputs=np.where([True, False], data.outputs, np.nan), x0=start)
    save_trajectories("b.h5", lacking)
    ran = snet("evaluate", "m.h5", "b.h5", "--relaxed", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["relaxed"] is None
    assert "no relaxed score: the file does not measure the model's output 'b'." in ran.err


def test_an_older_checkpoint_says_that_it_has_no_scales(files, snet):
    trained("delta")
    checkpoint = load_checkpoint("m.h5")
    old = {key: value for key, value in checkpoint.contract.items() if key != "relaxed"}
    save_checkpoint("old.h5", replace(checkpoint, contract=old))
    assert snet("evaluate", "old.h5", "v.h5").code == 0
    ran = snet("evaluate", "old.h5", "v.h5", "--relaxed")
    assert ran.code == 4
    assert ran.err == (
        "error: old.h5: the checkpoint is of a version that kept no scales for --relaxed.\n"
        "Train it again, or leave --relaxed out.\n"
    )
    bad = {**checkpoint.contract, "relaxed": {**checkpoint.contract["relaxed"], "width": -1.0}}
    save_checkpoint("bad.h5", replace(checkpoint, contract=bad))
    assert snet("evaluate", "bad.h5", "v.h5").code == 4


def test_the_rule_survives_json_to_the_last_bit():
    rule = RelaxedRule(14, 10 / 3, (0.1, 1 / 3), (np.pi,), None, True, "huber")
    assert RelaxedRule.from_json(rule.to_json(), 2, 1) == rule
    with pytest.raises(ValueError, match="do not fit"):
        RelaxedRule.from_json(rule.to_json(), 1, 1)


def test_known_constants_that_the_file_lacks_are_those_of_training(tmp_path, monkeypatch, snet):
    monkeypatch.chdir(tmp_path)
    assert snet("simulate", "vehicle", "-o", "a.h5", "--trajectories", 3, "--samples", 30).code == 0
    fit("a.h5", "m.h5", FitOptions(method="delta", iterations=2, order=10, elements=1))
    save_trajectories("n.h5", replace(load_trajectories("a.h5"), system=None, parameters={}))
    known, unknown = (evaluate("m.h5", path, options=RELAXED)["relaxed"] for path in ("a.h5", "n.h5"))
    assert known == unknown


@pytest.mark.slow
def test_a_state_that_nobody_measured_is_part_of_x(tmp_path, monkeypatch):
    """From step 0's guess of it, X gets to where training left it: the score of the training data is at most its J."""
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", pendulums(6, 60, both=False))
    save_trajectories("v.h5", pendulums(2, 60, both=False, seed=4))
    model = {"name": "mlp", "hidden": [8], "hidden_states": 1}
    result = trained(iterations=25, model=model, order=10, gamma=30.0)
    again = evaluate("m.h5", "a.h5", options=RELAXED)["relaxed"]["total"]
    assert again <= 1.05 * (result["loss"]["residual"] + 30.0 * result["loss"]["misfit"])
    checkpoint = load_checkpoint("m.h5")
    learned = {name: value for name, value in checkpoint.state.items() if name.endswith(("weight", "bias"))}
    zeros = {name: np.zeros_like(value) for name, value in learned.items()}
    save_checkpoint("zero.h5", replace(checkpoint, state={**checkpoint.state, **zeros}))
    knows_nothing = evaluate("zero.h5", "v.h5", options=RELAXED)["relaxed"]["total"]
    assert result["validation"]["relaxed"] < 0.01 * knows_nothing


def test_a_method_that_integrates_is_scored_with_a_free_x_where_a_state_is_hidden(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", pendulums(2, 30, both=False))
    save_trajectories("v.h5", pendulums(2, 30, both=False, seed=4))
    trained("bkpr-euler", 1, model={"name": "mlp", "hidden": [4], "hidden_states": 1})
    assert held_out()[1].rule.gamma == 3.0


def test_outliers_hardly_count_under_hubers_loss(files):
    trained("delta", validation=None)
    data = spirals(2, 50, noise=0.02, seed=5)
    spoilt = data.outputs.copy()
    spoilt[12::25] += 5.0
    model = from_checkpoint(load_checkpoint("m.h5"), "m.h5", None)

    def total(loss, outputs):
        rule = replace(model.rule, loss=loss, gamma=3.0)
        held = hold_out(model, rule, replace(data, outputs=outputs), CommonOptions(), torch.device("cpu"))
        return held.scorer().score(model.model).total

    assert total("huber", spoilt) < 0.05 * total("squared", spoilt)
    assert total("huber", data.outputs) == pytest.approx(total("squared", data.outputs), rel=0.2)


# --- fit --validation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "iterations"), [("alpha", 20), ("bkpr-euler", 40)])
@pytest.mark.slow
def test_the_model_with_the_best_validation_score_is_the_one_that_is_kept(files, method, iterations):
    """Few samples and a wide network: training soon learns the noise, and the score says so."""
    save_trajectories("a.h5", spirals(4, 25, noise=0.1), force=True)
    save_trajectories("v.h5", spirals(1, 50, seed=5), force=True)
    wide = {"model": {"name": "mlp", "hidden": [16]}, "elements": 1, "theta_step": {"rate": 0.1}}
    best = trained(method, iterations, **wide)["validation"]["best_iteration"]
    kept = load_checkpoint("m.h5")
    curve = kept.extra["history"]["loss"][:, 3]
    assert best == 1 + int(np.nanargmin(curve)) < iterations
    trained(method, best, **wide)
    early = load_checkpoint("m.h5").state
    assert all(np.array_equal(kept.state[name], early[name]) for name in early)


def test_a_resumed_run_scores_as_if_it_had_not_stopped():
    """The scorer's X starts where its last score left it, and so belongs to what a resumed run needs."""
    data, problem, relaxed, nodes = relaxed_spirals(3)

    def alpha():
        scorer = RelaxedScorer(relaxed, nodes, 3.0)
        return Alpha(problem, relaxed, network(data), AlphaOptions(warm_up=0), ThetaStepOptions(), held_out=scorer)

    first, second = alpha(), alpha()
    first.step()
    first.held_out()
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.restore(copy.deepcopy(first.state()))
    first.step()
    second.step()
    assert first.held_out().item() == second.held_out().item()


@pytest.mark.slow
def test_gamma_that_follows_the_noise_does_not_move_the_score(files):
    """The same θ has the same score at any stage; γL + R at the γ of the moment would fall with γ alone."""
    data = replace(load_trajectories("a.h5"), noise_std={"a": 0.02, "b": 0.02})
    save_trajectories("a.h5", data, force=True)
    result = trained("alpha", 25, gamma="auto")
    assert result["gamma"] != 3.0
    assert held_out()[1].rule.gamma == 3.0


@pytest.mark.slow
def test_the_score_ranks_stages_of_training_as_the_rollout_does(files):
    save_trajectories("a.h5", spirals(6, 60), force=True)
    save_trajectories("t.h5", spirals(4, 60, seed=9))
    stages = []
    for iterations in (1, 5, 15, 40, 100):
        trained("delta", iterations, order=12, validation=None)
        result = evaluate("m.h5", "t.h5", options=RELAXED)
        stages.append((result["mse"], result["relaxed"]["total"]))
    mse, relaxed = np.array(stages).T
    assert relaxed[-1] < 0.05 * relaxed[0]
    assert spearmanr(mse, relaxed)[0] >= 0.9  # one exchange of neighbours among five is allowed
