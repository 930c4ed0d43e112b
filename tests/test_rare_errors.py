"""Errors that are seldom seen: each is brought about once, and says what, where and what to do next.

`pytest -p tests.raised` lists those that no test brings about.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from snet_cli.cli.main import main
from snet_cli.data import guard
from snet_cli.data.checkpoint_file import load_checkpoint, save_checkpoint
from snet_cli.data.storage import read_image
from snet_cli.data.trajectory_file import save_trajectories
from snet_cli.errors import CheckpointError, DataError
from snet_cli.forecasting.windows import plan_windows
from snet_cli.workflows.run_state import load_state
from tests.command import Snet
from tests.sample_files import plain_trajectories, sample_checkpoint
from tests.training_cases import pendulums, spirals

FIT = ("--method", "delta", "--model", "linear", "--order", 5, "--elements", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of one kind and of another, and a model of the first with the state of its run."""
    folder = tmp_path_factory.mktemp("made")
    save_trajectories(folder / "a.h5", spirals(2, 20))
    save_trajectories(folder / "other.h5", pendulums(2, 20))
    words = ("fit", folder / "a.h5", "-o", folder / "m.h5", *FIT, "-q")
    assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture
def here(snet: Snet, made: Path) -> Snet:
    for path in made.iterdir():
        shutil.copy(path, path.name)
    for name, width in (("two", 2), ("three", 3)):
        np.savez(f"{name}.npz", t=np.arange(3.0), x=np.zeros((3, width)))
    Path("one.csv").write_text("t,x\n0,1\n1,2\n")
    np.savez("c.npz", t=np.arange(3.0), x=np.arange(3) + 1j, by=np.zeros((3, 2)))
    return snet


COMPARE = ("compare", "a.h5", "--methods", "delta")

WRONG: list[tuple[tuple[object, ...], int, str]] = [
    (("fit", "a.h5", "-o", "a.h5", "-f"), 5, "a.h5: is an input of this command too."),
    (("fit", "a.h5", "-o", "n.h5", "--set", "observe=[[.inf,0],[0,1]]"), 2, "observe"),
    (("fit", "a.h5", "-o", "n.h5", *FIT, "--metrics", "one.csv"), 5, "one.csv: exists already."),
    (("evaluate", "m.h5.resume", "a.h5"), 4, "m.h5.resume: holds the state of an unfinished run, not a model."),
    (("evaluate", "m.h5", "a.h5", "--split", "test"), 3, "the file has no split, so '--split test' chooses nothing."),
    (("compare", "a.h5", "-o", "-", "--methods", "delta"), 2, "is a folder, not standard output."),
    ((*COMPARE, "-o", "one.csv"), 5, "one.csv: is a file, expected a folder."),
    (("compare", "a.h5", "-o", "out", "--methods", ","), 2, "--methods names no method."),
    ((*COMPARE, "-o", "out", "--test", "other.h5"), 2, "--test other.h5: has no"),
    (("compare", "--test", "a.h5", "-o", "out", "--checkpoints", "m.h5.resume"), 4, "state of an unfinished run"),
    (("compare", "--test", "a.h5", "-o", "out", "--checkpoints", "m.h5,./m.h5"), 2, "'m' is called almost as another"),
    (
        ("import", "two.npz", "three.npz", "-o", "o.h5", "--states", "x", "--time", "t"),
        3,
        "three.npz: the channels are",
    ),
    (("import", "c.npz", "-o", "o.h5", "--states", "x", "--time", "t"), 3, "complex128"),
    (("import", "c.npz", "-o", "o.h5", "--states", "t", "--time", "t", "--by", "by"), 3, "named by --by, has shape"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[message[:50] for _, _, message in WRONG])
def test_each_says_what_is_wrong(here: Snet, words: tuple[object, ...], code: int, message: str) -> None:
    before = sorted(os.listdir())
    ran = here(*words)
    assert (ran.code, message in ran.err) == (code, True), ran.err
    assert "Traceback" not in ran.err
    assert sorted(os.listdir()) == before


def test_no_trajectory_is_no_forecast() -> None:
    none = plain_trajectories(ids=(), row_size=np.zeros(0, int), time=np.zeros(0), outputs=np.zeros((0, 1)))
    with pytest.raises(DataError, match="the file holds no trajectory, so there is nothing to forecast"):
        plan_windows(none)


def test_a_device_that_is_not_there(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = here("fit", "a.h5", "-o", "n.h5", "--device", "cuda")
    assert (ran.code, "--device cuda: this machine, or this torch, has no CUDA device." in ran.err) == (2, True)


def test_an_output_of_which_only_some_are_measured_under_another_name(here: Snet) -> None:
    data = spirals(2, 20)
    save_trajectories("renamed.h5", data.__class__(**{**vars(data), "output_names": ("a", "c"), "state_names": None}))
    ran = here("evaluate", "m.h5", "renamed.h5")
    assert (ran.code, "the model's output 'b' is not in the data, which has 'c' instead." in ran.err) == (4, True)


def test_folders_and_files_that_may_not_be_written_or_read(here: Snet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may do everything, so the system's answers are given here."""
    os.mkdir("locked")
    original, make = os.access, Path.mkdir
    locked = os.path.abspath("locked")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in (locked, "locked") and original(path, mode))

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        if self.name == "pictures":
            raise OSError(errno.EROFS, "Read-only file system")
        make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    for words, message in (
        (("simulate", "pendulum", "-o", "locked/o.h5"), f"locked/o.h5: the folder {locked} is not writable."),
        ((*COMPARE, "-o", "locked"), "locked: the folder is not writable."),
        ((*COMPARE, "-o", "locked/out"), "locked/out: the folder locked is not writable."),
        (("evaluate", "m.h5", "a.h5", "--plot", "pictures"), "pictures: the folder cannot be made: Read-only file"),
    ):
        ran = here(*words)
        assert (ran.code, message in ran.err) == (5, True), ran.err


def test_a_stream_that_has_no_end_is_cut_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return b"\x89HDF\r\n\x1a\n".ljust(size, b"\0")

    class Standard:
        buffer = Endless()

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Standard())
    with pytest.raises(DataError, match="standard input: has more than the limit of 10000000 bytes"):
        read_image("-", 10_000_000)


def test_what_is_no_state_of_a_run(here: Snet) -> None:
    with pytest.raises(CheckpointError, match=r"m\.h5: is a model, expected the state of a run"):
        load_state("m.h5", 2**30)
    state = load_checkpoint("m.h5.resume")
    save_checkpoint("odd", sample_checkpoint(kind="resume", extra={**state.extra, "progress": {}}, config=state.config))
    with pytest.raises(CheckpointError, match=r"odd: is no state of a run \(KeyError"):
        load_state("odd", 2**30)


def test_matlab_files_without_arrays(here: Snet) -> None:
    for name, content in (("empty", None), ("text", np.frombuffer(b"a\0b\0", "<u2"))):
        with h5py.File(f"{name}.mat", "w", userblock_size=512) as file:
            if content is not None:
                item = file.create_dataset("words", data=content[:, None])
                item.attrs.create("MATLAB_class", np.bytes_(b"char"))
        with open(f"{name}.mat", "r+b") as stream:
            stream.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    assert "empty.mat: the file holds no arrays." in here("import", "empty.mat", "-o", "o.h5", "--states", "x").err
    assert "text.mat: 'words' " in here("import", "text.mat", "-o", "o.h5", "--states", "x").err


# rules of the guard that HDF5 itself keeps when it writes, so that only a damaged file breaks them


class Plan:
    """What a damaged file says of a data set."""

    def __init__(self, layout: int, chunk: tuple[int, ...] = (5,)) -> None:
        self.layout, self.chunk = layout, chunk

    def get_layout(self) -> int:
        return self.layout


def test_layouts_and_chunks_that_hdf5_would_not_write(tmp_path: Path) -> None:
    walk = guard._Walk(1000, 2**30)

    class Dataset:
        def get_create_plist(self) -> Plan:
            return Plan(9)

    with pytest.raises(guard.RefusedError, match="'/a' has an unknown layout"):
        guard._inspect_dataset(Dataset(), "/a", walk)
    with pytest.raises(guard.RefusedError, match="'/a' has 2 dimensions but chunks of 1"):
        guard._inspect_chunks(None, (5,), (5, 5), 8, "/a")
    with pytest.raises(guard.RefusedError, match="'/a' has chunks of size zero"):
        guard._inspect_chunks(None, (0,), (5,), 8, "/a")
    with pytest.raises(
        guard.RefusedError, match="'/a' declares 1000000 bytes but stores 10, less than any compression"
    ):
        guard._inspect_size(1_000_000, 10, "/a", walk)


def test_a_link_whose_name_is_a_path() -> None:
    """A name with a slash, which HDF5 would follow through links that nobody has looked at."""

    class Links:
        def iterate(self, add: Any) -> None:
            add(b"a/b")

    class Group:
        links = Links()

        def get_num_objs(self) -> int:
            return 1

    with pytest.raises(guard.RefusedError, match="'/a/b' is not a name that HDF5 allows"):
        guard._inspect_group(Group(), "", 1, guard._Walk(1000, 2**30))
