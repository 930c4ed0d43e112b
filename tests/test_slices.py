"""Data that is larger than the memory: read, trained on, forecast and written in slices, it is what it is in one piece.

Small data is cut into small slices here. What is summed over slices has other last digits: 1e-9 is far above them and
far below anything else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snet_cli.data import slice_writer, trajectory_slices
from snet_cli.data.slice_writer import save_slices, stored
from snet_cli.data.trajectories import Trajectories
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.data.trajectory_slices import open_slices
from snet_cli.errors import DataError, OutputError
from snet_cli.training import block_delta, blocks
from snet_cli.training.blocks import BlockResidual
from snet_cli.workflows import simulate_slices, sliced_data
from tests.children import leftovers, limit_file_size, run_child
from tests.command import Snet
from tests.slices_cases import LAST_DIGITS, recordings, theta
from tests.teams import together

pytestmark = pytest.mark.usefixtures("one_thread")

FIT = ("fit", "a.h5", "--method", "delta", "--iterations", 8, "--threads", 1, "--json", "-o")


def assert_same(found: Any, expected: Any, where: str = "", *, rtol: float = 0.0) -> None:
    """All arrays agree, bit for bit unless a tolerance is given, and names and units too."""
    for each in fields(found):
        one, other, name = getattr(found, each.name), getattr(expected, each.name), f"{where}{each.name}"
        if is_dataclass(one):
            assert_same(one, other, f"{name}.", rtol=rtol)
        elif isinstance(one, np.ndarray):
            np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol, err_msg=name)
        elif each.name not in ("title", "history", "provenance", "parameters", "system"):
            assert one == other, name


# reading and writing


@pytest.mark.parametrize("system", ["vehicle", "cascaded-tanks"])
def test_a_file_read_in_slices_is_the_file_read_whole(tmp_path: Path, system: str) -> None:
    data = recordings(system)
    save_trajectories(tmp_path / "a.h5", data)
    whole = load_trajectories(tmp_path / "a.h5")
    with open_slices(tmp_path / "a.h5") as slices:
        cuts = [cut for part in range(2) for cut in slices.cuts(2, part, 50)]
        assert len(cuts) > 10
        assert [begin for begin, _ in cuts[1:]] == [end for _, end in cuts[:-1]]
        parts = [slices.read(begin, end, truth=True) for begin, end in cuts]
        assert_same(trajectory_slices.joined(parts), whole)
        np.testing.assert_array_equal(slices.spans(cuts), whole.end - whole.start)
        chosen = slices.where(np.asarray(whole.split) == 1)
        assert chosen.whole().ids == whole.of_split("valid").ids
        assert slices.read(0, 3).truth is None  # never read where it is not asked for


@pytest.mark.parametrize("system", ["vehicle", "cascaded-tanks"])
def test_outputs_written_in_slices_hold_the_same_data(tmp_path: Path, system: str) -> None:
    data = recordings(system)
    sizes = {"traj": len(data), "obs": data.time.size}
    if data.inputs.sampled is not None:
        sizes["uobs"] = data.inputs.sampled.time.size
    cuts = [np.arange(begin, min(begin + 7, len(data))) for begin in range(0, len(data), 7)]
    found = [
        save_slices(tmp_path / name, (stored(data.select(cut), name) for cut in cuts), sizes) for name in ("a", "b")
    ]
    assert found[0] == found[1] == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert_same(load_trajectories(tmp_path / "a"), data)
    with pytest.raises(DataError, match=r"'trajectory' got 7 of 20 entries"):
        save_slices(tmp_path / "c", [stored(data.select(cuts[0]), "c")], sizes)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_simulation_in_slices_is_the_one_in_one_piece(snet: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "simulate",
        "vehicle",
        "--trajectories",
        30,
        "--samples",
        12,
        "--horizon",
        2,
        "--noise",
        0.1,
        "--threads",
        1,
        "-o",
    )
    assert snet(*words, "whole.h5").code == 0
    monkeypatch.setattr(slice_writer, "LARGE", 1)
    monkeypatch.setattr(simulate_slices, "CHUNK", 8)
    monkeypatch.setattr(slice_writer, "SLICE_NUMBERS", 8 * 12 * 6)
    for name in ("a.h5", "b.h5"):
        assert snet(*words, name, "--json").json["outcomes"] == {"ok": 30}
    assert Path("a.h5").read_bytes() == Path("b.h5").read_bytes()
    whole = load_trajectories("whole.h5")
    assert_same(load_trajectories("a.h5"), whole, rtol=LAST_DIGITS)  # in batches of other sizes
    assert [member.code for member in together(2, *words, "team.h5")] == [0, 0]
    assert_same(load_trajectories("team.h5"), load_trajectories("a.h5"))
    assert leftovers() == []


@pytest.mark.parametrize("name", ["y_vx", "time", "uf_tau_cos", "x0_phi"])
def test_damage_in_a_slice_is_found(snet: Snet, small_slices: None, name: str) -> None:
    import h5py

    save_trajectories("a.h5", recordings())
    with h5py.File("a.h5", "r") as file:
        place = file[name].id.get_chunk_info(0)
    image = bytearray(Path("a.h5").read_bytes())
    image[place.byte_offset + place.size // 2] ^= 0x10
    Path("a.h5").write_bytes(image)
    ran = snet(*FIT, "m.h5")
    assert ran.code == 3
    assert "damaged or cut off" in ran.err
    assert not os.path.exists("m.h5")


def test_senseless_files_are_refused_in_slices_too(tmp_path: Path) -> None:
    import h5py

    save_trajectories(tmp_path / "a.h5", recordings())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["trajectory"][7] = file["trajectory"][15]
    with pytest.raises(DataError, match="the trajectory ids hold '015' twice"), open_slices(tmp_path / "a.h5"):
        pass
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["trajectory"][7] = b"007"
        file["time"][500] = file["time"][499]
    with open_slices(tmp_path / "a.h5") as slices, pytest.raises(DataError, match=r"holds .* twice, at samples"):
        slices.whole()
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["row_size"][3] += 1
    with pytest.raises(DataError, match="row_size adds up to"), open_slices(tmp_path / "a.h5"):
        pass


# what ends a writer in the middle leaves the old file


def slices_of(data: Trajectories, count: int) -> list[Trajectories]:
    return [data.select(part) for part in np.array_split(np.arange(len(data)), count)]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    data = recordings()
    target = tmp_path / "a.h5"
    target.write_bytes(b"old")
    child = os.fork()
    if child == 0:
        try:

            def dying() -> Any:
                yield stored(data, "a.h5")
                os.kill(os.getpid(), signal.SIGKILL)

            save_slices(target, dying(), {"traj": 2 * len(data), "obs": 2 * data.time.size}, force=True)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(leftovers(tmp_path)) == 1
    save_slices(target, [stored(data, "a.h5")], {"traj": len(data), "obs": data.time.size}, force=True)
    assert_same(load_trajectories(target), data)
    assert leftovers(tmp_path) == []  # the next writer sweeps what the dead one left


def test_a_full_disk_in_the_middle_leaves_the_old_file(snet: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_writer, "LARGE", 1)
    monkeypatch.setattr(simulate_slices, "CHUNK", 50)
    monkeypatch.setattr(slice_writer, "SLICE_NUMBERS", 50 * 100 * 6)
    words = ("simulate", "vehicle", "--trajectories", 400, "--samples", 200, "--horizon", 0.1, "-o", "out.h5", "-f")
    Path("out.h5").write_bytes(b"old")
    for size in (1000, 2_000_000, 3_500_000):
        ended = run_child(words, before=limit_file_size(size))
        assert ended.code == 5, ended.said
        assert "The limit on file sizes" in ended.said
        assert Path("out.h5").read_bytes() == b"old"
        assert leftovers() == []
    assert run_child(words).code == 0
    assert len(load_trajectories("out.h5")) == 400


def test_a_disk_without_room_is_refused_before_any_work(snet: Snet) -> None:
    ran = snet("simulate", "vehicle", "-o", "out.h5", "--trajectories", 10**8, "--max-memory", "4GB")
    assert ran.code == 5
    assert "on its disk, which has" in ran.err
    assert os.listdir() == []


def test_an_error_of_the_data_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    data = recordings()

    def failing() -> Any:
        yield stored(data, "a.h5")
        raise DataError("the next slice is damaged.", "")

    with pytest.raises(DataError, match="the next slice"):
        save_slices(tmp_path / "a.h5", failing(), {"traj": 40, "obs": 2 * data.time.size})
    assert os.listdir(tmp_path) == []
    with pytest.raises(OutputError, match="standard output cannot hold"):
        save_slices("-", [], {})


# training


def assert_same_fit(ran: Any, expected: dict[str, Any]) -> None:
    found = ran.json if hasattr(ran, "json") else ran
    for key in ("status", "iterations", "order", "elements", "best_iteration", "train_diverged"):
        assert found[key] == expected[key], key
    for key in ("total", "residual", "misfit"):
        assert found["loss"][key] == pytest.approx(expected["loss"][key], rel=LAST_DIGITS)


@pytest.mark.parametrize("model", ["vehicle", pytest.param("mlp", marks=pytest.mark.slow)])
def test_a_fit_in_slices_is_the_fit_in_one_piece(snet: Snet, request: pytest.FixtureRequest, model: str) -> None:
    """One process and two. A generic network is normalised by the first 200 000 points: here these are all."""
    save_trajectories("a.h5", recordings())
    words = (*FIT, "whole.h5", "--model", model, "--set", "model.hidden=[8]")
    whole = snet(*words).json
    request.getfixturevalue("small_slices")
    again = (*FIT, "sliced.h5", "--model", model, "--set", "model.hidden=[8]")
    sliced = snet(*again, "-v")
    assert "read in slices" in sliced.err
    assert_same_fit(sliced, whole)
    assert sliced.json["train_mse"] == pytest.approx(whole["train_mse"], rel=1e-5)  # steps of 1e-6
    assert sliced.json["validation"]["mse"] == pytest.approx(whole["validation"]["mse"], rel=1e-7)
    np.testing.assert_allclose(
        theta("sliced.h5"), theta("whole.h5"), rtol=0, atol=1e-8 * np.abs(theta("whole.h5")).max()
    )
    if model == "vehicle":
        return
    assert [member.code for member in together(2, *again, "--force")] == [0, 0]
    np.testing.assert_allclose(
        theta("sliced.h5"), theta("whole.h5"), rtol=0, atol=1e-8 * np.abs(theta("whole.h5")).max()
    )


def test_elements_and_held_out_shares_are_those_of_one_piece(snet: Snet, request: pytest.FixtureRequest) -> None:
    """Several elements, no validation data: a share of the elements is held out, the same ones."""
    save_trajectories("a.h5", replace(recordings(), split=None))
    words = (*FIT, "whole.h5", "--order", 5, "--elements", 3)
    whole = snet(*words).json
    request.getfixturevalue("small_slices")
    assert_same_fit(snet(*FIT, "sliced.h5", "--order", 5, "--elements", 3), whole)


def test_blocks_that_are_kept_and_blocks_that_are_not_give_the_same_bits(
    snet: Snet, small_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_trajectories("a.h5", recordings())
    made: list[int] = []
    block = blocks.BlockProblem.block
    monkeypatch.setattr(blocks.BlockProblem, "block", lambda self, cut: made.append(1) or block(self, cut))
    assert snet(*FIT, "kept.h5").code == 0
    kept, made[:] = len(made), []
    monkeypatch.setattr(blocks, "_bytes_of", lambda value: 1e30)
    assert snet(*FIT, "anew.h5").code == 0
    assert len(made) > 3 * kept
    assert theta("kept.h5").tobytes() == theta("anew.h5").tobytes()


def test_a_run_in_slices_goes_on_from_its_state(
    snet: Snet, small_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_trajectories("a.h5", recordings())
    assert snet(*FIT, "straight.h5").code == 0
    short = ("fit", "a.h5", "--method", "delta", "--iterations", 5, "--threads", 1, "-o", "m.h5")
    assert snet(*short).code == 0
    assert os.path.getsize("m.h5.resume") < 400_000  # x of all trajectories is not in it, it is found again
    again = snet(*FIT, "m.h5", "--resume")
    assert again.json["resumed_from"] == 5
    assert Path("m.h5").read_bytes() == Path("straight.h5").read_bytes()
    monkeypatch.setattr(sliced_data, "FIT_COPIES", 0.0)
    refused = snet(*FIT, "m.h5", "--resume", "--iterations", 20)
    assert refused.code == 4
    assert "the run had its data in slices, this one would have it in one piece" in refused.err


def test_the_first_steps_on_many_elements_descend_on_some_of_them(
    snet: Snet, small_slices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ones on two processes; then all count. A state taken within that warm-up, or after it, leads on."""
    monkeypatch.setattr(block_delta, "WARM_ELEMENTS", 5)
    monkeypatch.setattr(block_delta, "WARM_SHARE", 0.5)
    monkeypatch.setattr(block_delta, "WARM_WINDOW", 4)
    monkeypatch.setattr(block_delta, "WARM_MOST", 6)
    evaluated: list[int] = []
    evaluate = BlockResidual.evaluate

    def counted(self: BlockResidual, *args: Any) -> Any:
        evaluated.append(self.problem.elements.size)
        return evaluate(self, *args)

    monkeypatch.setattr(BlockResidual, "evaluate", counted)
    save_trajectories("a.h5", recordings())
    command = ("fit", "a.h5", "--method", "delta", "--threads", 1, "--json", "--iterations")
    straight = snet(*command, 12, "-o", "straight.h5", "-v")
    assert "the first iterations descend on" in straight.err
    sizes = [size for size, _ in itertools.groupby(evaluated)]
    assert sizes == [6, 16], "every third of the sixteen, then all, and never back"
    for taken in (3, 9):
        assert snet(*command, taken, "-o", "m.h5", "--force").code == 0
        assert snet(*command, 12, "-o", "m.h5", "--resume").json["resumed_from"] == taken
        assert Path("m.h5").read_bytes() == Path("straight.h5").read_bytes()
    assert [member.code for member in together(2, *command, 12, "-o", "two.h5")] == [0, 0]
    size = np.abs(theta("straight.h5")).max()
    np.testing.assert_allclose(theta("two.h5"), theta("straight.h5"), rtol=0, atol=1e-8 * size)


def test_the_plan_says_slices_blocks_and_time(snet: Snet, small_slices: None) -> None:
    save_trajectories("a.h5", recordings())
    plan = snet(*FIT, "m.h5", "-n").json
    assert plan["trajectories"] == 16
    assert plan["slices"]["count"] > 5
    assert plan["slices"]["blocks_kept"] == 1.0
    assert plan["slices"]["seconds_per_iteration"] > 0
    assert os.listdir() == ["a.h5"]


def test_what_must_stay_in_memory_is_refused_with_the_figure(snet: Snet, small_slices: None) -> None:
    save_trajectories("a.h5", replace(recordings(), split=None))
    ran = snet(*FIT, "m.h5", "--max-memory", "5kB")
    assert ran.code == 2
    assert "training on 20 trajectories needs about" in ran.err


def test_the_sum_of_unlike_blocks_is_differentiated(snet: Snet, small_slices: None) -> None:
    """R + λ|θ|² by automatic differentiation through blocks, against finite differences."""
    from snet_cli.data.options import CommonOptions
    from snet_cli.training.options import FitOptions
    from snet_cli.workflows.fit_slices import build_in_slices
    from snet_cli.workflows.reporter import Silent

    save_trajectories("a.h5", recordings())
    options = FitOptions(method="delta", order=6, elements=1, prior=0.3)
    data = sliced_data.load_slices("a.h5", options, CommonOptions(), Silent())
    training = build_in_slices(
        options, CommonOptions(), data, torch.device("cpu"), np.inf, None, Silent()
    ).in_slices.training
    method: Any = training.method
    loss = method._objective()
    parameter = next(iter(method.model.parameters()))
    (gradient,) = torch.autograd.grad(loss, [parameter])
    with torch.no_grad():
        step = 1e-6
        parameter[0, 0] += step
        above = method._objective()
        parameter[0, 0] -= 2 * step
        below = method._objective()
    assert float(gradient[0, 0]) == pytest.approx(float(above - below) / (2 * step), rel=1e-6)


# forecasting


@pytest.mark.parametrize(
    ("system", "horizon"),
    [("vehicle", ()), ("vehicle", ("--horizon", 2.5)), pytest.param("cascaded-tanks", (), marks=pytest.mark.slow)],
)
def test_an_evaluation_in_slices_is_the_one_in_one_piece(
    snet: Snet, request: pytest.FixtureRequest, system: str, horizon: tuple[object, ...]
) -> None:
    save_trajectories("a.h5", replace(recordings(system, 12 if system == "vehicle" else 6), x0=None))
    assert snet(*FIT, "m.h5", "--order", 5, "--elements", 1).code == 0
    words = ("evaluate", "m.h5", "a.h5", "--json", "--threads", 1, *horizon)
    whole = snet(*words, "-o", "whole.h5").json
    request.getfixturevalue("small_slices")
    sliced = snet(*words, "-o", "sliced.h5").json
    results = {"sliced.h5": sliced}
    if system == "cascaded-tanks":  # two processes take their time to start
        team = together(2, *words, "-o", "team.h5")
        assert [member.code for member in team] == [0, 0]
        results["team.h5"] = json.loads(team[0].out)
    for found in results.values():
        for key in ("trajectories", "windows", "diverged", "outcomes", "initial_state", "initial_states", "units"):
            assert found[key] == whole[key], key
        for key in ("mse", "mse_true", "rmse", "nrmse", "fit_percent", "horizon"):
            assert found[key] == pytest.approx(whole[key], rel=LAST_DIGITS), key
        for name, scores in whole["channels"].items():
            assert found["channels"][name] == pytest.approx(scores, rel=LAST_DIGITS)
        for one, other in zip(found["by_horizon"], whole["by_horizon"], strict=True):
            assert one["t"] == pytest.approx(other["t"])
            for name, value in other["rmse"].items():
                assert one["rmse"][name] == (None if value is None else pytest.approx(value, rel=LAST_DIGITS))
    expected = load_trajectories("whole.h5", allow_missing_channels=True)
    for name in results:
        found = load_trajectories(name, allow_missing_channels=True)
        assert found.ids == expected.ids
        np.testing.assert_allclose(found.outputs, expected.outputs, rtol=1e-7, atol=1e-9)
        np.testing.assert_array_equal(found.time, expected.time)


def test_what_needs_all_forecasts_is_refused_in_slices(snet: Snet, small_slices: None) -> None:
    save_trajectories("a.h5", recordings())
    assert snet(*FIT, "m.h5").code == 0
    ran = snet("evaluate", "m.h5", "a.h5", "--relaxed")
    assert ran.code == 2
    assert "do not fit into the memory at once, as --relaxed needs them" in ran.err
    chosen = snet("evaluate", "m.h5", "a.h5", "--split", "valid", "--json")
    assert chosen.json["trajectories"] == 4
