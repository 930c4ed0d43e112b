"""Every method on a device that is not the processor: no tensor is left behind, and the model is the processor's.

There need be no GPU: the device is the processor's memory under another name, and refuses operands from the processor
as a GPU would (`device/device.cpp`). It is compiled first, which takes a minute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from snet_cli.data.trajectory_file import save_trajectories
from tests.command import Snet
from tests.training_cases import spirals

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("c++") and shutil.which("ninja")), reason="no compiler, or no ninja"),
]

MLP = ("--set", "model.hidden=[6]", "--order", 6, "--elements", 2, "--threads", 1)

FITS: dict[str, tuple[object, ...]] = {
    "joint": ("noisy.h5", "--method", "joint", "--threads", 1, "--set", "model.hidden=[6]", "--iterations", 14),
    "joint on exact data": ("exact.h5", "--method", "joint", *MLP, "--iterations", 14),
    "joint beside held-out data": ("noisy.h5", "--method", "joint", *MLP, "--validation", 0.25, "--iterations", 14),
    "joint with lagged inputs": (
        *("noisy.h5", "--method", "joint", *MLP, "--iterations", 14),
        *("--set", "model.input_lag=shared", "--set", "model.second_order={a: b}"),
    ),
    "alpha": ("noisy.h5", "--method", "alpha", *MLP, "--iterations", 6),
    "alpha with a hidden state": (
        *("noisy.h5", "--method", "alpha", *MLP, "--iterations", 6),
        *("--set", "model.hidden_states=1"),
    ),
    "delta": ("noisy.h5", "--method", "delta", *MLP, "--iterations", 20),
    "delta, adam": ("noisy.h5", "--method", "delta", *MLP, "--iterations", 20, "--set", "theta_step.name=adam"),
    "delta, lm": ("exact.h5", "--method", "delta", *MLP, "--iterations", 6, "--set", "theta_step.name=lm"),
    "delta in closed form": ("exact.h5", "--method", "delta", "--model", "linear", "--threads", 1),
    "bkpr-euler": (
        *("noisy.h5", "--method", "bkpr-euler", *MLP, "--iterations", 2, "--validation", 0.25),
        *("--set", "model.hidden_states=1"),
    ),
    "adj-dopri5": ("noisy.h5", "--method", "adj-dopri5", *MLP, "--iterations", 2),
    "seeds": ("noisy.h5", "--method", "delta", *MLP, "--iterations", 10, "--seeds", 2),
    "folds": ("noisy.h5", "--method", "joint", *MLP, "--iterations", 12, "--folds", 2),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the device is compiled."""
    return tmp_path_factory.mktemp("device")


def on_the_device(built: Path, commands: Sequence[Sequence[object]]) -> None:
    """Run commands one after the other."""
    words = [str(word) for command in commands for word in (*command, ";")]
    line = [sys.executable, "-m", "tests.device.run", str(built), *words]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(line, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def numbers(path: str) -> dict[str, np.ndarray]:
    """All arrays of floats in a file but seconds."""
    found = {}

    def take(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and "seconds" not in name:
            found[name] = item[...]

    with h5py.File(path) as file:
        file.visititems(take)
    return found


def same(first: str, second: str) -> None:
    """Two files hold the same numbers, to what other last digits become in some steps."""
    one, other = numbers(first), numbers(second)
    assert one
    assert one.keys() == other.keys()
    for name, b in other.items():
        least = 1e-6 * np.nanmax(np.abs(b), initial=1e-30)
        np.testing.assert_allclose(one[name], b, rtol=1e-5, atol=least, err_msg=name)


@pytest.mark.parametrize("case", FITS)
def test_a_model_trained_on_a_device_is_that_of_the_processor(case: str, built: Path, snet: Snet) -> None:
    """And so is its forecast, with bands where it has any; copies have other strides, and so other last digits."""
    save_trajectories("exact.h5", spirals(6, 40))
    save_trajectories("noisy.h5", spirals(6, 40, noise=0.02))
    windows = ("--horizon", 1, "--from-every", 2, *(("--bands",) if "joint" in case else ()))
    commands = [
        ("fit", *FITS[case], "-o", "there.h5", "-q"),
        ("evaluate", "there.h5", "noisy.h5", "-o", "there_forecast.h5", "-q", *windows),
    ]
    on_the_device(built, commands)
    for command in commands:
        here = [str(word).replace("there", "here") for word in command]
        assert snet(*here).code == 0
    for name in (".h5", "_forecast.h5"):
        same(f"there{name}", f"here{name}")


def test_a_simulation_on_a_device_is_that_of_the_processor(built: Path, snet: Snet) -> None:
    words = ("simulate", "vehicle", "--trajectories", 3, "--samples", 20, "--noise", 0.1, "-q", "-o")
    on_the_device(built, [(*words, "there.h5")])
    assert snet(*words, "here.h5").code == 0
    same("there.h5", "here.h5")
