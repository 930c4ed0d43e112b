"""`fit --seeds` and `--folds` with `--resume` and `--metrics`: every model's run has a state and rows of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.workflows.ensemble import WEIGHTS
from snet_cli.workflows.run_state import load_state
from tests.command import Snet
from tests.teams import together
from tests.training_cases import spirals

WORDS = ("fit", "t.h5", "--order", 6, "--elements", 1, "--model", "mlp", "--set", "model.hidden=[4]")
DELTA = (*WORDS, "--method", "delta", "--threads", 1)


@pytest.fixture
def folder(snet: Snet, tmp_path):
    """The empty folder of `snet`, with `t.h5`: six noisy trajectories."""
    save_trajectories("t.h5", spirals(6, 20, noise=0.02))
    return tmp_path


def assert_same_models(one: str, other: str) -> None:
    """Bit for bit, all members."""
    a, b = load_checkpoint(one).extra[WEIGHTS], load_checkpoint(other).extra[WEIGHTS]
    assert a.keys() == b.keys()
    for key, values in a.items():
        assert np.array_equal(values, b[key]), key


def rows(path: str) -> list[list[str]]:
    """Of a file of metrics, without the times, model by model."""
    table = [line.split(",") for line in Path(path).read_text().splitlines()]
    return sorted([*cells[:5], cells[6]] for cells in table)


@pytest.mark.parametrize(
    "case",
    [
        (*DELTA, "--seeds", 3),
        pytest.param((*DELTA, "--seeds", 2, "--set", "theta_step.name=adam"), marks=pytest.mark.slow),
        pytest.param((*DELTA, "--folds", 3), marks=pytest.mark.slow),
        pytest.param((*WORDS, "--method", "joint", "--threads", 2, "--seeds", 3), marks=pytest.mark.slow),
    ],
    ids=["in a batch", "Adam", "folds", "side by side"],
)
def test_a_resumed_ensemble_is_the_uninterrupted_one(snet: Snet, folder, case):
    whole = snet(*case, "-o", "whole.h5", "--iterations", 13, "--metrics", "whole.csv", "--json").json
    assert snet(*case, "-o", "part.h5", "--iterations", 12, "--metrics", "part.csv").code == 0
    again = (*case, "-o", "part.h5", "--iterations", 13, "--metrics", "part.csv", "--json", "--resume")
    resumed = snet(*again).json
    assert_same_models("whole.h5", "part.h5")
    assert resumed["train_mse"] == whole["train_mse"]
    assert [one["score"] for one in resumed["ensemble"]["members"]] == [
        one["score"] for one in whole["ensemble"]["members"]
    ]
    assert rows("part.csv") == rows("whole.csv")
    assert len({row[-1] for row in rows("part.csv")}) == 1 + len(whole["ensemble"]["members"])


@pytest.mark.parametrize("step", ["lbfgs", "adam"])
@pytest.mark.slow
def test_members_may_have_come_to_different_iterations(snet: Snet, folder, step):
    """As where a run is killed while it writes the states; Adam then goes on one by one, with other last digits."""
    case = (*DELTA, "--seeds", 3, "--set", f"theta_step.name={step}")
    assert snet(*case, "-o", "whole.h5", "--iterations", 15).code == 0
    assert snet(*case, "-o", "part.h5", "--iterations", 12, "--checkpoint-every", "5it").code == 0
    Path("part.h5.seed1.resume").unlink()  # the one before it is of iteration 10
    Path("part.h5.seed2.resume").unlink()
    Path("part.h5.seed2.resume.previous").unlink()  # as if it had not begun
    done = snet(*case, "-o", "part.h5", "--iterations", 15, "--resume")
    assert (done.code, "part.h5.seed1.resume is missing; going on from" in done.err) == (0, True)
    if step == "lbfgs":
        assert_same_models("whole.h5", "part.h5")
    else:
        a, b = load_checkpoint("whole.h5").extra[WEIGHTS], load_checkpoint("part.h5").extra[WEIGHTS]
        for key, values in a.items():
            np.testing.assert_allclose(b[key], values, rtol=1e-9, atol=1e-12)


def test_a_finished_ensemble_stays_what_it_is(snet: Snet, folder):
    case = (*DELTA, "--seeds", 2, "-o", "e.h5", "--iterations", 6)
    first = snet(*case, "--json").json
    content = Path("e.h5").read_bytes()
    done = snet(*case, "--resume", "--json")
    assert "all models had finished; nothing is left to do." in done.err
    assert (done.json["resumed_from"], done.json["ensemble"]) == (6, first["ensemble"])
    assert Path("e.h5").read_bytes() == content


def test_other_threads_are_told(snet: Snet, folder):
    """Nobody chooses how many threads a model has: it depends on how many train beside it."""
    case = (*DELTA, "--seeds", 2, "-o", "e.h5", "--iterations")
    assert snet(*case, 4).code == 0
    done = snet(*case, 5, "--resume", "--threads", 2)
    assert (done.code, "seed 1 had 1 thread(s), and goes on with 2: other last digits." in done.err) == (0, True)


def test_forced_runs_leave_no_state_of_earlier_members(snet: Snet, folder):
    case = (*DELTA, "-o", "e.h5", "--iterations", 3)
    assert snet(*case, "--seeds", 4).code == 0
    assert snet(*case, "--seeds", 2, "--force").code == 0
    assert {path.name for path in folder.glob("e.h5.*.resume")} == {"e.h5.seed0.resume", "e.h5.seed1.resume"}


@pytest.mark.parametrize("name", ["e.h5", "e.h5.seed1.resume", "./e.h5.seed0.resume.previous"])
def test_metrics_have_a_file_of_their_own(snet: Snet, folder, name):
    done = snet(*DELTA, "-o", "e.h5", "--seeds", 2, "--metrics", name, "--force")
    assert (done.code, "another output of this command has that name." in done.err) == (5, True)


@pytest.mark.parametrize(("content", "code"), [(b"iteration,resi", 0), (b"\xff\xfe", 5)])
def test_a_torn_file_of_metrics_begins_anew_and_another_one_is_refused(snet: Snet, folder, content, code):
    case = (*DELTA, "-o", "e.h5", "--seeds", 2, "--metrics", "m.csv")
    assert snet(*case, "--iterations", 3).code == 0
    Path("m.csv").write_bytes(content)
    done = snet(*case, "--iterations", 4, "--resume")
    assert (done.code, "is no file of metrics like these" in done.err) == (code, code == 5), done.err


def test_a_row_without_a_number_is_no_row_of_metrics(snet: Snet, folder):
    case = (*DELTA, "-o", "e.h5", "--seeds", 2, "--metrics", "m.csv")
    assert snet(*case, "--iterations", 3).code == 0
    Path("m.csv").write_bytes(Path("m.csv").read_bytes().replace(b"\r\n", b"\r\n\r\n"))
    assert snet(*case, "--iterations", 4, "--resume").code == 5


def test_what_lies_there_is_not_overwritten(snet: Snet, folder):
    case = (*DELTA, "--seeds", 2, "--iterations", 3)
    assert snet(*case, "-o", "e.h5").code == 0
    Path("e.h5").unlink()
    done = snet(*case, "-o", "e.h5")
    assert (done.code, "e.h5.seed0.resume: exists already, the state of an earlier run." in done.err) == (5, True)
    assert snet(*case, "-o", "e.h5", "--force").code == 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--set", "prior=0.1"), "another configuration"),
        (("--iterations", 2), "the run is at iteration 4, past the limit of 2."),
    ],
)
def test_a_state_that_does_not_fit_is_refused(snet: Snet, folder, flags, text):
    case = (*DELTA, "--seeds", 2, "-o", "e.h5", "--iterations", 4)
    assert snet(*case).code == 0
    done = snet(*case, *flags, "--resume")
    assert (done.code, text in done.err) == (4, True), done.err


def test_folds_of_another_number_are_other_data(snet: Snet, folder):
    assert snet(*DELTA, "-o", "e.h5", "--folds", 3, "--iterations", 3).code == 0
    done = snet(*DELTA, "-o", "e.h5", "--folds", 2, "--iterations", 3, "--resume")
    assert (done.code, 'fold was "1 of 3", here it is "1 of 2".' in done.err) == (4, True), done.err


def test_without_a_state_it_starts_afresh(snet: Snet, folder):
    done = snet(*DELTA, "-o", "e.h5", "--seeds", 2, "--iterations", 3, "--resume")
    assert (done.code, "there is no state of an earlier run" in done.err) == (0, True)


@pytest.mark.slow
def test_processes_go_on_with_what_one_began(snet: Snet, folder):
    case = (*DELTA, "--seeds", 3)
    assert snet(*case, "-o", "whole.h5", "--iterations", 9).code == 0
    assert snet(*case, "-o", "part.h5", "--iterations", 8).code == 0
    lead, other = together(2, *case, "-o", "part.h5", "--iterations", 9, "--resume")
    assert (lead.code, other.code) == (0, 0), lead.err + other.err
    assert_same_models("whole.h5", "part.h5")
    lead, other = together(2, *case, "-o", "m.h5", "--metrics", "m.csv")
    told = lead.err + other.err  # by whichever comes first
    assert (lead.code, "--metrics: the models are shared by several processes." in told) == (2, True)


def test_folds_know_the_noise_that_the_search_on_all_trajectories_has_told(snet: Snet, folder):
    """On exact data a method would not know that it is exact otherwise."""
    fit = ("fit", "t.h5", "-o", "e.h5", "--method", "delta", "--model", "mlp", "--set", "model.hidden=[4]")
    assert snet(*fit, "--folds", 2, "--iterations", 1, "--threads", 1).code == 0
    noise = [load_state(f"e.h5.fold{fold}.resume", 10**9)[3].noise for fold in (1, 2)]
    assert np.isfinite(noise[0]).all()
    np.testing.assert_array_equal(noise[0], noise[1])
