"""δ-SNet beside the solvers it does without: one iteration of each on the same model, data and loss, in one run."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from snet_cli.data.options import CommonOptions
from snet_cli.systems.options import SimulateOptions
from snet_cli.training.method import Method
from snet_cli.training.options import PAPER_PRESET, FitOptions
from snet_cli.workflows.fit_data import load_fit_data
from snet_cli.workflows.methods import build_training
from snet_cli.workflows.reporter import Silent
from snet_cli.workflows.simulate import simulate
from snet_cli.workflows.train_one import set_up
from snet_cli.workflows.training_plan import Ingredients

ROUNDS = 3
PER_ROUND = {"delta": 40, "bkpr-euler": 2, "bkpr-dopri5": 1}
"""Iterations in a round; rounds of all methods alternate, so that a slow spell of the machine hits each of them."""

LEAST = {
    ("vehicle", "bkpr-euler"): 25.0,
    ("vehicle", "bkpr-dopri5"): 100.0,
    ("multi-agent", "bkpr-euler"): 50.0,
}
"""Iterations of δ-SNet in the processor time of one of the baseline, at least. One thread and processor time: a busy
machine shows less."""


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def method_of(name: str, model: str, path: str) -> Method:
    """The method as `snet fit --preset paper` builds it: p = 14, hidden 32, Adam 1e-2."""
    options = FitOptions.model_validate(
        {**PAPER_PRESET, "preset": "paper", "method": name, "model": {"name": model, "hidden": [32]}}
    )
    common, device = CommonOptions(), torch.device("cpu")
    data = load_fit_data(path, options, common, Silent())
    setup = set_up(options, common, data.train, device, time.perf_counter())
    return build_training(name, Ingredients(setup, data, options, common, device)).method


@pytest.mark.bench
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("model", ["vehicle", "multi-agent"])
def test_delta_is_as_much_faster_as_it_should_be(model: str, tmp_path, capsys) -> None:
    path = str(tmp_path / "train.h5")
    simulate(model, path, SimulateOptions())
    baselines = [baseline for system, baseline in LEAST if system == model]
    methods = {name: method_of(name, model, path) for name in ("delta", *baselines)}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(1 + ROUNDS):
        for name, method in methods.items():
            begin = time.thread_time()
            for _ in range(PER_ROUND[name]):
                method.step()
            seconds[name].append((time.thread_time() - begin) / PER_ROUND[name])
    median = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    ratio = {name: median[name] / median["delta"] for name in baselines}
    with capsys.disabled():
        print(f"\n{model}: delta {1e3 * median['delta']:.2f} ms", *(f"{k} {v:.0f} x" for k, v in ratio.items()))
    for name in baselines:
        assert ratio[name] >= LEAST[model, name], (name, median)
