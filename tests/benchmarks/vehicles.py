"""Vehicles as benchmarks of several processes train on them: 25 samples each, p = 14, hidden 16, one thread."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snet_cli.data.options import CommonOptions
from snet_cli.distributed import Alone, Lane, Processes, Team, in_lanes, lanes_for
from snet_cli.systems.options import SimulateOptions
from snet_cli.training.loop import Limits, run
from snet_cli.training.options import FitOptions
from snet_cli.workflows.fit_data import load_fit_data
from snet_cli.workflows.methods import build_training
from snet_cli.workflows.reporter import Silent
from snet_cli.workflows.simulate import simulate
from snet_cli.workflows.train_one import set_up
from snet_cli.workflows.training_plan import Ingredients

METHODS = {"delta": (0, 20), "alpha": (0, 5), "joint": (10, 2)}
"""Iterations before those that are timed (joint's warm-up), and those that are."""


def vehicles(folder: Path, trajectories: int) -> Ingredients:
    """So many, set up once for all processes."""
    path = str(folder / f"{trajectories}.h5")
    common, device = CommonOptions(threads=1), torch.device("cpu")
    simulate("vehicle", path, SimulateOptions(trajectories=trajectories, samples=25), common=common)
    options = FitOptions(order=14, elements=1, gamma=3.0, model={"name": "vehicle", "hidden": [16]})
    data = load_fit_data(path, options, common, Silent())
    setup = set_up(options, common, data.train, device, time.perf_counter())
    return Ingredients(setup, data, options, common, device)


def timed(parts: Ingredients, name: str, team: Alone | Processes) -> dict[str, Any]:
    """Wall and processor time of an iteration, and θ after all, on the lanes that `fit` would take."""
    torch.set_num_threads(1)
    weights = sum(p.numel() for p in parts.setup.trained.model.parameters())
    lanes = lanes_for(len(parts.data.train), team.size, weights)
    if lanes == 1:
        return timed_on(team, parts, name)
    return in_lanes(team, lanes, lambda lane: timed_on(lane, parts, name))


def timed_on(team: Team | Lane, parts: Ingredients, name: str) -> dict[str, Any]:
    """The same on one lane, or where a process has none."""
    before, count = METHODS[name]
    trained = replace(parts.setup.trained, model=copy.deepcopy(parts.setup.trained.model))
    training = build_training(name, replace(parts, setup=replace(parts.setup, trained=trained), team=team))
    clocks = [(time.perf_counter(), time.process_time())]
    limits = Limits(iterations=before + count, stop_when_stalled=False)
    run(training.method, limits, lambda _: clocks.append((time.perf_counter(), time.process_time())), team=team)
    wall, processor = np.subtract(clocks[-1], clocks[before]) / count
    theta = torch.nn.utils.parameters_to_vector(training.method.model.parameters())
    return {"wall": wall, "processor": processor, "theta": theta.tolist()}
