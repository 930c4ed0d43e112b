"""kill -9 of one of two processes at random instants: the other ends by itself, and the model's SHA-256 is that of an
uninterrupted run.

SNET_TEST_KILLS sets the number of kills of each method (default 20).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from snet_cli.workflows.resume import previous_path, state_path
from tests.command import Snet
from tests.kills import sha256
from tests.teams import Team, together

KILLS = int(os.environ.get("SNET_TEST_KILLS", "20"))

SECONDS = 10.0
"""In which the survivor ends, at most, on a machine that is busy with other tests."""

METHODS = {
    "delta-adam": ("--method", "delta", "--preset", "paper", "--iterations", 60),
    "delta-lbfgs": ("--method", "delta", "--iterations", 60, "--order", 10, "--elements", 2),
    "alpha": ("--method", "alpha", "--iterations", 12, "--order", 10, "--elements", 2, "--gamma", 3),
    "joint": ("--method", "joint", "--iterations", 14, "--order", 8, "--elements", 2),
}


@pytest.mark.stress
@pytest.mark.parametrize("method", METHODS)
def test_killed_processes_end_with_the_same_model(snet: Snet, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert snet("simulate", "vehicle", "-o", "a.h5", "--trajectories", 4, "--samples", 50, "--noise", 0.02).code == 0
    words = ["fit", "a.h5", *METHODS[method], "--checkpoint-every", "5it", "--threads", 1, "-q"]
    begin = time.monotonic()
    assert [member.code for member in together(2, *words, "-o", "straight.h5", limit=200)] == [0, 0]
    duration, rng = time.monotonic() - begin, np.random.default_rng(2)
    wanted, kills, runs, clean, ended_by_launcher = sha256("straight.h5"), 0, 0, 0, 0
    while kills < KILLS:
        for path in ("m.h5", state_path("m.h5"), previous_path("m.h5")):
            Path(path).unlink(missing_ok=True)
        done = False
        while not done:
            team = Team([[*words, "-o", "m.h5", "--resume"]] * 2)
            end = time.monotonic() + (rng.uniform(0.1, 1.1) * duration if kills < KILLS else 200.0)
            while team.running() == 2 and time.monotonic() < end:
                time.sleep(0.002)
            if team.running() == 2:
                rank = int(rng.integers(2))
                team.kill(rank)
                end = time.monotonic() + SECONDS
                while team.running() and time.monotonic() < end:
                    time.sleep(0.01)
                if team.running():  # nobody's connection was there yet to be closed: the launcher ends the other one
                    team.kill(1 - rank, signal.SIGTERM)
                    ended_by_launcher += 1
                members = team.wait(SECONDS)
                kills += 1
                codes = (members[rank].code, members[1 - rank].code)
                # zero: it had just finished when the signal came
                good = codes[0] in (-signal.SIGKILL, 0) and codes[1] in (143, 0, -signal.SIGTERM)
                clean += good
                assert good, (rank, members)
                assert "Traceback" not in members[1 - rank].err
            else:
                done = [member.code for member in team.wait(SECONDS)] == [0, 0]
                assert done
        runs += 1
        assert sha256("m.h5") == wanted
    with capsys.disabled():
        print(f"\n{method}: {kills} kills of one of two processes, {clean} ended cleanly ", end="")
        print(f"({ended_by_launcher} by the launcher's signal), {runs} of {runs} same SHA-256")
    assert clean == kills


def workers_of(launcher: int) -> list[int]:
    """Processes that run `snet` below a launcher."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"snet_cli" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


@pytest.mark.stress
def test_the_launcher_goes_on_by_itself(snet: Snet) -> None:
    """`torchrun --max-restarts 3`, and two kills."""
    assert snet("simulate", "vehicle", "-o", "a.h5", "--trajectories", 4, "--samples", 50, "--noise", 0.02).code == 0
    words = ["fit", "a.h5", "--method", "delta", "--preset", "paper", "--checkpoint-every", "10it"]
    words += ["--threads", "1", "--iterations", "3000", "-q"]
    assert [member.code for member in together(2, *words, "-o", "straight.h5", limit=200)] == [0, 0]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3"]
    with open("log", "w") as log:
        launcher = subprocess.Popen(
            [sys.executable, *launch, "-m", "snet_cli", *words, "-o", "m.h5"], stdout=log, stderr=log
        )
        gone: set[int] = set()
        since = 0.0
        for rank in range(2):
            state, end = Path(previous_path("m.h5")), time.monotonic() + 100
            while True:  # until this start of both has written a state of its own
                workers = sorted(set(workers_of(launcher.pid)) - gone)
                if len(workers) == 2 and state.exists() and state.stat().st_mtime > since:
                    break
                assert launcher.poll() is None, Path("log").read_text()
                assert time.monotonic() < end
                time.sleep(0.01)
            os.kill(workers[rank], signal.SIGKILL)
            gone, since = gone | set(workers), time.time() + 1.0
        assert launcher.wait(200) == 0, Path("log").read_text()
    assert sha256("m.h5") == sha256("straight.h5")
