"""Eight seeds, and five folds, at once beside one fit: the whole command, from its start to the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import Snet

WORDS = ("-f", "-q", "--json")

METHODS: dict[str, tuple[object, ...]] = {
    "delta": ("--method", "delta", "--iterations", 500),
    "joint": ("--method", "joint"),
}
"""Delta: so many iterations that a model needs, and so few that none ends before; joint to its own end."""

ROUNDS = 2
"""Runs of each; the fastest one counts, because other programs only ever take time."""

MOST = 4.0


def seconds(*words: object) -> tuple[float, dict[str, object]]:
    """Of one command in a process of its own, imports too, and what it prints."""
    command = [sys.executable, "-m", "snet_cli", *(str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, check=True)
    result = json.loads(done.stdout)
    return float(result["seconds"]), result


@pytest.mark.bench
@pytest.mark.parametrize(("method", "threads"), [("delta", 1), ("delta", 2), ("joint", 2)])
def test_many_models_cost_at_most_four_times_one(snet: Snet, tmp_path: Path, method: str, threads: int, capsys):
    """A hundred vehicles of a hundred samples, hidden 32; `joint` by a core for each model."""
    assert snet("simulate", "vehicle", "-o", "t.h5").code == 0
    fit = ("fit", "t.h5", *METHODS[method], *WORDS, "--threads", threads)
    kinds: dict[str, tuple[object, ...]] = {
        "one": (),
        "one with a fifth held out": ("--validation", 0.2),
        "eight seeds": ("--seeds", 8),
        "five folds": ("--folds", 5),
    }
    best = {name: min(seconds(*fit, *flags, "-o", "m.h5")[0] for _ in range(ROUNDS)) for name, flags in kinds.items()}
    seeds = best["eight seeds"] / best["one"]
    folds = best["five folds"] / best["one with a fifth held out"]
    with capsys.disabled():
        print(f"\n{method}, {threads} thread(s): one {best['one']:.1f} s, ", end="")
        print(f"eight seeds {seeds:.2f} x, five folds {folds:.2f} x")
    assert max(seeds, folds) <= MOST
