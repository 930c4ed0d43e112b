"""`--method auto` on the command line: which method, and which test decided."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from snet_cli.data.trajectory_file import save_trajectories
from tests.command import Snet, run_in
from tests.training_cases import spirals

MANY_WEIGHTS = ("--set", "model.hidden=[1000]")
LAG = ("--set", "model={hidden: [8], input_lag: each}")
FEW = ("few.h5", "--order", 10, "--elements", 1)

ONCE = """
import torch

class Oscillator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.A = torch.nn.Parameter(torch.eye(2, dtype=torch.float64))

    def forward(self, t, x, u):
        return Once.apply(x @ self.A)

class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient.clone()
"""


@pytest.fixture
def snet(tmp_path, monkeypatch, capsys) -> Snet:
    """`snet` in an empty folder with spirals: `dense.h5` without noise, `noisy.h5`, and `few.h5` with few samples."""
    monkeypatch.chdir(tmp_path)
    save_trajectories("dense.h5", spirals(3, 60))
    save_trajectories("noisy.h5", spirals(3, 60, noise=0.05))
    save_trajectories("few.h5", spirals(3, 12))
    Path("once.py").write_text(ONCE)
    return run_in(capsys)


@pytest.mark.parametrize(
    ("arguments", "method", "words"),
    [
        (("dense.h5",), "joint", "weights fits the memory."),
        (("noisy.h5",), "joint", "weights fits the memory."),
        (FEW, "joint", "weights fits the memory."),
        (("dense.h5", *LAG), "joint", "weights fits the memory."),
        (("dense.h5", *MANY_WEIGHTS), "delta", "below 0.001, and every trajectory is densely sampled. (Not joint: "),
        (("noisy.h5", *MANY_WEIGHTS), "alpha", "standard deviations of 'b', not below 0.001. (Not joint: "),
        ((*FEW, *MANY_WEIGHTS), "alpha", "samples of 'a' per unknown of its series, fewer than 2. (Not joint: "),
        (
            ("dense.h5", "--max-memory", "60MB"),
            "delta",
            "weights are too many for its Schur complement or --max-memory.)",
        ),
        (("dense.h5", "--set", "model.hidden_states=1"), "alpha", "nothing measures h1."),
        (
            ("dense.h5", "--model", "once.py:Oscillator"),
            "delta",
            "(Not joint: the module cannot be differentiated twice.)",
        ),
    ],
)
def test_one_line_says_which_method_it_is_and_which_test_decided(snet, arguments, method, words):
    ran = snet("fit", *arguments, "-o", "m.h5", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("note: method ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"note: method {method}: ")
    assert words in lines[0]
    assert ran.json["method"] == method
    assert words in ran.json["method_reason"]


@pytest.mark.parametrize(("file", "method"), [("dense.h5", "joint"), ("noisy.h5", "joint")])
def test_the_result_names_the_method_that_was_chosen(snet, file, method):
    ran = snet("fit", file, "-o", "m.h5", "--model", "linear", "--iterations", 3, "--json")
    assert ran.json["method"] == method
    named = snet("fit", file, "-o", "n.h5", "--model", "linear", "--iterations", 3, "--json", "--method", method)
    assert named.json["loss"] == ran.json["loss"]
    assert "note: method" not in named.err


def test_exact_data_is_known_whoever_chose_the_discretisation(snet: Snet) -> None:
    save_trajectories("exact.h5", spirals(5, 60))
    save_trajectories("noise.h5", spirals(5, 60, noise=0.02))
    sizes = ("--order", 18, "--elements", 1, "-n")
    exact, noise = (snet("fit", name, "-o", "other.h5", *sizes) for name in ("exact.h5", "noise.h5"))
    assert re.search(r"error of step 0 +noise\n\w+ +\S+ +\d", exact.out)
    assert re.search(r"error of step 0 +noise\n\w+ +\S+ +-\n", noise.out)  # what the series misses is no noise
