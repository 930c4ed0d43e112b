"""Joint Gauss-Newton, α-SNet and Levenberg-Marquardt in slices are what they are in one piece.

L-BFGS amplifies the last digits of sums, and so does each step of a second-order method: ten of either end within 1e-7
of θ's size. (With the hundred steps that joint's warm-up has outside these tests: 1e-6.)
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snet_cli.data.options import CommonOptions
from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.training import alpha, method_choice, robust, step_zero_slices, warm_up
from snet_cli.training.options import FitOptions
from snet_cli.training.step_zero_slices import Discretisation, StepZeroSums
from snet_cli.workflows import sliced_data
from snet_cli.workflows.training_setup import choose_model, fit_step_zero, lay_out
from tests.command import Snet
from tests.slices_cases import LAST_DIGITS, recordings, theta
from tests.teams import together

pytestmark = pytest.mark.usefixtures("one_thread", "short_warm_up")

AMPLIFIED = 1e-7

SMALL = ("--set", "model.hidden=[8]", "--order", 6, "--threads", 1, "--json")

LM = ("fit", "a.h5", "--method", "delta", "--set", "theta_step.name=lm", *SMALL, "--elements", 1, "--iterations")

ALPHA = ("fit", "a.h5", "--method", "alpha", *SMALL, "--elements", 1, "--iterations")

JOINT = ("fit", "a.h5", "--method", "joint", *SMALL)


@pytest.fixture
def short_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "STEPS", 1)
    monkeypatch.setattr(alpha, "LEAST_WARM_UP", 2)
    monkeypatch.setattr(alpha, "WARM_GAIN", 1e9)


def save_recordings(trajectories: int = 8, **other: Any) -> None:
    save_trajectories("a.h5", replace(recordings(trajectories=trajectories), **other))


def assert_close(found: str, expected: str, tolerance: float) -> None:
    size = np.abs(theta(expected)).max()
    np.testing.assert_allclose(theta(found), theta(expected), rtol=0, atol=tolerance * size)


def assert_same_result(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for key in ("status", "iterations", "order", "elements", "best_iteration", "train_diverged", "gamma"):
        assert found[key] == expected[key], key
    for key in ("total", "residual", "misfit"):
        assert found["loss"][key] == pytest.approx(expected["loss"][key], rel=tolerance)


@pytest.mark.slow
def test_levenberg_marquardt_on_the_weights(snet: Snet, request: pytest.FixtureRequest) -> None:
    save_recordings()
    whole = snet(*LM, 6, "-o", "whole.h5").json
    request.getfixturevalue("small_slices")
    assert_same_result(snet(*LM, 6, "-o", "sliced.h5").json, whole, LAST_DIGITS)
    assert_close("sliced.h5", "whole.h5", 1e-8)
    assert snet(*LM, 4, "-o", "m.h5").code == 0
    assert snet(*LM, 6, "-o", "m.h5", "--resume").json["resumed_from"] == 4
    assert Path("m.h5").read_bytes() == Path("sliced.h5").read_bytes()


@pytest.mark.parametrize(
    "options", [pytest.param(("--elements", 2), marks=pytest.mark.slow), ("--gamma", 0.5, "--elements", 1)]
)
def test_joint_in_slices_is_joint_in_one_piece(
    snet: Snet, request: pytest.FixtureRequest, options: tuple[object, ...]
) -> None:
    """Validation data, weights of the noise that the file states, several slices; one process and two."""
    save_recordings()
    words = (*JOINT, *options, "--iterations", 15)
    whole = snet(*words, "-o", "whole.h5").json
    request.getfixturevalue("small_slices")
    sliced = snet(*words, "-o", "sliced.h5")
    assert "in slices the mesh stays" in sliced.err
    assert_same_result(sliced.json, whole, AMPLIFIED)
    assert sliced.json["validation"]["mse"] == pytest.approx(whole["validation"]["mse"], rel=1e-5)
    assert_close("sliced.h5", "whole.h5", AMPLIFIED)
    if "--gamma" not in options:
        assert [member.code for member in together(2, *words, "-o", "two.h5")] == [0, 0]
        assert_close("two.h5", "whole.h5", AMPLIFIED)


@pytest.mark.slow
def test_alpha_in_slices_is_alpha_in_one_piece(snet: Snet, request: pytest.FixtureRequest) -> None:
    """γ follows the noise that the file states; a run goes on from its state with X, its dampings and its γ."""
    save_recordings()
    whole = snet(*ALPHA, 5, "-o", "whole.h5", "-v")
    request.getfixturevalue("small_slices")
    sliced = snet(*ALPHA, 5, "-o", "sliced.h5", "-v")
    assert_same_result(sliced.json | {"gamma": None}, whole.json | {"gamma": None}, AMPLIFIED)
    assert sliced.json["gamma"] == pytest.approx(whole.json["gamma"], rel=AMPLIFIED)
    assert_close("sliced.h5", "whole.h5", AMPLIFIED)
    (reason,) = [line for line in whole.err.splitlines() if line.startswith("gamma follows")]
    assert reason in sliced.err
    assert [member.code for member in together(2, *ALPHA, 5, "-o", "two.h5")] == [0, 0]
    assert_close("two.h5", "whole.h5", AMPLIFIED)
    assert snet(*ALPHA, 3, "-o", "m.h5").code == 0
    assert snet(*ALPHA, 5, "-o", "m.h5", "--resume").json["resumed_from"] == 3
    assert Path("m.h5").read_bytes() == Path("sliced.h5").read_bytes()


@pytest.mark.slow
def test_gamma_by_held_out_samples_in_slices_is_that_of_one_piece(snet: Snet, request: pytest.FixtureRequest) -> None:
    """Sparse samples whose noise nobody states; the first trajectories are all there are."""
    data = replace(recordings(trajectories=8), noise_std={})
    sparse = np.arange(data.time.size) % 3 == 0
    sparse[data.offsets[:-1]] = sparse[data.offsets[1:] - 1] = True
    save_trajectories("a.h5", data.select_rows(sparse))
    whole = snet(*ALPHA, 2, "-o", "whole.h5", "-v")
    request.getfixturevalue("small_slices")
    sliced = snet(*ALPHA, 2, "-o", "sliced.h5", "-v")
    assert " by held-out samples (error " in whole.err
    assert " by held-out samples of the first 6 trajectories (error " in sliced.err
    # the search trains as well, so that last digits grow for longer
    assert_same_result(sliced.json, whole.json, 100 * AMPLIFIED)
    assert_close("sliced.h5", "whole.h5", 100 * AMPLIFIED)


@pytest.mark.slow
def test_outliers_are_clipped_in_slices_as_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold is that of the first trajectories, here of all: repeated to the end, both ways lead to one fit."""
    for module in (robust, step_zero_slices):
        monkeypatch.setattr(module, "SETTLED", 1e-5)
    monkeypatch.setattr(robust, "ROUNDS", 1000)
    monkeypatch.setattr(step_zero_slices, "CLIPPED_FITS", 1000)
    data = recordings(trajectories=3)
    data.outputs[3::40] += 3.0
    options, common = FitOptions(order=6, elements=1, loss="huber"), CommonOptions()
    choice = choose_model(options, data)
    layout = lay_out(options, choice, data)
    whole = fit_step_zero(options, common, data, choice, layout)
    found = Discretisation.of(whole, data, layout, {})
    for b in range(len(data)):
        sums = StepZeroSums(layout, {}, found, True, 0, np.zeros(6))
        np.testing.assert_allclose(sums.add(data.select([b])).nodes[0], whole.nodes[b], atol=1e-5)


@pytest.mark.slow
def test_outliers_hardly_count_where_trajectories_move(snet: Snet, small_slices: None) -> None:
    wild = recordings(trajectories=5).outputs.copy()
    wild[3::40] += 3.0
    save_recordings(5, outputs=wild)
    words = (*JOINT, "--elements", 1, "--iterations", 12, "-o")
    huber, squared = (snet(*words, f"{loss}.h5", "--set", f"loss={loss}").json for loss in ("huber", "squared"))
    assert huber["loss"]["misfit"] < 0.1 * squared["loss"]["misfit"]


def test_auto_is_joint_where_a_step_is_affordable(
    snet: Snet, small_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_recordings()
    words = ("fit", "a.h5", *SMALL, "--elements", 1, "-n", "-o", "m.h5")
    assert snet(*words).json["method"] == "joint"
    monkeypatch.setattr(method_choice, "MOST_WORK", 1e3)
    plan = snet(*words).json
    assert plan["method"] == "delta"
    assert "takes too long" in plan["method_reason"]


@pytest.mark.slow
def test_a_run_goes_on_from_its_state_with_its_trajectories(
    snet: Snet, small_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_recordings()
    words = (*JOINT, "--elements", 1, "--iterations")
    assert snet(*words, 14, "-o", "straight.h5").code == 0
    for last in (5, 12):  # in the warm-up, and behind it
        assert snet(*words, last, "-o", "m.h5", "--force").code == 0
        assert snet(*words, 14, "-o", "m.h5", "--resume").json["resumed_from"] == last
        assert Path("m.h5").read_bytes() == Path("straight.h5").read_bytes()
    monkeypatch.setattr(sliced_data, "MOVING_COPIES", 0.0)
    refused = snet(*words, 20, "-o", "m.h5", "--resume")
    assert refused.code == 4
    assert "the run had its data in slices" in refused.err


def test_the_plan_of_joint_says_slices_memory_and_time(snet: Snet, small_slices: None) -> None:
    save_recordings()
    plan = snet(*JOINT, "-o", "m.h5", "-n").json
    assert (plan["method"], plan["trajectories"]) == ("joint", 6)
    assert plan["slices"]["count"] > 2
    assert plan["slices"]["seconds_per_iteration"] > 0
    assert plan["slices"]["resident_mb"] > 0
    assert os.listdir() == ["a.h5"]


def test_hidden_states_are_refused_in_slices(snet: Snet, small_slices: None) -> None:
    save_trajectories("a.h5", recordings(trajectories=4))
    ran = snet(*JOINT, "-o", "m.h5", "--model", "mlp", "--set", "model.hidden_states=1")
    assert ran.code == 2
    assert "method joint with the hidden state" in ran.err
