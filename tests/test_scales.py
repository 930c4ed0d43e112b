"""Scales from 1e-9 to 1e9: units are homogeneous, so powers of two change no bit and powers of ten no score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from snet_cli.data.checkpoint_file import load_checkpoint
from snet_cli.data.options import CommonOptions
from snet_cli.data.signals import FourierInputs
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.errors import DataError
from snet_cli.training.options import FitOptions
from snet_cli.workflows.evaluate import evaluate
from snet_cli.workflows.fit import fit
from tests.training_cases import spirals

OPTIONS = FitOptions.model_validate(
    {"method": "delta", "model": {"name": "mlp", "hidden": [6]}, "order": 8, "elements": 2, "iterations": 20}
)


pytestmark = pytest.mark.usefixtures("one_thread")


def scaled(data: Trajectories, time: float, first: float) -> Trajectories:
    """The same motion in other units: of time, and of the first output."""
    fourier = data.inputs.fourier
    assert fourier is not None
    waves = FourierInputs(fourier.names, fourier.mean, fourier.omega / time, fourier.cos, fourier.sin)
    outputs = data.outputs * np.array([first, 1.0])
    return replace(data, time=data.time * time, outputs=outputs, inputs=replace(data.inputs, fourier=waves))


def losses_and_score(data: Trajectories) -> tuple[np.ndarray, float]:
    """The loss over the iterations, and the normalised error of the forecasts."""
    save_trajectories("a.h5", data, force=True)
    fit("a.h5", "m.h5", OPTIONS, CommonOptions(threads=1), force=True)
    history = load_checkpoint("m.h5").extra["history"]["loss"][:, 1:]
    return history, float(evaluate("m.h5", "a.h5")["nrmse"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Losses and score in the units of the recording itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("plain"))
        found = losses_and_score(spirals(3, 30))
    torch.set_num_threads(before)
    return found


@pytest.mark.parametrize(("time", "first"), [(1.0, 2.0**30), (2.0**-20, 1.0)])
def test_powers_of_two_change_no_bit(tmp_path, monkeypatch, plain, time, first):
    monkeypatch.chdir(tmp_path)
    other, _ = losses_and_score(scaled(spirals(3, 30), time, first))
    assert np.array_equal(plain[0], other, equal_nan=True)  # nothing is held out: NaN


@pytest.mark.parametrize(("time", "first"), [(1.0, 1e9), (1e-9, 1e-9), (1e9, 1.0)])
def test_powers_of_ten_change_no_score(tmp_path, monkeypatch, plain, time, first):
    monkeypatch.chdir(tmp_path)
    _, other = losses_and_score(scaled(spirals(3, 30), time, first))
    assert other == pytest.approx(plain[1], abs=1e-6)


def test_numbers_whose_squares_leave_the_range_of_floats_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", scaled(spirals(3, 30), 1.0, 1e150))
    with pytest.raises(DataError, match=r"the channel 'a' holds values of [0-9.]+e\+150, whose squares") as caught:
        fit("a.h5", "m.h5", OPTIONS, CommonOptions(threads=1))
    assert caught.value.hint == "Give it a unit in which values are of order one."
