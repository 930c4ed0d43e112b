"""`--method auto` on the command line: which method, and which test decided."""

from __future__ import annotations

import pytest

from snet_cli.data.trajectory_file import save_trajectories
from tests.command import Snet, run_in
from tests.training_cases import spirals

LARGE_LAG = ("--set", "model={hidden: [1000], input_lag: each}")
LAG = ("--set", "model={hidden: [8], input_lag: each}")


@pytest.fixture
def snet(tmp_path, monkeypatch, capsys) -> Snet:
    """`snet` in an empty folder with spirals: `dense.h5` without noise, `noisy.h5`, and `few.h5` with few samples."""
    monkeypatch.chdir(tmp_path)
    save_trajectories("dense.h5", spirals(3, 60))
    save_trajectories("noisy.h5", spirals(3, 60, noise=0.05))
    save_trajectories("few.h5", spirals(3, 12))
    return run_in(capsys)


@pytest.mark.parametrize(
    ("file", "options", "method", "words"),
    [
        ("dense.h5", (), "delta", "below 0.001, and every trajectory is densely sampled."),
        (
            "dense.h5",
            ("--order", 14, "--elements", 1),
            "delta",
            "below 0.001, and every trajectory is densely sampled.",
        ),
        ("dense.h5", LAG, "joint", "the inputs lag. The Schur complement of"),
        ("dense.h5", (*LARGE_LAG, "--max-memory", "100MB"), "alpha", "weights are too many for --max-memory.)"),
        ("noisy.h5", (), "alpha", "standard deviations of 'b', not below 0.001."),
        (
            "few.h5",
            ("--order", 10, "--elements", 1),
            "alpha",
            "samples of 'a' per unknown of its series, fewer than 2.",
        ),
        ("dense.h5", ("--set", "model.hidden_states=1"), "alpha", "nothing measures h1."),
    ],
)
def test_one_line_says_which_method_it_is_and_which_test_decided(snet, file, options, method, words):
    ran = snet("fit", file, "-o", "m.h5", "--dry-run", "--json", *options)
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("note: method ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"note: method {method}: ")
    assert words in lines[0]
    assert ran.json["method"] == method
    assert words in ran.json["method_reason"]


@pytest.mark.parametrize(("file", "method"), [("dense.h5", "delta"), ("noisy.h5", "alpha")])
def test_the_result_names_the_method_that_was_chosen(snet, file, method):
    ran = snet("fit", file, "-o", "m.h5", "--model", "linear", "--iterations", 3, "--json")
    assert ran.json["method"] == method
    named = snet("fit", file, "-o", "n.h5", "--model", "linear", "--iterations", 3, "--json", "--method", method)
    assert named.json["loss"] == ran.json["loss"]
    assert "note: method" not in named.err
