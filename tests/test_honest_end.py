"""A rollout that is far worse than the loss promised is explained, for every method alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.forecasting.rollout import rollout
from snet_cli.workflows import honest_end
from snet_cli.workflows.honest_end import rollout_score, rollout_scores
from snet_cli.workflows.load import load_trained
from snet_cli.workflows.reporter import Silent
from tests.training_cases import spirals

GROWTH = """
import torch

class Growth(torch.nn.Module):
    def __init__(self, rate={rate}):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(rate))

    def forward(self, t, x, u):
        return self.rate * x
"""

STAY = ("--set", "theta_step={name: adam, rate: 1e-6}", "--iterations", "1", "--order", "10", "--elements", "2")
"""One tiny step: the model stays what its file says."""


@pytest.fixture
def recorded(snet, tmp_path):
    save_trajectories("a.h5", spirals(3, 80))
    return tmp_path


def note_of(ran):
    assert ran.code == 0, ran.err
    told = ran.json["disagreement"]
    if told is not None:
        assert f"note: {told}\n" in ran.err
    return told


def fitted(snet, *options):
    return note_of(snet("fit", "a.h5", "-o", "m.h5", "-f", "--json", *options))


@pytest.mark.parametrize(
    "options", [("--method", "delta", "--model", "linear"), ("--method", "joint", "--model", "linear")]
)
def test_a_good_fit_needs_no_word(recorded, snet, options):
    assert fitted(snet, *options, "--order", "12", "--elements", "2") is None


@pytest.mark.parametrize("method", ["delta", "alpha", "bkpr-euler"])
def test_an_unstable_model_is_named(recorded, snet, method):
    (recorded / "growth.py").write_text(GROWTH.format(rate=60.0))
    told = fitted(snet, "--method", method, "--model", "growth.py:Growth", *STAY)
    assert (
        "no forecast reaches its end: the model is unstable where the data is not, 3 of 3 forecasts run away." in told
    )


def test_trajectories_that_are_no_solutions_of_the_model(recorded, snet):
    (recorded / "growth.py").write_text(GROWTH.format(rate=-0.1))
    told = fitted(snet, "--method", "delta", "--model", "growth.py:Growth", *STAY)
    assert "its trajectories are no solutions of the model, whose rates miss theirs by" in told
    assert told.endswith("Train longer, or let the trajectories move too: --method joint.")


def test_a_large_gamma_is_named(recorded, snet):
    (recorded / "growth.py").write_text(GROWTH.format(rate=-0.1))
    told = fitted(snet, "--method", "alpha", "--gamma", "1e4", "--model", "growth.py:Growth", *STAY)
    assert ": gamma is too large or the model too small, its trajectories are no solutions of the model" in told


def test_an_order_too_low_is_named_with_the_remedy(snet, tmp_path):
    save_trajectories("a.h5", spirals(1, 80))
    # five nodes for five numbers of each equation: the residual vanishes at all of them, and only there
    told = fitted(snet, "--method", "delta", "--model", "linear", "--order", "4", "--elements", "1")
    assert "the order is too low, the residual between the nodes is over 1000 times that at them." in told
    assert told.endswith("Raise --order (now 4) or --elements (now 1).")


def test_data_sets_forecast_in_one_batch_score_as_each_alone(recorded, snet, monkeypatch):
    """Those with other channels, systems or clocks are forecast one after the other."""
    data = spirals(3, 80)
    assert snet("fit", "a.h5", "-o", "m.h5", "--model", "linear", "--method", "delta", "--order", "6").code == 0
    trained = load_trained("m.h5")
    device, asked = torch.device("cpu"), []
    monkeypatch.setattr(honest_end, "rollout", lambda *args, **kw: asked.append(len(args[1])) or rollout(*args, **kw))
    first, last = data.select([0, 1]), data.select([2]).select_rows(np.arange(80) < 50)
    others = {
        "alike": last,
        "channels": replace(last, units={"a": "m"}),
        "system": replace(last, system={"name": "vehicle"}),
        "clock": last.select_rows(np.arange(50) % 2 == 0),
    }
    for name, other in others.items():
        asked.clear()
        parts = [first, None, other]
        found = rollout_scores(trained, parts, device, Silent(), 60.0)
        assert asked == ([3] if name == "alike" else [2, 1]), name
        assert found[1] is None
        for part, score in ((first, found[0]), (other, found[2])):
            alone = rollout_score(trained, part, device, Silent(), 60.0)
            # steps are each trajectory's own; sums of other batches have other last digits
            assert score.mse == pytest.approx(alone.mse, rel=1e-6)
            assert score.relative == pytest.approx(alone.relative, rel=1e-6)
            assert (score.diverged, score.outcomes) == (alone.diverged, alone.outcomes)


class Impatient(Silent):
    def should_stop(self):
        return True


@pytest.mark.parametrize("parts", [1, 2])
def test_what_a_stop_cuts_off_is_no_finding(recorded, snet, monkeypatch, parts):
    """Forecasts that the user stopped did not reach their end, but not because of the model."""
    monkeypatch.setattr(honest_end, "STOPPED_SECONDS", 0.0)
    assert snet("fit", "a.h5", "-o", "m.h5", "--model", "linear", "--method", "delta", "--order", "6").code == 0
    data, device = spirals(3, 80), torch.device("cpu")
    found = rollout_scores(load_trained("m.h5"), [data, data][:parts], device, Impatient(), 60.0)
    for score in found:
        assert score.diverged == 3
        assert score.outcomes == {}
