import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from snet_cli.cli.console import Console
from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.errors import NumericalError, RequirementError, UsageError
from snet_cli.workflows.reporter import Tick
from snet_cli.workflows.verdict import verdict
from tests.command import Snet

RESULT: dict[str, Any] = {
    "trajectories": 4,
    "windows": 5,
    "diverged": 0,
    "mse": 0.5,
    "channels": {"x": {"rmse": 0.1}},
    "relaxed": None,
}


@pytest.fixture
def data(snet: Snet) -> Snet:
    assert snet("simulate", "pendulum", "-o", "a.h5", "--trajectories", 3, "--samples", 15, "--horizon", 2).code == 0
    return snet


def fit(snet: Snet, *more: object) -> Any:
    return snet("fit", "a.h5", "-o", "m.h5", "--method", "delta", "--order", 8, "--elements", 1, *more)


def test_fit_evaluate_and_what_they_say(data: Snet) -> None:
    trained = fit(data, "--iterations", 5, "--metrics", "metrics.csv")
    assert trained.code == 0, trained.err
    assert trained.out.startswith("delta, mlp with ")
    assert "ended at the limit of 5 iterations, " in trained.out
    assert trained.err.endswith("wrote m.h5; next: snet evaluate m.h5 test.h5\n")
    assert len(Path("metrics.csv").read_text().splitlines()) == 6
    assert "model: name=mlp hidden=[32, 32] activation=tanh" in data("info", "m.h5").out
    scored = data("evaluate", "m.h5", "a.h5", "-o", "p.h5")
    assert scored.code == 0, scored.err
    assert "\nchannel  " in scored.out
    assert scored.err.endswith("wrote p.h5; next: snet info p.h5\n")
    assert data("info", "p.h5", "--check").code == 0


def test_a_bound_that_is_not_met_is_exit_7_with_all_scores_in_the_same_json(data: Snet) -> None:
    assert fit(data, "--iterations", 2).code == 0
    ran = data("evaluate", "m.h5", "a.h5", "--require", "mse<=1e-30", "--json")
    assert ran.code == 7
    assert ran.json["mse"] > 1e-30
    assert ran.json["error"]["code"] == "requirement"
    assert data("evaluate", "m.h5", "a.h5", "--require", "diverged<=10").code == 0
    wrong = data("evaluate", "m.h5", "a.h5", "--require", "mze<=1")
    assert wrong.code == 2
    assert wrong.err == "error: --require 'mze<=1': no score is called 'mze'.\nDid you mean 'mse'?\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_training_with_the_model_so_far(
    data: Snet, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def interrupt(console: Console, tick: Tick) -> None:
        if tick.done == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Console, "progress", interrupt)
    ran = fit(data, "--iterations", 10_000, "--json", "--preset", "paper")
    assert ran.code == code
    assert (ran.json["status"], ran.json["iterations"]) == ("stopped", 3)
    assert load_checkpoint("m.h5").kind == "model"


def test_the_file_is_the_same_whatever_changes_no_result(data: Snet) -> None:
    assert fit(data, "--iterations", 3).code == 0
    first = Path("m.h5").read_bytes()
    assert data("info", "m.h5").code == 0
    assert fit(data, "--iterations", 3, "-f", "-v", "--json", "--metrics", "m.csv").code == 0
    assert Path("m.h5").read_bytes() == first


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "mlpp"], "there is no model 'mlpp'.\nDid you mean 'mlp'?\n"),
        (["--set", "gama=3"], "--set gama: snet fit has no option 'gama'.\n"),
        (["--iterations", "0"], "--iterations is 0, expected a whole number of at least 1.\n"),
        (["-c", "none.yaml"], "none.yaml: there is no such configuration file.\nCheck the name after --config.\n"),
    ],
)
def test_wrong_options_of_fit_are_found_before_any_file_is_read(snet: Snet, args: list[str], message: str) -> None:
    ran = snet("fit", "none.h5", "-o", "m.h5", *args)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {message}")


def test_the_wrong_kind_of_file_has_the_exit_code_of_what_was_expected(data: Snet) -> None:
    assert fit(data, "--iterations", 1).code == 0
    assert data("evaluate", "a.h5", "a.h5").code == 4
    assert data("evaluate", "none.h5", "a.h5").code == 4
    assert data("evaluate", "m.h5", "m.h5").code == 3
    assert data("fit", "m.h5", "-o", "n.h5").code == 3
    assert not Path("n.h5").exists()


def test_a_dry_run_of_fit_shows_step_0_and_writes_nothing(data: Snet) -> None:
    ran = fit(data, "-n")
    assert ran.code == 0
    assert re.search(r"\nchannel +error of step 0 +noise\n", ran.out)
    assert not Path("m.h5").exists()


def test_the_verdict_on_a_result() -> None:
    assert verdict(RESULT, ["mse<=0.5", "channels.x.rmse<0.2"]) is None
    assert isinstance(verdict(RESULT, ["mse<0.5"]), RequirementError)
    assert isinstance(verdict({**RESULT, "mse": None}, ["mse<=9"]), RequirementError)
    assert isinstance(verdict({**RESULT, "diverged": 5}), NumericalError)
    assert verdict({**RESULT, "diverged": 4}) is None
    with pytest.raises(UsageError, match=r"^--require 'mse' is no bound"):
        verdict(RESULT, ["mse"])
