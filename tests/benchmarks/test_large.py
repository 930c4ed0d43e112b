"""What a trajectory costs where there are a thousand of them and where there are a million, and the memory that takes.

`SNET_TEST_LARGE` is the largest number of trajectories; a million take a file of 2 GB and half an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_slices import open_slices
from snet_cli.distributed import ALONE
from snet_cli.systems.options import SimulateOptions
from snet_cli.training.options import FitOptions
from snet_cli.workflows.reporter import Silent
from snet_cli.workflows.simulate import simulate
from snet_cli.workflows.slices_setup import SlicedSetup, set_up_in_slices

LARGEST = int(os.environ.get("SNET_TEST_LARGE", "100000"))

FLAT = 1.2


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Vehicles of 25 samples each, written in slices."""
    path = str(tmp_path_factory.mktemp("large") / "v.h5")
    common = CommonOptions(threads=1)
    simulate("vehicle", path, SimulateOptions(trajectories=LARGEST, samples=25), common=common)
    return path


def set_up(path: str, count: int) -> SlicedSetup:
    """The first trajectories of the file, ready for the first iteration."""
    common = CommonOptions(threads=1, max_bytes=2**40)
    options = FitOptions(method="delta", order=10, elements=1)
    with open_slices(path, max_bytes=common.max_bytes) as slices:
        part = slices.where(np.arange(len(slices)) < count)
        return set_up_in_slices(options, common, part, torch.device("cpu"), np.inf, None, Silent(), ALONE)


def seconds(sliced: SlicedSetup, *, kept: bool) -> float:
    """Processor time of one evaluation of R and its gradient, the fastest of at least three."""
    problem = replace(sliced.problem, room=np.inf if kept else 0.0)
    model = sliced.setup.trained.model
    residual, parameters = problem.residual(model), list(model.parameters())
    residual.evaluate(parameters)
    times = []
    begun = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begun < 2.0:
        before = time.process_time()
        residual.evaluate(parameters)
        times.append(time.process_time() - before)
    return min(times)


@pytest.mark.bench
def test_cost_per_trajectory_and_iteration_is_flat(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From a thousand trajectories on, where blocks are kept; beside it what making them anew costs."""
    found: dict[int, tuple[float, float]] = {}
    for count in (10**k for k in range(3, 1 + round(np.log10(LARGEST)))):
        sliced = set_up(file, count)
        found[count] = (seconds(sliced, kept=True) / count, seconds(sliced, kept=False) / count)
    with capsys.disabled():
        for count, (kept, anew) in found.items():
            print(f"\n{count} trajectories: {1e6 * kept:.2f} µs each and iteration, {1e6 * anew:.2f} anew", end="")
    assert max(kept for kept, _ in found.values()) <= FLAT * found[1000][0]


@pytest.mark.stress
def test_peak_memory_stays_below_the_limit(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fit and evaluation under a limit that a tenth of the trajectories would exceed in one piece."""
    limit = 1500 if LARGEST <= 200_000 else 4000
    common = ("--max-memory", f"{limit}MB", "--max-bytes", "1TB", "--threads", "1", "--json")
    model = str(tmp_path / "m.h5")
    ran = {
        "fit": command("fit", file, "-o", model, "--method", "delta", "--iterations", "5", *common),
        "joint": command(
            *("fit", file, "-o", str(tmp_path / "j.h5"), "--method", "joint", "--order", "10", "--elements", "1"),
            *("--set", "model.hidden=[8]", "--iterations", "11", *common),
        )
        if LARGEST <= 200_000
        else {"peak_mb": 0.0},
        "evaluate": command("evaluate", model, file, "--rtol", "1e-6", "--atol", "1e-8", *common),
    }
    with capsys.disabled():
        print("".join(f"\n{name}: {result['peak_mb']:.0f} MB of {limit} MB" for name, result in ran.items()), end="")
    assert all(result["peak_mb"] <= limit for result in ran.values())
    assert ran["evaluate"]["windows"] == LARGEST


def command(*words: str) -> dict[str, Any]:
    """The JSON of a command in a process of its own, and its peak memory as the system counts it."""
    watch = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    snet = [sys.executable, "-m", "snet_cli", *words]
    done = subprocess.run([sys.executable, "-c", watch, *snet], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "peak_mb": int(done.stderr.split()[-1]) * 1024 / 1e6}
