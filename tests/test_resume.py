"""`snet fit --resume`: the same bytes as a run that was not interrupted, and what stands in its way."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from snet_cli.cli.console import Console
from snet_cli.data.checkpoint_file import check_checkpoint_file, load_checkpoint
from snet_cli.data.locks import output_lock
from snet_cli.data.options import CommonOptions, parse_interval
from snet_cli.data.trajectory_file import load_trajectories, save_trajectories
from snet_cli.errors import CheckpointError, NumericalError, OutputError, UsageError
from snet_cli.training.delta import Delta
from snet_cli.training.loop import Limits, run
from snet_cli.training.method import Step
from snet_cli.training.options import PAPER_PRESET, FitOptions
from snet_cli.workflows.fit import fit
from snet_cli.workflows.reporter import Silent
from snet_cli.workflows.resume import find_state, previous_path, state_path
from tests.command import Snet
from tests.training_cases import spirals

QUICK = FitOptions(method="delta", model={"name": "mlp", "hidden": [6]}, order=6, elements=2, iterations=8)

NOT_FINITE = Step(float("nan"), float("nan"), float("nan"))

ADAM = {"name": "adam", "rate": 1e-2}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Spirals in `a.h5` of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    save_trajectories("a.h5", spirals(4, 30, noise=0.01))
    return tmp_path


class Stopper(Silent):
    """Collects notes, and asks to stop after so many iterations."""

    def __init__(self, iterations: float = float("inf")):
        self.notes: list[str] = []
        self.left = iterations

    def note(self, text):
        self.notes.append(text)

    def progress(self, tick):
        self.left -= tick.phase == "training"

    def should_stop(self):
        return self.left <= 0


def changed(**options) -> FitOptions:
    return FitOptions.model_validate({**QUICK.model_dump(), **options})


def stopped(options: FitOptions, after: int, output: str = "m.h5", **more) -> None:
    assert fit("a.h5", output, options, report=Stopper(after), **more)["iterations"] == after


def same_bytes(first: str, second: str) -> bool:
    return Path(first).read_bytes() == Path(second).read_bytes()


# bit for bit


PAPER = FitOptions.model_validate(
    {**PAPER_PRESET, "preset": "paper", "model": {"name": "mlp", "hidden": [6]}, "order": 6}
)

METHODS = {
    "delta, adam, best of held-out data": (changed(theta_step=ADAM, validation=0.25, iterations=13), 7),
    "delta, lbfgs, past its memory": (changed(iterations=64, model={"name": "mlp", "hidden": [31]}), 57),
    "delta, closed form": (changed(model="linear", iterations=1), 0),
    "alpha, paper": (PAPER.model_copy(update={"method": "alpha", "iterations": 4}), 2),
    "alpha, gamma follows the noise": (changed(method="alpha", iterations=14), 12),
    "alpha, held-out trajectories": (changed(method="alpha", iterations=12, gamma=3.0, validation=0.25), 10),
    "joint": (changed(method="joint", iterations=13), 11),
    "bkpr-euler": (changed(method="bkpr-euler", theta_step=ADAM, iterations=4), 2),
}


@pytest.mark.parametrize("case", METHODS)
def test_a_resumed_run_writes_the_model_of_an_uninterrupted_one(file, case):
    options, after = METHODS[case]
    data = load_trajectories("a.h5")
    save_trajectories("a.h5", replace(data, noise_std={"a": 0.01, "b": 0.01}), force=True)
    straight = fit("a.h5", "straight.h5", options)
    stopped(options, after)
    resumed = fit("a.h5", "m.h5", options, resume=True)
    assert resumed["resumed_from"] == after
    assert same_bytes("m.h5", "straight.h5")
    for key in ("status", "iterations", "loss", "train_mse", "validation", "evaluations", "gamma"):
        assert resumed[key] == straight[key], key


def test_an_extended_run_is_the_longer_one(file):
    """The last look at held-out data of the shorter run, at its iteration 7, must not count."""
    options = changed(theta_step=ADAM, validation=0.25)
    fit("a.h5", "m.h5", options.model_copy(update={"iterations": 7}))
    extended = fit("a.h5", "m.h5", options.model_copy(update={"iterations": 14}), resume=True)
    assert (extended["resumed_from"], extended["iterations"]) == (7, 14)
    fit("a.h5", "straight.h5", options.model_copy(update={"iterations": 14}))
    assert same_bytes("m.h5", "straight.h5")


def test_what_a_model_draws_and_counts_goes_on_too():
    """A model with dropout and a buffer that training moves; a divergence is part of the state."""

    class Drawing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
            self.register_buffer("count", torch.tensor(0))

    class Noisy:
        name, evaluations = "noisy", 0

        def __init__(self, breaks=99):
            self.model, self.breaks = Drawing(), breaks

        def step(self):
            with torch.no_grad():
                self.model.weight += torch.randn(3, dtype=torch.float64)
                self.model.count += 1
            total = (
                float("nan") if int(self.model.count) > self.breaks else float(self.model.weight.detach().abs().sum())
            )
            return Step(total, 0.0, total)

        def held_out(self):
            return None

        def state(self):
            return {}

        def restore(self, state):
            pass

    for breaks, status in ((99, "iterations"), (7, "diverged")):
        states = {}

        def save(iteration, state, *, last, states=states):
            states[iteration, last] = state()

        limits = Limits(9, stop_when_stalled=False)
        straight = run(Noisy(breaks), limits, save=save)
        for moment, state in states.items():
            torch.manual_seed(moment[0])
            again = Noisy(breaks)
            result = run(again, limits, resume=state)
            assert (result.status, result.iterations) == (straight.status, straight.iterations)
            assert straight.status == status
            assert np.array_equal(result.history, straight.history, equal_nan=True)
        assert states[0, False].iteration == 0
        assert states[straight.iterations, True].diverged == (status == "diverged")


# the files


def test_a_run_leaves_its_state_and_the_one_before_and_nothing_else(file):
    fit("a.h5", "m.h5", QUICK, checkpoint_every="3it")
    assert sorted(os.listdir()) == ["a.h5", "m.h5", "m.h5.resume", "m.h5.resume.previous"]
    assert check_checkpoint_file("m.h5.resume") == check_checkpoint_file("m.h5.resume.previous") == []
    iterations = [find_state("m.h5", 2**30, Silent()).state.iteration]
    os.unlink("m.h5.resume")
    iterations.append(find_state("m.h5", 2**30, Silent()).state.iteration)
    assert iterations == [8, 6]
    groups = load_checkpoint("m.h5.resume.previous").extra
    assert groups.keys() == {"collocation", "optimizer", "rng", "progress", "history", "data"}
    assert groups["data"]["train_sha256"].item().decode() == load_checkpoint("m.h5").provenance["parents"]["train"]


def test_at_every_write_one_complete_state_exists(file, monkeypatch):
    """Looked at before every change of a name in the folder, from the first state on."""
    seen, original = [], os.replace

    def look(source, target):
        if state_path("m.h5") in str(target) and seen:
            assert find_state("m.h5", 2**30, Silent()) is not None
        seen.append(os.path.basename(target))
        original(source, target)

    monkeypatch.setattr(os, "replace", look)
    fit("a.h5", "m.h5", QUICK, checkpoint_every="3it")
    newest, previous = state_path("m.h5"), previous_path("m.h5")
    assert seen[:5] == [newest, previous, newest, previous, newest]


def test_the_interval_is_seconds_or_iterations(file, monkeypatch):
    assert parse_interval("90s") == (90.0, None)
    assert parse_interval("100it") == (float("inf"), 100)
    written = []
    monkeypatch.setattr("snet_cli.workflows.resume.SAVING_SHARE", float("inf"))
    for every in ("0s", "60s"):
        fit("a.h5", "m.h5", QUICK, checkpoint_every=every, force=True)
        written.append(load_checkpoint("m.h5.resume.previous").extra["progress"]["iteration"].item())
    assert written == [7, 0]


def test_stdout_has_no_state(file, capfdbinary):
    with pytest.raises(UsageError, match="--resume needs a file"):
        fit("a.h5", "-", QUICK, resume=True)
    fit("a.h5", "-", QUICK)
    assert capfdbinary.readouterr().out.startswith(b"\x89HDF")
    assert os.listdir() == ["a.h5"]


def test_metrics_go_on_behind_the_last_row_that_counts(file):
    fit("a.h5", "m.h5", QUICK, metrics="straight.csv")
    stopped(QUICK, 5, "n.h5", metrics="m.csv")
    with Path("m.csv").open("a") as stream:
        stream.write("6,1.0,2.0")  # killed while it wrote
    fit("a.h5", "n.h5", QUICK, metrics="m.csv", resume=True)
    rows = [[line.split(",")[:5] for line in Path(name).read_text().splitlines()] for name in ("m.csv", "straight.csv")]
    assert rows[0] == rows[1]
    Path("other.csv").write_text("precious")
    with pytest.raises(OutputError, match="is no file of metrics"):
        fit("a.h5", "n.h5", QUICK.model_copy(update={"iterations": 9}), metrics="other.csv", resume=True)
    assert Path("other.csv").read_text() == "precious"


# what is refused, and what is not


def contents() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in os.listdir()}


def test_a_state_is_refused_like_an_output_and_overwritten_with_force(file, snet: Snet):
    fit("a.h5", "m.h5", QUICK)
    os.unlink("m.h5")
    with pytest.raises(OutputError) as caught:
        fit("a.h5", "m.h5", QUICK)
    assert caught.value.message == "m.h5.resume: exists already, the state of an earlier run."
    assert "--resume" in caught.value.hint
    assert fit("a.h5", "m.h5", changed(order=5), force=True)["order"] == 5
    assert fit("a.h5", "m.h5", changed(order=5), resume=True)["resumed_from"] == 8


def test_a_run_that_had_finished_under_the_same_limits_returns_at_once(file, monkeypatch):
    first = fit("a.h5", "m.h5", QUICK)
    before = contents()
    monkeypatch.setattr("snet_cli.workflows.fit.set_up", None)  # it would not get that far
    report = Stopper()
    again = fit("a.h5", "m.h5", QUICK, resume=True, report=report)
    assert contents() == before
    assert report.notes == ["the run had finished at iteration 8; nothing is left to do."]
    assert again["resumed_from"] == 8
    for key in ("loss", "train_mse", "status"):
        assert again[key] == first[key]


def test_a_model_that_is_gone_is_written_again_without_a_second_search_for_step_0(file, monkeypatch):
    automatic = changed(order="auto", elements="auto")
    fit("a.h5", "m.h5", automatic)
    before = Path("m.h5").read_bytes()
    os.unlink("m.h5")
    monkeypatch.setattr("snet_cli.workflows.training_setup.fit_step_zero", None)
    fit("a.h5", "m.h5", automatic, resume=True)
    assert Path("m.h5").read_bytes() == before


def test_a_run_that_diverged_stays_so_and_one_that_never_began_leaves_nothing(file, monkeypatch):
    step = Delta.step
    lasts = 3
    monkeypatch.setattr(Delta, "step", lambda self: step(self) if self.evaluations < lasts else NOT_FINITE)
    options = changed(theta_step=ADAM)
    assert fit("a.h5", "m.h5", options)["status"] == "diverged"
    before = Path("m.h5").read_bytes()
    longer = fit("a.h5", "m.h5", options.model_copy(update={"iterations": 9}), resume=True)
    assert (longer["status"], longer["iterations"]) == ("diverged", 3)
    again = fit("a.h5", "n.h5", options.model_copy(update={"iterations": 9}))
    assert (longer["loss"], longer["train_mse"]) == (again["loss"], again["train_mse"])
    assert same_bytes("m.h5", "n.h5")
    assert Path("m.h5").read_bytes() != before  # the limit stands in the file
    lasts = 0
    with pytest.raises(NumericalError):
        fit("a.h5", "never.h5", options)
    assert not list(file.glob("never*"))


def test_without_a_state_a_run_starts_afresh_where_nothing_would_be_lost(file):
    report = Stopper()
    assert fit("a.h5", "m.h5", QUICK, resume=True, report=report)["resumed_from"] is None
    assert report.notes[0] == "there is no state of an earlier run (m.h5.resume): starting afresh."
    for path in (state_path("m.h5"), previous_path("m.h5")):
        os.unlink(path)
    with pytest.raises(OutputError, match=r"m\.h5: exists already"):
        fit("a.h5", "m.h5", QUICK, resume=True)


def test_a_state_of_anything_else_is_refused_with_the_reason_and_nothing_is_touched(file):
    save_trajectories("b.h5", spirals(4, 30, seed=3))
    stopped(QUICK, 3)
    before = contents()
    wider = changed(model={"name": "mlp", "hidden": [7]})
    others = [
        ("b.h5", QUICK, {}, "other data: the train file differs"),
        ("a.h5", changed(order=5), {}, "another configuration: order was 6, here it is 5"),
        ("a.h5", wider, {}, r"model.hidden was \[6\], here it is \[7\]"),
        ("a.h5", changed(method="alpha"), {}, "method was delta, here it is alpha"),
        ("a.h5", QUICK, {"seed": 1}, "seed was 0, here it is 1"),
        ("a.h5", QUICK, {"threads": 2}, r"was made with 1 thread\(s\), this run has 2"),
        ("a.h5", changed(iterations=2), {}, "is at iteration 3, past the limit of 2"),
    ]
    for data, options, common, message in others:
        with pytest.raises(CheckpointError, match=message):
            fit(data, "m.h5", options, CommonOptions(**common), resume=True)
        assert contents() == before


def test_a_state_of_another_version_is_refused(file, monkeypatch):
    stopped(QUICK, 3)
    monkeypatch.setattr("snet_cli.workflows.provenance.version", lambda name: "99")
    with pytest.raises(CheckpointError, match=r"numpy was \"[0-9.]+\", here it is \"99\""):
        fit("a.h5", "m.h5", QUICK, resume=True)


def test_a_damaged_state_falls_back_to_the_one_before_and_never_replaces_it(file, monkeypatch):
    fit("a.h5", "straight.h5", QUICK)
    stopped(QUICK, 5, checkpoint_every="2it")
    image = bytearray(Path("m.h5.resume").read_bytes())
    image[len(image) // 2 : len(image) // 2 + 64] = bytes(64)
    Path("m.h5.resume").write_bytes(image)
    previous = Path("m.h5.resume.previous").read_bytes()
    report = Stopper(2)
    fit("a.h5", "m.h5", QUICK, resume=True, report=report)
    assert "m.h5.resume cannot be read" in report.notes[0]
    assert Path("m.h5.resume.previous").read_bytes() == previous
    assert fit("a.h5", "m.h5", QUICK, resume=True)["resumed_from"] == 6
    assert same_bytes("m.h5", "straight.h5")
    for name in ("m.h5.resume", "m.h5.resume.previous"):
        Path(name).write_bytes(b"torn")
    with pytest.raises(CheckpointError) as caught:
        fit("a.h5", "m.h5", QUICK, resume=True)
    assert "--force" in caught.value.hint


def test_two_runs_on_one_output_exclude_each_other(file):
    with output_lock("m.h5", "m.h5"), pytest.raises(OutputError, match=r"m\.h5: is in use"):
        fit("a.h5", "m.h5", QUICK)
    assert fit("a.h5", "m.h5", QUICK)["iterations"] == 8
    assert not list(Path().glob(".snet-*"))


def test_a_full_disk_is_found_before_training_and_survived_during_it(file, monkeypatch):
    room = os.statvfs_result((4096, 4096, 100, 1, 1, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    with pytest.raises(OutputError, match=r"needs .* MB on its disk, which has 0.0041 MB left"):
        fit("a.h5", "m.h5", QUICK)
    assert os.listdir() == ["a.h5"]
    monkeypatch.undo()

    def full(path, *args, **options):
        if str(path).endswith(".resume") and os.path.exists("m.h5.resume"):
            raise OutputError("the disk is full.", "")
        original(path, *args, **options)

    original = fit.__globals__["StateWriter"]._write.__globals__["write_atomic"]
    monkeypatch.setattr("snet_cli.workflows.resume.write_atomic", full)
    report = Stopper()
    monkeypatch.chdir(file)
    with pytest.raises(OutputError, match="the disk is full"):
        fit("a.h5", "m.h5", QUICK, checkpoint_every="2it", report=report)
    assert report.notes.count("the state of the run was not written: the disk is full. Training goes on.") == 1
    assert load_checkpoint("m.h5").kind == "model"


def test_temporary_files_of_dead_processes_are_swept_and_those_of_living_ones_are_not(file):
    from snet_cli.data.locks import open_temporary

    Path(".snet-0123456789abcdef.tmp").write_bytes(b"left by a killed process")
    descriptor, living = open_temporary(".")
    try:
        fit("a.h5", "m.h5", QUICK)
        assert [p.name for p in Path().glob(".snet-*")] == [os.path.basename(living)]
    finally:
        os.close(descriptor)


# the command


def test_an_interrupted_command_prints_the_one_that_continues(file, snet: Snet, monkeypatch):
    data = file / "a.h5"
    words = ["fit", data, "-o", "m m.h5", "--method", "delta", "--order", 6, "--elements", 1, "--iterations", 9]
    straight = snet(*[*words[:3], "straight.h5", *words[4:]], "--json")
    assert straight.code == 0, straight.err

    def interrupt(console, tick):
        if tick.done == 4:
            os.kill(os.getpid(), 15)

    with monkeypatch.context() as patched:
        patched.setattr(Console, "progress", interrupt)
        ran = snet(*words, "--force")
    assert ran.code == 143
    command = ran.err.splitlines()[-1].partition("next: ")[2]
    assert command == f"snet fit {data} -o 'm m.h5' --method delta --order 6 --elements 1 --iterations 9 --resume"
    again = snet(*shlex.split(command)[1:], "--json")
    assert (again.code, again.json["resumed_from"], again.json["status"]) == (0, 4, "iterations")
    assert same_bytes("m m.h5", "straight.h5")


def test_a_second_signal_leaves_at_once_with_all_files_intact(file, snet: Snet, monkeypatch):
    def interrupt(console, tick):
        if tick.done == 4:
            os.kill(os.getpid(), 2)
            os.kill(os.getpid(), 2)

    words = ["fit", file / "a.h5", "-o", "m.h5", "--method", "delta", "--order", 6, "--elements", 1, "--iterations", 9]
    with monkeypatch.context() as patched:
        patched.setattr(Console, "progress", interrupt)
        ran = snet(*words)
    assert ran.code == 130
    assert ran.err.endswith(" --iterations 9 --resume\n")
    assert sorted(os.listdir()) == ["a.h5", "m.h5.resume"]
    assert snet(*words, "--resume", "--json").json["resumed_from"] == 0


@pytest.mark.parametrize("text", ["60", "0it", "-1s", "1.5it", "often"])
def test_an_interval_that_is_none_is_refused(snet: Snet, text):
    ran = snet("fit", "a.h5", "-o", "m.h5", f"--checkpoint-every={text}")
    assert ran.code == 2
    assert "expected an interval such as 60s or 100it" in ran.err
