"""kill -9 at random instants of `fit` and of the resumed run: the model's SHA-256 is that of the uninterrupted run.

SNET_TEST_KILLS sets the number of kills of each method (default 20).
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.command import Snet
from tests.kills import kill_until

KILLS = int(os.environ.get("SNET_TEST_KILLS", "20"))

METHODS = {
    "delta-adam": ("--method", "delta", "--preset", "paper", "--iterations", 60),
    "delta-lbfgs": ("--method", "delta", "--iterations", 60, "--order", 10, "--elements", 2),
    "alpha-paper": ("--method", "alpha", "--preset", "paper", "--iterations", 15),
    "alpha": ("--method", "alpha", "--iterations", 20, "--order", 10, "--elements", 2),
    "joint": ("--method", "joint", "--iterations", 15, "--order", 8, "--elements", 2),
    "joint on exact data": ("--method", "joint", "--iterations", 36, "--set", "model.hidden=[8]"),
    "bkpr-euler": ("--method", "bkpr-euler", "--preset", "paper", "--iterations", 10),
}


@pytest.mark.stress
@pytest.mark.parametrize("method", METHODS)
def test_killed_runs_end_with_the_same_model(snet: Snet, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    # exact data has a second part of the warm-up, from iteration 31 on
    kind = ("--samples", 100) if "exact" in method else ("--samples", 50, "--noise", 0.02)
    assert snet("simulate", "vehicle", "-o", "a.h5", "--trajectories", 4, *kind).code == 0
    words = ["fit", "a.h5", *METHODS[method], "--checkpoint-every", "5it", "--threads", 1]
    tally = kill_until(words, "m.h5", KILLS, np.random.default_rng(1))
    with capsys.disabled():
        print(f"\n{method}: {tally.kills} kills, {tally.same} of {tally.runs} runs with the same SHA-256")
    assert (tally.same, tally.unreadable, tally.without_state) == (tally.runs, 0, 0)
