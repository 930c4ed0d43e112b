"""kill -9 at random instants, in short: two kills of a tiny run; `tests/stress/test_kill.py` does it in number."""

from __future__ import annotations

import numpy as np

from snet_cli.data.trajectory_file import save_trajectories
from tests.kills import kill_until
from tests.training_cases import spirals


def test_two_kills_of_a_tiny_run_change_no_byte(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", spirals(3, 20))
    words = ["fit", "a.h5", "--method", "delta", "--order", 5, "--elements", 1, "--iterations", 12, "--threads", 1]
    words += ["--model", "mlp", "--set", "model.hidden=[4]", "--checkpoint-every", "2it"]
    tally = kill_until(words, "m.h5", 2, np.random.default_rng(5))
    assert (tally.kills, tally.same, tally.unreadable, tally.without_state) == (2, tally.runs, 0, 0)
    assert not [path.name for path in tmp_path.glob(".snet-*")]  # the last run sweeps what the killed ones left
