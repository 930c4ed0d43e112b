"""What one Gauss-Newton x-step on ten thousand trajectories costs in time and memory, in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time

import pytest
import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_file import load_trajectories
from snet_cli.systems.options import SimulateOptions
from snet_cli.training.options import FitOptions
from snet_cli.training.relaxed import nodes_of
from snet_cli.training.relaxed_data import channel_scale, relax
from snet_cli.training.state_step import GaussNewtonStep
from snet_cli.workflows.simulate import simulate
from snet_cli.workflows.training_setup import prepare

TRAJECTORIES, UNKNOWNS = 10_000, 90
"""Six states at p + 1 = 15 nodes."""

MOST_SECONDS, MOST_BYTES = 5.0, 4e9


def two_steps(path: str) -> tuple[float, float, int]:
    """Seconds of the faster one, bytes of this process at its peak, and unknowns of a trajectory."""
    options = FitOptions.model_validate({"order": 14, "elements": 1, "model": {"name": "vehicle", "hidden": [32]}})
    data = load_trajectories(path)
    setup = prepare(options, CommonOptions(), data, torch.device("cpu"))
    relaxed = relax(setup.problem, data, channel_scale(data.outputs, None, scaled=True))
    step = GaussNewtonStep(relaxed, setup.trained.model, nodes_of(setup.problem))
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        step.step(3.0)
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
    return min(seconds), peak, step.nodes[0].numel()


@pytest.mark.bench
def test_a_step_on_ten_thousand_trajectories(tmp_path, capsys) -> None:
    path = str(tmp_path / "many.h5")
    simulate("vehicle", path, SimulateOptions(trajectories=TRAJECTORIES))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, peak, unknowns = pool.apply(two_steps, (path,))
    with capsys.disabled():
        print(f"\n{TRAJECTORIES} trajectories of {unknowns} unknowns: {seconds:.1f} s, {peak / 1e9:.2f} GB at the peak")
    assert unknowns == UNKNOWNS
    assert seconds <= MOST_SECONDS
    assert peak <= MOST_BYTES
