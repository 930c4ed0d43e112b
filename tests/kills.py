"""`snet fit` killed at random instants, and resumed until it is done."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from snet_cli.cli.main import main
from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.errors import CheckpointError
from snet_cli.workflows.resume import previous_path, state_path
from tests.children import LOG, run_child


def sha256(path: str) -> str:
    """Digest of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@dataclass
class Tally:
    """What happened over many kills."""

    kills: int = 0
    runs: int = 0
    same: int = 0
    unreadable: int = 0
    without_state: int = 0


def kill_until(args: Sequence[object], output: str, kills: int, rng: np.random.Generator) -> Tally:
    """Runs of one command, each killed and resumed until it is done, until there were so many kills.

    Parameters
    ----------
    args : sequence
        The command, without `-o`.
    """
    assert main([str(arg) for arg in (*args, "-o", "straight.h5", "-q")]) == 0  # here, so that children import nothing
    wanted, begin = sha256("straight.h5"), time.monotonic()
    assert run_child([*args, "-o", "again.h5"]).code == 0, Path(LOG).read_text()
    duration = time.monotonic() - begin
    assert sha256("again.h5") == wanted
    tally = Tally()
    while tally.kills < kills:
        for path in (output, state_path(output), previous_path(output)):
            Path(path).unlink(missing_ok=True)
        begun, code = False, None
        while code is None:
            delay = float(rng.uniform(0.0, 1.2 * duration)) if tally.kills < kills else None
            code = run_child([*args, "-o", output, "--resume"], after=delay).code
            tally.kills += code is None
            begun = _look(output, begun, tally)
        assert code == 0, Path(LOG).read_text()
        tally.runs += 1
        tally.same += sha256(output) == wanted
    return tally


def _look(output: str, begun: bool, tally: Tally) -> bool:
    """Whether a state was ever there; once it was, one that can be read always is."""
    found = []
    for path in (output, state_path(output), previous_path(output)):
        if os.path.exists(path):
            try:
                found.append((path, load_checkpoint(path).kind))
            except CheckpointError:
                tally.unreadable += 1
    has_state = any(kind == "resume" for _, kind in found)
    tally.without_state += begun and not has_state
    return begun or has_state
