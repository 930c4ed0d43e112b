"""Two processes of one thread each beside one of one thread: the same iterations on ten thousand vehicles."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from snet_cli.cli.main import main
from tests.teams import together

TRAJECTORIES = 10_000

METHODS = {
    "delta": (6, "--method", "delta"),
    "alpha": (3, "--method", "alpha", "--gamma", 3),
    "joint": (13, "--method", "joint"),
}
"""Iterations and options; those of joint go beyond its warm-up."""

ROUNDS = 2
"""Runs of each; the faster one counts, because other programs only ever take time."""

LEAST = 1.7


def seconds_of_last(path: str, count: int) -> float:
    """Time of the last iterations of a run, from its `--metrics`."""
    with Path(path).open(newline="") as stream:
        seconds = [float(row["seconds"]) for row in csv.DictReader(stream)]
    return seconds[-1] - seconds[-1 - count]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ten thousand vehicles, 25 samples each."""
    path = tmp_path_factory.mktemp("processes")
    words = ["simulate", "vehicle", "-o", str(path / "t.h5"), "--samples", "25", "-q", "--threads", "1"]
    assert main([*words, "--trajectories", str(TRAJECTORIES)]) == 0
    return path


@pytest.mark.bench
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_nearly_twice_as_fast(folder, monkeypatch, method, capsys):
    monkeypatch.chdir(folder)
    iterations, *options = METHODS[method]
    words = ["fit", "t.h5", *options, "--order", 14, "--elements", 1, "--set", "model.hidden=[16]", "--threads", 1]
    words += ["--iterations", iterations, "-f", "-q", "--checkpoint-every", "1000it", "--max-bytes", "40GB"]
    best = {}
    for size in (1, 2) * ROUNDS:
        members = together(size, *words, "-o", f"{method}.h5", "--metrics", "metrics.csv", limit=600)
        assert [member.code for member in members] == [0] * size, members
        best[size] = min(seconds_of_last("metrics.csv", 2), best.get(size, float("inf")))
    with capsys.disabled():
        ratio = best[1] / best[2]
        print(
            f"\n{method}: {500 * best[1]:.0f} ms an iteration, {500 * best[2]:.0f} ms on two processes: {ratio:.2f} x"
        )
    assert best[1] / best[2] >= LEAST
