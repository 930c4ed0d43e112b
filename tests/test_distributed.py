"""Several processes: their sums, the same model as of one, and what happens when one fails or is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from snet_cli.cli.main import main
from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.data.posterior import read_posterior
from snet_cli.data.shares import shares
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.distributed import ALONE, Place, place_in
from snet_cli.errors import UsageError
from snet_cli.training.arrow import ArrowProblem
from snet_cli.training.linearisation import Linearisation
from snet_cli.training.robust import median_magnitude
from tests.alpha_cases import relaxed_spirals
from tests.teams import Team, answers, together
from tests.training_cases import network, spirals

SMALL = ("--threads", 1, "--model", "mlp", "--set", "model.hidden=[4]")

ALPHA = ("--method", "alpha", "--order", 5, "--elements", 2, "--gamma", 3)

METHODS = {
    "delta-paper": (20, "--method", "delta", "--preset", "paper", "--order", 6),
    "delta": (20, "--method", "delta", "--order", 5, "--elements", 4),
    "delta-validated": (20, "--method", "delta", "--order", 5, "--elements", 2, "--validation", 0.3),
    "alpha-paper": (20, "--method", "alpha", "--preset", "paper", "--order", 6),
    "alpha": (3, *ALPHA),
    "alpha-adam": (20, *ALPHA, "--set", "theta_step.name=adam", "--validation", 0.3),
    "joint": (12, "--method", "joint", "--order", 5, "--elements", 2),
}
"""Iterations and options of each. Sums in another order have another last digit, and L-BFGS on a network amplifies that
with every step: after two hundred steps, twenty iterations of alpha, the same data in reversed order ends as far away
(1e-2 on noisy data) as two processes do."""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with `t.h5`: seven noisy trajectories."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SNET_")]:
        monkeypatch.delenv(name)
    save_trajectories("t.h5", spirals(7, 20, noise=0.02))
    return tmp_path


def alone(*args: object) -> int:
    """A command in this process."""
    return main([str(arg) for arg in args])


def model_distance(one: str, other: str) -> float:
    """Largest difference of any weight, relative to the largest weight of its tensor."""
    a, b = load_checkpoint(one).state, load_checkpoint(other).state
    return max(float(np.abs(a[k] - b[k]).max() / max(np.abs(a[k]).max(), 1e-300)) for k in a)


# Who has what


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
def test_shares_cover_all_trajectories_once_and_are_balanced(parts):
    size = np.random.default_rng(parts).integers(0, 60, 40)
    found = shares(size, parts)
    assert [number for part in found for number in range(40)[part]] == list(range(40))
    assert all(part.stop > part.start for part in found)
    if parts <= 7:  # a cut is off by half a trajectory at most
        assert max(size[part].sum() for part in found) <= size.sum() / parts + size.max() + 40 / parts


def test_more_processes_than_trajectories_are_refused():
    with pytest.raises(UsageError, match="5 processes for 4 trajectories: each needs"):
        shares(np.ones(4, np.int64), 5)


def test_the_launcher_tells_the_place():
    launched = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "1"}
    launched |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert place_in(launched) == Place(3, 4, 1, 2, 2, True)
    assert place_in({"RANK": "3", "WORLD_SIZE": "4"}) == Place()  # another launcher's, with no place to meet
    with pytest.raises(UsageError, match="RANK=4 and WORLD_SIZE=4 are not the place of a process"):
        place_in({**launched, "RANK": "4"})
    with pytest.raises(UsageError, match="RANK=x"):
        place_in({**launched, "RANK": "x"})


def test_one_process_imports_nothing_of_torch_distributed(data):
    code = "import sys; import snet_cli.distributed as d\nwith d.joined_processes() as team: assert team is d.ALONE\n"
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    whole = torch.arange(3)
    assert ALONE.gather(whole) is whole
    assert ALONE.own(whole, 3) is whole
    assert ALONE.sum(whole) == (whole,)


# Sums


def _ask(team):
    part = torch.arange(2 * team.rank + 1, dtype=torch.float64)[:, None] + torch.tensor([0.0, 10.0]) * (team.rank + 1)
    part = part.double()
    whole = team.gather(part)
    matrix, vector = team.sum(torch.full((2, 2), 0.5 + team.rank), torch.tensor([team.rank], dtype=torch.int64))
    theta = torch.full((3,), float(team.rank))
    team.align([theta])
    return {
        "total": team.total(team.rank + 0.25, 1.0),
        "largest": team.largest(-float(team.rank)),
        "any": team.any(team.rank == 1, False),
        "before": team.before(2 * team.rank + 1),
        "whole": whole.tolist(),
        "own": bool((team.own(whole, len(part)) == part).all()),
        "collected": team.collect(part > 1).tolist(),
        "matrix": matrix.tolist(),
        "vector": [vector.item(), str(vector.dtype), str(matrix.dtype)],
        "lead": team.from_lead({"pi": 0.1 + 0.2, "rank": team.rank}),
        "theta": theta.tolist(),
        "median": median_magnitude(part - 11.5, team).tolist(),
        "median of the whole": median_magnitude(whole - 11.5).tolist(),
    }


def test_sums_joins_and_medians_are_those_of_the_whole(data):
    first, second, third = answers(3, _ask)
    expected = np.concatenate([np.arange(2 * r + 1)[:, None] + np.array([0, 10]) * (r + 1) for r in range(3)])
    assert first["total"] == [3.75, 3.0]
    assert first["largest"] == [0.0]
    assert first["any"] == [True, False]
    assert [one["before"] for one in (first, second, third)] == [0, 1, 4]
    assert first["whole"] == expected.tolist()
    assert all(one["own"] for one in (first, second, third))
    assert first["collected"] == (expected > 1).tolist()
    assert first["matrix"] == [[4.5, 4.5], [4.5, 4.5]]
    assert first["vector"] == [3, "torch.int64", "torch.float32"]
    assert third["lead"] == {"pi": 0.1 + 0.2, "rank": 0}
    assert third["theta"] == [0.0, 0.0, 0.0]
    assert first["median"] == first["median of the whole"]
    for name in ("total", "whole", "matrix", "lead", "median"):
        assert first[name] == second[name] == third[name]


def _step(team, formed=True):
    """S, the reduced gradient, dθ and dX of J's Gauss-Newton model, each process with its own trajectories."""
    data, _, relaxed, nodes = relaxed_spirals(5, elements=2, order=5, known=True)
    begin, end = (part := shares(data.row_size, team.size)[team.rank]).start, part.stop
    first = relaxed.mesh.first_element
    own, model = nodes[first[begin] : first[end]], network(data, hidden=[4])
    problem = ArrowProblem(relaxed.shard(begin, end), model, own, prior=1e-3, formed=formed, team=team)
    system = Linearisation(problem, own, 0.7, 1e-2)
    move = system.solve(1e-2)
    numbers = [*problem.loss(own), move.promise, system.reduced.gradient.norm().item(), system.gradient.norm().item()]
    numbers += system.schur.flatten().tolist() if formed else []
    return [*numbers, *move.weights.tolist(), *team.gather(move.states).flatten().tolist()]


@pytest.mark.parametrize("formed", [True, False])
def test_a_joint_step_of_three_processes_is_that_of_one(data, formed):
    one, three = _step(ALONE, formed), answers(3, lambda team: _step(team, formed))
    assert three[0] == three[1] == three[2]
    assert np.allclose(one, three[0], rtol=1e-9, atol=1e-12)  # condition of S times rounding


# The same model


ALPHAS_LIKE_IT = ("alpha-paper", "alpha-adam")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name in ALPHAS_LIKE_IT else name for name in METHODS]
)
def test_two_processes_train_the_model_of_one(data, method):
    iterations, *options = METHODS[method]
    words = ("fit", "t.h5", *options, *SMALL, "--iterations", iterations, "-q", "--json")
    assert alone(*words, "-o", "one.h5") == 0
    lead, other = together(2, *words, "-o", "two.h5")
    assert (lead.code, other.code, other.out, lead.err, other.err) == (0, 0, "", "", "")
    assert json.loads(lead.out)["iterations"] == iterations
    limit = 1e-6 if method == "joint" else 1e-8  # a hundred steps of its warm-up and two of its own
    assert model_distance("one.h5", "two.h5") < limit
    one, two = load_checkpoint("one.h5"), load_checkpoint("two.h5")
    assert np.allclose(one.extra["history"]["loss"], two.extra["history"]["loss"], rtol=limit, equal_nan=True)
    assert two.config["fit"]["processes"] == 2


@pytest.mark.slow
def test_a_state_goes_on_with_any_number_of_processes(data):
    words = ("fit", "t.h5", *METHODS["alpha-adam"][1:], *SMALL, "-q")
    assert alone(*words, "-o", "straight.h5", "--iterations", 6) == 0
    assert {member.code for member in together(3, *words, "-o", "m.h5", "--iterations", 2)} == {0}
    lead, other = together(2, *words[:-1], "-o", "m.h5", "--iterations", 4, "--resume")
    assert (lead.code, other.code, other.err) == (0, 0, "")
    assert "note: the run had 3 process(es), and goes on with 2: other last digits." in lead.err
    assert alone(*words, "-o", "m.h5", "--iterations", 6, "--resume") == 0
    assert model_distance("straight.h5", "m.h5") < 1e-8
    again = together(2, *words, "-o", "m.h5", "--iterations", 6, "--resume", "--json")
    assert json.loads(again[0].out)["resumed_from"] == 6  # finished under these limits, whoever asks


@pytest.mark.slow
def test_simulations_are_the_same_bytes_and_forecasts_the_same_scores(data):
    words = ("simulate", "pendulum", "--trajectories", 5, "--samples", 30, "--noise", 0.1, "--threads", 1, "-q")
    assert alone(*words, "-o", "one.h5") == 0
    assert {member.code for member in together(2, *words, "-o", "two.h5")} == {0}
    assert Path("one.h5").read_bytes() == Path("two.h5").read_bytes()
    assert alone("fit", "one.h5", "-o", "m.h5", *METHODS["delta"][1:], *SMALL, "--iterations", 5, "-q") == 0
    asked = ("evaluate", "m.h5", "one.h5", "--relaxed", "--threads", 1, "-q", "--json")
    lead, other = together(2, *asked, "-o", "two-forecast.h5")
    assert (lead.code, other.code, other.out) == (0, 0, "")
    scores = json.loads(lead.out)
    assert alone(*asked[:-1], "-o", "one-forecast.h5") == 0
    one, two = load_trajectories("one-forecast.h5"), load_trajectories("two-forecast.h5")
    assert np.allclose(one.outputs, two.outputs, rtol=0, atol=1e-12)  # sums over features may differ in the last digit
    assert scores["trajectories"] == 5
    assert scores["relaxed"]["total"] > 0


# What goes wrong


def one_speaks(members, code: int, text: str) -> None:
    """All end with the code, and exactly one says why."""
    assert [member.code for member in members] == [code] * len(members), members
    told = [member.err for member in members if "error:" in member.err]
    assert len(told) == 1, members
    assert text in told[0]
    assert "Traceback" not in told[0]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (
            ("fit", "t.h5", "-o", "m.h5", "--method", "bkpr-euler"),
            2,
            "method bkpr-euler integrates all trajectories in",
        ),
        (("fit", "-", "-o", "m.h5"), 2, "2 processes cannot read one standard input"),
        (("fit", "none.h5", "-o", "m.h5"), 3, "none.h5: no such file"),
        (("info", "t.h5"), 2, "snet info is one process, not 2."),
    ],
)
def test_an_error_of_all_is_told_by_one(data, words, code, text):
    one_speaks(together(2, *words), code, text)


def test_more_processes_than_trajectories_end_with_one_object(data):
    members = together(8, "fit", "t.h5", "-o", "m.h5", *SMALL, "--order", 5, "--elements", 1, "--json")
    one_speaks(members, 2, "8 processes for 7 trajectories: each needs at least one.")
    (told,) = [member.out for member in members if member.out]
    assert json.loads(told)["error"]["hint"] == "Start at most 7 (torchrun --nproc-per-node 7)."


def test_ranks_that_see_other_files_are_told_apart(data):
    save_trajectories("other.h5", spirals(7, 20, seed=1))
    members = Team([("fit", "t.h5", "-o", "m.h5"), ("fit", "other.h5", "-o", "m.h5")]).wait()
    one_speaks(members, 2, "rank 1 has another train file than rank 0: ")
    assert not Path("m.h5").exists()


def test_an_error_of_one_ends_all(data):
    """The lead cannot write: the other one notices that it has gone."""
    members = Team([("fit", "t.h5", "-o", "nowhere/m.h5", *SMALL), ("fit", "t.h5", "-o", "m.h5", *SMALL)]).wait(30)
    assert [member.code for member in members] == [5, 143]
    assert "nowhere/m.h5: there is no folder" in members[0].err
    assert not Path("m.h5").exists()


LONG = ("fit", "t.h5", "-o", "m.h5", *METHODS["delta-paper"][1:], *SMALL, "--checkpoint-every", "10it", "-q")


@pytest.mark.parametrize(("killed", "survivor"), [(1, 0), pytest.param(0, 1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_others_and_the_state_goes_on(data, killed, survivor):
    team = Team([(*LONG, "--iterations", 100_000)] * 2)
    _wait_for_state(team)
    team.kill(killed)
    begin = time.monotonic()
    members = team.wait(20)
    assert time.monotonic() - begin < 10  # seconds, on a machine that is busy with other tests
    assert members[killed].code == -signal.SIGKILL
    assert members[survivor].code == 143
    assert f"error: one of the 2 processes has ended; rank {survivor} stops." in members[survivor].err
    reached = int(load_checkpoint("m.h5.resume").extra["progress"]["iteration"])
    limit = 10 * (reached // 10) + 20
    assert {member.code for member in together(2, *LONG, "--iterations", limit, "--resume")} == {0}
    assert {member.code for member in together(2, *LONG[:3], "straight.h5", *LONG[4:], "--iterations", limit)} == {0}
    assert Path("m.h5").read_bytes() == Path("straight.h5").read_bytes()


def _absent() -> int:
    """A process that never comes to the others."""
    time.sleep(60)
    return 0


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_signal_ends_a_process_that_still_waits_for_the_others(data, waiting):
    tasks = [_absent, (*LONG, "--iterations", 10)]
    team = Team(tasks if waiting else tasks[::-1])
    time.sleep(1.0)
    team.kill(waiting, signal.SIGTERM)
    end = time.monotonic() + 10
    while team.running() == 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert team.running() == 1
    team.kill(1 - waiting)
    assert team.wait(10)[waiting].code in (-signal.SIGTERM, 143)
    assert not Path("m.h5.resume").exists()


def test_a_signal_to_one_stops_all_after_the_same_step(data):
    team = Team([(*LONG, "--iterations", 100_000, "--json")] * 2)
    _wait_for_state(team)
    team.kill(1, signal.SIGTERM)
    lead, other = team.wait(20)
    assert (lead.code, other.code) == (0, 143)
    assert json.loads(lead.out)["status"] == "stopped"
    assert load_checkpoint("m.h5").kind == "model"


@pytest.mark.slow
def test_levenberg_marquardt_and_confidence_are_those_of_one(data):
    """Exact data: `joint` warms up by Levenberg-Marquardt on the weights, and `delta` may do all of it so."""
    save_trajectories("x.h5", spirals(5, 40))
    for method in (("delta", "--set", "theta_step.name=lm"), ("joint",)):
        words = ("fit", "x.h5", "--method", *method, "--order", 8, "--elements", 1, *SMALL, "--iterations", 5, "-q")
        assert alone(*words, "-f", "-o", "one.h5") == 0
        assert [member.code for member in together(2, *words, "-f", "-o", "two.h5")] == [0, 0]
        assert model_distance("one.h5", "two.h5") < 1e-7  # the condition of the normal equations times rounding
    one, two = (read_posterior(load_checkpoint(path).extra, path) for path in ("one.h5", "two.h5"))
    assert np.allclose(one.noise_std, two.noise_std, rtol=1e-5)
    assert np.allclose(one.deviation, two.deviation, rtol=1e-3)


def _wait_for_state(team: Team) -> None:
    end = time.monotonic() + 60
    while not Path("m.h5.resume.previous").exists() and time.monotonic() < end and team.running() == team.size:
        time.sleep(0.01)
    assert team.running() == team.size


# The launcher


def test_torchrun_prints_one_object_and_ends_with_zero(data):
    words = [str(word) for word in ("fit", "t.h5", "-o", "m.h5", *METHODS["delta-paper"][1:], *SMALL)]
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "snet_cli"]
    done = subprocess.run(
        [sys.executable, *run, *words, "--iterations", "5", "--json"], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == "m.h5"
